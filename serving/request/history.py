"""A history: what a person did with items that exist now, as conditions and stages read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import compress
from operator import itemgetter

import numpy as np

from embeddings.arrays import Floats, Mask
from embeddings.features import FeatureSpec
from embeddings.ids import Rows
from serving.request.catalogue import Catalogue
from serving.store.persons import HistoryEvent

TYPE = itemgetter(1)


class History:
    """Events [L], oldest first, with the row of each event's item; made once a request, and shared by all its lists."""

    def __init__(self, events: Sequence[HistoryEvent], rows: Rows, spec: FeatureSpec) -> None:
        self.events, self.rows, self._spec = tuple(events), rows, spec

    @classmethod
    def of(cls, events: Iterable[HistoryEvent], catalogue: Catalogue) -> History:
        """Those of some events whose items exist now."""
        events = tuple(events)
        rows = catalogue.rows(event.item_id for event in events)
        return cls(events, rows, catalogue.bundle.spec)._those(rows >= 0)

    @cached_property
    def telling(self) -> History:
        """What says something about a taste: what was only shown does not."""
        silent = {name for name in set(self._types) if not self._spec.telling(name)}
        return self._those(np.array([name not in silent for name in self._types])) if silent else self

    @cached_property
    def interests(self) -> Rows:
        """Places [M] of what the person did with items that they have not disliked since, oldest first."""
        weights = self._weights
        liked, disliked = weights > 0, np.flatnonzero(weights < 0)
        for row, at in dict(zip(self.rows[disliked].tolist(), disliked.tolist(), strict=True)).items():
            liked[:at] &= self.rows[:at] != row
        places: Rows = np.flatnonzero(liked)
        return places

    @cached_property
    def _types(self) -> list[str]:
        return list(map(TYPE, self.events))

    @property
    def _weights(self) -> Floats:
        known = {name: self._spec.event_kind(name).weight for name in set(self._types)}
        return np.fromiter(map(known.__getitem__, self._types), dtype=np.float32, count=len(self._types))

    def _those(self, kept: Mask) -> History:
        """The events that are kept; nearly always it is all of them."""
        if kept.all():
            return self
        return History(tuple(compress(self.events, kept)), self.rows[kept], self._spec)
