"""Processes and ports: is the port free or ours, who can reach what, and what earlier services left behind."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from embeddings.errors import Unavailable
from serving import family, loopback, process
from serving.doctor.finding import Findings, ok, problem, warning
from serving.settings import Settings

RAY = ("raylet", "gcs_server", "ray::")


def port(settings: Settings) -> Findings:
    """The port of the service: free, answering, or held by somebody else."""
    number = settings.port
    members = family.members(number)
    if members:
        main = family.main_process(next(iter(members.values())))
        if main is None:
            yield problem(
                "port",
                f"{number}: a service was killed and left {len(members)} processes",
                f"`bespoke stop --port {number}`",
            )
        elif not process.answers(settings, "/healthz"):
            yield problem(
                "port", f"{number}: the service (process {main.pid}) does not answer", f"`bespoke stop --port {number}`"
            )
        elif not process.answers(settings, "/readyz"):
            yield warning("port", f"{number}: the service answers, without a release", "train and publish one")
        else:
            yield ok("port", f"{number}: the service (process {main.pid}) answers")
        return
    try:
        free = family.port_is_free(settings.host, number)
    except Unavailable as error:
        yield problem("port", error.message, "choose another host or port")
        return
    if free:
        yield ok("port", f"{number} is free")
        return
    holder = family.holder(number)
    who = f" by {holder.name()} (process {holder.pid})" if holder else ""
    if process.answers(settings, "/readyz"):
        yield ok(
            "port", f"{number} is held{who} and answers as a service does; it was not started with `bespoke serve`"
        )
    else:
        yield problem("port", f"{number} is taken{who}", "end that process, or choose another port")


def reach(settings: Settings) -> Findings:
    """Who can reach the service, and what else of it listens on more than loopback."""
    if not settings.loopback:
        yield warning(
            "reach",
            f"the service listens on {settings.host}, without TLS",
            "put a proxy with TLS in front, and let nothing but the proxy reach the port",
        )
    if loopback.command() is None:
        yield warning(
            "reach", "HAProxy's own ports would listen everywhere", f"install the package: it brings {loopback.COMMAND}"
        )
    members = family.members(settings.port)
    proxies = {one for one in members if _name(one) == "haproxy"}
    wide = sorted(_open_ports(proxies) - {settings.port})
    if wide:
        yield warning("reach", f"HAProxy listens everywhere on {_listed(wide)}", "close these ports in the firewall")
    others = _open_ports(set(members) - proxies)
    if others:
        told = f"{len(others)} ports of Ray listen everywhere"
        if all(_environment(one).get("RAY_AUTH_MODE", "token") == "token" for one in members):
            yield ok("reach", f"{told} and ask for its token; a firewall in front of them is still right")
        else:
            yield problem("reach", f"{told}, and anybody may run code there", "set RAY_AUTH_MODE=token, or close them")
    if not members and settings.loopback:
        yield ok("reach", "the service would listen on loopback alone")


def leftovers(settings: Settings) -> Findings:
    """Folders and processes of services that are gone."""
    found = False
    for folder in sorted(family.ROOT.glob("bespoke-*-*")):
        number = folder.name.split("-")[1]
        if not number.isdigit() or int(number) == settings.port or family.main_process(folder) is not None:
            continue
        found = True
        if family.members(int(number)):
            yield problem("leftovers", f"a service on port {number} was killed", f"`bespoke stop --port {number}`")
        else:
            yield warning("leftovers", f"{folder} belongs to no service any more", f"delete it: rm -r {folder}")
    ours = set(family.members(settings.port)) | _children(psutil.Process())
    strange = [
        one.pid for one in psutil.process_iter() if one not in ours and _name(one).startswith(RAY) and _mine(one)
    ]
    if strange:
        yield warning(
            "leftovers",
            f"Ray runs in processes that are not of this service: {_listed(strange)}",
            "nothing, if it is another service or cluster of yours; otherwise end them",
        )
    elif not found:
        yield ok("leftovers", "none")


def secrets(settings: Settings, store_file: Path | None) -> Findings:
    """Files that others on this machine should not read or change."""
    found = False
    for path, what in ((process.TOKEN, "Ray's token"), (store_file, "the store")):
        if path is not None and path.is_file() and _others(path) & 0o044 and _reachable(path):
            found = True
            yield warning("files", f"{what} can be read by others: {path}", f"chmod 600 {path}")
    for path, what in ((settings.releases, "releases"), (store_file, "the store")):
        if path is not None and path.exists() and _others(path) & 0o002:
            found = True
            yield problem("files", f"anybody may change {what}: {path}", f"chmod o-w {path}")
    if not found:
        yield ok("files", "nothing that others could read or change")


def _others(path: Path) -> int:
    return path.stat().st_mode & 0o077


def _reachable(path: Path) -> bool:
    """Whether others may pass every folder on the way to a file."""
    return all(folder.stat().st_mode & 0o011 for folder in path.absolute().parents)


def _open_ports(processes: Iterable[psutil.Process]) -> set[int]:
    """Ports on which processes listen for more than this machine."""
    found: set[int] = set()
    for one in processes:
        with contextlib.suppress(psutil.Error):
            for connection in one.net_connections("tcp"):
                address = connection.laddr
                if connection.status == psutil.CONN_LISTEN and not ipaddress.ip_address(address.ip).is_loopback:
                    found.add(address.port)
    return found


def _children(one: psutil.Process) -> set[psutil.Process]:
    return set(one.children(recursive=True))


def _environment(one: psutil.Process) -> dict[str, str]:
    with contextlib.suppress(psutil.Error):
        return dict(one.environ())
    return {}


def _name(one: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(one.name())
    return ""


def _mine(one: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(one.uids().real == os.getuid())
    return False


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
