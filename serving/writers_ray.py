"""Messages through Ray Data: partitions are rows of a data set, and actors on every machine of a cluster write them.

`RAY_ADDRESS` names the cluster, which runs already; its machines must see folder, releases and store under the same names.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data

from embeddings.errors import BespokeError, Unavailable
from serving.settings import Settings
from serving.store.batches import Counts, Plan
from serving.writers import CLUSTER, Writer


class Actor:
    """An actor of Ray Data around a writer."""

    def __init__(self, settings: dict[str, Any], folder: str) -> None:
        self.writer = Writer(settings, folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Write the partitions of a batch and tell their counts."""
        counts = [self.writer.write(int(number)) for number in batch["number"]]
        return {"messages": [one.messages for one in counts], "skipped": [json.dumps(one.skipped) for one in counts]}


def on_ray(settings: Settings, folder: Path, plan: Plan, numbers: Sequence[int], workers: int) -> Iterator[Counts]:
    """Write partitions by actors of Ray Data, as they are done. Raises `Unavailable` where no cluster answers."""
    if not numbers:
        return
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise Unavailable(f"no cluster answers at {CLUSTER}: {error}") from None
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        written = rows.map_batches(
            Actor,
            batch_size=1,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
            fn_constructor_args=(settings.model_dump(mode="json"), str(folder)),
        )
        with _unwrapped():
            for row in written.iter_rows():
                yield Counts(int(row["messages"]), Counter(json.loads(row["skipped"])))
    finally:
        ray.shutdown()


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
