"""Windows over several resolutions: the same base pairs, in whole bins of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader import schema
from xloader.axes import Int64, Shift, Windows
from xloader.errors import PlanError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Link:
    """Where bins of another resolution lie among those that windows are counted in."""

    axis: int
    """Which dimension of the windows."""
    dim: str
    """The dimension of the others."""
    first: Int64
    """The one that starts where each bin of the first source starts; -1 where none does."""
    size: Int64
    """How many whole bins a window is, by its start; 0 where it cuts one."""
    step: int
    """Bins of the first source from the start of one of them to that of the next, at least 1."""


def link(ds: xr.Dataset, windows: Windows, remainder: str) -> Windows:
    """
    Let windows cut the same base pairs out of bins of other resolutions.

    Windows that were added to see the end of a chromosome, and those that hold its last bin where
    that is shorter, are moved inward until they are as many whole bins of every resolution as the
    others, or left out where `remainder` says so; both are counted. Shifted windows move by whole bins
    of every resolution.

    Parameters
    ----------
    ds : xarray.Dataset
        What `xloader.merge` returned, or a selection of it.
    windows : Windows
        Windows along `bin1` and `bin2`.
    remainder : {"keep", "drop", "pad"}
        Whether windows at the end of a chromosome are moved inward or, by "drop", left out.

    Returns
    -------
    Windows
        With the dimensions of the other resolutions.

    Raises
    ------
    PlanError
        If any other window does not begin and end with bins of each resolution, or one is padded.
    """
    links = [
        _link(ds, axis, dim, other, windows.size[axis])
        for axis, dim in enumerate(windows.dims)
        for other in map(str, ds.dims)
        if dim in ("bin1", "bin2") and other.endswith(f"_{dim}") and other not in windows.dims
    ]
    if not links or windows.starts is None:
        return windows
    if windows.beyond is not None:
        msg = (
            f"windows that are padded are not cut out of other bins, {[x.dim for x in links]}; pass "
            "remainder='keep', which moves them inward, or leave these sources out"
        )
        raise PlanError(msg)
    sizes = [int(each.size[windows.starts[:, each.axis]].max(initial=0)) for each in links]
    fits = [np.ones(int(ds.sizes[dim]), bool) for dim in windows.dims]
    for each, size in zip(links, sizes, strict=True):
        fits[each.axis] &= (each.size == size) & (size > 0)
    fitting = _fitting(ds, windows, links, fits, remainder)
    if windows.shift is not None:
        fitting = replace(fitting, shift=_shift(fitting, links, fits))
    fitting = replace(fitting, uncovered=_uncovered(windows, fitting))
    for each, size in zip(links, sizes, strict=True):
        fitting = fitting.with_linked(each.dim, each.axis, each.first, size)
    return fitting


def _link(ds: xr.Dataset, axis: int, dim: str, other: str, window: int) -> _Link:
    prefix = other.removesuffix(dim)
    names = [[f"{p}{c}{dim[-1]}" for c in ("chrom", "start", "end")] for p in ("", prefix)]
    schema.require(ds, [*names[0], *names[1]], f"windows along {other!r}")
    base, bins = ([ds[c].values for c in three] for three in names)
    first, last = (_positions(bins[0], bins[k], base[0], base[k]) for k in (1, 2))
    begin, end = first[: len(first) - window + 1], last[window - 1 :]
    size = np.zeros(len(first), np.int64)
    size[: len(begin)] = np.where((begin >= 0) & (end >= 0), end - begin + 1, 0)
    mine, theirs = ds.attrs.get("binsize"), ds[other].attrs.get("binsize")
    return _Link(axis, other, first, size, max(1, theirs // mine) if mine and theirs else 1)


def _fitting(
    ds: xr.Dataset, windows: Windows, links: Sequence[_Link], fits: Sequence[Mask], remainder: str
) -> Windows:
    """Return the windows that are whole bins of every resolution, those at ends after a move."""
    assert windows.starts is not None
    starts, n = windows.starts.copy(), len(windows)
    at_end = np.arange(n) >= n - windows.n_flush
    short = np.ones(n, bool)
    for each in links:
        short &= each.size[starts[:, each.axis]] > 0
    bad = ~np.stack([f[x] for f, x in zip(fits, starts.T, strict=True)]).all(axis=0)
    if (wrong := np.flatnonzero(bad & ~at_end & ~short)).size:
        raise PlanError(_cut(ds, windows, links, wrong))
    lost = bad.copy()
    if remainder != "drop":
        for axis, dim in enumerate(windows.dims):
            chrom, places = ds[f"chrom{dim[-1]}"].values, np.flatnonzero(fits[axis])
            old = starts[bad, axis]
            at = np.searchsorted(places, old, side="right") - 1
            new = places[np.maximum(at, 0)] if len(places) else np.full(len(old), -1)
            found = (at >= 0) & (chrom[new] == chrom[old])
            starts[bad, axis] = np.where(found, new, -1)
        lost = (starts < 0).any(axis=1)
    # a window that was moved onto another one shows nothing that is not seen already
    _, which = np.unique(starts, axis=0, return_inverse=True)
    twice = bad & ~lost & np.isin(which, which[~bad])
    keep = ~(lost | twice)
    if not keep.any():
        raise PlanError(_cut(ds, windows, links, np.flatnonzero(bad)))
    reason = f"not whole bins of every resolution ({', '.join(x.dim for x in links)})"
    left_out = {**windows.left_out, **({reason: int(lost.sum())} if lost.any() else {})}
    shift = windows.shift and replace(windows.shift, room=windows.shift.room[keep])
    return replace(
        windows,
        starts=starts[keep],
        n=int(keep.sum()),
        n_flush=int((at_end & keep).sum()),
        left_out=left_out,
        shift=shift,
    )


def _cut(ds: xr.Dataset, windows: Windows, links: Sequence[_Link], wrong: Int64) -> str:
    """Say which windows cut a bin of which source."""
    assert windows.starts is not None
    k = int(wrong[0])
    each = next((x for x in links if not x.size[windows.starts[k, x.axis]]), links[0])
    side, first = windows.dims[each.axis][-1], windows.starts[k, each.axis]
    chrom, low = (ds[f"{c}{side}"].values[first] for c in ("chrom", "start"))
    high = ds[f"end{side}"].values[first + windows.size[each.axis] - 1]
    return (
        f"{len(wrong)} of {len(windows)} windows do not begin and end with whole bins of "
        f"{each.dim!r}, the first along 'bin{side}' is {chrom}:{low:,}-{high:,}; choose a size and "
        "stride that are whole bins of every resolution"
    )


def _shift(windows: Windows, links: Sequence[_Link], fits: Sequence[Mask]) -> Shift:
    """Let windows move by whole bins of every resolution, and not to where bins are cut off."""
    shift, starts = windows.shift, windows.starts
    assert shift is not None
    assert starts is not None
    step = math.lcm(*(each.step for each in links))
    room = -(-shift.room // step)
    for axis, fit in enumerate(fits):
        # the next place that does not fit, among those that are a whole number of steps away
        n = len(fit)
        bad = np.append(np.flatnonzero(~fit), n + np.arange(step))
        keys = np.sort(bad % step * (n + step) + bad)
        begin = starts[:, axis]
        after = keys[np.searchsorted(keys, begin % step * (n + step) + begin)] % (n + step)
        room = np.minimum(room, (after - begin) // step)
    return replace(shift, room=room, step=step)


def _uncovered(before: Windows, after: Windows) -> dict[str, int]:
    """Count what no window covers, with what those did that were moved, left out or held back."""
    counted = dict(before.uncovered)
    for axis, dim in enumerate(before.dims):
        if dim in counted:
            had, has = (_covered(w, axis) for w in (before, after))
            n = min(len(had), len(has))
            counted[dim] += int(had.sum() - (had[:n] & has[:n]).sum())
    return counted


def _covered(windows: Windows, axis: int) -> Mask:
    """Say which positions windows show, in any epoch."""
    begin, stop = (x[:, axis] for x in windows.shown_of(np.arange(len(windows))))
    n = int(stop.max()) + 1
    change = np.bincount(begin, minlength=n) - np.bincount(stop, minlength=n)
    return np.asarray(np.cumsum(change) > 0)


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
