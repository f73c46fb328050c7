"""Rows of several stored arrays as the rows of one: one after the other, or wherever each belongs."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.arrays import Key, RowArray, StoredArray
from xloader.csr import CSRArray, concatenate

Int64 = npt.NDArray[np.int64]


class RowMap:
    """
    Where each row of a whole lies in its parts, as runs of neighbours.

    Parameters
    ----------
    rows : ndarray of int64, shape (n,)
        Row of the joined parts that each row is; -1 for one that no part has.
    lengths : sequence of int
        Rows of each part.

    Examples
    --------
    >>> there = RowMap(np.array([3, 4, -1, 0]), [2, 3])
    >>> for part, runs in there.pieces(np.array([0]), np.array([4])):
    ...     print(part, runs.tolist())
    0 [[0, 1, 3]]
    1 [[1, 3, 0]]
    """

    def __init__(self, rows: Int64, lengths: Sequence[int]) -> None:
        absent = rows < 0
        steps = np.where(absent[1:] | absent[:-1], absent[1:] != absent[:-1], np.diff(rows) != 1)
        self.offsets = np.append(0, np.cumsum(lengths))
        cuts = np.flatnonzero(steps) + 1
        # a run lies in one part
        of = np.searchsorted(self.offsets, rows, "right")
        cuts = np.union1d(cuts, np.flatnonzero(np.diff(of)) + 1)
        self.first = np.append(np.append(0, cuts), len(rows)).astype(np.int64)
        self.origin = rows[self.first[:-1]] if len(rows) else np.empty(0, np.int64)

    @classmethod
    def stacked(cls, lengths: Sequence[int]) -> Self:
        """
        Return the map of parts that lie one after the other.

        Parameters
        ----------
        lengths : sequence of int
            Rows of each part.

        Returns
        -------
        RowMap
            One run per part.
        """
        out = cls(np.empty(0, np.int64), lengths)
        out.first = np.unique(out.offsets)
        out.origin = out.first[:-1]
        return out

    def runs(self, starts: Int64, stops: Int64) -> Int64:
        """
        Cut ranges of rows at the ends of runs.

        Parameters
        ----------
        starts, stops : ndarray of int64, shape (m,)
            Half-open ranges.

        Returns
        -------
        ndarray of int64, shape (n_runs, 3)
            First row and the one after the last in the joined parts (-1 and less for rows that no
            part has), and which range it is of; in the order of the ranges.
        """
        low = np.searchsorted(self.first, starts, "right") - 1
        high = np.searchsorted(self.first, stops, "left")
        n = np.where(stops > starts, high - low, 0)
        of = np.repeat(np.arange(len(starts)), n)
        run = np.arange(len(of)) - np.repeat(np.cumsum(n) - n, n) + low[of]
        begin = np.maximum(starts[of], self.first[run])
        length = np.minimum(stops[of], self.first[run + 1]) - begin
        origin = self.origin[run]
        at = np.where(origin < 0, -1 - length, origin + begin - self.first[run])
        return np.stack([at, at + length, of], axis=1)

    def pieces(self, starts: Int64, stops: Int64) -> list[tuple[int, Int64]]:
        """
        Return what is to be read of each part.

        Parameters
        ----------
        starts, stops : ndarray of int64, shape (m,)
            Half-open ranges of rows of the whole.

        Returns
        -------
        list of (int, ndarray of int64 of shape (n, 3))
            Number of a part, and its runs of rows (start, stop) with the place of the first among
            the rows of all ranges. Parts of which nothing is asked are left out.
        """
        runs = self.runs(starts, stops)
        lengths = runs[:, 1] - runs[:, 0]
        place = np.cumsum(lengths) - lengths
        part = np.searchsorted(self.offsets, runs[:, 0], "right") - 1
        out = []
        for k in np.unique(part[runs[:, 0] >= 0]).tolist():
            mine = (part == k) & (runs[:, 0] >= 0)
            bounds = runs[mine, :2] - self.offsets[k]
            out.append((k, np.column_stack([bounds, place[mine]])))
        return out


class MappedRows(RowArray):
    """
    Sparse rows of several arrays with the same columns.

    Parameters
    ----------
    parts : sequence of RowArray
        Where the rows are stored, at least one.
    rows : RowMap
        Which row of the parts each row is; rows that no part has are empty.
    """

    def __init__(self, parts: Sequence[RowArray], rows: RowMap) -> None:
        dtype = np.result_type(*(part.dtype for part in parts))
        shape = (int(rows.first[-1]), parts[0].shape[1])
        super().__init__(shape, dtype, max(part.block_rows for part in parts))
        self.parts = list(parts)
        self.rows = rows
        self.by_column = any(part.by_column for part in parts)

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:  # numpydoc ignore=GL08
        return self.read_ranges(np.array([start]), np.array([stop]))

    @override
    def read_ranges(self, starts: Int64, stops: Int64) -> CSRArray:  # numpydoc ignore=GL08
        n = int((stops - starts).sum())
        wide = self.shape[1] >= 2**31
        nothing = CSRArray(
            np.empty(0, self.dtype),
            np.empty(0, np.int64 if wide else np.int32),
            np.zeros(2, np.int64),
            (1, self.shape[1]),
        )
        found, place, read = [nothing], np.zeros(n, np.int64), 1
        for k, runs in self.rows.pieces(starts, stops):
            lengths = runs[:, 1] - runs[:, 0]
            before = np.cumsum(lengths) - lengths
            steps = np.arange(int(lengths.sum()))
            place[np.repeat(runs[:, 2] - before, lengths) + steps] = read + steps
            found.append(self.parts[k].read_ranges(runs[:, 0], runs[:, 1]))
            read += len(steps)
        in_order = n > 0 and place[0] == 1 and bool((np.diff(place) == 1).all())
        joined: CSRArray
        if in_order:
            joined = found[1] if len(found) == 2 else concatenate(found[1:])
        else:
            joined = concatenate(found).take_rows(place)
        out: CSRArray = joined.astype(self.dtype, copy=False)
        return out

    @override
    def nnz_of(self, starts: Int64, stops: Int64) -> Int64:  # numpydoc ignore=GL08
        runs = self.rows.runs(starts, stops)
        out = np.zeros(len(starts), np.int64)
        for k, part in enumerate(self.parts):
            low, high = self.rows.offsets[k], self.rows.offsets[k + 1]
            mine = runs[(runs[:, 0] >= low) & (runs[:, 0] < high)]
            np.add.at(out, mine[:, 2], part.nnz_of(mine[:, 0] - low, mine[:, 1] - low))
        return out


class MappedArray(StoredArray):
    """
    Rows of several dense arrays of the same shape but for their number.

    Parameters
    ----------
    parts : sequence of StoredArray
        Where the rows are stored, at least one.
    rows : RowMap
        Which row of the parts each row is; rows that no part has are zero.
    """

    def __init__(self, parts: Sequence[StoredArray], rows: RowMap) -> None:
        dtype = np.result_type(*(part.dtype for part in parts))
        super().__init__((int(rows.first[-1]), *parts[0].shape[1:]), dtype)
        self.parts = list(parts)
        self.rows = rows

    @property
    @override
    def unit(self) -> tuple[int, ...]:  # numpydoc ignore=GL08
        return max(part.unit for part in self.parts)

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        rows = np.arange(self.shape[0])[key[0]]
        wanted = np.atleast_1d(rows)
        shape = np.empty((1, *self.shape[1:]), bool)[(slice(None), *key[1:])].shape[1:]
        out = np.zeros((len(wanted), *shape), self.dtype)
        if len(wanted):
            first = int(wanted[0])
            step = int(wanted[1]) - first if len(wanted) > 1 else 1
            whole = np.arange(first, int(wanted[-1]) + 1)
            for k, runs in self.rows.pieces(whole[:1], whole[-1:] + 1):
                for start, stop, at in runs.tolist():
                    skip = -at % step  # rows between those wanted are not read
                    if start + skip < stop:
                        part = (slice(start + skip, stop, step), *key[1:])
                        target = (at + skip) // step
                        values = self.parts[k]._raw(part)
                        out[target : target + len(values)] = values
        return out if np.ndim(rows) else out[0]
