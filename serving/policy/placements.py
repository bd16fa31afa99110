# Provisional file by the lead, so that the pipeline can be tried. The author of serving/policy overwrites it.
"""Placements."""
from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Placement(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str = "default"
    sources: tuple[str, ...] = ("two_tower", "similar_to_recent", "trending", "new_arrivals")
    seen: tuple[str, ...] = ("purchase", "rating")
    diversity: float = 0.0
    objectives: dict[str, float] = {}
    candidates: int = 200

DEFAULT = Placement()
