"""Sparse rows and dense arrays brought into another order on disk, in bounded memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.arrays import RowArray
from xloader.csr import CSRArray

Int64 = npt.NDArray[np.int64]


class StagedRows(RowArray):
    """
    Sparse rows in two flat files, for as long as a conversion lasts.

    Parameters
    ----------
    folder : Path
        Where `data` and `indices` are.
    shape : tuple of int
        ``(n_rows, n_columns)``.
    dtype : dtype-like
        Type of the values.
    indptr : ndarray of int64, shape (n_rows + 1,)
        First value of each row, and their number.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int], dtype: npt.DTypeLike, indptr: Int64
    ) -> None:
        super().__init__(shape, dtype, block_rows=1)
        self.folder = folder
        self.indptr = indptr

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:  # numpydoc ignore=GL08
        a, b = int(self.indptr[start]), int(self.indptr[stop])
        data, indices = (
            np.fromfile(self.folder / name, dtype, b - a, offset=a * dtype.itemsize)
            for name, dtype in (("data", self.dtype), ("indices", np.dtype(np.int32)))
        )
        return CSRArray(
            data, indices, self.indptr[start : stop + 1] - a, (stop - start, self.shape[1])
        )

    @override
    def nnz_of(self, starts: Int64, stops: Int64) -> Int64:  # numpydoc ignore=GL08
        return np.asarray(self.indptr[stops] - self.indptr[starts])


def read_increasing(array: RowArray, rows: Int64) -> CSRArray:
    """
    Read some rows of a matrix.

    Parameters
    ----------
    array : RowArray
        Where they are.
    rows : ndarray of int64, shape (n,)
        Strictly increasing row numbers, at least one.

    Returns
    -------
    CSRArray, shape (n, n_columns)
        In the same order.
    """
    gaps = np.flatnonzero(np.diff(rows) != 1) + 1
    starts, stops = rows[np.append(0, gaps)], rows[np.append(gaps, len(rows)) - 1] + 1
    return array.read_ranges(starts, stops)


def stage_selection(
    array: RowArray, rows: Int64, columns: Int64, folder: Path, nbytes: int
) -> StagedRows:
    """
    Copy some rows and columns of a matrix to disk, in the order of storage.

    Parameters
    ----------
    array : RowArray
        Where they are.
    rows : ndarray of int64, shape (n_rows,)
        Strictly increasing row numbers.
    columns : ndarray of int64, shape (n_columns,)
        Columns in the order wanted, each at most once.
    folder : Path
        An empty directory.
    nbytes : int
        Bytes of rows to hold at a time.

    Returns
    -------
    StagedRows, shape (n_rows, n_columns)
        The selection.
    """
    counts = np.zeros(len(rows) + 1, np.int64)
    everything = np.array_equal(columns, np.arange(array.shape[1]))
    rising = bool((np.diff(columns) > 0).all())
    with (folder / "data").open("wb") as data, (folder / "indices").open("wb") as indices:
        for a, b in _slabs(array, rows, nbytes):
            block = read_increasing(array, rows[a:b])
            if not everything:
                block = block.take_columns(columns)
            if not rising:
                block = block.sort_columns()
            block.data.tofile(data)
            block.indices.astype(np.int32, copy=False).tofile(indices)
            counts[a + 1 : b + 1] = np.diff(block.indptr)
    return StagedRows(folder, (len(rows), len(columns)), array.dtype, np.cumsum(counts))


def stage_order(array: RowArray, order: Int64, folder: Path, nbytes: int) -> StagedRows:
    """
    Copy rows of a matrix to disk in any order, reading each once.

    Parameters
    ----------
    array : RowArray
        Where they are.
    order : ndarray of int64, shape (n_rows,)
        Row number of each row wanted, repeats allowed.
    folder : Path
        An empty directory.
    nbytes : int
        Bytes of rows to hold at a time.

    Returns
    -------
    StagedRows, shape (n_rows, n_columns)
        The rows in the order wanted.
    """
    indptr = np.zeros(len(order) + 1, np.int64)
    np.cumsum(array.nnz_of(order, order + 1), out=indptr[1:])
    for name, itemsize in (("data", array.dtype.itemsize), ("indices", 4)):
        with (folder / name).open("wb") as file:
            file.truncate(int(indptr[-1]) * itemsize)
    places = np.argsort(order, kind="stable")
    rows, repeats = np.unique(order, return_counts=True)
    bounds = np.append(0, np.cumsum(repeats))
    for a, b in _slabs(array, rows, nbytes):
        block = read_increasing(array, rows[a:b])
        wanted = places[bounds[a] : bounds[b]]
        block = block.take_rows(np.searchsorted(rows[a:b], order[wanted]))
        to = np.repeat(indptr[wanted] - block.indptr[:-1], np.diff(block.indptr))
        to += np.arange(len(to))
        _scatter(folder / "data", to, block.data)
        _scatter(folder / "indices", to, block.indices.astype(np.int32, copy=False))
    return StagedRows(folder, (len(order), array.shape[1]), array.dtype, indptr)


def stage_dense(variable: xr.Variable, order: Int64, path: Path, nbytes: int) -> xr.Variable:
    """
    Copy a dense variable to disk with its first dimension in another order.

    Parameters
    ----------
    variable : xarray.Variable
        Numbers, in memory or lazy.
    order : ndarray of int64, shape (n,)
        A permutation of the positions along the first dimension.
    path : Path
        File to make.
    nbytes : int
        Bytes to hold at a time.

    Returns
    -------
    xarray.Variable
        Mapped from the file.
    """
    out = np.memmap(path, variable.dtype, "w+", shape=variable.shape)
    place = np.argsort(order)
    step = max(1, nbytes // max(1, out[:1].nbytes))
    for a in range(0, len(order), step):
        out[place[a : a + step]] = read_dense(variable[a : a + step])
    return xr.Variable(variable.dims, out)


def read_dense(variable: xr.Variable) -> npt.NDArray[Any]:
    """
    Return the values of a lazy variable, computed by the calling thread alone.

    Parameters
    ----------
    variable : xarray.Variable
        Any variable.

    Returns
    -------
    ndarray
        Its values.
    """
    return np.asarray(variable.load(scheduler="synchronous").values)


def _slabs(array: RowArray, rows: Int64, nbytes: int) -> Iterator[tuple[int, int]]:
    """Cut rows into runs whose values take `nbytes` in memory, or that are stored as one block."""
    per_value = array.dtype.itemsize + 4
    ends = np.cumsum(array.nnz_of(rows, rows + 1)) * per_value
    a = 0
    while a < len(rows):
        fits = int(np.searchsorted(ends, (ends[a - 1] if a else 0) + nbytes, "right"))
        block = int(np.searchsorted(rows, (rows[a] // array.block_rows + 1) * array.block_rows))
        b = min(max(fits, block, a + 1), len(rows))
        yield a, b
        a = b


def _scatter(path: Path, to: Int64, values: npt.NDArray[Any]) -> None:
    """Write values at places of a file; mapped anew each time, so that pages do not pile up."""
    if len(values):
        mapped = np.memmap(path, values.dtype, "r+")
        mapped[to] = values
