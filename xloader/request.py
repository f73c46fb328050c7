"""What a user asks of a Loader, checked and turned into windows, orders and variables."""

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader import axes, schema, selectors
from xloader import windows as win
from xloader.alignment import is_aligned, link_cells
from xloader.axes import Region, Windows
from xloader.contact_bins import chromosomes, contact_bins
from xloader.errors import PlanError, SchemaError
from xloader.joined import concat
from xloader.linking import link
from xloader.orders import Asked, Custom, Sequential, Shuffled, Uniform
from xloader.plan import Order, Remainder
from xloader.source import Source
from xloader.together import merge
from xloader.visits import Blocks, even_blocks, group
from xloader.windows import Shape

_EACH_CELL = {"cell": 1}


def resolve_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """
    Return which part of each global batch is ours.

    Parameters
    ----------
    rank, world_size : int or None
        As the user gave them; both None for those of ``torch.distributed``, if it was initialised,
        else the environment's ``RANK`` and ``WORLD_SIZE``, else one process.

    Returns
    -------
    tuple of int
        Rank and world size.

    Raises
    ------
    PlanError
        If only one of them is given, or they are no numbers.
    """
    if (rank is None) != (world_size is None):
        msg = f"rank={rank} and world_size={world_size} belong together; give both or neither"
        raise PlanError(msg)
    if rank is not None and world_size is not None:
        return rank, world_size
    distributed: Any = sys.modules.get("torch.distributed")  # whoever initialised it imported it
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    given = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
    if None in given:  # one alone says nothing
        return 0, 1
    try:
        return int(given[0] or ""), int(given[1] or "")
    except ValueError as e:
        msg = (
            f"the environment has RANK={given[0]!r} and WORLD_SIZE={given[1]!r}, which are no numbers; "
            "mend or unset them, or pass rank= and world_size="
        )
        raise PlanError(msg) from e


_ORDERS: dict[str, Order] = {
    "sequential": Sequential(),
    "shuffled": Shuffled(),
    "uniform": Uniform(),
}


def resolve_order(order: Any, ds: xr.Dataset, windows: Windows, *, shuffle: bool) -> Order:
    """
    Return what an epoch serves, and in which order.

    Parameters
    ----------
    order : str, Asked, Order, callable or None
        As the user gave it.
    ds : xarray.Dataset
        Where labels are.
    windows : Windows
        Where samples lie.
    shuffle : bool
        What an order of None means.

    Returns
    -------
    Order
        For the plan.

    Raises
    ------
    PlanError
        If there is no such order, both are given, or values do not fit the samples.
    """
    if order is None:
        return Shuffled() if shuffle else Sequential()
    if shuffle:
        msg = "`order` and `shuffle` both say in which order samples come; leave out `shuffle`"
        raise PlanError(msg)
    if isinstance(order, Order):
        return order
    if isinstance(order, Asked):
        if isinstance(order.by, str):
            return order.make(sample_values(ds, windows, order.by), repr(order.by))
        values = np.asarray(order.by)
        if values.shape != (len(windows),):
            msg = (
                f"one value for each of {len(windows)} samples is needed, not shape {values.shape}"
            )
            raise PlanError(msg)
        return order.make(values, "given")
    if isinstance(order, str) and order in _ORDERS:
        return _ORDERS[order]
    if callable(order):
        return Custom(order)
    msg = (
        f"order={order!r} is unknown; choose one of {list(_ORDERS)}, xl.orders.weighted(...), balanced(...) "
        "or grouped(...), or a function of (plan, rng) that returns sample numbers"
    )
    raise PlanError(msg)


def sample_values(
    ds: xr.Dataset, windows: Windows, name: str, epoch: int | None = None
) -> npt.NDArray[Any]:
    """
    Return the value of a coordinate for each sample: for windows, that of their first bin.

    Parameters
    ----------
    ds : xarray.Dataset
        Where the coordinate is.
    windows : Windows
        Where samples lie.
    name : str
        Name of a coordinate along one of the windowed dimensions.
    epoch : int, optional
        Epoch that shifts windows. Default: where they were drawn.

    Returns
    -------
    ndarray, shape (n_samples,)
        Its values.

    Raises
    ------
    SchemaError
        If there is no such coordinate, or it lies along another dimension.
    """
    found = [str(c) for c, v in ds.coords.items() if v.ndim == 1 and v.dims[0] in windows.dims]
    if name not in found:
        msg = f"{name!r} is no coordinate along {windows.dims}; there are {sorted(found)}"
        raise SchemaError(msg)
    values = np.asarray(ds.variables[name])
    if windows.starts is None:
        return values
    first, _ = windows.shown_of(np.arange(len(windows)), epoch)
    return np.asarray(values[first[:, windows.dims.index(str(ds.variables[name].dims[0]))]])


def resolve_variables(ds: xr.Dataset, names: Sequence[str] | None) -> tuple[str, ...]:
    """
    Return the data variables to deliver.

    Parameters
    ----------
    ds : xarray.Dataset
        Where they are.
    names : sequence of str or None
        As the user gave them; None for all.

    Returns
    -------
    tuple of str
        At least one.

    Raises
    ------
    SchemaError
        If one does not exist; the message lists those there are.
    """
    if isinstance(names, str):
        msg = f"variables={names!r} is one name; write variables=[{names!r}]"
        raise SchemaError(msg)
    there = [str(v) for v in ds.data_vars]
    unknown = [n for n in names or () if n not in there]
    if unknown or not there or names == []:
        msg = f"variables {unknown or 'none'} cannot be delivered; the Dataset has {there}"
        raise SchemaError(msg)
    return tuple(there if names is None else names)


def first_labels(ds: xr.Dataset, windows: Windows) -> xr.Dataset:
    """
    Return the coordinates at the places where windows begin.

    Parameters
    ----------
    ds : xarray.Dataset
        What is read.
    windows : Windows
        Where windows lie.

    Returns
    -------
    xarray.Dataset
        Coordinates alone, each place once along each dimension.
    """
    if windows.starts is None:  # rows begin everywhere
        return ds.coords.to_dataset()
    starts = windows.starts_of(np.arange(len(windows)))
    places = {d: np.unique(starts[:, k]) for k, d in enumerate(windows.dims)}
    return ds.coords.to_dataset().isel(places)


def _as_one(source: Any) -> Any:
    """Put several sources together: cells of a list below each other, what has names side by side."""
    if isinstance(source, list | tuple):
        return concat(source)
    if isinstance(source, Mapping) and not isinstance(source, xr.Dataset):
        return merge(source)
    return source


def _as_dataset(source: Any) -> Any:
    """Give a DataArray the form that everything else has."""
    if not isinstance(source, xr.DataArray):
        return source
    return source.to_dataset(name="data" if source.name is None else source.name)


def draw_windows(
    source: Any,
    input_dims: Mapping[str, int] | None,
    input_overlap: Mapping[str, int] | None,
    windows: Shape | None,
    remainder: Remainder,
    seed: int,
) -> tuple[xr.Dataset, Windows]:
    """
    Return the Dataset that is read and where its windows lie.

    Parameters
    ----------
    source : xarray.Dataset, xarray.DataArray, list, mapping or xbatcher.BatchGenerator
        As the user gave it.
    input_dims, input_overlap : mapping of str to int or None
        In xbatcher's words.
    windows : Shape or None
        Contact windows.
    remainder : {"keep", "drop", "pad"}
        What becomes of the end of a region.
    seed : int
        Seed of shifted windows.

    Returns
    -------
    tuple of xarray.Dataset and Windows
        Nothing has been read.

    Raises
    ------
    PlanError
        If these windows are impossible or the selection is empty.
    SchemaError
        If the source is no Dataset or lacks the labels of a contact map.
    """
    source = _as_one(source)
    ds, drawn = _draw(source, input_dims, input_overlap, windows, remainder, seed)
    drawn = link(ds, drawn, remainder)
    if windows is not None and _by_cell(ds, input_dims):
        drawn = drawn.crossed("cell", ds.sizes["cell"])
    return ds, link_cells(ds, drawn)


def _by_cell(ds: xr.Dataset, input_dims: Mapping[str, int] | None) -> bool:
    """Say whether contact windows are cut of each single cell, not of all at once."""
    return input_dims == _EACH_CELL or is_aligned(ds)


def _draw(
    source: Any,
    input_dims: Mapping[str, int] | None,
    input_overlap: Mapping[str, int] | None,
    windows: Shape | None,
    remainder: Remainder,
    seed: int,
) -> tuple[xr.Dataset, Windows]:
    given = [k for k, v in (("input_dims", input_dims), ("windows", windows)) if v is not None]
    if selectors.is_generator(source):
        if given or input_overlap is not None:
            msg = f"a BatchGenerator brings its own windows; leave out {given or ['input_overlap']}"
            raise PlanError(msg)
        return _as_dataset(source.ds), selectors.from_generator(source)
    source = _as_dataset(source)
    if not isinstance(source, xr.Dataset):
        msg = (
            f"a Loader reads a Dataset, not {type(source).__name__}; open files with "
            "xl.open_contacts or xl.open_cells first"
        )
        raise SchemaError(msg)
    empty = [str(d) for d, n in source.sizes.items() if n == 0]
    if empty:
        msg = f"the selection is empty along {empty}: {dict(source.sizes)}; select something"
        raise PlanError(msg)
    if windows is not None:
        each = input_dims == _EACH_CELL and "cell" in source.dims
        if (given != ["windows"] and not each) or input_overlap is not None:
            msg = (
                "`windows` and `input_dims`/`input_overlap` both say where windows lie; give one, or "
                "beside `windows`, for maps of single cells, input_dims={'cell': 1}"
            )
            raise PlanError(msg)
        asked: object = windows
        if not isinstance(asked, Shape):
            msg = (
                f"`windows` is {type(asked).__name__}; ask with one of xl.windows, such as "
                "xl.windows.diagonal(size=64)"
            )
            raise PlanError(msg)
        return source, asked.draw(contact_bins(source), remainder=remainder, seed=seed)
    if input_dims is None:
        if schema.kind(source) != "cells":
            msg = (
                f"say what a sample is: `input_dims`, such as {dict(source.sizes)} for one window "
                "of everything, or for contacts `windows=xl.windows.diagonal(size=...)`"
            )
            raise PlanError(msg)
        input_dims = _EACH_CELL
    return source, _xbatcher_windows(source, input_dims, input_overlap or {}, remainder)


def _xbatcher_windows(
    ds: xr.Dataset,
    input_dims: Mapping[str, int],
    input_overlap: Mapping[str, int],
    remainder: Remainder,
) -> Windows:
    unknown = [d for d in (*input_dims, *input_overlap) if d not in ds.sizes]
    if unknown or not input_dims:
        msg = f"input_dims {unknown} are no dimensions; the Dataset has {dict(ds.sizes)}"
        raise PlanError(msg)
    alone = sorted(set(input_overlap) - set(input_dims))
    if alone:
        msg = f"input_overlap names {alone}, which input_dims {dict(input_dims)} do not cut"
        raise PlanError(msg)
    for dim, overlap in input_overlap.items():
        if overlap >= input_dims[dim]:
            msg = (
                f"an overlap of {overlap} along {dim!r} leaves no step between windows of "
                f"{input_dims[dim]}; choose an overlap of at most {input_dims[dim] - 1}"
            )
            raise PlanError(msg)
    if len(input_dims) == 1 and set(input_dims.values()) == {1} and not input_overlap:
        (dim,) = input_dims
        return axes.rows(dim, ds.sizes[dim])
    stride = {d: n - input_overlap.get(d, 0) for d, n in input_dims.items()}
    return win.boxes(input_dims, stride, _regions(ds, list(input_dims)), remainder=remainder)


def _regions(ds: xr.Dataset, dims: Sequence[str]) -> list[tuple[Region, ...]]:
    """Return chromosomes along axes of bins, and whole axes otherwise."""
    bins = [d for d in dims if d in ("bin1", "bin2") and f"chrom{d[-1]}" in ds.coords]
    axes = [chromosomes(ds, d[-1]) if d in bins else [Region("", 0, ds.sizes[d])] for d in dims]
    parts = itertools.product(*axes)
    return [p for p in parts if len({p[dims.index(d)].name for d in bins}) <= 1]


def storage_blocks(source: Source, windows: Windows, *, in_order: bool) -> Blocks:
    """
    Group samples that lie together in storage, or runs of samples where their order must stay.

    Parameters
    ----------
    source : Source
        What is read.
    windows : Windows
        Where its samples lie.
    in_order : bool
        Whether samples are visited in their own order.

    Returns
    -------
    Blocks
        One block if everything is in memory.
    """
    keys = source.keys()
    if keys is None:
        return even_blocks(len(windows), len(windows))
    if not in_order or bool((np.diff(keys) >= 0).all()):
        return group(keys)
    per_block = max(1, round(len(windows) / max(1, len(np.unique(keys)))))
    return even_blocks(len(windows), per_block)
