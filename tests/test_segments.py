"""Segments: who is in one is told at request, by what is known of them, by what they did, and by what they are like."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from embeddings.errors import InputError
from embeddings.schema import Event, User
from serving.members import app
from serving.people.messages import Campaign, Composer
from serving.people.segmentation import clusters, members, segments_of
from serving.policy.compiled import KINDS, Policy
from serving.policy.kinds import References
from serving.policy.rules import FACTS
from serving.policy.segments import SEGMENTS, parse_segment
from serving.policy.syntax import parse
from serving.replica.engine import Engine
from tests.test_api import error
from tests.test_ladder import engine as topologies  # noqa: F401 - a fixture: fused and chained
from tests.test_pipeline import ask, do, groups, ids, rule

VIP = {"attribute": "user.vip", "op": "eq", "value": True}


def named(*names: str) -> dict[str, Any]:
    return {"attribute": "user.segment", "op": "in", "value": list(names)}


def segment(engine: Engine, name: str, **fields: Any) -> None:
    engine.store.documents.put("segment", name, {"id": name} | fields, by="test")
    engine.refresh()


def whose(engine: Engine, user_id: str) -> list[str]:
    profile = engine.store.profiles.get(user_id)
    assert profile is not None
    return segments_of(engine.snapshot, profile)


def test_a_segment_steers_rules_the_moment_somebody_is_in_it(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    segment(engine, "vips", when=VIP)
    segment(engine, "busy", when={"all": [named("vips"), {"did": "view", "days": 7, "at_least": 2}]})
    pinned = {"attribute": "item_id", "op": "eq", "value": "g3-9"}
    rule(engine, "r", {"type": "pin", "position": 0}, items=pinned, when=named("busy"))
    engine.store.profiles.upsert([User(user_id="eve", attributes={"vip": True})])
    do(engine, "g1-3", user="eve")
    assert ids(ask(engine, user_id="eve"))[0] != "g3-9"
    do(engine, "g1-4", user="eve")
    assert ids(ask(engine, user_id="eve"))[0] == "g3-9", "the second click counts at once"
    assert whose(engine, "eve") == ["busy", "vips"]
    engine.store.profiles.upsert([User(user_id="eve", attributes={"vip": False})])
    assert ids(ask(engine, user_id="eve"))[0] != "g3-9"
    assert whose(engine, "eve") == []


def test_people_of_likeness_are_where_the_model_sees_them(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    for group in (1, 2):
        segment(
            engine,
            f"g{group}",
            prototypes=[f"g{group}-{n}" for n in range(5)] + ["gone"],
            min_cosine=0.5,
            partition="taste",
        )
    segment(engine, "lost", prototypes=["gone"])
    pinned = {"attribute": "item_id", "op": "eq", "value": "g3-9"}
    rule(engine, "r", {"type": "pin", "position": 0}, items=pinned, when=named("g2"))
    do(engine, "g1-9", user="eve")
    assert (whose(engine, "eve"), ids(ask(engine, user_id="eve"))[0] == "g3-9") == (["g1"], False)
    do(engine, "g2-9", user="eve")
    assert (whose(engine, "eve"), ids(ask(engine, user_id="eve"))[0] == "g3-9") == (["g2"], True)
    assert ids(ask(engine, user_id="nobody"))[0] != "g3-9"


NOW = datetime.now(UTC)


DID: list[tuple[dict[str, Any], bool]] = [
    (
        {"did": "view", "items": {"attribute": "categories", "op": "contains", "value": "group-1"}, "at_least": 2},
        True,
    ),
    (
        {"did": "view", "items": {"attribute": "categories", "op": "contains", "value": "group-1"}, "at_least": 3},
        False,
    ),
    ({"did": "view", "days": 1, "at_least": 2}, False),
    ({"did": "view", "days": 3, "at_least": 2}, True),
    ({"did": "any", "items": {"attribute": "price", "op": "gt", "value": 20}}, False),
    ({"did": "any", "at_least": 5}, True),
    ({"not": {"did": "purchase"}}, False),
    ({"attribute": "history.cart", "op": "ge", "value": 1}, True),
    ({"attribute": "history.cart", "op": "ge", "value": 2}, False),
    ({"attribute": "history.visits", "op": "eq", "value": 4}, True),
    ({"attribute": "history.visits", "op": "ge", "value": 5}, False),
]


def test_conditions_ask_what_somebody_did(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    done = (("g1-1", "view", 2), ("g1-2", "view", 0.1), ("g2-2", "cart", 0.1), ("g2-3", "cart", 0.1))
    events = [
        Event(user_id="eve", item_id=item, event_type=kind, timestamp=NOW - timedelta(days=days))
        for item, kind, days in (*done, ("g2-3", "purchase", 0.05))
    ]
    engine.store.events.append(events)
    everything = {"attribute": "price", "op": "ge", "value": 0}
    for when, holds in DID:
        rule(engine, "r", {"type": "exclude"}, items=everything, when=when)
        assert engine.policy.problems == ()
        assert (ids(ask(engine, user_id="eve", now=NOW)) == []) is holds, when
        parsed = engine.policy.rules[0].when
        assert parsed is not None
        assert parse(parsed.to_json(), known=FACTS, behaviour=True) == parsed


def test_a_person_nobody_knows_at_the_moment_is_guarded_by_what_they_may_have_done(topologies: Engine) -> None:  # noqa: F811
    rule(
        topologies,
        "r",
        {"type": "exclude"},
        items={"attribute": "categories", "op": "contains", "value": "group-1"},
        when={"did": "purchase"},
    )
    assert topologies.policy.rules[0].guards_people
    rows = topologies.snapshot.rules("default", {}, NOW.timestamp(), stranger=True)
    assert rows.ids == ["r"]


@pytest.mark.parametrize(
    ("raw", "field", "says"),
    [
        ({}, "when", "needs a condition, or prototypes"),
        ({"when": named("s")}, "when", "refers to itself"),
        ({"when": named("loop")}, "when", "leads back"),
        ({"when": named("nobody")}, "when", "no segment 'nobody'"),
        ({"when": {"attribute": "context.country", "op": "eq", "value": "DE"}}, "when.attribute", "context.country"),
        (
            {"when": {"all": [VIP, {"not": {"attribute": "user.vip", "op": "exists", "value": True}}]}},
            "when",
            "nobody can",
        ),
        ({"when": VIP, "partition": "p"}, "partition", "prototypes"),
        ({"when": {"did": "view", "at_least": 0}}, "when.at_least", "whole number"),
        ({"when": {"did": "view", "days": 0}}, "when.days", "above 0"),
        ({"when": {"did": "view", "often": 2}}, "when.often", "does not belong"),
        ({"when": {"did": "view", "items": {"attribute": "x", "op": "eq", "value": 1}}}, "when.items.attribute", "'x'"),
        ({"when": {"did": "view", "items": {"did": "view"}}}, "when.items.did", "does not belong"),
        ({"prototypes": ["a"], "min_cosine": 2.0}, "min_cosine", "less than or equal to 1"),
        ({"when": VIP, "colour": "red"}, "colour", "unknown field"),
    ],
)
def test_a_segment_that_makes_no_sense_is_refused(raw: dict[str, Any], field: str, says: str) -> None:
    held = {"segment": [{"id": "s", "when": VIP}, {"id": "loop", "when": named("s")}]}
    policy = Policy.compile(held, version=1, item_attributes=["categories"])
    assert policy.problems == ()
    with pytest.raises(InputError, match=says) as caught:
        policy.admit(SEGMENTS, {"id": "s"} | raw, item_attributes=["categories"])
    assert caught.value.field == field


def test_a_segment_that_went_is_told_by_those_that_name_it() -> None:
    about = {"items": {"attribute": "price", "op": "gt", "value": 1}, "action": {"type": "boost", "factor": 2.0}}
    documents = {
        "segment": [{"id": "a", "when": named("gone")}],
        "rule": [{"id": "r", "when": named("a")} | about],
    }
    policy = Policy.compile(documents, version=1, item_attributes=None)
    assert [(one.kind, one.id) for one in policy.problems] == [("segment", "a"), ("rule", "r")]
    assert (policy.segments.ordered, policy.rules) == ((), ())
    assert [kind.name for kind in KINDS].index("segment") < [kind.name for kind in KINDS].index("rule")
    assert parse_segment({"id": "a", "when": VIP}, References()).named == frozenset()


def test_members_over_http_page_by_page(client: TestClient, engine: Engine) -> None:
    made = client.put("/v1/segments/vips", json={"when": VIP})
    assert (made.status_code, made.json()["problem"]) == (200, None)
    people = [{"user_id": f"u{n}", "attributes": {"vip": n % 2 == 0}} for n in range(6)]
    client.post(
        "/v1/users",
        json={
            "users": [*people, {"user_id": "u4", "attributes": {"vip": True}, "consent": {"personalization": False}}]
        },
    )
    first = client.get("/v1/segments/vips/members", params={"limit": 4}).json()
    assert (first["user_ids"], first["looked_at"], first["next"]) == (["u0", "u2"], 4, "u3")
    rest = client.get("/v1/segments/vips/members", params={"limit": 4, "after": first["next"]}).json()
    assert (rest["user_ids"], rest["next"]) == ([], None), "who is not profiled is in no segment"
    assert client.get("/v1/users/u2/segments").json() == {"user_id": "u2", "segments": ["vips"]}
    assert "In 1 segment: vips." in client.get("/v1/users/u2/profile").json()["summary"]
    error(client.get("/v1/segments/nobody/members"), 404)
    error(client.get("/v1/users/nobody/segments"), 404)
    dear = {"attribute": "price", "op": "gt", "value": 3}
    refused = client.put("/v1/rules/r", json={"when": named("nope"), "items": dear, "action": {"type": "exclude"}})
    assert "unknown segment 'nope'" in error(refused, 422)["message"]


def test_clusters_find_the_groups_there_are_and_name_them(client: TestClient, engine: Engine) -> None:
    for person in range(24):
        do(engine, *[f"g{person % 4}-{n}" for n in range(person % 3 + 1)], user=f"p{person:02}")
    engine.store.profiles.upsert([User(user_id="no", consent={"personalization": False})])
    do(engine, "g1-1", user="no")
    found = client.post("/v1/segments/clusters", json={"count": 4, "people": 100}).json()
    assert found["people"] == 24
    assert [one["people"] for one in found["clusters"]] == [6, 6, 6, 6]
    assert all(one["agreement"] == 1.0 for one in found["clusters"])
    for one in found["clusters"]:
        group = one["segment"]["prototypes"][0].split("-")[0]
        assert f"group-{group[1]}" in one["name"]
        assert {item.split("-")[0] for item in one["segment"]["prototypes"]} == {group}
        client.put(
            f"/v1/segments/{group}", json={key: value for key, value in one["segment"].items() if key != "id"}
        ).raise_for_status()
    assert members(engine.store, engine.snapshot, "g2", limit=100).user_ids == [f"p{n:02}" for n in range(2, 24, 4)]
    do(engine, "g3-3", user="p02")
    assert groups(ask(engine, user_id="p02")) == {"g3"}
    assert whose(engine, "p02") == ["g3"], "they moved with their last click"
    too_many = error(client.post("/v1/segments/clusters", json={"count": 30}), 422)
    assert "24 people have a history" in too_many["message"]
    with pytest.raises(InputError, match="unknown segment"):
        members(engine.store, engine.snapshot, "nobody", limit=1)
    assert clusters(engine.store, engine.snapshot, count=2, people=50)["people"] == 24


def test_a_segment_is_written_to_a_file(engine: Engine, tmp_path: Path) -> None:
    segment(engine, "vips", when=VIP)
    engine.store.profiles.upsert([User(user_id=f"u{n}", attributes={"vip": n == 1}) for n in range(3)])
    options = ["--releases", str(engine.settings.releases), "--store", str(engine.settings.store)]
    done = CliRunner().invoke(app, ["members", "vips", "--to", str(tmp_path / "out" / "vips.parquet"), *options])
    assert done.exit_code == 0, done.output
    assert "1 of 3 people are in 'vips'" in done.output.replace("\n", "")
    assert pq.read_table(tmp_path / "out" / "vips.parquet").to_pydict() == {"user_id": ["u1"]}
    wrong = CliRunner().invoke(app, ["members", "vip", "--to", str(tmp_path / "no.parquet"), *options])
    assert isinstance(wrong.exception, InputError)
    assert not (tmp_path / "no.parquet").exists()
    for to, says in (
        (tmp_path, "is a folder"),
        (tmp_path / "var" / "no" / "vips.parquet", "No such file or directory"),
    ):
        wrong = CliRunner().invoke(app, ["members", "vips", "--to", str(to), *options])
        assert isinstance(wrong.exception, InputError)
        assert says in str(wrong.exception)
    assert not (tmp_path / "var").exists()


def test_messages_go_to_a_segment_alone(engine: Engine) -> None:
    segment(engine, "vips", when=VIP)
    engine.store.profiles.upsert([User(user_id="eve", attributes={"vip": True}), User(user_id="bob")])
    mail = Composer(engine, Campaign(at=NOW, segment="vips"), uuid4())
    done = asyncio.run(mail.compose(["eve", "bob"]))
    assert [one["user_id"] for one in done.rows] == ["eve"]
    assert done.skipped == {"not in the segment": 1}
    with pytest.raises(InputError, match="unknown segment 'vip'; did you mean 'vips'"):
        Composer(engine, Campaign(at=NOW, segment="vip"), uuid4())
