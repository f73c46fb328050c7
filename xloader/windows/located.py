"""Where regions of a table lie among the bins of a contact map."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from xloader.axes import Int64, Region
from xloader.drawn import Drawn
from xloader.errors import PlanError
from xloader.regions import Side, Table, alike
from xloader.windows.bins import Bins, ContactBins
from xloader.windows.drawing import too_short
from xloader.windows.lengths import Length, both_sides, to_bins

_LISTED = 5
_UNKNOWN, _OUTSIDE, _NOT_SELECTED, _SHORT, _OVER = range(1, 6)
_REASONS = {
    _UNKNOWN: "of unknown chromosomes",
    _OUTSIDE: "outside their chromosome",
    _NOT_SELECTED: "in bins that are not selected",
    _SHORT: "in regions shorter than a window",
    _OVER: "over the end of their chromosome",
}


def size_of(
    table: Table, size: Length | tuple[Length, Length] | None, bins: ContactBins
) -> tuple[int, int]:
    """
    Return the size of windows of regions.

    Parameters
    ----------
    table : Table
        The regions.
    size : int, str, a pair of them, or None
        As the user gave it; None for that of the regions themselves.
    bins : ContactBins
        What they lie in.

    Returns
    -------
    tuple of two int
        Bins along rows and columns.

    Raises
    ------
    PlanError
        If it is no number of bins, or regions have several sizes.
    """
    if size is not None:
        rows, columns = (to_bins(s, bins.binsize) for s in both_sides(size))
    else:
        rows, columns = (_size_of(side, table, bins) for side in _both(table))
    if min(rows, columns) < 1:
        msg = f"windows of {rows} x {columns} bins are impossible; they have at least 1"
        raise PlanError(msg)
    return rows, columns


def _size_of(side: Side, table: Table, bins: ContactBins) -> int:
    if bins.binsize is None:
        msg = "bins have no single size, so that the size of regions is no number of bins; give `size`"
        raise PlanError(msg)
    sizes, counts = np.unique(side.end - side.start, return_counts=True)
    if len(sizes) > 1:
        common = ", ".join(f"{sizes[k]:,} bp ({counts[k]:,})" for k in np.argsort(-counts)[:3])
        msg = (
            f"the {len(table):,} regions of {table.name} have {len(sizes):,} sizes, among them {common}; "
            "give `size`, to centre windows of one size on them"
        )
        raise PlanError(msg)
    return to_bins(f"{sizes[0]}bp", bins.binsize)


def _both(table: Table) -> tuple[Side, Side]:
    return table.sides[0], table.sides[-1]


@dataclass(frozen=True)
class _Located:
    """Regions of one side of a table, along one axis."""

    problem: npt.NDArray[np.int8]
    """0 for those that have a window, else why not, shape (n,)."""
    asked: Int64
    """Where a centred window starts, which may be beyond the run of bins, shape (n,)."""
    starts: Int64
    """The same, moved into the run."""
    short: list[Region]
    """Runs with regions that are shorter than a window."""


def place(
    table: Table, size: tuple[int, int], bins: ContactBins, remainder: str
) -> tuple[Drawn, dict[str, int], list[Region]]:
    """
    Return a window centred on each region.

    Parameters
    ----------
    table : Table
        The regions.
    size : tuple of two int
        Bins along rows and columns.
    bins : ContactBins
        What they lie in.
    remainder : {"keep", "drop", "pad"}
        What becomes of windows that reach beyond the end of a run of bins: moved inward, left out, or
        padded. "drop" leaves out regions outside of it as well, which else are refused.

    Returns
    -------
    drawn : Drawn
        In the order of the table.
    left_out : dict of str to int
        Regions without a window, by reason.
    short : list of Region
        Runs of bins with regions that are shorter than a window.

    Raises
    ------
    PlanError
        If regions lie outside of chromosomes, or in runs shorter than a window, and may not be dropped.
    """
    if remainder == "pad" and bins.binsize is None:
        msg = (
            "windows over variable bins cannot be padded, since where bins beyond an end would lie is "
            "not known; choose remainder='keep', to move such windows inward, or 'drop'"
        )
        raise PlanError(msg)
    axes = [
        _locate(side, axis, n, bins.lengths)
        for side, axis, n in zip(_both(table), (bins.rows, bins.columns), size, strict=True)
    ]
    problem = np.where(axes[0].problem > 0, axes[0].problem, axes[1].problem)
    starts = np.stack([a.starts for a in axes], axis=1)
    beyond = np.stack([a.asked for a in axes], axis=1) - starts
    over = (problem == 0) & beyond.any(axis=1)
    short = [r for a in axes for r in a.short]
    if remainder == "drop":
        problem[over] = _OVER
    else:
        outside = np.flatnonzero((problem == _UNKNOWN) | (problem == _OUTSIDE))
        if len(outside):
            raise PlanError(_refusal(table, outside, bins))
        if short:
            raise PlanError(too_short(bins.dims, size, short))
    left_out = {why: int((problem == k).sum()) for k, why in _REASONS.items()}
    moved = over if remainder == "keep" else np.zeros_like(over)
    padded = beyond if remainder == "pad" and over.any() else None
    drawn = Drawn(starts, np.zeros(len(starts), bool), moved=moved, beyond=padded)
    return drawn.take(np.flatnonzero(problem == 0)), left_out, short


def _locate(side: Side, axis: Bins, size: int, lengths: Mapping[str, int]) -> _Located:
    """Find the run of bins that holds each region, and the window in its middle."""
    n = len(side.chrom)
    begins, ends = axis.bounds()
    known = {r.name for r in axis.regions}
    whose, names = pd.factorize(side.chrom)
    length = np.array([lengths.get(c, -1) for c in names], np.int64)[whose]
    there = np.array([c in known or c in lengths for c in names], bool)[whose]
    fits = (side.start >= 0) & (side.end <= length)
    problem = np.where(there, np.where(fits, _NOT_SELECTED, _OUTSIDE), _UNKNOWN).astype(np.int8)
    asked, starts, short = np.zeros(n, np.int64), np.zeros(n, np.int64), []
    codes = {c: k for k, c in enumerate(names)}
    for r in axis.regions:
        here = np.flatnonzero((whose == codes.get(r.name, -1)) & (problem > 0))
        a, b = begins[r.start : r.stop], ends[r.start : r.stop]
        here = here[(side.start[here] >= a[0]) & (side.end[here] <= b[-1])]
        if not len(here):
            continue
        problem[here] = _SHORT if len(r) < size else 0
        short += [r] * (len(r) < size)
        asked[here] = r.start + _centred(side.start[here] + side.end[here], a, b, size)
        starts[here] = np.clip(asked[here], r.start, max(r.stop - size, r.start))
    return _Located(problem, asked, starts, short)


def _centred(twice: Int64, begins: Int64, ends: Int64, size: int) -> Int64:
    """Return where windows start whose middle is nearest to that of regions, given twice."""
    middle = np.clip(np.searchsorted(2 * begins, twice, side="right") - 1, 0, len(begins) - 1)
    if size % 2 == 0:  # the middle of a window is where two bins meet
        middle = middle + (twice > begins[middle] + ends[middle])
    return np.asarray(middle - size // 2)


def _refusal(table: Table, outside: Int64, bins: ContactBins) -> str:
    """Say which regions there is no place for, and what may be wrong with them."""
    known = bins.chromosomes()
    names = [str(s.chrom[i]) for i in outside for s in table.sides]
    guesses = {c: alike(c, known) for c in dict.fromkeys(names) if c not in known}
    listed = "; ".join(table.row(i) for i in outside[:_LISTED]) + "; ..." * (len(outside) > _LISTED)
    hints = [f"{c!r} may be {g!r} here" for c, g in list(guesses.items())[:_LISTED] if g]
    nothing = [c for c, g in guesses.items() if g is None][:_LISTED]
    if nothing:
        hints.append(f"there is no {nothing}, only {list(known[:8])}{', ...' * (len(known) > 8)}")
    reached = [c for c in dict.fromkeys(names) if c in known][:_LISTED]
    if reached:
        ends = ", ".join(f"{c} at {_end_of(c, bins):,} bp" for c in reached)
        hints.append(
            f"bins end on {ends}: is the table of another assembly than {bins.assembly!r}?"
        )
    return (
        f"{len(outside):,} of {len(table):,} regions of {table.name} lie outside the chromosomes "
        f"({listed}); {'; '.join(hints)}; rename or remove them, or pass remainder='drop', which counts "
        "them"
    )


def _end_of(chrom: str, bins: ContactBins) -> int:
    if chrom in bins.lengths:
        return bins.lengths[chrom]
    found = []
    for axis in (bins.rows, bins.columns):
        ends = axis.bounds()[1]
        found += [int(ends[r.stop - 1]) for r in axis.regions if r.name == chrom]
    return max(found)
