"""Deciding: which variant of a content somebody gets now, or why they get none.

    in force · eligible · held out · capped · which variant

Chance is the same for an hour: who asks again gets the same variant, on every device, as long as nothing was learned that
changes it. What is capped is claimed before it is answered, so no cap is exceeded by several replicas together.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np

from embeddings.arrays import Floats
from embeddings.errors import BespokeError, NotFound, unknown_name
from embeddings.ids import bucket, stable_hash
from serving.decisions.contexts import Axes, axes_of, context_of
from serving.decisions.learning import Learned
from serving.policy.conditions import Condition
from serving.policy.contents import Content, check_no_alert
from serving.policy.facts import facts
from serving.policy.layers import EXPERIMENTS
from serving.policy.rules import asks_for_people
from serving.request.query import Query, Reason
from serving.request.snapshot import Snapshot
from serving.request.work import Work
from serving.stages.effects import logged_as
from serving.store import Contact, Decision, Store
from serving.store.lessons import FEATURES

logger = logging.getLogger("bespoke.contents")

SHARES = 1_000_000
HOUR_S = 3600.0

REASONS: Mapping[str, str] = {
    "learned": "what people like this one respond to best, as far as is known",
    "tried": "tried now and then, so that it is known what people respond to",
    "weights": "drawn by the weights of the variants",
    "only": "the only variant that this person may get",
    "not_in_force": "the content is switched off, or outside of its dates",
    "not_eligible": "person and request do not fulfil the conditions",
    "holdout": "this person is held out, to be compared with those who see it",
    "capped": "this person was shown it as often as they may be",
    "unavailable": "it is capped, and how often this person was shown it could not be told in time",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionQuery:
    """One request for decisions on some contents, by their ids.

    With a `seed` the ids of the decisions follow from it and from the person, so that asked again they are the same ones.
    """

    contents: Sequence[str]
    now: datetime
    user_id: str
    context: Mapping[str, Any] = field(default_factory=dict)
    personalized: bool = True
    explain: bool = False
    deadline_ms: float | None = None
    seed: str = ""

    @property
    def person(self) -> Query:
        """The request as far as it is about the person."""
        return Query(
            now=self.now,
            user_id=self.user_id,
            placement="for_you",
            context=self.context,
            personalized=self.personalized,
            explain=self.explain,
            page="",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """What was decided about one content: a variant with its payload, or none, and why.

    `propensity` is the probability with which this variant was drawn. `chances` and `means` are those of every variant, for
    an explanation. `occasion` says what an alert is about. `contact` is to be claimed before it is answered.
    `arms` are those of experiments with this content.
    """

    recommendation_id: str
    content: str
    reason: str
    work: Work
    variant: str | None = None
    payload: Mapping[str, Any] | None = None
    propensity: float | None = None
    score: float = 0.0
    features: Floats | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    occasion: Mapping[str, Any] | None = None
    contact: Contact | None = None
    page: str | None = None
    arms: Mapping[str, str] = field(default_factory=dict)

    @property
    def because(self) -> Reason:
        """The reason in words."""
        return Reason(code=self.reason, text=REASONS[self.reason])

    @property
    def logged(self) -> bool:
        """Whether it is worth a row of the log: something was shown, or held back to be compared with."""
        return self.variant is not None or self.reason == "holdout"

    def refused(self, reason: str) -> Decided:
        """The same without a variant."""
        return replace(self, reason=reason, variant=None, payload=None, propensity=None, contact=None)

    def shown(self) -> dict[str, Any]:
        """What an answer has of it."""
        return {
            "content": self.content,
            "recommendation_id": self.recommendation_id,
            "variant": self.variant,
            "payload": self.payload,
            "propensity": self.propensity,
            "reason": {"code": self.reason, "text": REASONS[self.reason]},
            **({"experiment": self.arms} if self.arms else {}),
            **(self.occasion or {}),
        }

    def decision(self) -> Decision:
        """The row of the log."""
        work = self.work
        channel = work.query.context.get("channel")
        request: dict[str, Any] = {"context": dict(work.query.context), "reason": self.reason}
        if self.features is not None:
            request[FEATURES] = [round(float(one), 4) for one in self.features]
        if self.occasion is not None:
            request["trigger"] = self.occasion["trigger"]
        if self.page is not None:
            request["page"] = self.page
        shown = self.variant is not None
        return Decision(
            recommendation_id=self.recommendation_id,
            user_id=logged_as(work),
            at=work.query.now,
            kind="content",
            placement=self.content,
            channel=channel if isinstance(channel, str) else None,
            request=request,
            items=[self.variant] if self.variant is not None else [],
            scores=[self.score] if shown else [],
            propensities=[self.propensity or 0.0] if shown else [],
            sources=[[self.reason]] if shown else [],
            arms={**work.arms, **self.arms},
            model_version=work.snapshot.bundle.name,
            policy_version=work.snapshot.policy.version,
            degraded=list(work.degraded),
        )


class Contents:
    """Decides contents for people. All but `claimed` runs in the threads of requests."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.learned = Learned(store)
        self._axes: tuple[str, Axes] | None = None

    def decided(self, query: DecisionQuery, work: Work) -> list[Decided]:
        """Decide several contents, in their order; one that is named twice is decided once.

        Raises `NotFound` for one that does not exist, `InputError` for an alert.
        """
        contents = work.snapshot.policy.contents
        for place, name in enumerate(query.contents):
            field = f"contents.{place}"
            if name not in contents:
                raise NotFound(unknown_name("content", name, contents).message, field=field)
            check_no_alert(contents[name], field)
        return [self.decide(contents[name], work, seed=query.seed) for name in dict.fromkeys(query.contents)]

    def decide(self, content: Content, work: Work, occasion: Occasion | None = None, *, seed: str = "") -> Decided:
        """Decide one content for a person; an alert with what it is about. Nothing is claimed yet."""
        whose = work.profile.user_id or work.query.user_id or ""
        drawn = uuid.uuid5(uuid.UUID(seed), f"{content.id}\n{whose}") if seed else uuid.uuid4()
        found = Decided(recommendation_id=f"d{drawn.hex}", content=content.id, reason="learned", work=work)
        if not content.in_force(work.seconds):
            return found.refused("not_in_force")
        if not content.on_channel(work.query.context) or not may_get(content.when, work):
            return found.refused("not_eligible")
        experiments = work.snapshot.policy.of(EXPERIMENTS)
        found = replace(found, arms=work.arms_of(experiments.on_content(content.id)))
        content = experiments.changes(found.arms).contents.get(content.id, content)
        eligible = np.array([variant.weight > 0 and may_get(variant.when, work) for variant in content.variants])
        if not eligible.any():
            return found.refused("not_eligible")
        contact = self._contact(content, work, whose, occasion, found.recommendation_id)
        held = bucket(whose, SHARES, salt=f"holdout {content.id}") < content.holdout * SHARES
        if held and occasion is None:
            return found.refused("holdout")
        if contact is not None:
            if work.stranger:
                return found.refused("unavailable")
            if not self.store.contacts.open(contact):
                return found.refused("capped")
        if held:
            # An alert takes its place and counts as if it had been shown: what comes after it must be the same for all.
            return replace(found.refused("holdout"), contact=contact)
        return self._drawn(content, replace(found, contact=contact), whose, eligible, occasion)

    def _drawn(self, content: Content, found: Decided, whose: str, eligible: Any, occasion: Occasion | None) -> Decided:
        work = found.work
        snapshot = work.snapshot
        bandit = self.learned.bandit(content, snapshot.bundle.name)
        context = context_of(work, self.axes(snapshot))
        rng = np.random.default_rng(stable_hash(f"{int(work.seconds // HOUR_S)} {content.id} {whose}"))
        arm, propensity = bandit.choose(context, eligible, rng)
        mean, _ = bandit.scores(context)
        others = mean[eligible & (np.arange(len(mean)) != arm)]
        if not len(others):
            reason = "only"
        elif content.choice == "weights":
            reason = "weights"
        else:  # as long as nothing is known all are alike, and none is the best
            reason = "learned" if mean[arm] > others.max() else "tried"
        names = [variant.id for variant in content.variants]
        if work.query.explain:
            again = np.random.default_rng(stable_hash(f"{int(work.seconds // HOUR_S)} {content.id} {whose}"))
            chances = bandit.chances(context, eligible, again)
            found = replace(
                found,
                chances=dict(zip(names, chances.tolist(), strict=True)),
                means=dict(zip(names, mean.tolist(), strict=True)),
            )
        return replace(
            found,
            reason=reason,
            variant=names[arm],
            payload=content.variants[arm].payload,
            propensity=propensity,
            score=float(mean[arm]),
            features=context,
            occasion=None if occasion is None else occasion.told,
        )

    def _contact(
        self, content: Content, work: Work, whose: str, occasion: Occasion | None, showing: str
    ) -> Contact | None:
        if not content.caps and occasion is None:
            return None
        return Contact(
            user_id=whose,
            counted=content.counted,
            subject=showing if occasion is None or occasion.subject is None else occasion.subject,
            at=work.query.now,
            caps=[(cap.limit, cap.days) for cap in content.caps],
            once=occasion is not None and occasion.subject is not None,
        )

    def axes(self, snapshot: Snapshot) -> Axes:
        """The axes of a release, computed once."""
        known = self._axes
        if known is None or known[0] != snapshot.bundle.name:
            known = self._axes = snapshot.bundle.name, axes_of(snapshot.bundle)
        return known[1]

    async def claimed(self, decided: Sequence[Decided], seconds: float) -> list[Decided]:
        """Claim what must be claimed, all together and within so many seconds; what may not be shown goes."""
        outcomes: dict[str, str | None] = {}
        waiting = []
        for one in decided:
            if one.contact is not None:
                try:
                    waiting.append((one, self.store.claims.submit([one.contact])))
                except BespokeError:  # too much waits, or the store is being closed
                    outcomes[one.recommendation_id] = "unavailable"
        if not waiting and not outcomes:
            return list(decided)
        futures = [asyncio.wrap_future(future) for _, future in waiting]
        if futures:
            await asyncio.wait(futures, timeout=max(0.0, seconds))
        for (one, _), future in zip(waiting, futures, strict=True):
            if not future.done():
                future.cancel()
                outcomes[one.recommendation_id] = "unavailable"
                continue
            try:
                outcomes[one.recommendation_id] = None if future.result()[0] else "capped"
            except BespokeError as error:
                logger.error("a contact could not be noted: %s", type(error).__name__)
                outcomes[one.recommendation_id] = "unavailable"
        return [
            one.refused(reason) if (reason := outcomes.get(one.recommendation_id)) is not None else one
            for one in decided
        ]


@dataclass(frozen=True, slots=True)
class Occasion:
    """What an alert is about: `subject` names it for good, None where it may come again; `told` goes into the answer."""

    subject: str | None
    told: Mapping[str, Any]


def may_get(when: Condition | None, work: Work) -> bool:
    """Whether a condition lets the person have something.

    Of a request that is not personalized it may learn nothing about the person, and yet it may be there to protect them:
    where it asks about people it must hold both without knowing the person and for them as they are. So it never holds
    for somebody whom the store could not name.
    """
    if when is None:
        return True
    if work.query.personalized and not work.stranger:
        return when.matches(work.facts, now=work.seconds)
    if not when.matches(facts({}, 0, work.query.context, work.seconds), now=work.seconds):
        return False
    return not asks_for_people(when) or (not work.stranger and when.matches(work.truth, now=work.seconds))
