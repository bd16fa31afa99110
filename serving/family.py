"""The family of one running service: every process that descends from one `bespoke serve`, and the ports they hold.

Ray and HAProxy keep their logs open for as long as they live. All of it is directed into one private folder whose name
tells the port; so whoever has a file open in there belongs to the service. That still holds after `kill -9`, when process
trees have fallen apart, and after HAProxy was replaced by a new process, as it is at every change of replicas. (A mark in
the environment would not do: Ray's processes overwrite part of it when they rename themselves.)
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from embeddings.errors import Unavailable

ROOT = Path("/tmp")  # not $TMPDIR: the path of a socket is limited to 107 bytes, and Ray's are long
MAIN = "main.json"
GRACE_S = 3.0
LOW_PORTS = range(20_000, 30_000)
"""Below the range that the kernel and Ray draw from, so that a port found free is still free a second later."""


def make_folder(port: int) -> Path:
    """The private folder of a service that this process is about to start."""
    folder = Path(tempfile.mkdtemp(prefix=_prefix(port), dir=ROOT))
    here = psutil.Process()
    (folder / MAIN).write_text(json.dumps([here.pid, here.create_time()]), encoding="utf-8")
    return folder


def members(port: int) -> dict[psutil.Process, Path]:
    """The living processes of the service on a port with their folder; the main process is not among them."""
    found = {}
    for process in psutil.process_iter():
        folder = _folder_of(process, port)
        if folder is not None and process not in (psutil.Process(), main_process(folder)):
            found[process] = folder
    return found


def main_process(folder: Path) -> psutil.Process | None:
    """The process that made a folder, if it still lives."""
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        pid, started = json.loads((folder / MAIN).read_text(encoding="utf-8"))
        process = psutil.Process(pid)
        if abs(process.create_time() - started) < 1.0:  # otherwise the id was given to another process
            return process
    return None


def end(processes: Mapping[psutil.Process, Path]) -> list[int]:
    """Ask processes to end, then force them, and remove their folders; returns the ids of any that are still there."""
    left = list(processes)
    for action in ("terminate", "kill"):
        for process in left:
            with contextlib.suppress(psutil.Error):
                getattr(process, action)()
        _, left = psutil.wait_procs(left, timeout=GRACE_S)
    for folder in set(processes.values()):
        shutil.rmtree(folder, ignore_errors=True)
    return [process.pid for process in left if _holds_something(process)]


def _prefix(port: int) -> str:
    return f"bespoke-{port}-"


def _folder_of(process: psutil.Process, port: int) -> Path | None:
    start = str(ROOT / _prefix(port))
    with contextlib.suppress(psutil.Error, OSError):  # gone, or somebody else's
        if process.uids().real == os.getuid():
            return next((_top(file.path) for file in process.open_files() if file.path.startswith(start)), None)
    return None


def _top(path: str) -> Path:
    return ROOT / Path(path).relative_to(ROOT).parts[0]


def _holds_something(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def port_is_free(host: str, port: int) -> bool:
    """Whether a service could listen there; raises `Unavailable` if this user may not, or there is no such address."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except PermissionError:
        raise Unavailable(f"this user may not listen on port {port}; take one above 1023", field="port") from None
    except socket.gaierror:
        raise Unavailable(f"'{host}' is not an address of this machine", field="host") from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise Unavailable(f"'{host}' is not an address of this machine", field="host") from None
        return False
    return True


def holder(port: int) -> psutil.Process | None:
    """The process that listens on a port, where the system tells."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return psutil.Process(connection.pid)
    return None


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on."""
    found: list[int] = []
    for port in random.sample(LOW_PORTS, k=500):
        if len(found) < count and port_is_free("0.0.0.0", port):
            found.append(port)
    return found
