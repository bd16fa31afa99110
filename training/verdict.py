"""The verdict: findings in plain words, what was won, by how much, and what to worry about.

A difference counts as one only if its interval excludes zero. Every sentence is made of figures that the page shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from training.contenders import RELEASE
from training.findings import JUDGE, Findings, K
from training.metrics import Interval

NAMES: Final = {
    "popularity": "Popularity",
    "recent_popularity": "Recent popularity",
    "item_knn": "Item-kNN",
    "ease": "EASE",
    "release": "Release in service",
    "two_tower": "Two towers",
    "ranker": "Ranking model",
}

LOUD_ERROR: Final = 0.5
"""A calibration error above half the base rate: the probabilities order well, but must not be believed as such."""

FEW: Final = 300
"""Below so many test targets intervals are so wide that little can be told."""


def headline(found: Findings) -> str:
    """What the system that would serve achieves, in one sentence."""
    mean, low, high = found.evaluation.systems[found.ours][f"recall@{K}"]
    subject = "The ranking model finds" if found.ours == "ranker" else "The two towers find"
    return (
        f"{subject} {mean:.1%} of what people went on to choose within the first {K} places "
        f"(95% interval {low:.1%} to {high:.1%})."
    )


def comparisons(found: Findings) -> tuple[str, ...]:
    """The sentences against the best baseline, the release in service, and the retrieval order."""
    sentences = [_against(found, found.rival, f"the strongest simple method, {NAMES[found.rival]}")]
    if found.release is not None:
        name = f"the release in service, {found.release.name}"
        same = " It was made of the same data with the same configuration." if found.release_is_this_run else ""
        sentences.append(_against(found, RELEASE, name) + same)
    if found.ours == "ranker":
        sentences.append(_against(found, "two_tower", "the order of retrieval alone"))
    return tuple(sentences)


def worries(found: Findings) -> tuple[str, ...]:
    """What a careful reader should look at before publishing; empty if nothing stands out."""
    return (*_of_segments(found), *_of_exposure(found), *_of_calibration(found), *_of_training(found), *_of_data(found))


def _against(found: Findings, other: str, words: str) -> str:
    gap = found.evaluation.differences[f"{found.ours} - {other}"][JUDGE]
    theirs = found.evaluation.systems[other][JUDGE].mean
    if gap == (0.0, 0.0, 0.0):
        return f"On these targets it does exactly as well as {words}."
    share = f", {gap.mean / theirs:+.0%}" if theirs else ""
    figures = minus(f"{gap.mean:+.4f} NDCG@{K}{share}; 95% interval {gap.low:+.4f} to {gap.high:+.4f}")
    if gap.low > 0:
        return f"It beats {words} ({figures})."
    if gap.high < 0:
        return f"It loses to {words} ({figures})."
    return f"On these targets it cannot be told apart from {words} ({figures})."


def minus(text: str) -> str:
    """Figures with the sign that is as wide as the plus; only where no word has a hyphen before a digit."""
    return re.sub(r"(?<![\w@])-(?=[\d.])", "\u2212", text)


def _of_segments(found: Findings) -> Iterator[str]:
    rival = NAMES[found.rival]
    for segment in found.segments:
        if segment.gap.high < 0:
            yield (
                f"{rival} serves the segment “{segment.name}” better, by {-segment.gap.mean:.4f} NDCG@{K} "
                f"({segment.queries:,} targets)."
            )
        elif _nothing(segment.systems[found.ours]):
            yield f"Nobody finds anything in the segment “{segment.name}” ({segment.queries:,} targets)."


def _of_exposure(found: Findings) -> Iterator[str]:
    ours, real = found.exposure.lists[found.ours][0], found.exposure.chosen[0]
    if ours > min(0.99, real + 0.1):
        yield (
            f"The best known tenth of the catalogue takes {ours:.0%} of all places, but only {real:.0%} of what people "
            "chose: the lists lean towards the popular."
        )
    shown = found.evaluation.systems[found.ours][f"coverage@{K}"].mean
    if shown < 0.1:
        yield f"Only {shown:.1%} of the catalogue appears in any list."


def _of_calibration(found: Findings) -> Iterator[str]:
    report = found.run.about.report
    for name, figures in (report["calibration"] if report else {}).items():
        error, rate = figures["ece"], figures["rate"]
        if rate and error is not None and error > LOUD_ERROR * rate:
            yield (
                f"The probability of “{name}” is off by {error:.4f} on average, at a base rate of {rate:.4f}: good for "
                "an order, not for arithmetic."
            )


def _of_training(found: Findings) -> Iterator[str]:
    about, epochs = found.run.about, found.run.config.optimisation.epochs
    if about.best_epoch == about.epochs == epochs:
        yield f"The best epoch is the last of {epochs}: the towers were still improving, a longer training would pay."
    if about.skipped:
        yield f"{about.skipped} updates would not have been finite and were not made."
    if not about.report:
        return
    if about.report["note"]:
        yield f"The ranking model keeps the retrieval order: {about.report['note']}."
    elif about.report["held_out"] < FEW:
        yield (
            f"Only {about.report['held_out']} people were held out to choose the ranking model by: what they say of it "
            "is mostly chance."
        )


def _of_data(found: Findings) -> Iterator[str]:
    if found.evaluation.queries < FEW:
        yield f"There are only {found.evaluation.queries} test targets; the intervals are wide."
    for note in found.evaluation.notes:
        yield note[0].upper() + note[1:] + "."


def _nothing(interval: Interval) -> bool:
    return interval.mean == 0.0
