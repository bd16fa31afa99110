"""The pipeline: every stage, in the order in which they run, and the effects after them. The tuples are the documentation.

In the fused topology one replica runs all three sections; in the chained one each section is a deployment of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from embeddings.manifest import Part
from serving.request.work import Work
from serving.stages.dial import Dial
from serving.stages.effects import DecisionLog, Effect
from serving.stages.filters import Excluded, RequestFilter, RuleFilter, Seen, Unavailable
from serving.stages.past import BuyAgain, Continue
from serving.stages.scorers import Boosts, RankerScore, RetrievalScore
from serving.stages.selectors import Caps, Diversity, Slate
from serving.stages.sources import (
    Backfill,
    BoughtTogether,
    CallersList,
    NewArrivals,
    Pinned,
    Replenishment,
    Similar,
    SimilarToRecent,
    Trending,
    TwoTowerSource,
)
from serving.stages.stage import Section, Source, Stage

STAGES: tuple[Stage, ...] = (
    # retrieval: what may be shown, and who might be interesting among it
    Unavailable(),
    Seen(),
    Excluded(),
    RequestFilter(),
    RuleFilter(),
    CallersList(),
    BoughtTogether(),
    Similar(),
    TwoTowerSource(),
    SimilarToRecent(),
    Replenishment(),
    Trending(),
    NewArrivals(),
    Continue(),
    BuyAgain(),
    Pinned(),
    Backfill(),
    RetrievalScore(),
    # ranking: how good is each for this person now
    RankerScore(),
    # rules: what the business wants of the list
    Dial(),
    Boosts(),
    Diversity(),
    Caps(),
    Slate(),
)
EFFECTS: tuple[Effect, ...] = (DecisionLog(),)
"""What is done with an answer after it went out, in the process that gave it."""

SECTIONS: tuple[Section, ...] = ("retrieval", "ranking", "rules")
NEEDS: Mapping[Section, frozenset[Part]] = {
    "retrieval": frozenset({"index"}),
    "ranking": frozenset({"ranker"}),
    "rules": frozenset(),
}
"""The parts of a release that a section computes with, beside items, vectors and towers."""

SOURCES: tuple[str, ...] = tuple(stage.name for stage in STAGES if isinstance(stage, Source))


def run_section(section: Section, work: Work) -> None:
    """Run the stages of one section, in order."""
    for stage in STAGES:
        if stage.section == section:
            stage.run(work)
    if section == "retrieval":
        # What is not filled up has no more to give than it gave.
        short = not work.placement.fill and len(work.candidates) < work.query.k
        everything = short or len(work.candidates) >= int(work.allowed.sum())
        work.exhausted = everything or work.query.candidates is not None


def skip_section(section: Section, work: Work) -> None:
    """Go on without a section: every stage of it that would have had something to do is named in `degraded`."""
    for stage in STAGES:
        if stage.section == section and stage.applies(work):
            work.degrade(stage.name)


def trace_of(work: Work) -> dict[str, object]:
    """The whole story of one answer: every stage, and the scores of the best candidates from stage to stage."""
    scores = {stage["name"]: stage["scores"] for stage in work.trace if "scores" in stage}
    places = {place.row: position for position, place in enumerate(work.slate)}
    head = work.candidates.take(slice(0, 50))  # type: ignore[arg-type]
    return {
        "stages": [{key: value for key, value in stage.items() if key != "scores"} for stage in work.trace],
        "candidates": [
            {
                "item_id": (item_id := work.catalogue.id(row)),
                "title": work.catalogue.title(row),
                "sources": work.found_by(found_by),
                "retrieval_score": round(float(retrieval), 6),
                "ranker_score": scores.get("ranker", {}).get(item_id),  # type: ignore[attr-defined]
                "final_score": round(float(score), 6),
                "position": places.get(row),
            }
            for row, found_by, retrieval, score in zip(
                head.rows.tolist(), head.found_by.tolist(), head.retrieval, head.score, strict=True
            )
        ],
    }
