"""The assortment of the simulated shop: departments, kinds of goods, hidden tastes, and the items themselves.

An item is drawn *from* a taste: the taste decides, with some noise, its kind, style, colour, brand and price. So a taste
can be guessed from content, never read from it. Every block of items has a random generator of its own: a larger shop
begins with the items of a smaller one, and ten million items need no more than their hidden columns in memory.

Shapes: N items, T tastes, K kinds, S styles, C colours, B brands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.arrays import Floats, Ints
from embeddings.errors import NotFound
from embeddings.schema import ITEMS

DAY = 86_400
BLOCK = 16_384
"""Items drawn by one generator; part of what a seed means, so never tuned."""

Bytes = npt.NDArray[np.uint8]


class Department(NamedTuple):
    """One department: its goods as `noun:base price[:days until it is bought again]`, and when demand peaks."""

    name: str
    materials: str
    goods: str
    peak: float  # month of the highest demand, 1..12
    swing: float  # how far demand follows the season, in log-odds
    coloured: bool = True


DEPARTMENTS = (
    Department(
        "Furniture",
        "Walnut,Oak,Ash,Rattan,Steel,Linen,Leather,Velvet",
        "Reading Chair:240,Side Table:110,Bookshelf:180,Bed Frame:420,Desk:310,Bench:150,Sofa:780,Stool:70,Sideboard:450,"
        "Coat Rack:60,Dining Table:520,Armchair:330",
        10,
        0.2,
    ),
    Department(
        "Kitchen",
        "Cast Iron,Copper,Stoneware,Bamboo,Glass,Enamel,Porcelain,Stainless",
        "Saucepan:55,Chopping Board:30,Teapot:38,Knife Set:90,Mixing Bowl:24,Serving Dish:35,Coffee Grinder:75,Kettle:60,"
        "Pepper Mill:28,Bread Tin:20,Water Filter:18:60,Baking Paper:6:35",
        11,
        0.3,
    ),
    Department(
        "Garden",
        "Terracotta,Cedar,Zinc,Galvanised,Teak,Slate,Woven,Recycled",
        "Planter:32,Watering Can:26,Bird Feeder:22,Hand Trowel:15,Hammock:85,Fire Bowl:120,Garden Lantern:29,Herb Box:35,"
        "Parasol:95,Potting Bench:140,Plant Food:9:45,Bird Seed:11:30",
        5,
        1.0,
    ),
    Department(
        "Outdoors",
        "Ripstop,Merino,Waxed,Insulated,Carbon,Titanium,Canvas,Featherlight",
        "Day Pack:80,Sleeping Bag:130,Camp Stove:60,Trail Jacket:150,Trekking Poles:70,Head Torch:35,Two Person Tent:260,"
        "Water Bottle:25,Camp Chair:45,Dry Bag:20,Energy Bars:18:25,Fuel Canister:8:40",
        7,
        0.8,
    ),
    Department(
        "Fashion",
        "Cotton,Wool,Silk,Denim,Cashmere,Corduroy,Suede,Jersey",
        "Overshirt:75,Scarf:40,Trainers:95,Tote Bag:50,Raincoat:120,Pullover:85,Belt:35,Wide Trousers:80,Beanie:22,"
        "Summer Dress:90,Ankle Boots:140,Socks:12:90",
        9,
        0.3,
    ),
    Department(
        "Beauty",
        "Rosewater,Cedarwood,Oat,Lavender,Citrus,Aloe,Sea Salt,Almond",
        "Hand Cream:14:50,Shampoo Bar:11:40,Face Oil:32:70,Bath Salts:16:60,Body Scrub:20:60,Lip Balm:6:45,Soap:8:30,"
        "Sun Lotion:19:60,Beard Oil:22:80,Perfume:68,Hair Brush:24,Diffuser:45",
        12,
        0.3,
        coloured=False,
    ),
    Department(
        "Grocery",
        "Ethiopian,Sicilian,Smoked,Organic,Roasted,Wild,Salted,Stoneground",
        "Espresso Beans:14:21,Olive Oil:16:45,Loose Leaf Tea:12:35,Granola:8:18,Dark Chocolate:5:14,Honey:9:50,Pasta:4:21,"
        "Almond Butter:10:30,Chilli Sauce:7:60,Crackers:5:20,Spice Blend:6:70,Apple Juice:4:12",
        12,
        0.5,
        coloured=False,
    ),
    Department(
        "Audio",
        "Aluminium,Birch,Matte,Brushed,Fabric,Ceramic,Cork,Graphite",
        "Headphones:160,Bookshelf Speaker:240,Turntable:320,Radio:90,Sound Bar:280,Earbuds:110,Record Stand:60,"
        "Microphone:130,Amplifier:350,Headphone Stand:30,Portable Speaker:85,Stylus:45",
        12,
        0.6,
    ),
)

STYLES = {
    "minimal": "clean lines and nothing you do not need.",
    "rustic": "a little rough at the edges, made to age well.",
    "industrial": "honest joints and a workshop look.",
    "vintage": "a shape you remember from long ago.",
    "bohemian": "layered, free and full of pattern.",
    "coastal": "light, airy and washed by the sea.",
    "classic": "right thirty years ago and in thirty more.",
    "playful": "round, bright and never quite serious.",
    "sporty": "light in the hand and quick to move.",
    "luxurious": "soft to the touch and finished by hand.",
    "botanical": "leaves and stems wherever you look.",
    "technical": "tested, measured and built to last.",
}
_COLOURS = "sage,charcoal,sand,terracotta,navy,ivory,mustard,forest,blush,slate,plum,rust,sky,cream,black,coral"
_BRANDS = (
    "Norden,Halvard,Mirelle,Castano,Oakhurst,Tavola,Lumen & Sons,Brightwater,Fjelltop,Kestrelly,Amberley,Solvane,Petrichor,"
    "Verdanta,Hearthley,Quillon,Marisol Bay,Tindra,Copperfold,Wrenfield,Altamira Works,Dovetaile,Junipera,Harrowgate Mill,"
    "Isolde,Pinecroft,Varesina,Skarn,Bellwether Row,Ottoline,Ridgeway Nine,Calder Vale,Sorrelle,Thistledon,Umbra Lane,"
    "Zephyrine,Elmstead,Lorient,Maplewick,Nightjarre,Orchardly,Ravensholt,Stillwater Co,Tamarisk,Ulvida,Whitlocke,"
    "Yarrowby,Ashgrove"
)
COLOURS = _COLOURS.split(",")
BRANDS = _BRANDS.split(",")
_GOODS = [
    (dep, *good.split(":"), *([] if good.count(":") > 1 else ["0"]))
    for dep, it in enumerate(DEPARTMENTS)
    for good in it.goods.split(",")
]
KINDS = [str(good[1]) for good in _GOODS]
DEPARTMENT_OF = np.array([good[0] for good in _GOODS], dtype=np.uint8)  # [K]
BASE_PRICE = np.array([good[2] for good in _GOODS], dtype=np.float32)  # [K]
REFILL_DAYS = np.array([good[3] for good in _GOODS], dtype=np.float32)  # [K]; 0 where it is bought once
MATERIALS = 8
BRAND_LEVEL = np.linspace(-0.27, 0.33, len(BRANDS), dtype=np.float32)  # [B], log price


@dataclass(frozen=True, kw_only=True)
class Tastes:
    """What the hidden tastes like: masks over kinds, styles, colours and brands, and how dear they buy (log price)."""

    kinds: Floats  # [T, K]
    styles: Floats  # [T, S]
    colours: Floats  # [T, C]
    brands: Floats  # [T, B]
    level: Floats  # [T]

    def __len__(self) -> int:
        return len(self.level)

    @classmethod
    def draw(cls, tastes: int, *, seed: int) -> Tastes:
        """Draw tastes: five goods of a home department, three of another, two styles, four colours, six brands."""
        rng = np.random.default_rng([seed, 1])
        homes = rng.permutation(len(DEPARTMENTS))
        kinds = np.zeros((tastes, len(KINDS)), dtype=np.float32)
        for taste in range(tastes):
            home = homes[taste % len(homes)]
            others = np.flatnonzero(np.arange(len(DEPARTMENTS)) != home)
            kinds[taste, rng.choice(np.flatnonzero(home == DEPARTMENT_OF), 5, replace=False)] = 1
            kinds[taste, rng.choice(np.flatnonzero(rng.choice(others) == DEPARTMENT_OF), 3, replace=False)] = 1
        return cls(
            kinds=kinds,
            styles=_spread(rng, tastes, len(STYLES), 2),
            colours=_spread(rng, tastes, len(COLOURS), 4),
            brands=_spread(rng, tastes, len(BRANDS), 6),
            level=rng.permutation(np.linspace(-0.4, 0.4, tastes)).astype(np.float32),
        )


def _spread(rng: np.random.Generator, tastes: int, size: int, each: int) -> Floats:
    """Mark `each` of `size` names a taste, dealt like cards so that no name serves many more tastes than another."""
    mask = np.zeros((tastes, size), dtype=np.float32)
    deck: list[int] = []
    for taste in range(tastes):
        while mask[taste].sum() < each:
            if not deck:
                deck = rng.permutation(size).tolist()
            mask[taste, deck.pop()] = 1
    return mask


@dataclass(frozen=True, kw_only=True)
class Assortment:
    """The hidden columns of all items, one row an item: [N]. `appeal` is a standard normal, `created` is in seconds."""

    tastes: Tastes
    taste: Bytes
    kind: Bytes
    style: Bytes
    colour: Bytes
    brand: Bytes
    material: Bytes
    margin: Bytes  # percent
    price: Floats
    appeal: Floats
    created: Ints
    available: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.taste)

    @classmethod
    def draw(cls, items: int, *, tastes: Tastes, seed: int, end: int) -> Assortment:
        """Draw `items` items; `end` is the moment, in seconds since 1970, after which none was created."""
        drawn = [_block(block, tastes=tastes, seed=seed, end=end) for block in range(-(-items // BLOCK))]
        columns = {name: np.concatenate([part[name] for part in drawn])[:items] for name in drawn[0]}
        return cls(tastes=tastes, **columns)

    def ids(self, rows: Ints) -> Any:
        """Ids of items: `i` and the row in eight digits, as an Arrow array of strings."""
        return join("i", pc.utf8_lpad(pa.array(rows).cast(pa.string()), 8, "0"))

    def tables(self, *, rows: int = 65_536) -> Iterator[pa.Table]:
        """Yield the catalogue in tables of the schema ITEMS, at most `rows` rows each."""
        for start in range(0, len(self), rows):
            yield self.table(np.arange(start, min(start + rows, len(self)), dtype=np.int64))

    def table(self, rows: Ints) -> pa.Table:
        """Rows of the catalogue as a table of the schema ITEMS."""
        kind, dep = self.kind[rows], DEPARTMENT_OF[self.kind[rows]]
        names = [dep_.name for dep_ in DEPARTMENTS]
        materials = [name for dep_ in DEPARTMENTS for name in dep_.materials.split(",")]
        material = _words(materials, dep.astype(np.int64) * MATERIALS + self.material[rows])
        noun, brand = _words(KINDS, kind), _words(BRANDS, self.brand[rows])
        colour, style = _words(COLOURS, self.colour[rows]), _words(list(STYLES), self.style[rows])
        shown = pa.array(np.array([dep_.coloured for dep_ in DEPARTMENTS])[dep])
        in_colour = pc.if_else(shown, join(" in ", pc.utf8_capitalize(colour)), "")
        pairs = pa.ListArray.from_arrays(
            pa.array(np.arange(0, 2 * len(rows) + 1, 2), pa.int32()),
            _words(names + KINDS, np.stack([dep.astype(np.int64), kind.astype(np.int64) + len(names)], axis=1).ravel()),
        )
        line = _words(list(STYLES.values()), self.style[rows])
        columns = {
            "item_id": self.ids(rows),
            "title": join(material, " ", noun, in_colour, " by ", brand),
            "description": join(
                pc.utf8_capitalize(noun),
                pc.utf8_lower(in_colour),
                ", ",
                material,
                ". ",
                pc.utf8_capitalize(style),
                ": ",
                line,
            ),
            "categories": pairs,
            "attributes": self._attributes(rows, brand=brand, colour=colour, style=style, material=material),
            "price": pa.array(np.round(self.price[rows].astype(np.float64), 2)),
            "created_at": pa.array(self.created[rows] * 1_000_000, ITEMS.field("created_at").type),
            "available": pa.array(self.available[rows]),
        }
        return pa.table(columns, schema=ITEMS)

    def _attributes(self, rows: Ints, **words: Any) -> Any:
        refill = _words(["false", "true"], (REFILL_DAYS[self.kind[rows]] > 0).astype(np.int64))
        margin = _words([json.dumps(percent / 100) for percent in range(100)], self.margin[rows])
        pieces: list[Any] = ["{"]
        for name, column in sorted({**words, "consumable": refill, "margin": margin}.items()):
            quote = '"' if name in words else ""
            pieces += [f'"{name}": {quote}' if len(pieces) == 1 else f', "{name}": {quote}', column, quote]
        return join(*pieces, "}")


def item_rows(ids: Sequence[str], *, items: int) -> Ints:
    """Rows of item ids; raises `NotFound` for an id that is not of this shop."""
    return rows_of(ids, letter="i", count=items, kind="item")


def rows_of(ids: Sequence[str], *, letter: str, count: int, kind: str) -> Ints:
    """Rows of ids made of a letter and eight digits; raises `NotFound` for any other, and for a row past `count`."""
    column = pa.array(ids, pa.string())
    fits = pc.fill_null(pc.match_substring_regex(column, f"^{letter}[0-9]{{8}}$"), False).to_numpy(zero_copy_only=False)
    digits = pc.utf8_slice_codeunits(column.filter(pa.array(fits)), 1).cast(pa.int64())
    rows = np.full(len(ids), -1, dtype=np.int64)
    rows[fits] = digits.to_numpy()
    bad = np.flatnonzero((rows < 0) | (rows >= count))
    if len(bad):
        last = f"{letter}{count - 1:08d}"
        raise NotFound(
            f"{kind} '{ids[bad[0]]}' is not of this shop; known: {letter}00000000 to {last}", field=f"{kind}_id"
        )
    return rows


def _block(block: int, *, tastes: Tastes, seed: int, end: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng([seed, 2, block])
    taste = rng.integers(len(tastes), size=BLOCK)
    kind = _pick(rng, tastes.kinds, taste, 0.85)
    brand = _pick(rng, tastes.brands, taste, 0.6)
    dear = BRAND_LEVEL[brand] + tastes.level[taste] + rng.normal(0, 0.2, BLOCK)
    price = BASE_PRICE[kind] * np.exp(dear)
    new = rng.random(BLOCK) < 0.15
    age = np.where(new, rng.uniform(0, 90, BLOCK), rng.uniform(90, 1100, BLOCK))
    return {
        "taste": taste.astype(np.uint8),
        "kind": kind,
        "style": _pick(rng, tastes.styles, taste, 0.75),
        "colour": _pick(rng, tastes.colours, taste, 0.65),
        "brand": brand,
        "material": rng.integers(MATERIALS, size=BLOCK, dtype=np.uint8),
        "margin": rng.integers(10, 61, size=BLOCK, dtype=np.uint8),
        # Prices end as prices do: in .99, or in .x9 below ten.
        "price": np.where(price < 10, np.ceil(price * 10) / 10, np.ceil(price)).astype(np.float32) - np.float32(0.01),
        "appeal": rng.standard_normal(BLOCK).astype(np.float32),
        "created": (end - age * DAY).astype(np.int64),
        "available": rng.random(BLOCK) < 0.97,
    }


def _pick(rng: np.random.Generator, masks: Floats, taste: Ints, faithful: float) -> Bytes:
    """Draw a name each: with probability `faithful` one that the taste likes, else any. [N]."""
    sums = np.cumsum(masks, axis=1)
    wanted = rng.random(len(taste)) * sums[taste, -1]
    liked = np.empty(len(taste), dtype=np.uint8)
    for row in range(len(masks)):
        mine = taste == row
        liked[mine] = np.searchsorted(sums[row], wanted[mine], side="right")
    anything = rng.integers(masks.shape[1], size=len(taste), dtype=np.uint8)
    return np.where(rng.random(len(taste)) < faithful, liked, anything)


def _words(names: Sequence[str], rows: npt.NDArray[Any]) -> Any:
    return pa.array(names, pa.string()).take(pa.array(rows.astype(np.int32)))


def join(*pieces: Any) -> Any:
    """Join Arrow arrays of strings and plain strings, element by element."""
    return pc.binary_join_element_wise(*pieces, "")
