"""Several sources as one Dataset: the same windows over maps, resolutions and tracks of one genome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader import schema
from xloader.axes import Int64, Windows
from xloader.errors import PlanError, SchemaError

_SIDES = ("1", "2")


def merge(
    sources: Mapping[str, xr.Dataset], *, join: Literal["exact", "inner"] = "exact"
) -> xr.Dataset:
    """
    Put contact maps and tracks of one genome into one Dataset, so that windows cut all of them.

    Windows are counted in bins of the first source. A source with the same bins shares its
    dimensions; one of another resolution brings its own, ``<name>_bin1`` and ``<name>_bin2``, and
    the Loader cuts the same base pairs out of it.

    Parameters
    ----------
    sources : mapping of str to xarray.Dataset
        Contact maps (dimensions `bin1`, `bin2`) and tracks (`bin1` alone), by the name that their
        values get: the only variable of a source is called like it, others ``<name>_<variable>``,
        balancing vectors ``<name>_<vector>1``, and tracks ``<name>1`` and ``<name>2``.
    join : {"exact", "inner"}, optional
        What becomes of chromosomes that a source lacks: refused, or left out of all.

    Returns
    -------
    xarray.Dataset
        Lazy, with the labels of the first source; the attribute `left_out` names chromosomes that
        are not in all sources, `source_name` of a balancing vector what its source calls it.

    Raises
    ------
    SchemaError
        If chromosomes or their lengths differ, or bins of one source do not lie on those of another.

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
        variables, coords = _renamed(name, ds, own_bins=not same)
        taken = sorted((set(variables) | set(coords)) & set(map(str, out.variables)))
        if taken:
            msg = f"{name!r} brings {taken}, which another source has; give it another name"
            raise SchemaError(msg)
        out = schema.keep_labels(out.assign_coords(coords).assign(variables))
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
            renamed = coords[f"{prefix}{stem}{source_side}"] = _on(v.variable, dims)
            if "divisive" in v.attrs:  # what statistics of the source call it
                renamed.attrs = {**v.attrs, "source_name": stem}
            if stem == "bin":
                renamed.attrs = {**v.attrs, "binsize": ds.attrs.get("binsize")}
        if is_track:
            for key, v in ds.data_vars.items():
                new = name if len(ds.data_vars) == 1 else f"{prefix}{key}"
                variables[f"{new}{source_side}"] = _on(v.variable, dims)
    if not is_track:
        dims = {f"bin{s}": f"{prefix}bin{s}" for s in _SIDES} if own_bins else {}
        for key, v in ds.data_vars.items():
            new = name if len(ds.data_vars) == 1 else f"{prefix}{key}"
            variables[new] = _on(v.variable, dims)
        for key, v in ds.coords.items():
            if not set(v.dims) & {"bin1", "bin2"} and v.dims:
                coords[str(key)] = v.variable
    return variables, coords


def _on(variable: xr.Variable, dims: Mapping[str, str]) -> xr.Variable:
    """Return a variable with other names of dimensions."""
    kept = variable.copy(deep=False).to_base_variable()
    kept.dims = tuple(dims.get(str(d), d) for d in variable.dims)
    return kept


@dataclass(frozen=True)
class _Link:
    """Where bins of another resolution lie among those that windows are counted in."""

    axis: int
    """Which dimension of the windows."""
    dim: str
    """The dimension of the others."""
    first: Int64
    """The one that starts where each bin of the first source starts; -1 where none does."""
    last: Int64
    """The one that ends where it ends; -1 where none does."""


def link(ds: xr.Dataset, windows: Windows) -> Windows:
    """
    Let windows cut the same base pairs out of bins of other resolutions.

    Windows that were added to see the end of a chromosome are moved inward until they begin with
    bins of every resolution; `uncovered` counts what they do not see then.

    Parameters
    ----------
    ds : xarray.Dataset
        What `merge` returned, or a selection of it.
    windows : Windows
        Windows along `bin1` and `bin2`.

    Returns
    -------
    Windows
        With the dimensions of the other resolutions; those that are shifted stay where there are whole
        bins of each.

    Raises
    ------
    PlanError
        If a window does not begin and end with bins of each resolution.
    """
    links = [
        _link(ds, axis, dim, other)
        for axis, dim in enumerate(windows.dims)
        for other in map(str, ds.dims)
        if dim in ("bin1", "bin2") and other.endswith(f"_{dim}") and other not in windows.dims
    ]
    if not links:
        return windows
    aligned = _aligned(windows, links)
    for each in links:
        size = _common_size(ds, aligned, each)
        aligned = _held(aligned, each, size)
        aligned = aligned.with_linked(each.dim, each.axis, each.first, size)
    return aligned


def _link(ds: xr.Dataset, axis: int, dim: str, other: str) -> _Link:
    prefix = other.removesuffix(dim)
    names = [[f"{p}{c}{dim[-1]}" for c in ("chrom", "start", "end")] for p in ("", prefix)]
    schema.require(ds, [*names[0], *names[1]], f"windows along {other!r}")
    base, bins = ([ds[c].values for c in three] for three in names)
    first, last = (_positions(bins[0], bins[k], base[0], base[k]) for k in (1, 2))
    return _Link(axis, other, first, last)


def _aligned(windows: Windows, links: Sequence[_Link]) -> Windows:
    """Move windows that were added at the ends, so that they begin with bins of every resolution."""
    if windows.starts is None or not windows.n_flush:
        return windows
    starts, uncovered = windows.starts.copy(), dict(windows.uncovered)
    for axis, dim in enumerate(windows.dims):
        begins = [each.first >= 0 for each in links if each.axis == axis]
        if not begins:
            continue
        places = np.flatnonzero(np.logical_and.reduce(begins))
        old = starts[-windows.n_flush :, axis]
        at = np.searchsorted(places, old, side="right") - 1
        new = np.where(at >= 0, places[np.maximum(at, 0)], old)
        moved = dict(zip(old.tolist(), (old - new).tolist(), strict=True))
        starts[-windows.n_flush :, axis] = new
        uncovered[dim] = uncovered.get(dim, 0) + sum(moved.values())
    return replace(windows, starts=starts, uncovered=uncovered)


def _common_size(ds: xr.Dataset, windows: Windows, link: _Link) -> int:
    """Return how many bins of another resolution each window is."""
    if windows.beyond is not None or (windows.shift is not None and (link.first < 0).any()):
        msg = (
            f"windows that are padded or shifted cannot cut whole bins of {link.dim!r}, which are larger; "
            "leave out `shift`, or padding (remainder='keep'), or this source"
        )
        raise PlanError(msg)
    first, stop = (x[:, link.axis] for x in windows.shown_of(np.arange(len(windows))))
    begin, end = link.first[first], link.last[stop - 1]
    if windows.shift is not None:
        end = link.last[first + windows.size[link.axis] - 1]
    lengths = np.where((begin >= 0) & (end >= 0), end - begin + 1, 0)
    size = int(lengths.max(initial=0))
    wrong = np.flatnonzero(lengths != size) if size else np.arange(len(first))
    if len(wrong):
        side, k = windows.dims[link.axis][-1], wrong[0]
        chrom, low = (ds[f"{c}{side}"].values[first[k]] for c in ("chrom", "start"))
        high = ds[f"end{side}"].values[stop[k] - 1]
        msg = (
            f"{len(wrong)} of {len(windows)} windows do not begin and end with whole bins of "
            f"{link.dim!r}, the first along 'bin{side}' is {chrom}:{low:,}-{high:,}; choose a size and "
            "stride that are whole bins of every resolution, and remainder='drop', which adds no window "
            "at the end of a chromosome"
        )
        raise PlanError(msg)
    return size


def _held(windows: Windows, link: _Link, size: int) -> Windows:
    """Let no window move to where bins are cut off, such as the last of a chromosome."""
    if windows.shift is None:
        return windows
    starts = windows.starts_of(np.arange(len(windows)))[:, link.axis]
    n = len(link.first) - windows.size[link.axis] + 1
    short = np.flatnonzero(link.last[-n:] - link.first[:n] + 1 != size)
    nearest = np.append(short, n)[np.searchsorted(short, starts)]
    room = np.minimum(windows.shift.room, nearest - starts)
    return replace(windows, shift=replace(windows.shift, room=room))


def _positions(
    chrom: npt.NDArray[Any],
    edge: npt.NDArray[Any],
    asked_chrom: npt.NDArray[Any],
    asked_edge: npt.NDArray[Any],
) -> Int64:
    """Return the position of the bin with the same edge, -1 where there is none."""
    codes = {c: k for k, c in enumerate(dict.fromkeys(chrom.tolist()))}
    span = int(max(edge.max(), asked_edge.max())) + 1
    keys = np.array([codes[c] for c in chrom.tolist()], np.int64) * span + edge
    asked = np.array([codes.get(c, -1) for c in asked_chrom.tolist()], np.int64)
    wanted = asked * span + asked_edge
    order = np.argsort(keys, kind="stable")
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return np.where((keys[at] == wanted) & (asked >= 0), at, -1)
