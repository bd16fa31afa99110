"""Logs: lines for people or for machines, each with the id of the request it is about, none with anybody's data.

An error is written with its type and its place; its message only where the message is one of ours about the service
itself, because any other may quote what a person sent. Replicas are processes whose output Ray hides in files that go with
it, so with `bespoke serve` they send their lines to the command that was started, which writes them to its standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from embeddings.errors import BundleError, Damaged, StoreError, Unavailable

Style = Literal["text", "json"]

REQUEST: ContextVar[str] = ContextVar("request", default="")
"""The id of the request that is being worked on, as its answer has it in `x-request-id`; empty outside of one."""

SOCKET = "BESPOKE_LOG_SOCKET"
"""Environment variable: the datagram socket of the command that collects the lines of all processes of a service."""

LINE_LIMIT = 60_000
AGAIN_S = 60.0
ABOUT_THE_SERVICE = (StoreError, BundleError, Unavailable)


def set_up(style: Style, *, site: str | None = None) -> None:
    """Write the log of this process in one style, to the collecting command or else to standard error."""
    handler = Lines(os.environ.get(SOCKET))
    handler.setFormatter(Json(site) if style == "json" else Text(site))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("bespoke").setLevel(logging.INFO)


def where_of(error: BaseException) -> str:
    """Where an error arose, and the errors behind it, without their messages: those may quote what a person sent."""
    lines = traceback.format_tb(error.__traceback__)
    cause = error.__cause__ or error.__context__
    return "".join(lines) + (f"after {_named(cause)}\n{where_of(cause)}" if cause else "")


def _named(error: BaseException) -> str:
    kind = type(error).__name__
    if isinstance(error, ABOUT_THE_SERVICE) and not isinstance(error, Damaged):  # that one names whose record it is
        return f"{kind}: {error.message}"
    return kind


class Formatter(logging.Formatter):
    """Base of both styles; `site` is named in every line where there is one."""

    def __init__(self, site: str | None = None) -> None:
        super().__init__()
        self.site = site


class Text(Formatter):
    """One line for people, and below it the places of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        about = "".join(f" [{one}]" for one in (self.site, REQUEST.get()) if one)
        line = f"{_moment(record)} {record.levelname} {record.name}{about} {record.getMessage()}"
        return f"{line}\n{_error(record)}".rstrip("\n")


class Json(Formatter):
    """One JSON object on one line: time, level, logger, message, process; where there are any site, request_id, error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        where_known = {"site": self.site, "request_id": REQUEST.get(), "error": _error(record)}
        line |= {name: value for name, value in where_known.items() if value}
        return orjson.dumps(line, default=str).decode()


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _error(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return f"{_named(error)}\n{where_of(error)}" if error is not None else ""


class Lines(logging.Handler):
    """Sends lines to a socket; writes them to standard error where there is none, or nobody listens any more.

    A line never waits: what the collector has no room for is dropped and counted, and the next line says how many were.
    """

    def __init__(self, path: str | None) -> None:
        super().__init__()
        self._path, self._dropped = path, 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if path else None
        if self._socket is not None:
            self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            line = self.format(record)
            if self._socket is None or not self._sent(line):
                _to_stderr(f"{line}\n")
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
        super().close()

    def _sent(self, line: str) -> bool:
        assert self._socket is not None
        assert self._path is not None
        try:
            self._socket.sendto(line.encode("utf-8", "replace")[:LINE_LIMIT], self._path)
        except BlockingIOError:
            self._dropped += 1
        except OSError:
            return False
        else:
            if self._dropped:
                count, self._dropped = self._dropped, 0
                logging.getLogger("bespoke.logs").warning("%d lines of the log were dropped", count)
        return True


def _to_stderr(text: str) -> None:
    # Not print and not sys.stderr: Ray puts functions of its own in their places.
    if sys.__stderr__ is not None:
        sys.__stderr__.write(text)
        sys.__stderr__.flush()


@contextlib.contextmanager
def collected(path: Path, write: Callable[[str], object]) -> Iterator[None]:
    """Receive the lines of other processes on a socket and write them, until the block ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as received:
        received.bind(str(path))

        def receive() -> None:
            while line := received.recv(LINE_LIMIT):
                with contextlib.suppress(OSError, ValueError):  # whoever read them is gone; the service goes on
                    write(line.decode("utf-8", "replace") + "\n")

        thread = threading.Thread(target=receive, name="log", daemon=True)
        thread.start()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            received.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)


class Outage:
    """Something that fails again and again, told once, then once a minute, and once more when it is over."""

    def __init__(
        self,
        logger: logging.Logger,
        what: str,
        *,
        again_s: float = AGAIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger, self._what, self._again_s, self._clock = logger, what, again_s, clock
        self._times, self._since, self._told_at = 0, 0.0, 0.0

    def failed(self) -> None:
        """Count a failure and tell if it is time to; to be called where the error is being handled."""
        now = self._clock()
        self._times += 1
        if self._times == 1:
            self._since = self._told_at = now
            self._logger.error("%s", self._what, exc_info=True)
        elif now - self._told_at >= self._again_s:
            self._told_at = now
            error = sys.exception()
            self._logger.error(
                "%s: for %.0f s now, %d times; last: %s",
                self._what,
                now - self._since,
                self._times,
                _named(error) if error else "",
            )

    def over(self) -> None:
        """Tell that it works again, if it did not."""
        if self._times:
            lasted, times, self._times = self._clock() - self._since, self._times, 0
            self._logger.warning("%s: over after %.1f s and %d times", self._what, lasted, times)
