"""The objective dial: what a list aims at beside interest. Margin or any other value, novelty, freshness, each weighed.

A score is multiplied by what an item is worth (`serving/policy/placements.py` has the formula), so an item that nobody is
interested in stays below whatever it would bring. Everything that does not depend on the request is held by the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from embeddings.arrays import Doubles, Floats
from embeddings.ids import Rows
from serving.policy.placements import Placement
from serving.request.catalogue import Catalogue
from serving.request.query import Reason
from serving.request.work import Work
from serving.stages.stage import Scorer

DAY = 86_400.0
LEAST = 0.01
"""However little an item is worth, its score keeps this share, so that what is unwanted is still in order of interest."""

TEXTS = {"value": "Favoured by the shop", "novelty": "Off the beaten track", "freshness": "Recently added"}


class Dial(Scorer):
    """Weighs the scores with values, novelty and freshness."""

    name = "dial"
    section = "rules"

    def applies(self, work: Work) -> bool:
        """Only where the placement asks for any of them."""
        return work.placement.dialled

    def score(self, work: Work) -> Floats:
        """Scores times worth; a negative one is divided, so that worth raises it all the same."""
        parts = worth(work, work.candidates.rows)
        score = work.candidates.score.astype(np.float64)
        factor = np.maximum(sum(parts.values(), np.ones(len(score))), LEAST)
        dialled = np.where(score >= 0, score * factor, score / factor)
        self._explain(work, dialled, parts)
        return dialled.astype(np.float32)

    def _explain(self, work: Work, dialled: Doubles, parts: dict[str, Doubles]) -> None:
        """Give a reason to those that are among the best k only by what they are worth: the part that counted most."""
        k = min(work.query.k, len(dialled))
        was_in = np.zeros(len(dialled), dtype=bool)
        was_in[np.argsort(-work.candidates.score, kind="stable")[:k]] = True
        came_in = [at for at in np.argsort(-dialled, kind="stable")[:k].tolist() if not was_in[at]]
        if not came_in:
            return
        names = list(parts)
        most = np.argmax(np.stack(list(parts.values()))[:, came_in], axis=0)
        for at, part in zip(came_in, most.tolist(), strict=True):
            name = names[part].partition(".")[0]
            reason = Reason(code=name, text=TEXTS[name])
            work.effects.setdefault(int(work.candidates.rows[at]), []).append(reason)


def worth(work: Work, rows: Rows) -> dict[str, Doubles]:
    """What each part of the dial adds for rows, [K] each: `value.<attribute>`, `novelty`, `freshness`.

    An attribute in which no item has a number is noted as unserved.
    """
    placement, catalogue = work.placement, work.catalogue
    parts: dict[str, Doubles] = {}
    for name, weight in placement.values.items():
        typical = typical_value(catalogue, name)
        if typical is None:
            work.unserved[f"values.{name}"] = f"no item has a number above 0 in '{name}'"
        elif weight:
            parts[f"value.{name}"] = weight * np.nan_to_num(values(catalogue, name, rows)) / typical
    if placement.novelty:
        parts["novelty"] = placement.novelty * novelty(catalogue, rows)
    if placement.freshness is not None:
        fresh = np.exp2(-age_days(catalogue, rows, work.seconds) / placement.freshness.half_life_days)
        parts["freshness"] = placement.freshness.weight * np.nan_to_num(fresh)
    return parts


def values(catalogue: Catalogue, attribute: str, rows: Rows) -> Doubles:
    """The numbers of rows in an attribute, [K], NaN where an item has none."""
    base, delta = (segment.columns.column(attribute).numbers for segment in (catalogue.base, catalogue.delta))
    found = np.full(len(rows), np.nan)
    late = rows >= catalogue.split
    found[~late] = base[rows[~late]]
    found[late] = delta[rows[late] - catalogue.split]
    return found


def typical_value(catalogue: Catalogue, attribute: str) -> float | None:
    """The median of an attribute's numbers above 0 in the release, in what came since if there are none, else None."""
    base, delta = (segment.columns.column(attribute).typical for segment in (catalogue.base, catalogue.delta))
    return delta if base is None else base


def prepare(catalogue: Catalogue, placements: Iterable[Placement]) -> None:
    """Compute what placements weigh before a request asks for it."""
    for name in {name for placement in placements for name in placement.values}:
        values(catalogue, name, np.zeros(0, dtype=np.int64))
        typical_value(catalogue, name)


def novelty(catalogue: Catalogue, rows: Rows) -> Doubles:
    """How unfamiliar rows are, [K]: from 0 for the best known item of the catalogue to 1 for what nobody has touched."""
    known: Doubles = np.log1p(catalogue.popularity[rows, 0]) / max(float(np.log1p(catalogue.best_known)), 1e-9)
    return 1.0 - known


def age_days(catalogue: Catalogue, rows: Rows, now: float) -> Doubles:
    """Age of rows in days, [K], NaN where unknown; what is announced for the future is as new as can be."""
    age: Doubles = np.maximum((now - catalogue.created[rows]) / DAY, 0.0)
    return age
