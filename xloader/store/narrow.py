"""The narrowest type that holds some values exactly."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xloader.threads import cut, n_threads, run

Array = npt.NDArray[Any]

_PART = 2**16
"""Values that are looked at together: they fit the cache."""


def types_for(dtype: np.dtype[Any], *, bits: Sequence[int], floats: bool) -> list[np.dtype[Any]]:
    """
    Return the types that may hold some values exactly.

    Parameters
    ----------
    dtype : dtype
        Their own type.
    bits : sequence of int
        Widths of the unsigned integers to try.
    floats : bool
        Whether fractions may turn out to be integers.

    Returns
    -------
    list of dtype
        Narrowest first, their own one last.
    """
    if dtype.kind == "c" or (dtype.kind == "f" and not floats):
        return [dtype]
    narrow = [np.dtype(f"u{b // 8}") for b in bits if b // 8 <= dtype.itemsize]
    return [*(d for d in narrow if d != dtype), dtype]


def rung_of(values: Array, types: Sequence[np.dtype[Any]], at_least: int = 0) -> int:
    """
    Return which type holds some values exactly.

    Parameters
    ----------
    values : ndarray
        Any values.
    types : sequence of dtype
        What `types_for` returned.
    at_least : int, optional
        Where to begin. Default: at the narrowest.

    Returns
    -------
    int
        Place among them.
    """
    flat = values.reshape(-1)
    parts = cut(len(flat), n_threads() if len(flat) > 16 * _PART else 1)
    return max(run("decode", _rung, [(flat[a:b], types, at_least) for a, b in parts]))


def _rung(values: Array, types: Sequence[np.dtype[Any]], at_least: int) -> int:
    last = len(types) - 1
    rung = at_least
    for a in range(0, len(values), _PART):
        if rung == last:
            break
        part = values[a : a + _PART]
        low, high = part.min(), part.max()
        # a NaN fails the first comparison
        if not low >= 0 or not np.isfinite(high):
            return last
        if part.dtype.kind == "f" and not (part == np.floor(part)).all():
            return last
        fits = (k for k in range(rung, last) if int(high) <= np.iinfo(types[k]).max)
        rung = next(fits, last)
    return rung


def narrowed(values: Array, dtype: np.dtype[Any]) -> Array:
    """
    Return values in another type, which holds them.

    Parameters
    ----------
    values : ndarray
        Any values.
    dtype : dtype
        A type that `rung_of` chose, or a wider one.

    Returns
    -------
    ndarray
        The same array if nothing changes.
    """
    if values.dtype == dtype:
        return values
    out = np.empty(values.shape, dtype)
    source, target = values.reshape(-1), out.reshape(-1)
    parts = cut(len(source), n_threads() if len(source) > 16 * _PART else 1)
    run("decode", _cast, [(target[a:b], source[a:b]) for a, b in parts])
    return out


def _cast(target: Array, source: Array) -> None:
    np.copyto(target, source, casting="unsafe")
