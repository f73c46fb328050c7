"""Real contact maps equal what cooler reads: counts, bins, every vector, and which way it balances."""

import cooler
import numpy as np
import pytest

import xloader as xl

SCER, PYRAMID = "scer_w303_g1_2kb_SRR8769554.cool", "scer_w303_g1.6res.balanced.mcool"
DM6, FLOATS = "hictkpy_dm6_4DNFIZ1ZVXC8.mcool", "float_counts.cool"
SCHEMA_2 = "hg19.GM12878-MboI.matrix.2000kb.cool"

MAPS = {
    SCER: [2_000],
    PYRAMID: [2_000, 4_000, 8_000, 16_000, 32_000, 64_000],
    DM6: [100_000, 1_000_000],
    FLOATS: [2_500_000],
    SCHEMA_2: [2_000_000],
}
EVERY = [(name, size) for name, sizes in MAPS.items() for size in sizes]

# whether a vector divides: what makes row sums flat, which cooler's rule by name misses twice
DIVISIVE = {
    (DM6, 100_000): {"KR": True, "SCALE": True, "VC": True, "VC_SQRT": True, "weight": False},
    (FLOATS, 2_500_000): dict.fromkeys(("ICE", "KR", "perChromIC", "perChromKR"), False),
    (SCER, 2_000): {"weight": False},
    **{(PYRAMID, size): {"weight": False} for size in MAPS[PYRAMID]},
}
VECTORS = [(*key, column) for key, columns in DIVISIVE.items() for column in columns]
WHOLE = 1_600
"""Bins up to which a map is compared as a whole."""


def both(folder, name, size):
    """Open one map with xloader and with cooler."""
    path = folder / "hic" / name
    group = f"::/resolutions/{size}" if path.suffix == ".mcool" else ""
    return xl.open_contacts(path, resolution=size), cooler.Cooler(f"{path}{group}")


def rectangles(n, seed=0):
    """Return the whole of a small map, else pieces of a large one on and off the diagonal."""
    if n <= WHOLE:
        return [(slice(0, n), slice(0, n))]
    rng = np.random.default_rng(seed)
    sides = rng.integers(1, 500, (12, 2))
    corners = (rng.random((12, 2)) * (n - sides)).astype(int)
    corners[:4, 1] = np.minimum(corners[:4, 0], n - sides[:4, 1])
    boxes = zip(corners.tolist(), sides.tolist(), strict=True)
    return [(slice(r, r + h), slice(c, c + w)) for (r, c), (h, w) in boxes]


def test_resolutions__are_sorted_as_numbers(real_data):
    for name, sizes in MAPS.items():
        assert xl.resolutions(real_data / "hic" / name) == sizes


@pytest.mark.parametrize(("name", "size"), EVERY)
def test_counts__equal_cooler(name, size, real_data):
    ds, oracle = both(real_data, name, size)
    assert ds.sizes == {"bin1": oracle.shape[0], "bin2": oracle.shape[1]}
    assert ds["count"].dtype == oracle.pixels().dtypes["count"]
    matrix = oracle.matrix(balance=False)
    for rows, columns in rectangles(len(ds.bin1)):
        got = ds["count"].isel(bin1=rows, bin2=columns).values
        np.testing.assert_array_equal(got, matrix[rows, columns])


@pytest.mark.parametrize(("name", "size"), EVERY)
def test_bins_and_vectors__equal_cooler(name, size, real_data):
    ds, oracle = both(real_data, name, size)
    bins = oracle.bins()[:]
    further = set(bins) - {"chrom", "start", "end"}
    assert ds.attrs["binsize"] == ds.attrs["resolution"] == oracle.binsize == size
    assert ds.attrs["chroms"] == oracle.chromnames
    assert ds.attrs["chrom_lengths"] == oracle.chromsizes.tolist()
    for side in "12":
        assert ds[f"chrom{side}"].values.tolist() == bins["chrom"].astype(str).tolist()
        for column in {"start", "end"} | further:
            np.testing.assert_array_equal(ds[f"{column}{side}"].values, bins[column].to_numpy())
        vectors = {c: ds[f"{c}{side}"].attrs["divisive"] for c in further if c != "size"}
        assert vectors == DIVISIVE.get((name, size), {})


@pytest.mark.parametrize(("name", "size", "column"), VECTORS)
def test_balance__equals_cooler_told_which_way(name, size, column, real_data):
    ds, oracle = both(real_data, name, size)
    divisive = DIVISIVE[name, size][column]
    matrix = oracle.matrix(balance=column, divisive_weights=divisive)
    dtype = np.float64 if ds["count"].dtype == np.float64 else np.float32
    for rows, columns in rectangles(len(ds.bin1), seed=1)[:5]:
        part = ds.isel(bin1=rows, bin2=columns).load()
        balanced = xl.transforms.balance(column)(part)["count"]
        with np.errstate(all="ignore"):  # VC of dm6 holds zeros
            expected = matrix[rows, columns]
        # a divisor of zero masks its bin; cooler gives infinity, or NaN where the count is zero
        expected[~np.isfinite(expected)] = np.nan
        assert balanced.dtype == dtype
        np.testing.assert_allclose(balanced.values, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "column"),
    [(FLOATS, 2_500_000, "KR"), (DM6, 100_000, "KR"), (DM6, 100_000, "SCALE")],
)
def test_direction__is_the_one_that_makes_row_sums_flat(name, size, column, real_data):
    """The table above, from the data alone: the other direction spreads row sums further."""
    ds, _ = both(real_data, name, size)
    counts, vector = ds["count"].values.astype(float), ds[f"{column}1"].values
    kept = np.isfinite(vector) & (vector != 0)
    counts, vector = counts[np.ix_(kept, kept)], vector[kept]
    spread = {}
    for divisive, w in ((False, vector), (True, 1 / vector)):
        sums = (counts * w[:, None] * w).sum(axis=1)
        spread[divisive] = sums.std() / sums.mean()
    assert ds[f"{column}1"].attrs["divisive"] == (spread[True] < spread[False])
    assert min(spread.values()) < 0.3 < max(spread.values())
