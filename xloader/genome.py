"""Places on a genome: regions as text and tables, the bins that they touch, and where sets of them meet."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xloader.errors import SchemaError
from xloader.regions import alike, bounds_of, is_file, read_table

COLUMNS = ["chrom", "start", "end"]
"""Of a table of intervals: name, and bounds in bp, 0-based and half-open."""


def bins_of(ds: xr.Dataset, side: str) -> pd.DataFrame:
    """
    Return the bins along one dimension of a contact map.

    Parameters
    ----------
    ds : xarray.Dataset
        With coordinates `chrom`, `start` and `end` of that side.
    side : {"1", "2"}
        Which dimension.

    Returns
    -------
    pandas.DataFrame
        Columns `chrom`, `start` and `end`, in the order of the bins.
    """
    return pd.DataFrame({c: ds[f"{c}{side}"].to_numpy() for c in COLUMNS})


def ends_of(bins: pd.DataFrame) -> dict[str, int]:
    """
    Return where the last bin of each chromosome ends.

    Parameters
    ----------
    bins : pandas.DataFrame
        From `bins_of`.

    Returns
    -------
    dict of str to int
        In bp, in the order of the bins.
    """
    ends: dict[str, int] = bins.groupby("chrom", sort=False)["end"].max().to_dict()
    return ends


def parse(region: Any, lengths: Mapping[str, int]) -> tuple[str, int, int]:
    """
    Return the bounds of a region that is written as text.

    Parameters
    ----------
    region : str
        A chromosome (``"chr2"``) or a part of one (``"chr2:1,000,000-2,000,000"``, bp, 0-based
        half-open).
    lengths : mapping of str to int
        Ends of chromosomes, in bp.

    Returns
    -------
    tuple of str, int and int
        Chromosome, start and end.

    Raises
    ------
    SchemaError
        If it is no region, or none of these chromosomes has it.

    Examples
    --------
    >>> parse("chr2:1,000-2,000", {"chr2": 5000})
    ('chr2', 1000, 2000)
    """
    if not isinstance(region, str):
        msg = f"{region!r} is no region; name a chromosome, or a part such as 'chr1:0-5,000,000'"
        raise SchemaError(msg)
    if region in lengths:
        return region, 0, lengths[region]
    name, low, high = bounds_of(region) or (region, 0, 0)
    if name not in lengths:
        meant = alike(name, lengths)
        hint = f"; {meant!r} may be meant" if meant else ""
        msg = f"no chromosome {name!r} (region {region!r}), and no such file; there are {list(lengths)}{hint}"
        raise SchemaError(msg)
    if not low < high <= lengths[name]:
        msg = f"region {region!r} is not within {name!r}, which has 0-{lengths[name]:,} bp; choose a part of that"
        raise SchemaError(msg)
    return name, low, high


def as_table(regions: Any, lengths: Mapping[str, int]) -> pd.DataFrame:
    """
    Return regions as a table.

    Parameters
    ----------
    regions : str, path-like, sequence of str or pandas.DataFrame
        Regions as `parse` takes them, the path of a BED file, or a table with columns `chrom`,
        `start` and `end`; further columns are left out.
    lengths : mapping of str to int
        Ends of chromosomes, in bp.

    Returns
    -------
    pandas.DataFrame
        Columns `chrom`, `start` and `end`, in this order.

    Raises
    ------
    ReadError
        If a file cannot be read.
    SchemaError
        If a region is none, or lies outside its chromosome.
    """
    named = isinstance(regions, str) and regions not in lengths and is_file(regions)
    if not (named or isinstance(regions, pd.DataFrame | os.PathLike)):
        one = isinstance(regions, str) or not isinstance(regions, Iterable)
        texts = [regions] if one else regions
        return pd.DataFrame([parse(r, lengths) for r in texts], columns=COLUMNS)
    given = read_table(regions)
    if len(given.sides) > 1:
        msg = f"{given.name} holds pairs of regions; give one region a row: columns {COLUMNS}"
        raise SchemaError(msg)
    (side,) = given.sides
    table = pd.DataFrame({"chrom": side.chrom, "start": side.start, "end": side.end})
    last = table["chrom"].map(lengths)
    wrong = ~((table["start"] >= 0) & (table["start"] < table["end"]) & (table["end"] <= last))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        msg = (
            f"{int(wrong.sum())} of {len(table)} regions of {given.name} are not within the chromosomes "
            f"there are, the first of them in {given.row(row)}; ends are "
            f"{ {k: f'{v:,}' for k, v in lengths.items()} } bp; leave these regions out"
        )
        raise SchemaError(msg)
    return table


def as_text(chrom: str, start: int, end: int) -> str:
    """
    Write a region.

    Parameters
    ----------
    chrom : str
        Chromosome.
    start, end : int
        Bounds, in bp.

    Returns
    -------
    str
        As `parse` reads it.

    Examples
    --------
    >>> as_text("chr2", 1000, 2000)
    'chr2:1,000-2,000'
    """
    return f"{chrom}:{start:,}-{end:,}"


def touched(regions: pd.DataFrame, bins: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """
    Say which bins any of some regions touches.

    Parameters
    ----------
    regions, bins : pandas.DataFrame
        Columns `chrom`, `start` and `end`; bins of one chromosome do not overlap.

    Returns
    -------
    ndarray of bool, shape (n_bins,)
        True where a bin and a region share a base pair.

    Examples
    --------
    >>> bins = pd.DataFrame({"chrom": "a", "start": [0, 10, 20], "end": [10, 20, 30]})
    >>> touched(pd.DataFrame({"chrom": ["a"], "start": [5], "end": [20]}), bins)
    array([ True,  True, False])
    """
    out = np.zeros(len(bins), bool)
    groups = dict(iter(regions.groupby("chrom", sort=False)))
    for chrom, here in bins.groupby("chrom", sort=False).indices.items():
        if chrom not in groups:
            continue
        start, end = (bins[c].to_numpy()[here] for c in ("start", "end"))
        order = np.argsort(start, kind="stable")
        first = np.searchsorted(end[order], groups[chrom]["start"].to_numpy(), "right")
        last = np.searchsorted(start[order], groups[chrom]["end"].to_numpy(), "left")
        # a region in a hole between bins touches none
        opened = np.bincount(first, minlength=len(here) + 1)
        closed = np.bincount(np.maximum(first, last), minlength=len(here) + 1)
        out[here[order]] = np.cumsum(opened - closed)[:-1] > 0
    return out


def merged(intervals: pd.DataFrame) -> pd.DataFrame:
    """
    Return the union of some intervals.

    Parameters
    ----------
    intervals : pandas.DataFrame
        Columns `chrom`, `start` and `end`.

    Returns
    -------
    pandas.DataFrame
        Intervals that neither overlap nor adjoin, sorted within each chromosome.

    Examples
    --------
    >>> merged(pd.DataFrame({"chrom": "a", "start": [10, 0, 40], "end": [20, 10, 50]})).values
    array([['a', 0, 20],
           ['a', 40, 50]], dtype=object)
    """
    parts = []
    for chrom, group in intervals.groupby("chrom", sort=False):
        start, end = (group[c].to_numpy() for c in ("start", "end"))
        order = np.argsort(start, kind="stable")
        start, reach = start[order], np.maximum.accumulate(end[order])
        begins = np.flatnonzero(np.append(True, start[1:] > reach[:-1]))
        ends = reach[np.append(begins[1:], len(start)) - 1]
        parts.append(pd.DataFrame({"chrom": chrom, "start": start[begins], "end": ends}))
    return pd.concat(parts, ignore_index=True) if parts else intervals[COLUMNS]


def shared(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """
    Return where two sets of intervals meet.

    Parameters
    ----------
    first, second : pandas.DataFrame
        From `merged`.

    Returns
    -------
    pandas.DataFrame
        Columns `chrom`, `start` and `end`; empty where they have nothing in common.

    Examples
    --------
    >>> a = pd.DataFrame({"chrom": ["a"], "start": [0], "end": [20]})
    >>> shared(a, pd.DataFrame({"chrom": ["a"], "start": [15], "end": [30]})).values
    array([['a', 15, 20]], dtype=object)
    """
    parts = []
    of_second = dict(iter(second.groupby("chrom", sort=False)))
    for chrom, a in first.groupby("chrom", sort=False):
        if chrom not in of_second:
            continue
        b = of_second[chrom]
        low = np.searchsorted(b["end"].to_numpy(), a["start"].to_numpy(), "right")
        high = np.searchsorted(b["start"].to_numpy(), a["end"].to_numpy(), "left")
        i = np.repeat(np.arange(len(a)), high - low)
        j = np.arange(len(i)) - np.repeat(np.cumsum(high - low) - high, high - low)
        start = np.maximum(a["start"].to_numpy()[i], b["start"].to_numpy()[j])
        end = np.minimum(a["end"].to_numpy()[i], b["end"].to_numpy()[j])
        parts.append(pd.DataFrame({"chrom": chrom, "start": start, "end": end}))
    return pd.concat(parts, ignore_index=True) if parts else first[COLUMNS].iloc[:0]
