"""What neighbours say about a pixel: smoothing, filling gaps, pooling where there are few contacts."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.contract import Transform
from xloader.errors import SchemaError
from xloader.schema import require
from xloader.transforms.base import Batchwise, Elementwise, float_of, last_two

Floats = npt.NDArray[Any]

_MIN_SHAPE = 8
"""Bins a side at which pooling ends, as in cooltools."""


def smooth(sigma: float, *variables: str) -> Transform:
    """
    Smooth windows with a Gaussian, leaving out what is masked.

    ``sum(g * x) / sum(g)`` over the pixels of the window that are not NaN, where ``g`` is the Gaussian
    of the distance from the pixel, cut at four standard deviations (normalised convolution: Knutsson
    and Westin, CVPR 1993; ``scipy.ndimage.gaussian_filter`` where nothing is masked or near an edge).

    Parameters
    ----------
    sigma : float
        Standard deviation, in bins.
    *variables : str
        ``(..., bin1, bin2)``.

    Returns
    -------
    Transform
        Keeps shape and mask; float32 (float64 for float64). Each window is smoothed by itself.

    Raises
    ------
    SchemaError
        If `sigma` is not positive; when it runs, if a variable lies not along both bins.

    Examples
    --------
    >>> ds = xr.Dataset({"x": (("bin1", "bin2"), [[1.0, 1.0], [np.nan, 3.0]])})
    >>> smooth(1, "x")(ds).x.values.round(2)
    array([[1.37, 1.55],
           [ nan, 2.01]])
    """
    if not sigma > 0:
        msg = f"smooth({sigma}) is impossible; choose a standard deviation above 0, in bins"
        raise SchemaError(msg)
    return Elementwise("smooth", _smooth, variables, sigma=sigma)


def _smooth(x: xr.Variable, _: xr.Dataset, *, sigma: float) -> xr.Variable:
    ordered = last_two(x, "smooth")
    values = ordered.values.astype(float_of(x.dtype))
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(values.dtype)
    seen = ~np.isnan(values)
    whole = seen.all()
    if not whole:
        values[~seen] = 0
    weights = np.ones(values.shape[-2:], values.dtype) if whole else seen.astype(values.dtype)
    for axis in (-2, -1):
        values, weights = (_convolved(a, kernel, axis) for a in (values, weights))
    with np.errstate(invalid="ignore"):  # nothing is seen around
        values /= weights
    if not whole:
        values[~seen] = np.nan
    return ordered.copy(data=values).transpose(*x.dims)


def _convolved(values: Floats, kernel: Floats, axis: int) -> Floats:
    """Return the convolution with a symmetric kernel along one axis, zeros lying outside."""
    radius, n = len(kernel) // 2, values.shape[axis]
    moved = np.moveaxis(values, axis, 0)
    out = np.zeros_like(values)
    into = np.moveaxis(out, axis, 0)
    for shift in range(-min(radius, n - 1), min(radius, n - 1) + 1):
        a, b = max(0, shift), min(n, n + shift)
        into[a - shift : b - shift] += kernel[shift + radius] * moved[a:b]
    return out


def interpolate(*variables: str) -> Transform:
    """
    Fill masked pixels from those around them.

    Linear along `bin2`, then along `bin1`, averaged with the other order, so that symmetric windows
    stay so; beyond the last pixel that is not masked, its value goes on. Where whole bins are masked
    this is bilinear interpolation, as of ``cooltools.lib.numutils.interp_nan`` inside a window.

    Parameters
    ----------
    *variables : str
        ``(..., bin1, bin2)``.

    Returns
    -------
    Transform
        Keeps the shape; float32 (float64 for float64). The mask is gone, but of windows that are
        masked as a whole.

    Raises
    ------
    SchemaError
        When it runs, if a variable lies not along both bins.

    Examples
    --------
    >>> ds = xr.Dataset({"x": (("bin1", "bin2"), [[1.0, np.nan, 5.0]])})
    >>> interpolate("x")(ds).x.values
    array([[1., 3., 5.]])
    """
    return Elementwise("interpolate", _interpolate, variables)


def _interpolate(x: xr.Variable, _: xr.Dataset) -> xr.Variable:
    ordered = last_two(x, "interpolate")
    values = ordered.values.astype(float_of(x.dtype))
    windows = values.reshape(-1, *values.shape[-2:])  # a view
    some = np.isnan(windows).any(axis=(1, 2))
    part = windows[some]
    first, second = _filled(_filled(part, -1), -2), _filled(_filled(part, -2), -1)
    windows[some] = np.where(np.isnan(part), (first + second) / 2, part)
    return ordered.copy(data=values).transpose(*x.dims)


def _filled(values: Floats, axis: int) -> Floats:
    """Return values with gaps along one axis filled; lines of gaps alone stay."""
    x = np.moveaxis(values, axis, -1).copy(order="C")
    flat, n = x.reshape(-1), x.shape[-1]
    gaps = np.isnan(flat)
    seen, at = np.flatnonzero(~gaps), np.flatnonzero(gaps)
    if not len(seen):
        return values
    place = np.searchsorted(seen, at)
    before, after = seen[np.maximum(place - 1, 0)], seen[np.minimum(place, len(seen) - 1)]
    has_before, has_after = ((k // n == at // n) for k in (before, after))
    before, after = np.where(has_before, before, after), np.where(has_after, after, before)
    share = ((at - before) / np.maximum(after - before, 1)).astype(x.dtype)
    filled = flat[before] + share * (flat[after] - flat[before])
    flat[at] = np.where(has_before | has_after, filled, np.nan)
    return np.moveaxis(x, -1, axis)


def adaptive_coarsegrain(
    raw: str = "count", balanced: str = "balanced", *, cutoff: float = 5, max_levels: int = 8
) -> Transform:
    """
    Replace pixels that have few contacts by the mean of larger and larger squares.

    The algorithm, and its results, are those of ``cooltools.lib.numutils.adaptive_coarsegrain``
    (Open2C, PLOS Computational Biology 2024), which Akita's targets went through.

    Parameters
    ----------
    raw : str, optional
        Counts ``(..., bin1, bin2)`` of the same windows.
    balanced : str, optional
        What is pooled.
    cutoff : float, optional
        Contacts below which the four pixels of a square are replaced by their mean.
    max_levels : int, optional
        How many times squares double at most.

    Returns
    -------
    Transform
        Replaces `balanced`; keeps shape and mask; float32 (float64 for float64).

    Raises
    ------
    SchemaError
        When it runs, if a variable is missing, or windows are not square.

    Examples
    --------
    >>> x = np.arange(256.0).reshape(16, 16)
    >>> ds = xr.Dataset({k: (("bin1", "bin2"), x) for k in ("count", "balanced")})
    >>> adaptive_coarsegrain()(ds).balanced.values[0, :6]
    array([ 8.5,  8.5, 10.5, 10.5, 12.5, 12.5])
    """
    return Batchwise(
        "adaptive_coarsegrain", _adaptive, raw=raw, balanced=balanced, cutoff=cutoff,
        max_levels=max_levels,
    )  # fmt: skip


def _adaptive(
    batch: xr.Dataset, *, raw: str, balanced: str, cutoff: float, max_levels: int
) -> xr.Dataset:
    what = "adaptive_coarsegrain"
    require(batch, [raw, balanced], f"transform {what!r}")
    x, counts = (last_two(batch.variables[k], what) for k in (balanced, raw))
    n = x.shape[-1]
    if x.dims != counts.dims or x.shape[-2] != n:
        msg = f"transform {what!r} needs square windows of both, but has {x.sizes}, {counts.sizes}"
        raise SchemaError(msg)
    side = 1 << (n - 1).bit_length()
    pad = [(0, 0)] * (x.ndim - 2) + [(0, side - n)] * 2
    values = np.pad(x.values.astype(np.float64), pad, constant_values=np.nan)
    seen = np.isfinite(values)
    values = np.where(seen, values, 0)
    contacts = np.where(seen, np.pad(counts.values.astype(np.float64), pad), 0)
    levels = [(values, contacts, seen.astype(np.float64))]
    while len(levels) <= max_levels and levels[-1][0].shape[-1] > _MIN_SHAPE:
        levels.append(tuple(_squares(a).sum(axis=(-3, -1)) for a in levels[-1]))
    for k in range(len(levels) - 2, -1, -1):
        (coarse, _, n_coarse), (fine, contacts, n_fine) = levels[k + 1], levels[k]
        mean = np.divide(coarse, n_coarse, out=np.zeros_like(coarse), where=n_coarse > 0)
        few = _squares(contacts).min(axis=(-3, -1)) < cutoff
        mean, few = (a.repeat(2, axis=-2).repeat(2, axis=-1) for a in (mean, few))
        levels[k] = np.where(few, mean * n_fine, fine) * (n_fine > 0), contacts, n_fine
    pooled = np.where(seen, levels[0][0], np.nan)[..., :n, :n].astype(float_of(x.dtype))
    dims = batch.variables[balanced].dims
    return batch.assign({balanced: x.copy(data=pooled).transpose(*dims)})


def _squares(values: Floats) -> Floats:
    """Return values with an axis of length 2 after each of the last two."""
    *lead, h, w = values.shape
    return values.reshape(*lead, h // 2, 2, w // 2, 2)
