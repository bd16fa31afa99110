"""The machine: cores, memory, disk, GPU, limits, and the versions of what is installed."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

import serving
from serving.doctor.finding import Finding, Findings, ok, problem, warning
from serving.settings import Settings

GB = 1e9
NEEDED_GB, COMFORTABLE_GB = 1.0, 2.0
"""What must be free for Ray, one replica and a small release, and what leaves room for a roll-out beside them."""

FULL_GB, TIGHT_GB = 0.2, 2.0
FILES = 4096
"""Descriptors: HAProxy alone takes two for each connection."""

SHARED_MB = 128
"""Ray keeps its object store in shared memory; the service puts next to nothing there."""

SECTIONS = 4
"""Deployments of the chained topology."""

KNOWN = Path(serving.__file__).parent.parent / "constraints.txt"
"""The set of versions that was tested together; it lies beside the packages in a checkout."""

CGROUP = Path("/sys/fs/cgroup")


def cores(settings: Settings) -> Findings:
    """Cores for the replicas, and Ray's book-keeping of them."""
    usable = usable_cores()
    counted = f"{usable:g} of {os.cpu_count()} cores"
    if usable < 2:
        yield warning("cores", counted, "give it two: one for a replica, one for the proxy, the store and Ray")
    elif settings.replicas > usable:
        yield warning(
            "cores",
            f"{counted} for {settings.replicas} replicas",
            f"set replicas to {int(usable)} at most, or add cores",
        )
    else:
        yield ok("cores", counted)
    deployments = SECTIONS if settings.topology == "chained" else 1
    reserved, offered = deployments * settings.replicas * settings.replica_cpus, max(4, os.cpu_count() or 1)
    if reserved > offered:
        yield problem(
            "cores",
            f"the replicas reserve {reserved:g} cores, and Ray has {offered} to give",
            "lower replicas or replica_cpus: it is a reservation, not a limit",
        )


def usable_cores() -> float:
    """Cores that this process may use: affinity, and the quota of its control group."""
    count = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    quota = _read(CGROUP / "cpu.max").split()
    return min(count, int(quota[0]) / int(quota[1])) if len(quota) == 2 and quota[0] != "max" else count


def memory(*, running: bool) -> Findings:
    """Free memory, unless a service already has what it needs; and shared memory for Ray."""
    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    limit = _read(CGROUP / "memory.max").strip()
    if limit.isdigit():
        total = min(total, int(limit))
        free = min(free, total - int(_read(CGROUP / "memory.current").strip() or 0))
    text = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    if running or free >= COMFORTABLE_GB * GB:
        yield ok("memory", text)
    elif free < NEEDED_GB * GB:
        yield problem(
            "memory", text, f"{NEEDED_GB:g} GB must be free to start; `bespoke capacity` computes what is needed"
        )
    else:
        yield warning("memory", text, "`bespoke capacity` computes what a catalogue and a load need")
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < SHARED_MB * 1e6:
        size = shutil.disk_usage(shared).total / 1e6
        yield warning(
            "memory",
            f"/dev/shm holds {size:.0f} MB",
            f"Ray wants {SHARED_MB} MB: --shm-size or shm_size of the container",
        )


def disk(settings: Settings, store_file: Path | None) -> Findings:
    """Room where the store grows, where releases come in, and where Ray keeps its files."""
    places = {"releases": settings.releases, "Ray's files": Path("/tmp")}
    if store_file is not None:
        places = {"store": store_file} | places
    for name, path in places.items():
        there = existing(path)
        free = shutil.disk_usage(there).free / GB
        text = f"{free:.1f} GB free for the {name}" if name != "Ray's files" else f"{free:.1f} GB free for {name}"
        advice = f"make room at {there}; `bespoke retain` deletes old events, and old releases may be deleted"
        if free < FULL_GB:
            yield problem("disk", text, advice)
        elif free < TIGHT_GB:
            yield warning("disk", text, advice)
        else:
            yield ok("disk", text)


def limits() -> Findings:
    """Open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES:
        yield warning(
            "limits", f"{soft} open files a process", f"raise it to {FILES} or more: ulimit -n {min(hard, 65_536)}"
        )
    else:
        yield ok("limits", "open files" if soft == resource.RLIM_INFINITY else f"{soft} open files a process")


def gpu(settings: Settings) -> Findings:
    """A GPU, where the settings ask for one."""
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count()))
        yield ok("gpu", f"{names}, CUDA {torch.version.cuda}")
    elif settings.ranking_gpus > 0:
        yield problem(
            "gpu",
            f"ranking_gpus is {settings.ranking_gpus:g}, and PyTorch sees none",
            "set it to 0, or install a driver and a CUDA build of PyTorch",
        )
    elif shutil.which("nvidia-smi") and torch.version.cuda is None:
        yield warning(
            "gpu", "there is a driver, but PyTorch is a build for CPUs", "install a CUDA build to train on it"
        )
    else:
        yield ok("gpu", "none; none is needed to serve")


def versions() -> Findings:
    """Python and the libraries, against what the package asks for and against the set that was tested."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield (
        ok("versions", f"Python {python}")
        if sys.version_info >= (3, 11)
        else problem("versions", f"Python {python}", "3.11 or newer is needed")
    )
    unfit = list(_unfit())
    for text in unfit:
        yield problem("versions", text, "install again: pip install -c constraints.txt 'bespoke[serve]'")
    different, compared = _different()
    if different:
        yield warning(
            "versions",
            f"not the set that was tested: {', '.join(different)}",
            "pip install -c constraints.txt -e '.[serve]' brings that set",
        )
    elif compared:
        yield ok("versions", f"{compared} libraries as tested together")
    elif not unfit:
        yield ok(
            "versions", "all libraries in the range that is asked for; constraints.txt is not here to compare with"
        )


def _unfit() -> list[str]:
    """Libraries of the service that are missing or out of range."""
    try:
        asked = [Requirement(text) for text in distribution("bespoke").requires or ()]
    except PackageNotFoundError:
        return ["bespoke itself is not installed"]
    found = []
    for one in asked:
        if one.marker is None or one.marker.evaluate({"extra": "serve"}):
            installed = _installed(one.name)
            if installed is None:
                found.append(f"{one.name} is missing")
            elif not one.specifier.contains(installed, prereleases=True):
                found.append(f"{one.name} {installed} is not {one.specifier}")
    return found


def _different() -> tuple[list[str], int]:
    """What differs from the tested set, and how many libraries were compared."""
    if not KNOWN.is_file():
        return [], 0
    different, compared = [], 0
    for line in KNOWN.read_text(encoding="utf-8").splitlines():
        name, pinned, wanted = line.partition("#")[0].strip().partition("==")
        installed = _installed(name) if pinned else None
        if installed is not None:
            compared += 1
            if installed.partition("+")[0] != wanted:  # "+cpu" is a build, not another version
                different.append(f"{name} {installed} instead of {wanted}")
    return different, compared


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def finding_of(subject: str, error: Exception) -> Finding:
    """A check that could not be made."""
    return warning(subject, f"could not be looked at: {type(error).__name__}: {error}", "look at it by hand")
