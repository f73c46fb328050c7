"""Cells written as AnnData; rows pass by in blocks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from tqdm import tqdm

from xloader import trace
from xloader.arrays import RowArray
from xloader.backends.anndata_writer import CHUNK, AnnDataWriter, is_column, new_anndata
from xloader.csr import CSRArray
from xloader.errors import SchemaError, warn
from xloader.schema import Column
from xloader.store.staging import read_dense, read_increasing

Array = npt.NDArray[Any]

VALUES = 2**21
"""Stored values of sparse rows that are held at a time, about."""

NBYTES = 2**25
"""Bytes of dense rows that are held at a time."""

_SPARSE = 0.5  # a computed array of fewer values that are not 0 takes less room as CSR
_POSITIONS = {"row", "column"}


def export_cells(
    ds: xr.Dataset, target: Path, variable: str | None, *, overwrite: bool, progress: bool
) -> Path:
    """
    Write cells, as `export`.

    Parameters
    ----------
    ds : xarray.Dataset
        Cells.
    target : Path
        File or folder to make.
    variable : str or None
        What becomes X.
    overwrite, progress : bool
        As for `export`.

    Returns
    -------
    Path
        The file or folder.
    """
    parts = _Parts.of(ds, variable)
    if parts.left_out:
        named = ", ".join(f"`{name}` {why}" for name, why in parts.left_out.items())
        warn(
            f"{target.name!r} will lack what has no place in AnnData: {named}; drop them (ds.drop_vars) to "
            "silence this, or keep everything in a store (xl.convert)"
        )
    with new_anndata(target, overwrite=overwrite) as out:
        out.frame("obs", parts.names["cell"], parts.obs, index_name=_index_name(ds, "cell"))
        feature = parts.feature or "gene"
        out.frame("var", parts.names[feature], parts.var, index_name=_index_name(ds, feature))
        for name, value in parts.attrs.items():
            out.attribute(name, value)
        total = sum(len(matrix) for matrix in parts.arrays.values())
        with tqdm(total=total, desc="export", unit="row", disable=not progress) as bar:
            for path, matrix in parts.arrays.items():
                for n in _write(out, path, matrix, parts, ds):
                    bar.update(n)
    return target


@dataclass
class _Parts:
    """What goes where in AnnData."""

    feature: str | None
    """The dimension of `var`."""
    names: dict[str, Array] = field(default_factory=dict)
    obs: dict[str, Column] = field(default_factory=dict)
    var: dict[str, Column] = field(default_factory=dict)
    arrays: dict[str, xr.Variable] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, ds: xr.Dataset, variable: str | None) -> "_Parts":
        """Sort everything of a Dataset, or say why that is impossible."""
        _refuse_merged(ds)
        feature = _feature(ds)
        main = _main(ds, feature, variable)
        parts = cls(feature)
        for dim in filter(None, ("cell", feature)):
            index = _index(ds, str(dim))
            names = np.arange(ds.sizes[dim]) if index is None else index.values
            parts.names[dim] = np.array([str(name) for name in names.tolist()], object)
        parts.names.setdefault(feature or "gene", np.empty(0, object))
        for key, variable_ in ds.variables.items():
            # names along a dimension, and positions in what was opened, are no columns
            named = variable_.dims == (key,) or (key in _POSITIONS and variable_.ndim == 1)
            plain = named and key in ds.coords
            if not plain:
                parts._add(str(key), variable_, main)
        for key, value in ds.attrs.items():
            parts.attrs[_checked(str(key), {})] = value
        return parts

    def _add(self, name: str, variable: xr.Variable, main: str | None) -> None:
        kind = variable.dtype.kind
        first = next((d for d in ("cell", self.feature) if d in variable.dims), None)
        if first is None:
            self.left_out[name] = f"over {tuple(variable.dims)}, without `cell`"
            return
        if variable.ndim == 1:
            frame = self.obs if first == "cell" else self.var
            values = np.asarray(variable.values)
            if not is_column(values):
                self.left_out[name] = f"of {values.dtype} that is neither numbers nor text"
                return
            frame[_checked(str(variable.attrs.get("column", name)), frame)] = values, variable.attrs
            return
        if kind not in "biuf":
            self.left_out[name] = f"of {variable.dtype}, with {variable.ndim} dimensions"
            return
        key = str(variable.attrs.get("key", name))
        if first == "cell" and set(variable.dims) == {"cell", self.feature}:
            path = "X" if name == main else f"layers/{_checked(key, {})}"
            variable = variable.transpose("cell", self.feature)
        else:
            path = f"{'obsm' if first == 'cell' else 'varm'}/{_checked(key, {})}"
            variable = variable.transpose(first, ...)
        self.arrays[_checked(path, self.arrays, whole=True)] = variable


def _checked(name: str, taken: Any, *, whole: bool = False) -> str:
    """Refuse a name that AnnData cannot have."""
    if name in taken:
        msg = f"two variables would both be {name!r} in AnnData; rename one, or its attribute `column`"
        raise SchemaError(msg)
    if not whole and ("/" in name or name in {"", ".", "_index"}):
        msg = f"AnnData allows no {name!r} as a name (no '/', and not '_index'); rename it"
        raise SchemaError(msg)
    return name


def _refuse_merged(ds: xr.Dataset) -> None:
    """Refuse sources of different cells, which one AnnData cannot hold."""
    own = [str(d) for d in ds.dims if str(d).endswith("_cell") and d in ds.coords]
    if own and "cell" in ds.dims:
        msg = (
            f"an AnnData holds cells of one kind, and this Dataset has those of several sources ({own}), as "
            "xl.merge makes them; export each source by itself"
        )
        raise SchemaError(msg)


def _feature(ds: xr.Dataset) -> str | None:
    """Return the dimension of features; refuse several modalities."""
    modalities = [
        str(k)
        for k, v in ds.variables.items()  # xarray makes one called like its dimension a coordinate
        if f"{k}_present" in ds.coords and v.ndim == 2 and "cell" in v.dims
    ]
    if len(modalities) > 1:
        keep, *others = modalities
        dims = [str(d) for name in others for d in ds[name].dims if d != "cell"]
        msg = (
            f"an AnnData holds one modality, and this Dataset has {modalities}; write each by itself, such as "
            f"xl.export(ds.isel(cell=ds.{keep}_present.values).drop_dims({dims}), '{keep}.h5ad')"
        )
        raise SchemaError(msg)
    if "gene" in ds.sizes:
        return "gene"
    return next((str(d) for name in modalities for d in ds[name].dims if d != "cell"), None)


def _main(ds: xr.Dataset, feature: str | None, asked: str | None) -> str | None:
    """Return what becomes X."""
    there = [str(k) for k, v in ds.variables.items() if set(v.dims) == {"cell", feature}]
    if asked is not None and asked not in there:
        msg = f"variable={asked!r} names none of the variables over cell and {feature}; they are {there}"
        raise SchemaError(msg)
    if asked is not None or "X" in there or not there:
        return asked or ("X" if there else None)
    if len(there) > 1:
        msg = f"none of {there} is called X; say which becomes it: variable={there[0]!r}"
        raise SchemaError(msg)
    return there[0]


def _index(ds: xr.Dataset, dim: str) -> xr.Variable | None:
    """Return the names along a dimension, if it has any."""
    variable = ds.variables.get(dim)
    return variable if variable is not None and variable.dims == (dim,) else None


def _index_name(ds: xr.Dataset, dim: str) -> str:
    index = _index(ds, dim)
    return str("_index" if index is None else index.attrs.get("column", "_index"))


def _write(
    out: AnnDataWriter, path: str, matrix: xr.Variable, parts: _Parts, ds: xr.Dataset
) -> Iterator[int]:
    """Write one array, and yield how many rows were written each time."""
    blocks: Iterator[CSRArray]
    n, dtype = len(matrix), matrix.dtype.newbyteorder("=")
    view = trace.view(matrix) if matrix.ndim == 2 else None
    if view is not None and isinstance(view.array, RowArray) and _is_distinct(view.index[1]):
        blocks = _sparse_blocks(view.array, *view.index)
    elif matrix.ndim == 2 and trace.is_computed(matrix) and _share(matrix) < _SPARSE:
        blocks = (_to_csr(block) for block in _dense_blocks(matrix))
    else:
        columns = _index(ds, str(matrix.dims[1])) if path.startswith(("obsm", "varm")) else None
        if columns is not None and matrix.ndim == 2 and columns.dtype.kind in "OUT":
            index = parts.names[str(matrix.dims[0])]
            table = out.table(path, index, [str(c) for c in columns.values], dtype)
        else:
            table = out.array(path, matrix.shape, dtype)
        for values in _dense_blocks(matrix):
            table.append(values)
            yield len(values)
        return
    rows = out.matrix(path, (n, matrix.shape[1]), dtype)
    for block in blocks:
        rows.append(block)
        yield block.shape[0]
    rows.close()


def _is_distinct(index: npt.NDArray[np.int64]) -> bool:
    return len(np.unique(index)) == len(index)


def _share(matrix: xr.Variable) -> float:
    """Return how much of the first rows is not 0."""
    first = next(_dense_blocks(matrix), np.zeros((1, 1)))
    return float(np.count_nonzero(first)) / max(first.size, 1)


def _dense_blocks(matrix: xr.Variable) -> Iterator[Array]:
    row = max(1, int(np.prod(matrix.shape[1:])) * matrix.dtype.itemsize)
    step = max(1, NBYTES // row)
    if step > CHUNK:  # whole chunks of the columns of a table
        step -= step % CHUNK
    for a in range(0, len(matrix), step):
        yield read_dense(matrix[a : a + step])


def _to_csr(block: Array) -> CSRArray:
    rows, columns = np.nonzero(block)
    indptr = np.append(0, np.cumsum(np.bincount(rows, minlength=len(block))))
    shape = (block.shape[0], block.shape[1])
    return CSRArray(block[rows, columns], columns.astype(np.int32), indptr, shape)


def _sparse_blocks(
    array: RowArray, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> Iterator[CSRArray]:
    """Yield some rows after the other, with the columns wanted."""
    everything = np.array_equal(columns, np.arange(array.shape[1]))
    rising = bool((np.diff(columns) > 0).all())
    step = array.block_rows
    if not array.by_column:  # of which rows know what they hold
        nnz = int(array.nnz_of(np.array([0]), np.array([array.shape[0]]))[0])
        blocks = VALUES * array.shape[0] // max(1, nnz * step)
        step *= max(1, blocks)
    for a in range(0, len(rows), step):
        wanted, back = np.unique(rows[a : a + step], return_inverse=True)
        block = read_increasing(array, wanted)
        if not np.array_equal(back, np.arange(len(back))):
            block = block.take_rows(back)
        if not everything:
            block = block.take_columns(columns)
        yield block if rising else block.sort_columns()
