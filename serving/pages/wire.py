"""The wire of a page: a whole page on its way from one deployment to another, as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from serving.pages.page import Page, PageQuery
from serving.pipeline.wire import encoded, from_wire, query_from, take_up, wire_of
from serving.policy.layouts import Layout
from serving.request.snapshot import Snapshot

MARK = b'{"page":'
"""How a page begins on the wire, where a list begins otherwise."""


def page_to_wire(page: Page) -> bytes:
    """The page as bytes for another deployment: the person once, and every list without them."""
    user = page.base.__dict__.get("user_vector")
    shelves = {}
    for name, work in page.shelves.items():
        wire = wire_of(work)
        for known in ("profile", "needs", "model", "stranger", "hurry_s"):
            del wire[known]
        if wire["user"] is user:
            wire["user"] = None
        shelves[name] = wire
    base = wire_of(page.base)
    return encoded(
        {
            "page": asdict(page.query),
            "needs": base["needs"],
            "model": base["model"],
            "layout": page.layout,
            "base": base,
            "shelves": shelves,
            "decided": page.decided,
            "values": page.values,
            "shown": page.shown,
            "propensity": page.propensity,
            "left_out": page.left_out,
        }
    )


def page_from_wire(raw: Mapping[str, Any], snapshot: Snapshot) -> Page:
    """Take up the page where the other deployment left it; `raw` is the decoded form of what `page_to_wire` made."""
    query = PageQuery(**raw["page"] | {"now": datetime.fromisoformat(raw["page"]["now"]).astimezone(UTC)})
    page = Page(query, Layout.model_validate(raw["layout"]), from_wire(raw["base"], snapshot))
    for name, wire in raw["shelves"].items():
        page.shelves[name] = work = page.base.sibling(query_from(wire["query"]), arms=wire["arms"])
        take_up(work, wire | {"model": raw["model"]})
    page.decided, page.values, page.shown = raw["decided"], raw["values"], raw["shown"]
    page.propensity, page.left_out = raw["propensity"], raw["left_out"]
    return page
