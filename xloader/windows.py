"""Where windows of several dimensions lie, and how to ask for those of contact maps."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xloader.axes import Int64, Region, Windows, axis_starts, collect
from xloader.errors import PlanError

_UNITS = {"bp": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000}


def boxes(
    size: Mapping[str, int],
    stride: Mapping[str, int],
    regions: Sequence[Sequence[Region]],
    *,
    remainder: str,
    max_distance: int | None = None,
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
    max_distance : int, optional
        Largest distance between the starts along the two dimensions, in elements.

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
    short = _short_regions(size, regions)
    if short and remainder != "drop":
        raise PlanError(_too_short(size, short))
    regular, flush = [], []
    for part in regions:
        if any(len(r) < w for r, w in zip(part, lengths, strict=True)):
            continue
        axes = [
            _axis(r, window=w, stride=stride[d], dim=d, flush=remainder != "drop")
            for r, w, d in zip(part, lengths, dims, strict=True)
        ]
        grid = np.stack(np.meshgrid(*(a[0] for a in axes), indexing="ij"), axis=-1)
        last = np.stack(np.meshgrid(*(a[1] for a in axes), indexing="ij"), axis=-1)
        starts, is_flush = grid.reshape(-1, len(dims)), last.reshape(-1, len(dims)).any(axis=1)
        if max_distance is not None:
            ids = starts + [r.first_id - r.start for r in part]
            near = np.flatnonzero(np.abs(ids[:, 0] - ids[:, 1]) <= max_distance)
            starts, is_flush = starts[near], np.take(is_flush, near)
        regular.append(starts[~is_flush])
        flush.append(starts[is_flush])
    return collect(dims, lengths, regular, flush, regions, short)


def diagonal_boxes(
    dims: tuple[str, str],
    window: int,
    stride: int,
    regions: Sequence[tuple[Region, Region]],
    *,
    remainder: str,
) -> Windows:
    """
    Return square windows on the diagonal of each region.

    Parameters
    ----------
    dims : tuple of two str
        The two dimensions.
    window, stride : int
        Length and distance of windows, in elements.
    regions : sequence of pairs of Region
        Runs of bins along both dimensions; windows lie on pairs of the same bins.
    remainder : {"keep", "drop", "pad"}
        As for `boxes`.

    Returns
    -------
    Windows
        Flush windows after all others.

    Raises
    ------
    PlanError
        As for `boxes`, and if a region has no pair of the same bins.
    """
    same = [(a, b) for a, b in regions if (a.first_id, len(a)) == (b.first_id, len(b))]
    found = {r for pair in same for r in pair}
    for a, b in regions:
        if not {a, b} <= found:
            msg = (
                f"diagonal windows need the same bins on both axes, but {a.name!r} has {len(a)} bins "
                f"from {a.first_id} on {dims[0]!r} and {len(b)} from {b.first_id} on {dims[1]!r}; "
                "select the same bins on both, or use windows.grid"
            )
            raise PlanError(msg)
    short = _short_regions({dims[0]: window}, [(a,) for a, _ in same])
    if short and remainder != "drop":
        raise PlanError(_too_short({dims[0]: window}, short))
    regular, flush = [], []
    for a, b in same:
        if len(a) < window:
            continue
        keep = remainder != "drop"
        starts, is_flush = _axis(a, window=window, stride=stride, dim=dims[0], flush=keep)
        pairs = np.stack([starts, starts + (b.start - a.start)], axis=1)
        regular.append(pairs[~is_flush])
        flush.append(pairs[is_flush])
    return collect(dims, (window, window), regular, flush, same, short)


def _axis(
    region: Region, *, window: int, stride: int, dim: str, flush: bool
) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """Return starts, and which of them are flush with the end."""
    starts = axis_starts(len(region), window=window, stride=stride, dim=dim)
    is_flush = np.zeros(len(starts), bool)
    left = len(region) - int(starts[-1]) - window
    if left and flush:
        starts, is_flush = np.append(starts, starts[-1] + left), np.append(is_flush, True)
    return starts + region.start, is_flush


def _short_regions(size: Mapping[str, int], regions: Sequence[Sequence[Region]]) -> list[Region]:
    windows = size.values()
    return [r for part in regions for r, w in zip(part, windows, strict=True) if len(r) < w]


def _too_short(size: Mapping[str, int], short: Sequence[Region]) -> str:
    names: dict[str, int] = {}
    for r in short:
        names[r.name] = min(len(r), names.get(r.name, len(r)))
    listed = ", ".join(f"{k!r} ({v})" if k else f"the whole axis ({v})" for k, v in names.items())
    return (
        f"a window of {dict(size)} elements is longer than {listed}; choose windows of at most "
        f"{min(names.values())}, leave these out (`view=` of open_contacts, or isel), or pass "
        "remainder='drop'"
    )


@dataclass(frozen=True)
class Shape:
    """Square windows of a contact map, as `diagonal` and `grid` make them."""

    size: int | str
    """Length of a window, in bins or as text in bp."""
    stride: int | str
    """Distance between neighbouring windows, in bins or as text in bp."""
    on_diagonal: bool
    """Whether windows lie on the diagonal only."""
    max_distance: int | str | None = None
    """Largest distance of a window's start from the diagonal, in bins or as text in bp."""

    def draw(
        self, regions: Sequence[tuple[Region, Region]], binsize: int | None, remainder: str
    ) -> Windows:
        """
        Return the windows of a contact map.

        Parameters
        ----------
        regions : sequence of pairs of Region
            Chromosomes along `bin1` and `bin2`.
        binsize : int or None
            Length of a bin, in bp; None for variable bins.
        remainder : {"keep", "drop", "pad"}
            As for `boxes`.

        Returns
        -------
        Windows
            Over `bin1` and `bin2`.

        Raises
        ------
        PlanError
            As for `boxes` and `diagonal_boxes`, and if a length is no number of bins.
        """
        size, stride = to_bins(self.size, binsize), to_bins(self.stride, binsize)
        if self.on_diagonal:
            return diagonal_boxes(("bin1", "bin2"), size, stride, regions, remainder=remainder)
        far = None if self.max_distance is None else to_bins(self.max_distance, binsize)
        both = ("bin1", "bin2")
        sizes, strides = dict.fromkeys(both, size), dict.fromkeys(both, stride)
        return boxes(sizes, strides, regions, remainder=remainder, max_distance=far)


def diagonal(*, size: int | str, stride: int | str | None = None) -> Shape:
    """
    Ask for square windows on the diagonal of each chromosome.

    Parameters
    ----------
    size : int or str
        Length of a window, in bins, or in bp as ``"500kb"``.
    stride : int or str, optional
        Distance between neighbouring windows. Default: `size`.

    Returns
    -------
    Shape
        For ``xl.Loader(..., windows=...)``.

    Examples
    --------
    >>> diagonal(size="640kb", stride=16)
    Shape(size='640kb', stride=16, on_diagonal=True, max_distance=None)
    """
    return Shape(size, size if stride is None else stride, on_diagonal=True)


def grid(
    *, size: int | str, stride: int | str | None = None, max_distance: int | str | None = None
) -> Shape:
    """
    Ask for square windows on a grid within each chromosome, above and below the diagonal.

    Parameters
    ----------
    size : int or str
        Length of a window, in bins, or in bp as ``"500kb"``.
    stride : int or str, optional
        Distance between neighbouring windows along each axis. Default: `size`.
    max_distance : int or str, optional
        Largest distance between the starts of a window along the two axes. Default: no limit.

    Returns
    -------
    Shape
        For ``xl.Loader(..., windows=...)``.

    Examples
    --------
    >>> grid(size=64, max_distance="2Mb")
    Shape(size=64, stride=64, on_diagonal=False, max_distance='2Mb')
    """
    return Shape(
        size, size if stride is None else stride, on_diagonal=False, max_distance=max_distance
    )


def to_bins(length: int | str, binsize: int | None) -> int:
    """
    Return a length in bins.

    Parameters
    ----------
    length : int or str
        Bins, or bp as text with a unit: ``"500kb"``, ``"1.5Mb"``.
    binsize : int or None
        Length of a bin, in bp; None for variable bins.

    Returns
    -------
    int
        Number of bins.

    Raises
    ------
    PlanError
        If the text is no length, is no multiple of `binsize`, or bins are variable.

    Examples
    --------
    >>> to_bins("1.5Mb", 10_000)
    150
    """
    if not isinstance(length, str):
        return int(length)
    match = re.fullmatch(r"([\d.,_]+)\s*(bp|kb|mb|gb)", length.strip().lower())
    if match is None:
        msg = f"{length!r} is no length; write bins as a number, or bp as '500kb' or '1.5Mb'"
        raise PlanError(msg)
    if binsize is None:
        msg = f"{length!r} cannot be counted in bins: these bins have no single size; give bins"
        raise PlanError(msg)
    base_pairs = float(re.sub("[,_]", "", match[1])) * _UNITS[match[2]]
    if base_pairs % binsize:
        msg = f"{length!r} is no multiple of the bin size, {binsize} bp; choose one that is"
        raise PlanError(msg)
    return int(base_pairs // binsize)
