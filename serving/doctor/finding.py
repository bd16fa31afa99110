"""A finding: one sentence about one thing, how bad it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "problem")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was found about `subject`; `advice` says what to do, and is empty where nothing needs to be done."""

    subject: str
    level: Level
    text: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        return asdict(self)


Findings = Iterator[Finding]
Check = Callable[[], Findings]


def ok(subject: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(subject=subject, level="ok", text=text)


def warning(subject: str, text: str, advice: str) -> Finding:
    """The service works, but not as well or not as safely as it could."""
    return Finding(subject=subject, level="warning", text=text, advice=advice)


def problem(subject: str, text: str, advice: str) -> Finding:
    """The service does not start, or does not do what it promises, before this is mended."""
    return Finding(subject=subject, level="problem", text=text, advice=advice)


def worst(findings: list[Finding]) -> Level:
    """The highest level among findings."""
    return max((one.level for one in findings), key=LEVELS.index, default="ok")
