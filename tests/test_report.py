"""The report: segments, exposure and calibration against the slow way, words that fit the figures, a page that shows."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from embeddings.explore import open_current
from embeddings.features import EventKind
from embeddings.ids import UNKNOWN
from embeddings.schema import Item
from tests import habits
from tests.conftest import require
from tests.histories import dataset
from tests.test_cli import call
from training import figures
from training.calibration import reliability
from training.cold_start import ColdStart, keep_cold_start
from training.config import Run
from training.contenders import RELEASE, Contest
from training.dataset import Dataset, Split, leave_last_out
from training.evaluate import popularity
from training.exposure import measure_exposure
from training.findings import JUDGE, Findings, find
from training.metrics import Interval
from training.publish import publish
from training.report import render, write_report
from training.runs import Source, TrainedRun, train_run
from training.segments import segments
from training.verdict import comparisons, headline, worries

VIEW = {"view": EventKind()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("report")
    source = Source(path=habits.write(folder / "data"))
    return train_run(folder / "run", source, habits.CONFIG, Run(device="cpu", threads=1))


@pytest.fixture(scope="module")
def found(run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    releases = tmp_path_factory.mktemp("releases")
    publish(run, releases, force=True)
    return find(run, release=open_current(releases), method="pca")


def contest_of(lists: dict[str, list[list[int]]]) -> tuple[Contest, Dataset, Split]:
    """A hundred people of three lengths of history, items of two categories, and lists that somebody made up."""
    items = [Item(item_id=f"i{n}", categories=["even" if n % 2 == 0 else "odd"]) for n in range(10)]
    histories = {f"u{n:03}": " ".join(f"i{(n + step) % 10}" for step in range(3 + n % 3 * 2)) for n in range(100)}
    data = dataset(histories, items=items, event_types=VIEW)
    split = leave_last_out(data)
    asked = split.test
    made = {name: np.array([pattern[q % len(pattern)] for q in range(len(asked))]) for name, pattern in lists.items()}
    return (
        Contest(targets=asked, lists=made, matrix=np.eye(10, 4, dtype=np.float32), predictions=None, notes=()),
        data,
        split,
    )


def test_segments_are_what_choosing_by_hand_gives() -> None:
    contest, data, split = contest_of({"popularity": [[0, 1, 2]], "two_tower": [[2, 4, 6], [1, 3, 5]]})
    found = segments(contest, data, split, ours="two_tower", rival="popularity", metric="recall")
    asked = contest.targets
    rows = asked.rows
    lengths = asked.ends - data.offsets[asked.users]
    by_name = {segment.name.split(" (")[0]: segment for segment in found}
    hit = np.array([row in listed for row, listed in zip(rows, contest.lists["two_tower"], strict=True)])
    base = np.array([row in listed for row, listed in zip(rows, contest.lists["popularity"], strict=True)])
    for name, inside in (
        ("even", rows % 2 == 0),
        ("odd", rows % 2 == 1),
        ("new", lengths == 2),
        ("regular", lengths == 4),
    ):
        assert by_name[name].queries == inside.sum()
        assert by_name[name].systems["two_tower"].mean == pytest.approx(hit[inside].mean())
        assert by_name[name].gap.mean == pytest.approx(hit[inside].mean() - base[inside].mean())
    known = popularity(data, split)
    head = np.flatnonzero(np.isin(np.arange(10), np.argsort(-known, kind="stable")[:5]))
    assert by_name["popular"].queries + by_name["rare"].queries == len(rows)
    assert abs(by_name["popular"].queries - np.isin(rows, head).sum()) <= len(rows) / 5


def test_exposure_shares_out_every_place() -> None:
    contest, _, _ = contest_of({"popularity": [[0, 1, UNKNOWN]], "two_tower": [[0, 1, 2], [3, 4, 5]]})
    known = np.arange(10, 0, -1)
    found = measure_exposure(contest, known, k=3)
    assert found.lists["popularity"][:3] == (0.5, 0.5, 0.0)
    np.testing.assert_allclose(found.lists["two_tower"], [1 / 6] * 6 + [0.0] * 4)
    assert sum(found.chosen) == pytest.approx(1.0)
    np.testing.assert_allclose(found.known, known / known.sum())
    assert found.gini["popularity"] > found.gini["two_tower"]


def test_calibration_points_hold_equal_mass_and_find_a_liar() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1, 30, 20_000)
    honest = reliability(p, rng.random(20_000) < p)
    inside = [
        point.low <= point.predicted <= point.high
        for _ in range(20)
        for point in reliability(p, rng.random(20_000) < p)
    ]
    assert len(honest) == 10
    assert sum(point.candidates for point in honest) == 20_000
    mass = [point.predicted * point.candidates for point in honest]
    assert max(mass) - min(mass) < 0.1 * max(mass)
    assert 0.9 < np.mean(inside) < 0.99
    assert [point.predicted for point in honest] == sorted(point.predicted for point in honest)
    liar = reliability(p, rng.random(20_000) < p / 3)
    assert all(point.high < point.predicted for point in liar)
    assert reliability(np.full(10, 0.01), np.zeros(10)) == ()
    assert len(reliability(np.full(100, 0.12), np.zeros(100))) <= 2


def test_the_release_competes_and_equals_the_run_it_was_made_of(found: Findings) -> None:
    systems = found.evaluation.systems
    assert systems[RELEASE]["recall@10"] == systems["ranker"]["recall@10"]
    assert found.release_is_this_run
    words = " ".join(comparisons(found))
    assert "exactly as well as the release in service" in words
    assert "same data with the same configuration" in words


def test_words_follow_the_intervals(found: Findings) -> None:
    pair = f"{found.ours} - {found.rival}"

    def against(interval: Interval) -> str:
        gaps = {**found.evaluation.differences, pair: {JUDGE: interval}}
        return comparisons(replace(found, evaluation=replace(found.evaluation, differences=gaps)))[0]

    assert against(Interval(0.1, 0.05, 0.15)).startswith("It beats the strongest simple method")
    assert against(Interval(-0.1, -0.15, -0.05)).startswith("It loses to")
    assert "−0.1000 NDCG@10" in against(Interval(-0.1, -0.15, -0.05))
    assert "cannot be told apart" in against(Interval(0.1, -0.05, 0.15))
    recall = found.evaluation.systems[found.ours]["recall@10"]
    assert f"{recall.mean:.1%}" in headline(found)


def test_worries_name_what_is_wrong(found: Findings) -> None:
    calm = worries(found)
    bad = replace(found.segments[0], name="nobody", gap=Interval(-0.2, -0.3, -0.1))
    assert any("“nobody” better, by 0.2000" in sentence for sentence in worries(replace(found, segments=(bad,))))
    narrow = replace(found.exposure, lists={**found.exposure.lists, found.ours: (1.0,) + (0.0,) * 9})
    assert any("lean towards the popular" in sentence for sentence in worries(replace(found, exposure=narrow)))
    short = found.run.about.model_copy(update={"best_epoch": 6, "epochs": 6, "skipped": 3})
    said = worries(replace(found, run=replace(found.run, about=short)))
    assert any("still improving" in sentence for sentence in said)
    assert any(sentence.startswith("3 updates") for sentence in said)
    assert not any(sentence.startswith("3 updates") for sentence in calm)


def test_examples_do_not_depend_on_results(found: Findings, run: TrainedRun) -> None:
    assert len(found.examples) == 6
    flipped = find(replace(run, ranker=None), method="pca")
    assert [person.name for person in flipped.examples] == [person.name for person in found.examples]
    person = found.examples[0]
    row = run.data.users.row(person.name)
    target = int(np.flatnonzero(run.split.test.users == row)[0])
    end = int(run.split.test.ends[target])
    assert person.events == end - run.data.offsets[row]
    titles = run.data.item_table["title"].to_pylist()
    assert person.history[0][0] == titles[run.data.rows[end - 1]]  # latest first
    assert person.wanted == (titles[run.split.test.rows[target]],)
    for listed in person.lists.values():
        assert all(hit == (title in person.wanted) for title, hit in listed)


def cold() -> ColdStart:
    interval = Interval(0.2, 0.1, 0.3)
    return ColdStart(
        held_items=12,
        item_targets=40,
        items={"content": interval, "popularity": interval, "random": interval},
        item_gap=interval,
        held_people=30,
        people={name: dict.fromkeys((0, 1, 2, 5, 10), interval) for name in ("two_tower", "popularity")},
    )


def test_every_figure_is_one_that_plotly_knows(found: Findings) -> None:
    drawn = [
        figures.standings(found),
        figures.gaps(found),
        figures.exposure(found),
        figures.calibration(found),
        figures.learning(found),
        figures.item_map(found),
        figures.new_items(cold()),
        figures.new_people(cold()),
        *(figures.by_segment(found, segment.kind) for segment in found.segments),
    ]
    for figure in drawn:
        assert len(go.Figure(figure).data) == len(figure["data"])
        assert "title" in figure["layout"]["xaxis"] or not figure["layout"]["xaxis"]["showgrid"]


def test_the_page_is_whole_and_asks_for_nothing(found: Findings, tmp_path: Path) -> None:
    hostile = replace(found.examples[0], name="</script><b>", wanted=("<img src=x>",))
    write_report(replace(found, examples=(hostile,), cold_start=cold()), tmp_path / "new" / "page.html")
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert page.count("plotly.js v") == 1
    head, _, script = page.partition('<script type="application/json"')
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?https?:", head)
    assert "<b>" not in head
    assert "<img" not in head
    assert "&lt;img src=x&gt;" in head
    shown = json.loads(script.partition(">")[2].partition("</script>")[0])
    assert set(re.findall(r'id="([\w-]+)" class="plot"', head)) == set(shown)
    for words in ("Cold start", "Map of items", "Calibration", "Against whom", "What to worry about"):
        assert words in head


@pytest.mark.slow
def test_the_page_draws_in_a_browser_without_a_network(found: Findings, tmp_path: Path) -> None:
    import shutil

    chromium = shutil.which("chromium")
    require(chromium, "chromium")
    from playwright.sync_api import sync_playwright

    (tmp_path / "page.html").write_text(render(replace(found, cold_start=cold())), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme, width in (("light", 1100), ("dark", 400)):
            page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
            wrong: list[str] = []
            asked: list[str] = []
            page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto((tmp_path / "page.html").as_uri())
            page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 0")
            places = page.locator(".plot").count()
            assert page.locator(".plot:has(.main-svg)").count() == places >= 9
            assert (wrong, len(asked)) == ([], 1)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()


def test_the_command_writes_the_page_and_keeps_the_table(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "sklearn" else there(name, *rest)
    )
    keep_cold_start(run.folder, cold())
    words = ("evaluate", "--run", run.folder, "--releases", tmp_path / "none")
    code, out, err = call(*words, "--report", tmp_path / "mine.html")
    assert (code, err) == (0, "")
    assert f"report in {tmp_path / 'mine.html'}" in out.replace("\n", "")
    assert "along the two directions" in (tmp_path / "mine.html").read_text(encoding="utf-8")
    stored = json.loads((run.folder / "evaluation.json").read_text())
    assert RELEASE not in stored["systems"]
    code, _, err = call(*words, tmp_path / "mine.html")
    assert code == 1
    assert "is not expected without --report" in err
    assert not math.isnan(stored["systems"]["ranker"]["ndcg@10"][0])
