"""The pages of the console on which people oversee the policy, in the system's Chromium, over a service with keys."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from serving.api import create_api
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.store.documents import Document
from tests.conftest import free_port, require, write_world
from tests.test_browser import until
from tests.test_console import BROWSER_ARGUMENTS, HOSTILE
from tests.test_experiments import experiment
from tests.test_lab import NEVER, PIN, PINNED
from tests.test_pipeline import do, rule
from tests.test_results import logged

KEY = "bespoke-api-key"
SPOT = "spot"
PHONE = {"width": 390, "height": 844}


class Desk:
    """A service with keys and approval, and a browser in which several people sit down at the console."""

    def __init__(self, folder: Path, playwright: Any, executable: str) -> None:
        write_world(folder / "releases")
        store = f"sqlite:///{folder / 'store.db'}"
        given = {"auth": "on", "approval": True, "deadline_ms": 10_000, "guardrails_s": 3600.0}
        self.engine = Engine(Settings(releases=folder / "releases", store=store, **given))
        self.engine.start()
        people = {"ann": ["policy", "read"], "ben": ["policy", "read"], "guest": ["read"]}
        keys = self.engine.store.keys
        made = {name: keys.create(name, scopes, per_minute=100_000, by="test") for name, scopes in people.items()}
        self.ids = {name: key.id for name, (key, _) in made.items()}
        self.keys = {name: text for name, (_, text) in made.items()}
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/console"
        self.server = uvicorn.Server(uvicorn.Config(create_api(self.engine), port=port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        self.trouble: list[str] = []

    def open(self, place: str, who: str | None = "ann", **options: Any) -> Any:
        """A page of the console as somebody sees it; script errors and breaches of the security policy are noted."""
        page = self.browser.new_context(**options).new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("console", lambda said: self.trouble.append(said.text) if said.type == "error" else None)
        if who is not None:
            page.add_init_script(f"sessionStorage.setItem('{KEY}', '{self.keys[who]}')")
        page.goto(f"{self.url}#{place}")
        return page

    def ask(self, person: str) -> None:
        """A list of somebody, answered and soon logged."""
        headers = {"authorization": f"Bearer {self.keys['guest']}"}
        address = self.url.replace("console", "v1/recommendations")
        httpx2.post(
            address, headers=headers, json={"user_id": person, "placement": SPOT}, timeout=30
        ).raise_for_status()

    def stored(self, kind: str, name: str) -> Document:
        found = self.engine.store.documents.get(kind, name)
        assert found is not None
        return found

    def last(self, kind: str, name: str) -> tuple[str, str | None]:
        """Who changed something last, and why."""
        entry = self.engine.store.documents.audit(kind, name, limit=1)[0]
        return entry.by, entry.why

    def close(self) -> None:
        self.browser.close()
        self.server.should_exit = True
        self.thread.join(20)
        self.engine.stop()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    executable = shutil.which("chromium")
    require(executable, "the system's Chromium")
    assert executable
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = Desk(tmp_path_factory.mktemp("oversight"), playwright, executable)
        yield made
        made.close()
    # The browser reports answers such as 403 and 409 as errors; that they are told is what the tests are about.
    assert [line for line in made.trouble if not line.startswith("Failed to load resource")] == []


def confirm(page: Any, *, share: str | None = None, why: str | None = None) -> None:
    """Answer the open question with the keyboard."""
    if share is not None:
        page.fill("#step-share", share)
    if why is not None:
        page.fill("#step-reason", why)
    page.focus("#step [data-act=confirm]")
    page.keyboard.press("Enter")


def done(page: Any) -> None:
    page.wait_for_selector("#step:not([open])", state="attached")


@pytest.mark.slow
def test_without_the_scope_the_page_says_which_one_and_takes_another_key(desk: Desk) -> None:
    page = desk.open("drafts", "guest")
    page.wait_for_selector("#one [role=alert] >> text=This needs a key with the scope 'policy'")
    page.click("text=Use another key")
    assert "One with the scope policy, from" in page.locator("#key").inner_text()
    page.fill("#key-text", desk.keys["ann"])
    page.keyboard.press("Enter")
    page.wait_for_selector("#one h2 >> text=Write a rule as a draft")
    assert f"curl -X PUT {desk.url.removesuffix('console')}v1/drafts/" in page.locator("#one pre").inner_text()
    page.context.close()


@pytest.mark.slow
def test_an_experiment_is_read_ramped_and_stopped(desk: Desk) -> None:
    rails = [{"metric": "revenue", "margin": 0.05}, {"metric": "clicks", "margin": 0.05}]
    logged(desk.engine.store, experiment(primary="revenue", guardrails=rails, description=HOSTILE), effect=0.5)
    page = desk.open("experiments")
    page.wait_for_selector(".conclusion .worse >> text=/dear is worse than as_is: revenue −.+, between −.+ and −/")
    assert page.locator("#one .lead > p").inner_text() == HOSTILE
    assert page.locator("[data-balance=fine]").count() == 1
    assert page.locator("tr[data-metric=revenue] .interval.worse").count() == 1
    assert page.locator("tr[data-metric=clicks] .interval").count() == 0, "nobody clicked, so there is nothing to draw"
    states = page.locator("[data-guardrail]").evaluate_all("all => all.map(one => one.dataset.state)")
    assert states == ["broken", "unknown"]
    assert "DE" not in page.locator("#one").inner_text()
    page.wait_for_selector("#by option[value=country]", state="attached")
    page.select_option("#by", "country")
    page.wait_for_selector(".forest th >> text=DE")

    page.click("[data-act=ramp]")
    before = desk.stored("experiment", "dial")
    desk.engine.store.documents.put("experiment", "dial", before.body | {"traffic": 0.9}, by="somebody")
    confirm(page, share="25", why="Slowly")
    page.wait_for_selector("#step [role=alert] >> text=/version/")
    assert (page.input_value("#step-share"), page.input_value("#step-reason")) == ("25", "Slowly")
    page.keyboard.press("Escape")
    page.wait_for_selector("#one dd >> text=90%")
    page.click("[data-act=ramp]")
    assert page.input_value("#step-share") == "90"
    page.click("#step [data-share='0.25']")
    assert page.input_value("#step-reason") == "Slowly", "what was said is kept"
    confirm(page)
    done(page)
    page.wait_for_selector(".changes blockquote >> text=Slowly")
    assert desk.stored("experiment", "dial").body["traffic"] == 0.25
    assert desk.last("experiment", "dial") == (desk.ids["ann"], "Slowly")

    page.click("[data-act=stopArm-dear]")
    confirm(page)
    assert page.is_visible("#step"), "an arm is stopped for a reason"
    confirm(page, why="It costs too much")
    done(page)
    page.wait_for_selector("[data-arm=dear] >> text=Stopped: It costs too much")
    page.click("[data-act=stop]")
    confirm(page)
    done(page)
    page.wait_for_selector("[data-act=again]")
    body = desk.stored("experiment", "dial").body
    assert (body["state"], body["arms"][1]["stopped"]) == ("stopped", "It costs too much")
    assert body["arms"][1]["placements"] == before.body["arms"][1]["placements"]
    page.context.close()


@pytest.mark.slow
def test_arms_without_their_people_raise_an_alarm_above_everything(desk: Desk) -> None:
    page = desk.open("lists")

    def lose(route: Any) -> None:
        found = json.loads(route.fetch().text())
        found["sample_ratio"] |= {"alarm": True, "p_value": 1e-9}
        surely = {"difference": {"estimate": 4.0, "low": 0.5, "high": 7.5}, "verdict": "better"}
        found["arms"][1]["metrics"]["revenue"] |= surely | {"lift": {"estimate": 0.1, "low": -0.01, "high": 0.2}}
        route.fulfill(json=found)

    desk.engine.store.documents.put("experiment", "lost", experiment("lost", layer="x").model_dump(mode="json"), by="t")
    desk.engine.take_changes()
    page.route("**/results*", lose)
    page.evaluate("location.hash = '#experiments/dial'")
    first = page.locator("#one .found > *").first
    page.wait_for_selector("[data-balance=alarm]")
    assert first.get_attribute("data-balance") == "alarm"
    page.wait_for_selector(".conclusion .better >> text=revenue +4.00, between +0.50 and +7.50.")
    assert page.title() == "Experiments · Bespoke console"
    page.route("**/v1/experiments", lambda route: route.fulfill(json={"experiments": []}))
    page.evaluate("location.hash = '#experiments'")
    page.wait_for_selector(".begin >> text=Write an experiment as a draft")
    page.context.close()


@pytest.mark.slow
def test_a_draft_is_tried_agreed_to_released_and_taken_back(desk: Desk) -> None:
    engine = desk.engine
    rule(engine, "idle", {"type": "bury", "factor": 0.5}, items=PINNED, when=NEVER)
    rule(engine, "also", {"type": "exclude"}, items=PINNED, when={"attribute": "user.age", "op": "lt", "value": 3})
    do(engine, "g1-3", user="eve")
    for name in ("eve", "adam", "noah"):
        desk.ask(name)
    assert engine.effects.flush()
    body = {
        "id": "r",
        "enabled": True,
        "priority": 0,
        "placements": [SPOT],
        "when": None,
        "share": 1.0,
        "description": "",
    }
    draft = {"id": "r", "rule": body | {"starts_at": None, "ends_at": None} | PIN, "author": desk.ids["ann"]}
    draft |= {"approved_by": None, "share": None, "before": None}
    engine.store.documents.put("draft", "r", draft, by=desk.ids["ann"])

    page = desk.open("drafts/r", "ann")
    page.wait_for_selector(".hint >> text=You wrote it, so somebody else must agree to it")
    assert page.locator("[data-act=approve], [data-act=release]").count() == 0
    page.click("[data-act=simulate]")
    page.wait_for_selector(".figures >> text=3 of 3 lists change")
    assert "takes away every item that 'r' pins" in page.locator("[data-conflict=also]").inner_text()
    never = page.locator("[data-never=true]").evaluate_all("all => all.map(one => one.dataset.fired)")
    assert never == ["also", "idle"]
    assert page.locator("[data-moved='Group 3 item 9']").count() == 1
    assert page.locator(".found .hint").count() == 0, "it was in force"
    page.evaluate("location.hash = '#experiments'")
    page.evaluate("location.hash = '#drafts/r'")
    page.wait_for_selector(".way .done >> text=on 3 requests")
    assert "3 of 3" in page.locator(".figures").inner_text(), "what was tried is still there"
    page.context.close()

    page = desk.open("drafts/r", "ben")
    page.click("[data-act=approve]")
    confirm(page, why="Fine")
    done(page)
    page.click("[data-act=release]")
    confirm(page, share="10")
    done(page)
    page.wait_for_selector("#one .chip >> text=10% of people")
    assert desk.stored("rule", "r").body["share"] == 0.1
    page.click("[data-act=rollBack]")
    page.route("**/rollback", lambda route: route.abort())
    confirm(page, why="Enough")
    page.wait_for_selector("#step [role=alert] >> text=The service cannot be reached")
    page.unroute("**/rollback")
    confirm(page)
    done(page)
    page.wait_for_selector("#one .chip >> text=ready")
    assert engine.store.documents.get("rule", "r") is None
    assert desk.last("draft", "r") == (desk.ids["ben"], "Enough")
    page.click("[data-act=drop]")
    confirm(page)
    page.wait_for_selector("#all >> text=None yet.")
    assert engine.store.documents.get("draft", "r") is None
    page.context.close()


@pytest.mark.slow
def test_a_released_rule_that_was_removed_since_is_said_to_be_and_a_try_on_nothing_is_none(desk: Desk) -> None:
    body = {"id": "gone", "enabled": True, "priority": 0, "placements": ["elsewhere"], "when": None, "share": 1.0}
    draft = {"id": "gone", "rule": body | {"description": "", "starts_at": None, "ends_at": None} | PIN}
    draft |= {"author": "local", "approved_by": desk.ids["ann"], "share": 1.0, "before": None}
    desk.engine.store.documents.put("draft", "gone", draft, by="local")
    page = desk.open("drafts/gone")
    page.wait_for_selector("#one .chip >> text=removed since")
    assert page.locator("[data-step=Released]:not(.done) small").inner_text() == "removed since"
    assert "The rule was removed since." in page.locator("#one").inner_text()
    page.wait_for_selector(".changes p >> text=/^local made it/")

    def with_pages(route: Any) -> None:
        route.fulfill(json=json.loads(route.fetch().text()) | {"pages": 2})

    page.route("**/simulate", with_pages)
    page.click("[data-act=simulate]")
    page.wait_for_selector(".found >> text=No list of its placements was logged.")
    assert "2 requests for whole pages are not asked again." in page.locator(".found").inner_text()
    assert page.locator("[data-step=Tried]:not(.done) small").inner_text() == "on 0 requests"
    page.context.close()
    desk.engine.store.documents.delete("draft", "gone", by="local")


@pytest.mark.slow
def test_a_segment_shows_who_is_in_it_and_groups_become_segments(desk: Desk) -> None:
    for n in range(24):
        do(desk.engine, f"g{n % 2}-{n}", f"g{n % 2}-{(n + 2) % 25}", user=f"a{n:02}")
    when = {"all": [{"did": "view", "at_least": 2}, {"attribute": "user.age", "op": "exists", "value": False}]}
    desk.engine.store.documents.put("segment", "lookers", {"id": "lookers", "when": when}, by="test")
    desk.engine.take_changes()
    page = desk.open("segments/lookers")
    page.wait_for_selector("[data-member=a00]")
    assert page.locator(".outline li").all_inner_texts()[-1] == "age of the person is not known"
    assert re.fullmatch(r"about .+% of people|24 people, .+%", page.locator("[data-size=lookers]").inner_text())
    with page.expect_download() as saved:
        page.click("[data-act=save]")
    found = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))
    assert found == {"segment": "lookers", "user_ids": [f"a{n:02}" for n in range(24)]}
    page.wait_for_selector(".found .figure >> text=24 people")

    page.select_option("#clusters", "4")
    page.click("[data-act=find]")
    page.locator("[data-group] button").first.click()
    page.fill("#step-id", "first group")
    confirm(page, why="Worth a name")
    done(page)
    page.wait_for_selector("#one h2 >> text=first group")
    assert page.locator(".goods li").count() > 0
    assert desk.stored("segment", "first group").body["prototypes"]
    assert desk.last("segment", "first group") == (desk.ids["ann"], "Worth a name")
    page.context.close()


@pytest.mark.slow
def test_a_phone_shows_the_list_or_one_of_it_without_scrolling_sideways(desk: Desk) -> None:
    page = desk.open("experiments", viewport=PHONE)
    page.wait_for_selector("#all a")
    assert not page.is_visible("#one")
    page.click("#all a[data-id=dial]")
    page.wait_for_selector(".forest")
    assert not page.is_visible("#all")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.click(".back")
    page.wait_for_selector("#all a")
    assert not page.is_visible("#one")
    page.context.close()


WORDS = [
    ({"attribute": "price", "op": "between", "value": [5, 10]}, "price is between 5 and 10"),
    ({"attribute": "categories", "op": "contains", "value": "Tea"}, "categories include “Tea”"),
    ({"not": {"attribute": "user.vip", "op": "exists", "value": True}}, "not (vip of the person is known)"),
    (
        {"any": [{"did": "any", "days": 7}, {"all": [NEVER, {"attribute": "time.hour", "op": "lt", "value": 8}]}]},
        "did anything at least once within 7 days or (country of the request is “XX” and hour (UTC) is below 8)",
    ),
    (
        {"attribute": "brand", "op": "in", "value": list("abcdefgh")},
        "brand is one of “a”, “b”, “c”, “d”, “e”, “f” and 2 more",
    ),
]


@pytest.mark.slow
def test_conditions_are_said_in_words_and_a_wide_interval_squeezes_no_other(desk: Desk) -> None:
    page = desk.open("lists")
    for tree, sentence in WORDS:
        assert page.evaluate("async tree => (await import('./console/conditions.js')).say(tree)", tree) == sentence
    scale = "async given => (await import('./console/charts.js')).scaleOf(...given)"
    narrow, wide = {"low": -0.02, "high": 0.04}, {"low": -3, "high": 9}
    assert page.evaluate(scale, [[narrow, narrow, wide], [narrow]]) == pytest.approx(0.2)
    assert page.evaluate(scale, [[narrow, narrow, wide], [wide]]) == 10
    assert page.evaluate(scale, [[], []]) is None
    page.context.close()
