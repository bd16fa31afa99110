"""Drafts of rules: written, agreed to by somebody else, released to a share of the people, and taken back in one call.

A draft is a document of its own, beside the policy: nothing of it is in force before its release, and every step stands in
the audit with who, when, why and the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from embeddings.errors import Conflict, NotFound
from serving.policy.rules import RULES
from serving.store.documents import Document, Documents, difference

KIND = "draft"
ROLLBACK = "rollback"
"""What the audit calls the way back."""

LOOKED_BACK = 1000
"""Changes of a rule through which the way back is looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """One draft: `rule` is the rule as it would stand, None to remove it.

    `author` wrote it as it is, `approved_by` agreed to just that. `share` is None before the release; `before` is what
    the rule was then, None where there was none.
    """

    rule: Mapping[str, Any] | None
    author: str
    approved_by: str | None = None
    share: float | None = None
    before: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, document: Document) -> Draft:
        """The draft that a document holds."""
        return cls(**{name: value for name, value in document.body.items() if name != "id"})


class Drafts:
    """The drafts of the store; `approval`: nobody releases a draft that nobody else has agreed to."""

    def __init__(self, documents: Documents, *, approval: bool) -> None:
        self._documents, self.approval = documents, approval

    def every(self) -> tuple[Document, ...]:
        """Every draft, by id."""
        return self._documents.list(KIND)

    def get(self, name: str) -> tuple[Document, Draft]:
        """A draft; raises `NotFound`."""
        found = self._documents.get(KIND, name)
        if found is None:
            raise NotFound(f"there is no draft of the rule '{name}'", field="id")
        return found, Draft.of(found)

    def write(self, name: str, rule: Mapping[str, Any] | None, *, by: str, why: str | None) -> Document:
        """Write a draft, or write it anew: what was agreed to does not hold for it any more.

        One that is released keeps its share and what was before, so that it can still be taken back. Raises `NotFound`
        where a rule is to be removed that is not there.
        """
        if rule is None and self.rule(name) is None:
            raise NotFound(f"there is no rule '{name}' to remove", field="rule")
        stored = self._documents.get(KIND, name)
        before = None if stored is None else Draft.of(stored)
        if before is not None and before.rule == rule:
            assert stored is not None
            return stored
        fresh = Draft(rule=rule, author=by)
        if before is not None:
            fresh = replace(fresh, share=before.share, before=before.before)
        return self._put(name, fresh, by=by, why=why, expected=0 if stored is None else stored.version)

    def approve(self, name: str, *, by: str, why: str | None) -> Document:
        """Agree to a draft as it is; raises `Conflict` for whoever wrote it."""
        stored, draft = self.get(name)
        if by == draft.author:
            raise Conflict(
                f"'{by}' wrote this draft; somebody else must agree to it, with a key of their own", field="id"
            )
        return self._put(name, replace(draft, approved_by=by), by=by, why=why, expected=stored.version)

    def release(self, name: str, share: float | None, *, by: str, why: str | None) -> Document | None:
        """Put a draft in force for a share of the people (None: its own); returns the rule, None where it was removed.

        Raises `Conflict` where somebody else must agree first, or where the share of a removal is not everybody.
        """
        stored, draft = self.get(name)
        if self.approval and draft.approved_by is None:
            raise Conflict("this draft needs the approval of somebody else before it is released", field="id")
        if share is None:
            share = 1.0 if draft.rule is None else draft.rule["share"]
        if draft.rule is None and share < 1:
            raise Conflict("a removal holds for everybody; give a share of 1", field="share")
        if draft.share is None:
            draft = replace(draft, before=self.rule(name))
        # The draft first: if nothing comes of the rest, taking back what never was does no harm.
        self._put(name, replace(draft, share=share), by=by, why=why, expected=stored.version)
        return self._put_rule(name, None if draft.rule is None else {**draft.rule, "share": share}, by=by, why=why)

    def roll_back(self, name: str, *, by: str, why: str | None) -> Document | None:
        """Put a rule back to what it was before its draft was released, else before its last change; None: it is gone.

        Back never leads forward: what was taken back before does not come again. Raises `NotFound` for a rule that never
        was, and `Conflict` where there is nothing before it.
        """
        stored = self._documents.get(KIND, name)
        draft = None if stored is None else Draft.of(stored)
        if stored is not None and draft is not None and draft.share is not None:
            self._put(name, replace(draft, share=None, before=None), by=by, why=why, expected=stored.version)
            return self._put_rule(name, draft.before, by=by, why=why, action=ROLLBACK)
        return self._put_rule(name, self._before(name), by=by, why=why, action=ROLLBACK)

    def _before(self, name: str) -> Mapping[str, Any] | None:
        """What a rule was before its last change, of those that were not taken back."""
        entries = self._documents.audit(RULES.name, name, limit=LOOKED_BACK)
        if not entries:
            raise NotFound(f"the rule '{name}' was never changed", field="id")
        states = [entries[-1].before]
        for entry in reversed(entries):
            if entry.action == ROLLBACK and entry.after in states:
                del states[len(states) - 1 - states[::-1].index(entry.after) :]
            states.append(entry.after)
        if len(states) < 2:
            raise Conflict(
                f"'{name}' is as it was before all its changes; to put one of them in force, release a draft of it",
                field="id",
            )
        return states[-2]

    def drop(self, name: str, *, by: str, why: str | None) -> None:
        """Throw a draft away; what it has released stays. Raises `NotFound`."""
        self._documents.delete(KIND, name, by=by, why=why)

    def rule(self, name: str) -> Mapping[str, Any] | None:
        """The rule as it is stored now."""
        found = self._documents.get(RULES.name, name)
        return None if found is None else found.body

    def difference(self, name: str, draft: Draft) -> dict[str, dict[str, Any]]:
        """What a draft changes of the rule that is stored now, field by field; its share is that of the release."""
        found = difference(self.rule(name), draft.rule)
        return {field: {"current": now, "draft": then} for field, (now, then) in found.items() if field != "share"}

    def _put(self, name: str, draft: Draft, *, by: str, why: str | None, expected: int) -> Document:
        body = {"id": name} | {field: getattr(draft, field) for field in Draft.__dataclass_fields__}
        return self._documents.put(KIND, name, body, by=by, why=why, expected_version=expected)

    def _put_rule(
        self, name: str, body: Mapping[str, Any] | None, *, by: str, why: str | None, action: str | None = None
    ) -> Document | None:
        if body is not None:
            return self._documents.put(RULES.name, name, body, by=by, why=why, action=action)
        if self.rule(name) is not None:
            self._documents.delete(RULES.name, name, by=by, why=why, action=action)
        return None
