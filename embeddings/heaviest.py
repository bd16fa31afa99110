"""The heaviest cells of every row of a sparse matrix, as a table that is read without searching.

Shapes: N rows, W places of a row, C cells.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats, Ints
from embeddings.ids import UNKNOWN


def heaviest(
    rows_C: Ints, columns_C: Ints, weights_C: Floats, *, rows: int, width: int
) -> tuple[npt.NDArray[np.int32], Floats]:
    """Columns [N, W] and weights [N, W] of the `width` heaviest cells of each row, heaviest first.

    Places that are free hold `UNKNOWN` and weigh nothing. Of two cells of one weight the first column comes first.
    """
    columns = np.full((rows, width), UNKNOWN, dtype=np.int32)
    weights = np.zeros((rows, width), dtype=np.float32)
    order = np.lexsort((columns_C, -weights_C, rows_C))
    rows_C, columns_C, weights_C = rows_C[order], columns_C[order], weights_C[order]
    place_C = np.arange(len(rows_C)) - np.searchsorted(rows_C, rows_C)
    kept = place_C < width
    columns[rows_C[kept], place_C[kept]] = columns_C[kept]
    weights[rows_C[kept], place_C[kept]] = weights_C[kept]
    return columns, weights
