"""Results: what an experiment has found so far, arm by arm against the first one, for everybody and by segment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from embeddings.arrays import Mask
from embeddings.errors import unknown_name
from serving.analysis.intervals import Interval, adjusted, difference, lift, mean, sample_ratio
from serving.analysis.people import People, measured
from serving.policy.experiments import HOLDOUT, METRICS, Experiment, Metric
from serving.store import Outcome, Store
from serving.store.tables import micros

ENOUGH = 100
"""People of an arm before anything is compared: intervals of sums need sums."""

UNEQUAL = 0.01
"""Below this p-value arms do not have the people they should have, and nothing of what they show can be trusted."""

ACTIVITY = "activity"
"""The segment by whether somebody had done anything in the four weeks before: it needs no attribute."""

MAX_SEGMENTS = 20


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One metric of one arm: its mean over `people`, and how it differs from the first arm's, None if that is not known.

    `difference` and `lift` hold whenever one looks. `explained` is the share of variance that behaviour before took out.
    """

    metric: Metric
    people: int
    mean: float | None
    difference: Interval | None = None
    lift: Interval | None = None
    explained: float = 0.0

    @property
    def verdict(self) -> str | None:
        """Whether the arm is surely better or worse; None while that is open."""
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return None
        return "better" if self.difference.low > 0 else "worse"


def compared(people: People, metric: Metric, arms: int, *, alpha: float, planned: int) -> list[Compared]:
    """One metric of every arm, the first of which is the control.

    The variance that behaviour before explains is taken out where the first arm and another have enough people.
    """
    one = measured(people, metric)
    pairs = [one.of(people.arm == arm) for arm in range(arms)]
    values = [values for values, _ in pairs]
    means = [float(each.mean()) if len(each) else None for each in values]
    large = [arm for arm in range(arms) if len(values[arm]) >= ENOUGH]
    found = [Compared(metric=metric, people=len(each), mean=plain) for each, plain in zip(values, means, strict=True)]
    if 0 not in large:
        return found
    clean, explained = adjusted([values[arm] for arm in large], [pairs[arm][1] for arm in large])
    by_arm = {arm: mean(each) for arm, each in zip(large, clean, strict=True)}
    for arm in large[1:]:
        found[arm] = Compared(
            metric=metric,
            people=len(values[arm]),
            mean=means[arm],
            difference=difference(by_arm[arm], by_arm[0], alpha=alpha, planned=planned),
            lift=lift(by_arm[arm], by_arm[0], alpha=alpha, planned=planned),
            explained=explained,
        )
    return found


def arms_of(experiment: Experiment) -> tuple[str, ...]:
    """The arms by name, last those who are held out, if anybody is."""
    return (*(arm.id for arm in experiment.arms), *([HOLDOUT] if experiment.holdout else []))


def outcomes_of(
    store: Store, experiment: Experiment, *, now: datetime, attributes: bool = False
) -> tuple[list[Outcome], int]:
    """Outcomes of everybody in an experiment since its document was made, and until when (microseconds)."""
    until = micros(now if experiment.ends_at is None else min(now, experiment.ends_at))
    made = (one.version for one in store.documents.audit("experiment", experiment.id, 1000) if one.action == "create")
    found = store.outcomes.of(
        experiment.id,
        arms_of(experiment),
        since_version=next(made, 0),
        until=until,
        click=experiment.events.click,
        purchase=experiment.events.purchase,
        attributes=attributes,
    )
    return found, until


def balance(experiment: Experiment, counts: Sequence[int]) -> dict[str, Any]:
    """Whether the arms that nobody stopped have the people they should have."""
    going = [place for place, arm in enumerate(experiment.arms) if arm.stopped is None]
    shares = [experiment.weights[place] for place in going]
    found = [counts[place] for place in going]
    chance = sample_ratio(found, shares) if len(going) > 1 else 1.0
    whole = sum(shares)
    return {
        "p_value": chance,
        "alarm": chance < UNEQUAL,
        "expected": {experiment.arms[at].id: share / whole for at, share in zip(going, shares, strict=True)},
        "found": {experiment.arms[at].id: count for at, count in zip(going, found, strict=True)},
    }


def results(store: Store, experiment: Experiment, *, now: datetime, segment: str | None = None) -> dict[str, Any]:
    """Everything an experiment has found, as in `ResultsOut`; `segment` is an attribute of people, or `ACTIVITY`."""
    outcomes, until = outcomes_of(store, experiment, now=now, attributes=segment not in (None, ACTIVITY))
    # Two ids that turned out to be one person may have met both arms; what they do tells nothing about either.
    certain = [one for one in outcomes if one.arm == one.last_arm]
    if segment not in (None, ACTIVITY) and certain:
        known = {name for one in certain for name in one.attributes or ()}
        if segment not in known:
            raise unknown_name("attribute", str(segment), {*known, ACTIVITY}, field="segment")
    people = People.of(certain, until=until)
    counts = np.bincount(people.arm, minlength=len(arms_of(experiment))).tolist()
    answers: Counter[int] = Counter()
    for one in certain:
        answers[one.arm] += one.answers
    return {
        "experiment": experiment.id,
        "state": experiment.state,
        "until": datetime.fromtimestamp(until / 1e6, UTC),
        "primary": experiment.primary,
        "alpha": experiment.alpha,
        "people": len(people),
        "mixed": len(outcomes) - len(certain),
        "sample_ratio": balance(experiment, counts),
        "arms": _arms(experiment, people, answers),
        "segments": [] if segment is None else _segments(experiment, people, certain, segment),
    }


def _arms(experiment: Experiment, people: People, answers: Mapping[int, int]) -> list[dict[str, Any]]:
    names = arms_of(experiment)
    stopped = {arm.id: arm.stopped for arm in experiment.arms}
    by_metric = {
        metric: compared(people, metric, len(names), alpha=experiment.alpha, planned=experiment.people)
        for metric in METRICS
    }
    return [
        {
            "id": name,
            "stopped": stopped.get(name),
            "people": int((people.arm == place).sum()),
            "answers": answers.get(place, 0),
            "metrics": {metric: _told(found[place]) for metric, found in by_metric.items()},
        }
        for place, name in enumerate(names)
    ]


def _told(one: Compared) -> dict[str, Any]:
    return {
        "people": one.people,
        "mean": one.mean,
        "difference": None if one.difference is None else one.difference._asdict(),
        "lift": None if one.lift is None else one.lift._asdict(),
        "verdict": one.verdict,
        "explained": one.explained,
    }


def _segments(
    experiment: Experiment, people: People, outcomes: Sequence[Outcome], segment: str
) -> list[dict[str, Any]]:
    """The primary metric of each segment, the largest first; one of many segments differs by chance now and then."""
    names = arms_of(experiment)
    if segment == ACTIVITY:
        known: list[str | None] = ["active" if one.events_before else "new" for one in outcomes]
    else:
        known = [_value(one.attributes, segment) for one in outcomes]
    labels = np.array(known, dtype=object)
    found = []
    for label, count in Counter(known).most_common(MAX_SEGMENTS):
        chosen: Mask = labels == label
        arms = compared(
            people.take(chosen), experiment.primary, len(names), alpha=experiment.alpha, planned=experiment.people
        )
        found.append(
            {
                "value": label,
                "people": count,
                "arms": {name: _told(one) for name, one in zip(names, arms, strict=True)},
            }
        )
    return found


def _value(attributes: Mapping[str, Any] | None, name: str) -> str | None:
    value = (attributes or {}).get(name)
    return None if value is None else str(value)
