"""Arms: what the people of one arm of an experiment get instead of what everybody gets.

An arm names the documents that it changes: fields of a placement, rules that are switched on or off, the layout of a page,
the weights of a content's variants, the model release.
`Changes` is that, checked against the documents in force and ready for a request to be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict, StringConstraints

from embeddings.errors import InputError, unknown_name
from embeddings.schema import Id, Label, Name, Row
from serving.policy.contents import Content
from serving.policy.kinds import PolicyDocument, References
from serving.policy.layouts import Layout
from serving.policy.placements import DEFAULT, PLACEMENTS, Placement

MAX_CHANGES = 50


def distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names as they are; raises `InputError` if one occurs twice."""
    if len(set(names)) != len(names):
        raise InputError("must not name anything twice")
    return names


Names = Annotated[tuple[Id, ...], Field(max_length=MAX_CHANGES), AfterValidator(distinct)]
Weight = Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)]
ReleaseName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
VariantWeights = Annotated[
    dict[Id, Annotated[float, Strict(), Field(gt=0, le=1_000_000, allow_inf_nan=False)]],
    Field(min_length=1, max_length=MAX_CHANGES),
]


class Arm(Row):
    """One arm. `weight` is its share of the people; where no arm has one, all get the same.

    `placements`: fields of a placement, by its id, that are other than in the document. `rules_on`: rules that are in force
    for this arm although they are not enabled; `rules_off`: rules that are not, although they are. `layouts`: the layout,
    by its id, that a page has instead of its own. `contents`: weights by which a content's variants are chosen, instead of
    by what was learned; variants that are not named are not shown. `release`: the model release that answers, if every
    replica can open it; until then nobody takes part. `stopped` says why nobody is given this arm any more:
    its people get what everybody gets, and nobody is moved into another arm.
    """

    id: Name
    weight: Weight | None = None
    placements: Annotated[dict[Id, dict[str, Any]], Field(max_length=MAX_CHANGES)] = Field(default={})
    rules_on: Names = ()
    rules_off: Names = ()
    layouts: Annotated[dict[Id, Id], Field(max_length=MAX_CHANGES)] = Field(default={})
    contents: Annotated[dict[Id, VariantWeights], Field(max_length=MAX_CHANGES)] = Field(default={})
    release: ReleaseName | None = None
    stopped: Label | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What differs from the documents in force; placements, layouts and contents by the name that a request has."""

    placements: Mapping[str, Placement] = field(default_factory=dict)
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    contents: Mapping[str, Content] = field(default_factory=dict)
    rules_on: frozenset[str] = frozenset()
    rules_off: frozenset[str] = frozenset()
    release: str | None = None

    @classmethod
    def joined(cls, changes: Iterable[Changes]) -> Changes:
        """Several at once; no two of them change the same (experiments that would are refused)."""
        found = list(changes)
        if len(found) < 2:
            return found[0] if found else NOTHING
        return cls(
            placements={name: one for each in found for name, one in each.placements.items()},
            layouts={name: one for each in found for name, one in each.layouts.items()},
            contents={name: one for each in found for name, one in each.contents.items()},
            rules_on=frozenset[str]().union(*(each.rules_on for each in found)),
            rules_off=frozenset[str]().union(*(each.rules_off for each in found)),
            release=next((each.release for each in found if each.release is not None), None),
        )


NOTHING = Changes()


def touched(arms: Iterable[Arm]) -> Iterator[tuple[str, str, str]]:
    """What arms change, each as (kind, id, path within the list of arms)."""
    for place, arm in enumerate(arms):
        yield from (("placement", name, f"{place}.placements.{name}") for name in arm.placements)
        yield from (("layout", name, f"{place}.layouts.{name}") for name in arm.layouts)
        yield from (("content", name, f"{place}.contents.{name}") for name in arm.contents)
        if arm.release is not None:  # whichever it is, only one can answer
            yield "release", "current", f"{place}.release"
        for listed in ("rules_on", "rules_off"):
            yield from (("rule", name, f"{place}.{listed}.{at}") for at, name in enumerate(getattr(arm, listed)))


def changes_of(arm: Arm, references: References, *, path: str) -> Changes:
    """What an arm changes among the documents in force; raises `InputError` whose field begins with `path`."""
    for listed in ("rules_on", "rules_off"):
        for at, name in enumerate(getattr(arm, listed)):
            _known("rule", name, references, f"{path}.{listed}.{at}")
    both = sorted(set(arm.rules_on) & set(arm.rules_off))
    if both:
        raise InputError(
            f"{path}.rules_off: '{both[0]}' is switched on and off; name it in one of them", field=f"{path}.rules_off"
        )
    contents = {}
    for name, weights in arm.contents.items():
        _known("content", name, references, f"{path}.contents.{name}")
        found = references.documents.get("content", {}).get(name)
        if isinstance(found, Content):
            contents[name] = _weighed(found, weights, f"{path}.contents.{name}")
    layouts = {}
    for page, name in arm.layouts.items():
        where = f"{path}.layouts.{page}"
        _known("layout", page, references, where)
        _known("layout", name, references, where)
        found = references.documents.get("layout", {}).get(name)
        if isinstance(found, Layout):
            layouts[page] = found.model_copy(update={"id": page})
    return Changes(
        placements={
            name: _placement(name, fields, references, f"{path}.placements.{name}")
            for name, fields in arm.placements.items()
        },
        layouts=layouts,
        contents=contents,
        rules_on=frozenset(arm.rules_on),
        rules_off=frozenset(arm.rules_off),
        release=arm.release,
    )


def _known(kind: str, name: str, references: References, path: str) -> None:
    if kind in references.documents and name not in references.ids(kind):
        raise unknown_name(kind, name, references.ids(kind), field=path)


def _weighed(content: Content, weights: Mapping[str, float], path: str) -> Content:
    """The content with its variants chosen by these weights."""
    ids = [variant.id for variant in content.variants]
    for name in weights:
        if name not in ids:
            raise unknown_name("variant", name, ids, field=f"{path}.{name}")
    variants = tuple(one.model_copy(update={"weight": weights.get(one.id, 0.0)}) for one in content.variants)
    return content.model_copy(update={"choice": "weights", "variants": variants})


def _placement(name: str, fields: Mapping[str, Any], references: References, path: str) -> Placement:
    """The placement of a name with some of its fields changed."""
    if "id" in fields:
        raise InputError(f"{path}.id: an arm changes what a placement is like, not its name", field=f"{path}.id")
    known: Mapping[str, PolicyDocument] = references.documents.get("placement", PLACEMENTS.ready_made)
    base = known.get(name) or known.get(DEFAULT.id) or DEFAULT
    try:
        return PLACEMENTS.parse({**base.model_dump(mode="json"), **fields, "id": name}, references)
    except InputError as error:
        raise error.within(path) from None
