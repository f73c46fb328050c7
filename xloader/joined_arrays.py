"""Arrays of several files one below the other: rows and columns are renumbered, nothing is copied."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override
from xarray.core import indexing

from xloader import trace
from xloader.arrays import Key, RowArray, StoredArray
from xloader.buffers import Buffers
from xloader.csr import CSRArray
from xloader.errors import ReadError
from xloader.packed import PackedFiles, PackedRows, Panel, pack, ranges, take

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]

EXACT = 2**53
"""Largest whole number up to which float64 tells all of them apart."""

_BLOCK_VALUES = 2**18
"""Elements of a dense array in memory that are looked through together."""


@dataclass(frozen=True)
class Rows:
    """The sparse rows of one file."""

    name: str
    """Which file, for messages."""
    array: RowArray
    """Where they are."""
    panel: Panel | None
    """Where their columns go; None: as they are."""


@dataclass(frozen=True)
class Block:
    """The dense rows of one file."""

    name: str
    """Which file, for messages."""
    variable: xr.Variable
    """Its rows first; not of ours, or all of one of our arrays."""
    columns: Int64 | None
    """Its column for each column of the whole, -1 where it has none; None: the same columns."""
    unit: int
    """Rows that are best read together."""


def places(sizes: Sequence[int], unit: int) -> Int64:
    """
    Return where the rows of each file begin: at whole blocks, so that no block is of two files.

    Parameters
    ----------
    sizes : sequence of int
        Rows of each file.
    unit : int
        Rows of a block.

    Returns
    -------
    ndarray of int64, shape (n_files + 1,)
        First row of each file, and the end of the last. No file has the rows in between.

    Examples
    --------
    >>> places([5, 3, 4], 4)
    array([ 0,  8, 12, 16])
    """
    return np.append(0, np.cumsum([-(-n // unit) * unit for n in sizes])).astype(np.int64)


class _DenseRows(RowArray):
    """The values other than 0 of a dense array, which may be computed."""

    is_counted = False

    def __init__(self, variable: xr.Variable) -> None:
        n_rows, n_columns = variable.shape
        chunks: Any = variable.chunks
        unit = chunks[0][0] if chunks else _BLOCK_VALUES // max(1, n_columns)
        super().__init__((n_rows, n_columns), native(variable.dtype), max(1, min(unit, n_rows)))
        self.variable = variable
        self.beneath = (variable._data,)

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:
        values = _computed(self.variable[start:stop]).astype(self.dtype, copy=False)
        rows, columns = np.nonzero(values)
        indptr = np.append(0, np.cumsum(np.bincount(rows, minlength=len(values))))
        narrow = np.int32 if self.shape[1] < 2**31 else np.int64
        return CSRArray(values[rows, columns], columns.astype(narrow), indptr, values.shape)

    @override
    def nnz_of(self, starts: Int64, stops: Int64) -> Int64:
        return (stops - starts) * self.shape[1]

    @override
    def nbytes_of(self, starts: Int64, stops: Int64) -> Int64:
        # the dense values, whether each is 0, where it is, and what is made of it
        each = 3 * self.dtype.itemsize + 1 + 16 + 8
        return (stops - starts) * self.shape[1] * each


def rows_of(variable: xr.Variable) -> RowArray:
    """
    Return a dense variable as sparse rows.

    Parameters
    ----------
    variable : xarray.Variable, shape (n_rows, n_columns)
        In memory, lazy or computed.

    Returns
    -------
    RowArray
        Reads a block of rows at a time.
    """
    return _DenseRows(variable)


def native(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """
    Return a type in the byte order of this machine.

    Parameters
    ----------
    dtype : dtype-like
        Any type.

    Returns
    -------
    dtype
        Holds the same values.
    """
    return np.dtype(dtype).newbyteorder("=")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Say in errors of a file which one it is."""
    try:
        yield
    except Exception as e:
        e.add_note(f"while reading rows of dataset {name!r}")
        raise


class JoinedRows(RowArray):
    """
    Sparse rows of several files, one file after the other.

    Parameters
    ----------
    parts : sequence of Rows
        The files, at least one.
    n_columns : int
        Columns of the whole.
    dtype : dtype
        Type that holds the values of all of them.

    Attributes
    ----------
    firsts : ndarray of int64, shape (n_files + 1,)
        First row of each file; what lies between two files is empty.
    """

    def __init__(self, parts: Sequence[Rows], n_columns: int, dtype: np.dtype[Any]) -> None:
        arrays = [p.array for p in parts]
        unit = max(a.block_rows for a in arrays)
        self.firsts = places([a.shape[0] for a in arrays], unit)
        super().__init__((int(self.firsts[-1]), n_columns), dtype, unit)
        self.parts = tuple(parts)
        self.beneath = tuple(arrays)
        self.by_column = any(a.by_column for a in arrays)
        self.is_converted = all(a.is_converted for a in arrays)
        self.is_counted = all(
            p.array.is_counted and (p.panel is None or bool((p.panel.place >= 0).all()))
            for p in parts
        )

    @property
    @override
    def unit(self) -> tuple[int, ...]:  # numpydoc ignore=GL08
        return self.block_rows, self.shape[1]

    def _pieces(self, starts: Int64, stops: Int64) -> Iterator[tuple[int, Int64, Int64]]:
        """Yield which file has which of its rows in some ranges, in their order."""
        found: list[tuple[int, int, int]] = []
        for a, b in zip(starts.tolist(), stops.tolist(), strict=True):
            k = int(np.searchsorted(self.firsts, a, "right")) - 1
            last = int(np.searchsorted(self.firsts, b, "left")) - 1
            for i in range(k, last + 1):
                first, end = self.firsts[i : i + 2].tolist()
                if max(a, first) < min(b, end):
                    found.append((i, max(a, first) - first, min(b, end) - first))
        while found:
            k = found[0][0]
            n = next((i for i, (other, *_) in enumerate(found) if other != k), len(found))
            bounds = np.array(found[:n], np.int64)
            found = found[n:]
            yield k, bounds[:, 1], bounds[:, 2]

    def _read(
        self, k: int, starts: Int64, stops: Int64, buffers: Buffers
    ) -> tuple[PackedRows, Panel | None, Int64]:
        """Read rows of a file; return where their columns go, and where each row is: the last is empty."""
        part, n = self.parts[k], self.parts[k].array.shape[0]
        low, high = np.minimum(starts, n), np.minimum(stops, n)
        some = high > low
        packed: PackedRows | PackedFiles = pack(_empty(part.array), part.name)
        if some.any():
            with _reading(part.name):
                packed = part.array.read_packed(low[some], high[some], buffers)
        panel = part.panel
        if isinstance(packed, PackedFiles) or (panel is not None and not panel.rising):
            # put in order once, and not for each batch
            every = np.arange(len(packed.lengths))
            packed = pack(take([(packed, every)], part.array.dtype, panel, buffers), part.name)
            panel = None
        _require_exact(packed.values, self.dtype, part.name)
        rows = ranges(starts, stops)
        at = np.full(len(rows), len(packed.starts))
        at[rows < n] = np.arange(len(packed.starts))
        begins, lengths = (np.append(x, 0) for x in (packed.starts, packed.lengths))
        names = np.append(rows[rows < n], -1)
        return replace(packed, starts=begins, lengths=lengths, rows=names), panel, at

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:  # numpydoc ignore=GL08
        return self.read_ranges(np.array([start]), np.array([stop]))

    @override
    def read_ranges(self, starts: Int64, stops: Int64) -> CSRArray:  # numpydoc ignore=GL08
        packed = self.read_packed(starts, stops, Buffers())
        return take([(packed, np.arange(len(packed.lengths)))], self.dtype, None, Buffers())

    @override
    def read_packed(
        self, starts: Int64, stops: Int64, buffers: Buffers
    ) -> PackedFiles:  # numpydoc ignore=GL08
        parts: list[tuple[PackedRows, Panel | None]] = []
        of, at = [np.zeros(0, np.intp)], [np.zeros(0, np.int64)]
        for k, low, high in self._pieces(starts, stops):
            packed, panel, rows = self._read(k, low, high, buffers)
            of.append(np.full(len(rows), len(parts)))
            at.append(rows)
            parts.append((packed, panel))
        return PackedFiles(tuple(parts), np.concatenate(of), np.concatenate(at), self.shape[1])

    @override
    def nnz_of(self, starts: Int64, stops: Int64) -> Int64:  # numpydoc ignore=GL08
        return self._sum("nnz_of", starts, stops)

    @override
    def nbytes_of(self, starts: Int64, stops: Int64) -> Int64:  # numpydoc ignore=GL08
        # what is put in order is there twice meanwhile
        falling = [p.panel is not None and not p.panel.rising for p in self.parts]
        joined = self._sum("nnz_of", starts, stops, falling) * (self.dtype.itemsize + 4)
        return self._sum("nbytes_of", starts, stops) + 2 * joined

    def _sum(
        self, of: str, starts: Int64, stops: Int64, which: Sequence[bool] | None = None
    ) -> Int64:
        """Add up what files, or some of them, say of their rows in each range."""
        out = np.zeros(len(starts), np.int64)
        for k, (first, part) in enumerate(zip(self.firsts, self.parts, strict=False)):
            n = part.array.shape[0]
            low, high = (np.clip(x - first, 0, n) for x in (starts, stops))
            some = np.flatnonzero(high > low)
            if len(some) and (which is None or which[k]):
                out[some] += getattr(part.array, of)(low[some], high[some])
        return out


def _empty(array: RowArray) -> CSRArray:
    none = np.zeros(0, np.int32)
    return CSRArray(none.astype(array.dtype), none, np.zeros(1, np.int64), (0, array.shape[1]))


def _require_exact(values: Array, dtype: np.dtype[Any], name: str) -> None:
    """Refuse whole numbers that the type of the joined array would round."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8 or dtype.kind != "f":
        return
    if values.size and (values.max() > EXACT or values.min() < -EXACT):
        msg = (
            f"dataset {name!r} holds whole numbers beyond 2**53, up to {values.max()}, which {dtype} "
            "would round; other datasets hold fractions, or numbers of another sign, so that all get "
            "this type: convert the values of one of them, or leave it out"
        )
        raise ReadError(msg)


class JoinedDense(StoredArray):
    """
    Dense rows of several files, one file after the other.

    Parameters
    ----------
    parts : sequence of Block
        The files, at least one.
    shape : tuple of int
        Of one row.
    dtype : dtype
        Type that holds the values of all of them.
    fill : float
        Value of columns that a file does not have.

    Attributes
    ----------
    firsts : ndarray of int64, shape (n_files + 1,)
        First row of each file; what lies between two files is `fill`.
    """

    _support = indexing.IndexingSupport.OUTER

    def __init__(
        self, parts: Sequence[Block], shape: tuple[int, ...], dtype: np.dtype[Any], fill: float
    ) -> None:
        self.block_rows = max(p.unit for p in parts)
        self.firsts = places([p.variable.shape[0] for p in parts], self.block_rows)
        super().__init__((int(self.firsts[-1]), *shape), dtype)
        self.parts = tuple(parts)
        self.beneath = tuple(p.variable._data for p in parts)
        self.fill = fill

    @property
    @override
    def unit(self) -> tuple[int, ...]:  # numpydoc ignore=GL08
        return (self.block_rows, *self.shape[1:])

    @override
    def _raw(self, key: Key) -> Array:
        index = [np.arange(n)[k] for n, k in zip(self.shape, key, strict=True)]
        rows, *across = (np.atleast_1d(i) for i in index)
        width = [len(i) for i in across[:1]]
        out = np.full((len(rows), *width, *self.shape[2:]), self.fill, self.dtype)
        of = np.searchsorted(self.firsts, rows, "right") - 1
        for k in np.unique(of).tolist():
            part, here = self.parts[k], np.flatnonzero(of == k)
            mine = rows[here] - self.firsts[k]
            here, mine = (x[mine < part.variable.shape[0]] for x in (here, mine))
            if len(mine):
                self._fill(out, part, here, mine, across[0] if across else None)
        for axis, i in enumerate(across[1:], 2):
            out = out.take(i, axis)
        return out.reshape([len(i) for i in index if np.ndim(i)])

    def _fill(self, out: Array, part: Block, to: Int64, rows: Int64, across: Int64 | None) -> None:
        """Write rows of a file to their places."""
        together = bool((np.diff(rows) == 1).all())
        chosen = part.variable[slice(rows[0], rows[-1] + 1) if together else rows]
        if across is not None:
            columns = across if part.columns is None else part.columns[across]
            there = np.flatnonzero(columns >= 0)
            if not len(there):
                return
            if not np.array_equal(columns, np.arange(chosen.shape[1])):
                chosen = chosen[:, columns[there]]
        with _reading(part.name):
            values = _computed(chosen)
        _require_exact(values, self.dtype, part.name)
        if across is None or len(there) == out.shape[1]:
            out[to] = values
        else:
            out[np.ix_(to, there)] = values


def _computed(variable: xr.Variable) -> Array:
    """Return values, computed by the calling thread alone: those who read are threads already."""
    values: Any = variable.load(scheduler="synchronous")._data
    return values.todense() if isinstance(values, CSRArray) else np.asarray(variable.values)


def block_of(name: str, variable: xr.Variable, columns: Int64 | None) -> tuple[Block, Int64]:
    """
    Return a variable as rows that are read in blocks, where they are stored if that is known.

    Parameters
    ----------
    name : str
        Which file it is of, for messages.
    variable : xarray.Variable
        Rows first.
    columns : ndarray of int64 or None
        As `Block` has it.

    Returns
    -------
    tuple of Block and ndarray of int64
        What to read, and the row in it of each row of the variable.
    """
    view = trace.view(variable)
    index = None if view is None else view.index
    shape = () if view is None else view.array.shape
    whole = index is not None and all(
        np.array_equal(i, np.arange(n)) for i, n in zip(index[2:], shape[2:], strict=True)
    )
    if view is None or index is None or not whole or isinstance(view.array, RowArray):
        chunks: Any = variable.chunks
        unit = chunks[0][0] if chunks else _BLOCK_VALUES // max(1, int(np.prod(variable.shape[1:])))
        unit = max(1, min(unit, variable.shape[0]))
        return Block(name, variable, columns, unit), np.arange(variable.shape[0])
    stored = xr.Variable(variable.dims, indexing.LazilyIndexedArray(view.array))
    if len(index) > 1:
        if columns is not None:
            columns = np.where(columns >= 0, index[1][columns], -1)
        elif not np.array_equal(index[1], np.arange(shape[1])):
            columns = index[1]
    unit = max(1, min(view.array.unit[0], shape[0]))
    return Block(name, stored, columns, unit), index[0]


def panel_of(stored: Int64, to: Int64, n_stored: int, n: int) -> Panel | None:
    """
    Return where the columns of a file go.

    Parameters
    ----------
    stored : ndarray of int64, shape (m,)
        Columns of the file, each at most once.
    to : ndarray of int64, shape (m,)
        Where each goes, -1 where it is left out.
    n_stored, n : int
        Columns of the file and of the whole.

    Returns
    -------
    Panel or None
        None if all stay where they are.

    Examples
    --------
    >>> panel_of(np.array([0, 2]), np.array([4, 1]), 3, 5)
    Panel(place=array([ 4, -1,  1], dtype=int32), n=5, rising=False)
    """
    place = np.full(n_stored, -1, np.int32)
    place[stored] = to
    if n_stored == n and np.array_equal(place, np.arange(n)):
        return None
    kept = place[place >= 0]
    return Panel(place, n, rising=bool((np.diff(kept) > 0).all()))
