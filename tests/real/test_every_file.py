"""Every real file opens, equals what cooler, anndata, h5py or scipy reads, and survives conversion unchanged."""

import warnings

import anndata
import cooler
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse
import xarray as xr

import xloader as xl
from xloader.errors import XloaderWarning

CONTACTS = [
    "scer_w303_g1_2kb_SRR8769554.cool",
    "scer_w303_g1.6res.balanced.mcool",
    "hictkpy_dm6_4DNFIZ1ZVXC8.mcool",
    "hg19.GM12878-MboI.matrix.2000kb.cool",
    "float_counts.cool",
]
CELLS = [
    "czi_small_perturbations.h5ad",
    "pbmc68k_reduced.h5ad",
    "pbmc8k_200hvg_counts.h5ad",
    "visium_mouse_2898x19465.h5ad",
    "wu2020_200_vdj.h5ad",
]
TENX = ["1K_pbmc_citeseq.h5", "heart_1k_v2_legacy.h5", "visium_mouse_mtx"]
# divides or multiplies, by row sums that come out flat (cooler goes by the name alone)
DIVISIVE = {
    ("hictkpy_dm6_4DNFIZ1ZVXC8.mcool", "KR"): True,
    ("hictkpy_dm6_4DNFIZ1ZVXC8.mcool", "SCALE"): True,
    ("hictkpy_dm6_4DNFIZ1ZVXC8.mcool", "VC"): True,
    ("hictkpy_dm6_4DNFIZ1ZVXC8.mcool", "VC_SQRT"): True,
    ("float_counts.cool", "KR"): False,
    ("float_counts.cool", "ICE"): False,
}


def of_cooler(path, resolution):
    group = f"resolutions/{resolution}" if path.suffix == ".mcool" else ""
    return cooler.Cooler(f"{path}::/{group}")


@pytest.mark.parametrize("name", CONTACTS)
def test_contacts__equal_cooler(name, real_data):
    path = real_data / "hic" / name
    assert xl.resolutions(path) == sorted(xl.resolutions(path))
    for resolution in xl.resolutions(path):
        oracle = of_cooler(path, resolution)
        ds = xl.open_contacts(path, resolution=resolution)
        assert ds["count"].dtype == oracle.pixels().dtypes["count"]
        if resolution == 2_000_000 or ds.sizes["bin1"] < 2_000:
            whole = oracle.matrix(balance=False)[:]
            np.testing.assert_array_equal(ds["count"].values, whole)
        rng = np.random.default_rng(0)
        for r0, c0 in rng.integers(0, ds.sizes["bin1"] - 60, (5, 2)):
            part = oracle.matrix(balance=False)[r0 : r0 + 60, c0 : c0 + 50]
            box = ds["count"].isel(bin1=slice(r0, r0 + 60), bin2=slice(c0, c0 + 50))
            np.testing.assert_array_equal(box.values, part)
        bins = oracle.bins()[:]
        for side in "12":
            assert ds[f"chrom{side}"].values.tolist() == bins.chrom.astype(str).tolist()
            np.testing.assert_array_equal(ds[f"start{side}"], bins.start)
            np.testing.assert_array_equal(ds[f"end{side}"], bins.end)
            for column in set(bins) - {"chrom", "start", "end"}:
                np.testing.assert_array_equal(ds[f"{column}{side}"], bins[column])


@pytest.mark.parametrize(("name", "weight"), DIVISIVE)
def test_contacts__balance_the_right_way(name, weight, real_data):
    path = real_data / "hic" / name
    resolution = xl.resolutions(path)[0]
    ds = xl.open_contacts(path, resolution=resolution)
    divisive = DIVISIVE[name, weight]
    assert ds[f"{weight}1"].attrs["divisive"] is divisive
    matrix = of_cooler(path, resolution).matrix(balance=weight, divisive_weights=divisive)
    with np.errstate(all="ignore"):
        expected = matrix[:300, :300]
    part = ds.isel(bin1=slice(0, 300), bin2=slice(0, 300)).compute()
    balanced = xl.transforms.balance(weight)(part)["count"].values
    expected[~np.isfinite(expected)] = np.nan
    np.testing.assert_allclose(balanced, expected, rtol=1e-5)


def opened(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XloaderWarning)  # elements without a labelled form
        return xl.open_cells(path)


def dense(x):
    return x.toarray() if scipy.sparse.issparse(x) else np.asarray(x)


@pytest.mark.parametrize("name", CELLS)
def test_cells__equal_anndata(name, real_data):
    path = real_data / "sc" / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = anndata.read_h5ad(path)
    ds = opened(path)
    assert ds.cell.values.tolist() == oracle.obs_names.tolist()
    assert ds.gene.values.tolist() == oracle.var_names.tolist()
    np.testing.assert_array_equal(ds.X.values, dense(oracle.X))
    assert ds.X.dtype == oracle.X.dtype
    for key, layer in oracle.layers.items():
        np.testing.assert_array_equal(ds[key].values, dense(layer))
    for key, values in oracle.obsm.items():
        np.testing.assert_array_equal(ds[key].values, dense(values))
    for dim, frame in (("cell", oracle.obs), ("gene", oracle.var)):
        labels = {ds[c].attrs.get("column", c): c for c in ds.coords if ds[c].dims == (dim,)}
        for column in frame:
            mine = pd.Series(ds[labels[column]].values, frame.index)
            theirs = frame[column].astype(object)
            assert (mine.isna() == theirs.isna()).all(), column
            there = theirs.notna()
            assert (mine[there].astype(object) == theirs[there]).all(), column


def of_tenx(path):
    """Read a 10x matrix as its specification says; cells x features, barcodes, table of features."""
    if path.is_dir():
        barcodes, table = (
            pd.read_csv(path / f"{name}.tsv.gz", sep="\t", header=None, names=names)
            for name, names in (("barcodes", ["id"]), ("features", ["id", "name", "type"]))
        )
        return scipy.io.mmread(path / "matrix.mtx.gz").T.tocsr(), barcodes["id"].tolist(), table
    with h5py.File(path) as f:
        (group,) = f.values()
        parts = [group[name][()] for name in ("data", "indices", "indptr")]
        m = scipy.sparse.csc_matrix(tuple(parts), tuple(group["shape"][()])).T
        barcodes = group["barcodes"][()].astype(str).tolist()
        if "genes" in group:
            columns = {"id": group["genes"], "name": group["gene_names"]}
            types = np.full(m.shape[1], "Gene Expression")
        else:
            columns = {name: group[f"features/{name}"] for name in ("id", "name")}
            types = group["features/feature_type"][()].astype(str)
        table = pd.DataFrame({name: v[()].astype(str) for name, v in columns.items()})
        return m.tocsr(), barcodes, table.assign(type=types)


@pytest.mark.parametrize("name", TENX)
def test_tenx__equal_h5py_and_scipy(name, real_data, tmp_path):
    path = real_data / "sc" / name
    m, barcodes, table = of_tenx(path)
    dims = {"Gene Expression": ("rna", "gene"), "Antibody Capture": ("prot", "protein")}
    several = len(table["type"].unique()) > 1
    assert several == (name == "1K_pbmc_citeseq.h5")
    parts = {
        dims[kind] if several else ("X", "gene"): (part, m[:, part.index.to_numpy()].toarray())
        for kind, part in table.groupby("type", sort=False)
    }
    store = tmp_path / "s"
    xl.convert(path, store, shuffle=True, progress=False)
    for ds in (xl.open_cells(path), xl.open_cells(store)):
        rows = ds.row.values
        assert ds.cell.values.tolist() == [barcodes[k] for k in rows]
        for (variable, dim), (part, expected) in parts.items():
            assert ds[variable].dims == ("cell", dim)
            assert ds[variable].dtype == np.int32
            assert ds[dim].values.tolist() == part["id"].tolist()
            assert ds[f"{dim}_name"].values.tolist() == part["name"].tolist()
            assert np.array_equal(ds[variable].values, expected[rows])
        seen = []
        for batch in xl.Loader(ds, batch_size=100, order="shuffled", seed=1):
            at = batch.row.values
            for (variable, _), (_, expected) in parts.items():
                got = batch[variable].data
                assert got.nnz == np.count_nonzero(expected[at])
                assert np.array_equal(got.todense(), expected[at])
            seen += at.tolist()
        assert sorted(seen) == list(range(len(barcodes)))


def test_tenx__folder_equals_the_h5ad_made_of_it(real_data):
    folder, file = (
        real_data / "sc" / n for n in ("visium_mouse_mtx", "visium_mouse_2898x19465.h5ad")
    )
    mine, theirs = xl.open_cells(folder), xl.open_cells(file)
    assert mine.cell.values.tolist() == theirs.cell.values.tolist()
    assert mine.gene.values.tolist() == theirs.gene.values.tolist()
    np.testing.assert_array_equal(mine.X.values, theirs.X.values)


@pytest.mark.parametrize("name", CONTACTS + CELLS + TENX)
def test_convert__keeps_everything(name, real_data, tmp_path):
    if name in CONTACTS:
        path = real_data / "hic" / name
        xl.convert(path, tmp_path / "s", progress=False)
        assert xl.resolutions(tmp_path / "s") == xl.resolutions(path)
        pairs = [
            (xl.open_contacts(p, resolution=r) for p in (path, tmp_path / "s"))
            for r in xl.resolutions(path)
        ]
    else:
        source = opened(real_data / "sc" / name)
        xl.convert(source, tmp_path / "s", progress=False)
        pairs = [(source, xl.open_cells(tmp_path / "s"))]
    for source, stored in pairs:
        xr.testing.assert_identical(source.compute(), stored.compute())
