"""Labels of 10x Genomics matrices: cells, and features of one or several types."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.arrays import RowArray
from xloader.csr import CSRArray
from xloader.errors import ReadError, SchemaError
from xloader.schema import keep_labels, label, lazy, string_column

Array = npt.NDArray[Any]

GENES = "Gene Expression"
"""Type of features where a file does not say."""

KINDS = {
    GENES: ("rna", "gene"),
    "Antibody Capture": ("prot", "protein"),  # a variable cannot be called as its dimension
    "Peaks": ("atac", "peak"),
    "CRISPR Guide Capture": ("crispr", "guide"),
}
"""Variable and dimension of each type of features."""


def features_dataset(
    array: RowArray, *, cell: Array, features: Mapping[str, Array], paths: tuple[str, str]
) -> xr.Dataset:
    """
    Build the labelled Dataset of a matrix whose columns are features of one or several types.

    Features of one type are `X (cell, gene)`, whatever their dimension is called; of several, each
    type is a variable with a dimension of its own, and all cells are present in each.

    Parameters
    ----------
    array : RowArray
        The matrix, ``(n_cells, n_features)``.
    cell : ndarray of str, shape (n_cells,)
        Names of the cells.
    features : mapping of str to ndarray, shape (n_features,)
        `id`, and further columns; `feature_type` says which variable a feature belongs to.
    paths : tuple of str
        Files of the names of cells and of features, for messages.

    Returns
    -------
    xarray.Dataset
        Dimensions are labelled by `id`; every column is a coordinate ``<dimension>_<column>``.

    Raises
    ------
    SchemaError
        If two cells, or two features of one type, have the same name.

    Examples
    --------
    >>> from xloader.trace import _Rows
    >>> counts = _Rows(CSRArray(np.ones(2), np.array([0, 2]), np.array([0, 2]), (1, 3)))
    >>> types = np.array(["Gene Expression", "Gene Expression", "Antibody Capture"], object)
    >>> features = {"id": np.array(["ENSG1", "ENSG2", "CD3"], object), "feature_type": types}
    >>> ds = features_dataset(
    ...     counts, cell=np.array(["AAAC-1"]), features=features, paths=("a", "b")
    ... )
    >>> dict(ds.sizes), list(ds.data_vars), ds.rna.values
    ({'cell': 1, 'gene': 2, 'protein': 1}, ['rna', 'prot'], array([[1., 0.]]))
    """
    types = features.get("feature_type", np.full(array.shape[1], GENES, object))
    kinds = {str(t): KINDS.get(str(t)) or _kind(str(t)) for t in dict.fromkeys(types)}
    require_unique(cell, "cells (barcodes)", paths[0])
    coords: dict[str, Any] = {
        "cell": label("cell", cell),
        "row": xr.Variable("cell", np.arange(len(cell))),
    }
    variables: dict[str, xr.Variable] = {}
    for kind, (own, dim) in (kinds or {GENES: KINDS[GENES]}).items():
        at = np.flatnonzero(types == kind)
        name = own if len(kinds) > 1 else "X"
        require_unique(features["id"][at], f"features of type {kind!r}", paths[1])
        variables[name] = _columns(array, dim, at, {"feature_type": kind})
        coords[dim] = label(dim, features["id"][at])
        coords["column" if name == "X" else f"{name}_column"] = xr.Variable(dim, at)
        for column, values in features.items():
            if column != "feature_type" and (values[at] != "").any():
                coords[f"{dim}_{column}"] = label(dim, *string_column(values[at]))
        if len(kinds) > 1:
            coords[f"{name}_present"] = label("cell", np.ones(len(cell), bool))
    return keep_labels(xr.Dataset(variables, coords))


def _kind(feature_type: str) -> tuple[str, str]:
    """Name the variable and the dimension of a type that is not known."""
    name = re.sub(r"\W+", "_", feature_type.lower()).strip("_") or "other"
    return name, f"{name}_feature"


def _columns(array: RowArray, dim: str, at: Array, attrs: Mapping[str, Any]) -> xr.Variable:
    """Return some columns of a matrix as a lazy variable, which a Loader reads from storage."""
    whole = lazy(("cell", dim), array, attrs)
    if len(at) == array.shape[1]:
        return whole
    part = whole.isel({dim: slice(at[0], at[-1] + 1) if (np.diff(at) == 1).all() else at})
    # as many rows as for the whole: what is read for a chunk is all that the file has of them
    chunks = whole.encoding["preferred_chunks"]
    part.encoding["preferred_chunks"] = {"cell": chunks["cell"], dim: len(at)}
    return part


def require_unique(names: Array, what: str, path: str, first: int = 1) -> None:
    """
    Refuse names that occur twice.

    Parameters
    ----------
    names : ndarray of object, shape (n,)
        Text, in the order of the file.
    what : str
        What has them, for the message.
    path : str
        Where they are.
    first : int, optional
        Number of the first of them. Default: 1, as lines are counted.

    Raises
    ------
    SchemaError
        If two are equal; names the first of them.

    Examples
    --------
    >>> require_unique(np.array(["a", "b", "a"], object), "cells", "x.tsv")
    Traceback (most recent call last):
    xloader.errors.SchemaError: two cells of 'x.tsv', numbers 1 and 3, are both called 'a' (1 name ...
    """
    seen: dict[str, int] = {}
    twice = [(k, seen[n]) for k, n in enumerate(names.tolist()) if seen.setdefault(n, k) != k]
    if twice:
        (k, before), n = twice[0], len({names[k] for k, _ in twice})
        msg = (
            f"two {what} of {path!r}, numbers {before + first} and {k + first}, are both called "
            f"{names[k]!r} ({n} name{'s' * (n > 1)} in all occur more than once), so that they cannot "
            "be told apart; make the names unique in the file, for instance by a suffix"
        )
        raise SchemaError(msg)


def require_counts(block: CSRArray, what: str, cells: Array) -> None:
    """
    Refuse counts that are negative or missing.

    Parameters
    ----------
    block : CSRArray
        Counts of some cells.
    what : str
        What they are, and in which file.
    cells : ndarray of int, shape (n_rows,)
        Number of each cell.

    Raises
    ------
    ReadError
        If a value is below zero or NaN; names it.
    """
    if not len(block.data) or block.data.min() >= 0:  # NaN is not
        return
    k = int(np.flatnonzero(~(block.data >= 0))[0])
    row = int(np.searchsorted(block.indptr, k, "right")) - 1
    msg = (
        f"{what} holds {block.data[k]} for cell {cells[row]}, feature {block.indices[k]} (from 0): counts "
        "are neither negative nor missing; the file is damaged, or holds values that are no counts, "
        "which belong into an .h5ad"
    )
    raise ReadError(msg)


def text_of(values: Iterable[Any]) -> Array:
    """
    Decode names.

    Parameters
    ----------
    values : iterable of bytes or str
        As stored.

    Returns
    -------
    ndarray of object, shape (n,)
        Text, decoded as UTF-8.
    """
    found = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    out = np.empty(len(found), object)
    out[:] = found
    return out
