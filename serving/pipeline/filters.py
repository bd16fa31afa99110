"""Filters: what must not be on this list. Each narrows the allowed rows before anything is searched."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from embeddings.ids import Rows
from serving.pipeline.candidates import Mask
from serving.pipeline.stage import Filter
from serving.pipeline.work import Work
from serving.policy import conditions


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
        """Not for the caller's own list, and not without a history."""
        return work.query.candidates is None and bool(work.placement.seen) and bool(work.profile.history)

    def removes(self, work: Work) -> Rows:
        """Rows of every item with one of those events."""
        types = work.placement.seen
        return work.catalogue.rows({event.item_id for event in work.profile.history if event.event_type in types})

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
    """Items the request names, and the item that others are to resemble."""

    name = "excluded"

    def applies(self, work: Work) -> bool:
        """Only if the request names any."""
        return bool(work.query.exclude) or work.query.similar_to is not None

    def removes(self, work: Work) -> Rows:
        """Their rows."""
        named = list(work.query.exclude)
        if work.query.similar_to is not None:
            named.append(work.query.similar_to)
        return work.catalogue.rows(named)

    def reason(self, work: Work, row: int) -> str:
        """Which of the two it was."""
        itself = work.catalogue.id(row) == work.query.similar_to
        return "the item itself" if itself else "excluded by the request"


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
        condition = conditions.parse(work.query.filter, known=catalogue.attributes, field="filter")
        return np.concatenate(
            [
                condition.mask(catalogue.base.columns, now=work.seconds),
                condition.mask(catalogue.delta.columns, now=work.seconds),
            ]
        )

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
