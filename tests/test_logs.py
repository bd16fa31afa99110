"""Logs without people and with the id of the request: in both styles, from every thread, also while the store is away."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from embeddings.errors import StoreError
from serving import logs
from serving.api import create_api
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.test_keys import eventually
from tests.test_store import url  # noqa: F401 - fixture: both databases

PERSON = "ann-of-green-gables"
SECRET = "avonlea"


@pytest.fixture
def engine(releases: Path, url: str) -> Iterator[Engine]:  # noqa: F811
    one = Engine(Settings(releases=releases, store=url, auth="on"))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def client(engine: Engine, caplog: pytest.LogCaptureFixture) -> Iterator[TestClient]:
    caplog.set_level(logging.DEBUG)
    caplog.handler.setFormatter(logs.Json())
    caplog.set_level(logging.WARNING, logger="httpx2")  # the client of the test
    with TestClient(create_api(engine)) as one:
        yield one


@pytest.fixture
def headers(client: TestClient, engine: Engine) -> dict[str, str]:
    """The header of a key that may do everything and is in force."""
    _, key = engine.store.keys.create("all", ["admin"], per_minute=10_000, by="test")
    header = {"authorization": f"Bearer {key}"}
    assert eventually(lambda: client.get("/v1/info", headers=header).status_code == 200)
    return header


def asked(client: TestClient, headers: dict[str, str]) -> set[int]:
    event = {"user_id": PERSON, "item_id": "g1-1", "context": {"town": SECRET}}
    posts: list[tuple[str, Any]] = [
        ("/v1/events", event),
        ("/v1/events", event | {"value": SECRET}),
        ("/v1/users", {"users": [{"user_id": PERSON, "attributes": {"town": SECRET}}]}),
        ("/v1/recommendations", {"user_id": PERSON, "context": {"town": SECRET}, "explain": True}),
        ("/v1/recommendations", {"user_id": PERSON, SECRET: 1}),
        ("/v1/recommendations", {"user_id": PERSON * 20}),
        ("/v1/rankings", {"user_id": PERSON, "items": ["g1-1"]}),
        ("/v1/similar", {"item_id": "none", "user_id": PERSON}),
    ]
    statuses = {client.post(path, json=body, headers=headers).status_code for path, body in posts}
    statuses.add(
        client.post(
            "/v1/events", content=f'{{"{PERSON}', headers=headers | {"content-type": "application/json"}
        ).status_code
    )
    for method, path in (("GET", ""), ("GET", "/profile"), ("GET", "/nothing"), ("DELETE", ""), ("DELETE", "")):
        statuses.add(client.request(method, f"/v1/users/{PERSON}{path}", headers=headers).status_code)
    statuses.add(client.get(f"/v1/users/{PERSON}", headers={"x-api-key": f"bk_{SECRET}_{SECRET}"}).status_code)
    return statuses


def clean(text: str) -> bool:
    return PERSON not in text and SECRET not in text


def test_ordinary_requests_and_mistakes(
    client: TestClient, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert asked(client, headers) == {200, 202, 400, 401, 404, 422}
    logging.getLogger("bespoke.api").error("a line")
    assert "a line" in caplog.text
    assert clean(caplog.text)
    assert clean(client.get("/metrics", headers=headers).text)


def test_a_failing_store(
    client: TestClient, engine: Engine, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    engine.store.database.write(lambda connection: connection.execute(text("DROP TABLE profiles")))
    assert 503 in asked(client, headers)
    assert "profiles" in caplog.text
    assert clean(caplog.text)


def test_an_unexpected_error(
    client: TestClient,
    engine: Engine,
    headers: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(user_id: str) -> None:
        try:
            raise ValueError(f"nothing of {user_id}")
        except ValueError as error:
            raise KeyError(user_id) from error

    monkeypatch.setattr(engine.store.profiles, "get", broken)
    reply = client.get(f"/v1/users/{PERSON}", headers=headers)
    assert reply.status_code == 500
    assert reply.json()["error"] == {"code": "internal", "message": "an unexpected error; it was logged", "field": None}
    assert len(reply.headers["x-request-id"]) == 32
    for part in ("unexpected KeyError", "in broken", "after ValueError"):
        assert part in caplog.text
    assert clean(caplog.text)
    (line,) = (one for one in map(json.loads, caplog.text.splitlines()) if one["message"] == "unexpected KeyError")
    assert line["request_id"] == reply.headers["x-request-id"]


def test_a_damaged_record_is_named_to_the_caller_and_not_to_the_log(
    client: TestClient, engine: Engine, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    client.post("/v1/events", json={"user_id": PERSON, "item_id": "g1-1", "event_type": "view"}, headers=headers)
    engine.store.database.write(lambda connection: connection.execute(text("UPDATE profiles SET history_sum = 7")))
    reply = client.get(f"/v1/users/{PERSON}/profile", headers=headers)
    assert (reply.status_code, PERSON in reply.text) == (500, True)
    client.post("/v1/recommendations", json={"user_id": PERSON}, headers=headers)
    assert "record_damaged" in caplog.text
    assert "Damaged" in caplog.text
    assert clean(caplog.text)


def test_threads_know_the_request_they_work_for(
    client: TestClient,
    engine: Engine,
    headers: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(user_id: str) -> None:
        raise StoreError("the database at nowhere failed: gone")

    monkeypatch.setattr(engine.store.profiles, "read", unreachable)
    reply = client.post("/v1/recommendations", json={"user_id": PERSON, "k": 3}, headers=headers)
    assert (reply.status_code, reply.json()["degraded"]) == (200, ["profile"])
    (line,) = (one for one in map(json.loads, caplog.text.splitlines()) if "profile could not" in one["message"])
    assert line["request_id"] == reply.headers["x-request-id"]
    assert line["error"].startswith("StoreError: the database at nowhere failed: gone\n")
    assert line["level"] == "error"
    for one in map(json.loads, caplog.text.splitlines()):
        assert {"time", "level", "logger", "message", "process"} <= set(one) <= {*line}


def test_text_is_one_line_for_people() -> None:
    record = logging.LogRecord("bespoke.x", logging.WARNING, "", 1, "%s again", ("now",), None)
    record.created = 0.25
    assert logs.Text().format(record) == "1970-01-01T00:00:00.250Z WARNING bespoke.x now again"
    about = logs.REQUEST.set("abc")
    assert " [abc] now again" in logs.Text().format(record)
    logs.REQUEST.reset(about)


def test_a_store_that_is_away_is_told_once_and_once_a_minute_and_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = 100.0
    outage = logs.Outage(logging.getLogger("bespoke.test"), "no store", clock=lambda: clock)
    outage.over()
    for _ in range(600):
        try:
            raise StoreError("the database failed: gone")
        except StoreError:
            outage.failed()
        clock += 0.25
    outage.over()
    outage.over()
    assert [record.message for record in caplog.records] == [
        "no store",
        "no store: for 60 s now, 241 times; last: StoreError: the database failed: gone",
        "no store: for 120 s now, 481 times; last: StoreError: the database failed: gone",
        "no store: over after 150.0 s and 600 times",
    ]
    assert [record.exc_info is not None for record in caplog.records] == [True, False, False, False]


def test_the_followers_of_a_dead_store_do_not_shout(
    releases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 's.db'}", poll_s=0.01))
    engine.start()
    version, waited = engine.store.documents.version, threading.Event()

    def gone() -> int:
        raise StoreError("the database failed: gone")

    engine.store.documents.version = gone  # type: ignore[method-assign]
    assert not waited.wait(0.4)
    engine.store.documents.version = version  # type: ignore[method-assign]
    assert eventually(lambda: "over after" in caplog.text)
    engine.stop()
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert told[0] == "could not take changes; the last view stays in service"
    assert told[1].startswith("could not take changes; the last view stays in service: over after")
    assert len(told) == 2


def test_lines_of_other_processes_are_collected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, written = tmp_path / "lines", list[str]()
    handler = logs.Lines(str(path))
    handler.setFormatter(logs.Json())
    record = logging.LogRecord("bespoke.x", logging.WARNING, "", 1, "hello", (), None)
    with logs.collected(path, written.append):
        for _ in range(3):
            handler.emit(record)
        assert eventually(lambda: len(written) == 3)
    assert [json.loads(line)["message"] for line in written] == ["hello"] * 3
    handler.emit(record)  # nobody listens any more: the line goes to standard error
    handler.close()
    assert json.loads(capfd.readouterr().err)["message"] == "hello"


def test_lines_never_wait_for_a_slow_collector(tmp_path: Path) -> None:
    path, go_on = tmp_path / "lines", threading.Event()
    handler = logs.Lines(str(path))
    handler.setFormatter(logs.Text())
    record = logging.LogRecord("bespoke.x", logging.WARNING, "", 1, "x" * 50_000, (), None)
    with logs.collected(path, lambda _: go_on.wait(10)):
        for _ in range(300):
            handler.emit(record)
        assert handler._dropped > 0
        go_on.set()
    handler.close()
