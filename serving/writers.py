"""Writers: what writes the partitions of a mailing, in this process or in several of this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import faiss
import torch

from serving.people.mailing import open_quietly, write_partition
from serving.settings import Settings
from serving.store.batches import Counts, Plan, read_plan

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""One compute thread a process: processes are the unit of parallelism, as replicas are of the service."""

CLUSTER = "RAY_ADDRESS"
"""The variable by which Ray finds a cluster that runs already."""

Work = Callable[[Settings, Path, Plan, Sequence[int], int], Iterator[Counts]]
"""Writes partitions by so many workers, and yields what was counted in each as it is done."""


def in_this_process(
    settings: Settings, folder: Path, plan: Plan, numbers: Sequence[int], workers: int
) -> Iterator[Counts]:
    """Write partitions one after the other."""
    with Writer(settings.model_dump(mode="json"), str(folder)) as writer:
        yield from map(writer.write, numbers)


def in_processes(
    settings: Settings, folder: Path, plan: Plan, numbers: Sequence[int], workers: int
) -> Iterator[Counts]:
    """Write partitions by several processes of this machine, each with an engine of its own; as they are done."""
    os.environ.update(dict.fromkeys(THREADS, "1"))  # read when the libraries are loaded, in the processes to come
    context = multiprocessing.get_context("spawn")  # an open store, and threads, do not survive a fork
    given = (settings.model_dump(mode="json"), str(folder))
    size = max(1, min(workers, len(numbers)))
    with ProcessPoolExecutor(size, mp_context=context, initializer=_begin, initargs=given) as pool:
        for one in as_completed([pool.submit(_write, number) for number in numbers]):
            yield one.result()


class Writer:
    """One process of several: an engine, and the plan that it works on."""

    def __init__(self, settings: dict[str, Any], folder: str) -> None:
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        plan = read_plan(Path(folder))
        assert plan is not None
        self.folder, self.plan = Path(folder), plan
        self.engine = open_quietly(Settings(**settings))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.engine.stop()

    def write(self, number: int) -> Counts:
        """Write one partition."""
        return write_partition(self.engine, self.folder, self.plan, number)


_WRITERS: list[Writer] = []
"""That of this process, if it is one of `in_processes`."""


def _begin(settings: dict[str, Any], folder: str) -> None:
    _WRITERS.append(Writer(settings, folder))


def _write(number: int) -> Counts:
    return _WRITERS[0].write(number)
