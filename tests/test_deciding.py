"""Decisions: the best variant for this person now, or none and why; logged, learned from, the same in both topologies."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embeddings.errors import InputError, NotFound
from embeddings.schema import Event, User
from serving.decisions.contexts import DIM, PEOPLE, axes_of, context_of
from serving.decisions.deciding import Decided, DecisionQuery
from serving.decisions.learning import SETTLED_S, Learned
from serving.pages.page import PageQuery
from serving.policy.contents import CONTENTS
from serving.replica.engine import Engine
from serving.request.query import Query
from serving.request.work import Work
from serving.store import Contacts, Store
from tests.conftest import GROUPS
from tests.test_api import client as client
from tests.test_contents import is_
from tests.test_ladder import engine as topologies  # noqa: F401 - a fixture: fused and chained
from tests.test_ladder import hang as hang
from tests.test_pipeline import do

NOW = datetime.now(UTC)
VARIANTS = [{"id": name, "payload": {"text": name.upper()}} for name in ("a", "b")]


def content(engine: Engine, name: str = "hero", **fields: Any) -> None:
    body = {"id": name, "variants": VARIANTS, **fields}
    engine.policy.admit(CONTENTS, body, item_attributes=None)
    engine.store.documents.put("content", name, body, by="test")
    engine.take_changes()


def decide(engine: Engine, *names: str, user: str = "ann", **fields: Any) -> list[Decided]:
    query = DecisionQuery(contents=names or ("hero",), user_id=user, **{"now": NOW} | fields)
    return asyncio.run(engine.decide(query))[0]


def one(engine: Engine, **fields: Any) -> Decided:
    (found,) = decide(engine, **fields)
    return found


def test_a_decision_has_a_variant_a_propensity_and_a_reason_in_both_topologies(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    engine.ladder.deadline_s = 10.0
    content(engine)
    content(engine, "offer", variants=[VARIANTS[0], VARIANTS[1] | {"when": is_("user.vip", "eq", True)}])
    do(engine, "g2-3")
    hero, offer = decide(engine, "hero", "offer", context={"channel": "app"})
    assert hero.variant in ("a", "b")
    assert hero.payload == {"text": (hero.variant or "").upper()}
    assert hero.propensity == pytest.approx(0.5, abs=0.1)
    assert (offer.variant, offer.propensity, offer.reason) == ("a", 1.0, "only")
    assert hero.recommendation_id != offer.recommendation_id
    assert engine.effects.flush()
    row = engine.store.decisions.get(hero.recommendation_id)
    assert row is not None
    assert (row.kind, row.placement, row.items, row.user_id, row.channel) == (
        "content",
        "hero",
        [hero.variant],
        "ann",
        "app",
    )
    assert row.propensities == [hero.propensity]
    assert len(row.request["features"]) == DIM
    with pytest.raises(NotFound, match="did you mean 'hero'") as caught:
        decide(engine, "herp")
    assert caught.value.field == "contents.0"


def test_chance_is_the_same_for_an_hour_on_every_device(engine: Engine) -> None:
    content(engine)
    people = [f"u{n}" for n in range(60)]
    now = NOW.replace(minute=10)
    found = [one(engine, user=name, now=now).variant for name in people]
    again = [one(engine, user=name, now=now + timedelta(minutes=30)).variant for name in people]
    later = [one(engine, user=name, now=now + timedelta(hours=1)).variant for name in people]
    assert found == again != later
    assert min(Counter(found).values()) > 15


def test_who_may_not_see_it_is_told_why(engine: Engine) -> None:
    content(engine, "off", enabled=False)
    content(engine, "late", starts_at="2999-01-01T00:00:00Z")
    content(engine, "vip", when=is_("user.vip", "eq", True))
    content(engine, "app", variants=[one | {"when": is_("context.device", "eq", "app")} for one in VARIANTS])
    found = decide(engine, "off", "late", "vip", "app")
    assert [one.reason for one in found] == ["not_in_force", "not_in_force", "not_eligible", "not_eligible"]
    assert all((one.variant, one.payload, one.propensity) == (None, None, None) for one in found)
    engine.store.profiles.upsert([User(user_id="ann", attributes={"vip": True})])
    assert [one.variant is None for one in decide(engine, "vip", "app", context={"device": "app"})] == [False, False]
    engine.store.profiles.upsert([User(user_id="ann", attributes={"vip": True}, consent={"personalization": False})])
    assert decide(engine, "vip")[0].reason == "not_eligible"


def test_segments_and_behaviour_decide_who_sees_it(engine: Engine) -> None:
    with pytest.raises(InputError) as caught:
        content(engine, "club", when=is_("user.segment", "eq", "vip"))
    assert caught.value.field == "when"
    segment = {"id": "vip", "when": is_("user.vip", "eq", True)}
    engine.store.documents.put("segment", "vip", segment, by="test")
    engine.take_changes()
    content(engine, "club", when=is_("user.segment", "eq", "vip"))
    content(engine, "again", when={"did": "view", "days": 7, "at_least": 2})
    assert [one.reason for one in decide(engine, "club", "again")] == ["not_eligible"] * 2
    engine.store.profiles.upsert([User(user_id="ann", attributes={"vip": True})])
    do(engine, "g1-1", "g1-2")
    query = {"now": datetime.now(UTC)}
    assert all(one.variant for one in decide(engine, "club", "again", **query))
    engine.store.profiles.upsert([User(user_id="ann", attributes={"vip": True}, consent={"personalization": False})])
    assert [one.reason for one in decide(engine, "club", "again", **query)] == ["not_eligible"] * 2


def test_without_consent_a_choice_knows_nothing_of_the_person(engine: Engine) -> None:
    content(engine)
    do(engine, "g2-3")
    known = one(engine).features
    engine.store.profiles.upsert([User(user_id="ann", consent={"personalization": False})])
    unknown = one(engine).features
    assert known is not None
    assert unknown is not None
    assert np.any(known[1 : 1 + PEOPLE])
    assert not np.any(unknown[1 : 1 + PEOPLE])
    assert not np.any(one(engine, user="nobody").features[1 : 1 + PEOPLE])  # type: ignore[index]


def test_the_held_out_are_always_the_same_and_logged(engine: Engine) -> None:
    content(engine, holdout=0.3)
    people = [f"u{n}" for n in range(200)]
    held = {name for name in people if one(engine, user=name).reason == "holdout"}
    assert 35 < len(held) < 85
    assert held == {name for name in people if one(engine, user=name, now=NOW + timedelta(days=1)).reason == "holdout"}
    assert engine.effects.flush()
    rows = engine.store.decisions.between(NOW - timedelta(1), NOW + timedelta(2), 1000, kind="content").decisions
    assert {row.user_id for row in rows if not row.items} == held


def test_caps_count_over_channels_contents_of_a_group_and_all_that_was_answered(engine: Engine) -> None:
    content(engine, caps=[{"limit": 2, "days": 1}], group="top")
    content(engine, "other", caps=[{"limit": 3, "days": 1}], group="top")
    assert one(engine, context={"channel": "app"}).variant
    assert one(engine, context={"channel": "email"}).variant
    assert one(engine, context={"channel": "web"}).reason == "capped"
    assert decide(engine, "other")[0].variant
    assert decide(engine, "other")[0].reason == "capped"
    assert one(engine, user="bob").variant
    assert one(engine, now=NOW + timedelta(days=1, seconds=1)).variant


def test_two_replicas_together_do_not_exceed_a_cap(engine: Engine, tmp_path: Path) -> None:
    content(engine, caps=[{"limit": 3, "days": 1}])
    other = Engine(engine.settings)
    other.start()

    async def both() -> list[Decided]:
        query = DecisionQuery(contents=["hero"], user_id="ann", now=NOW)
        answers = await asyncio.gather(*(replica.decide(query) for replica in [engine, other] * 5))
        return [decided[0] for decided, _ in answers]

    try:
        found = asyncio.run(both())
    finally:
        other.stop()
    assert Counter(one.reason == "capped" for one in found) == {False: 3, True: 7}


def test_what_cannot_be_counted_in_time_is_not_shown(engine: Engine, hang: Any) -> None:
    content(engine, caps=[{"limit": 3, "days": 1}])
    content(engine, "free")
    engine.ladder.deadline_s = 0.5
    stuck = hang(Contacts, "open")
    began = time.monotonic()
    capped, free = decide(engine, "hero", "free")
    assert time.monotonic() - began < 3
    assert stuck.calls
    assert (capped.reason, free.variant is None) == ("unavailable", False)


def learned(engine: Engine) -> Learned:
    """Take in what is in the log, as the follower does in a few seconds."""
    assert engine.effects.flush()
    one, now = engine.contents.learned, time.time()
    for step in range(3):
        one.learn(engine.policy.contents, engine.snapshot.bundle.name, now=now + step * 10 * SETTLED_S)
    one.refresh()
    return one


def teach(engine: Engine, people: int = 60, rounds: int = 3) -> None:
    """Those who look at groups 0 and 1 click variant a, the others variant b."""
    for turn in range(rounds):
        events = []
        for n in range(people):
            found = one(engine, user=f"u{n}", now=NOW + timedelta(hours=turn))
            if (found.variant == "a") == (n % GROUPS < 2):
                at = NOW + timedelta(hours=turn, minutes=1)
                fields = {"event_type": "click", "recommendation_id": found.recommendation_id}
                events.append(Event(user_id=f"u{n}", item_id="content:hero", timestamp=at, **fields))
        engine.store.events.append(events)
        learned(engine)


def test_people_get_what_people_like_them_respond_to_after_a_restart_too(engine: Engine) -> None:
    content(engine)
    for n in range(80):
        do(engine, f"g{n % GROUPS}-3", user=f"u{n}")
    teach(engine)
    strangers = {f"u{n}": "a" if n % GROUPS < 2 else "b" for n in range(60, 80)}
    later = NOW + timedelta(hours=5)
    found = decide(engine, user="u60", now=later, explain=True)[0]
    assert found.chances["a"] > 0.9
    assert found.means["a"] > found.means["b"]
    right = sum(one(engine, user=name, now=later).variant == best for name, best in strangers.items())
    assert right >= 17
    again = Engine(engine.settings)
    again.start()
    try:
        for name in list(strangers)[:5]:
            same, before = one(again, user=name, now=later), one(engine, user=name, now=later)
            assert (same.variant, same.propensity) == (before.variant, before.propensity)
    finally:
        again.stop()


def test_what_was_learned_counts_once_whoever_reads_on(engine: Engine) -> None:
    content(engine)
    for n in range(40):
        do(engine, f"g{n % GROUPS}-3", user=f"u{n}")
    teach(engine, people=40, rounds=1)
    other = Learned(Store.open(engine.settings.store))
    for step in range(3):
        assert not other.learn(engine.policy.contents, "world-1", now=time.time() + 1000 + 10 * step)
    other.refresh()
    theirs, ours = (
        learned.bandit(engine.policy.contents["hero"], "world-1") for learned in (other, engine.contents.learned)
    )
    assert ours.shown.sum() == 40
    assert np.array_equal(ours.outer, theirs.outer)
    assert np.array_equal(ours.inner, theirs.inner)


def test_a_month_halves_what_is_old_however_long_nothing_was_shown(engine: Engine) -> None:
    content(engine)
    one(engine)
    before = learned(engine).bandit(engine.policy.contents["hero"], "world-1").shown.sum()
    one(engine, user="bob")
    assert engine.effects.flush()
    later = time.time() + 30 * 86_400
    for step in range(2):
        engine.contents.learned.learn(engine.policy.contents, "world-1", now=later + 10 * step)
    engine.contents.learned.refresh()
    after = engine.contents.learned.bandit(engine.policy.contents["hero"], "world-1").shown.sum()
    assert (before, after) == (1.0, pytest.approx(1.5, abs=0.01))


def test_a_clock_that_is_set_back_stops_no_learning(engine: Engine) -> None:
    content(engine)
    one(engine)
    learn = partial(engine.contents.learned.learn, engine.policy.contents, "world-1")
    assert engine.effects.flush()
    assert [learn(now=time.time() + 5000 + 10 * step) for step in range(2)] == [False, True]
    one(engine, user="bob")
    assert engine.effects.flush()
    assert [learn(now=time.time() + 10 * step) for step in range(2)] == [False, True]


def test_another_release_keeps_what_does_not_depend_on_how_it_sees_people(engine: Engine) -> None:
    content(engine)
    for n in range(40):
        do(engine, f"g{n % GROUPS}-3", user=f"u{n}")
    teach(engine, people=40, rounds=1)
    hero = engine.policy.contents["hero"]
    old = engine.contents.learned.bandit(hero, "world-1")
    new = engine.contents.learned.bandit(hero, "world-2")
    assert np.array_equal(new.shown, old.shown)
    assert np.array_equal(new.rewards, old.rewards)
    assert np.any(old.outer[:, 0, 1 : 1 + PEOPLE])
    assert not np.any(new.outer[:, :, 1 : 1 + PEOPLE])


def test_contexts_tell_people_apart_and_fit_their_size(engine: Engine) -> None:
    axes = axes_of(engine.snapshot.bundle)
    assert axes.shape == (engine.snapshot.bundle.manifest.towers.dim, PEOPLE)
    found = {}
    for group in range(GROUPS):
        do(engine, f"g{group}-3", user=f"u{group}")
        profile = engine.store.profiles.get(f"u{group}")
        query = Query(now=NOW, user_id=f"u{group}", context={"device": "app", "count": 3.0})
        found[group] = context_of(Work(query, engine.snapshot, profile), axes)
    people = np.stack([one[1 : 1 + PEOPLE] for one in found.values()])
    apart = np.linalg.norm(people[:, None] - people[None], axis=2)[~np.eye(GROUPS, dtype=bool)]
    assert apart.min() > 0.3
    assert all(one[0] == 1.0 and np.linalg.norm(one[1:]) < 4 for one in found.values())
    assert len({tuple(one[1 + PEOPLE :]) for one in found.values()}) == 1


def test_a_page_shows_contents_within_their_caps_and_logs_each(engine: Engine) -> None:
    content(engine, caps=[{"limit": 1, "days": 1}])
    body = {
        "id": "home",
        "slots": [
            {"id": "top", "type": "content", "content": "hero"},
            {"id": "shelf", "type": "shelf", "placement": "trending"},
        ],
    }
    engine.store.documents.put("layout", "home", body, by="test")
    engine.take_changes()
    query = PageQuery(page="home", now=NOW, user_id="ann")
    page, again = (asyncio.run(engine.page(query)) for _ in range(2))
    assert [slot.id for slot in page.slots] == ["top", "shelf"]
    assert [slot.id for slot in again.slots] == ["shelf"]
    shown = page.slots[0].content
    assert shown is not None
    assert (shown["content"], shown["payload"]) == ("hero", {"text": shown["variant"].upper()})
    assert engine.effects.flush()
    row = engine.store.decisions.get(shown["recommendation_id"])
    assert row is not None
    assert (row.items, row.request["page"]) == ([shown["variant"]], page.recommendation_id)


def test_decisions_over_http(client: TestClient) -> None:
    body = {"variants": VARIANTS, "description": "Top of the start page."}
    assert client.put("/v1/contents/hero", json=body).status_code == 200
    answer = client.post("/v1/decisions", json={"user_id": "ann", "contents": ["hero"], "explain": True})
    assert answer.status_code == 200
    (found,) = answer.json()["decisions"]
    assert set(answer.json()) == {"decisions", "model_version", "policy_version", "experiment", "degraded"}
    assert found["payload"] == {"text": found["variant"].upper()}
    assert sum(found["chances"].values()) == pytest.approx(1.0)
    event = {
        "user_id": "ann",
        "item_id": "content:hero",
        "event_type": "click",
        "recommendation_id": found["recommendation_id"],
    }
    assert client.post("/v1/events", json=event).status_code == 202
    for wrong, field in (
        ({"contents": []}, "contents"),
        ({"contents": ["x"]}, "contents.0"),
        ({"content": "x"}, "contents"),
    ):
        refused = client.post("/v1/decisions", json={"user_id": "ann", **wrong})
        assert refused.status_code in (404, 422)
        assert refused.json()["error"]["field"] == field
