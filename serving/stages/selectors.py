"""Selectors: which candidates take which place on the slate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from embeddings.arrays import unit
from serving.policy.rules import Rule
from serving.request.query import Reason
from serving.request.work import Place, Work
from serving.stages.exploration import Order, explored
from serving.stages.reasons import reasons_for
from serving.stages.stage import Selector

Limit = tuple[str, int, Sequence[object]]
"""A cap: its rule, how many may share a value, and the values of every candidate."""

Key = tuple[int, object]
"""A cap by its place, and a value."""

EXPLORED = Reason(code="exploration", text="Something different")


class Diversity(Selector):
    """Maximal marginal relevance (Carbonell & Goldstein, 1998): each place weighs score against likeness to those above."""

    name = "diversity"
    optional = True

    def applies(self, work: Work) -> bool:
        """Only where the placement asks for it."""
        return work.placement.diversity > 0 and len(work.candidates) > 2 and work.query.candidates is None

    def work(self, work: Work) -> dict[str, object]:
        """Reorder the head of the candidates; the tail keeps its order behind it."""
        share = work.placement.diversity
        head = min(len(work.candidates), 4 * work.query.k)
        vectors = work.catalogue.vectors(work.candidates.rows[:head])
        vectors = unit(vectors)
        score = work.candidates.score[:head]
        value = (score - score.min()) / max(float(score.max() - score.min()), 1e-9)
        nearest = np.full(head, -1.0, dtype=np.float32)
        open_ = np.ones(head, dtype=bool)
        order = []
        for place in range(min(head, work.query.k)):
            merit = value if place == 0 else (1 - share) * value - share * nearest
            best = int(np.argmax(np.where(open_, merit, -np.inf)))
            order.append(best)
            open_[best] = False
            nearest = np.maximum(nearest, vectors @ vectors[best])
        rest = [at for at in range(len(work.candidates)) if at >= head or open_[at]]
        moved = sum(at != place for place, at in enumerate(order))
        work.candidates = work.candidates.take(np.array(order + rest, dtype=np.int64))
        return {"note": f"{moved} places changed"}


class Caps(Selector):
    """Cap rules: at most so many items with one value of an attribute. What is pinned counts first, and stays."""

    name = "caps"

    def applies(self, work: Work) -> bool:
        """Only where such a rule is in force, and not for the caller's own list."""
        return bool(work.rules.caps) and work.query.candidates is None

    def work(self, work: Work) -> dict[str, object]:
        """Drop what is over a limit, walking down the list as far as the slate can reach."""
        rows = work.candidates.rows
        caps = [(rule.id, limit, work.catalogue.values(rows, attribute)) for rule, attribute, limit in work.rules.caps]
        counts: Counter[Key] = Counter()
        kept: list[int] = []
        dropped: list[tuple[int, str]] = []
        enough = work.query.k + len(work.rules.pins)
        pinned = {at for at, _ in pins(work, work.query.k).values()}
        for at in pinned:
            counts.update(_keys(caps, at))
        for at in range(len(rows)):
            over = _over(caps, at, counts) if at not in pinned and len(kept) < enough else None
            if over is None:
                kept.append(at)
            else:
                dropped.append((at, over))
        detail = [{"item_id": work.catalogue.id(int(rows[at])), "reason": f"rule {over}"} for at, over in dropped[:20]]
        work.candidates = work.candidates.take(np.array(kept, dtype=np.int64))
        return {"removed": detail}


def _over(caps: Sequence[Limit], at: int, counts: Counter[Key]) -> str | None:
    """The first cap that an item would exceed, None if it exceeds none; only then it counts."""
    keys = _keys(caps, at)
    for place, value in keys:
        rule_id, limit, _ = caps[place]
        if counts[place, value] >= limit:
            return rule_id
    for key in keys:
        counts[key] += 1
    return None


def _keys(caps: Sequence[Limit], at: int) -> list[Key]:
    """What an item counts as: each cap with each of its values."""
    keys: list[Key] = []
    for place, (_, _, values) in enumerate(caps):
        value = values[at]
        keys += [(place, one) for one in (value if isinstance(value, tuple) else (value,)) if one is not None]
    return keys


class Slate(Selector):
    """The list itself: the best k, with pinned items at their positions, each with its reasons."""

    name = "slate"

    def count(self, work: Work) -> int:
        """Candidates before, places after."""
        return len(work.slate) or len(work.candidates)

    def work(self, work: Work) -> dict[str, object]:
        """Place the pins, fill the rest from the top."""
        k = work.query.k if work.query.candidates is None else len(work.candidates)
        pinned = pins(work, k)
        taken = {at for at, _ in pinned.values()}
        best = [at for at in range(len(work.candidates)) if at not in taken]
        chance = self._explored(work, best, k - len(pinned))
        rest = iter(chance.entries)
        order = []
        for place in range(min(k, len(work.candidates))):
            at = pinned[place][0] if place in pinned else next(rest, None)
            if at is not None:
                order.append(at)
        # A pin may stand behind the end of a short list: it closes the list then.
        order += [at for place, (at, _) in sorted(pinned.items()) if at not in order][: k - len(order)]
        for at, rule in pinned.values():
            row = int(work.candidates.rows[at])
            reason = Reason(code="pinned", text=rule.description or "Featured", rule_id=rule.id)
            work.effects.setdefault(row, []).insert(0, reason)
        if chance.drawn is not None:
            row = int(work.candidates.rows[chance.entries[chance.drawn[0]]])
            work.effects.setdefault(row, []).append(EXPLORED)
        chosen = work.candidates.take(np.array(order, dtype=np.int64))
        likely = dict(zip(chance.entries, chance.propensities, strict=False))  # none where nothing is tried out
        work.slate = [
            Place(row, score, reasons, likely.get(at, 1.0))
            for at, row, score, reasons in zip(
                order, chosen.rows.tolist(), chosen.score.tolist(), reasons_for(work, order), strict=True
            )
        ]
        return {"pins": len(pinned)} | ({} if chance.drawn is None else {"explored": list(chance.drawn)})

    def _explored(self, work: Work, best: list[int], free: int) -> Order:
        """Candidates for the places that no pin has, with what is tried out among them."""
        query = work.query
        whose = work.profile.user_id or query.user_id
        share = work.placement.exploration if whose and query.candidates is None else 0.0
        if not share:
            return Order(best, [], None)
        shown = min(free, len(best))
        # What would come below has not been counted by the caps.
        pool = best[:shown] if work.rules.caps else best[: 2 * shown]
        what = f"{query.placement}\n{len(query.shown)}"
        return explored(pool, shown, share, whose=whose or "", what=what, at=query.now)


def pins(work: Work, k: int) -> dict[int, tuple[int, Rule]]:
    """Position -> (candidate, rule). The stronger rule keeps a contested position, the other takes the next one."""
    if work.query.candidates is not None:
        return {}
    placed: dict[int, tuple[int, Rule]] = {}
    above = len(work.query.shown)
    for rule, mask, place in work.rules.pins:
        position = place - above
        if position < 0:  # it was pinned to an earlier page
            continue
        used = {at for at, _ in placed.values()}
        found = [at for at in np.flatnonzero(mask[work.candidates.rows]).tolist() if at not in used]
        free = [one for one in range(position, k) if one not in placed]
        if found and free:
            placed[free[0]] = (found[0], rule)
    return placed
