"""Traces: a span for the request, the store and each stage, below the caller's; nothing at all where they are off."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from embeddings.errors import ConfigError, Unavailable
from serving.api import create_api
from serving.pipeline.pipeline import STAGES
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.telemetry import Telemetry, Traced

PERSON = "ann-of-green-gables"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def engine(releases: Path, tmp_path: Path) -> Iterator[Engine]:
    one = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 's.db'}"))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def telemetry(engine: Engine, exporter: InMemorySpanExporter) -> Iterator[Telemetry]:
    one = Telemetry("http://127.0.0.1:9", exporter)
    one.instrument(engine)
    yield one
    one.close()
    assert all("run" not in stage.__dict__ for stage in STAGES)


@pytest.fixture
def client(engine: Engine, telemetry: Telemetry) -> Iterator[TestClient]:
    api = create_api(engine)
    api.add_middleware(Traced, telemetry=telemetry)
    with TestClient(api, raise_server_exceptions=False) as one:
        yield one


def finished(telemetry: Telemetry, exporter: InMemorySpanExporter) -> Sequence[ReadableSpan]:
    telemetry._provider.force_flush()
    return exporter.get_finished_spans()


def test_a_request_is_one_trace_below_the_callers(
    client: TestClient, telemetry: Telemetry, exporter: InMemorySpanExporter
) -> None:
    client.post("/v1/events", json={"user_id": PERSON, "item_id": "g1-1", "event_type": "view"})
    exporter.clear()
    reply = client.post("/v1/recommendations", json={"user_id": PERSON, "k": 3}, headers={"traceparent": CALLER})
    assert reply.status_code == 200
    spans = {
        span.name: span for span in finished(telemetry, exporter) if span.context.trace_id == int(CALLER[3:35], 16)
    }
    request = spans["POST /v1/recommendations"]
    assert request.parent is not None
    assert request.parent.span_id == int(CALLER[36:52], 16)
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/recommendations",
        "http.response.status_code": 200,
        "bespoke.request_id": reply.headers["x-request-id"],
    }
    assert {"store.read", "filter seen", "source two_tower", "scorer ranker", "selector slate"} <= set(spans)
    for name, span in spans.items():
        if span is not request:
            assert span.parent is not None, name
            assert span.parent.span_id == request.context.span_id, name
            assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    assert "source callers_list" not in spans  # it had nothing to do


def test_spans_name_nobody(client: TestClient, telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    client.get(f"/v1/users/{PERSON}")
    client.get(f"/{PERSON}")
    client.post("/v1/recommendations", json={"user_id": PERSON, PERSON: 1})
    spans = finished(telemetry, exporter)
    assert {span.name for span in spans} >= {"GET /v1/users/{user_id}", "GET other", "POST /v1/recommendations"}
    assert not any(PERSON in span.to_json() for span in spans)


def test_failures_are_marked_by_their_type(
    client: TestClient,
    engine: Engine,
    telemetry: Telemetry,
    exporter: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError(PERSON)

    monkeypatch.setattr(engine.store.profiles, "get", broken)
    assert client.get(f"/v1/users/{PERSON}").status_code == 500
    ranker = next(stage for stage in STAGES if stage.name == "ranker")
    monkeypatch.setattr(ranker, "work", broken)
    assert client.post("/v1/recommendations", json={"user_id": "b", "k": 3}).json()["degraded"] == ["ranker"]
    failed = {span.name for span in finished(telemetry, exporter) if not span.status.is_ok}
    assert failed == {"GET /v1/users/{user_id}", "scorer ranker"}
    assert not any(PERSON in span.to_json() for span in finished(telemetry, exporter))


def test_another_process_goes_on_below(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    async def ask() -> None:
        with telemetry.request({}, "POST"):
            carried = telemetry.carried()
        with telemetry.request(carried, "ranking"):
            pass

    asyncio.run(ask())
    first, second = finished(telemetry, exporter)
    assert second.parent is not None
    assert (second.name, second.parent.span_id) == ("ranking", first.context.span_id)


def test_off_means_off(engine: Engine) -> None:
    assert Telemetry.of(engine.settings) is None
    assert engine.store.profiles.__dict__.get("read") is None
    assert all("run" not in stage.__dict__ for stage in STAGES)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(Unavailable, match=r"not installed: pip install 'bespoke\[telemetry\]'"):
        Telemetry.of(Settings(otlp_endpoint="http://127.0.0.1:4318"))


def test_an_address_is_needed() -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        Settings.load({"otlp_endpoint": "collector:4318"}, environment={})
