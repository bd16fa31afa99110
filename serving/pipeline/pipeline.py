"""The pipeline: every stage, in the order in which they run. This tuple is the documentation.

In the fused topology one replica runs all three sections; in the chained one each section is a deployment of its own.
"""

from __future__ import annotations

from serving.pipeline.filters import Excluded, RequestFilter, RuleFilter, Seen, Unavailable
from serving.pipeline.scorers import Boosts, RankerScore, RetrievalScore
from serving.pipeline.selectors import Caps, Diversity, Slate
from serving.pipeline.sources import (
    Backfill,
    CallersList,
    NewArrivals,
    Pinned,
    Similar,
    SimilarToRecent,
    Trending,
    TwoTowerSource,
)
from serving.pipeline.stage import Section, Source, Stage
from serving.pipeline.work import Work

STAGES: tuple[Stage, ...] = (
    # retrieval: what may be shown, and who might be interesting among it
    Unavailable(),
    Seen(),
    Excluded(),
    RequestFilter(),
    RuleFilter(),
    CallersList(),
    Similar(),
    TwoTowerSource(),
    SimilarToRecent(),
    Trending(),
    NewArrivals(),
    Pinned(),
    Backfill(),
    RetrievalScore(),
    # ranking: how good is each for this person now
    RankerScore(),
    # rules: what the business wants of the list
    Boosts(),
    Diversity(),
    Caps(),
    Slate(),
)
SECTIONS: tuple[Section, ...] = ("retrieval", "ranking", "rules")
SOURCES: tuple[str, ...] = tuple(stage.name for stage in STAGES if isinstance(stage, Source))


def run_section(section: Section, work: Work) -> None:
    """Run the stages of one section, in order."""
    for stage in STAGES:
        if stage.section == section:
            stage.run(work)
    if section == "retrieval":
        work.exhausted = work.query.candidates is not None or len(work.candidates) >= int(work.allowed.sum())


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
