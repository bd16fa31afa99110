"""Sources: where candidates come from. Each searches the allowed rows only."""

from __future__ import annotations

import numpy as np

from embeddings.arrays import Floats, Mask
from embeddings.explore import nearest_by_cosine
from embeddings.ids import Rows
from serving.policy.rules import Rule
from serving.request.work import Work
from serving.stages.stage import Source

RECENT_ITEMS = 5
"""`similar_to_recent` starts from the last five distinct items of the history."""

ENOUGH = 0.25
"""Of the neighbours that a release knows at least so many must be allowed; else the allowed ones are searched for."""

NEW_DAYS = 30.0
PINNED_POOL = 256
"""Of a pin that names more items, those in highest demand are compared; all of them only if none of these is allowed."""
NONE: Rows = np.zeros(0, dtype=np.int64)


class CallersList(Source):
    """The caller's own items, to be put in order."""

    name = "callers_list"

    def applies(self, work: Work) -> bool:
        """Only for rankings; then it is the only source."""
        return work.query.candidates is not None

    def find(self, work: Work, count: int) -> Rows:
        """All of them that exist."""
        assert work.query.candidates is not None
        return work.catalogue.rows(work.query.candidates)


class AnchoredSource(Source):
    """Base of the sources that start from one item: that of the request, or the person's latest."""

    def applies(self, work: Work) -> bool:
        """Where the placement names the source, and there is an item to start from."""
        return work.query.candidates is None and self.name in work.placement.sources and work.anchor is not None


class BoughtTogether(AnchoredSource):
    """What others took along with an item, as the release has counted it."""

    name = "bought_together"

    def lacks(self, work: Work) -> str | None:
        """A release without the counts."""
        known = work.snapshot.bundle.together is not None
        return None if known else "this release does not know what is bought together; publish one from newer data"

    def find(self, work: Work, count: int) -> Rows:
        """Its companions, the closest first."""
        bundle = work.snapshot.bundle
        assert work.anchor is not None
        assert bundle.together is not None
        row = bundle.ids.row(work.anchor.item_id)
        if row < 0:
            return NONE
        companions = bundle.together[row].astype(np.int64)
        return work.catalogue.current(companions[companions >= 0])[:count]


class Similar(AnchoredSource):
    """Items that resemble one item."""

    name = "similar"

    def applies(self, work: Work) -> bool:
        """Also where a request names an item and the placement says nothing of such requests."""
        return super().applies(work) or (work.query.similar_to is not None and not work.placement.anchored)

    def find(self, work: Work, count: int) -> Rows:
        """Its nearest neighbours by cosine."""
        assert work.anchor is not None
        rows = work.catalogue.rows([work.anchor.item_id])
        return neighbours(work, work.catalogue.vectors(rows), count) if rows[0] >= 0 else NONE


class PersonSource(Source):
    """Base of the sources for a person's list, which a placement switches on by name."""

    personal = False

    def applies(self, work: Work) -> bool:
        """Only for a person's list, where the placement names the source."""
        query = work.query
        if query.candidates is not None or query.similar_to is not None or self.name not in work.placement.sources:
            return False
        return query.personalized or not self.personal

    def portion(self, work: Work, count: int) -> int:
        """A tenth of what is wanted, all of it where there is no other source."""
        return count if work.placement.sources == (self.name,) else max(1, count // 10)


class TwoTowerSource(PersonSource):
    """The retriever: items whose vectors have the highest dot product with the person's."""

    name = "two_tower"
    personal = True

    def find(self, work: Work, count: int) -> Rows:
        """The nearest of all."""
        return searched(work, count)


class SimilarToRecent(PersonSource):
    """Neighbours of the items a person touched last."""

    name = "similar_to_recent"
    optional = True
    personal = True

    def applies(self, work: Work) -> bool:
        """Only with a history."""
        return super().applies(work) and bool(len(work.interests))

    def find(self, work: Work, count: int) -> Rows:
        """Neighbours of the last few items, each item's best ones in turn."""
        touched = work.history_rows[work.interests[::-1]].tolist()
        recent = np.asarray(list(dict.fromkeys(touched))[:RECENT_ITEMS], dtype=np.int64)
        each, known = max(1, count // RECENT_ITEMS), work.catalogue.neighbours(recent)
        if known is not None:
            found = known[:, :each].T.ravel()
            found = found[found >= 0]
            if work.allowed[found].sum() >= len(found) * ENOUGH:
                return found
        return neighbours(work, work.catalogue.vectors(recent), each)


class Replenishment(PersonSource):
    """What the person bought, used up, and is about to need again; silent as soon as they have bought it."""

    name = "replenishment"
    optional = True
    personal = True

    def applies(self, work: Work) -> bool:
        """Only where something is due."""
        return super().applies(work) and bool(work.due)

    def find(self, work: Work, count: int) -> Rows:
        """What is due, the longest due first."""
        return np.fromiter(work.due, dtype=np.int64)


class Trending(PersonSource):
    """What many people want now."""

    name = "trending"
    optional = True

    def find(self, work: Work, count: int) -> Rows:
        """The rows in highest demand; the whole list if nothing personal is asked for."""
        rows = work.snapshot.trending
        return first_allowed(work, rows, self.portion(work, count) if work.query.personalized else count)


class NewArrivals(PersonSource):
    """Items that appeared in the last thirty days, those nearest to the person first."""

    name = "new_arrivals"
    optional = True

    def lacks(self, work: Work) -> str | None:
        """A catalogue without times."""
        return None if len(work.catalogue.newest) else "no item says when it appeared; send created_at with the items"

    def find(self, work: Work, count: int) -> Rows:
        """The newest ones, a few hundred at most, ordered by relevance."""
        rows = first_allowed(work, work.catalogue.newer_than(work.seconds - NEW_DAYS * 86_400), 2 * count)
        return (work.by_relevance(rows) if work.query.personalized else rows)[: self.portion(work, count)]


class Pinned(Source):
    """Items a pin rule names, so that they are at hand even where nobody would have retrieved them."""

    name = "pinned"

    def applies(self, work: Work) -> bool:
        """Only where a pin is in force, and not for the caller's own list."""
        return work.query.candidates is None and bool(self._pins(work))

    def find(self, work: Work, count: int) -> Rows:
        """For each pin, the most relevant of the allowed items it names."""
        found = []
        for rule, mask in self._pins(work):
            pool = work.snapshot.in_demand(rule.id, mask, PINNED_POOL)
            rows = pool[work.allowed[pool]]
            if not len(rows) and len(pool) == PINNED_POOL:
                rows = np.flatnonzero(mask & work.allowed)
            found.append(work.by_relevance(rows)[:3])
        return np.concatenate(found)

    @staticmethod
    def _pins(work: Work) -> list[tuple[Rule, Mask]]:
        # What is shown in many places is not put where only what the sources find belongs, unless it is meant for there.
        return [(rule, mask) for rule, mask, _ in work.rules.pins if work.placement.fill or rule.placements]


class Backfill(Source):
    """The rest of the catalogue by relevance, asked only when everything else left the list short."""

    name = "backfill"

    def applies(self, work: Work) -> bool:
        """Only when there are fewer candidates than places, and the placement does not stop there."""
        return work.query.candidates is None and work.placement.fill and len(work.candidates) < work.query.k

    def find(self, work: Work, count: int) -> Rows:
        """Whatever is allowed, most relevant first, or in demand where nothing personal is asked for."""
        if work.query.personalized:
            return searched(work, count)
        rest = np.flatnonzero(work.allowed)
        ranked: Rows = rest[np.argsort(-work.snapshot.trend[rest], kind="stable")]
        return ranked[:count]


def searched(work: Work, count: int) -> Rows:
    """The allowed rows with the highest dot product with the query vector, through index and delta."""
    rows: Rows = work.catalogue.search(work.user_vector[None], count, work.allowed)[1][0]
    return rows


def neighbours(work: Work, vectors: Floats, count: int) -> Rows:
    """Rows nearest by cosine to each of the vectors [Q, D], taken in turn: the best of each, then the second of each."""
    _, rows = nearest_by_cosine(
        vectors,
        count,
        search=lambda queries, k: work.catalogue.search(queries, k, work.allowed)[1],
        vectors=work.catalogue.vectors,
    )
    return rows.T.ravel()


def first_allowed(work: Work, rows: Rows, count: int) -> Rows:
    """The first `count` of the rows that are allowed, in their order."""
    # By chunks that grow: the first few hundred rows of a long order nearly always suffice.
    found: list[Rows] = []
    missing, start, size = count, 0, 4 * count
    while missing > 0 and start < len(rows):
        chunk = rows[start : start + size]
        kept = chunk[work.allowed[chunk]][:missing]
        found.append(kept)
        missing -= len(kept)
        start, size = start + size, 4 * size
    return np.concatenate(found) if found else NONE
