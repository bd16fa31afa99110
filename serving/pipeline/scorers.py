"""Scorers: how good each candidate is for this person now."""

from __future__ import annotations

import numpy as np

from embeddings.features import Floats
from embeddings.ranker import candidate_features
from serving.pipeline.query import Reason
from serving.pipeline.stage import Scorer
from serving.pipeline.work import Work

DAY = 86_400.0


class RetrievalScore(Scorer):
    """The score everything starts from: relative demand by retrieval, or plain demand where nothing is personal."""

    name = "retrieval_score"
    section = "retrieval"

    def score(self, work: Work) -> Floats:
        """Positive scores: exp(dot - best dot) is a candidate's share of the softmax the towers were trained with.

        Items like an item stand by their cosine instead, moved to 0..1.
        """
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

    def applies(self, work: Work) -> bool:
        """Only for a person's list; a release without a ranker keeps the retrieval order."""
        return work.snapshot.bundle.ranker is not None and work.query.personalized and work.query.similar_to is None

    def score(self, work: Work) -> Floats:
        """The weighted sum of probabilities."""
        ranker = work.snapshot.bundle.ranker
        assert ranker is not None
        catalogue, rows = work.catalogue, work.candidates.rows
        history = work.history_rows[-ranker.config.history :]
        seen, times = np.unique(work.history_rows, return_counts=True)
        place = np.minimum(np.searchsorted(seen, rows), max(len(seen) - 1, 0))
        repeats = np.where(seen[place] == rows, times[place], 0) if len(seen) else np.zeros(len(rows), dtype=np.int64)
        features = candidate_features(
            work.candidates.retrieval,
            popularity=catalogue.popularity[rows, 0],
            recent_popularity=catalogue.popularity[rows, 1],
            age_days=(work.seconds - catalogue.created[rows]) / DAY,
            prices=catalogue.prices[rows],
            history_prices=catalogue.prices[work.history_rows],
            repeats=repeats,
            known=rows < catalogue.split,
        )
        vectors = catalogue.vectors(rows)
        probabilities = ranker.rank(work.user_vector, catalogue.vectors(history), vectors, features)
        wanted = {name: work.placement.objectives.get(name, 0.0) for name in ranker.config.objectives}
        weights = ranker.weights(wanted if any(wanted.values()) else dict.fromkeys(wanted, 1.0))
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
        score = work.candidates.score.astype(np.float64)
        for rule, mask, factor in work.rules.boosts:
            hit = mask[work.candidates.rows]
            # A weighed score may be negative; what is boosted must rise all the same.
            score = np.where(hit, np.where(score >= 0, score * factor, score / factor), score)
            for row in work.candidates.rows[hit].tolist():
                text = rule.description or ("Promoted" if factor > 1 else "Shown less")
                work.effects.setdefault(row, []).append(
                    Reason(code="boosted" if factor > 1 else "buried", text=text, rule_id=rule.id)
                )
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
