"""Ten minutes with a shop: everything that personal means here, as one script that can be read from top to bottom.

    make demo                                   # in one terminal
    python docs/ten_minutes.py [URL]            # in another; needs nothing but Python

It asks a running service over HTTP, says what it sees, and removes what it made. Each part stands on its own.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from itertools import islice
from typing import Any

URL = "http://127.0.0.1:8000"
MADE = (
    *("experiments/tour-test", "layouts/tour", "contents/tour-hero", "contents/tour-price"),
    *("drafts/tour-boost", "rules/tour-boost", "rules/tour-pin", "segments/tour-lookers", "placements/tour"),
)


def fetch(method: str, path: str, body: Any = None) -> bytes:
    """One request; the answer as it comes. Errors of the service are shown as it words them."""
    data = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"content-type": "application/json"}
    request = urllib.request.Request(URL + path, data=data, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            raw: bytes = reply.read()
    except urllib.error.HTTPError as error:
        sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")
    except (urllib.error.URLError, ValueError) as error:
        sys.exit(f"no service answers at {URL}: {error}")
    return raw


def call(method: str, path: str, body: Any = None) -> Any:
    """One request; the answer as JSON."""
    raw = fetch(method, path, body)
    return json.loads(raw) if raw else None


def say(text: str) -> None:
    """A line of what was found."""
    print(f"  {text}")


def names(answer: dict[str, Any], count: int = 4) -> str:
    """The first items of a list, in words."""
    return ", ".join(item["item_id"] for item in answer["items"][:count]) or "nothing"


def lists(person: str, items: list[str]) -> None:
    """1. An event counts in the very next list, and every item says why it is there."""
    say(f"before anything is known: {names(call('POST', '/v1/recommendations', {'user_id': person, 'k': 4}))}")
    call(
        "POST",
        "/v1/events",
        {"events": [{"user_id": person, "item_id": one, "event_type": "view"} for one in items[:2]]},
    )
    after = call("POST", "/v1/recommendations", {"user_id": person, "k": 4})
    say(f"after two views:          {names(after)}")
    say(f"the first one because:    {after['items'][0]['reasons'][0]['text']}")


def dial(person: str) -> None:
    """2. A placement is a spot of the app with aims of its own; a draft is tried on logged requests before it is stored."""
    draft = {"values": {"price": 0.5}, "novelty": 0.2, "diversity": 0.1, "k": 4}
    call("POST", "/v1/recommendations", asks(person))
    time.sleep(2)  # answers are logged after they went out
    moved = call("POST", "/v1/placements/tour/preview", {"placement": draft, "requests": 50})
    say(
        f"the draft would change {moved['changed']} of {moved['replayed']} lists, and leave {moved['overlap']} of the items"
    )
    stored = call("PUT", "/v1/placements/tour?reason=margin%20week", draft)
    say(f"in force as version {stored['version']}: {names(call('POST', '/v1/recommendations', asks(person)))}")


def asks(person: str) -> dict[str, Any]:
    """A request of the placement that this script made."""
    return {"user_id": person, "placement": "tour"}


def page(person: str) -> None:
    """3. A whole page in one call: shelves in the person's order, titles that say why, no item twice."""
    slots = [
        {"id": "again", "type": "shelf", "placement": "continue", "title": "Go on", "max_items": 4},
        {"id": "like", "type": "shelf", "placement": "because_you_watched", "title": "Like {anchor}", "max_items": 4},
        {"id": "you", "type": "shelf", "placement": "for_you", "title": "For you", "max_items": 4},
    ]
    call("PUT", "/v1/layouts/tour", {"slots": slots})
    for shelf in call("POST", "/v1/pages", {"user_id": person, "page": "tour"})["slots"]:
        say(f"{shelf['title']}: {names(shelf)}")


def rules(person: str, items: list[str]) -> None:
    """4. A rule says when, for which items, and what happens; a segment gives a group of people a name."""
    often = {"did": "view", "days": 7, "at_least": 2}
    call("PUT", "/v1/segments/tour-lookers", {"when": often})
    pinned = {"attribute": "item_id", "op": "eq", "value": items[-1]}
    rule = {"when": {"attribute": "user.segment", "op": "in", "value": ["tour-lookers"]}, "items": pinned}
    call("PUT", "/v1/rules/tour-pin", rule | {"action": {"type": "pin", "position": 0}, "placements": ["tour"]})
    found = call("POST", "/v1/recommendations", asks(person) | {"explain": True})
    say(f"segments of the person: {call('GET', f'/v1/users/{person}/segments')['segments']}")
    say(f"pinned for them:        {names(found)}")


def lab(person: str, items: list[str]) -> None:
    """5. A rule as a draft: tried on what was logged, in force for some of the people, taken back in one call."""
    liked = {"attribute": "item_id", "op": "in", "value": items[2:4]}
    rule = {"items": liked, "action": {"type": "boost", "factor": 5.0}, "placements": ["tour"]}
    draft = call("PUT", "/v1/drafts/tour-boost", {"rule": rule})
    say(f"the draft differs in {len(draft['difference'])} fields from what is in force")
    tried = call("POST", "/v1/drafts/tour-boost/simulate")
    say(
        f"it would change {tried['changed']} of {tried['replayed']} logged lists; at odds with it: {tried['conflicts']}"
    )
    call("POST", "/v1/drafts/tour-boost/release", {"share": 0.1, "reason": "a tenth first"})
    say(f"in force for a share of {call('GET', '/v1/rules/tour-boost')['share']}")
    call("POST", "/v1/rules/tour-boost/rollback")
    say("and taken back")


def contents(person: str) -> None:
    """6. A headline in several variants: each person gets the one they respond to, so often and not more."""
    variants = [{"id": one, "payload": {"text": f"{one} week"}} for one in ("calm", "loud")]
    call("PUT", "/v1/contents/tour-hero", {"variants": variants, "caps": [{"limit": 2, "days": 1}]})
    asked = {"user_id": person, "contents": ["tour-hero"], "context": {"channel": "web"}}
    shown = ""
    for _ in range(3):
        one = call("POST", "/v1/decisions", asked)["decisions"][0]
        chance = f"{one['variant']}, with a chance of {one['propensity']:.0%}" if one["variant"] else "nothing"
        say(f"{chance}: {one['reason']['text']}")
        shown = one["recommendation_id"] if one["variant"] else shown
    click = {"user_id": person, "item_id": "content:tour-hero", "event_type": "click"}
    call("POST", "/v1/events", click | {"recommendation_id": shown})


def alerts(person: str, items: list[str]) -> None:
    """7. Alerts: a cart left behind, an item that costs less, something that runs out; each is told once."""
    soft = {"variants": [{"id": "soft", "payload": {"title": "Still thinking?"}}]}
    call("PUT", "/v1/contents/tour-price", soft | {"trigger": {"type": "price_drop", "percent": 5.0}})
    item = {name: value for name, value in call("GET", f"/v1/items/{items[1]}").items() if name != "item_id"}
    for price in (item["price"], item["price"] / 2):
        call("PUT", f"/v1/items/{items[1]}", item | {"price": price})
    for which in ("first", "second"):
        told = call("POST", "/v1/alerts", {"user_id": person})["alerts"]
        say(f"asked a {which} time: {[(one['trigger'], one['items'][0]['item_id']) for one in told]}")
    call("PUT", f"/v1/items/{items[1]}", item)


def experiment(person: str) -> None:
    """8. An experiment changes something for some people; its intervals hold whenever one looks."""
    arms = [{"id": "as_is"}, {"id": "novel", "placements": {"tour": {"novelty": 1.0}}}]
    call("PUT", "/v1/experiments/tour-test", {"state": "running", "layer": "tour", "arms": arms, "primary": "clicks"})
    arm = call("POST", "/v1/recommendations", asks(person))["experiment"]
    say(f"the arm of this person, on every channel: {arm}")
    found = call("GET", "/v1/experiments/tour-test/results")
    say(
        f"results so far, of {found['people']} people: {[one['id'] for one in found['arms']]}, judged by {found['primary']}"
    )


def estimate(person: str) -> None:
    """9. Before a change reaches everybody, the log of what was left to chance says what it would bring, and how surely."""
    visitors = [f"{person}-{n}" for n in range(150)]
    for n, visitor in enumerate(visitors):
        one = call("POST", "/v1/decisions", {"user_id": visitor, "contents": ["tour-hero"]})["decisions"][0]
        if one["variant"] == "loud" and n % 2:  # half of those who see it
            click = {"user_id": visitor, "item_id": "content:tour-hero", "event_type": "click"}
            call("POST", "/v1/events", click | {"recommendation_id": one["recommendation_id"]})
    time.sleep(2)
    found = call("GET", "/v1/contents/tour-hero/estimate")
    for name, variant in found["variants"].items():
        best = variant["snips"]
        say(
            f"{name}, for everybody: {best['estimate']:.0%} would click ({max(0.0, best['low']):.0%} to {best['high']:.0%})"
        )
    for visitor in visitors:
        call("POST", f"/v1/users/{visitor}/erase")


def channels(person: str) -> None:
    """10. One person over all channels: what the phone did counts on the web, and can be told apart again."""
    phone = f"phone-{uuid.uuid4().hex[:8]}"
    call("POST", "/v1/events", {"user_id": phone, "item_id": "content:tour-hero", "event_type": "impression"})
    call("PUT", f"/v1/users/{person}/aliases/{phone}")
    same = [names(call("POST", "/v1/recommendations", asks(one))) for one in (person, phone)]
    say(f"the same list under both ids: {same[0] == same[1]}")
    call("DELETE", f"/v1/users/{person}/aliases/{phone}")
    call("POST", f"/v1/users/{phone}/erase", {})


def elsewhere(person: str) -> None:
    """11. The same beyond the list: what runs out, messages written ahead, a script for pages, another system's clients."""
    needed = (
        (user["user_id"], one)
        for user in call("GET", "/v1/users?limit=50")["users"]
        for one in call("GET", f"/v1/users/{user['user_id']}/replenishment?limit=1")["items"]
    )
    for user, one in islice(needed, 1):
        say(f"{user} will need {one['item_id']} again by {one['due_at'][:10]}, with {one['confidence']:.0%} confidence")
    say("`bespoke batch --out FOLDER` writes such lists and contents for everybody who may get a message")
    say(f"/bespoke.js does all of this in a page, in {len(fetch('GET', '/bespoke.js')):,} bytes")
    say(f"a client of Gorse asks /api/recommend: {json.loads(fetch('GET', f'/api/recommend/{person}?n=3'))}")


def privacy(person: str) -> None:
    """12. Whose life it is: what is known, why it is shown, what if, no thanks, and forget me."""
    for line in call("GET", f"/v1/users/{person}/profile")["summary"][:3]:
        say(line)
    what_if = call("POST", "/v1/recommendations", asks(person) | {"explain": "counterfactual"})
    for other in what_if["counterfactuals"][:3]:
        say(other["text"])
    call("PUT", f"/v1/users/{person}", {"consent": {"personalization": False}})
    refused = call("POST", "/v1/recommendations", {"user_id": person, "k": 4})
    say(f"without consent everybody's list: {names(refused)}")
    receipt = call("POST", f"/v1/users/{person}/erase", {"reason": "asked for it"})["receipt"]
    say(f"erased: {receipt['removed']}, receipt valid: {call('POST', '/v1/receipts/verify', receipt)['valid']}")


def audit() -> None:
    """13. Who changed what, when and why; and everything of this tour is taken away again."""
    tidy()
    for change in call("GET", "/v1/audit?limit=3")["entries"]:
        say(f"{change['at']}: {change['by']} {change['action']} {change['kind']} {change['id']}")


def tidy() -> None:
    """Take away what the tour makes, each before what it names; what is not there is no trouble."""
    for path in MADE:
        with suppress(SystemExit):
            call("DELETE", f"/v1/{path}")


def main() -> None:
    """Walk through all of it."""
    person = f"tour-{uuid.uuid4().hex[:8]}"
    items = [item["item_id"] for item in call("GET", "/v1/items?limit=12")["items"]]
    if len(items) < 5:
        sys.exit(f"the service at {URL} has {len(items)} items: fill its store first, see `bespoke load --help`")
    parts = (lists, dial, page, rules, lab, contents, alerts, experiment, estimate, channels, elsewhere, privacy, audit)
    known = {"person": person, "items": items}
    try:
        for part in parts:
            print(f"\n{part.__doc__}")
            part(**{name: known[name] for name in part.__code__.co_varnames[: part.__code__.co_argcount]})
    finally:
        tidy()


if __name__ == "__main__":
    URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else URL
    main()
