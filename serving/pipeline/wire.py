"""The wire: a request on its way from one deployment to another, as bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson

from serving.policy.placements import Placement
from serving.request.candidates import Candidates
from serving.request.catalogue import Catalogue
from serving.request.query import Query, Reason
from serving.request.snapshot import Snapshot
from serving.request.work import Place, Work
from serving.store.persons import HistoryEvent, Profile


def to_wire(work: Work) -> bytes:
    """The request as bytes for another deployment."""
    return encoded(wire_of(work))


def wire_of(work: Work) -> dict[str, Any]:
    """Everything another deployment needs to go on; rows become ids, because rows are private to a replica.

    `needs` are the catalogue revision and policy version the far side must have caught up with; clocks are not
    shared, so the time until the hurry travels as seconds (null: for ever). Once there is a slate, only what was done
    to its rows travels on. Dataclasses are left to the encoder, which is many times faster than `asdict`.
    """
    one = work.candidates
    shown = {place.row for place in work.slate}
    left = work.hurry_at - time.monotonic()
    return {
        "needs": [work.snapshot.revision, work.snapshot.policy.version],
        "hurry_s": left if math.isfinite(left) else None,
        "stranger": work.stranger,
        "query": work.query,
        "profile": [
            work.profile.user_id,
            work.profile.attributes,
            work.profile.events,
            work.profile.last_seen,
            [tuple(event) for event in work.profile.history],
            work.profile.consent,
        ],
        "model": work.snapshot.bundle.name,
        "user": work.__dict__.get("user_vector"),
        "ids": [work.catalogue.id(row) for row in one.rows.tolist()],
        "found_by": one.found_by,
        "retrieval": one.retrieval,
        "score": one.score,
        "slate": [
            [
                work.catalogue.id(place.row),
                place.score,
                place.reasons,
                place.propensity,
            ]
            for place in work.slate
        ],
        "effects": [
            [work.catalogue.id(row), reasons] for row, reasons in work.effects.items() if row in shown or not shown
        ],
        "trace": work.trace,
        "degraded": work.degraded,
        "arms": work.arms,
        "unserved": work.unserved,
        "milliseconds": work.milliseconds,
        "wanted": work.wanted,
        "exhausted": work.exhausted,
    }


def from_wire(raw: Mapping[str, Any], snapshot: Snapshot) -> Work:
    """Take up the request where the other deployment left it; items this replica does not have are left out.

    `raw` is the decoded form of what `to_wire` made.
    """
    user_id, attributes, events, last_seen, history, consent = raw["profile"]
    profile = Profile(
        user_id=user_id,
        attributes=attributes,
        events=events,
        last_seen=last_seen,
        history=[HistoryEvent(*event) for event in history],
        consent=consent,
    )
    left = math.inf if raw["hurry_s"] is None else raw["hurry_s"]
    hurry_at = time.monotonic() + left
    query, stranger = query_from(raw["query"]), raw["stranger"]
    work = Work(query, snapshot, profile, stranger=stranger, hurry_at=hurry_at, arms=raw["arms"])
    take_up(work, raw)
    return work


def take_up(work: Work, raw: Mapping[str, Any]) -> None:
    """Go on from what the other deployment found so far."""
    catalogue = work.catalogue
    if raw["user"] is not None and raw["model"] == work.snapshot.bundle.name:
        work.__dict__["user_vector"] = np.asarray(raw["user"], dtype=np.float32)
        if work.query.similar_to is None:
            work.__dict__["person_vector"] = work.__dict__["user_vector"]
    rows = catalogue.rows(raw["ids"])
    work.candidates = Candidates(
        rows=rows,
        found_by=np.asarray(raw["found_by"], dtype=np.uint32),
        retrieval=np.asarray(raw["retrieval"], dtype=np.float32),
        score=np.asarray(raw["score"], dtype=np.float32),
    ).take(rows >= 0)
    work.slate = [
        Place(row, score, tuple(Reason(**reason) for reason in reasons), propensity)
        for row, score, reasons, propensity in _with_rows(raw["slate"], catalogue)
    ]
    work.effects = {
        row: [Reason(**reason) for reason in reasons] for row, reasons in _with_rows(raw["effects"], catalogue)
    }
    work.trace, work.degraded = raw["trace"], raw["degraded"]
    work.milliseconds, work.wanted, work.exhausted = raw["milliseconds"], raw["wanted"], raw["exhausted"]
    work.unserved = raw["unserved"]


def encoded(wire: Mapping[str, Any]) -> bytes:
    """A request, or several of them, as bytes."""
    return orjson.dumps(wire, option=orjson.OPT_SERIALIZE_NUMPY, default=lambda model: model.model_dump(mode="json"))


def query_from(raw: Mapping[str, Any]) -> Query:
    """A query from its form on the wire."""
    draft = raw["draft"] and Placement(**raw["draft"])
    return Query(**{**raw, "now": datetime.fromisoformat(raw["now"]).astimezone(UTC), "draft": draft})


def _with_rows(entries: Iterable[list[Any]], catalogue: Catalogue) -> Iterable[tuple[Any, ...]]:
    for item_id, *rest in entries:
        row = catalogue.row(item_id)
        if row >= 0:
            yield row, *rest
