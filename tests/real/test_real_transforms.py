"""Transforms of real maps: coarser ones of the same file, and cooltools, give the same values."""

import warnings

import cooler
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xloader as xl

PYRAMID = "scer_w303_g1.6res.balanced.mcool"
FILES = {
    "scer": (PYRAMID, 16_000, "weight"),
    "dm6": ("hictkpy_dm6_4DNFIZ1ZVXC8.mcool", 100_000, "weight"),
}


@pytest.mark.parametrize("factor", [2, 4])
def test_coarsen__gives_the_counts_of_the_coarser_resolution(factor, real_data):
    path = real_data / "hic" / PYRAMID
    coarse = xl.open_contacts(path, resolution=8_000 * factor)
    loader = xl.Loader(
        xl.open_contacts(path, resolution=8_000),
        windows=xl.windows.grid(size=16, stride=8),
        batch_size=64,
        remainder="drop",  # windows flush with a chromosome's end begin at other bins
        transform=xl.transforms.coarsen(factor),
    )
    place = {
        k: n
        for n, k in enumerate(zip(coarse.chrom1.values, coarse.start1.values.tolist(), strict=True))
    }
    matrix, n = coarse["count"].values, 0
    for batch in loader.batches(0, range(0, len(loader), 7)):
        assert batch.attrs["binsize"] == 8_000 * factor
        for s in range(batch.sizes["sample"]):
            window = batch.isel(sample=s)
            rows, columns = (
                [
                    place[k]
                    for k in zip(
                        window[f"chrom{d}"].values, window[f"start{d}"].values.tolist(), strict=True
                    )
                ]
                for d in "12"
            )
            np.testing.assert_array_equal(window["count"], matrix[np.ix_(rows, columns)])
            np.testing.assert_array_equal(window.end1, coarse.end1.values[rows])
            n += len(rows)
    assert n > 1_000


@pytest.mark.parametrize("name", FILES)
def test_observed_over_expected__equals_cooltools(name, real_data):
    cooltools = pytest.importorskip("cooltools")
    snipping = pytest.importorskip("cooltools.api.snipping")
    file, size, weight = FILES[name]
    ds = xl.open_contacts(real_data / "hic" / file, resolution=size)
    clr = cooler.Cooler(f"{real_data / 'hic' / file}::/resolutions/{size}")
    names = [c for c in clr.chromnames if clr.chromsizes[c] > 20 * size]
    view = pd.DataFrame(
        {"chrom": names, "start": 0, "end": clr.chromsizes[names].to_numpy(), "name": names}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries below
        table = cooltools.expected_cis(clr, view_df=view, clr_weight_name=weight, smooth=False)
        snipper = snipping.ObsExpSnipper(clr, table, view_df=view, cooler_opts={"balance": weight})
    means = table.pivot_table(index="region1", columns="dist", values="balanced.avg", dropna=False)
    means = means.reindex(index=names, columns=range(int(table["dist"].max()) + 1))
    stats = xr.Dataset(
        {"expected": (("chrom", "distance"), means.to_numpy())},
        {"chrom": names, "distance": means.columns.to_numpy()},
        {"variable": "count", "weight": weight, "binsize": size},
    )
    transform = xl.transforms.compose(
        xl.transforms.balance(weight), xl.transforms.observed_over_expected(stats)
    )
    kept = np.isin(ds.chrom1.values.astype(str), names)
    loader = xl.Loader(
        ds.isel(bin1=kept, bin2=kept),
        windows=xl.windows.grid(size=15, stride=15),
        batch_size=40,
        shuffle=True,
        transform=transform,
    )
    batch, n_seen = loader[0], 0
    for s in range(batch.sizes["sample"]):
        window = batch.isel(sample=s)
        chrom = str(window.chrom1.values[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = snipper.select(chrom, chrom)
            spans = [
                (int(window[f"start{d}"][0]), int(window[f"start{d}"][-1]) + size) for d in "12"
            ]
            expected = snipper.snip(whole, chrom, chrom, (*spans[0], *spans[1]))
        got = window["count"].values
        # the snipper leaves out the first two diagonals and all that lies below
        far = window.bin2.values - window.bin1.values[:, None] >= 2
        np.testing.assert_allclose(got[far], expected[far], rtol=1e-6)
        n_seen += np.isfinite(expected[far]).sum()
    assert n_seen > 2_000
