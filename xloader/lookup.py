"""Where labels are: a panel of genes by name, each found once, or said what is like it."""

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xloader.errors import SchemaError

_NAMED = 5


def positions(
    ds: xr.Dataset, name: str, wanted: Sequence[Any], what: str
) -> tuple[str, npt.NDArray[np.int64]]:
    """
    Return where labels are along their dimension, in the order asked for.

    Parameters
    ----------
    ds : xarray.Dataset
        Where the labels are.
    name : str
        A coordinate of one dimension: its index, such as ``gene``, or any other, such as ``symbol``.
    wanted : sequence
        Its labels, each once.
    what : str
        Who asks, for messages.

    Returns
    -------
    tuple of str and ndarray of int64, shape (n,)
        The dimension, and the position of each label.

    Raises
    ------
    SchemaError
        If there is no such coordinate; if a label is unknown, with the name most like it, or is that
        of several positions.

    Examples
    --------
    >>> ds = xr.Dataset(coords={"gene": ["e1", "e2", "e3"], "symbol": ("gene", ["A", "B", "C"])})
    >>> positions(ds, "symbol", ["C", "A"], "select")
    ('gene', array([2, 0]))
    """
    coord = ds.variables.get(name) if name in ds.coords else None
    if coord is None or coord.ndim != 1:
        there = sorted(str(c) for c, v in ds.coords.items() if v.ndim == 1)
        msg = f"{what}({name}=...) needs a coordinate of one dimension; there are {there}"
        raise SchemaError(msg)
    index = pd.Index(coord.to_numpy())
    labels = once(name, wanted, what)
    chosen = index[index.isin(labels)]
    twice = sorted(map(str, chosen[chosen.duplicated()].unique()))
    if twice:
        msg = (
            f"{what}({name}=...) names {len(twice)} labels that several positions along {coord.dims[0]!r} "
            f"have: {twice[:_NAMED]}; choose these by a coordinate in which each is there once"
        )
        raise SchemaError(msg)
    places = np.full(len(labels), -1) if not len(chosen) else pd.Index(chosen).get_indexer(labels)
    unknown = [label for label, k in zip(labels, places, strict=True) if k < 0]
    if unknown:
        msg = (
            f"{what}({name}=...) names {len(unknown)} of {len(labels)} labels that are not among the "
            f"{len(index)} of {name!r}: {', '.join(_guess(label, index) for label in unknown[:_NAMED])}"
            f"{', ...' if len(unknown) > _NAMED else ''}; leave them out or mend their names"
        )
        raise SchemaError(msg)
    return str(coord.dims[0]), np.flatnonzero(index.isin(labels))[places]


def once(name: str, wanted: Sequence[Any], what: str) -> list[Any]:
    """
    Refuse labels that no selection can be made of.

    Parameters
    ----------
    name : str
        Of which coordinate.
    wanted : sequence
        Labels.
    what : str
        Who asks, for messages.

    Returns
    -------
    list
        The same labels.

    Raises
    ------
    SchemaError
        If there is none, one is named twice, or a single name stands for a list.
    """
    if isinstance(wanted, str) or np.ndim(np.asarray(wanted, object)) != 1:
        msg = f"{what}({name}={wanted!r}) is no list of labels; write {name}=[...]"
        raise SchemaError(msg)
    labels = pd.Index(np.asarray(wanted, object))
    twice = sorted(map(str, labels[labels.duplicated()].unique()))
    if twice:
        msg = f"{what}({name}=...) names {twice[:_NAMED]} more than once; name each label once"
        raise SchemaError(msg)
    if not len(labels):
        msg = f"{what}({name}=[]) would leave nothing; name at least one label"
        raise SchemaError(msg)
    return list(labels)


def _guess(label: Any, index: "pd.Index[Any]") -> str:
    """Name a label, and the one of the index that it may stand for."""
    names = {str(n).lower(): str(n) for n in index}
    alike = difflib.get_close_matches(str(label).lower(), names, n=1)
    return f"{str(label)!r}{f' (like {names[alike[0]]!r})' if alike else ''}"
