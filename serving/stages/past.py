"""Sources of what a person did before: what they have begun, and what they bought and use up."""

from __future__ import annotations

from collections import Counter

import numpy as np

from embeddings.ids import Rows
from embeddings.replenishment import BOUGHT
from serving.request.work import Work
from serving.stages.sources import PersonSource

CONSUMABLE = "consumable"
"""The attribute by which a catalogue says that an item is used up."""


class Continue(PersonSource):
    """What the person has begun; what they finished is gone already, by the placement's `seen`."""

    name = "continue"
    personal = True

    def find(self, work: Work, count: int) -> Rows:
        """The items they touched and did not dislike, the last one first."""
        return work.history_rows[work.interests[::-1]][:count]


class BuyAgain(PersonSource):
    """What the person bought and will need again: the catalogue calls it consumable, or they bought it more than once."""

    name = "buy_again"
    personal = True

    def work(self, work: Work) -> dict[str, object]:
        """The same; where the catalogue does not say what is used up, the answer does."""
        if CONSUMABLE not in work.catalogue.attributes:
            work.unserved[self.name] = f"no item has '{CONSUMABLE}'; only what somebody bought twice counts as used up"
        return super().work(work)

    def find(self, work: Work, count: int) -> Rows:
        """What they bought most often first, then what they bought last."""
        bought = [
            row
            for event, row in zip(work.history, work.history_rows.tolist(), strict=True)
            if event.event_type == BOUGHT
        ]
        times = Counter(reversed(bought))  # of equally frequent ones the last one first
        rows = [row for row, n in times.most_common() if n > 1 or work.catalogue.value(row, CONSUMABLE) == 1.0]
        return np.array(rows[:count], dtype=np.int64)
