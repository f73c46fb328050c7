"""Find what a variable shows of a stored array, so that it is read there and not through dask."""

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array.chunk
import dask.array.core
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask._task_spec import Alias, DataNode, List, Task, TaskRef, convert_legacy_graph
from dask.array import _shuffle
from dask.array.core import concatenate_shaped
from typing_extensions import override
from xarray.core import indexing

from xloader.arrays import RowArray, StoredArray
from xloader.csr import CSRArray

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """A selection of a stored array: element ``(i, j)`` is ``array[index[0][i], index[1][j]]``."""

    array: StoredArray
    """The array on disk."""
    index: tuple[Int64, ...]
    """Stored position of each element along each dimension."""


class _Rows(RowArray):
    """Sparse rows that are in memory already."""

    def __init__(self, values: CSRArray) -> None:
        super().__init__(values.shape, values.dtype, block_rows=1024)
        self.values = values

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:
        return self.values.take_rows(np.arange(start, stop))

    @override
    def nnz_of(self, starts: Int64, stops: Int64) -> Int64:
        return np.asarray(self.values.indptr[stops] - self.values.indptr[starts], np.int64)


class _Opaque(Exception):
    """A task computes something, so that no selection of storage describes its result."""


def view(variable: xr.Variable) -> View | None:
    """
    Return the stored elements that a variable shows, if it shows nothing else.

    Selections made with xarray (`isel`, `sel`, `query`, `where` with ``drop=True``) are followed
    through xarray's lazy indexing and through dask's graph; dask's tasks are looked at, not run.

    Parameters
    ----------
    variable : xarray.Variable
        Any variable.

    Returns
    -------
    View or None
        None if the values are in memory, come from elsewhere or are computed.
    """
    data: Any = variable._data
    if isinstance(data, CSRArray):
        return _whole(_Rows(data))
    if isinstance(data, dask.array.core.Array):
        if not _begins_at_storage(data):
            return None
        try:
            return _Graph(data).view()
        except _Opaque:
            return None
    return _lazy(data)


def is_computed(variable: xr.Variable) -> bool:
    """
    Say whether arithmetic stands between a variable and one of our stored arrays.

    Parameters
    ----------
    variable : xarray.Variable
        Any variable.

    Returns
    -------
    bool
        True if its dask graph begins at a stored array but is more than a selection of it.
    """
    data: Any = variable._data
    return (
        isinstance(data, dask.array.core.Array)
        and _begins_at_storage(data)
        and view(variable) is None
    )


def _begins_at_storage(data: dask.array.core.Array) -> bool:
    nodes = dict(data.__dask_graph__()).values()
    return any(_lazy(_unwrap(node)) is not None for node in nodes)


def _whole(array: StoredArray) -> View:
    return View(array, tuple(np.arange(n) for n in array.shape))


def _unwrap(node: Any) -> Any:
    return node.value if isinstance(node, DataNode) else node


def _lazy(data: Any) -> View | None:
    """Follow xarray's wrappers down to a stored array."""
    base, keys = _unwrapped(data)
    index = _positions_of(keys, base.shape) if isinstance(base, StoredArray) else None
    return None if index is None else View(base, index)


def lazy_base(variable: xr.Variable) -> tuple[Any, tuple[Int64, ...]]:
    """
    Return the array beneath xarray's lazy indexing, whichever backend it is of.

    Parameters
    ----------
    variable : xarray.Variable
        A variable of any backend, opened without dask.

    Returns
    -------
    tuple of array and tuple of ndarray
        What is indexed, and the position in it of each element along each dimension; the data
        themselves where a selection dropped or added one.
    """
    base, keys = _unwrapped(variable._data)
    index = _positions_of(keys, base.shape)
    if index is None:
        return variable._data, tuple(np.arange(n) for n in variable.shape)
    return base, index


def folders(variable: xr.Variable) -> set[str]:
    """
    Return the folders on a disk that the zarr arrays beneath a variable lie in.

    Parameters
    ----------
    variable : xarray.Variable
        Any variable, also one that is computed.

    Returns
    -------
    set of str
        Those of the arrays, and all below them, in which chunks lie.
    """
    found: set[str] = set()
    for base in _bases(variable._data):
        # zarr's array, with xarray's around it or not; zarr need not be there
        place = getattr(getattr(base, "_array", base), "store_path", None)
        root = getattr(getattr(place, "store", None), "root", None)
        if place is not None and isinstance(root, Path):
            array = root / place.path
            found |= {str(array), *(folder for folder, _, _ in os.walk(array))}
    return found


def _bases(node: Any) -> Iterator[Any]:
    """Yield what xarray's wrappers and dask's tasks hold, at any depth."""
    if isinstance(node, dask.array.core.Array):
        for each in dict(node.__dask_graph__()).values():
            yield from _bases(each)
    elif isinstance(node, tuple | list):
        for each in node:
            yield from _bases(each)
    elif isinstance(node, Task):
        yield from _bases([*node.args, *node.kwargs.values()])
    else:
        base = _unwrap(node)
        while hasattr(base, "array"):  # xarray's wrappers, those that decode values too
            base = base.array
        yield base
        for each in getattr(base, "beneath", ()):
            yield from _bases(each)


def _unwrapped(data: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    """Return what xarray's wrappers hold, and their keys, outermost first."""
    keys = []
    while isinstance(data, indexing.LazilyIndexedArray | _WRAPPERS):
        if isinstance(data, indexing.LazilyIndexedArray):
            keys.append(data.key.tuple)
        data = data.array
    return data, keys


def _positions_of(
    keys: Sequence[tuple[Any, ...]], shape: tuple[int, ...]
) -> tuple[Int64, ...] | None:
    """Apply keys to the positions along each dimension; None if they drop or add one."""
    index: tuple[Int64, ...] = tuple(np.arange(n) for n in shape)
    for key in reversed(keys):
        if len(key) != len(index) or any(np.ndim(k) == 0 and not isinstance(k, slice) for k in key):
            return None
        index = tuple(i[k] for i, k in zip(index, key, strict=True))
    return index


_WRAPPERS = (
    indexing.CopyOnWriteArray
    | indexing.ImplicitToExplicitIndexingAdapter
    | indexing.MemoryCachedArray
)


class _Graph:
    """Evaluates a dask graph on positions instead of values."""

    def __init__(self, array: dask.array.core.Array) -> None:
        self.array = array
        self.graph: Mapping[Any, Any] = convert_legacy_graph(dict(array.__dask_graph__()))
        self.root: StoredArray | None = None
        self.evaluate = lru_cache(maxsize=None)(self._evaluate)

    def view(self) -> View:
        """Join the positions of all blocks, which must agree along every row and column of blocks."""
        shape = self.array.numblocks
        blocks = {at: self.evaluate((self.array.name, *at)) for at in np.ndindex(*shape)}
        if self.root is None or not blocks:
            raise _Opaque
        axes = [
            [blocks[tuple(k if e == d else 0 for e in range(len(shape)))][d] for k in range(n)]
            for d, n in enumerate(shape)
        ]
        for at, index in blocks.items():
            for d, k in enumerate(at):
                if not np.array_equal(index[d], axes[d][k]):
                    raise _Opaque
        return View(self.root, tuple(np.concatenate(parts) for parts in axes))

    def _evaluate(self, key: Any) -> Any:
        return self.value(self.graph[key])

    def value(self, node: Any) -> Any:
        """Return positions for an array of ours, and other constants as they are."""
        if isinstance(node, TaskRef):
            return self.evaluate(node.key)
        if isinstance(node, Alias):
            return self.evaluate(node.target)
        if isinstance(node, List):
            return [self.value(item) for item in node.args]
        if isinstance(node, Task):
            return self.call(node)
        node = _unwrap(node)
        found = _lazy(node)
        if found is None:
            return node
        if self.root not in (None, found.array):
            raise _Opaque
        self.root = found.array
        return _Positions(found.index)

    def call(self, task: Task) -> Any:
        """Do to positions what a selecting task does to values; refuse any other task."""
        if task.func in _GETTERS:
            base, key = (self.value(a) for a in task.args[:2])
            key = key[1] if task.func is _shuffle._getitem else key
            return base[key] if isinstance(base, np.ndarray) else _positions(base)[key]
        if task.func is _shuffle.concatenate_arrays:
            parts, (_, order), axis = (self.value(a) for a in task.args)
            return _join([_positions(p) for p in parts], axis).take(np.argsort(order), axis)
        if task.func is concatenate_shaped:
            parts, shape = (self.value(a) for a in task.args)
            return _assemble([_positions(p) for p in parts], tuple(shape))
        if task.func is dask.array.chunk.astype:
            # `where` turns integers into floats; a cast that keeps every value is left to the reader
            base = _positions(self.value(task.args[0]))
            if self.root is not None and np.can_cast(self.root.dtype, task.kwargs["astype_dtype"]):
                return base
        if task.func is np.where:
            # `where(..., drop=True)` keeps the mask even where nothing is left to mask
            condition, base = (self.value(a) for a in task.args[:2])
            if isinstance(condition, np.ndarray) and condition.all():
                return _positions(base)
        raise _Opaque


_GETTERS = {
    operator.getitem,
    dask.array.chunk.getitem,
    dask.array.core.getter,
    dask.array.core.getter_inline,
    dask.array.core.getter_nofancy,
    _shuffle._getitem,
}


class _Positions(tuple[Int64, ...]):
    """Stored positions along each dimension of one block."""

    __slots__ = ()

    @override
    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, tuple):
            return super().__getitem__(key)
        if len(key) != len(self) or any(np.ndim(k) != 1 and not isinstance(k, slice) for k in key):
            raise _Opaque
        return _Positions(i[k] for i, k in zip(self, key, strict=True))

    def take(self, places: Int64, axis: int) -> "_Positions":
        """Reorder along one dimension."""
        return _Positions(i[places] if d == axis else i for d, i in enumerate(self))


def _positions(value: Any) -> _Positions:
    if not isinstance(value, _Positions):
        raise _Opaque
    return value


def _join(parts: list[_Positions], axis: int) -> _Positions:
    first = parts[0]
    for part in parts[1:]:
        if any(
            not np.array_equal(a, b)
            for d, (a, b) in enumerate(zip(first, part, strict=True))
            if d != axis
        ):
            raise _Opaque
    return _Positions(
        np.concatenate([p[axis] for p in parts]) if d == axis else i for d, i in enumerate(first)
    )


def _assemble(parts: list[_Positions], shape: tuple[int, ...]) -> _Positions:
    """Join a grid of blocks, given in row-major order, along its last dimension first."""
    for axis in reversed(range(len(shape))):
        n = shape[axis]
        parts = [_join(parts[k : k + n], axis) for k in range(0, len(parts), n)]
    return parts[0]
