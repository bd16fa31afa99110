"""The report: one self-contained HTML page about a trained run, for a person who has to decide something.

`report.html` is the page, with its style; the figures are drawn by the script of plotly, which is inside the page, once.
Nothing is loaded from anywhere.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from embeddings.durable import put
from training import figures
from training.evaluate import RANKING
from training.findings import JUDGE, Findings, K
from training.metrics import Interval
from training.verdict import NAMES, comparisons, headline, minus, worries

KINDS = {
    "people": ("New and active people", "Thirds of the people, by the events known of them when they were asked for."),
    "items": (
        "Popular and rare items",
        "Popular are the few items that half of all likes in training went to; the others are rare.",
    ),
    "categories": ("Categories", "The largest categories; a target counts in each of its item's categories."),
}


def write_report(found: Findings, path: Path) -> None:
    """Write the page; an older one is replaced when the new one is complete."""
    page = render(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, lambda unfinished: unfinished.write_text(page, encoding="utf-8"))


def render(found: Findings) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"interval": _interval, "signed": _signed}
    about = found.run.about
    return environment.get_template("report.html").render(
        plotly=get_plotlyjs(),
        written=datetime.now(UTC),
        found=found,
        about=about,
        names=NAMES,
        headline=headline(found),
        comparisons=comparisons(found),
        worries=worries(found),
        warm_start=about.warm_start.words() if about.warm_start else "",
        columns=[f"{name}@{K}" for name in RANKING],
        other_cuts=[cut for cut in found.evaluation.cutoffs if cut != K],
        judge=JUDGE,
        kinds=[(kind, *words) for kind, words in KINDS.items() if any(part.kind == kind for part in found.segments)],
        figures=_figures(found),
        configuration=json.dumps(found.run.config.model_dump(mode="json"), indent=2),
    )


def _figures(found: Findings) -> dict[str, Any]:
    """Figures by the id of the place where the page wants them."""
    drawn = {"standings": figures.standings(found), "gaps": figures.gaps(found), "exposure": figures.exposure(found)}
    for kind in {segment.kind for segment in found.segments}:
        drawn[f"segments-{kind}"] = figures.by_segment(found, kind)
    if any(found.calibration.values()):
        drawn["calibration"] = figures.calibration(found)
    if found.learning:
        drawn["learning"] = figures.learning(found)
    if found.map is not None:
        drawn["map"] = figures.item_map(found)
    if found.cold_start is not None:
        drawn["new-people"] = figures.new_people(found.cold_start)
        drawn["new-items"] = figures.new_items(found.cold_start)
    return drawn


def _interval(interval: Interval | None) -> str:
    if interval is None or interval.mean != interval.mean:
        return "–"
    if interval.low != interval.low:
        return f"{interval.mean:.4f}"
    return f"{interval.mean:.4f} [{interval.low:.3f}, {interval.high:.3f}]"


def _signed(interval: Interval) -> str:
    return minus(f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]")
