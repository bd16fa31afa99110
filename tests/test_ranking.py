"""The ranking model: it starts as the retrieval order, learns what retrieval cannot see, and its probabilities are true."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from embeddings.bundle import build_towers
from embeddings.features import EventKind
from embeddings.ids import UNKNOWN
from embeddings.ranker import Ranker, RankerConfig
from embeddings.schema import Item
from embeddings.two_tower import TowerConfig
from tests.histories import cycle, dataset
from training.calibration import cross_calibration, platt
from training.contenders import item_matrix
from training.dataset import Dataset, Targets, leave_last_out
from training.examples import ListMaker
from training.metrics import expected_calibration_error, score
from training.ranking import Fitted, Learning, fit_ranker, held_out, listwise_loss, predict, rerank
from training.successors import count_successors

VIEW = {"view": EventKind(), "purchase": EventKind()}
CONFIG = RankerConfig(objectives=("view",), hidden=(8,), candidates=20, history=8, dropout=0.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are tiny: a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def maker_for(data: Dataset, config: RankerConfig = CONFIG) -> ListMaker:
    """Lists of towers that have learned nothing: their order is arbitrary, but always the same."""
    torch.manual_seed(3)
    towers = build_towers(TowerConfig(dim=8, layers=1, max_history=8), data.spec, items=len(data.items)).eval()
    successors = count_successors(data, leave_last_out(data).train, width=config.successors, reach=config.reach)
    return ListMaker(data, towers, item_matrix(data, towers), config, successors)


def bargains(people: int = 120) -> Dataset:
    """Everybody ends with the two cheapest items they have not touched, in a catalogue of prices."""
    rng = np.random.default_rng(0)
    histories = {}
    for person in range(people):
        first = rng.permutation(40)[:6]
        cheapest = [n for n in range(40) if n not in first][:2]
        # One person after another: what is popular by then is no secret of the last event.
        touches = [(f"i{n:02}", "view", 20.0 * person + place) for place, n in enumerate((*first, *cheapest))]
        histories[f"u{person}"] = touches
    items = [Item(item_id=f"i{n:02}", price=float((n + 1) ** 2)) for n in range(40)]
    return dataset(histories, items=items, event_types=VIEW)


def test_it_learns_what_retrieval_cannot_see() -> None:
    data = bargains()
    maker, split = maker_for(data, CONFIG.model_copy(update={"candidates": 40})), leave_last_out(data)
    fitted = fit_ranker(maker, split.validation, learning=Learning(learning_rate=0.02, epochs=8, batch=16), seed=1)
    report = fitted.report
    assert report.best_epoch > 0
    assert report.lists + report.held_out == 120
    assert report.found == 1.0
    assert report.ranker["ndcg@10"] > report.retrieval["ndcg@10"] + 0.3
    assert report.gain.mean == pytest.approx(report.ranker["ndcg@10"] - report.retrieval["ndcg@10"])
    assert report.gain.low > 0.2
    lists = maker.make(split.test)
    truth = (split.test.bounds, split.test.rows)
    before = score(lists.rows, truth, k=[10]).means["ndcg@10"]
    after = score(rerank(fitted.ranker, lists, maker.matrix), truth, k=[10]).means["ndcg@10"]
    assert after > before + 0.3


def gain_of_those_who_chose(fitted: Fitted, maker: ListMaker, targets: Targets) -> float:
    """What the ranker adds to the NDCG@10 of the people held out, who chose its epoch."""
    held = targets.take(np.flatnonzero(held_out(maker.data, targets)))
    lists, truth = maker.make(held), (held.bounds, held.rows)
    ranked = rerank(fitted.ranker, lists, maker.matrix)
    return score(ranked, truth, k=[10]).means["ndcg@10"] - score(lists.rows, truth, k=[10]).means["ndcg@10"]


def test_where_nothing_can_be_learned_the_figures_say_so() -> None:
    flattered, reported = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        histories = {f"u{person:03}": " ".join(f"i{n:02}" for n in rng.permutation(40)[:5]) for person in range(60)}
        maker = maker_for(data := dataset(histories, event_types=VIEW), CONFIG.model_copy(update={"candidates": 40}))
        targets = leave_last_out(data).validation
        fitted = fit_ranker(maker, targets, learning=Learning(learning_rate=0.03, epochs=6, batch=16))
        flattered.append(gain_of_those_who_chose(fitted, maker, targets))
        reported.append(fitted.report.gain)
    assert np.mean(flattered) > 0.03, "the best of six epochs is better by chance, for those who chose it"
    assert np.mean([gain.mean for gain in reported]) < np.mean(flattered) / 3


def test_an_untrained_ranker_is_the_retrieval_order() -> None:
    data = cycle(people=30, event_types=VIEW)
    maker = maker_for(data)
    lists = maker.make(leave_last_out(data).test)
    ranker = Ranker(CONFIG.model_copy(update={"objectives": ("view", "purchase")}), dim=8).eval()
    np.testing.assert_array_equal(rerank(ranker, lists, maker.matrix), lists.rows)


def test_it_falls_back_to_the_retrieval_order_and_says_so() -> None:
    data = cycle(people=60, event_types=VIEW)
    maker, split = maker_for(data), leave_last_out(data)
    ruinous = Learning(learning_rate=50.0, epochs=3, patience=3)
    fitted = fit_ranker(maker, split.validation, learning=ruinous)
    if fitted.report.best_epoch == 0:
        lists = maker.make(split.test)
        np.testing.assert_array_equal(rerank(fitted.ranker, lists, maker.matrix), lists.rows)
        assert fitted.report.note == "no epoch was better on held-out people"
    assert gain_of_those_who_chose(fitted, maker, split.validation) >= 0


def test_nothing_found_keeps_the_retrieval_order() -> None:
    data = cycle(people=40, event_types=VIEW)
    config = CONFIG.model_copy(update={"objectives": ("purchase",)})
    maker, split = maker_for(data, config), leave_last_out(data)
    fitted = fit_ranker(maker, split.validation)
    assert fitted.report.best_epoch == 0
    assert fitted.report.note == "none of its objectives (purchase) ever followed a list"
    lists = maker.make(split.test)
    np.testing.assert_array_equal(rerank(fitted.ranker, lists, maker.matrix), lists.rows)
    assert float(fitted.ranker.probabilities(predict(fitted.ranker, lists, maker.matrix)).max()) < 0.1


def test_objectives_that_never_occur_are_left_out() -> None:
    data = cycle(people=40, event_types=VIEW)
    config = CONFIG.model_copy(update={"objectives": ("purchase", "view")})
    fitted = fit_ranker(maker_for(data, config), leave_last_out(data).validation, learning=Learning(epochs=1))
    assert fitted.ranker.config.objectives == ("view",)
    assert fitted.report.left_out == ("purchase",)
    assert set(fitted.report.calibration) == {"view"}


def test_the_same_arguments_give_the_same_ranker_and_leave_the_caller_alone() -> None:
    data = cycle(people=40, event_types=VIEW)
    targets, learning = leave_last_out(data).validation, Learning(epochs=2)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = fit_ranker(maker_for(data), targets, learning=learning).ranker.state_dict()
    torch.set_rng_state(state)
    second = fit_ranker(maker_for(data), targets, learning=learning).ranker.state_dict()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    maker = maker_for(data)
    state = torch.get_rng_state()
    fit_ranker(maker, targets, learning=learning)
    assert torch.equal(state, torch.get_rng_state())


def test_features_that_never_vary_have_no_say() -> None:
    data = cycle(people=40, event_types=VIEW)  # no prices, no times of appearance, nothing repeated
    maker, split = maker_for(data), leave_last_out(data)
    ranker = fit_ranker(maker, split.validation, learning=Learning(epochs=3)).ranker
    lists = maker.make(split.test)
    expected = predict(ranker, lists, maker.matrix)
    for column in (5, 6, 7):  # price_gap, repeats, known
        lists.features[lists.rows != UNKNOWN, column] = 0.7
    torch.testing.assert_close(predict(ranker, lists, maker.matrix), expected)


def test_held_out_people_are_a_fifth_and_always_the_same() -> None:
    data = cycle(people=300)
    targets = leave_last_out(data).validation
    held = held_out(data, targets)
    assert 0.12 < held.mean() < 0.28
    np.testing.assert_array_equal(held_out(data, targets.take(np.arange(100))), held[:100])


def test_batches_change_nothing() -> None:
    data = cycle(people=30, event_types=VIEW)
    maker, split = maker_for(data), leave_last_out(data)
    ranker = fit_ranker(maker, split.validation, learning=Learning(epochs=2)).ranker
    lists = maker.make(split.test)
    one_by_one = predict(ranker, lists, maker.matrix, batch=1)
    torch.testing.assert_close(predict(ranker, lists, maker.matrix, batch=7), one_by_one)
    q, real = 4, lists.rows[4] != UNKNOWN
    history = lists.history[q][lists.history[q] != UNKNOWN]
    served = ranker.rank(
        lists.queries[q], maker.matrix[history], maker.matrix[lists.rows[q][real]], lists.features[q][real]
    )
    np.testing.assert_allclose(served, ranker.probabilities(one_by_one)[q].numpy()[real], rtol=1e-4, atol=1e-6)


def test_the_listwise_loss_is_what_it_says() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 2), torch.zeros(3, 5, 2, dtype=torch.bool)
    real = torch.ones(3, 5, dtype=torch.bool)
    real[2, 3:] = False
    labels[0, 1, 0] = labels[0, 2, 0] = labels[1, 4, 1] = labels[2, 0, 0] = True
    lists, singles = [], []
    for b in range(3):
        for o in range(2):
            own, wanted = logits[b, real[b], o], labels[b, real[b], o]
            if wanted.any():
                lists.append(-own.log_softmax(0)[wanted].mean())
            singles.append(F.binary_cross_entropy_with_logits(own, wanted.float(), reduction="sum"))
    expected = torch.stack(lists).mean() + 0.3 * torch.stack(singles).mean()
    torch.testing.assert_close(listwise_loss(logits, labels, real, pointwise=0.3), expected)
    without = listwise_loss(logits, torch.zeros_like(labels), real, pointwise=0.0)
    assert float(without) == 0.0


def test_platt_scaling_recovers_known_probabilities() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=60_000)
    labels = rng.random(60_000) < 1 / (1 + np.exp(-(2.0 * logits - 3.0)))
    slope, offset = platt(logits, labels)
    assert slope == pytest.approx(2.0, abs=0.1)
    assert offset == pytest.approx(-3.0, abs=0.1)
    scaled = 1 / (1 + np.exp(-(slope * logits + offset)))
    assert expected_calibration_error(scaled, labels, bins=50) < 0.01


def test_platt_scaling_without_both_labels_keeps_the_order() -> None:
    for labels in (np.zeros(50), np.ones(50), np.zeros(0)):
        slope, offset = platt(np.linspace(-1, 1, len(labels)), labels)
        assert slope == 1.0
        assert math.isfinite(offset)
    rng = np.random.default_rng(0)  # labels that contradict the logits must not turn the order round
    logits = rng.normal(size=200)
    assert platt(logits, logits < 0)[0] > 0


def test_few_lists_are_chosen_by_name() -> None:
    data = cycle(people=60, event_types=VIEW)
    targets = leave_last_out(data).validation
    fitted = fit_ranker(maker_for(data), targets, learning=Learning(epochs=1, max_lists=20))
    assert fitted.report.lists + fitted.report.held_out == 20


def test_calibration_is_measured_where_it_was_not_learned() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 20))
    real = rng.random((300, 20)) < 0.9
    chance = 1 / (1 + np.exp(-(logits - 2.0)))
    labels = rng.random((300, 20)) < chance
    found = cross_calibration(logits, labels, real)
    assert found["rate"] == pytest.approx(labels[real].mean())
    assert found["ece"] < 0.03
    assert found["log_loss"] == pytest.approx(-np.log(np.where(labels, chance, 1 - chance))[real].mean(), abs=0.01)
    logits[~real] = np.nan  # what no candidate holds is not looked at
    assert cross_calibration(logits, labels, real) == found
