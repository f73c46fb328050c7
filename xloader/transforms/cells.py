"""Cells by genes: equal totals, equal variances, presence, and a choice of genes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from xloader.contract import Transform
from xloader.csr import CSRArray
from xloader.errors import SchemaError
from xloader.lookup import once, positions
from xloader.schema import require
from xloader.transforms.base import Choosing, Elementwise, float_of
from xloader.transforms.frozen import FrozenColumns


def normalize_total(
    target_sum: float = 1e4, variable: str = "X", *, total: str | None = None
) -> Transform:
    """
    Scale each cell to the same total count.

    The source is scanpy's ``pp.normalize_total``: every cell is multiplied by
    ``target_sum / sum``; cells without counts stay zero.

    Parameters
    ----------
    target_sum : float, optional
        Total of every cell afterwards. scanpy's default is the `median_total` of ``xl.statistics``.
    variable : str, optional
        Counts ``(cell, gene)``; sparse ones stay sparse.
    total : str, optional
        A coordinate or variable of cells with their totals, such as ``"n_counts"``. Default: the
        sum of what the batch has, which after selecting a panel is that of the panel alone.

    Returns
    -------
    Transform
        Keeps the shape; float32 (float64 for float64 counts). NaN stays, and counts as nothing.

    Raises
    ------
    SchemaError
        If `target_sum` is not above 0; when it runs, if there is no `total` of one value per cell.

    Examples
    --------
    >>> ds = xr.Dataset({"X": (("cell", "gene"), [[1, 3], [0, 0]])})
    >>> normalize_total(8)(ds).X.values
    array([[2., 6.],
           [0., 0.]], dtype=float32)
    """
    if not target_sum > 0:
        msg = f"normalize_total(target_sum={target_sum}) is impossible; choose a number above 0"
        raise SchemaError(msg)
    options: dict[str, Any] = {"target_sum": target_sum, "total": total}
    return Elementwise("normalize_total", _normalize_total, (variable,), **options)


def _normalize_total(
    x: xr.Variable, batch: xr.Dataset, *, target_sum: float, total: str | None
) -> xr.Variable:
    dtype = float_of(x.dtype)
    if total is None:
        sums = x.sum(str(x.dims[1]), dtype=np.float64)
    else:
        require(batch, [total], "transform 'normalize_total'")
        sums = batch.variables[total]
        if sums.dims != x.dims[:1] or sums.dtype.kind not in "iuf":
            msg = (
                f"transform 'normalize_total' needs one number per {x.dims[0]}, but {total!r} is "
                f"{sums.dtype} along {sums.dims}"
            )
            raise SchemaError(msg)
    each = np.asarray(sums.data, np.float64)
    odd = np.flatnonzero(each < 0)
    if len(odd):
        msg = (
            f"transform 'normalize_total' divides by totals, and {len(odd)} of {len(each)} are negative "
            f"({each[odd[0]]}): these are no counts; give it counts, or clip them first"
        )
        raise SchemaError(msg)
    factor = xr.Variable(sums.dims, (target_sum / np.where(each != 0, each, 1)).astype(dtype))
    scaled: xr.Variable = x.astype(dtype) * factor
    return scaled


def standardise(
    stats: xr.Dataset,
    *,
    zero_center: bool = True,
    max_value: float | None = None,
    variable: str | None = None,
    into: str | None = None,
) -> Transform:
    """
    Scale each gene to unit variance, and to zero mean: ``(x - mean) / std`` by frozen figures.

    The source is scanpy's ``pp.scale``, with ``std`` of samples (``n - 1``); genes without variation
    are divided by 1. The zeros of centred genes are no zeros any more, so sparse ones become dense;
    they stay sparse with ``zero_center=False``.

    Parameters
    ----------
    stats : xarray.Dataset
        From ``xl.statistics`` of the training view, after the same steps: its `mean (gene)` and `std
        (gene)` are kept here, and found by the names of genes.
    zero_center : bool, optional
        Whether the mean is subtracted.
    max_value : float, optional
        Where values are clipped: at this and, if centred, at its negative. Default: nowhere.
    variable : str, optional
        What is scaled. Default: what `stats` are of.
    into : str, optional
        Name of the result. Default: the variable itself.

    Returns
    -------
    Transform
        Keeps the shape and NaN; float32 (float64 for float64). Dense if centred, else as it comes.

    Raises
    ------
    SchemaError
        If `max_value` is not above 0; when a Loader is made, if `stats` lack some genes.

    Examples
    --------
    >>> ds = xr.Dataset({"X": (("cell", "gene"), [[1.0, 4.0]])})
    >>> figures = {"mean": ("gene", [3.0, 4.0]), "std": ("gene", [2.0, 0.0])}
    >>> standardise(xr.Dataset(figures, attrs={"variable": "X"}))(ds).X.values
    array([[-1.,  0.]])
    """
    if max_value is not None and not max_value > 0:
        msg = f"standardise(max_value={max_value}) is impossible; choose a number above 0, or None"
        raise SchemaError(msg)
    frozen = FrozenColumns(stats, "standardise", "mean", "std")
    options: dict[str, Any] = {"zero_center": zero_center, "max_value": max_value}
    names = (variable or frozen.variable,)
    return Elementwise("standardise", _standardise, names, into=into, frozen=frozen, **options)


def _standardise(
    x: xr.Variable,
    batch: xr.Dataset,
    *,
    frozen: FrozenColumns,
    zero_center: bool,
    max_value: float | None,
) -> xr.Variable:
    if x.dims[-1] != frozen.dim:
        msg = f"transform 'standardise' needs values along {frozen.dim!r} last, but got {x.dims}"
        raise SchemaError(msg)
    dtype = float_of(x.dtype)
    std = frozen.of("std", batch)
    std = np.where(std == 0, 1, std)
    if not zero_center:
        scaled: xr.Variable = x.astype(dtype) / xr.Variable(frozen.dim, std.astype(dtype))
        return scaled if max_value is None else np.minimum(scaled, dtype.type(max_value))
    data: Any = x.data
    dense = data.todense() if isinstance(data, CSRArray) else data
    values = np.empty(
        x.shape, dtype
    )  # each step in float64, as scanpy does it, but nothing that wide
    np.subtract(dense, frozen.of("mean", batch), out=values, casting="same_kind")
    np.divide(values, std, out=values, casting="same_kind")
    if max_value is not None:
        np.clip(values, -max_value, max_value, out=values)
    return x.copy(data=values)


def binarise(*variables: str, threshold: float = 0) -> Transform:
    """
    Say which values are above a threshold: 1, the others 0.

    Parameters
    ----------
    *variables : str
        Which variables; sparse ones stay sparse.
    threshold : float, optional
        At least 0.

    Returns
    -------
    Transform
        Keeps shape, dtype and NaN.

    Raises
    ------
    SchemaError
        If `threshold` is below 0, where what is not stored would become 1.

    Examples
    --------
    >>> binarise("X")(xr.Dataset({"X": (("cell", "gene"), [[0, 7]])})).X.values
    array([[0, 1]])
    """
    if not threshold >= 0:
        msg = f"binarise(threshold={threshold}) is impossible; choose a number of at least 0"
        raise SchemaError(msg)
    return Elementwise("binarise", _binarise, variables, threshold=threshold)


def _binarise(x: xr.Variable, _: xr.Dataset, *, threshold: float) -> xr.Variable:
    data: Any = x.data
    above = (data > threshold).astype(x.dtype)
    if x.dtype.kind == "f":
        above = np.where(np.isnan(data), data, above)
    return x.copy(data=above)


def select(**labels: Sequence[Any]) -> Transform:
    """
    Keep some labels along a dimension, in the order given.

    ``ds.xl.select(gene=[...])`` before the Loader reads less and is the better way; this is for one
    data source that several models share.

    Parameters
    ----------
    **labels : sequence
        By coordinate, such as ``gene``: some of its labels, each once.

    Returns
    -------
    Transform
        Keeps dtype and NaN; the dimension is as long as the list. Sparse ones stay sparse.

    Raises
    ------
    SchemaError
        If a label is named twice; when a Loader is made, if one is unknown, with that most like it.

    Examples
    --------
    >>> ds = xr.Dataset({"X": (("cell", "gene"), [[1, 2, 3]])}, {"gene": ["a", "b", "c"]})
    >>> select(gene=["c", "a"])(ds).X.values
    array([[3, 1]])
    """
    return Choosing("select", _select, labels={n: once(n, w, "select") for n, w in labels.items()})


def _select(batch: xr.Dataset, *, labels: dict[str, list[Any]]) -> xr.Dataset:
    return batch.isel(dict(positions(batch, n, w, "select") for n, w in labels.items()))
