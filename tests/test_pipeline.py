"""The pipeline in a world with a known answer: no HTTP, no Ray, no training."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddings.errors import InputError, NotFound, Unavailable
from embeddings.releases import point_to
from embeddings.schema import Event, Item, User
from serving.pipeline.pipeline import SECTIONS, STAGES, run_section
from serving.replica.engine import Engine
from serving.request.query import Answer, Query
from serving.request.work import Work
from serving.settings import Settings
from serving.stages.stage import Filter, Scorer, Selector, Source, Stage
from tests.conftest import PER_GROUP, write_world


def ask(engine: Engine, **fields: Any) -> Answer:
    query = Query(**{"k": 10, "now": datetime.now(UTC), "user_id": "ann"} | fields)
    return asyncio.run(engine.recommend(query))


def do(engine: Engine, *item_ids: str, user: str = "ann", event_type: str = "view") -> None:
    moment = datetime.now(UTC)
    engine.store.events.append(
        [Event(user_id=user, item_id=name, event_type=event_type, timestamp=moment) for name in item_ids]
    )


def ids(answer: Answer) -> list[str]:
    return [one.item_id for one in answer.items]


def groups(answer: Answer) -> set[str]:
    return {name.split("-")[0] for name in ids(answer)}


def stages(answer: Answer) -> list[dict[str, Any]]:
    assert answer.trace is not None
    found = answer.trace["stages"]
    assert isinstance(found, list)
    return found


def rule(engine: Engine, name: str, action: dict[str, Any], **fields: Any) -> None:
    body = {"id": name, "action": action} | fields
    engine.store.documents.put("rule", name, body, by="test")
    engine.refresh()


def test_the_next_answer_follows_the_last_event(engine: Engine) -> None:
    do(engine, "g2-3")
    assert groups(ask(engine)) == {"g2"}
    do(engine, "g1-3")
    assert groups(ask(engine)) == {"g1"}


def test_what_is_pinned_counts_first_and_stays_where_caps_would_take_it_away(engine: Engine) -> None:
    do(engine, "g2-3")
    catalogue = engine.snapshot.catalogue

    def brands(answer: Answer) -> list[object]:
        return [catalogue.value(catalogue.row(name), "brand") for name in ids(answer)]

    first = ids(ask(engine))[0]
    of_its_brand = [f"g0-{n}" for n in range(PER_GROUP) if n % 5 == int(first.split("-")[1]) % 5][:2]
    rule(engine, "cap", {"type": "cap", "attribute": "brand", "limit": 1})
    for position, item_id in zip((2, 4), of_its_brand, strict=True):
        only = {"attribute": "item_id", "op": "eq", "value": item_id}
        rule(engine, item_id, {"type": "pin", "position": position}, items=only)
    answer = ask(engine)
    assert [ids(answer)[2], ids(answer)[4]] == of_its_brand
    assert first not in ids(answer), "the place that its brand has is taken"
    assert sorted(map(str, brands(answer))) == sorted([*{str(one) for one in brands(answer)}, str(brands(answer)[2])])
    assert len(answer.items) == 6
    # Of many items that match only the one that is pinned is exempt.
    engine.store.documents.delete("rule", of_its_brand[1], by="test")
    group = {"attribute": "categories", "op": "contains", "value": "group-2"}
    rule(engine, of_its_brand[0], {"type": "pin", "position": 2}, items=group)
    assert ids(ask(engine))[2] == first
    assert len(set(brands(ask(engine)))) == len(ask(engine).items) == 5


def test_a_stranger_gets_a_full_list(engine: Engine) -> None:
    answer = ask(engine, user_id="nobody")
    assert len(answer.items) == 10
    assert all(one.reasons for one in answer.items)
    assert answer.degraded == ()


def test_seen_items_stay_away_and_the_list_stays_full(engine: Engine) -> None:
    bought = [f"g2-{place}" for place in range(20)]
    do(engine, *bought, event_type="purchase")
    answer = ask(engine)
    assert len(answer.items) == 10
    assert not set(ids(answer)) & set(bought)
    assert {f"g2-{place}" for place in range(20, PER_GROUP)} <= set(ids(answer))


def test_exclusions_and_filters_apply_before_the_search(engine: Engine) -> None:
    do(engine, "g2-3")
    cheap = {"attribute": "price", "op": "le", "value": 3}
    answer = ask(engine, filter=cheap, exclude=["g2-0"], k=12, fields=True)
    assert len(answer.items) == 11
    assert ids(answer)[:2] == ["g2-1", "g2-2"]
    assert all(one.item is not None and one.item.price is not None and one.item.price <= 3 for one in answer.items)


def test_a_filter_that_only_one_item_passes_finds_it(engine: Engine) -> None:
    only = {"all": [{"attribute": "title", "op": "eq", "value": "Group 3 item 7"}]}
    do(engine, "g0-1")
    assert ids(ask(engine, filter=only)) == ["g3-7"]


def test_an_impossible_filter_gives_an_empty_list(engine: Engine) -> None:
    answer = ask(engine, filter={"attribute": "price", "op": "lt", "value": 0})
    assert answer.items == ()
    assert answer.degraded == ()


def test_an_unknown_attribute_lists_those_that_exist(engine: Engine) -> None:
    with pytest.raises(InputError, match="brand") as caught:
        ask(engine, filter={"attribute": "brnd", "op": "eq", "value": "x"})
    assert caught.value.field is not None
    assert caught.value.field.startswith("filter")


def test_a_new_item_is_retrievable_at_once(engine: Engine) -> None:
    engine.store.catalogue.upsert([Item(item_id="fresh", title="Fresh", categories=["group-3"])])
    engine.refresh()
    do(engine, "g3-1")
    answer = ask(engine, k=60)
    assert "fresh" in ids(answer)
    assert ids(answer).index("fresh") < 40


def test_a_changed_item_takes_the_place_of_the_old_one(engine: Engine) -> None:
    engine.store.catalogue.upsert([Item(item_id="g3-1", title="Renamed", categories=["group-3"], price=5.0)])
    engine.refresh()
    do(engine, "g3-2")
    answer = ask(engine, k=100, fields=True)
    found = [one for one in answer.items if one.item_id == "g3-1"]
    assert len(found) == 1
    assert found[0].item is not None
    assert found[0].item.title == "Renamed"
    assert len(set(ids(answer))) == len(ids(answer))


def test_an_unavailable_or_deleted_item_is_gone_at_once(engine: Engine) -> None:
    do(engine, "g2-3")
    first, second = ids(ask(engine))[:2]
    engine.store.catalogue.upsert([Item(item_id=first, available=False)])
    engine.store.catalogue.delete(second)
    engine.refresh()
    assert not {first, second} & set(ids(ask(engine, k=100)))


def test_an_item_that_comes_back_unchanged_is_served_from_the_release(engine: Engine) -> None:
    original = engine.snapshot.bundle.items[5]
    engine.store.catalogue.upsert([original.model_copy(update={"available": False})])
    engine.refresh()
    assert engine.snapshot.catalogue.row(original.item_id) >= engine.snapshot.catalogue.split
    engine.store.catalogue.upsert([original])
    engine.refresh()
    assert engine.snapshot.catalogue.row(original.item_id) == 5
    assert len(engine.snapshot.catalogue.delta.ids) == 0


def test_similar_items_come_from_the_same_group(engine: Engine) -> None:
    answer = ask(engine, user_id=None, similar_to="g1-4")
    assert groups(answer) == {"g1"}
    assert "g1-4" not in ids(answer)
    assert answer.items[0].reasons[0].code == "similar_to"


def test_similar_to_nothing_is_an_error(engine: Engine) -> None:
    with pytest.raises(NotFound, match="'nothing'"):
        ask(engine, user_id=None, similar_to="nothing")


def test_rankings_return_the_callers_items_and_name_the_unknown(engine: Engine) -> None:
    do(engine, "g2-3")
    answer = ask(engine, candidates=["g0-1", "g2-1", "what", "g1-1", "g2-2"], k=5)
    assert set(ids(answer)[:2]) == {"g2-1", "g2-2"}
    assert set(ids(answer)) == {"g0-1", "g1-1", "g2-1", "g2-2"}
    assert answer.unknown == ("what",)


def test_without_personalization_everybody_gets_the_same_list(engine: Engine) -> None:
    do(engine, "g2-3")
    do(engine, "g1-3", user="bob")
    for _ in range(3):
        do(engine, "g3-9", user="carol")
    engine.holdings.demand_at = -math.inf
    engine.refresh()
    one, other = ask(engine, personalized=False), ask(engine, personalized=False, user_id="bob")
    assert ids(one) == ids(other)
    assert ids(one)[0] == "g3-9"


def test_reasons_name_the_event_behind_an_item(engine: Engine) -> None:
    do(engine, "g2-3", event_type="purchase")
    reason = ask(engine).items[0].reasons[0]
    assert (reason.code, reason.item_id) == ("similar_to", "g2-3")
    assert reason.text == "Because you bought Group 2 item 3"


def test_what_was_only_shown_says_nothing_about_a_taste(engine: Engine) -> None:
    do(engine, "g2-3")
    before = ask(engine)
    do(engine, *(f"g1-{n}" for n in range(PER_GROUP)), event_type="impression")
    assert [(one.item_id, one.reasons) for one in ask(engine).items] == [
        (one.item_id, one.reasons) for one in before.items
    ]


def test_what_somebody_dislikes_is_no_reason_and_no_start(engine: Engine) -> None:
    do(engine, "g2-3")
    do(engine, "g2-3", event_type="dislike")
    found = ask(engine, explain=True)
    assert "g2-3" not in {reason.item_id for one in found.items for reason in one.reasons}
    assert "similar_to_recent" not in {stage["name"] for stage in stages(found)}


def test_neighbours_that_changed_since_the_release_are_found(engine: Engine) -> None:
    def found() -> int:
        return next(one["found"] for one in stages(ask(engine, explain=True)) if one["name"] == "similar_to_recent")

    do(engine, "g2-3")
    before = found()
    rows = [
        engine.snapshot.catalogue.item(engine.snapshot.catalogue.row(f"g2-{n}")) for n in range(PER_GROUP) if n != 3
    ]
    engine.store.catalogue.upsert([row.model_copy(update={"price": 99.0}) for row in rows])
    engine.refresh()
    assert found() == before > 0


def test_neighbours_are_searched_for_among_what_a_filter_leaves(engine: Engine) -> None:
    do(engine, "g2-3")
    others = {"attribute": "categories", "op": "contains", "value": "group-0"}
    answer = ask(engine, filter=others, explain=True)
    found = next(one["found"] for one in stages(answer) if one["name"] == "similar_to_recent")
    assert 0 < found <= PER_GROUP
    assert groups(answer) == {"g0"}


def test_rules_include_exclude_boost_bury_pin_and_cap(engine: Engine) -> None:
    do(engine, "g2-3")
    group2 = {"attribute": "categories", "op": "contains", "value": "group-2"}
    rule(engine, "away", {"type": "exclude"}, items={"attribute": "price", "op": "lt", "value": 5})
    assert all(int(name.split("-")[1]) >= 4 for name in ids(ask(engine, k=50)))
    pinned = {"attribute": "title", "op": "eq", "value": "Group 0 item 9"}
    rule(engine, "pin", {"type": "pin", "position": 2}, items=pinned)
    answer = ask(engine)
    assert ids(answer)[2] == "g0-9"
    assert answer.items[2].reasons[0].code == "pinned"
    rule(engine, "cap", {"type": "cap", "attribute": "brand", "limit": 1})
    brands = [
        engine.snapshot.catalogue.value(engine.snapshot.catalogue.row(name), "brand") for name in ids(ask(engine))
    ]
    assert len(brands) == len(set(brands)) == 5
    engine.store.documents.delete("rule", "cap", by="test")
    rule(engine, "bury", {"type": "bury", "factor": 0.001}, items=group2)
    assert "g2" not in groups(ask(engine))
    engine.store.documents.delete("rule", "bury", by="test")
    rule(engine, "only", {"type": "include"}, items={"attribute": "categories", "op": "contains", "value": "group-1"})
    assert groups(ask(engine)) == {"g1"}


def test_a_boost_reorders_and_says_so(engine: Engine) -> None:
    do(engine, "g2-3")
    target = ids(ask(engine, k=20))[15]
    title = {"attribute": "item_id", "op": "eq", "value": target}
    rule(engine, "push", {"type": "boost", "factor": 50.0}, items=title, description="House favourite")
    answer = ask(engine)
    assert ids(answer)[0] == target
    assert answer.items[0].reasons[0].text == "House favourite"


def test_a_rule_applies_when_its_condition_holds(engine: Engine) -> None:
    when = {"attribute": "context.country", "op": "eq", "value": "DE"}
    items = {"attribute": "categories", "op": "contains", "value": "group-2"}
    rule(engine, "german", {"type": "exclude"}, when=when, items=items)
    do(engine, "g2-3")
    assert "g2" in groups(ask(engine))
    assert "g2" not in groups(ask(engine, context={"country": "DE"}))


def test_a_broken_stored_rule_is_left_out_and_named(engine: Engine) -> None:
    rule(engine, "broken", {"type": "exclude"}, items={"attribute": "gone", "op": "eq", "value": 1})
    assert len(ask(engine).items) == 10
    assert engine.snapshot.policy.problems


def test_the_trace_accounts_for_every_stage(engine: Engine) -> None:
    do(engine, "g2-3", event_type="purchase")
    trace = ask(engine, explain=True).trace
    assert trace is not None
    names = [stage["name"] for stage in trace["stages"]]
    assert names == sorted(names, key=[stage.name for stage in STAGES].index)
    seen = next(stage for stage in trace["stages"] if stage["name"] == "seen")
    assert seen["removed"][0]["item_id"] == "g2-3"
    assert "purchase" in seen["removed"][0]["reason"]
    assert seen["in"] - seen["out"] == 1
    assert trace["candidates"][0]["position"] == 0


def test_a_failing_source_or_ranker_costs_quality_not_the_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    do(engine, "g2-3")
    for name in ("two_tower", "ranker"):
        stage = next(one for one in STAGES if one.name == name)
        monkeypatch.setattr(type(stage), "find" if isinstance(stage, Source) else "score", broken)
    answer = ask(engine)
    assert len(answer.items) == 10
    assert set(answer.degraded) == {"two_tower", "ranker"}


def test_a_failing_filter_fails_the_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.stages.filters import Unavailable as Stage_

    monkeypatch.setattr(Stage_, "keeps", lambda *_: np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match="broadcast"):
        ask(engine)


def test_a_scorer_must_answer_for_every_candidate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = next(one for one in STAGES if one.name == "ranker")
    for wrong in (lambda _, work: work.candidates.score[1:], lambda _, work: work.candidates.score * np.nan):
        monkeypatch.setattr(type(stage), "score", wrong)
        assert ask(engine).degraded == ("ranker",)


def test_sections_over_the_wire_give_the_same_answer(engine: Engine) -> None:
    do(engine, "g2-3", "g1-7")
    engine.store.catalogue.upsert([Item(item_id="fresh", title="Fresh", categories=["group-1"])])
    rule(engine, "cap", {"type": "cap", "attribute": "brand", "limit": 3})

    async def far(section: str, payload: bytes) -> bytes:
        return engine.run_section(section, payload)  # type: ignore[arg-type]

    chained = {section: (lambda payload, section=section: far(section, payload)) for section in SECTIONS}
    fused = ask(engine, k=15, explain=True)
    engine.ladder.sections = chained
    remote = ask(engine, k=15, explain=True)
    assert [(one.item_id, one.reasons) for one in remote.items] == [(one.item_id, one.reasons) for one in fused.items]
    np.testing.assert_allclose([one.score for one in remote.items], [one.score for one in fused.items], rtol=1e-5)


def test_without_a_release_the_service_says_so(tmp_path: Path) -> None:
    engine = Engine(Settings(releases=tmp_path / "none", store=f"sqlite:///{tmp_path / 's.db'}"))
    engine.start()
    try:
        assert not engine.ready
        with pytest.raises(Unavailable, match="publish"):
            ask(engine)
        write_world(tmp_path / "none")
        engine.refresh()
        assert engine.ready
    finally:
        engine.stop()


def test_a_corrupt_release_never_replaces_the_one_in_service(engine: Engine, releases: Path) -> None:
    folder = write_world(releases, "world-2", pointed=False)
    matrix = folder / "matrix.npy"
    matrix.write_bytes(matrix.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    point_to(releases, "world-2")
    engine.refresh()
    assert ask(engine).model_version == "world-1"
    write_world(releases, "world-3")
    engine.refresh()
    assert ask(engine).model_version == "world-3"


def stages_of(kind: type[Stage]) -> list[Stage]:
    return [stage for stage in STAGES if isinstance(stage, kind)]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_stage_keeps_the_contract(stage: Stage, engine: Engine) -> None:
    do(engine, "g2-3")
    work = Work(
        Query(k=10, now=datetime.now(UTC), user_id="ann", explain=True),
        engine.snapshot,
        engine.store.profiles.get("ann"),
    )
    for section in SECTIONS[: SECTIONS.index(stage.section)]:
        run_section(section, work)
    stage.run(work)
    one = work.candidates
    assert len(one.rows) == len(one.found_by) == len(one.retrieval) == len(one.score)
    assert len(np.unique(one.rows)) == len(one.rows)
    assert np.isfinite(one.score).all()
    assert work.allowed[one.rows].all()
    assert work.degraded == []


def test_every_stage_class_is_in_the_pipeline() -> None:
    def leaves(kind: type[Stage]) -> set[type[Stage]]:
        below = kind.__subclasses__()
        return {kind} if not below else set().union(*map(leaves, below))

    shipped = {kind for base in (Source, Filter, Scorer, Selector) for kind in leaves(base)}
    assert {type(stage) for stage in STAGES} == {kind for kind in shipped if kind.__module__.startswith("serving.")}
    assert len({stage.name for stage in STAGES}) == len(STAGES)


def test_user_attributes_reach_the_rules(engine: Engine) -> None:
    engine.store.profiles.upsert([User(user_id="ann", attributes={"child": True})])
    when = {"attribute": "user.child", "op": "eq", "value": True}
    items = {"attribute": "categories", "op": "contains", "value": "group-0"}
    rule(engine, "young", {"type": "exclude"}, when=when, items=items)
    assert "g0" not in groups(ask(engine, k=100))


def test_without_the_ranking_deployment_the_retrieval_order_stands(engine: Engine) -> None:
    do(engine, "g2-3")
    fused = ask(engine)

    async def near(section: str, payload: bytes) -> bytes:
        if section == "ranking":
            raise ConnectionError("gone")
        return engine.run_section(section, payload)  # type: ignore[arg-type]

    engine.ladder.sections = {
        section: (lambda payload, section=section: near(section, payload)) for section in SECTIONS
    }
    answer = ask(engine)
    assert answer.degraded == ("ranker",)
    assert ids(answer) == ids(fused)  # the world's ranker is untrained: it keeps the retrieval order
