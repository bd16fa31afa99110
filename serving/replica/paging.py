"""Paging: a list that goes on below what was shown, whatever happened meanwhile.

The token of a next page carries what the pages before it showed, so nothing has to be remembered and any replica can go on.
It is signed, bound to person, placement, item and filter, and good for half an hour.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import zlib
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import orjson

from embeddings.errors import Expired, InputError
from embeddings.ids import stable_hash
from serving.request.query import Query

VALID_S = 1800.0
CLOCKS_S = 60.0
"""So far the clocks of two replicas may differ."""

MOST_SHOWN = 1000
"""After so many items there is no next page: nobody reads that far."""

SIGNATURE = 12
PACKED = 512
"""A token of more bytes than this is worth compressing."""

LARGEST = 1 << 18
"""Bytes of a token's content; a thousand of the longest ids have half of that."""

FIELD = "page"


class Paging:
    """Makes tokens and reads them; `key` is the same on all replicas."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def after(self, query: Query, shown: Sequence[str], *, anchor: str | None) -> str | None:
        """The token of what comes below a page; `shown` are its items, below those of `query.shown`."""
        above = [*query.shown, *shown]
        if len(above) > MOST_SHOWN:
            return None
        content = orjson.dumps([query.now.timestamp(), list(_bound(query).values()), anchor, above])
        body = b"z" + zlib.compress(content, 1) if len(content) > PACKED else b"p" + content
        return base64.urlsafe_b64encode(self._signature(body) + body).decode().rstrip("=")

    def opened(self, query: Query, token: str) -> Query:
        """The query of the page that a token stands for, the rest as asked.

        Raises `InputError` for a token that is none of ours or belongs to another request, `Expired` for one that is old.
        """
        at, bound, anchor, shown = self._read(token)
        for (what, own), other in zip(_bound(query).items(), bound, strict=True):
            if own != other:
                raise InputError(
                    f"{FIELD}: this page belongs to another {what}; a next page is asked for like the first one",
                    field=FIELD,
                )
        if not -CLOCKS_S <= query.now.timestamp() - at <= VALID_S:
            raise Expired(f"{FIELD}: a next page is kept for {VALID_S / 60:.0f} minutes; begin again", field=FIELD)
        return replace(query, shown=tuple(shown), anchor=query.anchor if anchor is None else anchor)

    def _read(self, token: str) -> tuple[float, list[int], str | None, list[str]]:
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            signature, body = raw[:SIGNATURE], raw[SIGNATURE:]
            if not hmac.compare_digest(signature, self._signature(body)):
                raise ValueError("another signature")
            content = zlib.decompressobj().decompress(body[1:], LARGEST) if body[:1] == b"z" else body[1:]
            at, bound, anchor, shown = orjson.loads(content)
        except (binascii.Error, ValueError, zlib.error):
            message = f"{FIELD}: not a page of this service; use the `next_page` of the answer before"
            raise InputError(message, field=FIELD) from None
        return at, bound, anchor, shown

    def _signature(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, sha256)[:SIGNATURE]


def _bound(query: Query) -> dict[str, int]:
    """What has to be the same on every page."""
    condition = b"" if query.filter is None else orjson.dumps(query.filter, option=orjson.OPT_SORT_KEYS)
    return {
        "person": stable_hash(f"{query.user_id}"),
        "placement": stable_hash(query.placement),
        "item": stable_hash(f"{query.similar_to}"),
        "filter": stable_hash(condition.decode()),
    }
