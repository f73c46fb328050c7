"""Sums over the pairs of bins of a contact map."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]


@njit(nogil=True, cache=True, error_model="numpy")
def tally(
    block: Array,
    row: int,
    rows: Array,
    columns: Array,
    ids: Array,
    codes: Array,
    begins: Array,
    factors: Array,
    nearest: int,
    sums: Array,
    squares: Array,
    missing: Array,
    coverage: Array,
    values: Array,
    n: int,
) -> tuple[int, int]:  # numpydoc ignore=PR01,RT01
    """
    Add what some rows of a block hold; return the row at which `values` is full, and its length.

    `rows` and `columns` number the bins of the block, -1 for those that do not count; pairs count if
    both bins have one code, a factor that is not NaN, and are at least `nearest` ids apart. Distance
    ``d`` of code ``k`` is added up at ``begins[k] + d``.
    """
    for r in range(row, block.shape[0]):
        p = rows[r]
        if p < 0 or np.isnan(factors[p]):
            continue
        line = block[r]
        if n + len(line) > len(values):
            return r, n
        code, first, factor = codes[p], ids[p] + nearest, factors[p]
        at = begins[code] - ids[p]
        for c in range(len(line)):
            if line[c] == 0:  # most of them, and nothing to add
                continue
            q = columns[c]
            if q < 0 or codes[q] != code or ids[q] < first or np.isnan(factors[q]):
                continue
            d = at + ids[q]
            value = np.float64(line[c]) * factor * factors[q]
            if np.isnan(value):
                missing[d] += 1
                continue
            sums[d] += value
            squares[d] += value * value
            coverage[p] += value
            if p != q:
                coverage[q] += value
            values[n] = value
            n += 1
    return block.shape[0], n
