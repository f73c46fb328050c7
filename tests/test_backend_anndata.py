"""AnnData files, held equal to what anndata and scipy read from them."""

import multiprocessing
import pickle
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.anndata_files import (
    LAYOUTS,
    counts,
    dense,
    opened,
    rechunk,
    stored,
    write,
    write_example,
)
from xloader.backends import anndata_matrices as backend
from xloader.backends.anndata import AnnDataBackendEntrypoint, CSRGroup
from xloader.backends.hdf5 import HDF5Leaf, close_hdf5
from xloader.errors import XloaderWarning
from xloader.schema import lazy


@pytest.fixture
def example(tmp_path):
    return write_example(tmp_path)


def assert_column_equals(variable: xr.Variable | xr.DataArray, series: pd.Series) -> None:
    """Compare a coordinate with a column as pandas holds it."""
    values, attrs = variable.values, variable.attrs
    missing = series.isna().to_numpy()
    npt.assert_array_equal(pd.isna(values), missing)
    expected = series.astype(object).to_numpy()
    assert values[~missing].tolist() == expected[~missing].tolist()
    if isinstance(series.dtype, pd.CategoricalDtype):
        assert attrs["categories"] == series.cat.categories.tolist()
        assert attrs["ordered"] == series.cat.ordered
    elif isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf":
        assert values.dtype == series.dtype


def assert_equals_anndata(ds: xr.Dataset, adata: ad.AnnData) -> None:
    """Compare names, columns and every matrix."""
    assert ds.cell.values.tolist() == adata.obs_names.tolist()
    assert ds.gene.values.tolist() == adata.var_names.tolist()
    npt.assert_array_equal(ds.row, np.arange(adata.n_obs))
    npt.assert_array_equal(ds.column, np.arange(adata.n_vars))
    labels = {(v.dims, v.attrs.get("column", k)): v for k, v in ds.coords.items()}
    for frame, dim in ((adata.obs, "cell"), (adata.var, "gene")):
        for name in frame:
            assert_column_equals(labels[(dim,), name], frame[name])
    matrices = {"X": adata.X, **adata.layers, **adata.obsm}
    assert set(ds.data_vars) == set(matrices)
    for name, matrix in matrices.items():
        assert ds[name].dims[0] == "cell"
        npt.assert_array_equal(ds[name].values, dense(matrix), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint16", "bool"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunks", [None, {}])
def test_matrices__equal_anndata(tmp_path, layout, dtype, chunks):
    path = tmp_path / "x.h5ad"
    x = LAYOUTS[layout](counts(dtype=dtype))
    write(path, x, layers={"other": x.copy()}, obsm={"same": x.copy()})
    ds = opened(path, chunks=chunks)
    assert_equals_anndata(ds, ad.read_h5ad(path))
    assert ds.X.dims == ds.other.dims == ("cell", "gene")
    assert ds.same.dims == ("cell", "same_dim")
    assert ds.X.dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (4, 3)])
def test_matrices__may_be_empty_or_zero(tmp_path, layout, shape):
    path = tmp_path / "x.h5ad"
    write(path, LAYOUTS[layout](scipy.sparse.csr_matrix(shape, dtype=np.float32)))
    for chunks in (None, {}):
        ds = opened(path, chunks=chunks)
        npt.assert_array_equal(ds.X.values, np.zeros(shape, np.float32), strict=True)
        assert ds.X.isel(cell=[]).values.shape == (0, shape[1])
        assert ds.X.isel(gene=slice(0, 0)).values.shape == (shape[0], 0)


def test_obs__columns_of_every_encoding(tmp_path):
    path = tmp_path / "x.h5ad"
    n = 6
    obs = pd.DataFrame(
        {
            "float": np.array([0.5, np.nan, 2, 3, 4, 5], np.float32),
            "int": np.arange(n, dtype=np.int16),
            "bool": np.arange(n) % 2 == 0,
            "string": ["é", "", "c", "d", "e", "nan"],
            "repeated": ["x", "x", "y", "x", "x", "y"],
            "category": pd.Categorical(["b", None, "a", "b", "b", "a"], ["b", "a", "unused"]),
            "ordered": pd.Categorical([3, 1, 2, 3, 1, 2], [3, 2, 1], ordered=True),
            "numbers": pd.Categorical([3.5, None, 2, 3.5, 1, 2]),
            "booleans": pd.Categorical([True, False, None, True, True, True]),
            "nothing": pd.Categorical([None] * n),
            "whole": pd.array(np.arange(n), dtype="Int32"),
            "holes": pd.array([1, None, 3, 4, 5, 6], dtype="Int64"),
            "sure": pd.array([True, False] * 3, dtype="boolean"),
            "unsure": pd.array([True, None, False] * 2, dtype="boolean"),
            "text": pd.array(["a", None, "b", "c", "d", "e"], dtype="string"),
        },
        index=pd.Index([f"cell {i}" for i in range(n)], name="barcode"),
    )
    with ad.settings.override(allow_write_nullable_strings=True):
        write(path, counts(n, 4), obs=obs)
    ds = opened(path)
    back = ad.read_h5ad(path)
    assert_equals_anndata(ds, back)
    assert back.obs["text"].dtype == "string"
    assert ds.whole.dtype == np.int32
    assert ds.holes.dtype == np.float64
    assert ds.sure.dtype == np.bool_
    assert ds.unsure.dtype == ds.text.dtype == ds.string.dtype == object
    assert ds.numbers.dtype == np.float64
    assert ds.repeated.attrs["categories"] == ["x", "y"]


def test_obs__fixed_width_bytes_and_bytes_attributes_are_strings(tmp_path):
    path = tmp_path / "x.h5ad"
    write(path, counts(4, 3), obs=pd.DataFrame({"kind": list("abab")}, index=list("wxyz")))
    with h5py.File(path, "r+") as f:
        del f["obs/kind"]
        f["obs"].create_dataset("kind", data=np.array(["é".encode(), b"bb", b"", b"bb"]))
        f["obs/kind"].attrs["encoding-type"] = np.bytes_(b"string-array")
        f["obs"].attrs["_index"] = np.bytes_(b"_index")
        f["obs"].attrs["column-order"] = np.array([b"kind"])
        f["X"].attrs["encoding-type"] = np.bytes_(b"csr_matrix")
    ds = opened(path)
    assert ds.kind.values.tolist() == ["é", "bb", "", "bb"]
    assert ds.X.shape == (4, 3)


def test_obs__columns_of_dataframe_0_1_0(tmp_path):
    path = tmp_path / "x.h5ad"
    write(path, counts(4, 3))
    with h5py.File(path, "r+") as f:
        obs = f["obs"]
        obs.attrs["encoding-version"] = "0.1.0"
        obs["kind"] = np.array([1, -1, 0, 1], np.int8)
        obs["__categories/kind"] = ["no", "yes"]
        obs["__categories/kind"].attrs["ordered"] = True
        obs["kind"].attrs["categories"] = obs["__categories/kind"].ref
        obs["plain"] = ["a", "b", "c", "d"]
        obs["score"] = np.arange(4.0)
        obs.attrs["column-order"] = ["kind", "plain", "score"]
    ds = opened(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.OldFormatWarning)
        assert_equals_anndata(ds, ad.read_h5ad(path))
    assert pd.isna(ds.kind.values[1])
    assert ds.kind.attrs == {"categories": ["no", "yes"], "ordered": True}


def test_obs__numeric_names_become_strings(tmp_path):
    path = tmp_path / "x.h5ad"
    write(path, counts(3, 3))
    with h5py.File(path, "r+") as f:
        del f["obs/_index"]
        f["obs/_index"] = np.array([7, 8, 9])
    assert opened(path).cell.values.tolist() == ["7", "8", "9"]


def test_names__taken_ones_get_a_prefix(tmp_path):
    path = tmp_path / "x.h5ad"
    x = counts(4, 3)
    obs = pd.DataFrame({"n": range(4), "row": list("abcd"), "X": range(4)}, index=list("wxyz"))
    obs["obsm_X_dim"] = 1
    var = pd.DataFrame({"n": range(3), "cell": range(3)}, index=list("ghi"))
    pca = np.ones((4, 2), np.float32)
    write(
        path,
        x,
        obs=obs,
        var=var,
        layers={"gene": x * 2, "X_pca": x * 3},
        obsm={"X_pca": pca, "X": pca * 2},
    )
    ds = opened(path)
    assert ds.sizes["obsm_X_pca_dim"] == ds.sizes["obsm_X_dim"] == 2
    npt.assert_array_equal(ds.X, dense(x))
    npt.assert_array_equal(ds.layer_gene, dense(x) * 2)
    npt.assert_array_equal(ds.X_pca, dense(x) * 3)
    npt.assert_array_equal(ds.obsm_X_pca, pca)
    npt.assert_array_equal(ds.obsm_X, pca * 2)
    assert ds.layer_gene.attrs == {"key": "gene"}
    assert ds.n.dims == ("cell",)
    assert ds.gene_n.attrs["column"] == "n"
    assert ds.cell_row.values.tolist() == list("abcd")
    assert ds.cell_obsm_X_dim.values.tolist() == [1] * 4
    npt.assert_array_equal(ds.row, range(4))


def test_obsm__tables_carry_their_column_names(tmp_path):
    path = tmp_path / "x.h5ad"
    table = pd.DataFrame({"CD3": np.arange(5), "CD4": np.arange(5.0) / 2}, index=list("abcde"))
    adata = write(
        path,
        counts(5, 3),
        obs=pd.DataFrame(index=list("abcde")),
        obsm={"protein": table, "cube": np.arange(30).reshape(5, 2, 3)},
    )
    for chunks in (None, {}):
        ds = opened(path, chunks=chunks)
        assert ds.protein.dims == ("cell", "protein_dim")
        assert ds.protein_dim.values.tolist() == ["CD3", "CD4"]
        npt.assert_array_equal(ds.protein, table.to_numpy())
        npt.assert_array_equal(ds.protein.sel(protein_dim="CD4"), table["CD4"])
        npt.assert_array_equal(ds.protein.isel(cell=3), table.iloc[3])
        assert ds.protein.isel(protein_dim=[]).values.shape == (5, 0)
        npt.assert_array_equal(ds.cube, adata.obsm["cube"])


def test_open__unsupported_elements_are_left_out_with_a_warning(tmp_path):
    path = tmp_path / "x.h5ad"
    mixed = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=list("vw"))
    write(path, counts(2, 3), obs=pd.DataFrame(index=list("vw")), obsm={"mixed": mixed})
    with h5py.File(path, "r+") as f:
        odd = f["obs"].create_group("odd")
        odd.attrs["encoding-type"] = "awkward-array"
        f["obs/square"] = np.ones((2, 2))
        f["obs"].attrs["column-order"] = ["odd", "square"]
    expected = r"`obs/odd` \(awkward-array\), `obs/square` \(unknown encoding\), `obsm/mixed`"
    with pytest.warns(XloaderWarning, match=expected) as caught:
        ds = xr.open_dataset(path, engine="anndata")
    assert caught[0].filename == __file__
    assert set(ds.data_vars) == {"X"}
    assert set(opened(path, drop_variables=["odd", "square", "mixed", "X"]).data_vars) == set()


def test_open__leaves_out_dropped_variables(example):
    ds = opened(example[0], drop_variables="log")
    assert set(ds.data_vars) == {"X", "X_pca"}
    assert "cell_type" not in opened(example[0], drop_variables=["cell_type", "nonsense"]).coords


def test_guess_can_open__goes_by_the_suffix():
    guess = AnnDataBackendEntrypoint().guess_can_open
    assert guess("a.h5ad")
    assert guess(Path("a.h5ad"))
    assert not guess("a.cool")
    assert not guess(b"a.h5ad")


def test_open__finds_the_layout_by_structure_not_by_name(tmp_path, example):
    renamed = example[0].rename(tmp_path / "renamed.bin")
    assert opened(renamed).sizes["cell"] == 300


@st.composite
def matrices(draw):
    n_cells, n_genes = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    cells = draw(st.lists(st.integers(0, n_cells - 1), max_size=60))
    genes = draw(st.lists(st.integers(0, n_genes - 1), min_size=len(cells), max_size=len(cells)))
    x = np.zeros((n_cells, n_genes), np.int32)
    x[cells, genes] = np.arange(1, len(cells) + 1)
    return x


def indexers(n):
    return st.one_of(
        st.integers(-n, n - 1),
        # xarray itself fails on an empty slice of negative step
        st.slices(n).filter(lambda s: (s.step or 1) > 0 or len(range(*s.indices(n)))),
        st.lists(st.integers(-n, n - 1), max_size=8),
        st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), x=matrices(), layout=st.sampled_from(["csr", "csc"]))
def test_selections__equal_numpy(tmp_path_factory, monkeypatch, data, x, layout):
    path = str(tmp_path_factory.mktemp("h5") / "x.h5")
    monkeypatch.setattr(backend, "SCAN_NBYTES", 4 * 8 * 5)  # five values a piece
    array = stored(path, LAYOUTS[layout](x))
    array.block_rows = data.draw(st.sampled_from([1, 2, 64]))
    start = data.draw(st.integers(0, len(x)))
    stop = data.draw(st.integers(start, len(x)))
    rows = array.read_rows(start, stop)
    npt.assert_array_equal(rows.todense(), x[start:stop], strict=True)
    expected = scipy.sparse.csr_matrix(x[start:stop])
    npt.assert_array_equal(rows.indices, expected.indices)
    npt.assert_array_equal(rows.indptr, expected.indptr)
    assert rows.indices.dtype == np.int32
    npt.assert_array_equal(array.nnz_of(np.array([start]), np.array([stop])), [expected.nnz])
    variable = lazy(("cell", "gene"), array)
    keys = [data.draw(indexers(n)) for n in x.shape]
    picked = variable.isel(cell=keys[0], gene=keys[1])
    rows, columns = (np.arange(n)[k] for n, k in zip(x.shape, keys, strict=True))
    npt.assert_array_equal(picked.values, x[rows][..., columns])


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_read_rows__sorts_what_the_file_left_unsorted(tmp_path, layout):
    matrix = LAYOUTS[layout](counts())
    shuffled = matrix.copy()
    for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        shuffled.indices[a:b], shuffled.data[a:b] = (
            matrix.indices[a:b][::-1],
            matrix.data[a:b][::-1],
        )
    shuffled.has_sorted_indices = False
    array = stored(tmp_path / "x.h5", shuffled)
    rows = array.read_rows(5, 40)
    expected = counts()[5:40]
    npt.assert_array_equal(rows.indices, expected.indices)
    npt.assert_array_equal(rows.data, expected.data)


def test_read_rows__narrows_wide_indices_and_swaps_bytes(tmp_path):
    x = counts()

    def change(group):
        del group["indices"], group["data"]
        group["indices"] = x.indices.astype(">i8")
        group["data"] = x.data.astype(">f4")

    rows = stored(tmp_path / "x.h5", x, change).read_rows(0, x.shape[0])
    assert rows.indices.dtype == np.int32
    assert rows.dtype == np.dtype("=f4")
    npt.assert_array_equal(rows.todense(), x.toarray())


def test_block_rows__aims_at_blocks_of_equal_weight(tmp_path):
    x = counts(4000, 500, 0.1)  # 50 values a row
    array = stored(tmp_path / "a.h5", x)
    assert array.block_rows == 2048
    assert not array.by_column
    one_chunk = stored(tmp_path / "b.h5", x, lambda g: rechunk(g, "data", (x.nnz,)))
    assert one_chunk.block_rows == 4096
    by_column = stored(tmp_path / "c.h5", x.tocsc())
    assert by_column.by_column
    assert by_column.block_rows == 4000
    assert by_column.unit == (4000, 1)


def test_nnz_of__reads_no_values(tmp_path, monkeypatch):
    x = counts()
    array = stored(tmp_path / "x.h5", x)
    monkeypatch.setattr(HDF5Leaf, "read", None)
    monkeypatch.setattr(HDF5Leaf, "read_ranges", None)
    starts, stops = np.array([0, 10, 53]), np.array([10, 53, 53])
    npt.assert_array_equal(array.nnz_of(starts, stops), [x[:10].nnz, x[10:].nnz, 0])


def test_dense__chunks_follow_the_chunks_of_the_file(tmp_path):
    path = tmp_path / "x.h5ad"
    x = np.random.default_rng(0).random((3000, 3000), np.float32)
    adata = ad.AnnData(x)
    adata.write_h5ad(path)
    for stored_chunks, expected in (((700, 90), (700, 3000)), ((2900, 90), (2900, 1440))):
        close_hdf5(str(path))
        with h5py.File(path, "r+") as f:
            del f["X"]
            f.create_dataset("X", data=x, chunks=stored_chunks)
            f["X"].attrs["encoding-type"] = "array"
        chunks = opened(path, chunks={}).X.data.chunksize
        assert chunks == expected
        npt.assert_array_equal(opened(path, chunks={}).X[100:2950, ::700], x[100:2950, ::700])


def test_expressions__stay_lazy_and_are_right(example, monkeypatch):
    path, adata = example
    x = adata.X.toarray()
    monkeypatch.setattr("xloader.schema.CHUNK_NBYTES", 64 * 40 * 4)
    reads: list[Any] = []
    read_rows = CSRGroup.read_rows
    monkeypatch.setattr(
        CSRGroup, "read_rows", lambda a, *r: (reads.append((a.name, *r)), read_rows(a, *r))[1]
    )
    monkeypatch.setattr(backend, "BLOCK_VALUES", 64 * 8)
    ds = opened(path, chunks={})
    assert len(ds.X.chunks[0]) == 5
    is_b = (adata.obs["cell_type"] == "B").to_numpy()
    genes = ["g7", "g3", "g30"]
    lazies = {
        "log1p": (np.log1p(ds).X, np.log1p(x)),
        "where": (ds.where(ds.X > 50, 0).X, np.where(x > 50, x, 0)),
        "sel": (ds.sel(gene=genes).X, x[:, [7, 3, 30]]),
        "isel": (ds.isel(cell=[299, 0, 17], gene=slice(2, 9)).X, x[[299, 0, 17], 2:9]),
        "mean": (ds.mean("cell").X, x.mean(0)),
        "query": (ds.query(cell="cell_type == 'B'").X, x[is_b]),
        "drop": (ds.where(ds.cell_type == "B", drop=True).X, x[is_b]),
        "sum": (np.log1p(ds.X).sum("gene"), np.log1p(x).sum(1)),
    }
    assert not reads
    for result, expected in lazies.values():
        assert result.chunks is not None
        npt.assert_allclose(result.values, expected, rtol=1e-5)
    reads.clear()
    ds.X.mean().compute()
    assert sorted(reads) == [("X", a, min(a + 64, 300)) for a in range(0, 300, 64)]


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_expressions__need_bounded_memory(tmp_path, layout):
    path = tmp_path / "x.h5ad"
    x = counts(6000, 16000, 0.002)  # 384 MB dense
    write(path, LAYOUTS[layout](x))
    ds = opened(path, chunks={})
    scattered = opened(path).X.isel(cell=[0, 3000, 5999])
    tracemalloc.start()
    try:
        mean = np.log1p(ds).mean("cell").X.values
        rows = scattered.values
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    npt.assert_allclose(mean, np.asarray(x.log1p().mean(0)).ravel(), rtol=1e-4)
    npt.assert_array_equal(rows, x[[0, 3000, 5999]].toarray())
    assert peak < 150e6


@pytest.mark.parametrize("chunks", [None, {}])
def test_pickle__carries_a_recipe(tmp_path, chunks):
    path = tmp_path / "x.h5ad"
    for make in LAYOUTS.values():
        write(path, make(counts()))
        ds = opened(path, chunks=chunks)
        ds.X.isel(cell=[1]).load()
        xr.testing.assert_identical(pickle.loads(pickle.dumps(ds)).load(), ds.compute())
        ds.close()


def test_pickle__leaves_row_pointers_behind(tmp_path):
    for layout in ("csr", "csc"):
        array = stored(tmp_path / layout, LAYOUTS[layout](counts(5000, 300, 0.01)))
        array.nnz_of(np.array([0]), np.array([5000]))
        dumped = pickle.dumps(array)
        assert len(dumped) < 1000
        npt.assert_array_equal(
            pickle.loads(dumped).read_rows(10, 20).todense(), array.read_rows(10, 20).todense()
        )


def _sums(ds: xr.Dataset, queue: Any) -> None:
    import dask

    with dask.config.set(scheduler="synchronous"):
        queue.put([float(ds.X.isel(cell=slice(a, a + 40)).sum()) for a in range(0, 300, 10)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_children__read_while_the_parent_does(example, method, chunks):
    path, adata = example
    ds = opened(path, chunks=chunks, cache=False)
    expected = [float(adata.X[a : a + 40].sum()) for a in range(0, 300, 10)]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    ds.X.isel(cell=[0]).compute()  # the parent holds a handle now
    children = [context.Process(target=_sums, args=(ds, queue)) for _ in range(3)]
    for child in children:
        child.start()
    for a in range(0, 300, 10):
        assert float(ds.X.isel(cell=slice(a, a + 40)).sum()) == expected[a // 10]
    results = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert results == [expected] * 3
