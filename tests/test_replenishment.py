"""Replenishment: a world with known intervals is learned, foreseen with honest odds, and silent after a purchase."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from scipy.optimize import minimize
from scipy.stats import norm

from embeddings.bundle_reader import open_bundle
from embeddings.bundle_writer import Parts, Provenance, write_bundle
from embeddings.errors import BundleError
from embeddings.manifest import PARTS
from embeddings.releases import point_to
from embeddings.replenishment import DAY_S, ENOUGH, PACES, Outlook, Pace, Paces, outlook
from embeddings.schema import EVENTS, TIME, Item, to_table
from serving.api import create_api
from serving.pipeline.pipeline import NEEDS, SECTIONS
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.conftest import write_world
from tests.test_api import error
from tests.test_ladder import call
from training.dataset import Dataset, load
from training.replenishment import Fit, Spells, fit, learn_paces

START = 1.7e9
CUT, END = 400.0, 700.0
ITEMS, PEOPLE, EACH = 60, 500, 6
BETWEEN, WITHIN = 0.3, 0.25
CATEGORY_DAYS = (10, 20, 30, 45, 60, 90)


class World(NamedTuple):
    """Known intervals: `mean` log days and probabilities [ITEMS], and every purchase (person, item) -> days."""

    mean: Any
    first: Any
    again: Any
    bought: dict[tuple[int, int], list[float]]

    @staticmethod
    def category(item: int) -> str:
        return f"c{item % len(CATEGORY_DAYS)}"

    def data(self, until: float) -> Dataset:
        rows = [(u, i, t) for (u, i), times in self.bought.items() for t in times if t < until]
        return dataset(rows, [Item(item_id=f"i{i}", categories=[self.category(i)]) for i in range(ITEMS)])


def dataset(rows: list[tuple[int, int, float]], items: list[Item]) -> Dataset:
    columns = {name: pa.nulls(len(rows), EVENTS.field(name).type) for name in EVENTS.names}
    columns |= {
        "user_id": pa.array([f"u{u}" for u, _, _ in rows]),
        "item_id": pa.array([f"i{i}" for _, i, _ in rows]),
        "event_type": pa.array(["purchase"] * len(rows)),
        "timestamp": pa.array([round((START + t * DAY_S) * 1e6) for _, _, t in rows], TIME),
    }
    return load(pa.table(columns, schema=EVENTS), to_table(items, Item))


@pytest.fixture(scope="module")
def world() -> World:
    """People differ, items differ, categories differ; the last category is bought once, nearly always."""
    rng = np.random.default_rng(5)
    category = np.arange(ITEMS) % len(CATEGORY_DAYS)
    mean = np.log(np.array(CATEGORY_DAYS, dtype=float))[category] + rng.normal(0, 0.25, ITEMS)
    once = category == len(CATEGORY_DAYS) - 1
    first = np.where(once, 0.05, rng.uniform(0.4, 0.9, ITEMS))
    again = np.where(once, 0.05, 0.85)
    bought = {}
    for person in range(PEOPLE):
        for item in rng.choice(ITEMS, EACH, replace=False).tolist():
            own, when, times = mean[item] + rng.normal(0, BETWEEN), rng.uniform(0, CUT), []
            while when < END:
                times.append(float(when))
                if rng.random() >= (again if len(times) > 1 else first)[item]:
                    break
                when += math.exp(rng.normal(own, WITHIN))
            bought[person, item] = times
    return World(mean, first, again, bought)


@pytest.fixture(scope="module")
def paces(world: World) -> Paces:
    table = learn_paces(world.data(CUT))
    assert table is not None
    return Paces(table)


def test_the_known_intervals_are_learned(world: World, paces: Paces) -> None:
    found = [paces.of(f"i{i}", []) for i in range(ITEMS)]
    assert {level for _, level in found} == {"item"}
    usual = world.again > 0.5
    mean = np.array([pace.mean for pace, _ in found])
    assert np.abs(mean - world.mean)[usual].mean() < 0.12
    assert abs((mean - world.mean)[usual].mean()) < 0.06
    for name, truth in (("first", world.first), ("again", world.again)):
        learned = np.array([getattr(pace, name) for pace, _ in found])
        assert abs((learned - truth)[usual].mean()) < 0.05, name
        assert learned[~usual & (truth < 0.1)].mean() < 0.5
    everything, level = paces.of("never seen", ["nor this"])
    assert level == "everything"
    assert everything.within / math.hypot(everything.within, everything.between) == pytest.approx(
        WITHIN / math.hypot(WITHIN, BETWEEN), abs=0.08
    )
    pace, level = paces.of("never seen", ["c1"])
    assert level == "category"
    assert pace.mean == pytest.approx(math.log(20), abs=0.3)


class Foreseen(NamedTuple):
    outlook: Outlook
    at: float
    next: float | None


@pytest.fixture(scope="module")
def foreseen(world: World, paces: Paces) -> list[Foreseen]:
    """For every person and item the outlook at the cut, and at each of the purchases before it, with what came of it."""
    found = []
    for (_, item), days in world.bought.items():
        times = [START + day * DAY_S for day in days]
        pace, level = paces.of(f"i{item}", [world.category(item)])
        for n, when in enumerate(times):
            if CUT - 150 < days[n] < CUT:
                found.append(Foreseen(outlook(pace, level, times[: n + 1]), when, next(iter(times[n + 1 :]), None)))
        before = [when for when in times if when < START + CUT * DAY_S]
        after = next((when for when in times if when >= START + CUT * DAY_S), None)
        if before:
            found.append(Foreseen(outlook(pace, level, before), START + CUT * DAY_S, after))
    return found


def test_four_of_five_next_purchases_lie_within_the_bounds(foreseen: list[Foreseen]) -> None:
    at_purchase = [one for one in foreseen if one.at == one.outlook.last and one.next is not None]
    assert len(at_purchase) > 2000
    for basis in ("item", "person"):
        mine = [one for one in at_purchase if one.outlook.basis == basis]
        inside = [one.outlook.earliest <= one.next <= one.outlook.latest for one in mine if one.next]
        assert len(inside) > 400
        assert 0.75 < np.mean(inside) < 0.85, basis
    late = [one.next > one.outlook.due_at for one in at_purchase if one.next]
    assert 0.45 < np.mean(late) < 0.55


@pytest.mark.parametrize("days", [7, 30, 250])
def test_the_odds_are_honest(foreseen: list[Foreseen], days: int) -> None:
    chance = np.array([one.outlook.chance(one.at, days * DAY_S) for one in foreseen])
    came = np.array([one.next is not None and one.next < one.at + days * DAY_S for one in foreseen])
    assert chance.mean() == pytest.approx(came.mean(), abs=0.02)
    bins = np.minimum(chance * 10, 9).astype(int)
    apart = [abs(came[bins == n].sum() - chance[bins == n].sum()) for n in range(10)]
    assert sum(apart) / len(chance) < 0.03, "expected calibration error over ten bins"
    sure = np.array([one.outlook.confidence(one.at) for one in foreseen])
    if days == 250:  # hardly anybody comes back later than that
        assert sure.mean() == pytest.approx(came.mean(), abs=0.03)


def test_what_is_due_is_bought_more_often(foreseen: list[Foreseen]) -> None:
    at_cut = [one for one in foreseen if one.at > one.outlook.last]
    soon = [(one.outlook.due(one.at), one.next is not None and one.next < one.at + 14 * DAY_S) for one in at_cut]
    due, rest = ([came for is_due, came in soon if is_due == wanted] for wanted in (True, False))
    assert len(due) > 100
    assert np.mean(due) > 5 * np.mean(rest)


def test_the_fit_is_the_likeliest() -> None:
    """Expectation and maximisation end where a general optimiser of the likelihood ends, up to the weight of the prior."""
    rng = np.random.default_rng(0)
    log, until = rng.normal(3.0, 0.4, 20_000), np.log(rng.uniform(5, 60, 20_000))
    back = rng.random(20_000) < 0.6
    closed = back & (log < until)
    nobody = np.zeros(20_000, dtype=np.int64)
    spells = Spells(
        owner=nobody, row=nobody, log=np.where(closed, log, until), open=~closed, repeat=np.zeros(20_000, dtype=bool)
    )
    one = np.ones(1)
    prior = Fit(mean=2 * one, deviation=one, first=0.3 * one, again=0.5 * one, intervals=one.astype(np.int64))
    found = fit(spells, nobody, prior, pull=1.0)

    def unlikely(at: Any) -> float:
        mean, deviation, share = at[0], math.exp(at[1]), 1 / (1 + math.exp(-at[2]))
        seen = np.log(share) + norm.logpdf(spells.log[closed], mean, deviation)
        open_ = np.log(1 - share + share * norm.sf(spells.log[~closed], mean, deviation))
        return -float(seen.sum() + open_.sum())

    best = minimize(unlikely, [2.0, 0.0, 0.0], method="Nelder-Mead", options={"maxiter": 2000, "xatol": 1e-5}).x
    assert found.mean[0] == pytest.approx(best[0], abs=0.01)
    assert found.deviation[0] == pytest.approx(math.exp(best[1]), abs=0.01)
    assert found.first[0] == pytest.approx(1 / (1 + math.exp(-best[2])), abs=0.01)


PACE = Pace(mean=math.log(30), within=0.2, between=0.3, first=0.6, again=0.8, intervals=50)


def test_a_person_is_drawn_away_from_everybody_by_what_they_do() -> None:
    nobody = outlook(PACE, "item", [0.0])
    assert (nobody.purchases, nobody.basis, nobody.probability) == (1, "item", 0.6)
    assert (nobody.due_at / DAY_S, nobody.deviation) == (pytest.approx(30), pytest.approx(math.hypot(0.2, 0.3)))
    fast = outlook(PACE, "item", [DAY_S * day for day in (0, 15, 30, 45)])
    trust = 3 * 0.09 / (3 * 0.09 + 0.04)
    mean = (1 - trust) * math.log(30) + trust * math.log(15)
    assert (fast.basis, fast.probability) == ("person", 0.8)
    assert fast.due_at / DAY_S == pytest.approx(45 + math.exp(mean))
    assert fast.deviation == pytest.approx(math.sqrt(0.04 + 0.09 * (1 - trust)))
    assert fast.latest - fast.earliest < nobody.latest - nobody.earliest


def test_a_purchase_silences_and_waiting_gives_up() -> None:
    before = outlook(PACE, "item", [0.0])
    states = [before.state(day * DAY_S) for day in (1, 18, 20, 30, 45, 60)]
    assert states == ["early", "early", "due", "due", "due", "late"]
    assert not before.due(10 * DAY_S)
    assert before.due(30 * DAY_S)
    after = outlook(PACE, "item", [0.0, 30 * DAY_S])
    assert not after.due(30 * DAY_S)
    assert after.state(31 * DAY_S) == "early"
    sure = [before.confidence(day * DAY_S) for day in range(0, 200, 5)]
    assert sure[0] == pytest.approx(0.6)
    assert all(later <= earlier for earlier, later in itertools.pairwise(sure))
    assert not before.due(90 * DAY_S)
    seldom = Pace(mean=math.log(30), within=0.2, between=0.3, first=0.4, again=0.8, intervals=50)
    assert not any(outlook(seldom, "item", [0.0]).due(day * DAY_S) for day in range(300))


def test_two_purchases_within_a_day_are_one() -> None:
    twice = outlook(PACE, "item", [0.0, 3600.0, 40 * DAY_S, 40 * DAY_S + 60])
    assert (twice.purchases, twice.last) == (2, 40 * DAY_S)
    data = dataset([(0, 0, 0.0), (0, 0, 0.1), (0, 0, 40.0), (1, 0, 50.0)], [Item(item_id="i0")])
    spells = Spells.of(data)
    assert np.exp(spells.log) == pytest.approx([40, 10])
    assert (spells.open.tolist(), spells.repeat.tolist()) == ([False, True], [False, True])


def test_nothing_is_learned_where_nothing_is_bought_twice() -> None:
    assert learn_paces(dataset([(0, 0, 0.0), (1, 0, 3.0)], [Item(item_id="i0")])) is None


def test_a_few_purchases_are_enough_to_learn_from() -> None:
    table = learn_paces(dataset([(0, 0, 0.0), (0, 0, 30.0), (1, 1, 20.0)], [Item(item_id="i0")]))
    assert table is not None
    assert Paces(table).of("i0", [])[0].mean == pytest.approx(math.log(30), abs=0.2)
    assert len(Paces(table)) == 1


def paces_table(**levels: Any) -> pa.Table:
    """A table in which coffee lasts ten days, and everything else is bought once."""
    rows = [
        ("everything", "", 4.0, 0.5, 0.5, 0.02, 0.1, 500),
        ("category", "group-1", math.log(10), 0.1, 0.1, 0.9, 0.95, ENOUGH),
        ("item", "g2-3", math.log(30), 0.1, 0.2, 0.8, 0.9, 40),
    ]
    columns = dict(zip(PACES.names, map(list, zip(*rows, strict=True)), strict=True))
    return pa.table(columns | levels, schema=PACES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": [4.0, math.nan, 1.0]},
        {"mean": [4.0, 400.0, 1.0]},
        {"within": [0.5, 0.0, 0.1]},
        {"again": [0.1, 1.5, 0.1]},
        {"level": ["everything", "shelf", "item"]},
        {"level": ["item", "item", "item"]},
    ],
)
def test_a_table_of_anything_else_is_refused(wrong: dict[str, list[Any]]) -> None:
    with pytest.raises(BundleError):
        Paces(paces_table(**wrong))
    with pytest.raises(BundleError, match="have the columns"):
        Paces(paces_table().drop_columns("first"))


def publish(releases: Path) -> None:
    """The known-answer world once more, with paces."""
    bundle = open_bundle(write_world(releases, "without"))
    assert bundle.paces is None
    write_bundle(
        releases,
        "with",
        Parts(
            spec=bundle.spec,
            towers=bundle.towers,
            ranker=bundle.ranker,
            items=bundle.items.table,
            popularity=bundle.popularity,
            matrix=bundle.matrix,
            index=bundle.index,
            paces=paces_table(),
        ),
        Provenance(data_fingerprint="world"),
    )
    point_to(releases, "with")


@pytest.fixture(params=["fused", "chained"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    publish(tmp_path / "releases")
    settings = Settings(releases=tmp_path / "releases", store=f"sqlite:///{tmp_path / 'store.db'}", deadline_ms=10_000)
    chained = request.param == "chained"
    one = Engine(settings, parts=frozenset() if chained else PARTS)
    far = {section: Engine(settings, parts=NEEDS[section]) for section in SECTIONS if chained}
    if chained:
        one.ladder.sections = {section: call(there, section) for section, there in far.items()}
    for each in (one, *far.values()):
        each.start()
    yield one
    for each in (one, *far.values()):
        each.stop()


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    with TestClient(create_api(engine), raise_server_exceptions=False) as one:
        yield one


def buy(client: TestClient, item_id: str, *, days_ago: float, user_id: str = "ann", **fields: Any) -> None:
    when = datetime.now(UTC) - timedelta(days=days_ago)
    event = {"user_id": user_id, "item_id": item_id, "event_type": "purchase", "timestamp": when.isoformat()}
    assert client.post("/v1/events", json=event | fields).status_code == 202


def replenishment(client: TestClient, user_id: str = "ann", **query: Any) -> dict[str, Any]:
    reply = client.get(f"/v1/users/{user_id}/replenishment", params=query)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def test_a_release_keeps_its_paces(engine: Engine) -> None:
    paces = engine.snapshot.bundle.paces
    assert paces is not None
    assert paces.table.equals(paces_table())
    assert "replenishment.parquet" in engine.snapshot.bundle.manifest.files


def test_the_endpoint_tells_what_is_due_when(client: TestClient) -> None:
    buy(client, "g2-3", days_ago=28)
    buy(client, "g1-4", days_ago=4)
    buy(client, "g0-1", days_ago=80)
    buy(client, "no such item", days_ago=80)
    client.post("/v1/events", json={"user_id": "ann", "item_id": "g3-3", "event_type": "view"})
    body = replenishment(client)
    items = {one["item_id"]: one for one in body["items"]}
    assert list(items) == ["g0-1", "g2-3", "g1-4"]
    assert [items[name]["basis"] for name in ("g2-3", "g1-4", "g0-1")] == ["item", "category", "everything"]
    assert [items[name]["due"] for name in ("g2-3", "g1-4", "g0-1")] == [True, False, False]
    assert [items[name]["state"] for name in ("g2-3", "g1-4", "g0-1")] == ["due", "early", "seldom"]
    one = items["g2-3"]
    assert one["title"] == "Group 2 item 3"
    last, due_at = (datetime.fromisoformat(one[name]) for name in ("last_purchase", "due_at"))
    assert (due_at - last).days in (29, 30)
    assert one["earliest"] < one["due_at"] < one["latest"]
    assert 0 < one["chance"] < one["confidence"] < 0.8
    assert [one["item_id"] for one in replenishment(client, only_due=True)["items"]] == ["g2-3"]
    assert replenishment(client, days=30)["items"][0]["chance"] > replenishment(client, days=1)["items"][0]["chance"]
    assert len(replenishment(client, limit=1)["items"]) == 1
    buy(client, "g2-3", days_ago=0)
    assert replenishment(client, only_due=True)["items"] == []
    assert {one["item_id"]: one["state"] for one in replenishment(client)["items"]}["g2-3"] == "early"
    assert error(client.get("/v1/users/nobody/replenishment"), 404)["field"] == "user_id"
    assert error(client.get("/v1/users/ann/replenishment", params={"days": 0}), 422)["field"] == "days"


def test_nothing_is_foreseen_of_who_does_not_want_it(client: TestClient, engine: Engine) -> None:
    buy(client, "g2-3", days_ago=28)
    engine.store.aliases.link("phone", "ann")
    assert replenishment(client, "phone")["user_id"] == "ann"
    client.put("/v1/users/ann", json={"consent": {"personalization": False}})
    assert replenishment(client)["items"] == []


def recommend(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    reply = client.post("/v1/recommendations", json={"user_id": "ann", "k": 10} | fields)
    assert reply.status_code == 200, reply.text
    items: list[dict[str, Any]] = reply.json()["items"]
    return items


def test_what_is_due_is_a_source_and_silent_after_the_purchase(client: TestClient) -> None:
    shelf = {"sources": ["replenishment", "two_tower"], "seen": ["purchase"]}
    assert client.put("/v1/placements/again", json=shelf).status_code == 200
    for days_ago in (90, 60, 30):
        buy(client, "g2-3", days_ago=days_ago)
    buy(client, "g2-4", days_ago=3)
    listed = {one["item_id"]: one for one in recommend(client, placement="again", k=100)}
    reasons = listed["g2-3"]["reasons"]
    assert reasons[0] == {
        "code": "due",
        "text": "You bought this 30 days ago, and it lasts about 30 days",
        "item_id": "g2-3",
        "rule_id": None,
    }
    assert "g2-4" not in listed, "bought, and not due"
    assert "g2-3" not in [one["item_id"] for one in recommend(client, k=100)], "elsewhere it counts as had"
    assert "g2-3" not in [one["item_id"] for one in recommend(client, placement="again", k=100, personalized=False)]
    buy(client, "g2-3", days_ago=0)
    assert "g2-3" not in [one["item_id"] for one in recommend(client, placement="again", k=100)]


def test_what_cannot_be_had_is_not_due(client: TestClient) -> None:
    buy(client, "g2-3", days_ago=30)
    client.put("/v1/items/g2-3", json={"title": "Coffee", "available": False})
    assert replenishment(client, only_due=True)["items"] == []
    assert replenishment(client)["items"][0]["due"] is False
