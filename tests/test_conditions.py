from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from embeddings.errors import InputError
from embeddings.schema import Item
from serving.policy.columns import FIELDS, Column, ItemColumns, Selection, Span, cells, moment, row_of
from serving.policy.conditions import AllOf, Comparison, Condition
from serving.policy.syntax import MAX_DEPTH, MAX_NODES, MAX_VALUES, OPS, parse

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC).timestamp()

TEXTS = [
    "",
    "a",
    "B",
    "ab",
    "é",
    "日本",
    "\U0001f600",
    "2026-06-10",
    "2026-06-10T08:00:00Z",
    "2026-02-30",
    "1",
    "a\x01",
]
NUMBERS = [0.0, -0.0, 1.0, -1.5, 0.1 + 0.2, 1e300, 20.0, 1_781_078_400.0, NOW]
MOMENTS = [
    datetime(2026, 6, 10, 8, tzinfo=UTC),
    datetime(2026, 6, 15, 11, tzinfo=UTC),
    datetime(1999, 1, 1, tzinfo=UTC),
]
OWN = ["colour", "size", "tags", "mixed", "nowhere"]

texts = st.sampled_from(TEXTS)
numbers = st.sampled_from(NUMBERS)
label_lists = st.lists(texts, max_size=3)
values = st.one_of(st.booleans(), numbers, texts, label_lists)
items = st.builds(
    Item,
    item_id=st.sampled_from(["i1", "i2", "日本"]),
    title=texts,
    categories=label_lists,
    attributes=st.fixed_dictionaries(
        {}, optional={"colour": texts, "size": numbers | st.booleans(), "tags": label_lists, "mixed": values}
    ),
    price=st.none() | st.sampled_from([0.0, 1.0, 20.0]),
    created_at=st.none() | st.sampled_from(MOMENTS),
    available=st.booleans(),
)

SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "text": texts,
    "number": numbers,
    "boolean": st.booleans(),
    "date": st.sampled_from(["2026-06-10", "2026-06-10T08:00:00Z", "1999-01-01"]),
    "any": st.booleans() | numbers | texts,
}


def ascending(one: Any, other: Any) -> list[Any]:
    """Put two values in an order that makes an interval, or the first one twice."""

    def is_interval(pair: list[Any]) -> bool:
        with suppress(InputError):
            return bool(condition("size", "between", pair))
        return False

    return next(filter(is_interval, [[one, other], [other, one]]), [one, one])


@st.composite
def comparisons(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from([*OWN, *FIELDS]))
    kind = FIELDS.get(name, "any")
    scalar = SCALARS[kind]
    ordered = scalar.filter(lambda value: not isinstance(value, bool))
    ops = [op for op in OPS if kind in ("any", "date") or op != "within_days"]
    if kind == "boolean":
        ops = ["eq", "ne", "in", "contains", "exists"]
    op = draw(st.sampled_from(ops))
    if op == "exists":
        value: Any = draw(st.booleans())
    elif op == "within_days":
        value = draw(st.sampled_from([0.5, 6, 10_000]))
    elif op in ("in", "contains"):
        value = draw(st.lists(scalar, min_size=1, max_size=4) | (scalar if op == "contains" else st.nothing()))
    elif op == "between":
        value = ascending(draw(ordered), draw(ordered))
    elif op in ("lt", "le", "gt", "ge"):
        value = draw(ordered)
    else:
        value = draw(scalar)
    return {"attribute": name, "op": op, "value": value}


def groups(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    return (
        several.map(lambda nodes: {"all": nodes})
        | several.map(lambda nodes: {"any": nodes})
        | inner.map(lambda node: {"not": node})
    )


trees = st.recursive(comparisons(), groups, max_leaves=6)


def levels(raw: dict[str, Any]) -> int:
    inner = raw.get("all") or raw.get("any") or ([raw["not"]] if "not" in raw else [])
    return 1 + max(map(levels, inner), default=0)


def read(raw: dict[str, Any]) -> Condition:
    assume(levels(raw) <= MAX_DEPTH)
    return parse(raw, known=None)


def condition(attribute: str, op: str, value: Any) -> Condition:
    return parse({"attribute": attribute, "op": op, "value": value}, known=None)


@settings(deadline=None, max_examples=300)
@given(raw=trees, segment=st.lists(items, max_size=8))
@example(raw={"attribute": "tags", "op": "exists", "value": False}, segment=[])
@example(raw={"attribute": "nowhere", "op": "ne", "value": 1}, segment=[Item(item_id="i1")])
@example(  # one point and one interval together
    raw={"attribute": "size", "op": "in", "value": [False, "2026-06-10"]},
    segment=[Item(item_id="i1", attributes={"size": 0.0})],
)
def test_mask_agrees_with_row_by_row(raw: dict[str, Any], segment: list[Item]) -> None:
    tree = read(raw)
    expected = [tree.matches(row_of(item), now=NOW) for item in segment]
    mask = tree.mask(ItemColumns.of(segment), now=NOW)
    assert mask.dtype == np.bool_
    assert mask.tolist() == expected


@settings(deadline=None)
@given(raw=trees)
def test_json_round_trip(raw: dict[str, Any]) -> None:
    tree = read(raw)
    again = parse(json.loads(json.dumps(tree.to_json())), known=tree.attributes())
    assert again == tree
    assert hash(again) == hash(tree)
    assert tree.to_json() == raw
    assert tree.timed == ("within_days" in json.dumps(raw))


@settings(deadline=None)
@given(segment=st.lists(items, max_size=8))
def test_columns_give_back_every_value(segment: list[Item]) -> None:
    columns = ItemColumns.of(segment)
    assert len(columns) == len(segment)
    assert columns.names >= FIELDS.keys()
    for row, item in enumerate(segment):
        expected = row_of(item)
        for name in columns.names | {"nowhere"}:
            value = columns.value(row, name)
            found = value if isinstance(value, tuple) else () if value is None else (value,)
            assert found == cells(expected.get(name)), name


ROW: dict[str, Any] = {
    "price": 20,
    "organic": True,
    "brand": "Oak",
    "categories": ["Chair", "Garden"],
    "created_at": datetime(2026, 6, 10, 8, tzinfo=UTC),
    "first_seen": "2026-06-10",
    "nothing": None,
    "empty": [],
    "not_a_number": math.nan,
}
CASES = [
    ("price", "eq", 20, True),
    ("price", "eq", 20.5, False),
    ("price", "ne", 21, True),
    ("price", "ne", 20, False),
    ("price", "lt", 20, False),
    ("price", "le", 20, True),
    ("price", "gt", 20, False),
    ("price", "ge", 20, True),
    ("price", "in", [1, 20], True),
    ("price", "in", [1, 2], False),
    ("price", "between", [20, 30], True),
    ("price", "between", [10, 20], True),
    ("price", "between", [21, 30], False),
    ("organic", "eq", True, True),
    ("organic", "eq", 1, True),
    ("organic", "eq", False, False),
    ("organic", "eq", "true", False),
    ("organic", "ne", "true", True),
    ("brand", "eq", "oak", False),
    ("brand", "lt", "Pine", True),
    ("brand", "lt", 5, False),
    ("brand", "ge", 5, False),
    ("brand", "between", ["A", "P"], True),
    ("brand", "contains", "Oak", True),
    ("brand", "contains", "O", False),
    ("categories", "contains", "Chair", True),
    ("categories", "contains", ["Lamp", "Garden"], True),
    ("categories", "contains", ["Lamp"], False),
    ("categories", "eq", "Garden", True),
    ("categories", "ne", "Garden", False),
    ("categories", "ne", "Lamp", True),
    ("categories", "in", ["Lamp", "Chair"], True),
    ("created_at", "eq", "2026-06-10", True),
    ("created_at", "eq", "2026-06-11", False),
    ("created_at", "eq", "2026-06-10T08:00:00Z", True),
    ("created_at", "eq", "2026-06-10T10:00:00+02:00", True),
    ("created_at", "le", "2026-06-10", True),
    ("created_at", "lt", "2026-06-10", False),
    ("created_at", "gt", "2026-06-10", False),
    ("created_at", "ge", "2026-06-10", True),
    ("created_at", "gt", "2026-06-09", True),
    ("created_at", "between", ["2026-06-01", "2026-06-10"], True),
    ("created_at", "between", ["2026-06-01", "2026-06-09"], False),
    ("created_at", "within_days", 6, True),
    ("created_at", "within_days", 5, False),
    ("first_seen", "within_days", 6, True),
    ("first_seen", "within_days", 5, False),
    ("brand", "within_days", 6, False),
    ("first_seen", "eq", "2026-06-10", True),
    ("first_seen", "lt", "2026-07", True),
]


@pytest.mark.parametrize(("name", "op", "value", "expected"), CASES)
def test_meaning_of_each_op(name: str, op: str, value: Any, expected: bool) -> None:
    assert condition(name, op, value).matches(ROW, now=NOW) is expected


@pytest.mark.parametrize("name", ["nothing", "empty", "not_a_number", "absent"])
@pytest.mark.parametrize(
    ("op", "value"),
    [
        ("eq", 1),
        ("ne", 1),
        ("ne", "x"),
        ("lt", 1),
        ("le", 1),
        ("gt", 1),
        ("ge", "x"),
        ("in", [1]),
        ("contains", "x"),
        ("between", [0, 1]),
        ("within_days", 9),
        ("exists", True),
    ],
)
def test_missing_fulfils_no_comparison(name: str, op: str, value: Any) -> None:
    assert not condition(name, op, value).matches(ROW, now=NOW)
    assert condition(name, "exists", False).matches(ROW)


def test_what_an_item_leaves_at_its_default_is_missing() -> None:
    bare = ItemColumns.of([Item(item_id="a")])
    present = {name for name in FIELDS if condition(name, "exists", True).mask(bare).all()}
    assert present == {"item_id", "available"}
    assert present == {name for name in FIELDS if condition(name, "exists", True).matches(row_of(Item(item_id="a")))}


def test_groups() -> None:
    yes, no = ({"attribute": "price", "op": "eq", "value": value} for value in (20, 21))
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"all": [yes, yes]}, True),
        ({"all": [yes, no]}, False),
        ({"any": [no, yes]}, True),
        ({"any": [no, no]}, False),
        ({"not": no}, True),
        ({"not": {"any": [{"all": [yes, no]}, {"not": yes}]}}, True),
    ]
    for raw, expected in cases:
        assert parse(raw, known=["price"]).matches(ROW) is expected


def test_a_mask_is_the_callers_own() -> None:
    columns = ItemColumns.of([Item(item_id="a", price=1), Item(item_id="b")])
    for raw in [("price", "exists", True), ("price", "eq", 1), ("price", "ne", 2), ("categories", "exists", False)]:
        tree = AllOf((condition(*raw),))
        before = tree.mask(columns)
        tree.mask(columns)[:] = False
        assert np.array_equal(tree.mask(columns), before)
        assert before.any()


def test_the_clock_is_the_default_now() -> None:
    fresh = Item(item_id="a", created_at=datetime.now(UTC))
    tree = condition("created_at", "within_days", 1)
    assert tree.matches(row_of(fresh))
    assert tree.mask(ItemColumns.of([fresh])).tolist() == [True]
    assert not tree.matches(row_of(fresh), now=datetime.now(UTC).timestamp() + 86_401)


def test_a_column_that_mixes_kinds_and_holds_gaps() -> None:
    rows = [0, 1, 2, 3, 5, 6, 7]
    mixed = [1.0, "1", ["1", "x"], True, math.nan, [], [2.0, "x", None]]
    column = Column.of(rows, mixed, 9)
    assert column.present().tolist() == [True, True, True, True, False, False, False, True, False]
    assert np.flatnonzero(column.mask(Selection(frozenset({1.0})))).tolist() == [0, 3]
    assert np.flatnonzero(column.mask(Selection(frozenset({"1"})))).tolist() == [1, 2]
    assert np.flatnonzero(column.mask(Selection(spans=(Span(low=1.5),)))).tolist() == [7]
    assert np.flatnonzero(column.mask(Selection(spans=(Span(low="w"),)))).tolist() == [2, 7]
    assert column.mask(Selection()).tolist() == [False] * 9


def test_long_lists_select_the_same_as_one_by_one() -> None:
    generator = np.random.default_rng(7)
    segment = [
        Item(
            item_id=f"i{n}", price=float(generator.integers(3000)), attributes={"brand": f"b{generator.integers(3000)}"}
        )
        for n in range(500)
    ]
    columns = ItemColumns.of(segment)
    wanted = {"price": list(range(0, 2000, 2)), "brand": [f"b{n}" for n in range(1000)]}
    for name, chosen in wanted.items():
        tree = condition(name, "in", chosen)
        mask = tree.mask(columns)
        assert mask.tolist() == [tree.matches(row_of(item)) for item in segment]
        assert 50 < mask.sum() < 450


def test_numbers_beyond_floats_and_dates_without_a_zone() -> None:
    assert cells(10**400) == ()
    assert cells(date(1970, 1, 2)) == cells(datetime(1970, 1, 2)) == (86_400.0,)
    assert cells({"a": 1}) == cells(object()) == ()
    assert moment("0001-01-01") == (-62_135_596_800.0, math.nextafter(-62_135_510_400.0, -math.inf))
    assert moment("20260101") is moment("2026-13-01") is moment("yesterday") is None


def leaf(**changes: Any) -> dict[str, Any]:
    return {"attribute": "size", "op": "eq", "value": 1} | changes


def nested(levels: int) -> dict[str, Any]:
    raw = leaf()
    for _ in range(levels - 1):
        raw = {"not": raw}
    return raw


BAD: list[tuple[Any, str, str]] = [
    ([], "filter", "must be an object"),
    (None, "filter", "must be an object"),
    ({}, "filter", "is missing"),
    ({"all": []}, "filter.all", "at least one"),
    ({"all": leaf()}, "filter.all", "must be a list"),
    ({"any": [leaf(), 3]}, "filter.any.1", "must be an object"),
    ({"all": [leaf()], "any": [leaf()]}, "filter.any", "does not belong"),
    ({"not": [leaf()]}, "filter.not", "must be an object"),
    (leaf(weight=1), "filter.weight", "does not belong"),
    ({"attribute": "size", "op": "eq"}, "filter.value", "is missing"),
    (leaf(attribute="sise"), "filter.attribute", "did you mean 'size'? known: available, size, title"),
    (leaf(attribute=7), "filter.attribute", "must be a text"),
    (leaf(attribute=""), "filter.attribute", "must be a text"),
    (leaf(op="equals"), "filter.op", "unknown op 'equals'"),
    (leaf(op=["eq"]), "filter.op", "unknown op"),
    (leaf(value=None), "filter.value", "must be a finite number"),
    (leaf(value=math.nan), "filter.value", "must be a finite number"),
    (leaf(value=math.inf), "filter.value", "must be a finite number"),
    (leaf(value=10**400), "filter.value", "must be a finite number"),
    (leaf(value="x" * 257), "filter.value", "at most 256 characters"),
    (leaf(value="a\x00b"), "filter.value", "text"),
    (leaf(value="\ud800"), "filter.value", "text"),
    (leaf(value=[1]), "filter.value", "must be a finite number"),
    (leaf(op="lt", value=True), "filter.value", "have no order"),
    (leaf(op="in", value=1), "filter.value", "must be a list"),
    (leaf(op="in", value=[]), "filter.value", "must be a list of 1 to 1000"),
    (leaf(op="in", value=[1] * (MAX_VALUES + 1)), "filter.value", "must be a list of 1 to 1000"),
    (leaf(op="in", value=[1, None]), "filter.value.1", "must be a finite number"),
    (leaf(op="contains", value=[]), "filter.value", "must be a list"),
    (leaf(op="between", value=[1]), "filter.value", "two values"),
    (leaf(op="between", value=[1, "a"]), "filter.value", "two numbers, two dates"),
    (leaf(op="between", value=[2, 1]), "filter.value", "lowest value first"),
    (leaf(op="between", value=["2026-02-01", "2026-01-01"]), "filter.value", "lowest value first"),
    (leaf(op="between", value=[1, False]), "filter.value.1", "have no order"),
    (leaf(op="exists", value=1), "filter.value", "true or false"),
    (leaf(op="within_days", value=0), "filter.value", "number of days"),
    (leaf(op="within_days", value=True), "filter.value", "number of days"),
    (leaf(op="within_days", value=math.nan), "filter.value", "number of days"),
    (leaf(op="within_days", value="7"), "filter.value", "number of days"),
    (leaf(attribute="title", value=3), "filter.value", "'title' holds a text"),
    (leaf(attribute="available", value=1), "filter.value", "'available' holds a boolean"),
    (leaf(attribute="title", op="within_days", value=3), "filter.op", "needs a date"),
    ({"any": [leaf(), {"all": [leaf(), {"not": leaf(value={})}]}]}, "filter.any.1.all.1.not.value", "finite"),
    ({"any": [leaf()] * MAX_NODES}, "filter", "more than 200 conditions"),
    (nested(MAX_DEPTH + 1), "filter" + ".not" * MAX_DEPTH, "nested more than 8"),
    (nested(10_000), "filter" + ".not" * MAX_DEPTH, "nested more than 8"),
]


@pytest.mark.parametrize(("raw", "field", "words"), BAD)
def test_what_is_refused_says_where_and_why(raw: Any, field: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(raw, known=["size", "title", "available"])
    assert caught.value.field == field
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "holds"),
    [("price", "3", "number"), ("price", True, "number"), ("created_at", "soon", "date"), ("created_at", 5, "date")],
)
def test_a_field_of_the_item_takes_only_what_it_holds(name: str, value: Any, holds: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' holds a {holds}"):
        condition(name, "eq", value)


def test_the_bounds_themselves_pass() -> None:
    assert parse(nested(MAX_DEPTH), known=["size"]).attributes() == {"size"}
    assert len(parse({"any": [leaf()] * (MAX_NODES - 1)}, known=None).to_json()["any"]) == MAX_NODES - 1
    wide = parse(leaf(op="in", value=list(range(MAX_VALUES))), known=iter(["size"]), field="items")
    assert wide.matches({"size": MAX_VALUES - 1})


def test_a_tree_cannot_be_changed() -> None:
    tree = condition("size", "in", [1, 2])
    assert isinstance(tree, Comparison)
    attempts: list[Callable[[], object]] = [
        lambda: setattr(tree, "value", 3),
        lambda: tree.value.append(3),  # type: ignore[union-attr]
    ]
    for attempt in attempts:
        with pytest.raises(AttributeError):
            attempt()
