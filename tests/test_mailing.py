"""Messages for many: the lists of the live service, only for those who may get one, whole or not at all."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from embeddings.errors import Conflict, DataError, InputError, StoreError, Unavailable
from embeddings.schema import Event, User
from serving.api import create_api
from serving.batch import _work
from serving.decisions.deciding import DecisionQuery
from serving.people import mailing
from serving.people.mailing import missing, open_quietly, plan_mailing, write_partition
from serving.people.messages import Campaign
from serving.policy.contact import Cap, Quiet
from serving.replica.engine import Engine
from serving.request.query import Answer, Query
from serving.settings import Settings
from serving.store import Store
from serving.store.batches import MANIFEST, part, pending, read_plan, sole, write_manifest
from serving.writers import in_processes, in_this_process
from tests.conftest import write_world
from tests.test_cli import call
from tests.test_decisions import decision
from tests.test_replenishment import publish
from tests.test_store import fresh_url

AT = datetime.now(UTC).replace(microsecond=0)
PEOPLE = [f"u{n:02}" for n in range(23)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The known-answer world with paces; it is only read."""
    folder = tmp_path_factory.mktemp("mailing") / "releases"
    publish(folder)
    return folder


@pytest.fixture
def settings(published: Path, tmp_path: Path) -> Settings:
    return Settings(releases=published, store=f"sqlite:///{tmp_path / 'store.db'}", deadline_ms=10_000)


@pytest.fixture
def writer(engine: Engine, settings: Settings) -> Iterator[Engine]:
    """The engine that composes, in another process as far as the live one can tell."""
    one = open_quietly(settings)
    yield one
    one.stop()


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """The live service's engine, over people who each like a group, some rules, and a placement for mails."""
    one = Engine(settings)
    one.start()
    events = [
        Event(user_id=user_id, item_id=f"g{n % 4}-{n}", event_type="view", timestamp=AT - timedelta(hours=n + 1))
        for n, user_id in enumerate(PEOPLE)
    ]
    one.store.events.append(events)
    one.store.profiles.upsert([User(user_id="quiet one", attributes={"country": "DE"})])
    cheap = {"attribute": "price", "op": "lt", "value": 4}
    by_mail = {"attribute": "context.channel", "op": "eq", "value": "email"}
    pinned = {"attribute": "categories", "op": "contains", "value": "group-3"}
    mailed = {"k": 6, "sources": ["two_tower", "similar_to_recent", "replenishment"], "diversity": 0.3}
    for kind, name, body in (
        ("rule", "dear", {"action": {"type": "exclude"}, "items": cheap, "when": by_mail}),
        ("rule", "pin", {"action": {"type": "pin", "position": 1}, "items": pinned, "placements": ["mail"]}),
        ("placement", "mail", mailed),
    ):
        one.store.documents.put(kind, name, {"id": name} | body, by="test")
    one.refresh()
    assert not one.policy.problems
    yield one
    one.stop()


def campaign(**fields: Any) -> Campaign:
    return Campaign(**({"placement": "mail", "at": AT} | fields))


def mail(writer: Engine, folder: Path, per_partition: int = 7, **fields: Any) -> list[dict[str, Any]]:
    """Write a mailing, by an engine that is as of now; its messages."""
    writer.refresh()
    plan = plan_mailing(writer.store, folder, campaign(**fields), per_partition=per_partition)
    for number in missing(folder, plan):
        write_partition(writer, folder, plan, number)
    write_manifest(folder, plan)
    return messages(folder)


def messages(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("part-*.parquet"))
    rows: list[dict[str, Any]] = pa.concat_tables(map(pq.read_table, files)).to_pylist()
    return rows


def live(engine: Engine, user_id: str, **fields: Any) -> Answer:
    given = {"k": 6, "placement": "mail", "context": {"channel": "email"}, "now": AT} | fields
    return asyncio.run(engine.recommend(Query(user_id=user_id, **given)))


def shown(answer: Answer) -> list[tuple[str, float, str]]:
    return [(one.item_id, one.score, one.reasons[0].text) for one in answer.items]


def told(message: dict[str, Any]) -> list[tuple[str, float, str]]:
    return [(one["item_id"], one["score"], one["reason"]) for one in message["items"]]


def test_the_same_person_at_the_same_moment_gets_the_same_list(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    found = mail(writer, tmp_path / "out")
    assert [one["user_id"] for one in found] == sorted([*PEOPLE, "quiet one"])
    assert {len(one["items"]) for one in found} == {6}
    for message in found:
        answer = live(engine, message["user_id"])
        assert told(message) == shown(answer), message["user_id"]
        assert message["items"][1]["item_id"].startswith("g3")
        assert (message["model_version"], message["policy_version"]) == (answer.model_version, answer.policy_version)
    with TestClient(create_api(engine)) as client:
        body = {"user_id": "u05", "placement": "mail", "k": 6, "context": {"channel": "email"}}
        over_http = client.post("/v1/recommendations", json=body).json()["items"]
    mine = next(one for one in found if one["user_id"] == "u05")
    assert [one["item_id"] for one in over_http] == [one["item_id"] for one in mine["items"]]
    in_app = mail(writer, tmp_path / "app", channel="app")
    assert told(in_app[0]) == shown(live(engine, in_app[0]["user_id"], context={"channel": "app"}))
    assert told(in_app[0]) != told(found[0]), "a rule of mails makes the difference"


def test_a_message_has_the_content_that_the_service_would_decide_on(
    engine: Engine, writer: Engine, tmp_path: Path
) -> None:
    variants = [{"id": name, "payload": {"text": name}} for name in ("a", "b")]
    body = {"id": "subject", "variants": variants, "holdout": 0.3, "caps": [{"limit": 1, "days": 7}]}
    engine.store.documents.put("content", "subject", body, by="test")
    engine.take_changes()
    found = {one["user_id"]: one["content"] for one in mail(writer, tmp_path / "out", content="subject")}
    query = DecisionQuery(contents=["subject"], now=AT, user_id="", context={"channel": "email"})
    for user_id, content in found.items():
        ((live, *_), _) = asyncio.run(engine.decided(replace(query, user_id=user_id)))
        if content is None:
            assert live.reason == "holdout"
            continue
        assert live.reason == "capped"  # what was sent counts here
        logged = engine.store.decisions.get(content["recommendation_id"])
        assert logged is not None
        assert (logged.kind, logged.items, json.loads(content["payload"])) == (
            "content",
            [content["variant"]],
            {"text": content["variant"]},
        )
    assert {content and content["variant"] for content in found.values()} == {"a", "b", None}
    log = engine.store.decisions.between(AT, AT + timedelta(seconds=1), kind="content").decisions
    assert len(log) == len(found)  # of those who are held out too
    assert engine.store.batches.contacts(["u05"], "email", AT, AT + timedelta(seconds=1)) == {"u05": 1}
    engine.store.documents.put("content", "free", body | {"id": "free", "holdout": 0.0, "caps": []}, by="test")
    engine.take_changes()
    for message in mail(writer, tmp_path / "free", content="free"):
        asked = replace(query, contents=["free"], user_id=message["user_id"])
        assert message["content"]["variant"] == asyncio.run(engine.decided(asked))[0][0].variant
    with pytest.raises(InputError, match="did you mean 'subject'"):
        mail(writer, tmp_path / "other", content="subjekt")


def test_a_message_that_is_composed_again_is_the_same_showing(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    body = {"id": "subject", "variants": [{"id": "a", "payload": {"text": "a"}}], "caps": [{"limit": 1, "days": 7}]}
    engine.store.documents.put("content", "subject", body, by="test")
    first = mail(writer, tmp_path / "out", content="subject")
    (tmp_path / "out" / "manifest.json").unlink()
    for path in (tmp_path / "out").glob("part-*.parquet"):
        path.unlink()  # as after a crash before they lay in their place
    again = mail(writer, tmp_path / "out", content="subject")
    assert [one["content"] for one in again] == [one["content"] for one in first]
    assert all(one["content"] for one in again)


def test_what_is_written_is_in_the_decision_log(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    for user_id in PEOPLE:
        engine.store.profiles.upsert([User(user_id=user_id, consent={"analytics": user_id != "u03"})])
    found = mail(writer, tmp_path / "out", k=4)
    for message in found:
        logged = engine.store.decisions.get(message["recommendation_id"])
        assert logged is not None
        assert list(logged.items) == [one["item_id"] for one in message["items"]]
        assert (logged.channel, logged.placement, logged.at) == ("email", "mail", AT)
        assert logged.user_id == (None if message["user_id"] == "u03" else message["user_id"])
        assert logged.request["k"] == 4
    assert not list((tmp_path / "out" / "_pending").iterdir())
    assert len(engine.store.decisions.between(AT, AT + timedelta(seconds=1)).decisions) == len(found)


def test_consent_is_respected(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    engine.store.profiles.upsert(
        [User(user_id="u04", consent={"marketing": False}), User(user_id="u05", consent={"personalization": False})]
    )
    found = {one["user_id"]: one for one in mail(writer, tmp_path / "out")}
    assert "u04" not in found
    assert (found["u05"]["personalized"], found["u06"]["personalized"]) == (False, True)
    engine.holdings.demand_at = 0.0
    engine.refresh()  # demand is counted anew every few seconds: here, now
    everybody = live(engine, "u05", personalized=False)
    assert [one[0] for one in told(found["u05"])] == [one[0] for one in shown(everybody)]
    assert [one[0] for one in told(found["u05"])] == [one[0] for one in shown(live(engine, "u05"))], "as on the page"
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["skipped"] == {"no consent to marketing": 1}
    assert manifest["messages"] == sum(manifest["files"].values()) == len(found) == manifest["people"] - 1


def test_an_alias_is_nobody_of_its_own(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    engine.store.aliases.link("u07", "u08")
    names = [one["user_id"] for one in mail(writer, tmp_path / "out")]
    assert "u07" not in names
    assert "u08" in names


def test_what_is_due_is_told_and_silent_after_the_purchase(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    def buy(days_ago: float) -> None:
        when = AT - timedelta(days=days_ago)
        engine.store.events.append([Event(user_id="u01", item_id="g2-3", event_type="purchase", timestamp=when)])

    for days_ago in (88, 59, 29):
        buy(days_ago)
    mine = next(one for one in mail(writer, tmp_path / "one", k=90) if one["user_id"] == "u01")
    assert [(one["item_id"], one["title"]) for one in mine["due"]] == [("g2-3", "Group 2 item 3")]
    assert mine["due"][0]["due_at"] > AT - timedelta(days=2)
    assert 0.5 < mine["due"][0]["confidence"] < 1
    assert "g2-3" in [one["item_id"] for one in mine["items"]], "the placement has it as a source"
    buy(0)
    mine = next(one for one in mail(writer, tmp_path / "two", k=90) if one["user_id"] == "u01")
    assert mine["due"] == []
    assert "g2-3" not in [one["item_id"] for one in mine["items"]]


def test_links_come_from_a_template_or_from_the_items(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    link = "https://shop.example/{item_id}?r={recommendation_id}&p={position}&c={channel}"
    first = mail(writer, tmp_path / "one", link=link)[0]
    assert [one["link"] for one in first["items"]] == [
        f"https://shop.example/{one['item_id']}?r={first['recommendation_id']}&p={place}&c=email"
        for place, one in enumerate(first["items"])
    ]
    with TestClient(create_api(engine)) as client:
        odd = {"title": "Odd", "categories": ["group-3"], "price": 50.0, "attributes": {"url": "https://x.example/ä"}}
        assert client.put("/v1/items/a%20b", json=odd).status_code == 200
    linked = {one["item_id"]: one for message in mail(writer, tmp_path / "two") for one in message["items"]}
    assert linked["a b"]["link"] == "https://x.example/ä"
    assert linked["a b"]["price"] == 50.0
    assert {one["link"] for name, one in linked.items() if name != "a b"} == {None}
    quoted = mail(writer, tmp_path / "three", link="https://shop.example/{item_id}")
    assert "https://shop.example/a%20b" in [one["link"] for message in quoted for one in message["items"]]


def test_caps_count_what_other_mailings_sent(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    cap = Cap.read("2/7")
    old = decision("old", user_id="u02", at=AT - timedelta(days=8), channel="email")
    here = decision("web", user_id="u02", at=AT - timedelta(days=1), channel="web")
    engine.store.decisions.write(
        [old, here, decision("new", user_id="u02", at=AT - timedelta(days=1), channel="email")]
    )
    first = mail(writer, tmp_path / "one", cap=cap)
    assert len(first) == len(PEOPLE) + 1
    later = AT + timedelta(hours=1)
    second = [one["user_id"] for one in mail(writer, tmp_path / "two", cap=cap, at=later)]
    assert sorted({*PEOPLE, "quiet one"} - set(second)) == ["u02"]
    assert mail(writer, tmp_path / "three", cap=cap, at=later + timedelta(hours=1)) == []
    assert len(mail(writer, tmp_path / "push", cap=cap, channel="push", at=later)) == len(PEOPLE) + 1


@pytest.mark.parametrize(
    ("quiet", "zone", "attributes", "at", "until"),
    [
        ("21:00-08:00", "UTC", {}, "2026-03-01T22:30", "2026-03-02T08:00"),
        ("21:00-08:00", "UTC", {}, "2026-03-01T07:59", "2026-03-01T08:00"),
        ("21:00-08:00", "UTC", {}, "2026-03-01T08:00", None),
        ("21:00-08:00", "UTC", {"time_zone": "America/New_York"}, "2026-03-01T08:30", "2026-03-01T13:00"),
        ("21:00-08:00", "America/New_York", {"time_zone": "nowhere"}, "2026-03-01T08:30", "2026-03-01T13:00"),
        (
            "21:00-08:00",
            "Europe/Berlin",
            {},
            "2026-03-28T23:30",
            "2026-03-29T06:00",
        ),  # the clocks go forward that night
        ("12:00-14:00", "UTC", {"time_zone": 3}, "2026-03-01T13:00", "2026-03-01T14:00"),
        ("12:00-14:00", "UTC", {}, "2026-03-01T14:00", None),
    ],
)
def test_nobody_is_disturbed_in_quiet_hours(
    quiet: str, zone: str, attributes: dict[str, Any], at: str, until: str | None
) -> None:
    def moment(text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    assert Quiet.read(quiet, zone).until(moment(at), attributes) == (None if until is None else moment(until))


def test_quiet_hours_stand_in_the_feed(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    engine.store.profiles.upsert([User(user_id="u01", attributes={"time_zone": "Asia/Tokyo"})])
    at = datetime(2026, 3, 1, 13, tzinfo=UTC)
    quiet = Quiet.read("21:00-08:00", "UTC")
    # Whatever the clock says today, the campaign is of that moment: it is not told apart from one that is planned.
    found = {one["user_id"]: one for one in mail(writer, tmp_path / "out", at=at, quiet=quiet, valid_hours=8_000.0)}
    assert found["u01"]["send_after"] == datetime(2026, 3, 1, 23, tzinfo=UTC)
    assert found["u02"]["send_after"] is None


def test_a_filter_chooses_people(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    only = {"attribute": "user.country", "op": "eq", "value": "DE"}
    assert [one["user_id"] for one in mail(writer, tmp_path / "out", filter=only)] == ["quiet one"]
    active = {"attribute": "user.events", "op": "ge", "value": 1}
    assert len(mail(writer, tmp_path / "active", filter=active)) == len(PEOPLE)


class Crash(BaseException):
    """Stands for the end of the process: nothing may catch it."""


@pytest.mark.parametrize("step", ["compose", "aside", "put", "log", "unlink"])
def test_a_crash_costs_nothing_and_sends_nothing_twice(
    engine: Engine, writer: Engine, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    plan = plan_mailing(engine.store, folder, campaign(), per_partition=7)
    write_partition(writer, folder, plan, 0)

    def crash(*_: Any, **__: Any) -> Any:
        raise Crash

    with monkeypatch.context() as patch:
        if step == "compose":
            patch.setattr(mailing.Composer, "_message", crash)
        elif step in ("aside", "put"):
            put, calls = mailing._put, iter(range(2))
            patch.setattr(mailing, "_put", lambda *given: crash() if next(calls) == (step == "put") else put(*given))
        elif step == "log":
            patch.setattr(type(writer.store.decisions), "write", crash)
        else:
            patch.setattr(Path, "unlink", crash)
        with pytest.raises(Crash):
            write_partition(writer, folder, plan, 1)
    assert part(folder, 1).is_file() == (step in ("log", "unlink"))
    assert 1 in missing(folder, plan)
    # Meanwhile somebody did something: what is composed again may differ, what was in its place may not.
    before = pq.read_table(part(folder, 1)) if part(folder, 1).is_file() else None
    when = AT - timedelta(minutes=1)
    engine.store.events.append([Event(user_id="u08", item_id="g3-9", event_type="view", timestamp=when)])
    for number in missing(folder, plan):
        write_partition(writer, folder, plan, number)
    assert missing(folder, plan) == []
    assert before is None or pq.read_table(part(folder, 1)).equals(before)
    found = messages(folder)
    assert sorted(one["user_id"] for one in found) == sorted([*PEOPLE, "quiet one"])
    logged = engine.store.decisions.between(AT, AT + timedelta(seconds=1)).decisions
    assert {one.recommendation_id: list(one.items) for one in logged} == {
        one["recommendation_id"]: [item["item_id"] for item in one["items"]] for one in found
    }
    assert not list(folder.rglob(".part*"))


def test_a_message_composed_again_has_the_same_id(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = mail(writer, folder)
    part(folder, 1).unlink()
    (folder / MANIFEST).unlink()
    assert mail(writer, folder, at=AT + timedelta(minutes=5)) == first, "it goes on with the moment it was begun for"


def test_a_folder_has_one_mailing(engine: Engine, writer: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    plan_mailing(engine.store, folder, campaign())
    with pytest.raises(Conflict, match="differs in channel, k"):
        plan_mailing(engine.store, folder, campaign(channel="push", k=3))
    assert plan_mailing(engine.store, folder, campaign(at=AT + timedelta(hours=1))) == read_plan(folder)
    mail(writer, folder)
    with pytest.raises(Conflict, match="finished mailing"):
        plan_mailing(engine.store, folder, campaign())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(Conflict, match="is not empty"):
        plan_mailing(engine.store, tmp_path / "full", campaign())
    over = campaign(at=AT - timedelta(days=3))
    plan_mailing(engine.store, tmp_path / "over", over)
    with pytest.raises(Conflict, match="may not be sent any more"):
        plan_mailing(engine.store, tmp_path / "over", over)
    shutil.copytree(tmp_path / "over", tmp_path / "copy")
    with Store.open(f"sqlite:///{tmp_path / 'other.db'}") as other, pytest.raises(Conflict, match="of another store"):
        plan_mailing(other, tmp_path / "copy", over)
    (tmp_path / "over" / "batch.json").write_text("{}")
    with pytest.raises(DataError, match="not the plan of a batch"):
        plan_mailing(engine.store, tmp_path / "over", over)
    with sole(folder), pytest.raises(Conflict, match="somebody is writing"), sole(folder):
        pass
    for out in (tmp_path / "full" / "file", tmp_path / "full" / "file" / "in"):
        with pytest.raises(InputError, match="out: cannot write messages to"), sole(out):
            pass


def test_who_is_erased_is_in_no_message(
    engine: Engine, writer: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    plan = plan_mailing(engine.store, folder, campaign(), per_partition=7)
    with monkeypatch.context() as patch:  # it ends before the log has the decisions
        patch.setattr(type(writer.store.decisions), "write", lambda *_: (_ for _ in ()).throw(StoreError("gone")))
        with pytest.raises(StoreError):
            write_partition(writer, folder, plan, 1)
    write_partition(writer, folder, plan, 0)
    engine.store.profiles.erase("u08")
    assert engine.store.batches.forget("u08") == [part(folder, 1), pending(folder, 1)]
    original = mailing.Composer.compose

    async def erased_meanwhile(self: Any, names: list[str]) -> Any:
        composed = await original(self, names)
        engine.store.profiles.erase("u15")
        return composed

    with monkeypatch.context() as patch:
        patch.setattr(mailing.Composer, "compose", erased_meanwhile)
        for number in missing(folder, plan):
            write_partition(writer, folder, plan, number)
    write_manifest(folder, plan)
    gone = {"u08", "u15"}
    assert {one["user_id"] for one in messages(folder)} == {*PEOPLE, "quiet one"} - gone
    logged = engine.store.decisions.between(AT, AT + timedelta(seconds=1)).decisions
    assert {one.user_id for one in logged} == {*PEOPLE, "quiet one"} - gone
    with TestClient(create_api(engine)) as client:
        assert client.delete("/v1/users/u01").status_code == 200
    assert "u01" not in {one["user_id"] for one in messages(folder)}
    assert engine.store.batches.forget("u01") == []
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["messages"] == len(messages(folder)) == sum(manifest["files"].values())
    shutil.rmtree(folder)
    assert engine.store.batches.forget("u02") == []
    assert len(engine.store.batches.every()) == 1, "it may only be out of reach"
    (batch,) = engine.store.batches.every()
    engine.store.batches.drop(batch.name)
    engine.store.batches.register(replace(batch, valid_until=datetime.now(UTC)))
    assert engine.store.batches.forget("u02") == []
    assert engine.store.batches.every() == (), "a folder that is gone is not looked for again"


def test_a_folder_that_is_out_of_reach_is_counted_until_nothing_of_it_may_be_sent(
    engine: Engine, writer: Engine, tmp_path: Path
) -> None:
    folder, away = tmp_path / "out", tmp_path / "away"
    plan = plan_mailing(engine.store, folder, campaign(at=datetime.now(UTC)), per_partition=100)
    write_partition(writer, folder, plan, 0)
    folder.rename(away)  # a volume that is not mounted at the moment
    with TestClient(create_api(engine)) as client:
        assert client.post("/v1/users/u03/erase", json={}).json()["receipt"]["removed"]["messages_pending"] == 1
        away.rename(folder)
        receipt = client.post("/v1/users/u04/erase", json={}).json()["receipt"]
    assert (receipt["removed"]["messages_pending"], receipt["removed"]["message_files"]) == (0, 1)
    assert "u04" not in {one["user_id"] for one in messages(folder)}


def test_partitions_have_everybody_once(tmp_path: Path) -> None:
    for people in (0, 7, 20):
        with Store.open(f"sqlite:///{tmp_path / f'{people}.db'}") as store:
            store.profiles.upsert([User(user_id=f"p{n}") for n in range(people)])
            for each in (1, 3, 7, 100):
                plan = plan_mailing(store, tmp_path / f"o{people}-{each}", campaign(), per_partition=each)
                found = [store.batches.people(*plan.between(n), 1000) for n in range(len(plan.ends))]
                assert plan.people == people
                assert [name for some in found for name in some] == sorted(f"p{n}" for n in range(people))
                assert all(0 < len(some) <= each for some in found)
                assert all(plan.partition_of(name) == n for n, some in enumerate(found) for name in some)
                assert plan.partition_of("zz") is None
                limited = plan_mailing(store, tmp_path / f"l{people}-{each}", campaign(), limit=5, per_partition=each)
                assert limited.people == min(people, 5)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_store_knows_people_contacts_and_folders(kind: str, tmp_path: Path) -> None:
    with fresh_url(kind, tmp_path) as url, Store.open(url) as store:
        store.profiles.upsert([User(user_id=name) for name in ("b", "a", "c", "ä")])
        store.aliases.link("c", "a")
        assert store.batches.people(None, None, 10) == ["a", "b", "ä"]
        assert store.batches.people("a", "b", 10) == ["b"]
        assert store.batches.living(["a", "z", "c"]) == {"a", "c"}
        made = [decision(f"r{n}", user_id="ab"[n % 2], at=AT - timedelta(days=n), channel="email") for n in range(5)]
        store.decisions.write([*made, decision("web", user_id="a", at=AT - timedelta(days=1))])
        assert store.batches.contacts(["a", "b", "z"], "email", AT - timedelta(days=4), AT) == {"a": 2, "b": 2}
        plan = plan_mailing(store, tmp_path / "out", campaign())
        (batch,) = store.batches.every()
        assert (batch.name, batch.folder) == (plan.name, tmp_path / "out")
        assert batch.valid_until == AT + timedelta(days=1)
        plan_mailing(store, tmp_path / "out", campaign())
        assert len(store.batches.every()) == 1


def bare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "recommendation_id"} for row in rows]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_processes_and_ray_data_write_the_same(
    engine: Engine, writer: Engine, settings: Settings, tmp_path: Path
) -> None:
    import ray

    from serving.writers_ray import on_ray

    expected = mail(writer, tmp_path / "alone")
    ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False)
    for work in (in_processes, on_ray):
        folder = tmp_path / work.__name__
        plan = plan_mailing(engine.store, folder, campaign(), per_partition=7)
        counts = list(work(settings, folder, plan, missing(folder, plan), 2))
        assert sum(one.messages for one in counts) == len(expected)
        assert sum((one.skipped for one in counts), Counter()) == {}
        write_manifest(folder, plan)
        assert bare(messages(folder)) == bare(expected)
        assert list(work(settings, folder, plan, missing(folder, plan), 2)) == []


def test_an_error_of_ours_comes_out_of_ray_as_it_was() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    from serving.writers_ray import _unwrapped

    wrong = InputError("content: 'cart' is an alert", field="content")
    both = exceptions.RayTaskError("write", "a page of traces", wrong).as_instanceof_cause()
    within = exceptions.UserCodeException("a page of traces")
    within.__cause__ = both
    for raised in (both, within):
        with pytest.raises(InputError) as found, _unwrapped():
            raise raised
        assert found.value is wrong
    with pytest.raises(KeyError), _unwrapped():
        raise KeyError("not ours")


def test_the_command_writes_a_mailing(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    where = ["--releases", settings.releases, "--store", settings.store, "--workers", "1"]
    alert = {"id": "cart", "variants": [{"id": "a", "payload": {"text": "a"}}], "trigger": {"type": "cart_abandonment"}}
    engine.store.documents.put("content", "cart", alert, by="test")
    code, out, err = call("batch", "--out", tmp_path / "out", "--placement", "mail", "--k", "3", "--limit", "5", *where)
    assert code == 0, err
    assert f"5 messages for 5 people in {tmp_path / 'out'}" in out.replace("\n", "")
    assert {len(one["items"]) for one in messages(tmp_path / "out")} == {3}
    for wrong, says in (
        (["--filter", "{"], "filter: not JSON"),
        (["--filter", '{"attribute": "colour", "op": "eq", "value": 1}'], "unknown attribute 'colour'"),
        (["--cap", "many"], "such as 3/7"),
        (["--quiet", "late"], "21:00-08:00"),
        (["--quiet", "08:00-08:00"], "leaves no time at all"),
        (["--time-zone", "Moon"], "is no time zone"),
        (["--link", "https://x.example/{item}"], "did you mean 'item_id'"),
        (["--segment", "nope"], "unknown segment 'nope'"),
        (["--content", "nope"], "unknown content 'nope'"),
        (["--content", "cart"], "'cart' is an alert"),
        (["--valid-hours", "0"], "valid_hours"),
    ):
        with pytest.raises(InputError, match=says):
            _raised(call("batch", "--out", tmp_path / "wrong", *wrong, *where))
    assert not (tmp_path / "wrong").exists()


def _raised(done: tuple[int, str, str]) -> None:
    code, _, err = done
    assert code == 1
    raise InputError(" ".join(err.split()))


def test_ray_data_writes_where_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert [_work(1), _work(2)] == [in_this_process, in_processes]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setitem(sys.modules, "serving.writers_ray", types.SimpleNamespace(on_ray=in_processes))
    assert _work(1) is in_processes
    monkeypatch.setitem(sys.modules, "serving.writers_ray", None)
    with pytest.raises(Unavailable, match="pip install"):
        _work(1)


def test_without_a_release_it_waits(tmp_path: Path) -> None:
    where = ["--releases", tmp_path / "none", "--store", f"sqlite:///{tmp_path / 's.db'}", "--workers", "1"]
    with Store.open(f"sqlite:///{tmp_path / 's.db'}") as store:
        store.profiles.upsert([User(user_id="a")])
    code, _, err = call("batch", "--out", tmp_path / "out", *where)
    assert code == 1
    assert "train and publish one first" in " ".join(err.split())
    assert not (tmp_path / "out").exists(), "what was begun could not be corrected"
    write_world(tmp_path / "none")
    assert call("batch", "--out", tmp_path / "out", *where)[0] == 0
    found = ds.dataset(sorted(str(path) for path in (tmp_path / "out").glob("part-*")), format="parquet")
    assert found.count_rows() == 1
