"""Releases: only sound ones serve, some are tried first, and each can be taken back while requests go on."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

import bespoke
from embeddings.bundle_reader import open_bundle
from embeddings.errors import BundleError, Conflict, NotFound, StoreError
from embeddings.golden import Golden
from embeddings.releases import CURRENT, current_release, point_to
from embeddings.schema import Event
from serving import metrics
from serving.api import create_api
from serving.pages.page import PageQuery
from serving.pipeline import trial as trials
from serving.pipeline.releases import RELEASE
from serving.pipeline.trial import Share, overlap, rank_biased_overlap
from serving.replica.engine import Engine
from serving.request.query import Answer, Query
from serving.settings import Settings
from serving.stages.scorers import RankerScore
from serving.stages.sources import TwoTowerSource
from tests.conftest import write_world
from tests.test_ladder import running

WAIT_S = 20.0


def start(releases: Path, store: Path) -> Engine:
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{store}", deadline_ms=10_000))
    engine.start()
    return engine


@pytest.fixture
def engine(releases: Path, tmp_path: Path) -> Iterator[Engine]:
    write_world(releases, "world-2")
    point_to(releases, "world-1")
    one = start(releases, tmp_path / "store.db")
    yield one
    one.stop()


def ask(engine: Engine, user: str = "ann", **fields: Any) -> Answer:
    return asyncio.run(engine.recommend(Query(**{"k": 10, "now": datetime.now(UTC), "user_id": user} | fields)))


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def golden(folder: Path, *, top: list[int] | None = None) -> Golden:
    bundle = open_bundle(folder)
    query = bundle.encode_user(bundle.matrix[[2]], np.array([1]), np.array([0.0]), [])
    best = np.argsort(-(bundle.matrix @ query), kind="stable")[:10].tolist()
    return Golden(rows=(2,), types=(1,), times=(0.0,), context=(), top=tuple(best if top is None else top))


def with_golden(releases: Path, name: str, queries: list[Golden]) -> Path:
    """The world again, with golden queries and a manifest that vouches for them."""
    import hashlib

    folder = write_world(releases, name)
    path = folder / "golden.json"
    path.write_text(json.dumps([one.model_dump() for one in queries]))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["golden.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_golden_queries_are_asked_when_a_release_is_opened(releases: Path) -> None:
    right = golden(releases / "world-1")
    good = with_golden(releases, "good", [right])
    assert open_bundle(good).name == open_bundle(good, parts=frozenset()).name == "good"
    wrong = Golden(**right.model_dump() | {"top": tuple(range(90, 100))})
    with pytest.raises(BundleError, match="find 0 of 10 expected items"):
        open_bundle(with_golden(releases, "wrong", [wrong]))
    with pytest.raises(BundleError, match="cannot be asked"):
        open_bundle(with_golden(releases, "foreign", [Golden(**right.model_dump() | {"rows": (10_000,)})]))


def test_parts_that_are_not_needed_are_not_read(releases: Path) -> None:
    bundle = open_bundle(releases / "world-1", parts=frozenset({"ranker"}))
    assert bundle.ranker is not None
    with pytest.raises(BundleError, match="without its index"):
        _ = bundle.index
    (releases / "world-1" / "index.faiss").write_bytes(b"torn")
    assert open_bundle(releases / "world-1", parts=frozenset()).ranker is None
    with pytest.raises(BundleError, match="checksum"):
        open_bundle(releases / "world-1")


@pytest.mark.parametrize("how", ["truncated", "foreign", "garbled pointer", "no such folder", "golden"])
def test_an_unsound_release_never_serves_and_an_alarm_says_so(
    engine: Engine, releases: Path, tmp_path: Path, how: str
) -> None:
    workshop = tmp_path / "workshop"  # spoiled before the service sees it
    if how == "golden":
        right = golden(releases / "world-1").model_dump()
        with_golden(workshop, "bad", [Golden(**right | {"top": tuple(range(90, 100))})])
    else:
        folder = write_world(workshop, "bad")
        file = folder / ("manifest.json" if how == "foreign" else "towers.safetensors")
        file.write_bytes(b'{"name": "other"}' if how == "foreign" else file.read_bytes()[:-20])
    if how != "no such folder":
        shutil.move(workshop / "bad", releases / "bad")
    (releases / CURRENT).write_text("../../etc\n" if how == "garbled pointer" else "bad\n")
    until(lambda: value("bespoke_release_refused") == 1)
    assert ask(engine).model_version == "world-1"
    point_to(releases, "world-2")
    until(lambda: ask(engine).model_version == "world-2")
    until(lambda: value("bespoke_release_refused") == 0)


def test_after_a_restart_on_an_unsound_release_the_one_before_serves(releases: Path, tmp_path: Path) -> None:
    folder = write_world(releases, "world-2")
    (folder / "matrix.npy").write_bytes(b"")
    engine = start(releases, tmp_path / "s.db")
    try:
        assert ask(engine).model_version == "world-1"
        assert value("bespoke_release_refused") == 1
        shutil.rmtree(folder)
        write_world(releases, "world-2")  # repaired, and the pointer set again
        until(lambda: ask(engine).model_version == "world-2")
    finally:
        engine.stop()


def test_requests_in_flight_finish_on_the_old_release_which_is_let_go_then(
    engine: Engine, releases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, free = threading.Event(), threading.Event()
    find = TwoTowerSource.find

    def slow(*args: Any) -> Any:
        inside.set()
        assert free.wait(WAIT_S)
        return find(*args)

    monkeypatch.setattr(TwoTowerSource, "find", slow)
    answers: list[Answer] = []
    request = threading.Thread(target=lambda: answers.append(ask(engine)))
    request.start()
    assert inside.wait(WAIT_S)
    old = weakref.ref(engine.snapshot.bundle)
    monkeypatch.setattr(TwoTowerSource, "find", find)
    engine.releases.promote("world-2", by="test")
    engine.refresh()
    assert engine.snapshot.bundle.name == "world-2"
    assert old() is not None
    free.set()
    request.join(WAIT_S)
    assert answers[0].model_version == "world-1"
    assert answers[0].degraded == ()
    answers.clear()
    ask(engine)
    gc.collect()
    assert old() is None


def test_a_canary_answers_always_the_same_people(engine: Engine) -> None:
    engine.releases.try_out("world-2", "canary", Share(share=0.3), by="test")
    engine.refresh()
    people = [f"u{n}" for n in range(80)]
    by = {user: ask(engine, user).model_version for user in people}
    assert 10 < sum(name == "world-2" for name in by.values()) < 40
    assert by == {user: ask(engine, user).model_version for user in people}
    assert ask(engine, user_id=None, similar_to="g1-1").model_version == "world-1"
    engine.releases.rollback(by="test", reason="enough")
    engine.refresh()
    assert {ask(engine, user).model_version for user in people} == {"world-1"}
    state = {one["name"]: (one["state"], one["reason"]) for one in engine.releases.list()}
    assert state == {"world-2": ("withdrawn", "enough"), "world-1": ("current", None)}


@pytest.mark.parametrize("topology", ["fused", "chained"])
def test_a_person_meets_one_release_under_every_id(
    releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topology: str
) -> None:
    write_world(releases, "world-2")
    point_to(releases, "world-1")
    with running(topology, releases, tmp_path, WAIT_S) as engine:
        engine.releases.try_out("world-2", "canary", Share(share=0.5), by="test")
        engine.refresh()
        trial = engine.trial
        assert trial is not None
        people = [f"u{n}" for n in range(20)]
        other = {
            person: next(f"{person}-{n}" for n in range(99) if trial.arm(f"{person}-{n}") != trial.arm(person))
            for person in people[:8]
        }
        for person, alias in other.items():
            engine.store.aliases.link(alias, person)
        reads = []
        read = engine.store.profiles.read
        monkeypatch.setattr(engine.store.profiles, "read", lambda user_id: reads.append(user_id) or read(user_id))
        release = {"control": "world-1", "canary": "world-2"}
        for person in people:
            assert ask(engine, person).model_version == release[trial.arm(person)]
        assert reads == people, "the arm costs no read of its own"
        assert {trial.arm(person) for person in other} == {"control", "canary"}
        for person, alias in other.items():
            arm = trial.arm(person)
            answer = ask(engine, alias)
            page = asyncio.run(engine.page(PageQuery(page="home", now=datetime.now(UTC), user_id=alias)))
            for found in (answer, page):
                assert (found.model_version, found.experiment[RELEASE]) == (release[arm], arm)
                assert found.recommendation_id.endswith(trial.mark(arm))
        assert sum(tally.answers for tally in trial.tallies.values()) == len(people) + len(other)


def test_whom_the_store_cannot_name_gets_the_release_in_service(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.releases.try_out("world-2", "canary", Share(share=1.0), by="test")
    engine.refresh()
    assert ask(engine).model_version == "world-2"

    def away(_: object) -> None:
        raise StoreError("away on purpose")

    monkeypatch.setattr(engine.store.profiles, "read", away)
    answer = ask(engine)
    assert (answer.model_version, answer.experiment) == ("world-1", {RELEASE: "control"})


def test_a_canary_that_fails_is_withdrawn_by_itself_and_harms_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "ENOUGH", 10)
    monkeypatch.setattr("serving.pipeline.holdings.JUDGE_S", 0.05)
    score = RankerScore.score

    def bad(self: Any, work: Any) -> Any:
        if work.snapshot.bundle.name == "world-2":
            raise RuntimeError("bad on purpose")
        return score(self, work)

    monkeypatch.setattr(RankerScore, "score", bad)
    before = value("bespoke_release_withdrawn_total")
    engine.releases.try_out("world-2", "canary", Share(share=0.5), by="test")
    engine.refresh()
    control = []
    for n in range(60):
        answer = ask(engine, f"u{n}")
        assert len(answer.items) == 10
        if answer.model_version == "world-1":
            control.append(answer.degraded)
    assert set(control) == {()}  # the circuits of a release are its own
    until(lambda: engine.trial is None)
    assert value("bespoke_release_withdrawn_total") == before + 1
    entry = engine.store.documents.audit(RELEASE, "world-2")[0]
    assert entry.by == "bespoke"
    assert entry.after is not None
    assert entry.after["reason"].startswith("error rate")


def told(engine: Engine, **figures: tuple[float, bool, int]) -> str | None:
    """The verdict on arms with so many seconds, failures and successes in 1,000 answers."""
    assert engine.trial is not None
    for arm, (seconds, failed, successes) in figures.items():
        tally = engine.trial.tallies[arm]  # type: ignore[index]
        for _ in range(1000):
            engine.trial.note(arm, seconds, failed=failed)  # type: ignore[arg-type]
        tally.successes = successes
    return engine.trial.verdict()


@pytest.mark.parametrize(
    ("canary", "reason"),
    [
        ((0.010, False, 100), None),
        ((0.014, False, 95), None),
        ((0.010, False, 45), "0.0450 'click' an answer, control 0.1000"),
        ((0.030, False, 100), "p99 30.0 ms, control 10.0 ms"),
        ((0.010, True, 100), "error rate 1.000, control 0.000"),
    ],
)
def test_the_verdict_names_what_is_worse(engine: Engine, canary: tuple[float, bool, int], reason: str | None) -> None:
    engine.releases.try_out("world-2", "canary", Share(), by="test")
    engine.refresh()
    assert told(engine, control=(0.010, False, 100), canary=canary) == reason


def test_events_that_echo_an_answer_count_for_its_arm(engine: Engine) -> None:
    engine.releases.try_out("world-2", "canary", Share(share=0.5, goal="purchase"), by="test")
    engine.refresh()
    assert engine.trial is not None
    for n in range(20):
        answer = ask(engine, f"u{n}")
        for event_type in ("view", "purchase"):
            engine.count(
                [
                    Event(
                        user_id=f"u{n}",
                        item_id="g1-1",
                        event_type=event_type,
                        timestamp=datetime.now(UTC),
                        recommendation_id=answer.recommendation_id,
                    )
                ]
            )
    tallies = engine.trial.tallies
    assert tallies["canary"].successes == tallies["canary"].answers > 0
    assert tallies["control"].successes == tallies["control"].answers > 0
    assert sum(tally.answers for tally in tallies.values()) == 20


def test_a_shadow_answers_nobody_and_is_compared(engine: Engine) -> None:
    engine.releases.try_out("world-2", "shadow", Share(share=1.0), by="test")
    engine.refresh()

    async def several() -> set[str]:
        found = set()
        for n in range(10):
            answer = await engine.recommend(Query(k=10, now=datetime.now(UTC), user_id=f"u{n}"))
            found.add(answer.model_version)
            assert engine.shadow.under_way is not None
            await engine.shadow.under_way
        return found

    assert asyncio.run(several()) == {"world-1"}
    assert engine.trial is not None
    figures = engine.trial.report()["difference"]
    assert figures["compared"] == 10
    assert figures["overlap"] == figures["rank_biased_overlap"] == 1.0  # the two worlds are alike


def test_a_slow_shadow_is_dropped_not_waited_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    find = TwoTowerSource.find

    def slow(self: Any, work: Any, count: int) -> Any:
        assert work.snapshot.bundle.name == "world-1" or free.wait(WAIT_S)
        return find(self, work, count)

    monkeypatch.setattr(TwoTowerSource, "find", slow)
    engine.releases.try_out("world-2", "shadow", Share(share=1.0), by="test")
    engine.refresh()

    async def several() -> None:
        for _ in range(5):
            await engine.recommend(Query(k=10, now=datetime.now(UTC), user_id="ann"))
            await asyncio.sleep(0)
        free.set()
        assert engine.shadow.under_way is not None
        await engine.shadow.under_way

    asyncio.run(several())
    assert engine.trial is not None
    assert engine.trial.difference.dropped == 4
    assert engine.trial.difference.compared == 1


def test_lists_are_compared_from_the_top() -> None:
    assert overlap([], []) == rank_biased_overlap([], []) == 1.0
    assert overlap(["a", "b"], ["b", "c"]) == 0.5
    assert rank_biased_overlap(["a", "b"], ["c", "d"]) == 0.0
    assert rank_biased_overlap(list("abcde"), list("abcde")) == pytest.approx(1.0)
    swapped_late, swapped_early = list("abced"), list("bacde")
    assert rank_biased_overlap(list("abcde"), swapped_early) < rank_biased_overlap(list("abcde"), swapped_late) < 1


def test_promotion_and_the_way_back(engine: Engine, releases: Path) -> None:
    control = engine.releases
    with pytest.raises(NotFound, match="nowhere"):
        control.promote("nowhere", by="test")
    with pytest.raises(NotFound, match="not the name"):
        control.promote("../world-1", by="test")
    with pytest.raises(Conflict, match="current one"):
        control.try_out("world-1", "canary", Share(), by="test")
    with pytest.raises(Conflict, match="go back to"):
        control.rollback(by="test", reason="x")
    control.try_out("world-2", "canary", Share(), by="test")
    control.promote("world-2", by="test")
    engine.refresh()
    assert engine.trial is None
    assert ask(engine).model_version == current_release(releases) == "world-2"
    assert control.rollback(by="test", reason="worse") == ("world-2", "world-1")
    engine.refresh()
    assert ask(engine).model_version == "world-1"
    (releases / "world-2" / "matrix.npy").write_bytes(b"")
    with pytest.raises(BundleError, match="checksum"):
        control.promote("world-2", by="test")
    assert current_release(releases) == "world-1"


def test_replicas_agree(engine: Engine, releases: Path, tmp_path: Path) -> None:
    other = start(releases, tmp_path / "store.db")
    try:
        engine.releases.try_out("world-2", "canary", Share(share=0.5), by="test")
        until(lambda: engine.trial and other.trial)
        people = [f"u{n}" for n in range(30)]
        assert [ask(engine, one).model_version for one in people] == [ask(other, one).model_version for one in people]
    finally:
        other.stop()


def test_releases_over_http(engine: Engine) -> None:
    with TestClient(create_api(engine), raise_server_exceptions=False) as client:
        body = client.get("/v1/releases").json()
        assert body["serving"] == "world-1"
        assert [(one["name"], one["state"]) for one in body["releases"]] == [
            ("world-2", "idle"),
            ("world-1", "current"),
        ]
        assert client.post("/v1/releases/world-2/canary", json={"share": 0.2}).json()["state"] == "canary"
        trial = client.get("/v1/releases").json()["trial"]
        assert (trial["name"], trial["share"], trial["canary"]["answers"]) == ("world-2", 0.2, 0)
        assert client.post("/v1/releases/world-2/canary", json={"share": 2}).status_code == 422
        assert client.post("/v1/releases/world-2/shadow", json={}).json()["state"] == "shadow"
        assert client.get("/v1/releases").json()["trial"]["difference"]["compared"] == 0
        assert client.post("/v1/releases/none/promote", json={}).status_code == 404
        assert client.post("/v1/releases/world-2/promote", json={}).json()["state"] == "current"
        assert client.get("/v1/info").json()["model_version"] == "world-2"
        done = client.post("/v1/releases/rollback", json={"reason": "a test"})
        assert done.json() == {"withdrawn": "world-2", "current": "world-1"}
        assert client.post("/v1/releases/rollback", json={}).status_code == 409


def test_releases_from_the_command_line(releases: Path, tmp_path: Path) -> None:
    write_world(releases, "world-2")
    point_to(releases, "world-1")
    where = ["--releases", str(releases), "--store", f"sqlite:///{tmp_path / 'c.db'}"]

    def run(*words: str) -> tuple[int, str]:
        found = CliRunner().invoke(bespoke.app, ["release", *words, *where])
        return found.exit_code, found.output

    assert run("list")[1].count("world-") == 2
    assert not (tmp_path / "c.db").exists(), "to look makes no store"
    assert "20% of the people" in run("canary", "world-2", "--share", "0.2")[1]
    assert "canary 20%" in run("list")[1]
    assert run("shadow", "world-2")[0] == 0
    assert "[bold]" not in run("promote", "world-2")[1]
    assert current_release(releases) == "world-2"
    assert "world-1 is the current release" in run("rollback", "--reason", "slow")[1]
    assert "slow" in run("list")[1]
    code, said = run("canary", "world-2", "--share", "7")
    assert (code, "share" in said) == (1, True)
    assert run("promote", "nowhere")[0] == 1
    where = ["--releases", str(tmp_path / "none"), "--store", f"sqlite:///{tmp_path / 'none' / 'd.db'}"]
    assert run("list") == (0, f"no release in {tmp_path / 'none'}\n")
    assert not (tmp_path / "none").exists()
