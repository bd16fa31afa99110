"""One copy a machine: processes that open a release share the pages of its index, and have them before they search."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from embeddings.index import VectorIndex

READER = """
import sys
import numpy as np
from embeddings.index import VectorIndex

VectorIndex.build(np.ones((4, 4), np.float32), kind="ivf", k=1).search(np.ones((1, 4), np.float32), 1)
print("imported", flush=True)
sys.stdin.readline()
index = VectorIndex.load(sys.argv[1] + "/index", np.lib.format.open_memmap(sys.argv[1] + "/matrix.npy", mode="r"))
print(index.kind, flush=True)
sys.stdin.readline()
"""
OWN = 1_500_000
"""What a process may take for itself, in bytes: a fifth of the files."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of memory")


@contextmanager
def reader(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", READER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def memory(process: subprocess.Popen[str]) -> dict[str, int]:
    """Bytes of a process: resident, its share of them, and what is in no file."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    figures = {name: int(size.split()[0]) * 1024 for name, size in (line.split(":") for line in lines)}
    return {name: figures[name] for name in ("Rss", "Pss", "Anonymous")}


def test_processes_share_the_pages_of_index_and_matrix(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((25_000, 64), dtype=np.float32)
    np.save(tmp_path / "matrix.npy", matrix)
    # A high recall of rows without any order would be dear to tune for, and is not the matter here.
    built = VectorIndex.build(matrix, kind="ivf", k=5, recall_floor=0.2, queries=matrix[:16])
    built.save(tmp_path / "index")
    files = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert files > 1.2 * matrix.nbytes
    with ExitStack() as stack:
        both = [stack.enter_context(reader(tmp_path)) for _ in range(2)]
        assert [said(one) for one in both] == ["imported"] * 2
        before = [memory(one) for one in both]
        for one in both:
            go_on(one)
        assert [said(one) for one in both] == ["ivf"] * 2
        after = [memory(one) for one in both]
    for was, now in zip(before, after, strict=True):
        grown = {name: now[name] - was[name] for name in now}
        assert grown["Rss"] > 0.97 * files  # every page is there, and nothing was searched yet
        assert grown["Pss"] < 0.5 * files + OWN
        assert grown["Anonymous"] < OWN
