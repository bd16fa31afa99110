"""A job: one request under way, as the thread that computes it and the event loop that watches it both see it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

from serving.pipeline.attempt import Attempt
from serving.pipeline.live import Live
from serving.pipeline.trial import Arm
from serving.request.candidates import Candidates
from serving.request.query import Query
from serving.request.work import Work
from serving.store import Profile

Part = Literal["profile", "retrieval", "ranking", "rules"]

LIMITS: tuple[tuple[Part, float], ...] = (("profile", 1 / 3), ("ranking", 2 / 3))
"""The share of the deadline after which a part that is not done is given up, and the request begun again without it."""


class Job:
    """One request under way; the thread that computes it notes where it is, the event loop reads that.

    `without` are parts that it has to do without, `closed` those that the circuits of its release do not let through (None:
    not asked yet).
    """

    __slots__ = (
        "arm",
        "at",
        "attempt",
        "begun",
        "closed",
        "deadline_s",
        "hurry",
        "live",
        "profile",
        "query",
        "read",
        "retrieved",
        "since",
        "snapshot",
        "without",
    )

    def __init__(
        self,
        query: Query,
        live: Live,
        deadline_s: float,
        *,
        profile: Profile | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        """With a `profile` at hand the store is not asked for it; an `attempt` decides for whom it is which release."""
        self.query, self.live, self.deadline_s = query, live, deadline_s
        self.begun = self.since = time.monotonic()
        self.hurry = LIMITS[-1][1]
        self.snapshot = live.snapshot
        self.profile, self.read = profile, profile is not None
        self.without: set[Part] = {"profile"} if self.read else set()
        self.attempt = attempt
        self.arm: Arm = "control"
        self.closed: set[Part] | None = None
        self.at: Part | Literal["queue"] = "queue"
        self.retrieved: Candidates | None = None

    @classmethod
    def known(cls, query: Query, live: Live, deadline_s: float, profile: Profile | None) -> Job:
        """The request of somebody who was looked up already; None is somebody of whom nothing is known."""
        job = cls(query, live, deadline_s, profile=profile)
        job.read, job.without = True, {"profile"}
        return job

    def again(self, part: Part) -> Job:
        """The same request without a part, and with the time that is left."""
        job = Job(self.query, self.live, self.deadline_s, attempt=self.attempt)
        job.closed = self.closed
        job.begun, job.profile, job.read = self.begun, self.profile, self.read
        job.without = self.without | {part}
        job.hurry = (1.0 + max(share for _, share in LIMITS)) / 2  # it has only now begun to make up for what was lost
        return job

    def enter(self, part: Part) -> None:
        """Note that a part begins."""
        self.at, self.since = part, time.monotonic()

    def left(self, share: float = 1.0) -> float:
        """Seconds until a share of the deadline is over."""
        return self.begun + share * self.deadline_s - time.monotonic()

    @property
    def stranger(self) -> bool:
        """Whether there is a person whom the store could not name (yet)."""
        return self.query.user_id is not None and not self.read

    def go_on(self, live: Live) -> None:
        """Be answered by a release, as it is now."""
        self.live, self.snapshot = live, live.snapshot

    def lacks(self, part: Part) -> bool:
        """Whether it has to do without a part."""
        return part in self.without or part in (self.closed or ())

    def work(self, arms: Mapping[str, str] | None = None) -> Work:
        """The request at its beginning, as far as it is known who asks; in given arms, or in those of the person."""
        hurry_at = self.begun + self.hurry * self.deadline_s
        return Work(self.query, self.snapshot, self.profile, stranger=self.stranger, hurry_at=hurry_at, arms=arms)
