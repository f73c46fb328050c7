"""Sparse rows, one by one, straight from storage."""

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.arrays import RowArray
from xloader.axes import Int64, Windows
from xloader.errors import PerformanceWarning, warn
from xloader.packed import PackedFiles, PackedRows, panel, take, take_dense
from xloader.read.base import Part, Reader, Values


class RowReader(Reader):
    """
    Reads sparse rows one by one.

    Parameters
    ----------
    variable : xarray.Variable
        A two-dimensional variable whose first dimension is windowed.
    windows : Windows
        Each cuts one row.
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
        assert self.axes[0] is not None
        self.axis = self.axes[0]
        self.whole = array
        wanted = np.unique(index[1])
        self.array = array.of_columns(wanted) if len(wanted) < array.shape[1] else array
        columns = index[1] if self.array is array else np.searchsorted(wanted, index[1])
        self.rows = index[0]
        self.panel = panel(columns, self.array.shape[1])
        self.dense = dense
        if self.array.by_column and self.array.block_rows < len(self.rows):
            warn(
                "this matrix is stored by column (CSC): every read of some cells scans all of "
                f"{'it' if self.array is array else f'{len(wanted):,} columns'}; xl.convert writes a "
                "store by row",
                PerformanceWarning,
            )

    def decoded_nbytes(self) -> tuple[int, int]:
        """
        Return the bytes that are decoded if each block of rows is read once.

        Returns
        -------
        tuple of int
            Values and column numbers: of what is read, and of all columns of the same rows.
        """
        each = self.dtype.itemsize + 4
        if self.array is not self.whole:  # by column: every read scans all rows
            first, stop = np.zeros(1, np.int64), np.array([self.array.shape[0]])
            part, whole = (int(a.nnz_of(first, stop)[0]) for a in (self.array, self.whole))
            return part * each, whole * each
        unit = self.array.block_rows
        blocks = np.unique(self.rows // unit)
        ends = blocks * unit, np.minimum((blocks + 1) * unit, self.array.shape[0])
        return (int(self.array.nnz_of(*ends).sum()) * each,) * 2

    @property
    @override
    def sample_nbytes(self) -> int:  # numpydoc ignore=GL08
        if self.dense:
            return super().sample_nbytes
        n = max(1, self.array.shape[0])
        nnz = int(self.array.nnz_of(np.zeros(1, np.int64), np.array([n]))[0])
        return int(nnz // n * (self.dtype.itemsize + 4))

    @property
    @override
    def stored_nbytes(self) -> int:  # numpydoc ignore=GL08
        n = max(1, self.array.shape[0])
        return int(self.array.nbytes_of(np.zeros(1, np.int64), np.array([n]))[0] // n)

    @override
    def keys(self, starts: Int64) -> npt.NDArray[np.int64]:  # numpydoc ignore=GL08
        return np.asarray(self.rows[starts[:, self.axis]] // self.array.block_rows)

    @override
    def nbytes(self, first: Int64, last: Int64, ptr: Int64) -> Int64:  # numpydoc ignore=GL08
        unit, n_rows = self.array.block_rows, self.array.shape[0]
        n_stored = n_rows // unit + 1
        block = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
        block, stored = np.divmod(np.unique(block * n_stored + self.keys(first)), n_stored)
        each = self.array.nbytes_of(stored * unit, np.minimum((stored + 1) * unit, n_rows))
        return np.bincount(block, each, len(ptr) - 1).astype(np.int64)

    @override
    def load(
        self, first: Int64, last: Int64
    ) -> tuple[PackedRows | PackedFiles, Int64, Int64]:  # numpydoc ignore=GL08
        unit = self.array.block_rows
        blocks = np.unique(self.rows[first[:, self.axis]] // unit)
        cuts = np.flatnonzero(np.diff(blocks) != 1) + 1
        low = blocks[np.append(0, cuts)] * unit
        stop = blocks[np.append(cuts, len(blocks)) - 1] + 1
        high = np.minimum(stop * unit, self.array.shape[0])
        begin = time.perf_counter()
        packed = self.array.read_packed(low, high, self.buffers)
        if not self.array.is_converted:
            self.count(time.perf_counter() - begin, int(packed.lengths.sum()))
        # storage row -> row of the block, by the range that holds it
        shift = np.append(0, np.cumsum(high - low)[:-1]) - low
        return packed, low, shift

    @override
    def gather(self, parts: Sequence[Part]) -> Values:  # numpydoc ignore=GL08
        wanted = []
        for (packed, low, shift), starts in parts:
            rows = self.rows[starts[:, self.axis]]
            wanted.append((packed, rows + shift[np.searchsorted(low, rows, side="right") - 1]))
        gather = take_dense if self.dense else take
        return gather(wanted, self.dtype, self.panel, self.batches)
