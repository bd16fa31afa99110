"""Contents as documents: what is refused, and why; conditions that can never hold."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.errors import InputError
from serving.policy.compiled import Policy
from serving.policy.contents import parse_content
from serving.policy.contradictions import contradiction
from serving.policy.kinds import References
from serving.policy.layouts import LAYOUTS, parse_layout
from serving.policy.rules import FACTS
from serving.policy.syntax import parse

A: dict[str, Any] = {"id": "a", "payload": {"text": "Hello"}}


def is_(attribute: str, op: str, value: Any) -> dict[str, Any]:
    return {"attribute": attribute, "op": op, "value": value}


MORNING, EVENING = is_("time.hour", "lt", 6), is_("time.hour", "gt", 18)
BAD: list[tuple[Any, str | None, str]] = [
    ({}, "variants", "required"),
    ({"variants": []}, "variants", "at least 1"),
    ({"variants": [{"id": "a"}]}, "variants.0.payload", "a variant must have one"),
    ({"variants": [{"id": "a", "payload": {}}]}, "variants.0.payload", "a variant must have one"),
    (
        {"variants": [A | {"payload": {"text": " ", "link": None, "more": [{"a": ""}]}}]},
        "variants.0.payload",
        "nothing but",
    ),
    ({"variants": [A, A | {"id": "b"}], "exploration": 0.0}, "exploration", "at least 0.01"),
    ({"variants": [A], "channel": "app", "when": is_("context.channel", "eq", "web")}, "when", "can never hold"),
    ({"variants": [A | {"payload": {"t": "x" * 9000}}]}, "variants.0.payload", "at most 8192"),
    ({"variants": [A, A]}, "variants.1.id", "another variant"),
    ({"variants": [A | {"weight": 0}]}, "variants.0.weight", "weight above 0"),
    ({"variants": [A | {"weight": -1}]}, "variants.0.weight", "greater than or equal to 0"),
    ({"variants": [A | {"colour": 1}]}, "variants.0.colour", "unknown field"),
    ({"variants": [A], "colour": 1}, "colour", "known: id"),
    ({"variants": [A], "when": MORNING | {"attribute": "time.hours"}}, "when.attribute", "did you mean 'time.hour'"),
    ({"variants": [A], "when": {"all": [MORNING, EVENING]}}, "when", "can never hold"),
    ({"variants": [A | {"when": EVENING}], "when": MORNING}, "variants.0.when", "beside the 'when' of the content"),
    ({"variants": [A], "trigger": {"type": "exit_intend"}}, "trigger.type", "did you mean 'exit_intent'"),
    ({"variants": [A], "trigger": {"type": "idle"}}, "caps", "say how often"),
    ({"variants": [A], "quiet": {"start": "21:00", "end": "08:00"}}, "quiet", "is for alerts"),
    ({"variants": [A], "caps": [{"limit": 0, "days": 1}]}, "caps.0.limit", "greater than or equal to 1"),
    ({"variants": [A], "holdout": 1.0}, "holdout", "less than 1"),
    ({"variants": [A], "starts_at": "2026-03-02", "ends_at": "2026-03-01"}, "ends_at", "after starts_at"),
]


@pytest.mark.parametrize(("raw", "field", "words"), BAD)
def test_a_wrong_content_says_where_and_why(raw: dict[str, Any], field: str | None, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_content({"id": "hero", **raw})
    assert (caught.value.field, words in caught.value.message) == (field, True), caught.value.message


def test_a_content_is_stored_as_it_is_read() -> None:
    raw = {
        "id": "hero",
        "variants": [A, A | {"id": "b", "when": EVENING, "weight": 0.5}],
        "caps": [{"limit": 3, "days": 7}],
        "channel": "app",
        "trigger": {"type": "price_drop", "percent": 10.0},
        "quiet": {"start": "21:00", "end": "08:00", "zone": "Europe/Berlin"},
    }
    stored = parse_content(raw).model_dump(mode="json")
    assert parse_content(stored).model_dump(mode="json") == stored
    assert stored["variants"][1]["when"] == EVENING


NEVER = [
    {"all": [is_("context.device", "eq", "app"), is_("context.device", "eq", "web")]},
    {
        "all": [
            is_("context.device", "in", ["app", "tv"]),
            is_("context.device", "ne", "app"),
            is_("context.device", "ne", "tv"),
        ]
    },
    {"all": [is_("context.x", "gt", 5), {"any": [is_("context.x", "lt", 3), is_("context.x", "le", 5)]}]},
    {"all": [is_("user.city", "exists", False), is_("user.city", "eq", "Bonn")]},
    {"all": [{"not": is_("user.city", "exists", True)}, is_("user.city", "ne", "Bonn")]},
    {"all": [is_("user.city", "eq", "Bonn"), is_("user.city", "ne", "Bonn")]},
    is_("time.hour", "ge", 24),
    is_("time.hour", "eq", 25),
    is_("time.hour", "eq", "9"),
    is_("time.hour", "exists", False),
    is_("user.events", "lt", 0),
    {"all": [is_("user.events", "gt", 3), is_("user.events", "lt", 4)]},
    {"all": [is_("history.cart", "gt", 3), is_("history.cart", "lt", 2)]},
    is_("history.cart", "lt", 0),
    is_("history.visits", "lt", 1),
    is_("time.date", "lt", "1969-12-31"),
    {"all": [is_("user.age", "gt", 3), {"not": is_("user.age", "gt", 3)}]},
    {"all": [is_("context.x", "eq", 5), {"not": is_("context.x", "gt", 4)}]},
    {"all": [{"did": "view"}, {"not": {"did": "view"}}]},
    {"all": [{"did": "view", "at_least": 3}, {"not": {"any": [{"did": "view", "at_least": 2}, MORNING]}}]},
    {"did": "view", "items": {"all": [is_("price", "lt", 5), is_("price", "gt", 10)]}},
]
SOMETIMES = [
    {"all": [is_("user.events", "gt", 3), is_("user.events", "lt", 5)]},
    {"all": [is_("history.visits", "ge", 1), is_("history.visits", "le", 1), {"not": {"did": "any"}}]},
    {"all": [{"did": "view", "at_least": 2}, {"not": {"did": "view", "at_least": 3}}]},
    {"all": [{"did": "view", "days": 7}, {"not": {"did": "view", "days": 1}}]},
    {"all": [is_("time.hour", "in", [23, 25]), {"not": is_("time.hour", "lt", 23)}]},
    {"not": {"all": [is_("context.x", "eq", 5), {"not": is_("context.x", "eq", 5)}]}},
    {"all": [is_("context.x", "eq", "2026-05-01"), is_("context.x", "eq", "2026-05-01T08:00:00Z")]},
    {"all": [is_("time.date", "ge", "2026-05-01"), is_("time.date", "le", "2026-05-01")]},
    {"all": [is_("user.likes", "eq", "tea"), is_("user.likes", "eq", "rum")]},  # a list may have both
    {"all": [is_("user.age", "gt", 5), is_("user.age", "lt", 5)]},
    {"all": [is_("context.x", "ge", 5), is_("context.x", "le", 5)]},
    {"any": [is_("time.hour", "ge", 24), is_("time.hour", "ge", 23)]},
    {"not": {"all": [MORNING, EVENING]}},
    {"all": [is_("time.date", "gt", "2026-03-01"), is_("time.date", "lt", "2026-03-02T12:00")]},
]


def test_what_is_said_of_long_lists_is_short_and_soon() -> None:
    stores = {"attribute": "context.store", "op": "in", "value": [f"s{n}" for n in range(1000)]}
    other = {"attribute": "context.store", "op": "eq", "value": "none of them"}
    found = contradiction(parse({"all": [stores, other]}, known=None))
    assert found is not None
    assert len(found) < 600
    choices = {"any": [{"attribute": "price", "op": "gt", "value": n} for n in range(60)]}
    began = time.monotonic()
    assert contradiction(parse({"all": [stores] * 30 + [choices]}, known=None)) is None
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("raw", NEVER)
def test_what_can_never_hold_is_found(raw: dict[str, Any]) -> None:
    assert contradiction(parse(raw, known=FACTS, behaviour=True)) is not None


@pytest.mark.parametrize("raw", SOMETIMES)
def test_what_can_hold_is_left_alone(raw: dict[str, Any]) -> None:
    assert contradiction(None, parse(raw, known=FACTS, behaviour=True)) is None


def test_days_that_are_over_do_not_come_again() -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    for day, comes in (("2026-02-28", False), ("2026-03-01", True), ("2027-01-01", True)):
        assert (contradiction(parse(is_("time.date", "le", day), known=FACTS), now=now) is None) is comes


NUMBERS = st.integers(-1, 4)
NAMES = st.sampled_from(["context.a", "user.a", "user.events", "time.weekday"])
LEAVES = st.one_of(
    st.builds(is_, NAMES, st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge"]), NUMBERS),
    st.builds(is_, NAMES, st.just("in"), st.lists(NUMBERS, min_size=1, max_size=2)),
    st.builds(is_, NAMES, st.just("exists"), st.booleans()),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda name, some: {name: some}, st.sampled_from(["all", "any"]), st.lists(inner, min_size=1, max_size=3)
        ),
        st.builds(lambda one: {"not": one}, inner),
    ),
    max_leaves=6,
)
ROWS = [
    {name: value for name, value in (("context.a", one), ("user.a", many)) if value is not None}
    | {"user.events": events, "time.weekday": weekday}
    for one in (None, -1, 0, 0.5, 1, 2, 3, 4, 5)
    for many in (None, 0, 2, 5, [0.0, 1.0], [1.0, 3.0, 4.0], [-1.0, 2.0, 4.0])
    for events in range(6)
    for weekday in range(7)
]


@given(TREES)
def test_nothing_that_holds_for_anybody_is_called_a_contradiction(raw: dict[str, Any]) -> None:
    condition = parse(raw, known=FACTS)
    if contradiction(condition) is not None:
        assert not any(condition.matches(row, now=0.0) for row in ROWS)


def test_a_layout_may_name_contents_and_one_that_is_unknown_is_a_problem() -> None:
    hero = {"id": "hero", "variants": [A]}
    page = {"id": "p", "slots": [{"id": "top", "type": "content", "content": "hero"}]}
    assert not Policy.compile({"content": [hero], "layout": [page]}, version=1, item_attributes=[]).problems
    policy = Policy.compile({"layout": [page]}, version=1, item_attributes=[])
    assert "unknown content 'hero'" in (policy.problem(LAYOUTS, "p") or "")
    known = References(documents={"content": {"hero": parse_content(hero)}, "placement": {}})
    with pytest.raises(InputError, match="did you mean 'hero'"):
        parse_layout({"id": "p", "slots": [{"id": "top", "type": "content", "content": "herp"}]}, references=known)
