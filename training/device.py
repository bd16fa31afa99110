"""The device a training runs on, and the state of the machine around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from embeddings.errors import TrainingError
from training.config import Run


def pick_device(name: str) -> torch.device:
    """Device by name: `auto` takes a GPU if there is one; raises `TrainingError` if the one named is missing."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise TrainingError(
            f"device '{name}' was asked for, but PyTorch {torch.__version__} finds {count or 'no'} CUDA GPUs here; "
            "'auto' or 'cpu' would run"
        )
    return device


@contextlib.contextmanager
def seeded(run: Run, device: torch.device) -> Iterator[None]:
    """Set threads and seed as the run asks; the caller's threads and random state come back afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            torch.set_num_threads(run.threads or threads)
            torch.manual_seed(run.seed)
            yield
        finally:
            torch.set_num_threads(threads)
