"""What a stored array must be able to do: three small contracts between formats and the chain."""

import itertools
from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override
from xarray.backends import BackendArray
from xarray.core import indexing

from xloader.buffers import Buffers
from xloader.csr import CSRArray, concatenate
from xloader.packed import PackedFiles, PackedRows, pack

Key = tuple[int | slice, ...]
Int64 = npt.NDArray[np.int64]


class StoredArray(BackendArray):
    """
    An array on disk that looks dense to xarray and is read piece by piece.

    Subclasses hold paths and small index arrays, never open files, so that they pickle and
    survive `fork`. Reading is safe from several threads.

    Parameters
    ----------
    shape : tuple of int
        Shape as xarray sees it.
    dtype : dtype-like
        Type as xarray sees it.
    """

    _support = indexing.IndexingSupport.BASIC

    is_converted: bool = False
    """Whether it lies in a training store, which nothing is read faster from."""

    beneath: tuple[Any, ...] = ()
    """Arrays that it reads from and that are not ours, as xarray or dask hold them."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)

    @property
    def unit(self) -> tuple[int, ...]:
        """
        Return the shape of the pieces that are best read whole.

        Returns
        -------
        tuple of int
            In elements.
        """
        return (1, *self.shape[1:])

    @abstractmethod
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        """Return ``array[key]`` as numpy would, for integers and slices of positive step."""

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, self._support, self._raw)


class RowArray(StoredArray):
    """
    A sparse matrix ``(rows, columns)`` that is read by whole rows.

    Parameters
    ----------
    shape : tuple of int
        ``(n_rows, n_columns)``.
    dtype : dtype-like
        Type of the values.
    block_rows : int
        Rows that are stored (or best read) together; a read aligned to multiples of it decodes
        nothing twice.
    """

    by_column: bool = False
    """Whether columns are stored together, so that each read of some rows scans everything."""

    is_counted: bool = True
    """Whether `nnz_of` tells how many values there are; else there are at most as many."""

    _support = indexing.IndexingSupport.OUTER

    def __init__(self, shape: tuple[int, int], dtype: npt.DTypeLike, block_rows: int) -> None:
        super().__init__(shape, dtype)
        self.block_rows = block_rows

    @property
    @override
    def unit(self) -> tuple[int, ...]:  # numpydoc ignore=GL08
        return (max(self.shape[0], 1), 1) if self.by_column else (self.block_rows, self.shape[1])

    @abstractmethod
    def read_rows(self, start: int, stop: int) -> CSRArray:
        """
        Read whole rows.

        Parameters
        ----------
        start, stop : int
            Half-open range of rows.

        Returns
        -------
        CSRArray, shape (stop - start, n_columns)
            Columns sorted within each row, int32 or int64; values of type `dtype`.

        Raises
        ------
        ReadError
            If the bytes cannot be read or decoded.
        """

    def read_ranges(self, starts: Int64, stops: Int64) -> CSRArray:
        """
        Read several ranges of rows.

        Parameters
        ----------
        starts, stops : ndarray of int64, shape (m,)
            Half-open ranges of rows, at least one.

        Returns
        -------
        CSRArray
            The rows of all ranges in the given order.
        """
        ranges = zip(starts.tolist(), stops.tolist(), strict=True)
        parts = [self.read_rows(a, b) for a, b in ranges]
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def read_packed(
        self,
        starts: Int64,
        stops: Int64,
        buffers: Buffers,  # noqa: ARG002 # for formats that decode into it
    ) -> PackedRows | PackedFiles:
        """
        Read several ranges of rows in the form that batches are gathered from.

        Parameters
        ----------
        starts, stops : ndarray of int64, shape (m,)
            Half-open ranges of rows, at least one.
        buffers : Buffers
            Where memory may come from.

        Returns
        -------
        PackedRows or PackedFiles
            The rows of all ranges in the given order.
        """
        return pack(self.read_ranges(starts, stops), f"`{self!r}`")

    def nbytes_of(self, starts: Int64, stops: Int64) -> Int64:
        """
        Return the bytes that ranges of rows take while they are read and after it.

        Parameters
        ----------
        starts, stops : ndarray of int64, shape (m,)
            Half-open ranges of rows.

        Returns
        -------
        ndarray of int64, shape (m,)
            Bytes of each range.
        """
        # the joined rows and their pieces
        return 2 * self.nnz_of(starts, stops) * (self.dtype.itemsize + 4)

    def of_columns(self, columns: Int64) -> "RowArray":  # noqa: ARG002 # for formats that can
        """
        Return an array of some columns, if they can be read without the others.

        Parameters
        ----------
        columns : ndarray of int64, shape (n,)
            Rising numbers of columns.

        Returns
        -------
        RowArray
            Of these columns alone; this array itself where rows are stored whole.
        """
        return self

    @abstractmethod
    def nnz_of(self, starts: Int64, stops: Int64) -> Int64:
        """
        Count the stored values of row ranges without reading them, see `is_counted`.

        Parameters
        ----------
        starts, stops : ndarray of int64, shape (m,)
            Half-open ranges of rows.

        Returns
        -------
        ndarray of int64, shape (m,)
            Stored values of each range.
        """

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        """Return ``array[key]`` for integers, slices and increasing numbers along each dimension."""
        rows, columns = (np.arange(n)[k] for n, k in zip(self.shape, key, strict=True))
        wanted = np.atleast_1d(rows)
        picked, place = np.unique(columns, return_inverse=True)
        out = np.empty((len(wanted), len(picked)), self.dtype)
        # a few blocks at a time, so that far rows do not bring all that lies between into memory
        far = np.flatnonzero(np.diff(wanted // (16 * self.block_rows))) + 1
        for a, b in itertools.pairwise(np.unique([0, *far, len(wanted)]).tolist()):
            first = int(wanted[a])
            block = self.read_rows(first, int(wanted[b - 1]) + 1)
            if (np.diff(wanted[a:b]) != 1).any():
                block = block.take_rows(wanted[a:b] - first)
            if len(picked) < self.shape[1]:
                block = block.take_columns(picked)
            out[a:b] = block.todense()
        if len(picked) < columns.size:
            out = out[:, place.ravel()]
        return out.reshape(rows.shape + columns.shape)


class TileArray(StoredArray):
    """
    A square matrix that is read by square tiles.

    Tile ``(i, j)`` covers ``[i * tile, (i + 1) * tile)`` x ``[j * tile, (j + 1) * tile)``; what lies
    beyond the matrix is zero.

    Parameters
    ----------
    n : int
        Number of rows and of columns.
    dtype : dtype-like
        Type of the values.
    tile : int
        Side of a tile, in elements.
    symmetric : bool
        Whether only tiles with ``i <= j`` are stored; the others are their transposes.
    """

    fill_value: float = 0
    """What a tile holds that was never written: 0 or NaN."""

    rows_together: int = 1
    """Rows of tiles that are best read together, because storage decodes several at once."""

    def __init__(self, n: int, dtype: npt.DTypeLike, tile: int, *, symmetric: bool) -> None:
        super().__init__((n, n), dtype)
        self.tile = tile
        self.symmetric = symmetric

    @abstractmethod
    def read_tiles(self, ij: Int64) -> npt.NDArray[Any]:
        """
        Read tiles, each once.

        Parameters
        ----------
        ij : ndarray of int64, shape (m, 2)
            Distinct tile rows and columns, sorted; ``i <= j`` if the matrix is symmetric.

        Returns
        -------
        ndarray, shape (m, tile, tile)
            Values of type `dtype`; tiles on the diagonal of a symmetric matrix are symmetric.

        Raises
        ------
        ReadError
            If the bytes cannot be read or decoded.
        """

    def load_tiles(self, ij: Int64, buffers: Buffers) -> npt.NDArray[Any]:  # noqa: ARG002
        """
        Read tiles into memory that is used again.

        Parameters
        ----------
        ij : ndarray of int64, shape (m, 2)
            As for `read_tiles`.
        buffers : Buffers
            Where memory may come from.

        Returns
        -------
        ndarray, shape (m, tile, tile)
            Values, perhaps of a narrower type than `dtype`.
        """
        return self.read_tiles(ij)

    def stored(self, i: Int64, j: Int64) -> Int64:
        """
        Return the stored tiles that hold the given tiles.

        Parameters
        ----------
        i, j : ndarray of int64, shape (m,)
            Tile rows and columns.

        Returns
        -------
        ndarray of int64, shape (m, 2)
            The same pairs, swapped where only the transposed tile is stored.
        """
        if not self.symmetric:
            return np.stack([i, j], axis=1)
        return np.stack([np.minimum(i, j), np.maximum(i, j)], axis=1)

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        spans = [np.arange(n)[k] for n, k in zip(self.shape, key, strict=True)]
        if any(np.size(s) == 0 for s in spans):
            return (
                np.empty(self.shape, self.dtype)[key]
                if 0 in self.shape
                else np.empty([np.size(s) for s in spans if np.ndim(s)], self.dtype)
            )
        low = [int(np.min(s)) for s in spans]
        high = [int(np.max(s)) + 1 for s in spans]
        dense = self.read_rectangle(low[0], high[0], low[1], high[1])
        rows, columns = spans[0] - low[0], spans[1] - low[1]
        return dense[rows][..., columns]

    def read_rectangle(self, r0: int, r1: int, c0: int, c1: int) -> npt.NDArray[Any]:
        """
        Return rows ``[r0, r1)`` of columns ``[c0, c1)``, each stored tile decoded once.

        Parameters
        ----------
        r0, r1, c0, c1 : int
            Half-open bounds, in elements.

        Returns
        -------
        ndarray, shape (r1 - r0, c1 - c0)
            Dense values of type `dtype`.
        """
        t = self.tile
        grid = np.indices((-(-r1 // t) - r0 // t, -(-c1 // t) - c0 // t)).reshape(2, -1)
        ti, tj = grid[0] + r0 // t, grid[1] + c0 // t
        ij, slots = np.unique(self.stored(ti, tj), axis=0, return_inverse=True)
        tiles = self.read_tiles(ij)
        out = np.empty((r1 - r0, c1 - c0), self.dtype)
        for i, j, slot in zip(ti.tolist(), tj.tolist(), slots.ravel().tolist(), strict=True):
            paste_tile(tiles[slot], i, j, out, r0, c0, flip=self.symmetric and i > j)
        return out


def paste_tile(
    tile: npt.NDArray[Any],
    i: int,
    j: int,
    out: npt.NDArray[Any],
    r0: int,
    c0: int,
    *,
    flip: bool,
) -> None:
    """
    Copy the part of tile ``(i, j)`` that lies in a rectangle into it.

    Parameters
    ----------
    tile : ndarray, shape (side, side)
        Decoded tile.
    i, j : int
        Its place in the grid of tiles.
    out : ndarray, shape (n_rows, n_columns)
        Rectangle, written in place.
    r0, c0 : int
        Matrix row and column of ``out[0, 0]``.
    flip : bool
        Whether `tile` is the transpose of the one wanted.
    """
    side = tile.shape[0]
    top, left = i * side, j * side
    a, b = max(r0, top), min(r0 + out.shape[0], top + side)
    c, d = max(c0, left), min(c0 + out.shape[1], left + side)
    source = tile.T if flip else tile
    out[a - r0 : b - r0, c - c0 : d - c0] = source[a - top : b - top, c - left : d - left]
