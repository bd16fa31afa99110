"""Aliases: several ids that are one person on every channel, and that part again without a loss."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.event import listen

from embeddings.errors import Conflict
from embeddings.schema import Attributes, Event, Purpose, User
from serving.replica.engine import Engine
from serving.store import HISTORY_LIMIT, Store
from serving.store.aliases import MOST
from tests.test_api import error
from tests.test_decisions import decision
from tests.test_ladder import engine as topologies  # noqa: F401 - a fixture: fused and chained
from tests.test_pipeline import ask, do, groups, ids, rule
from tests.test_store import fresh_url

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


def did(store: Store, user: str, *items: str, minute: float = 0) -> None:
    at = START + timedelta(minutes=minute)
    store.events.append([Event(user_id=user, item_id=item, timestamp=at) for item in items])


def test_all_ids_of_a_person_are_one(store: Store) -> None:
    did(store, "ann", "a", minute=1)
    did(store, "cookie", "b", minute=2)
    did(store, "phone", "c", minute=0)
    store.profiles.upsert([User(user_id="ann", attributes={"city": "Bern"})])
    store.profiles.upsert([User(user_id="cookie", attributes={"city": "?", "device": "tv"}), User(user_id="bob")])
    before = store.profiles.some(["ann", "cookie", "phone"])
    for alias in ("cookie", "phone"):
        assert store.aliases.link(alias, "ann")
    whole = store.profiles.get("ann")
    assert whole is not None
    assert [event.item_id for event in whole.history] == ["c", "a", "b"]
    assert (whole.user_id, whole.events, whole.last_seen) == ("ann", 3, (START + timedelta(minutes=2)).timestamp())
    assert whole.attributes == {"city": "Bern", "device": "tv"}
    assert store.profiles.some(["phone", "cookie", "bob", "nobody"]) == {
        "phone": whole,
        "cookie": whole,
        "bob": store.profiles.get("bob"),
    }
    listed = {one.user_id: one.events for one in store.profiles.list().users}
    assert listed == {"ann": 3, "bob": 0}, "an alias is nobody of its own"
    for alias in ("cookie", "phone"):
        assert store.aliases.unlink(alias)
    assert store.profiles.some(["ann", "cookie", "phone"]) == before, "nothing is lost when they part"


def listed(store: Store, limit: int) -> list[tuple[str, int]]:
    """Everybody with the number of their events, read page by page."""
    found, after = [], None
    while True:
        page = store.profiles.list(limit, after)
        found += [(one.user_id, one.events) for one in page.users]
        after = page.next
        if after is None:
            return found


def test_people_are_listed_by_what_they_did_under_any_id(store: Store) -> None:
    for minute, user in enumerate(["ann", "bob", "cid", "phone", "tablet"]):
        did(store, user, "a", minute=minute)
    did(store, "cookie", "b", minute=2)  # as late as cid
    store.profiles.upsert([User(user_id="dan"), User(user_id="eve"), User(user_id="aaa")])
    assert listed(store, 100)[:4] == [("tablet", 1), ("phone", 1), ("cid", 1), ("cookie", 1)]
    for alias, person in (("phone", "ann"), ("cookie", "ann"), ("tablet", "bob"), ("aaa", "eve"), ("new", "bob")):
        store.aliases.link(alias, person)
    everybody = [("bob", 2), ("ann", 3), ("cid", 1), ("dan", 0), ("eve", 0)]
    for limit in (1, 2, 3, 100):
        assert listed(store, limit) == everybody
    did(store, "cookie", "b", minute=9)
    assert [name for name, _ in listed(store, 2)] == ["ann", "bob", "cid", "dan", "eve"]
    store.aliases.unlink("cookie")
    assert [name for name, _ in listed(store, 2)] == ["cookie", "bob", "ann", "cid", "dan", "eve"]


def test_a_list_of_people_follows_the_index_and_sorts_nobody(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path / 's.db'}") as store:
        asked: list[Any] = []
        listen(store.database._engine, "before_cursor_execute", lambda *args: asked.append(args[2:4]))
        store.profiles.list(10)
        wanted, values = next(one for one in asked if "ORDER BY" in one[0])
        with store.database._engine.connect() as connection:
            plan = [str(row[3]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {wanted}", values)]
    assert plan[0].endswith("INDEX profiles_by_activity"), plan
    assert all(step.startswith("SEARCH") or "SUBQUERY" in step for step in plan[1:]), plan


def test_a_refusal_by_any_id_counts_and_what_is_said_later_is_said_for_all(store: Store) -> None:
    store.profiles.upsert([User(user_id="ann", consent={"analytics": True}), User(user_id="cookie")])
    store.profiles.upsert([User(user_id="cookie", consent={"analytics": False, "marketing": False})])
    store.aliases.link("cookie", "ann")
    store.aliases.link("tablet", "ann")
    whole = store.profiles.get("tablet")
    assert whole is not None
    assert whole.consent == {"analytics": False, "marketing": False}
    store.profiles.upsert([User(user_id="tablet", consent={"analytics": True, "personalization": False})])
    for name in ("ann", "cookie", "tablet"):
        found = store.profiles.get(name)
        assert found is not None
        assert found.consent == {"analytics": True, "marketing": False, "personalization": False}
    store.aliases.unlink("tablet")
    alone = store.profiles.get("tablet")
    assert alone is not None
    assert alone.consent == {"analytics": True, "personalization": False}, "it keeps what was said while they were one"


def test_what_was_shown_and_counted_under_any_id_is_found(store: Store) -> None:
    store.decisions.write(
        [decision(recommendation_id=name, user_id=name, channel="email") for name in ("ann", "cookie", "bob")]
    )
    did(store, "cookie", "a")
    did(store, "ann", "a")
    store.aliases.link("cookie", "ann")
    for asked in ("ann", "cookie"):
        shown = {one.recommendation_id for one in store.decisions.of_user(asked).decisions}
        assert shown == {"ann", "cookie"}
        assert len(store.feedback.of_user(asked, item_id="a")) == 2
    at = decision().at
    span = (at - timedelta(days=1), at + timedelta(days=1))
    assert store.batches.contacts(["ann", "bob"], "email", *span) == {"ann": 2, "bob": 1}


def test_a_history_of_many_ids_stays_as_short_as_any(store: Store) -> None:
    for at, user in enumerate(("ann", "cookie")):
        did(store, user, *(f"{user}{n}" for n in range(HISTORY_LIMIT - 10)), minute=at)
    store.aliases.link("cookie", "ann")
    whole = store.profiles.get("ann")
    assert whole is not None
    assert len(whole.history) == HISTORY_LIMIT
    assert whole.history[-1].item_id.startswith("cookie")
    assert whole.events == 2 * (HISTORY_LIMIT - 10)


def test_a_person_has_a_bounded_number_of_aliases(store: Store) -> None:
    for n in range(MOST):
        store.aliases.link(f"a{n}", "ann")
    with pytest.raises(Conflict, match=f"has {MOST} aliases already"):
        store.aliases.link("one more", "ann")
    assert store.aliases.unlink("a0")
    assert store.aliases.link("one more", "ann")


def test_a_click_on_one_device_moves_the_list_on_every_other(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    do(engine, "g2-3", user="ann")
    do(engine, "g1-3", user="cookie")
    engine.store.aliases.link("cookie", "ann")
    assert groups(ask(engine, user_id="ann")) == {"g1"}
    assert ids(ask(engine, user_id="ann")) == ids(ask(engine, user_id="cookie")), "the same answer on every device"
    do(engine, "g3-3", user="cookie")
    assert groups(ask(engine, user_id="ann")) == {"g3"}
    engine.store.aliases.unlink("cookie")
    assert groups(ask(engine, user_id="ann")) == {"g2"}


def test_aliases_over_http(client: TestClient) -> None:
    client.post("/v1/events", json={"user_id": "cookie", "item_id": "g1-3"})
    made = client.put("/v1/users/ann/aliases/cookie").json()
    assert (made["user_id"], [one["alias"] for one in made["aliases"]]) == ("ann", ["cookie"])
    assert client.put("/v1/users/ann/aliases/cookie").json() == made, "joined is joined"
    assert client.get("/v1/users/cookie/aliases").json() == made
    assert client.get("/v1/users/cookie").json()["user_id"] == "ann"
    assert client.get("/v1/users/ann/profile").json()["history"][0]["item_id"] == "g1-3"
    for path, says in (
        ("/v1/users/cookie/aliases/ann", "an alias of 'ann'; link to that"),
        ("/v1/users/bob/aliases/cookie", "unlink it first"),
        ("/v1/users/bob/aliases/ann", "has aliases itself"),
    ):
        assert says in error(client.put(path), 409)["message"]
    assert "alias of itself" in error(client.put("/v1/users/ann/aliases/ann"), 422)["message"]
    error(client.delete("/v1/users/bob/aliases/cookie"), 404)
    assert client.delete("/v1/users/ann/aliases/cookie").status_code == 204
    assert client.get("/v1/users/cookie/profile").json()["history"][0]["item_id"] == "g1-3"


def test_answers_go_with_the_id_that_asked(client: TestClient, engine: Engine) -> None:
    client.put("/v1/users/ann/aliases/phone")
    for user in ("phone", "phone", "ann"):
        client.post("/v1/recommendations", json={"user_id": user})
    assert engine.effects.flush()
    assert client.get("/v1/users/ann/profile").json()["answers"] == 3
    client.delete("/v1/users/ann/aliases/phone")
    assert [engine.store.decisions.tally([name])[0] for name in ("ann", "phone")] == [1, 2]
    erased = client.post("/v1/users/phone/erase", json={}).json()
    assert erased["receipt"]["removed"]["decisions"] == 2


def test_who_allows_no_personalization_gets_everybodys_list(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    do(engine, "g2-3", user="no")
    do(engine, *[f"g3-{n}" for n in range(3)], user="no", event_type="purchase")
    consent: dict[Purpose, bool] = {"personalization": False}
    engine.store.profiles.upsert([User(user_id="no", attributes={"age": 9, "vip": True}, consent=consent)])
    everybodys = ask(engine, user_id="somebody new", personalized=False)
    answer = ask(engine, user_id="no")
    assert ids(answer) == ids(everybodys), "nothing of what they did or are is used"
    assert len(answer.items) == 10
    assert "does not allow personalization" in answer.unserved["personalization"]
    assert "personalization" not in everybodys.unserved
    assert answer.degraded == ()
    child = {"attribute": "user.age", "op": "lt", "value": 18}
    vip = {"attribute": "user.vip", "op": "eq", "value": True}
    protected, favoured = (
        {"attribute": "categories", "op": "contains", "value": "group-0"},
        {"attribute": "item_id", "op": "eq", "value": "g2-24"},
    )
    rule(engine, "kept", {"type": "exclude"}, when=child, items=protected)
    rule(engine, "vip", {"type": "pin", "position": 0}, when=vip, items=favoured)
    ruled = ask(engine, user_id="no")
    assert "g0" not in groups(ruled), "who is kept from something is kept from it without consent too"
    assert ids(ruled)[0] != "g2-24", "a rule for them alone is personalization"
    attributes: Attributes = {"age": 9.0, "vip": True}
    engine.store.profiles.upsert([User(user_id="no", attributes=attributes, consent={"personalization": True})])
    allowed = ask(engine, user_id="no")
    assert ids(allowed)[0] == "g2-24"
    assert "personalization" not in allowed.unserved
