"""Real .hic and .scool files equal hictkpy, cooler, and the same experiment in another format."""

import json
import subprocess
import sys

import cooler
import numpy as np
import pytest
import xarray as xr

import xloader as xl

DM6, IGV = "hictkpy_dm6_4DNFIZ1ZVXC8.hic", "igv_test_chr22.hic"
SCOOL = "scool_5cells_100kb.scool"
IGV_SIZES = [5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000]

ORACLE = """
import json, sys, hictkpy, numpy as np
path, size, out, queries = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
file = hictkpy.File(path, size)
names = file.avail_normalizations()
parts = [file.fetch(*q, count_type="float64").to_numpy() for q in queries]
np.savez(out, *parts, **{f"vector_{n}": file.weights(n, divisive=True) for n in names})
"""


def oracle(path, size, queries, folder):
    """Ask hictkpy, in a process of its own."""
    out = str(folder / "oracle.npz")
    args = [sys.executable, "-c", ORACLE, str(path), str(size), out, json.dumps(queries)]
    subprocess.run(args, check=True, timeout=200)
    with np.load(out) as held:
        parts = [held[f"arr_{k}"] for k in range(len(queries))]
        vectors = {n.removeprefix("vector_"): held[n] for n in held.files if n[:7] == "vector_"}
    return parts, vectors


def test_one_experiment_in_two_formats__gives_equal_arrays(real_data):
    folder = real_data / "hic"
    hic = xl.open_contacts(folder / DM6).load()
    mcool = xl.open_contacts((folder / DM6).with_suffix(".mcool"), resolution=100_000).load()
    xr.testing.assert_equal(hic["count"].drop_vars(["ICE1", "ICE2"]), plain(mcool["count"]))
    assert hic["count"].dtype == mcool["count"].dtype
    for name in ("binsize", "resolution", "chroms", "chrom_lengths", "storage_mode"):
        assert hic.attrs[name] == mcool.attrs[name]
    assert hic.ICE1.attrs["divisive"] is True
    assert mcool.weight1.attrs["divisive"] is False
    # version 9 holds divisors in single precision
    np.testing.assert_allclose(hic.ICE1, 1 / mcool.weight1, rtol=1e-7)
    balanced = [xl.transforms.balance(w)(ds) for w, ds in (("ICE", hic), ("weight", mcool))]
    np.testing.assert_allclose(*(b["count"] for b in balanced), rtol=1e-6)
    expected = cooler.Cooler(f"{folder / DM6}".replace(".hic", ".mcool::/resolutions/100000"))
    np.testing.assert_allclose(balanced[0]["count"], expected.matrix()[:], rtol=1e-6)


def plain(array):
    """Drop the vectors of the other format."""
    return array.drop_vars(
        [c for c in array.coords if array[c].dtype.kind != "O" and "divisive" in array[c].attrs]
    )


@pytest.mark.parametrize("size", IGV_SIZES)
def test_version_8__equals_hictkpy_at_every_resolution(size, real_data, tmp_path):
    """Contacts lie on one chromosome only, far from the first bin."""
    path = real_data / "hic" / IGV
    assert xl.resolutions(path) == IGV_SIZES
    ds = xl.open_contacts(path, resolution=size, chunks=None)
    assert ds["count"].dtype == np.int32
    assert "ALL" not in [name.upper() for name in ds.attrs["chroms"]]
    n = min(600, int((ds.chrom1 == "22").sum()))
    end = min(51_304_566, 16_000_000 // size * size + n * size)
    start = max(0, end // size * size - n * size)
    queries = [[f"22:{start}-{end}"] * 2, ["1:0-2500000", f"22:{start}-{end}"]]
    (cis, trans), vectors = oracle(path, size, queries, tmp_path)
    mine = xl.open_contacts(path, resolution=size, chunks=None, view=[f"22:{start}-{end}"])
    np.testing.assert_array_equal(mine["count"].values, cis)
    assert cis.sum() > 0
    far = ds.sel(bin1=mine.bin1.values)["count"].isel(bin2=slice(trans.shape[0]))
    np.testing.assert_array_equal(far.values, trans.T)
    assert {c[:-1] for c in ds.coords if c.endswith("1") and "divisive" in ds[c].attrs} == {
        *vectors
    }
    for name, values in vectors.items():
        expected = np.where(values == 0, np.nan, values)
        for side in "12":
            assert ds[f"{name}{side}"].attrs["divisive"] is True
            np.testing.assert_array_equal(ds[f"{name}{side}"], expected)


def test_convert__keeps_a_hic_file(real_data, tmp_path):
    source = xl.open_contacts(real_data / "hic" / DM6)
    stored = xl.convert(real_data / "hic" / DM6, tmp_path / "s", progress=False)
    xr.testing.assert_identical(source.compute(), stored.compute())


def test_cells__equal_cooler_one_by_one_and_together(real_data):
    path = real_data / "hic" / SCOOL
    ds = xl.open_contacts(path)
    cells = [name.removeprefix("/cells/") for name in cooler.fileops.list_scool_cells(str(path))]
    assert sorted(cells) == ds.cell.values.tolist()
    assert ds.sizes == {"cell": 5, "bin1": 26_398, "bin2": 26_398}
    assert xl.resolutions(path) == [100_000]
    for name in cells:
        one = cooler.Cooler(f"{path}::/cells/{name}")
        for rows, columns in (
            (slice(0, 300), slice(100, 500)),
            (slice(9_000, 9_300), slice(40, 90)),
        ):
            expected = one.matrix(balance=False)[rows, columns]
            together = ds["count"].sel(cell=name)[rows, columns]
            np.testing.assert_array_equal(together.values, expected)
            alone = xl.open_contacts(f"{path}::/cells/{name}")["count"][rows, columns]
            np.testing.assert_array_equal(alone.values, expected)
        assert ds.chrom1.values.tolist() == one.bins()[:]["chrom"].astype(str).tolist()


def test_loader__serves_windows_of_all_cells(real_data):
    ds = xl.open_contacts(real_data / "hic" / SCOOL, view="1")
    loader = xl.Loader(ds, windows=xl.windows.diagonal(size=64), batch_size=3, shuffle=True)
    batch = loader[1]
    for k in range(3):
        rows, columns = (slice(*batch[f"bin{s}"].values[k, [0, -1]] + [0, 1]) for s in "12")
        for c, name in enumerate(ds.cell.values):
            one = cooler.Cooler(f"{real_data / 'hic' / SCOOL}::/cells/{name}").matrix(balance=False)
            np.testing.assert_array_equal(batch["count"].values[k, c], one[rows, columns])
