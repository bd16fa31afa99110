"""What a request reads once and keeps to the end: release, catalogue, policy and trends, all of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.bundle import Bundle
from embeddings.ids import Rows
from serving.pipeline.candidates import Mask
from serving.pipeline.catalogue import Catalogue
from serving.policy.compiled import ActiveRules, BoundPolicy, Capped, Policy
from serving.policy.rules import Rule

RELEASE_PRIOR = 0.1
"""Weight of the release's own popularity beside live events, so that trends exist before the first event does."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules in force for one request, over base and delta rows alike."""

    base: ActiveRules
    delta: ActiveRules
    split: int
    size: int

    @property
    def allow(self) -> Mask | None:
        """Mask [N] of the rows that include and exclude rules let pass; None if all do."""
        if self.base.allow is None and self.delta.allow is None:
            return None
        everything = np.ones(self.size, dtype=bool)
        base, delta = self.base.allow, self.delta.allow
        return np.concatenate(
            [
                everything[: self.split] if base is None else base,
                everything[self.split :] if delta is None else delta,
            ]
        )

    def removed_by(self, row: int) -> str | None:
        """The rule that took a row out."""
        return self.base.removed_by(row) if row < self.split else self.delta.removed_by(row - self.split)

    @property
    def boosts(self) -> list[tuple[Rule, Mask, float]]:
        """Rule, mask [N] and factor of every boost and bury rule, in the order they apply."""
        pairs = zip(self.base.boosts, self.delta.boosts, strict=True)
        return [(rule, np.concatenate([mask, late]), factor) for (rule, mask, factor), (_, late, _) in pairs]

    @property
    def pins(self) -> list[tuple[Rule, Mask, int]]:
        """Rule, mask [N] and position of every pin, the strongest first."""
        pairs = zip(self.base.pins, self.delta.pins, strict=True)
        return [(rule, np.concatenate([mask, late]), position) for (rule, mask, position), (_, late, _) in pairs]

    @property
    def caps(self) -> tuple[Capped, ...]:
        """Rule, attribute and limit of every cap."""
        return self.base.caps


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One consistent view; the engine replaces it as a whole."""

    catalogue: Catalogue
    policy: Policy
    base_policy: BoundPolicy
    delta_policy: BoundPolicy
    live_trend: Mapping[str, float]
    sources: tuple[str, ...]

    @property
    def bundle(self) -> Bundle:
        """The release."""
        return self.catalogue.bundle

    def rules(self, placement: str, facts: Mapping[str, Any], now: float) -> Rules:
        """The rules in force for a placement, a person and a moment."""
        rules = self.policy.applicable(placement, facts, now)
        return Rules(
            base=self.base_policy.select(rules, now),
            delta=self.delta_policy.select(rules, now),
            split=self.catalogue.split,
            size=len(self.catalogue),
        )

    @cached_property
    def trend(self) -> npt.NDArray[np.float64]:
        """How much every row is in demand now: [N], decayed live events and a share of the release's recent counts."""
        recent = self.catalogue.popularity[:, 1]
        trend = RELEASE_PRIOR * recent / max(1.0, float(recent.max(initial=0.0)))
        for item_id, weight in self.live_trend.items():
            row = self.catalogue.row(item_id)
            if row >= 0:
                trend[row] += weight
        return trend

    @cached_property
    def trending(self) -> Rows:
        """Rows by demand, highest first; rows nobody touched are left out unless nothing was ever touched."""
        order = np.argsort(-self.trend, kind="stable")
        wanted = int((self.trend > 0).sum())
        return order[:wanted] if wanted else order
