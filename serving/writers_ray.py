"""Messages through Ray Data: partitions are rows of a data set, and actors on every machine of a cluster write them.

`RAY_ADDRESS` names a cluster that runs already; its machines must see folder, releases and store under the same names.
Without it one is started on this machine, and stopped afterwards.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data

from embeddings.errors import BespokeError
from serving.settings import Settings
from serving.store.batches import Counts, Plan
from serving.writers import THREADS, Writer

ADDRESS = "RAY_ADDRESS"


class Actor:
    """An actor of Ray Data around a writer."""

    def __init__(self, settings: dict[str, Any], folder: str) -> None:
        self.writer = Writer(settings, folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Write the partitions of a batch and tell their counts."""
        counts = [self.writer.write(int(number)) for number in batch["number"]]
        return {"messages": [one.messages for one in counts], "skipped": [json.dumps(one.skipped) for one in counts]}


def on_ray(settings: Settings, folder: Path, plan: Plan, numbers: Sequence[int], workers: int) -> Iterator[Counts]:
    """Write partitions by actors of Ray Data, as they are done."""
    if not numbers:
        return
    size = min(workers, len(numbers))
    with _cluster(size):
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        written = rows.map_batches(
            Actor,
            batch_size=1,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=size),
            fn_constructor_args=(settings.model_dump(mode="json"), str(folder)),
        )
        with _unwrapped():
            for row in written.iter_rows():
                yield Counts(int(row["messages"]), Counter(json.loads(row["skipped"])))


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise an error of ours as it was raised in an actor, not the page of traces that Ray makes of it."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            own = getattr(cause, "cause", cause)  # what Ray raises is of both classes, and holds the original
            if isinstance(own, BespokeError):
                raise own from None
            cause = cause.__cause__
        raise


@contextmanager
def _cluster(workers: int) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    folder = Path(tempfile.mkdtemp(prefix="bespoke-ray-"))
    try:
        if os.environ.get(ADDRESS):
            ray.init(**quiet)
        else:
            ray.init(
                address="local",
                num_cpus=workers + 1,  # one for the reading
                include_dashboard=False,
                object_store_memory=128 << 20,
                # Ray hands the line that starts a worker to a shell, unquoted, and a path may hold a space.
                runtime_env={"py_executable": shlex.quote(sys.executable), "env_vars": dict.fromkeys(THREADS, "1")},
                _temp_dir=str(folder),
                **quiet,
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
