"""Metrics over processes: one folder, one answer for all, one site; and the command that shows them elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from embeddings.errors import ConfigError
from serving import metrics
from serving.api import create_api
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.conftest import ROOT, free_port
from tests.test_keys import eventually

COUNT = "from serving import metrics; metrics.EVENTS.labels('accepted').inc(3); metrics.REFUSED.set(1)"


def count(folder: Path) -> None:
    """What a replica does, in a process of its own."""
    environment = os.environ | {metrics.FOLDER: str(folder), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", COUNT], env=environment, check=True, timeout=60)


@contextmanager
def exporter(folder: Path, *words: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "bespoke", "metrics", "--folder", str(folder), "--port", str(port), *words]
    with subprocess.Popen(command, cwd=ROOT) as process:
        url = f"http://127.0.0.1:{port}/metrics"
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx2.get(url, timeout=5)
                break
            except httpx2.HTTPError:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.1)
        yield url
        process.terminate()


def test_the_command_counts_over_processes_and_forgets_those_before_a_start(tmp_path: Path) -> None:
    for _ in range(2):
        count(tmp_path)
    with exporter(tmp_path, "--site", "north") as url:
        text = httpx2.get(url, timeout=10).text
        assert 'bespoke_events_total{outcome="accepted",site="north"} 6.0' in text
        assert 'bespoke_release_refused{site="north"} 1.0' in text
        assert all(line.startswith(("#", "bespoke_")) for line in text.splitlines())
        metrics.begin(tmp_path)
        assert "6.0" not in httpx2.get(url, timeout=10).text


def test_without_a_folder_the_command_says_so(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != metrics.FOLDER}
    command = [sys.executable, "-m", "bespoke", "metrics"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "name it with --folder" in done.stderr) == (1, True)


def test_two_sites_do_not_count_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    for _ in range(2):
        metrics.claim("north")
    for other in ("south", None):
        with pytest.raises(ConfigError, match="another one counts in"):
            metrics.claim(other)
    metrics.begin(tmp_path)
    metrics.claim(None)
    with pytest.raises(ConfigError, match="runtime_env"):
        metrics.claim("north")


def test_a_site_is_a_label_of_every_metric(releases: Path, tmp_path: Path) -> None:
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 's.db'}", site="north"))
    engine.start()
    with TestClient(create_api(engine)) as client:
        client.post("/v1/recommendations", json={"user_id": "a"})
        lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    engine.stop()
    assert len(lines) > 100
    assert all('site="north"' in line for line in lines)


def test_an_open_circuit_is_shown_until_it_closes_whatever_release_it_was(releases: Path, tmp_path: Path) -> None:
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 's.db'}", poll_s=0.01))
    engine.start()

    def shown() -> float | None:
        return metrics.REGISTRY.get_sample_value("bespoke_circuit_open", {"part": "ranking"})

    live = engine.holdings.live
    assert live is not None
    for _ in range(3):
        live.circuits["ranking"].failed()
    assert eventually(lambda: shown() == 1, within_s=5)
    live.circuits["ranking"].succeeded()
    assert eventually(lambda: shown() == 0, within_s=5)
    engine.stop()
