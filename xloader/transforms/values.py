"""Functions of single values, of whatever they are: logarithm, limits, missing ones."""

from typing import Any

import numpy as np
import xarray as xr

from xloader.contract import Fusion, Transform
from xloader.errors import SchemaError
from xloader.transforms.base import Elementwise, float_of
from xloader.transforms.frozen import Frozen, quantiles


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


def clip(
    low: float | None, high: float | None, *variables: str, stats: xr.Dataset | None = None
) -> Transform:
    """
    Limit values to a range.

    Parameters
    ----------
    low, high : float or None
        Bounds; None for no bound.
    *variables : str
        Which variables. Default with `stats`: the one they are of.
    stats : xarray.Dataset, optional
        From ``xl.statistics`` of the training view; bounds are then quantiles between 0 and 1, one
        of those in ``percentile (quantile)``, and their values are frozen here.

    Returns
    -------
    Transform
        Keeps shape, dtype and NaN; bounds of integers are rounded inwards.

    Raises
    ------
    SchemaError
        If `low` is above `high`, or `stats` lack a quantile; when it runs, if the batch has another
        balancing or bin size than `stats`.

    Examples
    --------
    >>> clip(None, 2, "x")(xr.Dataset({"x": ("sample", [1, 5])})).x.values
    array([1, 2])
    """
    low, high, variables, frozen = _bounds("clip", low, high, variables, stats)
    return Elementwise("clip", _clip, variables, low=low, high=high, frozen=frozen)


def _bounds(
    what: str,
    low: float | None,
    high: float | None,
    variables: tuple[str, ...],
    stats: xr.Dataset | None,
) -> tuple[float | None, float | None, tuple[str, ...], Frozen | None]:
    """Look quantiles up, and refuse bounds of which none is between the others."""
    frozen = None
    if stats is not None:
        frozen, (low, high) = quantiles(stats, what, (low, high))
        variables = variables or (frozen.variable,)
    if low is not None and high is not None and low > high:
        msg = f"{what}() has the bounds {low} and {high}; give the lower one first"
        raise SchemaError(msg)
    return low, high, variables, frozen


def _clip(
    x: xr.Variable,
    batch: xr.Dataset,
    *,
    low: float | None,
    high: float | None,
    frozen: Frozen | None,
) -> xr.Variable:
    if frozen is not None:
        frozen.check(x, batch)
    if low is not None:
        x = np.maximum(x, _within(low, x.dtype, np.ceil))
    return x if high is None else np.minimum(x, _within(high, x.dtype, np.floor))


def _within(bound: float, dtype: np.dtype[Any], inwards: Any) -> Any:
    """Return a bound as a number that the dtype can hold."""
    if dtype.kind in "iu":
        bound = min(max(inwards(bound), np.iinfo(dtype).min), np.iinfo(dtype).max)
    return dtype.type(bound)


def scale(low: float, high: float, *variables: str, stats: xr.Dataset | None = None) -> Transform:
    """
    Move a range of values to that from 0 to 1: ``(x - low) / (high - low)``.

    Parameters
    ----------
    low, high : float
        What becomes 0 and 1; values beyond are not clipped.
    *variables : str
        Which variables. Default with `stats`: the one they are of.
    stats : xarray.Dataset, optional
        As for `clip`: `low` and `high` are then quantiles.

    Returns
    -------
    Transform
        Keeps shape and NaN; float32 (float64 for float64).

    Raises
    ------
    SchemaError
        If `low` is not below `high`, and as for `clip`.

    Examples
    --------
    >>> scale(0, 4, "x")(xr.Dataset({"x": ("sample", [1.0, 4.0])})).x.values
    array([0.25, 1.  ])
    """
    bottom, top, variables, frozen = _bounds("scale", low, high, variables, stats)
    if bottom is None or top is None or not bottom < top:
        msg = f"scale() cannot move the range from {bottom} to {top} to that from 0 to 1"
        raise SchemaError(msg)
    return Elementwise("scale", _scale, variables, low=bottom, high=top, frozen=frozen)


def _scale(
    x: xr.Variable, batch: xr.Dataset, *, low: float, high: float, frozen: Frozen | None
) -> xr.Variable:
    if frozen is not None:
        frozen.check(x, batch)
    dtype = float_of(x.dtype)
    scaled: xr.Variable = (x.astype(dtype) - dtype.type(low)) / dtype.type(high - low)
    return scaled


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
