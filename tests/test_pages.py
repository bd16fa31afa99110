"""The documentation of the API: everything it loads comes from the service, under a policy that allows nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.api import create_api
from serving.replica.engine import Engine
from serving.settings import Settings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    engine = Engine(Settings(releases=tmp_path / "none", store=f"sqlite:///{tmp_path / 's.db'}", auth="on"))
    engine.start()
    with TestClient(create_api(engine)) as one:
        yield one
    engine.stop()


def test_the_documentation_needs_no_network(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded[0] == "data:,"
    assert [client.get(f"/{path}").headers["content-type"] for path in loaded[1:]] == [
        "text/css; charset=utf-8",
        "text/javascript; charset=utf-8",
    ]
    assert "http" not in page.text
    policy = page.headers["content-security-policy"]
    assert "http" not in policy
    assert policy.startswith("default-src 'none'")


def test_only_what_the_page_loads_is_open(client: TestClient) -> None:
    for path in ("/docs/", "/docs/redoc.standalone.js", "/docs/../v1/info", "/docs/favicon.png"):
        assert client.get(path).status_code == 401
