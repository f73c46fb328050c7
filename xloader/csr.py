"""A thin CSR duck array: sparse rows that xarray can hold, label and compute with."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader import threads
from xloader.errors import SchemaError
from xloader.rows import SparseRows, Values, join

_NUMBERS = "biufc"
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

    def round(self, decimals: int = 0) -> Self:
        """
        Round the stored values.

        Parameters
        ----------
        decimals : int, optional
            How many decimal places stay. Default: none.

        Returns
        -------
        CSRArray
            Values of the same dtype.
        """
        return self._with(self.data.round(decimals))

    def __getitem__(self, key: Any) -> Any:
        outer = _outer_key(key)
        if outer is None:
            new = isinstance(key, tuple) and any(k is None for k in key)
            return self._densify("a new axis" if new else "selection of single elements")[key]
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
        fullest = max(filter(_is_csr, inputs), key=lambda a: a.nnz, default=self)
        operands = [fullest._operand(x) for x in inputs]
        known = [values for values in operands if values is not None]
        if len(known) == len(inputs) and _keeps_zero(func, inputs, kwargs):
            results = tuple(map(fullest._with, fullest._map(func, known, kwargs)))
            return results if len(results) > 1 else results[0]
        return func(*(_dense_argument(x, func.__name__) for x in inputs), **kwargs)

    def _operand(self, x: Any) -> Values | None:
        """Return what `x` contributes at the stored places, or None where that is not known."""
        if not _is_csr(x):
            # a number stays as it is: one of Python must not widen the dtype
            return self._dense_operand(np.asarray(x)) if np.ndim(x) else _always(x)
        if self._same_places(x):
            return lambda a, b: x.data[a:b]
        return _always(np.zeros((), x.dtype)) if x.nnz == 0 and x.shape == self.shape else None

    def _dense_operand(self, x: npt.NDArray[Any]) -> Values | None:
        padded = (1,) * (2 - x.ndim) + x.shape
        flat = x.reshape(-1)
        if padded == (1, 1):
            return _always(flat[0])
        if x.dtype.hasobject:
            return None
        if padded == (self.shape[0], 1):
            return self._by_row(flat)
        return self._by_column(flat) if padded == (1, self.shape[1]) else None

    def _same_places(self, other: Self) -> bool:
        if self.shape != other.shape:
            return False
        if self.indices is other.indices and self.indptr is other.indptr:
            return True
        same_rows = np.array_equal(self.indptr, other.indptr)
        return same_rows and np.array_equal(self.indices, other.indices)


def _always(x: Any) -> Values:
    return lambda _a, _b: x


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
    return all(np.asarray(r).dtype.kind in _NUMBERS and not np.any(r) for r in results)


def _dense_argument(x: Any, operation: str) -> Any:
    if _is_csr(x):
        return x._densify(operation)
    if isinstance(x, list | tuple) and any(map(_is_csr, x)):
        return type(x)(_dense_argument(item, operation) for item in x)
    return x


_signature = functools.lru_cache(inspect.signature)


def _accepts(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
    try:
        _signature(func).bind(*args, **kwargs)
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
    out.data = result.data.astype(out.dtype, casting="same_kind", copy=False)
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
    data, indices = join([a.data for a in arrays]), join([a.indices for a in arrays])
    return CSRArray(data, indices, indptr, (len(lengths), columns[0]))


def _handle(func: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        _HANDLED[func] = implementation
        return implementation

    return register


_handle(np.concatenate)(concatenate)
_handle(np.sum)(CSRArray.sum)
_handle(np.mean)(CSRArray.mean)
_handle(np.round)(CSRArray.round)
_handle(np.transpose)(CSRArray.transpose)
_handle(np.shape)(lambda a: a.shape)
_handle(np.ndim)(lambda a: a.ndim)


@_handle(np.astype)
def _astype(a: CSRArray, dtype: Any, *, copy: bool = True) -> Any:
    return a.astype(dtype, copy=copy)


@_handle(np.zeros_like)
def _zeros_like(a: CSRArray, dtype: Any = None) -> CSRArray:
    nothing = np.zeros(0, a.dtype if dtype is None else dtype)
    return CSRArray(nothing, a.indices[:0], np.zeros_like(a.indptr), a.shape)


@_handle(np.full_like)
def _full_like(a: CSRArray, fill_value: Any, dtype: Any = None) -> Any:
    if np.ndim(fill_value) == 0 and fill_value == 0:
        return _zeros_like(a, dtype)
    return np.full_like(a._densify("full_like"), fill_value, dtype)


@_handle(np.result_type)
def _result_type(*args: Any) -> Any:
    return np.result_type(*(a.dtype if _is_csr(a) else a for a in args))


@_handle(np.where)
def _where(condition: Any, x: Any, y: Any) -> Any:
    """Keep reductions that skip missing values sparse."""
    arrays = [a for a in (condition, x, y) if _is_csr(a)]
    alike = len(arrays) == 3 and x.dtype == y.dtype and condition.shape == x.shape == y.shape
    if alike and x.nnz == 0 and not condition.data.any():
        return y._with(y.data)  # xarray's sum without missing values, where none is missing
    return arrays[0]._apply(_choose, (condition, x, y), {})


def _choose(condition: Any, x: Any, y: Any, *, out: Any = None) -> Any:
    """Run `numpy.where`, given `out` in a third of its time if `x` is rarely chosen."""
    if out is None:
        return np.where(condition, x, y)
    np.copyto(out[0], y)
    np.copyto(out[0], x, where=np.asarray(condition, bool))
    return out


_choose.__name__ = "where"  # what a warning says


@_handle(np.clip)
def _clip(a: Any, a_min: Any = None, a_max: Any = None) -> Any:
    low = a if a_min is None else np.maximum(a, a_min)
    return low if a_max is None else np.minimum(low, a_max)


@_handle(np.nansum)
def _nansum(a: CSRArray, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> Any:
    return a._sum(axis, dtype, keepdims=keepdims, skip=True)


@_handle(np.nanmean)
def _nanmean(a: CSRArray, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> Any:
    missing = np.isnan(a).sum(axis, keepdims=keepdims)
    with np.errstate(invalid="ignore"):  # nothing but missing values: NaN, as xarray has it
        return a._mean(a._length(axis) - missing, axis, dtype, keepdims=keepdims, skip=True)


@_handle(np.count_nonzero)
def _count_nonzero(a: CSRArray, axis: Any = None, *, keepdims: bool = False) -> Any:
    return np.not_equal(a, 0).sum(axis, keepdims=keepdims)


@_handle(np.any)
def _any(a: CSRArray, axis: Any = None, *, keepdims: bool = False) -> Any:
    return _count_nonzero(a, axis, keepdims=keepdims) > 0


@_handle(np.all)
def _all(a: CSRArray, axis: Any = None, *, keepdims: bool = False) -> Any:
    return _count_nonzero(a, axis, keepdims=keepdims) == a._length(axis)


def _handle_spread(func: Callable[..., Any], *, skip: bool, root: bool) -> None:
    def sparse(
        a: CSRArray, axis: Any = None, dtype: Any = None, *, ddof: float = 0, keepdims: bool = False
    ) -> Any:
        if a._plain() is None:
            dense = a._densify(func.__name__)
            return func(dense, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims)
        variance = _variance(a, axis, ddof, skip=skip and a.dtype.kind == "f")
        variance = np.sqrt(variance) if root else variance
        variance = variance.astype(np.zeros(1, a.dtype).var(dtype=dtype).dtype)
        return variance if keepdims else variance.squeeze(axis)[()]

    _handle(func)(sparse)


def _variance(a: CSRArray, axis: Any, ddof: float, *, skip: bool) -> Any:
    """Average squared distances from the mean: of stored values, and of the zeros beside them."""
    missing = np.isnan(a).sum(axis, keepdims=True) if skip else 0
    zeros = a._length(axis) - a._with(np.ones(a.nnz, bool)).sum(axis, keepdims=True)

    with np.errstate(invalid="ignore", divide="ignore"):  # without values: NaN
        n = a._length(axis) - missing
        mean = a._sum(axis, np.float64, keepdims=True, skip=skip) / n
        operands = [x for x in map(a._operand, (a, mean)) if x is not None]
        distances = a._with(*a._map(_square_distance, operands, {}))
        total = distances._sum(axis, keepdims=True, skip=skip) + zeros * mean**2
        freedom = n - ddof
        return total / np.where(freedom > 0, freedom, np.nan if skip else 0)


def _square_distance(x: Any, mean: Any, *, out: Any = None) -> Any:
    return np.square(np.subtract(x, mean, out=out), out=out)


def _handle_extremum(func: Callable[..., Any], ufunc: np.ufunc) -> None:
    def sparse(a: CSRArray, axis: Any = None, *, keepdims: bool = False) -> Any:
        axes, values = a._reduced(axis), a._plain()
        if a.size == 0 or values is None:
            dense = a._densify(func.__name__) if a.size else a.todense()
            return ufunc.reduce(dense, axis=axes, keepdims=keepdims)
        extremes = _column_extremes if axes == (0,) else _row_extremes
        best, stored = extremes(a, values, ufunc)
        with_zero = ufunc(best, best.dtype.type(0))
        out = np.where(stored < a.shape[axes[-1]], with_zero, best).astype(
            a.dtype.newbyteorder("=")
        )
        out = ufunc.reduce(out) if len(axes) == 2 else out
        return np.expand_dims(out, axes) if keepdims else out

    _handle(func)(sparse)


def _row_extremes(
    a: CSRArray, values: npt.NDArray[Any], ufunc: np.ufunc
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the extreme of what each row stores, and how much it stores."""
    indptr = a._pointers()
    stored = np.diff(indptr)
    best = np.zeros(len(a), values.dtype)
    best[stored > 0] = ufunc.reduceat(values, indptr[:-1][stored > 0])
    return best, stored


def _column_extremes(
    a: CSRArray, values: npt.NDArray[Any], ufunc: np.ufunc
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the extreme of what each column stores, and how much it stores."""
    from xloader.kernels import csr as kernels

    if values.dtype == bool:
        values = values.view(np.uint8)
    largest, skip = ufunc in (np.maximum, np.fmax), ufunc in (np.fmin, np.fmax)
    if values.dtype.kind == "f":
        worst = np.nan if skip else -np.inf if largest else np.inf
    else:
        worst = np.iinfo(values.dtype).min if largest else np.iinfo(values.dtype).max
    parts, columns = a._column_parts(), a._columns()
    best = np.full((len(parts), a.shape[1]), worst, values.dtype)
    stored = np.zeros(best.shape, np.int64)
    args = [
        (values[i:j], columns[i:j], largest, skip, best[k], stored[k])
        for k, (i, j) in enumerate(parts)
    ]
    a._check(threads.run("gather", kernels.extreme_columns, args))
    return ufunc.reduce(best), stored.sum(0)


_handle_extremum(np.min, np.minimum)
_handle_extremum(np.max, np.maximum)
_handle_extremum(np.nanmin, np.fmin)
_handle_extremum(np.nanmax, np.fmax)
_handle_spread(np.var, skip=False, root=False)
_handle_spread(np.std, skip=False, root=True)
_handle_spread(np.nanvar, skip=True, root=False)
_handle_spread(np.nanstd, skip=True, root=True)
