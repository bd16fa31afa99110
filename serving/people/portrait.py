"""Portraits: everything that is known of a person, as data and in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from embeddings.schema import PURPOSES, Purpose, allows
from serving.people.segmentation import segments_of
from serving.request.catalogue import Catalogue
from serving.request.history import History
from serving.request.snapshot import Snapshot
from serving.store import Alias, Profile, Store
from serving.store.withheld import LEARNING

LIKED = 5
PAGE = 500
PURPOSES_SAID: dict[Purpose, str] = {
    "personalization": "lists made for them",
    "analytics": "being part of statistics",
    "marketing": "messages",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Portrait:
    """A person with all ids of theirs; `interests` are categories of what they touched, the most frequent first.

    `segments` are those they are in. `answers` counts what the decision log says they were shown, `contacts` what of it may
    not come too often; `messages` names batches that hold one for them.
    """

    profile: Profile
    aliases: tuple[Alias, ...]
    interests: tuple[str, ...]
    segments: tuple[str, ...]
    answers: int
    last_answer: datetime | None
    messages: tuple[str, ...]
    contacts: int

    @classmethod
    def of(cls, store: Store, profile: Profile, snapshot: Snapshot | None) -> Portrait:
        """Look everywhere where something of a person may be."""
        aliases = store.aliases.of(profile.user_id)
        ids = [profile.user_id, *(one.alias for one in aliases)]
        answers, last = store.decisions.tally(ids)
        return cls(
            profile=profile,
            aliases=aliases,
            interests=() if snapshot is None else _interests(profile, snapshot.catalogue),
            segments=() if snapshot is None else tuple(segments_of(snapshot, profile)),
            answers=answers,
            last_answer=last,
            messages=store.batches.waiting(ids),
            contacts=len(store.contacts.of(ids)),
        )

    @property
    def sentences(self) -> Iterator[str]:
        """What is known, in words."""
        profile = self.profile
        if profile.last_seen is None:
            yield "Nothing was done under this id yet."
        else:
            read = len(profile.history) if allows(profile.consent, "personalization") else 0
            latest = f", and the {read} latest are looked at for lists" if read > 1 else ""
            yield f"{_count(profile.events, 'event')}, the last one on {_day(profile.last_seen)}{latest}."
        if self.interests:
            yield f"What they looked at is mostly of {_and(self.interests)}."
        if self.segments:
            yield f"In {_count(len(self.segments), 'segment')}: {_and(self.segments)}."
        if profile.attributes:
            said = [f"{name}: {_value(value)}" for name, value in sorted(profile.attributes.items())]
            yield f"Told about them: {'; '.join(said)}."
        if self.aliases:
            yield f"Also known as {_and([one.alias for one in self.aliases])}."
        for allowed, verb in ((True, "Allowed"), (False, "Refused")):
            purposes = [PURPOSES_SAID[one] for one in PURPOSES if allows(profile.consent, one) is allowed]
            if purposes:
                yield f"{verb}: {_and(purposes)}."
        learned = all(allows(profile.consent, one) for one in LEARNING)
        yield "The model learns from what they do." if learned else "The model learns nothing from what they do."
        if self.last_answer is not None:
            yield f"The log has {_count(self.answers, 'answer')} to them, the last one of {self.last_answer:%Y-%m-%d}."
        if self.contacts:
            yield f"{_count(self.contacts, 'showing')} of contents and alerts counted, so that they do not come too often."
        if self.messages:
            yield f"A message waits for them in {_and(self.messages)}."


def everything(store: Store, portrait: dict[str, Any], user_id: str) -> Iterator[bytes]:
    """One JSON object, piece by piece: the portrait, every event, answer and contact; however long, in little memory."""
    yield orjson.dumps(portrait)[:-1] + b',"all_events":['
    before = b""
    for event in store.feedback.every(user_id, PAGE):
        yield before + orjson.dumps(event.model_dump(mode="json"))
        before = b","
    yield b'],"all_answers":['
    before, after = b"", None
    while True:
        page = store.decisions.of_user(user_id, PAGE, after)
        for decision in page.decisions:
            yield before + orjson.dumps(asdict(decision), default=dict)
            before = b","
        if (after := page.next) is None:
            break
    ids = [portrait["user_id"], *(one["alias"] for one in portrait["aliases"])]
    contacts = [one._asdict() for one in store.contacts.of(ids)]
    yield b'],"all_contacts":' + orjson.dumps(contacts) + b"}"


def _interests(profile: Profile, catalogue: Catalogue) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    past = History.of(profile.history, catalogue).telling
    for row in past.rows[past.interests].tolist():
        counts.update(catalogue.value(row, "categories") or ())
    return tuple(name for name, _ in counts.most_common(LIKED))


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _value(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
