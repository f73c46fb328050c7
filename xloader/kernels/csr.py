"""
Sparse rows picked, spread, sorted and summed.

Values that are only moved come as unsigned words of their size, so that few types are compiled.
Loops that follow column numbers return whether all of them exist (a negative one is a huge one
without sign). A row is never cut, and its sum depends on nothing else.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]

_compiled = njit(nogil=True, cache=True, error_model="numpy")
# sums may be reordered, which vector units need; NaN and infinity keep their meaning
_summing = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})


@_compiled  # type: ignore[untyped-decorator]
def repeat(
    values: Array, indptr: Array, start: int, out: Array
) -> None:  # numpydoc ignore=PR01,RT01
    """Write the value of its row for each stored place from `start` on."""
    i = np.searchsorted(indptr, start, side="right") - 1
    k = np.int64(0)
    while k < len(out):
        end = min(indptr[i + 1] - start, len(out))
        out[k:end] = values[i]
        k = end
        i += 1


@_compiled  # type: ignore[untyped-decorator]
def gather(values: Array, indices: Array, out: Array) -> bool:  # numpydoc ignore=PR01,RT01
    """Write the value of its column for each stored place."""
    for k in range(len(indices)):
        j = np.uint64(indices[k])
        if j >= np.uint64(len(values)):
            return False
        out[k] = values[j]
    return True


@_compiled  # type: ignore[untyped-decorator]
def take_rows(
    data: Array,
    indices: Array,
    starts: Array,
    indptr: Array,
    out: Array,
    columns: Array,
    first: int,
    last: int,
) -> None:  # numpydoc ignore=PR01,RT01
    """Copy the rows that begin at `starts` to where `indptr` wants them."""
    for i in range(first, last):
        a, n = starts[i], indptr[i + 1] - indptr[i]
        source, target = data[a : a + n], out[indptr[i] : indptr[i + 1]]
        for k in range(len(target)):
            target[k] = source[k]
        numbers, target_numbers = indices[a : a + n], columns[indptr[i] : indptr[i + 1]]
        for k in range(len(target_numbers)):
            target_numbers[k] = numbers[k]


@_compiled  # type: ignore[untyped-decorator]
def take_columns(
    data: Array,
    indices: Array,
    indptr: Array,
    place: Array,
    counts: Array,
    out: Array,
    columns: Array,
    first: int,
    last: int,
) -> bool:  # numpydoc ignore=PR01,RT01
    """Pack the wanted columns (``place >= 0``) of some rows from ``out[indptr[first]]`` on."""
    at = indptr[first]
    for i in range(first, last):
        source, numbers = data[indptr[i] : indptr[i + 1]], indices[indptr[i] : indptr[i + 1]]
        before = at
        for k in range(len(numbers)):
            j = np.uint64(numbers[k])
            if j >= np.uint64(len(place)):
                return False
            new = place[j]
            out[at] = source[k]  # kept only if the next one goes elsewhere: no branch to guess
            columns[at] = new
            at += new >= 0
        counts[i] = at - before
    return True


@_compiled  # type: ignore[untyped-decorator]
def scatter(
    data: Array, indices: Array, indptr: Array, out: Array, first: int, last: int
) -> bool:  # numpydoc ignore=PR01,RT01
    """Write some rows densely."""
    for i in range(first, last):
        source, numbers = data[indptr[i] : indptr[i + 1]], indices[indptr[i] : indptr[i + 1]]
        row = out[i]
        row[:] = 0
        for k in range(len(numbers)):
            j = np.uint64(numbers[k])
            if j >= np.uint64(len(row)):
                return False
            row[j] = source[k]
    return True


@_compiled  # type: ignore[untyped-decorator]
def sort_columns(
    data: Array,
    indices: Array,
    indptr: Array,
    n_columns: int,
    out: Array,
    columns: Array,
    first: int,
    last: int,
) -> bool:  # numpydoc ignore=PR01,RT01
    """Write some rows with their columns rising: the places by column, then back by row."""
    n = indptr[last] - indptr[first]
    after = np.zeros(n_columns + 1, np.int64)
    for i in range(first, last):
        numbers = indices[indptr[i] : indptr[i + 1]]
        for k in range(len(numbers)):
            if numbers[k] < 0 or numbers[k] >= n_columns:
                return False
            after[numbers[k] + 1] += 1
    for j in range(n_columns):
        after[j + 1] += after[j]
    rows, places = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(first, last):
        for k in range(indptr[i], indptr[i + 1]):
            at = after[indices[k]]
            after[indices[k]] += 1
            rows[at] = i
            places[at] = k
    filled = indptr[first:last].copy()
    for k in range(n):
        at = filled[rows[k] - first]
        filled[rows[k] - first] += 1
        out[at] = data[places[k]]
        columns[at] = indices[places[k]]
    return True


@_summing  # type: ignore[untyped-decorator]
def sum_rows(
    data: Array,
    indptr: Array,
    skip: bool,  # noqa: FBT001 # numba passes by position
    out: Array,
    first: int,
    last: int,
) -> None:  # numpydoc ignore=PR01,RT01
    """Sum each row in the type of `out`; `skip` passes over NaN."""
    zero = out.dtype.type(0)
    for i in range(first, last):
        row = data[indptr[i] : indptr[i + 1]]
        total = zero
        if skip:
            for k in range(len(row)):
                total += out.dtype.type(row[k]) if row[k] == row[k] else zero
        else:
            for k in range(len(row)):
                total += out.dtype.type(row[k])
        out[i] = total


@_compiled  # type: ignore[untyped-decorator]
def sum_columns(
    data: Array,
    indices: Array,
    skip: bool,  # noqa: FBT001
    out: Array,
) -> bool:  # numpydoc ignore=PR01,RT01
    """Add stored values to the sums of their columns; `skip` passes over NaN."""
    for k in range(len(indices)):
        j = np.uint64(indices[k])
        if j >= np.uint64(len(out)):
            return False
        if not skip or data[k] == data[k]:
            out[j] += out.dtype.type(data[k])
    return True


@_compiled  # type: ignore[untyped-decorator]
def extreme_columns(
    data: Array,
    indices: Array,
    largest: bool,  # noqa: FBT001
    skip: bool,  # noqa: FBT001
    out: Array,
    counts: Array,
) -> bool:  # numpydoc ignore=PR01,RT01
    """Count the stored values of each column and keep the largest or smallest of them in `out`."""
    for k in range(len(indices)):
        j = np.uint64(indices[k])
        if j >= np.uint64(len(out)):
            return False
        v, best = data[k], out[j]
        counts[j] += 1
        missing = best != best if skip else v != v  # noqa: PLR0124 # NaN
        if missing or (v > best if largest else v < best):
            out[j] = v
    return True
