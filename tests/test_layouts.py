"""Layouts and whole pages: one call, one deadline, no item twice, in an order for the person, in both topologies."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embeddings.errors import InputError, NotFound
from serving.pages.arrange import ordered, sequence
from serving.pages.page import PageAnswer, PageQuery
from serving.policy.compiled import Policy
from serving.policy.kinds import References
from serving.policy.layouts import LAYOUTS, READY_MADE, Layout, parse_layout
from serving.replica.engine import Engine
from serving.request.work import Work
from serving.stages.past import BuyAgain, Continue
from serving.stages.scorers import RankerScore
from serving.stages.selectors import Slate
from serving.stages.sources import Trending, TwoTowerSource
from tests.test_api import client, error, view  # noqa: F401 - a fixture
from tests.test_ladder import DEADLINE_S, SLACK_S, hang, running  # noqa: F401 - a fixture
from tests.test_pipeline import do
from tests.test_placements import patient as patient

NOW = datetime(2026, 11, 1, 12, 30, tzinfo=UTC)
HOME = [
    {"id": name, "type": "shelf", "placement": name, "max_items": 6} for name in ("trending", "for_you", "continue")
]


def layout(engine: Engine, slots: list[dict[str, Any]], name: str = "home", **fields: Any) -> None:
    body = {"id": name, "exploration": 0.0, "stickiness": 0.0, "slots": slots} | fields
    parsed = parse_layout(body, references=References()).model_dump(mode="json")
    engine.store.documents.put("layout", name, parsed, by="test")
    engine.take_changes()


def open_page(engine: Engine, **fields: Any) -> PageAnswer:
    query = PageQuery(**{"page": "home", "now": datetime.now(UTC), "user_id": "eve"} | fields)
    return asyncio.run(engine.page(query))


def shelves(page: PageAnswer) -> dict[str, list[str]]:
    return {slot.id: [one.item_id for one in slot.items] for slot in page.slots if slot.type == "shelf"}


def on_page(page: PageAnswer) -> list[str]:
    return [item for items in shelves(page).values() for item in items]


@pytest.mark.parametrize("name", READY_MADE)
def test_every_ready_made_page_answers_anybody(patient: Engine, name: str) -> None:
    do(patient, "g2-3", "g1-4", user="eve")
    do(patient, "g0-2", "g0-2", user="eve", event_type="purchase")
    about = "g1-7" if name == "product" else None
    for user in ("eve", "nobody"):
        page = open_page(patient, page=name, user_id=user, item_id=about)
        assert (page.page, page.degraded, page.model_version) == (name, (), "world-1")
        assert page.slots
        assert all(slot.items and slot.title for slot in page.slots)
        assert max(Counter(on_page(page)).values()) == 1
        assert about not in on_page(page)
    if name == "product":
        assert [slot.title for slot in page.slots[:2]] == ["Goes with Group 1 item 7", "Similar to Group 1 item 7"]
        assert shelves(page)["bought_together"] == ["g2-7", "g3-7"]


def test_shelves_say_why_and_start_from_different_items(patient: Engine) -> None:
    do(patient, "g3-5", user="eve", event_type="purchase")
    do(patient, "g2-3", user="eve")
    page = open_page(patient)
    titles = {slot.id: slot.title for slot in page.slots}
    assert titles["because_1"] == "Because you viewed Group 2 item 3"
    assert titles["because_2"] == "Because you bought Group 3 item 5"
    assert page.slots[0].id == "continue"
    assert shelves(page)["continue"] == ["g2-3"]
    assert {name[:2] for name in shelves(page)["because_2"]} == {"g3"}
    stranger = open_page(patient, user_id="nobody")
    assert {slot.id for slot in stranger.slots} == {"for_you", "trending"}


def test_a_shelf_is_like_its_list_apart_from_what_stands_above(patient: Engine) -> None:
    from tests.test_pipeline import ask, ids

    do(patient, "g2-3", user="eve")
    slots = [
        {"id": name, "type": "shelf", "pinned": True, "placement": name, "max_items": 8}
        for name in ("for_you", "similar")
    ]
    layout(patient, slots)
    now = datetime.now(UTC)
    page = open_page(patient, now=now)
    alone = ask(patient, user_id="eve", placement="for_you", k=8, now=now)
    assert shelves(page)["for_you"] == ids(alone)
    first = page.slots[0].items[0]
    assert (first.score, first.reasons) == (pytest.approx(alone.items[0].score, rel=1e-5), alone.items[0].reasons)
    below = ask(patient, user_id="eve", placement="similar", k=8, now=now, exclude=ids(alone))
    assert shelves(page)["similar"] == ids(below)


def test_the_best_shelf_comes_first_unless_a_pin_says_otherwise(patient: Engine) -> None:
    do(patient, *["g3-9"] * 3, "g3-8", "g3-7", user="crowd")
    patient.holdings.demand_at = -1e9
    patient.refresh()
    do(patient, "g2-3", user="eve")
    layout(patient, HOME)
    assert next(iter(shelves(open_page(patient)))) == "for_you"
    layout(patient, [HOME[0] | {"pinned": True}, *HOME[1:]])
    assert next(iter(shelves(open_page(patient)))) == "trending"
    layout(patient, HOME, max_shelves=1)
    assert list(shelves(open_page(patient))) == ["for_you"]


def test_what_is_too_short_or_has_no_title_is_not_shown(patient: Engine) -> None:
    do(patient, "g2-3", user="eve")
    few = {"id": "few", "type": "shelf", "placement": "continue", "min_items": 2}
    untitled = {"id": "untitled", "type": "shelf", "placement": "trending", "title": "Like {anchor}"}
    own = {"id": "own", "type": "shelf", "placement": "somewhere", "title": "Ours", "max_items": 3}
    bare = {"id": "bare", "type": "shelf", "placement": "elsewhere", "max_items": 3}
    layout(patient, [few, untitled, own, bare])
    assert {slot.id: slot.title for slot in open_page(patient).slots} == {"own": "Ours", "bare": None}


def test_rules_hold_on_every_shelf_after_the_items_are_shared_out(patient: Engine) -> None:
    do(patient, "g2-3", user="eve")
    bodies: list[dict[str, Any]] = [
        {"id": "out", "action": {"type": "exclude"}, "items": {"attribute": "price", "op": "lt", "value": 4}},
        {"id": "cap", "action": {"type": "cap", "attribute": "brand", "limit": 1}, "placements": ["for_you"]},
    ]
    for body in bodies:
        patient.store.documents.put("rule", body["id"], body, by="test")
    layout(patient, HOME)
    page = open_page(patient, fields=True)
    assert all(int(name.split("-")[1]) >= 3 for name in on_page(page))
    mine = next(slot for slot in page.slots if slot.id == "for_you")
    brands = [one.item.attributes["brand"] for one in mine.items if one.item is not None]
    assert len(brands) == len(set(brands)) == 5
    assert page.policy_version == patient.store.documents.version()


def test_tabs_and_tiles_are_ordered_by_what_they_stand_for(patient: Engine) -> None:
    do(patient, "g2-3", user="eve")
    tiles = [
        {
            "id": f"tab-{n}",
            "type": "tile",
            "items": {"attribute": "categories", "op": "contains", "value": f"group-{n}"},
        }
        for n in range(4)
    ]
    account = {"id": "account", "type": "tile", "title": "Account"}
    layout(patient, [tiles[0], account, *tiles[1:]], name="app")
    page = open_page(patient, page="app")
    assert [slot.id for slot in page.slots][:2] == ["tab-2", "account"]
    assert {slot.type for slot in page.slots} == {"tile"}
    do(patient, "g3-3", user="eve")
    assert open_page(patient, page="app").slots[0].id == "tab-3"


class Said:
    """Decides a content and an alert, as somebody else does."""

    def content(self, name: str, work: Work) -> Mapping[str, Any] | None:
        if name == "broken":
            raise RuntimeError("broken on purpose")
        return {"variant": name.upper(), "for": work.profile.user_id} if name == "hero" else None

    def alert(self, name: str | None, work: Work) -> Mapping[str, Any] | None:
        return {"text": "Hello"} if name is None else None


def test_contents_and_alerts_keep_their_place_and_nothing_comes_of_nothing(patient: Engine) -> None:
    do(patient, "g2-3", user="eve")
    slots = [
        {"id": "hero", "type": "content", "content": "hero"},
        HOME[0],
        {"id": "none", "type": "content", "content": "none"},
        {"id": "alert", "type": "alert"},
        {"id": "other", "type": "alert", "alert": "other"},
        {"id": "bad", "type": "content", "content": "broken"},
        HOME[1],
    ]
    layout(patient, slots)
    assert [slot.id for slot in open_page(patient).slots] == ["for_you", "trending"]
    patient.decider = Said()
    page = open_page(patient)
    assert [slot.id for slot in page.slots] == ["hero", "for_you", "alert", "trending"]
    assert page.slots[0].content == {"variant": "HERO", "for": "eve"}
    assert page.degraded == ("slot bad",)


@pytest.mark.parametrize("stage", [Continue, TwoTowerSource, Trending, BuyAgain])
@pytest.mark.parametrize("topology", ["fused", "chained"])
def test_a_shelf_that_hangs_is_left_out_and_named_and_the_page_comes_in_time(
    topology: str,
    stage: type,
    hang: Any,  # noqa: F811
    releases: Path,
    tmp_path: Path,
) -> None:
    deadline_s = 1.2
    slots = [
        {"id": name, "type": "shelf", "placement": name} for name in ("trending", "for_you", "continue", "buy_again")
    ]
    with running(topology, releases, tmp_path, deadline_s) as engine:
        do(engine, "g0-2", "g0-2", user="eve", event_type="purchase")
        do(engine, "g2-3", user="eve")
        layout(engine, slots)
        whole = open_page(engine)
        stuck = hang(stage, "find")
        began = time.monotonic()
        page = open_page(engine)
        assert time.monotonic() - began < deadline_s + SLACK_S
        assert stuck.calls
        lost = {name.removeprefix("slot ") for name in page.degraded if name.startswith("slot ")}
        assert lost, page.degraded
        assert lost.isdisjoint(shelves(page))
        assert set(shelves(whole)) - lost <= set(shelves(page)), page.degraded
        assert max(Counter(on_page(page)).values()) == 1
        stuck.free.set()


@pytest.mark.parametrize(("owner", "method"), [(Slate, "_explored"), (RankerScore, "score")])
@pytest.mark.parametrize("topology", ["fused", "chained"])
def test_late_stages_that_hang_cost_quality(
    topology: str,
    owner: type,
    method: str,
    hang: Any,  # noqa: F811
    releases: Path,
    tmp_path: Path,
) -> None:
    with running(topology, releases, tmp_path, DEADLINE_S) as engine:
        do(engine, "g2-3", user="eve")
        layout(engine, HOME)
        stuck = hang(owner, method)
        began = time.monotonic()
        page = open_page(engine)
        assert time.monotonic() - began < DEADLINE_S + SLACK_S
        assert page.degraded
        assert page.slots
        assert max(Counter(on_page(page)).values()) == 1
        stuck.free.set()


def test_without_retrieval_there_is_what_is_in_demand(patient: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    do(patient, "g2-3", user="eve")
    layout(patient, [*HOME, {"id": "tab", "type": "tile", "title": "Tab"}])
    circuit = patient.holdings.current().circuits["retrieval"]
    monkeypatch.setattr(circuit, "allows", lambda: False)
    page = open_page(patient, exclude=["g0-0"])
    assert page.degraded == ("retrieval",)
    assert [slot.id for slot in page.slots] == ["trending", "for_you", "tab"]
    assert len(set(on_page(page))) == len(on_page(page)) == 12
    assert "g0-0" not in on_page(page)


def test_a_page_is_one_row_of_the_log(patient: Engine) -> None:
    do(patient, "g2-3", user="eve")
    layout(patient, [HOME[2] | {"pinned": True}, *HOME[:2]], exploration=1.0)
    page = open_page(patient, now=NOW, context={"channel": "app", "country": "DE"}, exclude=["g1-1"])
    assert patient.effects.flush()
    found = patient.store.decisions.get(page.recommendation_id)
    assert found is not None
    assert (found.kind, found.placement, found.channel, found.user_id) == ("page", "home", "app", "eve")
    assert found.items == on_page(page)
    assert len(found.scores) == len(found.sources) == len(found.propensities) == len(found.items)
    assert found.request["slots"] == [[slot.id, len(slot.items)] for slot in page.slots]
    assert (found.request["exclude"], found.request["context"]) == (["g1-1"], {"channel": "app", "country": "DE"})
    begun = len(shelves(page)["continue"])
    assert found.propensities == [1.0] * begun + [0.5] * (len(found.items) - begun)
    assert all(found.sources)
    assert patient.store.decisions.between(NOW, NOW + timedelta(seconds=1), kind="page").decisions == (found,)


def test_an_unknown_page_or_item_is_an_error(patient: Engine) -> None:
    with pytest.raises(NotFound, match="did you mean 'home'") as caught:
        open_page(patient, page="hone")
    assert caught.value.field == "page"
    with pytest.raises(NotFound, match="unknown item 'zz'") as caught:
        open_page(patient, page="product", item_id="zz")
    assert caught.value.field == "item_id"


def freely(n: int, **fields: Any) -> Layout:
    slots = [{"id": f"s{i}", "type": "shelf", "placement": "new"} for i in range(n)]
    return parse_layout({"id": "p", "slots": slots, **fields}, references=References())


def test_stickiness_is_worth_a_doubling_a_place() -> None:
    worth = {"s0": 0.0, "s1": 0.9, "s2": 2.5}
    for stickiness, expected in ((0.0, "s2 s1 s0"), (0.5, "s2 s1 s0"), (1.0, "s2 s0 s1")):
        found = ordered(freely(3, stickiness=stickiness, exploration=0.0), worth, whose="ann", at=NOW)
        assert (found.ids, found.propensity) == (expected.split(), 1.0)


def test_chance_is_the_same_for_an_hour_and_its_propensities_are_true() -> None:
    page = freely(3, stickiness=0.0, exploration=0.4)
    worth = {"s0": 3.0, "s1": 2.0, "s2": 1.0}
    people = 20_000
    found = [ordered(page, worth, whose=f"u{n}", at=NOW) for n in range(people)]
    again = [ordered(page, worth, whose=f"u{n}", at=NOW + timedelta(minutes=20)) for n in range(people)]
    later = [ordered(page, worth, whose=f"u{n}", at=NOW + timedelta(hours=1)) for n in range(people)]
    assert found == again
    assert found != later
    seen = Counter(tuple(one.ids) for one in found)
    told = {tuple(one.ids): one.propensity for one in found}
    assert sum(told.values()) == pytest.approx(1.0)
    for order, count in seen.items():
        assert count / people == pytest.approx(told[order], abs=0.012)


def test_what_is_pinned_keeps_its_place() -> None:
    page = parse_layout(
        {
            "id": "p",
            "slots": [
                {"id": "a", "type": "shelf", "placement": "new"},
                {"id": "b", "type": "shelf", "placement": "new", "pinned": True},
                {"id": "c", "type": "tile"},
                {"id": "d", "type": "shelf", "placement": "new"},
            ],
        },
        references=References(),
    )
    assert [slot.id for slot in sequence(page, ["d", "a"])] == ["d", "b", "c", "a"]
    assert [slot.id for slot in sequence(page, ["d"])] == ["d", "b", "c"]


ATTRIBUTES = References(item_attributes=["brand"], documents={"placement": dict.fromkeys(["new", "home"])})  # type: ignore[dict-item]
SHELF = {"id": "a", "type": "shelf", "placement": "new"}
BAD: list[tuple[Any, str | None, str]] = [
    (7, None, "object"),
    ({}, "slots", "required"),
    ({"slots": []}, "slots", "at least 1"),
    ({"slots": [SHELF, SHELF]}, "slots.1.id", "'a' is the id of another slot"),
    ({"slots": [{"id": "a", "type": "banner"}]}, "slots.0.type", "known: alert, content, shelf, tile"),
    ({"slots": [{"id": "a"}]}, "slots.0.type", "known: alert"),
    ({"slots": [SHELF | {"placement": "hom"}]}, "slots.0.placement", "did you mean 'home'"),
    ({"slots": [SHELF | {"title": "For {name}"}]}, "slots.0.title", "known: anchor, verb"),
    ({"slots": [SHELF | {"title": "For {"}]}, "slots.0.title", "braces"),
    ({"slots": [SHELF | {"min_items": 5, "max_items": 4}]}, "slots.0.min_items", "more than max_items"),
    ({"slots": [SHELF | {"min_items": 0}]}, "slots.0.min_items", "greater than or equal to 1"),
    ({"slots": [SHELF | {"colour": 1}]}, "slots.0.colour", "unknown field"),
    ({"slots": [SHELF], "stickiness": 1.5}, "stickiness", "less than or equal to 1"),
    ({"slots": [SHELF], "colour": 1}, "colour", "known: id"),
    (
        {"slots": [{"id": "a", "type": "tile", "items": {"attribute": "brnd", "op": "eq", "value": "x"}}]},
        "slots.0.items.attribute",
        "did you mean 'brand'",
    ),
]


@pytest.mark.parametrize(("raw", "field", "words"), BAD)
def test_a_wrong_layout_says_where_and_why(raw: Any, field: str | None, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_layout({"id": "home-2", **raw} if isinstance(raw, dict) else raw, references=ATTRIBUTES)
    assert (caught.value.field, words in caught.value.message) == (field, True), caught.value.message


def test_a_page_does_not_go_because_one_of_its_placements_did() -> None:
    body = {"id": "p", "slots": [SHELF | {"placement": "gone"}]}
    policy = Policy.compile({"layout": [body]}, version=1, item_attributes=[])
    assert policy.layout("p").slots[0].id == "a"
    assert "gone" in (policy.problem(LAYOUTS, "p") or "")


def test_pages_over_http(client: TestClient) -> None:  # noqa: F811
    client.post("/v1/events", json=view("g2-3"))
    client.put("/v1/items/n", json={"title": "N", "created_at": datetime.now(UTC).isoformat()})
    reply = client.post("/v1/pages", json={"user_id": "ann", "fields": True, "explain": True})
    assert reply.status_code == 200, reply.text
    page = reply.json()
    assert page["slots"][0]["title"] == "Continue where you left off"
    items = [one for slot in page["slots"] for one in slot["items"]]
    assert [one["position"] for one in items] == list(range(len(items)))
    assert all(one["reasons"] and one["item"]["title"] for one in items)
    because = next(slot for slot in page["slots"] if slot["id"] == "because_1")
    assert because["anchor"] == {"item_id": "g2-3", "title": "Group 2 item 3", "event_type": "view"}
    assert {one["id"] for one in page["trace"]["slots"]} == {slot.id for slot in READY_MADE["home"].slots}
    assert set(page["trace"]["shelves"]) >= {slot["id"] for slot in page["slots"]}
    assert error(client.post("/v1/pages", json={"user_id": "ann", "page": "x"}), 404)["field"] == "page"
    assert error(client.post("/v1/pages", json={"user_id": "ann", "k": 3}), 422)["field"] == "k"
    same = client.post("/v1/pages", json={"user_id": "ann"}).json()
    assert [slot["id"] for slot in same["slots"]] == [slot["id"] for slot in page["slots"]]


def test_the_person_is_read_and_encoded_once_for_all_shelves(patient: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from embeddings.bundle import Bundle
    from serving.store.profiles import Profiles

    do(patient, "g2-3", user="eve")
    calls: Counter[str] = Counter()
    lock = threading.Lock()
    for owner, name in ((Bundle, "encode_user"), (Profiles, "read")):
        original = getattr(owner, name)

        def counted(*args: Any, original: Any = original, name: str = name) -> Any:
            with lock:
                calls[name] += 1
            return original(*args)

        monkeypatch.setattr(owner, name, counted)
    assert len(open_page(patient).slots) >= 4
    assert calls == {"encode_user": 1, "read": 1}


def put_page(client: TestClient, slots: list[dict[str, Any]], name: str = "home", **fields: Any) -> None:  # noqa: F811
    body = {"exploration": 0.0, "stickiness": 0.0, "slots": slots} | fields
    assert client.put(f"/v1/layouts/{name}", json=body).status_code == 200


def get_page(client: TestClient, user: str = "ann", **fields: Any) -> dict[str, list[str]]:  # noqa: F811
    """Items by slot."""
    reply = client.post("/v1/pages", json={"user_id": user} | fields)
    assert reply.status_code == 200, reply.text
    return {slot["id"]: [one["item_id"] for one in slot.get("items", [])] for slot in reply.json()["slots"]}


def test_pinned_shelves_are_counted_first_over_http(client: TestClient) -> None:  # noqa: F811
    client.post("/v1/events", json=view("g2-3"))
    trending, for_you, begun = HOME
    put_page(client, [for_you, trending | {"pinned": True}], max_shelves=1)
    assert list(get_page(client)) == ["trending"]
    put_page(client, [begun | {"pinned": True}, for_you, trending | {"pinned": True}], max_shelves=2)
    assert list(get_page(client)) == ["continue", "trending"]
    # A pin that nothing comes of keeps nobody else away, wherever it stands.
    assert list(get_page(client, "nobody")) == ["for_you", "trending"]
    put_page(client, [for_you, trending, begun | {"pinned": True}], max_shelves=1)
    assert list(get_page(client)) == ["continue"]
    assert list(get_page(client, "nobody")) in (["for_you"], ["trending"])


def test_what_an_alert_or_a_content_names_is_on_no_shelf(client: TestClient) -> None:  # noqa: F811
    earlier = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    for item in ("g1-3", "g1-5"):
        client.post("/v1/events", json=view(item, event_type="cart", timestamp=earlier))
    look = [{"id": "a", "payload": {"title": "A look", "items": ["g1-7", {"item_id": "g1-8"}, "zz", 3]}}]
    left = {"variants": [{"id": "a", "payload": {"title": "Your cart"}}], "trigger": {"type": "cart_abandonment"}}
    assert client.put("/v1/contents/look", json={"variants": look}).status_code == 200
    assert client.put("/v1/contents/left", json=left).status_code == 200
    shelf = {"id": "for_you", "type": "shelf", "placement": "for_you", "max_items": 20}
    put_page(client, [shelf])
    named = {"g1-3", "g1-5", "g1-7", "g1-8"}
    assert set(get_page(client)["for_you"]) >= named
    tab = {"id": "tab", "type": "tile", "title": "Account"}
    alert = {"id": "note", "type": "alert", "pinned": True}
    put_page(client, [alert, tab, shelf, {"id": "look", "type": "content", "content": "look"}])
    page = client.post("/v1/pages", json={"user_id": "ann"}).json()
    note, account, items, shown = page["slots"]
    assert [one["item_id"] for one in note["content"]["items"]] == ["g1-5", "g1-3"]
    assert (note["pinned"], account["title"], shown["content"]["payload"]) == (True, "Account", look[0]["payload"])
    assert named.isdisjoint(one["item_id"] for one in items["items"])
    assert len(items["items"]) == 20
    assert set(get_page(client)["for_you"]) >= {"g1-3", "g1-5"}, "an alert that was told is not told again"


def test_the_page_of_the_cart_proposes_nothing_that_lies_in_it(client: TestClient) -> None:  # noqa: F811
    for item, kind in (("g0-2", "purchase"), ("g0-2", "purchase"), ("g0-4", "cart"), ("g0-6", "cart")):
        client.post("/v1/events", json=view(item, event_type=kind))
    assert get_page(client)["continue"] == ["g0-6", "g0-4"]
    page = get_page(client, page="cart")
    assert page["buy_again"] == ["g0-2"]
    assert {"g0-4", "g0-6"}.isdisjoint(page["for_you"])
    for item, kind in (("g0-2", "cart"), ("g0-4", "remove_from_cart")):
        client.post("/v1/events", json=view(item, event_type=kind))
    page = get_page(client, page="cart")
    assert "buy_again" not in page
    assert "g0-4" in page["for_you"]


def test_everybodys_page_is_the_same_for_all_over_http(client: TestClient) -> None:  # noqa: F811
    put_page(client, HOME)
    client.post("/v1/events", json=view("g2-3"))
    page = get_page(client, personalized=False)
    assert set(page) == {"trending", "for_you"}
    assert page == get_page(client, "nobody", personalized=False)
    assert page != get_page(client)


def test_an_arm_changes_layout_and_content_of_a_page_over_http(client: TestClient) -> None:  # noqa: F811
    variants = [{"id": name, "payload": {"title": name}} for name in ("plain", "loud")]
    assert client.put("/v1/contents/hero", json={"variants": variants, "choice": "weights"}).status_code == 200
    put_page(client, [HOME[1]])
    put_page(client, [{"id": "top", "type": "content", "content": "hero"}, HOME[1]], name="other")
    arms = [{"id": "old"}, {"id": "new", "layouts": {"home": "other"}, "contents": {"hero": {"loud": 1.0}}}]
    assert client.put("/v1/experiments/loud", json={"arms": arms, "state": "running"}).status_code == 200
    seen: Counter[str] = Counter()
    for n in range(16):
        page = client.post("/v1/pages", json={"user_id": f"u{n}"}).json()
        arm = page["experiment"]["loud"]
        seen[arm] += 1
        assert [slot["id"] for slot in page["slots"]] == (["for_you"] if arm == "old" else ["top", "for_you"])
        if arm == "new":
            assert page["slots"][0]["content"]["variant"] == "loud"
    assert set(seen) == {"old", "new"}


def test_devices_of_one_person_see_one_order(client: TestClient) -> None:  # noqa: F811
    put_page(client, HOME, exploration=1.0)
    devices = [f"device-{n}" for n in range(8)]
    for device in devices:
        client.post("/v1/events", json=view("g2-3", user_id=device))
        assert client.put(f"/v1/users/ann/aliases/{device}").is_success
    assert len({tuple(get_page(client, device)) for device in devices}) == 1
