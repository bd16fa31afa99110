"""The load generator, against a server whose answers and pauses are known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import load

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"


class Server:
    """Answers after a pause; the answers are given in turn. `stall_s` blocks everybody once, at the given request."""

    def __init__(self, answers: list[bytes], *, pause_s: float = 0.0, stall_at: int = -1, stall_s: float = 0.0) -> None:
        self.answers, self.pause_s, self.stall_at, self.stall_s = answers, pause_s, stall_at, stall_s
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.free = asyncio.Event()
        self.free.set()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                length = load.content_length(head) if b"Content-Length" in head else 0
                self.bodies.append(await reader.readexactly(length))
                number = len(self.heads)
                if number == self.stall_at:
                    self.free.clear()
                    asyncio.get_running_loop().call_later(self.stall_s, self.free.set)
                await self.free.wait()
                await asyncio.sleep(self.pause_s)
                writer.write(self.answers[(number - 1) % len(self.answers)])
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def against(server: Callable[[], Server], work: Callable[[str], Awaitable[dict[str, object]]]) -> dict[str, object]:
    async def run() -> dict[str, object]:
        made = server()
        listening = await asyncio.start_server(made.talk, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        result = await work(f"http://127.0.0.1:{port}/v1/x")
        listening.close()
        await asyncio.sleep(0.05)
        return result | {"heads": made.heads, "bodies": made.bodies}

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "WARM_UP_S", 0.0)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50), st.floats(0.01, 1))
def test_percentile_is_the_smallest_value_that_covers_the_share(values: list[float], share: float) -> None:
    found = load.percentile_ms(sorted(values), share)
    slow = next(
        value for value in sorted(values) if sum(one <= value for one in values) >= math.ceil(share * len(values))
    )
    assert found == round(slow * 1e3, 3)


def test_percentile_of_nothing() -> None:
    assert load.percentile_ms([], 0.5) is None


def test_closed_loop_measures_the_pause_and_keeps_so_many_in_flight() -> None:
    requests = load.encode("http://h/v1/x", [])
    found = against(
        lambda: Server([ANSWER], pause_s=0.02),
        lambda url: load.closed_loop(url, requests, concurrency=4, seconds=0.5),
    )
    assert isinstance(found["p50_ms"], float)
    assert 20 <= found["p50_ms"] < 60
    assert isinstance(found["rps"], float)
    assert found["rps"] > 2.5 / 0.06  # more than one caller could


def test_bodies_are_sent_in_turn() -> None:
    requests = load.encode("http://h/v1/x", ['{"a": 1}', '{"a": "ü"}'])
    found = against(
        lambda: Server([ANSWER], pause_s=0.005),
        lambda url: load.closed_loop(url, requests, concurrency=1, seconds=0.1),
    )
    assert isinstance(found["bodies"], list)
    assert found["bodies"][:3] == [b'{"a": 1}', '{"a": "ü"}'.encode(), b'{"a": 1}']


def test_refusals_are_counted_apart() -> None:
    requests = load.encode("http://h/v1/x", [])
    found = against(
        lambda: Server([ANSWER, BUSY], pause_s=0.005),
        lambda url: load.closed_loop(url, requests, concurrency=1, seconds=0.2),
    )
    answers = found["answers"]
    assert isinstance(answers, dict)
    assert set(answers) == {"200", "429"}
    assert found["rps"] == round(answers["200"] / 0.2, 1)


def test_a_server_that_is_not_there_is_counted_as_zero() -> None:
    requests = load.encode("http://h/v1/x", [])
    found = asyncio.run(load.closed_loop("http://127.0.0.1:9", requests, concurrency=1, seconds=0.05))
    assert found["p50_ms"] is None
    assert set(found["answers"]) == {"0"}  # type: ignore[call-overload]


def test_open_loop_counts_the_wait_behind_a_stall() -> None:
    """A stall of 300 ms: a closed loop sees one slow answer, an open one everything that was due meanwhile."""
    requests = load.encode("http://h/v1/x", [])
    found = against(
        lambda: Server([ANSWER], stall_at=10, stall_s=0.3),
        lambda url: load.open_loop(url, requests, rate=100, seconds=0.4, callers=1),
    )
    assert found["answers"] == {"200": 40}
    assert isinstance(found["p50_ms"], float)
    assert found["p50_ms"] > 20  # most were due during the stall or soon after it
    assert isinstance(found["p99_ms"], float)
    assert found["p99_ms"] > 250


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    ],
)
def test_a_body_is_read_however_its_end_is_told(answer: bytes) -> None:
    async def ask_twice(url: str) -> dict[str, object]:
        caller = load.Caller(url, load.encode(url, ["{}"]), 0)
        found = [(await caller.ask(), caller.body) for _ in range(2)]
        caller.close()
        return {"found": found}

    assert against(lambda: Server([answer]), ask_twice)["found"] == [(200, b"{}")] * 2


def test_an_answer_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="no content-length"):
        load.content_length(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
