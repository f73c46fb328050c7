"""Sparse rows as a store keeps them: straight from their source, or brought into order on disk."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
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
from xloader.store.new_files import replace_file
from xloader.store.tasks import Work
from xloader.threads import cut, n_threads, run

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]

_SLABS = 16
"""The budget is this many times what is read together."""

_COPIES = 5
"""Arrays of that size that are there at the same time while rows are put in order."""


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


class RowStaging(Work):
    """
    Copies rows of a matrix to disk, in any order; each is read once, in the order of storage.

    A task reads rows that are stored together, and writes them sorted by where they go: to collect
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
        Directory to make.
    budget : int
        Bytes that all tasks running at the same time may take.
    """

    def __init__(
        self, array: RowArray, rows: Int64, columns: Int64, folder: Path, budget: int
    ) -> None:
        self.array, self.rows, self.columns, self.folder = array, rows, columns, folder
        self.places = np.argsort(rows, kind="stable")
        self.stored, repeats = np.unique(rows, return_counts=True)
        self.bounds = np.append(0, np.cumsum(repeats))
        sizes = array.nnz_of(self.stored, self.stored + 1) * repeats
        slot = array.dtype.itemsize + 4
        self.slabs = list(_slabs(array, self.stored, sizes, budget // _SLABS // slot))
        indptr = np.append(0, np.cumsum(sizes))
        largest = max(int(indptr[b] - indptr[a]) for a, b in self.slabs)
        self.n_tasks = len(self.slabs)
        # one scan of columns at a time takes more; see `by_column`
        self.task_nbytes = budget if array.by_column else _COPIES * slot * largest

    def wanted(self, task: int) -> Int64:
        """
        Return the rows of one slab.

        Parameters
        ----------
        task : int
            Which one.

        Returns
        -------
        ndarray of int64
            Where they go, rising.
        """
        a, b = self.slabs[task]
        return np.sort(self.places[self.bounds[a] : self.bounds[b]])

    @override
    def do(self, task: int) -> int:  # numpydoc ignore=GL08
        a, b = self.slabs[task]
        block = read_increasing(self.array, self.stored[a:b])
        if not np.array_equal(self.columns, np.arange(self.array.shape[1])):
            block = block.take_columns(self.columns)
        if not (np.diff(self.columns) > 0).all():
            block = block.sort_columns()
        wanted = self.wanted(task)
        part = _encode(block, wanted, np.searchsorted(self.stored[a:b], self.rows[wanted]))
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, arrays in (
            (f"{task}.indptr", [part.indptr]),
            (f"{task}", [part.values, part.deltas]),
        ):
            replace_file(self.folder / name, [array.data for array in arrays])
        return _types_of(block.dtype).index(part.values.dtype)

    def staged(self, rungs: Mapping[int, int]) -> "StagedRows":
        """
        Return the rows in the order wanted.

        Parameters
        ----------
        rungs : mapping of int to int
            What `do` returned for each task.

        Returns
        -------
        StagedRows, shape (n_rows, n_columns)
            Read from disk.
        """
        types = _types_of(self.array.dtype)
        slabs = [
            _Slab(
                self.folder / str(k),
                self.wanted(k),
                np.fromfile(self.folder / f"{k}.indptr", np.int64),
                types[rungs[k]],
            )
            for k in range(self.n_tasks)
        ]
        return StagedRows(slabs, len(self.rows), len(self.columns), self.array.dtype)


@dataclass(frozen=True)
class _Slab:
    """Rows that were read together, and lie together on disk, in the order wanted."""

    path: Path
    """File of all values, then of all deltas."""
    rows: Int64
    indptr: Int64
    dtype: np.dtype[Any]


class StagedRows(RowSource):
    """
    Rows on disk, for as long as a conversion lasts.

    Parameters
    ----------
    slabs : sequence of _Slab
        What lies where.
    n_rows : int
        Number of rows.
    n_columns : int
        Number of columns.
    dtype : dtype
        Type of the values.
    """

    def __init__(
        self, slabs: Sequence[_Slab], n_rows: int, n_columns: int, dtype: np.dtype[Any]
    ) -> None:
        indptr = np.zeros(n_rows + 1, np.int64)
        for slab in slabs:
            indptr[slab.rows + 1] = np.diff(slab.indptr)
        super().__init__(dtype, n_columns, np.cumsum(indptr))
        self.slabs = slabs
        self.rung = max((self.types.index(s.dtype) for s in slabs), default=0)

    @override
    def read(self, start: int, stop: int, most: int) -> Iterator[Encoded]:  # numpydoc ignore=GL08
        for slab in self.slabs:
            a, b = np.searchsorted(slab.rows, [start, stop])
            first, n = int(slab.indptr[a]), int(slab.indptr[b] - slab.indptr[a])
            if n:
                after = int(slab.indptr[-1]) * slab.dtype.itemsize
                with slab.path.open("rb") as file:
                    values = np.fromfile(file, slab.dtype, n, offset=first * slab.dtype.itemsize)
                    file.seek(after + first * self.deltas.itemsize)
                    deltas = np.fromfile(file, self.deltas, n)
                yield Encoded(slab.rows[a:b], slab.indptr[a : b + 1] - first, values, deltas)


class _StagedDense(StoredArray):
    """A dense array in a flat file, mapped anew for each read, so that pages do not pile up."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__(shape, dtype)
        self.path = path

    @override
    def _raw(self, key: Key) -> Array:
        return np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[key])


class DenseStaging(Work):
    """
    Copies a dense variable to disk with its first dimension in another order.

    Parameters
    ----------
    variable : xarray.Variable
        Numbers, in memory or lazy.
    order : ndarray of int64, shape (n,)
        A permutation of the positions along the first dimension.
    folder : Path
        Directory to make.
    budget : int
        Bytes that all tasks running at the same time may take.
    """

    def __init__(self, variable: xr.Variable, order: Int64, folder: Path, budget: int) -> None:
        self.variable, self.folder = variable, folder
        self.dtype = variable.dtype.newbyteorder("=")
        self.row = int(np.prod(variable.shape[1:])) * self.dtype.itemsize
        self.place = np.argsort(order)
        self.step = max(1, budget // _SLABS // max(1, self.row))
        self.n_tasks = -(-len(order) // self.step)
        self.task_nbytes = _COPIES * self.step * self.row

    @property
    def path(self) -> Path:
        """
        Return the file.

        Returns
        -------
        Path
            One row after the other.
        """
        return self.folder / "rows"

    @override
    def do(self, task: int) -> int:  # numpydoc ignore=GL08
        here = slice(task * self.step, (task + 1) * self.step)
        values = np.ascontiguousarray(read_dense(self.variable[here]), self.dtype)
        place = self.place[here]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        with self.path.open("r+b") as file:  # not mapped: a full disk would end the process
            for k in np.argsort(place).tolist():
                file.seek(int(place[k]) * self.row)
                file.write(values[k])
        return 0

    def staged(self) -> xr.Variable:
        """
        Return the variable in the order wanted.

        Returns
        -------
        xarray.Variable
            Read from the file.
        """
        array = _StagedDense(self.path, self.variable.shape, self.dtype)
        return xr.Variable(self.variable.dims, indexing.LazilyIndexedArray(array))


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


def _slabs(array: RowArray, rows: Int64, sizes: Int64, most: int) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of no more values than `most`, or that are stored as one block."""
    edges = np.flatnonzero(np.diff(rows // array.block_rows)) + 1
    return _runs(np.append(0, np.cumsum(sizes)), most, np.append(edges, len(rows)))


def _runs(indptr: Int64, most: int, edges: Int64 | None = None) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of no more values than `most`, unless one row, or up to an edge, has more."""
    a, n_rows = 0, len(indptr) - 1
    while a < n_rows:
        fits = int(np.searchsorted(indptr, indptr[a] + most, "right")) - 1
        whole = a + 1 if edges is None else int(edges[np.searchsorted(edges, a, "right")])
        b = max(fits, whole)
        yield a, b
        a = b
