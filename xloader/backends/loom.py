"""Loom files: dense matrices of genes x cells in HDF5, shown as cells x genes."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy.typing as npt
import xarray as xr
from typing_extensions import override
from xarray.backends import BackendEntrypoint

from xloader.arrays import Key, StoredArray
from xloader.backends.elements import DenseElement, Leaf
from xloader.backends.features import require_unique, text_of
from xloader.backends.hdf5 import HDF5File, close_hdf5, read, require_whole
from xloader.backends.sizes import require_memory
from xloader.errors import ReadError, SchemaError, warn
from xloader.schema import Column, cells_dataset, names_in, string_column

_CELLS = ("CellID", "obs_names", "cell_id", "barcode")
_GENES = ("Accession", "var_names", "Gene", "gene_name")  # several genes may share a symbol


class Transposed(StoredArray):
    """
    A dense HDF5 matrix, its dimensions exchanged; chunk by chunk, so that nothing is read whole.

    Parameters
    ----------
    leaf : Leaf
        The matrix, as stored.
    """

    def __init__(self, leaf: Leaf) -> None:
        self.stored = DenseElement(leaf)
        super().__init__(self.stored.shape[::-1], self.stored.dtype)

    @property
    @override
    def unit(self) -> tuple[int, ...]:  # numpydoc ignore=GL08
        return self.stored.unit[::-1]

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        return self.stored._raw(key[::-1]).T


class LoomBackendEntrypoint(BackendEntrypoint):
    """
    Open loom files as labelled Datasets: ``xr.open_dataset(path, engine="loom")``.

    The matrix is `X (cell, gene)`, layers are variables of their own names; attributes of columns
    and rows are coordinates on `cell` and `gene`, and where they have two dimensions, such as
    embeddings, variables. Graphs are not opened.
    """

    description = "Single-cell matrices in loom files (.loom)"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = (
        "filename_or_obj",
        "drop_variables",
        "cell",
        "gene",
    )

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:  # numpydoc ignore=GL08
        return isinstance(filename_or_obj, str | Path) and Path(filename_or_obj).suffix == ".loom"

    @override
    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        cell: str | None = None,
        gene: str | None = None,
    ) -> xr.Dataset:
        """
        Open a file lazily; names and labels are read, matrices are not.

        Parameters
        ----------
        filename_or_obj : str or path
            A loom file, known by its groups and not by its name.
        drop_variables : str or iterable of str, optional
            Variables and coordinates to leave out.
        cell, gene : str, optional
            Attributes that name the cells (of `col_attrs`) and the genes (of `row_attrs`). Default:
            the first that is there of `CellID`, `obs_names`, `cell_id` and `barcode`, and of
            `Accession`, `var_names`, `Gene` and `gene_name`.

        Returns
        -------
        xarray.Dataset
            Named as DESIGN "Labels" says.

        Raises
        ------
        ReadError
            If there is no such file, or it is truncated or damaged.
        SchemaError
            If it is no loom file, has no names, or its shapes disagree.
        """
        if not isinstance(filename_or_obj, str | Path):
            msg = (
                f"cannot open a {type(filename_or_obj).__name__} as loom; only files on disk can be "
                "reopened by worker processes: save it and pass the path"
            )
            raise ReadError(msg)
        path = str(Path(filename_or_obj).expanduser().absolute())
        dropped = names_in(drop_variables)
        file = HDF5File(path)
        with file.reading():
            if not is_loom(file.handle):
                msg = (
                    f"{path!r} is no loom file: it has {sorted(file.handle)}, and not `matrix`, "
                    "`row_attrs` and `col_attrs`; open it with the engine of its own format"
                )
                raise SchemaError(msg)
            ds = _open(file, cell, gene)
        ds = ds.drop_vars(dropped, errors="ignore")
        ds.set_close(partial(close_hdf5, path))
        return ds


def is_loom(root: h5py.Group) -> bool:
    """
    Say whether an HDF5 file is of loom, by its groups.

    Parameters
    ----------
    root : h5py.Group
        The root of the file.

    Returns
    -------
    bool
        Of any version.
    """
    return {"matrix", "row_attrs", "col_attrs"} <= set(root)


def _open(file: HDF5File, cell: str | None, gene: str | None) -> xr.Dataset:
    keys = [*file.handle.get("layers", ())]
    matrix, *layers = require_whole(file, ["matrix", *(f"layers/{key}" for key in keys)])
    shape = matrix.shape
    if len(shape) != 2:
        msg = f"`matrix` of {file.path!r} has shape {shape}, not genes x cells; get a new copy"
        raise SchemaError(msg)
    n_genes, n_cells = shape
    obs, var = _attributes(file, "col_attrs", n_cells), _attributes(file, "row_attrs", n_genes)
    names = [
        _names(file, "col_attrs", obs[0], cell, _CELLS),
        _names(file, "row_attrs", var[0], gene, _GENES),
    ]
    arrays: dict[str, Any] = {"X": (("cell", "gene"), Transposed(matrix), {})}
    for key, layer in zip(keys, map(Transposed, layers), strict=True):
        if layer.shape != (n_cells, n_genes):
            msg = (
                f"`layers/{key}` of {file.path!r} has shape {layer.shape[::-1]}, `matrix` has {shape}: "
                "the file was not written to its end, or is damaged; get a new copy"
            )
            raise SchemaError(msg)
        arrays[_label("layer", key, arrays)] = (("cell", "gene"), layer, {})
    for key, array in obs[1].items():
        label = _label("col", key, arrays)
        arrays[label] = (("cell", f"{label}_dim"), array, {})
    for key, array in var[1].items():
        label = _label("row", key, arrays)
        arrays[label] = (("gene", f"{label}_dim"), array, {})
    return cells_dataset(arrays, cell=names[0], gene=names[1], obs=obs[0], var=var[0])


def _label(group: str, key: str, taken: Iterable[str]) -> str:
    taken = {"X", "cell", "gene", "row", "column", "sample_id", "valid", *taken}
    while key in taken:
        key = f"{group}_{key}"
    return key


def _attributes(
    file: HDF5File, group: str, n: int
) -> tuple[dict[str, Column], dict[str, StoredArray]]:
    """Return the attributes of columns or rows: labels, and what has two dimensions."""
    columns: dict[str, Column] = {}
    arrays: dict[str, StoredArray] = {}
    skipped = []
    for key in file.handle[group]:
        name = f"{group}/{key}"
        (leaf,) = require_whole(file, [name])
        values = file.handle[name]
        is_text = h5py.check_string_dtype(values.dtype) is not None
        if values.shape[:1] != (n,):
            msg = (
                f"`{name}` of {file.path!r} has shape {values.shape}, but the matrix asks for {n}: the "
                "file was not written to its end, or is damaged; get a new copy"
            )
            raise SchemaError(msg)
        if values.ndim == 1 and (is_text or values.dtype.kind in "biuf"):
            what = f"`{name}` of {file.path!r}"
            require_memory(n * (values.dtype.itemsize + 64), what, "use a larger machine")
            data = read(file, name)
            native = data.astype(data.dtype.newbyteorder("="), copy=False)
            columns[key] = string_column(text_of(data.tolist())) if is_text else (native, {})
        elif values.ndim == 2 and values.dtype.kind in "biuf":
            arrays[key] = DenseElement(leaf)
        else:
            skipped.append(name)
    if skipped:
        warn(
            f"{file.path!r} holds attributes that are no numbers or text, and were left out: {skipped}"
        )
    return columns, arrays


def _names(
    file: HDF5File, group: str, columns: dict[str, Column], chosen: str | None, usual: Iterable[str]
) -> npt.NDArray[Any]:
    """Take the names out of the attributes."""
    key = chosen or next((k for k in usual if k in columns), None)
    if key not in columns:
        side = "cell" if group == "col_attrs" else "gene"
        msg = (
            f"{file.path!r} has no {side} names {chosen or list(usual)} in `{group}`, which has "
            f"{sorted(columns)}; say which are names: xr.open_dataset(path, engine='loom', {side}=...)"
        )
        raise SchemaError(msg)
    names = text_of(columns.pop(key)[0])
    require_unique(names, f"names in `{group}/{key}`", file.path)
    return names
