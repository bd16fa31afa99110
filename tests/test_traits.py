"""Traits: rare attributes weigh most, likeness is a cosine, and a release carries them to the service."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.features import FeatureSpec
from embeddings.schema import Item
from embeddings.successors import DECAY, LATEST
from embeddings.traits import KEPT, Traits, alike, rarity, traits_of
from serving.replica.engine import Engine
from tests.conftest import look_only_at
from tests.test_pipeline import ask, do, ids


def items(*brands_and_kinds: str) -> list[Item]:
    """Items such as "a x": brand a, kind x."""
    return [
        Item(
            item_id=f"i{at}",
            attributes=dict(zip(("brand", "kind"), one.split(), strict=False)),
        )
        for at, one in enumerate(brands_and_kinds)
    ]


def found(catalogue: list[Item]) -> tuple[FeatureSpec, np.ndarray, Traits]:
    spec = FeatureSpec.fit(catalogue, min_count=1)
    features = spec.item_features(catalogue)
    rare = rarity(features, spec.token_count)
    return spec, rare, traits_of(features, rare)


def test_a_token_weighs_by_how_rare_it_is_and_all_of_an_item_are_of_length_one() -> None:
    spec, rare, traits = found(items("a x", "a x", "b x", "c x", "", "d y"))
    row = {token: at for at, token in enumerate(spec.tokens)}
    assert rare[row["brand=a"]] == pytest.approx(np.log(6 / 3))
    assert rare[row["kind=x"]] == pytest.approx(np.log(6 / 5))
    wanted = np.array([np.log(6 / 3), np.log(6 / 5)])
    assert traits.tokens[0, :3].tolist() == [row["brand=a"], row["kind=x"], -1]
    np.testing.assert_allclose(traits.weights[0, :2], wanted / np.linalg.norm(wanted), rtol=1e-3)
    assert (traits.tokens[4] == -1).all()


def test_what_everything_has_says_nothing() -> None:
    _, _, traits = found(items("a x", "b x"))
    assert (traits.tokens[:, 1] == -1).all()  # log(2 / 3) is below zero


def test_of_many_tokens_the_rarest_stay() -> None:
    catalogue = [Item(item_id=f"i{n}", categories=[f"c{m}" for m in range(n + 1)]) for n in range(KEPT + 4)]
    spec, _, traits = found(catalogue)
    last = [spec.tokens[token] for token in traits.tokens[-1]]
    assert last == [f"categories=c{m}" for m in range(KEPT + 3, 3, -1)]
    assert float(np.linalg.norm(traits.weights[-1].astype(np.float32))) == pytest.approx(1.0, abs=1e-3)


def test_likeness_is_a_cosine_and_later_events_count_more() -> None:
    _, _, traits = found(items("a x", "a y", "b y", "c z", "", "c x"))
    dense = np.zeros((6, int(traits.tokens.max()) + 1))
    for at in range(6):
        has = traits.tokens[at] >= 0
        dense[at, traits.tokens[at][has]] = traits.weights[at][has]
    history, candidates = np.array([0, 4, 2]), np.arange(6)
    weights = DECAY ** np.array([2.0, 1.0, 0.0])
    cosines = dense @ dense[history].T
    expected = np.stack([cosines @ weights / weights.sum(), cosines[:, -1]], axis=1)
    np.testing.assert_allclose(alike(traits.take(history), traits.take(candidates)), expected, atol=2e-3)
    assert alike(traits.take(history), traits.take(candidates))[1, 1] > 0
    assert not alike(traits.take(history[:2]), traits.take(candidates))[:, 1].any()  # the last one has no traits


def test_old_events_and_empty_lists() -> None:
    _, _, traits = found(items("a x", "b y", "c z"))
    old = np.array([0, *[1] * LATEST])
    assert alike(traits.take(old), traits.take(np.array([0]))).tolist() == [[0.0, 0.0]]
    nothing = np.zeros(0, dtype=np.int64)
    assert alike(traits.take(nothing), traits.take(np.array([0]))).tolist() == [[0.0, 0.0]]
    assert alike(traits.take(old), traits.take(nothing)).shape == (0, 2)
    assert not alike(traits.take(old), Traits.none(2, shared=True)).any()


def test_the_service_asks_them_of_new_items_too(engine: Engine) -> None:
    """A ranking model that looks at nothing but likeness to the last event puts what is like it first."""
    bundle = engine.holdings.current().snapshot.bundle
    model = bundle.ranker
    assert model is not None
    look_only_at(model, "alike_last")
    bundle.__dict__.pop("ranker_pass", None)
    brand, category = "brand-3", "group-2"
    new = Item(item_id="new", title="New", categories=[category], attributes={"brand": brand}, price=1.0)
    engine.store.catalogue.upsert([new])
    engine.refresh()
    catalogue = engine.holdings.current().snapshot.catalogue
    rows = np.array([catalogue.row("g2-3"), catalogue.row("new")])
    assert rows[1] >= catalogue.split
    known, fresh = catalogue.traits(rows).tokens
    assert sorted(known.tolist()) == sorted(fresh.tolist())
    do(engine, "g2-3")
    top = ids(ask(engine, user_id="ann", k=3))
    assert all(one == "new" or int(one.split("-")[1]) % 5 == 3 for one in top)
