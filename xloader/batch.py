"""Values of samples, with their labels: one Dataset per batch, at the cost of one slice per array."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from xarray.core.indexing import PandasIndexingAdapter
from xarray.indexes import PandasIndex

from xloader.axes import Int64
from xloader.packed import slice_rows
from xloader.read import Reader, Values
from xloader.source import Source

_OWN = ("sample_id", "valid")


class Labeller:
    """
    Makes labelled Datasets of the values of one source.

    xarray's constructor aligns and checks what is the same for every batch of a source, and takes
    longer than reading; so the first batch is made by it, and others like the first.

    Parameters
    ----------
    source : Source
        Where the values come from.
    dim : str
        Dimension of the samples.
    """

    def __init__(self, source: Source, dim: str) -> None:
        self.source = source
        self.dim = dim
        self._alike: bool | None = None
        self._fixed_indexes: dict[Any, Any] = {}
        self._own_indexes: tuple[str, ...] = ()
        self._sizes: dict[Any, int] = {}
        self._wholes: dict[str, tuple[npt.NDArray[Any], pd.Index[Any]]] = {}
        self._forms = {name: self._form(reader) for name, reader in source.readers.items()}

    def _form(self, reader: Reader) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the dimensions of a variable in batches, and which axes of its values have no place there."""
        points = self.source.windows.points
        rest = reader.dims[1:] if reader.is_rows else reader.dims
        single = tuple(1 + k for k, d in enumerate(rest) if d in points)
        return (self.dim, *(d for d in rest if d not in points)), single

    def label(
        self, values: Mapping[str, Values], ids: Int64, valid: npt.NDArray[np.bool_] | None
    ) -> xr.Dataset:
        """
        Return a batch.

        Parameters
        ----------
        values : mapping of str to array, samples first
            One array per variable and coordinate that samples have.
        ids : ndarray of int64, shape (n,)
            Which samples they are.
        valid : ndarray of bool, shape (n,), or None
            False for samples that only pad.

        Returns
        -------
        xarray.Dataset
            Shares memory with the values.
        """
        if self._alike:
            return self._like_first(self._variables(values, ids, valid, _bare))
        variables = self._variables(values, ids, valid, partial(xr.Variable, fastpath=True))
        coords = {k: v for k, v in variables.items() if k in self.source.coords or k in _OWN}
        data = {k: v for k, v in variables.items() if k not in coords}
        batch = xr.Dataset(data, coords, self.source.attrs)
        if self._alike is None:
            self._learn(batch, self._variables(values, ids, valid, _bare))
        return batch

    def _variables(
        self,
        values: Mapping[str, Values],
        ids: Int64,
        valid: npt.NDArray[np.bool_] | None,
        make: Callable[[tuple[str, ...], Any, Mapping[str, Any]], xr.Variable],
    ) -> dict[str, xr.Variable]:
        source, dim = self.source, self.dim
        variables: dict[str, xr.Variable] = {}
        for name, value in values.items():
            dims, single = self._forms[name]
            rows = np.squeeze(value, single) if single else value
            variables[name] = make(dims, rows, source.variable_attrs[name])
        variables.update(source.fixed)
        variables["sample_id"] = make((dim,), ids, {})
        if valid is not None:
            variables["valid"] = make((dim,), valid, {})
        return variables

    def _learn(self, batch: xr.Dataset, variables: dict[str, xr.Variable]) -> None:
        """Find out how to make other batches like the first, and whether that works."""
        plain = all(type(index) is PandasIndex for index in batch.xindexes.values())
        own = tuple(str(k) for k in batch.xindexes if self.dim in batch.variables[k].dims)
        self._own_indexes = own
        self._sizes = dict(batch.sizes)
        self._fixed_indexes = {k: v for k, v in batch.xindexes.items() if k not in own}
        for name in self.source.fixed:
            variables[name] = self.source.fixed[name] = batch.variables[name]
        self._alike = plain and _same(batch, self._like_first(variables))

    def _like_first(self, variables: dict[str, xr.Variable]) -> xr.Dataset:
        indexes = dict(self._fixed_indexes)
        for name in self._own_indexes:
            variable = variables[name]
            values: Any = variable.data
            labels = self._labels(name, values)
            labels.name = self.dim
            index = indexes[name] = object.__new__(PandasIndex)
            index.index, index.dim, index.coord_dtype = labels, self.dim, values.dtype
            data = PandasIndexingAdapter(labels, dtype=values.dtype)
            variables[name] = _bare((self.dim,), data, variable.attrs, xr.IndexVariable)
        names: set[Any] = {k for k in variables if k in self.source.coords or k in _OWN}
        # no public way leaves out the checks; `_learn` compares its result with the public one's
        return xr.Dataset._construct_direct(
            variables,
            names,
            dims={**self._sizes, self.dim: len(variables["sample_id"])},
            attrs=dict(self.source.attrs),
            indexes=indexes,
        )

    def _labels(self, name: str, values: npt.NDArray[Any]) -> "pd.Index[Any]":
        """Return values as an index: a part of that of all batches that were gathered together."""
        whole = values if values.base is None else values.base
        known = self._wholes.get(name)
        if known is None or known[0] is not whole:
            if whole.dtype != values.dtype or whole.ndim != 1 or not whole.flags.c_contiguous:
                whole = values  # a view of something else
            given = {"dtype": object} if whole.dtype.kind == "O" else {}
            known = self._wholes[name] = whole, pd.Index(whole, copy=False, **given)
        whole, labels = known
        if whole is values:
            return labels
        start = (_address(values) - _address(whole)) // values.itemsize
        return labels[start : start + len(values)]


def _address(values: npt.NDArray[Any]) -> int:
    return int(values.__array_interface__["data"][0])


def _bare(
    dims: tuple[str, ...],
    data: Any,
    attrs: Mapping[str, Any],
    kind: type[xr.Variable] = xr.Variable,
) -> xr.Variable:
    """Make what ``xr.Variable(..., fastpath=True)`` makes, without looking at the dimensions again."""
    variable = object.__new__(kind)
    variable._dims, variable._data = dims, data
    variable._attrs, variable._encoding = dict(attrs) if attrs else None, None
    return variable


def _same(a: xr.Dataset, b: xr.Dataset) -> bool:
    """Compare everything but values, which are the same arrays."""
    same_names = (
        set(a.variables) == set(b.variables)
        and set(a.coords) == set(b.coords)
        and set(a.xindexes) == set(b.xindexes)
    )
    return (
        same_names
        and a.attrs == b.attrs
        and a.sizes == b.sizes
        and all(index.equals(b.xindexes[k]) for k, index in a.xindexes.items())
        and all(_described(v) == _described(b.variables[k]) for k, v in a.variables.items())
    )


def _described(variable: xr.Variable) -> tuple[Any, ...]:
    return type(variable), variable.dims, variable.dtype, variable.shape, list(variable.attrs)


def split(values: Mapping[str, Values], start: int, stop: int) -> dict[str, Values]:
    """
    Return some successive samples.

    Parameters
    ----------
    values : mapping of str to array, samples first
        What they are part of.
    start, stop : int
        Half-open bounds.

    Returns
    -------
    dict of str to array
        Views.
    """
    return {
        k: v[start:stop] if isinstance(v, np.ndarray) else slice_rows(v, start, stop)
        for k, v in values.items()
    }
