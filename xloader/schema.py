"""The labels: which dimensions, variables and coordinates every contact map and cell array has."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from xarray.core import indexing

from xloader.arrays import StoredArray, TileArray
from xloader.errors import SchemaError

CHUNK_NBYTES = 16 * 2**20
"""Bytes that one dask chunk of an opened Dataset aims at, as the dense array it looks like."""

Column = tuple[npt.NDArray[Any], dict[str, Any]]
"""Values of one column and their attributes."""


def lazy(
    dims: Iterable[str], array: StoredArray, attrs: Mapping[str, Any] | None = None
) -> xr.Variable:
    """
    Wrap a stored array as a lazily indexed variable with storage-aligned preferred chunks.

    Parameters
    ----------
    dims : iterable of str
        Names of the dimensions.
    array : StoredArray
        What to read from.
    attrs : mapping, optional
        Attributes of the variable.

    Returns
    -------
    xarray.Variable
        Nothing is read until values are asked for.
    """
    dims = tuple(dims)
    variable = xr.Variable(dims, indexing.LazilyIndexedArray(array), dict(attrs or {}))
    variable.encoding["preferred_chunks"] = dict(zip(dims, chunk_shape(array), strict=True))
    return variable


def chunk_shape(array: StoredArray) -> tuple[int, ...]:
    """
    Return the shape of pieces of a stored array that aim at `CHUNK_NBYTES` and fit its chunks.

    Parameters
    ----------
    array : StoredArray
        What is read piece by piece.

    Returns
    -------
    tuple of int
        In elements.
    """
    if isinstance(array, TileArray):
        # at most about 150 chunks a side, so that the dask graph of a genome stays small
        side = min(4096, max(1024, array.shape[0] // 150))
        return (min(-(-side // array.tile) * array.tile, max(array.shape[0], 1)),) * 2
    shape, (unit, *across) = array.shape, array.unit
    row_nbytes = max(1, int(np.prod(shape[1:])) * array.dtype.itemsize)
    if unit * row_nbytes <= CHUNK_NBYTES:
        chunk = (CHUNK_NBYTES // row_nbytes // unit * unit, *shape[1:])
    elif len(shape) == 2 and across[0] < shape[1]:
        columns = CHUNK_NBYTES // (unit * array.dtype.itemsize) // across[0]
        chunk = (unit, max(columns, 1) * across[0])
    elif tuple(across) != shape[1:]:
        chunk = array.unit
    else:
        while unit > 1 and unit * row_nbytes > 2 * CHUNK_NBYTES:
            unit = -(-unit // 2)
        chunk = (unit, *shape[1:])
    return tuple(max(min(c, n), 1) for c, n in zip(chunk, shape, strict=True))


class _LabelVariable(xr.Variable):
    """A coordinate that stays in memory when its Dataset is opened with ``chunks={}``."""

    __slots__ = ()

    def _set(self, data: Any) -> None:
        # xarray.open_dataset wraps values for lazy loading, then hands what is wrapped to dask
        while isinstance(data, indexing.MemoryCachedArray | indexing.CopyOnWriteArray):
            data = data.array
        if isinstance(data, indexing.NumpyIndexingAdapter):
            data = data.array
        if data is not self.data:
            xr.Variable.data.fset(self, data)  # type: ignore[attr-defined]

    data = property(xr.Variable.data.fget, _set)  # type: ignore[attr-defined]


def label(
    dims: str | Sequence[str], values: npt.NDArray[Any], attrs: Mapping[str, Any] | None = None
) -> xr.Variable:
    """
    Make the variable of a label.

    Parameters
    ----------
    dims : str or sequence of str
        Its dimensions.
    values : ndarray
        Its values.
    attrs : mapping, optional
        Its attributes.

    Returns
    -------
    xarray.Variable
        With these very values: xarray would send strings through pandas and back, which takes
        longer than reading them and makes a new string of each.
    """
    return xr.Variable(dims, values, attrs, fastpath=values.dtype == object)


def keep_labels(ds: xr.Dataset) -> xr.Dataset:
    """
    Keep coordinates in memory when the Dataset is opened with ``chunks={}``.

    As dask arrays they could not be used in `query`, `where` or `isel`.

    Parameters
    ----------
    ds : xarray.Dataset
        What a backend is about to return; changed in place.

    Returns
    -------
    xarray.Dataset
        The same object.
    """
    for name in ds.coords:
        if name not in ds.xindexes:
            ds.variables[name].__class__ = _LabelVariable
    return ds


def contacts_dataset(
    count: StoredArray,
    *,
    chrom: npt.NDArray[Any],
    start: npt.NDArray[Any],
    end: npt.NDArray[Any],
    weights: Mapping[str, Column],
    attrs: Mapping[str, Any],
    cell: npt.NDArray[Any] | None = None,
) -> xr.Dataset:
    """
    Build the labelled Dataset of a contact map.

    Parameters
    ----------
    count : StoredArray, shape (n_bins, n_bins) or (n_cells, n_bins, n_bins)
        Contact counts.
    chrom : ndarray of str, shape (n_bins,)
        Chromosome of each bin.
    start, end : ndarray of int, shape (n_bins,)
        Bounds of each bin, in bp, 0-based and half-open.
    weights : mapping of str to Column
        Balancing vectors, each with the attribute `divisive` (bool); of shape (n_cells, n_bins)
        where cells do not share them.
    attrs : mapping
        `binsize` (bp, or None for variable bins), `assembly`, `storage_mode`, `resolution`.
    cell : ndarray of str, optional
        Names of single cells. Default: `count` is one map.

    Returns
    -------
    xarray.Dataset
        `count (bin1, bin2)`, or `count (cell, bin1, bin2)`, with the coordinates of DESIGN "Labels"
        on both dimensions.
    """
    leading = () if cell is None else ("cell",)
    coords: dict[str, Any] = {} if cell is None else {"cell": cell}
    for side in ("1", "2"):
        dim = f"bin{side}"
        coords[dim] = xr.Variable(dim, np.arange(len(start)))
        coords[f"chrom{side}"] = label(dim, chrom)
        coords[f"start{side}"] = xr.Variable(dim, start, {"units": "bp"})
        coords[f"end{side}"] = xr.Variable(dim, end, {"units": "bp"})
        for name, (values, weight_attrs) in weights.items():
            dims = (*leading, dim)[-values.ndim :]
            coords[f"{name}{side}"] = label(dims, values, dict(weight_attrs))
    ds = xr.Dataset({"count": lazy((*leading, "bin1", "bin2"), count)}, coords, dict(attrs))
    return keep_labels(ds)


def cells_dataset(
    arrays: Mapping[str, tuple[tuple[str, ...], StoredArray | npt.NDArray[Any], Mapping[str, Any]]],
    *,
    cell: npt.NDArray[Any],
    gene: npt.NDArray[Any],
    obs: Mapping[str, Column],
    var: Mapping[str, Column],
    coords: Mapping[str, xr.Variable] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """
    Build the labelled Dataset of a cell-by-gene array.

    A column whose name is taken is prefixed with its dimension (``cell_`` or ``gene_``) and keeps
    the original name in the attribute ``column``; an `obs` column goes before a `var` column.

    Parameters
    ----------
    arrays : mapping of str to (dims, array, attrs)
        `X`, layers and embeddings.
    cell, gene : ndarray of str
        Names along the two dimensions.
    obs, var : mapping of str to Column
        Columns along `cell` and along `gene`.
    coords : mapping of str to xarray.Variable, optional
        Further coordinates, such as names along the second dimension of an embedding.
    attrs : mapping, optional
        Attributes of the Dataset.

    Returns
    -------
    xarray.Dataset
        With integer coordinates `row` and `column` that keep their values through any selection.
    """
    everything: dict[str, Any] = {
        "cell": label("cell", cell),
        "gene": label("gene", gene),
        "row": xr.Variable("cell", np.arange(len(cell))),
        "column": xr.Variable("gene", np.arange(len(gene))),
        **(coords or {}),
    }
    taken = {*everything, *arrays, "sample_id", "valid"}
    taken.update(d for dims, _, _ in arrays.values() for d in dims)
    for dim, columns in (("cell", obs), ("gene", var)):
        for name, (values, column_attrs) in columns.items():
            unique = name
            while unique in taken:
                unique = f"{dim}_{unique}"
            taken.add(unique)
            extra = {} if unique == name else {"column": name}
            everything[unique] = label(dim, values, {**column_attrs, **extra})
    variables = {
        name: lazy(dims, array, a)
        if isinstance(array, StoredArray)
        else xr.Variable(dims, array, a)
        for name, (dims, array, a) in arrays.items()
    }
    return keep_labels(xr.Dataset(variables, everything, dict(attrs or {})))


def categorical_column(
    codes: npt.NDArray[Any], categories: npt.NDArray[Any], *, ordered: bool
) -> Column:
    """
    Return a column of categories as plain values that remember their vocabulary.

    Parameters
    ----------
    codes : ndarray of int, shape (n,)
        Position of each value in `categories`; -1 where it is missing.
    categories : ndarray, shape (n_categories,)
        The vocabulary, in its own order.
    ordered : bool
        Whether that order means something.

    Returns
    -------
    Column
        Values (missing ones are NaN) and the attributes `categories` and `ordered`.

    Examples
    --------
    >>> categorical_column(np.array([1, 0, -1]), np.array(["B", "T"], object), ordered=False)[0]
    array(['T', 'B', nan], dtype=object)
    """
    categories = np.asarray(categories)
    if categories.dtype.kind in "US":
        categories = categories.astype(object)
    codes = np.asarray(codes, np.int64)
    attrs = {"categories": categories.tolist(), "ordered": bool(ordered)}
    if (codes >= 0).all():
        return categories[codes], attrs
    dtype = np.float64 if categories.dtype.kind in "iuf" else object
    values = np.append(categories.astype(dtype), [np.nan]).astype(dtype)
    return values[codes], attrs


def string_column(values: npt.NDArray[Any]) -> Column:
    """
    Return a column of strings that remembers its vocabulary if values repeat.

    Parameters
    ----------
    values : ndarray of str or object, shape (n,)
        Strings; missing ones are NaN or None.

    Returns
    -------
    Column
        An object array that shares equal strings, with `categories` (sorted) where there are at
        most 4,096 and fewer than half as many as values; not with `ordered`, which tells that
        they were categories in the file.
    """
    codes, unique = pd.factorize(np.asarray(values, object), sort=True)
    if len(unique) <= 4096 and 2 * len(unique) <= len(codes):
        values, attrs = categorical_column(codes, np.asarray(unique, object), ordered=False)
        return values, {"categories": attrs["categories"]}
    out = (
        np.append(np.asarray(unique, object), [np.nan])[codes]
        if len(codes)
        else np.empty(0, object)
    )
    return out, {}


def names_in(given: str | Iterable[str] | None) -> set[str]:
    """
    Return names as a set, however they were given.

    Parameters
    ----------
    given : str, iterable of str or None
        Such as `drop_variables` of `xarray.open_dataset`.

    Returns
    -------
    set of str
        A text is one name.

    Examples
    --------
    >>> names_in("X"), sorted(names_in(["X", "U"])), names_in(None)
    ({'X'}, ['U', 'X'], set())
    """
    return {given} if isinstance(given, str) else {*(given or ())}


def kind(ds: xr.Dataset) -> str:
    """
    Say which kind of data a Dataset holds.

    Parameters
    ----------
    ds : xarray.Dataset
        Any Dataset.

    Returns
    -------
    str
        ``"contacts"``, ``"cells"`` or ``"arrays"`` for anything else.
    """
    if {"bin1", "bin2"} <= set(ds.sizes):
        return "contacts"
    return "cells" if "cell" in ds.sizes else "arrays"


def require(ds: xr.Dataset, names: Iterable[str], what: str) -> None:
    """
    Refuse a Dataset that lacks coordinates or variables.

    Parameters
    ----------
    ds : xarray.Dataset
        Where to look.
    names : iterable of str
        What must be there.
    what : str
        What it is needed for, for the message.

    Raises
    ------
    SchemaError
        If a name is missing; the message lists those there are.
    """
    missing = [n for n in names if n not in ds.variables]
    if missing:
        msg = f"{what} needs {missing}, which the Dataset lacks; it has {sorted(map(str, ds.variables))}"
        raise SchemaError(msg)
