"""Random choice of single values, each by the key of its sample and its column alone."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from xloader.keyed import _mixed

Array = npt.NDArray[Any]
u8 = np.uint64

_mix = njit(inline="always")(_mixed)


@njit(inline="always", error_model="numpy")
def _uniform(key: Any, column: Any) -> float:
    bits = _mix(_mix(u8(column) * u8(0x9E3779B97F4A7C15) + key))
    return np.float64(bits >> u8(11)) * 2.0**-53


@njit(nogil=True, cache=True, error_model="numpy")
def choose(
    keys: Array, fraction: float, out: Array, first: int, last: int
) -> None:  # numpydoc ignore=PR01
    """Choose among all values of rows ``[first, last)``."""
    for i in range(first, last):
        for j in range(out.shape[1]):
            out[i, j] = _uniform(keys[i], j) < fraction


@njit(nogil=True, cache=True, error_model="numpy")
def choose_stored(
    keys: Array, indices: Array, indptr: Array, fraction: float, out: Array, first: int, last: int
) -> None:  # numpydoc ignore=PR01
    """Choose among the stored values of rows ``[first, last)``."""
    for i in range(first, last):
        for k in range(indptr[i], indptr[i + 1]):
            out[k] = _uniform(keys[i], indices[k]) < fraction
