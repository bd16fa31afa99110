"""Results of experiments: counted by the database as a slow reference counts, compared arm by arm, and guarded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embeddings.schema import Event, User
from serving.analysis.guardrails import ITSELF, broken, enforce
from serving.analysis.people import People, lifetime_value, measured
from serving.analysis.results import balance, compared, results
from serving.api import create_api
from serving.policy.experiments import METRICS, Experiment
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.store import Decision, Outcome, Store
from serving.store.outcomes import BEFORE_DAYS
from serving.store.tables import micros
from tests.test_api import error
from tests.test_experiments import body, experiment
from tests.test_store import fresh_url

START = datetime(2026, 3, 1, tzinfo=UTC)
END = START + timedelta(days=60)
DAY = timedelta(days=1)
ARMS = ("as_is", "dear")


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


def shown(n: int, user: str | None, arm: str, at: datetime, **fields: Any) -> Decision:
    return Decision(
        **{
            "recommendation_id": f"r{n}",
            "user_id": user,
            "at": at,
            "kind": "list",
            "placement": "home",
            "channel": None,
            "request": {},
            "items": ["a"],
            "scores": [1.0],
            "propensities": [1.0],
            "sources": [["two_tower"]],
            "arms": {"another": "as_is", "dial": arm},
            "model_version": "m",
            "policy_version": 7,
            "degraded": [],
        }
        | fields
    )


def events_of(rng: np.random.Generator, user: str, count: int) -> list[Event]:
    days = rng.uniform(-60, 60, count)
    return [
        Event(
            user_id=user,
            item_id="a",
            event_type=str(rng.choice(["view", "click", "purchase"])),
            timestamp=START + timedelta(days=float(day)),
            value=float(rng.integers(1, 50)) if rng.random() < 0.9 else None,
        )
        for day in days
    ]


def reference(decisions: list[Decision], events: list[Event], alias: dict[str, str]) -> list[Outcome]:
    """The same in plain loops."""
    mine: dict[str, list[Decision]] = {}
    for one in decisions:
        if one.user_id is not None and one.policy_version >= 5 and one.at < END and one.arms.get("dial") in ARMS:
            mine.setdefault(alias.get(one.user_id, one.user_id), []).append(one)
    found = []
    for person, answers in sorted(mine.items()):
        places = [ARMS.index(one.arms["dial"]) for one in answers]
        first = min(one.at for one in answers)
        acts = [one for one in events if alias.get(one.user_id, one.user_id) == person and one.timestamp < END]
        after = [one for one in acts if one.timestamp >= first]
        before = [one for one in acts if first - BEFORE_DAYS * DAY <= one.timestamp < first]

        def of(some: list[Event], kind: str) -> list[Event]:
            return [one for one in some if one.event_type == kind]

        def back(low: int, high: int, first: datetime = first, acts: list[Event] = acts) -> int:
            return int(any(first + low * DAY <= one.timestamp < first + high * DAY for one in acts))

        found.append(
            Outcome(
                person=person,
                arm=min(places),
                last_arm=max(places),
                first=micros(first),
                answers=len(answers),
                clicks=len(of(after, "click")),
                orders=len(of(after, "purchase")),
                revenue=sum(one.value or 0.0 for one in of(after, "purchase")),
                active_7=back(1, 8),
                active_28=back(22, 29),
                clicks_before=len(of(before, "click")),
                orders_before=len(of(before, "purchase")),
                revenue_before=sum(one.value or 0.0 for one in of(before, "purchase")),
                active_before=back(-7, 0),
                events_before=len(before),
            )
        )
    return found


def test_the_database_counts_as_a_loop_does(store: Store) -> None:
    rng = np.random.default_rng(5)
    users = [f"u{n:02}" for n in range(30)]
    decisions = [
        shown(n, str(rng.choice(users)), ARMS[int(rng.integers(2))], START + timedelta(days=float(rng.uniform(0, 40))))
        for n in range(60)
    ]
    decisions += [
        shown(100, "u01", "dear", START - DAY, policy_version=4),
        shown(101, None, "dear", START),
        shown(102, "u02", "dear", END),
        shown(103, "u03", "DEAR", START - DAY),
        shown(104, "u04", "x", START - DAY, arms={"dial": "x", '"dial":"dear"': "x"}),
        shown(105, "u05", "x", START - DAY, arms={"other": "dear"}),
    ]
    events = [event for user in [*users, "cookie"] for event in events_of(rng, user, 8)]
    store.decisions.write(decisions)
    store.events.append(events)
    store.aliases.link("cookie", "u07")
    store.aliases.link("u08", "u09")
    said = {"u10": {"analytics": False}, "u11": {"analytics": True, "marketing": False}}
    store.profiles.upsert([User(user_id=name, consent=consent) for name, consent in said.items()])
    found = store.outcomes.of("dial", ARMS, since_version=5, until=micros(END), click="click", purchase="purchase")
    expected = reference(decisions, events, {"cookie": "u07", "u08": "u09"})
    assert {"u10", "u11"} <= {one.person for one in expected}
    assert found == [one for one in expected if one.person != "u10"]
    assert any(one.arm != one.last_arm for one in found)
    assert sum(one.active_28 for one in found) > 0


def crowd(n: int = 4000, *, effect: float = 1.0, seed: int = 0) -> People:
    """People in two arms; those of the second buy `effect` times as often."""
    rng = np.random.default_rng(seed)
    arm = rng.integers(0, 2, n)
    rate = rng.gamma(1.0, 1.0, n)
    before, orders = rng.poisson(rate), rng.poisson(rate * np.where(arm == 1, effect, 1.0))
    price = rng.gamma(4.0, 5.0, n)
    ones = np.ones(n)
    return People(
        arm=arm,
        days=30.0 * ones,
        clicks=rng.poisson(3 * rate).astype(float),
        orders=orders.astype(float),
        revenue=orders * price,
        active_7=(rng.random(n) < 0.4).astype(float),
        active_28=ones,
        clicks_before=rng.poisson(3 * rate).astype(float),
        orders_before=before.astype(float),
        revenue_before=before * price,
        active_before=(before > 0).astype(float),
    )


def test_an_effect_is_found_where_it_is_and_nowhere_else() -> None:
    people = crowd(effect=1.5)
    found = {metric: compared(people, metric, 2, alpha=0.05, planned=4000)[1] for metric in METRICS}
    assert {name for name, one in found.items() if one.verdict == "better"} == {
        "conversion",
        "orders",
        "revenue",
        "lifetime_value",
    }
    assert not any(one.verdict == "worse" for one in found.values())
    orders = found["orders"]
    assert orders.difference is not None
    assert orders.lift is not None
    assert orders.difference.low < 0.5 < orders.difference.high
    assert orders.lift.low < 0.5 < orders.lift.high
    assert orders.explained > 0.2
    plain = people.orders[people.arm == 1].mean() - people.orders[people.arm == 0].mean()
    assert orders.difference.estimate == pytest.approx(plain, abs=0.1)
    few = compared(crowd(150), "orders", 2, alpha=0.05, planned=4000)[1]
    assert (few.difference, few.lift, few.verdict) == (None, None, None)
    assert few.mean is not None


def test_a_week_counts_for_those_for_whom_it_is_over() -> None:
    people = crowd(1000)
    early = replace(people, days=np.where(np.arange(1000) < 300, 5.0, 12.0))
    assert compared(early, "retention_7", 2, alpha=0.05, planned=1000)[0].people == int((early.arm[300:] == 0).sum())
    nobody = compared(early, "retention_28", 2, alpha=0.05, planned=1000)
    assert [(one.people, one.mean) for one in nobody] == [(0, None), (0, None)]


def test_nobody_who_bought_means_no_average_order() -> None:
    people = replace(crowd(1000), orders=np.zeros(1000), revenue=np.zeros(1000))
    assert [one.mean for one in compared(people, "average_order", 2, alpha=0.05, planned=1000)] == [None, None]
    assert lifetime_value(people).sum() == 0
    assert measured(people.take(people.arm > 5), "revenue").values.size == 0


def test_a_lifetime_is_worth_what_the_next_year_brings() -> None:
    rng = np.random.default_rng(1)
    n = 40_000
    rate = rng.gamma(2.0, 0.01, n)  # purchases a day, 20 each
    orders = rng.poisson(rate * 30).astype(float)
    blank = np.zeros(n)
    people = replace(
        crowd(n), orders=orders, revenue=20.0 * orders, days=np.full(n, 30.0), clicks=blank, clicks_before=blank
    )
    year = 20.0 * (orders + rng.poisson(rate * 365))
    assert lifetime_value(people).mean() == pytest.approx(year.mean(), rel=0.02)
    assert np.corrcoef(lifetime_value(people), year)[0, 1] > 0.5


def test_guardrails_stop_an_arm_that_surely_does_harm() -> None:
    harm = experiment(guardrails=[{"metric": "orders", "margin": 0.1}, {"metric": "revenue", "margin": 0.1}])
    found = list(broken(harm, crowd(effect=0.5)))
    assert [arm for arm, _ in found] == ["dear"]
    assert "orders is" in found[0][1]
    assert "10.0% is allowed" in found[0][1]
    assert list(broken(harm, crowd(effect=1.0))) == []
    assert list(broken(experiment(guardrails=[{"metric": "orders", "margin": 0.6}]), crowd(effect=0.5))) == []


def test_arms_without_the_people_they_should_have_raise_an_alarm() -> None:
    even = balance(experiment(), [2000, 2010])
    assert (even["alarm"], even["expected"]) == (False, {"as_is": 0.5, "dear": 0.5})
    assert balance(experiment(), [2000, 2400])["alarm"]
    assert not balance(experiment().without("dear", "it lost"), [2000, 100])["alarm"]


def logged(store: Store, one: Experiment, people: int = 400, *, effect: float) -> None:
    """An experiment in the log: who is in the second arm buys more, or less."""
    rng = np.random.default_rng(4)
    version = store.documents.put("experiment", one.id, one.model_dump(mode="json"), by="test").version
    decisions, events = [], []
    for n in range(people):
        arm = int(rng.integers(2))
        at = START + timedelta(days=float(rng.uniform(0, 20)))
        decisions.append(shown(n, f"p{n}", ARMS[arm], at, policy_version=version))
        for _ in range(rng.poisson(6.0 * (effect if arm else 1.0))):
            when = at + timedelta(days=float(rng.uniform(0, 25)))
            events.append(
                Event(user_id=f"p{n}", item_id="a", event_type="purchase", timestamp=when, value=float(rng.gamma(4, 5)))
            )
    store.profiles.upsert(
        [User(user_id=f"p{n}", attributes={"country": "DE" if n % 3 else "FR"}) for n in range(people)]
    )
    store.decisions.write(decisions)
    for at_ in range(0, len(events), 500):
        store.events.append(events[at_ : at_ + 500])


def test_an_arm_is_stopped_and_the_audit_says_by_what_and_why(store: Store) -> None:
    one = experiment(guardrails=[{"metric": "revenue", "margin": 0.05}])
    logged(store, one, effect=0.5)
    assert enforce(store, [one], now=END) == [("dial", "dear")]
    entry = store.documents.audit("experiment", "dial")[0]
    assert (entry.by, entry.action) == (ITSELF, "update")
    assert entry.why is not None
    assert "dear: revenue is" in entry.why
    document = store.documents.get("experiment", "dial")
    assert document is not None
    assert "below 'as_is'" in document.body["arms"][1]["stopped"]
    assert enforce(store, [one.without("dear", "it lost")], now=END) == [], "what is stopped is not stopped again"


def test_another_experiment_of_the_same_name_begins_anew(store: Store) -> None:
    one = experiment()
    logged(store, one, effect=1.0)
    assert results(store, one, now=END)["people"] == 400
    store.documents.delete("experiment", "dial", by="test")
    store.documents.put("experiment", "dial", one.model_dump(mode="json"), by="test")
    assert results(store, one, now=END)["people"] == 0


@pytest.fixture
def service(releases: Path, tmp_path: Path) -> Iterator[tuple[TestClient, Engine]]:
    settings = Settings(
        releases=releases, store=f"sqlite:///{tmp_path / 'store.db'}", deadline_ms=10_000, guardrails_s=0.2
    )
    engine = Engine(settings)
    engine.start()
    with TestClient(create_api(engine), raise_server_exceptions=False) as client:
        yield client, engine
    engine.stop()


def test_results_over_http_and_a_guardrail_that_acts_by_itself(service: tuple[TestClient, Engine]) -> None:
    from tests.test_releases import until

    client, engine = service
    logged(engine.store, experiment(), effect=0.5)
    engine.take_changes()
    found = client.get("/v1/experiments/dial/results", params={"segment": "country"})
    assert found.status_code == 200, found.text
    told = found.json()
    assert (told["people"], told["mixed"], told["sample_ratio"]["alarm"]) == (400, 0, False)
    revenue = {arm["id"]: arm["metrics"]["revenue"] for arm in told["arms"]}
    assert revenue["dear"]["verdict"] == "worse"
    assert revenue["dear"]["difference"]["high"] < 0
    assert revenue["as_is"]["difference"] is None
    assert {one["value"]: one["people"] for one in told["segments"]} == {"DE": 266, "FR": 134}
    activity = client.get("/v1/experiments/dial/results", params={"segment": "activity"}).json()["segments"]
    assert [one["value"] for one in activity] == ["new"]
    assert error(client.get("/v1/experiments/none/results"), 404)["field"] == "id"
    lost = body("lost", layer="x", state="stopped", arms=[{"id": "a"}, {"id": "b", "rules_on": ["gone"]}])
    engine.store.documents.put("experiment", "lost", lost, by="test")
    engine.take_changes()
    assert client.get("/v1/experiments/lost").json()["problem"] is None, "what it was about may be gone"
    assert client.get("/v1/experiments/lost/results").json()["people"] == 0
    rails = body(guardrails=[{"metric": "revenue", "margin": 0.05}])
    assert client.put("/v1/experiments/dial", json=rails).status_code == 200
    until(lambda: client.get("/v1/experiments/dial").json()["arms"][1]["stopped"])
    entry = client.get("/v1/audit", params={"kind": "experiment"}).json()["entries"][0]
    assert entry["by"] == ITSELF
