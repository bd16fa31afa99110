"""Opening a release beside the one in service: replicas of a machine take turns.

Opening and checking one keeps a core busy for half a second. All replicas notice a new pointer at once, and if they all
opened it at once, nothing would be left of the cores for the requests that they answer meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 3.0
"""Then it goes ahead: whoever hangs must not keep a release from the others."""

LOOK_S: Final = 0.02


@contextmanager
def turn(releases: Path, *, patience_s: float = PATIENCE_S) -> Iterator[bool]:
    """Wait for the turn to open a release of this folder; gives whether nobody else opens one meanwhile.

    The system ends the turn of a process that ends. Where the folder's file system knows no locks nobody waits.
    """
    handle = os.open(releases, os.O_RDONLY)
    deadline, mine = time.monotonic() + patience_s, False
    try:
        with suppress(OSError):
            while not (mine := _taken(handle)) and time.monotonic() < deadline:
                time.sleep(LOOK_S)
        yield mine
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
