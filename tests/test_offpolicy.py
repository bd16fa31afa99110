"""Exploration with propensities that are true, and estimates from it of lists that nobody was shown."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from embeddings.errors import InputError
from serving.analysis.offpolicy import Codes, Log, difference, estimate, expected
from serving.replica.engine import Engine
from serving.stages.exploration import explored
from tests.test_pipeline import ask, do, ids, rule
from tests.test_placements import patient as patient
from tests.test_placements import placement

NOW = datetime(2026, 11, 1, 12, 30, tzinfo=UTC)
PEOPLE = 3000
SHARE = 0.6


@pytest.mark.parametrize(("shown", "pool"), [(3, 6), (4, 4), (1, 2), (5, 7)])
def test_propensities_are_how_often_it_comes_about(shown: int, pool: int) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    said: defaultdict[tuple[int, int], set[float]] = defaultdict(set)
    for person in range(PEOPLE):
        found = explored(range(pool), shown, SHARE, whose=f"u{person}", what="home", at=NOW)
        assert len(set(found.entries)) == len(found.propensities) == shown
        for place, (entry, chance) in enumerate(zip(found.entries, found.propensities, strict=True)):
            seen[entry, place] += 1
            said[entry, place].add(round(chance, 12))
    assert all(len(chances) == 1 for chances in said.values()), "the same place of the same entry has one probability"
    for place in range(shown):
        chances = {entry: next(iter(said[entry, place])) for entry in range(pool)}
        assert sum(chances.values()) == pytest.approx(1.0)
        for entry, chance in chances.items():
            assert seen[entry, place] == pytest.approx(PEOPLE * chance, abs=4.5 * np.sqrt(PEOPLE * chance))


def test_nothing_is_tried_out_where_nothing_can_or_shall_be() -> None:
    for entries, share in ((range(5), 0.0), ([7], 0.5), ([], 0.5)):
        found = explored(entries, 3, share, whose="u", what="home", at=NOW)
        assert found == (list(entries)[:3], [1.0] * min(3, len(entries)), None)


def test_a_list_is_tried_out_for_an_hour_and_says_so(patient: Engine) -> None:
    placement(patient, "open", exploration=1.0, k=5)
    placement(patient, "closed", k=5)
    moved = 0
    for n in range(6):
        do(patient, "g2-3", user=f"p{n}")
        plain = ask(patient, user_id=f"p{n}", placement="closed", k=10, now=NOW)
        found, again = (ask(patient, user_id=f"p{n}", placement="open", k=0, now=NOW) for _ in range(2))
        assert ids(found) == ids(again)
        assert set(ids(found)) <= set(ids(plain))
        assert patient.effects.flush()
        logged = patient.store.decisions.get(found.recommendation_id)
        assert logged is not None
        changed = [at for at, (one, other) in enumerate(zip(ids(found), ids(plain), strict=False)) if one != other]
        moved += bool(changed)
        for at, chance in enumerate(logged.propensities):
            below = ids(found)[at] not in ids(plain)[:5]
            assert chance == pytest.approx((0.02 if below else 0.04) if at in changed else 1 - 13 / 50)
        said = [one.reasons[0].code for one in found.items].count("exploration")
        assert said == bool(changed)
    assert moved >= 3


def test_pins_and_caps_hold_while_things_are_tried_out(patient: Engine) -> None:
    title = {"attribute": "title", "op": "eq", "value": "Group 3 item 1"}
    rule(patient, "pin", {"type": "pin", "position": 1}, items=title, placements=["pinned"])
    rule(patient, "cap", {"type": "cap", "attribute": "brand", "limit": 1}, placements=["capped"])
    for name in ("pinned", "capped"):
        placement(patient, name, exploration=1.0, k=5)
    pinned, capped = set(), set()
    for n in range(10):
        do(patient, "g2-3", user=f"p{n}")
        pinned.add(tuple(ids(ask(patient, user_id=f"p{n}", placement="pinned", k=0, now=NOW))))
        answer = ask(patient, user_id=f"p{n}", placement="capped", k=0, fields=True, now=NOW)
        brands = Counter(one.item.attributes["brand"] for one in answer.items if one.item is not None)
        assert max(brands.values()) == 1
        capped.add(tuple(ids(answer)))
    assert {order[1] for order in pinned} == {"g3-1"}
    assert len(pinned) > 3
    assert len({frozenset(order) for order in pinned}) > 1
    assert len(capped) > 3
    assert len({frozenset(order) for order in capped}) == 1, "under a cap only what is on the list changes places"


def world(n: int, *, share: float, seed: int) -> tuple[Log, Codes, Codes, float, float]:
    """A log of explored lists, two other policies, and what those truly bring; a click needs a place and an item."""
    rng = np.random.default_rng(seed)
    length, pool, catalogue = 4, 8, 30
    attraction, attention = rng.uniform(0.05, 0.6, catalogue), 0.7 ** np.arange(length)
    ranked = np.argsort(rng.gumbel(size=(n, catalogue)) - np.linspace(0, 2, catalogue), axis=1)[:, :pool]
    person = np.arange(n) // 2
    items, chances = np.zeros((n, length), np.int64), np.zeros((n, length))
    for at in range(n):
        found = explored(
            ranked[at].tolist(), length, share, whose=f"{seed}-{at}", what="x", at=NOW + timedelta(hours=at)
        )
        items[at], chances[at] = found.entries, found.propensities
    rewards = (rng.random((n, length)) < attraction[items] * attention).astype(float)
    log = Log(items=items, propensities=chances, rewards=rewards, person=person)
    as_it_is, better = (
        ranked[:, :length],
        np.take_along_axis(ranked, np.argsort(-attraction[ranked], axis=1), axis=1)[:, :length],
    )
    values = [float((attraction[lists] * attention).sum(axis=1).mean()) for lists in (as_it_is, better)]
    return log, as_it_is, better, values[0], values[1]


def test_estimates_hold_the_truth_of_lists_that_were_never_shown() -> None:
    inside: Counter[str] = Counter()
    widths: defaultdict[str, list[float]] = defaultdict(list)
    surely = 0
    for seed in range(20):
        log, as_it_is, better, old, new = world(1500, share=0.8, seed=seed)
        assert new > old + 0.1
        found = estimate(log, better)
        for name in ("ips", "snips", "dr"):
            one = getattr(found, name)
            inside[name] += one.low <= new <= one.high
            widths[name].append(one.high - one.low)
        gap = difference(log, better, as_it_is)
        inside["difference"] += gap.low <= new - old <= gap.high
        surely += gap.low > 0
        assert 0 < found.effective < 1500
        assert 0.7 < found.supported <= 1.0
    assert min(inside.values()) >= 17, inside
    assert np.mean(widths["dr"]) < np.mean(widths["ips"])
    assert np.mean(widths["snips"]) < np.mean(widths["ips"])
    assert surely >= 15


def test_the_logged_lists_themselves_are_worth_what_they_brought() -> None:
    log, as_it_is, _, old, _ = world(3000, share=0.2, seed=50)
    found = estimate(log, as_it_is)
    assert found.effective > 2000
    for one in (found.ips, found.snips, found.dr):
        assert one.estimate == pytest.approx(old, abs=0.05)


def test_lists_that_could_not_have_been_shown_are_told_apart() -> None:
    log, as_it_is, *_ = world(1000, share=0.5, seed=1)
    foreign = as_it_is.copy()
    foreign[:, 1:] = 99
    found = estimate(log, foreign)
    assert found.supported == pytest.approx(0.25, abs=0.05)
    assert found.ips.estimate < 0.4


def test_a_log_without_chance_says_nothing_and_that_is_said() -> None:
    log, as_it_is, *_ = world(50, share=0.0, seed=2)
    with pytest.raises(InputError, match="every propensity is 1") as caught:
        estimate(log, as_it_is)
    assert caught.value.field == "exploration"


def test_the_model_learns_from_other_people_only() -> None:
    items = np.array([[0, 1], [0, 1], [2, -1]])
    rewards = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    log = Log(items=items, propensities=np.ones((3, 2)), rewards=rewards, person=np.array([0, 1, 1]))
    fold, found = expected(log, 4)
    assert fold.tolist() == [0, 1, 1]
    assert found[0][:, 1].tolist() == [0.0] * 4, "on the second place of the other fold nothing was clicked"
    assert found[0][3, 0] == pytest.approx(0.5), "an item that nobody saw is like any other"
    assert found[0][2, 0] > found[0][3, 0] > found[0][0, 0]
