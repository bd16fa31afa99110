"""Documents of the policy: every kind keeps the same promises, over HTTP and when it is compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embeddings.errors import InputError
from serving.policy import compiled
from serving.policy.compiled import KINDS, Policy
from serving.policy.kinds import Kind, PolicyDocument, References, Report
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.test_api import error, lasting, recommend  # noqa: F401 - a fixture

CHEAP = {"attribute": "price", "op": "lt", "value": 5}
SHELF = {
    "id": "top",
    "type": "shelf",
    "pinned": False,
    "placement": "new",
    "title": "New, {anchor}",
    "min_items": 2,
    "max_items": 4,
}
LOYAL = {"attribute": "user.events", "op": "ge", "value": 10}
VARIANT = {"id": "a", "payload": {"text": "Hello"}, "when": None, "weight": 1.0}
ARM = {
    "weight": None,
    "placements": {},
    "rules_on": [],
    "rules_off": [],
    "layouts": {},
    "contents": {},
    "release": None,
    "stopped": None,
}
ARMS = [{"id": "as_is"} | ARM, {"id": "longer"} | ARM | {"placements": {"home": {"k": 30}}}]
SAMPLES: Mapping[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "rule": (
        {"action": {"type": "exclude"}, "items": CHEAP},
        {"action": {"type": "boost", "factor": 2.0}, "items": CHEAP},
        {"action": {"type": "explode"}},
    ),
    "placement": ({"k": 5}, {"k": 6, "sources": ["trending"]}, {"k": 0}),
    "content": (
        {"variants": [VARIANT]},
        {"variants": [VARIANT], "exploration": 0.2},
        {"variants": [{"id": "a"}]},
    ),
    "segment": ({"when": LOYAL}, {"when": LOYAL, "enabled": False}, {"enabled": True}),
    "experiment": ({"arms": ARMS}, {"arms": ARMS, "traffic": 0.5}, {"arms": ARMS[:1]}),
    "layout": ({"slots": [SHELF]}, {"slots": [SHELF], "stickiness": 1.0}, {"slots": []}),
}
"""Of each kind a document, a changed one and a wrong one, without their id."""


def test_every_kind_has_a_sample() -> None:
    assert set(SAMPLES) == {kind.name for kind in KINDS}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind[Any, Any]:
    found: Kind[Any, Any] = request.param
    return found


@pytest.fixture
def client(lasting: TestClient) -> Iterator[TestClient]:  # noqa: F811
    """Every test writes under a name of its own, since what was done stays in the audit, and finds no other document."""
    yield lasting
    for kind in KINDS:
        for one in written(lasting, kind):
            assert lasting.delete(f"/v1/{kind.plural}/{one['id']}").status_code == 204


def written(client: TestClient, kind: Kind[Any, Any]) -> list[dict[str, Any]]:
    """Documents in the list that somebody has written."""
    listed: list[dict[str, Any]] = client.get(f"/v1/{kind.plural}").json()[kind.plural]
    assert [one["id"] for one in listed] == sorted(one["id"] for one in listed)
    return [one for one in listed if not one.get("ready_made")]


def without_warnings(body: dict[str, Any]) -> dict[str, Any]:
    """What was answered to a write, as it is read afterwards."""
    return {key: value for key, value in body.items() if key != "warnings"}


def test_a_document_is_made_changed_listed_and_removed(client: TestClient, kind: Kind[Any, Any]) -> None:
    body, changed, wrong = SAMPLES[kind.name]
    path = f"/v1/{kind.plural}"
    made = client.post(path, json={"id": "made"} | body)
    assert made.status_code == 201
    stored = without_warnings(made.json())
    assert stored["id"] == "made"
    assert {key: stored[key] for key in body} == body
    assert (stored["problem"], stored["updated_by"]) == (None, "local")
    assert client.get(f"{path}/made").json() == stored
    assert written(client, kind) == [stored]
    assert recommend(client)["policy_version"] == stored["version"]
    again = without_warnings(client.put(f"{path}/made", json=changed).json())
    assert again["version"] == stored["version"] + 1
    assert again["updated_at"] > stored["updated_at"]
    assert error(client.put(f"{path}/made", json=wrong), 422)["field"]
    assert error(client.put(f"{path}/made", json=body | {"id": "y"}), 422)["field"] == "id"
    assert client.get(f"{path}/made").json() == again
    assert client.delete(f"{path}/made").status_code == 204
    assert error(client.get(f"{path}/made"), 404)["message"] == f"unknown {kind.name} 'made'"
    assert error(client.delete(f"{path}/made"), 404)["code"] == "not_found"


def test_nobody_overwrites_what_they_have_not_seen(client: TestClient, kind: Kind[Any, Any]) -> None:
    body, changed, _ = SAMPLES[kind.name]
    path = f"/v1/{kind.plural}/unseen"
    assert error(client.put(path, json=body, params={"expected_version": 7}), 404)["code"] == "not_found"
    first = client.put(path, json=body, params={"expected_version": 0}).json()["version"]
    refused = error(client.put(path, json=changed, params={"expected_version": 0}), 409)
    assert f"is at version {first}" in refused["message"]
    second = client.put(path, json=changed, params={"expected_version": first}).json()["version"]
    error(client.delete(path, params={"expected_version": first}), 409)
    assert client.delete(path, params={"expected_version": second}).status_code == 204


def test_validation_alone_stores_nothing(client: TestClient, kind: Kind[Any, Any]) -> None:
    body, changed, wrong = SAMPLES[kind.name]
    path, only = f"/v1/{kind.plural}", {"validate_only": "true"}
    entries = len(client.get("/v1/audit", params={"kind": kind.name}).json()["entries"])
    foreseen = client.post(path, json={"id": "checked"} | body, params=only)
    assert (foreseen.status_code, foreseen.json()["version"]) == (200, 0)
    assert written(client, kind) == []
    stored = client.put(f"{path}/checked", json=body).json()
    assert {key: value for key, value in stored.items() if key not in ("version", "updated_at")} == {
        key: value for key, value in foreseen.json().items() if key not in ("version", "updated_at")
    }
    stored = without_warnings(stored)
    assert client.put(f"{path}/checked", json=changed, params=only).json()["version"] == stored["version"]
    error(client.put(f"{path}/checked", json=wrong, params=only), 422)
    error(client.put(f"{path}/checked", json=changed, params=only | {"expected_version": 0}), 409)
    assert client.delete(f"{path}/checked", params=only).status_code == 204
    error(client.delete(f"{path}/y", params=only), 404)
    assert client.get(f"{path}/checked").json() == stored
    assert len(client.get("/v1/audit", params={"kind": kind.name}).json()["entries"]) == entries + 1


def test_the_audit_says_why(client: TestClient, kind: Kind[Any, Any]) -> None:
    body, changed, _ = SAMPLES[kind.name]
    path = f"/v1/{kind.plural}/reasoned"
    client.put(path, json=body)
    client.put(path, json=changed, params={"reason": "the season is over"})
    client.delete(path, params={"reason": "Ende, wirklich"})
    entries = client.get("/v1/audit", params={"kind": kind.name, "id": "reasoned"}).json()["entries"]
    assert [(entry["action"], entry["why"]) for entry in entries] == [
        ("delete", "Ende, wirklich"),
        ("update", "the season is over"),
        ("create", None),
    ]


def test_ready_made_documents_are_listed_until_they_are_written_and_when_they_are_removed(client: TestClient) -> None:
    for kind in KINDS:
        path = f"/v1/{kind.plural}"
        for name in kind.ready_made:
            ready = client.get(f"{path}/{name}").json()
            assert (ready["ready_made"], ready["version"], ready["updated_by"]) == (True, 0, None)
            assert ready in client.get(path).json()[kind.plural]
            error(client.delete(f"{path}/{name}"), 404)
            done = client.put(f"{path}/{name}", json={"description": "ours"}, params={"expected_version": 0})
            stored = without_warnings(done.json())
            assert (stored["ready_made"], stored["description"]) == (False, "ours")
            own = {
                key: value for key, value in ready.items() if key in kind.model.model_fields and key != "description"
            }
            assert {key: stored[key] for key in own} == own, "what is left out is as it was"
            assert written(client, kind) == [stored]
            assert client.delete(f"{path}/{name}").status_code == 204
            assert client.get(f"{path}/{name}").json() == ready


def test_a_stored_placement_fills_its_list(client: TestClient) -> None:
    client.put("/v1/placements/default", json={"sources": ["trending"]})
    assert {one["reasons"][0]["code"] for one in recommend(client)["items"]} <= {"trending", "popular"}
    trace = recommend(client, explain=True)["trace"]["candidates"]
    assert {source for one in trace for source in one["sources"]} <= {"trending", "backfill"}


def test_documents_can_be_written_before_the_first_release(tmp_path: Any) -> None:
    from serving.api import create_api

    engine = Engine(Settings(releases=tmp_path / "none", store=f"sqlite:///{tmp_path / 'store.db'}"))
    engine.start()
    with TestClient(create_api(engine), raise_server_exceptions=False) as early:
        unknown = {"action": {"type": "include"}, "items": {"attribute": "licence", "op": "eq", "value": "EU"}}
        assert early.put("/v1/rules/eu", json=unknown).json()["problem"] is None
        assert error(early.put("/v1/placements/home", json={"k": 0}), 422)["field"] == "k"
    engine.stop()


class Toy(PolicyDocument):
    """A document that names a placement and must be the only one that does."""

    placement: str


def _parse(raw: Mapping[str, Any], references: References) -> Toy:
    toy = Toy.model_validate(raw)
    if toy.placement not in references.ids("placement"):
        raise InputError(f"placement: there is no '{toy.placement}'", field="placement")
    return toy


def _compile(toys: Mapping[str, Toy], references: References, report: Report) -> dict[str, str]:
    taken: dict[str, str] = {}
    for name, toy in sorted(toys.items()):
        if taken.setdefault(toy.placement, name) != name:
            report(name, InputError(f"placement: '{taken[toy.placement]}' has it already", field="placement"))
    return taken


TOYS = Kind(name="toy", plural="toys", model=Toy, parse=_parse, compile=_compile)


def test_a_kind_may_speak_of_others_and_refuse_what_does_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "KINDS", (*KINDS, TOYS))
    documents = {
        "placement": [{"id": "home"}, {"id": "broken", "k": 0}],
        "toy": [
            {"id": "a", "placement": "home"},
            {"id": "b", "placement": "home"},
            {"id": "c", "placement": "broken"},
        ],
    }
    policy = Policy.compile(documents, version=1, item_attributes=None)
    assert [(one.kind, one.id) for one in policy.problems] == [("placement", "broken"), ("toy", "c"), ("toy", "b")]
    assert policy.problem(TOYS, "b") == "placement: 'a' has it already"
    assert policy.problem(TOYS, "a") is None
    assert policy.of(TOYS) == {"home": "a"}
    assert set(policy.documents["toy"]) == {"a"}
    with pytest.raises(InputError, match="'a' has it already"):
        policy.admit(TOYS, {"id": "d", "placement": "home"}, item_attributes=None)
    assert policy.admit(TOYS, {"id": "a", "placement": "home"}, item_attributes=None).id == "a"
