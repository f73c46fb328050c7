"""Binomial thinning of contact counts, each pair of bins by random numbers of its own."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from xloader.keyed import _mixed

Array = npt.NDArray[Any]
u8 = np.uint64

CHUNK = 512
"""Contacts that are drawn with one number: ``0.5**CHUNK`` is above the least of a float64."""

_mix = njit(inline="always")(_mixed)


@njit(inline="always", error_model="numpy")
def _inverted(n: int, u: float, odds: float, powers: Array) -> int:
    """Return the binomial number of `n` trials whose cumulative probability first exceeds `u`."""
    p, k = powers[n], 0
    while u >= p and k < n:
        u -= p
        k += 1
        p *= (n - k + 1) * odds / k
    return k


@njit(nogil=True, cache=True, error_model="numpy")
def thin(
    counts: Array,
    bin1: Array,
    bin2: Array,
    keys: Array,
    keep: float,
    out: Array,
    first: int,
    last: int,
) -> None:  # numpydoc ignore=PR01
    """Thin windows ``[first, last)``: what a pair of bins gets depends on its key and itself alone."""
    rare = min(keep, 1 - keep)  # few steps for each contact, and powers that are above zero
    odds = rare / (1 - rare)
    powers = (1 - rare) ** np.arange(CHUNK + 1)
    h, w = counts.shape[1:]
    for s in range(first, last):
        for i in range(h):
            for j in range(w):
                left: Any = np.int64(counts[s, i, j])
                if left == 0:
                    out[s, i, j] = 0
                    continue
                a, b = min(bin1[s, i], bin2[s, j]), max(bin1[s, i], bin2[s, j])
                state = _mix(keys[s] + (u8(a) << u8(32)) + u8(b))
                total, drawn = left, np.int64(0)
                while left > 0:
                    n = min(left, CHUNK)
                    state += u8(0x9E3779B97F4A7C15)
                    u = np.float64(_mix(state) >> u8(11)) * 2.0**-53
                    drawn += _inverted(n, u, odds, powers)
                    left -= n
                out[s, i, j] = total - drawn if keep > 0.5 else drawn
