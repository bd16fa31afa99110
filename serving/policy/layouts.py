"""Layouts: what a page is made of, which of it an editor has pinned, and how freely the rest is put in order for a person.

A slot is a shelf (a placement with a title), a content, an alert, or a tile of an app (a tab, a button) with its own id.
Shelves, and tiles that say which items they stand for, are put in order by what they are worth to the person; the others
keep their places in the list, as what is pinned does.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, Strict, StrictBool, ValidationError, model_validator

from embeddings.errors import InputError, NotFound, unknown_name
from embeddings.schema import Id, Label, Row, first_error
from embeddings.sentences import sentence
from serving.policy.columns import FIELDS
from serving.policy.contents import Content, check_alert_of_state, check_no_alert
from serving.policy.kinds import Kind, PolicyDocument, References, by_id, check_distinct
from serving.policy.placements import Share
from serving.policy.rules import Tree

MAX_SLOTS = 50
PLACEHOLDERS = ("anchor", "verb")
"""What a title may hold: the item that the shelf starts from, and what the person did with it."""

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "for_you": "Picked for you",
        "similar": "Similar to {anchor}",
        "bought_together": "Goes with {anchor}",
        "because_you_watched": "Because you {verb} {anchor}",
        "trending": "Trending now",
        "new": "New for you",
        "continue": "Continue where you left off",
        "buy_again": "Buy it again",
    }
)
"""Titles of shelves that bring none of their own, by placement."""


def placeholders(template: str) -> set[str]:
    """The placeholders in a title; raises `InputError` for one that is not known and for braces that do not match."""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise InputError(f"must have matching braces: {error}") from None
    for name in names:
        if name not in PLACEHOLDERS:
            raise unknown_name("placeholder", name[:64], PLACEHOLDERS)
    return names


def _titled(template: str) -> str:
    placeholders(template)
    return template


Title = Annotated[Label, AfterValidator(_titled)]
Count = Annotated[int, Strict(), Field(ge=1, le=200)]


class _Slot(Row):
    id: Id
    pinned: StrictBool = False

    @property
    def moves(self) -> bool:
        """Whether it is put in order for the person."""
        return False


class Shelf(_Slot):
    """Items of a placement under a title, at most `max_items` (default: as many as the placement says).

    A shelf with fewer than `min_items` is not shown. The title may name the item that the shelf starts from, `{anchor}`,
    and what the person did with it, `{verb}`.
    """

    type: Literal["shelf"] = "shelf"
    placement: Id
    title: Title | None = None
    min_items: Count = 1
    max_items: Count | None = None

    @model_validator(mode="after")
    def _bounds_fit(self) -> Shelf:
        if self.max_items is not None and self.min_items > self.max_items:
            raise InputError(f"min_items: is {self.min_items}, more than max_items", field="min_items")
        return self

    @property
    def moves(self) -> bool:
        """Unless it is pinned."""
        return not self.pinned

    @property
    def template(self) -> str | None:
        """The title before anything is put in."""
        return self.title or TITLES.get(self.placement)


class ContentSlot(_Slot):
    """A content, in the variant that is decided for the person."""

    type: Literal["content"]
    content: Id


class AlertSlot(_Slot):
    """An alert, if there is one for the person now; any, or the named one.

    What only the application sees (`exit_intent`, `idle`) happens when the page is there: no slot may name it.
    """

    type: Literal["alert"]
    alert: Id | None = None


class Tile(_Slot):
    """A part of an app with an id of its own; `items` are those it stands for, by which it finds its place."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    type: Literal["tile"]
    title: Label = ""
    items: Tree = None

    @property
    def moves(self) -> bool:
        """Unless it is pinned, or stands for no items by which it could be judged."""
        return not self.pinned and self.items is not None


Slot = Annotated[Shelf | ContentSlot | AlertSlot | Tile, Field(discriminator="type")]
SLOTS: Mapping[str, type[_Slot]] = {"shelf": Shelf, "content": ContentSlot, "alert": AlertSlot, "tile": Tile}


class Layout(PolicyDocument):
    """One page, as stored and as answered by the service; its id is the name of the page.

    At most `max_shelves` shelves are shown. The others are in the order of `log2(value) - stickiness * place`, where the
    value of a shelf is the share of everything this person might want next that it holds, and `place` is its place in
    `slots`: with a stickiness of 1 a shelf must hold twice as much to come before the one above it, with 0 the value alone
    decides. For a share of the people, `exploration`, one of the shelves is put anywhere, the same for an hour. Pinned
    shelves are counted first. On a page `about` the cart no shelf has what lies in it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    slots: Annotated[tuple[Slot, ...], Field(min_length=1, max_length=MAX_SLOTS)]
    max_shelves: Annotated[int, Strict(), Field(ge=1, le=MAX_SLOTS)] = MAX_SLOTS
    stickiness: Share = 0.5
    exploration: Share = 0.05
    about: Literal["cart"] | None = None

    @model_validator(mode="after")
    def _ids_are_distinct(self) -> Layout:
        check_distinct((slot.id for slot in self.slots), field="slots", what="slot")
        return self


def _shelf(placement: str, name: str | None = None, **fields: Any) -> Shelf:
    return Shelf(id=name or placement, type="shelf", placement=placement, **fields)


READY_MADE: Mapping[str, Layout] = MappingProxyType(
    {
        one.id: one
        for one in (
            Layout(
                id="home",
                description="A start page: what was begun, what may come next, and what is new.",
                slots=(
                    _shelf("continue", pinned=True),
                    _shelf("for_you"),
                    _shelf("because_you_watched", "because_1", min_items=3, max_items=12),
                    _shelf("buy_again"),
                    _shelf("trending", min_items=3),
                    _shelf("because_you_watched", "because_2", min_items=3, max_items=12),
                    _shelf("new", min_items=3),
                ),
            ),
            Layout(
                id="product",
                description="Beside one item, the request's `item_id`: what goes with it, what is like it.",
                slots=(_shelf("bought_together", pinned=True), _shelf("similar", pinned=True), _shelf("for_you")),
            ),
            Layout(
                id="cart",
                about="cart",
                description="Beside the cart: what goes with the last thing in it, and what is bought again and again.",
                slots=(_shelf("bought_together"), _shelf("buy_again"), _shelf("for_you", max_items=10)),
            ),
        )
    }
)
"""Layouts that exist without being written."""


def parse_layout(raw: Mapping[str, Any], *, references: References) -> Layout:
    """Validate one raw document; raises `InputError` whose field is a path such as "slots.1.placement".

    What a document with the id of a ready-made layout leaves out is as in that one.
    """
    if not isinstance(raw, Mapping):
        raise InputError("a layout must be an object")
    name = raw.get("id")
    ready = READY_MADE.get(name) if isinstance(name, str) else None
    attributes = references.item_attributes
    known = None if attributes is None else frozenset(attributes) | FIELDS.keys()
    try:
        layout = Layout.model_validate(
            {**ready.model_dump(mode="json"), **raw} if ready else raw, context={"item_attributes": known}
        )
    except ValidationError as error:
        raise _first_wrong(error) from None
    for place, slot in enumerate(layout.slots):
        match slot:
            case Shelf():
                _named("placement", slot.placement, references, f"slots.{place}.placement")
            case ContentSlot():
                _check_content(slot.content, references, check_no_alert, field=f"slots.{place}.content")
            case AlertSlot(alert=str(name)):
                _check_content(name, references, check_alert_of_state, field=f"slots.{place}.alert")
    return layout


def _check_content(name: str, references: References, check: Callable[[Content, str], None], *, field: str) -> None:
    if isinstance(content := _named("content", name, references, field), Content):
        check(content, field)


def _named(kind: str, name: str, references: References, field: str) -> PolicyDocument | None:
    """The document that a slot names; None where nothing is known of its kind."""
    if kind not in references.documents:
        return None
    if name not in references.ids(kind):
        raise unknown_name(kind, name, references.ids(kind), field=field)
    return references.documents[kind][name]


def _first_wrong(error: ValidationError) -> InputError:
    detail = error.errors(include_url=False)[0]
    place = [part for part in detail["loc"] if part not in SLOTS]
    field = ".".join(map(str, place))
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        if place and cause.field and cause.field.partition(".")[0] == place[-1]:
            field = ".".join(map(str, place[:-1]))
        path = cause.field if cause.field and cause.field.startswith("slots") else _joined(field, cause.field)
        message = cause.message.removeprefix(f"{cause.field}: ") if cause.field else cause.message
        return InputError(f"{path}: {message}" if path else message, field=path or None)
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(detail.get("ctx", {}).get("tag", ""))[:64]
        return unknown_name("slot", tag, SLOTS, field=f"{field}.type")
    if detail["type"] == "extra_forbidden" and len(place) > 1:
        return InputError(f"unknown field '{field}'", field=field)
    if len(place) < 2:
        return first_error(error, known=Layout.model_fields)
    return InputError(f"{field}: {sentence(detail)}", field=field)


def _joined(*parts: str | None) -> str:
    return ".".join(part for part in parts if part)


def _parsed(raw: Mapping[str, Any], references: References) -> Layout:
    return parse_layout(raw, references=references)


def _as_it_reads(raw: Mapping[str, Any]) -> Layout | None:
    """The layout, if it is sound apart from what it names: a page does not go because one of its placements did."""
    try:
        return parse_layout(raw, references=References())
    except InputError:
        return None


LAYOUTS = Kind(
    name="layout",
    plural="layouts",
    model=Layout,
    parse=_parsed,
    compile=by_id,
    despite=_as_it_reads,
    ready_made=READY_MADE,
)
"""Layouts, compiled to themselves by id."""


def layout_of(layouts: Mapping[str, Layout], name: str) -> Layout:
    """One of the layouts; raises `NotFound` that lists those there are."""
    found = layouts.get(name)
    if found is None:
        raise NotFound(unknown_name("page", name, layouts).message, field="page")
    return found
