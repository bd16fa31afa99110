"""Looking at a release: neighbours, maps, clusters with names, cold items, a person's way, drift between versions.

The notebook is thin over this module, and the service finds neighbours by the same function, so what an analyst sees is
what a visitor gets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import numpy.typing as npt
import pandas as pd

from embeddings.arrays import Floats, unit
from embeddings.bundle import Bundle
from embeddings.bundle_reader import open_bundle
from embeddings.errors import InputError, NotFound, unknown_name
from embeddings.features import item_tokens
from embeddings.ids import UNKNOWN, Rows
from embeddings.releases import current_release

CANDIDATES = 200
"""How many rows are looked at for a list; one longer than half of it looks at more."""

OVERFETCH = 4
"""An index of dot products favours long vectors; a fourfold search put in order by cosine corrects that."""


def nearest_by_cosine(
    queries: Floats,
    count: int,
    *,
    search: Callable[[Floats, int], Rows],
    vectors: Callable[[Rows], Floats],
) -> tuple[Floats, Rows]:
    """Nearest rows by cosine to each query [Q, D]: cosines and rows [Q, count], -inf and UNKNOWN at the end.

    `search(queries, k)` gives the best rows [Q, k] by dot product, `vectors(rows)` their vectors.
    """
    cosines = np.full((len(queries), count), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), count), UNKNOWN, dtype=np.int64)
    for at, found in enumerate(search(queries, OVERFETCH * count)):
        living = found[found >= 0]
        near = vectors(living)
        length = np.linalg.norm(near, axis=1) * np.linalg.norm(queries[at])
        cosine = near @ queries[at] / np.maximum(length, 1e-9)
        best = np.argsort(-cosine, kind="stable")[:count]
        cosines[at, : len(best)], rows[at, : len(best)] = cosine[best], living[best]
    return cosines, rows


def open_current(releases: Path | str) -> Bundle:
    """Open the release in service."""
    folder = Path(releases)
    name = current_release(folder)
    if name is None:
        raise NotFound(f"no release in {folder}; publish one first", field="releases")
    return open_bundle(folder / name)


def neighbours(bundle: Bundle, item_id: str, k: int = 10) -> pd.DataFrame:
    """The k items most like one item: columns item_id, title, categories, cosine."""
    row = _row(bundle, item_id)
    others = np.ones(len(bundle.ids), dtype=bool)
    others[row] = False
    cosines, rows = nearest_by_cosine(
        bundle.matrix[[row]],
        max(CANDIDATES, 2 * k),
        search=lambda queries, count: bundle.index.search(queries, count, allowed=others)[1],
        vectors=lambda found: bundle.matrix[found],
    )
    kept = [(int(found), float(cosine)) for found, cosine in zip(rows[0], cosines[0], strict=True) if found >= 0]
    return _frame(bundle, kept[:k])


Method = Literal["umap", "tsne", "pca"]


def project(vectors: Floats, *, method: Method = "umap", seed: int = 0) -> Floats:
    """Points [n, 2] of vectors [n, D] for a map.

    UMAP (McInnes et al., 2018) and t-SNE (van der Maaten and Hinton, 2008) keep neighbourhoods, PCA keeps distances. UMAP
    suits the larger maps, but compiles itself for up to a minute first.
    """
    if len(vectors) < 3:
        raise InputError(f"a map needs at least 3 vectors, there are {len(vectors)}")
    centred = vectors - vectors.mean(0)
    if method == "pca":
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        return np.asarray(centred @ axes[:2].T, dtype=np.float32)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(vectors) - 1) / 3)
        reducer = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed, n_jobs=1)
        return np.asarray(reducer.fit_transform(centred), dtype=np.float32)
    import umap

    neighbours_ = min(15, len(vectors) - 1)
    reducer = umap.UMAP(n_neighbors=neighbours_, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(centred), dtype=np.float32)


def clusters(bundle: Bundle, count: int = 12, *, seed: int = 0) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Spherical k-means over the items: the cluster of every row [N], and a name for each cluster.

    A name is made of the attribute values that are most over-represented inside (by lift times share).
    """
    vectors = np.ascontiguousarray(unit(bundle.matrix))
    means = faiss.Kmeans(
        vectors.shape[1], min(count, len(vectors)), seed=seed, spherical=True, min_points_per_centroid=1
    )
    means.train(vectors)
    labels = means.index.search(vectors, 1)[1][:, 0].astype(np.int64)
    tokens = [item_tokens(item) for item in bundle.items]
    overall = Counter(token for bag in tokens for token in bag)
    return labels, [cluster_name(tokens, labels == label, overall) for label in range(means.k)]


def cold_vectors(bundle: Bundle, item_ids: Sequence[str]) -> Floats:
    """Where items would lie if the model had never met them: their vectors [n, D] by content alone."""
    items = [bundle.items[_row(bundle, item_id)] for item_id in item_ids]
    return bundle.towers.items.encode(bundle.spec.item_features(items))


def cold_report(bundle: Bundle, item_ids: Sequence[str], k: int = 10) -> pd.DataFrame:
    """How well content alone places items: cosine to their trained vector, and the share of shared categories nearby."""
    cold = cold_vectors(bundle, item_ids)
    _, rows = nearest_by_cosine(
        cold,
        k,
        search=lambda queries, count: bundle.index.search(queries, count)[1],
        vectors=lambda found: bundle.matrix[found],
    )
    categories = bundle.items.table["categories"].to_pylist()
    records = []
    for item_id, vector, near in zip(item_ids, cold, rows, strict=True):
        row = _row(bundle, item_id)
        trained = bundle.matrix[row]
        length = float(np.linalg.norm(vector) * np.linalg.norm(trained)) or 1.0
        own = set(categories[row] or ())
        others = [other for other in near.tolist() if other not in (row, UNKNOWN)]
        alike = sum(bool(own & set(categories[other] or ())) for other in others) / max(1, len(others))
        records.append(
            {
                "item_id": item_id,
                "title": bundle.items.titles[row],
                "cosine_to_trained": float(vector @ trained) / length,
                "neighbours_sharing_a_category": alike,
            }
        )
    return pd.DataFrame(records)


def journey(bundle: Bundle, item_ids: Sequence[str], event_type: str = "view", step_s: float = 60.0) -> Floats:
    """A person's way: query vectors [L + 1, D] before the first event and after each of L events, `step_s` apart."""
    bundle.spec.require_event_type(event_type, field="event_type")
    rows = np.array([_row(bundle, item_id) for item_id in item_ids], dtype=np.int64)
    types = np.full(len(rows), bundle.spec.event_row(event_type), dtype=np.int64)
    times = np.arange(len(rows), dtype=np.float64) * step_s
    return np.stack(
        [bundle.encode_user(bundle.matrix[rows[:at]], types[:at], times[:at], []) for at in range(len(rows) + 1)]
    )


def drift(old: Bundle, new: Bundle, *, k: int = 20, sample: int = 1000, seed: int = 0) -> pd.DataFrame:
    """How much neighbourhoods changed between two releases: the shared part of each sampled item's k neighbours."""
    shared = [item_id for item_id in new.ids.all if item_id in old.ids]
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(len(shared), size=min(sample, len(shared)), replace=False).tolist())
    records = []
    for at in chosen:
        before = set(neighbours(old, shared[at], k)["item_id"])
        after = set(neighbours(new, shared[at], k)["item_id"])
        records.append({"item_id": shared[at], "overlap": len(before & after) / max(1, len(before | after))})
    return pd.DataFrame(records)


def _row(bundle: Bundle, item_id: str) -> int:
    row = bundle.ids.row(item_id)
    if row == UNKNOWN:
        raise unknown_name("item", item_id, bundle.ids.all[:10_000], field="item_id")
    return row


def _frame(bundle: Bundle, found: Sequence[tuple[int, float]]) -> pd.DataFrame:
    categories = bundle.items.table["categories"]
    return pd.DataFrame(
        [
            {
                "item_id": bundle.ids.id(row),
                "title": bundle.items.titles[row],
                "categories": ", ".join(categories[row].as_py() or ()),
                "cosine": round(cosine, 4),
            }
            for row, cosine in found
        ],
        columns=["item_id", "title", "categories", "cosine"],
    )


def cluster_name(tokens: Sequence[Sequence[str]], inside: npt.NDArray[np.bool_], overall: Counter[str]) -> str:
    """A name for those who are inside [N], by the tokens that they have more often than all (`overall` counts them)."""
    members = np.flatnonzero(inside)
    if not len(members):
        return "empty"
    counts = Counter(token for row in members.tolist() for token in set(tokens[row]))

    def weight(token: str) -> float:
        share = counts[token] / len(members)
        return share * float(np.log(1e-9 + share / (overall[token] / len(tokens))))

    best = sorted(counts, key=lambda token: (-weight(token), token))[:2]
    return " · ".join(token.partition("=")[2] for token in best) or "unnamed"
