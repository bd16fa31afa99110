"""Rivals: other libraries trained on the same events, for `benchmarks training`. Runs by itself, in their own environment.

    python benchmarks/rivals.py sasrec|als|bpr FOLDER --seconds S --threads T

RecTools needs an older NumPy than Bespoke allows, so this file imports nothing of Bespoke. FOLDER holds `history.txt`
(one person a line: the person, then the items) and `answers.txt` (what each of them took next). Prints one JSON object
a look (every epoch of SASRec): the seconds spent in training so far, and NDCG@10 over the answers with the history left
out of the lists.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

K = 10
LOOK_GROWTH = 1.2
"""Lists for everybody take longer than an iteration does, so they are asked for whenever a fifth more time is spent."""
Lists = dict[str, list[str]]


def read(path: Path) -> Lists:
    """People and their items, of a file with one person a line."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0]: words[1:] for words in lines if words}


def ndcg(ranked: Lists, answers: Lists) -> float:
    """Mean NDCG@10, with the gain of a hit at place p (from 0) 1 / log2(p + 2)."""
    import numpy as np

    gains = 1.0 / np.log2(np.arange(K) + 2.0)
    found = []
    for person, wanted in answers.items():
        hits = np.array([item in set(wanted) for item in ranked.get(person, [])[:K]], dtype=bool)
        found.append(gains[: len(hits)][hits].sum() / gains[: min(K, len(wanted))].sum())
    return float(np.mean(found))


def sasrec(history: Lists, answers: Lists, say: Callable[[float, float], bool]) -> None:
    """RecTools' SASRec: 64 dimensions, two layers, softmax over the whole catalogue, as its documentation trains it."""
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    pairs = [(person, item) for person, items in history.items() for item in items]
    frame = pd.DataFrame(pairs, columns=[Columns.User, Columns.Item])
    frame[Columns.Weight] = 1.0
    frame[Columns.Datetime] = pd.Timestamp("2020-01-01") + pd.to_timedelta(range(len(frame)), unit="s")
    data = Dataset.construct(frame)
    model = SASRecModel(
        n_factors=64,
        n_blocks=2,
        n_heads=1,
        session_max_len=50,
        dropout_rate=0.5,
        loss="softmax",
        batch_size=128,
        lr=1e-3,
    )
    seconds, people = 0.0, list(answers)
    while True:
        begun = time.perf_counter()
        model.fit_partial(data, min_epochs=1, max_epochs=1)
        seconds += time.perf_counter() - begun
        found = model.recommend(people, data, k=K, filter_viewed=True).sort_values([Columns.User, Columns.Rank])
        ranked = found.groupby(Columns.User)[Columns.Item].apply(list).to_dict()
        if not say(seconds, ndcg(ranked, answers)):
            return


def factors(kind: str, history: Lists, answers: Lists, say: Callable[[float, float], bool], threads: int) -> None:
    """`implicit`: alternating least squares (Hu et al., 2008) or BPR (Rendle et al., 2009), 256 factors."""
    import numpy as np
    from implicit.als import AlternatingLeastSquares
    from implicit.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    people = {person: row for row, person in enumerate(history)}
    names = sorted({item for items in history.values() for item in items})
    rows = {item: row for row, item in enumerate(names)}
    owners = np.repeat(np.arange(len(people)), [len(items) for items in history.values()])
    columns = np.array([rows[item] for items in history.values() for item in items])
    matrix = csr_matrix((np.ones(len(owners), dtype=np.float32), (owners, columns)), shape=(len(people), len(names)))
    asked = np.array([people[person] for person in answers])

    class Over(Exception):
        pass

    shared: dict[str, float] = {"seconds": 0.0, "since": 0.0, "look": 0.0}

    def after(*_: Any) -> None:
        shared["seconds"] += time.perf_counter() - shared["since"]
        if shared["seconds"] < shared["look"]:
            shared["since"] = time.perf_counter()
            return
        shared["look"] = shared["seconds"] * LOOK_GROWTH
        best, _ = model.recommend(asked, matrix[asked], N=K, filter_already_liked_items=True)
        ranked = {person: [names[at] for at in found if at >= 0] for person, found in zip(answers, best, strict=True)}
        if not say(shared["seconds"], ndcg(ranked, answers)):
            raise Over
        shared["since"] = time.perf_counter()

    options: dict[str, Any] = {"factors": 256, "num_threads": threads, "random_state": 0, "iterations": 10_000}
    if kind == "als":
        model = AlternatingLeastSquares(regularization=0.05, alpha=10.0, **options)
    else:
        model = BayesianPersonalizedRanking(learning_rate=0.05, regularization=0.01, **options)
    try:
        shared["since"] = time.perf_counter()
        model.fit(matrix, show_progress=False, callback=after)
    except Over:
        pass


def main() -> None:
    """Train one rival until its time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=("sasrec", "als", "bpr"))
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--seconds", type=float, required=True, help="of training; the epoch that goes over it is the last"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ |= {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ |= {"OPENBLAS_NUM_THREADS": "1"}  # implicit brings its own threads
    history, answers = read(options.folder / "history.txt"), read(options.folder / "answers.txt")

    def say(seconds: float, found: float) -> bool:
        print(json.dumps({"seconds": round(seconds, 2), "ndcg@10": round(found, 5)}), flush=True)
        return bool(seconds < options.seconds)

    if options.kind == "sasrec":
        sasrec(history, answers, say)
    else:
        factors(options.kind, history, answers, say, options.threads)


if __name__ == "__main__":
    main()
