"""Gorse's rows and ours: items, users and feedback, translated both ways.

Gorse keeps what it knows of an item or a person in free-form labels; here they are attributes, which are flat, typed and
bounded. `docs/gorse.md` says what becomes of what.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from embeddings.errors import InputError
from embeddings.schema import ITEM_COLUMNS, MAX_LABEL, MAX_TEXT, Event, Id, Item, Number, User, parse

NEVER = "0001-01-01T00:00:00Z"
"""How a time that nobody gave reads in Gorse's answers."""

COMMENT = "comment"
LABELS = "labels"
TAKEN = ITEM_COLUMNS - {"description", "price"}
"""Labels of these names cannot become attributes as they are; a description and a price have a place of their own."""

NAMESPACE = uuid.UUID("6f1c2a3e-8a55-4b7e-9a44-5f4c2f0d7d11")
Attributes = dict[str, Any]


def _moment(given: Any) -> Any:
    """Read a time in any form that clients send: ISO 8601, as Go prints it, or seconds since 1970; empty is none."""
    if given is None or isinstance(given, datetime):
        return given
    text = str(given).strip().removesuffix(" UTC").replace("/", "-")
    if not text or text.startswith("0001-01-01"):
        return None
    try:
        if re.fullmatch(r"\d{9,13}", text):
            return datetime.fromtimestamp(int(text) / (1000 if len(text) > 11 else 1), UTC)
        moment = datetime.fromisoformat(re.sub(r" ([+-]\d{4})$", r"\1", text))
    except (ValueError, OverflowError, OSError):
        raise ValueError("is not a time such as 2026-03-01T12:00:00Z") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


Time = Annotated[datetime | None, BeforeValidator(_moment)]


class GorseRow(BaseModel):
    """Base of what Gorse's clients send; what is not known is passed over, as Gorse does."""

    model_config = ConfigDict(extra="ignore")


class ItemPatch(GorseRow):
    """What changes in an item; null is unchanged."""

    IsHidden: bool | None = None
    Categories: list[str] | None = None
    Timestamp: Time = None
    Labels: Any = None
    Comment: str | None = None


class ItemIn(ItemPatch):
    """An item."""

    ItemId: Id


class UserPatch(GorseRow):
    """What changes in a person; null is unchanged."""

    Labels: Any = None
    Comment: str | None = None


class UserIn(UserPatch):
    """A person."""

    UserId: Id


class FeedbackIn(GorseRow):
    """What somebody did with an item. In a session nobody need be named."""

    FeedbackType: Annotated[str, Field(min_length=1, max_length=128)]
    UserId: str = ""
    ItemId: Id
    Timestamp: Time = None
    Value: Number | None = None


class Types:
    """Feedback types and the event types that they become; a type that is not listed keeps its name."""

    def __init__(self, becomes: Mapping[str, str]) -> None:
        self._becomes = dict(becomes)
        self._was = {event_type: name for name, event_type in becomes.items()}

    def event_type(self, feedback_type: str) -> str:
        """The type that events of this feedback have."""
        return self._becomes.get(feedback_type, feedback_type)

    def feedback_type(self, event_type: str) -> str:
        """The type that Gorse's clients know it by."""
        return self._was.get(event_type, event_type)

    def event(self, row: FeedbackIn, now: datetime, *, valued: bool = False) -> Event:
        """The event of a row; the same row is the same event, however often it is sent. Raises `InputError`.

        `valued`: another value makes it another event.
        """
        same = [row.FeedbackType, row.UserId, row.ItemId, row.Timestamp.isoformat() if row.Timestamp else ""]
        same += [repr(row.Value)] if valued else []
        raw = {
            "user_id": row.UserId,
            "item_id": row.ItemId,
            "event_type": self.event_type(row.FeedbackType),
            "timestamp": row.Timestamp or now,
            "value": row.Value or None,
            # Without a time nothing tells a repetition from the next time.
            "event_id": uuid.uuid5(NAMESPACE, "\x1f".join(same)).hex if row.Timestamp else None,
        }
        try:
            event: Event = parse(Event, raw)
        except InputError as error:
            if error.field != "event_type":
                raise
            what = f"FeedbackType: '{row.FeedbackType}' cannot be the name of an event type"
            raise InputError(
                f"{what}; say in the setting gorse_feedback what it becomes", field="FeedbackType"
            ) from None
        return event

    def feedback(self, events: Iterable[Event]) -> list[dict[str, Any]]:
        """Events as Gorse keeps them: one for each person, item and type, first and last time, the sum of the values."""
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        for event in events:
            key = (event.event_type, event.user_id, event.item_id)
            at, one = _written(event.timestamp), found.get(key)
            if one is None:
                found[key] = {
                    "FeedbackType": self.feedback_type(event.event_type),
                    "UserId": event.user_id,
                    "ItemId": event.item_id,
                    "Value": event.value or 0.0,
                    "Timestamp": at,
                    "Updated": at,
                    "Comment": "",
                }
            else:
                one["Value"] += event.value or 0.0
                one["Timestamp"], one["Updated"] = min(one["Timestamp"], at), max(one["Updated"], at)
        return list(found.values())


def item_of(row: ItemPatch, item_id: str, before: Item | None = None) -> Item:
    """The item that a row describes; with `before`, that one changed by what the row says. Raises `InputError`."""
    raw: dict[str, Any] = before.model_dump() if before is not None else {"item_id": item_id}
    if row.IsHidden is not None:
        raw["available"] = not row.IsHidden
    if row.Categories is not None:
        raw["categories"] = list(dict.fromkeys(row.Categories))
    if row.Timestamp is not None:
        raw["created_at"] = row.Timestamp
    if row.Comment is not None:
        raw["title"] = row.Comment[:MAX_LABEL]
    if row.Labels is not None:
        attributes = attributes_of(row.Labels, taken=TAKEN)
        description, price = attributes.pop("description", None), attributes.pop("price", None)
        raw["description"] = str(description)[:MAX_TEXT] if isinstance(description, str) else ""
        raw["price"] = price if isinstance(price, int | float) and not isinstance(price, bool) and price >= 0 else None
        raw["attributes"] = attributes
    item: Item = parse(Item, raw)
    return item


def gorse_item(item: Item) -> dict[str, Any]:
    """An item in Gorse's form."""
    own = {"description": item.description or None, "price": item.price}
    return {
        "ItemId": item.item_id,
        "IsHidden": not item.available,
        "Categories": item.categories,
        "Timestamp": NEVER if item.created_at is None else _written(item.created_at),
        "Labels": labels_of(item.attributes | {name: value for name, value in own.items() if value is not None}),
        "Comment": item.title,
    }


def user_of(row: UserIn) -> User:
    """The person that a row describes. Raises `InputError`."""
    return User(user_id=row.UserId, attributes=changed_user(row, {}))


def changed_user(row: UserPatch, attributes: Attributes) -> Attributes:
    """Attributes of a person, changed by what a row says; a comment is one of them. Raises `InputError`."""
    comment = attributes.get(COMMENT) if row.Comment is None else row.Comment[:MAX_LABEL]
    kept = attributes if row.Labels is None else attributes_of(row.Labels, taken={COMMENT})
    kept = {name: value for name, value in kept.items() if name != COMMENT} | ({COMMENT: comment} if comment else {})
    user: User = parse(User, {"user_id": "somebody", "attributes": kept})
    return user.attributes


def gorse_user(user_id: str, attributes: Attributes) -> dict[str, Any]:
    """A person in Gorse's form."""
    rest = {name: value for name, value in attributes.items() if name != COMMENT}
    return {"UserId": user_id, "Labels": labels_of(rest), "Comment": attributes.get(COMMENT, "")}


def attributes_of(labels: Any, *, taken: Iterable[str]) -> Attributes:
    """Labels as attributes: a list under `labels`, an object by its names, what lies deeper by names with dots.

    Raises `InputError` for labels that are neither.
    """
    if isinstance(labels, list):
        labels = {LABELS: labels}
    if not isinstance(labels, dict):
        raise InputError("Labels: must be an object or a list of texts", field="Labels")
    found: Attributes = {}
    for path, value in _leaves(labels, ""):
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", path)
        name = f"label_{name}" if name in taken or not re.match(r"[A-Za-z_]", name) else name
        if value is not None:
            found[name[:64]] = value
    return found


def labels_of(attributes: Mapping[str, Any]) -> Any:
    """Attributes as labels, the inverse of `attributes_of` where there is one; null if there are none."""
    if attributes.keys() == {LABELS} and isinstance(attributes[LABELS], list):
        return attributes[LABELS]
    tree: dict[str, Any] = {}
    for name, value in sorted(attributes.items()):
        *path, last = name.split(".")
        place = tree
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):  # a value and something deeper under one name: told flat
                place, last = tree, name
                break
            place = inner
        whole = isinstance(value, float) and value.is_integer()
        place[last] = int(value) if whole else value
    return tree or None


def _leaves(labels: Mapping[str, Any], path: str) -> Iterable[tuple[str, Any]]:
    for name, value in labels.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", _attribute(value, long=not path and name == "description")


def _attribute(value: Any, *, long: bool) -> Any:
    """A label as an attribute holds it: long texts are cut, lists are lists of texts; None for what has no place."""
    if isinstance(value, str):
        return value[: MAX_TEXT if long else MAX_LABEL]
    if isinstance(value, bool | int | float) or value is None:
        return value
    if all(isinstance(one, str | bool | int) for one in value):
        return [one[:MAX_LABEL] if isinstance(one, str) else str(one) for one in value]
    return None  # a vector: the model makes its own


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z").replace(".000000Z", "Z")
