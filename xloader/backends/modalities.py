"""Several modalities of partly the same cells as one Dataset: who has what is said by masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xloader import trace
from xloader.arrays import RowArray, StoredArray
from xloader.backends.mapped import MappedArray, MappedRows, RowMap
from xloader.errors import SchemaError
from xloader.schema import Column, keep_labels, label, lazy

Int64 = npt.NDArray[np.int64]

FEATURES: Mapping[str, str] = {
    "rna": "gene",
    "gex": "gene",
    "prot": "protein",
    "adt": "protein",
    "atac": "peak",
    "crispr": "guide",
}
"""Dimension of the features of a modality; `<modality>_feature` of one that is not named here."""

_RESERVED = frozenset({"cell", "row", "sample_id", "valid", *FEATURES.values()})


def modalities_dataset(
    parts: Mapping[str, xr.Dataset],
    *,
    cell: npt.NDArray[Any] | None = None,
    obs: Mapping[str, Column] | None = None,
    arrays: Mapping[str, StoredArray] | None = None,
    where: str = "",
) -> xr.Dataset:
    """
    Build the Dataset of several modalities over the union of their cells.

    Rows of a cell that a modality lacks are empty (zero), and its labels there are missing; the
    coordinate `<modality>_present (cell)` tells them from rows that were measured to be zero.

    Parameters
    ----------
    parts : mapping of str to xarray.Dataset
        By the name of the modality, each as `cells_dataset` makes it, with nothing selected: dims
        `cell` and `gene`, `X`, layers, embeddings, labels.
    cell : ndarray of str, optional
        Names of all cells, in order. Default: in the order in which the modalities bring them.
    obs : mapping of str to Column, optional
        Columns of all cells.
    arrays : mapping of str to StoredArray, optional
        Further arrays over all cells, such as joint embeddings.
    where : str, optional
        File, for messages.

    Returns
    -------
    xarray.Dataset
        One variable per modality, named like it, ``(cell, gene)``, ``(cell, protein)``, ``(cell,
        peak)`` or ``(cell, <modality>_feature)`` by `FEATURES`. Its layers, embeddings and labels
        are `<modality>_<name>`; `row` and `<modality>_column` keep their values through selections.

    Raises
    ------
    SchemaError
        If cells cannot be told apart or are not in `cell`, or there is no modality.

    Examples
    --------
    >>> from xloader.csr import CSRArray
    >>> from xloader.schema import cells_dataset
    >>> x = CSRArray(np.array([5.0]), np.array([1]), np.array([0, 1]), (1, 2))
    >>> rna = cells_dataset(
    ...     {"X": (("cell", "gene"), x, {})},
    ...     cell=np.array(["b"], object),
    ...     gene=np.array(["g", "h"], object),
    ...     obs={},
    ...     var={},
    ... )
    >>> ds = modalities_dataset({"rna": rna}, cell=np.array(["a", "b"], object))
    >>> ds.rna.values.tolist(), ds.rna_present.values.tolist()
    ([[0.0, 0.0], [0.0, 5.0]], [False, True])
    """
    if not parts:
        msg = f"{where!r} has no modality; there is nothing to open"
        raise SchemaError(msg)
    names = {name: pd.Index(ds["cell"].values) for name, ds in parts.items()}
    for name, index in names.items():
        _refuse_twice(index, f"modality {name!r} of {where!r}")
    if cell is None:
        cell = np.array(list(dict.fromkeys(c for i in names.values() for c in i)), object)
    union = pd.Index(cell)
    _refuse_twice(union, f"table `obs` of {where!r}")
    made = _Made(len(union), reserved=set(parts))
    made.add_label("cell", ("cell",), cell, {})
    made.add_label("row", ("cell",), np.arange(len(union)), {})
    for name, ds in parts.items():
        place = union.get_indexer(names[name])
        strange = names[name][place < 0]
        if len(strange):
            msg = (
                f"modality {name!r} of {where!r} has {len(strange)} cells that the table `obs` of all "
                f"modalities lacks, such as {strange[0]!r}; call `mdata.update()` and write it again"
            )
            raise SchemaError(msg)
        rows = np.full(len(union), -1, np.int64)
        rows[place] = np.arange(len(place))
        made.add_modality(name, ds, rows)
    for key, array in (arrays or {}).items():
        unique = made.free(key, "obsm")
        further = [f"{unique}_dim{k or ''}" for k in range(len(array.shape) - 1)]
        made.variables[unique] = lazy(("cell", *further), array)
    for key, (values, attrs) in (obs or {}).items():
        unique = made.free(key, "cell")
        extra = {} if unique == key else {"column": key}
        made.coords[unique] = label("cell", values, {**attrs, **extra})
    return keep_labels(xr.Dataset(made.variables, made.coords))


def _refuse_twice(index: pd.Index, what: str) -> None:
    twice = index[index.duplicated()].unique()
    if len(twice):
        msg = (
            f"{what} has {len(twice)} names of cells more than once, such as {twice[0]!r}, so that "
            "modalities cannot be aligned; call `obs_names_make_unique()` and write it again"
        )
        raise SchemaError(msg)


class _Made:
    """The Dataset as far as it is made."""

    def __init__(self, n: int, reserved: set[str]) -> None:
        self.n = n
        self.variables: dict[str, xr.Variable] = {}
        self.coords: dict[str, xr.Variable] = {}
        self.modalities = reserved
        self.dims: set[str] = set()

    def free(self, name: str, prefix: str) -> str:
        taken = {*self.variables, *self.coords, *self.dims, *_RESERVED}
        while name in taken:
            name = f"{prefix}_{name}"
        return name

    def add_label(
        self, name: str, dims: tuple[str, ...], values: npt.NDArray[Any], attrs: Mapping[str, Any]
    ) -> None:
        self.coords[name] = label(dims, values, attrs)

    def add_modality(self, name: str, ds: xr.Dataset, rows: Int64) -> None:
        shown = self.free(name, "modality")
        feature = FEATURES.get(name, f"{name}_feature")
        if feature in self.dims or feature in self.modalities:
            feature = f"{name}_feature"
        self.dims.add(feature)
        own = {"cell": "cell", "gene": feature}
        self.add_label(f"{shown}_present", ("cell",), rows >= 0, {})
        for key, variable in ((str(k), v) for k, v in ds.variables.items()):
            dims = tuple(own.get(str(d), f"{shown}_{d}") for d in variable.dims)
            if key in ds.data_vars:
                unique = shown if key == "X" else self.free(f"{shown}_{key}", "modality")
                self.variables[unique] = _aligned(dims, variable, rows)
            elif key == "gene":
                self.add_label(feature, dims, variable.to_numpy(), variable.attrs)
            elif key not in {"cell", "row"}:
                values = variable.to_numpy()
                attrs = dict(variable.attrs)
                unique = self.free(f"{shown}_{attrs.pop('column', key)}", "modality")
                if dims == ("cell",):
                    values = _spread(values, rows)
                self.add_label(unique, dims, values, attrs)


def _aligned(dims: tuple[str, ...], variable: xr.Variable, rows: Int64) -> xr.Variable:
    """Return a variable over all cells, still lazy."""
    if np.array_equal(rows, np.arange(variable.shape[0])):
        return xr.Variable(dims, variable._data, variable.attrs, variable.encoding, fastpath=True)
    view = trace.view(variable)
    if view is None:  # in memory, and small
        values = np.zeros((len(rows), *variable.shape[1:]), variable.dtype)
        values[rows >= 0] = variable.to_numpy()[rows[rows >= 0]]
        return xr.Variable(dims, values, variable.attrs)
    there = RowMap(rows, [variable.shape[0]])
    array: StoredArray
    if isinstance(view.array, RowArray):
        array = MappedRows([view.array], there)
    else:
        array = MappedArray([view.array], there)
    return lazy(dims, array, variable.attrs)


def _spread(values: npt.NDArray[Any], rows: Int64) -> npt.NDArray[Any]:
    """Return labels of all cells, missing where there are none."""
    if (rows >= 0).all():
        return values[rows]
    dtype = np.result_type(values.dtype, np.float64) if values.dtype.kind in "iuf" else object
    out = np.full(len(rows), np.nan, dtype)
    out[rows >= 0] = values[rows[rows >= 0]]
    return out
