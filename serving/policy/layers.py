"""Layers: all running experiments together, found by what a request asks for, and what their arms change there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

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


class _Part(NamedTuple):
    """Where people take part in one experiment: on every list, or on these placements; on pages and contents, by id."""

    everywhere: bool
    release: bool
    placements: frozenset[str]
    pages: frozenset[str]
    contents: frozenset[str]

    @classmethod
    def of(cls, one: Experiment, references: References) -> _Part:
        named: defaultdict[str, set[str]] = defaultdict(set)
        for kind, name, _ in touched(one.arms):
            named[kind].add(name)
        rules = [references.documents.get("rule", {}).get(name) for name in named["rule"]]
        ruled = [rule.placements for rule in rules if isinstance(rule, Rule)]
        release = bool(named["release"])
        everywhere = release or any(not placements for placements in ruled)
        placements = frozenset(named["placement"].union(one.placements, *ruled))
        return cls(
            everywhere=everywhere,
            release=release,
            placements=frozenset() if everywhere else placements,
            pages=frozenset(named["layout"]),
            contents=frozenset(named["content"]),
        )


def _places(running: list[Experiment], references: References) -> dict[str, Any]:
    """Where people take part: everywhere, by placement (with those that are everywhere), by page and by content."""
    parts = [(one, _Part.of(one, references)) for one in running]
    everywhere = [one for one, part in parts if part.everywhere]
    releases = [one for one, part in parts if part.release]
    placements = _by_name((one, part.placements) for one, part in parts)
    pages = _by_name((one, part.pages) for one, part in parts)
    return {
        "everywhere": tuple(everywhere),
        "by_placement": _frozen({name: [*everywhere, *found] for name, found in placements.items()}),
        "by_page": _frozen({name: _each([*releases, *found]) for name, found in pages.items()}),
        "by_release": tuple(releases),
        "by_content": _frozen(_by_name((one, part.contents) for one, part in parts)),
    }


def _by_name(named: Iterable[tuple[Experiment, frozenset[str]]]) -> dict[str, list[Experiment]]:
    found: defaultdict[str, list[Experiment]] = defaultdict(list)
    for one, names in named:
        for name in names:
            found[name].append(one)
    return found


def _each(found: list[Experiment]) -> list[Experiment]:
    """Each experiment once."""
    return list({one.id: one for one in found}.values())


def _frozen(found: Mapping[str, list[Experiment]]) -> Mapping[str, Running]:
    return MappingProxyType({name: tuple(experiments) for name, experiments in found.items()})


def _parsed(raw: Mapping[str, Any], references: References) -> Experiment:
    return parse_experiment(raw, references=references)


EXPERIMENTS = Kind(name="experiment", plural="experiments", model=Experiment, parse=_parsed, compile=_together)
"""Experiments, compiled to those that are running."""
