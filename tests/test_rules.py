from __future__ import annotations

import json
import math
import threading
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.errors import InputError
from embeddings.schema import Item
from serving.policy.columns import ItemColumns, row_of
from serving.policy.compiled import MAX_COMBINATIONS, REFRESH_S, BoundPolicy, Policy
from serving.policy.facts import facts
from serving.policy.placements import DEFAULT, PLACEMENTS, READY_MADE, USUAL_SOURCES, Placement, parse_placement
from serving.policy.rules import ACTIONS, FACTS, Rule, parse_rule

NOW = datetime(2026, 11, 23, 22, 30, tzinfo=UTC).timestamp()  # a Monday
DAY = 86_400.0
CHEAP = {"attribute": "price", "op": "lt", "value": 20}
OAK = {"attribute": "brand", "op": "eq", "value": "oak"}
NEW = {"attribute": "created_at", "op": "within_days", "value": 7}
GERMAN = {"attribute": "context.country", "op": "eq", "value": "DE"}


def shop(size: int = 30) -> list[Item]:
    return [
        Item(
            item_id=f"i{n}",
            price=float(n),
            attributes={"brand": ["oak", "pine", "ash"][n % 3]},
            created_at=datetime.fromtimestamp(NOW - n * DAY, UTC),
        )
        for n in range(size)
    ]


def rule(name: str, action: dict[str, Any], **changes: Any) -> dict[str, Any]:
    items = {} if action["type"] == "cap" else {"items": CHEAP}
    return {"id": name, "action": action, **items, **changes}


def compiled(*rules: dict[str, Any], placements: tuple[dict[str, Any], ...] = ()) -> Policy:
    documents = {"rule": list(rules), "placement": list(placements)}
    return Policy.compile(documents, version=3, item_attributes=["brand"])


def bound(*rules: dict[str, Any], items: list[Item] | None = None) -> BoundPolicy:
    policy = compiled(*rules)
    assert policy.problems == ()
    return policy.bind(ItemColumns.of(shop() if items is None else items), now=NOW)


def rows(mask: Any) -> list[int]:
    return list(map(int, np.flatnonzero(mask)))


def test_a_rule_round_trips_and_fills_in_defaults() -> None:
    raw = {"id": "no-alcohol-kids", "items": CHEAP, "when": GERMAN, "action": {"type": "boost", "factor": 2.0}}
    parsed = parse_rule(raw | {"starts_at": "2026-01-01T02:00:00+02:00"}, item_attributes=[])
    document = parsed.model_dump(mode="json")
    assert document == raw | {
        "description": "",
        "enabled": True,
        "priority": 0,
        "placements": [],
        "share": 1.0,
        "starts_at": "2026-01-01T00:00:00Z",
        "ends_at": None,
    }
    assert parse_rule(json.loads(json.dumps(document)), item_attributes=[]) == parsed
    assert parse_rule(raw | {"starts_at": "2026-01-01T00:00:00"}, item_attributes=[]).starts_at == parsed.starts_at
    assert Rule.model_json_schema()["properties"]["items"]["description"]


BAD_RULES: list[tuple[Any, str | None, str]] = [
    ([], None, "must be an object"),
    ({}, "id", "required"),
    ({"id": "", "action": {"type": "include"}}, "id", "at least 1"),
    (rule("x" * 129, {"type": "include"}), "id", "at most 128"),
    ({"id": "a"}, "action", "required"),
    (rule("a", {"type": "include"}, colour=1), "colour", "known: id, description"),
    (rule("a", {"type": "bost"}), "action.type", "did you mean 'boost'"),
    (rule("a", {"type": {"x": 1}}), "action.type", "unknown action"),
    ({"id": "a", "action": "include"}, "action", "object"),
    (rule("a", {"type": "include", "factor": 2}), "action.factor", "unknown field 'action.factor'; known: type"),
    (rule("a", {"type": "boost"}), "action.factor", "required"),
    (rule("a", {"type": "boost", "factor": 1}), "action.factor", "greater than 1"),
    (rule("a", {"type": "boost", "factor": 100.5}), "action.factor", "less than or equal to 100"),
    (rule("a", {"type": "boost", "factor": math.nan}), "action.factor", "finite"),
    (rule("a", {"type": "boost", "factor": "2"}), "action.factor", "number"),
    (rule("a", {"type": "bury", "factor": 1}), "action.factor", "less than 1"),
    (rule("a", {"type": "bury", "factor": -0.1}), "action.factor", "greater than or equal to 0"),
    (rule("a", {"type": "pin"}), "action.position", "required"),
    (rule("a", {"type": "pin", "position": 200}), "action.position", "199"),
    (rule("a", {"type": "pin", "position": -1}), "action.position", "0"),
    (rule("a", {"type": "pin", "position": True}), "action.position", "integer"),
    (rule("a", {"type": "cap", "attribute": "brand", "limit": 0}), "action.limit", "1"),
    (rule("a", {"type": "cap", "attribute": "brnd", "limit": 1}), "action.attribute", "did you mean 'brand'"),
    (rule("a", {"type": "cap", "attribute": "brand", "limit": 1}, items=OAK), "items", "leave 'items' out"),
    (rule("a", {"type": "include"}, items=None), "items", "'include' needs a condition"),
    (rule("a", {"type": "exclude"}, items={"all": [OAK | {"attribute": "brnd"}]}), "items.all.0.attribute", "brand"),
    (
        rule("a", {"type": "pin", "position": 0}, when=OAK),
        "when.attribute",
        "known: context.<name>, history",
    ),
    (rule("a", {"type": "include"}, when={"not": GERMAN | {"value": None}}), "when.not.value", "finite"),
    (rule("a", {"type": "include"}, priority=0.5), "priority", "integer"),
    (rule("a", {"type": "include"}, enabled="yes"), "enabled", "boolean"),
    (rule("a", {"type": "include"}, placements=["home", ""]), "placements.1", "at least 1"),
    (rule("a", {"type": "include"}, starts_at="soon"), "starts_at", "datetime"),
    (rule("a", {"type": "include"}, starts_at="9999-12-31T23:00:00-10:00"), "starts_at", "2999"),
    (rule("a", {"type": "include"}, starts_at="2026-02-01", ends_at="2026-02-01"), "ends_at", "after starts_at"),
]


@pytest.mark.parametrize(("raw", "field", "words"), BAD_RULES)
def test_a_wrong_rule_says_where_and_why(raw: Any, field: str | None, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_rule(raw, item_attributes=["brand"])
    assert caught.value.field == field
    assert words in caught.value.message


def test_the_bounds_of_actions_themselves_pass() -> None:
    for action in [
        {"type": "boost", "factor": 100},
        {"type": "bury", "factor": 0},
        {"type": "pin", "position": 199},
        {"type": "cap", "attribute": "categories", "limit": 200},
    ]:
        assert parse_rule(rule("a", action), item_attributes=[]).action.type == action["type"]
    assert parse_rule(rule("a", {"type": "include"}, items=OAK), item_attributes=None).items is not None


def test_names_that_when_may_use() -> None:
    for name in [
        "user.events",
        "user.age",
        "context.channel",
        "context.a.b-c",
        "time.hour",
        "time.weekday",
        "time.local_hour",
        "time.date",
    ]:
        assert name in FACTS
    for stranger in ["", "user", "user.", "user.1", "time.minute", "price", "context.x y", "user.x\n", 3]:
        assert stranger not in FACTS


def test_facts_are_in_utc_and_count_events() -> None:
    row = facts({"events": 99, "country": "DE"}, 4, {"channel": "web"}, NOW)
    assert row == {
        "user.events": 4,
        "user.country": "DE",
        "context.channel": "web",
        "time.hour": 22,
        "time.weekday": 0,
        "time.date": "2026-11-23",
        "time.local_hour": 22,
        "time.local_weekday": 0,
    }
    assert all(name in FACTS for name in row)
    there = facts({"time_zone": "Asia/Tokyo"}, 0, {}, NOW)
    assert [there[f"time.{name}"] for name in ("hour", "local_hour", "local_weekday")] == [22, 7, 1]
    assert facts({"time_zone": "Atlantis"}, 0, {}, NOW)["time.local_hour"] == 22


def test_every_action_lands_in_its_list() -> None:
    segment = bound(
        rule("in", {"type": "include"}),
        rule("out", {"type": "exclude"}, items=OAK),
        rule("up", {"type": "boost", "factor": 2}, items=OAK),
        rule("down", {"type": "bury", "factor": 0.5}, items=NEW),
        rule("first", {"type": "pin", "position": 3}, items=OAK),
        rule("few", {"type": "cap", "attribute": "brand", "limit": 2}),
    )
    active = segment.active("home", facts({}, 0, {}, NOW), NOW)
    assert rows(active.allow) == [n for n in range(20) if n % 3]
    assert [(found.id, rows(mask), factor) for found, mask, factor in active.boosts] == [
        ("down", list(range(7)), 0.5),
        ("up", list(range(0, 30, 3)), 2.0),
    ]
    assert [(found.id, rows(mask), place) for found, mask, place in active.pins] == [
        ("first", list(range(0, 30, 3)), 3)
    ]
    assert [(found.id, name, limit) for found, name, limit in active.caps] == [("few", "brand", 2)]
    assert [active.removed_by(row) for row in (0, 1, 19, 20, 21)] == ["out", None, None, "in", "in"]


def test_an_action_is_never_forgotten() -> None:
    parameters: dict[str, dict[str, Any]] = {
        "boost": {"factor": 2},
        "bury": {"factor": 0.5},
        "pin": {"position": 0},
        "cap": {"attribute": "brand", "limit": 1},
    }
    for kind in ACTIONS:
        active = bound(rule("a", {"type": kind, **parameters.get(kind, {})})).active("home", {}, NOW)
        assert len(active.limits) + len(active.boosts) + len(active.pins) + len(active.caps) == 1, kind


def test_no_rules_allow_everything() -> None:
    active = bound().active("home", {}, NOW)
    assert active.allow is None
    assert active.removed_by(0) is None
    assert (active.boosts, active.pins, active.caps) == ((), (), ())


def test_when_decides_for_each_request() -> None:
    segment = bound(
        rule("german", {"type": "exclude"}, when=GERMAN),
        rule(
            "never",
            {"type": "exclude"},
            when={"all": [GERMAN, {"attribute": "user.vip", "op": "eq", "value": True}]},
            items=OAK,
        ),
    )
    german = segment.active("home", facts({}, 0, {"country": "DE"}, NOW), NOW)
    assert rows(german.allow) == list(range(20, 30))
    assert german.removed_by(0) == "german"
    for context in ({}, {"country": "FR"}):
        other = segment.active("home", facts({}, 0, context, NOW), NOW)
        assert other.allow is None
        assert other.removed_by(0) is None


def test_placement_dates_and_enabled_decide_too() -> None:
    def holds(placement: str, now: float, **changes: Any) -> bool:
        return bool(bound(rule("a", {"type": "exclude"}, **changes)).active(placement, {}, now).limits)

    start, end = "2026-11-23T22:00:00Z", "2026-11-23T23:00:00Z"
    first = datetime.fromisoformat(start).timestamp()
    assert holds("home", NOW)
    assert not holds("home", NOW, enabled=False)
    assert holds("home", NOW, placements=["mail", "home"])
    assert not holds("cart", NOW, placements=["mail", "home"])
    moments = (first - 1, first, first + 3599, first + 3600)
    assert [holds("home", now, starts_at=start, ends_at=end) for now in moments] == [False, True, True, False]


def test_priority_first_then_id() -> None:
    pin = {"type": "pin", "position": 0}
    names = [("b", 0), ("a", 0), ("low", -5), ("high", 10), ("A", 0)]
    segment = bound(*(rule(name, pin, priority=priority) for name, priority in names))
    pins = segment.active("home", {}, NOW).pins
    assert [found.rule.id for found in pins] == ["high", "A", "a", "b", "low"]
    assert {found.position for found in pins} == {0}  # all want the same place: who gets it is the slate's affair
    removing = bound(*(rule(name, {"type": "exclude"}, priority=priority) for name, priority in names))
    assert removing.active("home", {}, NOW).removed_by(0) == "high"


def test_masks_that_depend_on_time_move_on_once_a_minute() -> None:
    segment = bound(rule("new", {"type": "include"}, items=NEW), rule("oak", {"type": "exclude"}, items=OAK))
    at_once = segment.active("home", {}, NOW)
    assert rows(at_once.allow) == [1, 2, 4, 5]
    assert segment.active("home", {}, NOW + REFRESH_S - 1).allow is at_once.allow
    later = segment.active("home", {}, NOW + 2 * DAY)
    assert rows(later.allow) == [1, 2, 4]
    assert later.removed_by(5) == "new"
    assert later.limits[1][1] is at_once.limits[1][1]  # the mask without a clock is not computed again
    assert rows(at_once.allow) == [1, 2, 4, 5]
    assert rows(segment.active("home", {}, NOW).allow) == [1, 2, 4, 5]


def test_shared_masks_cannot_be_written() -> None:
    segment = bound(rule("in", {"type": "include"}), rule("up", {"type": "boost", "factor": 2}))
    active = segment.active("home", {}, NOW)
    assert active.allow is not None
    for mask in (active.allow, active.boosts[0].mask, active.limits[0][1]):
        with pytest.raises(ValueError, match="read-only"):
            mask[0] = True
    with pytest.raises(AttributeError):
        segment.policy.version = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        segment.policy.placements["home"] = DEFAULT  # type: ignore[index]


def test_two_segments_agree_with_one() -> None:
    items = shop()
    documents = (rule("in", {"type": "include"}), rule("out", {"type": "exclude"}, items=OAK))
    whole, base, delta, empty = (bound(*documents, items=part) for part in (items, items[:25], items[25:], []))
    rules = whole.policy.applicable("home", {}, NOW)
    parts = [segment.select(rules, NOW).allow for segment in (base, delta, empty)]
    allow = whole.active("home", {}, NOW).allow
    assert allow is not None
    assert np.concatenate([part for part in parts if part is not None]).tolist() == allow.tolist()
    assert [len(part) for part in parts if part is not None] == [25, 5, 0]


def test_an_attribute_that_a_segment_lacks_is_missing_there() -> None:
    segment = bound(rule("oak", {"type": "include"}, items=OAK), items=[Item(item_id="bare")])
    assert segment.active("home", {}, NOW).removed_by(0) == "oak"


def test_more_combinations_than_are_kept_stay_right() -> None:
    count = MAX_COMBINATIONS + 5
    conditions = [{"attribute": "price", "op": "ne", "value": n} for n in range(count)]
    whens = [{"attribute": "user.events", "op": "eq", "value": n} for n in range(count)]
    segment = bound(*(rule(f"r{n}", {"type": "include"}, items=conditions[n], when=whens[n]) for n in range(count)))
    for n in [*range(count), *range(count)]:
        assert rows(~segment.active("home", facts({}, n, {}, NOW), NOW).allow) == [n]  # type: ignore[operator]


def test_threads_share_a_segment() -> None:
    segment = bound(rule("new", {"type": "include"}, items=NEW))
    expected = {day: [n for n in range(30) if n + day < 7] for day in range(6)}
    wrong: list[Any] = []

    def ask() -> None:
        for turn in range(300):
            day = turn % 6
            found = rows(segment.active("home", {}, NOW + day * DAY).allow)
            if found != expected[day]:
                wrong.append((day, found))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_does_not_compile_is_left_out_and_listed() -> None:
    documents: dict[str, Any] = {
        "rule": [
            rule("good", {"type": "exclude"}),
            rule("stale", {"type": "include"}, items=OAK | {"attribute": "colour"}),
            rule("good", {"type": "include"}),
            None,
            {"id": ["x"]},
        ],
        "placement": [{"id": "home", "diversity": 0.5}, {"id": "mail", "sources": ["magic"]}],
        "rules": [],
    }
    policy = Policy.compile(documents, version=8, item_attributes=["brand"])
    assert policy.version == 8
    assert [found.id for found in policy.rules] == ["good", "stale"]  # an include rule does not open by itself
    assert [(problem.kind, problem.id, problem.field) for problem in policy.problems] == [
        ("rules", "", None),
        ("placement", "mail", "sources"),
        ("rule", "stale", "items.attribute"),
        ("rule", "good", "id"),
        ("rule", "", None),
        ("rule", "['x']", "id"),
    ]
    assert "brand" in policy.problems[2].message
    assert policy.bind(ItemColumns.of(shop()), now=NOW).active("home", {}, NOW).removed_by(0) == "good"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
typed_actions = st.fixed_dictionaries({"type": st.sampled_from(list(ACTIONS))}, optional={"factor": json_values})
near_rules = st.fixed_dictionaries(
    {"id": st.text(max_size=3) | json_values, "action": json_values | typed_actions},
    optional=dict.fromkeys(("when", "items", "priority", "placements", "starts_at", "ends_at"), json_values),
)


@settings(deadline=None, max_examples=120)
@given(rules=st.lists(near_rules | json_values, max_size=4), placements=st.lists(json_values, max_size=2))
def test_no_document_breaks_the_compiler(rules: list[Any], placements: list[Any]) -> None:
    policy = Policy.compile({"rule": rules, "placement": placements}, version=1, item_attributes=[])
    written = [one for one in policy.placements.values() if one is not READY_MADE.get(one.id)]
    assert len(policy.rules) + len(written) + len(policy.problems) == len(rules) + len(placements)


simple = st.sampled_from([CHEAP, OAK, NEW, {"not": CHEAP}, {"any": [OAK, NEW]}])
whens = st.sampled_from([None, GERMAN, {"not": GERMAN}, {"attribute": "user.events", "op": "gt", "value": 5}])
limiting = st.builds(
    lambda kind, items, when, priority: {"action": {"type": kind}, "items": items, "when": when, "priority": priority},
    st.sampled_from(["include", "exclude"]),
    simple,
    whens,
    st.integers(-2, 2),
)


@settings(deadline=None, max_examples=100)
@given(bodies=st.lists(limiting, max_size=5), country=st.sampled_from(["DE", "FR"]), events=st.integers(0, 10))
def test_allow_agrees_with_rules_asked_one_by_one(bodies: list[Any], country: str, events: int) -> None:
    items = shop()
    documents = [{"id": f"r{n}", **body} for n, body in enumerate(bodies)]
    request = facts({}, events, {"country": country}, NOW)
    active = bound(*documents, items=items).active("home", request, NOW)
    ordered = sorted(documents, key=lambda raw: (-raw["priority"], raw["id"]))
    parsed = [parse_rule(raw, item_attributes=["brand"]) for raw in ordered]

    def remover(item: Item) -> str | None:
        for found in parsed:
            assert found.items is not None
            stays = found.items.matches(row_of(item), now=NOW) is (found.action.type == "include")
            if not stays and (found.when is None or found.when.matches(request)):
                return found.id
        return None

    expected = [remover(item) for item in items]
    assert [active.removed_by(row) for row in range(len(items))] == expected
    allow = np.ones(len(items), dtype=np.bool_) if active.allow is None else active.allow
    assert allow.tolist() == [name is None for name in expected]


def test_a_placement_round_trips() -> None:
    raw = {
        "id": "home",
        "description": "the start page",
        "sources": ["trending", "two_tower"],
        "seen": [],
        "order": "ranked",
        "fill": False,
        "objectives": {"purchase": 3.0, "return": -1.0},
        "values": {"margin": 0.5, "price": -1.0},
        "novelty": 0.25,
        "freshness": {"weight": 2.0, "half_life_days": 7.0},
        "diversity": 0.25,
        "k": 12,
        "channel": "email",
        "exploration": 0.25,
    }
    placement = parse_placement(raw)
    assert placement.model_dump(mode="json") == raw
    assert Placement.model_json_schema()


BAD_PLACEMENTS: list[tuple[Any, str | None, str]] = [
    (7, None, "object"),
    ({}, "id", "required"),
    ({"sources": []}, "sources", "at least 1"),
    ({"sources": ["twotower"]}, "sources", "did you mean 'two_tower'"),
    ({"sources": ["trending", "trending"]}, "sources", "twice"),
    ({"seen": ["a", "a"]}, "seen", "twice"),
    ({"seen": ["not a name"]}, "seen.0", "pattern"),
    ({"diversity": 1.1}, "diversity", "less than or equal to 1"),
    ({"diversity": math.nan}, "diversity", "finite"),
    ({"diversity": True}, "diversity", "number"),
    ({"objectives": {"click": math.inf}}, "objectives.click", "finite"),
    ({"values": {"margin": 1001.0}}, "values.margin", "1000"),
    ({"freshness": {"half_life_days": 3.0}}, "freshness.weight", "required"),
    ({"freshness": {"weight": 1.0, "half_life_days": 0.0}}, "freshness.half_life_days", "greater than 0"),
    ({"order": "random"}, "order", "'ranked' or 'found'"),
    ({"k": 0}, "k", "1"),
    ({"k": 201}, "k", "200"),
    ({"colour": 1}, "colour", "known: id, description, sources"),
]


@pytest.mark.parametrize(("raw", "field", "words"), BAD_PLACEMENTS)
def test_a_wrong_placement_says_where_and_why(raw: Any, field: str | None, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_placement({"id": "home", **raw} if raw and isinstance(raw, dict) else raw)
    assert caught.value.field == field
    assert words in caught.value.message


def test_the_usual_placements_are_there_until_one_of_that_name_is_written() -> None:
    names = {"for_you", "similar", "bought_together", "trending", "new", "because_you_watched", "continue", "buy_again"}
    assert names | {"category_page", "search_rerank", "gorse", "default"} == set(READY_MADE)
    policy = compiled(placements=({"id": "buy_again", "k": 3}, {"id": "new", "k": 0}))
    changed = policy.placement("buy_again")
    assert (changed.k, changed.sources, changed.seen, changed.fill) == (3, ("buy_again",), (), False)
    assert policy.placement("new") == READY_MADE["new"], "a broken document does not take its place"
    assert [one.id for one in policy.problems] == ["new"]


def test_a_value_must_be_an_attribute_of_the_catalogue() -> None:
    raw = {"id": "home", "values": {"marign": 1.0}}
    with pytest.raises(InputError, match="did you mean 'margin'") as caught:
        Policy.compile({}, version=0, item_attributes=["margin"]).admit(PLACEMENTS, raw, item_attributes=["margin"])
    assert caught.value.field == "values.marign"
    policy = Policy.compile({"placement": [raw]}, version=1, item_attributes=["margin"])
    assert policy.placement("home").values == {"marign": 1.0}, (
        "what is gone counts for nothing, the rest stays in force"
    )
    assert "marign" in (policy.problem(PLACEMENTS, "home") or "")


def test_an_unknown_placement_gets_the_default() -> None:
    assert compiled().placement("home") is DEFAULT
    assert DEFAULT.sources == USUAL_SOURCES
    assert DEFAULT.seen == ("purchase", "rating")
    policy = compiled(placements=({"id": "default", "k": 5}, {"id": "home", "k": 6}))
    assert [policy.placement(name).k for name in ("home", "cart", "default")] == [6, 5, 5]
