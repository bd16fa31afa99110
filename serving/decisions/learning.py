"""Learning: from the log of what was shown, and from the events that name it, to what a bandit knows of each content.

Every few seconds one process of all that serve reads on in the log and adds to the sums in the store; the others take them
over. What is older counts less, and what another release has shown counts without the person, whom it saw with other eyes.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from embeddings.arrays import Doubles
from serving.decisions.bandit import Bandit
from serving.decisions.contexts import DIM, PEOPLE, common
from serving.policy.contents import Content
from serving.store import Lesson, Store
from serving.store.lessons import Position, Response, Showing

EVERY_S = 5.0
SETTLED_S = 2.0
"""Numbers that were seen so long ago have no gaps any more, and what an event names has been logged."""

AT_ONCE = 20_000
"""Rows of the log that one step reads: of a backlog, one after the other."""

HALF_LIFE_S = 30 * 86_400.0
"""After so long, what was learned counts half: tastes change, and so do the things that are shown."""


class Learned:
    """What is known of all contents, as of the latest lesson; one thread brings it up to date, any may ask."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lessons: Mapping[str, Lesson] = {}
        self._bandits: dict[tuple[Any, ...], Bandit] = {}
        self._heads: deque[tuple[float, int, int]] = deque()

    def bandit(self, content: Content, basis: str) -> Bandit:
        """The bandit over the variants of a content, in their order; to be asked only, it is shared.

        `basis` is the release that contexts are made with now.
        """
        lesson = self._lessons.get(content.id)
        exploration = 1.0 if content.choice == "weights" else content.exploration
        # An arm of an experiment may have the same content with other weights.
        variants = tuple((variant.id, variant.weight) for variant in content.variants)
        key = (content.id, 0 if lesson is None else lesson.version, basis, exploration, variants)
        found = self._bandits.get(key)
        if found is None:
            if len(self._bandits) > 1000:  # keys of versions that are gone
                self._bandits.clear()
            known = _rebased(content, lesson, basis)
            found = self._bandits[key] = Bandit(
                len(variants),
                DIM,
                exploration=exploration,
                weights=np.array([weight for _, weight in variants]),
                outer=known.outer,
                inner=known.inner,
            )
        return found

    def refresh(self) -> None:
        """Take over what was learned, wherever."""
        known = {name: lesson.version for name, lesson in self._lessons.items()}
        if self._store.lessons.versions() != known:
            self._lessons = self._store.lessons.all()

    def learn(self, contents: Mapping[str, Content], basis: str, *, now: float | None = None) -> bool:
        """Read on in the log, if nobody else has done so lately; whether anything was read.

        `now` in seconds since 1970 (default: the clock).
        """
        now = time.time() if now is None else now
        lessons = self._store.lessons
        if self._heads and self._heads[-1][0] > now:  # the clock was set back: how long ago is not known
            self._heads.clear()
        self._heads.append((now, *lessons.heads()))
        while len(self._heads) > 1 and self._heads[1][0] <= now - SETTLED_S:
            self._heads.popleft()
        seen, decisions, events = self._heads[0]
        before = lessons.position()
        upto = min(decisions, before.decisions + AT_ONCE), min(events, before.events + AT_ONCE)
        behind = (decisions, events) != upto
        if seen > now - SETTLED_S or (0 <= now - before.at / 1e6 < EVERY_S and not behind):
            return False
        if upto[0] <= before.decisions and upto[1] <= before.events:
            return False
        shown = lessons.showings(before.decisions, upto[0])
        answered = lessons.responses(before.events, upto[1])
        after = Position(max(before.decisions, upto[0]), max(before.events, upto[1]), int(now * 1e6))
        old = lessons.all()
        new = list(_added(contents, old, shown, answered, basis=basis, at=after.at))
        return lessons.advance(before, after, new)


def _added(
    contents: Mapping[str, Content],
    old: Mapping[str, Lesson],
    shown: Sequence[Showing],
    answered: Sequence[Response],
    *,
    basis: str,
    at: int,
) -> Iterable[Lesson]:
    """Every lesson that is another one after some showings and responses, at a moment in microseconds since 1970."""
    showings: defaultdict[str, list[tuple[Showing, float]]] = defaultdict(list)
    for one in shown:
        showings[one.content].append((one, 0.0))
    for response in answered:
        content = contents.get(response.showing.content)
        if content is None or response.event_type != content.goal:
            continue
        if 0 <= response.seconds <= 3600 * content.goal_hours:
            showings[content.id].append((response.showing, 1.0))
    for name, rows in showings.items():
        content = contents.get(name)
        if content is None:
            continue
        lesson = _rebased(content, old.get(name), basis)
        left = 0.5 ** (max(0, at - lesson.at) / 1e6 / HALF_LIFE_S)
        outer, inner = left * lesson.outer, left * lesson.inner
        arms = {variant: place for place, variant in enumerate(lesson.arms)}
        for showing, reward in rows:
            arm = arms.get(showing.variant)
            if (
                arm is None or len(showing.context) != DIM
            ):  # taken out since, or shown by another version of the service
                continue
            z: Doubles = np.asarray(showing.context, dtype=np.float64)
            if showing.model_version != basis:
                z = np.asarray(common(z.astype(np.float32)), dtype=np.float64)
            if reward:
                inner[arm] += reward * z
            else:
                outer[arm] += np.outer(z, z)
        yield replace(lesson, version=lesson.version + 1, at=at, outer=outer, inner=inner)


def _rebased(content: Content, lesson: Lesson | None, basis: str) -> Lesson:
    """A lesson over the present variants of a content, as another release can go on with it."""
    arms = tuple(variant.id for variant in content.variants)
    outer, inner = np.zeros((len(arms), DIM, DIM)), np.zeros((len(arms), DIM))
    if lesson is None or lesson.inner.shape[1:] != (DIM,):
        version = 0 if lesson is None else lesson.version
        return Lesson(content=content.id, version=version, at=0, basis=basis, arms=arms, outer=outer, inner=inner)
    known = {variant: place for place, variant in enumerate(lesson.arms)}
    for place, variant in enumerate(arms):
        if (was := known.get(variant)) is not None:
            outer[place], inner[place] = lesson.outer[was], lesson.inner[was]
    if lesson.basis != basis:
        person = slice(1, 1 + PEOPLE)
        outer[:, person, :] = outer[:, :, person] = inner[:, person] = 0.0
    return replace(lesson, basis=basis, arms=arms, outer=outer, inner=inner)
