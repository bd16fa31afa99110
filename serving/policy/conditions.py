"""Conditions: one small typed tree, evaluated two ways that always agree.

`matches` asks it of one row (a request's facts, one item), `mask` of a whole segment of items at once. A missing
attribute fulfils no comparison, not even `ne`; only `exists` tells. An attribute with several values fulfils a
comparison when any of them does, and `ne` when none is equal. Booleans are the numbers 0 and 1. A text that is an
ISO 8601 date also stands for that moment, and without a time for the whole day (UTC).
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from typing import Any, Protocol

import numpy as np

from embeddings.arrays import Mask
from serving.policy.columns import DAY_S, ItemColumns, Selection, Span, cells, moment

ANY = "any"

Scalar = bool | int | float | str

HISTORY = "history"
"""Under which name a row of facts holds the `Behaviour` of the person."""


class Behaviour(Protocol):
    """What a person did, as a condition may ask."""

    def count(self, event_type: str | None, items: Condition | None, since: float) -> int:
        """How often they did something, with items that fulfil a condition, since a moment in seconds since 1970."""


class Leaf(Protocol):
    """A node without children."""

    @property
    def attribute(self) -> str:
        """What it asks for."""

    @property
    def op(self) -> str:
        """How it asks."""


class Condition(ABC):
    """A node of the tree. Immutable and hashable; equal trees are equal."""

    __slots__ = ()

    def matches(self, row: Mapping[str, Any], *, now: float | None = None) -> bool:
        """Whether one row fulfils it; `now` in seconds since 1970 (default: the clock) is what `within_days` needs."""
        return self._matches(row, time.time() if now is None else now)

    def mask(self, columns: ItemColumns, *, now: float | None = None) -> Mask:
        """[n] whether each item fulfils it; a new array, the caller's to change."""
        return self._mask(columns, time.time() if now is None else now)

    @property
    def timed(self) -> bool:
        """Whether the outcome changes as time goes by, the rows being the same."""
        return any(leaf.op in ("within_days", "did") for leaf in self._leaves())

    def attributes(self) -> frozenset[str]:
        """Every attribute that is named in it."""
        return frozenset(leaf.attribute for leaf in self._leaves())

    def comparisons(self, attribute: str) -> list[Comparison]:
        """Every comparison of an attribute that is in it."""
        return [leaf for leaf in self._leaves() if isinstance(leaf, Comparison) and leaf.attribute == attribute]

    def asked(self) -> list[Did]:
        """Everything in it that asks what somebody did."""
        return [leaf for leaf in self._leaves() if isinstance(leaf, Did)]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that `parse` (`syntax.py`) reads back into an equal tree."""
        return self._json()

    @abstractmethod
    def _leaves(self) -> Iterator[Leaf]: ...

    @abstractmethod
    def _json(self) -> dict[str, Any]: ...

    @abstractmethod
    def _matches(self, row: Mapping[str, Any], now: float) -> bool: ...

    @abstractmethod
    def _mask(self, columns: ItemColumns, now: float) -> Mask: ...


@dataclass(frozen=True, slots=True)
class _Group(Condition):
    children: tuple[Condition, ...]

    def _leaves(self) -> Iterator[Leaf]:
        return chain.from_iterable(child._leaves() for child in self.children)


class AllOf(_Group):
    """Every child holds: `{"all": [...]}`."""

    __slots__ = ()

    def _json(self) -> dict[str, Any]:
        return {"all": [child._json() for child in self.children]}

    def _matches(self, row: Mapping[str, Any], now: float) -> bool:
        return all(child._matches(row, now) for child in self.children)

    def _mask(self, columns: ItemColumns, now: float) -> Mask:
        return reduce(np.logical_and, (child._mask(columns, now) for child in self.children))


class AnyOf(_Group):
    """At least one child holds: `{"any": [...]}`."""

    __slots__ = ()

    def _json(self) -> dict[str, Any]:
        return {"any": [child._json() for child in self.children]}

    def _matches(self, row: Mapping[str, Any], now: float) -> bool:
        return any(child._matches(row, now) for child in self.children)

    def _mask(self, columns: ItemColumns, now: float) -> Mask:
        return reduce(np.logical_or, (child._mask(columns, now) for child in self.children))


@dataclass(frozen=True, slots=True)
class Not(Condition):
    """The child does not hold: `{"not": {...}}`."""

    child: Condition

    def _leaves(self) -> Iterator[Leaf]:
        return self.child._leaves()

    def _json(self) -> dict[str, Any]:
        return {"not": self.child._json()}

    def _matches(self, row: Mapping[str, Any], now: float) -> bool:
        return not self.child._matches(row, now)

    def _mask(self, columns: ItemColumns, now: float) -> Mask:
        return ~self.child._mask(columns, now)


@dataclass(frozen=True, slots=True)
class Comparison(Condition):
    """One attribute against one value, or a tuple of values; `parse` checks what it is given, this does not."""

    attribute: str
    op: str
    value: Scalar | tuple[Scalar, ...]
    _selection: Selection = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_selection", _selection(self.op, self.value))

    @property
    def values(self) -> tuple[Scalar, ...]:
        """What it compares with, one value or several."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def _leaves(self) -> Iterator[Leaf]:
        yield self

    def _json(self) -> dict[str, Any]:
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        return {"attribute": self.attribute, "op": self.op, "value": value}

    def _matches(self, row: Mapping[str, Any], now: float) -> bool:
        found = cells(row.get(self.attribute))
        if self.op == "exists":
            return bool(found) == self.value
        if self.op == "within_days":
            return any(_instant(cell) > self._since(now) for cell in found)
        hit = any(self._selection.holds(cell) for cell in found)
        return bool(found) and not hit if self.op == "ne" else hit

    def _mask(self, columns: ItemColumns, now: float) -> Mask:
        column = columns.column(self.attribute)
        if self.op == "exists":
            return column.present() if self.value else ~column.present()
        if self.op == "within_days":
            return column.younger(self._since(now))
        hit = column.mask(self._selection)
        return column.present() & ~hit if self.op == "ne" else hit

    def _since(self, now: float) -> float:
        assert isinstance(self.value, int | float)
        return now - self.value * DAY_S


@dataclass(frozen=True, slots=True)
class Did(Condition):
    """The person did something at least so often: `{"did": "view", "items": {...}, "days": 7, "at_least": 2}`.

    `items` is a condition over the items they did it with, `days` how far back it counts; None: any, and ever. The event
    type `any` is every one.
    """

    event_type: str
    items: Condition | None = None
    days: float | None = None
    at_least: int = 1

    @property
    def attribute(self) -> str:
        """What it asks for."""
        return HISTORY

    @property
    def op(self) -> str:
        """How it asks."""
        return "did"

    def _leaves(self) -> Iterator[Leaf]:
        yield self

    def _json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"did": self.event_type, "at_least": self.at_least}
        if self.items is not None:
            found["items"] = self.items.to_json()
        return found if self.days is None else found | {"days": self.days}

    def _matches(self, row: Mapping[str, Any], now: float) -> bool:
        behaviour: Behaviour | None = row.get(HISTORY)
        if behaviour is None:
            return False
        since = -math.inf if self.days is None else now - self.days * DAY_S
        return behaviour.count(None if self.event_type == ANY else self.event_type, self.items, since) >= self.at_least

    def _mask(self, columns: ItemColumns, now: float) -> Mask:
        raise AssertionError("items do nothing: a condition over them is parsed without behaviour")


def _instant(cell: float | str) -> float:
    if isinstance(cell, str):
        found = moment(cell)
        return found[0] if found else -math.inf
    return cell


def bounds(value: Scalar) -> dict[type, tuple[Any, Any]]:
    """First and last of what a value stands for, by kind: a text, a number, or (a date) both."""
    if not isinstance(value, str):
        return {float: (float(value), float(value))}
    found = moment(value)
    return {float: found, str: (value, value)} if found else {str: (value, value)}


def _selection(op: str, value: Scalar | tuple[Scalar, ...]) -> Selection:
    if op in ("exists", "within_days"):
        return Selection()
    values = value if isinstance(value, tuple) else (value,)
    if op == "between":
        lows, highs = map(bounds, values)
        return Selection(spans=tuple(Span(low=lows[kind][0], high=highs[kind][1]) for kind in lows.keys() & highs))
    pairs = [pair for one in values for pair in bounds(one).values()]
    if op in ("lt", "le", "gt", "ge"):
        return Selection(spans=tuple(_order(op, low, high) for low, high in pairs))
    spans = tuple(Span(low=low, high=high) for low, high in pairs if low != high)
    return Selection(frozenset(low for low, high in pairs if low == high), spans)


def _order(op: str, low: float | str, high: float | str) -> Span:
    match op:
        case "lt":
            return Span(high=low, high_open=True)
        case "le":
            return Span(high=high)
        case "gt":
            return Span(low=high, low_open=True)
        case _:
            return Span(low=low)
