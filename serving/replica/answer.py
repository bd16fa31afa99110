"""The answer: what goes out of a request that has come to its end, with everything needed to account for it."""

from __future__ import annotations

import uuid

from serving.pipeline.pipeline import trace_of
from serving.replica.paging import Paging
from serving.request.query import Answer, Recommended
from serving.request.work import Work


def answer_of(work: Work, paging: Paging, *, mark: str = "") -> Answer:
    """The answer to a request; its id ends in `mark`."""
    query, catalogue, anchor = work.query, work.catalogue, work.anchor
    begun = anchor.item_id if anchor and query.similar_to is None else None
    shown = [catalogue.id(place.row) for place in work.slate]
    more = query.candidates is None and len(shown) >= query.k
    return Answer(
        recommendation_id=uuid.uuid4().hex + mark,
        items=tuple(
            Recommended(
                item_id=item_id,
                score=place.score,
                reasons=place.reasons,
                item=catalogue.item(place.row) if query.fields else None,
            )
            for item_id, place in zip(shown, work.slate, strict=True)
        ),
        model_version=work.snapshot.bundle.name,
        policy_version=work.snapshot.policy.version,
        experiment=dict(work.arms),
        degraded=tuple(work.degraded),
        unknown=tuple(name for name in query.candidates or () if catalogue.row(name) < 0),
        unserved=work.unserved,
        anchor=anchor,
        next_page=paging.after(query, shown, anchor=begun) if more else None,
        trace=trace_of(work) if query.explain else None,
        milliseconds=work.milliseconds,
    )
