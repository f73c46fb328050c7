"""Cells that are appended to a store: they must be what the store holds, and its arrays stay as they are."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xloader.errors import SchemaError

PREFIX = "~appended-"
"""Group of rows that were appended; a variable has no such name."""


def conform(ds: xr.Dataset, old: xr.Dataset, store: Path) -> xr.Dataset:
    """
    Return cells as a store can take them after its own.

    Parameters
    ----------
    ds : xarray.Dataset
        Cells to append.
    old : xarray.Dataset
        The opened store.
    store : Path
        Its directory, for messages.

    Returns
    -------
    xarray.Dataset
        Values in the types of the store, where these hold every value of theirs.

    Raises
    ------
    SchemaError
        If variables, labels or features are others, or a type is wider than that of the store.
    """
    where = f"cannot append to {str(store)!r}"
    _same_names(ds.data_vars, old.data_vars, f"{where}: variables")
    _same_names(ds.coords, old.coords, f"{where}: coordinates")
    _new_cells(ds, old, where)
    if "dataset_name" in old.coords and "dataset" in ds.coords:
        strange = sorted(set(ds["dataset"].values) - set(old["dataset_name"].values), key=str)
        if strange:
            msg = (
                f"{where}: cells are of the datasets {strange[:8]}, and the store knows which genes of "
                f"{old['dataset_name'].values.tolist()[:8]} were measured; convert all files again, with xl.concat"
            )
            raise SchemaError(msg)
    cast: dict[Any, Any] = {}
    for name, wanted in old.variables.items():
        found = ds[name].variable
        if found.dims != wanted.dims:
            msg = f"{where}: `{name}` has dimensions {found.dims}, and {wanted.dims} there; transpose it"
            raise SchemaError(msg)
        shapes = [{d: n for d, n in v.sizes.items() if d != "cell"} for v in (found, wanted)]
        if shapes[0] != shapes[1]:
            msg = f"{where}: `{name}` is {shapes[0]}, and {shapes[1]} there; select the same features first"
            raise SchemaError(msg)
        if "cell" not in wanted.dims:
            _same_values(found, wanted, f"{where}: `{name}`", is_index=name in wanted.dims)
        elif found.dtype != wanted.dtype:
            cast[name] = _cast(found, wanted, f"{where}: `{name}`")
    return ds.assign({k: v for k, v in cast.items() if k in ds.data_vars}).assign_coords(
        {k: v for k, v in cast.items() if k in ds.coords}
    )


def _new_cells(ds: xr.Dataset, old: xr.Dataset, where: str) -> None:
    """Refuse cells that are there: an append that was done already would be done twice."""
    if "cell" in ds.coords and "cell" in old.coords:
        there = ds.indexes["cell"].isin(old.indexes["cell"])
        if there.any():
            first = ds.indexes["cell"][there][0]
            msg = (
                f"{where}: {there.sum()} of {len(there)} cells are there already, such as {first!r}; select those "
                "that are new, or give them names of their own with assign_coords(cell=...)"
            )
            raise SchemaError(msg)


def _same_names(found: Iterable[Any], wanted: Iterable[Any], what: str) -> None:
    lost, new = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if lost or new:
        msg = (
            f"{what} are not those of the store: {lost} are missing and {new} are new; drop what is new "
            "(drop_vars), and add what is missing (assign, assign_coords)"
        )
        raise SchemaError(msg)


def _same_values(found: xr.Variable, wanted: xr.Variable, what: str, *, is_index: bool) -> None:
    if found.equals(wanted):  # type: ignore[no-untyped-call]
        return
    advice = "bring the same features in the same order, with sel or isel"
    if not is_index:
        advice = "if those of the store hold for the new cells too, assign them (assign_coords)"
    theirs, ours = (np.ravel(v.values).tolist() for v in (found, wanted))
    pairs = enumerate(zip(theirs, ours, strict=True))
    k = next(k for k, (a, b) in pairs if a != b and (a == a or b == b))  # noqa: PLR0124 # not both NaN
    msg = (
        f"{what} has other values than the store: {len({*ours} - {*theirs})} of its {len(ours)} are missing, "
        f"{len({*theirs} - {*ours})} are new, and number {k} is {theirs[k]!r} and not {ours[k]!r}; {advice}"
    )
    raise SchemaError(msg)


def _cast(found: xr.Variable, wanted: xr.Variable, what: str) -> xr.Variable:
    """Return a variable in the type of the store, unless that may not hold a value of it."""
    texts = [v.dtype.kind in "OUT" for v in (found, wanted)]
    if all(texts):
        return found
    if any(texts) or not np.can_cast(found.dtype, wanted.dtype, "safe"):
        msg = (
            f"{what} is of type {found.dtype}, which the {wanted.dtype} of the store may not hold exactly; if it "
            f"does, append it as astype({str(wanted.dtype)!r}), or convert the store again from all sources"
        )
        raise SchemaError(msg)
    if found._in_memory:
        return found.astype(wanted.dtype)
    return (found if found.chunks else found.chunk({})).astype(wanted.dtype)
