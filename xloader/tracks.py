"""Signals along a genome (bigWig, bedGraph), as one value for each bin of a contact map."""

import itertools
import os
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from tqdm import tqdm

from xloader import schema
from xloader.axes import regions_of
from xloader.errors import ReadError, SchemaError, XloaderWarning, warn
from xloader.regions import alike

Floats = npt.NDArray[np.float64]
Means = Callable[[str, npt.NDArray[np.int64]], Floats]
"""Takes a chromosome and edges (bp); returns the mean signal between neighbouring edges."""

_BIGWIG = {b"\x26\xfc\x8f\x88", b"\x88\x8f\xfc\x26"}


def open_track(
    path: str | os.PathLike[str], bins: xr.Dataset | int, *, progress: bool = True
) -> xr.Dataset:
    r"""
    Read a signal along the genome as the mean of each bin.

    Parameters
    ----------
    path : str or path-like
        A bigWig file (needs the extra ``bigwig``), or a bedGraph: text of chromosome, start, end
        (bp, 0-based half-open, not overlapping) and value, gzipped or not.
    bins : xarray.Dataset or int
        The contact map whose bins are wanted; or their length in bp, for a bigWig, which knows the
        chromosomes.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        `signal (bin1)`, float32: the mean over the covered bases of each bin, NaN where none is;
        with `chrom1`, `start1` and `end1`, for `xloader.merge`. The attribute `missing` names
        chromosomes that the file lacks; a warning does so too.

    Raises
    ------
    ReadError
        If the file is missing or damaged; the message says where.
    SchemaError
        If no chromosome is in both, or bins are no whole number of bp.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "signal.bedgraph"
    >>> _ = path.write_text("c 0 5 2\nc 5 20 4\n")
    >>> bins = xr.Dataset(
    ...     coords={
    ...         "chrom1": ("bin1", ["c", "c", "c"]),
    ...         "start1": ("bin1", [0, 10, 20]),
    ...         "end1": ("bin1", [10, 20, 25]),
    ...     }
    ... )
    >>> open_track(path, bins)["signal"].values
    array([ 3.,  4., nan], dtype=float32)
    """
    file = Path(path)
    try:
        with file.open("rb") as f:
            magic = f.read(4)
    except OSError as e:
        msg = f"{str(file)!r} cannot be read ({e.strerror or e}); check the path"
        raise ReadError(msg) from e
    if magic in _BIGWIG:
        lengths, means = _bigwig(file)
    else:
        lengths, means = _bedgraph(file)
    if not isinstance(bins, xr.Dataset):
        bins = _regular(bins, lengths, file)
    schema.require(bins, ["chrom1", "start1", "end1"], "the bins of a track")
    chrom, start, end = (np.asarray(bins[f"{name}1"]) for name in ("chrom", "start", "end"))
    names = list(dict.fromkeys(chrom.tolist()))
    missing = [c for c in names if c not in lengths]
    if missing:
        _tell_missing(file, missing, names, list(lengths))
    signal = np.full(len(chrom), np.nan, np.float32)
    regions = [r for r in regions_of(chrom, np.arange(len(chrom))) if r.name in lengths]
    for r in tqdm(regions, desc=f"read {file.name}", unit="chromosome", disable=not progress):
        at = slice(r.start, r.stop)
        for a, b in _runs(start[at], end[at]):
            edges = np.append(start[at][a:b], end[at][b - 1]).astype(np.int64)
            signal[r.start + a : r.start + b] = means(r.name, edges)
    attrs = {"missing": missing} if missing else {}
    binsize = bins.attrs.get("binsize")
    coords = {str(k): v.variable for k, v in bins.coords.items() if v.dims == ("bin1",)}
    kept = {k: v for k, v in coords.items() if k in ("bin1", "chrom1", "start1", "end1")}
    return schema.keep_labels(
        xr.Dataset({"signal": ("bin1", signal)}, kept, {**attrs, "binsize": binsize})
    )


def _regular(binsize: Any, lengths: dict[str, int | None], file: Path) -> xr.Dataset:
    """Return the bins of a genome."""
    if not isinstance(binsize, int | np.integer) or binsize < 1:
        msg = f"bins={binsize!r} is neither a contact map nor a length in bp; give one of them"
        raise SchemaError(msg)
    known = {c: n for c, n in lengths.items() if n is not None}
    if len(known) < len(lengths):
        msg = f"{str(file)!r} does not say how long chromosomes are; give a contact map as `bins`"
        raise SchemaError(msg)
    starts = {c: np.arange(0, n, binsize, dtype=np.int64) for c, n in known.items()}
    chrom = np.repeat(np.array(list(starts), object), [len(s) for s in starts.values()])
    start = np.concatenate(list(starts.values()))
    stops = [np.minimum(s + binsize, known[c]) for c, s in starts.items()]
    coords = {
        "bin1": ("bin1", np.arange(len(start))),
        "chrom1": schema.label("bin1", chrom),
        "start1": ("bin1", start, {"units": "bp"}),
        "end1": ("bin1", np.concatenate(stops), {"units": "bp"}),
    }
    return xr.Dataset(coords=coords, attrs={"binsize": int(binsize)})


def _tell_missing(file: Path, missing: list[str], names: list[str], there: list[str]) -> None:
    said = (
        f"{str(file)!r} has no {missing[:8]}{' ...' if len(missing) > 8 else ''} ({len(missing)} of "
        f"{len(names)} chromosomes); it has {there[:8]}"
    )
    if len(missing) == len(names):
        meant = alike(names[0], there) or next(iter(get_close_matches(names[0], there)), None)
        hint = f"{names[0]!r} may be its {meant!r}: " if meant else ""
        msg = f"{said}; {hint}name chromosomes of both alike, with assign_coords on the Dataset"
        raise SchemaError(msg)
    warn(f"{said}; their bins are NaN", XloaderWarning)


def _runs(start: npt.NDArray[Any], end: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Yield runs of neighbouring bins."""
    breaks = np.flatnonzero(start[1:] != end[:-1]) + 1
    edges = [0, *breaks.tolist(), len(start)]
    yield from itertools.pairwise(edges)


def _bigwig(file: Path) -> tuple[dict[str, int | None], Means]:
    try:
        import pybigtools
    except ImportError as e:
        msg = f"{str(file)!r} is bigWig, which needs pybigtools: pip install 'xloader[bigwig]'"
        raise ImportError(msg) from e
    damaged = f"{str(file)!r} is no whole bigWig file; get a new copy"
    try:
        opened = pybigtools.open(str(file))
        lengths = dict(opened.chroms())
    except (pybigtools.BBIReadError, OSError) as e:
        raise ReadError(damaged) from e

    def means(chrom: str, edges: npt.NDArray[np.int64]) -> Floats:  # numpydoc ignore=GL08
        sizes = np.diff(edges)
        out = np.empty(len(sizes))
        breaks = np.flatnonzero(np.diff(sizes)) + 1
        for a, b in zip([0, *breaks.tolist()], [*breaks.tolist(), len(sizes)], strict=True):
            # exact: the file's own summaries of larger bins are off by some percent
            options = {"bins": b - a, "summary": "mean", "exact": True, "fillna": None}
            try:
                out[a:b] = opened.values(chrom, int(edges[a]), int(edges[b]), **options)
            except (pybigtools.BBIReadError, OSError) as e:
                msg = f"{damaged} ({chrom}:{edges[a]:,}-{edges[b]:,} cannot be read)"
                raise ReadError(msg) from e
        return out

    return lengths, means


def _bedgraph(file: Path) -> tuple[dict[str, int | None], Means]:
    columns = ["chrom", "start", "end", "value"]
    types = {"chrom": str, "start": np.int64, "end": np.int64, "value": np.float64}
    try:
        skip = _header_lines(file)
        table = pd.read_csv(
            file, sep=r"\s+", names=columns, dtype=types, skiprows=skip, compression=_packing(file)
        )
    except (ValueError, OSError, EOFError, UnicodeDecodeError) as e:
        msg = f"{str(file)!r} is neither bigWig nor bedGraph (lines of chromosome, start, end, value): {e}"
        raise ReadError(msg) from e
    bad = ~(table["start"] < table["end"]) | table["chrom"].isna()
    if bad.any():
        k = int(np.flatnonzero(bad)[0])
        msg = (
            f"{str(file)!r}, line {skip + k + 1}: {table.iloc[k].tolist()} is no interval; start must be "
            "below end"
        )
        raise ReadError(msg)
    parts: dict[str, tuple[Floats, Floats, Floats]] = {}
    for chrom, unsorted in table.groupby("chrom", sort=False):
        part = unsorted.sort_values("start")
        start, end = part["start"].to_numpy(), part["end"].to_numpy()
        over = np.flatnonzero(start[1:] < end[:-1])
        if len(over):
            k = over[0]
            msg = (
                f"{str(file)!r}: {chrom}:{start[k]:,}-{end[k]:,} and {chrom}:{start[k + 1]:,}-"
                f"{end[k + 1]:,} overlap; a bedGraph has one value for each base"
            )
            raise ReadError(msg)
        # covered bases and their sum, up to each edge: linear in between
        known = part["value"].notna().to_numpy()
        length, value = (end - start) * known, np.where(known, part["value"].to_numpy(), 0.0)
        at = np.stack([start, end], axis=1).ravel()
        covered, total = (
            np.stack([np.cumsum(x) - x, np.cumsum(x)], axis=1).ravel()
            for x in (length.astype(np.float64), length * value)
        )
        parts[str(chrom)] = at, covered, total

    def means(chrom: str, edges: npt.NDArray[np.int64]) -> Floats:  # numpydoc ignore=GL08
        at, covered, total = parts[chrom]
        n, sums = (np.diff(np.interp(edges, at, x)) for x in (covered, total))
        out = np.full(len(n), np.nan)
        np.divide(sums, n, out=out, where=n > 0)
        return out

    return dict.fromkeys(parts), means


def _packing(file: Path) -> Any:
    with file.open("rb") as f:
        return "gzip" if f.read(2) == b"\x1f\x8b" else None


def _header_lines(file: Path) -> int:
    """Count the lines before the first interval."""
    import gzip

    opener: Any = gzip.open if _packing(file) else Path.open
    with opener(file, "rt") as lines:
        for k, line in enumerate(lines):
            if not line.startswith(("#", "track", "browser")) and line.strip():
                return k
    msg = "there is no interval"
    raise ValueError(msg)
