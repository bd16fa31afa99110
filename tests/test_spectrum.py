"""The spectrum: the right vectors, towers that answer as the filter does, and a world of two tastes."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.sparse import random as random_matrix

from embeddings.bundle import build_towers
from embeddings.errors import ConfigError, TrainingError
from embeddings.features import EventKind
from embeddings.schema import Item
from tests.histories import dataset
from training.config import Config, Run, SpectrumConfig, parse_config
from training.dataset import Dataset, leave_share_out
from training.loop import encode_queries, rank_all, refit, seen_items, train
from training.spectrum import Spectrum, leading_vectors

VIEW = {"view": EventKind()}
CPU = Run(device="cpu", threads=1)
TASTES, PER_TASTE = 4, 12


def recipe(dim: int = TASTES, **more: object) -> Config:
    towers = {"encoder": "pooled", "dim": dim, "dropout": 0.0, "id_dropout": 0.0, "length_power": 1.4}
    parts = {"towers": towers, "ranker": None, "spectrum": {}, "optimisation": {"epochs": 0}, "event_types": VIEW}
    return Config.model_validate(parts | {"split": {"kind": "leave_share_out", "validation_share": 0.2}} | more)


def tastes(people: int = 120) -> Dataset:
    """Everybody touches eight items of one taste, most often the first, and one of another; items say what they are."""
    histories = {}
    for person in range(people):
        draw = random.Random(person)
        own = draw.choices(range(TASTES), weights=(8, 4, 2, 1))[0]
        other = (own + draw.randrange(1, TASTES)) % TASTES
        touched = [f"t{own}-{place}" for place in draw.sample(range(PER_TASTE), 8)]
        histories[f"u{person}"] = " ".join([f"t{other}-{draw.randrange(PER_TASTE)}", *touched])
    items = [
        Item(item_id=f"t{taste}-{place}", categories=[f"taste-{taste}"])
        for taste in range(TASTES)
        for place in range(PER_TASTE + 1)  # the last one of each nobody has touched
    ]
    return dataset(histories, items=items, event_types=VIEW)


def test_leading_vectors_are_those_of_the_whole_decomposition() -> None:
    matrix = random_matrix(60, 40, density=0.2, random_state=0, format="csr", dtype=np.float32)
    _, _, exact = np.linalg.svd(matrix.toarray())
    found = leading_vectors(matrix, 5, seed=0)
    assert found.shape == (40, 5)
    np.testing.assert_allclose(np.abs(np.sum(found.T * exact[:5], axis=1)), 1.0, atol=1e-4)
    assert leading_vectors(matrix, 100, seed=0).shape == (40, 40)


def test_towers_answer_as_the_filter_does() -> None:
    data = tastes()
    everything = np.ones(len(data), dtype=np.bool_)
    spectrum = Spectrum(data, everything, dim=TASTES, seed=0)
    towers = build_towers(recipe().towers, data.spec, items=len(data.items)).eval()
    towers.load_state_dict(spectrum.weights(towers, rank=TASTES, exponent=0.5))
    matrix = towers.items.encode(data.spec.item_features(data.item_rows(), np.arange(len(data.items))))
    lifted = spectrum.vectors * spectrum.counts[:, None] ** 0.5
    touched = spectrum.counts > 0
    np.testing.assert_allclose(matrix[touched], lifted[touched], atol=1e-5)
    split = leave_share_out(data, share=0.2)
    queries = encode_queries(data, towers, matrix, split.validation)
    rows = seen_items(data, split.validation)[0]
    person = (lifted[rows] * np.linalg.norm(lifted[rows], axis=1, keepdims=True) ** -1.4).sum(0)
    cosine = queries[0] @ person / np.linalg.norm(queries[0]) / np.linalg.norm(person)
    assert cosine == pytest.approx(1.0, abs=1e-3)


def test_a_world_of_tastes_is_found_without_an_epoch() -> None:
    data = tastes()
    split = leave_share_out(data, share=0.2)
    trained = train(data, split, recipe(), CPU)
    assert (trained.history, trained.best_epoch, trained.stopped) == ((), 0, "all 0 epochs are done")
    assert trained.spectrum is not None
    assert trained.spectrum.exponents[0] in SpectrumConfig().exponents
    assert trained.validation["recall@10"] > 0.9
    again = train(data, split, recipe(), CPU)
    assert all((again.towers.state_dict()[name] == one).all() for name, one in trained.towers.state_dict().items())


def test_the_rank_is_found_however_small_the_catalogue_is() -> None:
    data = tastes()
    split = leave_share_out(data, share=0.2)
    trained = train(data, split, recipe(dim=64), CPU)
    assert trained.spectrum is not None
    assert trained.spectrum.rank is not None
    assert TASTES <= trained.spectrum.rank < 16
    assert trained.validation["recall@10"] > 0.9
    fixed = train(data, split, recipe(dim=64, spectrum={"rank": 48}), CPU)
    assert fixed.validation["recall@10"] < 0.6, "all vectors only return what went in"


def test_new_items_stand_among_those_like_them_and_new_people_get_what_is_popular() -> None:
    data = tastes()
    trained = train(data, leave_share_out(data, share=0.2), recipe(), CPU)
    matrix = trained.towers.items.encode(data.spec.item_features(data.item_rows(), np.arange(len(data.items))))
    names = np.array(data.items.all)
    new = matrix[names == f"t1-{PER_TASTE}"]
    nearest = rank_all(new, matrix, None, PER_TASTE)[0]
    assert {name[:2] for name in names[nearest]} == {"t1"}
    start = trained.towers.users.start.detach().numpy()
    assert {name[:2] for name in names[np.argsort(-(matrix @ start))[:PER_TASTE]]} == {"t0"}


def test_a_refit_keeps_the_exponent_and_learns_from_all() -> None:
    data = tastes()
    split = leave_share_out(data, share=0.2)
    chosen = train(data, split, recipe(), CPU)
    nothing = split.validation.take(np.zeros(0, dtype=np.int64))
    whole = type(split)(train=np.ones(len(data), dtype=np.bool_), validation=nothing, test=split.validation)
    again = refit(data, whole, recipe(), CPU, chosen)
    assert again.spectrum == chosen.spectrum
    weight = "items.ids.weight"
    assert not np.array_equal(again.towers.state_dict()[weight], chosen.towers.state_dict()[weight])


def test_epochs_go_on_from_the_spectrum_and_are_kept_only_if_they_are_better() -> None:
    data = tastes()
    split = leave_share_out(data, share=0.2)
    trained = train(data, split, recipe(optimisation={"epochs": 2, "learning_rate": 1e-4}), CPU)
    assert len(trained.history) == 2
    ranked = [trained.start["ndcg@10"], *(epoch.metrics["ndcg@10"] for epoch in trained.history)]
    assert trained.best_epoch == int(np.argmax(ranked))


def test_what_does_not_go_together_is_refused() -> None:
    data = tastes(people=20)
    split = leave_share_out(data, share=0.2)
    towers = build_towers(recipe().towers, data.spec, items=len(data.items))
    with pytest.raises(TrainingError, match="without a warm start"):
        train(data, split, recipe(), CPU, start=towers.state_dict())
    with pytest.raises(ConfigError, match=r"spectrum: needs towers\.encoder = 'pooled'"):
        parse_config({"spectrum": {}}, where="here")
    with pytest.raises(TrainingError, match="fewer than two people or items"):
        Spectrum(data, np.zeros(len(data), dtype=np.bool_), dim=4, seed=0)
