"""Steering over HTTP: documents that could never do anything, that others need, and that say what is not meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.policy.compiled import KINDS
from tests.test_api import error, lasting  # noqa: F401 - a fixture

PIN = {"items": {"attribute": "item_id", "op": "eq", "value": "g3-9"}, "action": {"type": "pin", "position": 0}}
ARMS = [{"id": "as_is"}, {"id": "longer", "placements": {"for_you": {"k": 30}}}]
HERO = {"variants": [{"id": "a", "payload": {"text": "A"}}, {"id": "b", "payload": {"text": "B"}}]}
PAST = "2020-01-01T00:00:00Z"


def is_(attribute: str, op: str, value: Any) -> dict[str, Any]:
    return {"attribute": attribute, "op": op, "value": value}


def both(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"all": list(conditions)}


@pytest.fixture
def client(lasting: TestClient) -> Iterator[TestClient]:  # noqa: F811
    yield lasting
    for kind in reversed(KINDS):  # who needs another one was written later
        written = lasting.get(f"/v1/{kind.plural}").json()[kind.plural]
        for one in sorted(written, key=lambda one: -one["version"]):
            if one["version"]:
                lasting.delete(f"/v1/{kind.plural}/{one['id']}").raise_for_status()


def put(client: TestClient, path: str, body: dict[str, Any], **params: Any) -> dict[str, Any]:
    reply = client.put(f"/v1/{path}", json=body, params=params)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"when": is_("time.hour", "eq", 25)}, "when", "'time.hour' is a whole number from 0 to 23"),
        ({"when": is_("time.hour", "eq", "9")}, "when", "'time.hour' is a whole number"),
        ({"when": is_("history.visits", "lt", 1)}, "when", "from 1, the first visit"),
        ({"when": is_("time.date", "lt", "2020-01-01")}, "when", "from today on"),
        ({"when": both({"did": "view"}, {"not": {"did": "view"}})}, "when", "and its opposite"),
        ({"items": both(is_("price", "lt", 5), is_("price", "gt", 10))}, "items", "'price' is one number"),
        ({"items": both(is_("available", "eq", True), is_("available", "eq", False))}, "items", "true or false"),
        ({"items": both(is_("item_id", "eq", "a"), is_("item_id", "eq", "b"))}, "items", "is one text"),
        ({"ends_at": PAST}, "ends_at", "give a later end"),
    ],
)
def test_a_rule_that_could_never_hold_is_refused(
    client: TestClient, fields: dict[str, Any], field: str, says: str
) -> None:
    for params in ({}, {"validate_only": True}):
        detail = error(client.put("/v1/rules/r", json=PIN | fields, params=params), 422)
        assert (detail["field"], says in detail["message"]) == (field, True), detail
    put(client, "rules/r", PIN | {"when": both(is_("user.age", "lt", 3), is_("user.age", "gt", 5))})
    put(client, "rules/r", PIN | {"ends_at": PAST, "enabled": False})
    assert error(client.put("/v1/rules/r", json=PIN | {"ends_at": PAST}), 422)["field"] == "ends_at"


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"when": is_("time.weekday", "eq", 7)}, "when", "nobody could ever take part"),
        ({"when": is_("user.segment", "eq", "nobody")}, "when", "unknown segment 'nobody'"),
        ({"arms": [ARMS[0], {"id": "b", "placements": {"home": {}}}]}, "arms.1.placements.home", "changes no field"),
        ({"ends_at": PAST}, "ends_at", "is over"),
        ({"arms": [ARMS[0] | {"weight": 0.5}, ARMS[1] | {"weight": 0.6}]}, "arms", "must add up to 1"),
        ({"slice": {"start": 0.4, "end": 0.8}}, "slice", "meets 0 to 0.5, which 'first' has"),
        ({"layer": "other"}, "arms.1.placements.for_you", "put both into one layer"),
    ],
)
def test_an_experiment_that_nobody_could_be_in_is_refused(
    client: TestClient, fields: dict[str, Any], field: str, says: str
) -> None:
    put(client, "experiments/first", {"state": "running", "arms": ARMS, "slice": {"start": 0.0, "end": 0.5}})
    second = {"state": "running", "arms": ARMS, "slice": {"start": 0.5, "end": 1.0}}
    detail = error(client.put("/v1/experiments/second", json=second | fields), 422)
    assert (detail["field"], says in detail["message"]) == (field, True), detail


def test_what_intervals_rest_on_stays_while_an_experiment_runs(client: TestClient) -> None:
    body = {"state": "running", "arms": ARMS}
    put(client, "experiments/e", body)
    for change in ({"alpha": 0.2}, {"people": 500}, {"starts_at": "2026-01-01T00:00:00Z"}):
        detail = error(client.put("/v1/experiments/e", json=body | change), 422)
        assert detail["field"] == next(iter(change))
    put(client, "experiments/e", body | {"traffic": 0.5, "primary": "revenue", "ends_at": "2030-01-01T00:00:00Z"})


def test_an_experiment_pauses_and_outlives_what_it_was_about(client: TestClient) -> None:
    put(client, "segments/s", {"when": is_("user.age", "gt", 30)})
    body = {"state": "running", "arms": ARMS, "when": is_("user.segment", "eq", "s")}
    put(client, "experiments/e", body)
    assert put(client, "experiments/e", body | {"traffic": 0.0})["warnings"] == ["traffic: is 0, so nobody takes part"]
    stopped = body | {"state": "stopped"}
    put(client, "experiments/e", stopped)
    assert client.delete("/v1/segments/s").status_code == 204
    assert put(client, "experiments/e", stopped | {"description": "over"})["problem"] is None
    assert error(client.put("/v1/experiments/e", json=stopped | {"alpha": 0.2}), 422)["field"] == "alpha"


def test_people_are_held_out_and_chosen(client: TestClient) -> None:
    put(
        client,
        "experiments/e",
        {
            "state": "running",
            "arms": ARMS,
            "holdout": 0.5,
            "when": is_("context.country", "eq", "DE"),
        },
    )

    def arm(person: str, country: str) -> str | None:
        asked = {"user_id": person, "placement": "for_you", "k": 1, "context": {"country": country}}
        found: str | None = client.post("/v1/recommendations", json=asked).json()["experiment"].get("e")
        return found

    people = [f"p{n}" for n in range(24)]
    german = [arm(person, "DE") for person in people]
    assert set(german) == {"holdout", "as_is", "longer"}
    assert {arm(person, "FR") for person in people[:6]} == {None}
    assert [arm(person, "DE") for person in people] == german


def test_segments_name_each_other_in_one_direction(client: TestClient) -> None:
    put(client, "segments/b1", {"when": is_("user.city", "eq", "Bonn")})
    put(client, "segments/vip", {"when": is_("user.segment", "eq", "b1")})
    detail = error(client.put("/v1/segments/b1", json={"when": is_("user.segment", "in", ["vip"])}), 422)
    assert "b1 -> vip -> b1; take one of these names out" in detail["message"]
    for op, value in (("exists", True), ("ne", "vip"), ("in", ["vip", 1])):
        detail = error(client.put("/v1/segments/b1", json={"when": is_("user.segment", op, value)}), 422)
        assert "takes eq, in, contains with ids" in detail["message"]


def test_what_others_need_is_not_taken_away(client: TestClient) -> None:
    put(client, "contents/hero", HERO)
    put(client, "segments/vip", {"when": is_("user.vip", "eq", True)})
    arms = [{"id": "a"}, {"id": "b", "contents": {"hero": {"b": 1.0}}}]
    test = {"state": "running", "arms": arms}
    put(client, "experiments/test", test)
    put(client, "layouts/page", {"slots": [{"id": "top", "type": "content", "content": "hero"}]})
    put(client, "rules/r", PIN | {"when": is_("user.segment", "eq", "vip")})
    for path, needing in (
        ("contents/hero", "the layout 'page' and the experiment 'test' need the content 'hero'"),
        ("segments/vip", "the rule 'r' needs the segment 'vip'"),
    ):
        for params in ({}, {"validate_only": True}):
            assert needing in error(client.delete(f"/v1/{path}", params=params), 409)["message"]
    smaller = {"variants": HERO["variants"][:1]}
    detail = error(client.put("/v1/contents/hero", json=smaller), 409)
    assert "the experiment 'test' would not hold any more: unknown variant 'b'" in detail["message"]
    put(client, "experiments/test", test | {"state": "stopped"})
    put(client, "contents/hero", smaller)
    client.delete("/v1/layouts/page").raise_for_status()
    assert client.delete("/v1/contents/hero").status_code == 204


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("rules/r", PIN | {"placements": ["for_yuo"]}, "'for_yuo'; did you mean 'for_you'?"),
        ("experiments/e", {"arms": ARMS, "placements": ["for_yuo"]}, "did you mean 'for_you'?"),
        ("placements/home", {"seen": ["purchse"]}, "no events of type 'purchse'; did you mean 'purchase'?"),
        ("placements/home", {"objectives": {"return": -1.0}}, "does not predict 'return'; it does: "),
        ("rules/r", PIN | {"when": {"not": {"did": "veiw"}}}, "did you mean 'view'?"),
        ("contents/hero", HERO | {"goal": "clik"}, "did you mean 'click'?"),
        ("rules/r", PIN | {"items": is_("item_id", "eq", "gone")}, "no item of the catalogue"),
        ("rules/r", PIN, "it meets the rule 'pinned': both pin position 0; 'pinned' wins"),
    ],
)
def test_what_is_probably_not_meant_is_said(client: TestClient, path: str, body: dict[str, Any], says: str) -> None:
    put(client, "rules/pinned", PIN | {"priority": 1})
    foreseen = put(client, path, body, validate_only=True)["warnings"]
    assert any(says in one for one in foreseen), foreseen
    assert put(client, path, body)["warnings"] == foreseen
    assert "warnings" not in client.get(f"/v1/{path}").json()
    assert (
        put(client, "rules/other", PIN | {"action": {"type": "exclude"}, "placements": ["for_you"]})["warnings"] == []
    )


def test_a_path_stands_once_before_what_is_wrong(client: TestClient) -> None:
    slot = {"id": "a", "type": "shelf", "placement": "new"}
    twice = error(client.put("/v1/layouts/p", json={"slots": [slot, slot]}), 422)
    assert (twice["field"], twice["message"]) == ("slots.1.id", "slots.1.id: 'a' is the id of another slot")
    alert = HERO | {"trigger": {"type": "price_drop"}, "quiet": {"start": "9:00", "end": "10:00"}}
    clock = error(client.put("/v1/contents/c", json=alert), 422)
    assert clock["message"] == "quiet.start: must be a time of day with two digits each, such as 09:00"
    arms = [ARMS[0], {"id": "b", "placements": {"home": {"diversity": 2}}}]
    deep = error(client.put("/v1/experiments/e", json={"arms": arms}), 422)
    assert deep["message"].startswith("arms.1.placements.home.diversity: must be less than or equal to 1")
