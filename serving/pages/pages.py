"""Pages: one request for a whole page on its way to an answer, in one thread run and before one deadline.

    full            every shelf went through every stage
    without a slot  one that takes longer than a quarter of the deadline, or fails, is left out and named
    retrieval order ranking is not to be had: as for a list
    plain           the rules that rearrange were not done in time
    demand          nothing was found in time: what is in demand, on the shelves that may be filled with anything

Where the sections are deployments of their own, all shelves travel together: a page takes as many hops as a list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from embeddings.errors import Unavailable
from embeddings.ids import Rows
from serving.pages.arrange import arrange, share_out
from serving.pages.page import Decider, Page, PageQuery, slot_name
from serving.pages.wire import page_from_wire, page_to_wire
from serving.pipeline.attempt import Attempt
from serving.pipeline.fallback import demand_slate
from serving.pipeline.job import Job, Part
from serving.pipeline.ladder import Call, Ladder
from serving.pipeline.live import Live
from serving.pipeline.pipeline import run_section, skip_section
from serving.pipeline.turns import Step, Taken, in_turn
from serving.pipeline.workers import Workers
from serving.policy.layouts import AlertSlot, ContentSlot, Tile
from serving.request.snapshot import Snapshot
from serving.request.work import Work
from serving.stages.stage import Section

BASE = "person"
ARRANGE = "arrange"
PATIENCE = 1 / 4
"""Share of the deadline after which a slot that is not done is left out."""

ENDS = 0.9
"""Share of the deadline after which a page is put together from what there is."""


async def compose(
    ladder: Ladder, query: PageQuery, live: Live, decider: Decider, *, attempt: Attempt | None = None
) -> Page:
    """Answer a request for a page as well as time allows; raises `InputError` for what is wrong with it."""
    asked = ladder.deadline_s if query.deadline_ms is None else min(ladder.deadline_s, query.deadline_ms / 1e3)
    job = Job(query.person, live, asked, attempt=attempt)
    if not ladder.circuit.allows():
        job.without.add("profile")
    if ladder.workers.exhausted:
        return demanded(Page.of(query, job.work()), "retrieval")
    job, begun = await ladder.in_time(job, lambda one: _begun(ladder, query, one))
    if begun is None:
        return demanded(Page.of(query, job.work()), job.at)
    planned = dict(begun.shelves)
    page = await (_near(ladder, job, begun, decider) if ladder.sections is None else _far(ladder, job, begun, decider))
    if page.shelves or not planned:
        return page
    begun.shelves = planned
    return demanded(begun, "retrieval")


async def run_page_section(
    workers: Workers, section: Section, payload: bytes, *, held: Callable[[Mapping[str, Any]], Snapshot], seconds: float
) -> bytes:
    """Run one section of a page that another deployment began; `held` finds the snapshot that it asks for.

    Raises `Unavailable` if nothing comes of it within so many seconds.
    """
    ends = time.monotonic() + seconds

    def taken_up(_: Mapping[str, Any]) -> Page:
        raw = orjson.loads(payload)
        return page_from_wire(raw, held(raw))

    async def do(steps: Mapping[str, Step], *, until: float = ends) -> Taken:
        return await in_turn(workers, steps, patience_s=PATIENCE * seconds, until=until)

    page: Page = _sure(await do({"page": taken_up}), "page", section)
    if section == "rules":
        page = _sure(await do({ARRANGE: lambda _: arrange(page)}), ARRANGE, section)
    else:
        steps = {name: _filling(work, (section,), frozenset()) for name, work in _lists(page, section).items()}
        taken = await do(steps, until=min(ends, page.base.hurry_at))
        _leave_out(page, taken.left_out)
    wire: bytes = _sure(await do({"wire": lambda _: page_to_wire(page)}), "wire", section)
    return wire


def demanded(page: Page, lost: str) -> Page:
    """The lowest rung, computed here and now: what is in demand, each item once; `lost` names what is missing."""
    page.base.degrade(lost)

    def in_demand(work: Work, taken: Rows) -> Work:
        again = page.base.sibling(work.query)
        again.allowed[taken] = False
        demand_slate(again)
        return again

    share_out(page, page.layout.slots, in_demand)
    return page


def _sure(taken: Taken, name: str, section: Section) -> Any:
    """What a step made that nothing goes on without."""
    if name not in taken.done:
        raise Unavailable(f"{section} of a page was not done in time")
    return taken.done[name]


def _begun(ladder: Ladder, query: PageQuery, job: Job) -> Page:
    """In a thread: who asks, and which lists there are to fill; the person is encoded once, for all of them."""
    base = ladder.begin(job)
    job.enter("retrieval")
    if "retrieval" not in job.without:
        base.user_vector  # noqa: B018 - cached by being read
    return Page.of(query, base)


async def _near(ladder: Ladder, job: Job, page: Page, decider: Decider) -> Page:
    """Everything in one thread run."""
    circuits = job.live.circuits
    without: set[Part] = {section for section, circuit in circuits.items() if not circuit.allows()}
    if "retrieval" in without:
        return demanded(page, "retrieval")
    steps, lists = _decisions(page, decider), _lists(page, "retrieval")
    for name, work in lists.items():
        steps[name] = _filling(work, ("retrieval",) if name == BASE else ("retrieval", "ranking"), frozenset(without))

    def arranged(done: Mapping[str, Any]) -> Page:
        return arrange(_filled(page, done), plain="rules" in without)

    taken = await in_turn(
        ladder.workers,
        {**steps, ARRANGE: arranged},
        patience_s=PATIENCE * job.deadline_s,
        until=job.begun + ENDS * job.deadline_s,
    )
    if ARRANGE in taken.done:
        found: Page = taken.done[ARRANGE]
    else:
        found = arrange(_filled(page, taken.done), plain=True)
    _leave_out(found, [name for name in taken.left_out if name != ARRANGE])
    filled = [taken.done[name] for name in lists if name in taken.done]
    if lists:
        circuits["retrieval"].succeeded() if filled else circuits["retrieval"].failed()
    if filled and "ranking" not in without:
        failed = any("ranker" in work.degraded for work in filled)
        circuits["ranking"].failed() if failed else circuits["ranking"].succeeded()
    return found


async def _far(ladder: Ladder, job: Job, page: Page, decider: Decider) -> Page:
    """The sections one after the other in their deployments, contents and alerts meanwhile here."""
    assert ladder.sections is not None
    deciding = in_turn(
        ladder.workers,
        _decisions(page, decider),
        patience_s=PATIENCE * job.deadline_s,
        until=job.begun + job.deadline_s * (1 - PATIENCE),
    )
    retrieved, decided = await asyncio.gather(_asked(ladder, job, page, "retrieval", ladder.sections), deciding)
    if retrieved is None:
        page.shelves = {}
        return page
    page = retrieved
    page.decided.update(_made(decided.done))
    _leave_out(page, decided.left_out)
    ranked = await _asked(ladder, job, page, "ranking", ladder.sections)
    if ranked is None:
        for work in page.shelves.values():
            skip_section("ranking", work)
    page = ranked or page
    return await _asked(ladder, job, page, "rules", ladder.sections) or arrange(page, plain=True)


async def _asked(
    ladder: Ladder, job: Job, page: Page, section: Section, sections: Mapping[Section, Call]
) -> Page | None:
    """The page after one section, None if that is not to be had in time."""
    reply = await ladder.ask(job, section, sections[section], page_to_wire(page))
    return None if reply is None else page_from_wire(orjson.loads(reply), job.snapshot)


def _lists(page: Page, section: Section) -> dict[str, Work]:
    """The lists that a section fills, by step: the shelves, and the person's own where tiles are judged by it."""
    lists = {slot_name(name): work for name, work in page.shelves.items()}
    tiles = any(isinstance(slot, Tile) and slot.items is not None for slot in page.layout.slots)
    return {BASE: page.base, **lists} if tiles and section == "retrieval" else lists


def _filling(work: Work, sections: tuple[Section, ...], without: frozenset[Part]) -> Step:
    def step(_: Mapping[str, Any]) -> Work:
        for section in sections:
            skip_section(section, work) if section in without else run_section(section, work)
        return work

    return step


def _decisions(page: Page, decider: Decider) -> dict[str, Step]:
    steps: dict[str, Step] = {}
    for slot in page.layout.slots:
        if isinstance(slot, ContentSlot):
            steps[slot_name(slot.id)] = lambda _, name=slot.content: decider.content(name, page.base)  # type: ignore[misc]
        elif isinstance(slot, AlertSlot):
            steps[slot_name(slot.id)] = lambda _, name=slot.alert: decider.alert(name, page.base)  # type: ignore[misc]
    return steps


def _made(done: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What was decided, by slot; None was decided for nothing."""
    prefix = slot_name("")
    return {name.removeprefix(prefix): found for name, found in done.items() if isinstance(found, Mapping)}


def _filled(page: Page, done: Mapping[str, Any]) -> Page:
    """The page with the lists that are done, and without the others."""
    page.shelves = {name: work for name, work in page.shelves.items() if slot_name(name) in done}
    page.decided.update(_made(done))
    return page


def _leave_out(page: Page, steps: list[str]) -> None:
    prefix = slot_name("")
    names = [step.removeprefix(prefix) for step in steps if step.startswith(prefix)]
    page.left_out = [*page.left_out, *names]
    page.shelves = {name: work for name, work in page.shelves.items() if name not in names}
