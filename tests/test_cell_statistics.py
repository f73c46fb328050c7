"""Statistics of cells: what numpy says of the whole array, in one pass that reads each block once."""

import tracemalloc

import numpy as np
import numpy.testing as npt
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
