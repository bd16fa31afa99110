"""Exploring a release: the notebook's functions, and the notebook itself."""

from __future__ import annotations

import asyncio
import os
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from embeddings import explore
from embeddings.bundle import Bundle
from embeddings.errors import InputError, NotFound
from serving.replica.engine import Engine
from serving.request.query import Query
from serving.settings import Settings
from tests.conftest import GROUPS, PER_GROUP, write_world

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "explore_embeddings.ipynb"


@pytest.fixture
def bundle(releases: Path) -> Bundle:
    return explore.open_current(releases)


def test_neighbours_are_of_the_same_group_and_not_the_item_itself(bundle: Bundle) -> None:
    found = explore.neighbours(bundle, "g1-3", PER_GROUP - 1)
    assert {name.split("-")[0] for name in found["item_id"]} == {"g1"}
    assert "g1-3" not in set(found["item_id"])
    assert found["cosine"].is_monotonic_decreasing


def test_clusters_find_the_groups_and_their_names(bundle: Bundle) -> None:
    labels, names = explore.clusters(bundle, GROUPS)
    for group in range(GROUPS):
        assert len({labels[bundle.ids.row(f"g{group}-{place}")] for place in range(PER_GROUP)}) == 1
    assert {name.split(" · ")[0] for name in names} == {f"group-{group}" for group in range(GROUPS)}


def test_cold_items_land_among_their_category(bundle: Bundle) -> None:
    report = explore.cold_report(bundle, ["g0-1", "g3-2"])
    assert (report["neighbours_sharing_a_category"] == 1.0).all()
    assert (report["cosine_to_trained"] > 0.5).all()


def test_a_journey_turns_towards_what_is_touched(bundle: Bundle) -> None:
    steps = explore.journey(bundle, ["g0-1", "g2-1"])
    assert steps.shape == (3, 8)
    assert bundle.ids.id(int(bundle.index.search(steps[[1]], 1)[1][0, 0])).startswith("g0")
    assert bundle.ids.id(int(bundle.index.search(steps[[2]], 1)[1][0, 0])).startswith("g2")


def test_equal_releases_do_not_drift(bundle: Bundle, releases: Path) -> None:
    write_world(releases, "world-2")
    assert (explore.drift(bundle, explore.open_current(releases), k=5, sample=10)["overlap"] == 1.0).all()


def test_errors_say_what_is_known(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="g1-3"):
        explore.neighbours(bundle, "g1-33")
    with pytest.raises(InputError, match="purchase"):
        explore.journey(bundle, ["g0-1"], event_type="purchas")
    with pytest.raises(NotFound, match="publish"):
        explore.open_current(tmp_path / "nothing")
    with pytest.raises(InputError, match="at least 3"):
        explore.project(np.zeros((2, 4), dtype=np.float32))


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_keeps_neighbours_together_and_is_the_same_twice(bundle: Bundle, method: explore.Method) -> None:
    points = explore.project(bundle.matrix, method=method)
    assert points.shape == (len(bundle.ids), 2)
    np.testing.assert_array_equal(points, explore.project(bundle.matrix, method=method))
    groups = np.array([int(item_id[1]) for item_id in bundle.ids.all])
    distance = np.square(points[:, None] - points[None]).sum(-1)
    np.fill_diagonal(distance, np.inf)
    assert (groups[distance.argmin(1)] == groups).mean() > 0.9


def test_the_notebook_and_the_service_agree_on_neighbours(bundle: Bundle, releases: Path, tmp_path: Path) -> None:
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 'store.db'}"))
    engine.start()
    for item_id in ("g0-0", "g1-7", "g3-24"):
        query = Query(k=20, now=datetime.now(UTC), similar_to=item_id)
        served = [one.item_id for one in asyncio.run(engine.recommend(query)).items]
        assert served == list(explore.neighbours(bundle, item_id, 20)["item_id"])
    engine.stop()


@pytest.mark.slow
def test_the_notebook_runs(releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nbclient
        import nbformat

        monkeypatch.setitem(os.environ, "BESPOKE_RELEASES", str(releases))
        monkeypatch.setitem(os.environ, "BESPOKE_MAP", "pca")
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(NOTEBOOK.parent))
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("Group" in str(output) for output in outputs)
