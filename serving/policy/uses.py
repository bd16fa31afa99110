"""Uses: which documents need another one, found by the names in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from serving.policy.arms import touched
from serving.policy.contents import Content
from serving.policy.experiments import Experiment
from serving.policy.kinds import PolicyDocument
from serving.policy.layouts import AlertSlot, ContentSlot, Layout, Shelf
from serving.policy.rules import SEGMENT_KIND, Rule, segments_named
from serving.policy.segments import Segment

Key = tuple[str, str]
"""Kind and id of a document."""


def needed(document: PolicyDocument) -> Iterator[Key]:
    """What a document cannot do without, or would be another one without; an experiment only while it runs."""
    match document:
        case Segment() | Rule():
            yield from ((SEGMENT_KIND, name) for name in segments_named(document.when))
        case Content():
            for when in (document.when, *(variant.when for variant in document.variants)):
                yield from ((SEGMENT_KIND, name) for name in segments_named(when))
        case Layout():
            for slot in document.slots:
                match slot:
                    case Shelf():
                        yield "placement", slot.placement
                    case ContentSlot(content=name) | AlertSlot(alert=str(name)):
                        yield "content", name
        case Experiment(state="running"):
            yield from ((SEGMENT_KIND, name) for name in segments_named(document.when))
            yield from ((kind, name) for kind, name, _ in touched(document.arms) if kind != "release")
            yield from (("layout", name) for arm in document.arms for name in arm.layouts.values())


def users(key: Key, documents: Mapping[str, Mapping[str, PolicyDocument]]) -> Iterator[Key]:
    """The documents among `documents`, by kind and id, that need the one of a kind and id."""
    for kind, found in documents.items():
        for name, document in found.items():
            if (kind, name) != key and key in needed(document):
                yield kind, name


def need(keys: Iterable[Key]) -> str:
    """Some documents in words, with the verb: "the rule 'r' and the layout 'home' need"."""
    said = [f"the {kind} '{name}'" for kind, name in keys]
    return f"{', '.join(said[:-1])} and {said[-1]} need" if len(said) > 1 else f"{said[0]} needs"
