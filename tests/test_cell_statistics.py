"""Statistics of cells: what numpy says of the whole array, in one pass that reads each block once."""

import tracemalloc
import warnings

import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

import xloader as xl
from tests.doubles import CELLS, Rows, cells, cells_in, counts, to_csr
from tests.sources import saved
from xloader.csr import CSRArray
from xloader.errors import PlanError, SchemaError, StateError
from xloader.moments import Moments


def some(ds, **options):
    return xl.statistics(ds, progress=False, **options)


def assert_equal(stats, x):
    """Compare with the formulas of scanpy's `pp.scale` and `pp.normalize_total`."""
    x = np.asarray(x, np.float64)
    npt.assert_allclose(stats["mean"].values, x.mean(axis=0), rtol=1e-12)
    npt.assert_allclose(stats["std"].values, x.std(axis=0, ddof=1), rtol=1e-12)
    npt.assert_array_equal(stats["n_detected"].values, (x != 0).sum(axis=0))
    npt.assert_allclose(stats["total"].values, x.sum(axis=1), rtol=1e-12)
    npt.assert_allclose(stats["variance"].values, x.var(axis=0, ddof=1), rtol=1e-12)
    npt.assert_allclose(stats["detection_rate"].values, (x != 0).mean(axis=0), rtol=1e-12)
    npt.assert_array_equal(stats["n_measured"].values, len(x))
    totals = x.sum(axis=1)
    npt.assert_allclose(stats["median_total"].values, np.median(totals[totals > 0]), rtol=1e-12)


@pytest.mark.parametrize("form", CELLS)
def test_statistics__equal_numpy_in_every_form(form, tmp_path):
    ds = cells_in(form, tmp_path)
    stats = some(ds)
    assert_equal(stats, counts())
    assert stats["mean"].dims == ("gene",)
    npt.assert_array_equal(stats["gene"].values, ds["gene"].values)
    npt.assert_array_equal(stats["cell"].values, ds["cell"].values)
    assert (stats.attrs["kind"], stats.attrs["variable"]) == ("cells", "X")


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.floats(0, 1e6),
    st.booleans(),
)
def test_moments__of_parts_are_those_of_the_whole(lengths, shift, sparse):
    rng = np.random.default_rng(sum(lengths))
    parts = [(rng.random((n, 3)) < 0.5) * (rng.random((n, 3)) + shift) for n in lengths]
    moments = Moments(3)
    for part in parts:
        moments.add(to_csr(part) if sparse else part)
    whole = np.concatenate(parts)
    npt.assert_array_equal(moments.n, len(whole))
    npt.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-12)
    npt.assert_allclose(moments.squares, whole.var(axis=0) * len(whole), rtol=1e-9, atol=1e-9)


def test_moments__keep_digits_where_means_are_large():
    x = 1e9 + np.array([[0.0], [1.0], [2.0], [3.0]])
    moments = Moments(1)
    for row in x:
        moments.add(row[None])
    npt.assert_allclose(moments.squares, [5.0], rtol=1e-6)


SELECT = {
    "some": {"cell": np.r_[3:20, 40:61]},
    "mixed": {"cell": np.random.default_rng(0).permutation(61)},
    "genes": {"gene": [4, 2, 9], "cell": slice(None, None, -1)},
}


@pytest.mark.parametrize("name", SELECT)
def test_statistics__of_views_read_each_block_once(name):
    array = Rows(counts())
    ds = cells(array).isel(SELECT[name])
    stats = some(ds, memory_budget="4kB")  # several pools
    needed = set(ds.row.values // 8)
    assert set(array.log) == needed
    assert len(array.log) == len(needed)
    assert_equal(stats, counts()[np.ix_(ds.row.values, ds.column.values)])


def test_statistics__of_what_a_transform_makes():
    ds = cells()
    change = xl.transforms.compose(xl.transforms.normalize_total(100), xl.transforms.log1p("X"))
    loader = xl.Loader(ds, batch_size=7, transform=change)
    x = counts().astype(np.float64)
    sums = x.sum(axis=1, keepdims=True)
    normal = np.log1p(np.float32(x * np.where(sums, 100 / np.where(sums, sums, 1), 0)))
    stats = some(loader, transform=loader.transform)
    npt.assert_allclose(stats["mean"], normal.mean(axis=0), rtol=1e-5)
    npt.assert_allclose(stats["std"], normal.std(axis=0, ddof=1), rtol=1e-5)
    assert_equal(some(loader), x)  # before its transform
    chosen = some(ds, transform=xl.transforms.select(gene=["g3", "g1"]))
    assert chosen["gene"].values.tolist() == ["g3", "g1"]
    npt.assert_allclose(chosen["mean"], x.mean(axis=0)[[3, 1]], rtol=1e-12)
    told = {s.attrs["fingerprint"] for s in (stats, chosen, some(ds))}
    assert len(told) == 3
    xl.check_statistics(stats, ds)


def test_statistics__of_other_variables():
    ds = cells()
    stats = some(ds, variable="X_pca")
    assert stats["mean"].dims == ("pc",)
    assert_equal(stats, ds.X_pca.values)
    one = some(ds.isel(cell=[4]))
    assert np.isnan(one["std"]).all()
    npt.assert_array_equal(one["mean"], counts()[4])


def test_statistics__are_the_same_in_file_and_store(tmp_path):
    file, store = cells_in("h5ad", tmp_path), cells_in("store", tmp_path)
    xr.testing.assert_identical(some(file), some(store))
    moved = some(store.isel(cell=slice(None, None, -1)))
    npt.assert_array_equal(moved["mean"], some(file)["mean"])
    npt.assert_array_equal(moved["total"], some(file)["total"][::-1])


def test_statistics__memory_stays_within_the_budget():
    n, g = 40_000, 500

    class Large(Rows):
        def __init__(self):
            super().__init__(np.zeros((1, 1), np.float32), 64)
            self.shape = (n, g)

        @override
        def read_rows(self, start, stop):
            m, columns = stop - start, np.arange(0, g, 5, dtype=np.int32)
            indptr = np.arange(m + 1) * len(columns)
            return CSRArray(np.ones(m * g // 5, np.float32), np.tile(columns, m), indptr, (m, g))

        @override
        def nnz_of(self, starts, stops):
            return (stops - starts) * g // 5

    ds = xr.Dataset({"X": cells(Large(), n, g)["X"].variable}, {"cell": np.arange(n)})
    some(cells(Rows(counts())))  # compiled
    budget = 10_000_000  # 32 MB of values
    tracemalloc.start()
    try:
        stats = some(ds, memory_budget=budget)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{peak / 1e6:.1f} MB")
    assert peak < budget
    npt.assert_array_equal(stats["mean"], np.arange(g) % 5 == 0)
    npt.assert_array_equal(stats["total"], g / 5)


@pytest.mark.parametrize("how", ["zarr", "netcdf"])
def test_statistics__are_saved_and_checked(how, tmp_path):
    views = xl.split(cells(Rows(counts())), {"train": 0.7, "val": "rest"})
    stats = some(views["train"])
    again = saved(stats, how, tmp_path)
    for name in stats.variables:
        npt.assert_array_equal(again[name].values, stats[name].values)
    xl.check_statistics(again, xl.Loader(views["train"], batch_size=4))
    xl.check_leakage({"statistics": again, "val": views["val"]})
    with pytest.raises(PlanError, match=f"overlap in {views['train'].sizes['cell']} cells"):
        xl.check_leakage({"statistics": again, "train": views["train"]})


OTHER = {
    "cells": (lambda ds: ds.isel(cell=slice(0, 50)), "selection: 61 cells then and 50 now"),
    "order": (lambda ds: ds.isel(cell=slice(None, None, -1)), "selection: 61 cells then and 61 now, or others"),
    "names": (lambda ds: ds.assign_coords(gene=[f"h{i}" for i in range(17)]), "values, labels"),
    "values": (lambda ds: ds.assign(X=(("cell", "gene"), counts(seed=5))), "values, labels"),
    "variable": (lambda ds: ds.drop_vars("X"), r"are of 'X' of cells, and these are cells with \['X_pca'"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_check_statistics__refuses_other_data(name):
    ds = cells(Rows(counts()))
    stats = some(ds)
    xl.check_statistics(stats, ds)
    change, message = OTHER[name]
    with pytest.raises(StateError, match=message):
        xl.check_statistics(stats, change(ds))


def test_statistics__what_is_impossible_is_told():
    ds = cells()
    with pytest.raises(
        PlanError, match=r"\['weight', 'quantiles'\] do not apply to statistics of cells"
    ):
        some(ds, weight="KR", quantiles=[0.5])
    with pytest.raises(SchemaError, match=r"needs \['counts'\]"):
        some(ds, variable="counts")
    with pytest.raises(SchemaError, match=r"but 'loadings' has \('gene', 'pc'\); name another"):
        some(ds, variable="loadings")


@pytest.mark.real
def test_statistics__of_real_cells_equal_anndata(real_data):
    import anndata

    path = real_data / "sc" / "visium_mouse_2898x19465.h5ad"
    x = anndata.read_h5ad(path).X.astype(np.float64)  # scipy adds up in the type it has
    stats = some(xl.open_cells(path), memory_budget="200MB")
    mean = np.asarray(x.mean(axis=0)).ravel()
    square = np.asarray(x.multiply(x).mean(axis=0)).ravel()
    n = x.shape[0]
    npt.assert_allclose(stats["mean"], mean, rtol=1e-9)
    npt.assert_allclose(stats["std"] ** 2, (square - mean**2) * n / (n - 1), rtol=1e-6, atol=1e-12)
    npt.assert_array_equal(stats["total"], np.asarray(x.sum(axis=1)).ravel())
    npt.assert_array_equal(stats["n_detected"], np.diff(x.tocsc().indptr))


KINDS = ["B", "NK", "T", "none"]


def joined(n=90, seed=0):
    """Return cells of three files, as if joined: each lacks other genes, and a donor is in several."""
    rng = np.random.default_rng(seed)
    x = counts(n, 17, seed=seed)
    measured = np.ones((3, 17), bool)
    measured[0, :3], measured[1, 2:5], measured[2, [2, 9]] = False, False, False
    whose = np.sort(rng.integers(0, 3, n))
    x *= measured[whose]
    kinds = np.array(["B", "T", None, "NK"], object)[rng.integers(0, 4, n)]
    ds = cells(Rows(x), n).assign_coords(
        dataset=("cell", np.array(["one", "two", "three"], object)[whose]),
        dataset_name=("dataset", np.array(["one", "two", "three"], object)),
        X_measured=(("dataset", "gene"), measured),
        donor=("cell", rng.integers(0, 4, n)),
        kind=("cell", kinds, {"categories": KINDS}),
    )
    return ds, x.astype(np.float64), whose, measured


def naive(x, seen):
    """Return the figures of each gene, over the cells that have measured it."""
    out = {"mean": [], "variance": [], "detection_rate": []}
    for column, mine in zip(x.T, seen.T, strict=True):
        v = column[mine]
        out["mean"].append(v.mean() if len(v) else np.nan)
        out["variance"].append(v.var(ddof=1) if len(v) > 1 else np.nan)
        out["detection_rate"].append((v != 0).mean() if len(v) else np.nan)
    return {k: np.array(v) for k, v in out.items()}


@pytest.mark.parametrize("select", ["all", "mixed", "two"])
@pytest.mark.parametrize("by", [None, "donor", "kind"])
def test_groups__count_what_they_have_measured(by, select):
    ds, x, whose, measured = joined()
    order = {"all": np.arange(90), "mixed": np.random.default_rng(1).permutation(90)[:70],
             "two": np.flatnonzero(whose > 0)}[select]  # fmt: skip
    ds, x, whose = ds.isel(cell=order), x[order], whose[order]
    stats = some(ds, by=by, memory_budget="60kB")  # several batches
    seen = measured[whose]
    for name, expected in naive(x, seen).items():
        npt.assert_allclose(stats[name], expected, rtol=1e-12)
    npt.assert_array_equal(stats["n_measured"], seen.sum(axis=0))
    assert np.isnan(stats["mean"].values[2])  # which no file has
    npt.assert_allclose(stats["total"], x.sum(axis=1))
    by = by or "dataset"
    names = {"dataset": ["one", "two", "three"], "kind": KINDS, "donor": [0, 1, 2, 3]}[by]
    assert stats[by].values.tolist() == names
    for k, name in enumerate(names):
        mine = ds[by].values == name
        for figure, expected in naive(x[mine], seen[mine]).items():
            npt.assert_allclose(stats[f"{figure}_by_{by}"].values[k], expected, rtol=1e-12)
        assert stats[f"n_cells_by_{by}"].values[k] == mine.sum()
        totals = x[mine].sum(axis=1)
        median = np.median(totals[totals > 0]) if (totals > 0).any() else np.nan
        npt.assert_allclose(stats[f"median_total_by_{by}"].values[k], median)


def test_groups__of_genes_that_a_transform_chose():
    ds, x, whose, measured = joined()
    stats = some(ds, transform=xl.transforms.select(gene=["g9", "g0", "g4"]))
    for name, expected in naive(x, measured[whose]).items():
        npt.assert_allclose(stats[name], expected[[9, 0, 4]], rtol=1e-12)


def test_groups__layers_have_the_genes_of_the_counts():
    ds, x, whose, measured = joined()
    ds = ds.assign(spliced=(("cell", "gene"), x * 2))
    expected = naive(x * 2, measured[whose])
    npt.assert_allclose(some(ds, variable="spliced")["mean"], expected["mean"], rtol=1e-12)
    ds = ds.assign_coords(spliced_measured=(("dataset", "gene"), np.ones((3, 17), bool)))
    npt.assert_allclose(some(ds, variable="spliced")["mean"], (x * 2).mean(axis=0), rtol=1e-12)
    npt.assert_allclose(some(ds, variable="X")["mean"], naive(x, measured[whose])["mean"])


def test_modalities__cells_that_lack_one_do_not_count():
    ds, x, *_ = joined()
    there = np.random.default_rng(3).random(90) < 0.6
    x = x * there[:, None]
    ds = ds.drop_vars(["X", "X_measured"]).assign(rna=(("cell", "gene"), x))
    ds = ds.assign_coords(rna_present=("cell", there))
    stats, part = some(ds, variable="rna"), ds.isel(cell=there)
    xr.testing.assert_identical(stats, some(part, variable="rna"))
    npt.assert_allclose(stats["mean"], x[there].mean(axis=0), rtol=1e-12)
    npt.assert_array_equal(stats["cell"], ds["cell"].values[there])
    xl.check_statistics(stats, ds)
    with pytest.raises(StateError, match="selection"):
        xl.check_statistics(stats, ds.assign_coords(rna_present=("cell", ~there)))


@pytest.mark.parametrize("by", [None, "donor"])
def test_classes__are_counted(by):
    ds, *_ = joined()
    stats = some(xl.Loader(ds, batch_size=8, labels=["kind", "depth"]), by=by)
    by = by or "dataset"
    kinds = pd.Categorical(ds.kind.values, KINDS)
    npt.assert_array_equal(stats["kind_counts"], kinds.value_counts().to_numpy())
    assert stats["kind"].values.tolist() == KINDS
    assert stats["kind_counts"].attrs["n_missing"] == int(kinds.isna().sum())
    table = pd.crosstab(ds[by].values, kinds, dropna=False).reindex(index=stats[by].values)
    npt.assert_array_equal(
        stats[f"kind_counts_by_{by}"], table.reindex(columns=KINDS, fill_value=0)
    )
    assert "depth_counts" not in stats
    assert "kind_counts" not in some(ds)
    both = some(ds, labels={"dataset": None, "kind": [*KINDS, "new"]})
    npt.assert_array_equal(both["dataset_counts"], both["n_cells_by_dataset"])
    assert both["kind_counts"].values[-1] == 0


@pytest.mark.parametrize("how", ["zarr", "netcdf"])
def test_groups__are_saved_and_checked(how, tmp_path):
    ds, *_ = joined()
    stats = some(ds, by="donor", labels=["kind"])
    again = saved(stats, how, tmp_path)
    for name in stats.variables:
        npt.assert_array_equal(again[name].values, stats[name].values)
    xl.check_statistics(again, ds)
    others = {
        "donor": ds.assign_coords(donor=ds.donor.copy(data=np.roll(ds.donor.values, 1))),
        "kind": ds.assign_coords(kind=ds.kind.copy(data=np.roll(ds.kind.values, 1))),
        "measured": ds.assign_coords(X_measured=~ds.X_measured),
    }
    for other in others.values():
        with pytest.raises(StateError, match="differ in their groups, values, labels"):
            xl.check_statistics(again, other)
    # names of cells are those of others in another file
    same = ds.assign_coords(cell=("cell", np.array([f"c{i % 45}" for i in range(90)], object)))
    one, two = (same.isel(cell=(ds.dataset == name).values) for name in ("one", "three"))
    xl.check_leakage({"statistics": some(one), "val": two})
    with pytest.raises(PlanError, match="overlap in .* cells: .'one/c0', 'one/c1'"):
        xl.check_leakage({"statistics": some(one), "val": one})


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"by": "sample"}, SchemaError, "by='sample' is no coordinate of cells; there are"),
        ({"by": "depth"}, SchemaError, "by='depth' holds measurements"),
        ({"labels": ["depth"]}, SchemaError, r"\['depth'\] are numbers"),
        ({"labels": ["sample"]}, SchemaError, "'sample' is no coordinate of single samples"),
        ({"by": "donor", "memory_budget": "8kB"}, PlanError, r"17 features in 1\d groups take .*kiB; allow .*than 'donor'"),
    ],
    ids=["unknown", "float", "number", "label", "memory"],
)  # fmt: skip
def test_groups__what_is_impossible_is_told(options, kind, message):
    with pytest.raises(kind, match=message):
        some(joined()[0], **options)
    with pytest.raises(SchemaError, match=r"what 'X_measured' says needs \['dataset_name'\]"):
        some(joined()[0].drop_vars("dataset_name"))


def normalised(seed=0, n=300, g=400):
    """Return normalised counts of genes of very different means, float64."""
    rng = np.random.default_rng(seed)
    mean = np.exp(rng.normal(-0.5, 1.5, g))
    spread = np.where(rng.random(g) < 0.1, rng.gamma(0.3, 3, (n, g)), 1)
    x = rng.poisson(mean * spread).astype(np.float64)
    x[:, :3] = 0
    return x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e3


def of_scanpy(x, **options):
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own and others' future
        import scanpy

        a = anndata.AnnData(np.log1p(x))
        if "batch" in options:
            a.obs["batch"] = pd.Categorical(options.pop("batch"))
            options["batch_key"] = "batch"
        scanpy.pp.highly_variable_genes(a, **options)
    return a.var


def in_dataset(x, **coords):
    labels = {"cell": np.arange(len(x)), "gene": [f"g{i}" for i in range(x.shape[1])]}
    return xr.Dataset({"X": (("cell", "gene"), x)}, {**labels, **coords})


FLAVORS = {
    "cutoffs": {"flavor": "seurat"},
    "bounds": {"flavor": "seurat", "min_mean": 0.5, "max_mean": 2.0, "min_disp": 0.1, "max_disp": 3.0},
    "top": {"flavor": "seurat", "n_top_genes": 57},
    "bins": {"flavor": "seurat", "n_bins": 70},
    "cell ranger": {"flavor": "cell_ranger", "n_top_genes": 57},
    "cell ranger cutoffs": {"flavor": "cell_ranger"},
}  # fmt: skip


def ours(options):
    return {("n_top" if k == "n_top_genes" else k): v for k, v in options.items()}


@pytest.mark.parametrize("name", FLAVORS)
@pytest.mark.parametrize("seed", [0, 1])
def test_highly_variable__equals_scanpy(name, seed):
    x, options = normalised(seed), FLAVORS[name]
    logged = options["flavor"] == "cell_ranger"
    change = xl.transforms.log1p("X") if logged else None
    found = xl.highly_variable(some(in_dataset(x), transform=change), **ours(options))
    expected = of_scanpy(x, **options)
    for figure, rtol in (("means", 1e-10), ("dispersions", 1e-10), ("dispersions_norm", 1e-6)):
        npt.assert_allclose(found[figure], expected[figure], rtol=rtol)  # scanpy's last is float32
    npt.assert_array_equal(found["highly_variable"], expected["highly_variable"])
    assert 10 < expected["highly_variable"].sum() < 390
    assert found["gene"].values.tolist() == [f"g{i}" for i in range(400)]


@pytest.mark.parametrize("options", [{"n_top_genes": 57}, {}], ids=["top", "cutoffs"])
def test_highly_variable__of_groups_equals_scanpy(options):
    x = normalised()
    batch = np.repeat(["a", "b", "c"], [120, 100, 80])
    x[batch == "b", 10:30] = 0  # genes that one batch does not have
    stats = some(in_dataset(x, batch=("cell", batch)), by="batch")
    found = xl.highly_variable(stats, by_group=True, **ours(options))
    expected = of_scanpy(x, batch=batch, **options)
    for figure in ("means", "dispersions", "dispersions_norm"):
        npt.assert_allclose(found[figure], expected[figure], rtol=1e-6)
    npt.assert_array_equal(found["highly_variable"], expected["highly_variable"])
    npt.assert_array_equal(found["n_groups"], expected["highly_variable_nbatches"])


def test_highly_variable__leaves_out_what_nobody_measured():
    ds, *_ = joined()
    found = xl.highly_variable(some(ds), n_top=4, n_bins=3)
    assert np.isnan(found["dispersions"].values[2])
    assert int(found["highly_variable"].sum()) == 4
    without = xl.highly_variable(some(ds.isel(gene=np.arange(17) != 2)), n_top=4, n_bins=3)
    npt.assert_array_equal(found["highly_variable"].values[np.arange(17) != 2], without["highly_variable"])  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"flavor": "seurat_v3"}, PlanError, "needs a second pass"),
        ({"n_top": 3, "min_mean": 1.0}, PlanError, r"\['min_mean'\] do not apply"),
        ({"min_means": 1.0}, PlanError, r"\['min_means'.* do not apply: bounds are \['min_mean'"),
        ({"flavor": "cell_ranger", "n_bins": 9}, PlanError, r"\['n_bins'\] do not apply"),
        ({"n_top": 18}, PlanError, r"n_top=18 of 17 genes that have a dispersion; ask for 1 to 17"),
        ({"n_top": 0}, PlanError, "ask for 1 to 17"),
        ({"by_group": True}, SchemaError, r"xl.statistics\(..., by=...\)"),
    ],
    ids=["flavor", "both", "misspelt", "bins", "many", "none", "groups"],
)  # fmt: skip
def test_highly_variable__what_is_impossible_is_told(options, kind, message):
    with pytest.raises(kind, match=message):
        xl.highly_variable(some(cells()), **options)


def test_highly_variable__other_figures_are_refused():
    logged = some(cells(), transform=xl.transforms.log1p("X"))
    with pytest.raises(SchemaError, match="takes the logarithm itself, and these .* of 'log1p'"):
        xl.highly_variable(logged)
    with pytest.raises(SchemaError, match="of cells"):
        xl.highly_variable(cells())
    empty = in_dataset(counts() * (np.arange(17) > 3))
    with pytest.raises(SchemaError, match="more than 5 % of 17 genes have one mean"):
        xl.highly_variable(some(empty), flavor="cell_ranger")


@pytest.mark.real
def test_highly_variable__of_real_cells_equals_scanpy(real_data):
    path = real_data / "sc" / "pbmc8k_200hvg_counts.h5ad"
    ds = xl.open_cells(path)
    stats = some(ds, transform=xl.transforms.normalize_total())
    found = xl.highly_variable(stats, n_top=50)
    import anndata

    x = anndata.read_h5ad(path).X
    x = np.asarray(x.todense() if hasattr(x, "todense") else x, np.float64)
    expected = of_scanpy(x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e4, n_top_genes=50)
    npt.assert_allclose(found["dispersions_norm"], expected["dispersions_norm"], rtol=1e-4)
    npt.assert_array_equal(found["highly_variable"], expected["highly_variable"])


def test_median_total__is_what_scanpy_scales_to():
    import anndata

    x = counts() * (np.arange(61) % 5 > 0)[:, None]  # some cells are empty
    x[:, 0] += np.arange(61) % 5 > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy

        a = anndata.AnnData(x.copy())
        scanpy.pp.normalize_total(a)
    target = np.unique(a.X.sum(axis=1).round(4))[-1]
    npt.assert_allclose(some(cells(Rows(x)))["median_total"], target, rtol=1e-6)


def test_layers_of_a_modality__count_the_cells_that_have_it():
    x = np.arange(12.0).reshape(4, 3)
    there = np.array([True, False, True, True])
    x[~there] = 0
    ds = xr.Dataset(
        {"prot": (("cell", "protein"), x), "prot_raw": (("cell", "protein"), 2 * x)},
        {"cell": list("abcd"), "prot_present": ("cell", there)},
    )
    for name, factor in (("prot", 1), ("prot_raw", 2)):
        stats = xl.statistics(ds, variable=name, progress=False)
        npt.assert_allclose(stats["mean"], factor * x[there].mean(axis=0))
        assert stats.sizes["cell"] == 3
