"""HAProxy's own ports: narrowed in the configuration that this version of Ray Serve writes, and HAProxy still starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving import loopback

CONFIGURATION = """frontend prometheus
    bind :9101
frontend http_frontend
    bind 0.0.0.0:8000
    bind 10.1.2.3:8001 proto h2
listen stats
  bind *:8404
  stats enable
"""


def test_only_addresses_that_are_everywhere_are_narrowed() -> None:
    binds = re.findall(r"bind (.*)", loopback.narrowed(CONFIGURATION))
    assert binds == ["127.0.0.1:9101", "0.0.0.0:8000", "10.1.2.3:8001 proto h2", "127.0.0.1:8404"]
    assert loopback.narrowed(loopback.narrowed(CONFIGURATION)) == loopback.narrowed(CONFIGURATION)


def test_the_template_of_this_ray_has_no_other_open_port() -> None:
    templates = pytest.importorskip("ray.serve._private.haproxy_templates")
    rendered = re.sub(r"\{\{ [\w.]*host \}\}", "127.0.0.2", templates.HAPROXY_CONFIG_TEMPLATE)
    rendered = re.sub(r"\{\{ [\w.]*port \}\}", "8000", rendered)
    binds = re.findall(r"(?m)^\s*bind .*$", loopback.narrowed(rendered))
    assert len(binds) == 4
    assert all("bind 127.0.0." in line for line in binds)


def test_it_becomes_haproxy(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(
        "global\ndefaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n"
        "listen stats\n  bind *:18404\n  stats enable\n"
    )
    command = [sys.executable, "-m", "serving.loopback", "-c", "-f", str(path)]
    # The environment names this very command, as it does under Serve.
    done = subprocess.run(
        command,
        env=os.environ | {loopback.BINARY: str(loopback.command())},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bind 127.0.0.1:18404" in path.read_text()
