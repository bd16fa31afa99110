"""Turns at opening a release: one at a time, not forever, and none is kept by a process that is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from serving.pipeline.opening import turn
from tests.conftest import ROOT


def test_one_opens_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def replica() -> None:
        nonlocal inside, most
        with turn(tmp_path, patience_s=30) as mine:
            assert mine
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=replica) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_nobody_waits_for_one_that_hangs(tmp_path: Path) -> None:
    with turn(tmp_path) as first:
        began = time.monotonic()
        with turn(tmp_path, patience_s=0.1) as second:
            assert (first, second) == (True, False)
        assert time.monotonic() - began < 2
    with turn(tmp_path, patience_s=0.0) as third:
        assert third


def test_a_killed_process_gives_its_turn_back(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from serving.pipeline.opening import turn\n"
        "with turn(Path(sys.argv[1])):\n print('mine', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        with turn(tmp_path, patience_s=0.0) as mine:
            assert not mine
        process.send_signal(signal.SIGKILL)
    with turn(tmp_path, patience_s=5.0) as mine:
        assert mine
