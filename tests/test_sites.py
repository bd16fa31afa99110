"""Two sites in one cluster, as `deploy/two_sites.yaml` has them: started for real, and unable to see each other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from serving import family, metrics, process
from serving.store import Store
from tests.conftest import ROOT, free_port, require, started, world_items, write_world
from tests.test_console import BROWSER_ARGUMENTS
from tests.test_keys import eventually

pytestmark = pytest.mark.slow
SITES = ("north", "south")


class Site:
    """One of the two: its address, and a key of its own that may do everything."""

    def __init__(self, name: str, url: str, folder: Path) -> None:
        self.name, self.url = name, f"{url}/{name}"
        with Store.open(f"sqlite:///{folder / name / 'store.db'}") as store:
            _, self.key = store.keys.create("all", ["admin"], per_minute=100_000, by="test")

    def ask(self, method: str, path: str, *, key: str | None = None, body: Any = None) -> httpx2.Response:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx2.request(method, f"{self.url}{path}", headers=headers, json=body, timeout=30)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, fast_profile: dict[str, str]) -> Iterator[list[Site]]:
    """The file as it is, but for the port and the folders."""
    folder = tmp_path_factory.mktemp("sites")
    require(" " not in sys.executable, "a path without a space: Ray starts workers of a runtime environment by a shell")
    config = yaml.safe_load((ROOT / "deploy" / "two_sites.yaml").read_text(encoding="utf-8"))
    port = config["http_options"]["port"] = free_port()
    for one in config["applications"]:
        name = one["name"]
        write_world(folder / name / "releases", f"{name}-1")
        one["args"] |= {"releases": str(folder / name / "releases"), "store": f"sqlite:///{folder / name / 'store.db'}"}
        one["runtime_env"]["env_vars"][metrics.FOLDER] = str(folder / name / "metrics")
    (folder / "sites.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    private = family.make_folder(port)
    names = dict(zip(process.OWN_PORTS, map(str, family.free_ports(len(process.OWN_PORTS))), strict=True))
    environment = fast_profile | process.own_files(private) | names
    del environment[metrics.FOLDER], environment["BESPOKE_LOG_SOCKET"]
    serve = str(Path(sys.executable).parent / "serve")
    url = f"http://127.0.0.1:{port}"
    command = [serve, "run", str(folder / "sites.yaml")]
    with started(command, f"{url}/north", folder / "serve.log", **environment):
        assert eventually(lambda: httpx2.get(f"{url}/south/readyz", timeout=5).status_code == 200, within_s=120)
        found = [Site(name, url, folder) for name in SITES]
        for one in found:
            assert eventually(lambda one=one: one.ask("GET", "/v1/info").status_code == 200, within_s=5)  # type: ignore[misc]
        yield found
    shutil.rmtree(private, ignore_errors=True)


def test_each_answers_from_its_own_release_catalogue_and_people(sites: list[Site]) -> None:
    north, south = sites
    items = [item.model_dump(mode="json") for item in world_items()]
    for one in sites:
        assert one.ask("POST", "/v1/items", body={"items": items}).status_code == 200
    event = {"user_id": "ann", "item_id": "g3-5", "event_type": "view"}
    assert north.ask("POST", "/v1/events", body=event).status_code == 202
    assert north.ask("PUT", "/v1/items/new", body={"categories": ["group-1"]}).status_code == 200
    answers = [one.ask("POST", "/v1/recommendations", body={"user_id": "ann", "k": 10}).json() for one in sites]
    assert [answer["model_version"] for answer in answers] == ["north-1", "south-1"]
    groups = [{item["item_id"].split("-")[0] for item in answer["items"]} for answer in answers]
    assert groups[0] == {"g3"}
    assert len(groups[1]) > 1  # nobody there knows her
    assert south.ask("GET", "/v1/users/ann").status_code == 404
    assert (north.ask("GET", "/v1/items/new").status_code, south.ask("GET", "/v1/items/new").status_code) == (200, 404)


def test_a_key_of_one_is_unknown_to_the_other(sites: list[Site]) -> None:
    north, south = sites
    for path in ("/v1/info", "/metrics", "/v1/audit"):
        assert north.ask("GET", path).status_code == 200
        assert north.ask("GET", path, key=south.key).status_code == 401
        assert south.ask("GET", path, key=north.key).status_code == 401
        assert httpx2.get(f"{north.url}{path}", timeout=30).status_code == 401


def test_metrics_are_labelled_and_apart(sites: list[Site]) -> None:
    assert sites[0].ask("GET", "/v1/rules/nobodys").status_code == 404
    texts = {one.name: one.ask("GET", "/metrics").text for one in sites}
    for name, text in texts.items():
        lines = [line for line in text.splitlines() if line.startswith("bespoke_")]
        assert len(lines) > 100
        assert all(f'site="{name}"' in line for line in lines)
    assert [texts[name].count('route="/v1/rules/{') > 0 for name in SITES] == [True, False]


def test_console_and_documentation_work_below_a_prefix_without_the_outside(sites: list[Site]) -> None:
    executable = shutil.which("chromium")
    require(executable, "the system's Chromium")
    from playwright.sync_api import sync_playwright

    north = sites[0]
    asked: list[str] = []
    trouble: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda message: trouble.append(message.text) if "Content Security" in message.text else None)
        page.goto(f"{north.url}/docs")
        page.wait_for_selector(".opblock")
        described = page.locator(".opblock-summary-path").all_text_contents()
        assert any("recommendations" in text for text in described)
        assert len(described) > 20
        page.goto(f"{north.url}/console")
        page.wait_for_selector("#person")
        browser.close()
    assert trouble == []
    outside = [url for url in asked if not url.startswith((f"{north.url}/", "data:"))]
    assert outside == []
    assert f"{north.url}/docs/swagger-ui-bundle.js" in asked
    servers = httpx2.get(f"{north.url}/openapi.json", timeout=30).json()["servers"]
    assert servers == [{"url": "/north"}]


def test_a_site_does_not_start_on_the_metrics_of_another(tmp_path: Path) -> None:
    code = "from serving import metrics; metrics.claim('{}')"
    environment = os.environ | {metrics.FOLDER: str(tmp_path), "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.run([sys.executable, "-c", code.format(name)], env=environment, capture_output=True, check=False)
        for name in SITES
    ]
    assert [run.returncode for run in runs] == [0, 1]
    assert b"another one counts in" in runs[1].stderr
