"""Receipts: what an erasure took away, signed, so that it can be shown later that it happened.

A receipt is not kept: it names the person. Whoever holds one can have it verified by the service that gave it out, as long
as its store is the same.
"""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson

from serving.store.database import Database
from serving.store.erasures import Erased, secret
from serving.store.tables import moment

SIGNATURE = "signature"


class Receipts:
    """Signs and verifies receipts with a key of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sign(self, erased: Erased, *, beside: Mapping[str, int], reason: str | None = None) -> dict[str, Any]:
        """Make the receipt of an erasure; `beside` is what went that was not in the database."""
        receipt = {
            "receipt_id": uuid.uuid4().hex,
            "user_id": erased.ids[0],
            "aliases": list(erased.ids[1:]),
            "erased_at": moment(erased.at).isoformat(),
            "reason": reason,
            "removed": {**erased.removed, **beside},
        }
        return receipt | {SIGNATURE: self._signature(receipt)}

    def verify(self, receipt: Mapping[str, Any]) -> bool:
        """Whether a receipt is one of this store's, and as it was given out."""
        rest = {name: value for name, value in receipt.items() if name != SIGNATURE}
        return hmac.compare_digest(str(receipt.get(SIGNATURE, "")).encode(), self._signature(rest).encode())

    def _signature(self, receipt: Mapping[str, Any]) -> str:
        key = self._database.read(lambda connection: secret(connection, "receipts"))
        return hmac.digest(key, orjson.dumps(receipt, option=orjson.OPT_SORT_KEYS), sha256).hex()
