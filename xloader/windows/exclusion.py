"""Which windows are left out: too many masked bins, too little coverage, regions to avoid."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.drawn import Drawn
from xloader.errors import PlanError
from xloader.regions import Table, alike
from xloader.windows.bins import Bins, ContactBins

Floats = npt.NDArray[np.float64]


class Rule(ABC):
    """What windows have to keep to along each axis, wherever they are shifted to."""

    @property
    @abstractmethod
    def reason(self) -> str:
        """
        Say why windows are left out.

        Returns
        -------
        str
            Completes "3 windows ...".
        """

    @abstractmethod
    def bad(self, bins: ContactBins, axis: int, drawn: Drawn, size: int) -> npt.NDArray[np.bool_]:
        """
        Say which windows break the rule along one axis.

        Parameters
        ----------
        bins : ContactBins
            What windows lie in.
        axis : int
            0 for rows, 1 for columns.
        drawn : Drawn
            The windows.
        size : int
            Their length along the axis, in bins.

        Returns
        -------
        ndarray of bool, shape (n,)
            True for those to leave out.
        """


@dataclass(frozen=True)
class Masked(Rule):
    """At most some part of the bins of a window is masked."""

    most: float
    """Largest part, from 0 to 1."""
    weight: str
    """Balancing vector that masks them."""

    @property
    @override
    def reason(self) -> str:  # numpydoc ignore=GL08
        return f"with more than {self.most:.4g} of their bins masked in {self.weight!r}"

    @override
    def bad(
        self, bins: ContactBins, axis: int, drawn: Drawn, size: int
    ) -> npt.NDArray[np.bool_]:  # numpydoc ignore=GL08
        usable = ~_axis(bins, axis).masked(self.weight)
        return np.asarray(
            size - _least(usable.astype(np.float64), drawn, axis, size) > self.most * size
        )


@dataclass(frozen=True, eq=False)
class Covered(Rule):
    """The mean coverage of the bins of a window is large enough."""

    least: float
    """Smallest mean."""
    track: Any
    """Coverage of bins: the name of a label, or an array by bin number."""

    @property
    @override
    def reason(self) -> str:  # numpydoc ignore=GL08
        name = self.track if isinstance(self.track, str) else getattr(self.track, "name", None)
        return f"with a mean {name or 'coverage'} below {self.least:.6g}"

    @override
    def bad(
        self, bins: ContactBins, axis: int, drawn: Drawn, size: int
    ) -> npt.NDArray[np.bool_]:  # numpydoc ignore=GL08
        values = np.asarray(_axis(bins, axis).values(self.track), np.float64)
        values = np.where(np.isfinite(values), values, 0)
        return np.asarray(_least(values, drawn, axis, size) < self.least * size)


@dataclass(frozen=True)
class Apart(Rule):
    """No bin of a window overlaps some regions."""

    table: Table
    """Regions to avoid."""

    @property
    @override
    def reason(self) -> str:  # numpydoc ignore=GL08
        return f"overlapping regions of {self.table.name}"

    @override
    def bad(
        self, bins: ContactBins, axis: int, drawn: Drawn, size: int
    ) -> npt.NDArray[np.bool_]:  # numpydoc ignore=GL08
        self._check(bins)
        free = ~overlapped(_axis(bins, axis), self.table)
        first, stop = drawn.reach(axis, size)
        total = np.append(0, np.cumsum(free))
        return np.asarray(total[stop] - total[first] < stop - first)

    def _check(self, bins: ContactBins) -> None:
        """Refuse a table of another naming, which would leave out nothing."""
        known = bins.chromosomes()
        names = list(dict.fromkeys(c for side in self.table.sides for c in side.chrom))
        unknown = [c for c in names if c not in known]
        guesses = [(c, alike(c, known)) for c in unknown if alike(c, known)]
        if guesses or len(unknown) == len(names):
            hint = f"; {guesses[0][0]!r} may be {guesses[0][1]!r} here" if guesses else ""
            msg = (
                f"regions of {self.table.name} to leave out are on {unknown[:5]}, which this map does not "
                f"have: it has {list(known[:8])}{hint}; rename them"
            )
            raise PlanError(msg)


def overlapped(axis: Bins, table: Table) -> npt.NDArray[np.bool_]:
    """
    Say which bins overlap regions.

    Parameters
    ----------
    axis : Bins
        Bins along one dimension.
    table : Table
        Regions; of pairs, both.

    Returns
    -------
    ndarray of bool, shape (n_bins,)
        True where at least one position is shared; an empty region is one position.
    """
    begins, ends = axis.bounds()
    hit = np.zeros(len(begins) + 1, np.int64)
    for r in axis.regions:
        a, b = begins[r.start : r.stop], ends[r.start : r.stop]
        for side in table.sides:
            here = side.chrom == r.name
            start = side.start[here]
            first = np.searchsorted(b, start, side="right")
            stop = np.searchsorted(a, np.maximum(side.end[here], start + 1), side="left")
            some = first < stop
            np.add.at(hit, r.start + first[some], 1)
            np.add.at(hit, r.start + stop[some], -1)
    return np.cumsum(hit[:-1]) > 0


def _axis(bins: ContactBins, axis: int) -> Bins:
    return (bins.rows, bins.columns)[axis]


def _least(values: Floats, drawn: Drawn, axis: int, size: int) -> Floats:
    """Return the least sum of what windows show along an axis, over all places they may take."""
    total = np.append(0.0, np.cumsum(values))
    first, stop = drawn.reach(axis, size)
    if drawn.room is None:
        return np.asarray(total[stop] - total[first])
    sums = total[size:] - total[:-size]
    spans = np.stack([first, first + drawn.room], axis=1).reshape(-1)
    return np.asarray(np.minimum.reduceat(np.append(sums, np.inf), spans)[::2])
