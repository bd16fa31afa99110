# Provisional file by the lead, so that the pipeline can be tried. The author of serving/policy overwrites it.
"""Compiled."""
from __future__ import annotations

from typing import Any

import numpy as np

from embeddings.errors import InputError
from serving.policy import conditions
from serving.policy.placements import DEFAULT
from serving.policy.rules import parse_rule


def facts(attributes: Any, events: int, context: Any, now: Any) -> dict[str, Any]:
    out = {f"user.{k}": v for k, v in attributes.items()} | {f"context.{k}": v for k, v in context.items()}
    return out | {"user.events": events, "time.hour": now.hour, "time.weekday": now.weekday(), "time.date": now.date().isoformat()}

class ActiveRules:
    def __init__(self, rules: Any, columns: Any, now: float) -> None:
        self.size = len(columns)
        self.boosts: list[Any] = []; self.pins: list[Any] = []; self.caps: list[Any] = []; self.cuts: list[Any] = []
        for rule in rules:
            mask = conditions.parse(rule.items, known=None).mask(columns, now=now) if rule.items else np.ones(self.size, bool)
            t = rule.action.type
            if t == "include": self.cuts.append((rule, mask))
            if t == "exclude": self.cuts.append((rule, ~mask))
            if t in ("boost", "bury"): self.boosts.append((rule, mask, rule.action.factor))
            if t == "pin": self.pins.append((rule, mask, rule.action.position))
            if t == "cap": self.caps.append((rule, rule.action.attribute, rule.action.limit))
    @property
    def allow(self) -> Any:
        return np.logical_and.reduce([m for _, m in self.cuts]) if self.cuts else None
    def removed_by(self, row: int) -> str:
        return next(r.id for r, m in self.cuts if not m[row])

class BoundPolicy:
    def __init__(self, rules: Any, columns: Any) -> None:
        self.rules, self.columns = rules, columns
    def active(self, placement: str, facts: Any, now: float) -> ActiveRules:
        on = [r for r in self.rules if not r.when or conditions.parse(r.when, known=None).matches(facts)]
        return ActiveRules(on, self.columns, now)

class Policy:
    def __init__(self, rules: Any, version: int, problems: Any) -> None:
        self.rules, self.version, self.problems = rules, version, problems
    @classmethod
    def compile(cls, documents: Any, *, version: int, item_attributes: Any) -> Policy:
        rules, problems = [], []
        for raw in documents.get("rules", ()):
            try: rules.append(parse_rule(raw, known=item_attributes))
            except InputError as e: problems.append(e.message)
        rules.sort(key=lambda r: (-r.priority, r.id))
        return cls(rules, version, problems)
    def placement(self, name: str) -> Any:
        return DEFAULT
    def bind(self, columns: Any) -> BoundPolicy:
        return BoundPolicy(self.rules, columns)
