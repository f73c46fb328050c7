"""What depends on the distance of two bins: expected contacts, scores, and the first diagonals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.contract import Transform
from xloader.errors import SchemaError
from xloader.schema import require
from xloader.transforms.base import Elementwise, float_of
from xloader.transforms.frozen import Frozen

Lookup = Callable[[npt.NDArray[Any], npt.NDArray[np.int64]], npt.NDArray[Any]]
"""Takes chromosomes and, of the shape of the result, distances in bins; below 0
where there is none: -1 between chromosomes, -2 for bins that only pad a window."""


def by_distance(
    x: xr.Variable, batch: xr.Dataset, of: Lookup, what: str, *, between: bool = False
) -> xr.Variable:
    """
    Return something for each pair of bins that follows from chromosome and distance.

    The distance is that of the bin numbers `bin1` and `bin2`. Windows of successive bins of one
    chromosome on each side have one value per diagonal, which is looked up once.

    Parameters
    ----------
    x : xarray.Variable
        Along which bins: those of the map, or those of another resolution beside it.
    batch : xarray.Dataset
        With coordinates `bin1`, `chrom1`, `bin2` and `chrom2`, by sample or of a whole map.
    of : Lookup
        Gives the values.
    what : str
        Name of the transform, for messages.
    between : bool, optional
        Whether bins may be on two chromosomes.

    Returns
    -------
    xarray.Variable
        ``(sample, bin1, bin2)``, or without samples; must not be written to.

    Raises
    ------
    SchemaError
        If the batch lacks one of these coordinates, or bins are on two chromosomes and may not be.
    """
    prefix = next((str(d).removesuffix("bin1") for d in x.dims if str(d).endswith("_bin1")), "")
    names = [f"{prefix}{name}" for name in ("bin1", "bin2", "chrom1", "chrom2")]
    require(batch, names, f"transform {what!r}")
    b1, b2, c1, c2 = (np.atleast_2d(batch.variables[n].values) for n in names)
    dims = (*batch.variables[names[0]].dims, names[1])
    if b1.size == 0 or b2.size == 0:
        return xr.Variable(dims, np.zeros([batch.sizes[d] for d in dims]))
    ours, theirs = c1[:, :1], c2[:, :1]
    alike = bool((c1 == ours).all() and (c2 == theirs).all())
    regular = alike and all((np.diff(b, axis=1) == 1).all() for b in (b1, b2))
    first, second = (ours, theirs) if regular else (c1[:, :, None], c2[:, None, :])
    if not between:
        _refuse_between(first, second, what)
    if regular:
        h, w = b1.shape[1], b2.shape[1]
        offset = (b2[:, :1] - b1[:, :1]).astype(np.int64) + np.arange(1 - h, w)
        lines = of(first, np.where(first == second, np.abs(offset), -1))
        # row i of a window is a run of its diagonals that begins with number h - 1 - i
        values = np.lib.stride_tricks.sliding_window_view(lines, w, axis=1)[:, ::-1]
    else:
        distance = np.abs(b2[:, None, :].astype(np.int64) - b1[:, :, None])
        distance = np.where(first == second, distance, -1)
        distance[(b1 < 0)[:, :, None] | (b2 < 0)[:, None, :]] = -2
        values = of(first, distance)
    return xr.Variable(dims, values if len(dims) == 3 else values[0])


def _refuse_between(first: npt.NDArray[Any], second: npt.NDArray[Any], what: str) -> None:
    """Refuse pairs of bins on two chromosomes."""
    other = first != second
    if other.any():
        a, b = (str(np.broadcast_to(c, other.shape)[other][0]) for c in (first, second))
        msg = (
            f"transform {what!r} works by distance, which bins of {a!r} and {b!r} do not have; leave "
            "windows between chromosomes out, or say what is expected there (between=, where the "
            "transform has it; nan masks such pairs)"
        )
        raise SchemaError(msg)


def observed_over_expected(
    stats: xr.Dataset,
    *,
    variable: str | None = None,
    pooled: bool = False,
    pseudocount: float = 0.0,
    log: bool = False,
    between: float | None = None,
    into: str | None = None,
) -> Transform:
    """
    Divide contacts by what is expected at their distance.

    ``(x + pseudocount) / (expected + pseudocount)``, with the mean contact of the chromosome at each
    distance in bins (Lieberman-Aiden et al., Science 2009; the pseudocount as Orca has it: Zhou,
    Nature Genetics 2022), so windows off the diagonal are divided by what lies that far off.

    Parameters
    ----------
    stats : xarray.Dataset
        With ``expected (chrom, distance)``, or ``expected_pooled (distance)``, and the attributes
        `variable`, `weight` and `binsize`, from ``xl.statistics``.
    variable : str, optional
        What is divided, such as the balanced counts beside raw ones. Default: what `stats` are of.
    pooled : bool, optional
        Whether the mean is that of all chromosomes of `stats` together, the same for every
        chromosome: also for those that are not in the training view.
    pseudocount : float, optional
        Added to both, in the unit of the contacts.
    log : bool, optional
        Whether the natural logarithm is taken; that of zero is minus infinity.
    between : float, optional
        What is expected of two bins on different chromosomes; NaN masks them. Default: windows
        that hold such pairs are refused.
    into : str, optional
        Name of the ratio. Default: the variable itself.

    Returns
    -------
    Transform
        Keeps the shape; float32 (float64 for float64). NaN stays NaN, and is added where the
        expected is NaN, or is zero without a pseudocount.

    Raises
    ------
    SchemaError
        If `pseudocount` is negative or `stats` lack something; when it runs, if the batch has
        another balancing or bin size, holds a chromosome that `stats` do not have, or
        reaches further than they do.

    Examples
    --------
    >>> stats = xr.Dataset(
    ...     {"expected": (("chrom", "distance"), [[8.0, 2.0]])},
    ...     {"chrom": ["c"], "distance": [0, 1]},
    ...     {"variable": "count"},
    ... )
    >>> sides = {f"bin{s}": (f"bin{s}", [5, 6]) for s in "12"}
    >>> sides |= {f"chrom{s}": (f"bin{s}", ["c", "c"]) for s in "12"}
    >>> ds = xr.Dataset({"count": (("bin1", "bin2"), [[8, 3], [3, 4]])}, sides)
    >>> observed_over_expected(stats)(ds)["count"].values
    array([[1. , 1.5],
           [1.5, 0.5]], dtype=float32)
    """
    if not pseudocount >= 0:
        msg = f"pseudocount={pseudocount} is impossible; choose 0 or more, in the unit of contacts"
        raise SchemaError(msg)
    frozen = Frozen(stats, "observed_over_expected", "expected", pooled=pooled)
    return Elementwise(
        "observed_over_expected", _observed_over_expected, (variable or frozen.variable,), into=into,
        frozen=frozen, pseudocount=pseudocount, log=log, between=between,
    )  # fmt: skip


def _observed_over_expected(
    x: xr.Variable,
    batch: xr.Dataset,
    *,
    frozen: Frozen,
    pseudocount: float,
    log: bool,
    between: float | None,
) -> xr.Variable:
    frozen.check(x, batch)
    dtype = float_of(x.dtype)

    def divisor(chrom: npt.NDArray[Any], distance: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        expected = frozen.at("expected", chrom, distance)
        if between is not None:
            expected = np.where(distance == -1, between, expected)
        expected = expected + pseudocount
        return np.where(expected > 0, expected, np.nan).astype(dtype)

    ratio = x.astype(dtype, copy=pseudocount > 0)
    if pseudocount:
        ratio += dtype.type(pseudocount)
    expected = by_distance(x, batch, divisor, frozen.what, between=between is not None)
    ratio = (ratio / expected).transpose(*x.dims)
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            np.log(ratio.values, out=ratio.values)
    return ratio


def zscore(
    stats: xr.Dataset,
    *,
    variable: str | None = None,
    pooled: bool = False,
    into: str | None = None,
) -> Transform:
    """
    Say how far contacts are from the mean of their distance, in standard deviations.

    ``(x - expected) / std``, both of the chromosome at that distance in bins, off the diagonal too.

    Parameters
    ----------
    stats : xarray.Dataset
        With ``expected (chrom, distance)``, ``std (chrom, distance)``, or both ``_pooled (distance)``,
        and the attributes `variable`, `weight` and `binsize`, from ``xl.statistics``.
    variable : str, optional
        What is scored. Default: what `stats` are of.
    pooled : bool, optional
        As for `observed_over_expected`.
    into : str, optional
        Name of the scores. Default: the variable itself.

    Returns
    -------
    Transform
        Keeps the shape; float32 (float64 for float64). NaN stays NaN, and is added where the
        deviation is NaN or zero.

    Raises
    ------
    SchemaError
        As for `observed_over_expected`; windows between chromosomes are refused.

    Examples
    --------
    >>> stats = xr.Dataset(
    ...     {
    ...         "expected": (("chrom", "distance"), [[8.0, 2.0]]),
    ...         "std": (("chrom", "distance"), [[2.0, 1.0]]),
    ...     },
    ...     {"chrom": ["c"], "distance": [0, 1]},
    ...     {"variable": "count"},
    ... )
    >>> sides = {f"bin{s}": (f"bin{s}", [5, 6]) for s in "12"}
    >>> sides |= {f"chrom{s}": (f"bin{s}", ["c", "c"]) for s in "12"}
    >>> ds = xr.Dataset({"count": (("bin1", "bin2"), [[8, 3], [3, 4]])}, sides)
    >>> zscore(stats)(ds)["count"].values
    array([[ 0.,  1.],
           [ 1., -2.]], dtype=float32)
    """
    frozen = Frozen(stats, "zscore", "expected", "std", pooled=pooled)
    return Elementwise("zscore", _zscore, (variable or frozen.variable,), into=into, frozen=frozen)


def _zscore(x: xr.Variable, batch: xr.Dataset, *, frozen: Frozen) -> xr.Variable:
    frozen.check(x, batch)
    dtype = float_of(x.dtype)

    def mean(chrom: npt.NDArray[Any], distance: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return frozen.at("expected", chrom, distance).astype(dtype)

    def deviation(chrom: npt.NDArray[Any], distance: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        std = frozen.at("std", chrom, distance)
        return np.where(std > 0, std, np.nan).astype(dtype)

    score = x.astype(dtype) - by_distance(x, batch, mean, frozen.what)
    return (score / by_distance(x, batch, deviation, frozen.what)).transpose(*x.dims)


def mask_diagonals(k: int, *variables: str, value: float = np.nan) -> Transform:
    """
    Replace contacts of bins that are near each other, which self-ligation dominates.

    Parameters
    ----------
    k : int
        How many diagonals: pairs of bins of one chromosome that are less than `k` bins apart,
        wherever they lie in a window.
    *variables : str
        Which variables.
    value : float, optional
        What they become. Default: NaN, that is, masked.

    Returns
    -------
    Transform
        Keeps the shape; masked values and contacts between chromosomes stay. Keeps the dtype if it
        holds `value`; else integers become float32.

    Raises
    ------
    SchemaError
        If `k` is less than 1; when it runs, if there are no coordinates `bin1` and `chrom1`.

    Examples
    --------
    >>> sides = {f"bin{s}": (f"bin{s}", [5, 6, 7]) for s in "12"}
    >>> sides |= {f"chrom{s}": (f"bin{s}", ["c"] * 3) for s in "12"}
    >>> ds = xr.Dataset({"count": (("bin1", "bin2"), np.ones((3, 3), int))}, sides)
    >>> mask_diagonals(2, "count", value=0)(ds)["count"].values
    array([[0, 0, 1],
           [0, 0, 0],
           [1, 0, 0]])
    """
    if k < 1:
        msg = f"mask_diagonals({k}) masks nothing; choose 1 for the main diagonal, or more"
        raise SchemaError(msg)
    return Elementwise("mask_diagonals", _mask_diagonals, variables, k=k, value=value)


def _mask_diagonals(x: xr.Variable, batch: xr.Dataset, *, k: int, value: float) -> xr.Variable:
    def near(_: npt.NDArray[Any], distance: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return (distance >= 0) & (distance < k)

    if x.dtype.kind in "iu" and not float(value).is_integer():
        x = x.astype(float_of(x.dtype))
    mask = by_distance(x, batch, near, "mask_diagonals", between=True)
    masked: xr.Variable = x.where(~mask, x.dtype.type(value))  # type: ignore[no-untyped-call]
    return masked.transpose(*x.dims)
