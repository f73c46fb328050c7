"""Sources of the same cells: where each cell of one lies in the others, and which lack it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xloader import schema
from xloader.axes import Windows
from xloader.errors import SchemaError
from xloader.padding import nothing

_SHOWN = 3


def align(
    sources: Mapping[str, xr.Dataset], join: str
) -> tuple[dict[str, xr.Dataset], dict[str, xr.Variable]]:
    """
    Give sources of single cells the same cells, or say where theirs are.

    Parameters
    ----------
    sources : mapping of str to xarray.Dataset
        Those with a dimension `cell` are aligned by its labels, if there are several; others stay as
        they are.
    join : str
        ``"inner"`` keeps the cells that all have; anything else all cells of any.

    Returns
    -------
    aligned : dict of str to xarray.Dataset
        A source whose cells are all cells, in the same order, keeps its `cell`, without labels; another
        one has a dimension ``<name>_cell`` with labels. Coordinates of cells are called
        ``<name>_<coordinate>`` and lie along `cell`, with NaN, NaT or None where the source lacks a cell.
    coords : dict of str to xarray.Variable
        `cell` and, of each source, ``<name>_present (cell)``; nothing if not several have cells.

    Raises
    ------
    SchemaError
        If cells have no names, or one has them twice, or no cell is in two sources.
    """
    having = {name: _labels(name, ds) for name, ds in sources.items() if "cell" in ds.dims}
    if len(having) < 2:
        return dict(sources), {}
    first, *others = having
    everything = having[first]
    for name in others:
        if not len(everything.intersection(having[name])):
            msg = (
                f"no cell of {name!r} is in the sources before it: its names are like "
                f"{having[name][:_SHOWN].tolist()}, theirs like {everything[:_SHOWN].tolist()}; give the same cells the "
                "same names with assign_coords(cell=...)"
            )
            raise SchemaError(msg)
        keep = {"inner": everything.intersection}.get(join, everything.union)
        everything = keep(having[name], sort=False)
    aligned, coords = dict(sources), {"cell": xr.Variable("cell", np.array(everything, object))}
    for name, labels in having.items():
        ds = sources[name]
        if join == "inner" and len(labels) != len(everything):
            at = np.flatnonzero(labels.isin(everything))
            ds = ds.isel(cell=at)
        same = _labels(name, ds).equals(everything)
        dims = {} if same else {"cell": f"{name}_cell"}
        beside = [sources[other] for other in having if other != name]
        dims |= {str(d): f"{name}_{d}" for d in ds.dims if _clashes(ds, str(d), beside)}
        aligned[name] = _renamed(name, ds, dims, everything)
        coords[f"{name}_present"] = xr.Variable("cell", everything.isin(labels))
    return aligned, coords


def _labels(name: str, ds: xr.Dataset) -> "pd.Index[Any]":
    if "cell" not in ds.coords:
        msg = f"source {name!r} has cells without names; give it a coordinate `cell`"
        raise SchemaError(msg)
    labels = pd.Index(np.asarray(ds["cell"].values, object), dtype=object)
    twice = labels[labels.duplicated()].unique()
    if len(twice):
        msg = (
            f"{len(twice)} cells of source {name!r} have the same name as another, such as "
            f"{twice[:_SHOWN].tolist()}; cells go together by name: make names unique with assign_coords(cell=...)"
        )
        raise SchemaError(msg)
    return labels


def _clashes(ds: xr.Dataset, dim: str, others: Sequence[xr.Dataset]) -> bool:
    """Say whether another source has other features along a dimension of the same name."""
    if dim in ("cell", "bin1", "bin2"):
        return False
    labels = ds.indexes.get(dim, pd.RangeIndex(ds.sizes[dim]))
    return any(
        not labels.equals(other.indexes.get(dim, pd.RangeIndex(other.sizes[dim])))
        for other in others
        if dim in other.dims
    )


def _renamed(
    name: str, ds: xr.Dataset, dims: Mapping[str, str], everything: "pd.Index[Any]"
) -> xr.Dataset:
    """Return a source with names of its own for its dimensions, and for labels of cells and features."""
    variables = {str(k): on_dims(v.variable, dims) for k, v in ds.data_vars.items()}
    coords = {}
    at = _labels(name, ds).get_indexer(everything)
    for key, v in ds.coords.items():
        if key == "cell" and "cell" not in dims:
            continue
        own = v.dims == ("cell",) or not dims.keys().isdisjoint(map(str, v.dims))
        new = f"{name}_{key}" if own else str(key)
        if v.dims == ("cell",) and "cell" in dims and key not in ("cell", "row"):
            mask = str(key).endswith("_present") and v.dtype == bool
            taken = (at >= 0) & v.to_numpy()[at] if mask else _taken(v.values, at)
            coords[new] = xr.Variable("cell", taken, v.attrs)
        else:
            coords[new] = on_dims(v.variable, dims)
    return schema.keep_labels(xr.Dataset(variables, coords, ds.attrs))


def _taken(values: npt.NDArray[Any], at: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
    """Return labels in another order, missing at -1."""
    lacking = at < 0
    if lacking.any() and values.dtype.kind not in "fcmM":
        numbers = values.dtype.kind in "biu"
        values = values.astype(np.float64 if numbers else object)
    out: npt.NDArray[Any] = values[at]
    out[lacking] = nothing(values.dtype)
    return out


def on_dims(variable: xr.Variable, dims: Mapping[str, str]) -> xr.Variable:
    """
    Return a variable with other names of dimensions.

    Parameters
    ----------
    variable : xarray.Variable
        Any variable.
    dims : mapping of str to str
        New names of some dimensions, by the old ones.

    Returns
    -------
    xarray.Variable
        Shares its values.
    """
    kept = variable.copy(deep=False).to_base_variable()
    kept.dims = tuple(dims.get(str(d), d) for d in variable.dims)
    return kept


def is_aligned(ds: xr.Dataset) -> bool:
    """
    Say whether a Dataset is made of several sources of the same cells.

    Parameters
    ----------
    ds : xarray.Dataset
        Any Dataset.

    Returns
    -------
    bool
        Whether it says which cells a source has.
    """
    return any(str(k).endswith("_present") and v.dims == ("cell",) for k, v in ds.coords.items())


def _check_links(ds: xr.Dataset) -> None:
    """Refuse cells of a source that cannot be found, since they were renamed or left out after merging."""
    for dim in map(str, ds.dims):
        source = dim.removesuffix("_cell")
        if source == dim or dim not in ds.coords:
            continue
        if f"{source}_present" not in ds.coords:
            msg = (
                f"{dim!r} are the cells of a source, but what says which of `cell` it has, "
                f"`{source}_present`, is not there; leave both as xl.merge made them, or drop_dims({dim!r})"
            )
            raise SchemaError(msg)
        there = ds[f"{source}_present"].to_numpy().astype(bool)
        lost = np.flatnonzero(there & ~ds.indexes["cell"].isin(ds.indexes[dim]))
        if len(lost):
            msg = (
                f"{len(lost)} cells are said to be in {source!r}, but are not along {dim!r}, such as "
                f"{ds['cell'].to_numpy()[lost[0]]!r}; select cells and change their names before xl.merge, or "
                "select them along `cell` alone"
            )
            raise SchemaError(msg)


def link_cells(ds: xr.Dataset, windows: Windows) -> Windows:
    """
    Let windows of a cell cut the same cell out of sources that have others, or in another order.

    Parameters
    ----------
    ds : xarray.Dataset
        What `xloader.merge` returned, or a selection of it.
    windows : Windows
        Windows that are one position along `cell`.

    Returns
    -------
    Windows
        With the dimensions of the other sources, along which they lack cells that these do not have.

    Raises
    ------
    SchemaError
        If cells that a source has are not found, since they were renamed or left out after merging.
    """
    if "cell" not in windows.points:
        return windows
    _check_links(ds)
    for dim in map(str, ds.dims):
        if (
            dim.endswith("_cell")
            and dim in ds.coords
            and f"{dim.removesuffix('_cell')}_present" in ds
        ):
            labels = pd.Index(ds[dim].values, dtype=object)
            places: npt.NDArray[np.int64] = labels.get_indexer(ds["cell"].values).astype(np.int64)
            windows = windows.with_linked(dim, windows.dims.index("cell"), places, 1, point=True)
    return windows
