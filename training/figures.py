"""Figures: findings as plotly figures, plain dictionaries whose colours the page fills in for light and dark.

A trace says who it is with `meta.tone`, one of the names in `TONES`; the page's style sheet knows the colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from training.cold_start import ColdStart
from training.contenders import RELEASE
from training.findings import JUDGE, Findings, K
from training.metrics import Interval
from training.verdict import NAMES

Figure = dict[str, Any]

TONES: Final = {
    "popularity": "faint",
    "recent_popularity": "faint",
    "item_knn": "plain",
    "ease": "plain",
    "release": "release",
    "two_tower": "towers",
    "ranker": "ours",
}
ROW_PX: Final = 34


def standings(found: Findings) -> Figure:
    """Recall and NDCG of every system, with intervals."""
    systems = list(found.evaluation.systems)[::-1]
    traces = []
    for axis, metric in (("x", f"recall@{K}"), ("x2", JUDGE)):
        for name in systems:
            interval = found.evaluation.systems[name][metric]
            traces.append(_dot(interval, NAMES[name], TONES[name], x=axis, y="y"))
    return {
        "data": traces,
        "layout": {
            "height": _height(len(systems)),
            "showlegend": False,
            "xaxis": {"domain": [0, 0.48], "title": {"text": f"recall@{K}"}, "rangemode": "tozero"},
            "xaxis2": {"domain": [0.52, 1], "title": {"text": f"NDCG@{K}"}, "rangemode": "tozero"},
            "yaxis": {"categoryorder": "array", "categoryarray": [NAMES[name] for name in systems]},
        },
    }


def gaps(found: Findings) -> Figure:
    """Paired differences of the system that would serve to all the others."""
    pairs = {
        name.split(" - ")[1]: metrics[JUDGE]
        for name, metrics in found.evaluation.differences.items()
        if name.startswith(f"{found.ours} - ")
    }
    others = list(pairs)[::-1]
    return {
        "data": [_dot(pairs[name], NAMES[name], TONES[name], x="x", y="y") for name in others],
        "layout": {
            "height": _height(len(others)),
            "showlegend": False,
            "shapes": [_zero()],
            "xaxis": {"title": {"text": f"difference in NDCG@{K}"}},
            "yaxis": {"categoryorder": "array", "categoryarray": [NAMES[name] for name in others]},
        },
    }


def by_segment(found: Findings, kind: str) -> Figure:
    """NDCG of the rival, the towers and the ranking model in each segment of a kind."""
    rows = [segment for segment in found.segments if segment.kind == kind][::-1]
    systems = [found.rival, *([RELEASE] if found.release else []), *dict.fromkeys(("two_tower", found.ours))]
    spread = {name: 0.18 * (at - (len(systems) - 1) / 2) for at, name in enumerate(systems)}
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": NAMES[name],
            "meta": {"tone": TONES[name]},
            "x": [segment.systems[name].mean for segment in rows],
            "y": [at - spread[name] for at in range(len(rows))],
            "error_x": _errors([segment.systems[name] for segment in rows]),
            "text": [f"{segment.name}, {segment.queries:,} targets" for segment in rows],
            "hovertemplate": "%{text}<br>%{x:.4f}<extra>%{fullData.name}</extra>",
            "marker": {"size": 9},
        }
        for name in systems
    ]
    return {
        "data": traces,
        "layout": {
            "height": _height(len(rows)) + 26 * len(rows) * (len(systems) > 2) + 30,
            "legend": _legend_above(),
            "xaxis": {"title": {"text": f"NDCG@{K}"}, "rangemode": "tozero"},
            "yaxis": {
                "tickvals": list(range(len(rows))),
                "ticktext": [f"{segment.name}<br><i>{segment.queries:,} targets</i>" for segment in rows],
                "range": [-0.6, len(rows) - 0.4],
            },
        },
    }


def exposure(found: Findings) -> Figure:
    """Who gets the places: shares of the tenths of the catalogue."""
    names = [f"{10 * at + 1}–{10 * at + 10}%" for at in range(len(found.exposure.chosen))]
    shown = [found.rival, "popularity", *([RELEASE] if found.release else []), "two_tower", found.ours]
    lines = [(NAMES[name], TONES[name], "solid", found.exposure.lists[name]) for name in dict.fromkeys(shown)]
    lines.append(("What people chose", "truth", "dot", found.exposure.chosen))
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "meta": {"tone": tone},
                "x": names,
                "y": list(shares),
                "line": {"dash": dash, "width": 2},
                "hovertemplate": "%{y:.1%}<extra>%{fullData.name}</extra>",
            }
            for name, tone, dash, shares in lines
        ],
        "layout": {
            "height": 360,
            "legend": _legend_above(),
            "hovermode": "x unified",
            "xaxis": {"title": {"text": "tenths of the catalogue, best known items first"}, "type": "category"},
            "yaxis": {"title": {"text": "share of list places"}, "tickformat": ".0%", "rangemode": "tozero"},
        },
    }


def calibration(found: Findings) -> Figure:
    """Predicted against observed, on logarithmic axes: the outcomes of a recommender are rare."""
    points = [point for curve in found.calibration.values() for point in curve]
    low = 0.7 * min(value for point in points for value in (point.predicted, point.observed) if value > 0)
    high = min(1.0, 1.5 * max(max(point.predicted, point.observed) for point in points))
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "name": "perfect",
        "meta": {"tone": "faint"},
        "x": [low, high],
        "y": [low, high],
        "line": {"dash": "dot", "width": 1.5},
        "hoverinfo": "skip",
    }
    curves = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "meta": {"group": at},
            "x": [point.predicted for point in curve],
            "y": [point.observed for point in curve],
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [point.high - point.observed for point in curve],
                "arrayminus": [point.observed - point.low for point in curve],
                "thickness": 1,
                "width": 0,
            },
            "text": [f"{point.candidates:,} candidates" for point in curve],
            "hovertemplate": "predicted %{x:.3%}, observed %{y:.3%}<br>%{text}<extra>%{fullData.name}</extra>",
        }
        for at, (name, curve) in enumerate(found.calibration.items())
        if curve
    ]
    span = [math.log10(low), math.log10(high)]
    axis = {"type": "log", "tickformat": "~%", "range": span, "dtick": "D2"}
    return {
        "data": [diagonal, *curves],
        "layout": {
            "height": 420,
            "legend": _legend_above(),
            "xaxis": axis | {"title": {"text": "predicted probability"}},
            "yaxis": axis | {"title": {"text": "observed share"}},
        },
    }


def learning(found: Findings) -> Figure:
    """Loss and validation NDCG by epoch, with the epoch that was kept."""
    epochs = [entry["epoch"] for entry in found.learning]
    scores = [entry["metrics"].get(JUDGE) for entry in found.learning]
    loss, metric = (
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "meta": {"tone": tone},
            "x": epochs,
            "y": values,
            "yaxis": axis,
            "hovertemplate": "epoch %{x}: %{y:.4f}<extra>%{fullData.name}</extra>",
        }
        for name, tone, values, axis in (
            ("training loss", "plain", [entry["loss"] for entry in found.learning], "y"),
            (f"validation NDCG@{K}", "towers", scores, "y2"),
        )
    )
    kept = {"type": "line", "x0": found.run.about.best_epoch, "x1": found.run.about.best_epoch, "y0": 0, "y1": 1}
    return {
        "data": [loss, metric],
        "layout": {
            "height": 340,
            "legend": _legend_above(),
            "shapes": [kept | {"yref": "paper", "line": {"dash": "dot", "width": 1}}],
            "xaxis": {"title": {"text": "epoch"}, "dtick": max(1, len(epochs) // 10)},
            "yaxis": {"title": {"text": "loss"}},
            "yaxis2": {
                "title": {"text": f"NDCG@{K}"},
                "overlaying": "y",
                "side": "right",
                "tickmode": "auto",
                "showgrid": False,
            },
        },
    }


def item_map(found: Findings) -> Figure:
    """The best known items in the plane, coloured by their first category."""
    assert found.map is not None
    drawn = found.map
    order = [name for name in sorted(set(drawn.groups)) if name != "other"]
    traces = []
    for at, group in enumerate([*order, "other"] if "other" in drawn.groups else order):
        inside = [place for place, name in enumerate(drawn.groups) if name == group]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": group,
                "meta": {"tone": "faint"} if group == "other" else {"group": at},
                "x": [round(float(drawn.points[place, 0]), 3) for place in inside],
                "y": [round(float(drawn.points[place, 1]), 3) for place in inside],
                "text": [drawn.titles[place] for place in inside],
                "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
                "marker": {"size": 5, "opacity": 0.75},
            }
        )
    bare = {"showgrid": False, "zeroline": False, "showline": False, "showticklabels": False}
    return {
        "data": traces,
        "layout": {
            "height": 560,
            "hovermode": "closest",
            "legend": _legend_above(),
            "xaxis": dict(bare),
            "yaxis": bare | {"scaleanchor": "x"} if drawn.method == "pca" else dict(bare),
        },
    }


def new_people(found: ColdStart) -> Figure:
    """Recall of the next item by the number of events that a new person was seen with."""
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": NAMES[name],
                "meta": {"tone": TONES[name]},
                "x": [str(step) for step in steps],
                "y": [interval.mean for interval in steps.values()],
                "error_y": _errors(steps.values()),
                "hovertemplate": "after %{x} events: %{y:.1%}<extra>%{fullData.name}</extra>",
            }
            for name, steps in found.people.items()
        ],
        "layout": {
            "height": 340,
            "legend": _legend_above(),
            "xaxis": {"title": {"text": "events seen of the new person"}, "type": "category"},
            "yaxis": {"title": {"text": f"recall@{K} of the next item"}, "tickformat": ".0%", "rangemode": "tozero"},
        },
    }


def new_items(found: ColdStart) -> Figure:
    """Recall among items that training never heard of."""
    names = {"content": ("Content alone", "ours"), "popularity": ("Popularity", "plain"), "random": ("Chance", "faint")}
    shown = [name for name in names if name in found.items][::-1]
    return {
        "data": [_dot(found.items[name], *names[name], x="x", y="y") for name in shown],
        "layout": {
            "height": _height(len(shown)),
            "showlegend": False,
            "xaxis": {"title": {"text": f"recall@{K} among the new items"}, "tickformat": ".0%", "rangemode": "tozero"},
            "yaxis": {"categoryorder": "array", "categoryarray": [names[name][0] for name in shown]},
        },
    }


def _dot(interval: Interval, label: str, tone: str, *, x: str, y: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "meta": {"tone": tone},
        "x": [interval.mean],
        "y": [label],
        "xaxis": x,
        "yaxis": y,
        "error_x": _errors([interval]),
        "marker": {"size": 10},
        "hovertemplate": f"%{{x:.4f}}  [{interval.low:.4f}, {interval.high:.4f}]<extra>%{{y}}</extra>",
    }


def _errors(intervals: Iterable[Interval]) -> Mapping[str, Any]:
    found: Sequence[Interval] = list(intervals)
    return {
        "type": "data",
        "symmetric": False,
        "array": [interval.high - interval.mean for interval in found],
        "arrayminus": [interval.mean - interval.low for interval in found],
        "thickness": 1.5,
        "width": 4,
    }


def _zero() -> dict[str, Any]:
    return {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"dash": "dot", "width": 1.5}}


def _legend_above() -> dict[str, Any]:
    return {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"}


def _height(rows: int) -> int:
    return 90 + ROW_PX * rows
