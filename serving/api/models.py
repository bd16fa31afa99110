"""What a client may send, and what it gets back. Unknown fields are errors."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from embeddings.schema import Attributes, Event, Id, Item, Moment, Scalar, User
from embeddings.schema import Name as FieldName
from serving.policy.rules import Rule

MAX_K = 200
MAX_BATCH = 1000


class Body(BaseModel):
    """Base of everything a client sends."""

    model_config = ConfigDict(extra="forbid")


K = Annotated[int, Field(ge=1, le=MAX_K, strict=True, description="How many items to return.")]
Context = Annotated[
    dict[FieldName, Scalar],
    Field(max_length=32, description="Facts of the request: channel, country, device, …"),
]
Filter = Annotated[
    dict[str, Any] | None,
    Field(description='A condition over item attributes, such as {"attribute": "price", "op": "lt", "value": 20}.'),
]
Exclude = Annotated[list[Id], Field(max_length=MAX_BATCH, description="Items that must not be in the answer.")]
Explain = Annotated[bool, Field(strict=True, description="Return the stage trace.")]
Fields = Annotated[bool, Field(strict=True, description="Return the items themselves, not only their ids.")]


class RecommendationsIn(Body):
    """A person asks for a list."""

    user_id: Id
    placement: Id = "default"
    k: K = 20
    context: Context = {}
    filter: Filter = None
    exclude: Exclude = []
    personalized: Annotated[bool, Field(strict=True, description="False gives everybody's list.")] = True
    explain: Explain = False
    fields: Fields = False


class SimilarIn(Body):
    """An item asks for its like; with `user_id`, what that person has consumed is left out."""

    item_id: Id
    user_id: Id | None = None
    placement: Id = "default"
    k: K = 20
    filter: Filter = None
    exclude: Exclude = []
    explain: Explain = False
    fields: Fields = False


class RankingsIn(Body):
    """The caller's own list, to be put in the person's order."""

    user_id: Id
    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_BATCH)]
    placement: Id = "default"
    context: Context = {}
    explain: Explain = False
    fields: Fields = False


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
    """Attributes of one person, replacing those before."""

    attributes: Attributes = {}


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


class AnswerOut(Body):
    """A list, with everything needed to account for it."""

    recommendation_id: str
    model_version: str
    policy_version: int
    experiment: dict[str, str]
    degraded: list[str]
    items: list[RecommendedOut]
    unknown: list[str] = []
    trace: dict[str, Any] | None = None


class AcceptedOut(Body):
    """Events that are durable now."""

    accepted: int
    duplicates: int
    event_ids: list[str]


class UpsertedOut(Body):
    """How many rows were written."""

    upserted: int


class ItemPageOut(Body):
    """Items in the order of their ids."""

    items: list[Item]
    next: str | None


class UserOut(Body):
    """A person in a list."""

    user_id: str
    attributes: dict[str, Any]
    events: int
    last_seen: datetime | None


class UserPageOut(Body):
    """People, the most recently active first."""

    users: list[UserOut]
    next: str | None


class HistoryOut(Body):
    """One remembered event."""

    item_id: str
    title: str
    event_type: str
    timestamp: datetime
    value: float | None


class ProfileOut(UserOut):
    """Everything the service remembers of a person."""

    history: list[HistoryOut]


class ErasedOut(Body):
    """What an erasure took away."""

    user_id: str
    erased_events: int


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


class RuleOut(Rule):
    """A rule as it is stored."""

    version: int


class RulesOut(Body):
    """All rules."""

    rules: list[RuleOut]
