"""A small part of `python -m benchmarks chaos`: the scenarios of the store, and that they would notice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import chaos, chaos_service, chaos_store
from benchmarks.trial import Trial
from embeddings.errors import InputError
from embeddings.schema import Event, Item
from serving.store import Store


def test_nothing_is_lost_when_the_clock_jumps_and_the_disk_fills(capsys: pytest.CaptureFixture[str]) -> None:
    chaos.main(["--short", "--only", "clock", "--only", "disk_full", "--seed", "5"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "clock"], ["ok", "disk_full"]]
    found = json.loads(last)
    assert found["seed"] == 5
    assert all(one["ok"] for one in found["scenarios"].values())
    assert found["scenarios"]["disk_full"]["refused_batches"] > 0


def test_a_scenario_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match="unknown scenario 'kill'; did you mean 'kills'"):
        chaos.main(["--only", "kill"])


def test_anything_lost_is_the_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chaos.SCENARIOS, "clock", lambda trial: trial.expect(False, "an hour is gone"))
    with pytest.raises(SystemExit, match="1"):
        chaos.main(["--short", "--only", "clock"])
    out = capsys.readouterr().out
    assert "LOST clock" in out
    assert "an hour is gone" in out


def test_a_lost_and_a_doubled_event_are_noticed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with Store.open(url) as store:
        store.events.append([Event(user_id="u1", item_id="i", timestamp=chaos_store.START, event_id="there")])
    trial = Trial(tmp_path)
    chaos_store._check_events(trial, url, {"there"}, "before")
    assert trial.wrong == []
    chaos_store._check_events(trial, url, {"there", "gone"}, "after")
    assert trial.wrong == ["after: 1 acknowledged events are gone, such as ['gone']"]


def test_rot_that_is_served_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, content = chaos_store._sound_store(tmp_path / "sound.db")
    assert chaos_store._told(tmp_path / "same.db", content) == whole
    monkeypatch.setattr(chaos_store, "_sound_store", lambda _: (whole, content[:5]))
    monkeypatch.setattr(chaos_store, "_told", lambda *_: whole | {"items": [Item(item_id="x")]})
    trial = Trial(tmp_path, short=False)
    chaos_store.rot(trial)
    assert len(trial.wrong) == 10
    assert trial.wrong[0] == "byte 0 flipped: served what was never stored"


def answer(prefix: str, release: str, count: int = 20) -> dict[str, object]:
    return {"model_version": release, "items": [{"item_id": f"{prefix}i{n}"} for n in range(count)]}


def test_wrong_lists_are_noticed() -> None:
    assert chaos_service.fault(answer("", "untrained")) == []
    assert chaos_service.fault(answer("other:", "other")) == []
    assert "other" in chaos_service.fault(answer("other:", "untrained"))[0]
    assert "untrained" not in chaos_service.fault(answer("other:", "other"))
    assert chaos_service.fault(answer("", "other"))
    assert "19 different" in chaos_service.fault(answer("", "untrained", 19))[0]
