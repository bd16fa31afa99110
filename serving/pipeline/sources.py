"""Sources: where candidates come from. Each searches the allowed rows only."""

from __future__ import annotations

import numpy as np

from embeddings.explore import nearest_by_cosine
from embeddings.features import Floats
from embeddings.ids import Rows
from serving.pipeline.stage import Source
from serving.pipeline.work import Work

RECENT_ITEMS = 5
"""`similar_to_recent` starts from the last five distinct items of the history."""

NEW_DAYS = 30.0
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


class Similar(Source):
    """Items that resemble the item of the request."""

    name = "similar"

    def applies(self, work: Work) -> bool:
        """Only where the request names an item."""
        return work.query.similar_to is not None

    def find(self, work: Work, count: int) -> Rows:
        """Its nearest neighbours by cosine."""
        return neighbours(work, work.user_vector[None], count)


class PersonSource(Source):
    """Base of the sources for a person's list, which a placement switches on by name."""

    personal = False

    def applies(self, work: Work) -> bool:
        """Only for a person's list, where the placement names the source."""
        query = work.query
        if query.candidates is not None or query.similar_to is not None or self.name not in work.placement.sources:
            return False
        return query.personalized or not self.personal


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
    personal = True

    def applies(self, work: Work) -> bool:
        """Only with a history."""
        return super().applies(work) and bool(len(work.history_rows))

    def find(self, work: Work, count: int) -> Rows:
        """Neighbours of the last few items, each item's best ones in turn."""
        recent = list(dict.fromkeys(work.history_rows[::-1].tolist()))[:RECENT_ITEMS]
        vectors = work.catalogue.vectors(np.asarray(recent, dtype=np.int64))
        return neighbours(work, vectors, max(1, count // 5))


class Trending(PersonSource):
    """What many people want now."""

    name = "trending"

    def find(self, work: Work, count: int) -> Rows:
        """The rows in highest demand; the whole list if nothing personal is asked for."""
        rows = work.snapshot.trending
        return _first_allowed(work, rows, count if not work.query.personalized else max(1, count // 10))


class NewArrivals(PersonSource):
    """Items that appeared in the last thirty days, those nearest to the person first."""

    name = "new_arrivals"

    def find(self, work: Work, count: int) -> Rows:
        """The newest ones, a few hundred at most, ordered by relevance."""
        newest = work.catalogue.newest
        fresh = newest[work.seconds - work.catalogue.created[newest] < NEW_DAYS * 86_400]
        rows = _first_allowed(work, fresh, 2 * count)
        if not work.query.personalized:
            return rows[: max(1, count // 10)]
        return work.by_relevance(rows)[: max(1, count // 10)]


class Pinned(Source):
    """Items a pin rule names, so that they are at hand even where nobody would have retrieved them."""

    name = "pinned"

    def applies(self, work: Work) -> bool:
        """Only where a pin is in force, and not for the caller's own list."""
        return work.query.candidates is None and bool(work.rules.pins)

    def find(self, work: Work, count: int) -> Rows:
        """For each pin, the most relevant of the allowed items it names."""
        found = [np.flatnonzero(mask & work.allowed) for _, mask, _ in work.rules.pins]
        return np.concatenate([work.by_relevance(rows)[:3] if len(rows) else NONE for rows in found])


class Backfill(Source):
    """The rest of the catalogue by relevance, asked only when everything else left the list short."""

    name = "backfill"

    def applies(self, work: Work) -> bool:
        """Only when there are fewer candidates than places."""
        return work.query.candidates is None and len(work.candidates) < work.query.k

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


def _first_allowed(work: Work, rows: Rows, count: int) -> Rows:
    # By chunks: the first few hundred rows of a long order nearly always suffice.
    found: list[Rows] = []
    missing = count
    for start in range(0, len(rows), 4_096):
        chunk = rows[start : start + 4_096]
        kept = chunk[work.allowed[chunk]][:missing]
        found.append(kept)
        missing -= len(kept)
        if missing <= 0:
            break
    return np.concatenate(found) if found else NONE
