"""The one vocabulary: events, items and users, as validated rows and as Arrow tables.

Readers, the store, the HTTP service and the export all speak these three shapes. A row is a pydantic model (strict
about what it accepts, clear about what it refuses); a table is the same columns in Arrow, with `attributes`, `consent`
and `context` as JSON text so that any typed attribute survives a round trip through Parquet.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

import pyarrow as pa
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    field_validator,
)

from embeddings.errors import InputError
from embeddings.sentences import near, path, sentence

FUTURE_TOLERANCE_S = 86_400.0
"""A clock may be wrong by a day; a timestamp further ahead is refused."""

ABOUT_CONTENT = "content:"
"""How the `item_id` of an event begins that is about a content and no item; the content's id follows."""

MAX_ATTRIBUTES = 64
MAX_TEXT = 10_000
MAX_LABEL = 256
MAX_LIST = 256


def _printable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    text.encode("utf-8")  # a lone surrogate has no place in a database or a log
    return text


def _not_in_the_future(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    moment = moment.astimezone(UTC)
    if moment.timestamp() > time.time() + FUTURE_TOLERANCE_S:
        raise ValueError("lies more than a day in the future")
    if moment.year < 1970:
        raise ValueError("lies before 1970")
    return moment


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not a boolean")
    return value


def _scalar(value: Any) -> bool | float | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        try:
            return _finite(float(value))
        except OverflowError:
            raise ValueError("must be a finite number") from None
    if isinstance(value, str):
        if len(value) > MAX_LABEL:
            raise ValueError(f"must have at most {MAX_LABEL} characters")
        return _printable(value)
    raise ValueError("must be text, a number or a boolean")


def _attribute(value: Any) -> bool | float | str | list[str]:
    if not isinstance(value, list):
        return _scalar(value)
    if len(value) > MAX_LIST or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"must be text, a number, a boolean, or a list of at most {MAX_LIST} texts")
    return [str(_scalar(entry)) for entry in value]


_SCALAR_JSON = {"anyOf": [{"type": "boolean"}, {"type": "number"}, {"type": "string", "maxLength": 256}]}
_LIST_JSON = {"type": "array", "items": {"type": "string", "maxLength": 256}, "maxItems": 256}

# A plain validator instead of a union: one clear sentence when a value fits none of the kinds.
Scalar = Annotated[bool | float | str, PlainValidator(_scalar), WithJsonSchema(_SCALAR_JSON)]
Attribute = Annotated[
    bool | float | str | list[str],
    PlainValidator(_attribute),
    WithJsonSchema({"anyOf": [*_SCALAR_JSON["anyOf"], _LIST_JSON]}),
]
Id = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_printable)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT), AfterValidator(_printable)]
Label = Annotated[str, StringConstraints(max_length=MAX_LABEL), AfterValidator(_printable)]
Number = Annotated[float, BeforeValidator(_no_bool), AfterValidator(_finite)]
Moment = Annotated[datetime, AfterValidator(_not_in_the_future)]
Attributes = Annotated[dict[Name, Attribute], Field(max_length=MAX_ATTRIBUTES)]


Purpose = Literal["personalization", "analytics", "marketing"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
Consent = Annotated[
    dict[Purpose, StrictBool],
    Field(description="What the person allows, by purpose; what they never spoke about is missing, and is allowed."),
]


def allows(consent: Mapping[Purpose, bool], purpose: Purpose) -> bool:
    """Whether a person allows a purpose; who never said anything about it does."""
    return consent.get(purpose, True)


class Row(BaseModel):
    """Base of the three rows: immutable, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Event(Row):
    """Something a person did with an item.

    `value` is a rating, a quantity, a price or a dwell time in seconds, as the event type means it.
    `recommendation_id` and `position` say which answer the event came from. A missing `event_id` is drawn by the
    service.
    """

    user_id: Id
    item_id: Id
    event_type: Name = "view"
    timestamp: Moment
    value: Number | None = None
    session_id: Id | None = None
    channel: Label | None = None
    context: Annotated[dict[Name, Scalar], Field(max_length=32)] = {}
    recommendation_id: Id | None = None
    position: Annotated[int, Field(ge=0, le=100_000)] | None = None
    event_id: Id | None = None


class Item(Row):
    """Something that can be recommended."""

    item_id: Id
    title: Label = ""
    description: Text = ""
    categories: Annotated[list[Label], Field(max_length=64)] = []
    attributes: Attributes = {}
    price: Annotated[Number, Field(ge=0)] | None = None
    created_at: Moment | None = None
    available: bool = True

    @field_validator("attributes")
    @classmethod
    def _attributes_are_not_columns(cls, value: dict[str, Attribute]) -> dict[str, Attribute]:
        clash = sorted(set(value) & ITEM_COLUMNS)
        if clash:
            raise ValueError(f"'{clash[0]}' is a field of the item itself, not an attribute")
        return value


class User(Row):
    """A person and what is known about them besides their events.

    `consent` has what they said, by purpose. Where a person is written again, attributes that are given replace those
    before; what is left out stays as it was, a purpose too: nobody withdraws a refusal by not repeating it.
    """

    user_id: Id
    attributes: Attributes = {}
    consent: Consent = {}


ITEM_COLUMNS = frozenset({"item_id", "title", "description", "categories", "price", "created_at", "available"})

TIME = pa.timestamp("us", tz="UTC")
EVENTS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("event_type", pa.string()),
        ("timestamp", TIME),
        ("value", pa.float64()),
        ("session_id", pa.string()),
        ("channel", pa.string()),
        ("context", pa.string()),
        ("recommendation_id", pa.string()),
        ("position", pa.int32()),
        ("event_id", pa.string()),
    ]
)
ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("categories", pa.list_(pa.string())),
        ("attributes", pa.string()),
        ("price", pa.float64()),
        ("created_at", TIME),
        ("available", pa.bool_()),
    ]
)
USERS = pa.schema([("user_id", pa.string()), ("attributes", pa.string()), ("consent", pa.string())])
DECISIONS = pa.schema(
    [
        ("recommendation_id", pa.string()),
        ("user_id", pa.string()),
        ("at", TIME),
        ("kind", pa.string()),
        ("placement", pa.string()),
        ("channel", pa.string()),
        ("request", pa.string()),
        ("items", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("propensities", pa.list_(pa.float64())),
        ("sources", pa.list_(pa.list_(pa.string()))),
        ("arms", pa.string()),
        ("model_version", pa.string()),
        ("policy_version", pa.int64()),
        ("degraded", pa.list_(pa.string())),
    ]
)
"""Answers that went out, as the service exports them; `request` and `arms` are JSON, lists have an entry for each place."""

SCHEMAS: dict[type[Row], pa.Schema] = {Event: EVENTS, Item: ITEMS, User: USERS}
JSON_COLUMNS = frozenset({"attributes", "consent", "context"})


def to_table(rows: Iterable[Row], kind: type[Row]) -> pa.Table:
    """Turn validated rows of one kind into a table of its schema."""
    schema = SCHEMAS[kind]
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for row in rows:
        for name, column in columns.items():
            value = getattr(row, name)
            column.append(json.dumps(value, sort_keys=True) if name in JSON_COLUMNS else value)
    return pa.table(columns, schema=schema)


def from_table(table: pa.Table, kind: type[Row]) -> list[Any]:
    """Turn a table of the schema of `kind` back into rows (the inverse of `to_table`).

    They are not validated again: what was right when the table was made stays right when the clock is set back.
    """
    rows = []
    for record in table.select(SCHEMAS[kind].names).to_pylist():
        for name in JSON_COLUMNS & record.keys():
            record[name] = json.loads(record[name]) if record[name] else {}
        rows.append(kind.model_construct(**{name: value for name, value in record.items() if value is not None}))
    return rows


def parse(kind: type[Row], raw: Mapping[str, Any]) -> Any:
    """Validate one raw row; raises `InputError` that names the first bad field and says what is wrong with it."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise first_error(error, known=kind.model_fields) from None


def first_error(error: ValidationError, *, known: Iterable[str] = ()) -> InputError:
    """Turn pydantic's report into one sentence about the first wrong field."""
    detail = error.errors(include_url=False)[0]
    field = path(detail["loc"])
    if detail["type"] == "extra_forbidden":
        names = list(known)
        hint = near(str(detail["loc"][-1]), names) or ";"
        return InputError(
            f"unknown field '{field}'" + (f"{hint} known: {', '.join(names)}" if names else ""), field=field
        )
    message = sentence(detail)
    return InputError(f"{field}: {message}" if field else message, field=field or None)
