"""The doctor: a newcomer's machine is fine, and whatever is broken is named with what to do about it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from sqlalchemy import text

import bespoke
from embeddings.errors import Unavailable
from embeddings.releases import CURRENT
from embeddings.schema import Item
from serving import family, loopback, process
from serving.doctor import command, data, machine, processes
from serving.doctor.finding import Finding, Findings, worst
from serving.settings import Settings
from serving.store import Store
from tests.conftest import ROOT, free_port, write_world
from tests.test_process import abandoned, member
from tests.test_store import fresh_url


def settings(tmp_path: Path, **fields: Any) -> Settings:
    given = {"port": free_port(), "releases": tmp_path / "releases", "store": f"sqlite:///{tmp_path / 'store.db'}"}
    return Settings.load(given | fields, environment={})


def told(found: Findings) -> list[tuple[str, str]]:
    findings = list(found)
    for one in findings:
        assert bool(one.advice) == (one.level != "ok"), one
    return [(one.level, f"{one.text} → {one.advice}") for one in findings]


def the(found: Findings) -> tuple[str, str]:
    (one,) = told(found)
    return one


def run(*words: str | Path, cwd: Path, **environment: str) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bespoke", "doctor", "--json", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        timeout=120,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_newcomers_machine_is_fine_and_stays_as_it_was(tmp_path: Path) -> None:
    code, report = run("--port", str(free_port()), cwd=tmp_path)
    problems = [one for one in report["findings"] if one["level"] == "problem"]
    assert (code, problems) == (0, [])
    assert {one["subject"] for one in report["findings"]} >= set(command.checks(Settings()))
    assert report["level"] in ("ok", "warning")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_a_finding_and_the_machine_is_looked_at_all_the_same(tmp_path: Path) -> None:
    code, report = run(cwd=tmp_path, BESPOKE_REPLICAS="many")
    assert (code, report["level"]) == (1, "problem")
    assert "replicas" in report["findings"][0]["text"]
    assert {one["subject"] for one in report["findings"]} >= {"cores", "disk", "versions"}


def test_what_is_shown_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding(subject="a", level="ok", text="as it should be"),
        Finding(subject="b", level="problem", text="[broken]", advice="mend it"),
    ]
    command.show(findings)
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines()] == [
        ["ok", "a", "as", "it", "should", "be"],
        ["problem", "b", "[broken]"],
        ["→", "mend", "it"],
    ]
    assert worst(findings) == "problem"
    assert worst(findings[:1]) == "ok"
    assert worst([]) == "ok"


def test_a_check_that_fails_does_not_end_the_others() -> None:
    def broken() -> Findings:
        raise RuntimeError("no such device")
        yield

    found = list(command.examined({"a": broken, "b": lambda: machine.limits()}))
    assert [one.subject for one in found] == ["a", "limits"]
    assert found[0].text == "could not be looked at: RuntimeError: no such device"


def test_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert the(machine.cores(settings(tmp_path))) == ("ok", "8 of 8 cores → ")
    assert the(machine.cores(settings(tmp_path, replicas=9)))[0] == "warning"
    crowded = told(machine.cores(settings(tmp_path, replicas=8, topology="chained", replica_cpus=0.5)))
    assert [level for level, _ in crowded] == ["ok", "problem"]
    assert "reserve 16 cores, and Ray has 8" in crowded[1][1]
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert the(machine.cores(settings(tmp_path)))[1].startswith("1.5 of 8 cores")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores() == 8


@pytest.mark.parametrize(
    ("free", "running", "level"),
    [(8e9, False, "ok"), (1.5e9, False, "warning"), (0.5e9, False, "problem"), (0.5e9, True, "ok")],
)
def test_memory(free: float, running: bool, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "SHARED_MB", 0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=16e9))
    assert the(machine.memory(running=running))[0] == level


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "SHARED_MB", 1e12)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=32e9, total=64e9))
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("1500000000\n")
    (main, shared) = told(machine.memory(running=False))
    assert main[0] == "problem"
    assert main[1].startswith("0.5 of 2.0 GB free")
    assert shared[0] == "warning"
    assert "shm_size" in shared[1]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e8, total=1e12))
    found = told(machine.disk(settings(tmp_path), tmp_path / "nowhere" / "store.db"))
    assert [level for level, _ in found] == ["problem"] * 3
    assert "bespoke retain" in found[0][1]


def test_a_gpu_that_is_asked_for_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert the(machine.gpu(settings(tmp_path, ranking_gpus=0.5)))[0] == "problem"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert the(machine.gpu(settings(tmp_path)))[0] == "ok"


def test_versions_are_compared_with_the_tested_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(level for level, _ in told(machine.versions())) == "ok"
    monkeypatch.setattr(machine, "KNOWN", tmp_path / "constraints.txt")
    assert told(machine.versions())[-1][0] == "ok"
    installed = machine._installed("numpy")
    (tmp_path / "constraints.txt").write_text(f"# known\nnumpy=={installed}\nhttpx2==0.0.1\nno-such-library==1\n")
    assert told(machine.versions())[-1][1].startswith("not the set that was tested: httpx2 ")
    monkeypatch.setattr(machine, "_installed", lambda name: "0.1" if name == "pyarrow" else None)
    unfit = [line for level, line in told(machine.versions()) if level == "problem"]
    assert any(line.startswith("pyarrow 0.1 is not >=") for line in unfit)
    assert any(line.startswith("orjson is missing") for line in unfit)
    assert not any("mypy" in line for line in unfit)


def test_a_port_is_free_or_taken(tmp_path: Path) -> None:
    one = settings(tmp_path)
    assert the(processes.port(one)) == ("ok", f"{one.port} is free → ")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", one.port))
        holder.listen()
        level, line = the(processes.port(one))
    assert level == "problem"
    assert f"{one.port} is taken by" in line
    assert str(os.getpid()) in line
    level, line = the(processes.port(settings(tmp_path, host="192.0.2.77", auth="on")))
    assert (level, "not an address" in line) == ("problem", True)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = family.make_folder(free_port())
    yield made
    family.end(family.members(int(made.name.split("-")[1])))
    shutil.rmtree(made, ignore_errors=True)


def test_a_killed_service_is_noticed(folder: Path, tmp_path: Path) -> None:
    number = int(folder.name.split("-")[1])
    with member(folder) as orphan:
        assert "does not answer" in the(processes.port(settings(tmp_path, port=number)))[1]
        abandoned(folder)
        assert the(processes.port(settings(tmp_path, port=number)))[1] == (
            f"{number}: a service was killed and left 1 processes → `bespoke stop --port {number}`"
        )
        lines = told(processes.leftovers(settings(tmp_path)))
        assert ("problem", f"a service on port {number} was killed → `bespoke stop --port {number}`") in lines
        orphan.kill()
    assert any(
        str(folder) in line and level == "warning" for level, line in told(processes.leftovers(settings(tmp_path)))
    )
    shutil.rmtree(folder)
    assert not any(str(folder) in line for _, line in told(processes.leftovers(settings(tmp_path))))


def test_who_can_reach_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert the(processes.reach(settings(tmp_path)))[0] == "ok"
    (wide, *_) = told(processes.reach(settings(tmp_path, host="0.0.0.0")))
    assert (wide[0], "without TLS" in wide[1]) == ("warning", True)
    monkeypatch.setattr(loopback, "command", lambda: None)
    assert told(processes.reach(settings(tmp_path)))[0][0] == "warning"
    monkeypatch.undo()
    code = (
        "import socket, sys; s = socket.socket(); s.bind(('', 0)); s.listen()\n"
        "held = open(sys.argv[1], 'w'); print(flush=True); input()"
    )
    number = int(folder.name.split("-")[1])
    for mode, level in (("token", "ok"), ("disabled", "problem")):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(folder / "log")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"RAY_AUTH_MODE": mode},
        ) as one:
            assert one.stdout is not None
            one.stdout.readline()
            found, line = the(processes.reach(settings(tmp_path, port=number)))
            one.kill()
        assert (found, line.startswith("1 ports of Ray listen everywhere")) == (level, True)


def test_files_that_others_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TOKEN", tmp_path / "token")
    one, store = settings(tmp_path), tmp_path / "store.db"
    assert the(processes.secrets(one, store))[0] == "ok"
    store.touch(mode=0o600)
    one.releases.mkdir(mode=0o755)
    assert the(processes.secrets(one, store))[0] == "ok"
    one.releases.chmod(0o777)
    assert the(processes.secrets(one, store)) == (
        "problem",
        f"anybody may change releases: {one.releases} → chmod o-w {one.releases}",
    )
    one.releases.chmod(0o755)
    store.chmod(0o644)
    monkeypatch.setattr(processes, "_reachable", lambda path: True)
    assert the(processes.secrets(one, store))[1] == f"the store can be read by others: {store} → chmod 600 {store}"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_store_of_this_version(kind: str, tmp_path: Path) -> None:
    with fresh_url(kind, tmp_path) as url:
        one = settings(tmp_path, store=url, auth="on")
        before = told(data.store(one))
        assert [level for level, _ in before] == ["ok"]
        assert "made at" in before[0][1]
        with Store.open(url) as store:
            (fine, empty, keys) = told(data.store(one))
            assert (fine[0], empty[0], keys[0]) == ("ok", "warning", "warning")
            assert "bespoke load" in empty[1]
            store.catalogue.upsert([Item(item_id="a")])
            assert "bespoke keys create" in keys[1]
            store.keys.create("all", ["admin"], per_minute=60, by="test")
            assert the(data.store(one))[0] == "ok"
            update = "UPDATE alembic_version SET version_num = '{}'"
            for number, level, part in (("0001", "warning", "the next start"), ("9999", "problem", "newer version")):
                store.database.write(lambda c, number=number: c.execute(text(update.format(number))))
                found, line = the(data.store(one))
                assert (found, part in line) == (level, True)


def test_a_store_that_is_not_reachable(tmp_path: Path) -> None:
    closed = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    level, line = the(data.store(settings(tmp_path, store=closed)))
    assert (level, "start the database" in line) == ("problem", True)
    level, line = the(data.store(settings(tmp_path, store="nowhere://x")))
    assert (level, "unknown database" in line) == ("problem", True)


def test_a_damaged_store(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database, and long enough to be one" * 100)
    level, line = the(data.store(settings(tmp_path)))
    assert (level, "not a database" in line) == ("problem", True)
    path.unlink()
    with Store.open(f"sqlite:///{path}") as store:
        store.documents.put("rule", "r", {}, by="test")
        store.database.write(lambda c: c.execute(text("UPDATE numbers SET value = 0 WHERE name = 'documents'")))
    level, line = the(data.store(settings(tmp_path)))
    assert (level, "restore it from a copy" in line) == ("problem", True)


def test_a_store_on_a_network_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_filesystem", lambda _: "nfs4")
    assert told(data.store(settings(tmp_path)))[0][0] == "problem"


def test_a_release_and_what_may_be_wrong_with_it(releases: Path, tmp_path: Path) -> None:
    one = settings(tmp_path, releases=releases)
    fine, *more = told(data.release(one))
    assert fine == ("ok", "world-1: 100 items, checksums and golden queries hold → ")
    assert [line.partition(" → ")[0] for _, line in more] == ["it has no golden queries"]
    (releases / "world-1" / "features.json").write_text("{}")
    level, line = the(data.release(one))
    assert (level, "features.json does not have the checksum" in line) == ("problem", True)
    shutil.rmtree(releases / "world-1")
    level, line = the(data.release(one))
    assert (level, "the pointer names world-1" in line) == ("problem", True)
    (releases / CURRENT).write_text("../elsewhere\n")
    assert the(data.release(one))[0] == "problem"
    (releases / CURRENT).unlink()
    write_world(releases, "world-2")
    (releases / CURRENT).unlink()
    assert the(data.release(one)) == (
        "warning",
        f"none in service in {releases}, 1 are there → `bespoke release promote world-2`",
    )


def test_the_front_door_has_it() -> None:
    assert bespoke.resolve("doctor").name == "doctor"
    with pytest.raises(Unavailable, match="not an address"):
        family.port_is_free("192.0.2.77", 8000)
