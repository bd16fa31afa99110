"""The people of the simulated shop: hidden tastes that drift, habits, and the little that the shop is told about them.

A person has one main taste and two lesser ones; one in three turns to other tastes at some moment of the last half year.
People come in blocks, each with a random generator of its own: a larger shop begins with the people of a smaller one.

Shapes: U people, T tastes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.arrays import Floats, Ints
from embeddings.schema import USERS
from training.assortment import DAY, rows_of

BLOCK = 4096
"""People drawn by one generator; part of what a seed means, so never tuned."""

CHANNELS = ("web", "app", "email")
DEVICES = ("desktop", "mobile", "tablet")
COUNTRIES = ("DE", "FR", "GB", "US", "ES", "SE", "PL", "JP")
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
TURN_S = 45 * DAY
"""How long it takes to turn from one mix of tastes to the next."""

_COUNTRY_SHARES = (0.24, 0.14, 0.16, 0.2, 0.09, 0.06, 0.07, 0.04)
_CHANNEL_SHARES = (0.5, 0.38, 0.12)
_DEVICE_SHARES = (0.38, 0.54, 0.08)


@dataclass(frozen=True, kw_only=True)
class Shoppers:
    """U people, one entry each. Mixes are shares of tastes that add up to one; moments are seconds since 1970."""

    ids: Any  # Arrow array of strings
    mix: Floats  # [U, T] tastes at first
    later_mix: Floats  # [U, T] tastes once the turn is over
    turn: npt.NDArray[np.float64]  # moment of the turn, infinite for most
    joined: npt.NDArray[np.float64]
    sessions_per_day: npt.NDArray[np.float64]
    sensitivity: Floats  # how much a price above the usual puts them off
    channel: Ints
    device: Ints
    country: Ints
    age_band: Ints
    member: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.turn)

    def take(self, rows: npt.NDArray[Any]) -> Shoppers:
        """Some of the people, in the order asked for, repeated as often as asked for."""
        columns = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "ids"}
        return Shoppers(ids=self.ids.take(pa.array(rows)), **columns)

    def mix_at(self, when: npt.NDArray[np.float64]) -> Floats:
        """Shares of tastes at a moment each (seconds since 1970): [U] -> [U, T], rows add up to one."""
        done = np.clip((when - self.turn) / TURN_S, 0.0, 1.0).astype(np.float32)[:, None]
        mixed: Floats = self.mix + done * (self.later_mix - self.mix)
        return mixed

    def table(self) -> pa.Table:
        """What the shop knows of them: a table of the schema USERS."""
        known = [
            json.dumps({"age_band": band, "country": country, "member": member})
            for band in AGE_BANDS
            for country in COUNTRIES
            for member in (False, True)
        ]
        rows = (self.age_band * len(COUNTRIES) + self.country) * 2 + self.member
        columns = {
            "user_id": self.ids,
            "attributes": pa.array(known).take(pa.array(rows)),
            "consent": ["{}"] * len(rows),
        }
        return pa.table(columns, schema=USERS)


def newcomer(user: str, *, taste: int, tastes: int) -> Shoppers:
    """One person of a single taste, with the commonest habits and no history."""
    mix = np.zeros((1, tastes), dtype=np.float32)
    mix[0, taste] = 1
    one = np.zeros(1, dtype=np.int64)
    return Shoppers(
        ids=pa.array([user]),
        mix=mix,
        later_mix=mix,
        turn=np.array([np.inf]),
        joined=np.array([-np.inf]),
        sessions_per_day=np.array([0.2]),
        sensitivity=np.ones(1, dtype=np.float32),
        channel=one,
        device=one,
        country=one,
        age_band=one,
        member=np.zeros(1, dtype=bool),
    )


def draw_shoppers(block: int, *, tastes: int, seed: int, end: float) -> Shoppers:
    """Draw the BLOCK people of one block; `end` is the shop's last moment in seconds since 1970."""
    rng = np.random.default_rng([seed, 3, block])
    mix = _mixes(rng, tastes)
    turned = rng.random(BLOCK) < 0.35
    recent = rng.random(BLOCK) < 0.25
    # Age tells a little about taste: what a new shopper's profile is worth before the first click.
    typical = mix.argmax(axis=1) % len(AGE_BANDS)
    return Shoppers(
        ids=user_ids(np.arange(block * BLOCK, (block + 1) * BLOCK)),
        mix=mix,
        later_mix=_mixes(rng, tastes),
        turn=np.where(turned, end - rng.uniform(0, 180, BLOCK) * DAY, np.inf),
        joined=np.where(recent, end - rng.uniform(0, 90, BLOCK) * DAY, -np.inf),
        sessions_per_day=0.17 * np.exp(rng.normal(0, 0.7, BLOCK)),
        sensitivity=np.exp(rng.normal(-0.2, 0.5, BLOCK)).astype(np.float32),
        channel=rng.choice(len(CHANNELS), size=BLOCK, p=_CHANNEL_SHARES),
        device=rng.choice(len(DEVICES), size=BLOCK, p=_DEVICE_SHARES),
        country=rng.choice(len(COUNTRIES), size=BLOCK, p=_COUNTRY_SHARES),
        age_band=np.where(rng.random(BLOCK) < 0.4, typical, rng.integers(len(AGE_BANDS), size=BLOCK)),
        member=rng.random(BLOCK) < 0.3,
    )


def user_ids(rows: Ints) -> Any:
    """Ids of people: `u` and the row in eight digits, as an Arrow array of strings."""
    return pc.binary_join_element_wise("u", pc.utf8_lpad(pa.array(rows).cast(pa.string()), 8, "0"), "")


def user_rows(ids: Sequence[str], *, users: int) -> Ints:
    """Rows of user ids; raises `NotFound` for an id that is not of this shop."""
    return rows_of(ids, letter="u", count=users, kind="user")


def _mixes(rng: np.random.Generator, tastes: int) -> Floats:
    """Draw a main taste of 60 to 85 per cent and up to two lesser ones for each person: [BLOCK, T]."""
    order = rng.random((BLOCK, tastes)).argsort(axis=1)[:, :3]
    main = rng.uniform(0.6, 0.85, BLOCK)
    weights = np.stack([main, 0.7 * (1 - main), 0.3 * (1 - main)], axis=1)[:, : order.shape[1]]
    mix = np.zeros((BLOCK, tastes), dtype=np.float32)
    np.put_along_axis(mix, order, weights.astype(np.float32), axis=1)
    mixed: Floats = mix / mix.sum(axis=1, keepdims=True)
    return mixed
