"""Contact maps written as .cool and .mcool files; pixels pass by in bands."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr
from tqdm import tqdm

from xloader import schema
from xloader.axes import Int64
from xloader.backends.cooler_writer import Bins, CoolerWriter, begin_mcool, coarsen
from xloader.backends.new_files import new_file
from xloader.errors import PlanError, SchemaError
from xloader.open import open_contacts
from xloader.open import resolutions as resolutions_of
from xloader.schema import Column
from xloader.store.layout import TILE
from xloader.store.writers import TileSource

_TILES = 256


def export_contacts(
    source: str | os.PathLike[str] | xr.Dataset,
    target: Path,
    variable: str | None,
    resolutions: Sequence[int] | None,
    *,
    overwrite: bool,
    progress: bool,
) -> Path:
    """
    Write contact maps, as `export`.

    Parameters
    ----------
    source : str, path-like or xarray.Dataset
        Contact maps.
    target : Path
        File to make.
    variable : str or None
        What to write.
    resolutions : sequence of int or None
        Bin sizes to write, in bp.
    overwrite, progress : bool
        As for `export`.

    Returns
    -------
    Path
        The file.
    """
    maps = _maps(source)
    named = {size: _variable(ds, variable) for size, ds in maps.items()}
    wanted = _wanted(maps, resolutions, target)
    with ExitStack() as open_files:
        file = open_files.enter_context(new_file(target, overwrite=overwrite))
        if target.suffix == ".mcool":
            begin_mcool(file)
        written: dict[int | None, CoolerWriter] = {}
        for size, base in wanted.items():
            group = file
            if target.suffix == ".mcool":
                group = file.create_group(f"resolutions/{size}")
            if base == size:
                written[size] = _write(group, maps[size], named[size], progress=progress)
                continue
            if base not in written:
                # what is not wanted itself goes to a file that nobody sees
                hidden = target.with_name(f".{target.name}.{base}")
                open_files.callback(hidden.unlink, missing_ok=True)
                other = open_files.enter_context(h5py.File(hidden, "w"))
                written[base] = _write(other, maps[base], named[base], progress=progress)
            assert size is not None  # bins without a size are only written as they are
            assert base is not None
            written[size] = coarsen(written[base], group, size // base)
    return target


def _maps(source: Any) -> dict[int | None, xr.Dataset]:
    """Return what can be written, by bin size."""
    if isinstance(source, xr.Dataset):
        return {source.attrs.get("binsize"): source}
    sizes: list[int | None] = [*resolutions_of(source)]
    maps = [open_contacts(source, resolution=size, chunks=None) for size in sizes or [None]]
    return {ds.attrs.get("binsize"): ds for ds in maps}


def _variable(ds: xr.Dataset, asked: str | None) -> str:
    """Return what to write."""
    maps = [str(k) for k, v in ds.data_vars.items() if set(v.dims) == {"bin1", "bin2"}]
    stacked = [str(k) for k, v in ds.data_vars.items() if {"cell", "bin1", "bin2"} <= set(v.dims)]
    if stacked and not maps:
        msg = (
            f"a cooler holds one map, and {stacked} hold those of {ds.sizes['cell']} cells; write each "
            "by itself: its path, such as 'cells.scool::/cells/ID', or ds.isel(cell=0)"
        )
        raise SchemaError(msg)
    usual = [k for k in ("count", "prediction") if k in maps]
    name = asked or (usual or maps or [""])[0]
    if name not in maps or (asked is None and not usual and len(maps) > 1):
        msg = f"variable={asked!r} names none of the maps over bin1 and bin2; they are {maps}: choose one"
        raise SchemaError(msg)
    if ds[name].dtype.kind not in "biuf":
        msg = f"`{name}` is {ds[name].dtype}, and counts are real numbers; convert it first"
        raise SchemaError(msg)
    schema.require(ds, [f"{k}{side}" for k in ("chrom", "start", "end") for side in "12"], "export")
    if not np.array_equal(ds["bin1"].values, ds["bin2"].values):
        msg = (
            f"a cooler is square, but this selection has {ds.sizes['bin1']} bins on bin1 and others "
            f"({ds.sizes['bin2']}) on bin2; select the same bins on both"
        )
        raise SchemaError(msg)
    return name


def _wanted(
    maps: Mapping[int | None, xr.Dataset], asked: Sequence[int] | None, target: Path
) -> dict[int | None, int | None]:
    """Return the resolutions to write, finest first, and the one that each is made of."""
    there = sorted(size for size in maps if size is not None)
    if asked is None and not there:
        if target.suffix == ".mcool":
            msg = "bins without a single size are no resolution of an .mcool; write a .cool"
            raise PlanError(msg)
        return {None: None}
    sizes = sorted(set(there if asked is None else map(int, asked)))
    if not sizes or (target.suffix == ".cool" and len(sizes) > 1):
        msg = (
            f"{target.name!r} cannot hold {len(sizes)} resolutions ({sizes} bp): a .cool holds one, an "
            ".mcool at least one; choose `resolutions` or the ending"
        )
        raise PlanError(msg)
    wanted: dict[int | None, int | None] = {}
    for size in sizes:
        made_of = [
            b for b in {*there, *wanted} if b is not None and 0 < b <= size and size % b == 0
        ]
        if not made_of:
            msg = (
                f"resolution {size} is no multiple of any that there is ({there or 'none'} bp); choose "
                "multiples"
            )
            raise PlanError(msg)
        wanted[size] = size if size in there else max(made_of)
    return wanted


def _write(group: h5py.Group, ds: xr.Dataset, name: str, *, progress: bool) -> CoolerWriter:
    """Write one map as it is."""
    bins, place = _bins(ds)
    variable = ds[name].variable.transpose("bin1", "bin2")
    symmetric = ds.attrs.get("storage_mode", "symmetric-upper") != "square"
    dtype = variable.dtype.newbyteorder("=")
    if dtype.itemsize < 4:  # cooler knows no narrower ones
        dtype = np.result_type(dtype, np.float32 if dtype.kind == "f" else np.int32)
    assembly = str(ds.attrs.get("assembly", "unknown"))
    out = CoolerWriter(group, bins, dtype, symmetric=symmetric, assembly=assembly)
    with tqdm(total=ds.sizes["bin1"], desc="export", unit="bin", disable=not progress) as bar:
        for n_rows, (row, column, count) in _bands(variable, symmetric=symmetric):
            out.append(place[row], place[column], count)
            bar.update(n_rows)
    out.close()
    return out


def _bands(
    variable: xr.Variable, *, symmetric: bool
) -> Iterator[tuple[int, tuple[Int64, Int64, npt.NDArray[Any]]]]:
    """Yield the pixels of some rows after the other, in order, and the number of these rows."""
    source = TileSource(variable)
    n = variable.shape[0]
    n_tiles = -(-n // TILE)
    for top in range(0, n, source.stripe):
        rows = range(top // TILE, min((top + source.stripe) // TILE, n_tiles))
        wanted = [(i, j) for i in rows for j in range(i if symmetric else 0, n_tiles)]
        parts = [(np.zeros(0, np.int64),) * 2 + (np.zeros(0, source.dtype),)]
        for ij, tiles in source.tiles(np.array(wanted), max(_TILES, len(rows))):
            k, a, b = np.nonzero(tiles)
            row, column, count = ij[k, 0] * TILE + a, ij[k, 1] * TILE + b, tiles[k, a, b]
            keep = count == count  # noqa: PLR0124 # NaN is no pixel, also beyond the map
            if symmetric:
                keep &= row <= column
            parts.append((row[keep], column[keep], count[keep]))
        row, column, count = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.lexsort((column, row))
        yield min(top + source.stripe, n) - top, (row[order], column[order], count[order])


def _bins(ds: xr.Dataset) -> tuple[Bins, Int64]:
    """Return the bins of the whole genome, and where those of a map are among them."""
    chrom, start, end = (ds[f"{k}1"].values for k in ("chrom", "start", "end"))
    names, lengths = _chromosomes(ds)
    code = {name: k for k, name in enumerate(names)}
    codes = np.array([code[str(name)] for name in chrom], np.int64)
    start, end = start.astype(np.int64), end.astype(np.int64)
    binsize = ds.attrs.get("binsize")
    if binsize is None:
        whole = Bins(names, lengths, codes, start, end, None, {})
        place = np.arange(len(start))
    else:
        whole = Bins.regular(names, lengths, int(binsize))
        place = np.minimum(whole.first[codes] + start // binsize, len(whole) - 1)
    fits = np.array_equal(whole.start[place], start) and np.array_equal(whole.end[place], end)
    if not fits or (np.diff(place) <= 0).any() or (np.diff(codes) < 0).any():
        msg = (
            f"the bins are not those of a genome with {'variable bins' if binsize is None else binsize} "
            "bp, one after the other; keep whole bins, and put them in order with ds.sortby"
        )
        raise SchemaError(msg)
    columns: dict[str, Column] = {}
    for key, coord in ds.coords.items():
        name = str(key)[:-1]
        if str(key)[-1] == "1" and coord.dims == ("bin1",) and name not in _PLACES:
            values = coord.values
            if len(place) < len(whole):
                if values.dtype.kind != "f":  # nothing says that a value is missing
                    continue
                values = np.full(len(whole), np.nan, values.dtype)
                values[place] = coord.values
            columns[name] = values, dict(coord.attrs)
    return replace(whole, columns=columns), place


_PLACES = frozenset({"bin", "chrom", "start", "end"})


def _chromosomes(ds: xr.Dataset) -> tuple[list[str], Int64]:
    """Return names and lengths of all chromosomes, in order."""
    chrom, end = ds["chrom1"].values, ds["end1"].values
    present = list(dict.fromkeys(map(str, chrom)))
    names = list(map(str, ds.attrs.get("chroms", ())))
    lengths = ds.attrs.get("chrom_lengths", ())
    if set(present) <= set(names) and len(names) == len(lengths):
        return names, np.asarray(lengths, np.int64)
    return present, np.array([int(end[chrom == name].max()) for name in present], np.int64)
