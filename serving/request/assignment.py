"""Assignment: which arm of which experiment a person is in, from their id alone.

Nothing is remembered. A place from 0 to 1 is drawn by hash, once for all experiments (who is held out), once for each layer
(whose slice somebody is in) and once for each experiment (which arm). So an arm is the same on every channel, on every
replica and for every alias of a person; more traffic moves nobody; and another experiment on the same slice of a layer
mixes its people anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from embeddings.ids import stable_hash
from serving.policy.experiments import HOLDOUT, Experiment
from serving.policy.layers import Running

WHOLE = float(2**64)

Facts = Callable[[], Mapping[str, Any]]


def place(person: str, drawn: str, name: str = "") -> float:
    """A place from 0 to below 1 for a person, by what it is drawn for and the name of that."""
    # Not the salt alone, which is cut off after 64 bytes: two long names must not draw alike.
    return stable_hash(f"{name}\n{person}", salt=drawn) / WHOLE


def arm_of(experiment: Experiment, person: str) -> str | None:
    """The arm of a person whose facts fit, `HOLDOUT` for those kept out; None if they do not take part."""
    if experiment.holdout and place(person, HOLDOUT) < experiment.holdout:
        return HOLDOUT
    part = experiment.slice
    within = (place(person, "layer", experiment.layer) - part.start) / (part.end - part.start)
    if not 0 <= within < experiment.traffic:
        return None
    drawn = place(person, "arm", experiment.id)
    # Rounding may leave the last bound a little below 1.
    bounds = zip(accumulate(experiment.weights), experiment.arms, strict=True)
    return next((arm for bound, arm in bounds if drawn < bound), experiment.arms[-1]).id


def assigned(experiments: Running, person: str, facts: Facts, now: float) -> dict[str, str]:
    """The arm of each experiment that a person takes part in; `facts` is called if a condition asks for them."""
    arms: dict[str, str] = {}
    for one in experiments:
        if not one.running(now) or (one.when is not None and not one.when.matches(facts(), now=now)):
            continue
        arm = arm_of(one, person)
        if arm is not None and not any(each.stopped for each in one.arms if each.id == arm):
            arms[one.id] = arm
    return arms
