"""Functions of single values, of whatever they are: logarithm, limits, missing ones."""

from typing import Any

import numpy as np
import xarray as xr

from xloader.contract import Fusion, Transform
from xloader.transforms.base import Elementwise


def log1p(*variables: str) -> Transform:
    """
    Replace values by ``log(1 + x)``.

    Parameters
    ----------
    *variables : str
        Which variables; sparse ones stay sparse.

    Returns
    -------
    Transform
        Keeps shape and NaN; integers become floats.

    Examples
    --------
    >>> log1p("count")(xr.Dataset({"count": ("sample", [0, 1])}))["count"].values.round(3)
    array([0.   , 0.693])
    """
    fusion = Fusion(variables[0], None, np.asarray, log=True) if len(variables) == 1 else None
    return Elementwise("log1p", _log1p, variables, fusion=fusion)


def _log1p(x: xr.Variable, _: xr.Dataset) -> xr.Variable:
    return np.log1p(x)  # type: ignore[return-value]


def clip(low: float | None, high: float | None, *variables: str) -> Transform:
    """
    Limit values to a range.

    Parameters
    ----------
    low, high : float or None
        Bounds; None for no bound.
    *variables : str
        Which variables.

    Returns
    -------
    Transform
        Keeps shape, dtype and NaN.

    Examples
    --------
    >>> clip(None, 2, "x")(xr.Dataset({"x": ("sample", [1, 5])})).x.values
    array([1, 2])
    """
    return Elementwise("clip", _clip, variables, low=low, high=high)


def _clip(x: xr.Variable, _: xr.Dataset, *, low: float | None, high: float | None) -> xr.Variable:
    if low is not None:
        x = np.maximum(x, _within(low, x.dtype))
    return x if high is None else np.minimum(x, _within(high, x.dtype))


def _within(bound: float, dtype: np.dtype[Any]) -> Any:
    """Return a bound as a number that the dtype can hold."""
    if dtype.kind in "iu":
        bound = min(max(bound, np.iinfo(dtype).min), np.iinfo(dtype).max)
    return dtype.type(bound)


def fill(value: float, *variables: str) -> Transform:
    """
    Replace missing values.

    Parameters
    ----------
    value : float
        What NaN becomes.
    *variables : str
        Which variables.

    Returns
    -------
    Transform
        Keeps shape and dtype; the mask is gone.

    Examples
    --------
    >>> fill(0, "x")(xr.Dataset({"x": ("sample", [1.0, np.nan])})).x.values
    array([1., 0.])
    """
    return Elementwise("fill", _fill, variables, value=value)


def _fill(x: xr.Variable, _: xr.Dataset, *, value: float) -> xr.Variable:
    filled: xr.Variable = x.fillna(x.dtype.type(value))  # type: ignore[no-untyped-call]
    return filled
