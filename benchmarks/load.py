"""A load generator: HTTP/1.1 with keep-alive on plain asyncio streams, closed loop and open loop.

It is to run in a process of its own, so that it does not share an interpreter with what it measures:
`python -m benchmarks.load URL [--body JSON] ...` prints one JSON object. A closed loop (so many callers, each sends the
next request when its answer is there) shows the capacity. An open loop (requests at a constant rate, come what may) shows
what users feel: latency counts from the moment a request was due, so waiting behind a stall is not left out (Tene,
"How NOT to Measure Latency", 2013).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

WARM_UP_S = 1.0


@dataclass(slots=True)
class Tally:
    """What came back: latencies in seconds of the 2xx answers, and how many of everything else."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def note(self, status: int, latency_s: float) -> None:
        """Count one answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if 200 <= status < 300:
            self.latencies_s.append(latency_s)

    def summary(self, seconds: float) -> dict[str, object]:
        """Percentiles in milliseconds, rate of good answers, and the count of each status."""
        ordered = sorted(self.latencies_s)
        return {
            "p50_ms": percentile_ms(ordered, 0.50),
            "p99_ms": percentile_ms(ordered, 0.99),
            "rps": round(len(ordered) / seconds, 1),
            "answers": {str(status): count for status, count in sorted(self.statuses.items())},
        }


def percentile_ms(ordered_s: Sequence[float], share: float) -> float | None:
    """Nearest-rank percentile of sorted seconds, in milliseconds; None of nothing."""
    if not ordered_s:
        return None
    rank = max(0, math.ceil(len(ordered_s) * share) - 1)
    return round(ordered_s[rank] * 1e3, 3)


class Caller:
    """One connection; sends the same requests again and again, in turn."""

    def __init__(self, url: str, requests: Sequence[bytes], first: int) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.requests, self.next = requests, first
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.head = self.body = b""

    async def ask(self) -> int:
        """Send the next request, read its whole answer and return the status; 0 when the connection broke.

        `head` and `body` hold the answer until the next one.
        """
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
            assert self.reader is not None
            self.writer.write(self.requests[self.next % len(self.requests)])
            self.next += 1
            self.head = head = await self.reader.readuntil(b"\r\n\r\n")
            lower = head.lower()
            closing = b"\r\nconnection: close" in lower
            if b"\r\ntransfer-encoding: chunked" in lower:
                self.body = await dechunked(self.reader)
            elif closing and b"\r\ncontent-length:" not in lower:  # it ends with the connection
                self.body = await self.reader.read()
            else:
                self.body = await self.reader.readexactly(content_length(head))
            if closing:
                self.close()
            return int(head[9:12])
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0

    def close(self) -> None:
        """Let go of the connection."""
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


async def dechunked(reader: asyncio.StreamReader) -> bytes:
    """Read a body that comes in chunks, each after its length; trailers are not expected."""
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


def content_length(head: bytes) -> int:
    """Length of the body that an answer's head announces; raises `ValueError` if it does not say."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("the answer has no content-length")


def encode(url: str, bodies: Sequence[str]) -> list[bytes]:
    """Requests ready to be written: a GET without bodies, else one POST a body."""
    parts = urlsplit(url)
    common = f"{parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    if not bodies:
        return [f"GET {common}\r\n".encode()]
    return [
        f"POST {common}Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode()
        for body in bodies
    ]


async def closed_loop(url: str, requests: Sequence[bytes], *, concurrency: int, seconds: float) -> dict[str, object]:
    """Keep `concurrency` requests in flight for some seconds, after a warm-up that is not counted."""
    tally = Tally()
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds

    async def call(caller: Caller) -> None:
        while (sent := time.perf_counter()) < end:
            status = await caller.ask()
            if sent >= begin:
                tally.note(status, time.perf_counter() - sent)
            if status == 0:
                await asyncio.sleep(0.01)
        caller.close()

    await asyncio.gather(*(call(Caller(url, requests, first)) for first in range(concurrency)))
    return {"concurrency": concurrency} | tally.summary(seconds)


async def open_loop(
    url: str, requests: Sequence[bytes], *, rate: float, seconds: float, callers: int
) -> dict[str, object]:
    """Send at a constant rate over a pool of connections; latency counts from when a request was due."""
    tally = Tally()
    pool: asyncio.LifoQueue[Caller] = asyncio.LifoQueue()
    for first in range(callers):
        pool.put_nowait(Caller(url, requests, first))
    start = time.perf_counter()
    waiting = set()

    async def send(due: float) -> None:
        caller = await pool.get()
        status = await caller.ask()
        pool.put_nowait(caller)
        if due - start >= WARM_UP_S:
            tally.note(status, time.perf_counter() - due)

    for number in range(int((WARM_UP_S + seconds) * rate)):
        due = start + number / rate
        if (ahead := due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        task = asyncio.create_task(send(due))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)
    while not pool.empty():
        pool.get_nowait().close()
    return {"rate": rate} | tally.summary(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; bodies are read from a file with one JSON document a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--bodies", type=argparse.FileType(encoding="utf-8"), help="one JSON body a line; without: GET")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--concurrency", type=int, default=1, help="requests in flight (closed loop) or connections")
    parser.add_argument("--rate", type=float, help="requests a second: an open loop")
    given = parser.parse_args(arguments)
    bodies = [line.rstrip("\n") for line in given.bodies] if given.bodies else []
    requests = encode(given.url, bodies)
    if given.rate:
        work = open_loop(given.url, requests, rate=given.rate, seconds=given.seconds, callers=given.concurrency)
    else:
        work = closed_loop(given.url, requests, concurrency=given.concurrency, seconds=given.seconds)
    json.dump(asyncio.run(work), sys.stdout)
    print()


if __name__ == "__main__":
    main()
