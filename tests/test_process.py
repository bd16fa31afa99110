"""Starting, stopping and finding the processes of a service: first without Ray, then the real thing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from embeddings.errors import ConfigError, Unavailable
from serving import family, process
from serving.headers import middlewares
from serving.settings import Settings
from tests.conftest import ROOT, free_port, running, write_world

HOLD = """
import sys, time
held = open(sys.argv[1], "w")
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def folder(port: int) -> Iterator[Path]:
    made = family.make_folder(port)
    yield made
    family.end(family.members(port))
    shutil.rmtree(made, ignore_errors=True)


def member(folder: Path, *, deaf: bool = False) -> subprocess.Popen[str]:
    """A process that has a file of the folder open, and perhaps does not listen to SIGTERM."""
    prelude = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" if deaf else ""
    one = subprocess.Popen(
        [sys.executable, "-c", prelude + HOLD, str(folder / "log")], stdout=subprocess.PIPE, text=True
    )
    assert one.stdout is not None
    assert one.stdout.readline() == "up\n"
    return one


def abandoned(folder: Path) -> None:
    """Make the folder look as if its main process had been killed."""
    (folder / family.MAIN).write_text(f"[{os.getpid()}, 0.0]", encoding="utf-8")


@pytest.fixture
def taken(port: int) -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        yield port


def settings(port: int, tmp_path: Path, **fields: object) -> Settings:
    given = {"port": port, "releases": tmp_path / "releases", "store": f"sqlite:///{tmp_path / 'store.db'}"}
    return Settings.load(given | fields)


def test_members_are_found_by_their_open_files_and_end(port: int, folder: Path) -> None:
    with member(folder) as one, member(folder, deaf=True) as deaf:
        found = family.members(port)
        assert {process.pid for process in found} == {one.pid, deaf.pid}
        assert set(found.values()) == {folder}
        assert family.members(port + 1) == {}
        assert family.end(found) == []
        assert family.members(port) == {}
        assert one.poll() is not None
        assert deaf.poll() is not None
    assert not folder.exists()


def test_ports_with_a_common_beginning_are_not_confused(port: int, folder: Path) -> None:
    with member(folder) as one:
        assert family.members(port // 10) == {}
        one.kill()


def test_the_main_process_is_known_by_id_and_start(folder: Path) -> None:
    assert family.main_process(folder) == psutil.Process()
    abandoned(folder)
    assert family.main_process(folder) is None
    (folder / family.MAIN).write_text("not JSON", encoding="utf-8")
    assert family.main_process(folder) is None


def test_the_folder_is_private_and_its_sockets_have_room(port: int, folder: Path) -> None:
    assert folder.stat().st_mode & 0o077 == 0
    longest = folder.with_name(f"bespoke-65535-{'x' * 8}")
    session = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    control = f"{'0' * 56}/{process.OWN_FILES['RAY_SERVE_HAPROXY_SOCKET_PATH']}.4194304.tmp"
    assert max(len(str(longest / path)) for path in (session, control)) <= 107


def test_a_free_port_is_required_and_its_holder_named(taken: int, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=rf"port {taken} is taken by .*\(process {os.getpid()}\); choose another"):
        process.require_free_port(settings(taken, tmp_path))


def test_a_taken_port_starts_nothing(taken: int, tmp_path: Path) -> None:
    before = {one.pid for one in psutil.Process().children(recursive=True)}
    with pytest.raises(Unavailable, match="is taken"), process.running(settings(taken, tmp_path)):
        pytest.fail("it must not start")
    assert {one.pid for one in psutil.Process().children(recursive=True)} == before
    assert list(family.ROOT.glob(f"bespoke-{taken}-*")) == []
    assert not (tmp_path / "store.db").exists()


def test_an_unreachable_store_starts_nothing(port: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown database 'nowhere'"):
        process.running(settings(port, tmp_path, store="nowhere://x")).__enter__()
    assert list(family.ROOT.glob(f"bespoke-{port}-*")) == []


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(Unavailable, match="not an address of this machine"):
        family.port_is_free("192.0.2.77", 8000)


def test_a_privileged_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(Unavailable, match="above 1023"):
        family.port_is_free("127.0.0.1", 80)


def test_free_ports_differ_and_are_free() -> None:
    ports = family.free_ports(5)
    assert len(set(ports)) == 5
    assert all(family.port_is_free("0.0.0.0", port) for port in ports)


def test_orphans_are_noticed_and_ended(port: int, folder: Path, tmp_path: Path) -> None:
    with member(folder) as orphan:
        abandoned(folder)
        with pytest.raises(Unavailable, match=f"was killed and left processes.*bespoke stop --port {port}"):
            process.require_free_port(settings(port, tmp_path))
        assert process.stop(port) == f"stopped the service on port {port}; ended 1 orphaned processes"
        assert orphan.poll() is not None
    process.require_free_port(settings(port, tmp_path))


def test_a_running_service_is_named(port: int, folder: Path, tmp_path: Path) -> None:
    with member(folder) as one:
        with pytest.raises(Unavailable, match=rf"runs there already \(process {os.getpid()}\)"):
            process.require_free_port(settings(port, tmp_path))
        one.kill()


def test_nothing_to_stop_is_said(port: int) -> None:
    assert process.stop(port) == f"no service of ours runs on port {port}"


def test_prepare_respects_the_environment(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"OMP_NUM_THREADS": "3"}
    monkeypatch.setattr("os.environ", environment)
    folder = process.prepare(port)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert all(environment[name].startswith(str(folder)) for name in process.OWN_FILES)
    assert len({environment[name] for name in process.OWN_PORTS}) == len(process.OWN_PORTS)
    shutil.rmtree(folder)


def test_signals_become_keyboard_interrupts_and_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), process._on_signals(process._interrupt):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process._on_signals(process._interrupt):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_control_headers_do_not_reach_serve() -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    (middleware,) = middlewares()
    client = TestClient(middleware.cls(app, *middleware.args, **middleware.kwargs))
    headers = {"X-Request-Timeout-Seconds": "0", "x-request-disconnect-disabled": "1", "x-kept": "yes"}
    assert client.get("/", headers=headers).status_code == 204
    names = {name for name, _ in seen[0]}
    assert b"x-kept" in names
    assert not names & {b"x-request-timeout-seconds", b"x-request-disconnect-disabled"}


@pytest.mark.slow
def test_a_killed_service_is_found_and_ended(port: int, tmp_path: Path) -> None:
    """`kill -9` leaves HAProxy holding the port; the next start says so and `bespoke stop` ends it."""
    write_world(tmp_path / "releases")
    log = tmp_path / "serve.log"
    command = [sys.executable, "-m", "bespoke", "serve", "--port", str(port)]
    command += ["--releases", str(tmp_path / "releases"), "--store", f"sqlite:///{tmp_path / 's.db'}"]
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True) as main,
    ):
        try:
            deadline = time.monotonic() + 240
            while not process.answers(settings(port, tmp_path), "/readyz"):
                assert main.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            below, found = psutil.Process(main.pid).children(recursive=True), family.members(port)
            assert running(below) <= set(found)
        finally:
            main.kill()
    with pytest.raises(Unavailable, match="was killed and left processes behind"):
        process.require_free_port(settings(port, tmp_path))
    assert process.stop(port).startswith(f"stopped the service on port {port}; ended")
    assert running(below) == set()
    assert family.port_is_free("127.0.0.1", port)
    process.require_free_port(settings(port, tmp_path))
