"""Windows along axes, and the regions that they may not leave; integers only."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xloader.keyed import below, key_of

Int64 = npt.NDArray[np.int64]

_SHIFT = 8  # first word of the keys of shifts; orders use others


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
class Shift:
    """How far windows move from where they were drawn: another random distance in each epoch."""

    room: Int64
    """Places that each window may take, its own and those after it, at least 1, shape (n,)."""
    seed: int
    """Seed of the distances."""
    step: int = 1
    """Elements from one place to the next."""

    def of(self, ids: Int64, epoch: int) -> Int64:
        """
        Return how far windows are moved, along all dimensions alike.

        Parameters
        ----------
        ids : ndarray of int64, shape (m,)
            Window numbers.
        epoch : int
            Number of the epoch.

        Returns
        -------
        ndarray of int64, shape (m,)
            In elements: a function of the seed, the epoch and the window alone.
        """
        return below(ids, self.room[ids], key_of(_SHIFT, self.seed, epoch)) * self.step


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
    n_moved: int = 0
    """Windows that would reach beyond an end, moved inward to lie flush with it."""
    uncovered: Mapping[str, int] = field(default_factory=dict)
    """Positions along each dimension that no window covers in any epoch."""
    skipped: tuple[str, ...] = ()
    """Regions shorter than a window, left out by ``remainder="drop"``."""
    empty: tuple[str, ...] = ()
    """Chromosomes of either axis in which no window lies."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Windows that were asked for and are not served, by reason."""
    shift: Shift | None = None
    """How far windows move in each epoch; None where they stay."""
    beyond: Int64 | None = None
    """How far each window reaches beyond its start (below 0) or end and is padded, shape (n, n_dims)."""
    linked: tuple[tuple[int, Int64], ...] = ()
    """
    Of each dimension after those that `starts` has: which of them decides, and its starts by theirs;
    -1 where there are none.
    """
    points: tuple[str, ...] = ()
    """Dimensions along which a window is one position, and batches have no axis, such as `cell`."""

    def __len__(self) -> int:
        return self.n

    @property
    def n_padded(self) -> int:
        """
        Return how many windows are padded, since they reach beyond their region.

        Returns
        -------
        int
            Of all windows.
        """
        return 0 if self.beyond is None else int(self.beyond.any(axis=1).sum())

    @property
    def unlinked(self) -> "Windows":
        """
        Return the same windows without dimensions that follow others.

        Returns
        -------
        Windows
            As they were drawn.
        """
        dims = self.dims[: self._n_drawn]
        points = tuple(d for d in self.points if d in dims)
        size = self.size[: self._n_drawn]
        return replace(self, dims=dims, size=size, linked=(), points=points)

    @property
    def _n_drawn(self) -> int:
        return len(self.dims) - len(self.linked)

    @property
    def by_row(self) -> bool:
        """
        Say whether each window is a single position, along all dimensions.

        Returns
        -------
        bool
            True for cells one by one.
        """
        return set(self.points) == set(self.dims)

    def starts_of(self, ids: Int64, epoch: int | None = None) -> Int64:
        """
        Return where windows start.

        Parameters
        ----------
        ids : ndarray of int64, shape (m,)
            Window numbers.
        epoch : int, optional
            Number of the epoch, in which windows are shifted. Default: where they were drawn.

        Returns
        -------
        ndarray of int64, shape (m, n_dims)
            First position along each dimension.
        """
        return self._with_linked(self._starts(ids, epoch))

    def _starts(self, ids: Int64, epoch: int | None) -> Int64:
        starts = ids[:, None] if self.starts is None else self.starts[ids]
        if self.shift is None or epoch is None:
            return starts
        return starts + self.shift.of(ids, epoch)[:, None] * self._moving

    @property
    def _moving(self) -> Int64:
        """Return 1 for each drawn dimension that shifts move windows along, 0 for others."""
        return np.array([d not in self.points for d in self.dims[: self._n_drawn]], np.int64)

    def _with_linked(self, starts: Int64) -> Int64:
        further = [np.maximum(first[starts[:, axis]], 0) for axis, first in self.linked]
        return np.stack([*starts.T, *further], axis=1) if further else starts

    def lacking(self, ids: Int64) -> dict[str, npt.NDArray[np.bool_]]:
        """
        Return which windows have nothing along dimensions that follow others.

        Parameters
        ----------
        ids : ndarray of int64, shape (m,)
            Window numbers.

        Returns
        -------
        dict of str to ndarray of bool, shape (m,)
            By dimension, those that any window lacks; what is read there belongs to another one.
        """
        found = {}
        dims = self.dims[self._n_drawn :]
        for dim, (axis, first) in zip(dims, self.linked, strict=True):
            if (first < 0).any() and dim in self.points:
                found[dim] = first[self._starts(ids, None)[:, axis]] < 0
        return found

    def reach_of(self, ids: Int64, epoch: int | None = None) -> tuple[Int64, Int64]:
        """
        Return the first and the last place where windows may start.

        Parameters
        ----------
        ids : ndarray of int64, shape (m,)
            Window numbers.
        epoch : int, optional
            Number of the epoch, in which each window has one place. Default: over all epochs.

        Returns
        -------
        tuple of two ndarray of int64, shape (m, n_dims)
            First positions along each dimension.
        """
        first = self._starts(ids, epoch)
        if self.shift is None or epoch is not None:
            return (self._with_linked(first),) * 2
        last = first + ((self.shift.room[ids] - 1) * self.shift.step)[:, None] * self._moving
        return self._with_linked(first), self._with_linked(last)

    def shown_of(self, ids: Int64, epoch: int | None = None) -> tuple[Int64, Int64]:
        """
        Return which positions windows show.

        Parameters
        ----------
        ids : ndarray of int64, shape (m,)
            Window numbers.
        epoch : int, optional
            Number of the epoch, in which windows are shifted. Default: in any epoch.

        Returns
        -------
        tuple of two ndarray of int64, shape (m, n_dims)
            First position along each dimension, and one past the last; what is padded is not there.
        """
        first, last = self.reach_of(ids, epoch)
        stop = last + np.array(self.size)
        if self.beyond is None:
            return first, stop
        over = self.beyond[ids]
        return first + np.maximum(over, 0), stop + np.minimum(over, 0)

    def with_linked(
        self, dim: str, axis: int, first: Int64, size: int, *, point: bool = False
    ) -> "Windows":
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
        point : bool, optional
            Whether they are one position, without an axis in batches.

        Returns
        -------
        Windows
            As many, with the same numbers.
        """
        linked = (*self.linked, (axis, first))
        points = (*self.points, dim) if point else self.points
        dims, size_ = (*self.dims, dim), (*self.size, size)
        return replace(self, dims=dims, size=size_, linked=linked, points=points)

    def crossed(self, dim: str, n: int) -> "Windows":
        """
        Return every window at every position of a further dimension.

        Parameters
        ----------
        dim : str
            The further dimension, such as `cell`.
        n : int
            Its length.

        Returns
        -------
        Windows
            All windows of the first position, then those of the next.
        """
        assert self.starts is not None
        m = len(self)
        place = np.repeat(np.arange(n, dtype=np.int64), m)[:, None]
        starts = np.concatenate([place, np.tile(self.starts, (n, 1))], axis=1)
        shift = self.shift and replace(self.shift, room=np.tile(self.shift.room, n))
        beyond = self.beyond
        if beyond is not None:
            beyond = np.concatenate([np.zeros_like(place), np.tile(beyond, (n, 1))], axis=1)
        return replace(
            self,
            dims=(dim, *self.dims),
            size=(1, *self.size),
            starts=starts,
            n=n * m,
            n_flush=n * self.n_flush,
            n_moved=n * self.n_moved,
            left_out={why: n * count for why, count in self.left_out.items()},
            shift=shift,
            beyond=beyond,
            linked=tuple((axis + 1, first) for axis, first in self.linked),
            points=(dim, *self.points),
        )


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
    return Windows((dim,), (1,), None, n, points=(dim,))


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
