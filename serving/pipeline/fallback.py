"""The lower rungs of the ladder: a list without ranking, or without any model at all.

Nothing here needs the store, a model or another deployment: the demand of the moment is held ready in the snapshot, and
where it ends the rest of the catalogue follows in the release's order. Every filter of the pipeline holds here too, so that
an item that must not be shown is not shown because something else has failed.
"""

from __future__ import annotations

import numpy as np

from embeddings.ids import Rows
from serving.pipeline.pipeline import STAGES
from serving.request.query import Reason
from serving.request.work import Place, Work
from serving.stages.reasons import FOR_YOU, POPULAR, TRENDING
from serving.stages.sources import first_allowed
from serving.stages.stage import Filter

AS_GIVEN = (Reason(code="as_given", text="In the order given"),)


def plain_slate(work: Work) -> None:
    """The best candidates in the order they are in, without rules that rearrange them: the rung of retrieval order."""
    k = len(work.candidates) if work.query.candidates is not None else work.query.k
    best = work.candidates.best_first().take(slice(0, k))  # type: ignore[arg-type]
    reasons = (FOR_YOU if work.query.personalized and work.history else POPULAR,)
    work.slate = [
        Place(row, score, reasons) for row, score in zip(best.rows.tolist(), best.score.tolist(), strict=True)
    ]


def demand_slate(work: Work) -> None:
    """What is in demand, then the rest of the release in its order; the caller's own list stays as it was given.

    A placement that stops where its sources do gets nothing that they did not find.
    """
    if work.query.candidates is not None:
        rows = work.catalogue.rows(work.query.candidates)
        _place(work, rows[rows >= 0], trending=0)
        return
    if not work.placement.fill and "trending" not in work.placement.sources:
        return
    for stage in STAGES:
        if isinstance(stage, Filter):
            stage.run(work)
    rows = wanted = first_allowed(work, work.snapshot.trending, work.query.k)
    missing = work.query.k - len(wanted)
    if missing and work.placement.fill:
        rest = np.flatnonzero(work.allowed)
        rows = np.concatenate([wanted, rest[~np.isin(rest, wanted)][:missing]])
    _place(work, rows, trending=len(wanted))


def _place(work: Work, rows: Rows, *, trending: int) -> None:
    """Scores only say the order: there is no other meaning left in them."""
    rest = AS_GIVEN if work.query.candidates is not None else (POPULAR,)
    work.slate = [
        Place(row, 1.0 - place / len(rows), (TRENDING,) if place < trending else rest)
        for place, row in enumerate(rows.tolist())
    ]
