"""Sparse rows as three arrays: selected, summed and made dense; numpy's protocols are in `csr`."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import normalize_axis_tuple

from xloader.errors import SchemaError


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

    def todense(self) -> npt.NDArray[Any]:
        """
        Return the same values as a dense array.

        Returns
        -------
        ndarray, shape (n_rows, n_columns)
            A new array of the same dtype.
        """
        out = np.zeros(self.shape, self.dtype)
        out[self.row_ids(), self.indices] = self.data
        return out

    def row_ids(self) -> npt.NDArray[np.int64]:
        """
        Return the row of each stored value.

        Returns
        -------
        ndarray of int64, shape (nnz,)
            Row numbers in increasing order.
        """
        return np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))

    def astype(self, dtype: npt.DTypeLike, **kwargs: Any) -> Self:
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
        SparseRows
            Shares `indices` and `indptr` with this one.
        """
        return self._with(self.data.astype(dtype, **kwargs))

    def copy(self) -> Self:
        """
        Return a deep copy.

        Returns
        -------
        SparseRows
            Shares nothing with this one.
        """
        return type(self)(self.data.copy(), self.indices.copy(), self.indptr.copy(), self.shape)

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
        starts = self.indptr[rows]
        lengths = self.indptr[np.asarray(rows) + 1] - starts
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        source = np.repeat(starts - indptr[:-1], lengths)
        source += np.arange(indptr[-1])
        return type(self)(
            self.data[source], self.indices[source], indptr, (len(rows), self.shape[1])
        )

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
        place = np.full(self.shape[1], -1, self.indices.dtype)
        place[columns] = np.arange(len(columns))
        indices = place[self.indices]
        keep = indices >= 0
        kept = np.concatenate([[0], np.cumsum(keep)])
        return type(self)(
            self.data[keep], indices[keep], kept[self.indptr], (self.shape[0], len(columns))
        )

    def sort_columns(self) -> Self:
        """
        Return the same matrix with the columns of each row in increasing order.

        Returns
        -------
        SparseRows
            A copy.
        """
        order = np.lexsort((self.indices, self.row_ids()))
        return type(self)(self.data[order], self.indices[order], self.indptr, self.shape)

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
        axes = _axes(axis)
        dtype = np.zeros(0, self.dtype).sum(dtype=dtype).dtype
        values = self.data.astype(dtype, copy=False)  # `add.at` is ten times slower where it casts
        total: Any = np.zeros([n for a, n in enumerate(self.shape) if a not in axes], dtype)
        if len(axes) == 2:
            total = values.sum(dtype=dtype)
        elif axes == (0,):
            np.add.at(total, self.indices, values)
        else:
            filled = np.diff(self.indptr) > 0
            total[filled] = np.add.reduceat(values, self.indptr[:-1][filled])
        return np.expand_dims(total, axes) if keepdims else total

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

    def _mean(self, n: Any, axis: Any, dtype: Any, *, keepdims: bool) -> Any:
        dtype = np.zeros(1, self.dtype).mean(dtype=dtype).dtype
        total = self.sum(axis, np.promote_types(dtype, np.float64), keepdims=keepdims)
        return (total / n).astype(dtype)

    def _length(self, axis: Any) -> int:
        """Count the elements, zeros included, that a reduction over `axis` joins into one."""
        return int(np.prod([self.shape[a] for a in _axes(axis)]))

    def _extremum(self, ufunc: np.ufunc, axis: Any, *, keepdims: bool) -> Any:
        """Reduce by `minimum`, `maximum`, `fmin` or `fmax`, zeros included."""
        axes = _axes(axis)
        if self.size == 0:
            return ufunc.reduce(self.todense(), axis=axes, keepdims=keepdims)
        if len(axes) == 2:
            zero = np.zeros(int(self.nnz < self.size), self.dtype)
            out = ufunc.reduce(np.append(self.data, zero))
        else:
            places = self.indices if axes == (0,) else self.row_ids()
            n = self.shape[1 - axes[0]]
            partial = np.flatnonzero(np.bincount(places, minlength=n) < self.shape[axes[0]])
            places = np.append(places, partial)
            values = np.append(self.data, np.zeros(len(partial), self.dtype))
            out = np.empty(n, self.dtype)
            out[places] = values  # whichever comes last: any member is a valid start
            ufunc.at(out, places, values)
        return np.expand_dims(out, axes) if keepdims else out

    def _with(self, data: npt.NDArray[Any]) -> Self:
        return type(self)(data, self.indices, self.indptr, self.shape)


def _axes(axis: Any) -> tuple[int, ...]:
    axes = normalize_axis_tuple((0, 1) if axis is None else axis, 2)
    if not axes:
        msg = "a reduction over axis=() was asked for; possible are 0, 1 and None (both)"
        raise SchemaError(msg)
    return tuple(sorted(axes))
