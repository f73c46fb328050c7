"""Sparse rows of files that cannot be read in parts: in memory from when they are first asked for."""

import threading
from abc import abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.arrays import RowArray
from xloader.csr import CSRArray
from xloader.errors import ReadError

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]

BLOCK_ROWS = 64
"""Rows that are mixed as one: any number would do for rows that lie in memory."""

_lock = threading.Lock()


class MemoryRows(RowArray):
    """
    A sparse matrix whose three arrays are in memory, or mapped into it, once in each process.

    Parameters
    ----------
    shape : tuple of int
        ``(n_rows, n_columns)``.
    dtype : dtype-like
        Type of the values.
    what : str
        What it is and in which file, for messages.
    """

    def __init__(self, shape: tuple[int, int], dtype: npt.DTypeLike, what: str) -> None:
        super().__init__(shape, np.dtype(dtype).newbyteorder("="), BLOCK_ROWS)
        self.what = what

    @abstractmethod
    def _load(self) -> tuple[Array, Array, Int64]:
        """Return values, their columns and the row pointers, which are checked."""

    @cached_property
    def _arrays(self) -> tuple[Array, Array, Int64]:
        return self._load()

    @property
    def arrays(self) -> tuple[Array, Array, Int64]:
        """
        Return the three arrays, read by whichever thread asks first.

        Returns
        -------
        tuple of ndarray
            Values, their columns, and row pointers.
        """
        with _lock:
            return self._arrays

    @override
    def __getstate__(self) -> dict[str, Any]:
        # read again where it arrives, so that what travels to workers stays small
        return {k: v for k, v in self.__dict__.items() if k != "_arrays"}

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:  # numpydoc ignore=GL08
        data, indices, indptr = self.arrays
        part = slice(indptr[start], indptr[stop])
        narrow = np.int32 if self.shape[1] < 2**31 else np.int64
        columns, pointers = np.asarray(indices[part]), indptr[start : stop + 1] - indptr[start]
        falling, outside = _disorder(columns, pointers, self.shape[1])
        if outside >= 0:
            msg = (
                f"row {start + outside} of {self.what} has columns outside [0, {self.shape[1]}): the "
                "file is damaged or was written wrongly; write it again"
            )
            raise ReadError(msg)
        values = np.asarray(data[part]).astype(self.dtype, copy=False)
        shape = (stop - start, self.shape[1])
        block = CSRArray(values, columns.astype(narrow, copy=False), pointers, shape)
        if falling < 0:
            return block
        block = block.sort_columns()
        twice = _disorder(block.indices, block.indptr, self.shape[1])[0]
        if twice >= 0:
            msg = (
                f"row {start + twice} of {self.what} stores an element twice; call scipy's "
                "`sum_duplicates()` on the matrix and write it again"
            )
            raise ReadError(msg)
        return block

    @override
    def nnz_of(self, starts: Int64, stops: Int64) -> Int64:  # numpydoc ignore=GL08
        indptr = self.arrays[2]
        return indptr[stops] - indptr[starts]


def by_row(rows: Array, n_rows: int, *arrays: Array) -> tuple[Int64, list[Array]]:
    """
    Put what belongs to rows in the order of the rows.

    Parameters
    ----------
    rows : ndarray of int, shape (n,)
        Row of each entry, within ``[0, n_rows)``.
    n_rows : int
        Number of rows.
    *arrays : ndarray, shape (n,)
        What each entry has.

    Returns
    -------
    tuple of ndarray of int64, shape (n_rows + 1,), and list of ndarray
        Row pointers, and the arrays; entries of one row stay in their order.

    Examples
    --------
    >>> by_row(np.array([2, 0, 2]), 3, np.array([5, 6, 7]))
    (array([0, 1, 1, 3]), [array([6, 5, 7])])
    """
    indptr = np.zeros(n_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=n_rows), out=indptr[1:])
    if (rows[1:] < rows[:-1]).any():
        order = np.argsort(rows, kind="stable")
        return indptr, [a[order] for a in arrays]
    return indptr, list(arrays)


def _disorder(indices: Array, indptr: Int64, n_columns: int) -> tuple[int, int]:
    from xloader.kernels.scatter import disorder  # numba is imported when rows are first read

    found: tuple[int, int] = disorder(indices, indptr, n_columns, 0, len(indptr) - 1)
    return found
