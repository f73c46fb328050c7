"""Windows of several dimensions, region by region, from those that xbatcher draws along each axis."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xloader.axes import Int64, Region, Windows
from xloader.drawn import Drawn, collect
from xloader.errors import PlanError
from xloader.selectors import axis_starts
from xloader.windows.bins import Pair

Part = TypeVar("Part", bound=Sequence[Region])
"""A region along each dimension."""


def boxes(
    size: Mapping[str, int],
    stride: Mapping[str, int],
    regions: Sequence[Sequence[Region]],
    *,
    remainder: str,
) -> Windows:
    """
    Return the product of the windows of each axis, region by region.

    Parameters
    ----------
    size, stride : mapping of str to int
        Length and distance of windows along each dimension, in elements.
    regions : sequence of sequences of Region
        Where windows may lie: for each part of the data, one region per dimension.
    remainder : {"keep", "drop", "pad"}
        Whether a window flush with the end of each region is added where the stride leaves
        positions over ("keep" and "pad"), or they are left out ("drop").

    Returns
    -------
    Windows
        In xbatcher's order (regions one after the other, last dimension fastest), flush windows
        after all others.

    Raises
    ------
    PlanError
        If a window is longer than a region that may not be dropped, or no window is left.
    """
    dims = tuple(size)
    lengths = tuple(size[d] for d in dims)
    long, short = by_length(dims, lengths, regions, remainder)
    starts: list[Int64] = [np.zeros((0, len(dims)), np.int64)]
    flush: list[npt.NDArray[np.bool_]] = [np.zeros(0, bool)]
    for part in long:
        axes = [
            _axis(r, size[d], stride[d], d, flush=remainder != "drop")
            for r, d in zip(part, dims, strict=True)
        ]
        starts.append(_product([a[0] for a in axes]))
        flush.append(np.asarray(_product([a[1] for a in axes]).any(axis=1)))
    drawn = Drawn(np.concatenate(starts), np.concatenate(flush))
    return collect(dims, lengths, drawn, list(zip(*regions, strict=True)), skipped=short)


def _product(axes: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def lattice(
    pairs: Sequence[Pair],
    size: tuple[int, int],
    stride: tuple[int, int],
    *,
    flush: bool,
    bounds: tuple[int, int] | None = None,
    shift: int = 0,
) -> Drawn:
    """
    Return the windows of a contact map on a grid, those of some distance to the diagonal only.

    Parameters
    ----------
    pairs : sequence of pairs of Region
        Runs of bins along rows and columns, none shorter than a window.
    size, stride : tuple of two int
        Length and distance of windows along rows and columns, in bins.
    flush : bool
        Whether windows flush with the ends are added.
    bounds : tuple of two int, optional
        Smallest and largest distance in bins from the start along rows to that along columns.
        Default: any.
    shift : int, optional
        Places that a window may take, in the direction of the diagonal. Default: its own.

    Returns
    -------
    Drawn
        Pairs of regions one after the other, columns fastest.
    """
    parts = []
    for pair in pairs:
        (a, last_a), (b, last_b) = (
            _axis(r, size[k], stride[k], f"bin{k + 1}", flush=flush) for k, r in enumerate(pair)
        )
        if bounds is None:
            low, high = np.zeros(len(a), np.int64), np.full(len(a), len(b))
        else:
            row = a + (pair[0].first_id - pair[0].start)
            column = b + (pair[1].first_id - pair[1].start)
            low = np.searchsorted(column, row + bounds[0], side="left")
            high = np.maximum(np.searchsorted(column, row + bounds[1], side="right"), low)
        i = np.repeat(np.arange(len(a)), high - low)
        j = np.arange(len(i)) + np.repeat(high - np.cumsum(high - low), high - low)
        parts.append((np.stack([a[i], b[j]], axis=1), last_a[i] | last_b[j], pair))
    return _joined(parts, size, shift)


def along_diagonal(
    pairs: Sequence[Pair], size: int, stride: int, *, flush: bool, shift: int
) -> Drawn:
    """
    Return the windows on the diagonal of a contact map.

    Parameters
    ----------
    pairs : sequence of pairs of Region
        Runs of the same bins along rows and columns, none shorter than a window.
    size, stride : int
        Length and distance of windows, in bins.
    flush : bool
        Whether windows flush with the ends are added.
    shift : int
        Places that a window may take.

    Returns
    -------
    Drawn
        Regions one after the other.
    """
    parts = []
    for a, b in pairs:
        starts, last = _axis(a, size, stride, "bin1", flush=flush)
        parts.append((np.stack([starts, starts + (b.start - a.start)], axis=1), last, (a, b)))
    return _joined(parts, (size, size), shift)


def _joined(
    parts: Sequence[tuple[Int64, npt.NDArray[np.bool_], Pair]], size: tuple[int, int], shift: int
) -> Drawn:
    """Join the windows of pairs of regions, which they do not leave however they are shifted."""
    starts = np.concatenate([np.zeros((0, 2), np.int64), *(p[0] for p in parts)])
    flush = np.concatenate([np.zeros(0, bool), *(p[1] for p in parts)])
    if shift <= 1:
        return Drawn(starts, flush)
    last = [[r.stop - n for r, n in zip(pair, size, strict=True)] for _, _, pair in parts]
    limits = np.repeat(np.array(last, np.int64).reshape(-1, 2), [len(p[0]) for p in parts], axis=0)
    return Drawn(starts, flush, np.minimum((limits - starts).min(axis=1) + 1, shift))


def _axis(
    region: Region, window: int, stride: int, dim: str, *, flush: bool
) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """Return starts, and which of them are flush with the end."""
    starts = axis_starts(len(region), window=window, stride=stride, dim=dim)
    is_flush = np.zeros(len(starts), bool)
    left = len(region) - int(starts[-1]) - window
    if left and flush:
        starts, is_flush = np.append(starts, starts[-1] + left), np.append(is_flush, True)
    return starts + region.start, is_flush


def by_length(
    dims: Sequence[str],
    size: Sequence[int],
    regions: Sequence[Part],
    remainder: str,
) -> tuple[list[Part], list[Region]]:
    """
    Tell regions that hold a window from those that are too short.

    Parameters
    ----------
    dims : sequence of str
        Dimensions, for the message.
    size : sequence of int
        Length of windows along each of them, in elements.
    regions : sequence of sequences of Region
        For each part of the data, one region per dimension.
    remainder : {"keep", "drop", "pad"}
        Whether those too short may be dropped.

    Returns
    -------
    long : list
        Parts that hold a window.
    short : list of Region
        Regions shorter than a window.

    Raises
    ------
    PlanError
        If one is too short that may not be dropped; the message lists them all.
    """
    short = [r for part in regions for r, n in zip(part, size, strict=True) if len(r) < n]
    if short and remainder != "drop":
        raise PlanError(too_short(dims, size, short))
    fits = [all(len(r) >= n for r, n in zip(part, size, strict=True)) for part in regions]
    return [part for part, fit in zip(regions, fits, strict=True) if fit], short


def too_short(dims: Sequence[str], size: Sequence[int], short: Sequence[Region]) -> str:
    """
    Say that windows are too long.

    Parameters
    ----------
    dims : sequence of str
        Dimensions.
    size : sequence of int
        Length of windows along each of them, in elements.
    short : sequence of Region
        Regions that are shorter.

    Returns
    -------
    str
        With what there is to do.
    """
    names: dict[str, int] = {}
    for r in short:
        names[r.name] = min(len(r), names.get(r.name, len(r)))
    listed = ", ".join(f"{k!r} ({v})" if k else f"the whole axis ({v})" for k, v in names.items())
    return (
        f"a window of {dict(zip(dims, size, strict=True))} elements is longer than {listed}; choose "
        f"windows of at most {min(names.values())}, leave these out (`view=` of open_contacts, or "
        "isel), or pass remainder='drop'"
    )
