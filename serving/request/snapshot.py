"""What a request reads once and keeps to the end: release, catalogue, policy and trends, all of one moment."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats, Mask, unit
from embeddings.bundle import Bundle
from embeddings.ids import Rows
from serving.policy.arms import NOTHING, Changes
from serving.policy.compiled import ActiveRules, BoundPolicy, Capped, Policy
from serving.policy.rules import Rule, parse_rule
from serving.request.catalogue import Catalogue

VARIANTS = 4
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
        base, delta = self.base.allow, self.delta.allow
        if base is not None and self.size == self.split:
            return base
        everything = np.ones(self.size, dtype=bool)
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
        return [(rule, self._whole(mask, late), factor) for (rule, mask, factor), (_, late, _) in pairs]

    @property
    def pins(self) -> list[tuple[Rule, Mask, int]]:
        """Rule, mask [N] and position of every pin, the strongest first."""
        pairs = zip(self.base.pins, self.delta.pins, strict=True)
        return [(rule, self._whole(mask, late), position) for (rule, mask, position), (_, late, _) in pairs]

    def _whole(self, base: Mask, delta: Mask) -> Mask:
        return np.concatenate([base, delta]) if len(delta) else base

    @property
    def ids(self) -> list[str]:
        """Ids of all of them."""
        base = self.base
        parts = (base.limits, base.boosts, base.pins, base.caps)
        return [one[0].id for part in parts for one in part]

    @property
    def caps(self) -> tuple[Capped, ...]:
        """Rule, attribute and limit of every cap."""
        return self.base.caps


def direction(vectors: Floats) -> Floats:
    """The mean direction [D] of vectors [n, D], of length 1."""
    return unit(unit(vectors).mean(0))


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One consistent view; it is replaced as a whole. `revision` is that of the store's catalogue it has caught up with."""

    catalogue: Catalogue
    policy: Policy
    base_policy: BoundPolicy
    delta_policy: BoundPolicy
    live_trend: Mapping[str, float]
    sources: tuple[str, ...]
    revision: int

    @property
    def bundle(self) -> Bundle:
        """The release."""
        return self.catalogue.bundle

    def rules(
        self,
        placement: str,
        facts: Mapping[str, Any],
        now: float,
        *,
        stranger: bool = False,
        guarding: Mapping[str, Any] | None = None,
        changes: Changes = NOTHING,
        without: Collection[str] = (),
        whose: str | None = None,
    ) -> Rules:
        """The rules in force for a placement, a person and a moment, `without` some; the rest as in `Policy.applicable`."""
        rules = self.policy.applicable(
            placement, facts, now, stranger=stranger, guarding=guarding, changes=changes, whose=whose
        )
        if without:
            rules = tuple(rule for rule in rules if rule.id not in without)
        return Rules(
            base=self.base_policy.select(rules, now),
            delta=self.delta_policy.select(rules, now),
            split=self.catalogue.split,
            size=len(self.catalogue),
        )

    def in_demand(self, rule_id: str, mask: Mask, count: int) -> Rows:
        """Up to `count` of the rows that a rule names, those in highest demand first; remembered by rule."""
        known = self._pools.get(rule_id)
        if known is None:
            rows = np.flatnonzero(mask)
            if len(rows) > count:
                rows = rows[np.argpartition(-self.trend[rows], count)[:count]]
            known = self._pools[rule_id] = rows
        return known

    @cached_property
    def _pools(self) -> dict[str, Rows]:
        return {}

    def with_rules(self, drafts: Iterable[Mapping[str, Any]]) -> Snapshot:
        """The same view with drafts of rules in force; remembered, because what tries a draft asks many times."""
        key = json.dumps(list(drafts), sort_keys=True)
        known = self._variants.get(key)
        if known is None:
            rules = [parse_rule(raw, item_attributes=self.catalogue.attributes) for raw in json.loads(key)]
            policy = self.policy.with_rules(rules)
            known = replace(
                self,
                policy=policy,
                base_policy=policy.bind(self.catalogue.base.columns),
                delta_policy=policy.bind(self.catalogue.delta.columns),
            )
            if len(self._variants) >= VARIANTS:
                self._variants.clear()
            self._variants[key] = known
        return known

    @cached_property
    def _variants(self) -> dict[str, Snapshot]:
        return {}

    @cached_property
    def centres(self) -> Mapping[str, Floats]:
        """Directions [D] of the segments that are ones of likeness, by id; of one whose items are all gone, none."""
        centres = {}
        for segment in self.policy.segments.like:
            rows = self.catalogue.rows(segment.prototypes)
            if len(rows := rows[rows >= 0]):
                centres[segment.id] = direction(self.catalogue.vectors(rows))
        return centres

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
