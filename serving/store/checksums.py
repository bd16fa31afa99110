"""Checksums of rows: what is read is what was written, or it is refused.

A database notices when its pages no longer fit together; a flipped bit inside a value it hands out as it is. Each row that
is served or exported therefore carries the CRC-32 of its values, its key included, so that a row found under another key
does not pass either.
"""

from __future__ import annotations

import zlib

import orjson

from embeddings.errors import Damaged


def checksum(*values: object) -> int:
    """CRC-32 of values, whatever their types are: a damaged row may hold any."""
    return zlib.crc32(orjson.dumps(values, default=repr))


def checksum_of_blob(key: str, blob: bytes) -> int:
    """CRC-32 of a large value and the key of its row; of a value that is no blob, nothing that was ever stored."""
    return zlib.crc32(blob, zlib.crc32(key.encode())) if isinstance(blob, bytes) else -1


def refuse(what: str) -> Damaged:
    """Make the error for a row whose checksum does not fit."""
    return Damaged(f"{what} is damaged: its checksum does not fit; restore the store from a copy, or delete it")
