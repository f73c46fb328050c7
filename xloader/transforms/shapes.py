"""Windows of another shape or direction: coarser, cropped, flipped, as a vector of pairs of bins."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.contract import SampleRandom, Transform
from xloader.errors import SchemaError
from xloader.schema import require
from xloader.transforms.base import Batchwise, Randomly, float_of, last_two

_SIDES = ("bin1", "bin2")
_HOW = ("sum", "mean")


def coarsen(factor: int, how: str | Mapping[str, str] = "sum") -> Transform:
    """
    Join neighbouring bins, as if the map had a coarser resolution.

    ``"sum"`` adds contacts up, each once: where a coarse pixel holds both (i, j) and (j, i), as on
    the diagonal, they are one contact, which is how ``cooler coarsen`` counts (Abdennur and Mirny,
    Bioinformatics 2020). NaN stays NaN. ``"mean"`` is the mean of what is not NaN, over all pixels.

    Parameters
    ----------
    factor : int
        How many bins become one; divides the length of the windows.
    how : {"sum", "mean"} or mapping of str to str, optional
        For all variables along `bin1` or `bin2`, or for each by name.

    Returns
    -------
    Transform
        `bin1` and `bin2` are `factor` times shorter; bins of another resolution stay. Sums of integers are int64, those of floats keep
        the dtype; means are float32 (float64 for float64). `start` is the least of all, `end` the
        largest, `bin` its number divided by `factor`; further numbers of bins are averaged.
        Balancing vectors are dropped: they hold for one resolution, so balance before, or read the
        coarser one. `binsize` and `resolution` are multiplied.

    Raises
    ------
    SchemaError
        If `factor` or `how` is impossible; when it runs, if windows are no multiple of `factor`, a
        variable is not named, or one bin would join several chromosomes.

    Examples
    --------
    >>> sides = {f"bin{s}": (f"bin{s}", [4, 5, 6, 7]) for s in "12"}
    >>> ds = xr.Dataset({"count": (("bin1", "bin2"), np.ones((4, 4), int))}, sides)
    >>> coarsen(2)(ds)["count"].values
    array([[3, 4],
           [4, 3]])
    """
    if factor < 1:
        msg = f"coarsen({factor}) is impossible; choose how many bins become one, 1 or more"
        raise SchemaError(msg)
    unknown = sorted(set(how.values() if isinstance(how, Mapping) else [how]) - set(_HOW))
    if unknown:
        msg = f"coarsen(how={unknown}) is unknown; choose one of {_HOW}"
        raise SchemaError(msg)
    how = dict(how) if isinstance(how, Mapping) else how
    return Batchwise("coarsen", _coarsen, factor=factor, how=how)


def _coarsen(batch: xr.Dataset, *, factor: int, how: str | dict[str, str]) -> xr.Dataset:
    require(batch, _SIDES, "transform 'coarsen'")
    for dim in _SIDES:
        if batch.sizes[dim] % factor:
            n = batch.sizes[dim]
            below, above = n // factor * factor, -(-n // factor) * factor
            msg = (
                f"coarsen({factor}) needs a multiple of {factor} bins, but windows have {n} along {dim!r}; "
                f"make windows of {below or above} or {above}, or crop them"
            )
            raise SchemaError(msg)
    along = [str(k) for k, v in batch.data_vars.items() if set(_SIDES) & set(v.dims)]
    hows = dict.fromkeys(along, how) if isinstance(how, str) else how
    if set(hows) != set(along):
        msg = (
            f"coarsen(how=...) says how for {sorted(hows)}, but {sorted(along)} lie along the bins"
        )
        raise SchemaError(msg)
    twice = _mirrored(batch, factor)
    variables: dict[Any, xr.Variable] = {}
    for name, v in batch.variables.items():
        dims = [d for d in _SIDES if d in v.dims]
        if not dims:
            variables[name] = v
        elif name in along:
            if hows[str(name)] == "mean":
                variables[name] = _mean(v, dims, factor)
            else:
                variables[name] = _sum(v, dims, factor, twice)
        elif "divisive" not in v.attrs:
            variables[name] = _of_bins(v, str(name), dims[0], factor)
    attrs = {
        k: x * factor if k in ("binsize", "resolution") and x is not None else x
        for k, x in batch.attrs.items()
    }
    coords = {k: v for k, v in variables.items() if k in batch.coords}
    data = {k: v for k, v in variables.items() if k not in coords}
    return xr.Dataset(data, coords, attrs)


def _blocks(v: xr.Variable, dims: list[str], factor: int) -> tuple[npt.NDArray[Any], list[int]]:
    """Return values with an axis of length `factor` after each of `dims`, and where these are."""
    shape: list[int] = []
    axes = []
    for d, n in zip(v.dims, v.shape, strict=True):
        shape.append(n // factor if d in dims else n)
        if d in dims:
            axes.append(len(shape))
            shape.append(factor)
    return np.asarray(v.values).reshape(shape), axes


def _mirrored(batch: xr.Dataset, factor: int) -> xr.Variable | None:
    """Say which pixels below the diagonal have their mirror image in the same coarse pixel."""
    sides, bounds = [], []
    for dim in _SIDES:
        v = batch.variables[dim]
        blocks = v.values.reshape(*v.shape[:-1], -1, factor)
        low = np.where(blocks < 0, np.iinfo(blocks.dtype).max, blocks).min(axis=-1)  # -1 only pads
        each = (low, blocks.max(axis=-1))
        sides.append(xr.Variable(v.dims, v.values))
        bounds.append([xr.Variable(v.dims, x.repeat(factor, axis=-1)) for x in each])
    (b1, b2), (low, _), (_, high) = sides, *bounds
    twice: xr.Variable = (b1 > b2) & (b2 >= low) & (b1 <= high)
    return twice if twice.values.any() else None


def _sum(v: xr.Variable, dims: list[str], factor: int, twice: xr.Variable | None) -> xr.Variable:
    if twice is not None and len(dims) == 2:
        values, axes = _blocks((v * ~twice).transpose(*v.dims), dims, factor)
    else:
        values, axes = _blocks(v, dims, factor)
    dtype = np.int64 if v.dtype.kind in "iub" else v.dtype
    return xr.Variable(v.dims, values.sum(axis=tuple(axes), dtype=dtype), v.attrs)


def _mean(v: xr.Variable, dims: list[str], factor: int) -> xr.Variable:
    values, axes = _blocks(v, dims, factor)
    seen = ~np.isnan(values) if v.dtype.kind == "f" else np.ones(values.shape, bool)
    total = np.where(seen, values, 0).sum(axis=tuple(axes), dtype=np.float64)
    n = seen.sum(axis=tuple(axes))
    mean = np.where(n > 0, total / np.maximum(n, 1), np.nan)
    return xr.Variable(v.dims, mean.astype(float_of(v.dtype)), v.attrs)


def _of_bins(v: xr.Variable, name: str, dim: str, factor: int) -> xr.Variable:
    """Return a coordinate of bins for those that are made of several."""
    moved = v.transpose(..., dim)
    values, _ = _blocks(moved, [dim], factor)
    if name == dim:
        new = values.max(axis=-1) // factor  # -1 only pads
    elif name == f"end{dim[-1]}":
        new = values.max(axis=-1)  # windows may be flipped
    elif name == f"start{dim[-1]}":
        new = values.min(axis=-1)
    elif v.dtype.kind in "iuf":
        return _mean(moved, [dim], factor).transpose(*v.dims)
    else:
        new = values[..., 0]
        other = values != values[..., :1]
        if other.any():
            at = tuple(np.argwhere(other)[0])
            msg = (
                f"coarsen({factor}) would join bins of {name} {str(new[at[:-1]])!r} and {str(values[at])!r}; "
                "choose windows within one"
            )
            raise SchemaError(msg)
    return xr.Variable(moved.dims, new, v.attrs).transpose(*v.dims)


def crop(n: int) -> Transform:
    """
    Cut bins off all four sides of windows.

    Parameters
    ----------
    n : int
        How many bins, on each side.

    Returns
    -------
    Transform
        `bin1` and `bin2` are ``2 * n`` shorter, with all their coordinates; bins of another
        resolution lose the same base pairs; dtype and NaN stay.

    Raises
    ------
    SchemaError
        If `n` is negative; when it runs, if nothing would be left, or `n` bins are no whole bins of
        another resolution.

    Examples
    --------
    >>> ds = xr.Dataset({"count": (("bin1", "bin2"), np.arange(9).reshape(3, 3))})
    >>> crop(1)(ds)["count"].values
    array([[4]])
    """
    if n < 0:
        msg = f"crop({n}) is impossible; choose how many bins to cut off, 0 or more"
        raise SchemaError(msg)
    return Batchwise("crop", _crop, n=n)


def _crop(batch: xr.Dataset, *, n: int) -> xr.Dataset:
    sizes = {d: batch.sizes.get(d, 0) for d in _SIDES}
    if min(sizes.values()) <= 2 * n:
        msg = f"crop({n}) would leave nothing of windows of {sizes}; cut off less than half"
        raise SchemaError(msg)
    cut = {}
    for dim, side in _along(batch.dims).items():
        off, rest = divmod(n * batch.sizes[dim], sizes[side])
        if rest:
            msg = (
                f"crop({n}) cuts {n} of {sizes[side]} bins along {side!r}, which are no whole bins of the "
                f"{batch.sizes[dim]} along {dim!r}; crop whole bins of every resolution"
            )
            raise SchemaError(msg)
        cut[dim] = slice(off, batch.sizes[dim] - off)
    return batch.isel(cut)


def _along(dims: Iterable[Any]) -> dict[str, str]:
    """Return the dimensions of bins, also those of other resolutions, and which axis each is along."""
    return {
        str(d): side for d in dims for side in _SIDES if d == side or str(d).endswith(f"_{side}")
    }


def flip(probability: float = 0.5) -> Transform:
    """
    Turn windows around at random, as reading the other strand does.

    Both axes are reversed together, with everything that lies along them: tracks, positions, names
    and balancing vectors of bins still say which bin is where. So are bins of other resolutions.

    Parameters
    ----------
    probability : float, optional
        How likely a window is turned, from 0 to 1.

    Returns
    -------
    Transform
        Keeps shape, dtype and NaN; random by (seed, epoch, sample). The new coordinate
        ``flipped (sample)`` says which windows were turned, so that sequences can be complemented.

    Raises
    ------
    SchemaError
        If the probability is none.

    Examples
    --------
    >>> ds = xr.Dataset({"count": (("sample", "bin1", "bin2"), [[[1, 2], [3, 4]]])})
    >>> rng = SampleRandom(0, epoch=0, sample_id=np.array([7]))
    >>> flip(1)(ds, rng=rng)["count"].values
    array([[[4, 3],
            [2, 1]]])
    """
    if not 0 <= probability <= 1:
        msg = f"flip({probability}) is impossible; choose a probability from 0 to 1"
        raise SchemaError(msg)
    return Randomly("flip", _flip, probability=probability)


def _flip(batch: xr.Dataset, *, rng: SampleRandom, probability: float) -> xr.Dataset:
    flipped = rng.uniform() < probability
    turned: dict[Any, xr.Variable] = {}
    for name, v in batch.variables.items():
        along = _along(v.dims)
        axes = [k for k, d in enumerate(v.dims) if d in along]
        if axes:
            values = np.moveaxis(v.values.copy(), v.dims.index("sample"), 0)
            after = tuple(k + 1 if k < v.dims.index("sample") else k for k in axes)
            values[flipped] = np.flip(values[flipped], after)
            turned[name] = v.copy(data=np.moveaxis(values, 0, v.dims.index("sample")))
    turned["flipped"] = xr.Variable("sample", flipped)
    coords = {k: v for k, v in turned.items() if k in batch.coords or k == "flipped"}
    data = {k: v for k, v in turned.items() if k not in coords}
    return batch.assign_coords(coords).assign(data)


def upper_triangle(k: int = 2, variable: str = "count", *, into: str | None = None) -> Transform:
    """
    Write symmetric windows as vectors of their pairs of bins.

    Row by row, as ``numpy.triu_indices(n, k)`` counts; the form of the targets of Akita (Fudenberg,
    Kelley and Pollard, Nature Methods 2020). `from_upper_triangle` is its inverse.

    Parameters
    ----------
    k : int, optional
        How many diagonals are left out, the main one first.
    variable : str, optional
        ``(sample, bin1, bin2)``, windows on the diagonal.
    into : str, optional
        Name of the vectors; `variable` stays beside it. Default: `variable` itself.

    Returns
    -------
    Transform
        ``(sample, pair)`` with ``(n - k) * (n - k + 1) / 2`` pairs; dtype and NaN stay, and so do
        the coordinates of bins. ``pair1 (pair)`` and ``pair2 (pair)`` are places within the window.

    Raises
    ------
    SchemaError
        If `k` is negative; when it runs, if windows lie not on the diagonal or have no more than `k`
        bins.

    Examples
    --------
    >>> sides = {f"bin{s}": (f"bin{s}", [4, 5, 6]) for s in "12"}
    >>> ds = xr.Dataset({"count": (("bin1", "bin2"), [[1, 2, 3], [2, 4, 5], [3, 5, 6]])}, sides)
    >>> upper_triangle(1)(ds)["count"].values
    array([2, 3, 5])
    """
    if k < 0:
        msg = f"upper_triangle(k={k}) is impossible; choose how many diagonals to leave out"
        raise SchemaError(msg)
    return Batchwise("upper_triangle", _upper, k=k, variable=variable, into=into or variable)


def _upper(batch: xr.Dataset, *, k: int, variable: str, into: str) -> xr.Dataset:
    require(batch, [variable, *_SIDES], "transform 'upper_triangle'")
    b1, b2 = (batch.variables[d].values for d in _SIDES)
    if b1.shape != b2.shape or not np.array_equal(b1, b2):
        msg = (
            "upper_triangle() needs windows on the diagonal, with the same bins along both axes; ask "
            "for them with xl.windows.diagonal"
        )
        raise SchemaError(msg)
    n = b1.shape[-1]
    if n <= k:
        msg = f"upper_triangle(k={k}) leaves nothing of windows of {n} bins; leave out fewer diagonals"
        raise SchemaError(msg)
    x = last_two(batch.variables[variable], "upper_triangle")
    rows, columns = np.triu_indices(n, k)
    pairs = x.values.reshape(*x.shape[:-2], n * n).take(rows * n + columns, axis=-1)
    places = {"pair1": ("pair", rows), "pair2": ("pair", columns)}
    return batch.assign({into: xr.Variable((*x.dims[:-2], "pair"), pairs, x.attrs)}).assign_coords(
        places
    )


def from_upper_triangle(
    k: int = 2, variable: str = "prediction", *, into: str | None = None
) -> Transform:
    """
    Write vectors of pairs of bins as symmetric windows: the inverse of `upper_triangle`.

    Parameters
    ----------
    k : int, optional
        How many diagonals were left out.
    variable : str, optional
        ``(sample, pair)``.
    into : str, optional
        Name of the windows; `variable` stays beside it. Default: `variable` itself.

    Returns
    -------
    Transform
        ``(sample, bin1, bin2)``, equal on both sides of the diagonal. The dtype stays for floats and
        ``k = 0``, else integers become float32; NaN stays, and the diagonals left out are NaN.

    Raises
    ------
    SchemaError
        If `k` is negative; when it runs, if no window has as many pairs, or those of the batch have
        another number of bins.

    Examples
    --------
    >>> ds = xr.Dataset({"prediction": ("pair", [2.0, 3.0, 5.0])})
    >>> from_upper_triangle(1)(ds)["prediction"].values
    array([[nan,  2.,  3.],
           [ 2., nan,  5.],
           [ 3.,  5., nan]])
    """
    if k < 0:
        msg = f"from_upper_triangle(k={k}) is impossible; give what upper_triangle() was given"
        raise SchemaError(msg)
    label, into = "from_upper_triangle", into or variable
    return Batchwise(label, _from_upper, k=k, variable=variable, into=into)


def _from_upper(batch: xr.Dataset, *, k: int, variable: str, into: str) -> xr.Dataset:
    require(batch, [variable], "transform 'from_upper_triangle'")
    x = batch.variables[variable].transpose(..., "pair")
    pairs = x.shape[-1]
    m = int((np.sqrt(8 * pairs + 1) - 1) / 2)  # m * (m + 1) / 2 pairs, without rounding below 2^50
    n = m + k
    if m * (m + 1) // 2 != pairs or batch.sizes.get("bin1", n) != n:
        there = f", and windows of {batch.sizes['bin1']} bins" if "bin1" in batch.sizes else ""
        msg = (
            f"from_upper_triangle(k={k}) got {pairs} pairs{there}; n bins have "
            "(n - k) * (n - k + 1) / 2: give the k of upper_triangle()"
        )
        raise SchemaError(msg)
    dtype = float_of(x.dtype) if k and x.dtype.kind != "f" else x.dtype
    full = np.full((*x.shape[:-1], n, n), np.nan if dtype.kind == "f" else 0, dtype)
    rows, columns = np.triu_indices(n, k)
    full[..., rows, columns] = x.values
    full[..., columns, rows] = x.values
    kept = batch.drop_vars(variable) if into == variable else batch
    return kept.assign({into: xr.Variable((*x.dims[:-1], *_SIDES), full, x.attrs)})
