"""Sentences: what pydantic finds wrong with a value, in our words, with what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

SENTENCES: Mapping[str, str] = {
    "missing": "is required",
    "extra_forbidden": "unknown field",
    "string_type": "must be a string",
    "string_too_short": "must have a length of at least {min_length}",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be a boolean, true or false",
    "bool_parsing": "must be a boolean, true or false",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be greater than or equal to {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be less than or equal to {le:g}",
    "too_short": "must have at least {min_length}, and has {actual_length}",
    "too_long": "must have at most {max_length}",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "literal_error": "must be {expected}",
    "datetime_type": "must be a datetime such as 2026-03-01T12:00:00Z",
    "datetime_parsing": "must be a datetime such as 2026-03-01T12:00:00Z",
    "datetime_from_date_parsing": "must be a datetime such as 2026-03-01T12:00:00Z",
}
"""By type of the error; what is missing here is said as pydantic says it."""

SHARE = 1
PERCENT = 100


def sentence(detail: Mapping[str, Any]) -> str:
    """What is wrong with one value, after its path: "must be less than or equal to 1; 50 percent is 0.5"."""
    context, value = detail.get("ctx") or {}, detail.get("input")
    form = SENTENCES.get(detail["type"])
    if form is None:
        return str(detail["msg"]).removeprefix("Value error, ")
    said = form.format_map(context)
    match detail["type"]:
        case "literal_error" if isinstance(value, str):
            return said + near(value, context["expected"].replace(" or ", ", ").replace("'", "").split(", "))
        case "less_than_equal" if (
            context["le"] == SHARE and isinstance(value, int | float) and SHARE < value <= PERCENT
        ):
            return f"{said}; {value:g} percent is {value / PERCENT:g}"
    return said


def near(name: str, known: Iterable[str]) -> str:
    """The hint at the name among those known that somebody may have meant, if there is one."""
    found = difflib.get_close_matches(name[:128], sorted(known), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


def path(place: Iterable[str | int]) -> str:
    """The path to a value; that it is the name in an object is no part of it."""
    return ".".join(str(part) for part in place if part != "[key]")
