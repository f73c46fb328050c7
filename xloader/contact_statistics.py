"""Statistics of the contacts within chromosomes: every stored chunk is read once, in bounded memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from dask.utils import format_bytes
from tqdm import tqdm

from xloader import genome, schema, trace
from xloader.arrays import TileArray
from xloader.axes import Windows
from xloader.chunks import Grid, dask_grid, file_grid, tile_grid
from xloader.contract import fusion_of
from xloader.errors import PlanError, SchemaError
from xloader.histogram import Exact, Histogram, Rounded
from xloader.packed import compiled
from xloader.state import digest
from xloader.transforms import balance

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_PROBES = 8
_VALUES = 2**18
_COUNTING = 2**24
"""Bytes for values that were met, and for counting them."""


@dataclass(frozen=True)
class Settings:
    """What is asked about a contact map."""

    variable: str
    """Name of the counts."""
    weight: str
    """Balancing vector, or "" for counts as they are."""
    ignore_diags: int
    """Pairs of bins that are nearer than this many bins do not count."""
    quantiles: tuple[float, ...]
    """Of which percentiles are asked for."""


class Contacts:
    """
    A square contact map, and where its pairs of bins are stored.

    Parameters
    ----------
    ds : xarray.Dataset
        The same bins on both dimensions, in any order.
    settings : Settings
        What is asked.

    Raises
    ------
    SchemaError
        If it is no such map, or lacks the balancing vector.
    """

    def __init__(self, ds: xr.Dataset, settings: Settings) -> None:
        schema.require(ds, [settings.variable, "bin1", "bin2"], "statistics of contacts")
        if set(ds[settings.variable].dims) != {"bin1", "bin2"}:
            msg = (
                f"statistics of contacts need a variable (bin1, bin2), but {settings.variable!r} has "
                f"{ds[settings.variable].dims}; select one of what the other dimensions hold"
            )
            raise SchemaError(msg)
        ids, others = (ds[f"bin{side}"].to_numpy() for side in "12")
        if not np.array_equal(ids, others) or not 0 < len(ids) == len(np.unique(ids)):
            msg = (
                f"statistics of contacts need the same bins on both axes, each once, and there are "
                f"{len(ids)} on bin1 and {len(others)} on bin2; select the same on both, as xl.split does"
            )
            raise SchemaError(msg)
        order = np.argsort(ids)
        if (np.diff(order) != 1).any():
            ds = ds.isel(bin1=order, bin2=order)
        self.ds, self.settings = ds, settings
        self.ids: Int64 = ds["bin1"].to_numpy().astype(np.int64)
        self.bins = genome.bins_of(ds, "1")
        codes, chroms = pd.factorize(self.bins["chrom"])
        self.codes, self.chroms = codes.astype(np.int64), np.asarray(chroms)
        self.factors = self._factors()
        first, last = (
            self.bins.assign(id=self.ids).groupby(self.codes)["id"].agg(f) for f in ("min", "max")
        )
        self.first: Int64 = first.to_numpy()
        self.lengths: Int64 = (last - first).to_numpy() + 1
        self.begins: Int64 = np.append(0, np.cumsum(self.lengths)[:-1])
        variable = ds[settings.variable].variable.transpose("bin1", "bin2")
        self.dtype = variable.dtype
        self.grid, self.index = _grid(variable)
        self.chunks = [
            np.searchsorted(e, i, "right") - 1
            for e, i in zip(self.grid.edges, self.index, strict=True)
        ]

    def _factors(self) -> Floats:
        """Return what counts are multiplied by on either side, NaN where a bin is masked."""
        name = self.settings.weight
        if not name:
            return np.ones(len(self.ids))
        both = [f"{name}1", f"{name}2"]
        if not set(both) <= set(self.ds.coords):
            there = sorted({str(c)[:-1] for c in self.ds.coords if "divisive" in self.ds[c].attrs})
            msg = (
                f"balancing vector {name!r} is not in this map; it has {there or 'none'}: `weight=`"
            )
            raise SchemaError(msg)
        fusion, _ = fusion_of(balance(name, self.settings.variable))
        assert fusion is not None  # balancing is what readers can do
        rows, columns = (fusion.factors(self.ds.variables[c]).astype(np.float64) for c in both)
        if not np.array_equal(rows, columns, equal_nan=True):
            msg = f"{both[0]!r} and {both[1]!r} differ, but one bin has one weight; make them equal"
            raise SchemaError(msg)
        return rows

    @property
    def chunk_nbytes(self) -> int:
        """
        Return the size of the largest chunk.

        Returns
        -------
        int
            Bytes.
        """
        return int(np.prod([*self.grid.largest, self.dtype.itemsize]))

    def needed(self) -> Iterator[Int64]:
        """
        Yield the chunks that hold pairs of bins that count, each once.

        Yields
        ------
        ndarray of int64, shape (m, 2)
            Grid positions of one row of chunks, sorted.
        """
        sides = []
        for chunk, nearest in zip(self.chunks, ("min", "max"), strict=True):
            found = pd.DataFrame({"chunk": chunk, "code": self.codes, "id": self.ids})
            sides.append(found.groupby(["chunk", "code"])["id"].agg(nearest).reset_index())
        columns = dict(iter(sides[1].groupby("code")))
        for row, group in sides[0].groupby("chunk"):
            parts = []
            for code, low in zip(group["code"], group["id"], strict=True):
                far = columns[code]["id"].to_numpy() - low >= self.settings.ignore_diags
                parts.append(columns[code]["chunk"].to_numpy()[far])
            across = np.unique(np.concatenate(parts))
            yield np.stack([np.full(len(across), row), across], axis=1).astype(np.int64)

    def n_pairs(self) -> Int64:
        """
        Count the pairs of bins that are not masked, by chromosome and distance.

        Returns
        -------
        ndarray of int64, shape (sum of lengths,)
            Chromosome after chromosome.
        """
        parts = []
        seen = ~np.isnan(self.factors)
        for code, (first, length) in enumerate(
            zip(self.first.tolist(), self.lengths.tolist(), strict=True)
        ):
            there = np.zeros(length)
            there[self.ids[(self.codes == code) & seen] - first] = 1
            # the correlation of a mask with itself; whole numbers, far larger than the rounding
            power = np.abs(np.fft.rfft(there, 2 * length)) ** 2
            parts.append(np.rint(np.fft.irfft(power, 2 * length)[:length]).astype(np.int64))
        return np.concatenate(parts)


def _grid(variable: xr.Variable) -> tuple[Grid, tuple[Int64, ...]]:
    """Return the chunks of a variable, and the position in them of each of its positions."""
    view = trace.view(variable)
    if view is not None and isinstance(view.array, TileArray):
        rows, columns = view.index
        # tiles above the diagonal are enough where stored bins have the order of the genome
        if np.array_equal(rows, columns) and (np.diff(rows) > 0).all():
            return tile_grid(view.array), view.index
    if variable.chunks is not None:
        return dask_grid(variable), tuple(np.arange(n) for n in variable.shape)
    single = Windows(("bin1", "bin2"), (1, 1), np.zeros((1, 2), np.int64), 1)
    return file_grid(variable, single)


class _Probe:
    """The counts of a few pairs of bins, from which other data are told."""

    def __init__(self, contacts: Contacts) -> None:
        n, near = len(contacts.ids), contacts.settings.ignore_diags
        first = np.repeat(np.unique(np.linspace(0, n - 1, _PROBES).astype(np.int64)), _PROBES)
        second = first + np.tile(np.arange(near, near + _PROBES), len(first) // _PROBES)
        first, second = first[second < n], second[second < n]
        same = contacts.codes[first] == contacts.codes[second]
        pairs = [first[same], second[same]]
        chunks = np.stack([c[p] for c, p in zip(contacts.chunks, pairs, strict=True)], axis=1)
        sides = zip(contacts.grid.edges, contacts.index, pairs, chunks.T, strict=True)
        self._inside = [index[p] - edges[c] for edges, index, p, c in sides]
        self.counts = np.zeros(len(chunks))
        self._at: dict[tuple[int, ...], list[int]] = {}
        for k, chunk in enumerate(chunks.tolist()):
            self._at.setdefault(tuple(chunk), []).append(k)

    @property
    def chunks(self) -> Int64:
        return np.array(sorted(self._at), np.int64).reshape(-1, 2)

    def take(self, chunk: Sequence[int], block: npt.NDArray[Any]) -> None:
        k = self._at.get(tuple(chunk))
        if k is not None:
            self.counts[k] = block[self._inside[0][k], self._inside[1][k]]


def fingerprint(contacts: Contacts, probe: "_Probe | None" = None) -> str:
    """
    Return what tells a map, its selection and what is asked from others.

    Parameters
    ----------
    contacts : Contacts
        What is told.
    probe : _Probe, optional
        With values; read if not given.

    Returns
    -------
    str
        Of the bins, their factors, the counts of up to 64 pairs, and all settings.
    """
    if probe is None:
        probe = _Probe(contacts)
        chunks = probe.chunks
        for chunk, block in zip(chunks.tolist(), contacts.grid.fetch(chunks), strict=True):
            probe.take(chunk, block)
    s, bins = contacts.settings, contacts.bins
    asked = (s.variable, s.weight, s.ignore_diags, s.quantiles)
    names = pd.util.hash_array(bins["chrom"].to_numpy())
    places = [bins[c].to_numpy().astype(np.int64) for c in ("start", "end")]
    return digest(
        [*asked, contacts.dtype.str, names, places, contacts.ids, contacts.factors, probe.counts]
    )


class _Tally:
    """Sums over all pairs of bins."""

    def __init__(self, contacts: Contacts) -> None:
        self.contacts = contacts
        n = int(contacts.lengths.sum())
        self.sums, self.squares = np.zeros(n), np.zeros(n)
        self.missing = np.zeros(n, np.int64)
        self.coverage = np.zeros(len(contacts.ids))
        whole = contacts.dtype.kind in "iub" and not contacts.settings.weight
        self.histogram: Histogram = Exact() if whole else Rounded()
        self._values = np.empty(max(_VALUES, 2 * contacts.grid.largest[1]))
        self._n = 0
        self._numbers = []
        for edges, index in zip(contacts.grid.edges, contacts.index, strict=True):
            numbers = np.full(edges[-1], -1)
            numbers[index] = np.arange(len(index))
            self._numbers.append(numbers)

    def add(self, chunk: Sequence[int], block: npt.NDArray[Any]) -> None:
        """Add up what one chunk holds."""
        from xloader.kernels.tally import tally  # numba is imported when something is counted

        c = self.contacts
        sides = zip(c.grid.edges, chunk, self._numbers, strict=True)
        rows, columns = (numbers[e[k] : e[k + 1]] for e, k, numbers in sides)
        block = np.ascontiguousarray(block, compiled(block.dtype))
        what = (rows, columns, c.ids, c.codes, c.begins, c.factors, c.settings.ignore_diags)
        to = (self.sums, self.squares, self.missing, self.coverage, self._values)
        row = 0
        while row < len(block):
            row, self._n = tally(block, row, *what, *to, self._n)
            if row < len(block):
                self.flush()

    def flush(self) -> None:
        """Count the values that were met."""
        self.histogram.add(self._values[: self._n])
        self._n = 0


def contact_statistics(
    ds: xr.Dataset, settings: Settings, *, budget: int, progress: bool
) -> tuple[xr.Dataset, str]:
    """
    Return the statistics of the contacts within chromosomes.

    Parameters
    ----------
    ds : xarray.Dataset
        A contact map with the same bins on both axes.
    settings : Settings
        What is asked.
    budget : int
        Bytes that reading and counting may take.
    progress : bool
        Whether a progress bar is shown if it takes more than 2 s.

    Returns
    -------
    figures : xarray.Dataset
        As the page about contacts describes them.
    fingerprint : str
        What tells this map from others.

    Raises
    ------
    PlanError
        If sums or a single chunk do not fit the budget.
    SchemaError
        If it is no square contact map, or lacks the balancing vector.
    """
    contacts = Contacts(ds, settings)
    most = _chunks_at_a_time(contacts, budget)
    probe, counted = _Probe(contacts), _Tally(contacts)
    total = sum(map(len, contacts.needed()))
    with tqdm(total=total, desc="statistics", unit="chunk", delay=2, disable=not progress) as bar:
        for chunks in _bands(contacts.needed(), most):
            blocks = contacts.grid.fetch(chunks)
            for chunk, block in zip(chunks.tolist(), blocks, strict=True):
                probe.take(chunk, block)
                counted.add(chunk, block)
            bar.update(len(chunks))
    counted.flush()
    return _labelled(counted), fingerprint(contacts, probe)


def _chunks_at_a_time(contacts: Contacts, budget: int) -> int:
    """Divide what sums and results leave of a budget: a third for chunks, the rest to read them."""
    n, longest = int(contacts.lengths.sum()), int(contacts.lengths.max())
    sums = 8 * (3 * n + 8 * len(contacts.ids) + 8 * len(contacts.chroms) * longest) + _COUNTING
    most = (budget - sums) // (3 * contacts.chunk_nbytes)
    if most < 1:
        msg = (
            f"sums over {len(contacts.chroms)} chromosomes of up to {longest:,} bins take {format_bytes(sums)}, and "
            f"a chunk while it is read {format_bytes(3 * contacts.chunk_nbytes)}, but memory_budget is "
            f"{format_bytes(budget)}; allow {format_bytes(sums + 3 * contacts.chunk_nbytes)}, or leave out "
            "chromosomes, of which each takes as much as the longest"
        )
        raise PlanError(msg)
    return most


def _bands(needed: Iterator[Int64], most: int) -> Iterator[Int64]:
    """Join rows of chunks as long as they fit, and cut those that do not."""
    held: list[Int64] = []
    for row in needed:
        if held and sum(map(len, held)) + len(row) > most:
            yield np.concatenate(held)
            held = []
        *parts, last = (row[k : k + most] for k in range(0, max(len(row), 1), most))
        yield from parts
        held.append(last)
    if held:
        yield np.concatenate(held)


def _labelled(counted: _Tally) -> xr.Dataset:
    """Return the results of a count."""
    c, s = counted.contacts, counted.contacts.settings
    n_pairs = c.n_pairs() - counted.missing
    far = np.concatenate([np.arange(n) for n in c.lengths]) >= s.ignore_diags
    tables = [_by_chrom(c, x) for x in (n_pairs * far, counted.sums, counted.squares)]
    expected, std = _moments(*tables)
    pooled = _moments(*(x.sum(axis=0) for x in tables))
    n, *_ = totals = [x.sum() for x in tables]
    mean, std_overall = _moments(*totals)
    histogram = counted.histogram
    histogram.add(np.zeros(1), int(n) - int(histogram.counted()[1].sum()))
    masked = np.isnan(c.factors)
    both = ("chrom", "distance")
    error = {"relative_error": histogram.error}
    data = {
        "expected": (both, expected),
        "std": (both, std),
        "n_pairs": (both, _by_chrom(c, n_pairs)),
        "expected_pooled": ("distance", pooled[0]),
        "std_pooled": ("distance", pooled[1]),
        "mean": ((), mean),
        "std_overall": ((), std_overall),
        "percentile": ("quantile", histogram.quantiles(s.quantiles), error),
        "coverage": ("bin1", np.where(masked, np.nan, counted.coverage)),
        "n_masked": ("chrom", np.bincount(c.codes[masked], minlength=len(c.chroms))),
    }
    coords = {
        "chrom": c.chroms.astype(object),
        "distance": ("distance", np.arange(c.lengths.max()), {"units": "bins"}),
        "quantile": list(s.quantiles),
        "bin1": c.ids,
        "chrom1": ("bin1", c.bins["chrom"].to_numpy(object)),
        "start1": ("bin1", c.bins["start"].to_numpy(), {"units": "bp"}),
        "end1": ("bin1", c.bins["end"].to_numpy(), {"units": "bp"}),
    }
    attrs: dict[str, Any] = {"weight": s.weight, "ignore_diags": s.ignore_diags}
    binsize = c.ds.attrs.get("binsize")
    if binsize is not None:  # variable bins have none
        attrs["binsize"] = int(binsize)
    return xr.Dataset(data, coords, attrs)


def _moments(n: Any, sums: Any, squares: Any) -> tuple[Any, Any]:
    """Return means and deviations of samples; NaN where there are too few values."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, sums / n, np.nan)
        variance = np.where(n > 1, (squares - sums * mean) / (n - 1), np.nan)
    return mean, np.sqrt(np.maximum(variance, 0))  # rounding may leave less than nothing


def _by_chrom(contacts: Contacts, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what lies chromosome after chromosome as rows, shape (n_chroms, longest)."""
    out = np.zeros((len(contacts.chroms), int(contacts.lengths.max())), flat.dtype)
    begins, lengths = contacts.begins.tolist(), contacts.lengths.tolist()
    for row, begin, length in zip(out, begins, lengths, strict=True):
        row[:length] = flat[begin : begin + length]
    return out
