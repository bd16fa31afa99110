from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import serving.console
from serving.console import files

ASSETS = files()
SCRIPTS = sorted(path for path in ASSETS if path.endswith(".js"))
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "<img src=x onerror=\"document.title='broken'\"> & Söhne"


def text(path: str) -> str:
    return ASSETS[path][0].decode("utf-8")


class Page(HTMLParser):
    """Every start tag of the page with its attributes, and the text inside of scripts and style elements."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self._raw = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        self.inline += data if self._raw else ""

    def values(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


PAGE = Page(text("/console"))


def test_every_asset_is_there_with_its_type() -> None:
    types = {path: kind.split(";")[0] for path, (_, kind) in ASSETS.items()}
    assert types.pop("/console") == "text/html"
    assert types.pop("/console/icon.svg") == "image/svg+xml"
    folder = Path(serving.console.__file__).parent
    for suffix, kind in ((".css", "text/css"), (".js", "text/javascript")):
        found = {path for path, one in types.items() if one == kind}
        assert found == {f"/console/{path.name}" for path in folder.glob(f"*{suffix}")}
    assert set(types.values()) == {"text/css", "text/javascript"}
    assert all(len(content) > 100 for content, _ in ASSETS.values())


def test_every_reference_leads_to_an_asset_and_every_asset_is_used() -> None:
    links = [value for value in [*PAGE.values("src"), *PAGE.values("href")] if not value.startswith("#")]
    references = {f"/{value}" for value in links if value != "docs"}
    for path in SCRIPTS:
        references |= {f"/console/{name}" for name in re.findall(r' from "\./([^"]+)";', text(path))}
    assert references == set(ASSETS) - {"/console"}


@pytest.mark.parametrize("path", SCRIPTS)
def test_modules_import_only_what_the_others_export_and_use_it(path: str) -> None:
    for names, module in re.findall(r'^import \{ ([^}]+) \} from "\./([^"]+)";$', text(path), flags=re.MULTILINE):
        for name in names.split(", "):
            word = rf"(?<![\w$]){re.escape(name)}(?![\w$])"
            assert re.search(rf"^export (?:async )?(?:const|function) {word}", text(f"/console/{module}"), re.MULTILINE)
            assert len(re.findall(word, text(path))) > 1, f"{path} imports {name} in vain"


@pytest.mark.parametrize("path", ASSETS)
def test_no_asset_names_anything_outside(path: str) -> None:
    source = text(path).replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"(?:https?:|wss?:|data:|blob:|['\"(]//)[^\s'\")]*", source)
    assert "@import" not in source
    assert not re.search(r"\burl\(", source)


def test_the_page_holds_under_a_strict_content_security_policy() -> None:
    attributes = {name for _, attrs in PAGE.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on") or name == "style"}
    assert not PAGE.inline.strip()


@pytest.mark.parametrize("path", SCRIPTS)
def test_no_script_turns_text_into_markup_or_code(path: str) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|srcdoc"
    assert not re.findall(forbidden, text(path))
    assert not re.search(r"setAttribute\(\s*['\"]style", text(path))


def test_ids_are_unique_and_every_reference_to_one_resolves() -> None:
    ids = PAGE.values("id")
    assert len(ids) == len(set(ids))
    pointed = [*PAGE.values("for"), *PAGE.values("aria-controls"), *PAGE.values("aria-labelledby")]
    assert set(pointed) - {"item-title", "step-title"} <= set(ids)  # titles of what the scripts build
    for path in SCRIPTS:
        assert set(re.findall(r'\$\("([a-z-]+)"\)', text(path))) <= set(ids)
    assert {"personalized", "baseline", "history", "trace", "status", "toast"} <= set(ids)


def harden(route: Any) -> None:
    """Serve the page under the policy that it promises to hold under; the browser then reports every breach."""
    answer = route.fetch()
    route.fulfill(response=answer, headers={**answer.headers, "content-security-policy": "default-src 'self'"})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    executable = shutil.which("chromium")
    if executable is None and not os.environ.get("CI"):
        pytest.skip("needs the system's Chromium, which is not installed")
    assert executable, "CI must have Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        yield one
        one.close()


@pytest.fixture
def page(browser: Any, live_service: str) -> Iterator[Any]:
    """The open console, as for the first time; fails on a script error or a breach of the security policy."""
    trouble: list[str] = []
    page = browser.new_page(viewport={"width": 1440, "height": 900})  # in a context of its own
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.route(f"{live_service}/console", harden)
    page.goto(f"{live_service}/console")
    page.wait_for_selector("#personalized > [data-item-id]")
    yield page
    page.close()
    # The browser reports answers such as 404 for a person without a history as errors; they are ordinary here.
    assert [line for line in trouble if not line.startswith("Failed to load resource")] == []


def order(page: Any, name: str) -> list[str]:
    found: list[str] = page.locator(f"#{name} > .card:not(.ghost)").evaluate_all(
        "cards => cards.map(card => card.dataset.itemId)"
    )
    return found


def become_new_visitor(page: Any) -> None:
    page.click("#new-visitor")
    page.wait_for_function("() => document.querySelector('#person').value.startsWith('visitor-')")
    page.wait_for_selector("body:not([aria-busy]) #history > .empty")


def movement(before: list[str], after: list[str], item: str) -> str:
    """What the card says about its way: the places it moved, `new`, or nothing."""
    if item not in before:
        return "new"
    places = abs(before.index(item) - after.index(item))
    return str(places) if places else ""


def click_and_wait(page: Any, selector: str) -> None:
    """Click, and wait until the service has answered with both lists."""
    before = page.locator("#history > [data-item-id]").count()
    page.click(selector)
    page.wait_for_function("n => document.querySelectorAll('#history > [data-item-id]').length > n", arg=before)
    page.wait_for_selector("#toast:popover-open >> text=/^Event durable, list rebuilt in .+ ms$/")


@pytest.mark.slow
def test_a_visitor_clicks_and_the_list_follows(page: Any) -> None:
    become_new_visitor(page)
    assert page.locator("#personalized-title").inner_text() == f"For {page.input_value('#person')}"
    assert page.locator("#personalized-note").inner_text() == "Nothing known yet"
    before = order(page, "personalized")
    assert len(before) == len(set(before)) > 1
    assert order(page, "baseline")

    chosen = before[-1]
    click_and_wait(page, "#personalized > .card:last-child .open")
    assert page.locator("#history > [data-item-id]").first.get_attribute("data-item-id") == chosen
    assert page.locator("#personalized-note").inner_text() != "Nothing known yet"
    after = order(page, "personalized")
    assert after != before
    shown = page.locator("#personalized > .card:not(.ghost) .move").all_inner_texts()
    assert shown == [movement(before, after, item) for item in after]

    click_and_wait(page, "#personalized > .card:nth-child(2) [data-action=cart]")
    events = page.locator("#history > [data-item-id]").evaluate_all("rows => rows.map(row => row.dataset.event)")
    assert events == ["cart", "click"]

    assert page.locator("#status").inner_text().startswith("Model ")
    kinds = page.locator("#trace [data-stage]").evaluate_all("nodes => nodes.map(node => node.dataset.kind)")
    assert {"source", "filter", "scorer"} <= set(kinds)
    after = order(page, "personalized")
    page.click(".candidates summary")
    page.click(f'.candidates tr[data-item-id="{after[0]}"] .link')
    page.wait_for_selector(f'#personalized > .card.lit[data-item-id="{after[0]}"]')


@pytest.mark.slow
def test_cards_glide_unless_less_motion_is_asked_for(page: Any) -> None:
    become_new_visitor(page)
    page.evaluate(
        """() => {
            const animate = Element.prototype.animate;
            window.animated = 0;
            Element.prototype.animate = function (...how) {
                window.animated += this.matches(".card");
                return animate.apply(this, how);
            };
        }"""
    )
    click_and_wait(page, "#personalized > .card:last-child .open")
    assert page.evaluate("window.animated") > 0
    page.wait_for_selector(".card.ghost", state="detached")

    page.emulate_media(reduced_motion="reduce")
    page.evaluate("window.animated = 0")
    click_and_wait(page, "#personalized > .card:last-child .open")
    assert page.evaluate("window.animated") == 0


@pytest.mark.slow
def test_any_item_can_be_found_and_viewed_with_the_keyboard(page: Any) -> None:
    become_new_visitor(page)
    page.focus("#search")
    page.wait_for_selector("#search-options [role=option][aria-selected=true]")
    page.keyboard.press("ArrowDown")
    wanted = page.locator("#search-options [aria-selected=true]").get_attribute("data-value")
    assert page.get_attribute("#search", "aria-activedescendant") == "search-options-1"
    assert page.locator("#search-options").evaluate("list => list.offsetWidth") >= 440
    page.keyboard.press("Enter")
    page.wait_for_selector("#item[open] h2")
    page.wait_for_selector(f'#history > [data-item-id="{wanted}"][data-event=view]')
    page.keyboard.press("Escape")
    page.wait_for_selector("#item:not([open])", state="attached")

    page.fill("#person", "somebody else")
    page.wait_for_selector("#person-options >> text=Become “somebody else”")
    page.keyboard.press("Enter")
    page.wait_for_selector("#personalized-title >> text=For somebody else")


@pytest.mark.slow
def test_hostile_titles_stay_text_and_errors_are_told(page: Any) -> None:
    def poison(route: Any) -> None:
        answer = route.fetch()
        body = answer.json()
        for entry in body["items"]:
            entry["item"]["title"] = HOSTILE
            entry["reasons"] = [{"code": "similar_to", "text": HOSTILE * 5, "item_id": entry["item_id"]}]
        route.fulfill(response=answer, json=body)

    page.route("**/v1/recommendations", poison)
    page.click("#new-visitor")
    page.wait_for_function("t => document.querySelector('#personalized .open')?.textContent === t", arg=HOSTILE)
    assert page.locator("#personalized .reasons li").first.inner_text() == HOSTILE * 5
    inside = "link => link.getBoundingClientRect().right <= link.closest('.reasons').getBoundingClientRect().right"
    assert page.locator("#personalized .reasons .link").first.evaluate(inside), "what is too long ends in an ellipsis"
    assert page.locator("main img").count() == 0
    assert page.title() == "Bespoke console"

    page.unroute("**/v1/recommendations")
    refusal = {"error": {"code": "unavailable", "message": "no model is loaded", "field": None}}
    page.route("**/v1/recommendations", lambda route: route.fulfill(status=503, json=refusal))
    page.click("#new-visitor")
    page.wait_for_selector("#personalized [role=alert] >> text=no model is loaded")
    page.unroute("**/v1/recommendations")
    page.click("#personalized [role=alert] >> text=Try again")
    page.wait_for_selector("#personalized > [data-item-id]")


@pytest.mark.slow
def test_a_phone_shows_one_list_at_a_time_without_scrolling_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.is_visible("#personalized")
    assert not page.is_visible("#baseline")
    page.click("[data-show=baseline]")
    assert page.is_visible("#baseline")
    assert not page.is_visible("#personalized")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
