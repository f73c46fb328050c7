"""Windows of any array: from memory, or from rectangular chunks that are decoded once."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import dask.threaded
import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.axes import Int64, Windows
from xloader.chunks import Grid
from xloader.read.base import Part, Reader, Values

Table = Mapping[tuple[int, ...], npt.NDArray[Any]]
"""Chunks by their place in the grid."""

BLOCK_WINDOWS = 8
"""Windows that a block is long, so that what overlaps is decoded once."""


def _forget_threads() -> None:
    dask.threaded.default_pool = None
    dask.threaded.pools.clear()


# threads do not survive a fork, but dask would go on handing work to them, and wait for ever
os.register_at_fork(after_in_child=_forget_threads)


class MemoryReader(Reader):
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
    def nbytes(self, first: Int64, last: Int64, ptr: Int64) -> Int64:  # numpydoc ignore=GL08
        return np.zeros(len(ptr) - 1, np.int64)

    @property
    @override
    def stored_nbytes(self) -> int:  # numpydoc ignore=GL08
        return 0

    @override
    def load(self, first: Int64, last: Int64) -> None:  # numpydoc ignore=GL08
        return None

    @override
    def gather(self, parts: Sequence[Part]) -> Values:  # numpydoc ignore=GL08
        starts = np.concatenate([starts for _, starts in parts])
        if self.is_rows:
            return np.asarray(self.values[starts[:, self.axes[0]]])
        at = tuple(self.full_starts(starts).T)
        view = np.lib.stride_tricks.sliding_window_view
        if self.values.dtype.kind != "T":
            return np.asarray(view(self.values, self.size)[at])
        # strides cannot describe numpy's strings of variable length, but where they are
        places = view(np.arange(self.n_elements).reshape(self.shape), self.size)
        return np.asarray(self.values.ravel()[places[at]])


class ChunkReader(Reader):
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
        return 1 if size == 1 else -(-BLOCK_WINDOWS * size // chunk)

    @override
    def nbytes(self, first: Int64, last: Int64, ptr: Int64) -> Int64:  # numpydoc ignore=GL08
        low, high = self._chunks_of(first, last)
        begins = ptr[:-1]
        corners = np.minimum.reduceat(low, begins), np.maximum.reduceat(high, begins)
        hull = np.prod(corners[1] - corners[0] + 1, axis=1)
        largest = self.grid.largest
        touched = np.add.reduceat(np.prod(high - low + 1, axis=1), begins)
        chunk_nbytes = int(np.prod(largest)) * self.dtype.itemsize
        return np.asarray(np.minimum(hull, touched) * chunk_nbytes)

    @override
    def load(self, first: Int64, last: Int64) -> Any:  # numpydoc ignore=GL08
        ids = self._touched(*self._chunks_of(first, last))
        chunks = self.grid.fetch(ids)
        return {tuple(i): c for i, c in zip(ids.tolist(), chunks, strict=True)}

    @override
    def gather(self, parts: Sequence[Part]) -> Values:  # numpydoc ignore=GL08
        out = self.batches.empty((sum(len(s) for _, s in parts), *self.size), self.dtype)
        first = 0
        for loaded, starts in parts:
            self.cut(loaded, starts, out[first : first + len(starts)])
            first += len(starts)
        return out.reshape(len(out), *self.size[1:]) if self.is_rows else out

    def cut(self, loaded: Any, starts: Int64, out: npt.NDArray[Any]) -> None:
        """
        Cut windows out of one part.

        Parameters
        ----------
        loaded : object
            What `load` returned.
        starts : ndarray of int64, shape (m, n_dims)
            Where windows start.
        out : ndarray, shape (m, *size)
            Where they go.
        """
        if self.is_rows:
            self._rows(loaded, self._places(starts), out[:, 0])
        else:
            self._boxes(loaded, self._places(starts), out)

    def _chunks_of(self, first: Int64, last: Int64) -> tuple[Int64, Int64]:
        """Return the first and the last chunk that windows may touch, shape (m, ndim)."""
        ends = self._places(last) + np.array(self.size) - 1
        return self._chunk_of(self._places(first)), self._chunk_of(ends)

    def _touched(self, first: Int64, last: Int64) -> Int64:
        """Return the chunks from first to last ones, each once, sorted, shape (m, ndim)."""
        spans = (last - first).max(axis=0) + 1
        ids = (first[:, None, :] + np.indices(tuple(spans)).reshape(len(spans), -1).T).reshape(
            -1, len(spans)
        )
        ids = ids[(ids <= np.repeat(last, int(np.prod(spans)), axis=0)).all(axis=1)]
        return np.unique(ids, axis=0)

    def _rows(self, table: Table, places: Int64, out: npt.NDArray[Any]) -> None:
        """Cut single rows, chunk by chunk."""
        chunk_rows = self._chunk_of(places)[:, 0]
        for row in np.unique(chunk_rows).tolist():
            here = np.flatnonzero(chunk_rows == row)
            inside = places[here, 0] - self.grid.edges[0][row]
            for at in np.ndindex(*(len(e) - 1 for e in self.grid.edges[1:])):
                target = [
                    slice(e[k], e[k + 1]) for e, k in zip(self.grid.edges[1:], at, strict=True)
                ]
                if all(t.start < t.stop for t in target):  # dask keeps chunks without elements
                    box: Any = (here, *target)
                    out[box] = table[(row, *at)][inside]

    def _boxes(self, table: Table, places: Int64, out: npt.NDArray[Any]) -> None:
        """Cut windows one by one, each from the chunks it touches."""
        first = self._chunk_of(places).tolist()
        last = self._chunk_of(places + np.array(self.size) - 1).tolist()
        edges = [e.tolist() for e in self.grid.edges]
        for window, start, a, b in zip(out, places.tolist(), first, last, strict=True):
            for at in np.ndindex(*(y - x + 1 for x, y in zip(a, b, strict=True))):
                chunk = tuple(int(x) + k for x, k in zip(a, at, strict=True))
                values = table[chunk]
                source, target = [], []
                for e, k, s, size in zip(edges, chunk, start, self.size, strict=True):
                    low, high = max(s, e[k]), min(s + size, e[k + 1])
                    source.append(slice(low - e[k], high - e[k]))
                    target.append(slice(low - s, high - s))
                window[tuple(target)] = values[tuple(source)]
