"""The syntax of conditions: JSON becomes a tree, or is refused with the place where it is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from embeddings.errors import InputError, unknown_name
from serving.policy.columns import FIELDS, moment
from serving.policy.conditions import ANY, AllOf, AnyOf, Comparison, Condition, Did, Not, Scalar, bounds

MAX_DEPTH = 8
MAX_NODES = 200
MAX_VALUES = 1000
MAX_TEXT = 256
MAX_DAYS = 36_525.0
MAX_COUNT = 1000
"""Of a history no more is remembered."""

OPS = ("eq", "ne", "lt", "le", "gt", "ge", "in", "contains", "between", "exists", "within_days")


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
    lows, highs = bounds(low), bounds(high)
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
