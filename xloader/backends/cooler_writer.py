"""Contact maps written as cooler, schema version 3: pixels in order, in bounded memory."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from xloader.errors import SchemaError
from xloader.schema import Column

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]

PIXELS = 2**20
"""Pixels that are held at a time while a map is coarsened; about 50 bytes each."""

_PACKED = {"compression": "gzip", "compression_opts": 6, "shuffle": True}
_CHUNK = 2**16


@dataclass(frozen=True)
class Bins:
    """The bins of a map."""

    names: list[str]
    """Chromosomes, in order."""
    lengths: Int64
    """Their lengths, in bp."""
    chrom: Int64
    """Which chromosome each bin is of, increasing."""
    start: Int64
    """First position of each, in bp."""
    end: Int64
    """The one after its last."""
    binsize: int | None
    """Length of a bin, in bp; None where it varies."""
    columns: Mapping[str, Column]
    """Balancing vectors and other columns, with their attributes."""

    @classmethod
    def regular(cls, names: list[str], lengths: Int64, binsize: int) -> "Bins":
        """
        Cut chromosomes into bins of one length; the last of each is what is left.

        Parameters
        ----------
        names : list of str
            Chromosomes, in order.
        lengths : ndarray of int64, shape (n_chroms,)
            Their lengths, in bp.
        binsize : int
            Length of a bin, in bp.

        Returns
        -------
        Bins
            Without columns.
        """
        n_of = -(-lengths // binsize)
        chrom = np.repeat(np.arange(len(names)), n_of)
        start = (np.arange(len(chrom)) - np.repeat(np.cumsum(n_of) - n_of, n_of)) * binsize
        end = np.minimum(start + binsize, lengths[chrom])
        return cls(names, lengths, chrom, start, end, binsize, {})

    def __len__(self) -> int:
        return len(self.start)

    @property
    def first(self) -> Int64:
        """
        Return where each chromosome begins.

        Returns
        -------
        ndarray of int64, shape (n_chroms + 1,)
            Its first bin, and the number of bins.
        """
        return np.searchsorted(self.chrom, np.arange(len(self.names) + 1))

    def coarser(self, factor: int) -> "tuple[Bins, Int64]":
        """
        Join neighbouring bins, within chromosomes.

        Parameters
        ----------
        factor : int
            How many become one; fewer at the ends of chromosomes.

        Returns
        -------
        bins : Bins
            Without columns.
        number : ndarray of int64, shape (n_bins,)
            In which of them each bin is.
        """
        within = np.arange(len(self)) - self.first[self.chrom]
        new = within % factor == 0
        first = np.flatnonzero(new)
        last = np.append(first[1:], len(self)) - 1
        binsize = None if self.binsize is None else self.binsize * factor
        places = self.chrom[first], self.start[first], self.end[last]
        bins = Bins(self.names, self.lengths, *places, binsize, {})
        return bins, np.cumsum(new) - 1


class CoolerWriter:
    """
    Writes one map into a group.

    Parameters
    ----------
    group : h5py.Group
        An empty group.
    bins : Bins
        Its bins.
    dtype : dtype-like
        Type of the counts.
    symmetric : bool, optional
        Whether pixels are those on and above the diagonal of a symmetric map.
    assembly : str, optional
        Name of the genome.
    """

    def __init__(
        self,
        group: h5py.Group,
        bins: Bins,
        dtype: npt.DTypeLike,
        *,
        symmetric: bool = True,
        assembly: str = "unknown",
    ) -> None:
        self.group, self.bins = group, bins
        self.dtype = np.dtype(dtype)
        self.symmetric, self.assembly = symmetric, assembly
        self.n_pixels, self.total = 0, 0
        self._each = np.zeros(len(bins), np.int64)
        self._write_bins()
        types = {"bin1_id": np.dtype("i8"), "bin2_id": np.dtype("i8"), "count": self.dtype}
        self._pixels = [
            group.create_dataset(
                f"pixels/{name}", (0,), kind, maxshape=(None,), chunks=(_CHUNK,), **_PACKED
            )
            for name, kind in types.items()
        ]

    def _write_bins(self) -> None:
        group, bins = self.group, self.bins
        group["chroms/name"] = np.array([name.encode() for name in bins.names], "S")
        group["chroms/length"] = bins.lengths.astype("i4")
        chrom = bins.chrom.astype("i4")
        kind = h5py.enum_dtype({name: k for k, name in enumerate(bins.names)}, basetype="i4")
        try:
            group.create_dataset("bins/chrom", data=chrom, dtype=kind, **_chunked(chrom))
        except (ValueError, OSError):  # more names than a header holds; cooler writes numbers, too
            group.create_dataset("bins/chrom", data=chrom, **_chunked(chrom))
        for name, values in (("start", bins.start), ("end", bins.end)):
            group.create_dataset(f"bins/{name}", data=values.astype("i4"), **_chunked(values))
        for name, (column, attrs) in bins.columns.items():
            text = column.dtype.kind in "OUT"
            data = np.array([str(v).encode() for v in column], "S") if text else column
            dataset = group.create_dataset(f"bins/{name}", data=data, **_chunked(data))
            for key, value in attrs.items():
                try:
                    dataset.attrs["divisive_weights" if key == "divisive" else key] = value
                except TypeError as e:
                    msg = (
                        f"attribute {key!r} of `{name}` is {type(value).__name__}, which HDF5 does not "
                        "hold; drop it, or make it numbers or text"
                    )
                    raise SchemaError(msg) from e

    def append(self, bin1: Int64, bin2: Int64, count: Array) -> None:
        """
        Append pixels.

        Parameters
        ----------
        bin1, bin2 : ndarray of int64, shape (n,)
            Their bins, sorted by both, after all that were appended before.
        count : ndarray, shape (n,)
            Their counts.
        """
        stop = self.n_pixels + len(bin1)
        for dataset, values in zip(self._pixels, (bin1, bin2, count), strict=True):
            dataset.resize((stop,))
            dataset[self.n_pixels : stop] = values
        self.n_pixels = stop
        self._each += np.bincount(bin1, minlength=len(self.bins))
        self.total += count.sum(dtype=np.float64 if self.dtype.kind == "f" else np.int64).item()

    def close(self) -> None:
        """Write the indexes and what describes the map."""
        bins = self.bins
        self.group["indexes/bin1_offset"] = np.append(0, np.cumsum(self._each))
        self.group["indexes/chrom_offset"] = bins.first
        self.group.attrs.update(
            {
                "format": "HDF5::Cooler",
                "format-version": 3,
                "format-url": "https://github.com/open2c/cooler",
                "bin-type": "variable" if bins.binsize is None else "fixed",
                "bin-size": "null" if bins.binsize is None else bins.binsize,
                "storage-mode": "symmetric-upper" if self.symmetric else "square",
                "genome-assembly": self.assembly,
                "generated-by": "xloader",
                "metadata": "{}",
                "nbins": len(bins),
                "nchroms": len(bins.names),
                "nnz": self.n_pixels,
                "sum": self.total,
            }
        )


def _chunked(values: Array) -> dict[str, Any]:
    return _PACKED if len(values) else {}


def begin_mcool(file: h5py.File) -> None:
    """
    Mark a file as one of several resolutions.

    Parameters
    ----------
    file : h5py.File
        An empty file; maps go into its groups ``resolutions/<bin size>``.
    """
    file.attrs.update({"format": "HDF5::MCOOL", "format-version": 2, "bin-type": "fixed"})


def coarsen(base: CoolerWriter, group: h5py.Group, factor: int) -> CoolerWriter:
    """
    Write a coarser map: counts are summed over squares of bins.

    Parameters
    ----------
    base : CoolerWriter
        A map that was closed, in a file that is still open.
    group : h5py.Group
        An empty group.
    factor : int
        How many bins become one.

    Returns
    -------
    CoolerWriter
        Closed. Integers have the type of `base`, or int64 where their sum might not fit.
    """
    bins, number = base.bins.coarser(factor)
    dtype = base.dtype
    if dtype.kind in "iu" and base.total > np.iinfo(dtype).max:
        dtype = np.dtype(np.int64)
    out = CoolerWriter(group, bins, dtype, symmetric=base.symmetric, assembly=base.assembly)
    offset = base.group["indexes/bin1_offset"][()]
    first = np.searchsorted(number, np.arange(len(bins) + 1))  # finer bins of each coarser one
    for row, last in _runs(offset[first]):
        rows = (int(first[row]), int(first[last]))
        keys, counts = _summed(base, offset, rows, number, len(bins))
        out.append(keys // len(bins), keys % len(bins), counts.astype(dtype))
    out.close()
    return out


def _runs(offset: Int64) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of about `PIXELS` pixels, at least one row each."""
    row = 0
    while row < len(offset) - 1:
        fits = int(np.searchsorted(offset, offset[row] + PIXELS, "right")) - 1
        last = max(fits, row + 1)
        yield row, last
        row = last


def _summed(
    base: CoolerWriter, offset: Int64, rows: tuple[int, int], number: Int64, n: int
) -> tuple[Int64, Array]:
    """Return the coarser pixels of some rows, as ``bin1 * n + bin2`` and sums, in order."""
    start, stop = (int(offset[row]) for row in rows)
    keys = np.zeros(0, np.int64)
    sums = np.zeros(0, np.float64 if base.dtype.kind == "f" else np.int64)
    for a, b in itertools.pairwise([*range(start, stop, PIXELS), stop]):
        bin1 = np.searchsorted(offset, np.arange(a, b), "right") - 1
        bin2 = base.group["pixels/bin2_id"][a:b]
        count = base.group["pixels/count"][a:b]
        every = np.append(keys, number[bin1] * n + number[bin2])
        order = np.argsort(every, kind="stable")
        every, values = every[order], np.append(sums, count.astype(sums.dtype))[order]
        new = np.flatnonzero(np.diff(every, prepend=-1))
        keys, sums = every[new], np.add.reduceat(values, new)
    return keys, sums
