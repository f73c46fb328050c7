"""Windows as they are drawn, before they are numbered and counted; integers only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xloader.axes import Int64, Region, Shift, Windows
from xloader.errors import PlanError


@dataclass(frozen=True)
class Drawn:
    """Windows before they are numbered and counted."""

    starts: Int64
    """First position of each window, shape (n, n_dims)."""
    flush: npt.NDArray[np.bool_]
    """Whether it was added to see the end of its region, shape (n,)."""
    room: Int64 | None = None
    """As in `Shift`."""
    moved: npt.NDArray[np.bool_] | None = None
    """Whether it was moved inward, shape (n,)."""
    beyond: Int64 | None = None
    """As in `Windows`."""

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, which: Int64) -> "Drawn":
        """
        Return some of the windows.

        Parameters
        ----------
        which : ndarray of int64, shape (m,)
            Their places.

        Returns
        -------
        Drawn
            In that order.
        """
        parts = (self.starts, self.flush, self.room, self.moved, self.beyond)
        return Drawn(*(p if p is None else p[which] for p in parts))  # type: ignore[arg-type]

    def reach(self, axis: int, size: int) -> tuple[Int64, Int64]:
        """
        Return what windows show along a dimension, in whatever epoch.

        Parameters
        ----------
        axis : int
            Which dimension.
        size : int
            Their length along it.

        Returns
        -------
        tuple of two ndarray of int64, shape (n,)
            First position and one past the last; what is padded is not there.
        """
        first = self.starts[:, axis]
        stop = first + size
        if self.room is not None:
            stop = stop + self.room - 1
        if self.beyond is not None:
            over = self.beyond[:, axis]
            first, stop = first + np.maximum(over, 0), stop + np.minimum(over, 0)
        return first, stop


def collect(
    dims: tuple[str, ...],
    size: tuple[int, ...],
    drawn: Drawn,
    regions: Sequence[Sequence[Region]],
    *,
    skipped: Sequence[Region] = (),
    left_out: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Windows:
    """
    Give windows their numbers, and count what they leave uncovered.

    Parameters
    ----------
    dims : tuple of str
        Dimensions that the windows cut.
    size : tuple of int
        Length of every window along each of them.
    drawn : Drawn
        The windows of all regions.
    regions : sequence of sequences of Region
        Where windows may lie along each dimension; none where nobody wants to cover them.
    skipped : sequence of Region, optional
        Regions too short for a window.
    left_out : mapping of str to int, optional
        Windows that are not among `drawn`, by reason.
    seed : int, optional
        Seed of shifts.

    Returns
    -------
    Windows
        Those added at the ends of regions last, otherwise in order.

    Raises
    ------
    PlanError
        If there is no window.
    """
    left_out = {k: n for k, n in (left_out or {}).items() if n}
    if not len(drawn):
        why = ", ".join(f"{n:,} {k}" for k, n in left_out.items())
        msg = (
            f"no window of {dict(zip(dims, size, strict=True))} elements fits the selection"
            f"{f', of all these are left out: {why}' if why else ''}; choose smaller windows, a larger "
            "`max_distance`, fewer exclusions or more data"
        )
        raise PlanError(msg)
    if drawn.flush.any():
        drawn = drawn.take(np.argsort(drawn.flush, kind="stable"))
    axes = zip(dims, range(len(dims)), size, regions, strict=False)
    uncovered = {d: _uncovered(*drawn.reach(k, length), parts) for d, k, length, parts in axes}
    return Windows(
        dims,
        size,
        drawn.starts,
        len(drawn),
        n_flush=int(drawn.flush.sum()),
        n_moved=0 if drawn.moved is None else int(drawn.moved.sum()),
        uncovered=uncovered,
        skipped=tuple(dict.fromkeys(r.name for r in skipped)),
        left_out=left_out,
        shift=None if drawn.room is None else Shift(drawn.room, seed),
        beyond=drawn.beyond,
        points=dims if size == (1,) else (),
    )


def _uncovered(begin: Int64, stop: Int64, regions: Sequence[Region]) -> int:
    """Count the positions of some regions that no window covers."""
    n = max(r.stop for r in regions) + 1
    uncovered = np.zeros(n, bool)
    for r in regions:
        uncovered[r.start : r.stop] = True
    change = np.bincount(begin, minlength=n) - np.bincount(stop, minlength=n)
    return int((uncovered & (np.cumsum(change) == 0)).sum())
