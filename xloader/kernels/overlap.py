"""Overlapping predictions of the same places, brought to their weighted mean."""

from typing import Any

import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled  # type: ignore[untyped-decorator]
def add(
    values: Array, weights: Array, mean: Array, total: Array, count: Array
) -> None:  # numpydoc ignore=PR01,RT01
    """
    Add predictions to weighted means, with their weights and their number; NaN is no prediction.

    ``mean += (value - mean) * weight / total``, after West, Communications of the ACM 22:532 (1979):
    however many equal values come, and whatever their weights, their mean is that very value.
    """
    for i in range(values.shape[0]):
        v, w, m, t, n = values[i], weights[i], mean[i], total[i], count[i]
        for j in range(len(v)):
            if v[j] == v[j] and w[j] > 0:  # not NaN
                t[j] += w[j]
                n[j] += 1
                if n[j] == 1:
                    m[j] = v[j]
                elif v[j] != m[j]:  # so that infinities stay what they are
                    m[j] += (v[j] - m[j]) * (w[j] / t[j])
