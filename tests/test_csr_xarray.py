"""Sparse rows inside xarray, against the same Dataset with dense numpy; and as large as a batch."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_csr import assert_same, is_sparse, keys, pairs, repeats, to_csr
from xloader.csr import CSRArray
from xloader.errors import PerformanceWarning


def label(array, layer=None):
    """Return a batch as readers give it: two variables of the same places, labels on both sides."""
    rows, columns = array.shape
    layer = array * array if layer is None else layer
    return xr.Dataset(
        {"X": (("cell", "gene"), array), "spliced": (("cell", "gene"), layer)},
        {
            "cell": np.arange(rows) * 10,
            "gene": [f"g{i}" for i in range(columns)],
            "cell_type": ("cell", ["b", "a", "c"] * (rows // 3) + ["a"] * (rows % 3)),
            "depth": ("cell", np.arange(1.0, rows + 1)),
            "weight": ("gene", np.arange(1.0, columns + 1)),
        },
        {"assembly": "hg38"},
    )


def assert_equal(got, expected):
    """Compare dims, coordinates and values of Datasets, of arrays, or of anything else."""
    if isinstance(expected, xr.Dataset):
        assert list(got) == list(expected)
        for name in expected:
            assert_equal(got[name], expected[name])
        return
    if isinstance(expected, xr.DataArray):
        assert got.dims == expected.dims
        assert got.attrs == expected.attrs
        xr.testing.assert_identical(got.coords.to_dataset(), expected.coords.to_dataset())
    assert_same(got, expected)


STAYS = {
    "arithmetic of a Dataset": lambda ds: ds[["X", "spliced"]] * 2,
    "absolute": lambda ds: abs(ds.X),
    "square root": lambda ds: np.sqrt(ds.X),
    "log1p": lambda ds: np.log1p(ds.X),
    "log2": lambda ds: np.log1p(ds.X) / np.log(2),
    "expm1": lambda ds: np.expm1(ds.X),
    "power": lambda ds: (ds.X * 1) ** 2,
    "round": lambda ds: (ds.X / 3).round(1),
    "scaled by gene": lambda ds: ds.X * ds.weight,
    "scaled by cell": lambda ds: ds.X / ds.depth,
    "scaled from the left": lambda ds: ds.depth * ds.X,
    "log1p of counts per cell": lambda ds: np.log1p(ds.X * (1e4 / ds.X.sum("gene").clip(1))),
    "layers added": lambda ds: ds.X + ds.spliced,
    "layers subtracted": lambda ds: ds.spliced * 1.0 - ds.X,
    "layers multiplied": lambda ds: ds.X * ds.spliced,
    "present": lambda ds: ds.X > 0,
    "not zero": lambda ds: ds.X != 0,
    "either present": lambda ds: (ds.X > 1) | (ds.spliced > 2),
    "where": lambda ds: ds.X.where(ds.X > 1, 0),
    "where of cells": lambda ds: ds.X.where(ds.depth > 2, 0),
    "xr.where": lambda ds: xr.where(ds.X > 1, ds.X, 0),
    "missing": lambda ds: ds.X.isnull(),
    "zeros_like": lambda ds: xr.zeros_like(ds.X, dtype="i4"),
    "without missing": lambda ds: xr.where(ds.X.isnull(), xr.zeros_like(ds.X), ds.X),
    "clip": lambda ds: ds.X.clip(0, 3),
    "astype": lambda ds: ds.X.astype("f8"),
    "copy": lambda ds: ds.copy(deep=True),
    "pickle": lambda ds: pickle.loads(pickle.dumps(ds)),
    "coordinates": lambda ds: ds.assign_coords(n=("cell", ds.depth.data * 2)).drop_vars("spliced"),
    "names": lambda ds: ds.rename(X="counts", cell="c").swap_dims(c="depth"),
    "transpose to the order it has": lambda ds: ds.transpose("cell", "gene"),
    "concat": lambda ds: xr.concat([ds, ds.isel(cell=[0])], "cell"),
    "isel list": lambda ds: ds.isel(cell=[2, 0, 2], gene=[1, 0]),
    "isel backwards": lambda ds: ds.isel(cell=slice(None, None, -1), gene=slice(1, None, -1)),
    "isel mask": lambda ds: ds.isel(cell=ds.depth.values > 1, gene=ds.weight.values < 2),
    "isel by an array": lambda ds: ds.X.isel(cell=xr.DataArray([1, 0], dims="p")),
    "sel": lambda ds: ds.sel(cell=[20, 0], gene=["g1", "g0"]),
    "sel slice": lambda ds: ds.sel(cell=slice(10, None), gene=slice("g1", None)),
    "head": lambda ds: ds.head(cell=2),
    "query": lambda ds: ds.query(cell="depth > 1"),
    "sortby": lambda ds: ds.sortby("cell_type"),
    "roll": lambda ds: ds.X.roll(cell=1),
    "groupby map": lambda ds: ds.X.groupby("cell_type").map(lambda x: x * 2),
    "apply_ufunc": lambda ds: xr.apply_ufunc(np.square, ds.X),
    "merge": lambda ds: xr.merge([ds[["X"]], ds[["spliced"]]]),
}


@pytest.mark.parametrize("name", STAYS)
@settings(max_examples=25)
@given(pair=pairs(min_side=3))
def test_sparse__operations_stay_so_and_equal_dense(name, pair):
    dense, sparse = map(label, pair)
    with np.errstate(all="ignore"):
        got, expected = STAYS[name](sparse), STAYS[name](dense)
    results = got.data_vars.values() if isinstance(got, xr.Dataset) else [got]
    assert all(map(is_sparse, results))
    assert_equal(got, expected)


REDUCES = {
    "sum": lambda ds, dim: ds.sum(dim),
    "sum with NaN": lambda ds, dim: ds.X.sum(dim, skipna=False),
    "sum of enough": lambda ds, dim: ds.X.sum(dim, min_count=2),
    "mean": lambda ds, dim: ds.mean(dim),
    "min": lambda ds, dim: ds.X.min(dim),
    "max": lambda ds, dim: ds.max(dim),
    "any": lambda ds, dim: ds.X.any(dim),
    "all": lambda ds, dim: ds.X.all(dim),
    "count of present": lambda ds, dim: (ds.X > 0).sum(dim),
    "fraction present": lambda ds, dim: (ds.X > 0).mean(dim),
    "std": lambda ds, dim: ds.X.std(dim),
    "var": lambda ds, dim: ds.X.var(dim, ddof=1),
    "var with NaN": lambda ds, dim: ds.X.var(dim, skipna=False),
    "reduce": lambda ds, dim: ds.X.reduce(np.sum, dim),
    "groupby sum": lambda ds, _: ds[["X"]].groupby("cell_type").sum(),
    "groupby mean": lambda ds, _: ds.X.groupby("cell_type").mean(),
    "groupby std": lambda ds, _: ds.X.groupby("cell_type").std(),
}


@pytest.mark.parametrize("name", REDUCES)
@settings(max_examples=25)
@given(pair=pairs(min_side=3), dim=st.sampled_from(["cell", "gene", None]))
def test_reduction__is_silent_and_equals_dense(name, pair, dim):
    dense, sparse = map(label, pair)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN|Degrees of freedom|Mean of empty")
        assert_equal(REDUCES[name](sparse, dim), REDUCES[name](dense, dim))


@given(data=st.data(), pair=pairs(min_side=1))
def test_selection__by_any_keys_equals_dense(data, pair):
    rows = data.draw(keys(pair[0].shape[0]))
    columns = data.draw(keys(pair[0].shape[1]).filter(lambda k: not repeats(k, pair[0].shape[1])))
    dense, sparse = (label(x).X.isel(cell=rows, gene=columns) for x in pair)
    assert is_sparse(sparse)
    assert_equal(sparse, dense)


@given(data=st.data(), pair=pairs(min_side=1))
def test_selection__of_one_cell_or_gene_is_dense_and_silent(data, pair):
    i, j = (data.draw(st.integers(-n, n - 1)) for n in pair[0].shape)
    dense, sparse = (label(x).X for x in pair)
    for key in ({"cell": i}, {"gene": j}, {"cell": i, "gene": j}, {"cell": i, "gene": [j, -1 - j]}):
        assert_equal(sparse.isel(key), dense.isel(key))
    assert_equal(sparse.isel(cell=[i, 0], gene=j), dense.isel(cell=[i, 0], gene=j))
    assert_equal(sparse[i, j].item(), dense[i, j].item())


@given(parts=st.lists(pairs(), min_size=1, max_size=3))
def test_concat__of_batches_equals_dense(parts):
    width = min(d.shape[1] for d, _ in parts)
    dense, sparse = ([label(x[:, :width]) for x in part] for part in zip(*parts, strict=True))
    got = xr.concat([ds.X for ds in sparse], "cell")
    assert is_sparse(got)
    assert_equal(got, xr.concat([ds.X for ds in dense], "cell"))


DENSIFIES = {
    "add": ("add", lambda ds: ds.X + 1),
    "center": ("subtract", lambda ds: ds.X - ds.weight),
    "groups": (
        "subtract",
        lambda ds: ds.X.groupby("cell_type") - ds.X.groupby("cell_type").mean(),
    ),
    "equal": ("equal", lambda ds: ds.X == 0),
    "not": ("invert", lambda ds: ~(ds.X > 0)),
    "clip": ("maximum", lambda ds: ds.X.clip(min=1)),
    "where": ("where", lambda ds: ds.X.where(ds.X > 0)),
    "fillna": ("invert, where", lambda ds: ds.X.fillna(0)),
    "notnull": ("invert", lambda ds: ds.X.notnull()),
    "count": ("logical_not", lambda ds: ds.X.count("cell")),
    "median": ("nanmedian", lambda ds: ds.X.median("cell")),
    "prod": ("nanprod", lambda ds: ds.X.prod("gene")),
    "cumsum": ("nancumsum", lambda ds: ds.X.cumsum("gene")),
    "argmax": ("argmax", lambda ds: ds.X.argmax("gene", skipna=False)),
    "T": ("transpose", lambda ds: ds.X.T),
    "transpose": ("transpose", lambda ds: ds.transpose("gene", "cell")),
    "gene first": ("transpose", lambda ds: ds.weight * ds.X),
    "dot": ("einsum", lambda ds: ds.X.dot(ds.weight)),
    "concat genes": ("concatenate", lambda ds: xr.concat([ds.X, ds.X], "gene")),
    "concat new": ("a new axis", lambda ds: xr.concat([ds.X, ds.X], "replicate")),
    "to_array": ("stack", lambda ds: ds[["X", "spliced"]].to_array()),
    "stack": ("reshape", lambda ds: ds.X.stack(z=("cell", "gene"))),
    "shift": ("pad", lambda ds: ds.X.shift(cell=1)),
    "repeated": ("selection of a column twice", lambda ds: ds.X.isel(gene=[0, 0])),
    "pointwise": (
        "selection of single elements",
        lambda ds: ds.X.isel(
            cell=xr.DataArray([0, 1], dims="p"), gene=xr.DataArray([1, 0], dims="p")
        ),
    ),
    "ones_like": ("full_like", lambda ds: xr.ones_like(ds.X)),
    "isin": ("isin", lambda ds: ds.X.isin([1, 2])),
    "to text": ("astype", lambda ds: ds.X.astype(str)),
    "values": ("numpy.asarray", lambda ds: ds.X.values),
    "to_dataframe": ("numpy.asarray", lambda ds: ds[["X"]].to_dataframe().X.to_numpy()),
    "to_pandas": ("numpy.asarray", lambda ds: ds.X.to_pandas()),
    "equals": ("equal, bitwise_or", lambda ds: ds.equals(ds.copy(deep=True))),
    "identical": ("equal, bitwise_or", lambda ds: ds.identical(ds.copy(deep=True))),
    "not equals": ("equal, bitwise_or", lambda ds: ds.X.equals(xr.zeros_like(ds.X))),
}


@pytest.mark.parametrize("name", DENSIFIES)
@settings(max_examples=15)
@given(pair=pairs(min_side=3).filter(lambda pair: pair[0].dtype == "f4"))
def test_dense__operations_name_themselves_and_equal_dense(name, pair):
    dense, sparse = map(label, pair)
    operations, func = DENSIFIES[name]
    with np.errstate(all="ignore"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PerformanceWarning)
        warnings.filterwarnings("ignore", "All-NaN")
        got, expected = func(sparse), func(dense)
    assert not is_sparse(got)
    assert_equal(got, expected)
    assert {str(w.message).split("`")[1] for w in caught} == set(operations.split(", "))


def test_assignment__into_a_sparse_variable_is_refused():
    ds = label(to_csr(np.eye(3)))
    with pytest.raises(TypeError, match="'CSRArray' object does not support item assignment"):
        ds.X[0, 0] = 1


def test_repr__of_a_batch_shows_no_values_and_is_silent():
    ds = label(to_csr(np.eye(4, dtype="f4")))
    assert "<CSRArray 4 x 4, float32, 4 stored" in repr(ds)
    assert "CSRArray" in ds._repr_html_()
    assert "CSRArray" in ds.X._repr_html_()
    assert ds.nbytes > 0


@pytest.fixture(scope="module")
def large():
    """Return a dense and a sparse array that several threads share, in several blocks each."""
    g = np.random.default_rng(0)
    dense = g.integers(1, 200, (700, 900)).astype("f4") * (g.random((700, 900)) < 0.5)
    dense[[0, 3, 699]] = 0
    dense[:, [0, 5, 899]] = 0
    dense[g.integers(0, 700, 40), g.integers(0, 900, 40)] = np.nan
    sparse = to_csr(dense, backwards=True)
    assert sparse.nnz > 2 * 2**17
    return dense, sparse


LARGE = {
    "log1p": np.log1p,
    "rows": lambda x: x * np.arange(1, 701, dtype="f4")[:, None],
    "columns": lambda x: x * np.arange(1, 901, dtype="f8"),
    "columns of bytes": lambda x: x * np.arange(900, dtype="u1"),
    "where": lambda x: np.where(x > 100, 0, x),
    "modf": lambda x: np.modf(x / 7)[0],
    "astype": lambda x: x.astype("f8"),
    "sums of rows": lambda x: np.sum(x, axis=1),
    "sums of columns": lambda x: np.sum(x, axis=0, dtype="f8"),
    "sum": lambda x: np.nansum(x, dtype="f8"),
    "means": lambda x: np.nanmean(x, axis=0, dtype="f8"),
    "var": lambda x: np.nanvar(x, axis=1, dtype="f8"),
    "largest of columns": lambda x: np.max(x, axis=0),
    "smallest of columns": lambda x: np.nanmin(x, axis=0),
    "largest of rows": lambda x: np.nanmax(x, axis=1),
    "shuffled rows": lambda x: x[np.random.default_rng(1).permutation(700)],
    "some columns": lambda x: x[:, np.random.default_rng(1).permutation(900)[:100]],
    "concatenate": lambda x: np.concatenate([x, x[:5], x]),
}


@pytest.mark.parametrize("name", LARGE)
def test_large__arrays_equal_numpy(name, large):
    dense, sparse = large
    before = sparse.copy()
    got = LARGE[name](sparse)
    other = LARGE[name](sparse * 2)  # takes the memory that is free, and no other
    assert_same(got, LARGE[name](dense))
    assert_same(other, LARGE[name](dense * 2))
    assert_same(sparse, before)


def test_large__columns_are_sorted_and_rows_numbered(large):
    dense, sparse = large
    ordered = sparse.sort_columns()
    rows, columns = np.nonzero(dense)
    np.testing.assert_array_equal(ordered.indices, columns)
    np.testing.assert_array_equal(ordered.row_ids(), rows)
    np.testing.assert_array_equal(ordered.data, dense[rows, columns])
    assert_same(ordered, dense)


def test_import__leaves_the_compiler_alone():
    code = (
        "import sys, numpy, xloader.csr as c\n"
        "a = c.CSRArray(numpy.ones(1), numpy.zeros(1, int), numpy.array([0, 1]), (1, 1))\n"
        "repr(a), a.nbytes, a * 2\n"
        "print('numba' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_layers__of_the_same_places_are_known_without_comparing(large):
    _, sparse = large
    layer = CSRArray(sparse.data + 1, sparse.indices, sparse.indptr, sparse.shape)
    got = label(sparse, layer)
    assert is_sparse(got.X + got.spliced)
    np.testing.assert_array_equal((got.X + got.spliced).data.data, 2 * sparse.data + 1)
