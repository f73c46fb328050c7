"""Opening any supported file or store; what it is, is found out from its structure."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendEntrypoint

from xloader import genome
from xloader.backends import hic, mtx, npz
from xloader.backends import store as store_backend
from xloader.errors import SchemaError
from xloader.store.layout import missing, read_root, root_attributes
from xloader.store.places import Url, place_of

_OPENERS = {
    "contacts": "xl.open_contacts",
    "cells": "xl.open_cells",
    "arrays": "xr.open_dataset(path, engine='npz')",
}


def identify(path: str | os.PathLike[str]) -> tuple[str, str]:
    """
    Say what is at a path.

    Parameters
    ----------
    path : str or path-like
        A file, ``file::group`` or the directory or URL of a store.

    Returns
    -------
    tuple of str
        The xarray engine that opens it, and ``"contacts"`` or ``"cells"``.

    Raises
    ------
    ReadError
        If nothing is there, or it is no whole HDF5 file or store.
    SchemaError
        If it is something else.
    """
    place = place_of(path)
    if isinstance(place, Url):
        return "xloader", str(read_root(place)["kind"])
    name, _, group = str(place).partition("::")
    file = Path(name)
    if not file.exists():
        raise missing(file)
    if mtx.is_mtx(file):
        return "tenx", "cells"
    if npz.is_npz(file):
        return "npz", npz.kind_of(file)
    if file.is_dir():
        return _identify_zarr(file, group) or ("xloader", str(read_root(file)["kind"]))
    if hic.is_hic(file):
        return "hic", "contacts"
    return _of_hdf5(file, group)


def _of_hdf5(file: Path, group: str) -> tuple[str, str]:
    from xloader.backends import loom, tenx  # stores do without h5py
    from xloader.backends.anndata import engine_of
    from xloader.backends.hdf5 import HDF5File

    tree = HDF5File(str(file))
    with tree.reading() as opened:
        found = opened.get(group or "/")
        groups = set(found) if hasattr(found, "keys") else set()
        root = sorted(opened)
        # thousands of cells need not be looked into
        is_map = groups & {"bins", "resolutions", "cells"}
        engine = None if is_map else engine_of(tree, group)
    if engine is not None:
        return engine, "cells"
    is_cooler = {"bins", "pixels"} <= groups or groups & {"resolutions", "cells"}
    are_zooms = bool(groups) and all(map(str.isdecimal, groups))
    if is_cooler or are_zooms or group.rstrip("/").endswith("cells"):
        return "cooler", "contacts"
    with tree.reading() as opened:
        if tenx.is_tenx(opened):
            return "tenx", "cells"
        if loom.is_loom(opened):
            return "loom", "cells"
    if group and not groups:
        msg = f"{str(file)!r} has no group {group!r}; at its root it has {root}"
        raise SchemaError(msg)
    msg = (
        f"{str(file)!r} is HDF5, but neither a cooler (groups bins, pixels, indexes or resolutions) nor "
        f"AnnData (obs, var), 10x (matrix, or one group per genome) or loom (matrix, row_attrs, "
        f"col_attrs): it has {sorted(groups)}"
    )
    raise SchemaError(msg)


def _identify_zarr(folder: Path, group: str) -> tuple[str, str] | None:
    """Say which zarr store of another tool a directory is; None for a store of ours, or anything else."""
    if "xloader" in root_attributes(folder):
        return None
    from xloader.backends.anndata import engine_of
    from xloader.backends.zarr_tree import ZarrTree, is_zarr

    engine = engine_of(ZarrTree(str(folder)), group) if is_zarr(folder) else None
    if engine is None and group:
        msg = f"{str(folder)!r} has no AnnData at {group!r}; it has {sorted(p.name for p in folder.iterdir())}"
        raise SchemaError(msg)
    return None if engine is None else (engine, "cells")


def _engine(path: str | os.PathLike[str], kind: str) -> str | type[BackendEntrypoint]:
    engine, found = identify(path)
    if found != kind:
        msg = f"{str(place_of(path))!r} holds {found}, not {kind}; open it with {_OPENERS[found]}"
        raise SchemaError(msg)
    # by name, xarray would first import every backend that is installed
    return store_backend.StoreBackendEntrypoint if engine == "xloader" else engine


def _text(path: str | os.PathLike[str]) -> str:
    return os.fsdecode(path).removeprefix("file://")


def open_contacts(
    path: str | os.PathLike[str],
    *,
    resolution: int | None = None,
    view: Any = None,
    chunks: Mapping[str, int] | str | int | None = {},  # xarray's own word for "as stored"
) -> xr.Dataset:
    """
    Open a contact map as a labelled, lazy Dataset.

    Parameters
    ----------
    path : str or path-like
        A ``.cool``, ``.mcool``, ``.scool`` or ``.hic`` file, ``file::group`` (such as
        ``cells.scool::/cells/ID``), or a store made by `convert`: its directory, or any URL of it
        that fsspec opens.
    resolution : int, optional
        Bin size, in bp. Default: the only one there is.
    view : str, sequence of str, path-like or pandas.DataFrame, optional
        Chromosomes (``"chr2"``) or regions (``"chr2:1,000,000-2,000,000"``, bp, 0-based half-open;
        or a BED file or data frame of them) to keep, on both axes, in this order. Default: everything.
    chunks : dict, int, "auto" or None, optional
        As for `xarray.open_dataset`. Default ``{}``: dask arrays in pieces that suit the file; None:
        xarray's own lazy arrays.

    Returns
    -------
    xarray.Dataset
        `count (bin1, bin2)`, or of all cells of a ``.scool`` file `count (cell, bin1, bin2)`, with
        `chrom1`, `start1`, `end1`, balancing vectors, and the same on `bin2`.

    Raises
    ------
    ReadError
        If the file is missing or damaged, or a conversion was interrupted.
    SchemaError
        If it holds something else, or lacks this resolution, chromosome or region.
    """
    engine = _engine(path, "contacts")
    ds = xr.open_dataset(_text(path), engine=engine, chunks=chunks, resolution=resolution)
    if view is None:
        return ds
    bins = genome.bins_of(ds, "1")
    try:
        regions = genome.as_table(view, genome.ends_of(bins))
    except SchemaError as e:
        msg = f"{_text(path)!r}, view: {e}"
        raise SchemaError(msg) from e
    if not len(regions):
        msg = "view=[] keeps nothing; name chromosomes or regions, or leave it out"
        raise SchemaError(msg)
    places = bins.groupby("chrom", sort=False).indices
    start, end = bins["start"].to_numpy(), bins["end"].to_numpy()
    parts = []
    for chrom, low, high in regions.itertuples(index=False):
        at = places[chrom]
        parts.append(at[(start[at] < high) & (end[at] > low)])
    kept = np.concatenate(parts)
    if len(np.unique(kept)) != len(kept):
        msg = f"the regions of view={view} overlap; a view holds each bin at most once"
        raise SchemaError(msg)
    return ds.isel(bin1=kept, bin2=kept)


def open_cells(
    path: str | os.PathLike[str],
    *,
    chunks: Mapping[str, int] | str | int | None = {},  # xarray's own word for "as stored"
) -> xr.Dataset:
    """
    Open a cell-by-gene array as a labelled, lazy Dataset.

    Parameters
    ----------
    path : str or path-like
        An ``.h5ad`` or ``.h5mu`` file, the directory of AnnData or MuData in zarr (v2 or v3) or of a
        collection made by annbatch, ``path::group`` (such as ``x.h5mu::/mod/rna``); a 10x ``.h5`` file
        (``file.h5::genome`` for one of several genomes of Cell Ranger 2), or a folder of `matrix.mtx`
        with its barcodes and features; a ``.loom`` file; an ``.npz`` file or folder of ``.npy`` files
        that name their dimensions; or a store made by
        `convert`: its directory, or any URL of it that fsspec opens.
    chunks : dict, int, "auto" or None, optional
        As for `xarray.open_dataset`. Default ``{}``: dask arrays in pieces that suit the file; None:
        xarray's own lazy arrays.

    Returns
    -------
    xarray.Dataset
        `X (cell, gene)`, layers and embeddings; columns of `obs` and `var` as coordinates.

    Raises
    ------
    ReadError
        If the file is missing or damaged, or a conversion was interrupted.
    SchemaError
        If it holds something else.
    """
    return xr.open_dataset(_text(path), engine=_engine(path, "cells"), chunks=chunks)


def resolutions(path: str | os.PathLike[str]) -> list[int]:
    """
    List the resolutions of a file or store of contact maps.

    Parameters
    ----------
    path : str or path-like
        As for `open_contacts`.

    Returns
    -------
    list of int
        Bin sizes, in bp, increasing; empty for variable bins.

    Raises
    ------
    ReadError
        If the file is missing or damaged.
    SchemaError
        If it holds something else.
    """
    engine = _engine(path, "contacts")
    if engine is store_backend.StoreBackendEntrypoint:
        return store_backend.resolutions(path)
    if engine == "hic":
        return hic.resolutions(_text(path))
    from xloader.backends.cooler_groups import coolers
    from xloader.backends.hdf5 import HDF5File

    name, _, group = _text(path).partition("::")
    file = HDF5File(name)
    with file.reading():
        return [size for size in coolers(file, "/" + group.strip("/")) if size is not None]
