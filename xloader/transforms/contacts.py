"""Contact counts: balanced, or as of a lower coverage."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.contract import Fusion, SampleRandom, Transform
from xloader.errors import SchemaError
from xloader.schema import require
from xloader.transforms.base import Elementwise


def balance(name: str = "weight", variable: str = "count") -> Transform:
    """
    Correct contact counts for the visibility of their bins.

    Multiplicative vectors give ``count * w1 * w2``, divisive ones (attribute `divisive`)
    ``count / (w1 * w2)``, as cooler and juicer define them. Divisors that are zero or not finite
    count as masked.

    Parameters
    ----------
    name : str, optional
        Balancing vector; the batch has it as coordinates ``<name>1`` and ``<name>2``.
    variable : str, optional
        Counts to balance.

    Returns
    -------
    Transform
        Keeps the shape; float32 (float64 for float64 counts), NaN where a bin is masked.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"count": (("bin1", "bin2"), [[4, 2], [2, 8]])},
    ...     {"weight1": ("bin1", [0.5, np.nan]), "weight2": ("bin2", [0.5, np.nan])},
    ... )
    >>> balance()(ds)["count"].values
    array([[ 1., nan],
           [nan, nan]], dtype=float32)
    """
    fusion = Fusion(variable, name, _factors, log=False)
    return Elementwise("balance", _balance, (variable,), fusion=fusion, name=name)


def _balance(x: xr.Variable, batch: xr.Dataset, *, name: str) -> xr.Variable:
    sides = [f"{name}1", f"{name}2"]
    if not set(sides) <= set(batch.coords):
        there = sorted({str(c)[:-1] for c in batch.coords if "divisive" in batch[c].attrs})
        msg = (
            f"balancing vector {name!r} is not in this file; it has {there or 'none'}; name one of "
            "them, or balance the file first"
        )
        raise SchemaError(msg)
    vectors = (batch.variables[s] for s in sides)
    first, second = (xr.Variable(w.dims, _factors(w)) for w in vectors)
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    product = x.astype(np.float64) * first * second
    return product.astype(dtype).transpose(*x.dims)


def _factors(vector: xr.Variable) -> npt.NDArray[Any]:
    """Return what counts are multiplied by."""
    divisor = vector.values.astype(np.float64, copy=False)
    if not vector.attrs.get("divisive", False):
        return divisor
    usable = (divisor != 0) & np.isfinite(divisor)
    return np.where(usable, 1 / np.where(usable, divisor, 1), np.nan)


def thin(keep: float, *, variable: str = "count", into: str | None = None) -> Transform:
    """
    Simulate lower coverage: keep each contact with a given probability.

    Binomial thinning of Poisson counts gives Poisson counts of the lower depth. Windows that are
    symmetric stay so.

    Parameters
    ----------
    keep : float
        Probability that a contact stays, above 0 and at most 1.
    variable : str, optional
        Raw integer counts ``(sample, bin1, bin2)``.
    into : str, optional
        Name of the thinned variable. Default: `variable` itself.

    Returns
    -------
    Transform
        Keeps shape and dtype; random by (seed, epoch, sample).

    Raises
    ------
    SchemaError
        If `keep` is out of range; when it runs, if counts are not integers.
    """
    if not 0 < keep <= 1:
        msg = f"thin(keep={keep}) is impossible; choose a probability above 0 and at most 1"
        raise SchemaError(msg)
    return _Thin(keep, variable, into or variable)


class _Thin:
    __name__ = "thin"

    def __init__(self, keep: float, variable: str, into: str) -> None:
        self.keep = keep
        self.variable = variable
        self.into = into

    def __call__(self, batch: xr.Dataset, *, rng: SampleRandom) -> xr.Dataset:
        require(batch, [self.variable], "transform 'thin'")
        x = batch[self.variable]
        if x.dtype.kind not in "iu":
            msg = f"transform 'thin' needs raw integer counts, but {self.variable!r} is {x.dtype}"
            raise SchemaError(msg)
        windows = zip(x.values, rng, strict=True)
        thinned = np.stack([_thin_window(w, r, self.keep) for w, r in windows])
        return batch.assign({self.into: x.copy(data=thinned)})


def _thin_window(
    window: npt.NDArray[Any], rng: np.random.Generator, keep: float
) -> npt.NDArray[Any]:
    thinned = rng.binomial(window, keep).astype(window.dtype)
    if window.ndim == 2 and np.array_equal(window, window.T):
        upper = np.triu(thinned)
        return np.asarray(upper + np.triu(upper, 1).T)
    return thinned
