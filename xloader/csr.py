"""A thin CSR duck array: sparse rows that xarray can hold, label and compute with."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.errors import PerformanceWarning, SchemaError, warn
from xloader.rows import SparseRows

_HANDLED: dict[Callable[..., Any], Callable[..., Any]] = {}


class CSRArray(SparseRows, np.lib.mixins.NDArrayOperatorsMixin):
    """
    Two-dimensional sparse array in compressed sparse row form.

    Zero-preserving ufuncs, scaling by rows or columns, reductions, row and column selection,
    concatenation and `astype` act on the stored values; anything else densifies, with a
    `PerformanceWarning` that names the operation.

    Made of ``data, indices, indptr, shape``, as `SparseRows` describes them.

    Examples
    --------
    >>> a = CSRArray(np.array([1.0, 3.0]), np.array([0, 2]), np.array([0, 1, 2]), (2, 3))
    >>> np.sqrt(a * np.array([[4.0], [3.0]])).todense()
    array([[2., 0., 0.],
           [0., 0., 3.]])
    """

    __array_priority__ = 100.0

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        msg = "the truth value of an array is ambiguous; compare `nnz` or a sum"
        raise ValueError(msg)

    @override
    def __repr__(self) -> str:
        rows, columns = self.shape
        share = self.nnz / max(self.size, 1)
        return f"<CSRArray {rows} x {columns}, {self.dtype}, {self.nnz} stored ({share:.1%})>"

    def _repr_inline_(self, max_width: int) -> str:
        """Fit into one line of the Dataset that holds the array."""
        return repr(self)[:max_width]

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

    def __getitem__(self, key: Any) -> Any:
        outer = _outer_key(key)
        if outer is None:
            return self._densify("selection of single elements")[key]
        rows, columns = outer
        # a single row or column is no table any more, and small enough to be dense
        if _is_scalar(rows):
            return self.take_rows(np.arange(self.shape[0])[rows, None]).todense()[0][columns]
        if _is_scalar(columns):
            return self.take_columns(np.arange(self.shape[1])[columns, None]).todense()[:, 0][rows]
        out = self if _is_all(rows) else self.take_rows(np.arange(self.shape[0])[rows])
        if _is_all(columns):
            return out
        wanted = np.arange(self.shape[1])[columns]
        if len(np.unique(wanted)) == len(wanted):
            return out.take_columns(wanted)
        return out._densify("selection of a column twice")[:, wanted]

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

    @override
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Act on stored values where zeros stay zeros; densify elsewhere."""
        if not all(map(_is_plain, inputs)):
            return NotImplemented  # labelled arrays know better what to do
        if method == "__call__" and ufunc.signature is None and "where" not in kwargs:
            (out,) = kwargs.pop("out", (None,))
            result = self._apply(ufunc, inputs, kwargs)
            return result if out is None else _assign(out, result)
        if method == "at" or any(map(_is_csr, kwargs.get("out", ()))):
            return NotImplemented  # would change a dense copy that nobody sees
        dense = [_dense_argument(x, f"{ufunc.__name__}.{method}") for x in inputs]
        return getattr(ufunc, method)(*dense, **kwargs)

    def __array_function__(
        self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        """Run the sparse version of a numpy function, or densify and say so."""
        sparse = _HANDLED.get(func)
        if sparse is not None and _accepts(sparse, args, kwargs):
            return sparse(*args, **kwargs)
        dense = [_dense_argument(a, func.__name__) for a in args]
        named = {k: _dense_argument(v, func.__name__) for k, v in kwargs.items()}
        return func(*dense, **named)

    def _apply(
        self, func: Callable[..., Any], inputs: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Call an elementwise function on the stored values, or densify if zeros do not stay zero."""
        values = [self._values_for(x) for x in inputs]
        if all(v is not None for v in values) and _keeps_zero(func, inputs, kwargs):
            result = func(*values, **kwargs)
            return (
                tuple(map(self._with, result)) if isinstance(result, tuple) else self._with(result)
            )
        return func(*(_dense_argument(x, func.__name__) for x in inputs), **kwargs)

    def _values_for(self, x: Any) -> Any:
        """Return what `x` contributes at the stored places, or None where that is not known."""
        if _is_csr(x):
            return x.data if self._same_places(x) else None
        if np.ndim(x) == 0:
            return x  # as it is: a Python number must not widen the dtype
        x = np.asarray(x)
        padded = (1,) * (2 - x.ndim) + x.shape
        if padded == (1, 1):
            return x.reshape(-1)[0]
        if padded == (self.shape[0], 1):
            return x.reshape(-1)[self.row_ids()]
        return x.reshape(-1)[self.indices] if padded == (1, self.shape[1]) else None

    def _same_places(self, other: Self) -> bool:
        if self.shape != other.shape:
            return False
        if self.indices is other.indices and self.indptr is other.indptr:
            return True
        same_rows = np.array_equal(self.indptr, other.indptr)
        return same_rows and np.array_equal(self.indices, other.indices)


def _is_csr(x: Any) -> bool:
    return isinstance(x, CSRArray)


def _is_plain(x: Any) -> bool:
    return isinstance(x, CSRArray | np.ndarray | np.generic) or not hasattr(x, "__array_ufunc__")


def _is_scalar(key: Any) -> bool:
    return np.ndim(key) == 0 and not isinstance(key, slice)


def _is_all(key: Any) -> bool:
    return isinstance(key, slice) and key == slice(None)


def _outer_key(key: Any) -> tuple[Any, Any] | None:
    """Return a key for rows and one for columns, or None where numpy would pick elements."""
    keys = list(key) if isinstance(key, tuple) else [key]
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    keys[at : at + 1] = [slice(None)] * (2 - len(keys) + (at < len(keys)))
    if len(keys) != 2 or any(k is None for k in keys):
        return None
    rows, columns = keys
    if np.ndim(rows) + np.ndim(columns) < 2:
        return rows, columns
    rows, columns = np.asarray(rows), np.asarray(columns)
    if rows.ndim == columns.ndim == 2 and rows.shape[1] == columns.shape[0] == 1:
        return rows[:, 0], columns[0]  # as `np.ix_` spells it
    if rows.shape == (1,) and columns.ndim == 1 and rows.dtype != bool:
        return rows[0], columns  # as xarray spells one row of several columns
    if columns.shape == (1,) and rows.ndim == 1 and columns.dtype != bool:
        return rows, columns[0]
    return None


def _keeps_zero(func: Callable[..., Any], inputs: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Evaluate the function where the sparse operands are zero, for every dense operand."""
    zeros = [np.zeros((), x.dtype) if _is_csr(x) else x for x in inputs]
    with np.errstate(all="ignore"):
        result = func(*zeros, **kwargs)
    results = result if isinstance(result, tuple) else (result,)
    return all(bool(np.all(r == 0)) for r in results)


def _dense_argument(x: Any, operation: str) -> Any:
    if _is_csr(x):
        return x._densify(operation)
    if isinstance(x, list | tuple) and any(map(_is_csr, x)):
        return type(x)(_dense_argument(item, operation) for item in x)
    return x


def _accepts(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
    try:
        inspect.signature(func).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _assign(out: Any, result: Any) -> Any:
    """Finish an operation in place, where a sparse array must stay sparse."""
    if not _is_csr(out):
        out[...] = _dense_argument(result, "assignment to a dense array")
        return out
    if not (_is_csr(result) and out._same_places(result)):
        msg = "an operation in place would fill the zeros of a CSRArray; assign its result instead"
        raise SchemaError(msg)
    np.copyto(out.data, result.data, casting="same_kind")
    return out


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

    Raises
    ------
    SchemaError
        If the numbers of columns differ.
    """
    if axis != 0 or not all(map(_is_csr, arrays)):
        return np.concatenate([_dense_argument(a, "concatenate") for a in arrays], axis)
    columns = sorted({a.shape[1] for a in arrays})
    if len(columns) != 1:
        msg = f"rows of {columns} columns cannot be joined; select the same columns of each array"
        raise SchemaError(msg)
    lengths = np.concatenate([np.diff(a.indptr) for a in arrays])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    data = np.concatenate([a.data for a in arrays])
    indices = np.concatenate([a.indices for a in arrays])
    return CSRArray(data, indices, indptr, (len(lengths), columns[0]))


def _handle(func: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        _HANDLED[func] = implementation
        return implementation

    return register


_handle(np.concatenate)(concatenate)
_handle(np.sum)(CSRArray.sum)
_handle(np.mean)(CSRArray.mean)
_handle(np.transpose)(CSRArray.transpose)
_handle(np.shape)(lambda a: a.shape)
_handle(np.ndim)(lambda a: a.ndim)


@_handle(np.astype)
def _astype(a: CSRArray, dtype: Any, *, copy: bool = True) -> CSRArray:
    return a.astype(dtype, copy=copy)


@_handle(np.zeros_like)
def _zeros_like(a: CSRArray, dtype: Any = None) -> CSRArray:
    return a._with(np.zeros_like(a.data, dtype))


@_handle(np.result_type)
def _result_type(*args: Any) -> Any:
    return np.result_type(*(a.dtype if _is_csr(a) else a for a in args))


@_handle(np.where)
def _where(condition: Any, x: Any, y: Any) -> Any:
    """Keep reductions that skip missing values sparse."""
    return next(filter(_is_csr, (condition, x, y)))._apply(np.where, (condition, x, y), {})


@_handle(np.clip)
def _clip(a: Any, a_min: Any = None, a_max: Any = None) -> Any:
    low = a if a_min is None else np.maximum(a, a_min)
    return low if a_max is None else np.minimum(low, a_max)


def _present(a: CSRArray) -> CSRArray:
    return a._with(np.where(np.isnan(a.data), np.zeros((), a.dtype), a.data))


@_handle(np.nansum)
def _nansum(a: CSRArray, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> Any:
    return _present(a).sum(axis, dtype, keepdims=keepdims)


@_handle(np.nanmean)
def _nanmean(a: CSRArray, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> Any:
    missing = a._with(np.isnan(a.data)).sum(axis, keepdims=keepdims)
    with np.errstate(invalid="ignore"):  # nothing but missing values: NaN, as xarray has it
        return _present(a)._mean(a._length(axis) - missing, axis, dtype, keepdims=keepdims)


def _handle_extremum(func: Callable[..., Any], ufunc: np.ufunc) -> None:
    def sparse(a: CSRArray, axis: Any = None, *, keepdims: bool = False) -> Any:
        return a._extremum(ufunc, axis, keepdims=keepdims)

    _handle(func)(sparse)


_handle_extremum(np.min, np.minimum)
_handle_extremum(np.max, np.maximum)
_handle_extremum(np.nanmin, np.fmin)
_handle_extremum(np.nanmax, np.fmax)
