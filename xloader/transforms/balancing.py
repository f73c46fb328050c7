"""Contact counts corrected for the visibility of their bins."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.contract import Fusion, Transform
from xloader.errors import SchemaError
from xloader.transforms.base import Elementwise, float_of


def balance(name: str = "weight", variable: str = "count", *, into: str | None = None) -> Transform:
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
    into : str, optional
        Name of the balanced variable, beside the counts. Default: `variable` itself.

    Returns
    -------
    Transform
        Keeps the shape; float32 (float64 for float64 counts), NaN where a bin is masked. The
        attribute `weight` of the result names the vector.

    Raises
    ------
    SchemaError
        When it runs, if the batch has no such vector or variable.

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
    fusion = Fusion(variable, name, _factors, log=False) if into in (None, variable) else None
    return Elementwise("balance", _balance, (variable,), into=into, fusion=fusion, name=name)


def _balance(x: xr.Variable, batch: xr.Dataset, *, name: str) -> xr.Variable:
    sides = [f"{name}1", f"{name}2"]
    if not set(sides) <= set(batch.coords):
        there = sorted({str(c)[:-1] for c in batch.coords if "divisive" in batch[c].attrs})
        msg = (
            f"there is no balancing vector {name!r} here; there are {there or 'none'}; name one of "
            "them, or balance the map first"
        )
        raise SchemaError(msg)
    vectors = (batch.variables[s] for s in sides)
    first, second = (xr.Variable(w.dims, _factors(w)) for w in vectors)
    dtype = float_of(x.dtype)
    product = x.astype(np.float64) * first * second
    balanced = product.astype(dtype).transpose(*x.dims)
    balanced.attrs["weight"] = name
    return balanced


def _factors(vector: xr.Variable) -> npt.NDArray[Any]:
    """Return what counts are multiplied by."""
    divisor = vector.values.astype(np.float64, copy=False)
    if not vector.attrs.get("divisive", False):
        return divisor
    usable = (divisor != 0) & np.isfinite(divisor)
    return np.where(usable, 1 / np.where(usable, divisor, 1), np.nan)
