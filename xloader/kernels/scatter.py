"""
Values put where a store or a batch wants them, and filters of HDF5 undone.

Values that are only moved come as unsigned words of their size, so that few types are compiled.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled  # type: ignore[untyped-decorator]
def undo_shuffle(source: Array, out: Array) -> None:  # numpydoc ignore=PR01,RT01
    """Put words together whose first bytes come first, then all second ones, and so on."""
    n = len(out)
    first = source[:n]
    for k in range(n):
        out[k] = first[k]
    for byte in range(1, len(source) // n):
        more = source[byte * n : (byte + 1) * n]
        shift = 8 * byte
        for k in range(n):
            out[k] |= out.dtype.type(more[k]) << shift


@_compiled  # type: ignore[untyped-decorator]
def undo_lzf(source: Array, out: Array) -> int:  # numpydoc ignore=PR01,RT01
    """Decompress LZF; return the number of bytes, or 0 if they are damaged."""
    i, o = 0, 0
    while i < len(source):
        head = np.int64(source[i])
        i += 1
        if head < 32:  # so many bytes as they are
            if i + head >= len(source) or o + head >= len(out):
                return 0
            for _ in range(head + 1):
                out[o] = source[i]
                i += 1
                o += 1
            continue
        length = head >> 5
        if length == 7:
            if i >= len(source):
                return 0
            length += np.int64(source[i])
            i += 1
        if i >= len(source):
            return 0
        back = o - ((head & 31) << 8) - np.int64(source[i]) - 1
        i += 1
        if back < 0 or o + length + 2 > len(out):
            return 0
        for _ in range(length + 2):
            out[o] = out[back]
            o += 1
            back += 1
    return o


@_compiled  # type: ignore[untyped-decorator]
def disorder(
    indices: Array, indptr: Array, n_columns: int, first: int, last: int
) -> tuple[int, int]:  # numpydoc ignore=PR01,RT01
    """Return the first row whose columns do not rise, and the first with one that is not there."""
    falling, outside = -1, -1
    for i in range(first, last):
        before = np.int64(-1)
        for k in range(indptr[i], indptr[i + 1]):
            j = np.int64(indices[k])
            if j <= before and falling < 0:
                falling = i
            if (j < 0 or j >= n_columns) and outside < 0:
                outside = i
            before = j
    return falling, outside


@_compiled  # type: ignore[untyped-decorator]
def encode(
    values: Array,
    columns: Array,
    starts: Array,
    indptr: Array,
    out: Array,
    deltas: Array,
    first: int,
    last: int,
) -> int:  # numpydoc ignore=PR01,RT01
    """Copy rows to where `indptr` wants them, columns as differences; return one that falls, or -1."""
    for i in range(first, last):
        n = indptr[i + 1] - indptr[i]
        source, target = values[starts[i] : starts[i] + n], out[indptr[i] : indptr[i + 1]]
        for k in range(len(target)):
            target[k] = source[k]
        numbers, steps = columns[starts[i] : starts[i] + n], deltas[indptr[i] : indptr[i + 1]]
        if n > 0:
            steps[0] = numbers[0]
        rising = True
        for k in range(1, len(steps)):
            steps[k] = numbers[k] - numbers[k - 1]
            rising &= numbers[k] >= numbers[k - 1]
        if not rising:
            return i
    return -1


@_compiled  # type: ignore[untyped-decorator]
def place(
    values: Array, deltas: Array, indptr: Array, to: Array, out: Array, out_deltas: Array
) -> None:  # numpydoc ignore=PR01,RT01
    """Copy rows to their places in a part of an array; what lies beyond it is left out."""
    for i in range(len(to)):
        low = max(np.int64(0), -to[i])
        high = min(indptr[i + 1] - indptr[i], len(out) - to[i])
        if low >= high:
            continue
        a, b = indptr[i] + low, indptr[i] + high
        source, target = values[a:b], out[to[i] + low : to[i] + high]
        for k in range(len(target)):
            target[k] = source[k]
        steps, target_steps = deltas[a:b], out_deltas[to[i] + low : to[i] + high]
        for k in range(len(target_steps)):
            target_steps[k] = steps[k]


@_compiled  # type: ignore[untyped-decorator]
def pixels(
    bin2: Array,
    count: Array,
    indptr: Array,
    start: int,
    top: int,
    bottom: int,
    slots: Array,
    corner: tuple[int, int],
    out: Array,
    n_bins: int,
    upper: bool,  # noqa: FBT001 # numba passes by position
) -> int:  # numpydoc ignore=PR01,RT01
    """
    Put the pixels of some rows into the tiles numbered by `slots`; return a wrong one, or -1.

    `start` is the number of the first pixel, `corner` the first tile row and column of `slots`. A
    pixel is wrong outside the map, with a count that is none, and where one was put already.
    """
    bits = 0
    while 1 << bits < out.shape[1]:
        bits += 1
    mask = (1 << bits) - 1
    for row in range(top, bottom):
        line = slots[(row >> bits) - corner[0]]
        lowest = row if upper else 0
        first, last = max(indptr[row] - start, 0), min(indptr[row + 1] - start, len(bin2))
        for k in range(first, last):
            j = np.int64(bin2[k])
            value = count[k]
            if j < lowest or j >= n_bins or not (value >= 0 and value < np.inf):
                return k
            column = (j >> bits) - corner[1]
            if column < 0 or column >= len(line):
                continue
            slot = line[column]
            if slot >= 0:
                if out[slot, row & mask, j & mask] != 0:
                    return k
                out[slot, row & mask, j & mask] = value
    return -1


@_compiled  # type: ignore[untyped-decorator]
def mark(numbers: Array, side: int, marks: Array) -> None:  # numpydoc ignore=PR01,RT01
    """Mark the runs of `side` numbers that any of the given ones, from 0, is in."""
    for k in range(len(numbers)):
        at = np.uint64(numbers[k]) // np.uint64(side)
        if at < len(marks):
            marks[at] = True
