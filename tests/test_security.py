"""The real service with keys: who gets in, over HTTP, over the console, and into the cluster behind it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serving import family
from serving.store import Store
from tests.conftest import ROOT, free_port, require, started, write_world
from tests.test_console import BROWSER_ARGUMENTS
from tests.test_keys import eventually

pytestmark = pytest.mark.slow
PERSON = "ann-of-green-gables"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The known-answer world behind `bespoke serve` that asks for keys: its URL, and the folder of its files."""
    folder = tmp_path_factory.mktemp("guarded")
    write_world(folder / "releases")
    port = free_port()
    command = [sys.executable, "-m", "bespoke", "serve", "--port", str(port)]
    command += ["--releases", str(folder / "releases"), "--store", f"sqlite:///{folder / 'store.db'}"]
    with started(command, f"http://127.0.0.1:{port}", folder / "serve.log", BESPOKE_AUTH="on") as url:
        yield url, folder


def made(folder: Path, *scopes: str) -> tuple[str, str]:
    with Store.open(f"sqlite:///{folder / 'store.db'}") as store:
        key, text = store.keys.create("test", scopes, per_minute=6000, by="test")
    return key.id, text


def test_keys_get_in_and_revoked_ones_do_not(guarded: tuple[str, Path]) -> None:
    url, folder = guarded
    ask = {"json": {"user_id": PERSON, "k": 3}, "timeout": 30}
    assert httpx2.post(f"{url}/v1/recommendations", **ask).status_code == 401
    key_id, text = made(folder, "read")
    headers = {"authorization": f"Bearer {text}"}

    assert httpx2.get(f"{url}/v1/users/{PERSON}", timeout=30).status_code == 401

    def status(path: str = "recommendations") -> int:
        return int(httpx2.post(f"{url}/v1/{path}", headers=headers, **ask).status_code)

    assert eventually(lambda: status() == 200)
    assert status("events") == 403
    with Store.open(f"sqlite:///{folder / 'store.db'}") as store:
        store.keys.revoke(key_id, by="test")
    assert eventually(lambda: status() == 401)
    logs = [folder / "serve.log", *Path("/tmp").glob(f"bespoke-{url.rpartition(':')[2]}-*/**/*.log")]
    assert len(logs) > 10
    for log in logs:
        written = log.read_text(errors="replace")
        assert PERSON not in written, log
        assert text not in written, log


def test_the_command_line_shows_its_key(guarded: tuple[str, Path]) -> None:
    url, folder = guarded
    _, text = made(folder, "read")
    command = [sys.executable, "-m", "bespoke", "recommend", "ann", "--k", "3", "--url", url]
    without = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert (without.returncode, "an API key is needed" in without.stderr) == (1, True)
    environment = os.environ | {"BESPOKE_API_KEY": text}
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False, env=environment)
    assert (shown.returncode, "for ann" in shown.stdout) == (0, True), shown.stderr


def test_whoever_has_not_got_the_token_cannot_join_the_cluster(guarded: tuple[str, Path], tmp_path: Path) -> None:
    lines = [" ".join(one.cmdline()) for one in family.members(int(guarded[0].rpartition(":")[2]))]
    address = next(found[1] for line in lines if (found := re.search(r"--gcs-address=(\S+)", line)))
    script = (
        "import sys; from ray._raylet import GcsClient\n"
        "try: print('in', GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None, timeout=5))\n"
        "except Exception as error: print('out', error)"
    )
    for environment, word in (
        ({"RAY_AUTH_MODE": "disabled"}, "out"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}, "out"),
        ({"RAY_AUTH_MODE": "token"}, "in"),
    ):
        run = subprocess.run(
            [sys.executable, "-c", script, address],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env=os.environ | environment,
        )
        assert run.stdout.split()[0] == word, run.stdout + run.stderr
        assert word == "in" or "uthenti" in run.stdout + run.stderr, run.stdout


def test_the_console_asks_for_a_key_and_forgets_it_with_the_tab(guarded: tuple[str, Path]) -> None:
    url, folder = guarded
    _, text = made(folder, "read", "events")
    executable = shutil.which("chromium")
    require(executable, "the system's Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        page: Any = browser.new_page()
        page.set_default_timeout(15_000)
        page.goto(f"{url}/console")
        page.fill("#key[open] #key-text", "bk_not_a_key")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => document.querySelector('#key').open && !document.querySelector('#key-text').value"
        )
        page.fill("#key[open] #key-text", text)
        page.click("#key[open] >> text=Use it")
        page.wait_for_selector("#personalized > [data-item-id]")
        page.reload()
        page.wait_for_selector("#personalized > [data-item-id]")
        page.evaluate("sessionStorage.clear()")
        page.click("#new-visitor")
        page.wait_for_selector("#key[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#personalized [role=alert] >> text=An API key is needed.")
        page.click("#personalized [role=alert] >> text=Try again")
        page.fill("#key[open] #key-text", text)
        page.keyboard.press("Enter")
        page.wait_for_selector("#personalized > [data-item-id]")
        assert page.evaluate("Object.keys(localStorage).length") == 0
        assert text not in page.url
        browser.close()
