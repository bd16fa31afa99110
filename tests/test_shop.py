"""The simulated shop: what it promises about its tables, and that its answers are true."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from embeddings.errors import InputError, NotFound
from embeddings.schema import EVENTS, ITEMS, USERS, Event, Item, User, from_table, to_table
from training.assortment import BASE_PRICE, COLOURS, DEPARTMENT_OF, DEPARTMENTS, KINDS, REFILL_DAYS, STYLES
from training.behaviour import VIEW, Sessions, _first_in_row, attention
from training.shop import Shop, blocks

END = datetime(2025, 12, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop(items=600, users=150, seed=3)


@pytest.fixture(scope="module")
def events(shop: Shop) -> list[Event]:
    return from_table(shop.events(), Event)


def test_every_row_is_valid_and_survives_the_round_trip(shop: Shop) -> None:
    for table, kind, schema in (
        (shop.events(), Event, EVENTS),
        (shop.items(), Item, ITEMS),
        (shop.users(), User, USERS),
    ):
        assert table.schema == schema
        assert to_table(from_table(table, kind), kind).equals(table)


def test_sizes_are_as_asked_and_ids_are_unique(shop: Shop) -> None:
    tables = shop.tables()
    assert (len(tables.items), len(tables.users)) == (600, 150)
    for table, name in ((tables.items, "item_id"), (tables.users, "user_id"), (tables.events, "event_id")):
        assert pc.count_distinct(table[name]).as_py() == len(table)
    assert pc.all(pc.is_in(tables.events["item_id"], tables.items["item_id"].combine_chunks())).as_py()
    assert pc.all(pc.is_in(tables.events["user_id"], tables.users["user_id"].combine_chunks())).as_py()


def test_the_same_seed_gives_the_same_shop_and_another_seed_another() -> None:
    first, second, other = (Shop(items=200, users=50, seed=seed).tables(30) for seed in (5, 5, 6))
    assert first == second
    assert first.events != other.events
    assert first.items != other.items


def test_a_larger_shop_begins_with_the_items_and_people_of_a_smaller_one() -> None:
    small, large = Shop(items=200, users=20), Shop(items=17_000, users=4_200)
    assert large.items().slice(0, 200).equals(small.items())
    assert large.users().slice(0, 20).equals(small.users())
    assert large.items().num_rows == 17_000  # crosses the border of a block


def test_an_item_reads_like_an_item(shop: Shop) -> None:
    names = {department.name for department in DEPARTMENTS}
    assert len(set(KINDS)) == len(KINDS)
    for item in from_table(shop.items(), Item):
        department, kind = item.categories
        assert department in names
        assert kind in item.title
        assert item.title.endswith(f" by {item.attributes['brand']}")
        assert str(item.attributes["material"]) in item.title
        assert str(item.attributes["style"]).capitalize() in item.description
        assert item.attributes["colour"] in COLOURS
        assert 0 < item.attributes["margin"] < 1
        assert item.attributes["consumable"] is bool(REFILL_DAYS[KINDS.index(kind)])
        assert item.price is not None
        assert round(item.price * 100) % 10 == 9
    assert pc.count_distinct(shop.items()["title"]).as_py() > 550


def test_events_are_ordered_and_lie_within_the_days_and_the_lives_of_items(shop: Shop, events: list[Event]) -> None:
    born = {item.item_id: item.created_at for item in from_table(shop.items(), Item)}
    moments = [event.timestamp for event in events]
    assert moments == sorted(moments)
    assert moments[0] >= END - timedelta(days=90)
    assert moments[-1] < END
    assert all(born[event.item_id] < event.timestamp for event in events)
    new = sum(event.timestamp - born[event.item_id] < timedelta(days=30) for event in events)
    assert 0.03 < new / len(events) < 0.35


def test_no_item_is_touched_before_it_exists_in_a_tiny_shop_of_many_tastes() -> None:
    shop = Shop(items=200, users=40, tastes=64)
    born = dict(zip(shop.items()["item_id"].to_pylist(), shop.items()["created_at"].to_pylist(), strict=True))
    assert all(born[event.item_id] < event.timestamp for event in from_table(shop.events(730), Event))


def test_types_sessions_channels_and_values(events: list[Event]) -> None:
    counts = Counter(event.event_type for event in events)
    assert counts["view"] > 4 * counts["cart"]
    assert counts["cart"] > counts["purchase"] > 200
    assert {event.channel for event in events} == {"web", "app", "email"}
    assert {event.context["device"] for event in events} == {"desktop", "mobile", "tablet"}
    assert len({event.context["country"] for event in events}) == 8
    assert all((event.value is not None) == (event.event_type == "purchase") for event in events)
    owners = defaultdict(set)
    for event in events:
        if event.session_id is not None:
            owners[event.session_id].add((event.user_id, event.channel))
    assert all(len(owner) == 1 for owner in owners.values())
    assert len(owners) < sum(counts.values()) / 2


def test_a_cart_follows_a_view_and_a_purchase_a_cart(events: list[Event]) -> None:
    seen: dict[tuple[str | None, str], list[str]] = defaultdict(list)
    for event in events:
        if event.session_id is not None:
            seen[event.session_id, event.item_id].append(event.event_type)
    # An order of the last minutes may miss its end, never its beginning.
    assert {tuple(types) for types in seen.values()} == {("view",), ("view", "cart"), ("view", "cart", "purchase")}


def test_what_is_used_up_is_bought_again_after_its_interval() -> None:
    shop = Shop(items=400, users=150)
    kinds = {item.item_id: KINDS.index(item.categories[1]) for item in from_table(shop.items(), Item)}
    bought: dict[tuple[str, str], list[Event]] = defaultdict(list)
    table = shop.events(365)
    for event in from_table(table.filter(pc.equal(table["event_type"], "purchase")), Event):
        bought[event.user_id, event.item_id].append(event)
    ratios = []
    for (_, item), orders in bought.items():
        if len(orders) > 1 and [order.session_id is None for order in orders] == [False] + [True] * (len(orders) - 1):
            days = np.diff([order.timestamp.timestamp() for order in orders]) / 86_400
            ratios += (days / REFILL_DAYS[kinds[item]]).tolist()
    assert len(ratios) > 200
    assert np.median(ratios) == pytest.approx(1.0, abs=0.03)
    assert np.std(ratios) < 0.25


def test_demand_follows_the_season() -> None:
    shop = Shop(items=600, users=400)
    garden = [item.item_id for item in from_table(shop.items(), Item) if item.categories[0] == "Garden"]
    events = shop.events(365)
    months = pc.month(events["timestamp"]).to_pylist()
    counts = Counter(zip(months, pc.is_in(events["item_id"], pa.array(garden)).to_pylist(), strict=True))
    share = {month: counts[month, True] / (counts[month, True] + counts[month, False]) for month in range(1, 13)}
    assert max(share, key=lambda month: share[month]) in (4, 5, 6)
    assert share[5] > 2 * share[11]


def test_popularity_is_skewed_and_the_first_places_get_the_clicks() -> None:
    table = Shop(items=1000, users=500).events()
    views = table.filter(pc.equal(table["event_type"], "view"))
    counts = np.sort(np.array(list(Counter(views["item_id"].to_pylist()).values())))[::-1]
    assert 0.2 < counts[: len(counts) // 20].sum() / counts.sum() < 0.5
    places = np.bincount(views["position"].to_numpy(), minlength=24)
    assert places[0] > 1.4 * places[4] > 1.4 * 1.2 * places[20]


def test_click_probability_is_the_formula(shop: Shop) -> None:
    when = datetime(2025, 5, 16, 12, tzinfo=UTC)
    items = shop.items()["item_id"].to_pylist()
    fast = shop.click_probability("u00000007", items, when, {"channel": "email", "device": "mobile", "country": "SE"})
    person, goods, tastes = shop.shopper("u00000007"), shop.assortment, shop.assortment.tastes
    lean = np.random.default_rng([3, 4]).normal(0, 0.35, (8, len(DEPARTMENTS)))[5]  # Sweden's row
    mix = person.mix_at(np.array([when.timestamp()]))[0]
    for row in range(0, 600, 29):
        kind = goods.kind[row]
        fit = 0.0
        for taste, share in enumerate(mix):
            content = tastes.kinds[taste, kind] + tastes.styles[taste, goods.style[row]]
            content += tastes.colours[taste, goods.colour[row]]
            fit += share * (0.6 * (goods.taste[row] == taste) + 0.4 * content / 3)
        department = DEPARTMENTS[DEPARTMENT_OF[kind]]
        odds = -3.6 + 5.0 * fit + 0.35 * goods.appeal[row] + lean[DEPARTMENT_OF[kind]]
        odds += department.swing * math.cos(2 * math.pi * (4.5 - (department.peak - 0.5)) / 12)  # the middle of May
        odds -= 0.5 * person.sensitivity[0] * math.log(goods.price[row] / BASE_PRICE[kind])
        odds -= 0.15 * math.log(goods.price[row] / 40)
        if when.timestamp() - goods.created[row] < 30 * 86_400:
            odds += 0.5
        assert fast[row] == pytest.approx(1 / (1 + math.exp(-odds)), rel=0.02)


def test_clicks_come_as_often_as_the_probability_says(shop: Shop) -> None:
    shown = shop.items()["item_id"].to_pylist()[:40]
    expected = shop.click_probability("u00000002", shown, END) * attention(np.arange(40))
    rounds = 20_000
    one = shop._session("u00000002", END, {})
    same = {name: np.repeat(getattr(one, name), rounds) for name in ("when", "channel", "device", "country")}
    many = Sessions(people=one.people.take(np.zeros(rounds, dtype=np.int64)), **same)
    acts = shop.behaviour.react(np.random.default_rng(0), many, np.tile(np.arange(40), (rounds, 1)))
    observed = np.bincount(acts.item[acts.type == VIEW], minlength=40) / rounds
    error = np.sqrt(expected * (1 - expected) / rounds)
    assert np.abs((observed - expected) / error).max() < 4.5
    visits = [shop.visit("u00000002", shown, END + timedelta(seconds=second)) for second in range(200)]
    views = sum(event.event_type == "view" for visit in visits for event in visit)
    assert views / 200 == pytest.approx(expected.sum(), abs=4.5 * math.sqrt(float((error**2).sum()) * rounds / 200))


def test_probability_depends_on_person_moment_and_context(shop: Shop) -> None:
    items = shop.items()["item_id"].to_pylist()
    base = shop.click_probability("u00000001", items, END, {"channel": "web", "device": "desktop", "country": "DE"})
    assert base.shape == (600,)
    assert np.all((base > 0) & (base < 1))
    for change in (
        shop.click_probability("u00000005", items, END),
        shop.click_probability("u00000001", items, datetime(2025, 6, 1, tzinfo=UTC)),
        shop.click_probability("u00000001", items, END, {"channel": "web", "device": "mobile", "country": "DE"}),
        shop.click_probability("u00000001", items, END, {"channel": "web", "device": "desktop", "country": "JP"}),
        shop.click_probability("u00000001", items, END, {"channel": "email", "device": "desktop", "country": "DE"}),
    ):
        assert not np.allclose(base, change)
    order = np.random.default_rng(0).permutation(600)
    again = shop.click_probability(
        "u00000001",
        [items[at] for at in order],
        END,
        {"channel": "web", "device": "desktop", "country": "DE", "referrer": "news"},
    )
    assert np.allclose(again, base[order])
    assert shop.click_probability("u00000001", [], END).shape == (0,)


def test_a_naive_moment_is_utc(shop: Shop) -> None:
    naive = shop.click_probability("u00000001", ["i00000001"], END.replace(tzinfo=None))
    assert naive == shop.click_probability("u00000001", ["i00000001"], END)


def test_tastes_drift_for_some(shop: Shop) -> None:
    people = [shop.shopper(f"u{row:08d}") for row in range(150)]
    start, end = np.array([(END - timedelta(days=300)).timestamp()]), np.array([END.timestamp()])
    moved = [not np.allclose(person.mix_at(start), person.mix_at(end)) for person in people]
    assert 0.2 < np.mean(moved) < 0.5
    for person in people:
        assert person.mix_at(end).sum() == pytest.approx(1.0, abs=1e-5)
        assert np.count_nonzero(person.mix) <= 3


def test_behaviour_shows_the_taste_but_not_perfectly(shop: Shop, events: list[Event]) -> None:
    main = {f"u{row:08d}": shop.shopper(f"u{row:08d}").mix.argmax() for row in range(150)}
    tastes = shop.taste_of([event.item_id for event in events])
    share = np.mean([taste == main[event.user_id] for taste, event in zip(tastes, events, strict=True)])
    assert 0.45 < share < 0.85


def test_content_shows_the_taste_but_not_perfectly() -> None:
    """Naive Bayes on kind, style, colour and brand, learned on one half of the items and judged on the other."""
    shop = Shop(items=4000)
    items = from_table(shop.items(), Item)
    tastes = shop.taste_of([item.item_id for item in items])
    words = [
        [item.categories[1], *(str(item.attributes[name]) for name in ("style", "colour", "brand"))] for item in items
    ]
    counts: Counter[tuple[int, str]] = Counter((tastes[row], word) for row in range(2000) for word in words[row])
    sizes = np.bincount(tastes[:2000], minlength=12)
    right = 0
    for row in range(2000, 4000):
        scores = [sum(math.log((counts[t, word] + 0.5) / (sizes[t] + 1)) for word in words[row]) for t in range(12)]
        right += int(np.argmax(scores)) == tastes[row]
    assert 0.75 < right / 2000 < 0.98


def test_a_newcomer_has_the_taste_asked_for(shop: Shop) -> None:
    items = shop.items()["item_id"].to_pylist()
    tastes = shop.taste_of(items)
    assert set(tastes.tolist()) == set(range(12))
    for taste in (0, 11):
        person = shop.newcomer("somebody new", taste=taste)
        chances = shop.click_probability(person, items, END)
        assert chances[tastes == taste].mean() > 5 * chances[tastes != taste].mean()
        assert {event.user_id for event in shop.visit(person, items[:100], END)} == {"somebody new"}
    with pytest.raises(InputError, match="taste must lie between 0 and 11, not 12"):
        shop.newcomer("somebody new", taste=12)


def test_a_visit_is_a_reaction_to_what_was_shown(shop: Shop) -> None:
    shown = shop.items()["item_id"].to_pylist()[100:150]
    visit = shop.visit("u00000004", shown, END, {"channel": "app"}, recommendation_id="r-1")
    assert visit == shop.visit("u00000004", shown, END, {"channel": "app"}, recommendation_id="r-1")
    assert len(visit) > 2
    assert [event.timestamp for event in visit] == sorted(event.timestamp for event in visit)
    for event in visit:
        assert event.position is not None
        assert shown[event.position] == event.item_id
        assert (event.channel, event.recommendation_id, event.event_id) == ("app", "r-1", None)
        assert event.timestamp >= END
    assert len({event.session_id for event in visit}) == 1
    assert shop.visit("u00000004", [], END) == []


def test_an_item_shown_twice_counts_once(shop: Shop) -> None:
    best = shop.items()["item_id"].to_pylist()
    best = [best[int(shop.click_probability("u00000004", best, END).argmax())]]
    for second in range(50):
        visit = shop.visit("u00000004", best * 30, END + timedelta(seconds=second))
        assert all(event.position == 0 for event in visit)
        assert len([event for event in visit if event.event_type == "view"]) <= 1


def test_first_in_row_against_a_slow_reference() -> None:
    rows = np.random.default_rng(0).integers(0, 6, (50, 9))
    slow = [[row[:place].tolist().count(value) == 0 for place, value in enumerate(row)] for row in rows]
    assert _first_in_row(rows).tolist() == slow
    assert _first_in_row(rows[:0]).shape == (0, 9)


def test_strangers_and_foreign_things_are_named(shop: Shop) -> None:
    for foreign in ("i00000600", "i1", "x00000001", "", "i00000001\n", "i0000000１", "i-0000001"):
        with pytest.raises(NotFound, match="is not of this shop; known: i00000000 to i00000599"):
            shop.taste_of(["i00000001", foreign])
    with pytest.raises(NotFound, match="user 'u00000150' is not of this shop"):
        shop.visit("u00000150", ["i00000001"], END)
    with pytest.raises(InputError, match=r"unknown channel 'fax'.*known: app, email, web") as caught:
        shop.click_probability("u00000001", ["i00000001"], END, {"channel": "fax"})
    assert caught.value.field == "context.channel"


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"items": 199}, "items must lie between 200 and 10000000, not 199"),
        ({"users": 0}, "users must lie between 1"),
        ({"tastes": 1}, "tastes must lie between 2 and 64"),
        ({"seed": -1}, "seed must lie"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Shop(**sizes)  # type: ignore[arg-type]


def test_days_out_of_range_are_refused_before_any_work(shop: Shop) -> None:
    for days in (0, 731):
        with pytest.raises(InputError, match="days must lie between 1 and 730"):
            shop.event_tables(days)


def test_written_as_the_service_exports_it(tmp_path: Path) -> None:
    shop = Shop(items=200, users=4_100, seed=1)  # two blocks of people
    folder = shop.write(tmp_path / "a shop", days=3)
    assert pq.read_table(folder / "items.parquet").equals(shop.items())
    assert pq.read_table(folder / "users.parquet").equals(shop.users())
    written = ds.dataset(folder / "events", partitioning="hive").to_table()
    assert all(path.name.startswith("date=2025-11-") for path in (folder / "events").iterdir())
    dates = pc.strftime(written["timestamp"], "%Y-%m-%d")
    assert pc.all(pc.equal(dates, written["date"])).as_py()
    by_id = written.select(EVENTS.names).sort_by("event_id")
    assert by_id.equals(shop.events(3).sort_by("event_id"))
    with pytest.raises(InputError, match="exists already"):
        shop.write(folder)


def test_in_the_block_world_everybody_stays_in_the_group() -> None:
    world = blocks(users=30, items=24, groups=3, seed=2, events_per_user=5)
    touched = defaultdict(list)
    for event in from_table(world.events, Event):
        assert int(event.user_id[1:]) % 3 == int(event.item_id[1:]) % 3
        touched[event.user_id].append(event.item_id)
    assert len(touched) == 30
    assert all(len(set(mine)) == len(mine) == 5 for mine in touched.values())
    assert [item.categories for item in from_table(world.items, Item)] == [[f"group-{n % 3}"] for n in range(24)]
    assert json.loads(world.users["attributes"][4].as_py()) == {"group": "group-1"}
    assert world == blocks(users=30, items=24, groups=3, seed=2, events_per_user=5)
    assert world.events != blocks(users=30, items=24, groups=3, seed=4, events_per_user=5).events


def test_the_block_world_leaves_something_to_recommend_and_refuses_what_cannot_be() -> None:
    world = blocks(users=8, items=16, groups=4)
    assert set(Counter(world.events["user_id"].to_pylist()).values()) == {2}
    for wrong in ({"users": 3, "groups": 4}, {"items": 15, "groups": 4}):
        with pytest.raises(InputError):
            blocks(**wrong)


def test_styles_have_a_sentence_each() -> None:
    assert all(line.endswith(".") and line[0].islower() for line in STYLES.values())
