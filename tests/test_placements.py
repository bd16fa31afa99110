"""Placements: each source finds what it says, those that are ready-made fill their lists, in both topologies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embeddings.errors import NotFound
from embeddings.schema import Item
from serving.pipeline.pipeline import SOURCES as STAGES
from serving.policy.placements import READY_MADE, SOURCES
from serving.replica.engine import Engine
from serving.request.query import Answer
from serving.settings import Settings
from serving.stages.past import CONSUMABLE
from tests.conftest import NOW, write_world
from tests.test_ladder import running
from tests.test_pipeline import ask, do, groups, ids


def placement(engine: Engine, name: str, **fields: Any) -> None:
    body = READY_MADE["default"].model_dump(mode="json") | {"id": name} | fields
    engine.store.documents.put("placement", name, body, by="test")
    engine.refresh()


def codes(answer: Answer) -> set[str]:
    return {one.reasons[0].code for one in answer.items}


def test_every_source_a_placement_may_name_is_a_stage() -> None:
    assert set(SOURCES) <= set(STAGES)


@pytest.fixture(params=["fused", "chained"])
def patient(request: pytest.FixtureRequest, releases: Path, tmp_path: Path) -> Iterator[Engine]:
    """Either topology; what is tested is not about time."""
    with running(request.param, releases, tmp_path, 20.0) as one:
        yield one


@pytest.mark.parametrize("name", READY_MADE)
def test_every_ready_made_placement_answers_anybody(patient: Engine, name: str) -> None:
    for user in ("ann", "nobody"):
        answer = ask(patient, placement=name, user_id=user, k=0)
        assert len(answer.items) <= READY_MADE[name].k
        assert (answer.degraded, answer.policy_version) == ((), 0)
        assert len(answer.items) == READY_MADE[name].k or not READY_MADE[name].fill


def test_because_you_watched_starts_from_the_last_item_and_names_it(patient: Engine) -> None:
    do(patient, "g1-3", event_type="view")
    answer = ask(patient, placement="because_you_watched")
    assert answer.anchor is not None
    assert (answer.anchor.item_id, answer.anchor.title, answer.anchor.event_type) == ("g1-3", "Group 1 item 3", "view")
    assert groups(answer) == {"g1"}
    assert "g1-3" not in ids(answer)
    assert {one.reasons[0].text for one in answer.items} == {"Because you viewed Group 1 item 3"}
    chosen = ask(patient, placement="because_you_watched", anchor="g3-5")
    assert chosen.anchor is not None
    assert (chosen.anchor.item_id, groups(chosen)) == ("g3-5", {"g3"})
    with pytest.raises(NotFound, match="unknown item 'zz'") as caught:
        ask(patient, placement="because_you_watched", anchor="zz")
    assert caught.value.field == "anchor"
    stranger = ask(patient, placement="because_you_watched", user_id="nobody")
    assert (stranger.items, stranger.anchor) == ((), None)


def test_what_was_disliked_is_nothing_to_start_from(engine: Engine) -> None:
    do(engine, "g1-3")
    do(engine, "g2-3", event_type="dislike")
    answer = ask(engine, placement="because_you_watched")
    assert answer.anchor is not None
    assert answer.anchor.item_id == "g1-3"


def test_a_placement_that_nobody_has_described_is_said(patient: Engine) -> None:
    assert "placement 'hoem'" in ask(patient, placement="hoem").unserved["placement"]
    for known in ("default", "for_you"):
        assert "placement" not in ask(patient, placement=known).unserved
    patient.store.documents.put("placement", "hoem", {"id": "hoem"}, by="test")
    patient.refresh()
    assert "placement" not in ask(patient, placement="hoem").unserved


def test_what_is_bought_together_comes_closest_first(patient: Engine) -> None:
    answer = ask(patient, user_id=None, similar_to="g1-7", placement="bought_together", k=0)
    assert ids(answer) == ["g2-7", "g3-7"]
    assert answer.items[0].reasons[0].text == "Goes with Group 1 item 7"
    assert ids(ask(patient, user_id=None, similar_to="g1-7", placement="bought_together", exclude=["g2-7"])) == ["g3-7"]
    do(patient, "g0-5", event_type="cart")
    mine = ask(patient, placement="bought_together")
    assert mine.anchor is not None
    assert (mine.anchor.item_id, ids(mine)) == ("g0-5", ["g1-5", "g2-5"])


def test_a_companion_that_changed_since_the_release_is_found_and_one_that_is_gone_is_not(engine: Engine) -> None:
    engine.store.catalogue.upsert([Item(item_id="g2-7", title="Renamed", categories=["group-2"])])
    engine.store.catalogue.delete("g3-7")
    engine.refresh()
    assert ids(ask(engine, user_id=None, similar_to="g1-7", placement="bought_together")) == ["g2-7"]


def test_other_placements_answer_an_item_with_its_like(engine: Engine) -> None:
    for name in ("similar", "default", "home"):
        assert groups(ask(engine, user_id=None, similar_to="g1-4", placement=name)) == {"g1"}


def test_trending_and_new_come_in_their_order(engine: Engine) -> None:
    for place in range(5):
        do(engine, *["g3-9"] * (5 - place), f"g3-{place}", user="crowd")
    engine.holdings.demand_at = -1e9
    engine.refresh()
    answer = ask(engine, placement="trending", k=30)
    assert ids(answer)[0] == "g3-9"
    assert (len(answer.items), codes(answer)) == (30, {"trending"})
    assert ask(engine, placement="new").items == (), "nothing is new in this world, and nothing else is put there"
    fresh = [Item(item_id=f"n{n}", title="New", categories=["group-2"], created_at=NOW) for n in range(3)]
    engine.store.catalogue.upsert(fresh)
    engine.refresh()
    assert set(ids(ask(engine, placement="new", now=NOW))) == {"n0", "n1", "n2"}


def test_what_was_begun_goes_on_until_it_is_finished(patient: Engine) -> None:
    do(patient, "g0-1", user="eve")
    do(patient, "g1-1", "g3-2", user="eve")
    do(patient, "g0-1", user="eve")
    answer = ask(patient, user_id="eve", placement="continue")
    assert ids(answer) == ["g0-1", "g3-2", "g1-1"]
    assert answer.items[0].reasons[0].code == "continue"
    do(patient, "g0-1", user="eve", event_type="finish")
    do(patient, "g3-2", user="eve", event_type="dislike")
    assert ids(ask(patient, user_id="eve", placement="continue")) == ["g1-1"]
    assert ids(ask(patient, user_id="eve", placement="continue", personalized=False)) == []


def test_what_is_used_up_can_be_bought_again(patient: Engine) -> None:
    for name in ("g0-1", "g1-1", "g1-1", "g2-1"):
        do(patient, name, user="eve", event_type="purchase")
    answer = ask(patient, user_id="eve", placement="buy_again")
    assert ids(answer) == ["g1-1"]
    assert CONSUMABLE in answer.unserved["buy_again"]
    for name, used_up in (("g0-1", True), ("g2-1", False)):
        attributes = {CONSUMABLE: used_up}
        patient.store.catalogue.upsert([Item(item_id=name, title=name, categories=["group-0"], attributes=attributes)])
    patient.take_changes()
    answer = ask(patient, user_id="eve", placement="buy_again")
    assert ids(answer) == ["g1-1", "g0-1"]
    assert answer.unserved == {}


def test_a_source_that_release_or_catalogue_cannot_serve_says_so(tmp_path: Path) -> None:
    write_world(tmp_path / "releases", with_baskets=False)
    engine = Engine(
        Settings(releases=tmp_path / "releases", store=f"sqlite:///{tmp_path / 's.db'}", deadline_ms=10_000)
    )
    engine.start()
    answer = ask(engine, user_id=None, similar_to="g1-7", placement="bought_together", explain=True)
    assert (answer.items, answer.degraded) == ((), ())
    assert answer.unserved == {
        "bought_together": "this release does not know what is bought together; publish one from newer data"
    }
    placement(engine, "both", sources=["bought_together", "similar"], order="found", fill=False)
    assert groups(ask(engine, user_id=None, similar_to="g1-7", placement="both")) == {"g1"}
    engine.stop()


def test_sources_come_in_the_order_of_the_placement(engine: Engine) -> None:
    do(engine, "g2-3")
    placement(engine, "first", sources=["continue", "bought_together", "two_tower"], order="found")
    assert ids(ask(engine, placement="first"))[:3] == ["g3-3", "g0-3", "g2-0"], "what one starts from is left out"
    placement(engine, "second", sources=["two_tower", "bought_together"], order="found", seen=[])
    head = ids(ask(engine, placement="second", k=60))
    assert head[0] == "g2-0"
    assert ask(engine, placement="second").degraded == ()


def test_a_placement_says_how_long_and_on_which_channel(engine: Engine) -> None:
    placement(engine, "mail", k=7, channel="email")
    body = {
        "id": "web-only",
        "action": {"type": "exclude"},
        "when": {"attribute": "context.channel", "op": "eq", "value": "email"},
        "items": {"attribute": "categories", "op": "contains", "value": "group-2"},
    }
    engine.store.documents.put("rule", "web-only", body, by="test")
    engine.refresh()
    do(engine, "g2-3")
    answer = ask(engine, placement="mail", k=0)
    assert len(answer.items) == 7
    assert "g2" not in groups(answer)
    assert engine.effects.flush()
    logged = engine.store.decisions.get(answer.recommendation_id)
    assert logged is not None
    assert (logged.channel, logged.request["k"]) == ("email", 7)
    assert "g2" in groups(ask(engine, placement="mail", k=3, context={"channel": "web"}))


def test_a_list_that_must_not_be_filled_stays_short_whatever_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.stages.sources import BoughtTogether

    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(BoughtTogether, "find", broken)
    answer = ask(engine, user_id=None, similar_to="g1-7", placement="bought_together")
    assert (answer.items, answer.degraded) == ((), ("bought_together",))


def test_a_pin_for_everywhere_adds_nothing_to_a_list_that_is_not_filled(engine: Engine) -> None:
    do(engine, "g0-1", user="eve")
    title = {"attribute": "title", "op": "eq", "value": "Group 3 item 1"}
    body = {"id": "pin", "action": {"type": "pin", "position": 0}, "items": title}
    engine.store.documents.put("rule", "pin", body, by="test")
    engine.refresh()
    assert ids(ask(engine, user_id="eve"))[0] == "g3-1"
    assert ids(ask(engine, user_id="eve", placement="continue")) == ["g0-1"]
    engine.store.documents.put("rule", "pin", body | {"placements": ["continue"]}, by="test")
    engine.refresh()
    assert ids(ask(engine, user_id="eve", placement="continue")) == ["g3-1", "g0-1"]
