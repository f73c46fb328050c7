"""A simulated Hi-C experiment, written as a multi-resolution cooler."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from xloader.backends.cooler_writer import Bins, CoolerWriter, begin_mcool
from xloader.backends.new_files import new_file
from xloader.errors import PlanError

_CHROMOSOMES = {"chr1": 12_000_000, "chr2": 10_000_000, "chr3": 8_000_000, "chr4": 7_000_000}
_ICE_ROUNDS = 40

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _Pixels(NamedTuple):
    """Upper-triangle contacts of the whole genome, sorted by both bins."""

    bin1: Ints
    bin2: Ints
    counts: Ints


class _Bins(NamedTuple):
    """What makes the bins of one chromosome alike or different."""

    compartment: Ints
    domain: Ints
    subdomain: Ints
    visibility: Floats


def contacts(
    path: str | Path,
    *,
    chromosomes: Mapping[str, int] | None = None,
    resolutions: Sequence[int] = (10_000, 20_000, 40_000),
    depth: float = 300.0,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """
    Simulate a contact map and write it as an ``.mcool`` file (MCOOL version 2).

    Expected counts fall with distance as ``depth / distance``, are higher within compartments,
    domains and subdomains, and scale with the visibility of both bins; counts are Poisson. Some
    bins and one centromere a chromosome see nothing. Weights are multiplicative (ICE, genome-wide).

    Parameters
    ----------
    path : str or Path
        File to write.
    chromosomes : mapping of str to int, optional
        Lengths, in bp. Default: four, 37 Mb in all.
    resolutions : sequence of int, optional
        Bin sizes, in bp; multiples of the smallest.
    depth : float, optional
        Expected count of neighbouring bins of the finest resolution.
    seed : int, optional
        Seed of everything random.
    overwrite : bool, optional
        Whether an existing file is replaced.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ReadError
        If the file exists, or its folder does not.
    PlanError
        If a resolution is no multiple of the finest.
    """
    chromosomes = chromosomes or _CHROMOSOMES
    finest = min(resolutions)
    odd = [r for r in resolutions if r % finest]
    if odd:
        msg = f"resolutions {odd} are no multiples of the finest, {finest} bp; choose multiples"
        raise PlanError(msg)
    rng = np.random.default_rng(seed)
    steps = len(chromosomes) * (len(chromosomes) + 1) // 2 + len(resolutions)
    with (
        new_file(path, overwrite=overwrite) as f,
        tqdm(total=steps, desc="simulate contacts", disable=not progress) as bar,
    ):
        begin_mcool(f)
        sizes = [-(-n // finest) for n in chromosomes.values()]
        pixels = _draw(rng, [_bins(rng, n) for n in sizes], depth, bar)
        for resolution in sorted(resolutions):
            group = f.create_group(f"resolutions/{resolution}")
            factor = resolution // finest
            _write(group, chromosomes, resolution, _coarsen(pixels, sizes, factor))
            bar.update()
    return Path(path)


def _bins(rng: np.random.Generator, n: int) -> _Bins:
    visibility = rng.lognormal(0, 0.25, n)
    dark = rng.choice(n, n // 70, replace=False)
    visibility[dark] *= 0.03
    centromere = slice(int(n * 0.45), int(n * 0.45) + max(2, n // 40))
    visibility[centromere] = 0
    return _Bins(
        compartment=_stretches(rng, n, mean=90, spread=0.7, shortest=20) % 2,
        domain=_stretches(rng, n, mean=50, spread=0.5, shortest=15),
        subdomain=_stretches(rng, n, mean=18, spread=0.5, shortest=6),
        visibility=visibility,
    )


def _stretches(
    rng: np.random.Generator, n: int, *, mean: float, spread: float, shortest: int
) -> Ints:
    """Give each bin the number of its stretch; stretches have lognormal lengths."""
    lengths = np.maximum(shortest, rng.lognormal(np.log(mean), spread, n // shortest + 1))
    return np.searchsorted(np.cumsum(lengths.astype(np.int64)), np.arange(n), side="right")


def _draw(rng: np.random.Generator, chromosomes: list[_Bins], depth: float, bar: Any) -> _Pixels:
    """Draw all contacts, one pair of chromosomes at a time."""
    offsets = np.cumsum([0, *(len(c.visibility) for c in chromosomes)])
    parts = []
    for a, first in enumerate(chromosomes):
        row = []
        for b in range(a, len(chromosomes)):
            second = chromosomes[b]
            expected = np.outer(first.visibility, second.visibility)
            expected *= _cis(first, depth) if a == b else depth / 4000
            counts = rng.poisson(np.triu(expected) if a == b else expected)
            i, j = np.nonzero(counts)
            row.append(_Pixels(i + offsets[a], j + offsets[b], counts[i, j]))
            bar.update()
        parts.append(_sorted(*map(np.concatenate, zip(*row, strict=True))))
    return _Pixels(*map(np.concatenate, zip(*parts, strict=True)))


def _cis(bins: _Bins, depth: float) -> Floats:
    """Return what two bins of one chromosome share, without their visibility."""
    position = np.arange(len(bins.visibility))
    distance = np.maximum(np.abs(position[:, None] - position), 0.5)
    same = [x[:, None] == x for x in (bins.compartment, bins.domain, bins.subdomain)]
    boost = np.where(same[0], 1.35, 0.7) * np.where(same[1], 1.7, 1.0) * np.where(same[2], 1.4, 1.0)
    return np.asarray(depth / distance * boost)


def _sorted(bin1: Ints, bin2: Ints, count: Ints) -> _Pixels:
    order = np.lexsort((bin2, bin1))
    return _Pixels(bin1[order], bin2[order], count[order])


def _coarsen(pixels: _Pixels, sizes: Sequence[int], factor: int) -> _Pixels:
    """Sum counts over squares of bins; bins never span chromosomes."""
    if factor == 1:
        return pixels
    coarse = [-(-n // factor) for n in sizes]
    offsets = np.cumsum([0, *coarse])
    place = np.concatenate(
        [o + np.arange(n) // factor for o, n in zip(offsets, sizes, strict=False)]
    )
    n_bins = int(offsets[-1])
    keys, inverse = np.unique(place[pixels.bin1] * n_bins + place[pixels.bin2], return_inverse=True)
    count = np.bincount(inverse, pixels.counts).astype(np.int64)
    return _Pixels(keys // n_bins, keys % n_bins, count)


def _ice(pixels: _Pixels, n_bins: int) -> Floats:
    """
    Balance a map: weights make every visible row sum to one.

    The source is iterative correction, Imakaev et al., Nature Methods 9:999 (2012).
    """
    off_diagonal = pixels.bin1 != pixels.bin2
    weight = np.ones(n_bins)
    coverage = np.bincount(pixels.bin1, minlength=n_bins) + np.bincount(
        pixels.bin2, minlength=n_bins
    )
    weight[coverage < 0.2 * np.median(coverage)] = 0
    for _ in range(_ICE_ROUNDS):
        value = pixels.counts * weight[pixels.bin1] * weight[pixels.bin2]
        total = np.bincount(pixels.bin1, value, n_bins)
        total += np.bincount(pixels.bin2[off_diagonal], value[off_diagonal], n_bins)
        seen = total > 0
        weight[~seen] = 0
        weight[seen] /= np.sqrt(total[seen])
    return np.where(weight > 0, weight, np.nan)


def _write(
    group: h5py.Group, chromosomes: Mapping[str, int], resolution: int, pixels: _Pixels
) -> None:
    """Write one resolution."""
    lengths = np.array(list(chromosomes.values()))
    bins = Bins.regular(list(chromosomes), lengths, resolution)
    weight = _ice(pixels, len(bins)), {"divisive_weights": False, "cis_only": False}
    bins = replace(bins, columns={"weight": weight})
    writer = CoolerWriter(group, bins, np.int32, assembly="simulated")
    writer.append(*pixels)
    writer.close()
