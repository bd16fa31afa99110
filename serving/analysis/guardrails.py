"""Guardrails: an arm that surely does harm is stopped without anybody having to look, and the audit says why."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import datetime

from embeddings.errors import Conflict, NotFound
from serving.analysis.people import People
from serving.analysis.results import arms_of, compared, outcomes_of
from serving.policy.experiments import Experiment
from serving.store import Store

logger = logging.getLogger("bespoke.guardrails")

ITSELF = "guardrail"
"""Who stopped an arm when nobody did, in the audit."""


def broken(experiment: Experiment, people: People) -> Iterator[tuple[str, str]]:
    """Each arm that has to be stopped, and why; an arm once at most."""
    going = {arm.id: place for place, arm in enumerate(experiment.arms) if place and arm.stopped is None}
    for rail in experiment.guardrails:
        found = compared(
            people, rail.metric, len(arms_of(experiment)), alpha=experiment.alpha, planned=experiment.people
        )
        for name, place in list(going.items()):
            lift = found[place].lift
            if lift is not None and lift.high < -rail.margin:
                del going[name]
                yield (
                    name,
                    f"{rail.metric} is {-lift.estimate:.1%} below '{experiment.control.id}', {-lift.high:.1%} at least; "
                    f"{rail.margin:.1%} is allowed",
                )


def enforce(store: Store, experiments: Iterable[Experiment], *, now: datetime) -> list[tuple[str, str]]:
    """Stop what has to be stopped; returns the arms as (experiment, arm). Whoever changes a document meanwhile wins."""
    stopped = []
    for one in experiments:
        document = store.documents.get("experiment", one.id)
        if document is None:
            continue
        outcomes, until = outcomes_of(store, one, now=now)
        people = People.of([each for each in outcomes if each.arm == each.last_arm], until=until)
        changed, found = one, list(broken(one, people))
        if not found:
            continue
        for arm, why in found:
            changed = changed.without(arm, why[:256])
        body, why = changed.model_dump(mode="json"), "; ".join(f"{arm}: {why}" for arm, why in found)[:500]
        try:
            store.documents.put("experiment", one.id, body, by=ITSELF, why=why, expected_version=document.version)
        except (Conflict, NotFound):
            continue
        stopped += [(one.id, arm) for arm, _ in found]
        logger.error("experiment '%s' goes on without an arm: %s", one.id, why)
    return stopped
