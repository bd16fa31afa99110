"""The towers: prefixes, padding, unknown items, and that serving computes what training computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from embeddings.bundle import build_towers
from embeddings.bundle_reader import open_bundle
from embeddings.features import FeatureSpec, gap_buckets
from embeddings.schema import Item
from embeddings.two_tower import TowerConfig, TwoTower, drop, low_pass
from tests.conftest import write_world
from tests.histories import dataset
from training.dataset import leave_last_out
from training.queries import encode_queries, target_context

ITEMS = [
    Item(item_id=f"i{at}", title=f"Thing {at % 3}", categories=[f"c{at % 2}"], price=float(at)) for at in range(10)
]
CONFIG = TowerConfig(dim=8, layers=2, heads=2, max_history=6, dropout=0.5, id_dropout=0.5)


def towers(seed: int = 0, **changes: object) -> tuple[FeatureSpec, TwoTower]:
    spec = FeatureSpec.fit(ITEMS, text_buckets=16, context_buckets=32)
    torch.manual_seed(seed)
    built = build_towers(TowerConfig.model_validate(CONFIG.model_dump() | changes), spec, items=len(ITEMS))
    with torch.no_grad():  # weights far from their careful start, so that every part shows
        for weight in built.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
        for name, table in built.named_parameters():  # row 0 is nobody, as training leaves it
            if name.endswith(("ids.weight", "context.weight")):
                table[0] = 0.0
    return spec, built.eval()


def random_history(length: int, *, people: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(people, length, 8), torch.randint(1, 4, (people, length)), torch.randint(0, 9, (people, length))


def test_a_prefix_is_not_changed_by_what_follows() -> None:
    _, built = towers()
    history = random_history(6)
    states = built.users(*history)
    assert states.shape == (1, 7, 8)
    for length in range(7):
        prefix = built.users(*(part[:, :length] for part in history))
        torch.testing.assert_close(prefix[:, -1], states[:, length])


def test_every_part_of_an_event_counts() -> None:
    _, built = towers()
    vectors, types, gaps = random_history(4)
    state = built.users(vectors, types, gaps)[:, -1]
    for other in ((vectors.roll(1, -1), types, gaps), (vectors, types % 3 + 1, gaps), (vectors, types, gaps + 1)):
        assert not torch.allclose(built.users(*other)[:, -1], state)
    swapped = built.users(vectors.flip(1), types.flip(1), gaps.flip(1))[:, -1]
    assert not torch.allclose(swapped, state)


def test_recency_counts_how_far_back_an_event_lies() -> None:
    _, built = towers()
    history = random_history(4)
    before = built.users(*history)[0]
    with torch.no_grad():
        for block in built.users.blocks:
            block.recency[:, 3] += 1.0  # type: ignore[index,operator]
    after = built.users(*history)[0]
    torch.testing.assert_close(after[:3], before[:3])  # nothing lies three places back yet
    assert not torch.allclose(after[3], before[3])
    assert not torch.allclose(after[4], before[4])


@pytest.mark.parametrize("encoder", ["attention", "filtered", "pooled"])
def test_padding_changes_nothing(encoder: str) -> None:
    _, built = towers(encoder=encoder)
    history = random_history(3)
    padded = [torch.cat([part, torch.ones_like(part)], dim=1) for part in history]
    lengths = torch.tensor([3])
    torch.testing.assert_close(built.users(*padded, lengths)[:, 3], built.users(*history)[:, -1])


def test_the_filter_passes_the_lowest_frequencies_and_no_others() -> None:
    signal = torch.randn(20, 3)
    spectrum = torch.fft.rfft(signal, dim=0)
    spectrum[4:] = 0
    torch.testing.assert_close(low_pass(20, 4) @ signal, torch.fft.irfft(spectrum, n=20, dim=0))


def test_a_filtered_history_counts_its_places_from_the_end() -> None:
    _, built = towers(encoder="filtered")
    history = random_history(5)
    with torch.no_grad():
        before = built.users(*history)[:, -1]
        built.users.places.weight[6:] += 1.0
        torch.testing.assert_close(built.users(*history)[:, -1], before)
        built.users.places.weight[0] += torch.randn(8)
        assert not torch.allclose(built.users(*history)[:, -1], before)


def test_a_context_of_nothing_is_no_context_and_padding_tokens_do_not_dilute() -> None:
    _, built = towers()
    states = torch.randn(2, 8)
    torch.testing.assert_close(built.users.query(states, None), states)
    one = built.users.query(states, torch.tensor([[3], [4]]))
    torch.testing.assert_close(built.users.query(states, torch.tensor([[3, 0, 0], [4, 0, 0]])), one)
    assert not torch.allclose(built.users.query(states, torch.tensor([[5], [5]])), one)


def test_an_untrained_context_does_not_disturb() -> None:
    spec = FeatureSpec.fit(ITEMS, context_buckets=32)
    users = build_towers(CONFIG, spec, items=10).users
    states = torch.randn(2, 8)
    torch.testing.assert_close(users.query(states, torch.tensor([[3], [4]])), states)


def test_items_one_by_one_in_chunks_and_together() -> None:
    spec, built = towers()
    features = spec.item_features(ITEMS, np.arange(10))
    together = built.items.encode(features)
    assert together.dtype == np.float32
    np.testing.assert_allclose(built.items.encode(features, chunk=3), together, atol=1e-6)
    single = [built.items.encode(spec.item_features([item], np.array([at])))[0] for at, item in enumerate(ITEMS)]
    np.testing.assert_allclose(np.stack(single), together, atol=1e-6)
    assert built.items.encode(spec.item_features([])).shape == (0, 8)


def test_an_unknown_item_stands_on_its_content() -> None:
    spec, built = towers()
    twins = [ITEMS[2], ITEMS[2].model_copy(update={"item_id": "new"})]
    known, new = built.items.encode(spec.item_features(twins, np.array([2, -1])))
    assert built.items.ids is not None
    np.testing.assert_allclose(known - new, built.items.ids.weight[3].detach().numpy(), atol=1e-6)


def test_id_dropout_works_while_training_only_and_spares_the_unknown_row() -> None:
    spec, built = towers()
    features = spec.item_features(ITEMS, np.arange(10))
    content = built.items.encode(spec.item_features(ITEMS))
    full = built.items.encode(features)
    built.train()
    torch.manual_seed(1)
    dropped = built.items(features).detach().numpy()
    is_content = np.isclose(dropped, content, atol=1e-6).all(1)
    assert 0 < is_content.sum() < 10
    np.testing.assert_allclose(dropped[~is_content], full[~is_content], atol=1e-6)
    optimizer = torch.optim.AdamW(built.parameters(), weight_decay=0.1)
    built.items(spec.item_features(ITEMS)).sum().backward()
    optimizer.step()
    assert built.items.ids is not None
    assert not built.items.ids.weight[0].any()


def test_encode_leaves_the_mode_alone() -> None:
    spec, built = towers()
    built.train()
    built.items.encode(spec.item_features(ITEMS))
    assert built.items.training


def test_cosine_towers_have_unit_vectors() -> None:
    spec, built = towers(metric="cosine")
    np.testing.assert_allclose(np.linalg.norm(built.items.encode(spec.item_features(ITEMS)), axis=1), 1.0, rtol=1e-5)
    queries = built.users.query(torch.randn(3, 8), torch.tensor([[1], [2], [3]]))
    torch.testing.assert_close(queries.norm(dim=1), torch.ones(3))


def test_without_id_embedding_only_content_tells_items_apart() -> None:
    spec, built = towers(id_embedding=False)
    twins = [ITEMS[2], ITEMS[2].model_copy(update={"item_id": "new"})]
    known, new = built.items.encode(spec.item_features(twins, np.array([2, -1])))
    np.testing.assert_array_equal(known, new)


def test_first_logits_are_near_zero() -> None:
    spec = FeatureSpec.fit(ITEMS, text_buckets=16)
    torch.manual_seed(0)
    built = build_towers(TowerConfig(dim=64), spec, items=10).eval()
    matrix = built.items.encode(spec.item_features(ITEMS, np.arange(10)))
    states = built.users(torch.from_numpy(matrix)[None], torch.ones(1, 10).long(), torch.zeros(1, 10).long())
    assert (states @ torch.from_numpy(matrix).T).std() < 1.0


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="dim 10 is not divisible by heads 4"):
        TowerConfig(dim=10, heads=4)


def test_members_need_a_part_each_and_scores_that_add_up() -> None:
    with pytest.raises(ValidationError, match="dim 12 is not divisible by 2 members of 4 heads"):
        TowerConfig(dim=12, heads=4, members=2)
    with pytest.raises(ValidationError, match="members whose scores add up need metric = 'dot'"):
        TowerConfig(members=2, metric="cosine")


def test_a_member_reads_and_answers_in_its_own_part() -> None:
    _, built = towers(members=2, heads=1)
    vectors, types, gaps = random_history(4)
    other = torch.cat([vectors[..., :4], torch.randn(1, 4, 4)], dim=-1)
    before, after = (built.users(part, types, gaps)[:, -1] for part in (vectors, other))
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.isclose(after[:, 4:], before[:, 4:]).any()


@pytest.mark.parametrize("members", [1, 2])
def test_service_and_training_encode_a_person_alike(tmp_path: Path, members: int) -> None:
    spec, built = towers(members=members)
    served = replace(open_bundle(write_world(tmp_path)), towers=built, spec=spec)
    histories = {
        f"u{length}": " ".join(f"i{(3 * at + length) % 10}" for at in range(length)) for length in range(3, 10)
    }
    data = dataset(
        histories,
        items=ITEMS,
        users={"u4": {"plan": "gold"}},
        contexts={"u5": {"channel": "email"}},
        text_buckets=16,
        context_buckets=32,
    )
    targets = leave_last_out(data).test
    matrix = built.items.encode(spec.item_features(ITEMS, np.arange(10)))
    together = encode_queries(data, built, matrix, targets, batch=3)
    tokens = target_context(data, targets)
    for query in range(len(targets)):
        events = slice(data.offsets[targets.users[query]], targets.ends[query])
        context = [token for token in tokens[query].tolist() if token]
        assert gap_buckets(data.times[events])[0] == 0
        alone = served.encode_user(matrix[data.rows[events]], data.types[events], data.times[events], context)
        np.testing.assert_allclose(alone, together[query], atol=1e-5)


def test_a_pooled_history_is_a_set_of_items_that_weigh_differently() -> None:
    _, built = towers(encoder="pooled")
    vectors, types, gaps = random_history(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        states = built.users(vectors, types, gaps)
        assert torch.allclose(states[:, -1], built.users(vectors[:, order], types, gaps)[:, -1], atol=1e-6)
        plain = (vectors.sum(1) + built.users.start) / 6
        assert not torch.allclose(states[:, -1], plain, atol=1e-3), "every item weighs alike"
        assert torch.equal(states[:, 0], built.users.start.expand(1, -1)), "an empty history is the start"


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_dropout_keeps_the_mean_and_drops_the_share(share: float) -> None:
    torch.manual_seed(0)
    found = drop(torch.ones(200, 999), share)
    assert abs(float((found == 0).float().mean()) - share) < 0.005
    assert abs(float(found.mean()) - 1.0) < 0.01
    assert len(found.unique()) == 2
