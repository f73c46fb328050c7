"""Sparse rows in memory as they were stored, gathered into batches by compiled loops."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xloader.buffers import Buffers
from xloader.csr import CSRArray
from xloader.errors import ReadError
from xloader.threads import cut, n_threads, run

Int64 = npt.NDArray[np.int64]

_INLINE = 2**19
"""Values below which threads cost more than they save."""


@dataclass(frozen=True)
class Panel:
    """Some columns in the order wanted."""

    place: npt.NDArray[np.int32]
    """New number of each stored column, -1 where it is not wanted."""
    n: int
    """How many are wanted."""
    rising: bool
    """Whether they keep the order of storage."""


def panel(columns: Int64, n_stored: int) -> Panel | None:
    """
    Return which columns are wanted.

    Parameters
    ----------
    columns : ndarray of int64, shape (n,)
        Stored column of each column wanted, each at most once.
    n_stored : int
        How many columns are stored.

    Returns
    -------
    Panel or None
        None for all of them as they are.
    """
    if np.array_equal(columns, np.arange(n_stored)):
        return None
    place = np.full(n_stored, -1, np.int32)
    place[columns] = np.arange(len(columns))
    return Panel(place, len(columns), bool((np.diff(columns) > 0).all()))


def compiled(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """
    Return the type that compiled loops hold values of some type in; they know no half floats.

    Parameters
    ----------
    dtype : dtype
        Any type of numbers.

    Returns
    -------
    dtype
        One that holds the same values.
    """
    return np.dtype(np.float32) if dtype == np.float16 else dtype


@dataclass(frozen=True)
class PackedRows:
    """Rows that lie somewhere in two flat arrays."""

    values: npt.NDArray[Any]
    """Stored values, flat."""
    columns: npt.NDArray[Any]
    """Column of each value, or its difference to the one before it in its row."""
    starts: Int64
    """Where each row begins, shape (n_rows,)."""
    lengths: Int64
    """Stored values of each row, shape (n_rows,)."""
    n_columns: int
    """Number of columns."""
    delta: bool
    """Whether `columns` holds differences."""
    name: str
    """What the rows are, for messages."""
    rows: Int64
    """Stored number of each row, for messages, shape (n_rows,)."""

    def take(
        self, rows: Int64, dtype: np.dtype[Any], wanted: Panel | None, buffers: Buffers
    ) -> CSRArray:
        """
        Return rows as a sparse array.

        Parameters
        ----------
        rows : ndarray of int64, shape (n,)
            Numbers of rows, repeats allowed.
        dtype : dtype
            Type of the values.
        wanted : Panel or None
            Which columns; None for all.
        buffers : Buffers
            Where memory comes from.

        Returns
        -------
        CSRArray, shape (n, n_columns)
            Columns sorted within each row.
        """
        return take([(self, rows)], dtype, wanted, buffers)

    def _run(
        self, kernel: Callable[..., int], args: tuple[Any, ...], work: Int64, rows: Int64
    ) -> None:
        """Call a kernel on runs of some rows, on several threads where that pays."""
        parts = n_threads() if int(work.sum()) > _INLINE else 1
        calls = [(*args, self.delta, a, b) for a, b in cut(len(work), parts)]
        for k in run("gather", kernel, calls):
            if k >= 0:
                row = int(self.rows[rows[k]])
                msg = (
                    f"{self.name} (rows {row}-{row + 1}) has a column beyond its {self.n_columns}; the "
                    "file is damaged or was written wrongly: write it again"
                )
                raise ReadError(msg)


@dataclass(frozen=True)
class PackedFiles:
    """Rows of several matrices that number their columns differently."""

    parts: tuple[tuple[PackedRows, Panel | None], ...]
    """Each matrix, and where its columns go; rising panels only."""
    of: npt.NDArray[np.intp]
    """Which matrix each row is of, shape (n_rows,)."""
    at: Int64
    """Which of its rows it is, shape (n_rows,)."""
    n_columns: int
    """Number of columns of the whole."""

    @property
    def lengths(self) -> Int64:
        """
        Return the stored values of each row, those of columns that go nowhere too.

        Returns
        -------
        ndarray of int64, shape (n_rows,)
            For all rows.
        """
        out = np.empty(len(self.of), np.int64)
        for k, (packed, _) in enumerate(self.parts):
            here = self.of == k
            out[here] = packed.lengths[self.at[here]]
        return out


Part = tuple[PackedRows | PackedFiles, Int64]
"""Rows in memory, and which of them are wanted."""


def _pieces(
    parts: Sequence[Part], wanted: Panel | None
) -> Iterator[tuple[PackedRows, Int64, Panel | None, Int64]]:
    """Yield rows of one matrix each, which columns of it are wanted, and where the rows go."""
    first = 0
    for packed, rows in parts:
        to = np.arange(first, first + len(rows))
        first += len(rows)
        if isinstance(packed, PackedRows):
            yield packed, rows, wanted, to
            continue
        of, at = packed.of[rows], packed.at[rows]
        for k, (own, placed) in enumerate(packed.parts):
            here = np.flatnonzero(of == k)
            if len(here):
                yield own, at[here], _through(placed, wanted), to[here]


def _through(first: Panel | None, then: Panel | None) -> Panel | None:
    """Return where columns go that are renumbered twice."""
    if first is None or then is None:
        return then if first is None else first
    place = np.where(first.place >= 0, then.place[first.place], -1).astype(np.int32)
    return Panel(place, then.n, first.rising and then.rising)


def take(
    parts: Sequence[Part], dtype: np.dtype[Any], wanted: Panel | None, buffers: Buffers
) -> CSRArray:
    """
    Gather rows that lie in one or several pools into a sparse array.

    Parameters
    ----------
    parts : sequence of Part
        Which rows, at least one part.
    dtype : dtype
        Type of the values.
    wanted : Panel or None
        Which columns; None for all.
    buffers : Buffers
        Where memory comes from.

    Returns
    -------
    CSRArray, shape (n, n_columns)
        All rows in order, columns sorted within each row.
    """
    from xloader.kernels import rows as kernels

    counts = np.zeros(sum(len(rows) for _, rows in parts), np.int64)
    found = []
    for p, rows, chosen, to in _pieces(parts, wanted):
        starts, lengths = p.starts[rows], p.lengths[rows]
        found.append((p, rows, chosen, to, starts, lengths))
        n = lengths
        if chosen is not None:
            n = np.empty_like(lengths)
            p._run(kernels.count, (p.columns, starts, lengths, chosen.place, n), lengths, rows)
        counts[to] = n
    indptr = np.append(0, np.cumsum(counts))
    n_columns = parts[0][0].n_columns
    data = buffers.empty((int(indptr[-1]),), compiled(dtype))
    indices = buffers.empty(data.shape, np.int32 if n_columns < 2**31 else np.int64)
    for p, rows, chosen, to, starts, lengths in found:
        target = (indptr[to], data, indices)
        if chosen is None:
            args = (p.values, p.columns, starts, lengths, *target, p.n_columns)
            p._run(kernels.copy, args, lengths, rows)
        else:
            panelled = (p.values, p.columns, starts, lengths, chosen.place, *target)
            p._run(kernels.select, panelled, lengths, rows)
    data = data.astype(dtype, copy=False)
    width = n_columns if wanted is None else wanted.n
    out = CSRArray(data, indices, indptr, (len(counts), width))
    return out if wanted is None or wanted.rising else out.sort_columns()


def take_dense(
    parts: Sequence[Part], dtype: np.dtype[Any], wanted: Panel | None, buffers: Buffers
) -> npt.NDArray[Any]:
    """
    Gather rows that lie in one or several pools into a dense array.

    Parameters
    ----------
    parts : sequence of Part
        Which rows, at least one part.
    dtype : dtype
        Type of the values.
    wanted : Panel or None
        Which columns; None for all.
    buffers : Buffers
        Where memory comes from.

    Returns
    -------
    ndarray, shape (n, n_columns)
        All rows in order, zero where nothing is stored.
    """
    from xloader.kernels import rows as kernels

    n = sum(len(rows) for _, rows in parts)
    n_columns = parts[0][0].n_columns if wanted is None else wanted.n
    out = buffers.empty((n, n_columns), compiled(dtype))
    for p, rows, chosen, to in _pieces(parts, wanted):
        place = np.zeros(0, np.int32) if chosen is None else chosen.place
        args = (p.values, p.columns, p.starts[rows], p.lengths[rows], place, to, out)
        p._run(kernels.scatter, args, np.full(len(rows), n_columns), rows)
    return out.astype(dtype, copy=False)


def pack(csr: CSRArray, name: str) -> PackedRows:
    """
    Return sparse rows in the form that batches are gathered from.

    Parameters
    ----------
    csr : CSRArray
        Rows in memory.
    name : str
        What they are, for messages.

    Returns
    -------
    PackedRows
        Shares its memory, half floats excepted.
    """
    starts = np.asarray(csr.indptr[:-1], np.int64)
    lengths = np.diff(csr.indptr).astype(np.int64, copy=False)
    values = csr.data.astype(compiled(csr.dtype), copy=False)
    shared = (values, csr.indices, starts, lengths, csr.shape[1])
    return PackedRows(*shared, delta=False, name=name, rows=np.arange(len(starts)))


def ranges(starts: Int64, stops: Int64) -> Int64:
    """
    Join several ranges of numbers.

    Parameters
    ----------
    starts, stops : ndarray of int64, shape (m,)
        Half-open bounds.

    Returns
    -------
    ndarray of int64
        One range after the other.

    Examples
    --------
    >>> ranges(np.array([2, 9]), np.array([5, 10]))
    array([2, 3, 4, 9])
    """
    lengths = stops - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def slice_rows(csr: CSRArray, start: int, stop: int) -> CSRArray:
    """
    Return successive rows without copying their values.

    Parameters
    ----------
    csr : CSRArray
        All rows.
    start, stop : int
        Half-open range of rows.

    Returns
    -------
    CSRArray, shape (stop - start, n_columns)
        Shares memory with `csr`.
    """
    low, high = int(csr.indptr[start]), int(csr.indptr[stop])
    indptr = csr.indptr[start : stop + 1] - low
    return CSRArray(csr.data[low:high], csr.indices[low:high], indptr, (stop - start, csr.shape[1]))
