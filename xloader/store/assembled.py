"""Predictions of samples as one array, put together from their parts where they are read."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.arrays import Key, StoredArray, TileArray
from xloader.store.layout import TILE
from xloader.store.parts import Written

Int64 = npt.NDArray[np.int64]


class AssembledTiles(TileArray):
    """
    A contact map that is the weighted mean of overlapping windows, or how many there are.

    Windows are added in the order of their first rows, then of their numbers, so that nothing depends
    on the order in which they were written. Each row of each window is read once, and no more tiles are in memory than are
    asked for.

    Parameters
    ----------
    written : Written
        The windows, each of shape ``weights.shape``; of a symmetric map only what is on or above the
        diagonal counts.
    places : ndarray of int64, shape (n, 2)
        First bins of each window of `written`.
    weights : ndarray of float64, shape (n_rows, n_columns)
        Weight of each place in a window, at least 0.
    n : int
        Number of bins.
    symmetric : bool
        Whether the map is symmetric.
    coverage : bool
        Whether values are the numbers of predictions, not their means.
    """

    def __init__(
        self,
        written: Written,
        places: Int64,
        weights: npt.NDArray[np.float64],
        n: int,
        *,
        symmetric: bool,
        coverage: bool,
    ) -> None:
        super().__init__(n, np.uint32 if coverage else written.dtype, TILE, symmetric=symmetric)
        self.written, self.places, self.weights = written, places, weights
        self.coverage = coverage
        self.fill_value = 0 if coverage else np.nan
        self._by_row = np.argsort(places[:, 0], kind="stable")

    @override
    def read_tiles(self, ij: Int64) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        out = np.empty((len(ij), TILE, TILE), self.dtype)
        for row in np.unique(ij[:, 0]).tolist():
            mine = np.flatnonzero(ij[:, 0] == row)
            out[mine] = self._assemble(row, ij[mine, 1])
        return out

    def read_filled(self, ij: Int64, most: int) -> Iterator[tuple[Int64, npt.NDArray[Any]]]:
        """
        Read those of some tiles in which windows lie.

        Parameters
        ----------
        ij : ndarray of int64, shape (m, 2)
            As for `read_tiles`.
        most : int
            Tiles to hold at a time.

        Yields
        ------
        ij : ndarray of int64, shape (k, 2)
            Some of the tiles; the others hold only the fill value.
        tiles : ndarray, shape (k, TILE, TILE)
            Their values.
        """
        most = max(most // 2, 1)  # sums and weights take twice the room of values
        for row in np.unique(ij[:, 0]).tolist():
            first = self.places[self._touching(row), 1]
            n_tiles = -(-self.shape[0] // TILE)
            touched = np.zeros(n_tiles + 1, np.int64)
            ends = first // TILE, (first + self.weights.shape[1] - 1) // TILE + 1
            for end, step in zip(ends, (1, -1), strict=True):  # windows may reach beyond the map
                np.add.at(touched, np.clip(end, 0, n_tiles), step)
            here = ij[ij[:, 0] == row]
            here = here[np.cumsum(touched)[here[:, 1]] > 0]
            for k in range(0, len(here), most):
                yield here[k : k + most], self.read_tiles(here[k : k + most])

    def _touching(self, row: int) -> Int64:
        """Return the windows that reach into a row of tiles, in their order."""
        bounds = [row * TILE - self.weights.shape[0] + 1, (row + 1) * TILE]
        starts = self.places[:, 0]
        low, high = np.searchsorted(starts, bounds, sorter=self._by_row)
        return self._by_row[low:high]

    def _assemble(self, row: int, columns: Int64) -> npt.NDArray[Any]:
        """Return some tiles of one row of tiles."""
        from xloader.kernels import overlap  # numba is imported when predictions are first read

        shape = (len(columns), TILE, TILE)
        mean, total, count = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.uint32)
        slots = {column: slot for slot, column in enumerate(columns.tolist())}
        n_rows, n_columns = self.weights.shape
        for k in self._touching(row).tolist():
            r0, c0 = self.places[k].tolist()
            touched = range(c0 // TILE, (c0 + n_columns - 1) // TILE + 1)
            wanted = [column for column in touched if column in slots]
            if not wanted:
                continue
            top = row * TILE
            a, b = max(r0, top), min(r0 + n_rows, top + TILE)
            values = self.written.read(k, a - r0, b - r0)
            for column in wanted:
                left = column * TILE
                c, d = max(c0, left), min(c0 + n_columns, left + TILE)
                of_tile = (slots[column], slice(a - top, b - top), slice(c - left, d - left))
                overlap.add(
                    values[:, c - c0 : d - c0],
                    self.weights[a - r0 : b - r0, c - c0 : d - c0],
                    mean[of_tile],
                    total[of_tile],
                    count[of_tile],
                )
        if self.coverage:
            out: npt.NDArray[Any] = count
        else:
            mean[count == 0] = np.nan
            out = mean.astype(self.dtype, copy=False)
        if self.symmetric and row in slots:
            upper = np.triu(out[slots[row]])
            below = np.tril_indices(TILE, -1)
            upper[below] = upper.T[below]
            out[slots[row]] = upper
        return out


class AssembledRows(StoredArray):
    """
    Predictions of rows, such as cells; NaN where there is none.

    Parameters
    ----------
    written : Written
        One sample per row.
    n : int
        Number of rows.
    """

    def __init__(self, written: Written, n: int) -> None:
        super().__init__((n, *written.shape), written.dtype)
        self.written = written

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        rows = np.arange(self.shape[0])[key[0]]
        wanted = np.atleast_1d(rows)
        out = np.full((len(wanted), *self.shape[1:]), np.nan, self.dtype)
        at = np.searchsorted(self.written.ids, wanted)
        for k, (place, number) in enumerate(zip(at.tolist(), wanted.tolist(), strict=True)):
            if place < len(self.written.ids) and self.written.ids[place] == number:
                out[k] = self.written.read(place).reshape(self.shape[1:])
        picked = out[(slice(None), *key[1:])]
        return picked if np.ndim(rows) else picked[0]
