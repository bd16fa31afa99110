"""The service as processes: environment, ports, a clean start, and a stop that leaves nothing behind.

Ray Serve reads its fast profile from the environment when it is first imported, in every process; so `prepare` must run
before anything imports Ray. A local cluster of our own is started on free ports; another Ray or a Redis on this machine is
not touched. What was started is written to a file, so that even after `kill -9` the next start can say what is left and
`bespoke stop` can end it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from embeddings.errors import Unavailable
from serving.metrics import FOLDER
from serving.settings import Settings

FAST_PROFILE = {
    # HAProxy in front of the replicas, and no Python proxy in the path: a factor of ten (see docs/benchmarks.md).
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "10",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "35",
    "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "5",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    # One compute thread a replica: replicas are the unit of parallelism.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_DEDUP_LOGS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
OWN_PORTS = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
"""Fixed by default, so that two services on one machine would fight over them."""

APPLICATION = "bespoke"
START_LIMIT_S = 180.0
STOP_LIMIT_S = 30.0


def prepare() -> None:
    """Set the fast profile, where the caller's environment does not say otherwise; call before Ray is imported."""
    for name, value in FAST_PROFILE.items():
        os.environ.setdefault(name, value)
    for name in OWN_PORTS:
        os.environ.setdefault(name, str(_free_port()))
    os.environ.setdefault(FOLDER, tempfile.mkdtemp(prefix="bespoke-metrics-"))


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[str]:
    """The service, answering at the URL that is yielded, until the block ends.

    Raises `Unavailable` with one sentence if the port is taken or the service does not come up; nothing is left then.
    """
    require_free_port(settings)
    prepare()
    import ray
    from ray import serve

    from serving.app import build

    for name in ("ray", "ray.serve", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cores = max(4.0, os.cpu_count() or 1)
    ray.init(
        address="local", num_cpus=int(cores), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        serve.start(
            http_options={"host": settings.host, "port": settings.port}, logging_config={"log_level": "WARNING"}
        )
        Note.write(settings)
        serve.run(
            build(settings.model_dump(mode="json")), name=APPLICATION, logging_config={"enable_access_log": False}
        )
        Note.write(settings)
        wait_until_answering(settings)
        yield settings.url
    finally:
        mine = psutil.Process().children(recursive=True)
        with _interrupts_ignored():
            _shut_down(ray, serve)
        left = end(mine)
        Note.path(settings.port).unlink(missing_ok=True)
        if left:
            raise Unavailable(f"processes that did not end: {', '.join(map(str, left))}")


def wait_until_answering(settings: Settings) -> None:
    """Wait until the service answers through its proxy; being alive suffices, a release may come later."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(f"{settings.url}/healthz", timeout=2) as reply,
        ):
            if reply.status == 200:
                return
        time.sleep(0.1)
    raise Unavailable(f"{settings.url} did not answer within {START_LIMIT_S:.0f} s")


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """A block that Ctrl-C or SIGTERM ends, whatever it is doing, also where a shell made the process ignore Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {one: signal.signal(one, interrupt) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def require_free_port(settings: Settings) -> None:
    """Raise a sentence that names the port, its holder where that can be known, and what to do."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except PermissionError:
            raise Unavailable(f"port {settings.port} may not be opened by this user", field="port") from None
        except OSError as error:
            holder = _holder(settings.port)
            who = f" by {holder.name()} (process {holder.pid})" if holder else ""
            ours = Note.read(settings.port)
            hint = (
                "an earlier `bespoke serve` left it: `bespoke stop` ends it"
                if ours and holder and holder.pid in {pid for pid, _ in ours.processes}
                else "choose another with --port"
            )
            raise Unavailable(f"port {settings.port} is taken{who}; {hint}", field="port") from error


def stop(port: int) -> str:
    """End the service on a port, whoever started it with `bespoke serve`; returns a sentence about what was done."""
    note = Note.read(port)
    if note is None:
        return f"no service of ours is known on port {port}"
    main = _alive(note.main)
    if main is not None:
        main.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            main.wait(STOP_LIMIT_S)
    left = [process for one in note.processes if (process := _alive(one)) is not None]
    end(left)
    Note.path(port).unlink(missing_ok=True)
    return f"stopped the service on port {port}" + (f" and ended {len(left)} orphans of it" if left else "")


def end(processes: list[psutil.Process]) -> list[int]:
    """Wait for processes to end, ask and then force those that do not; returns the ids of any that are still there."""
    _, alive = psutil.wait_procs(processes, timeout=5)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=5)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(alive, timeout=5)
    return [process.pid for process in alive]


class Note:
    """What a running service consists of, on disk: process ids with their start times, so that a reused id is noticed."""

    def __init__(self, main: tuple[int, float], processes: list[tuple[int, float]]) -> None:
        self.main, self.processes = main, processes

    @staticmethod
    def path(port: int) -> Path:
        """Where the note of a port lies."""
        return Path(tempfile.gettempdir()) / f"bespoke-{os.getuid()}-{port}.json"

    @classmethod
    def write(cls, settings: Settings) -> Note:
        """Note this process and everything below it."""
        here = psutil.Process()
        below = [(one.pid, one.create_time()) for one in here.children(recursive=True) if one.is_running()]
        note = cls((here.pid, here.create_time()), below)
        path = cls.path(settings.port)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"main": note.main, "processes": note.processes}), encoding="utf-8")
        unfinished.replace(path)
        return note

    @classmethod
    def read(cls, port: int) -> Note | None:
        """The note of a port, if there is a readable one."""
        try:
            raw: dict[str, Any] = json.loads(cls.path(port).read_text(encoding="utf-8"))
            return cls(tuple(raw["main"]), [(pid, at) for pid, at in raw["processes"]])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _alive(one: tuple[int, float]) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(one[0])
        if abs(process.create_time() - one[1]) < 1.0:
            return process
    return None


def _holder(port: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return psutil.Process(connection.pid)
    return None


def _shut_down(ray: Any, serve: Any) -> None:
    # While its controller goes down, Ray prints failures of the very tasks that end it; nobody can act on them.
    with _stderr_closed():
        with contextlib.suppress(Exception):  # whatever is half up must not keep the rest from going down
            serve.shutdown()
        ray.shutdown()


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    # A second Ctrl-C out of impatience would leave HAProxy behind, holding the port.
    here = threading.current_thread() is threading.main_thread()
    before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM) if here}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
