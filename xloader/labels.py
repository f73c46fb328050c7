"""Labels of samples as integer codes: one vocabulary for every part of the data, or numbers as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xloader.axes import Windows
from xloader.errors import SchemaError

Int64 = npt.NDArray[np.int64]
Labels = Sequence[str] | Mapping[str, Sequence[Any] | None]
"""Names of labels, or the vocabulary of each, None for its own."""

_EXACT = 2**24
"""Whole numbers up to here are exact as float32."""
_MANY = 4096
_DATASETS = ("dataset", "cell_dataset")


def resolve_labels(
    ds: xr.Dataset, labels: Labels, windows: Windows
) -> tuple[tuple[str, ...], dict[str, list[Any]]]:
    """
    Return the labels that were asked for, and the vocabularies of those that are classes.

    Parameters
    ----------
    ds : xarray.Dataset
        Where labels are coordinates.
    labels : sequence of str, or mapping of str to sequence or None
        As the user gave them.
    windows : Windows
        What a sample is.

    Returns
    -------
    names : tuple of str
        All of them.
    categories : dict of str to list
        Without those that are numbers.

    Raises
    ------
    SchemaError
        If a label is no coordinate of single samples, has values that its vocabulary lacks, or can
        be neither classes nor numbers.
    """
    if isinstance(labels, str):
        msg = f"labels={labels!r} is one name; write labels=[{labels!r}]"
        raise SchemaError(msg)
    given = labels if isinstance(labels, Mapping) else dict.fromkeys(labels)
    single = {(d,) for d in windows.points}
    categories = {}
    for name, known in given.items():
        if name not in ds.coords or ds[name].dims not in single:
            there = [str(c) for c in ds.coords if ds[c].dims in single]
            msg = f"label {name!r} is no coordinate of single samples; there are {sorted(there)}"
            raise SchemaError(msg)
        found = vocabulary(ds[name]) if known is None else _checked(name, known)
        if found is None:
            numbers(np.asarray(ds[name]), name)  # refuses those that it would change
        else:
            codes(np.asarray(ds[name]), found, name)
            categories[name] = found
    return tuple(given), categories


def _checked(name: str, known: Any) -> list[Any]:
    """Return the vocabulary that the user gave."""
    if isinstance(known, str) or np.ndim(known) != 1:
        msg = f"labels={{{name!r}: {known!r}}}: a vocabulary is a list of classes, such as train.categories[{name!r}]"
        raise SchemaError(msg)
    index = pd.Index(known)
    odd = [*index[index.duplicated()], *index[index.isna()]]
    if odd:
        msg = f"the vocabulary of {name!r} names {odd[:5]} twice, or as a missing value; name each class once"
        raise SchemaError(msg)
    return list(index.tolist())


def vocabulary(label: xr.DataArray) -> list[Any] | None:
    """
    Return the classes of a coordinate: its own where it knows them, else its sorted values.

    Parameters
    ----------
    label : xarray.DataArray
        A coordinate; the attribute `categories` is its own vocabulary.

    Returns
    -------
    list or None
        None for numbers, which are no classes.

    Raises
    ------
    SchemaError
        If values are of several types.

    Examples
    --------
    >>> vocabulary(xr.DataArray(np.array(["b", None, "a"], object)))
    ['a', 'b']
    """
    own = label.attrs.get("categories")
    if own is not None:
        return list(own)
    values = np.asarray(label)
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind in ("integer", "floating", "mixed-integer-float"):
        return None
    if kind == "boolean":
        return [False, True]
    if kind not in ("string", "empty", "datetime64", "datetime", "date"):
        some = list(dict.fromkeys(map(repr, values.tolist())))[:5]
        msg = (
            f"label {label.name!r} has values of several types, such as {', '.join(some)}, or none that are "
            "classes; make all of them text, or say what the classes are: labels={name: [...]}"
        )
        raise SchemaError(msg)
    return list(pd.Index(pd.unique(values[pd.notna(values)])).sort_values().tolist())


def codes(values: npt.NDArray[Any], categories: Sequence[Any], name: str) -> Int64:
    """
    Return labels as positions in their vocabulary.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Labels.
    categories : sequence
        The vocabulary.
    name : str
        What they are called.

    Returns
    -------
    ndarray of int64, shape (n,)
        -1 where a label is missing.

    Raises
    ------
    SchemaError
        If the vocabulary lacks a label; names those.

    Examples
    --------
    >>> codes(np.array(["b", np.nan, "a"], object), ["a", "b"], "cell_type")
    array([ 1, -1,  0])
    """
    found: Int64 = pd.Index(categories).get_indexer(pd.Index(values)).astype(np.int64)
    unknown = (found < 0) & pd.notna(values)
    if unknown.any():
        names = list(dict.fromkeys(values[unknown].tolist()))
        msg = (
            f"{int(unknown.sum()):,} of {len(values):,} samples have a {name!r} that its vocabulary lacks: "
            f"{names[:5]}; it has {list(categories[:10])}. Leave them out, or make them missing: "
            f"ds.assign_coords({name}=ds[{name!r}].where(ds[{name!r}].isin(known))), or name all classes: "
            f"labels={{{name!r}: [...]}}"
        )
        raise SchemaError(msg)
    return found


def numbers(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    """
    Return a label that is a number.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Floats, integers, or such objects.
    name : str
        What it is called.

    Returns
    -------
    ndarray of float32, shape (n,)
        NaN where it is missing.

    Raises
    ------
    SchemaError
        If whole numbers are too large to stay what they are.

    Examples
    --------
    >>> numbers(np.array([3, None], object), "age")
    array([ 3., nan], dtype=float32)
    """
    if values.dtype.kind in "iu" and len(values) and max(values.max(), -values.min()) > _EXACT:
        msg = (
            f"label {name!r} has whole numbers beyond {_EXACT:,}, which float32 does not hold; if they are classes, "
            f"name them: labels={{{name!r}: [...]}}; if rounding does no harm, make them floats: "
            f"ds.assign_coords({name}=ds[{name!r}].astype('float64'))"
        )
        raise SchemaError(msg)
    return values.astype(np.float64).astype(np.float32)


def with_vocabularies(ds: xr.Dataset, dim: str) -> xr.Dataset:
    """
    Let every class label remember the vocabulary that it has now, so that parts of the data keep it.

    Parameters
    ----------
    ds : xarray.Dataset
        Where labels are coordinates.
    dim : str
        Dimension of the samples.

    Returns
    -------
    xarray.Dataset
        Its text coordinates along `dim` have an attribute `categories`; not those of more than 4,096 values
        of which most occur once, nor the names along `dim`.
    """
    told = {}
    for name, label in ds.coords.items():
        if label.dims != (dim,) or name == dim or "categories" in label.attrs:
            continue
        if pd.api.types.infer_dtype(np.asarray(label), skipna=True) == "string":
            known = vocabulary(label) or []
            if len(known) <= max(_MANY, label.size // 2):
                told[name] = label.variable.copy(deep=False)
                told[name].attrs = {**label.attrs, "categories": known}
    return ds.assign_coords(told)


def cell_names(ds: xr.Dataset, *, of_dataset: bool) -> npt.NDArray[Any]:
    """
    Return what cells are told by: their names, with that of their dataset, as barcodes occur in several.

    Parameters
    ----------
    ds : xarray.Dataset
        Cells, or statistics of cells.
    of_dataset : bool
        Whether the names of datasets count, see `has_datasets`.

    Returns
    -------
    ndarray, shape (n_cells,)
        Such as ``"file/AAAC-1"``.

    Examples
    --------
    >>> ds = xr.Dataset(coords={"cell": ["a"], "dataset": ("cell", ["one"])})
    >>> cell_names(ds, of_dataset=has_datasets(ds)).tolist()
    ['one/a']
    """
    names = np.asarray(ds["cell"])
    if not of_dataset:
        return names
    of = np.asarray(ds[next(c for c in _DATASETS if _along_cells(ds, c))])
    return np.asarray(of.astype(str).astype(object) + "/" + names.astype(str).astype(object))


def has_datasets(ds: xr.Dataset) -> bool:
    """
    Say whether cells know which of several joined datasets they are of.

    Parameters
    ----------
    ds : xarray.Dataset
        Cells, or statistics of cells.

    Returns
    -------
    bool
        True if `dataset (cell)` is there, or `cell_dataset (cell)` of statistics.
    """
    return any(_along_cells(ds, c) for c in _DATASETS)


def _along_cells(ds: xr.Dataset, name: str) -> bool:
    return name in ds.coords and ds[name].dims == ("cell",)
