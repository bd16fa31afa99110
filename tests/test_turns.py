"""Steps in turn: one that hangs or fails costs itself, and the end is kept whatever happens."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from embeddings.errors import InputError
from serving.pipeline.turns import Step, Taken, in_turn
from serving.pipeline.workers import LOST_LIMIT, Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    one = Workers(1)
    yield one
    one.stop()


@pytest.fixture
def free() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def take(workers: Workers, steps: Mapping[str, Step], *, patience_s: float = 5.0, within_s: float = 20.0) -> Taken:
    async def run() -> Taken:
        return await in_turn(workers, steps, patience_s=patience_s, until=time.monotonic() + within_s)

    return asyncio.run(run())


def raises(error: Exception) -> Step:
    def step(_: Mapping[str, Any]) -> None:
        raise error

    return step


def test_steps_see_what_came_before(workers: Workers) -> None:
    taken = take(workers, {"a": lambda _: 1, "b": lambda done: done["a"] + 1, "c": lambda done: sorted(done)})
    assert taken == ({"a": 1, "b": 2, "c": ["a", "b"]}, [])
    assert take(workers, {}) == ({}, [])


def test_a_step_that_fails_costs_itself(workers: Workers) -> None:
    assert take(workers, {"a": raises(ValueError("x")), "b": lambda done: dict(done)}) == ({"b": {}}, ["a"])
    with pytest.raises(InputError, match="wrong"):
        take(workers, {"a": raises(InputError("wrong")), "b": lambda _: 1})


def test_steps_that_hang_are_left_behind(workers: Workers, free: threading.Event) -> None:
    def hang(_: Mapping[str, Any]) -> str:
        free.wait(30)
        return "late"

    steps = {"a": lambda _: 1, "b": hang, "c": lambda done: sorted(done), "d": hang, "e": lambda done: sorted(done)}
    began = time.monotonic()
    taken = take(workers, steps, patience_s=0.1)
    assert taken == ({"a": 1, "c": ["a"], "e": ["a", "c"]}, ["b", "d"])
    assert time.monotonic() - began < 5
    free.set()
    time.sleep(0.05)
    assert set(taken.done) == {"a", "c", "e"}, "what comes late changes nothing"


def test_the_end_comes_in_time(workers: Workers, free: threading.Event) -> None:
    def hang(_: Mapping[str, Any]) -> None:
        free.wait(30)

    began = time.monotonic()
    assert take(workers, {"a": hang, "b": lambda _: 1}, within_s=0.2) == ({}, ["a", "b"])
    assert time.monotonic() - began < 2


def test_too_many_hanging_threads_are_the_end_too(workers: Workers, free: threading.Event) -> None:
    def hang(_: Mapping[str, Any]) -> None:
        free.wait(30)

    began = time.monotonic()
    names = [f"h{n}" for n in range(LOST_LIMIT + 2)]
    taken = take(workers, dict.fromkeys(names, hang), patience_s=0.05)
    assert (taken.done, taken.left_out) == ({}, names)
    assert time.monotonic() - began < 5


def test_slow_steps_share_the_time_and_none_is_lost(workers: Workers) -> None:
    def slow(done: Mapping[str, Any]) -> int:
        time.sleep(0.02)
        return len(done)

    taken = take(workers, {f"s{n}": slow for n in range(20)}, patience_s=0.5)
    assert list(taken.done.values()) == list(range(20))
    taken = take(workers, {f"s{n}": slow for n in range(200)}, within_s=0.2)
    assert 0 < len(taken.done) < 200
    assert {*taken.done, *taken.left_out} == {f"s{n}" for n in range(200)}
    assert not set(taken.done) & set(taken.left_out)
