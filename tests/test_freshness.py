"""Freshness over replicas: whatever one of them acknowledged, the next request to another one knows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from embeddings.schema import Event, Item
from serving import metrics
from serving.replica.engine import Engine
from serving.request.query import Answer, Query
from serving.settings import Settings


@pytest.fixture
def replicas(releases: Path, tmp_path: Path) -> Iterator[tuple[Engine, Engine]]:
    """Two that share a store; the second would look for changes by itself only every ten seconds."""
    store = f"sqlite:///{tmp_path / 'store.db'}"
    one = Engine(Settings(releases=releases, store=store, deadline_ms=10_000))
    other = Engine(Settings(releases=releases, store=store, deadline_ms=10_000, poll_s=10))
    one.start()
    other.start()
    yield one, other
    one.stop()
    other.stop()


def ask(engine: Engine, **fields: Any) -> Answer:
    return asyncio.run(engine.recommend(Query(**{"k": 10, "now": datetime.now(UTC), "user_id": "ann"} | fields)))


def ids(answer: Answer) -> list[str]:
    return [one.item_id for one in answer.items]


def test_an_event_that_another_replica_took_counts(replicas: tuple[Engine, Engine]) -> None:
    one, other = replicas
    one.store.events.append([Event(user_id="ann", item_id="g2-3", event_type="view", timestamp=datetime.now(UTC))])
    assert {name[:2] for name in ids(ask(other))} == {"g2"}


def test_an_item_that_another_replica_took_is_found(replicas: tuple[Engine, Engine]) -> None:
    one, other = replicas
    only = {"attribute": "item_id", "op": "eq", "value": "new"}
    for user_id, similar in (("ann", None), (None, "g1-1")):
        one.store.catalogue.upsert([Item(item_id="new", title=f"for {user_id}", categories=["group-1"])])
        found = ask(other, user_id=user_id, similar_to=similar, filter=only, fields=True)
        assert [item.item and item.item.title for item in found.items] == [f"for {user_id}"]
    assert other.store.catalogue.delete("new")
    assert ids(ask(other, filter=only)) == []


def test_a_rule_that_another_replica_took_is_in_force(replicas: tuple[Engine, Engine]) -> None:
    one, other = replicas
    first = ids(ask(other))[0]
    before = metrics.REGISTRY.get_sample_value("bespoke_freshness_seconds_count", {"kind": "policy"}) or 0
    body = {"id": "r", "action": {"type": "exclude"}, "items": {"attribute": "item_id", "op": "eq", "value": first}}
    one.store.documents.put("rule", "r", body, by="test")
    assert first not in ids(ask(other))
    after = metrics.REGISTRY.get_sample_value("bespoke_freshness_seconds_count", {"kind": "policy"})
    assert after is not None
    assert after > before
    one.store.documents.delete("rule", "r", by="test")
    assert first in ids(ask(other))


def test_a_replica_that_cannot_catch_up_in_time_answers_all_the_same(
    replicas: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = replicas
    monkeypatch.setattr(other.ladder, "deadline_s", 0.3)
    with other.holdings._lock:  # as if a large import were being encoded
        one.store.catalogue.upsert([Item(item_id="new")])
        began = time.monotonic()
        assert len(ask(other).items) == 10
        assert 0.05 < time.monotonic() - began < 0.3
        began = time.monotonic()
        answers = [ask(other) for _ in range(3)]  # only the first one waits
        assert time.monotonic() - began < 0.3
        assert all(one.degraded == () for one in answers)
