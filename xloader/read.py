"""Reading: the stored chunks that a set of windows touches, each decoded once, into memory."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import dask.threaded
import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader import trace
from xloader.arrays import RowArray, TileArray
from xloader.axes import Int64, Windows
from xloader.buffers import Buffers
from xloader.chunks import Grid, consecutive, dask_grid, file_grid, tile_grid
from xloader.csr import CSRArray
from xloader.errors import PerformanceWarning, warn
from xloader.packed import panel

_BLOCK_WINDOWS = 8


def _forget_threads() -> None:
    dask.threaded.default_pool = None
    dask.threaded.pools.clear()


# threads do not survive a fork, but dask would go on handing work to them, and wait for ever
os.register_at_fork(after_in_child=_forget_threads)

Values = npt.NDArray[Any] | CSRArray
Gather = Callable[[Int64], Values]
"""Takes window starts ``(m, n_dims)`` and returns their values, windows first."""


class Reader(ABC):
    """
    Reads the windows of one variable.

    Parameters
    ----------
    variable : xarray.Variable
        What the user sees; its dtype is what batches get.
    windows : Windows
        Where windows lie; starts are positions along the dimensions of the Dataset.
    """

    def __init__(self, variable: xr.Variable, windows: Windows) -> None:
        self.dims = tuple(map(str, variable.dims))
        self.buffers = Buffers()
        self.dtype = np.dtype(variable.dtype)
        self.shape = variable.shape
        self.axes = [windows.dims.index(d) if d in windows.dims else None for d in self.dims]
        self.size = tuple(
            n if a is None else windows.size[a] for n, a in zip(self.shape, self.axes, strict=True)
        )
        self.by_row = windows.by_row
        self.n_elements = int(np.prod(self.shape))

    @abstractmethod
    def keys(self, starts: Int64) -> Int64 | None:
        """
        Return a number per window that is equal for windows stored together.

        Parameters
        ----------
        starts : ndarray of int64, shape (m, n_dims)
            Where windows start.

        Returns
        -------
        ndarray of int64 or None, shape (m,)
            None if the variable is in memory.
        """

    @abstractmethod
    def nbytes(self, starts: Int64, ptr: Int64) -> Int64:
        """
        Return the bytes that blocks of windows decode to.

        Parameters
        ----------
        starts : ndarray of int64, shape (m, n_dims)
            Where windows start, block after block.
        ptr : ndarray of int64, shape (n_blocks + 1,)
            Block ``b`` is ``starts[ptr[b]:ptr[b + 1]]``.

        Returns
        -------
        ndarray of int64, shape (n_blocks,)
            Upper bounds.
        """

    @abstractmethod
    def load(self, starts: Int64) -> Gather:
        """
        Decode every chunk that some windows touch, once.

        Parameters
        ----------
        starts : ndarray of int64, shape (m, n_dims)
            Where windows start.

        Returns
        -------
        Gather
            What cuts any of these windows.
        """

    @property
    def sample_nbytes(self) -> int:
        """
        Return the bytes of one sample in a batch.

        Returns
        -------
        int
            On average.
        """
        return int(np.prod(self.size)) * self.dtype.itemsize

    def full_starts(self, starts: Int64) -> Int64:
        """
        Return starts along every dimension of the variable.

        Parameters
        ----------
        starts : ndarray of int64, shape (m, n_dims)
            Where windows start along windowed dimensions.

        Returns
        -------
        ndarray of int64, shape (m, ndim)
            Zero along the others.
        """
        zero = np.zeros(len(starts), np.int64)
        return np.stack([zero if a is None else starts[:, a] for a in self.axes], axis=1)


class RowReader(Reader):
    """
    Reads sparse rows one by one.

    Parameters
    ----------
    variable : xarray.Variable
        A two-dimensional variable whose first dimension is windowed.
    windows : Windows
        One window per row.
    array : RowArray
        Where the rows are stored.
    index : tuple of ndarray
        Stored row of each row, stored column of each column.
    dense : bool
        Whether batches are dense arrays.
    """

    def __init__(
        self,
        variable: xr.Variable,
        windows: Windows,
        array: RowArray,
        index: tuple[Int64, ...],
        *,
        dense: bool,
    ) -> None:
        super().__init__(variable, windows)
        self.array = array
        self.rows = index[0]
        self.panel = panel(index[1], array.shape[1])
        self.dense = dense
        if getattr(array, "by_column", False):
            warn(
                "this matrix is stored by column (CSC): every read of some cells scans all of it; "
                "xl.convert writes a store by row",
                PerformanceWarning,
            )

    @property
    @override
    def sample_nbytes(self) -> int:  # numpydoc ignore=GL08
        if self.dense:
            return super().sample_nbytes
        n = max(1, self.array.shape[0])
        nnz = int(self.array.nnz_of(np.zeros(1, np.int64), np.array([n]))[0])
        return nnz // n * (self.dtype.itemsize + 4)

    @override
    def keys(self, starts: Int64) -> npt.NDArray[np.int64]:  # numpydoc ignore=GL08
        return np.asarray(self.rows[starts[:, 0]] // self.array.block_rows)

    @override
    def nbytes(self, starts: Int64, ptr: Int64) -> Int64:  # numpydoc ignore=GL08
        unit, n_rows = self.array.block_rows, self.array.shape[0]
        n_stored = n_rows // unit + 1
        block = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
        block, stored = np.divmod(np.unique(block * n_stored + self.keys(starts)), n_stored)
        each = self.array.nbytes_of(stored * unit, np.minimum((stored + 1) * unit, n_rows))
        return np.bincount(block, each, len(ptr) - 1).astype(np.int64)

    @override
    def load(self, starts: Int64) -> Gather:  # numpydoc ignore=GL08
        unit = self.array.block_rows
        blocks = np.unique(self.rows[starts[:, 0]] // unit)
        cuts = np.flatnonzero(np.diff(blocks) != 1) + 1
        first = blocks[np.append(0, cuts)]
        last = blocks[np.append(cuts, len(blocks)) - 1]
        low, high = first * unit, np.minimum((last + 1) * unit, self.array.shape[0])
        packed = self.array.read_packed(low, high, self.buffers)
        # storage row -> row of the block, by the range that holds it
        shift = np.append(0, np.cumsum(high - low)[:-1]) - low
        take = packed.take_dense if self.dense else packed.take

        def gather(starts: Int64) -> Values:  # numpydoc ignore=GL08
            rows = self.rows[starts[:, 0]]
            places = rows + shift[np.searchsorted(low, rows, side="right") - 1]
            return take(places, self.dtype, self.panel, self.buffers)

        return gather


class _MemoryReader(Reader):
    """
    Cuts windows out of an array in memory.

    Parameters
    ----------
    variable : xarray.Variable
        A variable in memory.
    windows : Windows
        Any windows.
    """

    def __init__(self, variable: xr.Variable, windows: Windows) -> None:
        super().__init__(variable, windows)
        self.values = np.asarray(variable.values)

    @override
    def keys(self, starts: Int64) -> None:  # numpydoc ignore=GL08
        return None

    @override
    def nbytes(self, starts: Int64, ptr: Int64) -> Int64:  # numpydoc ignore=GL08
        return np.zeros(len(ptr) - 1, np.int64)

    @override
    def load(self, starts: Int64) -> Gather:  # numpydoc ignore=GL08
        if self.by_row and self.axes[0] == 0:
            return lambda starts: self.values[starts[:, 0]]
        view = np.lib.stride_tricks.sliding_window_view
        if self.values.dtype.kind != "T":
            windows = view(self.values, self.size)
            return lambda starts: windows[tuple(self.full_starts(starts).T)]
        # strides cannot describe numpy's strings of variable length, but where they are
        places = view(np.arange(self.n_elements).reshape(self.shape), self.size)
        return lambda starts: self.values.ravel()[places[tuple(self.full_starts(starts).T)]]


class _ChunkReader(Reader):
    """
    Cuts windows out of rectangular chunks.

    Parameters
    ----------
    variable : xarray.Variable
        Any variable with a windowed dimension.
    windows : Windows
        Any windows.
    grid : Grid
        Chunks of the array that windows are cut from.
    index : tuple of ndarray, optional
        Position in that array of each position of the variable; consecutive within every window.
    """

    def __init__(
        self,
        variable: xr.Variable,
        windows: Windows,
        grid: Grid,
        index: tuple[Int64, ...] | None = None,
    ) -> None:
        super().__init__(variable, windows)
        self.grid = grid
        self.index = index

    def _places(self, starts: Int64) -> Int64:
        """Return where windows start in the array of chunks, shape (m, ndim)."""
        full = self.full_starts(starts)
        if self.index is None:
            return full
        return np.stack([i[s] for i, s in zip(self.index, full.T, strict=True)], axis=1)

    def _chunk_of(self, places: Int64) -> Int64:
        pairs = zip(self.grid.edges, places.T, strict=True)
        return np.stack([np.searchsorted(e, p, side="right") - 1 for e, p in pairs], axis=1)

    @override
    def keys(self, starts: Int64) -> Int64:  # numpydoc ignore=GL08
        chunks = self._chunk_of(self._places(starts))
        key = np.zeros(len(starts), np.int64)
        for axis, edges in enumerate(self.grid.edges):
            if self.axes[axis] is not None:
                span = self._span(axis)
                key = key * (len(edges) // span + 1) + chunks[:, axis] // span
        return key

    def _span(self, axis: int) -> int:
        """Return the chunks of a block: some windows, so that what overlaps is decoded once."""
        size, chunk = self.size[axis], self.grid.largest[axis]
        return 1 if size == 1 else -(-_BLOCK_WINDOWS * size // chunk)

    @override
    def nbytes(self, starts: Int64, ptr: Int64) -> Int64:  # numpydoc ignore=GL08
        places = self._places(starts)
        first = np.minimum.reduceat(self._chunk_of(places), ptr[:-1])
        last = np.maximum.reduceat(self._chunk_of(places + np.array(self.size) - 1), ptr[:-1])
        hull = np.prod(last - first + 1, axis=1)
        largest = self.grid.largest
        touched = [-(-(s - 1) // c) + 1 for s, c in zip(self.size, largest, strict=True)]
        chunk_nbytes = int(np.prod(largest)) * self.dtype.itemsize
        return np.asarray(np.minimum(hull, np.diff(ptr) * int(np.prod(touched))) * chunk_nbytes)

    @override
    def load(self, starts: Int64) -> Gather:  # numpydoc ignore=GL08
        ids = self._touched(self._places(starts))
        chunks = self.grid.fetch(ids)
        table = {tuple(i): c for i, c in zip(ids.tolist(), chunks, strict=True)}
        cut = self._rows if self.by_row and self.axes[0] == 0 else self._boxes
        return lambda starts: cut(table, self._places(starts))

    def _touched(self, places: Int64) -> Int64:
        """Return the chunks that windows touch, each once, sorted, shape (m, ndim)."""
        first, last = self._chunk_of(places), self._chunk_of(places + np.array(self.size) - 1)
        spans = (last - first).max(axis=0) + 1
        ids = (first[:, None, :] + np.indices(tuple(spans)).reshape(len(spans), -1).T).reshape(
            -1, len(spans)
        )
        ids = ids[(ids <= np.repeat(last, int(np.prod(spans)), axis=0)).all(axis=1)]
        if self.grid.symmetric:
            ids = np.sort(ids, axis=1)
        return np.unique(ids, axis=0)

    def _rows(self, table: Mapping[tuple[int, ...], npt.NDArray[Any]], places: Int64) -> Values:
        """Cut single rows, chunk by chunk."""
        out = np.empty((len(places), *self.shape[1:]), self.dtype)
        chunk_rows = self._chunk_of(places)[:, 0]
        for row in np.unique(chunk_rows).tolist():
            here = np.flatnonzero(chunk_rows == row)
            inside = places[here, 0] - self.grid.edges[0][row]
            for at in np.ndindex(*(len(e) - 1 for e in self.grid.edges[1:])):
                target = tuple(
                    slice(e[k], e[k + 1]) for e, k in zip(self.grid.edges[1:], at, strict=True)
                )
                box: Any = (here, *target)
                out[box] = table[(row, *at)][inside]
        return out

    def _boxes(self, table: Mapping[tuple[int, ...], npt.NDArray[Any]], places: Int64) -> Values:
        """Cut windows one by one, each from the chunks it touches."""
        out = np.empty((len(places), *self.size), self.dtype)
        first = self._chunk_of(places).tolist()
        last = self._chunk_of(places + np.array(self.size) - 1).tolist()
        edges = [e.tolist() for e in self.grid.edges]
        for window, start, a, b in zip(out, places.tolist(), first, last, strict=True):
            for at in np.ndindex(*(y - x + 1 for x, y in zip(a, b, strict=True))):
                chunk = tuple(int(x) + k for x, k in zip(a, at, strict=True))
                flip = self.grid.symmetric and chunk[0] > chunk[1]
                values = table[chunk[::-1]].T if flip else table[chunk]
                source, target = [], []
                for e, k, s, size in zip(edges, chunk, start, self.size, strict=True):
                    low, high = max(s, e[k]), min(s + size, e[k + 1])
                    source.append(slice(low - e[k], high - e[k]))
                    target.append(slice(low - s, high - s))
                window[tuple(target)] = values[tuple(source)]
        return out


def make_reader(
    variable: xr.Variable, windows: Windows, *, layout: str | None, name: str
) -> Reader:
    """
    Choose how the windows of a variable are read.

    Parameters
    ----------
    variable : xarray.Variable
        A variable with at least one windowed dimension.
    windows : Windows
        Where windows lie.
    layout : {None, "csr", "dense"}
        Form of sparse rows in batches; None keeps them sparse.
    name : str
        Name of the variable, for messages.

    Returns
    -------
    Reader
        Straight from storage where the variable shows nothing but stored elements.
    """
    view = trace.view(variable)
    if view is not None and isinstance(view.array, RowArray):
        dims = windows.dims
        if windows.by_row and variable.dims[0] == dims[0] and _distinct(view.index[1]):
            dense = layout == "dense"
            return RowReader(variable, windows, view.array, view.index, dense=dense)
    if view is not None and isinstance(view.array, TileArray):
        both = set(variable.dims) <= set(windows.dims)
        if both and all(consecutive(view.index, variable, windows)):
            return _ChunkReader(variable, windows, tile_grid(view.array), view.index)
    if trace.is_computed(variable):
        warn(
            f"{name!r} is an expression on stored data: it is computed block by block, densely; "
            "selections on the Dataset and the same function as `transform=` are faster",
            PerformanceWarning,
        )
    if variable._in_memory and view is None:
        return _MemoryReader(variable, windows)
    if variable.chunks is not None:
        return _ChunkReader(variable, windows, dask_grid(variable))
    return _ChunkReader(variable, windows, *file_grid(variable, windows))


def _distinct(index: Int64) -> bool:
    return len(np.unique(index)) == len(index)
