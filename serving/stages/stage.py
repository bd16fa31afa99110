"""The framework around every stage: it times, counts, guards and explains; the stage does the business.

A stage is a plain class without Ray and without HTTP. Sources find rows, filters remove rows from the catalogue before
anything is searched, scorers give every candidate a score, selectors make the slate. What a stage does wrong is caught
here: a source or scorer that fails costs quality and is named in `degraded`; a filter that fails fails the request,
because an item that must not be shown is worse than no list.
"""

from __future__ import annotations

import logging
import time
from typing import ClassVar, Literal

import numpy as np

from embeddings.arrays import Floats, Mask
from embeddings.errors import InputError
from embeddings.ids import Rows
from serving.request.work import Work

logger = logging.getLogger("bespoke.pipeline")

Section = Literal["retrieval", "ranking", "rules"]
TRACED_SCORES = 50
TRACED_REMOVALS = 20
"""How many removed items a trace names for each stage; the counts are always complete."""


class Stage:
    """Base of all stages; `section` says which deployment runs it in the chained topology."""

    name: ClassVar[str]
    kind: ClassVar[str]
    section: ClassVar[Section]
    optional: ClassVar[bool] = False
    """Whether a request that is late goes on without it."""

    def applies(self, work: Work) -> bool:
        """Whether the stage has anything to do for this request."""
        return True

    def run(self, work: Work) -> None:
        """Do the stage's work, timed and traced."""
        if not self.applies(work):
            return
        if self.optional and work.late:
            work.degrade(self.name)
            return
        started = time.perf_counter()
        before = self.count(work) if work.query.explain else 0  # for the trace alone
        try:
            detail = self.work(work)
        except InputError:
            raise
        except Exception:
            if self.kind == "filter":
                raise
            logger.exception("stage %s failed; the request goes on without it", self.name)
            work.degrade(self.name)
            detail = {"note": "failed; skipped"}
        spent = (time.perf_counter() - started) * 1e3
        work.milliseconds[self.name] = work.milliseconds.get(self.name, 0.0) + spent
        if work.query.explain:
            work.trace.append(
                {
                    "name": self.name,
                    "kind": self.kind,
                    "milliseconds": round(spent, 3),
                    "in": before,
                    "out": self.count(work),
                    **detail,
                }
            )

    def count(self, work: Work) -> int:
        """How many items are in play, for the trace."""
        return len(work.candidates)

    def work(self, work: Work) -> dict[str, object]:
        """Change `work`; what comes back joins the trace."""
        raise NotImplementedError


class Source(Stage):
    """Finds candidates among the allowed rows."""

    kind = "source"
    section = "retrieval"

    def find(self, work: Work, count: int) -> Rows:
        """Up to `count` rows, best first; UNKNOWN entries are dropped by the framework."""
        raise NotImplementedError

    def lacks(self, work: Work) -> str | None:
        """What this release or this catalogue would have to have for the source to find anything, in words."""
        return None

    def work(self, work: Work) -> dict[str, object]:
        """Join what was found to the candidates, each row once, with this source's bit set."""
        if (lacking := self.lacks(work)) is not None:
            work.unserved[self.name] = lacking
            return {"found": 0, "note": lacking}
        rows = self.find(work, work.wanted)
        rows = rows[rows >= 0]
        work.finds[self.name] = allowed = rows[work.allowed[rows]]
        work.join(allowed, self.name)
        return {"found": len(allowed)}


class Filter(Stage):
    """Takes rows out of the catalogue before the search, so that a list is full whenever enough items are allowed."""

    kind = "filter"
    section = "retrieval"

    def keeps(self, work: Work) -> Mask | None:
        """Mask [N] of the rows that may stay, or None if this filter names the others by `removes`."""
        return None

    def removes(self, work: Work) -> Rows:
        """Rows to take out; UNKNOWN entries are ignored."""
        return np.zeros(0, dtype=np.int64)

    def reason(self, work: Work, row: int) -> str:
        """Why a row was taken out, in words for the trace."""
        return self.name

    def count(self, work: Work) -> int:
        """Rows that are still allowed."""
        return int(work.allowed.sum())

    def work(self, work: Work) -> dict[str, object]:
        """Narrow `work.allowed`."""
        before = work.allowed.copy() if work.query.explain else None
        kept = self.keeps(work)
        if kept is not None:
            work.allowed &= kept
        rows = self.removes(work)
        work.allowed[rows[rows >= 0]] = False
        if before is None:
            return {}
        gone = np.flatnonzero(before & ~work.allowed)
        return {"removed": self._named(work, gone)}

    def _named(self, work: Work, gone: Rows) -> list[dict[str, str]]:
        # The removals a person asks about are those that would have been on the list: best first.
        shown = work.by_relevance(gone)[:TRACED_REMOVALS].tolist()
        return [
            {"item_id": work.catalogue.id(row), "title": work.catalogue.title(row), "reason": self.reason(work, row)}
            for row in shown
        ]


class Scorer(Stage):
    """Gives every candidate a new score."""

    kind = "scorer"

    def run(self, work: Work) -> None:
        """The same, where there is anything to score."""
        if len(work.candidates):
            super().run(work)

    def score(self, work: Work) -> Floats:
        """Scores [K], in the order of the candidates."""
        raise NotImplementedError

    def work(self, work: Work) -> dict[str, object]:
        """Replace the scores, if they are as many as the candidates and finite."""
        scores = self.score(work)
        if scores.shape != (len(work.candidates),):
            raise AssertionError(f"{self.name}: {scores.shape} scores for {len(work.candidates)} candidates")
        if not np.isfinite(scores).all():
            raise AssertionError(f"{self.name}: a score is not finite")
        work.candidates = work.candidates.scored(scores).best_first()
        if not work.query.explain:
            return {}
        top = zip(work.candidates.rows[:TRACED_SCORES].tolist(), work.candidates.score.tolist(), strict=False)
        return {"scores": {work.catalogue.id(row): round(score, 6) for row, score in top}}


class Selector(Stage):
    """Turns candidates into places on the slate, or drops some of them with a reason."""

    kind = "selector"
    section = "rules"
