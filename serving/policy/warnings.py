"""Warnings: what a document may say, and what is probably not meant; each is a sentence for whoever writes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from embeddings.arrays import Mask
from embeddings.sentences import near
from serving.policy.compiled import Policy
from serving.policy.conditions import ANY, Condition
from serving.policy.conflicts import conflicts
from serving.policy.contents import CONTENTS, Content
from serving.policy.experiments import Experiment
from serving.policy.kinds import PolicyDocument
from serving.policy.moments import conditions_of, over
from serving.policy.placements import FINISHED, PLACEMENTS, Placement
from serving.policy.rules import SEGMENT_KIND, Pin, Rule
from serving.policy.segments import Segment
from serving.policy.uses import need, users

MORE_EVENTS = (*FINISHED, "remove_from_cart")
"""Event types that mean something here without any model knowing them."""

SHOWN = 20
"""Warnings of one document; more would not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What there is beside the policy: what the release knows of events, and which items [N] fulfil a condition.

    `objectives` are those that it predicts, None where it has no ranking model.
    """

    event_types: Collection[str]
    objectives: Collection[str] | None
    mask: Callable[[Condition], Mask]


def warnings(document: PolicyDocument, policy: Policy, world: World | None) -> list[str]:
    """What is probably not meant in a document; without a `world` (no release yet) nothing is said of items and events."""
    found = [*_placements(document, policy)]
    if world is not None:
        found += [*_events(document, world), *_objectives(document, world), *_items(document, policy, world)]
    if isinstance(document, Experiment) and document.state == "running" and not document.traffic:
        found.append("traffic: is 0, so nobody takes part")
    if isinstance(document, Content | Segment) and not document.enabled:
        kind = CONTENTS.name if isinstance(document, Content) else SEGMENT_KIND
        if needing := list(users((kind, document.id), policy.documents)):
            found.append(f"enabled: is false, and {need(needing)} it")
    return found[:SHOWN]


def idle(rule: Rule, now: float) -> Iterator[str]:
    """Why a rule that was released is in force for nobody."""
    if not rule.enabled:
        yield "enabled: is false, so the rule is in force for nobody"
    elif over(rule, now):
        yield "ends_at: is over, so the rule is in force for nobody"


def _placements(document: PolicyDocument, policy: Policy) -> Iterator[str]:
    named: list[tuple[str, str]] = []
    match document:
        case Rule():
            named = [("placements", name) for name in document.placements]
        case Experiment():
            named = [("placements", name) for name in document.placements]
            named += [(f"arms.{n}.placements", name) for n, arm in enumerate(document.arms) for name in arm.placements]
    known = policy.documents[PLACEMENTS.name]
    for field, name in dict.fromkeys(named):
        if name not in known:
            hint = near(name, known) or "; requests may ask for it all the same"
            yield f"{field}: nobody has described a placement '{name}'{hint}"


def _events(document: PolicyDocument, world: World) -> Iterator[str]:
    known = {*world.event_types, *MORE_EVENTS}
    named = [
        (field, leaf.event_type) for field, when in conditions_of(document) if when is not None for leaf in when.asked()
    ]
    match document:
        case Placement():
            named += [("seen", name) for name in document.seen]
        case Content():
            named.append(("goal", document.goal))
        case Experiment():
            named += [("events.click", document.events.click), ("events.purchase", document.events.purchase)]
    for field, name in dict.fromkeys(named):
        if name not in known and name != ANY:
            yield f"{field}: the model release knows no events of type '{name}'{near(name, known)}"


def _objectives(document: PolicyDocument, world: World) -> Iterator[str]:
    named: list[tuple[str, Iterable[str]]] = []
    match document:
        case Placement():
            named = [("objectives", document.objectives)]
        case Experiment():
            named = [
                (f"arms.{n}.placements.{name}.objectives", fields.get("objectives", ()))
                for n, arm in enumerate(document.arms)
                for name, fields in arm.placements.items()
            ]
    known = world.objectives
    for field, names in named:
        for name in names:
            if known is None:
                yield f"{field}.{name}: the model release has no ranking model, so objectives count for nothing"
            elif name not in known:
                yield f"{field}.{name}: the model release does not predict '{name}'; it does: {', '.join(known)}"


def _items(document: PolicyDocument, policy: Policy, world: World) -> Iterator[str]:
    def mask(rule: Rule) -> Mask:
        assert rule.items is not None
        return world.mask(rule.items)

    if not isinstance(document, Rule) or document.items is None:
        return
    if not mask(document).any():
        yield "items: no item of the catalogue fulfils it now"
    if isinstance(document.action, Pin):
        pins = [one for one in policy.rules if isinstance(one.action, Pin)]
        for one in conflicts(document, pins, mask):
            yield f"action: it meets the rule '{one.other}': {one.text}"
