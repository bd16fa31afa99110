"""Segmentation: who is in a segment now, and which groups of people there are by what they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats, unit
from embeddings.errors import InputError, unknown_name
from embeddings.explore import CANDIDATES, cluster_name
from embeddings.features import item_tokens
from embeddings.schema import allows
from serving.request.query import Query
from serving.request.snapshot import Snapshot, direction
from serving.request.work import Work
from serving.store import Profile, Store

PROTOTYPES = 10
RECENT = 50
"""Events of a person that name a cluster."""

INSIDE = 0.05
"""Share of a cluster that the bound of its segment leaves out: those at its edge."""

PARTITION = "clusters"
SEED = 0


@dataclass(frozen=True, slots=True)
class Members:
    """Ids of people in a segment, and the last one that was looked at (None: that was everybody)."""

    user_ids: list[str]
    looked_at: int
    next: str | None


def segments_of(snapshot: Snapshot, profile: Profile) -> list[str]:
    """The segments that a person is in now, by id; none of whom personalization is not allowed."""
    if not allows(profile.consent, "personalization"):
        return []
    return Work(Query(k=1, now=datetime.now(UTC)), snapshot, profile).segments


def members(store: Store, snapshot: Snapshot, segment: str, *, limit: int, after: str | None = None) -> Members:
    """Look at up to `limit` people in the order of their ids; raises `InputError` for an unknown segment."""
    known = snapshot.policy.segments.by_id
    if segment not in known:
        raise unknown_name("segment", segment, known, field="segment")
    names = store.batches.people(after, None, limit)
    people = store.profiles.some(names)
    found = [name for name in names if name in people and segment in segments_of(snapshot, people[name])]
    return Members(found, len(names), names[-1] if len(names) == limit else None)


def clusters(store: Store, snapshot: Snapshot, *, count: int, people: int) -> dict[str, Any]:
    """Groups of the people who were active last, by where the model sees them, in the form of `ClustersOut`.

    Spherical k-means over the vectors of people; a group is named by what is over-represented in its histories. Each comes
    with the segment that would hold it: the items in its direction, so that it outlives the release.
    """
    recent = [one.user_id for one in store.profiles.list(people).users]
    known = [
        one for one in store.profiles.some(recent).values() if one.history and allows(one.consent, "personalization")
    ]
    query = Query(k=1, now=datetime.now(UTC))
    works = [work for one in known if (work := Work(query, snapshot, one)).history]
    if len(works) < count:
        raise InputError(f"count: {len(works)} people have a history, too few for {count} clusters", field="count")
    vectors = unit(np.stack([work.person_vector for work in works]).astype(np.float32))
    means = faiss.Kmeans(vectors.shape[1], count, seed=SEED, spherical=True, min_points_per_centroid=1)
    means.train(vectors)
    assert means.centroids is not None
    labels = means.index.search(vectors, 1)[1][:, 0].astype(np.int64)
    prototypes = [_prototypes(snapshot, centre) for centre in means.centroids]
    cosines = vectors @ np.stack([direction(snapshot.catalogue.vectors(rows)) for rows in prototypes]).T
    tokens = [_tokens(work) for work in works]
    overall = Counter(token for bag in tokens for token in bag)
    found = []
    for label in np.argsort(-np.bincount(labels, minlength=count), kind="stable").tolist():
        inside = labels == label
        if inside.any():
            name = cluster_name(tokens, inside, overall)
            found.append(_cluster(snapshot, name, label, inside, cosines, prototypes[label]))
    return {"people": len(works), "clusters": found}


def _cluster(
    snapshot: Snapshot,
    name: str,
    label: int,
    inside: npt.NDArray[np.bool_],
    cosines: Floats,
    prototypes: npt.NDArray[np.int64],
) -> dict[str, Any]:
    bound = float(np.floor(np.quantile(cosines[inside, label], INSIDE) * 1000) / 1000)
    held = (cosines.argmax(1) == label) & (cosines[:, label] >= bound)
    catalogue = snapshot.catalogue
    return {
        "name": name,
        "people": int(inside.sum()),
        "share": float(inside.mean()),
        "agreement": float((held & inside).sum() / max(1, (held | inside).sum())),
        "segment": {
            "id": f"cluster-{label}",
            "description": name,
            "prototypes": [catalogue.id(row) for row in prototypes.tolist()],
            "min_cosine": max(-1.0, bound),
            "partition": PARTITION,
        },
    }


def _prototypes(snapshot: Snapshot, centre: Floats) -> npt.NDArray[np.int64]:
    """The items whose direction is closest to a centre [D]."""
    catalogue = snapshot.catalogue
    rows = catalogue.search(centre[None].astype(np.float32), CANDIDATES, catalogue.available)[1][0]
    rows = rows[rows >= 0]
    near = catalogue.vectors(rows)
    cosine = unit(near) @ centre
    best: npt.NDArray[np.int64] = rows[np.argsort(-cosine, kind="stable")[:PROTOTYPES]]
    return best


def _tokens(work: Work) -> Sequence[str]:
    rows = work.history_rows[-RECENT:].tolist()
    return [token for row in dict.fromkeys(rows) for token in item_tokens(work.catalogue.item(row))]
