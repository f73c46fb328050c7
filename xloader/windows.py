"""Where windows lie: xbatcher plans one axis at a time, the rest is integers; no array is read."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import xbatcher

from xloader.errors import PlanError

Int64 = npt.NDArray[np.int64]

_UNITS = {"bp": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000}


@dataclass(frozen=True)
class Region:
    """A run of neighbouring positions along one dimension; windows never span two regions."""

    name: str
    """What the region is called, such as a chromosome; regions pair up by name."""
    start: int
    """First position along the dimension."""
    stop: int
    """One past the last position."""
    first_id: int = 0
    """Identity of the first position, such as its genome-wide bin number."""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Windows:
    """All windows of one plan, as integers; window ``i`` is sample ``i``."""

    dims: tuple[str, ...]
    """Dimensions that the windows cut."""
    size: tuple[int, ...]
    """Length of every window along each dimension, in elements."""
    starts: Int64 | None
    """First position of each window, shape (n, n_dims); None for one window per row."""
    n: int
    """Number of windows."""
    n_flush: int = 0
    """Windows added so that the end of each region is seen, flush with it; they come last."""
    uncovered: Mapping[str, int] = field(default_factory=dict)
    """Positions along each dimension that no window covers."""
    skipped: tuple[str, ...] = ()
    """Regions shorter than a window, left out by ``remainder="drop"``."""

    def __len__(self) -> int:
        return self.n

    @property
    def by_row(self) -> bool:
        """
        Say whether each window is a single position of a single dimension.

        Returns
        -------
        bool
            True for cells one by one.
        """
        return self.size == (1,)

    def starts_of(self, ids: Int64) -> Int64:
        """
        Return where windows start.

        Parameters
        ----------
        ids : ndarray of int64, shape (m,)
            Window numbers.

        Returns
        -------
        ndarray of int64, shape (m, n_dims)
            First position along each dimension.
        """
        return ids[:, None] if self.starts is None else self.starts[ids]


def axis_starts(size: int, *, window: int, stride: int, dim: str = "x") -> Int64:
    """
    Return the start of every full window along one dimension, as xbatcher draws them.

    Parameters
    ----------
    size : int
        Length of the dimension, in elements.
    window : int
        Length of each window, in elements; at most `size`.
    stride : int
        Distance between neighbouring starts, in elements; at least 1.
    dim : str, optional
        Name of the dimension, for messages.

    Returns
    -------
    ndarray of int64, shape (n_windows,)
        Starts in increasing order, ``n_windows == (size - window) // stride + 1``.

    Raises
    ------
    PlanError
        If `window` or `stride` is not positive, or `window` exceeds `size`.

    Examples
    --------
    >>> axis_starts(10, window=4, stride=3)
    array([0, 3, 6])
    """
    if window < 1 or stride < 1:
        msg = (
            f"windows of {window} elements every {stride} along {dim!r} are impossible: both must be "
            "at least 1, so an overlap must be smaller than its window"
        )
        raise PlanError(msg)
    if window > size:
        msg = f"a window of {window} along {dim!r} is longer than the {size} elements there are"
        raise PlanError(msg)
    selectors = xbatcher.BatchSchema(
        SimpleNamespace(sizes={dim: size}),
        input_dims={dim: window},
        input_overlap={dim: window - stride},
        concat_input_bins=False,
    ).selectors
    starts = (patches[0][dim].start for patches in selectors.values())
    return np.fromiter(starts, dtype=np.int64, count=len(selectors))


def rows(dim: str, n: int) -> Windows:
    """
    Return one window per position of a dimension; rows are numbered, never listed.

    Parameters
    ----------
    dim : str
        Name of the dimension.
    n : int
        Its length.

    Returns
    -------
    Windows
        With ``starts`` None.
    """
    return Windows((dim,), (1,), None, n)


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
    return _windows(dims, lengths, regular, flush, regions, short)


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
    return _windows(dims, (window, window), regular, flush, same, short)


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


def _windows(
    dims: tuple[str, ...],
    size: tuple[int, ...],
    regular: list[Int64],
    flush: list[Int64],
    regions: Sequence[Sequence[Region]],
    skipped: Sequence[Region],
) -> Windows:
    parts = [p for p in regular + flush if len(p)]
    if not parts:
        msg = (
            f"no window of {dict(zip(dims, size, strict=True))} elements fits the selection; choose "
            "smaller windows, a larger `max_distance` or more data"
        )
        raise PlanError(msg)
    starts = np.concatenate(parts)
    axes = zip(dims, starts.T, size, zip(*regions, strict=True), strict=True)
    uncovered = {d: _uncovered(s, length, parts) for d, s, length, parts in axes}
    names = tuple(dict.fromkeys(r.name for r in skipped))
    return Windows(dims, size, starts, len(starts), sum(map(len, flush)), uncovered, names)


def _uncovered(starts: Int64, length: int, regions: Sequence[Region]) -> int:
    """Count the positions of some regions that no window covers."""
    uncovered = np.zeros(max(r.stop for r in regions) + 1, bool)
    for r in regions:
        uncovered[r.start : r.stop] = True
    begin, n = np.unique(starts), len(uncovered)
    change = np.bincount(begin, minlength=n) - np.bincount(begin + length, minlength=n)
    return int((uncovered & (np.cumsum(change) == 0)).sum())


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


def regions_of(names: npt.NDArray[Any], ids: npt.NDArray[Any]) -> list[Region]:
    """
    Cut an axis into regions: runs of the same name with consecutive ids.

    Parameters
    ----------
    names : ndarray of str, shape (n,)
        Such as the chromosome of each bin.
    ids : ndarray of int, shape (n,)
        Such as the genome-wide number of each bin.

    Returns
    -------
    list of Region
        In order along the axis.

    Examples
    --------
    >>> regions_of(np.array(["a", "a", "b"]), np.array([4, 5, 6]))[0]
    Region(name='a', start=0, stop=2, first_id=4)
    """
    if len(ids) == 0:
        return []
    breaks = np.flatnonzero((names[1:] != names[:-1]) | (np.diff(ids) != 1)) + 1
    edges = [0, *breaks.tolist(), len(ids)]
    return [Region(str(names[a]), a, b, int(ids[a])) for a, b in itertools.pairwise(edges)]


def pair_regions(first: Sequence[Region], second: Sequence[Region]) -> list[tuple[Region, Region]]:
    """
    Pair the regions of two axes by name, so that windows stay within a chromosome.

    Parameters
    ----------
    first, second : sequence of Region
        Regions along each axis.

    Returns
    -------
    list of pairs
        In the order of `first`, then of `second`.
    """
    return [(a, b) for a in first for b in second if a.name == b.name]


@dataclass(frozen=True)
class Diagonal:
    """Square windows on the diagonal; see `diagonal`."""

    size: int | str
    """Length of a window, in bins or as text in bp."""
    stride: int | str
    """Distance between neighbouring windows, in bins or as text in bp."""

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
        """
        size, stride = to_bins(self.size, binsize), to_bins(self.stride, binsize)
        return diagonal_boxes(("bin1", "bin2"), size, stride, regions, remainder=remainder)


@dataclass(frozen=True)
class Grid:
    """Square windows on a two-dimensional grid; see `grid`."""

    size: int | str
    """Length of a window, in bins or as text in bp."""
    stride: int | str
    """Distance between neighbouring windows, in bins or as text in bp."""
    max_distance: int | str | None
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
        """
        size, stride = to_bins(self.size, binsize), to_bins(self.stride, binsize)
        far = None if self.max_distance is None else to_bins(self.max_distance, binsize)
        return boxes(
            dict.fromkeys(("bin1", "bin2"), size),
            dict.fromkeys(("bin1", "bin2"), stride),
            regions,
            remainder=remainder,
            max_distance=far,
        )


def diagonal(*, size: int | str, stride: int | str | None = None) -> Diagonal:
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
    Diagonal
        For ``xl.Loader(..., windows=...)``.

    Examples
    --------
    >>> diagonal(size="640kb", stride=16)
    Diagonal(size='640kb', stride=16)
    """
    return Diagonal(size, size if stride is None else stride)


def grid(
    *, size: int | str, stride: int | str | None = None, max_distance: int | str | None = None
) -> Grid:
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
    Grid
        For ``xl.Loader(..., windows=...)``.

    Examples
    --------
    >>> grid(size=64, max_distance="2Mb")
    Grid(size=64, stride=64, max_distance='2Mb')
    """
    return Grid(size, size if stride is None else stride, max_distance)


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


def is_generator(source: object) -> bool:
    """
    Say whether something is an `xbatcher.BatchGenerator`.

    Parameters
    ----------
    source : object
        Anything.

    Returns
    -------
    bool
        True for a generator or a subclass of it.
    """
    return isinstance(source, xbatcher.BatchGenerator)


def from_generator(generator: xbatcher.BatchGenerator) -> Windows:
    """
    Return the windows of a user's xbatcher generator, in its order.

    Parameters
    ----------
    generator : xbatcher.BatchGenerator
        Only its public properties are used.

    Returns
    -------
    Windows
        One per patch; blocks of `batch_dims` are cut as further dimensions.

    Raises
    ------
    PlanError
        If it has no window.
    """
    selectors = xbatcher.BatchSchema(
        generator.ds,
        generator.input_dims,
        generator.input_overlap,
        generator.batch_dims,
        concat_input_bins=generator.concat_input_dims,
    ).selectors
    patches = [patch for batch in selectors.values() for patch in batch]
    if not patches:
        msg = "the BatchGenerator has no window; choose smaller input_dims or batch_dims"
        raise PlanError(msg)
    dims = tuple(patches[0])
    size = tuple(patches[0][d].stop - patches[0][d].start for d in dims)
    starts = np.array([[p[d].start for d in dims] for p in patches], np.int64)
    whole = [tuple(Region("", 0, generator.ds.sizes[d]) for d in dims)]
    return _windows(dims, size, [starts], [], whole, ())
