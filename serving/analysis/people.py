"""People: everybody in an experiment as columns, and the metrics as numbers a person.

    clicks          clicks a person
    conversion      share of the people who bought anything
    orders          purchases a person
    revenue         what purchases brought, a person
    average_order   what a purchase brought
    retention_7     share who came back in the week after the day of their first answer
    retention_28    share who came back in the fourth week
    lifetime_value  revenue so far, and what the year after is expected to bring

All count from the first answer of the experiment on, whatever the events refer to: a list moves purchases that no click on
it leads to. For the retention of a week only those count for whom that week is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Doubles, Mask
from serving.analysis.intervals import ratio
from serving.policy.experiments import Metric
from serving.store import Outcome
from serving.store.outcomes import WEEKS
from serving.store.tables import DAY_US

HORIZON_DAYS = 365.0


@dataclass(frozen=True, kw_only=True)
class People:
    """Columns [n]: `arm` as places in the experiment's arms, `days` since the first answer, the rest as in `Outcome`."""

    arm: npt.NDArray[np.int64]
    days: Doubles
    clicks: Doubles
    orders: Doubles
    revenue: Doubles
    active_7: Doubles
    active_28: Doubles
    clicks_before: Doubles
    orders_before: Doubles
    revenue_before: Doubles
    active_before: Doubles

    def __len__(self) -> int:
        return len(self.arm)

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], *, until: int) -> People:
        """The columns of some outcomes, as of `until` (microseconds since 1970)."""
        columns = {
            field.name: np.array([getattr(one, field.name) for one in outcomes], dtype=np.float64)
            for field in fields(cls)
            if field.name not in ("arm", "days")
        }
        first = np.array([one.first for one in outcomes], dtype=np.int64)
        arm = np.array([one.arm for one in outcomes], dtype=np.int64)
        return cls(arm=arm, days=(until - first) / DAY_US, **columns)

    def take(self, chosen: Mask) -> People:
        """Some of the people."""
        return People(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


class Measured(NamedTuple):
    """A metric: numbers [n] of everybody, over others [n] where it is a ratio; what was so before; who counts."""

    values: Doubles
    over: Doubles | None
    before: Doubles
    counts: Mask

    def of(self, chosen: Mask) -> tuple[Doubles, Doubles]:
        """Values and what was before, of those of the chosen who count; their mean is that of the metric."""
        kept = chosen & self.counts
        values = self.values[kept]
        if self.over is not None:
            values = ratio(values, self.over[kept]) if self.over[kept].any() else values[:0]
        return values, self.before[kept][: len(values)]


def measured(people: People, metric: Metric) -> Measured:
    """One metric of everybody."""
    everybody = np.ones(len(people), dtype=bool)
    match metric:
        case "clicks":
            return Measured(people.clicks, None, people.clicks_before, everybody)
        case "conversion":
            return Measured(_any(people.orders), None, _any(people.orders_before), everybody)
        case "orders":
            return Measured(people.orders, None, people.orders_before, everybody)
        case "revenue":
            return Measured(people.revenue, None, people.revenue_before, everybody)
        case "average_order":
            return Measured(people.revenue, people.orders, people.revenue_before, everybody)
        case "retention_7":
            return Measured(people.active_7, None, people.active_before, people.days >= WEEKS["active_7"][1])
        case "retention_28":
            return Measured(people.active_28, None, people.active_before, people.days >= WEEKS["active_28"][1])
        case "lifetime_value":
            return Measured(lifetime_value(people), None, people.revenue_before, everybody)


def lifetime_value(people: People) -> Doubles:
    """Revenue so far and that of the following year [n], by how often each person buys and for how much.

    Rates of purchases are taken to be spread over people as a gamma distribution, fitted by moments to all arms at once;
    what is expected of a person is drawn towards the mean the more, the less is known of them (the repeat-buying model of
    Ehrenberg, 1959; nobody is taken to leave for good). So early on a difference of arms is told too small, not too large.
    """
    days = np.maximum(people.days, 1.0)
    rate = people.orders.sum() / days.sum() if len(people) else 0.0
    if rate <= 0:
        return people.revenue.copy()
    # What varies beyond chance: the variance of the rates.
    excess = float(((people.orders - rate * days) ** 2 - rate * days).sum() / (days**2).sum())
    typical = people.revenue.sum() / people.orders.sum()
    worth = (people.revenue + typical) / (people.orders + 1.0)
    if excess <= 1e-12:
        expected = np.full(len(people), rate)
    else:
        expected = (people.orders + rate**2 / excess) / (days + rate / excess)
    values: Doubles = people.revenue + HORIZON_DAYS * expected * worth
    return values


def _any(numbers: Doubles) -> Doubles:
    return (numbers > 0).astype(np.float64)
