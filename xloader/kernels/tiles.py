"""Windows of contact maps cut from decoded tiles: mirrored, balanced and log-transformed on the way."""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

Array = npt.NDArray[Any]

# rows are contiguous slices and inner loops have no branches, so that they become vector code;
# these flags keep NaN, infinities and the order of sums
_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
f4 = np.float32
i4 = np.int32


def _bitcast(to: Any, source: Any) -> Any:
    @intrinsic
    def cast(typing: Any, value: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
            kind = ir.FloatType() if to is types.float32 else ir.IntType(32)
            return builder.bitcast(args[0], kind)

        return to(source), generate

    return cast


_bits = _bitcast(types.int32, types.float32)
_float = _bitcast(types.float32, types.int32)


@njit(inline="always", error_model="numpy")
def log1p(x: Any) -> Any:  # numpydoc ignore=PR01,RT01
    """
    Return ``log(1 + x)`` of a float32, within 3e-7 of the exact value.

    The polynomial is that of Cephes' ``logf``; what rounding takes from ``1 + x`` is put back. Written
    without branches: numpy's own is as quick only on processors with 512-bit vectors.
    """
    u = f4(1) + x
    c = (x - (u - f4(1))) / u
    k = _bits(u) - i4(0x3F3504F3)
    e = f4(k >> i4(23))
    f = _float((k & i4(0x7FFFFF)) + i4(0x3F3504F3)) - f4(1)
    z = f * f
    y = f4(7.0376836292e-2)
    y = y * f + f4(-1.1514610310e-1)
    y = y * f + f4(1.1676998740e-1)
    y = y * f + f4(-1.2420140846e-1)
    y = y * f + f4(1.4249322787e-1)
    y = y * f + f4(-1.6668057665e-1)
    y = y * f + f4(2.0000714765e-1)
    y = y * f + f4(-2.4999993993e-1)
    y = y * f + f4(3.3333331174e-1)
    r = y * f * z + e * f4(-2.12194440e-4) - f4(0.5) * z + f + e * f4(0.693359375) + c
    r = f4(np.inf) if x == f4(np.inf) else r
    r = f4(-np.inf) if u == f4(0) else r
    return r if u >= f4(0) else f4(np.nan)


@njit(inline="always", error_model="numpy")
def _copy(tile: Array, top: int, left: int, out: Array, r: int, q: int, h: int, w: int) -> None:
    """Copy ``tile[top:top + h, left:left + w]`` to ``out[r:, q:]``."""
    for k in range(h):
        source, target = tile[top + k, left : left + w], out[r + k, q : q + w]
        for m in range(w):
            target[m] = source[m]


@njit(inline="always", error_model="numpy")
def _flip(tile: Array, top: int, left: int, out: Array, r: int, q: int, h: int, w: int) -> None:
    """Copy the transpose of ``tile[left:left + w, top:top + h]`` to ``out[r:, q:]``."""
    h8, w8 = h - h % 8, w - w % 8
    for a in range(0, w8, 8):
        for b in range(0, h8, 8):
            for m in range(8):  # constant lengths: this is what makes it vector code
                for k in range(8):
                    out[r + b + k, q + a + m] = tile[left + a + m, top + b + k]
    for k in range(h8, h):
        for m in range(w8):
            out[r + k, q + m] = tile[left + m, top + k]
    for k in range(h):
        for m in range(w8, w):
            out[r + k, q + m] = tile[left + m, top + k]


@njit(inline="always", error_model="numpy")
def _finish(block: Array, rows: Array, columns: Array, balance: bool, log: bool) -> None:  # noqa: FBT001
    """Balance and log-transform a block in place."""
    n = len(columns)
    for r in range(block.shape[0]):
        line = block[r]
        if balance:
            weight = rows[r]
            for q in range(n):
                line[q] = line[q] * (weight * columns[q])
        if log:
            for q in range(n):
                line[q] = log1p(line[q])


@_compiled
def cut(
    tiles: Array,
    slots: Array,
    places: Array,
    symmetric: bool,  # noqa: FBT001 # numba passes by position
    out: Array,
    first: int,
    last: int,
) -> None:  # numpydoc ignore=PR01
    """Write windows ``[first, last)``; ``slots[k, i, j]`` is the tile at ``places[k] // side + (i, j)``."""
    for k in range(first, last):
        _window(tiles, slots[k], places[k, 0], places[k, 1], symmetric, out[k])


@_compiled
def cut_finished(
    tiles: Array,
    slots: Array,
    places: Array,
    symmetric: bool,  # noqa: FBT001
    out: Array,
    starts: Array,
    rows: Array,
    columns: Array,
    balance: bool,  # noqa: FBT001
    log: bool,  # noqa: FBT001
    first: int,
    last: int,
) -> None:  # numpydoc ignore=PR01
    """Write windows as `cut` does, then finish each while caches hold it."""
    h, w = out.shape[1:]
    for k in range(first, last):
        _window(tiles, slots[k], places[k, 0], places[k, 1], symmetric, out[k])
        a, b = starts[k]
        _finish(out[k], rows[a : a + h], columns[b : b + w], balance, log)


@_compiled
def finish_tiles(
    tiles: Array,
    ij: Array,
    out: Array,
    rows: Array,
    columns: Array,
    balance: bool,  # noqa: FBT001
    log: bool,  # noqa: FBT001
    first: int,
    last: int,
) -> None:  # numpydoc ignore=PR01
    """Balance and log-transform whole tiles, for windows that share them."""
    side = tiles.shape[1]
    for k in range(first, last):
        _copy(tiles[k], 0, 0, out[k], 0, 0, side, side)
        a, b = ij[k, 0] * side, ij[k, 1] * side
        _finish(out[k], rows[a : a + side], columns[b : b + side], balance, log)


@njit(inline="always", error_model="numpy")
def _window(
    tiles: Array,
    slots: Array,
    top: int,
    left: int,
    symmetric: bool,  # noqa: FBT001
    out: Array,
) -> None:
    side = tiles.shape[1]
    h, w = out.shape
    i0, j0 = top // side, left // side
    for i in range(i0, (top + h - 1) // side + 1):
        r0, r1 = max(top, i * side), min(top + h, (i + 1) * side)
        for j in range(j0, (left + w - 1) // side + 1):
            c0, c1 = max(left, j * side), min(left + w, (j + 1) * side)
            tile = tiles[slots[i - i0, j - j0]]
            if symmetric and i > j:
                _flip(
                    tile, r0 - i * side, c0 - j * side, out, r0 - top, c0 - left, r1 - r0, c1 - c0
                )
            else:
                _copy(
                    tile, r0 - i * side, c0 - j * side, out, r0 - top, c0 - left, r1 - r0, c1 - c0
                )
