"""Columns of several tables as one: types are promoted, categories united, what is missing is marked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xloader.errors import SchemaError
from xloader.joined_arrays import EXACT, Int64, native
from xloader.schema import Column, categorical_column, string_column

Array = npt.NDArray[Any]

_KINDS = {
    "b": "truth values",
    "i": "numbers",
    "u": "numbers",
    "f": "numbers",
    "c": "complex numbers",
}
_KINDS |= {"M": "times", "m": "durations", "U": "text", "T": "text"}
_INFERRED = {"string": "text", "boolean": "truth values", "integer": "numbers", "empty": ""}
_INFERRED |= {"floating": "numbers", "mixed-integer-float": "numbers"}


@dataclass(frozen=True)
class Piece:
    """What one dataset has of a column."""

    name: str
    """Which dataset, for messages."""
    column: Array | None
    """Its values; None if it lacks the column."""
    attrs: Mapping[str, Any]
    """Their attributes."""
    to: Int64
    """Where each value goes in the whole; all the places of the dataset if it lacks the column."""


def stacked(name: str, pieces: Sequence[Piece], n: int) -> Column:
    """
    Put the rows of tables one below the other.

    Parameters
    ----------
    name : str
        Name of the column, for messages.
    pieces : sequence of Piece
        One for each dataset; each place of the whole is in one of them.
    n : int
        Length of the whole.

    Returns
    -------
    Column
        Missing values are NaN, or NaT; integers become float64 where some are missing.

    Raises
    ------
    SchemaError
        If datasets hold values of different kinds.
    """
    return _column(name, pieces, n, shared=False)


def united(name: str, pieces: Sequence[Piece], n: int) -> Column:
    """
    Put together what tables say of the same rows; a row of which they say different things is missing.

    Parameters
    ----------
    name : str
        Name of the column, for messages.
    pieces : sequence of Piece
        One for each dataset; places may be in several of them, those of -1 in none.
    n : int
        Length of the whole.

    Returns
    -------
    Column
        As of `stacked`.

    Raises
    ------
    SchemaError
        If datasets hold values of different kinds.
    """
    return _column(name, pieces, n, shared=True)


def _column(name: str, pieces: Sequence[Piece], n: int, *, shared: bool) -> Column:
    found = [p for p in pieces if p.column is not None]
    kinds = {p.name: _kind(p) for p in found}
    kind = _one_kind(name, {k: v for k, v in kinds.items() if v})
    dtype = _dtype(found, kinds, kind)
    out, known, clash = np.zeros(n, dtype), np.zeros(n, bool), np.zeros(n, bool)
    for p in found:
        assert p.column is not None  # of those that are not missing
        there = (p.to >= 0) & pd.notna(p.column)
        to, values = p.to[there], p.column[there].astype(dtype)
        if shared:
            seen = known[to]
            clash[to[seen]] |= out[to[seen]] != values[seen]
            to, values = to[~seen], values[~seen]
        out[to] = values
        known[to] = True
    values = _marked(name, out, ~known | clash)
    attrs = shared_attrs([p.attrs for p in found])
    ordered = bool(attrs.pop("ordered", False))
    attrs.pop("categories", None)
    vocabularies = [p.attrs.get("categories") for p in found if kinds[p.name]]
    if vocabularies and all(v is not None for v in vocabularies):
        values, named = _named(values, [list(v or ()) for v in vocabularies], ordered=ordered)
    else:
        values, named = string_column(values) if kind == "text" else (values, {})
    return values, {**attrs, **named}


def _kind(piece: Piece) -> str:
    """Return what the values of a dataset are; empty if all are missing."""
    values = np.asarray(piece.column)
    if values.dtype.kind == "f" and np.isnan(values).all():
        return ""
    if values.dtype.kind != "O":
        return _KINDS.get(values.dtype.kind, str(values.dtype))
    inferred = pd.api.types.infer_dtype(values, skipna=True)
    return _INFERRED.get(inferred, f"{inferred} objects")


def _one_kind(name: str, kinds: Mapping[str, str]) -> str:
    """Return the kind of values that all datasets have."""
    several = {kind: next(k for k, v in kinds.items() if v == kind) for kind in kinds.values()}
    if len(several) > 1:
        (a, in_a), (b, in_b), *_ = several.items()
        msg = (
            f"column {name!r} holds {a} in {in_a!r} and {b} in {in_b!r}; convert it in one of them, "
            f"such as ds.assign_coords({name}=ds[{name!r}].astype(...)), or leave it out: "
            f"ds.drop_vars({name!r})"
        )
        raise SchemaError(msg)
    return next(iter(several), "")


def _dtype(pieces: Sequence[Piece], kinds: Mapping[str, str], kind: str) -> np.dtype[Any]:
    """Return the type that holds all values that are not missing."""
    if kind in ("text", "truth values"):
        return np.dtype(bool if kind == "truth values" else object)
    types = [np.asarray(p.column).dtype for p in pieces if kinds[p.name] == kind]
    # objects of numbers are whole ones beside missing ones
    plain = [np.dtype(np.float64) if t == object and kind == "numbers" else t for t in types]
    return native(np.result_type(*plain)) if plain else np.dtype(np.float64)


def _marked(name: str, values: Array, missing: npt.NDArray[np.bool_]) -> Array:
    """Mark missing values in a type that can."""
    if not missing.any():
        return values
    if values.dtype.kind in "iu":
        kept = values[~missing]
        if kept.size and (kept.max() > EXACT or kept.min() < -EXACT):
            msg = (
                f"column {name!r} holds whole numbers up to {kept.max()} and is missing in places; float64, "
                "which marks them, tells whole numbers apart up to 2**53: make it text, or drop it"
            )
            raise SchemaError(msg)
        values = values.astype(np.float64)
    if values.dtype.kind in "mM":
        values[missing] = np.array("NaT", values.dtype)
        return values
    values = values.astype(object) if values.dtype.kind == "b" else values
    values[missing] = np.nan
    return values


def _named(values: Array, vocabularies: Sequence[list[Any]], *, ordered: bool) -> Column:
    """Return values with the categories of all datasets, in the order of first appearance."""
    all_ = list(dict.fromkeys(c for known in vocabularies for c in known))
    # an order that means something is that of all of them
    ordered = ordered and all(known == all_ for known in vocabularies)
    if values.dtype != object:
        return values, {"categories": all_, "ordered": ordered}
    categories = np.empty(len(all_), object)
    categories[:] = all_
    codes = pd.Index(categories).get_indexer(pd.Index(values, dtype=object))
    return categorical_column(codes, categories, ordered=ordered)


def shared_attrs(attrs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Return the attributes that are the same everywhere.

    Parameters
    ----------
    attrs : iterable of mapping
        Attributes of several things.

    Returns
    -------
    dict
        In the order of the first.

    Examples
    --------
    >>> shared_attrs([{"units": "bp", "of": 1}, {"units": "bp", "of": 2}])
    {'units': 'bp'}
    """
    first, *others = list(attrs) or [{}]
    return {k: v for k, v in first.items() if all(k in a and _same(v, a[k]) for a in others)}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    return bool(a == b)
