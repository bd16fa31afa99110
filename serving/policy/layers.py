"""Layers: all running experiments together, found by what a request asks for, and what their arms change there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from embeddings.errors import InputError
from serving.policy.arms import NOTHING, Changes, changes_of, touched
from serving.policy.experiments import Experiment, clash, parse_experiment
from serving.policy.kinds import Kind, References, Report
from serving.policy.placements import Placement
from serving.policy.rules import Rule

Running = tuple[Experiment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiments:
    """Every experiment by id, and those that are running by where people take part in them."""

    by_id: Mapping[str, Experiment]
    everywhere: Running
    by_placement: Mapping[str, Running]
    by_page: Mapping[str, Running]
    by_content: Mapping[str, Running]
    by_release: Running
    arms: Mapping[tuple[str, str], Changes]

    def on_placement(self, name: str) -> Running:
        """The experiments that a list of this placement is part of."""
        return self.by_placement.get(name, self.everywhere)

    def on_page(self, name: str) -> Running:
        """The experiments that this page is part of, apart from those of its shelves."""
        return self.by_page.get(name, self.by_release)

    def on_content(self, name: str) -> Running:
        """The experiments that a decision on this content is part of."""
        return self.by_content.get(name, ())

    def changes(self, arms: Mapping[str, str]) -> Changes:
        """What is other than in the documents for whoever is in these arms (experiment -> arm)."""
        if not arms:
            return NOTHING
        return Changes.joined(found for arm in arms.items() if (found := self.arms.get(arm)) is not None)

    @property
    def placements(self) -> Iterator[Placement]:
        """Every placement as some arm has it."""
        return (one for changes in self.arms.values() for one in changes.placements.values())

    def releases(self, name: str | None = None) -> frozenset[str]:
        """The model releases that arms of an experiment, or of all that are running, are answered by."""
        arms = self.arms.items()
        return frozenset(one.release for (of, _), one in arms if one.release is not None and name in (None, of))

    @property
    def rules_on(self) -> frozenset[str]:
        """Ids of the rules that some arm switches on."""
        return frozenset[str]().union(*(changes.rules_on for changes in self.arms.values()))


def _together(experiments: Mapping[str, Experiment], references: References, report: Report) -> Experiments:
    running: list[Experiment] = []
    arms: dict[tuple[str, str], Changes] = {}
    for _, one in sorted(experiments.items()):
        if one.state != "running":
            continue
        try:
            changes = {
                (one.id, arm.id): changes_of(arm, references, path=f"arms.{n}") for n, arm in enumerate(one.arms)
            }
        except InputError as error:
            report(one.id, error)
            continue
        # Two writers at once may have let in what does not go together: the later one by id is left out.
        wrong = next((found for other in running if (found := clash(one, other)) is not None), None)
        if wrong is not None:
            report(one.id, wrong)
            continue
        running.append(one)
        arms |= changes
    return Experiments(
        by_id=MappingProxyType(dict(experiments)), arms=MappingProxyType(arms), **_places(running, references)
    )


def _places(running: list[Experiment], references: References) -> dict[str, Any]:
    """Where people take part: everywhere, by placement (with those that are everywhere), by page and by content."""
    rules = references.documents.get("rule", {})
    everywhere: list[Experiment] = []
    placements: defaultdict[str, list[Experiment]] = defaultdict(list)
    releases: list[Experiment] = []
    others: dict[str, defaultdict[str, list[Experiment]]] = {"layout": defaultdict(list), "content": defaultdict(list)}
    for one in running:
        named = set(one.placements)
        wide = False
        for kind, name in dict.fromkeys((kind, name) for kind, name, _ in touched(one.arms)):
            if kind == "placement":
                named.add(name)
            elif kind == "release":
                wide = True
                releases.append(one)
            elif kind in others:
                others[kind][name].append(one)
            elif isinstance(rule := rules.get(name), Rule):
                named.update(rule.placements)
                wide = wide or not rule.placements
        if wide:
            everywhere.append(one)
        for name in () if wide else sorted(named):
            placements[name].append(one)
    return {
        "everywhere": tuple(everywhere),
        "by_placement": _frozen({name: [*everywhere, *found] for name, found in placements.items()}),
        "by_page": _frozen({name: _each([*releases, *found]) for name, found in others["layout"].items()}),
        "by_release": tuple(releases),
        "by_content": _frozen(others["content"]),
    }


def _each(found: list[Experiment]) -> list[Experiment]:
    """Each experiment once."""
    return list({one.id: one for one in found}.values())


def _frozen(found: Mapping[str, list[Experiment]]) -> Mapping[str, Running]:
    return MappingProxyType({name: tuple(experiments) for name, experiments in found.items()})


def _parsed(raw: Mapping[str, Any], references: References) -> Experiment:
    return parse_experiment(raw, references=references)


EXPERIMENTS = Kind(name="experiment", plural="experiments", model=Experiment, parse=_parsed, compile=_together)
"""Experiments, compiled to those that are running."""
