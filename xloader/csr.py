"""A thin CSR duck array: sparse rows that xarray can hold, label and compute with."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.errors import PerformanceWarning, warn

_HANDLED: dict[Callable[..., Any], Callable[..., Any]] = {}


class CSRArray(np.lib.mixins.NDArrayOperatorsMixin):
    """
    Two-dimensional sparse array in compressed sparse row form.

    Zero-preserving ufuncs, scaling by rows or columns, reductions, row and column selection,
    concatenation and `astype` act on the stored values; anything else densifies, with a
    `PerformanceWarning` that names the operation.

    Parameters
    ----------
    data : ndarray, shape (nnz,)
        Stored values, row after row.
    indices : ndarray of int, shape (nnz,)
        Column of each stored value; each column at most once per row.
    indptr : ndarray of int, shape (n_rows + 1,)
        Row ``i`` is ``data[indptr[i]:indptr[i + 1]]``.
    shape : tuple of int
        ``(n_rows, n_columns)``.

    Examples
    --------
    >>> a = CSRArray(np.array([1.0, 3.0]), np.array([0, 2]), np.array([0, 1, 2]), (2, 3))
    >>> np.sqrt(a * np.array([[4.0], [3.0]])).todense()
    array([[2., 0., 0.],
           [0., 0., 3.]])
    """

    __array_priority__ = 100.0

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

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions, always 2."""
        return 2

    @property
    def size(self) -> int:
        """Number of elements, zeros included."""
        return self.shape[0] * self.shape[1]

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        return len(self.data)

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return int(self.data.nbytes + self.indices.nbytes + self.indptr.nbytes)

    def transpose(self, *axes: Any) -> Any:
        """
        Reverse or keep the order of the dimensions.

        Parameters
        ----------
        *axes : int
            New order. Default: reversed.

        Returns
        -------
        CSRArray or ndarray
            This array for the order it has, else a dense one.
        """
        order = tuple(axes[0]) if axes and isinstance(axes[0], tuple | list) else axes
        return self if order == (0, 1) else self._densify("transpose").T

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        rows, columns = self.shape
        share = self.nnz / max(self.size, 1)
        return f"<CSRArray {rows} x {columns}, {self.dtype}, {self.nnz} stored ({share:.1%})>"

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
        CSRArray
            Shares `indices` and `indptr` with this one.
        """
        return self._with(self.data.astype(dtype, **kwargs))

    def copy(self) -> Self:
        """
        Return a deep copy.

        Returns
        -------
        CSRArray
            Shares nothing with this one.
        """
        return type(self)(self.data.copy(), self.indices.copy(), self.indptr.copy(), self.shape)

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

    def __array__(
        self,
        dtype: npt.DTypeLike | None = None,
        copy: bool | None = None,  # noqa: FBT001 # numpy passes it by position
    ) -> npt.NDArray[Any]:
        """Densify for functions that know nothing but numpy arrays."""
        if copy is False:
            msg = "a CSRArray has no dense memory to share; allow a copy"
            raise ValueError(msg)
        dense = self._densify("numpy.asarray")
        return dense if dtype is None else dense.astype(dtype)

    def take_rows(self, rows: npt.NDArray[np.integer[Any]]) -> Self:
        """
        Return the given rows in the given order.

        Parameters
        ----------
        rows : ndarray of int, shape (n,)
            Row numbers, repeats allowed.

        Returns
        -------
        CSRArray, shape (n, n_columns)
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
            Column numbers, each at most once.

        Returns
        -------
        CSRArray, shape (n_rows, n)
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

    def __getitem__(self, key: Any) -> Any:
        keys = tuple(k for k in (key if isinstance(key, tuple) else (key,)) if k is not Ellipsis)
        rows, columns = (*keys, slice(None), slice(None))[:2]
        if _is_scalar(rows) or _is_scalar(columns):
            return self._densify("selection of a single row or column")[key]
        out = self
        if not _is_all(rows):
            out = out.take_rows(np.arange(self.shape[0])[rows])
        if not _is_all(columns):
            wanted = np.arange(self.shape[1])[columns]
            if len(np.unique(wanted)) != len(wanted):
                return self._densify("selection of a column twice")[key]
            out = out.take_columns(wanted)
        return out

    @override
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Act on stored values where zeros stay zeros; densify elsewhere."""
        if method != "__call__" or kwargs.get("out") is not None:
            dense = [x._densify(f"{ufunc.__name__}.{method}") if _is_csr(x) else x for x in inputs]
            return getattr(ufunc, method)(*dense, **kwargs)
        return self._apply(ufunc, inputs, kwargs)

    def _apply(
        self, func: Callable[..., Any], inputs: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Call an elementwise function on the stored values, or densify if zeros do not stay zero."""
        values = [self._values_for(x) for x in inputs]
        if all(v is not None for v in values) and self._keeps_zero(func, inputs, kwargs):
            result = func(*values, **kwargs)
            return (
                tuple(map(self._with, result)) if isinstance(result, tuple) else self._with(result)
            )
        return func(*(_dense_argument(x, func.__name__) for x in inputs), **kwargs)

    def _values_for(self, x: Any) -> Any:
        """Return what `x` contributes at the stored places, or None where that is not known."""
        if _is_csr(x):
            same = x.indices is self.indices and x.indptr is self.indptr and x.shape == self.shape
            return x.data if same else None
        x = np.asarray(x)
        if x.ndim == 0:
            return x[()]
        if x.ndim > 2:
            return None
        padded = (1,) * (2 - x.ndim) + x.shape
        if padded == (self.shape[0], 1):
            return x.reshape(-1)[self.row_ids()]
        if padded == (1, self.shape[1]):
            return x.reshape(-1)[self.indices]
        return x.reshape(-1)[0] if padded == (1, 1) else None

    @staticmethod
    def _keeps_zero(
        func: Callable[..., Any], inputs: Sequence[Any], kwargs: dict[str, Any]
    ) -> bool:
        """Evaluate the function where the sparse operands are zero, for every dense operand."""
        zeros = [np.zeros((), x.dtype) if _is_csr(x) else np.asarray(x) for x in inputs]
        with np.errstate(all="ignore"):
            result = func(*zeros, **kwargs)
        results = result if isinstance(result, tuple) else (result,)
        return all(bool(np.all(r == 0)) for r in results)

    def __array_function__(
        self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        """Run the sparse version of a numpy function, or densify and say so."""
        if func in _HANDLED:
            return _HANDLED[func](*args, **kwargs)
        dense = [_dense_argument(a, func.__name__) for a in args]
        named = {k: _dense_argument(v, func.__name__) for k, v in kwargs.items()}
        return func(*dense, **named)

    def sum(self, axis: Any = None, dtype: Any = None, **kwargs: Any) -> Any:
        """
        Sum over rows, columns or everything.

        Parameters
        ----------
        axis : int or tuple of int, optional
            Axis to sum over. Default: both.
        dtype : dtype-like, optional
            Type of the sum. Default: numpy's own for `dtype`.
        **kwargs
            Only ``keepdims``.

        Returns
        -------
        ndarray or scalar
            Dense result.
        """
        axes = _axes(axis)
        dtype = np.zeros(0, self.dtype).sum(dtype=dtype).dtype
        if axes == (0, 1):
            total = self.data.sum(dtype=dtype)
            return total.reshape(1, 1) if kwargs.get("keepdims") else total
        places = self.row_ids() if axes == (1,) else self.indices
        total = np.zeros(self.shape[1 - axes[0]], dtype)
        np.add.at(total, places, self.data)
        return np.expand_dims(total, axes[0]) if kwargs.get("keepdims") else total

    def mean(self, axis: Any = None, dtype: Any = None, **kwargs: Any) -> Any:
        """
        Average over rows, columns or everything, zeros included.

        Parameters
        ----------
        axis : int or tuple of int, optional
            Axis to average over. Default: both.
        dtype : dtype-like, optional
            Type of the mean. Default: numpy's own for `dtype`.
        **kwargs
            Only ``keepdims``.

        Returns
        -------
        ndarray or scalar
            Dense result.
        """
        dtype = np.zeros(1, self.dtype).mean(dtype=dtype).dtype
        n = int(np.prod([self.shape[a] for a in _axes(axis)]))
        return (self.sum(axis, np.promote_types(dtype, np.float64), **kwargs) / n).astype(dtype)


def _is_csr(x: Any) -> bool:
    return isinstance(x, CSRArray)


def _is_scalar(key: Any) -> bool:
    return np.ndim(key) == 0 and not isinstance(key, slice)


def _is_all(key: Any) -> bool:
    return isinstance(key, slice) and key == slice(None)


def _axes(axis: Any) -> tuple[int, ...]:
    axes = (0, 1) if axis is None else np.atleast_1d(axis)
    return tuple(sorted(int(a) % 2 for a in axes))


def _dense_argument(x: Any, operation: str) -> Any:
    if _is_csr(x):
        return x._densify(operation)
    if isinstance(x, list | tuple) and any(map(_is_csr, x)):
        return type(x)(_dense_argument(item, operation) for item in x)
    return x


def concatenate(arrays: Sequence[CSRArray], axis: int = 0) -> Any:
    """
    Join sparse arrays row after row.

    Parameters
    ----------
    arrays : sequence of CSRArray
        Arrays with the same number of columns.
    axis : int, optional
        Only 0 stays sparse.

    Returns
    -------
    CSRArray
        All rows in order.
    """
    if axis != 0 or not all(map(_is_csr, arrays)):
        return np.concatenate([_dense_argument(a, "concatenate") for a in arrays], axis)
    lengths = np.concatenate([np.diff(a.indptr) for a in arrays])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    shape = (sum(a.shape[0] for a in arrays), arrays[0].shape[1])
    data = np.concatenate([a.data for a in arrays])
    return CSRArray(data, np.concatenate([a.indices for a in arrays]), indptr, shape)


def _handle(func: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        _HANDLED[func] = implementation
        return implementation

    return register


_handle(np.concatenate)(concatenate)


@_handle(np.sum)
def _sum(a: CSRArray, axis: Any = None, **kwargs: Any) -> Any:
    return a.sum(axis, **kwargs)


@_handle(np.mean)
def _mean(a: CSRArray, axis: Any = None, **kwargs: Any) -> Any:
    return a.mean(axis, **kwargs)


@_handle(np.nanmean)
def _nanmean(a: CSRArray, axis: Any = None, dtype: Any = None, **kwargs: Any) -> Any:
    missing = np.isnan(a.data)
    if not missing.any():
        return a.mean(axis, dtype, **kwargs)
    return np.nanmean(a._densify("nanmean of missing values"), axis, dtype, **kwargs)


@_handle(np.where)
def _where(condition: Any, x: Any, y: Any) -> Any:
    """Keep the sparse form of `fillna` and of reductions that skip missing values."""
    return next(filter(_is_csr, (condition, x, y)))._apply(np.where, (condition, x, y), {})


@_handle(np.zeros_like)
def _zeros_like(a: CSRArray, dtype: Any = None, **kwargs: Any) -> CSRArray:
    return a._with(np.zeros_like(a.data, dtype, **kwargs))


@_handle(np.transpose)
def _transpose(a: CSRArray, axes: Any = ()) -> Any:
    return a.transpose(*(axes or ()))


@_handle(np.result_type)
def _result_type(*args: Any) -> Any:
    return np.result_type(*(a.dtype if _is_csr(a) else a for a in args))


@_handle(np.shape)
def _shape(a: CSRArray) -> tuple[int, int]:
    return a.shape


@_handle(np.ndim)
def _ndim(a: CSRArray) -> int:
    return a.ndim


@_handle(np.astype)
def _astype(a: CSRArray, dtype: Any, **kwargs: Any) -> CSRArray:
    return a.astype(dtype, **kwargs)
