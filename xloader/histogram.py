"""Percentiles of a stream of numbers: exact for whole numbers, within half a per mille for others."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from typing_extensions import override

Floats = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_FEW = 2**16
_SHIFT = 13
_SIGN = np.uint32(0x80000000)
_INFINITE = np.uint32(0x7F800000)


class Histogram(ABC):
    """How often each value was met."""

    error: float
    """Largest relative error of a value."""

    @abstractmethod
    def add(self, values: Floats, times: int = 1) -> None:
        """
        Count some values.

        Parameters
        ----------
        values : ndarray of float64, shape (n,)
            Not NaN.
        times : int, optional
            How often each.
        """

    @abstractmethod
    def counted(self) -> tuple[Floats, Int64]:
        """
        Return what was counted.

        Returns
        -------
        tuple of ndarray of float64 and of int64, shape (m,)
            Values, increasing, and how often they were met, at least once.
        """

    def quantiles(self, quantiles: Sequence[float]) -> Floats:
        """
        Return quantiles as numpy defines them (``method="linear"``).

        Parameters
        ----------
        quantiles : sequence of float
            Between 0 and 1.

        Returns
        -------
        ndarray of float64, shape (n_quantiles,)
            NaN if nothing was counted.
        """
        values, times = self.counted()
        if len(values) == 0:
            return np.full(len(quantiles), np.nan)
        ends = np.cumsum(times)
        places = np.asarray(quantiles, np.float64) * (ends[-1] - 1)
        low = np.floor(places).astype(np.int64)
        high = np.minimum(low + 1, ends[-1] - 1)
        below, above = (values[np.searchsorted(ends, k, "right")] for k in (low, high))
        return np.asarray(below + (above - below) * (places - low))


class Exact(Histogram):
    """
    For whole numbers: takes 0.5 MB, and 16 bytes for each different number above 65,535.

    Examples
    --------
    >>> counts = Exact()
    >>> counts.add(np.array([1.0, 70000.0, 3.0]))
    >>> counts.quantiles([0, 0.5, 1]).tolist()
    [1.0, 3.0, 70000.0]
    """

    error = 0.0

    def __init__(self) -> None:
        self._few = np.zeros(_FEW, np.int64)
        self._many = np.zeros(0), np.zeros(0, np.int64)

    @override
    def add(self, values: Floats, times: int = 1) -> None:  # numpydoc ignore=GL08
        small = (values >= 0) & (values < _FEW)
        self._few += times * np.bincount(values[small].astype(np.int64), minlength=_FEW)
        if not small.all():
            found, n = np.unique(values[~small], return_counts=True)
            known, before = self._many
            numbers, where = np.unique(np.append(known, found), return_inverse=True)
            total = np.zeros(len(numbers), np.int64)
            np.add.at(total, where, np.append(before, times * n))
            self._many = numbers, total

    @override
    def counted(self) -> tuple[Floats, Int64]:  # numpydoc ignore=GL08
        few = np.flatnonzero(self._few)
        numbers = np.append(few.astype(np.float64), self._many[0])
        times = np.append(self._few[few], self._many[1])
        order = np.argsort(numbers)
        return numbers[order], times[order]


class Rounded(Histogram):
    """
    For any numbers: takes 4 MB.

    Values are counted by the first 19 bits of their float32 form (sign, exponent and 10 bits of the
    mantissa) and given back as the middle of what has the same bits: within 2^-11 of the value,
    relatively, for magnitudes between 1.2e-38 and 3.4e38. Zero is exact.

    Examples
    --------
    >>> floats = Rounded()
    >>> floats.add(np.array([0.0, 1.0, -1.0]))
    >>> floats.quantiles([0, 0.5, 1]).round(3).tolist()
    [-1.0, 0.0, 1.0]
    """

    error = 2.0**-11

    def __init__(self) -> None:
        self._times = np.zeros(2 ** (32 - _SHIFT), np.int64)

    @override
    def add(self, values: Floats, times: int = 1) -> None:  # numpydoc ignore=GL08
        with np.errstate(over="ignore"):  # infinity is where it belongs
            bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 is 0
        # so turned, bits are in the order of the numbers
        keys = np.where(bits & _SIGN, ~bits, bits | _SIGN) >> _SHIFT
        self._times += times * np.bincount(keys, minlength=len(self._times))

    @override
    def counted(self) -> tuple[Floats, Int64]:  # numpydoc ignore=GL08
        keys = np.flatnonzero(self._times)
        middle = (keys.astype(np.uint32) << np.uint32(_SHIFT)) + np.uint32(2 ** (_SHIFT - 1))
        bits = np.where(middle & _SIGN, middle ^ _SIGN, ~middle)
        bits = np.where(bits & _INFINITE == _INFINITE, bits & (_SIGN | _INFINITE), bits)
        values = bits.astype(np.uint32).view(np.float32).astype(np.float64)
        values[keys == _SIGN >> _SHIFT] = 0.0
        return values, self._times[keys]
