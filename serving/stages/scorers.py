"""Scorers: how good each candidate is for this person now."""

from __future__ import annotations

from collections import Counter

import numpy as np

from embeddings.arrays import Floats
from embeddings.ranker import candidate_features
from embeddings.successors import LATEST
from embeddings.traits import alike
from serving.request.query import Reason
from serving.request.work import Work
from serving.stages.stage import Scorer

DAY = 86_400.0
LEAST_FACTOR = 1e-6
"""A negative score that is buried altogether becomes this many times worse, and stays finite."""


class RetrievalScore(Scorer):
    """The score everything starts from: relative demand by retrieval, or plain demand where nothing is personal."""

    name = "retrieval_score"
    section = "retrieval"

    def score(self, work: Work) -> Floats:
        """Positive scores: exp(dot - best dot) is a candidate's share of the softmax the towers were trained with.

        Items like an item stand by their cosine instead, moved to 0..1, and where the sources say the order they stand by
        their places.
        """
        if work.as_found:
            return _by_place(work)
        if work.query.similar_to is not None:
            length = np.linalg.norm(work.catalogue.vectors(work.candidates.rows), axis=1)
            length = np.maximum(length * np.linalg.norm(work.user_vector), 1e-9)
            cosine: Floats = work.candidates.retrieval / length
            return (1.0 + cosine) / 2.0
        if not work.query.personalized:
            demand = work.snapshot.trend[work.candidates.rows]
            return (demand / max(float(demand.max(initial=0.0)), 1e-9)).astype(np.float32)
        retrieval = work.candidates.retrieval
        best = retrieval.max() if len(retrieval) else np.float32(0.0)
        return np.exp(np.maximum(retrieval - best, -60.0)).astype(np.float32)


class RankerScore(Scorer):
    """The ranking model: calibrated probabilities of the objectives, weighed as the placement asks."""

    name = "ranker"
    section = "ranking"
    optional = True

    def applies(self, work: Work) -> bool:
        """Only for a person's list; a release without a ranker keeps the retrieval order."""
        ranked = work.snapshot.bundle.manifest.ranker is not None and not work.as_found
        return ranked and work.query.personalized and work.query.similar_to is None

    def score(self, work: Work) -> Floats:
        """The weighted sum of probabilities."""
        bundle = work.snapshot.bundle
        ranker = bundle.ranker_pass
        for name in work.placement.objectives:
            if name not in ranker.config.objectives:
                predicted = ", ".join(ranker.config.objectives)
                work.unserved[f"objectives.{name}"] = f"this release does not predict '{name}'; it does: {predicted}"
        catalogue, rows = work.catalogue, work.candidates.rows
        touched = Counter(work.history_rows.tolist())
        repeats = np.array([touched.get(row, 0) for row in rows.tolist()], dtype=np.int64)
        features = candidate_features(
            work.candidates.retrieval,
            popularity=catalogue.popularity[rows, 0],
            recent_popularity=catalogue.popularity[rows, 1],
            age_days=(work.seconds - catalogue.created[rows]) / DAY,
            prices=catalogue.prices[rows],
            history_prices=catalogue.prices[work.history_rows],
            repeats=repeats,
            known=rows < catalogue.split,
            follows=bundle.successors.follow(work.history_rows, rows),
            alike=alike(catalogue.traits(work.history_rows[-LATEST:]), catalogue.traits(rows)),
        )
        history = work.history_vectors
        if ranker.config.history != bundle.manifest.towers.max_history:
            history = catalogue.vectors(work.history_rows[-ranker.config.history :])
        probabilities = ranker.rank(work.user_vector, history, catalogue.vectors(rows), features)
        weights = np.array([work.placement.objectives.get(name, 0.0) for name in ranker.config.objectives], np.float32)
        if not weights.any():
            weights[:] = 1.0
        score: Floats = probabilities @ (weights / np.abs(weights).sum())
        return score


class Boosts(Scorer):
    """Boost and bury rules: they multiply the score and say so in the reasons."""

    name = "rules"
    section = "rules"

    def applies(self, work: Work) -> bool:
        """Only where such a rule is in force."""
        return bool(work.rules.boosts)

    def score(self, work: Work) -> Floats:
        """Scores after every factor, in the order of the rules."""
        score, rows = work.candidates.score.astype(np.float64), work.candidates.rows
        for rule, mask, factor in work.rules.boosts:
            hit = np.flatnonzero(mask[rows])
            # A weighed score may be negative; what is boosted must rise all the same.
            touched = score[hit]
            score[hit] = np.where(touched >= 0, touched * factor, touched / max(factor, LEAST_FACTOR))
            text = rule.description or ("Promoted" if factor > 1 else "Shown less")
            reason = Reason(code="boosted" if factor > 1 else "buried", text=text, rule_id=rule.id)
            for row in rows[hit].tolist():
                work.effects.setdefault(row, []).append(reason)
        return score.astype(np.float32)

    def work(self, work: Work) -> dict[str, object]:
        """Apply the rules, with every rule's effect in the trace."""
        detail = super().work(work)
        if work.query.explain:
            catalogue = work.catalogue
            detail["effects"] = [
                {"item_id": catalogue.id(row), "rule": reason.rule_id, "effect": reason.code}
                for row, reasons in list(work.effects.items())[:50]
                for reason in reasons
            ]
        return detail


def _by_place(work: Work) -> Floats:
    """Scores [K] from 1 downwards: source by source as the placement names them, each in its own order; then the rest."""
    named = [work.finds[name] for name in work.placement.sources if name in work.finds]
    rows = np.concatenate([*named, work.candidates.rows])
    order = rows[np.sort(np.unique(rows, return_index=True)[1])]
    sorted_ = np.argsort(order)
    place = sorted_[np.searchsorted(order[sorted_], work.candidates.rows)]
    return (1.0 - place / max(1, len(order))).astype(np.float32)
