"""Ids and rows: a bijection, and hashes that every process agrees on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.errors import InputError
from embeddings.ids import UNKNOWN, IdMap, bucket, stable_hash


@given(st.lists(st.text(), unique=True))
def test_ids_and_rows_are_inverse(names: list[str]) -> None:
    ids = IdMap(names)
    assert len(ids) == len(names)
    assert ids.ids(ids.rows(names)) == names
    assert ids.rows(names).tolist() == list(range(len(names)))


def test_unknown_ids_have_no_row_and_unknown_rows_no_id() -> None:
    ids = IdMap(["a", "b"])
    assert ids.rows(["b", "c"]).tolist() == [1, UNKNOWN]
    assert ids.row("c") == UNKNOWN
    for row in (UNKNOWN, 2):
        with pytest.raises(IndexError):
            ids.id(row)
    with pytest.raises(IndexError):
        ids.ids(np.array([0, -1]))


def test_a_double_id_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'b' occurs more than once"):
        IdMap(["a", "b", "c", "b"])


def test_two_processes_agree_on_hashes() -> None:
    program = "from embeddings.ids import stable_hash; print(stable_hash('Grüße', salt='x'))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(other.stdout) == stable_hash("Grüße", salt="x")


def test_hashes_never_change() -> None:
    assert stable_hash("bespoke") == 7921246944293471215


@given(st.text(), st.integers(1, 1000))
def test_buckets_are_in_range_and_salts_differ(name: str, buckets: int) -> None:
    assert 0 <= bucket(name, buckets) < buckets
    assert stable_hash(name, salt="one") != stable_hash(name, salt="other")


def test_buckets_are_even() -> None:
    counts = np.bincount([bucket(f"user-{n}", 10) for n in range(20_000)], minlength=10)
    assert counts.min() > 1_800
    assert counts.max() < 2_200
