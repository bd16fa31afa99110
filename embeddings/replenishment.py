"""Replenishment: when somebody will need again what they use up, by how long it lasts them and everybody else.

A purchase is followed by another one of the same item or it is not; if it is, the time in between is log-normal. That is
the aggregate time distribution and the repeat probability of Bhagat et al., "Buy It Again" (KDD 2018), put together as a
mixture cure model, so that who has not come back yet counts for what it is. A person's own intervals shift the item's:
their mean is normal around the item's, so the estimate is the one that weighs both by what they are worth.

Training fits a `Paces`, a small table of a release; anybody who knows a person's purchases asks it for an `Outlook`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

import pyarrow as pa

from embeddings.errors import BundleError

BOUGHT = "purchase"
"""The event type whose repetition this is about."""

DAY_S = 86_400.0
ONE_PURCHASE_S = DAY_S
"""What is bought again within a day belongs to the same purchase."""

WITHIN = 0.8
"""Probability that the next purchase, if there is one, lies between `earliest` and `latest`."""

USUAL = 0.5
"""Only what is usually bought again is ever due."""

GIVEN_UP = 0.25
"""Who has waited until another purchase is less probable than this has made up their mind."""

ENOUGH = 20
"""Intervals that a category must have to speak for an item that has none of its own."""

LONGEST = 20.0
"""Logarithm of more days than anybody lives."""

Level = Literal["everything", "category", "item"]
Basis = Literal["person", "item", "category", "everything"]
State = Literal["seldom", "early", "due", "late"]

PACES = pa.schema(
    [
        ("level", pa.string()),
        ("name", pa.string()),
        ("mean", pa.float64()),
        ("within", pa.float64()),
        ("between", pa.float64()),
        ("first", pa.float64()),
        ("again", pa.float64()),
        ("intervals", pa.int64()),
    ]
)
STANDARD = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast something is used up: logarithms of days.

    `mean` of all people, standard deviation `within` one person's intervals and `between` the means of people. `first`
    and `again` are the probabilities of a second purchase, and of one more after that. `intervals` were seen.
    """

    mean: float
    within: float
    between: float
    first: float
    again: float
    intervals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is to be expected of one person and one item. Moments are seconds since 1970.

    `due_at` is the median of the next purchase, which with probability `WITHIN` lies between `earliest` and `latest`, if
    there is one; none of the three moves while nothing is bought. `basis` says whose intervals tell most.
    """

    purchases: int
    last: float
    due_at: float
    earliest: float
    latest: float
    basis: Basis
    probability: float
    mean: float
    deviation: float

    def confidence(self, now: float) -> float:
        """Probability that it is bought again at all, not having been so until now."""
        left = self.probability * (1.0 - self._passed(now))
        return left / (1.0 - self.probability + left)

    def chance(self, now: float, seconds: float) -> float:
        """Probability that it is bought within so many seconds from now, not having been so until now."""
        begun, done = self._passed(now), self._passed(now + seconds)
        return self.probability * (done - begun) / (1.0 - self.probability * begun)

    def state(self, now: float) -> State:
        """Where the moment lies between the last purchase and the next; `seldom`: there is usually none."""
        if self.probability < USUAL:
            return "seldom"
        return "early" if now < self.earliest else "due" if now <= self.latest else "late"

    def due(self, now: float) -> bool:
        """Whether it is time to speak of it: it is usually bought again, and it is neither too early nor given up."""
        return self.probability >= USUAL and now >= self.earliest and self.confidence(now) >= GIVEN_UP

    def _passed(self, moment: float) -> float:
        """Share of those who come back that would have done so by then."""
        days = (moment - self.last) / DAY_S
        return STANDARD.cdf((math.log(days) - self.mean) / self.deviation) if days > 0 else 0.0


class Paces:
    """The paces of a release: of items, of categories, of everything. Raises `BundleError` for a table of anything else."""

    def __init__(self, table: pa.Table) -> None:
        if table.schema.names != PACES.names:
            raise BundleError(f"paces have the columns {', '.join(PACES.names)}, not {', '.join(table.schema.names)}")
        self.table = table.cast(PACES).combine_chunks()
        self._rows: dict[str, dict[str, Pace]] = {"everything": {}, "category": {}, "item": {}}
        for row in self.table.to_pylist():
            level, name = row.pop("level"), row.pop("name")
            if level not in self._rows or not _sound(row):
                raise BundleError(f"the pace of {level} '{name}' is none")
            self._rows[level][name] = Pace(**row)
        self._intervals = {name: pace.intervals for name, pace in self._rows["category"].items()}
        if list(self._rows["everything"]) != [""]:
            raise BundleError("paces need one of everything")

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def of(self, item_id: str, categories: Iterable[str]) -> tuple[Pace, Level]:
        """The pace of an item, known or not, and what it was taken from."""
        own = self._rows["item"].get(item_id)
        if own is not None:
            return own, "item"
        name = speaker(categories, self._intervals)
        return (
            (self._rows["everything"][""], "everything") if name is None else (self._rows["category"][name], "category")
        )


def speaker(categories: Iterable[str], intervals: Mapping[str, int]) -> str | None:
    """The category that speaks for an item: the rarest of those of which enough is known, None if there is none."""
    known = [(intervals[name], name) for name in categories if intervals.get(name, 0) >= ENOUGH]
    return min(known)[1] if known else None


def outlook(pace: Pace, level: Level, times: Sequence[float]) -> Outlook:
    """What to expect of somebody who bought an item at `times` (seconds since 1970, oldest first, at least one)."""
    bought = distinct(times)
    logs = [math.log((later - earlier) / DAY_S) for earlier, later in pairwise(bought)]
    within, between = pace.within**2, pace.between**2
    # Normal around normal: precision is additive, and the mean is weighed by it.
    trust = len(logs) * between / (len(logs) * between + within) if logs else 0.0
    mean = pace.mean + trust * (sum(logs) / len(logs) - pace.mean) if logs else pace.mean
    deviation = math.sqrt(within + between * (1.0 - trust))
    last = bought[-1]
    spread = _spread() * deviation
    return Outlook(
        purchases=len(logs) + 1,
        last=last,
        due_at=last + DAY_S * math.exp(mean),
        earliest=last + DAY_S * math.exp(mean - spread),
        latest=last + DAY_S * math.exp(mean + spread),
        basis="person" if trust > 0.5 else level,
        probability=pace.again if logs else pace.first,
        mean=mean,
        deviation=deviation,
    )


def distinct(times: Sequence[float]) -> list[float]:
    """Purchases, oldest first, without those that follow another one within a day."""
    later = [moment for before, moment in pairwise(times) if moment - before >= ONE_PURCHASE_S]
    return [times[0], *later]


@lru_cache(maxsize=1)
def _spread() -> float:
    """Standard deviations to either side that hold `WITHIN` of a normal distribution."""
    return STANDARD.inv_cdf((1.0 + WITHIN) / 2.0)


def _sound(row: dict[str, float]) -> bool:
    numbers = [row[name] for name in ("mean", "within", "between", "first", "again")]
    finite = all(number is not None and math.isfinite(number) for number in numbers)
    if (
        not finite
        or abs(row["mean"]) > LONGEST
        or not 0 < row["within"] <= LONGEST
        or not 0 <= row["between"] <= LONGEST
    ):
        return False
    return all(0 <= row[name] < 1 for name in ("first", "again")) and row["intervals"] is not None
