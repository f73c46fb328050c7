"""Sparse rows as a store keeps them: straight from their source, or brought into order on disk."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override
from xarray.core import indexing

from xloader.arrays import Key, RowArray, StoredArray
from xloader.csr import CSRArray
from xloader.errors import ReadError
from xloader.store.narrow import narrowed, rung_of, types_for
from xloader.threads import cut, n_threads, run

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """Sparse rows as a store keeps them."""

    rows: Int64
    """Numbers of the rows, rising."""
    indptr: Int64
    """First value of each row, and their number."""
    values: Array
    """In a type that may be narrower than their own."""
    deltas: Array
    """Each column as the difference to the one before it in its row."""


class RowSource(ABC):
    """
    Sparse rows in the order in which a store is to hold them.

    Parameters
    ----------
    dtype : dtype
        Type of the values.
    n_columns : int
        Number of columns.
    indptr : ndarray of int64, shape (n_rows + 1,)
        First value of each row, and their number.
    """

    def __init__(self, dtype: np.dtype[Any], n_columns: int, indptr: Int64) -> None:
        self.dtype = dtype
        self.n_columns = n_columns
        self.indptr = indptr
        self.types = _types_of(dtype)
        self.deltas = _deltas_of(n_columns)
        self.rung = 0

    @abstractmethod
    def read(self, start: int, stop: int, most: int) -> Iterator[Encoded]:
        """
        Read rows.

        Parameters
        ----------
        start, stop : int
            Half-open range.
        most : int
            Values to read at a time, if a row has no more.

        Yields
        ------
        Encoded
            All rows of the range, some at a time.

        Raises
        ------
        ReadError
            If they cannot be read, or are not what the index says.
        """


class StraightRows(RowSource):
    """
    Rows of a matrix that stores them in the order wanted.

    Parameters
    ----------
    array : RowArray
        Where they are.
    rows : ndarray of int64, shape (n_rows,)
        Strictly increasing row numbers.
    """

    def __init__(self, array: RowArray, rows: Int64) -> None:
        indptr = np.append(0, np.cumsum(array.nnz_of(rows, rows + 1)))
        super().__init__(array.dtype, array.shape[1], indptr)
        self.array, self.rows = array, rows

    @override
    def read(self, start: int, stop: int, most: int) -> Iterator[Encoded]:  # numpydoc ignore=GL08
        for a, b in _runs(self.indptr[start : stop + 1], most):
            rows = np.arange(start + a, start + b)
            csr = read_increasing(self.array, self.rows[rows])
            if not np.array_equal(np.diff(csr.indptr), self.indptr[rows + 1] - self.indptr[rows]):
                msg = (
                    f"rows {start + a}-{start + b} hold other numbers of values than their index "
                    "says: the source changed while it was converted, or is damaged; check it"
                )
                raise ReadError(msg)
            yield _encode(csr, rows, np.arange(b - a))


@dataclass(frozen=True)
class _Slab:
    """Rows that were read together, and lie together on disk, in the order wanted."""

    rows: Int64
    indptr: Int64
    dtype: np.dtype[Any]
    offsets: tuple[int, int]
    """First byte of its values and of its deltas."""


class StagedRows(RowSource):
    """
    Rows on disk, for as long as a conversion lasts.

    Parameters
    ----------
    folder : Path
        Where `values` and `deltas` are.
    slabs : sequence of _Slab
        What lies where in them.
    n_rows : int
        Number of rows.
    n_columns : int
        Number of columns.
    dtype : dtype
        Type of the values.
    """

    def __init__(
        self,
        folder: Path,
        slabs: Sequence[_Slab],
        n_rows: int,
        n_columns: int,
        dtype: np.dtype[Any],
    ) -> None:
        indptr = np.zeros(n_rows + 1, np.int64)
        for slab in slabs:
            indptr[slab.rows + 1] = np.diff(slab.indptr)
        super().__init__(dtype, n_columns, np.cumsum(indptr))
        self.folder, self.slabs = folder, slabs
        self.rung = max((self.types.index(s.dtype) for s in slabs), default=0)

    @override
    def read(self, start: int, stop: int, most: int) -> Iterator[Encoded]:  # numpydoc ignore=GL08
        for slab in self.slabs:
            a, b = np.searchsorted(slab.rows, [start, stop])
            first, n = slab.indptr[a], int(slab.indptr[b] - slab.indptr[a])
            if n:
                values, deltas = (
                    np.fromfile(self.folder / name, dtype, n, offset=at + first * dtype.itemsize)
                    for name, dtype, at in zip(
                        ("values", "deltas"), (slab.dtype, self.deltas), slab.offsets, strict=True
                    )
                )
                yield Encoded(slab.rows[a:b], slab.indptr[a : b + 1] - first, values, deltas)


def stage_rows(
    array: RowArray, rows: Int64, columns: Int64, folder: Path, nbytes: int
) -> StagedRows:
    """
    Copy rows of a matrix to disk in any order; each is read once, in the order of storage.

    What is read together is written together, sorted by where its rows go: to collect
    neighbours later takes one piece of each slab.

    Parameters
    ----------
    array : RowArray
        Where they are.
    rows : ndarray of int64, shape (n_rows,)
        Stored row of each row wanted, repeats allowed.
    columns : ndarray of int64, shape (n_columns,)
        Columns in the order wanted, each at most once.
    folder : Path
        An empty directory.
    nbytes : int
        Bytes of rows to hold at a time.

    Returns
    -------
    StagedRows, shape (n_rows, n_columns)
        The rows in the order wanted.
    """
    everything = np.array_equal(columns, np.arange(array.shape[1]))
    rising = bool((np.diff(columns) > 0).all())
    places = np.argsort(rows, kind="stable")
    stored, repeats = np.unique(rows, return_counts=True)
    bounds = np.append(0, np.cumsum(repeats))
    slabs = []
    with (folder / "values").open("wb") as values, (folder / "deltas").open("wb") as deltas:
        for a, b in _slabs(array, stored, repeats, nbytes):
            block = read_increasing(array, stored[a:b])
            if not everything:
                block = block.take_columns(columns)
            if not rising:
                block = block.sort_columns()
            wanted = np.sort(places[bounds[a] : bounds[b]])
            part = _encode(block, wanted, np.searchsorted(stored[a:b], rows[wanted]))
            at = values.tell(), deltas.tell()
            slabs.append(_Slab(wanted, part.indptr, part.values.dtype, at))
            # numpy's own `tofile` does not tell of every failure
            values.write(part.values.data)
            deltas.write(part.deltas.data)
    return StagedRows(folder, slabs, len(rows), len(columns), array.dtype)


class _StagedDense(StoredArray):
    """A dense array in a flat file, mapped anew for each read, so that pages do not pile up."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__(shape, dtype)
        self.path = path

    @override
    def _raw(self, key: Key) -> Array:
        return np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[key])


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
        Read from the file.
    """
    dtype = variable.dtype.newbyteorder("=")
    row = int(np.prod(variable.shape[1:])) * dtype.itemsize
    place = np.argsort(order)
    step = max(1, nbytes // max(1, row))
    with path.open("wb") as file:  # written and not mapped: a full disk would end the process
        for a in range(0, len(order), step):
            values = np.ascontiguousarray(read_dense(variable[a : a + step]), dtype)
            for k in np.argsort(place[a : a + step]).tolist():
                file.seek(int(place[a + k]) * row)
                file.write(values[k])
    staged = _StagedDense(path, variable.shape, dtype)
    return xr.Variable(variable.dims, indexing.LazilyIndexedArray(staged))


def read_dense(variable: xr.Variable) -> Array:
    """
    Return the values of a lazy variable, computed by the calling thread alone.

    Parameters
    ----------
    variable : xarray.Variable
        Any variable.

    Returns
    -------
    ndarray
        Its values, in native byte order.
    """
    values = np.asarray(variable.load(scheduler="synchronous").values)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def as_words(values: Array) -> Array:
    """
    Return values as unsigned integers of their size, so that few types are compiled.

    Parameters
    ----------
    values : ndarray
        Values that are only moved.

    Returns
    -------
    ndarray
        A view; complex values are left as they are.
    """
    return values if values.dtype.kind == "c" else values.view(f"u{values.dtype.itemsize}")


def _types_of(dtype: np.dtype[Any]) -> list[np.dtype[Any]]:
    return types_for(dtype, bits=(8, 16, 32), floats=True)


def _deltas_of(n_columns: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if n_columns <= 2**16 else np.uint32)


def _encode(csr: CSRArray, rows: Int64, places: Int64) -> Encoded:
    """Encode the rows at some places of a matrix, which are to be the rows of these numbers."""
    from xloader.kernels.scatter import encode  # numba is imported when rows are first written

    types = _types_of(csr.dtype)
    values = narrowed(csr.data, types[rung_of(csr.data, types)])
    starts = csr.indptr[places]
    indptr = np.append(0, np.cumsum(csr.indptr[places + 1] - starts))
    out = np.empty(indptr[-1], values.dtype)
    deltas = np.empty(indptr[-1], _deltas_of(csr.shape[1]))
    arrays = (as_words(values), csr.indices, starts, indptr, as_words(out), deltas)
    parts = cut(len(rows), n_threads() if len(out) > 2**16 else 1)
    if max(run("decode", encode, [(*arrays, a, b) for a, b in parts])) >= 0:
        msg = "columns of the source are not in increasing order; sort them first"
        raise ReadError(msg)
    return Encoded(rows, indptr, out, deltas)


def read_increasing(array: RowArray, rows: Int64) -> CSRArray:
    """
    Read strictly increasing rows of a matrix.

    Parameters
    ----------
    array : RowArray
        Where they are.
    rows : ndarray of int64, shape (n,)
        Their numbers, at least one.

    Returns
    -------
    CSRArray
        The rows in order.
    """
    gaps = np.flatnonzero(np.diff(rows) != 1) + 1
    starts, stops = rows[np.append(0, gaps)], rows[np.append(gaps, len(rows)) - 1] + 1
    return array.read_ranges(starts, stops)


def _slabs(array: RowArray, rows: Int64, repeats: Int64, nbytes: int) -> Iterator[tuple[int, int]]:
    """Cut rows into runs whose values take `nbytes` in memory, or that are stored as one block."""
    indptr = np.append(0, np.cumsum(array.nnz_of(rows, rows + 1) * repeats))
    edges = np.flatnonzero(np.diff(rows // array.block_rows)) + 1
    return _runs(indptr, nbytes // (array.dtype.itemsize + 4), np.append(edges, len(rows)))


def _runs(indptr: Int64, most: int, edges: Int64 | None = None) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of no more values than `most`, unless one row, or up to an edge, has more."""
    a, n_rows = 0, len(indptr) - 1
    while a < n_rows:
        fits = int(np.searchsorted(indptr, indptr[a] + most, "right")) - 1
        whole = a + 1 if edges is None else int(edges[np.searchsorted(edges, a, "right")])
        b = max(fits, whole)
        yield a, b
        a = b
