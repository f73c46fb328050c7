"""What shapes of windows know of a contact map: runs of bins along both axes, and values of bins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from xloader.axes import Int64, Region

Pair = tuple[Region, Region]
"""A region along rows and one along columns."""


@dataclass(frozen=True)
class Bins:
    """The bins along one dimension of a contact map."""

    dim: str
    """Name of the dimension."""
    regions: Sequence[Region]
    """Runs of neighbouring bins of one chromosome."""
    values: Callable[[Any], npt.NDArray[Any]]
    """Returns the value of each bin: of a label such as ``"start"``, or of an array by bin number."""
    masked: Callable[[str], npt.NDArray[np.bool_]]
    """Says which bins a balancing vector masks."""

    def bounds(self) -> tuple[Int64, Int64]:
        """
        Return where bins lie on their chromosome.

        Returns
        -------
        tuple of two ndarray of int64, shape (n_bins,)
            Start and end, in bp.
        """
        return self.values("start").astype(np.int64), self.values("end").astype(np.int64)


@dataclass(frozen=True)
class ContactBins:
    """The bins along both dimensions of a contact map."""

    rows: Bins
    """Along the first dimension."""
    columns: Bins
    """Along the second one."""
    binsize: int | None = None
    """Length of a bin, in bp; None for variable bins."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Length of every chromosome of the file, also of those not selected, in bp; empty if not known."""
    assembly: str = "unknown"
    """Of which assembly they are."""

    @property
    def dims(self) -> tuple[str, str]:
        """
        Return the names of both dimensions.

        Returns
        -------
        tuple of two str
            Rows first.
        """
        return self.rows.dim, self.columns.dim

    def chromosomes(self) -> tuple[str, ...]:
        """
        Return the names of all chromosomes that the file or a dimension has.

        Returns
        -------
        tuple of str
            Each once, in order.
        """
        found = [r.name for bins in (self.rows, self.columns) for r in bins.regions]
        return tuple(dict.fromkeys([*self.lengths, *found]))

    def within(self) -> list[Pair]:
        """
        Pair the runs of bins of the two dimensions that are of one chromosome.

        Returns
        -------
        list of pairs of Region
            In the order of rows, then of columns.
        """
        rows, columns = self.rows.regions, self.columns.regions
        return [(a, b) for a in rows for b in columns if a.name == b.name]
