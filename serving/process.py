"""The service as processes: environment, ports, a clean start, and a stop that leaves nothing behind.

Ray Serve reads its fast profile from the environment when it is first imported, in every process; so `prepare` must run
before anything imports Ray. A local cluster of our own is started on ports of its own: another Ray, another service or a
Redis on this machine is not touched.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from embeddings.errors import Unavailable
from serving import family, logs, loopback, metrics
from serving.settings import Settings
from serving.store import Store

FAST_PROFILE = {
    # HAProxy in front of the replicas, and no Python proxy in the path: a factor of ten (see docs/benchmarks.md).
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # A request that a dying replica swallowed is asked again of another one. What changes something must bear that: events
    # do by their ids, documents by `expected_version`.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "30",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "35",
    "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "5",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.headers:middlewares",
    # One compute thread a replica: replicas are the unit of parallelism.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # With an arena for each of its forty threads a replica grows by a tenth within minutes (see docs/benchmarks.md).
    "MALLOC_ARENA_MAX": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_DEDUP_LOGS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
LOCAL_PROFILE = {
    # HAProxy and the replicas are on one machine and learn of each other at once; a long drain only delays Ctrl-C.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
OWN_PORTS = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
"""Fixed by default, so that two services on one machine would fight over them."""

OWN_FILES = {
    # By default in one folder that everybody may read, with a control socket that everybody may write to.
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "control",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "log",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    metrics.FOLDER: "metrics",
    logs.SOCKET: "lines",
}

APPLICATION = "bespoke"
TOKEN = Path.home() / ".ray" / "auth_token"
"""What Ray's processes show each other, where the environment does not name another file."""

MARGIN_S = 2.0
"""Serve and HAProxy end a request later than the application does: its answer has our shape, theirs has not."""

START_LIMIT_S = 180.0
STOP_LIMIT_S = 60.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def profile() -> dict[str, str]:
    """The fast profile, and HAProxy's own ports on loopback where the command for it is installed."""
    command = loopback.command()
    return FAST_PROFILE | ({loopback.BINARY: str(command)} if command else {})


def own_files(folder: Path) -> dict[str, str]:
    """Environment that puts every file of HAProxy and of the metrics into a private folder."""
    return {name: str(folder / file) for name, file in OWN_FILES.items()}


def prepare(port: int) -> Path:
    """Set the environment where the caller's does not say otherwise; call before Ray is imported.

    Returns the private folder of this service.
    """
    folder = family.make_folder(port)
    ports = dict(zip(OWN_PORTS, map(str, family.free_ports(len(OWN_PORTS))), strict=True))
    for name, value in (own_files(folder) | ports | LOCAL_PROFILE).items():
        os.environ.setdefault(name, value)
    for name, value in profile().items():
        os.environ.setdefault(name, value)
    metrics.begin(Path(os.environ[metrics.FOLDER]))
    return folder


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[str]:
    """The service, answering at the URL that is yielded, until the block ends. To be used once in a process.

    Ctrl-C, SIGTERM and SIGHUP raise `KeyboardInterrupt` in the block, during the start too. Raises `Unavailable` with
    one sentence if the port is taken or the service does not come up; nothing is left then.
    """
    require_free_port(settings)
    Store.open(settings.store).close()  # a wrong address is told now, not by a replica in half a minute
    folder = prepare(settings.port)
    try:
        with logs.collected(Path(os.environ[logs.SOCKET]), _write), _on_signals(_interrupt):
            _start(settings, folder)
            wait_until_answering(settings)
            yield settings.url
    finally:
        # A second Ctrl-C out of impatience would leave HAProxy behind, holding the port.
        with _on_signals(signal.SIG_IGN):
            _shut_down()
            left = family.end(family.members(settings.port))
            shutil.rmtree(folder, ignore_errors=True)
        if left:
            raise Unavailable(f"processes that did not end: {', '.join(map(str, left))}")
        if not family.port_is_free(settings.host, settings.port):
            raise Unavailable(f"port {settings.port} is still in use after the stop{_by(settings.port)}")


def _start(settings: Settings, folder: Path) -> None:
    import ray
    from ray import serve

    from serving.app import build

    for name in ("ray", "ray.serve", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        ray.init(
            address="local",
            num_cpus=max(4, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder / "ray"),
        )
    except SystemExit:  # what Ray's own handler of SIGTERM raises
        raise KeyboardInterrupt from None
    with contextlib.suppress(OSError):  # Ray makes it readable for everybody who may enter the folder
        TOKEN.chmod(0o600)
    _handle_signals(_interrupt)  # again, because Ray has put its own handler of SIGTERM in the place of ours
    serve.start(
        http_options={
            "host": settings.host,
            "port": settings.port,
            "request_timeout_s": settings.request_timeout_s + MARGIN_S,
        },
        logging_config={"log_level": "WARNING"},
    )
    try:
        serve.run(
            build(settings.model_dump(mode="json")), name=APPLICATION, logging_config={"enable_access_log": False}
        )
    except RuntimeError as error:
        raise Unavailable(f"the service did not start: {_cause(serve)}") from error


def wait_until_answering(settings: Settings) -> None:
    """Wait until the service answers through its proxy; being alive suffices, a release may come later."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if answers(settings, "/healthz"):
            return
        time.sleep(0.05)
    raise Unavailable(f"{settings.url} did not answer within {START_LIMIT_S:.0f} s")


def answers(settings: Settings, path: str) -> bool:
    """Whether a path of the service answers with 200."""
    # Not the machine's proxy settings: the service is asked directly, wherever it listens.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), direct.open(f"{settings.url}{path}", timeout=2) as reply:
        return bool(reply.status == 200)
    return False


def wait_for_signal() -> None:
    """Sleep until Ctrl-C, SIGTERM or SIGHUP."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def require_free_port(settings: Settings) -> None:
    """Raise a sentence that names the port, its holder where that can be known, and what to do."""
    port = settings.port
    ours = family.members(port)
    if ours:
        alive = family.main_process(next(iter(ours.values())))
        state = f"runs there already (process {alive.pid})" if alive else "was killed and left processes behind"
        raise Unavailable(f"port {port}: a service {state}; `bespoke stop --port {port}` ends it", field="port")
    if not family.port_is_free(settings.host, port):
        raise Unavailable(f"port {port} is taken{_by(port)}; choose another with --port", field="port")


def stop(port: int) -> str:
    """End the service on a port, whoever started it with `bespoke serve`; returns a sentence about what was done.

    Raises `Unavailable` if something does not end.
    """
    ours = family.members(port)
    if not ours:
        return f"no service of ours runs on port {port}"
    for folder in set(ours.values()):
        main = family.main_process(folder)
        if main is not None:
            main.terminate()
            with contextlib.suppress(psutil.TimeoutExpired):
                main.wait(STOP_LIMIT_S)
    # What is left now are orphans: of a service that was killed, or of one that did not manage to stop.
    orphans = family.members(port)
    left = family.end(orphans)
    if left:
        raise Unavailable(f"processes that did not end: {', '.join(map(str, left))}")
    return f"stopped the service on port {port}" + (f"; ended {len(orphans)} orphaned processes" if orphans else "")


def _by(port: int) -> str:
    process = family.holder(port)
    return f" by {process.name()} (process {process.pid})" if process else ""


def _cause(serve: Any) -> str:
    """Serve keeps the traceback of a replica that did not come up; its last line says what was wrong."""
    for deployment in serve.status().applications[APPLICATION].deployments.values():
        raised = re.findall(
            r"^\S*(?:Error|Exception|Unavailable|NotFound|Conflict): .+$", deployment.message, re.MULTILINE
        )
        if raised:
            return str(raised[-1])
    return "see the logs"


def _write(lines: str) -> None:
    sys.stderr.write(lines)
    sys.stderr.flush()


def _shut_down() -> None:
    import ray
    from ray import serve

    # While its controller goes down, Ray prints failures of the very tasks that end it; nobody can act on them.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(Exception):  # whatever is half up must not keep the rest from going down
            if ray.is_initialized():
                serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _handle_signals(handler: Any) -> dict[signal.Signals, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    # Under nohup SIGHUP is ignored, and is to stay so.
    wanted = [one for one in SIGNALS if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]
    return {one: signal.signal(one, handler) for one in wanted}


@contextlib.contextmanager
def _on_signals(handler: Any) -> Iterator[None]:
    before = _handle_signals(handler)
    try:
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)
