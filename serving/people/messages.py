"""Messages: what a person is sent by e-mail, push or any other channel, composed as the live service would answer them.

A campaign says which placement fills the list, on which channel, at which moment, and to whom. A message is one row of
the feed: a list with titles, links and reasons, what it is time to buy again, and the id that later events echo.
"""

from __future__ import annotations

import json
import math
import string
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any
from urllib.parse import quote

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from embeddings.errors import InputError, unknown_name
from embeddings.schema import TIME, Id, Label, allows
from serving.decisions.deciding import Decided, DecisionQuery
from serving.policy import syntax
from serving.policy.compiled import Policy
from serving.policy.conditions import Condition
from serving.policy.contact import Cap, Quiet
from serving.policy.contents import check_no_alert
from serving.policy.rules import FACTS
from serving.replica.engine import Engine
from serving.request.catalogue import Catalogue
from serving.request.query import Query
from serving.request.replenishment import moment_of
from serving.request.work import Work
from serving.store import Decision, Profile

LINKS = ("link", "url")
"""Attributes of an item that hold its address, where a campaign has no template."""

PLACES = ("item_id", "recommendation_id", "position", "channel", "placement")
"""What the template of a link may name in braces."""

_ITEM = pa.struct(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("link", pa.string()),
        ("price", pa.float64()),
        ("score", pa.float64()),
        ("reason_code", pa.string()),
        ("reason", pa.string()),
    ]
)
_DUE = pa.struct(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("link", pa.string()),
        ("price", pa.float64()),
        ("due_at", TIME),
        ("confidence", pa.float64()),
    ]
)
_CONTENT = pa.struct(
    [
        ("content", pa.string()),
        ("recommendation_id", pa.string()),
        ("variant", pa.string()),
        ("payload", pa.string()),
    ]
)
FEED = pa.schema(
    [
        ("user_id", pa.string()),
        ("channel", pa.string()),
        ("placement", pa.string()),
        ("recommendation_id", pa.string()),
        ("at", TIME),
        ("send_after", TIME),
        ("valid_until", TIME),
        ("personalized", pa.bool_()),
        ("items", pa.list_(_ITEM)),
        ("due", pa.list_(_DUE)),
        ("content", _CONTENT),
        ("experiment", pa.string()),
        ("model_version", pa.string()),
        ("policy_version", pa.int64()),
    ]
)
"""One row a person; `send_after` is null unless it is quiet for them at `at`; `payload` and `experiment` are JSON."""


def _template(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise InputError(f"link: {error}", field="link") from None
    for name in names:
        if name not in PLACES:
            raise unknown_name("place", name, PLACES, field="link")
    return text


class Campaign(BaseModel):
    """What is sent to whom.

    `k` is 0 for as many items as the placement says. `filter` is a condition over people such as a rule's `when`, `segment`
    one that they must be in. `link` is the template of an item's address, with names of `PLACES` in braces. `content` is
    one that a message has beside its list, in the variant for the person.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    placement: Id = "default"
    channel: Label = "email"
    at: datetime
    k: Annotated[int, Field(ge=0, le=200)] = 0
    filter: dict[str, Any] | None = None
    segment: Id | None = None
    link: Annotated[str | None, BeforeValidator(_template)] = None
    valid_hours: Annotated[float, Field(gt=0, le=24 * 365, allow_inf_nan=False)] = 24.0
    cap: Cap | None = None
    quiet: Quiet | None = None
    content: Id | None = None

    @property
    def valid_until(self) -> datetime:
        """The moment from which on a message must not be sent any more."""
        return self.at + timedelta(hours=self.valid_hours)

    @cached_property
    def condition(self) -> Condition | None:
        """The filter, read; raises `InputError` for one that is none."""
        if self.filter is None:
            return None
        return syntax.parse(self.filter, known=FACTS, field="filter", behaviour=True)

    def check(self, policy: Policy) -> None:
        """Raise `InputError` where it names a segment or a content that a policy has not, or an alert."""
        segments, contents = policy.segments.by_id, policy.contents
        if self.segment is not None and self.segment not in segments:
            raise unknown_name("segment", self.segment, segments, field="segment")
        if self.content is None:
            return
        if self.content not in contents:
            raise unknown_name("content", self.content, contents, field="content")
        check_no_alert(contents[self.content], "content")


@dataclass(frozen=True, kw_only=True)
class Composed:
    """Messages as rows of `FEED`, the decisions behind each in the same order, and how many people got none, and why."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[list[Decision]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


class Composer:
    """Composes the messages of one campaign. `name` makes their ids: composed again, a message has the same one."""

    def __init__(self, engine: Engine, campaign: Campaign, name: uuid.UUID) -> None:
        self.engine, self.campaign, self.name = engine, campaign, name
        self.context: Mapping[str, Any] = {"channel": campaign.channel}
        policy = engine.snapshot.policy
        campaign.check(policy)
        self.k = campaign.k or policy.placement(campaign.placement).k

    async def compose(self, user_ids: Iterable[str]) -> Composed:
        """Compose a message for everybody of some people who may get one, and whom there is something to tell."""
        names = list(user_ids)
        met = self._met(names)
        done = Composed()
        for user_id in names:
            profile = self.engine.store.profiles.read(user_id).profile
            why = "unknown" if profile is None else self._refused(profile, met.get(user_id, 0))
            if profile is None or why is not None:
                done.skipped[why or "unknown"] += 1
                continue
            row, decision = await self._message(user_id, profile)
            decided = await self._content(user_id, profile)
            if not row["items"] and not row["due"] and (decided is None or decided.variant is None):
                done.skipped["nothing to show"] += 1
                continue
            if decided is not None and decided.variant is not None:
                row["content"] = {
                    "content": decided.content,
                    "recommendation_id": decided.recommendation_id,
                    "variant": decided.variant,
                    "payload": json.dumps(decided.payload, ensure_ascii=False, sort_keys=True),
                }
            done.rows.append(row)
            done.decisions.append(
                [decision] if decided is None or not decided.logged else [decision, decided.decision()]
            )
        return done

    def _met(self, user_ids: list[str]) -> Mapping[str, int]:
        """How many messages people got lately on the channel; empty if nobody limits them."""
        cap = self.campaign.cap
        if cap is None:
            return {}
        since = self.campaign.at - timedelta(days=cap.days)
        return self.engine.store.batches.contacts(user_ids, self.campaign.channel, since, self.campaign.at)

    def _refused(self, profile: Profile, met: int) -> str | None:
        campaign = self.campaign
        if not allows(profile.consent, "marketing"):
            return "no consent to marketing"
        condition = campaign.condition
        if condition is not None or campaign.segment is not None:
            work = Work(Query(k=1, now=campaign.at, context=self.context), self.engine.snapshot, profile)
            if campaign.segment is not None and campaign.segment not in work.segments:
                return "not in the segment"
            if condition is not None and not condition.matches(work.facts, now=work.seconds):
                return "not in the filter"
        return "over the cap" if campaign.cap is not None and met >= campaign.cap.limit else None

    async def _message(self, user_id: str, profile: Profile) -> tuple[dict[str, Any], Decision]:
        campaign, snapshot = self.campaign, self.engine.snapshot
        personalized = allows(profile.consent, "personalization")
        query = Query(
            k=self.k,
            now=campaign.at,
            user_id=user_id,
            placement=campaign.placement,
            context=self.context,
            personalized=personalized,
        )
        listed = await self.engine.compose(query, profile)
        # A canary's mark at the end of the id stays: by it the events that echo the id are counted.
        own = uuid.uuid5(self.name, user_id).hex + listed.recommendation_id[32:]
        listed = listed._replace(answer=replace(listed.answer, recommendation_id=own))
        answer = listed.answer
        work = Work(query, snapshot, profile)
        again = [one for row, one in work.due.items() if work.permits(row)]
        row = {
            "user_id": user_id,
            "channel": campaign.channel,
            "placement": campaign.placement,
            "recommendation_id": own,
            "at": campaign.at,
            "send_after": None if campaign.quiet is None else campaign.quiet.until(campaign.at, profile.attributes),
            "valid_until": campaign.valid_until,
            "personalized": personalized,
            "items": [
                {
                    **self._item(snapshot.catalogue, one.item_id, own, place),
                    "score": one.score,
                    "reason_code": one.reasons[0].code if one.reasons else None,
                    "reason": one.reasons[0].text if one.reasons else None,
                }
                for place, one in enumerate(answer.items)
            ],
            "due": [
                {
                    **self._item(snapshot.catalogue, one.item_id, own, None),
                    "due_at": moment_of(one.outlook.due_at),
                    "confidence": one.outlook.confidence(campaign.at.timestamp()),
                }
                for one in again
            ],
            "experiment": json.dumps(dict(answer.experiment), sort_keys=True),
            "model_version": answer.model_version,
            "policy_version": answer.policy_version,
        }
        return row, listed.decision()

    async def _content(self, user_id: str, profile: Profile) -> Decided | None:
        """What is decided about the campaign's content; composed again, it is the same showing, and counts once."""
        campaign = self.campaign
        if campaign.content is None:
            return None
        query = DecisionQuery(
            contents=[campaign.content], now=campaign.at, user_id=user_id, context=self.context, seed=self.name.hex
        )
        decided, _ = await self.engine.decided(query, profile)
        return decided[0]

    def _item(self, catalogue: Catalogue, item_id: str, own: str, place: int | None) -> dict[str, Any]:
        row = catalogue.row(item_id)
        title, price = (catalogue.title(row), float(catalogue.prices[row])) if row >= 0 else (item_id, math.nan)
        link = self._link(catalogue, row, item_id, own, place)
        return {"item_id": item_id, "title": title, "link": link, "price": None if math.isnan(price) else price}

    def _link(self, catalogue: Catalogue, row: int, item_id: str, own: str, place: int | None) -> str | None:
        campaign = self.campaign
        if campaign.link is not None:
            values = (item_id, own, "" if place is None else str(place), campaign.channel, campaign.placement)
            return campaign.link.format_map(dict(zip(PLACES, (quote(one, safe="") for one in values), strict=True)))
        found = [catalogue.value(row, name) for name in LINKS] if row >= 0 else []
        return next((one for one in found if isinstance(one, str)), None)
