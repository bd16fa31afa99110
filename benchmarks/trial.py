"""A trial: where one scenario of the chaos benchmark runs, and what it found."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Trial:
    """A folder of its own, a seed, and room for figures and for what went wrong."""

    folder: Path
    seed: int = 0
    short: bool = True
    minutes: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def dice(self) -> random.Random:
        """A generator of its own for each use, from the seed."""
        return random.Random(self.seed)

    def pick(self, short: int, full: int) -> int:
        """How much of something this trial does."""
        return short if self.short else full

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note a sentence if something does not hold."""
        if not holds:
            self.wrong.append(otherwise)

    def summary(self) -> dict[str, Any]:
        """What is printed as JSON."""
        return {"ok": not self.wrong, "wrong": self.wrong} | self.figures
