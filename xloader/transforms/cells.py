"""Cells by genes: equal totals, and a choice of genes."""

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from xloader.contract import Transform
from xloader.errors import SchemaError
from xloader.schema import require
from xloader.transforms.base import Elementwise, float_of


def normalize_total(target_sum: float = 1e4, variable: str = "X") -> Transform:
    """
    Scale each cell to the same total count.

    The source is scanpy's ``pp.normalize_total``: every cell is multiplied by
    ``target_sum / sum``; cells without counts stay zero.

    Parameters
    ----------
    target_sum : float, optional
        Total of every cell afterwards.
    variable : str, optional
        Counts ``(cell, gene)``; sparse ones stay sparse.

    Returns
    -------
    Transform
        Keeps the shape; float32 (float64 for float64 counts).

    Examples
    --------
    >>> ds = xr.Dataset({"X": (("cell", "gene"), [[1, 3], [0, 0]])})
    >>> normalize_total(8)(ds).X.values
    array([[2., 6.],
           [0., 0.]], dtype=float32)
    """
    return Elementwise("normalize_total", _normalize_total, (variable,), target_sum=target_sum)


def _normalize_total(x: xr.Variable, _: xr.Dataset, *, target_sum: float) -> xr.Variable:
    dtype = float_of(x.dtype)
    total = x.sum(str(x.dims[1]), dtype=np.float64)
    sums = np.asarray(total.data)
    factor = total.copy(data=(target_sum / np.where(sums != 0, sums, 1)).astype(dtype))
    scaled: xr.Variable = x.astype(dtype) * factor
    return scaled


def select(**labels: Sequence[Any]) -> Transform:
    """
    Keep some labels along a dimension, in the order given.

    ``ds.sel(gene=[...])`` before the Loader reads less and is the better way; this is for one data
    source that several models share.

    Parameters
    ----------
    **labels : sequence
        By dimension: labels of its index, each once.

    Returns
    -------
    Transform
        Keeps dtype and NaN; the dimension is as long as the list.

    Raises
    ------
    SchemaError
        When it runs, if a label is unknown, with those most like it; at once, if one is named twice.

    Examples
    --------
    >>> ds = xr.Dataset({"X": (("cell", "gene"), [[1, 2, 3]])}, {"gene": ["a", "b", "c"]})
    >>> select(gene=["c", "a"])(ds).X.values
    array([[3, 1]])
    """
    for dim, names in labels.items():
        twice = sorted({str(n) for n in names if list(names).count(n) > 1})
        if twice:
            msg = f"select({dim}=...) names {twice[:5]} more than once; name each label once"
            raise SchemaError(msg)
    return _Select({dim: list(names) for dim, names in labels.items()})


class _Select:
    __name__ = "select"

    def __init__(self, labels: dict[str, list[Any]]) -> None:
        self.labels = labels

    def __call__(self, batch: xr.Dataset) -> xr.Dataset:
        places = {}
        for dim, names in self.labels.items():
            require(batch, [dim], "transform 'select'")
            index = batch.indexes[dim]
            places[dim] = index.get_indexer(names)
            unknown = [str(n) for n, k in zip(names, places[dim], strict=True) if k < 0]
            if unknown:
                alike = difflib.get_close_matches(unknown[0], [str(n) for n in index], n=3)
                msg = (
                    f"{len(unknown)} of {len(names)} labels are not among the {len(index)} of {dim!r}: "
                    f"{unknown[:5]}; there are {alike or [str(n) for n in index[:5]]}..."
                )
                raise SchemaError(msg)
        return batch.isel(places)
