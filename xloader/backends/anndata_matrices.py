"""Sparse matrices as AnnData stores them, in HDF5 and in zarr: by rows, or by columns."""

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.arrays import Key, RowArray
from xloader.backends.elements import Leaf, Tree
from xloader.csr import CSRArray
from xloader.errors import ReadError, SchemaError
from xloader.threads import cut, n_threads, run

BLOCK_VALUES = 2**17
"""Stored values that a block of rows aims at; HDF5 chunks that hold more make blocks larger."""

SCAN_NBYTES = 64 * 2**20
"""Bytes of stored values and indices that a read of a matrix stored by columns aims at."""


class CSRGroup(RowArray):
    """
    A sparse matrix that a group stores by rows.

    Parameters
    ----------
    file : Tree
        The file.
    name : str
        Path of the group inside it, with `data`, `indices` and `indptr`.
    shape : tuple of int
        ``(n_rows, n_columns)``.

    Raises
    ------
    SchemaError
        If `indptr` does not fit `shape`, `data` and `indices`.
    """

    def __init__(self, file: Tree, name: str, shape: tuple[int, int]) -> None:
        self.file = file
        self.name = name
        self.data, self.indices = (self._line(key) for key in ("data", "indices"))
        values = max(
            BLOCK_VALUES, *(d.chunks[0] if d.chunks else 0 for d in (self.data, self.indices))
        )
        rows = values * shape[0] / max(1, self.data.shape[0])
        block_rows = 2 ** int(np.clip(np.round(np.log2(max(rows, 1))), 5, 12))
        super().__init__(shape, self.data.dtype, block_rows)
        self._check(self.data.shape[0], self.indices.shape[0])

    def _line(self, key: str) -> Leaf:
        name = f"{self.name}/{key}"
        with self.file.reading(name):
            leaf = self.file.leaf(name)
        if leaf is None or len(leaf.shape) != 1 or leaf.dtype.kind not in "biuf":
            what = "a group" if leaf is None else f"of shape {leaf.shape} and type {leaf.dtype}"
            msg = (
                f"`{name}` of {self.file.path!r} should be a line of numbers, and is {what}: the file "
                "was written wrongly; write it again"
            )
            raise SchemaError(msg)
        return leaf

    def _check(self, n_data: int, n_indices: int) -> None:
        n, pointers = self.shape[0], self._line("indptr")
        if pointers.shape != (n + 1,):
            msg = (
                f"`{self.name}/indptr` of {self.file.path!r} has {pointers.shape[0]} entries, its shape asks "
                f"for {n + 1}: the file was written wrongly or is damaged; write it again"
            )
            raise SchemaError(msg)
        indptr = self.indptr
        steps = np.diff(indptr, prepend=0, append=min(n_data, n_indices))
        if n_data != n_indices or steps[0] or steps[-1] or steps.min() < 0:
            msg = (
                f"`{self.name}/indptr` of {self.file.path!r} (from {indptr[0]} to {indptr[-1]}) does not "
                f"fit its {n_data} values and {n_indices} indices: the file was not written to its "
                "end, or is damaged; get a new copy"
            )
            raise SchemaError(msg)
        for leaf in (pointers, self.data, self.indices):
            for a, b in leaf.absent():
                if not self._may_be_zero(leaf, a, b):
                    msg = (
                        f"`{leaf.name}` of {self.file.path!r} lacks the chunks of values {a} to {b}, which "
                        "are not zero by themselves: they were lost; copy it again (or, if zeros are "
                        "stored, call scipy's `eliminate_zeros()` and write it again)"
                    )
                    raise ReadError(msg)

    def _may_be_zero(self, leaf: Leaf, a: int, b: int) -> bool:
        """Say whether a writer may have left out chunks because they hold nothing but zeros."""
        if leaf is self.data:  # of what is not zero
            return False
        if leaf is self.indices:  # a row has no two equal columns
            return bool(np.diff(np.searchsorted(self.indptr, np.arange(a, b), "right")).all())
        first = self.indices.read_ranges(np.array([0]), self.indptr[b : b + 1])
        return bool((np.diff(first) > 0).all())  # else they are of more than one row

    @cached_property
    def indptr(self) -> npt.NDArray[np.int64]:
        """
        Return the first stored value of each row, and their number.

        Returns
        -------
        ndarray of int64, shape (n_rows + 1,)
            In memory from then on.
        """
        return self._line("indptr").read().astype(np.int64)

    @override
    def __getstate__(self) -> dict[str, Any]:
        # read again where it arrives, so that what travels to workers stays small
        return {k: v for k, v in self.__dict__.items() if k != "indptr"}

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:  # numpydoc ignore=GL08
        return self.read_ranges(np.array([start]), np.array([stop]))

    @override
    def read_ranges(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> CSRArray:  # numpydoc ignore=GL08
        rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
        spans = self.indptr[starts], self.indptr[stops]
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.indptr[rows + 1] - self.indptr[rows], out=indptr[1:])
        indices = self.indices.read_ranges(*spans)
        falling, outside = _disorder(indices, indptr, self.shape[1])
        if outside >= 0:
            msg = (
                f"`{self.name}/indices` of {self.file.path!r} holds {indices.min()} to {indices.max()} "
                f"from `indptr[{rows[outside]}]` on, outside [0, {self.shape[1]}): the file is "
                "damaged; get a new copy"
            )
            raise ReadError(msg)
        data = self.data.read_ranges(*spans)
        narrow = np.int32 if self.shape[1] < 2**31 else np.int64
        shape = (len(rows), self.shape[1])
        block = CSRArray(data, indices.astype(narrow, copy=False), indptr, shape)
        return block if falling < 0 else self._sorted(block, rows)

    def _sorted(self, block: CSRArray, rows: npt.NDArray[np.int64]) -> CSRArray:
        """Sort the columns of each row, which not every writer does."""
        block = block.sort_columns()
        twice = _disorder(block.indices, block.indptr, block.shape[1])[0]
        if twice >= 0:
            msg = (
                f"`{self.name}` of {self.file.path!r} stores an element twice, from "
                f"`indptr[{rows[twice]}]` on; call scipy's `sum_duplicates()` on it and write it again"
            )
            raise ReadError(msg)
        return block

    @override
    def nnz_of(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:  # numpydoc ignore=GL08
        return self.indptr[stops] - self.indptr[starts]


def _disorder(
    indices: npt.NDArray[Any], indptr: npt.NDArray[np.int64], n_columns: int
) -> tuple[int, int]:
    """Return the first row whose columns do not rise, and the first with one outside, or -1."""
    from xloader.kernels.scatter import disorder  # numba is imported when rows are first read

    parts = cut(len(indptr) - 1, n_threads() if len(indices) > BLOCK_VALUES else 1)
    found = run("decode", disorder, [(indices, indptr, n_columns, a, b) for a, b in parts])
    falling, outside = ([k for k in each if k >= 0] for each in zip(*found, strict=True))
    return min(falling, default=-1), min(outside, default=-1)


class CSCGroup(RowArray):
    """
    A sparse matrix that a group stores by columns.

    Columns are read directly; rows cost a scan of everything, in pieces of bounded size, so that
    `block_rows` is as large as `SCAN_NBYTES` allows.

    Parameters
    ----------
    file : Tree
        The file.
    name : str
        Path of the group inside it, with `data`, `indices` and `indptr`.
    shape : tuple of int
        ``(n_rows, n_columns)`` as stored.
    columns : ndarray of int64, optional
        Rising numbers of the columns that it has; others are never read. Default: all.
    """

    by_column = True

    def __init__(
        self,
        file: Tree,
        name: str,
        shape: tuple[int, int],
        columns: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.transposed = CSRGroup(file, name, (shape[1], shape[0]))
        self.columns = columns
        self.n_values = int(self._begins[-1])
        value_nbytes = self.transposed.dtype.itemsize + 4
        rows = SCAN_NBYTES * shape[0] // max(1, self.n_values * value_nbytes)
        here = shape[0], len(self._begins) - 1
        super().__init__(here, self.transposed.dtype, max(1, min(rows, shape[0])))
        self.scan_values = SCAN_NBYTES // 4 // value_nbytes

    @property
    def _begins(self) -> npt.NDArray[np.int64]:
        """Count the stored values before each column that it has, and all of them."""
        indptr = self.transposed.indptr
        if self.columns is None:
            return indptr
        return np.append(0, np.cumsum(np.diff(indptr)[self.columns]))

    @override
    def of_columns(self, columns: npt.NDArray[np.int64]) -> "CSCGroup":  # numpydoc ignore=GL08
        of = self.transposed
        there = columns if self.columns is None else self.columns[columns]
        return CSCGroup(of.file, of.name, (self.shape[0], of.shape[0]), there)

    @cached_property
    def row_starts(self) -> npt.NDArray[np.int64]:
        """
        Return the number of stored values before each row; costs one scan.

        Returns
        -------
        ndarray of int64, shape (n_rows + 1,)
            In memory from then on.
        """
        counts = np.zeros(self.shape[0] + 1, np.int64)
        for _, piece in self._pieces():
            counts[1:] += np.bincount(piece.indices, minlength=self.shape[0])
        return np.cumsum(counts)

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "row_starts"}

    def _pieces(self) -> Iterator[tuple[int, CSRArray]]:
        """Yield its columns as rows of the transposed matrix, a bounded number of values each."""
        begins, columns = self._begins, self.columns
        parts = np.searchsorted(begins, np.arange(0, begins[-1], self.scan_values), "right") - 1
        for a, b in itertools.pairwise(np.unique([*parts, self.shape[1]]).tolist()):
            there = np.arange(a, b) if columns is None else columns[a:b]
            cuts = np.flatnonzero(np.diff(there) != 1) + 1
            first, last = there[np.append(0, cuts)], there[np.append(cuts, len(there)) - 1]
            yield a, self.transposed.read_ranges(first, last + 1)

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:  # numpydoc ignore=GL08
        wanted = np.arange(start, stop)
        data, rows, columns = [np.empty(0, self.dtype)], [wanted[:0]], [wanted[:0]]
        for first, piece in self._pieces():
            kept = piece.take_columns(wanted)
            data.append(kept.data)
            rows.append(kept.indices)
            columns.append(kept.row_ids() + first)
        row = np.concatenate(rows)
        order = np.argsort(row, kind="stable")  # columns come in order
        indptr = np.zeros(len(wanted) + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=len(wanted)), out=indptr[1:])
        narrow = np.int32 if self.shape[1] < 2**31 else np.int64
        return CSRArray(
            np.concatenate(data)[order],
            np.concatenate(columns)[order].astype(narrow, copy=False),
            indptr,
            (len(wanted), self.shape[1]),
        )

    @override
    def nnz_of(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:  # numpydoc ignore=GL08
        if not starts.any() and (stops == self.shape[0]).all():  # known without a scan
            return np.full(len(starts), self.n_values)
        return self.row_starts[stops] - self.row_starts[starts]

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        columns: Any = key[1] if self.columns is None else self.columns[key[1]]
        return self.transposed._raw((columns, key[0])).T
