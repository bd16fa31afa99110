"""The objective dial: what is worth more rises, as far as somebody is interested in it, and says why."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np

from embeddings.schema import Item
from serving.replica.engine import Engine
from serving.request.query import Query
from serving.request.work import Work
from serving.stages.dial import LEAST, Dial, novelty, typical_value, worth
from tests.conftest import NOW, PER_GROUP
from tests.test_pipeline import ask, do, groups, ids
from tests.test_placements import patient as patient
from tests.test_placements import placement


def work_of(engine: Engine, **fields: Any) -> Work:
    placement(engine, "dialled", **fields)
    return Work(Query(k=5, now=NOW, user_id="ann", placement="dialled"), engine.snapshot, None)


def test_worth_is_the_formula_item_by_item(engine: Engine) -> None:
    margins = {"g0-0": 2.0, "g0-1": 8.0, "g0-2": -3.0}
    engine.store.catalogue.upsert(
        [
            Item(item_id=name, title=name, attributes={"margin": margin, "brand": "x"}, price=10.0, created_at=NOW)
            for name, margin in margins.items()
        ]
    )
    work = work_of(
        engine,
        values={"margin": 0.5, "price": -0.25, "brand": 1.0, "rank": 0.0},
        novelty=2.0,
        freshness={"weight": 3.0, "half_life_days": 50.0},
    )
    catalogue = engine.snapshot.catalogue
    rows = catalogue.rows([*margins, "g1-0", "g3-24"])
    parts = worth(work, rows)
    assert set(parts) == {"value.margin", "value.price", "novelty", "freshness"}
    assert work.unserved == {"values.brand": "no item has a number above 0 in 'brand'"}
    np.testing.assert_allclose(parts["value.margin"], [0.5 * 2 / 5, 0.5 * 8 / 5, 0.5 * -3 / 5, 0, 0])
    typical_price = float(np.median([place + 1 for place in range(PER_GROUP)]))
    np.testing.assert_allclose(parts["value.price"], [-0.25 * price / typical_price for price in (10, 10, 10, 1, 25)])
    np.testing.assert_allclose(parts["novelty"], 2.0 * (1 - np.log1p([100, 96, 92, 99, 1]) / np.log1p(100)), atol=1e-9)
    ages = [0, 0, 0, 100, 124]
    np.testing.assert_allclose(parts["freshness"], [3.0 * 0.5 ** (age / 50) for age in ages])


def test_what_is_not_known_counts_for_nothing(engine: Engine) -> None:
    engine.store.catalogue.upsert([Item(item_id="bare", title="bare")])
    work = work_of(engine, values={"price": 5.0}, freshness={"weight": 5.0})
    parts = worth(work, engine.snapshot.catalogue.rows(["bare"]))
    assert [float(part[0]) for part in parts.values()] == [0.0, 0.0]
    assert typical_value(engine.snapshot.catalogue, "margin") is None
    assert novelty(engine.snapshot.catalogue, engine.snapshot.catalogue.rows(["bare"])).tolist() == [1.0]


def test_value_decides_among_what_interests_and_not_beyond(patient: Engine) -> None:
    do(patient, "g2-3", user="eve")
    placement(patient, "dear", values={"price": 1000.0})
    placement(patient, "cheap", values={"price": -1000.0})
    plain, dear, cheap = (ask(patient, user_id="eve", placement=name) for name in ("plain", "dear", "cheap"))
    assert groups(dear) == groups(plain) == {"g2"}, "what nobody wants is not lifted by its price"
    assert ids(dear)[:3] == ["g2-24", "g2-23", "g2-22"]
    assert ids(dear) != ids(plain)
    lifted = [one for one in dear.items if one.item_id not in ids(plain)]
    assert lifted
    assert {one.reasons[0].code for one in lifted} == {"value"}
    assert {one.reasons[0].text for one in lifted} == {"Favoured by the shop"}
    assert all(one.reasons[0].code != "value" for one in dear.items if one not in lifted)
    assert len(cheap.items) == 10
    assert all(np.isfinite([one.score for one in cheap.items]))


def test_novelty_lifts_the_unknown_and_a_negative_one_the_known(patient: Engine) -> None:
    do(patient, "g2-3", user="eve")
    placement(patient, "novel", novelty=1000.0)
    placement(patient, "known", novelty=-0.9)
    novel, known = (ids(ask(patient, user_id="eve", placement=name, k=5)) for name in ("novel", "known"))
    popularity = {
        name: patient.snapshot.catalogue.popularity[patient.snapshot.catalogue.row(name), 0] for name in novel + known
    }
    assert np.mean([popularity[name] for name in novel]) < np.mean([popularity[name] for name in known])
    assert novel[0] == "g2-24"


def test_freshness_fades(engine: Engine) -> None:
    do(engine, "g2-3", user="eve")
    fresh = Item(item_id="fresh", title="Fresh", categories=["group-2"], created_at=NOW)
    engine.store.catalogue.upsert([fresh])
    engine.refresh()
    placement(engine, "fresh", freshness={"weight": 500.0, "half_life_days": 2.0})
    answer = ask(engine, user_id="eve", placement="fresh", k=5, now=NOW)
    assert ids(answer)[0] == "fresh"
    assert answer.items[0].reasons[0].text == "Recently added"
    later = ask(engine, user_id="eve", placement="fresh", k=5, now=NOW + timedelta(days=60))
    assert ids(later) == ids(ask(engine, user_id="eve", placement="plain", k=5, now=NOW + timedelta(days=60)))


def test_a_negative_score_rises_by_worth_too(engine: Engine) -> None:
    work = work_of(engine, values={"price": 9.0})
    work.join(engine.snapshot.catalogue.rows(["g0-0", "g0-24"]), "two_tower")
    for score, order in ((-1.0, ["g0-24", "g0-0"]), (1.0, ["g0-24", "g0-0"])):
        work.candidates = work.candidates.scored(np.full(2, score))
        Dial().run(work)
        assert [engine.snapshot.catalogue.id(row) for row in work.candidates.rows.tolist()] == order
        assert np.sign(work.candidates.score).tolist() == [score] * 2
    placement(engine, "unwanted", values={"price": -9.0})
    work = Work(Query(k=5, now=NOW, placement="unwanted"), engine.snapshot, None)
    work.join(engine.snapshot.catalogue.rows(["g0-24", "g0-23"]), "two_tower")
    work.candidates = work.candidates.scored(np.array([1.0, 2.0]))
    Dial().run(work)
    np.testing.assert_allclose(work.candidates.score, [2 * LEAST, LEAST])


def test_the_dial_stands_aside_where_it_is_not_set(engine: Engine) -> None:
    do(engine, "g2-3")
    trace = ask(engine, explain=True).trace
    assert trace is not None
    assert "dial" not in [stage["name"] for stage in trace["stages"]]
    placement(engine, "set", novelty=0.1)
    trace = ask(engine, explain=True, placement="set").trace
    assert trace is not None
    assert "dial" in [stage["name"] for stage in trace["stages"]]


def test_an_event_type_that_the_release_does_not_predict_is_named(patient: Engine) -> None:
    placement(patient, "returns", objectives={"purchase": 1.0, "return": -1.0})
    answer = ask(patient, user_id="eve", placement="returns")
    assert answer.unserved == {"objectives.return": "this release does not predict 'return'; it does: view, purchase"}
