"""Kinds of documents: what the store, the API and the compiler have to know of each, declared once, beside its owner.

A kind is a value: its names, its model, how a raw document becomes that model, and what is made of all documents together.
`compiled.KINDS` lists them all; nothing else has to be told of a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from embeddings.errors import InputError
from embeddings.schema import Id, Row, Text


class PolicyDocument(Row):
    """Base of every model: what all documents have."""

    id: Id
    description: Text = ""


def check_distinct(ids: Iterable[str], *, field: str, what: str) -> None:
    """Raise `InputError` for an id that one of the parts of a document has that stand before; `what` is one of them."""
    seen: set[str] = set()
    for place, name in enumerate(ids):
        if name in seen:
            path = f"{field}.{place}.id"
            raise InputError(f"{path}: '{name}' is the id of another {what}", field=path)
        seen.add(name)


D = TypeVar("D", bound=PolicyDocument)
C = TypeVar("C")
NO_DOCUMENTS: Mapping[str, PolicyDocument] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """What a document may speak of.

    `item_attributes` are the catalogue's own attributes (None: not known, any name passes). `documents` are the valid
    documents by name of their kind, then id: while a policy is compiled those of the kinds before in `KINDS`, while one
    document is checked those in force.
    """

    item_attributes: Collection[str] | None = None
    documents: Mapping[str, Mapping[str, PolicyDocument]] = field(default_factory=dict)

    def ids(self, kind: str) -> Collection[str]:
        """Ids of the documents of a kind."""
        return self.documents.get(kind, NO_DOCUMENTS).keys()


Report = Callable[[str, InputError], None]
"""Called by a compile hook with the id of a document that does not go with the others, and why."""


def by_id(documents: Mapping[str, D], references: References, report: Report) -> Mapping[str, D]:
    """The compile hook of a kind whose documents go with any others: themselves, by id."""
    return MappingProxyType(dict(documents))


def _nothing(raw: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[D, C]):
    """One kind of documents.

    `name` is its name in store and audit, `plural` that in paths and lists. `parse` validates one raw document and raises
    `InputError` whose `field` is the path of the culprit. `compile` gets all valid documents by id and returns what a
    request reads; a document that does not go with the others it leaves out and reports. It runs when the policy changes
    and, for a check, when a document is about to be written, so it only computes. `despite` may return a document that
    stays in force as it reads although it does not validate any more (see `rules`). `ready_made` documents exist by id
    without being written, until one with the same id is.
    """

    name: str
    plural: str
    model: type[D]
    parse: Callable[[Mapping[str, Any], References], D]
    compile: Callable[[Mapping[str, D], References, Report], C]
    despite: Callable[[Mapping[str, Any]], D | None] = _nothing
    ready_made: Mapping[str, D] = field(default_factory=dict)
