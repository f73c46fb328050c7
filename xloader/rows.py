"""Sparse rows as three arrays: selected, summed and made dense; numpy's protocols are in `csr`."""

import functools
import os
from collections.abc import Callable, Sequence
from contextvars import copy_context
from itertools import pairwise
from math import gcd
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import normalize_axis_tuple

from xloader import threads
from xloader.buffers import Buffers
from xloader.errors import PerformanceWarning, SchemaError, warn

Values = Callable[[int, int], Any]
"""What an operand has at the stored places from one to before another."""

_LARGE = 2**17
"""Stored values from which several threads are faster than one."""
_BLOCK = 2**18
"""Stored values that stay in the cache from one step of an operation to the next."""
_PARTS = 8
"""Most sums by column that are added up at the end: not the number of threads, so that none differ."""


class SparseRows:
    """
    A two-dimensional sparse matrix in compressed sparse row form.

    Parameters
    ----------
    data : ndarray, shape (nnz,)
        Stored values, row after row.
    indices : ndarray of int, shape (nnz,)
        Column of each stored value; each column at most once per row.
    indptr : ndarray of int, shape (n_rows + 1,)
        Row ``i`` is ``data[indptr[i]:indptr[i + 1]]``; starts with 0.
    shape : tuple of int
        ``(n_rows, n_columns)``.

    Attributes
    ----------
    dtype : dtype
        Type of the stored values.
    size : int
        Number of elements, zeros included.
    nnz : int
        Number of stored values.
    nbytes : int
        Bytes of the three arrays.
    """

    ndim = 2

    def __init__(
        self,
        data: npt.NDArray[Any],
        indices: npt.NDArray[Any],
        indptr: npt.NDArray[Any],
        shape: tuple[int, int],
    ) -> None:
        self.data = data
        self.indices = indices
        self.indptr = indptr
        self.shape = shape
        self.dtype = data.dtype
        self.size = shape[0] * shape[1]
        self.nnz = len(data)
        self.nbytes = data.nbytes + indices.nbytes + indptr.nbytes
        pointers = len(indptr) == shape[0] + 1 and indptr[0] == 0 and indptr[-1] == self.nnz
        if len(indices) != self.nnz or not pointers:
            msg = (
                f"{self.nnz} values, {len(indices)} columns and row pointers {indptr[:3]}... are no CSR "
                f"matrix of {shape[0]} rows; give each value a column, and {shape[0] + 1} pointers "
                "that go from 0 to the number of values"
            )
            raise SchemaError(msg)

    def todense(self) -> npt.NDArray[Any]:
        """
        Return the same values as a dense array.

        Returns
        -------
        ndarray, shape (n_rows, n_columns)
            A new array of the same dtype.
        """
        from xloader.kernels import csr as kernels

        out = np.empty(self.shape, self.dtype)
        indptr = self._pointers()
        args = (_words(self.data), self._columns(), indptr, _words(out))
        self._run(kernels.scatter, args, _cut_rows(indptr))
        return out

    def row_ids(self) -> npt.NDArray[np.int64]:
        """
        Return the row of each stored value.

        Returns
        -------
        ndarray of int64, shape (nnz,)
            Row numbers in increasing order.
        """
        from xloader.kernels import csr as kernels

        indptr, rows = self._pointers(), np.arange(self.shape[0])
        out = _empty(self.nnz, np.int64)
        _in_blocks(self.nnz, lambda a, b: kernels.repeat(rows, indptr, a, out[a:b]))
        return out

    def astype(self, dtype: npt.DTypeLike, **kwargs: Any) -> Any:
        """
        Return the array with its values cast.

        Parameters
        ----------
        dtype : dtype-like
            New type of the stored values.
        **kwargs
            Passed to `numpy.ndarray.astype`.

        Returns
        -------
        SparseRows or ndarray
            Shares `indices` and `indptr` with this one; dense if the new type is no number.
        """
        if np.dtype(dtype).kind not in "biufc":
            return self._densify("astype").astype(dtype, **kwargs)
        like = self.data[:0].astype(dtype, **kwargs)
        if like.dtype == self.dtype and not kwargs.get("copy", True):
            return self._with(self.data)
        return self._with(join([self.data], like.dtype))

    def copy(self) -> Self:
        """
        Return a deep copy.

        Returns
        -------
        SparseRows
            Shares nothing with this one.
        """
        return type(self)(
            join([self.data], self.dtype), join([self.indices]), self.indptr.copy(), self.shape
        )

    def take_rows(self, rows: npt.NDArray[np.integer[Any]]) -> Self:
        """
        Return the given rows in the given order.

        Parameters
        ----------
        rows : ndarray of int, shape (n,)
            Row numbers from 0, repeats allowed.

        Returns
        -------
        SparseRows, shape (n, n_columns)
            A copy.
        """
        from xloader.kernels import csr as kernels

        pointers = self._pointers()
        starts = pointers[:-1][rows]
        indptr = _add_up(pointers[1:][rows] - starts)
        columns = self._columns()
        out, out_columns = (_empty(indptr[-1], dtype) for dtype in (self.dtype, columns.dtype))
        args = (_words(self.data), columns, starts, indptr, _words(out), out_columns)
        self._run(kernels.take_rows, args, _cut_rows(indptr))
        return type(self)(out, out_columns, indptr, (len(rows), self.shape[1]))

    def take_columns(self, columns: npt.NDArray[np.integer[Any]]) -> Self:
        """
        Return the given columns in the given order.

        Parameters
        ----------
        columns : ndarray of int, shape (n,)
            Column numbers from 0, each at most once.

        Returns
        -------
        SparseRows, shape (n_rows, n)
            A copy.
        """
        from xloader.kernels import csr as kernels

        indptr, numbers = self._pointers(), self._columns()
        place = np.full(self.shape[1], -1, numbers.dtype)
        place[columns] = np.arange(len(columns))
        counts = np.empty(self.shape[0], np.int64)
        # room for everything: it is not known yet what is kept
        out, out_columns = (_empty(self.nnz, dtype) for dtype in (self.dtype, numbers.dtype))
        args = (_words(self.data), numbers, indptr, place, counts, _words(out), out_columns)
        parts = _cut_rows(indptr)
        self._run(kernels.take_columns, args, parts)
        kept = [slice(indptr[a], indptr[a] + counts[a:b].sum()) for a, b in parts]
        return type(self)(
            join([out[part] for part in kept], self.dtype),
            join([out_columns[part] for part in kept]),
            _add_up(counts),
            (self.shape[0], len(columns)),
        )

    def sort_columns(self) -> Self:
        """
        Return the same matrix with the columns of each row in increasing order.

        Returns
        -------
        SparseRows
            A copy.
        """
        from xloader.kernels import csr as kernels

        indptr, columns = self._pointers(), self._columns()
        out, out_columns = (_empty(self.nnz, dtype) for dtype in (self.dtype, columns.dtype))
        args = (_words(self.data), columns, indptr, self.shape[1], _words(out), out_columns)
        n_parts = 1 + self.nnz // max(_BLOCK, self.shape[1])
        self._run(kernels.sort_columns, args, _cut_rows(indptr, n_parts))
        return type(self)(out, out_columns, indptr, self.shape)

    def sum(self, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> Any:
        """
        Sum over rows, columns or everything.

        Parameters
        ----------
        axis : int or tuple of int, optional
            Axis to sum over. Default: both.
        dtype : dtype-like, optional
            Type of the sum. Default: numpy's own for `dtype`.
        keepdims : bool, optional
            Whether summed axes stay, with length 1. Default: no.

        Returns
        -------
        ndarray or scalar
            Dense result.
        """
        return self._sum(axis, dtype, keepdims=keepdims)

    def mean(self, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> Any:
        """
        Average over rows, columns or everything, zeros included.

        Parameters
        ----------
        axis : int or tuple of int, optional
            Axis to average over. Default: both.
        dtype : dtype-like, optional
            Type of the mean. Default: numpy's own for `dtype`.
        keepdims : bool, optional
            Whether averaged axes stay, with length 1. Default: no.

        Returns
        -------
        ndarray or scalar
            Dense result.
        """
        return self._mean(self._length(axis), axis, dtype, keepdims=keepdims)

    def _sum(
        self, axis: Any, dtype: Any = None, *, keepdims: bool = False, skip: bool = False
    ) -> Any:
        """Sum in 64 bits; `skip` passes over NaN."""
        from xloader.kernels import csr as kernels

        axes, values = self._reduced(axis), self._plain()
        if values is None:
            add = np.nansum if skip else np.sum
            return add(self._densify("sum"), axes, dtype, keepdims=keepdims)
        dtype = np.zeros(0, self.dtype).sum(dtype=dtype).dtype
        wide = {"b": np.int64, "i": np.int64, "u": np.uint64}.get(dtype.kind, np.float64)
        if dtype.kind == "b" or (values.dtype.kind == "f" and wide != np.float64):
            values = join([values], dtype)  # each value is cast, not the sum
        if axes == (0,):
            parts = self._column_parts()
            sums = np.zeros((len(parts), self.shape[1]), wide)
            columns = self._columns()
            args = [(values[a:b], columns[a:b], skip, sums[i]) for i, (a, b) in enumerate(parts)]
            self._check(threads.run("gather", kernels.sum_columns, args))
            total = sums.sum(0)
        else:
            indptr = self._pointers()
            total = np.empty(self.shape[0], wide)
            self._run(kernels.sum_rows, (values, indptr, skip, total), _cut_rows(indptr))
            total = total if len(axes) == 1 else total.sum()
        total = total.astype(dtype)
        return np.expand_dims(total, axes) if keepdims else total

    def _mean(self, n: Any, axis: Any, dtype: Any, *, keepdims: bool, skip: bool = False) -> Any:
        dtype = np.zeros(1, self.dtype).mean(dtype=dtype).dtype
        wide = np.promote_types(dtype, np.float64)
        return (self._sum(axis, wide, keepdims=keepdims, skip=skip) / n).astype(dtype)

    def _reduced(self, axis: Any) -> tuple[int, ...]:
        axes = normalize_axis_tuple((0, 1) if axis is None else axis, 2)
        if not axes:
            msg = "a reduction over axis=() was asked for; possible are 0, 1 and None (both)"
            raise SchemaError(msg)
        return tuple(sorted(axes))

    def _length(self, axis: Any) -> int:
        """Count the elements, zeros included, that a reduction over `axis` joins into one."""
        return int(np.prod([self.shape[a] for a in self._reduced(axis)]))

    def _map(
        self, func: Callable[..., Any], operands: Sequence[Values], kwargs: dict[str, Any]
    ) -> list[npt.NDArray[Any]]:
        """Call a ufunc, or what takes `out` like one, with what operands have at the stored places."""
        empty = func(*(values(0, 0) for values in operands), **kwargs)  # tells the dtypes
        outs = [_empty(self.nnz, e.dtype) for e in (empty if isinstance(empty, tuple) else [empty])]

        def step(a: int, b: int) -> None:
            args = [values(a, b) for values in operands]
            func(*args, out=tuple(out[a:b] for out in outs), **kwargs)

        _in_blocks(self.nnz, step)
        return outs

    def _by_row(self, x: npt.NDArray[Any]) -> Values:
        """Spread one value per row over the stored places."""
        from xloader.kernels import csr as kernels

        values, indptr = _words(x), self._pointers()

        def spread(a: int, b: int) -> npt.NDArray[Any]:
            out = np.empty(b - a, x.dtype)
            kernels.repeat(values, indptr, a, _words(out))
            return out

        return spread

    def _by_column(self, x: npt.NDArray[Any]) -> Values:
        """Spread one value per column over the stored places."""
        from xloader.kernels import csr as kernels

        values, columns = _words(x), self._columns()

        def spread(a: int, b: int) -> npt.NDArray[Any]:
            out = np.empty(b - a, x.dtype)
            self._check([kernels.gather(values, columns[a:b], _words(out))])
            return out

        return spread

    def _run(
        self, kernel: Callable[..., Any], args: tuple[Any, ...], parts: Sequence[tuple[int, int]]
    ) -> None:
        self._check(threads.run("gather", kernel, [(*args, *part) for part in parts]))

    def _check(self, known: Sequence[bool | None]) -> None:
        """Refuse columns that a kernel did not find."""
        if False in known:
            wrong = self.indices[(self.indices < 0) | (self.indices >= self.shape[1])]
            msg = (
                f"a stored value has column {wrong[0]}, but columns go from 0 to "
                f"{self.shape[1] - 1}; make the array from other `indices`"
            )
            raise SchemaError(msg)

    def _plain(self) -> npt.NDArray[Any] | None:
        """Return `data` in a type that kernels add and compare, or None where there is none."""
        if self.dtype.kind not in "biuf" or self.dtype.itemsize > 8:
            return None
        half = self.dtype.kind == "f" and self.dtype.itemsize == 2
        return np.ascontiguousarray(self.data, "f4" if half else self.dtype.newbyteorder("="))

    def _columns(self) -> npt.NDArray[Any]:
        """Return `indices` in a type that kernels know."""
        wanted = self.indices.dtype if self.indices.dtype in (np.int32, np.int64) else np.int64
        return np.ascontiguousarray(self.indices, wanted)

    def _column_parts(self) -> list[tuple[int, int]]:
        """Cut the stored values for results by column: never by the number of threads."""
        few = self.nnz < max(_LARGE, _PARTS * self.shape[1])
        return list(threads.cut(self.nnz, 1 if few else _PARTS))

    def _pointers(self) -> npt.NDArray[np.int64]:
        """Return `indptr` as kernels want it: they stay within the arrays only if it rises."""
        indptr = np.ascontiguousarray(self.indptr, np.int64)
        if np.any(indptr[1:] < indptr[:-1]):
            i = int(np.argmax(indptr[1:] < indptr[:-1]))
            msg = (
                f"row {i} would end at value {indptr[i + 1]}, before its start at {indptr[i]}; "
                "make the array from an `indptr` that never falls"
            )
            raise SchemaError(msg)
        return indptr

    def _with(self, data: npt.NDArray[Any]) -> Self:
        return type(self)(data, self.indices, self.indptr, self.shape)

    def _densify(self, operation: str) -> npt.NDArray[Any]:
        warn(
            f"`{operation}` has no sparse form: {self!r} becomes a dense array of "
            f"{self.size * self.dtype.itemsize / 1e6:.1f} MB; ask for layout='dense', or keep to "
            "zero-preserving operations",
            PerformanceWarning,
        )
        return self.todense()


@functools.cache
def _buffers(_process: int, _itemsize: int) -> Buffers:
    """
    Return memory for values of one size: masks must not push out floats.

    Each process has its own, because another's lock may have been held while it forked.
    """
    return Buffers()


def _empty(n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return _buffers(os.getpid(), np.dtype(dtype).itemsize).empty((int(n),), dtype)


def _words(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View values that are only moved as unsigned words."""
    size = gcd(x.itemsize, 8)
    words = np.ascontiguousarray(x).view(f"u{size}")
    return words if size == x.itemsize else words.reshape(*x.shape, x.itemsize // size)


def _add_up(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    indptr = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    return indptr


def _n_parts(n: int) -> int:
    return threads.n_threads() if n >= _LARGE else 1


def _cut_rows(indptr: npt.NDArray[np.int64], parts: int | None = None) -> list[tuple[int, int]]:
    """Cut rows into runs of about equally many stored values; by default one per thread."""
    nnz = int(indptr[-1])
    parts = _n_parts(nnz) if parts is None else parts
    inner = np.searchsorted(indptr, [nnz * k // parts for k in range(1, parts)])
    return list(pairwise([0, *inner.tolist(), len(indptr) - 1]))


def _in_blocks(n: int, step: Callable[[int, int], object]) -> None:
    """Call a function with the bounds of each block of stored values, on several threads."""

    def work(first: int, last: int) -> None:
        for a in range(first, last, _BLOCK):
            step(a, min(a + _BLOCK, last))

    # in the caller's context: `numpy.errstate` lives there
    parts = [(copy_context().run, a, b) for a, b in threads.cut(n, _n_parts(n))]
    threads.run("gather", lambda within, a, b: within(work, a, b), parts)


def join(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """
    Copy arrays one after another, on several threads.

    Parameters
    ----------
    parts : sequence of ndarray
        One-dimensional arrays, at least one.
    dtype : dtype-like, optional
        Type of the result. Default: that which can hold all.

    Returns
    -------
    ndarray
        All values in order.
    """
    dtype = np.result_type(*(part.dtype for part in parts)) if dtype is None else dtype
    out = _empty(sum(map(len, parts)), dtype)
    left = out
    for part in parts:
        _in_blocks(len(part), functools.partial(_copy, part, left))
        left = left[len(part) :]
    return out


def _copy(source: npt.NDArray[Any], target: npt.NDArray[Any], a: int, b: int) -> None:
    np.copyto(target[a:b], source[a:b], casting="unsafe")
