"""Shapes of contact windows: what a user asks for, drawn once the map is known."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from typing_extensions import override

from xloader.axes import Region, Windows
from xloader.drawn import Drawn, collect
from xloader.errors import PlanError
from xloader.regions import Table, alike, read_table
from xloader.windows.bins import ContactBins, Pair
from xloader.windows.drawing import along_diagonal, by_length, lattice
from xloader.windows.exclusion import Apart, Covered, Masked, Rule
from xloader.windows.lengths import Length, both_sides, to_bins
from xloader.windows.located import place, size_of

_FAR = 2**62

Sizes = Length | tuple[Length, Length]
"""One length, or one for rows and one for columns."""


@dataclass(frozen=True)
class _Placed:
    """Where a shape puts its windows."""

    size: tuple[int, int]
    """Bins along rows and columns."""
    drawn: Drawn
    """The windows."""
    pairs: list[Pair] = field(default_factory=list)
    """Runs of bins that they are to cover; none where they only lie at places that were given."""
    short: list[Region] = field(default_factory=list)
    """Runs of bins that are shorter than a window."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Windows that are not drawn, by reason."""


@dataclass(frozen=True)
class Shape(ABC):
    """Windows of a contact map that somebody asks for."""

    rules: tuple[Rule, ...] = field(default=(), kw_only=True)
    """What windows have to keep to, or are left out."""

    @abstractmethod
    def _place(self, bins: ContactBins, remainder: str) -> _Placed:
        """Return where windows lie, before any is left out."""

    def draw(self, bins: ContactBins, *, remainder: str, seed: int = 0) -> Windows:
        """
        Return the windows of a contact map.

        Parameters
        ----------
        bins : ContactBins
            The map.
        remainder : {"keep", "drop", "pad"}
            What becomes of the ends of chromosomes.
        seed : int, optional
            Seed of shifts.

        Returns
        -------
        Windows
            Over `bin1` and `bin2`.

        Raises
        ------
        PlanError
            If a length is no number of bins, a window is longer than a chromosome that may not be
            dropped, or no window is left.
        """
        placed = self._place(bins, remainder)
        drawn, left_out = placed.drawn, dict(placed.left_out)
        for rule in self.rules:
            bad = np.zeros(len(drawn), bool)
            for axis, n in enumerate(placed.size):
                bad |= rule.bad(bins, axis, drawn, n)
            left_out[rule.reason] = left_out.get(rule.reason, 0) + int(bad.sum())
            drawn = drawn.take(np.flatnonzero(~bad))
        regions = list(zip(*placed.pairs, strict=True))
        found = collect(
            bins.dims,
            placed.size,
            drawn,
            regions,
            skipped=placed.short,
            left_out=left_out,
            seed=seed,
        )
        return replace(found, empty=_empty(found, bins))

    def excluding(
        self,
        *,
        masked: float | None = None,
        weight: str | None = None,
        coverage: float | None = None,
        track: Any = None,
        overlap: Any = None,
    ) -> Self:
        """
        Leave out windows that hold too little, or what is to be avoided.

        A window is left out if either of its two axes breaks a rule; one that is shifted, if it would
        in any epoch. What is left out is counted by the first rule that it breaks, in the order of the
        parameters.

        Parameters
        ----------
        masked : float, optional
            Largest part of the bins that may be masked, from 0 to 1: those where a balancing vector is
            not finite, or zero if it divides. Bins that are padded are masked.
        weight : str, optional
            Name of the balancing vector. Default: ``"weight"``.
        coverage : float, optional
            Smallest mean coverage of the bins, in the unit of `track`; a bin whose coverage is not
            finite counts as zero.
        track : str or array, optional
            Coverage of bins: the name of a coordinate, without 1 or 2, or a value for each bin of
            the file, such as that of `xl.statistics`. Default: ``"coverage"``.
        overlap : str, path-like, sequence of str or pandas.DataFrame, optional
            Regions of which no window may hold a position, such as a blacklist; as for `regions`.

        Returns
        -------
        Shape
            A new one. Rules add up.

        Raises
        ------
        PlanError
            If a bound is impossible, or belongs to nothing.
        ReadError, SchemaError
            If `overlap` cannot be read.

        Examples
        --------
        >>> shape = diagonal(size=64).excluding(masked=0.3)
        >>> [rule.reason for rule in shape.rules]
        ["with more than 0.3 of their bins masked in 'weight'"]
        """
        for name, given, owner, bound in (
            ("weight", weight, "masked", masked),
            ("track", track, "coverage", coverage),
        ):
            if given is not None and bound is None:
                msg = f"`{name}` says what `{owner}` is about, which is not given; give both"
                raise PlanError(msg)
        if masked is not None and not 0 <= masked <= 1:
            msg = f"masked={masked!r} is no part of the bins of a window; give one from 0 to 1"
            raise PlanError(msg)
        rules: list[Rule] = []
        if masked is not None:
            rules.append(Masked(masked, "weight" if weight is None else weight))
        if coverage is not None:
            rules.append(Covered(coverage, "coverage" if track is None else track))
        if overlap is not None:
            rules.append(Apart(read_table(overlap)))
        if not rules:
            msg = "nothing says what to exclude; give `masked`, `coverage` or `overlap`"
            raise PlanError(msg)
        return replace(self, rules=(*self.rules, *rules))


def _empty(windows: Windows, bins: ContactBins) -> tuple[str, ...]:
    """Return the chromosomes of either axis in which no window lies; others are not there to be seen."""
    assert windows.starts is not None
    there, full = dict[str, None](), set()
    for axis, starts in zip((bins.rows, bins.columns), windows.starts.T, strict=True):
        used = np.bincount(starts, minlength=max(r.stop for r in axis.regions))
        there |= dict.fromkeys(r.name for r in axis.regions)
        full |= {r.name for r in axis.regions if used[r.start : r.stop].any()}
    return tuple(name for name in there if name not in full)


@dataclass(frozen=True)
class Diagonal(Shape):
    """Square windows on the diagonal, as `diagonal` makes them."""

    size: Length
    """Length of a window, in bins or as text in bp."""
    stride: Length
    """Distance between neighbouring windows, in bins or as text in bp."""
    shift: Length = 0
    """What the random distances of windows from these places are less than."""

    @override
    def _place(self, bins: ContactBins, remainder: str) -> _Placed:
        size, stride = to_bins(self.size, bins.binsize), to_bins(self.stride, bins.binsize)
        pairs = bins.within()
        same = [(a, b) for a, b in pairs if (a.first_id, len(a)) == (b.first_id, len(b))]
        found = {r for pair in same for r in pair}
        for a, b in pairs:
            if not {a, b} <= found:
                msg = (
                    f"diagonal windows need the same bins on both axes, but {a.name!r} has {len(a)} "
                    f"bins from {a.first_id} on 'bin1' and {len(b)} from {b.first_id} on 'bin2'; select "
                    "the same bins on both, or use windows.grid"
                )
                raise PlanError(msg)
        long, short = by_length(bins.dims[:1], (size,), [(a,) for a, _ in same], remainder)
        kept = [pair for pair in same if (pair[0],) in long]
        shift = _shift(self.shift, bins)
        drawn = along_diagonal(kept, size, stride, flush=remainder != "drop", shift=shift)
        return _Placed((size, size), drawn, same, short)


@dataclass(frozen=True)
class Grid(Shape):
    """Windows on a grid within each chromosome, as `grid` makes them."""

    size: Length
    """Length of a window, in bins or as text in bp."""
    stride: Length
    """Distance between neighbouring windows along each axis, in bins or as text in bp."""
    max_distance: Length | None = None
    """Largest distance of a window's start from the diagonal, in bins or as text in bp."""
    triangle: Literal["both", "upper"] = "both"
    """Whether windows below the diagonal are drawn."""
    shift: Length = 0
    """What the random distances of windows from these places are less than."""

    @override
    def _place(self, bins: ContactBins, remainder: str) -> _Placed:
        size, stride = (to_bins(n, bins.binsize) for n in (self.size, self.stride))
        far = _FAR if self.max_distance is None else to_bins(self.max_distance, bins.binsize)
        long, short = by_length(bins.dims, (size, size), bins.within(), remainder)
        drawn = lattice(
            long,
            (size, size),
            (stride, stride),
            flush=remainder != "drop",
            bounds=(0 if self.triangle == "upper" else -far, far),
            shift=_shift(self.shift, bins),
        )
        return _Placed((size, size), drawn, bins.within(), short)


@dataclass(frozen=True)
class Between(Shape):
    """Windows on a grid between chromosomes, as `between` makes them."""

    size: Sizes
    """Length of a window, or one along rows and one along columns, in bins or as text in bp."""
    stride: Sizes
    """Distance between neighbouring windows along each axis, in the same ways."""
    pairs: tuple[tuple[str, str], ...] | None = None
    """Chromosomes along rows and columns; None for all pairs."""

    @override
    def _place(self, bins: ContactBins, remainder: str) -> _Placed:
        size, stride = (
            (to_bins(a, bins.binsize), to_bins(b, bins.binsize))
            for a, b in map(both_sides, (self.size, self.stride))
        )
        blocks = self._blocks(bins)
        long, short = by_length(bins.dims, size, blocks, remainder)
        drawn = lattice(long, size, stride, flush=remainder != "drop")
        return _Placed(size, drawn, blocks, short)

    def _blocks(self, bins: ContactBins) -> list[Pair]:
        """Return the runs of bins of each pair of chromosomes."""
        rows, columns = bins.rows.regions, bins.columns.regions
        names = bins.chromosomes()
        if self.pairs is None:
            place = {name: k for k, name in enumerate(names)}
            return [(a, b) for a in rows for b in columns if place[a.name] < place[b.name]]
        blocks = []
        for first, second in self.pairs:
            found = [(a, b) for a in rows for b in columns if (a.name, b.name) == (first, second)]
            if not found:
                guesses = [alike(c, names) for c in (first, second) if c not in names]
                hint = f"; is {guesses[0]!r} meant?" if guesses and guesses[0] else ""
                msg = (
                    f"there are no bins between {first!r} and {second!r}: rows have "
                    f"{list(dict.fromkeys(r.name for r in rows))}, columns "
                    f"{list(dict.fromkeys(r.name for r in columns))}{hint}"
                )
                raise PlanError(msg)
            blocks += found
        return blocks


@dataclass(frozen=True)
class Regions(Shape):
    """Windows in the middle of regions, as `regions` makes them."""

    table: Table
    """The regions."""
    size: Sizes | None = None
    """Length of a window, or one along rows and one along columns; None for that of the regions."""

    @override
    def _place(self, bins: ContactBins, remainder: str) -> _Placed:
        size = size_of(self.table, self.size, bins)
        drawn, left_out, short = place(self.table, size, bins, remainder)
        return _Placed(size, drawn, short=short, left_out=left_out)


def _shift(shift: Length, bins: ContactBins) -> int:
    n = to_bins(shift, bins.binsize)
    if n < 0:
        msg = f"shift={shift!r} is impossible; windows move by at least 0 bins"
        raise PlanError(msg)
    return n


def diagonal(*, size: Length, stride: Length | None = None, shift: Length = 0) -> Diagonal:
    """
    Ask for square windows on the diagonal of each chromosome.

    Parameters
    ----------
    size : int or str
        Length of a window, in bins, or in bp as ``"500kb"``.
    stride : int or str, optional
        Distance between neighbouring windows. Default: `size`.
    shift : int or str, optional
        In each epoch, each window is moved from its place towards the end of the chromosome by a
        random distance that is less than this, and does not leave the chromosome: a function of the
        seed, the epoch and the number of the window. Default: none is moved.

    Returns
    -------
    Diagonal
        For ``xl.Loader(..., windows=...)``.

    Examples
    --------
    >>> diagonal(size="640kb", stride=16, shift=16)
    Diagonal(rules=(), size='640kb', stride=16, shift=16)
    """
    return Diagonal(size, size if stride is None else stride, shift)


def grid(
    *,
    size: Length,
    stride: Length | None = None,
    max_distance: Length | None = None,
    triangle: Literal["both", "upper"] = "both",
    shift: Length = 0,
) -> Grid:
    """
    Ask for square windows on a grid within each chromosome.

    Parameters
    ----------
    size : int or str
        Length of a window, in bins, or in bp as ``"500kb"``.
    stride : int or str, optional
        Distance between neighbouring windows along each axis. Default: `size`.
    max_distance : int or str, optional
        Largest distance between the starts of a window along the two axes. Default: no limit.
    triangle : {"both", "upper"}, optional
        "upper" draws windows that start no later along rows than along columns. Those on the diagonal
        and those that cross it are whole, with the symmetric counts below it; those that start later
        along rows are left out, also where they cross it. No pair of bins is lost: each is, in one
        order or the other, in a window of "upper" if it is in a window of "both". Default: "both".
    shift : int or str, optional
        As for `diagonal`: both axes are moved by the same distance, so that distances from the
        diagonal stay. Default: none is moved.

    Returns
    -------
    Grid
        For ``xl.Loader(..., windows=...)``.

    Raises
    ------
    PlanError
        If `triangle` is unknown.

    Examples
    --------
    >>> grid(size=64, max_distance="2Mb", triangle="upper")
    Grid(rules=(), size=64, stride=64, max_distance='2Mb', triangle='upper', shift=0)
    """
    if triangle not in ("both", "upper"):
        msg = f"triangle={triangle!r} is unknown; choose 'both' or 'upper'"
        raise PlanError(msg)
    return Grid(size, size if stride is None else stride, max_distance, triangle, shift)


def between(*, size: Sizes, stride: Sizes | None = None, pairs: Any = None) -> Between:
    """
    Ask for windows between chromosomes: rows of one, columns of another.

    Parameters
    ----------
    size : int, str, or a pair of them
        Length of a window, in bins, or in bp as ``"500kb"``; of a pair, along rows and along columns.
    stride : int, str, or a pair of them, optional
        Distance between neighbouring windows along each axis. Default: `size`.
    pairs : sequence of pairs of str, optional
        Chromosomes along rows and along columns. Default: each pair once, the one that comes first in
        the file along rows.

    Returns
    -------
    Between
        For ``xl.Loader(..., windows=...)``.

    Raises
    ------
    PlanError
        If `pairs` are no pairs of different chromosomes.

    Examples
    --------
    >>> between(size=(64, 32), pairs=[("chr1", "chr2")])
    Between(rules=(), size=(64, 32), stride=(64, 32), pairs=(('chr1', 'chr2'),))
    """
    named = None if pairs is None else tuple(map(tuple, pairs))
    for pair in named or ():
        if len(pair) != 2 or pair[0] == pair[1] or not all(isinstance(c, str) for c in pair):
            msg = (
                f"{pair!r} are no two chromosomes; give pairs such as [('chr1', 'chr2')], and "
                "windows.grid for windows within one"
            )
            raise PlanError(msg)
    return Between(size, size if stride is None else stride, named)


def regions(table: Any, *, size: Sizes | None = None) -> Regions:
    """
    Ask for a window in the middle of each region of a table.

    The middle of a window of an odd number of bins is the bin that holds the middle of its region; that
    of an even number is the place nearest to it where two bins meet (the first of two). What becomes
    of windows that reach beyond the end of a chromosome is said by `remainder` of the Loader: "keep"
    moves them inward; "pad" serves bins that do not exist as NaN (zero in whole numbers), with `bin1`
    -1, `start1` and `end1` beyond the end and vectors NaN; "drop" leaves them out, and regions outside
    of all chromosomes as well, which are refused otherwise. All of them are counted.

    Parameters
    ----------
    table : str, path-like, sequence of str or pandas.DataFrame
        Regions as text (``"chr2:1,000,000-2,000,000"``), one or several; a BED file (windows on the
        diagonal) or a BEDPE file (one region along rows, one along columns), also compressed or at a URL; or a data frame with columns `chrom`, `start`, `end`, or `chrom1`,
        `start1`, `end1`, `chrom2`, `start2`, `end2`. Positions are in bp, 0-based and half-open.
    size : int, str, or a pair of them, optional
        Length of a window, in bins, or in bp as ``"500kb"``; of a pair, along rows and along columns.
        Default: that of the regions, if all have one.

    Returns
    -------
    Regions
        For ``xl.Loader(..., windows=...)``.

    Raises
    ------
    ReadError
        If the file cannot be read.
    SchemaError
        If a column is missing, or a row is no region; names file and line.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"chrom": ["chr1"], "start": [0], "end": [5_000]})
    >>> regions(frame, size="640kb")
    Regions(rules=(), table=<1 regions of the data frame>, size='640kb')
    """
    return Regions(read_table(table), size)
