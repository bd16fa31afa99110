"""Filters: what must not be on this list. Each narrows the allowed rows before anything is searched."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from embeddings.arrays import Mask
from embeddings.ids import Rows
from serving.policy import syntax
from serving.request.work import Work
from serving.stages.stage import Filter


class Unavailable(Filter):
    """Items that cannot be had at the moment."""

    name = "unavailable"

    def applies(self, work: Work) -> bool:
        """Not for the caller's own list."""
        return work.query.candidates is None

    def keeps(self, work: Work) -> Mask:
        """The catalogue knows."""
        return work.catalogue.available

    def reason(self, work: Work, row: int) -> str:
        """The same for all."""
        return "not available"


class Seen(Filter):
    """Items the person has consumed already, by the event types that count as such on this placement."""

    name = "seen"

    def applies(self, work: Work) -> bool:
        """Not for the caller's own list, and not without a history that may be used."""
        if work.refused:
            return False
        return work.query.candidates is None and bool(work.placement.seen) and bool(work.profile.history)

    def removes(self, work: Work) -> Rows:
        """Rows of every item with one of those events."""
        types = work.placement.seen
        rows = work.catalogue.rows({event.item_id for event in work.profile.history if event.event_type in types})
        if "replenishment" in work.placement.sources:  # what is used up is not had any more
            rows = rows[~np.isin(rows, list(work.due))]
        return rows

    def reason(self, work: Work, row: int) -> str:
        """The latest such event, with its day."""
        item_id = work.catalogue.id(row)
        types = work.placement.seen
        event = max(
            (one for one in work.profile.history if one.item_id == item_id and one.event_type in types),
            key=lambda one: one.timestamp,
        )
        return f"{event.event_type} on {datetime.fromtimestamp(event.timestamp, UTC):%Y-%m-%d}"


class Excluded(Filter):
    """Items the request names, those of earlier pages, and the item that the list starts from."""

    name = "excluded"

    def applies(self, work: Work) -> bool:
        """Only if there are any."""
        return bool(work.query.exclude or work.query.shown) or work.anchor is not None

    def removes(self, work: Work) -> Rows:
        """Their rows."""
        named = [*work.query.exclude, *work.query.shown]
        if work.anchor is not None:
            named.append(work.anchor.item_id)
        return work.catalogue.rows(named)

    def reason(self, work: Work, row: int) -> str:
        """Which of the three it was."""
        name = work.catalogue.id(row)
        if work.anchor is not None and name == work.anchor.item_id:
            return "the item itself"
        return "shown on an earlier page" if name in work.query.shown else "excluded by the request"


class RequestFilter(Filter):
    """The request's condition over item attributes."""

    name = "filter"

    def applies(self, work: Work) -> bool:
        """Only if there is one."""
        return work.query.filter is not None

    def keeps(self, work: Work) -> Mask:
        """Rows that satisfy it."""
        assert work.query.filter is not None
        catalogue = work.catalogue
        condition = syntax.parse(work.query.filter, known=catalogue.attributes, field="filter")
        return catalogue.mask_of(condition, work.seconds)

    def reason(self, work: Work, row: int) -> str:
        """The same for all."""
        return "does not satisfy the request's filter"


class RuleFilter(Filter):
    """Include and exclude rules of the policy."""

    name = "rule_filter"

    def applies(self, work: Work) -> bool:
        """Not for the caller's own list: who names the items wants them back."""
        return work.query.candidates is None

    def keeps(self, work: Work) -> Mask | None:
        """Rows that every include and exclude rule in force lets pass."""
        allow: Mask | None = work.rules.allow
        return allow

    def reason(self, work: Work, row: int) -> str:
        """The rule's name."""
        return f"rule {work.rules.removed_by(row)}"
