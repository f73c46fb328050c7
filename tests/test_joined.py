"""Many files of cells as one: labels, features and every value equal what anndata.concat gives."""

import itertools
import json
import pickle
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xloader as xl
from tests.doubles import Rows, cells, cells_in, contacts, counts, to_csr
from tests.sources import sparse
from xloader import trace
from xloader.csr import CSRArray
from xloader.errors import PerformanceWarning, ReadError, SchemaError, StateError, XloaderWarning
from xloader.joined_arrays import JoinedDense, JoinedRows
from xloader.keyed import key_of, permuted

GENES = {
    "a": ["g0", "g1", "g2", "g3", "g4", "g5"],
    "b": ["g5", "g7", "g3", "g1", "g8"],
    "c": ["g1", "g9", "g3"],
}
SIZES = {"a": 23, "b": 31, "c": 9}
VOCABULARY = ["g9", "g3", "g0", "g8", "g1"]


def adata(name, dtype="float32", form=scipy.sparse.csr_matrix):
    genes, n = GENES[name], SIZES[name]
    rng = np.random.default_rng(len(genes))
    obs = pd.DataFrame(index=[f"bc{i}" for i in range(n)])
    obs["cell_type"] = pd.Categorical(rng.choice(["T", "B", f"only_{name}"], n))
    obs["depth"] = rng.integers(1, 99, n)
    if name != "c":
        obs["donor"] = rng.choice(["d1", f"d_{name}"], n)
    x = sparse(n, len(genes), seed=ord(name)).astype(dtype)
    var = pd.DataFrame({"length": np.arange(len(genes)), "chrom": "chr1"}, index=genes)
    return ad.AnnData(form(x), obs, var, obsm={"X_pca": rng.random((n, 2)).astype("float32")})


def files(folder, names="abc", **kwargs):
    paths = []
    for name in names:
        paths.append(folder / f"{name}.h5ad")
        adata(name, **kwargs).write_h5ad(paths[-1])
    return paths


def replace(data, path):
    path.unlink()  # it is open
    data.write_h5ad(path)


def oracle(paths, join):
    """Return the joined matrix by anndata; a vocabulary is a reindexing of the outer join."""
    read = [ad.read_h5ad(p) for p in paths]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of cells repeat
        joined = ad.concat(read, join=join if isinstance(join, str) else "outer", fill_value=0)
    return joined if isinstance(join, str) else joined[:, join]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def dense(x):
    return (
        x.todense() if isinstance(x, CSRArray) else x.toarray() if scipy.sparse.issparse(x) else x
    )


@pytest.fixture
def paths(tmp_path):
    return files(tmp_path)


FORMS = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix, "dense": np.asarray}


@pytest.mark.parametrize("join", ["outer", "inner", VOCABULARY], ids=["outer", "inner", "given"])
@pytest.mark.parametrize("form", list(FORMS))
def test_concat__holds_what_anndata_joins(tmp_path, join, form):
    paths = files(tmp_path, form=FORMS[form])
    ds, expected = xl.concat(paths, join=join), oracle(paths, join)
    if join == "outer":  # anndata sorts them
        assert ds.gene.values.tolist() == list(dict.fromkeys(flat(GENES.values())))
        expected = expected[:, ds.gene.values]
    assert ds.gene.values.tolist() == expected.var_names.tolist()
    assert ds.cell.values.tolist() == expected.obs_names.tolist()
    np.testing.assert_array_equal(ds.X.values, dense(expected.X))
    assert ds.X.dtype == np.float32
    np.testing.assert_array_equal(ds.X_pca.values, expected.obsm["X_pca"])
    for name in ("cell_type", "depth"):
        assert ds[name].values.tolist() == expected.obs[name].tolist()
    measured = [[g in GENES[name] for g in ds.gene.values] for name in "abc"]
    assert ds.X_measured.dims == ("dataset", "gene")
    assert ds.X_measured.values.tolist() == measured
    assert ds.dataset.values.tolist() == flat([k] * n for k, n in SIZES.items())
    assert ds.dataset_name.values.tolist() == ["a", "b", "c"]
    assert ds.column.values.tolist() == list(range(ds.sizes["gene"]))
    assert ds.row.values.tolist() == flat(range(n) for n in SIZES.values())


@pytest.mark.parametrize("join", ["outer", "inner", VOCABULARY], ids=["outer", "inner", "given"])
@pytest.mark.parametrize("form", ["csr", "dense", "mixed", "store"])
@pytest.mark.parametrize("layout", [None, "dense"])
def test_loader__every_row_is_that_of_anndata(tmp_path, join, form, layout):
    paths = files(tmp_path, form=FORMS.get(form, FORMS["csr"]))
    if form == "mixed":
        adata("b", form=np.asarray).write_h5ad(paths[1])
    expected = oracle(paths, join)
    if form == "store":
        for name in "ac":
            xl.convert(tmp_path / f"{name}.h5ad", tmp_path / name, progress=False)
        paths = [tmp_path / "a", paths[1], tmp_path / "c"]
    ds = xl.concat(paths, join=join)
    x = dense(expected[:, ds.gene.values].X)
    loader = xl.Loader(
        ds, batch_size=7, shuffle=True, layout=layout, labels=["dataset", "cell_type"]
    )
    for epoch in range(2):
        loader.set_epoch(epoch)
        seen = []
        for batch in loader:
            ids = batch.sample_id.values
            assert isinstance(batch.X.data, CSRArray) == (layout is None and form != "dense")
            got = batch.X.data
            if isinstance(got, CSRArray):
                for k in range(len(ids)):
                    row = got.indices[got.indptr[k] : got.indptr[k + 1]]
                    assert (np.diff(row) > 0).all()
            np.testing.assert_array_equal(dense(got), x[ids])
            assert batch.dataset.values.tolist() == ds.dataset.values[ids].tolist()
            assert batch.cell.values.tolist() == expected.obs_names[ids].tolist()
            assert batch.X_measured.identical(ds.X_measured)
            seen += ids.tolist()
        assert sorted(seen) == list(range(sum(SIZES.values())))
    assert loader.categories["dataset"] == ["a", "b", "c"]
    assert set(loader.categories["cell_type"]) == {"T", "B", "only_a", "only_b", "only_c"}


def test_concat__reads_rows_where_they_are_stored(paths):
    view = trace.view(xl.concat(paths).X.variable)
    assert view is not None
    assert isinstance(view.array, JoinedRows)


def assert_same(a, b):
    missing = pd.isna(a)
    np.testing.assert_array_equal(missing, pd.isna(b))
    np.testing.assert_array_equal(a[~missing], b[~missing])


def log_of(ds):
    array = trace.view(ds.X.variable).array
    return array.log


def test_loader__touches_only_files_that_it_needs():
    sources = {k: cells(Rows(np.eye(20, 17, dtype="float32")), n=20) for k in "ab"}
    ds = xl.concat(sources).isel(cell=slice(20, 40, 3))
    loader = xl.Loader(ds, batch_size=4)
    got = np.concatenate([dense(b.X.data) for b in loader])
    np.testing.assert_array_equal(got, np.eye(20, 17)[::3])
    assert log_of(sources["a"]) == []
    assert sorted(log_of(sources["b"])) == [0, 1, 2]


def test_loader__decodes_each_block_of_each_file_once():
    rng = np.random.default_rng(0)
    x = {k: (rng.random((n, 17)) < 0.4).astype("float32") for k, n in (("a", 21), ("b", 13))}
    sources = {k: cells(Rows(v), n=len(v)).drop_vars("loadings") for k, v in x.items()}
    sources = {k: ds.chunk({"cell": 8}) for k, ds in sources.items()}
    loader = xl.Loader(xl.concat(sources), batch_size=5, shuffle=True)
    whole = np.concatenate([x["a"], x["b"]])
    for batch in loader:
        np.testing.assert_array_equal(dense(batch.X.data), whole[batch.sample_id.values])
    for k, v in x.items():
        assert sorted(log_of(sources[k])) == list(range(-(-len(v) // 8)))
    # the second file begins with a block of its own, so that pools share none
    assert trace.view(loader.ds.X.variable).index[0][[20, 21]].tolist() == [20, 24]


def test_concat__honours_what_was_selected_before_and_after(paths):
    a, b, c = (xl.open_cells(p) for p in paths)
    a = a.isel(cell=np.arange(22, 0, -2), gene=[4, 1, 3])
    b = b.query(cell="depth > 40")
    ds = xl.concat({"a": a, "b": b, "c": c})
    read = [ad.read_h5ad(p) for p in paths]
    read[0] = read[0][np.arange(22, 0, -2), [4, 1, 3]]
    read[1] = read[1][read[1].obs["depth"] > 40]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ad.concat(read, join="outer", fill_value=0)
    x = dense(expected[:, ds.gene.values].X)
    assert ds.gene.values.tolist()[:3] == ["g4", "g1", "g3"]
    np.testing.assert_array_equal(ds.X.values, x)
    assert ds.X_measured.values[0].sum() == 3
    chosen = ds.query(cell="dataset != 'b' and cell_type == 'T'").isel(gene=[5, 0, 2])
    keep = (expected.obs["cell_type"] == "T").values & (ds.dataset != "b").values
    assert 0 < keep.sum() < len(keep)
    np.testing.assert_array_equal(chosen.X.values, x[keep][:, [5, 0, 2]])
    loader = xl.Loader(chosen, batch_size=3)
    got = np.concatenate([dense(batch.X.data) for batch in loader])
    np.testing.assert_array_equal(got, x[keep][:, [5, 0, 2]])
    assert trace.view(chosen.X.variable) is not None


def test_concat__a_cell_is_found_by_dataset_and_name(paths):
    ds = xl.concat(paths)
    one = ds.query(cell="dataset == 'b'").sel(cell="bc3")
    np.testing.assert_array_equal(one.X.values.ravel(), ds.X.values[SIZES["a"] + 3])
    unique = ds.assign_coords(cell=ds.dataset.str.cat(ds.cell, sep="/"))
    assert unique.indexes["cell"].is_unique
    assert unique.cell.values[SIZES["a"]] == "b/bc0"
    assert trace.view(unique.X.variable) is not None


def test_concat__computes_expressions_block_by_block(paths):
    a, b, _ = (xl.open_cells(p) for p in paths)
    with pytest.warns(PerformanceWarning, match="'X' of dataset 'a' is an expression"):
        ds = xl.concat({"a": a.assign(X=np.log1p(a.X)), "b": b})
    expected = oracle(paths[:2], "outer")[:, ds.gene.values].X.toarray()
    expected[: SIZES["a"]] = np.log1p(expected[: SIZES["a"]])
    got = [batch.X.data for batch in xl.Loader(ds, batch_size=9)]
    assert all(isinstance(x, CSRArray) for x in got)
    np.testing.assert_array_equal(np.concatenate([dense(x) for x in got]), expected)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (("uint8", "uint16"), "uint16"),
        (("uint8", "int8"), "int16"),
        (("uint16", "float32"), "float32"),
        (("int32", "float32"), "float64"),
        (("int64", "float32"), "float64"),
        (("uint64", "int64"), "float64"),
        (("float16", "float16"), "float16"),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["csr", "dense"])
def test_concat__promotes_types_exactly(types, expected, form):
    x = [np.array([[0, 3], [200 if t.startswith("u") else 100, 0]], t) for t in types]
    sources = [cells_of(to_csr(values) if form == "csr" else values, ["g0", "g1"]) for values in x]
    ds = xl.concat(sources)
    assert ds.X.dtype == expected
    batch = xl.Loader(ds, batch_size=4)[0]
    assert batch.X.dtype == expected
    np.testing.assert_array_equal(dense(batch.X.data), np.concatenate(x).astype(expected))


def cells_of(x, genes, **coords):
    labels = {"cell": [f"c{i}" for i in range(x.shape[0])], "gene": genes}
    return xr.Dataset({"X": (("cell", "gene"), x)}, {**labels, **coords})


@pytest.mark.parametrize("form", ["csr", "dense"])
def test_concat__refuses_to_round_whole_numbers(form):
    x = np.array([[2**53 + 1, 0]])
    large = cells_of(to_csr(x) if form == "csr" else x, ["g0", "g1"])
    ds = xl.concat({"large": large, "b": cells_of(np.array([[0.5, 1]]), ["g0", "g1"])})
    with pytest.raises(ReadError, match=r"'large' holds whole numbers beyond 2\*\*53"):
        xl.Loader(ds, batch_size=2)[0]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_concat__rows_of_any_files_are_those_of_a_plain_join(data):
    n_files = data.draw(st.integers(1, 4))
    names = [f"g{k}" for k in range(9)]
    sources, frames = {}, []
    for k in range(n_files):
        genes = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        n = data.draw(st.integers(0 if k else 1, 20))
        x = sparse(n, len(genes), seed=data.draw(st.integers(0, 99)))
        form = data.draw(st.sampled_from(["rows", "csr", "dense", "dask"]))
        array = Rows(x, data.draw(st.integers(1, 9))) if form == "rows" else x
        array = to_csr(x) if form == "csr" else array
        ds = cells(array, n=n, g=len(genes)).drop_vars(["loadings", "length"])
        ds = ds.assign_coords(gene=genes)
        sources[f"d{k}"] = ds.chunk({"cell": 6}) if form == "dask" and n else ds
        frames.append(pd.DataFrame(x, columns=genes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XloaderWarning)  # of files that share no gene
        ds = xl.concat(sources)
    expected = pd.concat(frames).fillna(0)[ds.gene.values.tolist()].to_numpy(np.float32)
    assert set(ds.gene.values) == set().union(*frames)
    np.testing.assert_array_equal(ds.X.values, expected)
    loader = xl.Loader(ds, batch_size=5, shuffle=True, variables=["X"])
    for batch in loader:
        np.testing.assert_array_equal(dense(batch.X.data), expected[batch.sample_id.values])
    ids = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=9))
    np.testing.assert_array_equal(ds.X[ids].values, expected[ids])
    np.testing.assert_array_equal(dense(loader.samples(ids).X.data), expected[ids])


def test_concat__unites_columns(paths):
    ds = xl.concat(paths)
    assert ds.cell_type.attrs["categories"] == ["B", "T", "only_a", "only_b", "only_c"]
    assert ds.depth.dtype == np.int64
    donors = [*ds.donor.values[: SIZES["a"] + SIZES["b"]]]
    assert donors == flat(adata(k).obs["donor"] for k in "ab")
    assert pd.isna(ds.donor.values[-SIZES["c"] :]).all()
    assert ds.chrom.values.tolist() == ["chr1"] * ds.sizes["gene"]
    # g5 is the sixth gene of one file and the first of another
    lengths = dict(zip(ds.gene.values, ds.length.values, strict=True))
    assert np.isnan(lengths["g5"])
    assert lengths["g0"] == 0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2], None, [1.0, 2.0, np.nan, np.nan]),
        ([True, False], None, [True, False, np.nan, np.nan]),
        (["x", "y"], [np.nan, np.nan], ["x", "y", np.nan, np.nan]),
        ([np.float32(0.5), 2], [3, 4], [0.5, 2.0, 3.0, 4.0]),
        (["x", "y"], ["x", "z"], ["x", "y", "x", "z"]),
    ],
    ids=["int", "bool", "all-missing", "promoted", "text"],
)
def test_concat__marks_what_is_missing(first, second, expected):
    parts = {"a": first, "b": second}
    sources = {
        k: cells_of(np.eye(2), ["g0", "g1"], **({} if v is None else {"q": ("cell", v)}))
        for k, v in parts.items()
    }
    got = xl.concat(sources).q.values
    assert [x if pd.notna(x) else None for x in got] == [
        x if pd.notna(x) else None for x in expected
    ]


def test_concat__keeps_an_order_of_categories_only_if_all_agree():
    def column(categories):
        return {"q": xr.Variable("cell", ["x", "y"], {"categories": categories, "ordered": True})}

    sources = [cells_of(np.eye(2), ["g0", "g1"], **column(c)) for c in (["x", "y"], ["x", "y"])]
    assert xl.concat(sources).q.attrs == {"categories": ["x", "y"], "ordered": True}
    sources[1] = cells_of(np.eye(2), ["g0", "g1"], **column(["y", "x"]))
    assert xl.concat(sources).q.attrs == {"categories": ["x", "y"], "ordered": False}


def test_concat__a_layer_that_a_file_lacks_is_not_measured_there(tmp_path):
    a, b = adata("a"), adata("b")
    a.layers["counts"] = a.X * 2
    del a.obsm["X_pca"]
    for name, part in (("a", a), ("b", b)):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    ds = xl.concat([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])
    n = SIZES["a"]
    np.testing.assert_array_equal(ds.counts.values[:n, :6], a.X.toarray() * 2)
    assert not ds.counts.values[n:].any()
    assert ds.counts_measured.values.tolist() == [[True] * 6 + [False] * 2, [False] * 8]
    assert np.isnan(ds.X_pca.values[:n]).all()
    np.testing.assert_array_equal(ds.X_pca.values[n:], b.obsm["X_pca"])


def test_concat__joins_each_kind_of_features():
    def both(genes, proteins, value, **coords):
        rna, protein = (np.full((2, len(n)), value + k) for k, n in enumerate((genes, proteins)))
        data = {"rna": (("cell", "gene"), rna), "prot": (("cell", "protein"), protein)}
        labels = {"cell": ["x", "y"], "gene": genes, "protein": proteins, **coords}
        numbers = ("protein", np.arange(len(proteins)))
        return xr.Dataset(data, {**labels, "prot_column": numbers})

    a = both(["g1", "g2"], ["p1"], 1, prot_present=("cell", [True, False]))
    b = both(["g2"], ["p2", "p1"], 5)
    ds = xl.concat({"a": a, "b": b, "c": b.drop_dims("protein")}, join=["g2", "g1"])
    assert ds.protein.values.tolist() == ["p1", "p2"]
    assert ds.prot_column.values.tolist() == [0, 1]
    assert ds.rna.values.tolist() == [[1, 1], [1, 1], [5, 0], [5, 0], [5, 0], [5, 0]]
    assert ds.prot.values.tolist() == [[2, 0], [2, 0], [6, 6], [6, 6], [0, 0], [0, 0]]
    assert ds.rna_measured.values.tolist() == [[True, True], [True, False], [True, False]]
    assert ds.prot_measured.values.tolist() == [[True, False], [True, True], [False, False]]
    assert ds.prot_present.values.tolist() == [True, False, True, True, False, False]


def test_concat__joins_what_was_joined(paths):
    a, b, c = paths
    # what two files contradict each other in is missing, so that a third may say it
    once, twice = (
        x.drop_vars("length") for x in (xl.concat(paths), xl.concat([xl.concat([a, b]), c]))
    )
    assert twice.dataset_name.values.tolist() == ["a", "b", "c"]
    for name, variable in once.variables.items():
        assert variable.dims == twice.variables[name].dims
        assert_same(variable.values, twice.variables[name].values)


def test_concat__names_datasets_by_their_files(tmp_path):
    for folder in ("s1", "s2"):
        (tmp_path / folder).mkdir()
        adata("a").write_h5ad(tmp_path / folder / "filtered.h5ad")
    paths = [tmp_path / "s1" / "filtered.h5ad", str(tmp_path / "s2" / "filtered.h5ad")]
    assert xl.concat(paths).dataset_name.values.tolist() == ["s1/filtered", "s2/filtered"]
    opened = [xl.open_cells(paths[0]), adata_in_memory()]
    assert xl.concat(opened).dataset_name.values.tolist() == ["filtered", "dataset1"]
    twice = [opened[0].isel(cell=[0]), opened[0].isel(cell=[1])]
    assert xl.concat(twice).dataset_name.values.tolist() == ["filtered", "filtered-2"]


def adata_in_memory():
    return cells_of(np.eye(3), ["g0", "g1", "g7"])


def test_concat__a_column_called_dataset_is_kept():
    sources = [cells_of(np.eye(2), ["g0", "g1"], dataset=("cell", [k, k])) for k in "xy"]
    ds = xl.concat(sources)
    assert ds.cell_dataset.values.tolist() == ["x", "x", "y", "y"]
    assert ds.cell_dataset.attrs["column"] == "dataset"
    assert ds.dataset.values.tolist() == ["dataset0"] * 2 + ["dataset1"] * 2


def test_concat__works_in_xarray(paths):
    ds = xl.concat(paths)
    logged = np.log1p(ds)
    assert logged.X_measured.dtype == bool
    kept = ds.where(ds.dataset == "b", drop=True)
    np.testing.assert_array_equal(kept.X.values, ds.X.values[SIZES["a"] : SIZES["a"] + SIZES["b"]])
    assert trace.view(kept.X.variable) is not None
    assert kept.X_measured.dims == ("dataset", "gene")
    plain = ds.drop_vars(["X_measured", "dataset_name"])
    means = plain.X.groupby("dataset").mean().compute()
    assert means.sizes["dataset"] == 3
    one = ds.isel(cell=0)
    measured = one.X.where(ds.X_measured.values[0])
    assert np.isnan(measured.values[6:]).all()


def test_convert__writes_all_files_into_one_store(tmp_path, paths):
    store = xl.convert(paths, tmp_path / "all", shuffle=True, seed=3, progress=False)
    ds = xl.concat(paths)
    n_cells = sum(SIZES.values())
    order = permuted(np.arange(n_cells), n_cells, key_of(3))
    for name, variable in ds.variables.items():
        expected = variable.isel(cell=order) if "cell" in variable.dims else variable
        assert_same(store.variables[name].values, expected.values)
        assert store.variables[name].dtype == variable.dtype
        assert store.variables[name].attrs == variable.attrs
    assert store.X_measured.identical(ds.X_measured)
    assert set(store.coords) == set(ds.coords)
    keys = set(zip(store.dataset.values, store.row.values, strict=True))
    assert len(keys) == sum(SIZES.values())


@pytest.mark.parametrize("shuffle", [False, True])
def test_convert__writes_a_join_onto_a_vocabulary_of_mixed_files(tmp_path, paths, shuffle):
    adata("b", form=np.asarray).write_h5ad(paths[1])
    ds = xl.concat(paths, join=VOCABULARY)
    store = xl.convert(ds, tmp_path / "all", shuffle=shuffle, memory_budget="3MB", progress=False)
    expected = dense(oracle(paths, VOCABULARY).X)
    order = np.arange(len(expected))
    if shuffle:
        order = permuted(order, len(order), key_of(0))
    np.testing.assert_array_equal(store.X.values, expected[order])
    view = trace.view(store.X.variable)
    assert view is not None
    array = view.array
    n = np.array([len(expected)])
    assert array.nnz_of(np.zeros(1, np.int64), n)[0] == np.count_nonzero(expected)


def test_convert__a_store_and_a_file_go_into_another_store(tmp_path, paths):
    first = xl.convert(paths[:2], tmp_path / "two", progress=False)
    both = xl.convert([tmp_path / "two", paths[2]], tmp_path / "three", progress=False)
    once = xl.concat(paths)
    assert first.dataset_name.values.tolist() == ["a", "b"]
    np.testing.assert_array_equal(both.X.values, once.X.values)
    np.testing.assert_array_equal(both.X_measured.values, once.X_measured.values)
    assert both.dataset.values.tolist() == once.dataset.values.tolist()


def test_convert__knows_every_file_of_an_interrupted_conversion(paths):
    from xloader.conversion import _groups, _key
    from xloader.converting import Options

    def key():
        return _key(_groups(paths), Options("fast", 10**6, None, None))

    before = key()
    assert before
    assert before == key()
    changed = adata("c")
    changed.X.data[0] += 1
    replace(changed, paths[2])
    assert key() != before


def test_state__names_the_file_that_changed(paths):
    def loader():
        return xl.Loader(paths, batch_size=8, shuffle=True, labels=["dataset"])

    served = loader()
    it = iter(served)
    next(it)
    state = json.loads(json.dumps(served.state_dict()))
    assert len(json.dumps(state)) < 1000
    resumed = loader()
    resumed.load_state_dict(state)
    rest = [b.sample_id.values.tolist() for b in resumed]
    assert rest == [b.sample_id.values.tolist() for b in it]
    changed = adata("b")
    changed.X = changed.X * 2
    replace(changed, paths[1])
    with pytest.raises(StateError, match=r"of its 3 datasets, 'b' changed since"):
        loader().load_state_dict(state)


def test_state__stays_small_for_many_files():
    sources = {f"file{k}": cells_of(np.full((3, 2), k), ["g0", "g1"]) for k in range(100)}
    loader = xl.Loader(xl.concat(sources), batch_size=8)
    state = loader.state_dict()
    assert len(json.dumps(state)) < 1000
    sources["file7"] = cells_of(np.full((3, 2), 99), ["g0", "g1"])
    with pytest.raises(StateError, match="'file7'.* or some of these, changed"):
        xl.Loader(xl.concat(sources), batch_size=8).load_state_dict(state)
    del sources["file7"]
    with pytest.raises(StateError, match="of other data"):
        xl.Loader(xl.concat(sources), batch_size=8).load_state_dict(state)


def test_loader__goes_to_other_processes_as_a_recipe(paths):
    loader = xl.Loader(paths, batch_size=8, shuffle=True)
    sent = pickle.loads(pickle.dumps(loader))
    for a, b in zip(loader, sent, strict=True):
        np.testing.assert_array_equal(dense(a.X.data), dense(b.X.data))


def test_torch__labels_and_workers(paths):
    torch = pytest.importorskip("torch")
    import xloader.torch

    loader = xl.Loader(paths, batch_size=8, shuffle=True, labels=["dataset"], layout="dense")
    expected = list(xloader.torch.IterableDataset(loader))
    made = xloader.torch.make_loader(loader, num_workers=2)
    got = list(made)
    assert len(got) == len(expected) == len(loader)
    ds = xl.concat(paths)
    measured = torch.from_numpy(ds.X_measured.values)
    for a, b in zip(expected, got, strict=True):
        assert set(a) == {"X", "X_pca", "dataset", "sample_id"}
        for name in a:
            assert torch.equal(a[name], b[name])
        # zero where nothing was measured
        assert not a["X"][~measured[a["dataset"]]].any()
    ids = torch.cat([b["sample_id"] for b in got])
    assert sorted(ids.tolist()) == list(range(sum(SIZES.values())))


def test_torch__workers_resume_where_the_files_were_left(paths):
    torch = pytest.importorskip("torch")
    import xloader.torch

    def made():
        return xloader.torch.make_loader(
            paths, batch_size=8, shuffle=True, seed=4, layout="dense", num_workers=2
        )

    whole = made()
    batches = [*whole, *whole]  # two epochs
    n = len(whole)
    stopped = made()
    it = iter(stopped)
    for _ in range(n // 2):
        next(it)
    state = json.loads(json.dumps(stopped.state_dict()))
    del it
    resumed = made()
    resumed.load_state_dict(state)
    rest = [*resumed, *resumed]
    assert len(rest) == 2 * n - n // 2
    for a, b in zip(batches[n // 2 :], rest, strict=True):
        for name in a:
            assert torch.equal(a[name], b[name])


def test_loader__keeps_the_laws_over_several_files(paths):
    loader = xl.Loader(paths, batch_size=6, shuffle=True, memory_budget="3MB", labels=["dataset"])
    xl.testing.assert_covers(loader)
    xl.testing.assert_equal_steps(loader)
    xl.testing.assert_topology_free(loader)
    xl.testing.assert_epochs_differ(loader)
    xl.testing.assert_state_is_small(loader)
    xl.testing.assert_resumes_everywhere(loader, worlds=(1, 2, 3), after=[0, 5], times=2)


def test_open__a_file_that_changes_is_told_by_its_path(paths):
    loader = xl.Loader(paths, batch_size=8)
    changed = adata("b")
    changed.X = changed.X * 2
    replace(changed, paths[1])
    with pytest.raises(ReadError, match=r"b\.h5ad"):
        list(loader)


@pytest.mark.parametrize("form", ["zarr", "zarr-dask"])
def test_loader__chunks_that_vanish_are_no_zeros(tmp_path, form):
    (tmp_path / "z").mkdir()
    dense_ = cells_in(form, tmp_path / "z").drop_vars("loadings")
    sources = {"zarr": dense_, "rows": cells(Rows(counts())).drop_vars("loadings")}
    loader = xl.Loader(xl.concat(sources), batch_size=50, variables=["X"])
    whole = np.concatenate([dense(b.X.data) for b in loader])
    np.testing.assert_array_equal(whole, np.concatenate([counts(), counts()]))
    loader = xl.Loader(xl.concat(sources), batch_size=50, variables=["X"])
    for chunk in (tmp_path / "z" / "data.zarr" / "X" / "c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
    with pytest.raises(ReadError, match=r"data\.zarr"):
        list(loader)


def test_concat__closes_what_it_opened(paths):
    mine = xl.open_cells(paths[0])
    closed = []
    mine.set_close(lambda: closed.append("mine"))
    ds = xl.concat([mine, paths[1]])
    ds.close()
    assert closed == []
    assert ds.X.values.shape == (SIZES["a"] + SIZES["b"], 8)  # opened again where it is read


@pytest.mark.parametrize(
    ("sources", "join", "message"),
    [
        ([], "outer", "no sources were given"),
        ("a.h5ad", "outer", "give a list or a mapping"),
        ([3], "outer", "source 0 is int"),
        ({1: "a"}, "outer", "choose text"),
        (["ok", "contacts"], "outer", "dataset 'dataset1' holds contacts .* xl.merge"),
        (
            ["ok", "twice-gene"],
            "outer",
            "'gene' of dataset 'dataset1' has 1 names more than once: 'g0'",
        ),
        (
            ["ok", "twice-cell"],
            "outer",
            "'cell' of dataset 'dataset1' has 1 names more than once: 'c0'",
        ),
        (["ok", "unnamed"], "outer", "needs .'gene'."),
        (["ok", "other"], "inner", "no gene is in all of 'dataset0', 'dataset1'"),
        (["ok"], "left", "join='left' is unknown"),
        (["ok"], 7, "join=7 is unknown"),
        (["ok"], [], "keeps no gene"),
        (["ok"], ["g0", "g1", "g0"], "1 genes more than once: 'g0'"),
        (["ok"], ["g0", "G1"], "1 of 2 genes that no dataset has: 'G1'; 'G1' may be 'g1'"),
        (["ok", "other"], ["g0"], "'dataset1' has none of the 1 genes"),
        (
            ["ok", "wide"],
            "outer",
            r"'emb' has \(3,\) values a cell in 'dataset0' and \(4,\) in 'dataset1'",
        ),
        (
            ["ok", "number"],
            "outer",
            "column 'q' holds text in 'dataset0' and numbers in 'dataset1'",
        ),
        (["ok", "large"], "outer", "'n' holds whole numbers up to .* missing in places"),
    ],
)
def test_concat__refuses(sources, join, message):
    def ok(genes=("g0", "g1"), names=("c0", "c1"), width=3, q=("x", "y")):
        data = {"X": (("cell", "gene"), np.eye(2)), "emb": (("cell", "k"), np.ones((2, width)))}
        return xr.Dataset(data, {"cell": [*names], "gene": [*genes], "q": ("cell", [*q])})

    made = {
        "ok": ok(),
        "contacts": contacts(),
        "twice-gene": ok(genes=("g0", "g0")),
        "twice-cell": ok(names=("c0", "c0")),
        "unnamed": ok().drop_vars("gene"),
        "other": ok(genes=("h0", "h1")),
        "wide": ok(width=4),
        "number": ok(q=(1, 2)),
        "large": ok().assign_coords(n=("cell", [2**60, 1])),
    }
    given_ = [made.get(s, s) for s in sources] if isinstance(sources, list) else sources
    with pytest.raises(SchemaError, match=message):
        xl.concat(given_, join=join)


def test_concat__says_when_files_share_no_gene():
    a, b = cells_of(np.eye(2), ["TP53", "SOX2"]), cells_of(np.eye(2), ["ENSG1", "ENSG2"])
    with pytest.warns(XloaderWarning, match="shares no gene with any other dataset"):
        xl.concat([a, b])


def test_concat__says_what_it_leaves_out(paths):
    a, b, _ = (xl.open_cells(p) for p in paths)
    a, b = (ds.assign(loadings=(("gene", "k"), np.ones((ds.sizes["gene"], 2)))) for ds in (a, b))
    with pytest.warns(XloaderWarning, match="left out .* 'loadings'"):
        ds = xl.concat([a, b])
    assert "loadings" not in ds


def test_loader__a_mapping_of_contact_maps_is_merged():
    both = xl.Loader(
        {"x": contacts(), "y": contacts()}, batch_size=1, windows=xl.windows.diagonal(size=8)
    )
    assert both.variables == ("x", "y")


@pytest.mark.real
@pytest.mark.parametrize("join", ["outer", "given"])
def test_concat__real_files_of_different_gene_sets(real_data, join):
    names = ["pbmc68k_reduced", "pbmc8k_200hvg_counts", "visium_mouse_2898x19465"]
    paths = [Path(real_data) / "sc" / f"{n}.h5ad" for n in names]
    read = [ad.read_h5ad(p) for p in paths]
    for a in read:
        del a.raw
    expected = ad.concat(read, join="outer", fill_value=0)
    if join == "given":
        join = [*read[2].var_names[:300:7], *read[0].var_names[9::-1], *read[1].var_names[:5]]
        ds = xl.concat(paths, join=list(dict.fromkeys(join)))
    else:
        with pytest.warns(XloaderWarning, match="'visium_mouse_2898x19465' shares no gene"):
            ds = xl.concat(paths)
    expected = expected[:, ds.gene.values].X.tocsr()
    loader = xl.Loader(ds, batch_size=1024, shuffle=True, variables=["X"], labels=["dataset"])
    seen = []
    for batch in loader:
        ids, x = batch.sample_id.values, batch.X.data
        got = scipy.sparse.csr_matrix((x.data, x.indices, x.indptr), x.shape)
        assert abs(got - expected[ids]).nnz == 0
        seen += ids.tolist()
    assert sorted(seen) == list(range(11078))
    assert isinstance(trace.view(ds.X.variable).array, JoinedRows)
    dense_only = xl.concat(paths[:2])
    assert isinstance(trace.view(dense_only.X.variable).array, JoinedDense)
