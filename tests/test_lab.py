"""The lab of rules: tried on what was asked, agreed to, released to a share of the people, taken back in one call."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embeddings.errors import InputError
from serving.api import create_api
from serving.policy.conflicts import conflicts
from serving.policy.rules import Rule, parse_rule
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.test_api import error
from tests.test_ladder import engine as topologies  # noqa: F401 - a fixture: fused and chained
from tests.test_pipeline import ask, do, ids, rule

PINNED = {"attribute": "item_id", "op": "eq", "value": "g3-9"}
PIN = {"items": PINNED, "action": {"type": "pin", "position": 0}}
NEVER = {"attribute": "context.country", "op": "eq", "value": "XX"}


def first(client: TestClient, user_id: str) -> str:
    return str(client.post("/v1/recommendations", json={"user_id": user_id, "k": 3}).json()["items"][0]["item_id"])


def test_a_draft_is_tried_on_what_was_asked(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    do(engine, "g1-3", user="eve")
    rule(engine, "idle", {"type": "bury", "factor": 0.5}, items=PINNED, when=NEVER)
    rule(engine, "also", {"type": "exclude"}, items=PINNED, when={"attribute": "user.age", "op": "lt", "value": 3})
    gone = {"attribute": "item_id", "op": "eq", "value": "gone"}
    rule(engine, "nowhere", {"type": "boost", "factor": 2.0}, items=gone)
    before = [ids(ask(engine, user_id=one)) for one in ("eve", "new")]
    assert engine.effects.flush()
    draft = parse_rule({"id": "r", "enabled": False, "share": 0.1} | PIN, item_attributes=None)
    found = asyncio.run(engine.aside.simulate("r", draft, requests=10, seconds=60))
    assert (found["logged"], found["replayed"], found["changed"]) == (2, 2, 2)
    assert [one["item_id"] for one in found["rising"]] == ["g3-9"]
    assert {one["rule"]: (one["current"], one["draft"]) for one in found["fired"]} == {
        "also": (0, 0),
        "idle": (0, 0),
        "nowhere": (0, 0),
        "r": (0, 2),
    }
    assert found["never"] == ["also", "idle", "nowhere"]
    assert [(one["other"], "takes away every item" in one["text"]) for one in found["conflicts"]] == [("also", True)]
    assert [ids(ask(engine, user_id=one)) for one in ("eve", "new")] == before, "nothing of it is in force"
    engine.store.documents.put("rule", "r", {"id": "r"} | PIN, by="test")
    engine.refresh()
    gone = asyncio.run(engine.aside.simulate("r", None, requests=10, seconds=60))
    assert (gone["changed"], [one["item_id"] for one in gone["falling"]]) == (2, ["g3-9"])


CHEAP = {"attribute": "price", "op": "lt", "value": 5}


def made(name: str, action: dict[str, Any], **fields: Any) -> Rule:
    items = (
        {}
        if action["type"] == "cap"
        else {"items": fields.pop("items", {"attribute": "price", "op": "lt", "value": 5})}
    )
    return parse_rule({"id": name, "action": action} | items | fields, item_attributes=None)


GERMAN = {"attribute": "context.country", "op": "eq", "value": "DE"}
FRENCH = {"attribute": "context.country", "op": "eq", "value": "FR"}
DEAR = {"attribute": "price", "op": "gt", "value": 20}


PAIRS: list[tuple[Rule, Rule, str | None]] = [
    (made("a", {"type": "pin", "position": 0}), made("b", {"type": "pin", "position": 0}), "'a' wins"),
    (made("a", {"type": "pin", "position": 0}), made("b", {"type": "pin", "position": 1}), None),
    (made("a", {"type": "boost", "factor": 2.0}), made("b", {"type": "bury", "factor": 0.5}), "the same 16 items"),
    (made("a", {"type": "boost", "factor": 2.0}), made("b", {"type": "bury", "factor": 0.5}, items=DEAR), None),
    (made("a", {"type": "pin", "position": 0}), made("b", {"type": "exclude"}), "every item that 'a' pins"),
    (
        made("a", {"type": "include"}),
        made("b", {"type": "boost", "factor": 2.0}, items=DEAR),
        "every item that 'b' boosts",
    ),
    (made("a", {"type": "include"}), made("b", {"type": "include"}, items=DEAR), "no item passes both"),
    (made("a", {"type": "exclude"}), made("b", {"type": "include"}), "nothing is left to show"),
    (made("a", {"type": "exclude"}), made("b", {"type": "exclude"}), None),
    (made("a", {"type": "exclude"}), made("b", {"type": "cap", "attribute": "brand", "limit": 1}), None),
    (made("a", {"type": "exclude"}, when=GERMAN), made("b", {"type": "include"}, when=FRENCH), None),
    (made("a", {"type": "exclude"}, placements=["x"]), made("b", {"type": "include"}, placements=["y"]), None),
    (made("a", {"type": "exclude"}, enabled=False), made("b", {"type": "include"}), None),
    (
        made("a", {"type": "exclude"}, ends_at="2026-01-01T00:00:00Z"),
        made("b", {"type": "include"}, starts_at="2026-01-01T00:00:00Z"),
        None,
    ),
]


def test_rules_in_each_others_way_are_found(engine: Engine) -> None:
    def mask(rule: Rule) -> Any:
        assert rule.items is not None
        return engine.snapshot.catalogue.mask_of(rule.items, 0.0)

    for one, other, says in PAIRS:
        for pair in ((one, other), (other, one)):
            found = [conflict.text for conflict in conflicts(pair[0], [pair[1]], mask)]
            assert len(found) == (says is not None), (one, other)
            assert all(says in text for text in found if says is not None), (one, other)


def test_a_rule_that_can_never_match_is_refused() -> None:
    never = {
        "all": [
            {"attribute": "user.events", "op": "lt", "value": 3},
            {"attribute": "user.events", "op": "gt", "value": 5},
        ]
    }
    with pytest.raises(InputError, match="when: can never hold") as caught:
        made("r", {"type": "exclude"}, when=never)
    assert caught.value.field == "when"


def test_a_share_of_the_people_is_always_the_same_and_only_grows(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    people = [f"u{n}" for n in range(20)]

    def reached(share: float) -> set[str]:
        rule(engine, "r", share=share, **PIN)  # type: ignore[arg-type]
        return {one for one in people if ids(ask(engine, user_id=one, k=3))[0] == "g3-9"}

    some, more = reached(0.3), reached(0.6)
    assert 1 <= len(some) < len(more) < 20
    assert some <= more, "nobody drops out"
    assert some == reached(0.3)
    engine.store.aliases.link("cookie", next(iter(some)))
    assert ids(ask(engine, user_id="cookie", k=3))[0] == "g3-9", "the same on every device"


def test_from_a_draft_to_everybody_and_back(client: TestClient, engine: Engine) -> None:
    old = PIN | {"items": {"attribute": "item_id", "op": "eq", "value": "g2-9"}}
    client.put("/v1/rules/r", json=old).raise_for_status()
    made = client.put("/v1/drafts/r", json={"rule": PIN}, params={"reason": "spring"}).json()
    assert (made["author"], made["approved_by"], made["share"], made["needs_approval"]) == ("local", None, None, False)
    assert list(made["difference"]) == ["items"]
    assert first(client, "ann") == "g2-9", "a draft changes nothing"
    client.post("/v1/recommendations", json={"user_id": "ann"})
    assert engine.effects.flush()
    tried = client.post("/v1/drafts/r/simulate", json={"requests": 10, "seconds": 8}).json()
    assert (tried["rule"], tried["changed"] == tried["replayed"] > 0, tried["conflicts"]) == ("r", True, [])
    for share in (0.5, 1.0):
        done = client.post("/v1/drafts/r/release", json={"share": share, "reason": f"to {share}"}).json()
        assert done["rule"]["share"] == share
        assert client.get("/v1/drafts/r").json()["share"] == share
    assert first(client, "ann") == "g3-9"
    back = client.post("/v1/rules/r/rollback", json={"reason": "complaints"}).json()
    assert back["rule"]["items"] == old["items"], "one call takes back all steps"
    assert first(client, "ann") == "g2-9"
    assert client.get("/v1/drafts/r").json()["share"] is None
    history = client.get("/v1/audit", params={"id": "r"}).json()["entries"]
    assert [(one["kind"], one["action"], one["why"]) for one in reversed(history)] == [
        ("rule", "create", None),
        ("draft", "create", "spring"),
        ("draft", "update", "to 0.5"),
        ("rule", "update", "to 0.5"),
        ("draft", "update", "to 1.0"),
        ("rule", "update", "to 1.0"),
        ("draft", "update", "complaints"),
        ("rule", "rollback", "complaints"),
    ]
    assert history[0]["difference"] == {"items": {"before": PINNED, "after": old["items"]}}
    assert client.post("/v1/rules/r/rollback").json()["rule"] is None, "on to what was before that, and never forward"
    assert "release a draft" in error(client.post("/v1/rules/r/rollback"), 409)["message"]
    assert client.delete("/v1/drafts/r").status_code == 204
    assert client.get("/v1/drafts").json() == {"drafts": []}


def test_a_removal_and_a_new_rule_can_be_taken_back(client: TestClient) -> None:
    client.put("/v1/drafts/new", json={"rule": PIN})
    client.post("/v1/drafts/new/release", json={})
    assert first(client, "ann") == "g3-9"
    assert client.post("/v1/rules/new/rollback", json={}).json()["rule"] is None
    assert client.get("/v1/rules").json() == {"rules": []}
    client.put("/v1/rules/r", json=PIN)
    client.put("/v1/drafts/r", json={"rule": None})
    assert "a share of 1" in error(client.post("/v1/drafts/r/release", json={"share": 0.5}), 409)["message"]
    assert client.post("/v1/drafts/r/release", json={}).json()["rule"] is None
    assert client.post("/v1/rules/r/rollback", json={}).json()["rule"]["items"] == PINNED
    error(client.put("/v1/drafts/nobody", json={"rule": None}), 404)
    error(client.post("/v1/rules/nobody/rollback", json={}), 404)
    error(client.post("/v1/drafts/nobody/release", json={}), 404)
    wrong = error(client.put("/v1/drafts/x", json={"rule": PIN | {"share": 2.0}}), 422)
    assert wrong["field"] == "rule.share"


def test_where_it_is_required_somebody_else_must_agree(releases: Path, tmp_path: Path) -> None:
    settings = Settings(
        releases=releases, store=f"sqlite:///{tmp_path / 's.db'}", auth="on", approval=True, deadline_ms=10_000
    )
    engine = Engine(settings)
    engine.start()
    _, ann = engine.store.keys.create("ann", ["policy"], per_minute=100_000, by="test")
    other, bob = engine.store.keys.create("bob", ["policy"], per_minute=100_000, by="test")
    mine, yours = ({"Authorization": f"Bearer {text}"} for text in (ann, bob))
    with TestClient(create_api(engine)) as client:
        assert "drafts" in error(client.put("/v1/rules/r", json=PIN, headers=mine), 409)["message"]
        assert client.put("/v1/rules/r?validate_only=true", json=PIN, headers=mine).status_code == 200
        assert client.put("/v1/drafts/r", json={"rule": PIN}, headers=mine).json()["needs_approval"]
        assert "approval" in error(client.post("/v1/drafts/r/release", json={}, headers=mine), 409)["message"]
        assert "somebody else" in error(client.post("/v1/drafts/r/approve", json={}, headers=mine), 409)["message"]
        agreed = client.post("/v1/drafts/r/approve", json={}, headers=yours).json()
        assert (agreed["approved_by"], agreed["needs_approval"]) == (other.id, False)
        again = client.put("/v1/drafts/r", json={"rule": PIN | {"priority": 3}}, headers=mine).json()
        assert again["needs_approval"], "what was agreed to does not hold for another text"
        client.post("/v1/drafts/r/approve", json={}, headers=yours).raise_for_status()
        assert client.post("/v1/drafts/r/release", json={}, headers=mine).json()["rule"]["priority"] == 3
        assert client.post("/v1/rules/r/rollback", json={}, headers=mine).json()["rule"] is None, (
            "the way back needs nobody"
        )
        assert "drafts" in error(client.delete("/v1/rules/r", headers=mine), 409)["message"]
        assert client.post("/v1/rules/r/rollback", json={}, headers=mine).status_code == 409, "and leads nowhere else"
        client.post("/v1/drafts/r/release", json={}, headers=mine).raise_for_status()
        for switch in ("rules_on", "rules_off"):
            arms = [{"id": "a", "weight": 0.000001}, {"id": "b", "weight": 0.999999, switch: ["r"]}]
            test = {"arms": arms, "state": "running"}
            assert "drafts" in error(client.put("/v1/experiments/e", json=test, headers=mine), 409)["message"]
    engine.stop()


def test_the_way_back_takes_each_change_once(client: TestClient) -> None:
    for priority in (1, 2, 3):
        client.put("/v1/rules/r", json=PIN | {"priority": priority})
    client.delete("/v1/rules/r")
    back = [client.post("/v1/rules/r/rollback").json()["rule"] for _ in range(2)]
    assert [one["priority"] for one in back] == [3, 2]
    client.put("/v1/rules/r", json=PIN | {"priority": 4})
    back = [client.post("/v1/rules/r/rollback").json()["rule"] for _ in range(3)]
    assert [one and one["priority"] for one in back] == [2, 1, None]


def test_steps_need_no_body_and_a_draft_brings_its_share(client: TestClient) -> None:
    client.put("/v1/drafts/r", json={"rule": PIN | {"share": 0.3}}).raise_for_status()
    assert client.post("/v1/drafts/r/simulate").status_code == 200
    done = client.post("/v1/drafts/r/release", params={"reason": "slowly"}).json()
    assert (done["rule"]["share"], done["warnings"]) == (0.3, [])
    assert client.get("/v1/audit?kind=rule").json()["entries"][0]["why"] == "slowly"
    assert client.post("/v1/users/ann/erase").status_code == 200
    for headers in ({"origin": "https://other.example"}, {"sec-fetch-site": "cross-site"}):
        assert client.post("/v1/rules/r/rollback", headers=headers).status_code == 415, "a page of somebody else's"
    off = client.put("/v1/drafts/r", json={"rule": PIN | {"enabled": False}})
    assert off.status_code == 200
    assert client.post("/v1/drafts/r/release").json()["warnings"] == [
        "enabled: is false, so the rule is in force for nobody"
    ]
    wrong = error(client.get("/v1/audit?kind=rules"), 422)
    assert "did you mean 'rule'?" in wrong["message"]
    typo = error(client.put("/v1/drafts/r", json={"rule": PIN | {"itmes": None}}), 422)
    assert (typo["field"], "rule: unknown field 'itmes'; did you mean 'items'?" in typo["message"]) == (
        "rule.itmes",
        True,
    )
    percent = error(client.post("/v1/drafts/r/release", json={"share": 50}), 422)
    assert percent["message"] == "share: must be less than or equal to 1; 50 percent is 0.5"


def test_what_an_experiment_switches_is_not_taken_away(client: TestClient) -> None:
    client.put("/v1/rules/r", json=PIN | {"enabled": False}).raise_for_status()
    arms = [{"id": "a"}, {"id": "b", "rules_on": ["r"]}]
    client.put("/v1/experiments/e", json={"state": "running", "arms": arms}).raise_for_status()
    client.put("/v1/drafts/r", json={"rule": None}).raise_for_status()
    assert "the experiment 'e' needs" in error(client.post("/v1/drafts/r/release"), 409)["message"]
    warned = client.post("/v1/rules/r/rollback").json()["warnings"]
    assert warned == ["the experiment 'e' does not hold any more: unknown rule 'r'; known: none"], (
        "the way back is open"
    )


def test_a_simulation_tells_conflicts_and_what_never_fires_over_http(client: TestClient, engine: Engine) -> None:
    client.put("/v1/rules/hides", json={"items": PINNED, "action": {"type": "exclude"}}).raise_for_status()
    client.put("/v1/rules/elsewhere", json=PIN | {"when": NEVER}).raise_for_status()
    client.put("/v1/drafts/r", json={"rule": PIN}).raise_for_status()
    client.post("/v1/pages", json={"user_id": "ann", "page": "home"}).raise_for_status()
    assert engine.effects.flush()
    empty = client.post("/v1/drafts/r/simulate").json()
    assert (empty["logged"], empty["pages"], empty["never"]) == (0, 1, []), "pages are not asked again"
    client.post("/v1/recommendations", json={"user_id": "ann", "k": 5}).raise_for_status()
    assert engine.effects.flush()
    found = client.post("/v1/drafts/r/simulate", json={"seconds": 8}).json()
    assert {one["rule"]: (one["current"], one["draft"]) for one in found["fired"]} == {
        "hides": (1, 1),
        "elsewhere": (0, 0),
        "r": (0, 1),
    }
    assert found["never"] == ["elsewhere"]
    assert {one["other"]: one["text"] for one in found["conflicts"]} == {
        "hides": "'hides' takes away every item that 'r' pins, so it has no effect",
        "elsewhere": "both pin position 0; 'elsewhere' wins, 'r' gets the next place",
    }
