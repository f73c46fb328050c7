"""Cell-by-gene arrays in AnnData files (.h5ad), read with h5py alone."""

import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override
from xarray.backends import BackendEntrypoint

from xloader.arrays import Key, RowArray, StoredArray
from xloader.backends.anndata_frames import (
    FrameArray,
    encoding_of,
    is_numeric_frame,
    read_frame,
)
from xloader.backends.hdf5 import HDF5Array, HDF5File, close_hdf5, read, read_ranges
from xloader.csr import CSRArray
from xloader.errors import ReadError, SchemaError, warn
from xloader.schema import cells_dataset
from xloader.threads import cut, n_threads, run

BLOCK_VALUES = 2**17
"""Stored values that a block of rows aims at; HDF5 chunks that hold more make blocks larger."""

SCAN_NBYTES = 64 * 2**20
"""Bytes of stored values and indices that a read of a matrix stored by columns aims at."""

_RESERVED = ("X", "cell", "gene", "row", "column", "sample_id", "valid")


class CSRGroup(RowArray):
    """
    A sparse matrix that an HDF5 group stores by rows.

    Parameters
    ----------
    file : HDF5File
        The file.
    name : str
        Path of the group inside it, with `data`, `indices` and `indptr`.
    shape : tuple of int
        ``(n_rows, n_columns)``.

    Raises
    ------
    SchemaError
        If `indptr` does not fit `shape`, `data` and `indices`.
    """

    def __init__(self, file: HDF5File, name: str, shape: tuple[int, int]) -> None:
        group = file.handle[name]
        data, indices = group["data"], group["indices"]
        values = max(BLOCK_VALUES, *(d.chunks[0] if d.chunks else 0 for d in (data, indices)))
        rows = values * shape[0] / max(1, data.shape[0])
        block_rows = 2 ** int(np.clip(np.round(np.log2(max(rows, 1))), 5, 12))
        super().__init__(shape, data.dtype.newbyteorder("="), block_rows)
        self.file = file
        self.name = name
        self._check(data.shape[0], indices.shape[0])

    def _check(self, n_data: int, n_indices: int) -> None:
        n, indptr = self.shape[0], self.indptr
        if len(indptr) != n + 1:
            msg = (
                f"`{self.name}/indptr` of {self.file.path!r} has {len(indptr)} entries, its shape asks "
                f"for {n + 1}: the file was written wrongly or is damaged; write it again"
            )
            raise SchemaError(msg)
        steps = np.diff(indptr, prepend=0, append=min(n_data, n_indices))
        if n_data != n_indices or steps[0] or steps[-1] or steps.min() < 0:
            msg = (
                f"`{self.name}/indptr` of {self.file.path!r} (from {indptr[0]} to {indptr[-1]}) does not "
                f"fit its {n_data} values and {n_indices} indices: the file was not written to its "
                "end, or is damaged; get a new copy"
            )
            raise SchemaError(msg)

    @cached_property
    def indptr(self) -> npt.NDArray[np.int64]:
        """
        Return the first stored value of each row, and their number.

        Returns
        -------
        ndarray of int64, shape (n_rows + 1,)
            In memory from then on.
        """
        return read(self.file, f"{self.name}/indptr").astype(np.int64)

    @override
    def __getstate__(self) -> dict[str, Any]:
        # read again where it arrives, so that what travels to workers stays small
        return {k: v for k, v in self.__dict__.items() if k != "indptr"}

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:  # numpydoc ignore=GL08
        return self.read_ranges(np.array([start]), np.array([stop]))

    @override
    def read_ranges(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> CSRArray:  # numpydoc ignore=GL08
        rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
        spans = self.indptr[starts], self.indptr[stops]
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.indptr[rows + 1] - self.indptr[rows], out=indptr[1:])
        indices = read_ranges(self.file, f"{self.name}/indices", *spans)
        indices = indices.astype(indices.dtype.newbyteorder("="), copy=False)
        falling, outside = _disorder(indices, indptr, self.shape[1])
        if outside >= 0:
            msg = (
                f"`{self.name}/indices` of {self.file.path!r} holds {indices.min()} to {indices.max()} "
                f"from `indptr[{rows[outside]}]` on, outside [0, {self.shape[1]}): the file is "
                "damaged; get a new copy"
            )
            raise ReadError(msg)
        data = read_ranges(self.file, f"{self.name}/data", *spans).astype(self.dtype, copy=False)
        narrow = np.int32 if self.shape[1] < 2**31 else np.int64
        shape = (len(rows), self.shape[1])
        block = CSRArray(data, indices.astype(narrow, copy=False), indptr, shape)
        return block if falling < 0 else self._sorted(block, rows)

    def _sorted(self, block: CSRArray, rows: npt.NDArray[np.int64]) -> CSRArray:
        """Sort the columns of each row, which not every writer does."""
        block = block.sort_columns()
        twice = _disorder(block.indices, block.indptr, block.shape[1])[0]
        if twice >= 0:
            msg = (
                f"`{self.name}` of {self.file.path!r} stores an element twice, from "
                f"`indptr[{rows[twice]}]` on; call scipy's `sum_duplicates()` on it and write it again"
            )
            raise ReadError(msg)
        return block

    @override
    def nnz_of(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:  # numpydoc ignore=GL08
        return self.indptr[stops] - self.indptr[starts]


def _disorder(
    indices: npt.NDArray[Any], indptr: npt.NDArray[np.int64], n_columns: int
) -> tuple[int, int]:
    """Return the first row whose columns do not rise, and the first with one outside, or -1."""
    from xloader.kernels.scatter import disorder  # numba is imported when rows are first read

    parts = cut(len(indptr) - 1, n_threads() if len(indices) > BLOCK_VALUES else 1)
    found = run("decode", disorder, [(indices, indptr, n_columns, a, b) for a, b in parts])
    falling, outside = ([k for k in each if k >= 0] for each in zip(*found, strict=True))
    return min(falling, default=-1), min(outside, default=-1)


class CSCGroup(RowArray):
    """
    A sparse matrix that an HDF5 group stores by columns.

    Columns are read directly; rows cost a scan of everything, in pieces of bounded size, so that
    `block_rows` is as large as `SCAN_NBYTES` allows.

    Parameters
    ----------
    file : HDF5File
        The file.
    name : str
        Path of the group inside it, with `data`, `indices` and `indptr`.
    shape : tuple of int
        ``(n_rows, n_columns)``.
    """

    by_column = True

    def __init__(self, file: HDF5File, name: str, shape: tuple[int, int]) -> None:
        self.transposed = CSRGroup(file, name, (shape[1], shape[0]))
        n_values = int(self.transposed.indptr[-1])
        value_nbytes = self.transposed.dtype.itemsize + 4
        rows = SCAN_NBYTES * shape[0] // max(1, n_values * value_nbytes)
        super().__init__(shape, self.transposed.dtype, max(1, min(rows, shape[0])))
        self.scan_values = SCAN_NBYTES // 4 // value_nbytes

    @cached_property
    def row_starts(self) -> npt.NDArray[np.int64]:
        """
        Return the number of stored values before each row; costs one scan.

        Returns
        -------
        ndarray of int64, shape (n_rows + 1,)
            In memory from then on.
        """
        counts = np.zeros(self.shape[0] + 1, np.int64)
        for _, piece in self._pieces():
            counts[1:] += np.bincount(piece.indices, minlength=self.shape[0])
        return np.cumsum(counts)

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "row_starts"}

    def _pieces(self) -> Iterator[tuple[int, CSRArray]]:
        """Yield all columns as rows of the transposed matrix, a bounded number of values each."""
        indptr = self.transposed.indptr
        parts = np.searchsorted(indptr, np.arange(0, indptr[-1], self.scan_values), "right") - 1
        for a, b in itertools.pairwise(np.unique([*parts, self.shape[1]]).tolist()):
            yield a, self.transposed.read_rows(a, b)

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:  # numpydoc ignore=GL08
        wanted = np.arange(start, stop)
        data, rows, columns = [np.empty(0, self.dtype)], [wanted[:0]], [wanted[:0]]
        for first, piece in self._pieces():
            kept = piece.take_columns(wanted)
            data.append(kept.data)
            rows.append(kept.indices)
            columns.append(kept.row_ids() + first)
        row = np.concatenate(rows)
        order = np.argsort(row, kind="stable")  # columns come in order
        indptr = np.zeros(len(wanted) + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=len(wanted)), out=indptr[1:])
        narrow = np.int32 if self.shape[1] < 2**31 else np.int64
        return CSRArray(
            np.concatenate(data)[order],
            np.concatenate(columns)[order].astype(narrow, copy=False),
            indptr,
            (len(wanted), self.shape[1]),
        )

    @override
    def nnz_of(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:  # numpydoc ignore=GL08
        return self.row_starts[stops] - self.row_starts[starts]

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        return self.transposed._raw(key[::-1]).T


class AnnDataBackendEntrypoint(BackendEntrypoint):
    """
    Open AnnData files (.h5ad) as labelled Datasets: ``xr.open_dataset(path, engine="anndata")``.

    `X` and each layer become variables ``(cell, gene)``, each array in `obsm` a variable
    ``(cell, <name>_dim)``, the columns of `obs` and `var` coordinates. `raw`, `obsp`, `varm`,
    `varp` and `uns` are not opened.
    """

    description = "Cell-by-gene arrays in AnnData files (.h5ad)"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = ("filename_or_obj", "drop_variables")

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:  # numpydoc ignore=GL08
        return isinstance(filename_or_obj, str | Path) and Path(filename_or_obj).suffix == ".h5ad"

    @override
    def open_dataset(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> xr.Dataset:
        """
        Open a file lazily; names and labels are read, matrices are not.

        Parameters
        ----------
        filename_or_obj : str or path
            An AnnData file, known by its groups and not by its name.
        drop_variables : str or iterable of str, optional
            Variables and coordinates to leave out.

        Returns
        -------
        xarray.Dataset
            Named as DESIGN "Labels" says. What cannot be opened is left out with a warning.

        Raises
        ------
        ReadError
            If there is no such file, or it is truncated or damaged.
        SchemaError
            If it is no AnnData file, was written by anndata before 0.7, or its shapes disagree.
        """
        if not isinstance(filename_or_obj, str | Path):
            msg = (
                f"cannot open a {type(filename_or_obj).__name__} as AnnData; only files on disk can "
                "be reopened by worker processes: save it and pass the path"
            )
            raise ReadError(msg)
        path = str(Path(filename_or_obj).expanduser().absolute())
        dropped = {drop_variables} if isinstance(drop_variables, str) else {*(drop_variables or ())}
        file = HDF5File(path)
        with file.reading():
            _require_anndata(file)
            ds, skipped = _Opening(file).dataset()
        _tell_skipped(path, {n: e for n, e in skipped.items() if n.split("/")[-1] not in dropped})
        ds = ds.drop_vars(dropped, errors="ignore")
        ds.set_close(partial(close_hdf5, path))
        return ds


def _require_anndata(file: HDF5File) -> None:
    there = set(file.handle)
    if not {"obs", "var"} <= there or not {"X", "layers"} & there:
        msg = (
            f"{file.path!r} is not an AnnData file: it has {sorted(there)} and no `obs`, `var` and `X` "
            "(or `layers`); open it with the engine of its own format"
        )
        raise SchemaError(msg)


def _tell_skipped(path: str, skipped: dict[str, str]) -> None:
    if skipped:
        named = ", ".join(f"`{name}` ({encoding})" for name, encoding in skipped.items())
        warn(
            f"{path!r} holds elements that have no form as a labelled array and were left out: "
            f"{named}; name them in `drop_variables` to silence this"
        )


class _Opening:
    """One file being opened: what was found, and what cannot be shown."""

    def __init__(self, file: HDF5File) -> None:
        self.file = file
        self.groups = file.handle
        self.obs = read_frame(file, "obs")
        self.var = read_frame(file, "var")
        self.shape = (len(self.obs.index), len(self.var.index))
        self.arrays: dict[str, Any] = {}
        self.coords: dict[str, xr.Variable] = {}
        self.skipped = {
            f"{table}/{column}": encoding
            for table, frame in (("obs", self.obs), ("var", self.var))
            for column, encoding in frame.skipped.items()
        }

    def dataset(self) -> tuple[xr.Dataset, dict[str, str]]:
        """Return the labelled Dataset, and the encodings of what it lacks."""
        if "X" in self.groups:
            self._add("X", "X", self.shape)
        for key in self.groups.get("layers", ()):
            self._add(f"layers/{key}", self._label("layer", key), self.shape)
        for key in self.groups.get("obsm", ()):
            self._add(f"obsm/{key}", self._label("obsm", key), self.shape[:1])
        ds = cells_dataset(
            self.arrays,
            cell=self.obs.index,
            gene=self.var.index,
            obs=self.obs.columns,
            var=self.var.columns,
            coords=self.coords,
        )
        for dim, frame in (("cell", self.obs), ("gene", self.var)):
            if frame.index_name != "_index":
                ds[dim].attrs["column"] = frame.index_name
        return ds, self.skipped

    def _label(self, group: str, key: str) -> str:
        taken = {*_RESERVED, *self.arrays, *self.coords}
        while key in taken:
            key = f"{group}_{key}"
        return key

    def _add(self, name: str, label: str, shape: tuple[int, ...]) -> None:
        array = _open_array(self.file, name)
        if array is None:
            self.skipped[name] = encoding_of(self.groups[name]) or "unknown encoding"
            return
        if array.shape[: len(shape)] != shape:
            msg = (
                f"`{name}` of {self.file.path!r} has shape {array.shape}, but its `obs` has "
                f"{self.shape[0]} rows and its `var` {self.shape[1]}: the file was not written to "
                "its end, or is damaged; get a new copy"
            )
            raise SchemaError(msg)
        further = [f"{label}_dim{k or ''}" for k in range(len(array.shape) - 1)]
        dims = ("cell", "gene") if len(shape) == 2 else ("cell", *further)
        if isinstance(array, FrameArray):
            names = np.array(array.columns, object)
            self.coords[dims[1]] = xr.Variable(dims[1], names)
        original = name.rsplit("/", maxsplit=1)[-1]
        self.arrays[label] = (dims, array, {} if label == original else {"key": original})


def _open_array(file: HDF5File, name: str) -> StoredArray | None:
    """Open a matrix of any supported encoding, or return None."""
    element = file.handle[name]
    encoding = encoding_of(element)
    if encoding in {"csr_matrix", "csc_matrix"}:
        rows, columns = (int(n) for n in element.attrs["shape"])
        return (CSRGroup if encoding == "csr_matrix" else CSCGroup)(file, name, (rows, columns))
    if encoding == "dataframe":
        return FrameArray(file, name) if is_numeric_frame(file, name) else None
    if isinstance(element, h5py.Dataset) and element.ndim and element.dtype.kind in "biuf":
        return HDF5Array(file, name)
    return None
