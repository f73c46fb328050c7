"""Windows along axes, as xbatcher draws them, and the regions that they may not leave; integers only."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import xbatcher

from xloader.errors import PlanError

Int64 = npt.NDArray[np.int64]


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
    linked: tuple[tuple[int, Int64], ...] = ()
    """Of each dimension after those that `starts` has: which of them decides, and its starts by theirs."""

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
        if self.starts is None:
            return ids[:, None]
        starts = self.starts[ids]
        further = [first[starts[:, axis]] for axis, first in self.linked]
        return np.stack([*starts.T, *further], axis=1) if further else starts

    def with_linked(self, dim: str, axis: int, first: Int64, size: int) -> "Windows":
        """
        Return the same windows, cutting a further dimension.

        Parameters
        ----------
        dim : str
            The further dimension.
        axis : int
            Which of `dims` decides where windows lie on it.
        first : ndarray of int64, shape (n_positions,)
            Where a window starts on it, by its start along that.
        size : int
            How long windows are on it, in elements.

        Returns
        -------
        Windows
            As many, with the same numbers.
        """
        linked = (*self.linked, (axis, first))
        return replace(self, dims=(*self.dims, dim), size=(*self.size, size), linked=linked)


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


def collect(
    dims: tuple[str, ...],
    size: tuple[int, ...],
    regular: list[Int64],
    flush: list[Int64],
    regions: Sequence[Sequence[Region]],
    skipped: Sequence[Region],
) -> Windows:
    """
    Join the windows of all regions and count what they leave uncovered.

    Parameters
    ----------
    dims : tuple of str
        Dimensions that the windows cut.
    size : tuple of int
        Length of every window along each of them.
    regular, flush : list of ndarray of int64, shape (n, n_dims)
        Starts that xbatcher drew, and those added at the ends of regions.
    regions : sequence of sequences of Region
        Where windows may lie.
    skipped : sequence of Region
        Regions too short for a window.

    Returns
    -------
    Windows
        Regular windows first.

    Raises
    ------
    PlanError
        If there is no window.
    """
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
    return collect(dims, size, [starts], [], whole, ())
