"""Bodies: bytes of a caller become JSON that the rest of the service may rely on, or are refused.

JSON leaves open what a repeated name means, how deep a document may be, and what happens to numbers that no double holds;
parsers differ in it, and attacks live off the difference. Here all of that is an error.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import orjson

MAX_DEPTH = 32
"""Levels of arrays and objects; the deepest honest body, a rule with two conditions, has about 20."""

TOO_DEEP = f"the body is nested more than {MAX_DEPTH} levels deep"


class Malformed(Exception):
    """A body that is refused; its text is the sentence that says why."""


def parsed(body: bytes) -> Any:
    """The value of a JSON body; raises `Malformed`."""
    try:
        value = orjson.loads(body)  # strict about UTF-8, surrogates, numbers and control characters
    except orjson.JSONDecodeError as error:
        raise Malformed(TOO_DEEP if "depth limit" in str(error) else f"the body is not valid JSON: {error}") from None
    names = _names(value)
    if names is None:
        raise Malformed(TOO_DEEP)
    # What was written and what was kept differ in number if a name was repeated. Between strings a colon follows a name.
    between = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]
    if names != b"".join(between).count(b":"):
        raise Malformed(f"the body is not valid JSON: {_repeated(body)}")
    return value


def _names(value: Any) -> int | None:
    """How many names all objects have together; None if they are nested too deeply."""
    count, level = 0, [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        flat = True
        for one in level:
            if isinstance(one, dict):
                count += len(one)
                below += one.values()
                flat = False
            elif isinstance(one, list):
                below += one
                flat = False
        if flat:
            return count
        level = below
    return None


def _repeated(body: bytes) -> str:
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        name, times = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
        if times > 1:
            found.append(name)

    json.loads(body, object_pairs_hook=note)
    return f"the name {json.dumps(found[0][:64])} occurs more than once in an object"
