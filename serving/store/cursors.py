"""Cursors: the place where a page of a list ended, as text that a caller hands back for the next one.

Lists are ordered by a number (a time, mostly) and then by an id, so that is what a cursor holds.
"""

from __future__ import annotations

import base64
import binascii

import orjson

from embeddings.errors import InputError


def cursor(number: int, name: str) -> str:
    """Write the place after the row with this number and id."""
    return base64.urlsafe_b64encode(orjson.dumps([number, name])).decode().rstrip("=")


def cursor_read(text: str) -> tuple[int, str]:
    """Return the number and the id; raises `InputError` for what no page gave out."""
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        number, name = orjson.loads(decoded)
        if isinstance(number, int) and isinstance(name, str):
            return number, name
    except (binascii.Error, ValueError, TypeError):
        pass
    raise InputError("after: not a cursor; use the `next` of the page before", field="after")
