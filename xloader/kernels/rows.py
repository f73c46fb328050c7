"""
Sparse rows from decoded blocks into the arrays of a batch, the encoding undone on the way.

Every loop returns the first row that has a column beyond the matrix, or -1. Differences of columns
are unsigned, so that columns rise and the last one tells.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from xloader.kernels.stream import stream

Array = npt.NDArray[Any]

_SCRATCH_NBYTES = 2**16
"""Rows that are put together at once, if several fit."""

# numpy's own division and no reordering of sums: results are those of plain loops
_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def copy(
    values: Array,
    columns: Array,
    starts: Array,
    lengths: Array,
    to: Array,
    data: Array,
    indices: Array,
    n_columns: int,
    delta: bool,  # noqa: FBT001 # numba passes by position
    first: int,
    last: int,
) -> int:  # numpydoc ignore=PR01,RT01
    """Write rows ``[first, last)`` of a batch, with column numbers or their differences given."""
    for i in range(first, last):
        a, b = to[i], to[i] + lengths[i]
        source, target = values[starts[i] : starts[i] + b - a], data[a:b]
        for k in range(b - a):
            target[k] = source[k]
        encoded, column = columns[starts[i] : starts[i] + b - a], indices[a:b]
        if delta:
            at = np.int64(0)
            for k in range(b - a):
                at += encoded[k]
                column[k] = at
            if at >= n_columns:
                return i
        else:
            for k in range(b - a):
                column[k] = encoded[k]
    return -1


@_compiled
def count(
    columns: Array,
    starts: Array,
    lengths: Array,
    place: Array,
    counts: Array,
    delta: bool,  # noqa: FBT001
    first: int,
    last: int,
) -> int:  # numpydoc ignore=PR01,RT01
    """Count the stored values of each row whose column is wanted (``place >= 0``)."""
    for i in range(first, last):
        encoded = columns[starts[i] : starts[i] + lengths[i]]
        at, n = np.int64(0), 0
        for k in range(lengths[i]):
            at = at + encoded[k] if delta else np.int64(encoded[k])
            if at >= len(place):
                return i
            n += place[at] >= 0
        counts[i] = n
    return -1


@_compiled
def select(
    values: Array,
    columns: Array,
    starts: Array,
    lengths: Array,
    place: Array,
    to: Array,
    data: Array,
    indices: Array,
    delta: bool,  # noqa: FBT001
    first: int,
    last: int,
) -> int:  # numpydoc ignore=PR01,RT01
    """Write the wanted columns of rows ``[first, last)`` under their new numbers."""
    for i in range(first, last):
        source = values[starts[i] : starts[i] + lengths[i]]
        encoded = columns[starts[i] : starts[i] + lengths[i]]
        at, out = np.int64(0), to[i]
        for k in range(lengths[i]):
            at = at + encoded[k] if delta else np.int64(encoded[k])
            new = place[at]
            if new >= 0:
                data[out] = source[k]
                indices[out] = new
                out += 1
    return -1


@_compiled
def scatter(
    values: Array,
    columns: Array,
    starts: Array,
    lengths: Array,
    place: Array,
    to: Array,
    out: Array,
    delta: bool,  # noqa: FBT001
    first: int,
    last: int,
) -> int:  # numpydoc ignore=PR01,RT01
    """
    Write rows ``[first, last)`` densely, each to row ``to[i]``; an empty `place` takes every column as it is.

    Rows are put together where the caches hold them, and what was put there is taken away again
    afterwards, so that zeros are written to memory once and never read from it.
    """
    everything = len(place) == 0
    n_columns = out.shape[1] if everything else len(place)
    width = out.shape[1]
    together = max(1, _SCRATCH_NBYTES // max(1, width * out.itemsize))
    scratch, flat = np.zeros(together * width, out.dtype), out.reshape(-1)
    end = first
    while end < last:
        begin = end
        end = min(last, begin + together)
        if to[end - 1] - to[begin] != end - 1 - begin:  # rising, but not successive
            end = begin + 1
        for i in range(begin, end):
            source = values[starts[i] : starts[i] + lengths[i]]
            encoded = columns[starts[i] : starts[i] + lengths[i]]
            row = scratch[(i - begin) * width : (i - begin + 1) * width]
            at = np.int64(0)
            for k in range(lengths[i]):
                at = at + encoded[k] if delta else np.int64(encoded[k])
                if at >= n_columns:
                    return i
                new = at if everything else np.int64(place[at])
                if new >= 0:
                    row[new] = source[k]
        stream(scratch, (end - begin) * width, flat, to[begin] * width)
        for i in range(begin, end):
            encoded = columns[starts[i] : starts[i] + lengths[i]]
            row = scratch[(i - begin) * width : (i - begin + 1) * width]
            at = np.int64(0)
            for k in range(lengths[i]):
                at = at + encoded[k] if delta else np.int64(encoded[k])
                new = at if everything else np.int64(place[at])
                if new >= 0:
                    row[new] = 0
    return -1
