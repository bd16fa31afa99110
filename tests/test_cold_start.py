"""Cold start: who is held out is held out, targets are honest, and content finds what content can tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embeddings.errors import DataError
from embeddings.features import EventKind
from embeddings.schema import Event, Item, to_table
from tests.histories import START, dataset
from training.about import Source
from training.cold_start import (
    STEPS,
    ColdStart,
    drawn,
    item_targets,
    keep_cold_start,
    measure_cold_start,
    next_targets,
    read_cold_start,
)
from training.config import Config
from training.metrics import Interval

KINDS = {"view": EventKind(), "skip": EventKind(positive=False)}
GROUPS = 4


def mask(data_items: tuple[str, ...], names: str) -> np.ndarray:
    return np.array([name in names.split() for name in data_items])


def test_new_items_are_asked_for_after_something_else_and_once_a_person() -> None:
    data = dataset(
        {
            "ann": "a x b y",  # two new items: the last one counts
            "bob": "x a",  # nothing before it
            "cat": [("a", "view", 0), ("x", "skip", 1)],  # not a liking
            "dan": "b x b x",  # the second time it is no discovery
            "eve": "a b x",  # a stranger
        },
        event_types=KINDS,
    )
    people = np.array([name != "eve" for name in data.users.all])
    found = item_targets(data, mask(data.items.all, "x y"), people)
    said = {
        data.users.id(user): (data.items.id(row), int(end - data.offsets[user]))
        for user, row, end in zip(found.users, found.rows, found.ends, strict=True)
    }
    assert said == {"ann": ("y", 3), "dan": ("x", 1)}
    np.testing.assert_array_equal(found.times, data.times[found.events])


def test_new_people_are_asked_for_the_next_known_item() -> None:
    data = dataset({"ann": "a b x b c", "bob": "a"}, event_types=KINDS)
    fresh, everybody = mask(data.items.all, "x"), np.ones(2, dtype=bool)
    for step, expected in ((0, {"ann": "a", "bob": "a"}), (1, {"ann": "b"}), (2, {"ann": "c"}), (5, {})):
        found = next_targets(data, fresh, everybody, step)
        names = data.users.ids(found.users)
        assert dict(zip(names, data.items.ids(found.rows), strict=True)) == expected
        assert (found.ends == data.offsets[found.users] + step).all()
        assert (found.events >= found.ends).all()
    nobody = np.zeros(2, dtype=bool)
    assert not len(next_targets(data, fresh, nobody, 0))


def test_a_tenth_is_drawn_by_name_alone() -> None:
    names = [f"i{n}" for n in range(5000)]
    first = drawn(names, "cold items")
    assert 400 < len(first) < 600
    assert drawn(names[::-1], "cold items") == first
    assert drawn(names[:100], "cold items") <= first
    assert drawn(names, "cold people") != first


def write_groups(folder: Path) -> Path:
    """Everybody likes one group of items, which their category tells: content says all there is to know."""
    rng = np.random.default_rng(0)
    items = [Item(item_id=f"i{n:03}", categories=[f"group-{n % GROUPS}"], price=1.0) for n in range(120)]
    events = []
    for person in range(200):
        own = rng.permutation(np.arange(person % GROUPS, 120, GROUPS))[:14]
        events += [
            Event(
                user_id=f"u{person:03}",
                item_id=f"i{item:03}",
                event_type="view",
                timestamp=START.replace(minute=person % 60, hour=place),
            )
            for place, item in enumerate(own.tolist())
        ]
    folder.mkdir()
    pq.write_table(to_table(items, Item), folder / "items.parquet")
    pq.write_table(to_table(events, Event), folder / "events.parquet")
    return folder


CONFIG = Config.model_validate(
    {
        "towers": {"dim": 16, "layers": 1, "max_history": 8, "dropout": 0.1, "id_dropout": 0.3},
        "ranker": None,
        "optimisation": {"epochs": 4, "batch": 16, "learning_rate": 0.01, "warmup_steps": 5},
    }
)


def test_content_finds_new_items_and_one_event_tells_a_new_person(tmp_path: Path) -> None:
    source = Source(path=write_groups(tmp_path / "groups"))
    found = measure_cold_start(source, CONFIG, threads=1)
    assert found.held_items == len(drawn([f"i{n:03}" for n in range(120)], "cold items"))
    assert found.items["random"].mean < 1.0
    assert found.items["content"].mean > 0.95  # a group has at most ten new items
    assert found.item_gap.low > 0
    assert list(found.people["two_tower"]) == list(STEPS)
    before, after = found.people["two_tower"][0].mean, found.people["two_tower"][1].mean
    assert after > 1.5 * max(before, 0.05)
    keep_cold_start(tmp_path, found)
    assert read_cold_start(tmp_path) == found
    assert measure_cold_start(source, CONFIG, threads=1) == found


def test_the_benchmark_prints_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import coldstart, results

    interval = Interval(0.25, 0.2, 0.3)
    found = ColdStart(
        held_items=7,
        item_targets=9,
        items={"content": interval, "popularity": interval, "random": interval},
        item_gap=Interval(0.1, 0.05, 0.15),
        held_people=8,
        people={"two_tower": dict.fromkeys(STEPS, interval), "popularity": dict.fromkeys(STEPS, interval)},
    )
    monkeypatch.setattr(coldstart, "measure_cold_start", lambda *_, **__: found)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    words = ["--data-dir", str(tmp_path), "--recipe", "quick", "--save", "--plot", str(tmp_path / "people.html")]
    coldstart.main(words)
    out = capsys.readouterr().out
    assert ColdStart.from_json(out.splitlines()[-1], where="stdout") == found
    assert "0.2500 [0.200, 0.300]" in out
    assert "+0.1000 [+0.0500, +0.1500]" in out
    (kept,) = tmp_path.glob("coldstart-*.json")
    assert json.loads(kept.read_text())["found"] == found.to_json()
    assert "events seen of the new person" in (tmp_path / "people.html").read_text(encoding="utf-8")


def test_data_that_cannot_tell_are_a_sentence(tmp_path: Path) -> None:
    folder = write_groups(tmp_path / "groups")
    (folder / "items.parquet").unlink()
    with pytest.raises(DataError, match="no table of items"):
        measure_cold_start(Source(path=folder), CONFIG)
    assert read_cold_start(tmp_path) is None
    (tmp_path / "cold_start.json").write_text(json.dumps({"k": 10}))
    with pytest.raises(DataError, match="is not a measurement of the cold start"):
        read_cold_start(tmp_path)
    with pytest.raises(DataError, match="here is not"):
        ColdStart.from_json("[]", where="here")
