"""A load generator in a process of its own: keep-alive connections on plain sockets, closed or open loop.

Closed loop: each of `connections` clients sends its next request when the last one is answered. Open loop: requests are due
at a constant rate and latency counts from the moment a request was due, so a stall is charged to everyone it kept waiting.

    python -m benchmarks.load URL PATH --body FILE --seconds S (--connections C | --rate R)

Prints one JSON object: p50_ms, p99_ms, rps, sent, failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MOST_CONNECTIONS = 256


class Client:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    async def connect(self) -> None:
        """Open the connection."""
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)

    async def ask(self, request: bytes) -> int:
        """Send one request and read the whole answer; returns its status."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        await self.reader.readexactly(length)
        return int(head[9:12])

    def close(self) -> None:
        """Close the connection."""
        self.writer.close()


async def closed_loop(clients: Sequence[Client], requests: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Every client as fast as it is answered."""
    latencies: list[float] = []
    failed = 0
    end = time.perf_counter() + seconds

    async def one(client: Client, at: int) -> None:
        nonlocal failed
        while (started := time.perf_counter()) < end:
            failed += await client.ask(requests[at % len(requests)]) >= 300
            latencies.append(time.perf_counter() - started)
            at += len(clients)

    started = time.perf_counter()
    await asyncio.gather(*(one(client, at) for at, client in enumerate(clients)))
    return summary(latencies, time.perf_counter() - started, failed)


async def open_loop(
    clients: Sequence[Client], requests: Sequence[bytes], seconds: float, rate: float
) -> dict[str, Any]:
    """Requests at a constant rate, answered by whichever connection is free."""
    latencies: list[float] = []
    failed = 0
    idle: asyncio.Queue[Client] = asyncio.Queue()
    for client in clients:
        idle.put_nowait(client)
    start = time.perf_counter()
    running: set[asyncio.Task[None]] = set()

    async def one(at: int) -> None:
        nonlocal failed
        client = await idle.get()
        failed += await client.ask(requests[at % len(requests)]) >= 300
        latencies.append(time.perf_counter() - (start + at / rate))
        idle.put_nowait(client)

    for at in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + at / rate - time.perf_counter()))
        task = asyncio.create_task(one(at))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return summary(latencies, time.perf_counter() - start, failed)


def summary(latencies: list[float], seconds: float, failed: int) -> dict[str, Any]:
    """The figures of one run."""
    ordered = sorted(latencies)
    if not ordered:
        return {"p50_ms": None, "p99_ms": None, "rps": 0.0, "sent": 0, "failed": failed}
    return {
        "p50_ms": round(ordered[len(ordered) // 2] * 1e3, 3),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e3, 3),
        "rps": round(len(ordered) / seconds, 1),
        "sent": len(ordered),
        "failed": failed,
    }


def http_request(host: str, path: str, body: bytes | None) -> bytes:
    """One request as bytes."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def measure(
    url: str,
    path: str,
    bodies: Sequence[dict[str, Any]],
    *,
    seconds: float,
    connections: int = 1,
    rate: float | None = None,
) -> dict[str, Any]:
    """Run the load generator in its own process and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bodies.json"
        file.write_text(json.dumps(list(bodies)), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.load", url, path, "--bodies", str(file), "--seconds", str(seconds)]
        command += ["--rate", str(rate)] if rate else ["--connections", str(connections)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Connect, warm up, measure."""
    parts = urlsplit(options.url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    bodies = json.loads(Path(options.bodies).read_text(encoding="utf-8"))
    requests = [http_request(host, options.path, json.dumps(body).encode()) for body in bodies] or [
        http_request(host, options.path, None)
    ]
    clients = [Client(host, port) for _ in range(MOST_CONNECTIONS if options.rate else options.connections)]
    await asyncio.gather(*(client.connect() for client in clients))
    await closed_loop(clients[:8], requests, min(1.0, options.seconds / 4))
    if options.rate:
        figures = await open_loop(clients, requests, options.seconds, options.rate)
    else:
        figures = await closed_loop(clients, requests, options.seconds)
    for client in clients:
        client.close()
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("path")
    parser.add_argument("--bodies", required=True, help="JSON file of request bodies; an empty list sends GET")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--rate", type=float)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))
