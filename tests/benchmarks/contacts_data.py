"""Contact maps of the benchmarks: a chromosome like human chr1 at 10 kb, a small one, real yeast."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from tests.benchmarks.runner import Failure, apart, code_stamp

YEAST = Path("hic", "scer_w303_g1_2kb_SRR8769554.cool")
LENGTH = 248_956_422
BINSIZE = 10_000
N_BIG = -(-LENGTH // BINSIZE)
N_SMALL = 600
N_TINY = 64
N_LOW = 345
CENTROMERE = (12_150, 13_050)
ROWS = 256

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """Square windows of a map, per chromosome, never across; those past the end are left out."""

    on_diagonal: bool
    stride: int
    max_distance: int | None = None
    size: int = 256

    def draw(self, map_: "Map") -> Ints:
        """Return chromosome, first row and first column of each window, within its chromosome."""
        found = []
        for chrom, n in enumerate(np.diff(map_.offsets)):
            starts = np.arange(0, n - self.size + 1, self.stride)
            i, j = (x.ravel() for x in np.meshgrid(starts, starts, indexing="ij"))
            near = abs(i - j) <= (n if self.max_distance is None else self.max_distance)
            kept = (i == j) if self.on_diagonal else near
            found.append(np.stack([np.full(kept.sum(), chrom), i[kept], j[kept]], axis=1))
        return np.concatenate(found)


@dataclass(frozen=True)
class Map:
    """Chromosomes of a cooler and its bins."""

    names: list[str]
    lengths: Ints
    offsets: Ints
    binsize: int
    weight: npt.NDArray[np.float64]

    @classmethod
    def of(cls, cool: Path) -> "Map":
        """Read a cooler."""
        with h5py.File(cool) as f:
            return cls(
                [str(name) for name in f["chroms/name"].asstr()[:]],
                f["chroms/length"][:],
                f["indexes/chrom_offset"][:],
                int(f.attrs["bin-size"]),
                f["bins/weight"][:],
            )

    def region(self, chrom: int, start: int, size: int) -> str:
        """Return a run of bins of a chromosome as UCSC text."""
        end = min((start + size) * self.binsize, int(self.lengths[chrom]))
        return f"{self.names[chrom]}:{start * self.binsize}-{end}"


def yeast(folder: Path, small: bool) -> None:
    """Make `yeast.cool`, a store of it in each codec, and a dense one for xbatcher."""
    cool = folder / "yeast.cool"
    real = Path(os.environ.get("XLOADER_TEST_DATA", ""), YEAST)
    if small:
        _simulated(cool, N_SMALL)
    elif not cool.exists():
        if not real.exists():
            msg = f"XLOADER_TEST_DATA has no {YEAST}"
            raise Failure(msg)
        cool.symlink_to(real)
    _stored(cool, "fast")
    _stored(cool, "small")
    if not (folder / "dense.zarr").exists():
        apart(_dense, cool, folder / "dense.zarr")


def big(folder: Path, small: bool) -> None:
    """Make `big.cool` and a store of it."""
    _simulated(folder / "big.cool", N_SMALL if small else N_BIG)
    _stored(folder / "big.cool", "fast")


def tiny(folder: Path, small: bool) -> None:  # noqa: ARG001  as others
    """Make `tiny.cool` and a store of it."""
    _simulated(folder / "tiny.cool", N_TINY)
    _stored(folder / "tiny.cool", "fast")


def _simulated(path: Path, n_bins: int) -> None:
    """Write a simulated map, if it is not there yet."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        apart(write, partial, n_bins)
        partial.rename(path)


def _stored(cool: Path, codec: str) -> None:
    """Convert a map, if its store is not there yet or of another state of the library."""
    store = cool.with_suffix(f".{codec}")
    stamp = cool.with_suffix(f".{codec}.stamp")
    if not stamp.exists() or stamp.read_text() != code_stamp():
        apart(_convert, cool, store, codec)
        stamp.write_text(code_stamp())


def _convert(cool: Path, store: Path, codec: str) -> None:
    import xloader as xl

    xl.convert(cool, store, codec=codec, overwrite=True, progress=False)


def _dense(cool: Path, path: Path) -> None:
    """Write a map as people do for xbatcher: both triangles, int32, tiles of 256, lz4."""
    import xarray as xr
    from zarr.codecs import BloscCodec

    map_ = Map.of(cool)
    with h5py.File(cool) as f:
        i, j, count = (f[f"pixels/{name}"][:] for name in ("bin1_id", "bin2_id", "count"))
    dense = np.zeros((len(map_.weight), len(map_.weight)), np.int32)
    dense[i, j] = dense[j, i] = count
    weights = {f"weight{k}": (f"bin{k}", map_.weight.astype(np.float32)) for k in (1, 2)}
    ds = xr.Dataset({"count": (("bin1", "bin2"), dense)}, weights)
    codec = BloscCodec(typesize=4, cname="lz4", clevel=5, shuffle="bitshuffle")
    partial = path.with_suffix(".partial")
    tiles = {"count": {"chunks": (256, 256), "compressors": [codec]}}
    ds.to_zarr(partial, mode="w", zarr_format=3, consolidated=False, encoding=tiles)
    partial.rename(path)


class Simulated:
    """
    A chromosome of bins in compartments, nested domains and a centromere.

    Everything is drawn from one generator in a fixed order, so that the map is always the same.
    """

    def __init__(self, n_bins: int) -> None:
        self.n = n_bins
        self.rng = rng = np.random.default_rng(1)
        self.compartment = self._stretches(180, 0.7, 40) % 2
        self.domain = self._stretches(60, 0.5, 15)
        self.subdomain = self._stretches(22, 0.5, 6)
        self.bias = rng.lognormal(0, 0.25, n_bins)
        scale = n_bins / N_BIG
        mask = np.zeros(n_bins, bool)
        mask[int(CENTROMERE[0] * scale) : int(CENTROMERE[1] * scale)] = True
        self.bias[mask] = 0
        low = rng.choice(np.flatnonzero(~mask), int(N_LOW * scale), replace=False)
        mask[low] = True
        self.bias[low] *= 0.03
        self.weight = np.where(mask, np.nan, 0.013 / np.maximum(self.bias, 1e-3))

    def _stretches(self, mean: float, sd: float, shortest: int) -> Ints:
        edges = [0]
        while edges[-1] < self.n:
            edges.append(edges[-1] + max(shortest, int(self.rng.lognormal(np.log(mean), sd))))
        return np.repeat(np.arange(len(edges) - 1), np.diff(edges))[: self.n]

    def counts(self) -> Iterator[tuple[int, Ints]]:
        """Yield blocks of rows, each with its first row; columns start there too."""
        for a in range(0, self.n, ROWS):
            i, j = np.arange(a, min(a + ROWS, self.n))[:, None], np.arange(a, self.n)
            yield a, np.triu(self.rng.poisson(self._expected(i, j)))

    def _expected(self, i: Ints, j: Ints) -> Floats:
        f4 = np.float32
        mean: Floats = f4(700) / np.maximum(np.abs(i - j), f4(0.5), dtype=f4)
        mean *= np.where(self.compartment[i] == self.compartment[j], f4(1.35), f4(0.7))
        mean *= np.where(self.domain[i] == self.domain[j], f4(1.7), f4(1))
        mean *= np.where(self.subdomain[i] == self.subdomain[j], f4(1.4), f4(1))
        mean *= self.bias[i].astype(f4)
        mean *= self.bias[j].astype(f4)
        return mean


def write(path: Path, n_bins: int) -> None:
    """Write the simulated map as a cooler."""
    import cooler
    import pandas as pd

    map_ = Simulated(n_bins)
    ends = np.arange(1, n_bins + 1, dtype=np.int64) * BINSIZE
    length = LENGTH if ends[-1] >= LENGTH else int(ends[-1])
    bins = pd.DataFrame(
        {
            "chrom": pd.Categorical(["chr1"] * n_bins),
            "start": ends - BINSIZE,
            "end": np.minimum(ends, length),
            "weight": map_.weight,
        }
    )

    def pixels() -> Iterator[pd.DataFrame]:
        for a, block in map_.counts():
            row, column = np.nonzero(block)
            count = block[row, column]
            yield pd.DataFrame({"bin1_id": row + a, "bin2_id": column + a, "count": count})

    checks = {"ensure_sorted": False, "boundscheck": False, "dupcheck": False, "triucheck": False}
    types = {"count": "int32"}
    cooler.create_cooler(
        str(path), bins, pixels(), dtypes=types, ordered=True, symmetric_upper=True, **checks
    )
