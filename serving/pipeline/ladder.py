"""The ladder: one request on its way to a list, however much of the service is slow or gone.

    full                every section did its part
    without the person  the store did not answer in its third of the time: as for somebody new
    retrieval order     ranking failed, or was not done after two thirds of the time
    plain slate         the rules that rearrange failed; what may not be shown was filtered before
    demand              retrieval failed, or the deadline is reached: trending items, then the release's own order

What fails again and again is not waited for: each section of a release has a circuit, and so has the store. Everything
here but `begin` and `_compute` runs on the event loop, which no computation can keep from answering in time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson

from embeddings.errors import InputError, NotFound, StoreError
from serving.logs import Outage
from serving.pipeline.attempt import Attempt
from serving.pipeline.circuit import Circuit
from serving.pipeline.fallback import demand_slate, plain_slate
from serving.pipeline.job import LIMITS, Job
from serving.pipeline.live import Live
from serving.pipeline.pipeline import SECTIONS, run_section, skip_section
from serving.pipeline.wire import from_wire, to_wire
from serving.pipeline.workers import Ticket, Workers
from serving.policy.layers import EXPERIMENTS
from serving.request.query import Query
from serving.request.work import Work
from serving.stages.stage import Section
from serving.store import Profile, Store

logger = logging.getLogger("bespoke.ladder")

T = TypeVar("T")
Call = Callable[[bytes], Awaitable[bytes]]
CatchUp = Callable[[Live, int, int, float], None]
Held = Callable[[str], Live | None]

REFILLS = 3
"""So often a list is searched for at most, each time in four times as many candidates."""


class Ladder:
    """Runs requests; `sections` are calls to other deployments, None where everything is computed here.

    `catch_up` is asked, in a thread, to bring a snapshot level with a revision and a version that the store has; `held` for
    the release of a name, None where it is not at hand.
    """

    def __init__(
        self,
        store: Store,
        *,
        threads: int,
        deadline_s: float,
        sections: Mapping[Section, Call] | None,
        catch_up: CatchUp,
        held: Held = lambda _: None,
    ) -> None:
        self.store, self.deadline_s, self.sections = store, deadline_s, sections
        self.hang_s = deadline_s / 4
        self.workers = Workers(threads)
        self.circuit = Circuit("the store")
        self.outage = Outage(logger, "a profile could not be read; answered as for a new person")
        self.catch_up, self.held = catch_up, held

    async def climb(
        self, query: Query, live: Live, profile: Profile | None = None, *, attempt: Attempt | None = None
    ) -> Work:
        """Answer on the highest rung that holds. Raises `InputError`, and whatever a filter raises."""
        asked = self.deadline_s if query.deadline_ms is None else min(self.deadline_s, query.deadline_ms / 1e3)
        return await self.run(Job(query, live, asked, profile=profile, attempt=attempt))

    async def run(self, job: Job) -> Work:
        """The same for a request that was made elsewhere."""
        if not self.circuit.allows():
            job.without.add("profile")
        if self.workers.exhausted:
            return self._demand(job, "retrieval")
        if self.sections is not None:
            return await self._far(job, self.sections)
        job, work = await self.in_time(job, self._compute)
        if work is None:
            return self._demand(job, job.at)
        for section, circuit in job.live.circuits.items():
            if not job.lacks(section):
                circuit.failed() if section == "ranking" and "ranker" in work.degraded else circuit.succeeded()
        return work

    async def _far(self, job: Job, sections: Mapping[Section, Call]) -> Work:
        """The sections one after the other in their deployments; what travels is read again only at the end."""
        job, found = await self.in_time(job, self.begin)
        if found is None:
            return self._demand(job, job.at)
        work = found
        for left in reversed(range(REFILLS)):
            payload = to_wire(work)
            for section in SECTIONS:
                reply = await self.ask(job, section, sections[section], payload)
                if reply is not None:
                    payload = reply
                    continue
                if section == "retrieval":
                    return self._demand(job, section)
                work = from_wire(orjson.loads(payload), job.snapshot)
                skip_section(section, work)
                if section == "rules":
                    plain_slate(work)
                    return work
                payload = to_wire(work)
            work = from_wire(orjson.loads(payload), job.snapshot)
            if work.complete or work.late or not left:
                break
            work.again()
        return work

    async def ask(self, job: Job, section: Section, call: Call, payload: bytes) -> bytes | None:
        """One section from its deployment, None if it is not to be had in time."""
        circuit = job.live.circuits[section]
        if not circuit.allows():
            return None
        began = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, job.left(dict(LIMITS).get(section, 1.0)))):
                reply = await call(payload)
        except InputError:
            raise
        except TimeoutError:
            if time.monotonic() - began > self.hang_s:  # else the request came late to it
                circuit.failed()
            return None
        except Exception as error:  # whatever a deployment, its death or the way to it may raise
            logger.error("the %s deployment did not answer: %s", section, type(error).__name__)
            circuit.failed()
            return None
        circuit.succeeded()
        return reply

    async def in_time(self, job: Job, compute: Callable[[Job], T]) -> tuple[Job, T | None]:
        """Compute in a thread, again without a part that takes too long; None if there is nothing at the deadline."""
        ticket = self.workers.submit(compute, job)
        for part, share in (*LIMITS, (None, 1.0)):
            try:
                if await ticket.finished(job.left(share)):
                    _settle(job)
                    return job, self._result(job, ticket)
            except asyncio.CancelledError:  # the client went away; a thread that hangs must be noticed all the same
                self.workers.give_up_later(ticket, self.hang_s)
                raise
            if part is not None and part == job.at and self._hangs(job) and not self.workers.exhausted:
                self._give_up(job, ticket)
                job = job.again(part)
                ticket = self.workers.submit(compute, job)
        if job.at == "queue" or self._hangs(job):
            self._give_up(job, ticket)
        else:  # it only came late; if it should hang after all, somebody has to notice
            asyncio.get_running_loop().call_later(self.hang_s, self._give_up, job, ticket)
        _settle(job)
        return job, None

    def _result(self, job: Job, ticket: Ticket[T]) -> T | None:
        try:
            found = ticket.result()
        except InputError:
            raise
        except Exception:
            logger.exception("%s failed", job.at)
            self._blame(job)
            return None
        if "profile" not in job.without:
            self.circuit.succeeded() if job.read else self.circuit.failed()
        return found

    def _hangs(self, job: Job) -> bool:
        return job.at != "queue" and time.monotonic() - job.since > self.hang_s

    def _give_up(self, job: Job, ticket: Ticket[Any]) -> None:
        if not ticket.running.done():
            self.workers.give_up(ticket)
            self._blame(job)

    def _blame(self, job: Job) -> None:
        if job.at == "profile":
            self.circuit.failed()
        elif job.at != "queue":
            job.live.circuits[job.at].failed()

    def _demand(self, job: Job, lost: str) -> Work:
        """The lowest rungs, computed here and now; `lost` names what is missing."""
        work = job.work()
        work.degrade(lost)
        if job.retrieved is not None:
            work.candidates = job.retrieved
            plain_slate(work)
        else:
            demand_slate(work)
        return work

    def begin(self, job: Job) -> Work:
        """In a thread: who asks, on a replica that is level with what the store acknowledged."""
        query = job.query
        revision = version = 0
        if "profile" not in job.without:
            job.enter("profile")
            try:
                job.profile, revision, version = self.store.profiles.read(query.user_id)
                job.read = True
            except StoreError:
                self.outage.failed()
            else:
                self.outage.over()
        if job.attempt is not None:
            person = job.profile.user_id if job.profile is not None else ""
            job.arm, live = job.attempt.arm_of(None if job.stranger else person or query.user_id)
            job.go_on(live)
        if revision > job.snapshot.revision or version > job.snapshot.policy.version:
            self.catch_up(job.live, revision, version, job.left(LIMITS[0][1]))
            job.go_on(job.live)
        if query.similar_to is not None and job.snapshot.catalogue.row(query.similar_to) < 0:
            raise NotFound(f"unknown item '{query.similar_to}'", field="item_id")
        if query.anchor is not None and not query.shown and job.snapshot.catalogue.row(query.anchor) < 0:
            raise NotFound(f"unknown item '{query.anchor}'", field="anchor")
        return self._on_its_release(job)

    def _on_its_release(self, job: Job) -> Work:
        """The request at its beginning, on the release of the person's arm; nobody is in an experiment that lacks one."""
        work, experiments = job.work(), job.snapshot.policy.of(EXPERIMENTS)
        if not work.arms or not experiments.by_release:
            return work
        kept = {
            name: arm
            for name, arm in work.arms.items()
            if all(self.held(release) is not None for release in experiments.releases(name))
        }
        release = experiments.changes(kept).release
        live = None if release is None else self.held(release)
        if live is not None and live is not job.live:
            job.go_on(live)
        elif len(kept) == len(work.arms):
            return work
        return job.work(kept)

    def _compute(self, job: Job) -> Work:
        """In a thread: the whole pipeline."""
        work = self.begin(job)
        if job.closed is None:
            job.closed = {section for section, circuit in job.live.circuits.items() if not circuit.allows()}
        if job.lacks("retrieval"):
            work.degrade("retrieval")
            demand_slate(work)
            return work
        for left in reversed(range(REFILLS)):
            for section in SECTIONS:
                if section == "ranking":
                    job.retrieved = work.candidates
                job.enter(section)
                if not job.lacks(section):
                    run_section(section, work)
                    continue
                skip_section(section, work)
                if section == "rules":
                    plain_slate(work)
            if work.complete or work.late or not left:
                break
            work.again()
        return work


def _settle(job: Job) -> None:
    """Tell the attempt which arm it is in; of a thread that was given up nobody wants to know."""
    if job.attempt is not None:
        job.attempt.arm = job.arm
