"""Moments: a document that is written must still have its time before it.

One that is in force may end as it stands, and be written again as it is; nobody may write a new end into the past.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from embeddings.errors import InputError
from serving.policy.conditions import Condition
from serving.policy.contents import Content
from serving.policy.contradictions import contradiction
from serving.policy.experiments import Experiment
from serving.policy.kinds import PolicyDocument
from serving.policy.rules import Rule
from serving.policy.segments import Segment

CLOCK = "%Y-%m-%dT%H:%M:%SZ"


def check_time(document: PolicyDocument, before: PolicyDocument | None, now: float) -> None:
    """Raise `InputError` where what is new in a document that is on is over at `now` (seconds since 1970)."""
    if not switched_on(document):
        return
    ends_at = getattr(document, "ends_at", None)
    went_on = before is not None and switched_on(before) and ends_at == getattr(before, "ends_at", None)
    if over(document, now) and not went_on:
        raise InputError(
            f"ends_at: {ends_at:{CLOCK}} is over, now is {datetime.fromtimestamp(now, UTC):{CLOCK}}; give a later end, "
            "leave it out, or switch the document off instead",
            field="ends_at",
        )
    known = dict(conditions_of(before)) if before is not None else {}
    for field, when in conditions_of(document):
        if when != known.get(field) and (why := contradiction(when, now=now)) is not None:
            raise InputError(f"{field}: can never hold: {why}", field=field)


def switched_on(document: PolicyDocument) -> bool:
    """Whether it is meant to do anything: enabled, or an experiment that runs."""
    if isinstance(document, Experiment):
        return document.state == "running"
    return bool(getattr(document, "enabled", True))


def over(document: PolicyDocument, now: float) -> bool:
    """Whether it has an end, and that has come."""
    ends_at: datetime | None = getattr(document, "ends_at", None)
    return ends_at is not None and ends_at.timestamp() <= now


def conditions_of(document: PolicyDocument) -> Iterator[tuple[str, Condition | None]]:
    """The conditions over people and moments in a document, by field."""
    match document:
        case Rule() | Segment() | Experiment():
            yield "when", document.when
        case Content():
            yield "when", document.when
            yield from ((f"variants.{n}.when", variant.when) for n, variant in enumerate(document.variants))
