"""The script for a shop's pages, in the system's Chromium: another origin, a key for browsers, a service that goes away."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from embeddings.schema import Event
from serving.api import create_api
from serving.browser import PATH, script
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.conftest import free_port, require, write_world
from tests.test_api import client as client
from tests.test_console import BROWSER_ARGUMENTS
from tests.test_deciding import content

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Shop</title></head><body {body}>
<h1 data-bespoke-content="hero"><span data-bespoke-text="text"></span> <a data-bespoke-href="link">More</a></h1>
<div id="list" data-bespoke-placement="for_you" data-k="4">
<template><article><b data-bespoke-text="title"></b> <i data-bespoke-text="brand"></i></article></template></div>
{more}<script src="{service}/bespoke.js" data-key="{key}" {options}></script></body></html>"""


def test_the_script_is_small_depends_on_nothing_and_makes_no_markup_of_text() -> None:
    source = script().decode()
    assert len(script()) < 10_000
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|srcdoc", source
    )
    assert not re.findall(r"https?://[^/\s]", source)
    assert "import " not in source


def test_anybody_may_load_it_and_keep_it_for_a_while(client: TestClient) -> None:
    answer = client.get(PATH)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert answer.content == script()
    assert client.get(PATH, headers={"if-none-match": answer.headers["etag"]}).status_code == 304


class Shop:
    """Another origin's pages, an engine behind HTTP with keys and CORS, and a browser."""

    def __init__(self, folder: Path, playwright: Any, executable: str) -> None:
        write_world(folder / "releases")
        self.pages: dict[str, str] = {}
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Pages, self.pages))
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.origin = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.port = free_port()
        self.service = f"http://127.0.0.1:{self.port}"
        store = f"sqlite:///{folder / 'store.db'}"
        given = {"auth": "on", "cors_origins": (self.origin,), "deadline_ms": 10_000}
        self.engine = Engine(Settings(releases=folder / "releases", store=store, **given))
        self.engine.start()
        self.key = self.engine.store.keys.create("shop", ["browser"], per_minute=100_000, by="test")[1]
        self.server: uvicorn.Server | None = None
        self.browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        self.trouble: list[str] = []
        self.up()

    def up(self) -> None:
        config = uvicorn.Config(create_api(self.engine), host="127.0.0.1", port=self.port, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server is not None and self.server.started)

    def down(self) -> None:
        assert self.server is not None
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(20)

    def close(self) -> None:
        self.browser.close()
        self.down()
        self.http.shutdown()
        self.http.server_close()
        self.engine.stop()

    def open(self, path: str = "/", *, body: str = "", more: str = "", options: str = "", context: Any = None) -> Any:
        self.pages[path] = PAGE.format(body=body, more=more, service=self.service, key=self.key, options=options)
        page = (context or self.browser.new_context()).new_page()
        page.set_default_timeout(60_000)  # shared machines pause
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.goto(self.origin + path)
        return page

    def events(self, user: str) -> list[tuple[str, str]]:
        return [(one.event_type, one.item_id) for one in self.engine.store.feedback.of_user(user)]


class Pages(BaseHTTPRequestHandler):
    def __init__(self, pages: dict[str, str], *args: Any) -> None:
        self.pages = pages
        super().__init__(*args)

    def do_GET(self) -> None:
        body = self.pages.get(self.path, "").encode()
        self.send_response(200 if body else 404)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def until(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    executable = shutil.which("chromium")
    require(executable, "the system's Chromium")
    assert executable
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = Shop(tmp_path_factory.mktemp("browser"), playwright, executable)
        variants = [{"id": "a", "payload": {"text": "Hello", "link": "javascript:alert(1)"}}]
        content(made.engine, variants=variants)
        yield made
        made.close()
    assert made.trouble == []


def drawn(page: Any) -> list[str]:
    page.wait_for_selector("#list > [data-bespoke-item]")
    found: list[str] = page.locator("#list > article").evaluate_all("all => all.map(one => one.dataset.bespokeItem)")
    return found


@pytest.mark.slow
def test_before_consent_nothing_is_kept_sent_or_personal(shop: Shop) -> None:
    page = shop.open(body='data-bespoke-view="g1-1"')
    before = drawn(page)
    assert len(before) == 4
    assert page.locator("h1 span").inner_text() == "Hello"
    assert page.locator("h1 a").get_attribute("href") is None  # not an address of the web
    page.click("#list > article")
    page.evaluate("() => bespoke.flush()")
    assert page.evaluate("() => localStorage.length") == 0
    assert shop.engine.store.profiles.list().users == ()
    page.context.close()


@pytest.mark.slow
def test_what_is_not_there_leaves_nothing_empty_and_no_address_of_this_page(shop: Shop) -> None:
    content(shop.engine, "bare", variants=[{"id": "a", "payload": {"text": "Hello"}}])
    content(shop.engine, "over", enabled=False, variants=[{"id": "a", "payload": {"text": "Gone"}}])
    more = """<section data-bespoke-content="bare" hidden><b data-bespoke-text="text"></b>
        <a data-bespoke-href="link">More</a><img data-bespoke-src="image"></section>
        <section data-bespoke-content="over">Gone <b data-bespoke-text="text"></b></section>
        <div id="plain" data-bespoke-placement="for_you"></div>
        <div id="none" data-bespoke-placement="for_you" data-k="3">Nothing</div>"""
    context = shop.browser.new_context()

    def answer(route: Any) -> None:
        found = route.fetch()
        without = {"items": []} if route.request.post_data_json.get("k") == 3 else {}
        route.fulfill(response=found, json=found.json() | without)

    context.route("**/v1/recommendations", answer)
    page = shop.open("/bare", more=more, context=context)
    page.wait_for_selector("#plain > a")
    page.wait_for_selector("[data-bespoke-content=bare] >> text=Hello")
    for one in ("[data-bespoke-content=over]", "#none", "img"):
        page.wait_for_selector(one, state="hidden")
    addresses = "all => all.map(one => one.getAttribute('href') ?? one.getAttribute('src'))"
    assert set(page.locator("section a, #plain > a, img").evaluate_all(addresses)) == {None}
    page.unroute_all()
    page.context.close()


@pytest.mark.slow
def test_with_consent_what_people_do_arrives_and_lists_follow(shop: Shop) -> None:
    page = shop.open(
        body='data-bespoke-view="g2-3"', options='data-user="eve" data-consent="personalization analytics"'
    )
    shown = drawn(page)
    assert page.locator("#list > article b").first.inner_text() == shop.engine.snapshot.catalogue.title(
        shop.engine.snapshot.catalogue.row(shown[0])
    )
    until(lambda: ("impression", shown[0]) in shop.events("eve"))
    assert ("view", "g2-3") in shop.events("eve")
    page.click("#list > article:nth-of-type(2)")
    until(lambda: ("click", shown[1]) in shop.events("eve"))
    page.click("h1")
    until(lambda: ("click", "content:hero") in shop.events("eve"))
    clicks = [one for one in shop.engine.store.feedback.of_user("eve") if one.event_type == "click"]
    logged = shop.engine.store.decisions
    assert shop.engine.effects.flush()
    found = [logged.get(one.recommendation_id or "") for one in clicks]
    assert [one and one.kind for one in found] == ["list", "content"]
    assert (clicks[0].position, clicks[0].channel) == (1, "web")
    page.evaluate("() => bespoke.refresh()")
    page.wait_for_function("() => document.querySelector('#list > article').dataset.bespokeItem.startsWith('g')")
    after = drawn(page)
    assert {name[:2] for name in after} <= {shown[1][:2], "g2"}
    page.context.close()


@pytest.mark.slow
def test_leaving_sends_the_dwell_time(shop: Shop) -> None:
    page = shop.open("/item", body='data-bespoke-view="g3-3"', options='data-user="dora" data-consent="analytics"')
    drawn(page)
    page.wait_for_timeout(1200)
    page.goto("about:blank")
    until(lambda: ("dwell", "g3-3") in shop.events("dora"))
    (dwell,) = (one for one in shop.engine.store.feedback.of_user("dora") if one.event_type == "dwell")
    assert dwell.value is not None
    assert 1 < dwell.value < 60
    page.context.close()


@pytest.mark.slow
def test_what_happens_while_the_service_is_away_arrives_later_and_once(shop: Shop) -> None:
    context = shop.browser.new_context()
    options = 'data-consent="personalization"'
    page = shop.open("/", options=options, context=context)
    drawn(page)
    until(lambda: page.evaluate("() => JSON.parse(localStorage['bespoke.queue'] ?? '[]').length") == 0)
    shop.down()
    page.evaluate("() => { bespoke.track('click', 'g0-1'); bespoke.track('click', 'g0-2'); return bespoke.flush(); }")
    assert page.evaluate("() => JSON.parse(localStorage['bespoke.queue']).length") == 2
    user = page.evaluate("() => JSON.parse(localStorage['bespoke.user'])")
    assert user.startswith("anon-")
    page.close()
    shop.up()
    page = shop.open("/", options=options, context=context)
    until(lambda: ("click", "g0-2") in shop.events(user))
    assert [one for one in shop.events(user) if one[0] == "click"] == [("click", "g0-1"), ("click", "g0-2")]
    page.evaluate("() => bespoke.consent({})")
    assert page.evaluate("() => localStorage.length") == 0
    context.close()


@pytest.mark.slow
def test_one_wrong_event_does_not_hold_up_the_others(shop: Shop) -> None:
    page = shop.open(options='data-user="finn" data-consent="analytics"')
    drawn(page)
    page.evaluate("() => { bespoke.track('no name', 'g0-1'); bespoke.track('click', 'g0-2'); return bespoke.flush(); }")
    until(lambda: ("click", "g0-2") in shop.events("finn"))
    assert "no name" not in {kind for kind, _ in shop.events("finn")}
    page.context.close()


@pytest.mark.slow
def test_alerts_come_when_they_are_due_and_when_somebody_is_about_to_leave(shop: Shop) -> None:
    hello = [{"id": "a", "payload": {"title": "<b>Your cart</b>", "link": "/cart", "button": "See it"}}]
    content(shop.engine, "left", variants=hello, trigger={"type": "cart_abandonment"})
    stay = [{"id": "a", "payload": {"title": "Stay", "text": "a while"}}]
    content(shop.engine, "stay", variants=stay, trigger={"type": "exit_intent"}, caps=[{"limit": 1, "days": 1}])
    then = datetime.now(UTC) - timedelta(hours=2)
    shop.engine.store.events.append([Event(user_id="gus", item_id="g1-1", event_type="cart", timestamp=then)])
    options = 'data-user="gus" data-consent="personalization analytics marketing"'
    page = shop.open(options=options)
    box = page.locator(".bespoke-alert")
    assert "<b>Your cart</b> · Group 1 item 1" in box.inner_text()
    assert box.locator("a").get_attribute("href") == f"{shop.origin}/cart"
    box.locator("button").click()
    assert box.count() == 0
    page.evaluate(
        "() => document.addEventListener('bespoke:alert', (e) => { window.told = e.detail; e.preventDefault(); })"
    )
    leave = "() => document.dispatchEvent(new MouseEvent('mouseout', { clientY: -1, bubbles: true }))"
    page.evaluate(leave)
    page.wait_for_function("() => window.told?.payload.text === 'a while'")
    assert box.count() == 0
    page.context.close()
    page = shop.open(options='data-user="hal" data-consent="personalization"')  # not marketing
    drawn(page)
    page.evaluate(leave)
    page.wait_for_timeout(300)
    assert page.locator(".bespoke-alert").count() == 0
    page.context.close()


@pytest.mark.slow
def test_a_key_for_browsers_opens_nothing_else(shop: Shop) -> None:
    page = shop.open(options='data-user="eve"')
    statuses = page.evaluate(
        """async ([base, key]) => {
            const status = async (path) => (await fetch(`${base}/${path}`, { headers: { "x-api-key": key } })).status;
            return Promise.all(["v1/users", "v1/users/eve/profile", "v1/items", "v1/contents", "v1/info"].map(status));
        }""",
        [shop.service, shop.key],
    )
    assert statuses == [403] * 5
    page.context.close()
