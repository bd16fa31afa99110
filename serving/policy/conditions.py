"""Conditions: one small typed tree, written as JSON and evaluated two ways that always agree.

`matches` asks it of one row (a request's facts, one item), `mask` of a whole segment of items at once. A missing
attribute fulfils no comparison, not even `ne`; only `exists` tells. An attribute with several values fulfils a
comparison when any of them does, and `ne` when none is equal. Booleans are the numbers 0 and 1. A text that is an
ISO 8601 date also stands for that moment, and without a time for the whole day (UTC).
"""

from __future__ import annotations

import json
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from typing import Any, Protocol

import numpy as np

from embeddings.errors import InputError, unknown_name
from serving.policy.columns import DAY_S, FIELDS, ItemColumns, Mask, Selection, Span, cells, moment

MAX_DEPTH = 8
MAX_NODES = 200
MAX_VALUES = 1000
MAX_TEXT = 256
MAX_DAYS = 36_525.0
MAX_COUNT = 1000
"""Of a history no more is remembered."""

ANY = "any"

OPS = ("eq", "ne", "lt", "le", "gt", "ge", "in", "contains", "between", "exists", "within_days")

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

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that `parse` reads back into an equal tree."""
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


def _bounds(value: Scalar) -> dict[type, tuple[Any, Any]]:
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
        lows, highs = map(_bounds, values)
        return Selection(spans=tuple(Span(low=lows[kind][0], high=highs[kind][1]) for kind in lows.keys() & highs))
    bounds = [pair for one in values for pair in _bounds(one).values()]
    if op in ("lt", "le", "gt", "ge"):
        return Selection(spans=tuple(_order(op, low, high) for low, high in bounds))
    spans = tuple(Span(low=low, high=high) for low, high in bounds if low != high)
    return Selection(frozenset(low for low, high in bounds if low == high), spans)


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


def parse(
    raw: Mapping[str, Any],
    *,
    known: Iterable[str] | None,
    field: str = "filter",
    behaviour: bool = False,
    items: Collection[str] | None = None,
) -> Condition:
    """Read a condition from JSON.

    `known` are the attributes that may be named (None: any). With `behaviour` it may ask what a person did, with items of
    which the attributes `items` may be named (None: any). Raises `InputError` that says what is wrong and, in
    `field`, where: "filter.all.1.value". Bounds: `MAX_DEPTH` levels, `MAX_NODES` nodes, `MAX_VALUES` values in a list.
    """
    names = known if known is None or isinstance(known, Collection) else frozenset(known)
    return _Parser(names, field, behaviour, items).node(raw, field, 1)


class _Parser:
    def __init__(
        self, known: Collection[str] | None, root: str, behaviour: bool, items: Collection[str] | None
    ) -> None:
        self.known = known
        self.root = root
        self.behaviour = behaviour
        self.items = items
        self.nodes = 0

    def node(self, raw: object, path: str, depth: int) -> Condition:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _wrong(self.root, f"has more than {MAX_NODES} conditions")
        if depth > MAX_DEPTH:
            raise _wrong(path, f"is nested more than {MAX_DEPTH} levels deep")
        if not isinstance(raw, Mapping):
            raise _wrong(path, f"must be an object; {_SHAPES}")
        if "all" in raw:
            return AllOf(self._children(raw, "all", path, depth))
        if "any" in raw:
            return AnyOf(self._children(raw, "any", path, depth))
        if "not" in raw:
            _only(raw, ("not",), path)
            return Not(self.node(raw["not"], f"{path}.not", depth + 1))
        if self.behaviour and "did" in raw:
            return self._did(raw, path, depth)
        return self._comparison(raw, path)

    def _did(self, raw: Mapping[str, Any], path: str, depth: int) -> Did:
        _only(raw, ("did", "items", "days", "at_least"), path)
        event_type, items, days, at_least = raw["did"], raw.get("items"), raw.get("days"), raw.get("at_least", 1)
        if not isinstance(event_type, str) or not 1 <= len(event_type) <= MAX_TEXT:
            raise _wrong(f"{path}.did", f"must be an event type, or '{ANY}'")
        if days is not None and (
            isinstance(days, bool) or not isinstance(days, int | float) or not 0 < days <= MAX_DAYS
        ):
            raise _wrong(f"{path}.days", f"must be a number of days above 0 and up to {MAX_DAYS:.0f}")
        if isinstance(at_least, bool) or not isinstance(at_least, int) or not 1 <= at_least <= MAX_COUNT:
            raise _wrong(f"{path}.at_least", f"must be a whole number of 1 to {MAX_COUNT}; for none, use 'not'")
        if items is None:
            return Did(event_type, None, days, at_least)
        inner = _Parser(self.items, f"{path}.items", False, None)
        found = inner.node(items, f"{path}.items", depth + 1)
        self.nodes += inner.nodes
        return Did(event_type, found, days, at_least)

    def _children(self, raw: Mapping[str, Any], key: str, path: str, depth: int) -> tuple[Condition, ...]:
        _only(raw, (key,), path)
        children, path = raw[key], f"{path}.{key}"
        if not isinstance(children, list | tuple) or not children:
            raise _wrong(path, "must be a list of at least one condition")
        return tuple(self.node(child, f"{path}.{place}", depth + 1) for place, child in enumerate(children))

    def _comparison(self, raw: Mapping[str, Any], path: str) -> Comparison:
        keys = ("attribute", "op", "value")
        _only(raw, keys, path)
        for key in keys:
            if key not in raw:
                raise _wrong(f"{path}.{key}" if raw else path, f"is missing; {_SHAPES}")
        name, op = raw["attribute"], raw["op"]
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_TEXT:
            raise _wrong(f"{path}.attribute", f"must be a text of 1 to {MAX_TEXT} characters")
        if self.known is not None and name not in self.known:
            raise unknown_name("attribute", name, self.known, field=f"{path}.attribute")
        if not isinstance(op, str) or op not in OPS:
            raise unknown_name("op", str(op)[:MAX_TEXT], OPS, field=f"{path}.op")
        value = _value(op, raw["value"], f"{path}.value")
        _check_kind(name, op, value, path)
        return Comparison(name, op, value)


_SHAPES = """known: {"all": [...]}, {"any": [...]}, {"not": {...}}, {"attribute": ..., "op": ..., "value": ...}"""


def _wrong(path: str, what: str) -> InputError:
    return InputError(f"{path}: {what}", field=path)


def _only(raw: Mapping[str, Any], keys: tuple[str, ...], path: str) -> None:
    for key in raw:
        if key not in keys:
            raise _wrong(f"{path}.{key}", f"does not belong here; {_SHAPES}")


def _value(op: str, raw: object, path: str) -> Scalar | tuple[Scalar, ...]:
    match op:
        case "exists":
            if not isinstance(raw, bool):
                raise _wrong(path, "must be true or false")
            return raw
        case "within_days":
            if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 < raw <= MAX_DAYS:
                raise _wrong(path, f"must be a number of days above 0 and up to {MAX_DAYS:.0f}")
            return raw
        case "between":
            return _interval(raw, path)
        case "in":
            return _values(raw, path)
        case "contains" if isinstance(raw, list | tuple):
            return _values(raw, path)
        case "lt" | "le" | "gt" | "ge":
            return _orderable(raw, path)
        case _:
            return _scalar(raw, path)


def _scalar(raw: object, path: str) -> Scalar:
    if isinstance(raw, str) and len(raw) <= MAX_TEXT and "\x00" not in raw and _encodable(raw):
        return raw
    if isinstance(raw, bool | int | float) and abs(raw) <= sys.float_info.max:
        return raw
    raise _wrong(path, f"must be a finite number, true, false or a text of at most {MAX_TEXT} characters")


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _orderable(raw: object, path: str) -> Scalar:
    value = _scalar(raw, path)
    if isinstance(value, bool):
        raise _wrong(path, "must be a number or a text, true and false have no order")
    return value


def _values(raw: object, path: str) -> tuple[Scalar, ...]:
    if not isinstance(raw, list | tuple) or not 1 <= len(raw) <= MAX_VALUES:
        raise _wrong(path, f"must be a list of 1 to {MAX_VALUES} values")
    return tuple(_scalar(value, f"{path}.{place}") for place, value in enumerate(raw))


def _interval(raw: object, path: str) -> tuple[Scalar, ...]:
    if not isinstance(raw, list | tuple) or len(raw) != 2:
        raise _wrong(path, "must be a list of two values, the lowest and the highest")
    low, high = (_orderable(value, f"{path}.{place}") for place, value in enumerate(raw))
    lows, highs = _bounds(low), _bounds(high)
    shared = [kind for kind in (float, str) if kind in lows and kind in highs]
    if not shared:
        raise _wrong(path, "must be two numbers, two dates or two other texts")
    if lows[shared[0]][0] > highs[shared[0]][1]:
        raise _wrong(path, "must have the lowest value first")
    return low, high


def _check_kind(name: str, op: str, value: Scalar | tuple[Scalar, ...], path: str) -> None:
    """Refuse a comparison that no item can fulfil, because the field never holds such a value."""
    kind = FIELDS.get(name)
    if kind is None or op == "exists":
        return
    if op == "within_days":
        if kind != "date":
            raise _wrong(f"{path}.op", f"'within_days' needs a date, and '{name}' holds a {kind}")
        return
    for one in value if isinstance(value, tuple) else (value,):
        if not _FITS[kind](one):
            raise _wrong(f"{path}.value", f"'{name}' holds a {kind}, which {json.dumps(one)} is not")


_FITS: dict[str, Callable[[Scalar], bool]] = {
    "text": lambda value: isinstance(value, str),
    "number": lambda value: not isinstance(value, bool | str),
    "boolean": lambda value: isinstance(value, bool),
    "date": lambda value: isinstance(value, str) and moment(value) is not None,
}
