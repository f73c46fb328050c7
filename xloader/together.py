"""Several sources as one Dataset: maps, resolutions and tracks of one genome, and the same single cells."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader import schema
from xloader.alignment import align, on_dims
from xloader.errors import SchemaError

_SIDES = ("1", "2")


def merge(
    sources: Mapping[str, xr.Dataset], *, join: Literal["exact", "inner"] = "exact"
) -> xr.Dataset:
    """
    Put contact maps and tracks of one genome into one Dataset, so that windows cut all of them.

    Windows are counted in bins of the first map. A source with the same bins shares its
    dimensions; one of another resolution brings its own, ``<name>_bin1`` and ``<name>_bin2``, and
    the Loader cuts the same base pairs out of it.

    Sources of single cells go together by the names of their cells: `cell` is the union, a source
    of other cells has its own dimension, ``<name>_cell``, and ``<name>_present (cell)`` says which of all it has. The
    Loader serves each cell with what every source has of it: an empty row, NaN, or zero in whole
    numbers, where that is nothing. Of maps of single cells it serves each window of each cell.

    Parameters
    ----------
    sources : mapping of str to xarray.Dataset
        Contact maps (dimensions `bin1`, `bin2`), tracks (`bin1` alone) and cells (`cell`), by the name that
        their values get: the only variable of a source is called like it, others ``<name>_<variable>``,
        balancing vectors ``<name>_<vector>1``, tracks ``<name>1`` and ``<name>2``, and labels of cells
        ``<name>_<label>``.
    join : {"exact", "inner"}, optional
        What becomes of chromosomes that a source lacks: refused, or left out of all; ``"inner"`` also
        leaves out cells that a source lacks.

    Returns
    -------
    xarray.Dataset
        Lazy, with the labels of the first source; the attribute `left_out` names chromosomes that
        are not in all sources, `source_name` of a balancing vector what its source calls it.

    Raises
    ------
    SchemaError
        If chromosomes or their lengths differ, bins of one source do not lie on those of another, or
        names of cells are missing, doubled, or strangers to each other.

    Examples
    --------
    >>> bins = {f"chrom{k}": (f"bin{k}", ["c", "c"]) for k in (1, 2)}
    >>> bins |= {f"start{k}": (f"bin{k}", [0, 10]) for k in (1, 2)}
    >>> bins |= {f"end{k}": (f"bin{k}", [10, 20]) for k in (1, 2)}
    >>> bins |= {f"bin{k}": [0, 1] for k in (1, 2)}
    >>> full = xr.Dataset({"count": (("bin1", "bin2"), [[4, 2], [2, 8]])}, bins)
    >>> sorted(merge({"low": full // 2, "high": full}).data_vars)
    ['high', 'low']
    """
    if not sources:
        msg = "merge() was given no source; name contact maps, such as merge({'low': a, 'high': b})"
        raise SchemaError(msg)
    if join not in ("exact", "inner"):
        msg = f"join={join!r} is unknown; choose 'exact' or 'inner'"
        raise SchemaError(msg)
    for name, ds in sources.items():
        _check(name, ds)
    aligned, cells = align(sources, join)
    maps = {name: ds for name, ds in aligned.items() if "bin1" in ds.dims}
    out = _of_one_genome(maps, join) if maps else xr.Dataset()
    for name, ds in aligned.items():
        if name not in maps:
            variables = {_name_of(name, ds, k): v.variable for k, v in ds.data_vars.items()}
            coords = {
                _free(out, name, str(k), v.variable): v.variable for k, v in ds.coords.items()
            }
            out = _with(out, name, variables, coords)
    return _with(out, "cells", {}, cells) if cells else out


def _name_of(source: str, ds: xr.Dataset, variable: Any) -> str:
    """Return what a variable of a source is called among others."""
    return source if len(ds.data_vars) == 1 else f"{source}_{variable}"


def _free(out: xr.Dataset, source: str, name: str, values: xr.Variable) -> str:
    """Return what labels of features are called where others may have the same name."""
    there = out.variables.get(name)
    free = there is None or there.identical(values)  # type: ignore[no-untyped-call]
    return name if free or name in values.dims else f"{source}_{name}"


def _with(
    out: xr.Dataset,
    name: str,
    variables: Mapping[str, xr.Variable],
    coords: Mapping[str, xr.Variable],
) -> xr.Dataset:
    """Add what a source brings."""
    clash = [k for k, v in variables.items() if k in v.dims]
    if clash:
        msg = (
            f"the values of source {name!r} would be called {clash[0]!r}, like one of their dimensions "
            f"{variables[clash[0]].dims}, which xarray does not allow; give the source another name"
        )
        raise SchemaError(msg)
    new = {
        k: v
        for k, v in coords.items()
        if k not in out.coords or not out.variables[k].identical(v)  # type: ignore[no-untyped-call]
    }
    taken = sorted((set(variables) | set(new)) & set(map(str, out.variables)))
    if taken:
        msg = f"{name!r} brings {taken}, which another source has; give it another name"
        raise SchemaError(msg)
    return schema.keep_labels(out.assign_coords(new).assign(variables))


def _of_one_genome(sources: Mapping[str, xr.Dataset], join: str) -> xr.Dataset:
    """Merge contact maps and tracks."""
    common, left_out = _common(sources, join)
    chosen = {name: _of_chromosomes(ds, common) for name, ds in sources.items()}
    first = next(iter(chosen))
    base = chosen[first]
    if "bin2" not in base.dims:
        msg = (
            f"the first source, {first!r}, is a track; name a contact map first: windows are cut in "
            "its bins"
        )
        raise SchemaError(msg)
    for name, ds in chosen.items():
        _check_lengths(first, base, name, ds)
    shared = {f"{c}{s}" for c in ("bin", "chrom", "start", "end") for s in _SIDES}
    labels = {k: v.variable for k, v in base.coords.items() if k in shared}
    out = xr.Dataset(coords=labels, attrs=base.attrs)
    for name, ds in chosen.items():
        same = _same_bins(base, ds)
        if not same:
            _check_sizes(first, base, name, ds)
        out = _with(out, name, *_renamed(name, ds, own_bins=not same))
    if any(ds.attrs.get("storage_mode") == "square" for ds in chosen.values()):
        out.attrs["storage_mode"] = "square"
    if left_out:
        out.attrs["left_out"] = left_out
    return out


def _check(name: Any, ds: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        msg = f"{name!r} names a source; choose a plain name such as 'low'"
        raise SchemaError(msg)
    if not isinstance(ds, xr.Dataset):
        msg = f"{name!r} is {type(ds).__name__}; open it with xl.open_contacts or xl.open_track"
        raise SchemaError(msg)
    if "cell" in ds.dims and "bin1" not in ds.dims:
        return
    schema.require(ds, ["chrom1", "start1", "end1"], f"source {name!r}")
    for side in _SIDES:
        if f"bin{side}" in ds.dims:
            schema.require(
                ds, [f"{c}{side}" for c in ("chrom", "start", "end")], f"source {name!r}"
            )


def _chromosomes(ds: xr.Dataset, side: str = "1") -> list[str]:
    return list(dict.fromkeys(ds[f"chrom{side}"].values.tolist()))


def _common(sources: Mapping[str, xr.Dataset], join: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the chromosomes of each side that all sources have, and those that some lack."""
    common, left_out = {}, []
    for side in _SIDES:
        having = {
            name: _chromosomes(ds, side if f"bin{side}" in ds.dims else "1")
            for name, ds in sources.items()
        }
        (first, order), *others = having.items()
        common[side] = [c for c in order if all(c in names for _, names in others)]
        for name, names in others:
            lacking = sorted(set(order) ^ set(names))
            # a track is of the whole genome, though the map is of a part of it
            if "bin2" not in sources[name].dims:
                lacking = sorted(set(order) - set(names))
            if lacking and (join == "exact" or not common[side]):
                msg = (
                    f"{first!r} and {name!r} do not have the same chromosomes: {first!r} has "
                    f"{order[:8]}, {name!r} {names[:8]}; {lacking[:8]} are in one of them; open both "
                    "with the same `view`, rename chromosomes, or pass join='inner' to leave these out"
                )
                raise SchemaError(msg)
            left_out += [c for c in lacking if c not in left_out]
    return common, left_out


def _of_chromosomes(ds: xr.Dataset, common: Mapping[str, Sequence[str]]) -> xr.Dataset:
    """Select chromosomes, in the order given."""
    chosen = {}
    if "bin2" not in ds.dims:  # a track serves both axes
        common = {"1": list(dict.fromkeys([*common["1"], *common["2"]]))}
    for side, wanted in common.items():
        names = ds[f"chrom{side}"].values
        if _chromosomes(ds, side) != wanted:
            chosen[f"bin{side}"] = np.concatenate([np.flatnonzero(names == c) for c in wanted])
    return ds.isel(chosen) if chosen else ds


def _ends(ds: xr.Dataset, side: str) -> tuple[npt.NDArray[Any], ...]:
    return tuple(ds[f"{c}{side}"].values for c in ("chrom", "start", "end"))


def _same_bins(a: xr.Dataset, b: xr.Dataset) -> bool:
    """Say whether a source has the same bins as a map on both sides; a track has one for both."""
    return all(
        len(x) == len(y) and bool((x == y).all())
        for s in _SIDES
        for x, y in zip(_ends(a, s), _ends(b, s if f"bin{s}" in b.dims else "1"), strict=True)
    )


def _check_lengths(first: str, base: xr.Dataset, name: str, ds: xr.Dataset) -> None:
    """Refuse sources of different assemblies."""
    lengths = []
    for source in (base, ds):
        chrom, _, end = _ends(source, "1")
        lengths.append({c: int(end[chrom == c].max()) for c in _chromosomes(source)})
    other = {c: (n, lengths[1][c]) for c, n in lengths[0].items() if lengths[1].get(c, n) != n}
    whole = "bin2" in ds.dims
    if whole and other:
        c, (a, b) = next(iter(other.items()))
        msg = (
            f"{first!r} and {name!r} are not of the same assembly or view: {c!r} ends at {a:,} bp in "
            f"one and at {b:,} bp in the other (and {len(other) - 1} more); open files of one assembly, "
            "with the same `view`"
        )
        raise SchemaError(msg)


def _check_sizes(first: str, base: xr.Dataset, name: str, ds: xr.Dataset) -> None:
    """Refuse bins of which neither kind is cut exactly by the other."""
    sizes = [source.attrs.get("binsize") for source in (base, ds)]
    known = [n for n in sizes if n is not None]
    if len(known) < 2 or max(known) % min(known):
        told = ["bins of no single size" if n is None else f"bins of {n:,} bp" for n in sizes]
        msg = (
            f"{first!r} has {told[0]} and {name!r} {told[1]}; sources go together that have the same "
            "bins, or sizes of which one is a multiple of the other: choose another `resolution`"
        )
        raise SchemaError(msg)


def _renamed(
    name: str, ds: xr.Dataset, *, own_bins: bool
) -> tuple[dict[str, xr.Variable], dict[str, xr.Variable]]:
    """Return variables and coordinates of a source under the names that they get."""
    is_track = "bin2" not in ds.dims
    prefix = f"{name}_"
    variables, coords = {}, {}
    for source_side in _SIDES:
        # both axes of a map have the same tracks
        side = "1" if is_track else source_side
        dims = {f"bin{side}": f"{prefix if own_bins else ''}bin{source_side}"}
        for key, v in ds.coords.items():
            if f"bin{side}" not in v.dims:
                continue
            stem = str(key).removesuffix(side)
            if stem in ("bin", "chrom", "start", "end") and not own_bins:
                continue
            renamed = coords[f"{prefix}{stem}{source_side}"] = on_dims(v.variable, dims)
            if "divisive" in v.attrs:  # what statistics of the source call it
                renamed.attrs = {**v.attrs, "source_name": stem}
            if stem == "bin":
                renamed.attrs = {**v.attrs, "binsize": ds.attrs.get("binsize")}
        if is_track:
            for key, v in ds.data_vars.items():
                variables[f"{_name_of(name, ds, key)}{source_side}"] = on_dims(v.variable, dims)
    if not is_track:
        dims = {f"bin{s}": f"{prefix}bin{s}" for s in _SIDES} if own_bins else {}
        for key, v in ds.data_vars.items():
            variables[_name_of(name, ds, key)] = on_dims(v.variable, dims)
        for key, v in ds.coords.items():
            if not set(v.dims) & {"bin1", "bin2"} and v.dims:
                coords[str(key)] = v.variable
    return variables, coords
