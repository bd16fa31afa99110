"""What a client may send, and what it gets back. Unknown fields are errors."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictBool, Tag
from pydantic.json_schema import SkipJsonSchema

from embeddings.schema import Attributes, Consent, Event, Id, Item, Moment, Scalar, User
from embeddings.schema import Name as FieldName

MAX_K = 200
MAX_BATCH = 1000


class Body(BaseModel):
    """Base of everything a client sends."""

    model_config = ConfigDict(extra="forbid")


K = Annotated[
    int | None,
    Field(
        ge=1, le=MAX_K, strict=True, description="How many items to return; as many as the placement says by default."
    ),
]
Page = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=200_000,
        description="The `next_page` of an answer, with the same request: what comes below, without repeating anything.",
    ),
]
Context = Annotated[
    dict[FieldName, Scalar],
    Field(max_length=32, description="Facts of the request: channel, country, device, …"),
]
Filter = Annotated[
    dict[str, Any] | None,
    Field(description='A condition over item attributes, such as {"attribute": "price", "op": "lt", "value": 20}.'),
]
Exclude = Annotated[list[Id], Field(max_length=MAX_BATCH, description="Items that must not be in the answer.")]
WhatIf = Annotated[
    StrictBool | Literal["counterfactual"],
    Field(
        description="True returns the stage trace; `counterfactual` also what the list would be without an event, a rule, "
        "one of its places, or the person."
    ),
]
Explain = Annotated[bool, Field(strict=True, description="Return the stage trace.")]
Fields = Annotated[bool, Field(strict=True, description="Return the items themselves, not only their ids.")]


Deadline = Annotated[
    float | None,
    Field(ge=5, le=60_000, description="Milliseconds; asks for an answer sooner than the service's own deadline."),
]


class RecommendationsIn(Body):
    """A person asks for a list."""

    user_id: Id
    placement: Id = "default"
    k: K = None
    context: Context = {}
    filter: Filter = None
    exclude: Exclude = []
    anchor: Annotated[
        Id | None,
        Field(
            description="The item that a placement such as `because_you_watched` starts from; by default the latest."
        ),
    ] = None
    page: Page = None
    personalized: Annotated[bool, Field(strict=True, description="False gives everybody's list.")] = True
    explain: WhatIf = False
    fields: Fields = False
    deadline_ms: Deadline = None


class SimilarIn(Body):
    """An item asks for its like; with `user_id`, what that person has consumed is left out."""

    item_id: Id
    user_id: Id | None = None
    placement: Id = "similar"
    k: K = None
    context: Context = {}
    filter: Filter = None
    exclude: Exclude = []
    page: Page = None
    explain: Explain = False
    fields: Fields = False
    deadline_ms: Deadline = None


class RankingsIn(Body):
    """The caller's own list, to be put in the person's order."""

    user_id: Id
    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_BATCH)]
    placement: Id = "default"
    context: Context = {}
    explain: Explain = False
    fields: Fields = False
    deadline_ms: Deadline = None


class PageIn(Body):
    """A person opens a page; which shelves it has, and what else, is said by the layout of that name."""

    user_id: Id
    page: Annotated[Id, Field(description="Name of the layout.")] = "home"
    item_id: Annotated[Id | None, Field(description="The item that the page is about, on a product page.")] = None
    context: Context = {}
    exclude: Exclude = []
    personalized: Annotated[bool, Field(strict=True, description="False gives everybody's page.")] = True
    explain: Explain = False
    fields: Fields = False
    deadline_ms: Deadline = None


class EventIn(Event):
    """One event; without a timestamp it happened now."""

    timestamp: Moment = Field(default_factory=lambda: datetime.now(UTC))


class EventBatch(Body):
    """Several events, all of them or none."""

    events: Annotated[list[EventIn], Field(min_length=1, max_length=MAX_BATCH)]


def _shape(body: Any) -> str:
    return "batch" if isinstance(body, dict) and "events" in body else "single"


EventsIn = Annotated[
    Annotated[EventBatch, Tag("batch")] | Annotated[EventIn, Tag("single")],
    Discriminator(_shape),
]


class ItemIn(Item):
    """An item whose id stands in the path."""

    item_id: SkipJsonSchema[str] = Field(default="", max_length=0)


class ItemsIn(Body):
    """Items to insert or replace."""

    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_BATCH)]


class UsersIn(Body):
    """People to insert or replace."""

    users: Annotated[list[User], Field(min_length=1, max_length=MAX_BATCH)]


class UserIn(Body):
    """Attributes of one person, replacing those before, and what they say about consent, beside what they said before."""

    attributes: Attributes = {}
    consent: Consent = {}


class ReasonOut(Body):
    """Why an item is on the list."""

    code: str
    text: str
    item_id: str | None
    rule_id: str | None


class RecommendedOut(Body):
    """One item of the answer."""

    item_id: str
    score: float
    position: int
    reasons: list[ReasonOut]
    item: Item | None = None


class AnchorOut(Body):
    """The item that a list starts from; `event_type` is what the person did with it, if that is why."""

    item_id: str
    title: str
    event_type: str | None


class CounterfactualOut(Body):
    """The list without one thing: an event (by its item), a rule, the item of a place, or everything known of the person.

    `items` is that list; `entered` and `left` are the difference, `moved` counts those on both that stand elsewhere.
    """

    kind: Literal["event", "rule", "place", "person"]
    id: str
    text: str
    items: list[str]
    entered: list[str]
    left: list[str]
    moved: int
    same: bool


class AnswerOut(Body):
    """A list, with everything needed to account for it.

    `unserved` says of sources and values of the placement why this release or catalogue cannot serve them.
    """

    recommendation_id: str
    model_version: str
    policy_version: int
    experiment: dict[str, str]
    degraded: list[str]
    items: list[RecommendedOut]
    next_page: str | None
    anchor: AnchorOut | None = None
    unserved: dict[str, str] = {}
    unknown: list[str] = []
    trace: dict[str, Any] | None = None
    counterfactuals: list[CounterfactualOut] = []


class SlotOut(Body):
    """One slot of the page, top to bottom; `content` is what was decided for a content or an alert."""

    id: str
    type: Literal["shelf", "content", "alert", "tile"]
    pinned: bool
    title: str | None
    placement: str | None = None
    anchor: AnchorOut | None = None
    items: list[RecommendedOut] = []
    content: dict[str, Any] | None = None
    unserved: dict[str, str] = {}


class PageOut(Body):
    """A page. Positions of items run through all shelves; events echo them with the `recommendation_id` of the page."""

    recommendation_id: str
    page: str
    model_version: str
    policy_version: int
    experiment: dict[str, str]
    degraded: list[str]
    slots: list[SlotOut]
    trace: dict[str, Any] | None = None


class PreviewIn(Body):
    """A draft of a placement, and how much is asked again to see what it would move."""

    placement: Annotated[dict[str, Any], Field(description="The draft, as it would be stored.")]
    requests: Annotated[int, Field(ge=1, le=1000, strict=True, description="At most so many logged requests.")] = 200
    seconds: Annotated[float, Field(gt=0, le=8, description="Not longer than this.")] = 4.0


class SidesOut(Body):
    """A figure with the placement in force, and with the draft; null where there is none."""

    current: float | None
    draft: float | None


class EstimateIn(Body):
    """A draft of a placement, and what of the log tells whether it would be better."""

    placement: Annotated[dict[str, Any], Field(description="The draft, as it would be stored.")]
    reward: Annotated[FieldName, Field(description="Type of the events that count, if they echo the answer.")] = "click"
    by_value: Annotated[bool, Field(strict=True, description="Sum their values instead of counting them.")] = False
    requests: Annotated[int, Field(ge=100, le=10_000, strict=True, description="At most so many logged requests.")] = (
        1000
    )
    seconds: Annotated[float, Field(gt=0, le=8, description="Not longer than this.")] = 6.0


class IntervalOut(Body):
    """An estimate and its bounds."""

    estimate: float
    low: float
    high: float


class SideOut(Body):
    """What one placement brings an answer, by three estimators.

    `effective` answers tell as much as the weighed ones do; `supported` is the share of the places that the log could have
    shown: of the others it knows nothing.
    """

    ips: IntervalOut
    snips: IntervalOut
    dr: IntervalOut
    effective: float
    supported: float


class EstimateOut(Body):
    """The placement in force beside the draft, both without exploration; `shown` is what the logged answers brought.

    `explored` is the share of the answers that were open to chance; `difference` is doubly robust, answer by answer.
    """

    placement: str
    reward: str
    by_value: bool
    logged: int
    replayed: int
    seconds: float
    explored: float
    shown: float
    current: SideOut
    draft: SideOut
    difference: IntervalOut


class CategoryOut(SidesOut):
    """Share of the places with an item of a category."""

    category: str


class BandOut(SidesOut):
    """Share of the places with a price in a band: above one bound, up to the other."""

    above: float | None
    up_to: float | None


class MoverOut(SidesOut):
    """Exposure of an item in a list, on average: 1 for the first place, 1 / log2(1 + place) for the others."""

    item_id: str
    title: str


class TitledOut(Body):
    """An item by name."""

    item_id: str
    title: str


class ExampleOut(Body):
    """One request, named by the answer that it got, and the heads of its two lists."""

    recommendation_id: str
    at: datetime
    current: list[TitledOut]
    draft: list[TitledOut]


class ComparedOut(Body):
    """What a draft moves: `logged` requests were found, `replayed` of them asked again, `changed` get another list.

    `means` are taken over all places, of values, price, novelty (0 for the best known item) and age.
    """

    logged: int
    replayed: int
    seconds: float
    changed: int
    overlap: float | None
    rank_biased_overlap: float | None
    means: dict[str, SidesOut]
    categories: list[CategoryOut]
    price_bands: list[BandOut]
    rising: list[MoverOut]
    falling: list[MoverOut]
    examples: list[ExampleOut]


class PreviewOut(ComparedOut):
    """What the draft of a placement moves."""

    placement: str


class FiredOut(Body):
    """On how many of the replayed requests a rule was in force: `current` without the draft, `draft` with it."""

    rule: str
    current: int
    draft: int


class ConflictOut(Body):
    """Two rules, and what is wrong with them together."""

    rule: str
    other: str
    text: str


class SimulationOut(ComparedOut):
    """What the draft of a rule moves; `never` are rules that were in force on none of the requests."""

    rule: str
    fired: list[FiredOut]
    never: list[str]
    conflicts: list[ConflictOut]


class SimulationIn(Body):
    """How much is asked again."""

    requests: Annotated[int, Field(ge=1, le=1000, strict=True, description="At most so many logged requests.")] = 200
    seconds: Annotated[float, Field(gt=0, le=8, description="Not longer than this.")] = 4.0


class DraftIn(Body):
    """A rule as it would stand; null to remove the one of that id."""

    rule: Annotated[dict[str, Any] | None, Field(description="The rule, as it would be stored.")]


class DraftOut(Body):
    """A draft, and how far it is.

    `author` wrote it as it is, `approved_by` is whoever else agreed to just that. `share` of the people get the rule, null
    before it is released. `needs_approval`: it cannot be released before somebody else agrees. `difference` is what it
    changes of the rule in force, by field.
    """

    id: str
    rule: dict[str, Any] | None
    author: str
    approved_by: str | None
    share: float | None
    needs_approval: bool
    difference: dict[str, dict[str, Any]]
    version: int
    updated_at: datetime
    updated_by: str


class DraftListOut(Body):
    """All drafts, by id."""

    drafts: list[DraftOut]


class StepIn(Body):
    """What is said about a step."""

    reason: Annotated[str | None, Field(min_length=1, max_length=500, description="Why; it goes into the audit.")] = (
        None
    )


class RampIn(StepIn):
    """To how many of the people, always the same; more are added, and nobody drops out."""

    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0


class RuleChangedOut(Body):
    """The rule that is in force after a change, null where there is none."""

    id: str
    rule: dict[str, Any] | None
    version: int


class AcceptedOut(Body):
    """Events that are durable now.

    `erased` are events of people who were erased after they happened; they are not stored. It is left out when there are
    none.
    """

    accepted: int
    duplicates: int
    event_ids: list[str]
    erased: int = 0


class UpsertedOut(Body):
    """How many rows were written."""

    upserted: int


class ItemPageOut(Body):
    """Items in the order of their ids."""

    items: list[Item]
    next: str | None


class ConsentOut(Body):
    """What a person allows; they allow what they never spoke about."""

    personalization: bool
    analytics: bool
    marketing: bool


class UserOut(Body):
    """A person in a list."""

    user_id: str
    attributes: dict[str, Any]
    consent: ConsentOut
    events: int
    last_seen: datetime | None


class UserPageOut(Body):
    """People, the most recently active first."""

    users: list[UserOut]
    next: str | None


class AliasOut(Body):
    """Another id of a person, and since when it is one."""

    alias: str
    created_at: datetime


class AliasesOut(Body):
    """A person, and every other id of theirs."""

    user_id: str
    aliases: list[AliasOut]


class UserSegmentsOut(Body):
    """The segments that a person is in."""

    user_id: str
    segments: list[str]


class MembersOut(Body):
    """People of a segment among those that were looked at; `next` is the `after` of the page after it."""

    segment: str
    user_ids: list[str]
    looked_at: int
    next: str | None


class ClustersIn(Body):
    """How many groups, of how many of the people who were active last."""

    count: Annotated[int, Field(ge=2, le=30, strict=True)] = 8
    people: Annotated[int, Field(ge=10, le=5000, strict=True)] = 1000


class ClusterOut(Body):
    """A group of people, named by what is over-represented in what they do.

    `segment` is a document that holds the group; `agreement` is how well: people in both of those in either.
    """

    name: str
    people: int
    share: float
    agreement: float
    segment: dict[str, Any]


class ClustersOut(Body):
    """Groups of people, the largest first."""

    people: int
    clusters: list[ClusterOut]


class HistoryOut(Body):
    """One remembered event."""

    item_id: str
    title: str
    event_type: str
    timestamp: datetime
    value: float | None


class ProfileOut(UserOut):
    """Everything the service remembers of a person; `summary` says it in plain words.

    `interests` are categories of what they touched, `segments` those they are in, `answers` what the log says they were
    shown, `messages` the batches that hold a message for them.
    """

    summary: list[str]
    aliases: list[AliasOut]
    interests: list[str]
    segments: list[str]
    answers: int
    last_answer: datetime | None
    messages: list[str]
    history: list[HistoryOut]


class ContactOut(Body):
    """A content or an alert that was shown, under the name that it counts by; `subject` says what it was about."""

    counted: str
    subject: str
    at: datetime


class PersonOut(ProfileOut):
    """The same with every event, whether lists look at it or not, every answer of the decision log, and every contact.

    A contact says what was shown and may not come too often.
    """

    all_events: list[Event]
    all_answers: list[dict[str, Any]]
    all_contacts: list[ContactOut]


Why = Annotated[str | None, Field(min_length=1, max_length=500, description="Why; it stands in the receipt.")]


class EraseIn(Body):
    """What is said about an erasure."""

    reason: Why = None


class ReceiptOut(Body):
    """What an erasure took away, signed; `removed` counts by kind.

    `exports_pending` among them are exports that could not be written at that moment: the next one takes the person out.
    """

    receipt_id: str
    user_id: str
    aliases: list[str]
    erased_at: str
    reason: str | None
    removed: dict[str, int]
    signature: str


class ErasedOut(Body):
    """How many events went, and the receipt that lists everything."""

    user_id: str
    erased_events: int
    receipt: ReceiptOut


class ReceiptIn(Body):
    """A receipt as it was given out."""

    receipt_id: Annotated[str, Field(max_length=64)]
    user_id: Id
    aliases: Annotated[list[Id], Field(max_length=1000)]
    erased_at: Annotated[str, Field(max_length=64)]
    reason: Why = None
    removed: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[int, Field(ge=0, lt=2**53)]], Field(max_length=32)
    ]
    signature: Annotated[str, Field(max_length=128)]


class VerifiedOut(Body):
    """Whether a receipt is one of this service's, and as it was given out."""

    valid: bool


class InfoOut(Body):
    """What is in service."""

    model_version: str
    policy_version: int
    items: int
    topology: Literal["fused", "chained"]


class HealthOut(Body):
    """The process answers."""

    status: Literal["ok"]


class ReadyOut(Body):
    """Whether recommendations can be served."""

    ready: bool
    model_version: str | None


class ReleaseOut(Body):
    """A release; `share` and `goal` of a trial, `reason` of a withdrawal, `problem`: what is wrong with it."""

    name: str
    state: Literal["current", "canary", "shadow", "withdrawn", "idle"]
    share: float | None
    goal: str | None
    reason: str | None
    changed_at: datetime | None
    created_at: datetime | None
    items: int | None
    metrics: dict[str, dict[str, float]]
    problem: str | None


class ArmOut(Body):
    """What one arm of a canary did on the replica that was asked; null without answers."""

    answers: int
    error_rate: float | None
    p50_ms: float | None
    p99_ms: float | None
    successes: int
    success_rate: float | None


class DifferenceOut(Body):
    """How the lists of a shadow differ from those that went out, as means over the compared requests."""

    compared: int
    dropped: int
    failed: int
    overlap: float | None
    rank_biased_overlap: float | None


class TrialOut(Body):
    """The trial under way on the replica that was asked."""

    name: str
    mode: Literal["canary", "shadow"]
    share: float
    goal: str
    control: ArmOut | None = None
    canary: ArmOut | None = None
    difference: DifferenceOut | None = None


class ReleasesOut(Body):
    """All releases, newest first, and the trial under way."""

    serving: str | None
    releases: list[ReleaseOut]
    trial: TrialOut | None


class RolledBackOut(Body):
    """Which release was withdrawn, and which one is current now."""

    withdrawn: str
    current: str


class RollbackIn(Body):
    """Why; it goes into the audit."""

    reason: Annotated[str, Field(min_length=1, max_length=500)] = "rolled back by hand"


class AuditEntryOut(Body):
    """Who changed what; `by` is the id of a key, `before` and `after` are None where nothing was, `why` if nobody said."""

    version: int
    at: datetime
    by: str
    action: Literal["create", "update", "delete"]
    kind: str
    id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    why: str | None


class AuditPageOut(Body):
    """Changes, the latest first; `next` is the `below` of the page after it."""

    entries: list[AuditEntryOut]
    next: int | None
