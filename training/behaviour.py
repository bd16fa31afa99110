"""How shoppers of the simulated shop behave: what they come across, what they click, buy, and buy again.

One formula gives the log-odds of a click once an item has been looked at; everything else, the simulation of months as
well as the reaction to one served list, draws from it. What was shown and not clicked is not kept: a real shop's event
log does not have it either.

Shapes: S sessions, L places of a list, A acts, T tastes, K kinds of goods.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats, Ints
from training.assortment import BASE_PRICE, DAY, DEPARTMENT_OF, DEPARTMENTS, REFILL_DAYS, Assortment
from training.shoppers import CHANNELS, COUNTRIES, DEVICES, Shoppers

Seconds = npt.NDArray[np.float64]

TYPES = ("view", "cart", "purchase")
VIEW, CART, PURCHASE = range(3)
LIST_LENGTH = 24
NEW_S = 30 * DAY
"""An item is new for this long; reminders by email draw attention to what is new."""

MONTH_S = 365.25 / 12 * DAY
_PEAK = np.array([DEPARTMENTS[dep].peak for dep in DEPARTMENT_OF], dtype=np.float32)
_SWING = np.array([DEPARTMENTS[dep].swing for dep in DEPARTMENT_OF], dtype=np.float32)
_EMAIL = CHANNELS.index("email")
_MOBILE = DEVICES.index("mobile")


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """S sessions: who looks, when (seconds since 1970), and where (rows of CHANNELS, DEVICES, COUNTRIES)."""

    people: Shoppers  # one entry a session
    when: Seconds
    channel: Ints
    device: Ints
    country: Ints

    def __len__(self) -> int:
        return len(self.when)


@dataclass(frozen=True, kw_only=True)
class Acts:
    """A things done: in which session, with which item, of which type (row of TYPES), when, at which place (or -1)."""

    session: Ints
    item: Ints
    type: Ints
    when: Seconds
    place: Ints

    def __len__(self) -> int:
        return len(self.session)

    def take(self, chosen: npt.NDArray[Any]) -> Acts:
        """Some of the acts, by rows or by mask."""
        return Acts(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @classmethod
    def join(cls, *parts: Acts) -> Acts:
        """All acts of several."""
        return cls(**{field.name: np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(cls)})


def attention(places: Ints) -> npt.NDArray[np.float64]:
    """Probability that a place of a list (0 is the first) is looked at at all: the position bias."""
    attended: npt.NDArray[np.float64] = np.power(1.0 + places, -0.35, dtype=np.float64)
    return attended


class Behaviour:
    """The habits of everybody, over one assortment."""

    def __init__(self, assortment: Assortment, *, seed: int) -> None:
        self.assortment = assortment
        # Countries lean to departments: what the context of a request can tell about a stranger.
        lean = np.random.default_rng([seed, 4]).normal(0, 0.35, (len(COUNTRIES), len(DEPARTMENTS)))
        self._lean = lean.astype(np.float32)[:, DEPARTMENT_OF]  # [countries, K]
        self._shelves = [
            _Shelf(assortment, np.flatnonzero(assortment.taste == t)) for t in range(len(assortment.tastes))
        ]
        self._store = _Shelf(assortment, np.arange(len(assortment)))

    def affinity(self, sessions: Sessions, rows: Ints) -> Floats:
        """How well items fit the tastes that people have at the time, 0..1: [S, L] -> [S, L].

        Three fifths is the taste that the item was made for, which behaviour shows and content only hints at; the rest is
        kind, style and colour.
        """
        goods, tastes = self.assortment, self.assortment.tastes
        mix = sessions.people.mix_at(sessions.when)
        at = np.arange(len(rows))[:, None]
        content = (mix @ tastes.kinds)[at, goods.kind[rows]]
        content += (mix @ tastes.styles)[at, goods.style[rows]]
        content += (mix @ tastes.colours)[at, goods.colour[rows]]
        fit: Floats = np.float32(0.6) * mix[at, goods.taste[rows]] + np.float32(0.4 / 3) * content
        return fit

    def log_odds(self, sessions: Sessions, rows: Ints) -> Floats:
        """Log-odds of a click on an item that is looked at: [S, L] -> [S, L]."""
        goods = self.assortment
        kind = goods.kind[rows]
        dear = np.log(goods.price[rows] / BASE_PRICE[kind])
        month = (sessions.when / MONTH_S % 12).astype(np.float32)[:, None]  # 0 is the first of January
        season = _SWING[kind] * np.cos((month - _PEAK[kind] + np.float32(0.5)) * np.float32(2 * np.pi / 12))
        age = sessions.when[:, None] - goods.created[rows]
        odds: Floats = np.float32(-3.6) + np.float32(5.0) * self.affinity(sessions, rows)
        odds += np.float32(0.35) * goods.appeal[rows] + season + self._lean[sessions.country[:, None], kind]
        odds -= np.float32(0.5) * sessions.people.sensitivity[:, None] * dear
        odds -= np.where((sessions.device == _MOBILE)[:, None], np.float32(0.15), np.float32(0)) * np.log(
            goods.price[rows] / np.float32(40)
        )
        odds += np.where((sessions.channel == _EMAIL)[:, None] & (age < NEW_S), np.float32(0.5), np.float32(0))
        return odds

    def draw_sessions(self, rng: np.random.Generator, people: Shoppers, *, start: float, end: float) -> Sessions:
        """Draw the sessions of people between two moments; evenings are busier than nights."""
        since = np.maximum(people.joined, start)
        counts = rng.poisson(people.sessions_per_day * np.maximum(end - since, 0) / DAY)
        owners = np.repeat(np.arange(len(people)), counts)
        when = rng.uniform(since[owners], end)
        hour = np.clip(rng.normal(19.0, 2.5, len(when)), 6, 23.9)
        evening = rng.random(len(when)) < 0.6
        moved = np.floor(when / DAY) * DAY + hour * 3600
        when = np.where(evening & (moved >= since[owners]) & (moved < end), moved, when)
        visiting = people.take(owners)
        strays = rng.random((2, len(when))) < 0.25
        return Sessions(
            people=visiting,
            when=when,
            channel=np.where(strays[0], rng.integers(len(CHANNELS), size=len(when)), visiting.channel),
            device=np.where(strays[1], rng.integers(len(DEVICES), size=len(when)), visiting.device),
            country=visiting.country,
        )

    def browse(self, rng: np.random.Generator, sessions: Sessions) -> Ints:
        """What people come across: [S, LIST_LENGTH] rows of items, best place first.

        Each session follows one of the person's tastes: half of what turns up is for that taste, the rest is what
        everybody buys, and now and then something new.
        """
        shape = (len(sessions), LIST_LENGTH)
        when = np.broadcast_to(sessions.when[:, None], shape)
        chance = rng.random(shape)
        shown = self._store.draw(rng, when, since=np.where(chance < 0.12, when - NEW_S, -np.inf))
        mix = sessions.people.mix_at(sessions.when).cumsum(axis=1)
        intent = (rng.random((len(sessions), 1)) * mix[:, -1:] >= mix).sum(axis=1)
        for taste, shelf in enumerate(self._shelves):
            mine = (intent == taste)[:, None] & (chance >= 0.5) & (when > shelf.opened)
            if mine.any():
                shown[mine] = shelf.draw(rng, when[mine], since=np.full(int(mine.sum()), -np.inf))
        return shown

    def react(self, rng: np.random.Generator, sessions: Sessions, shown: Ints) -> Acts:
        """Views, carts and purchases of lists [S, L] of items; an item shown twice in a list counts at its first place."""
        odds = self.log_odds(sessions, shown)
        clicked = rng.random(shown.shape) < sigmoid(odds) * attention(np.arange(shown.shape[1]))
        session, place = np.nonzero(clicked & _first_in_row(shown))
        item, odds_of = shown[session, place], odds[session, place]
        # A minute passes between clicks; carts follow views, and purchases carts.
        nth = np.arange(len(session)) - np.searchsorted(session, session)
        when = sessions.when[session] + nth * 60.0 + rng.uniform(0, 30, len(session))
        views = Acts(session=session, item=item, type=np.full(len(session), VIEW), when=when, place=place)
        carted = np.flatnonzero(rng.random(len(views)) < sigmoid(0.6 * odds_of - 1.7))
        carts = _later(rng, views.take(carted), CART, wait=12.0)
        bought = np.flatnonzero(rng.random(len(carts)) < sigmoid(0.3 * odds_of[carted] - 0.1))
        return Acts.join(views, carts, _later(rng, carts.take(bought), PURCHASE, wait=300.0))

    def refill(self, rng: np.random.Generator, bought: Acts, *, end: float) -> Acts:
        """Purchases that repeat: what is used up is bought again after its interval, four times out of five, until `end`.

        `session` still names the session of the first purchase; a repeated one comes from no list: its place is -1.
        """
        rounds = []
        last = bought.take((bought.type == PURCHASE) & (REFILL_DAYS[self.assortment.kind[bought.item]] > 0))
        while len(last):
            interval = REFILL_DAYS[self.assortment.kind[last.item]] * DAY * np.exp(rng.normal(0, 0.15, len(last)))
            again = last.when + interval
            kept = (rng.random(len(last)) < 0.8) & (again < end)
            last = replace(last, when=again, place=np.full(len(last), -1)).take(kept)
            rounds.append(last)
        return Acts.join(bought.take(np.zeros(0, dtype=np.int64)), *rounds)


class _Shelf:
    """Items in order of creation, drawn by how much they appeal: what exists at a moment is a stretch of the shelf."""

    def __init__(self, goods: Assortment, rows: Ints) -> None:
        order = np.argsort(goods.created[rows], kind="stable")
        self.rows = rows[order]
        self.created = goods.created[self.rows]
        self.opened = self.created[0] if len(self.created) else np.inf
        # A mild popularity skew: the most appealing one in a hundred is seen about fifteen times as often as the median.
        self.sums = np.concatenate([[0.0], np.cumsum(np.exp(1.1 * goods.appeal[self.rows].astype(np.float64)))])

    def draw(self, rng: np.random.Generator, when: Seconds, *, since: Seconds) -> Ints:
        """Draw one item for each moment, of those created between `since` and it; of all that exist if there are none."""
        high = np.maximum(np.searchsorted(self.created, when), 1)
        low = np.searchsorted(self.created, since)
        low = np.where(low < high, low, 0)
        wanted = self.sums[low] + rng.random(when.shape) * (self.sums[high] - self.sums[low])
        found = np.clip(np.searchsorted(self.sums, wanted, side="right") - 1, low, high - 1)
        drawn: Ints = self.rows[found]
        return drawn


def sigmoid(odds: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Probability of log-odds."""
    probability: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(odds.astype(np.float64), -30, 30)))
    return probability


def _later(rng: np.random.Generator, acts: Acts, kind: int, *, wait: float) -> Acts:
    """The same people do the next thing with the same items, `wait` to twice as many seconds later."""
    return replace(acts, type=np.full(len(acts), kind), when=acts.when + rng.uniform(wait, 2 * wait, len(acts)))


def _first_in_row(rows: Ints) -> npt.NDArray[np.bool_]:
    """Mark the first occurrence of each value within its row: [S, L]."""
    order = np.argsort(rows, axis=1, kind="stable")
    ranked = np.take_along_axis(rows, order, axis=1)
    fresh = np.ones(rows.shape, dtype=bool)
    fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    first = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(first, order, fresh, axis=1)
    return first
