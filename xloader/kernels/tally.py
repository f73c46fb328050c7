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


@njit(nogil=True, cache=True, error_model="numpy")
def add_up(
    data: Array, indices: Array, indptr: Array, sums: Array, detected: Array, totals: Array
) -> None:  # numpydoc ignore=PR01
    """Add sparse rows up by column and by row, and count the values of columns that are not zero."""
    for i in range(len(indptr) - 1):
        total = 0.0
        for k in range(indptr[i], indptr[i + 1]):
            value, j = np.float64(data[k]), indices[k]
            sums[j] += value
            detected[j] += value != 0
            total += value
        totals[i] = total


@njit(nogil=True, cache=True, error_model="numpy")
def deviate(
    data: Array, indices: Array, mean: Array, squares: Array, filled: Array
) -> None:  # numpydoc ignore=PR01
    """Add up squared deviations of stored values from the mean of their column, and count them."""
    for k in range(len(data)):
        j = indices[k]
        off = np.float64(data[k]) - mean[j]
        squares[j] += off * off
        filled[j] += 1
