# Provisional file by the lead, so that the pipeline can be tried. The author of serving/settings overwrites it.
from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    releases: Path = Path("var/releases")
    store: str = "sqlite:///var/store.db"
    topology: Literal["fused", "chained"] = "fused"
    threads: int = 1
    poll_s: float = 0.05
    trend_s: float = 5.0
    console: bool = True
    max_body_bytes: int = 1 << 20
