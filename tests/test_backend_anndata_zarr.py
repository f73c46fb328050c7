"""AnnData in HDF5 and in zarr of both formats: every encoding equals what anndata reads."""

import pickle
import shutil
import warnings

import anndata as ad
import h5py
import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs.numcodecs import LZ4 as V3LZ4

import xloader as xl
from tests.anndata_files import LAYOUTS, counts, dense, opened
from tests.anndata_zarr import FORMS, changed, example, put, write_form
from tests.test_backend_anndata import assert_column_equals, assert_equals_anndata
from xloader.arrays import RowArray
from xloader.backends.anndata import AnnDataBackendEntrypoint
from xloader.backends.zarr_tree import ZarrTree
from xloader.errors import ReadError, SchemaError, XloaderWarning
from xloader.open import identify
from xloader.trace import view

pytestmark = [
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data"),
]


def read(path):
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


@pytest.fixture(scope="module", params=FORMS)
def stored(request, tmp_path_factory):
    """Only read."""
    return write_form(tmp_path_factory.mktemp("cells"), example(), request.param)


@pytest.mark.parametrize("chunks", [None, {}])
def test_forms__equal_anndata(stored, chunks):
    ds = opened(stored, chunks=chunks)
    assert_equals_anndata(ds, read(stored))
    assert ds.log.dims == ("cell", "gene")
    assert ds.table_dim.values.tolist() == ["n", "score"]
    assert ds.cell.attrs == {"column": "barcode"}
    assert ds.gene.attrs == {}
    assert identify(stored) == ("anndata", "cells")
    xr.testing.assert_identical(xl.open_cells(stored).compute(), ds.compute())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (4, 3)])
@pytest.mark.parametrize("form", ["zarr2", "zarr3"])
def test_matrices__may_be_empty_or_zero(tmp_path, form, layout, shape):
    adata = ad.AnnData(LAYOUTS[layout](scipy.sparse.csr_matrix(shape, dtype=np.float32)))
    ds = opened(write_form(tmp_path, adata, form))
    npt.assert_array_equal(ds.X.values, np.zeros(shape, np.float32), strict=True)
    assert ds.X.isel(cell=[]).values.shape == (0, shape[1])


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int64", "uint16", "bool"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["zarr2", "sharded"])
def test_matrices__keep_their_type(tmp_path, form, layout, dtype):
    if layout != "dense" and dtype == "float16":
        pytest.skip("scipy has no sparse half floats")
    x = counts(dtype="uint8").astype("f4").toarray().astype(dtype)
    adata = ad.AnnData(LAYOUTS[layout](scipy.sparse.csr_matrix(x)) if layout != "dense" else x)
    ds = opened(write_form(tmp_path, adata, form))
    npt.assert_array_equal(ds.X.values, x, strict=True)


# the table of encodings, row by row


@pytest.mark.parametrize("form", FORMS)
def test_encodings__root_with_groups_and_attributes_of_others(tmp_path, form):
    path = write_form(tmp_path, example(), form)
    expected = read(path)  # some versions of anndata refuse such groups
    with changed(path) as root:
        assert root.attrs["encoding-type"] == "anndata"
        root.create_group("xloader_index")
        root.attrs["xloader_note"] = "mine"
    assert_equals_anndata(opened(path), expected)
    assert identify(path) == ("anndata", "cells")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["csr_matrix", "csc_matrix"])
def test_encodings__sparse_matrices(tmp_path, form, encoding):
    x = LAYOUTS[encoding[:3]](counts())
    path = write_form(tmp_path, ad.AnnData(x), form)
    with changed(path) as root:
        assert root["X"].attrs["encoding-type"] == encoding
    array = view(opened(path).X.variable).array
    assert array.by_column == (encoding == "csc_matrix")
    rows = array.read_ranges(np.array([50, 3]), np.array([53, 20]))
    expected = scipy.sparse.csr_matrix(counts())[[*range(50, 53), *range(3, 20)]]
    npt.assert_array_equal(rows.indptr, expected.indptr)
    npt.assert_array_equal(rows.indices, expected.indices)
    npt.assert_array_equal(rows.data, expected.data)


@pytest.mark.parametrize("form", FORMS)
def test_encodings__of_columns(tmp_path, form):
    n = 60
    pick = np.arange(n) % 3
    obs = pd.DataFrame(
        {
            "array": np.arange(n, dtype=np.int16),
            "string": np.array(["é", "", "nan"], object)[pick],
            "categorical": pd.Categorical(np.array(["b", None, "a"], object)[pick], ["b", "a", "c"]),
            "ordered": pd.Categorical(np.array([3, 1, 2])[pick], [3, 2, 1], ordered=True),
            "nothing": pd.Categorical([None] * n),
            "flags": pd.Categorical(np.array([True, False, None], object)[pick]),
            "nullable_integer": pd.array([None if k == 1 else k for k in range(n)], dtype="Int8"),
            "whole": pd.array(np.arange(n), dtype="UInt32"),
            "nullable_boolean": pd.array([None if k % 4 == 1 else k % 2 == 0 for k in range(n)], "boolean"),
            "nullable_string": pd.array([None if k == 5 else f"s{k}" for k in range(n)], dtype="string"),
        },
        index=pd.Index([f"c{k}" for k in range(n)], name="my names"),
    )  # fmt: skip
    with ad.settings.override(allow_write_nullable_strings=True):
        path = write_form(tmp_path, ad.AnnData(counts(n, 4), obs=obs), form)
    with changed(path) as root:
        encodings = {c: root["obs"][c].attrs["encoding-type"] for c in obs}
        assert root["obs"].attrs["_index"] == "my names"
    assert set(encodings.values()) == {
        "array",
        "string-array",
        "categorical",
        "nullable-integer",
        "nullable-boolean",
        "nullable-string-array",
    }
    ds = opened(path)
    assert_equals_anndata(ds, read(path))
    assert ds.whole.dtype == np.uint32
    assert ds.nullable_integer.dtype == np.float64
    assert ds.categorical.attrs == {"categories": ["b", "a", "c"], "ordered": False}


@pytest.mark.parametrize("form", FORMS)
def test_encodings__scalars_and_dicts_are_left_alone(tmp_path, form):
    adata = ad.AnnData(counts(4, 3), uns={"s": "text", "n": np.float32(2), "d": {"e": {"f": 1}}})
    adata.varm["v"] = np.ones((3, 2))
    adata.obsp["p"] = scipy.sparse.eye(4, format="csr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(opened(write_form(tmp_path, adata, form)).data_vars) == {"X"}


@pytest.mark.parametrize("form", FORMS)
def test_encodings__awkward_arrays_are_left_out_and_told(tmp_path, form):
    path = write_form(tmp_path, ad.AnnData(counts(4, 3), obsm={"pca": np.ones((4, 2))}), form)
    with changed(path) as root:
        group = root["obsm"].create_group("airr")
        group.attrs.update({"encoding-type": "awkward-array", "encoding-version": "0.1.0"})
        put(group, "node0-offsets", np.arange(5))
    with pytest.warns(XloaderWarning, match=r"left out: `obsm/airr` \(awkward-array\)"):
        ds = opened(path)
    assert set(ds.data_vars) == {"X", "pca"}


@pytest.mark.parametrize("form", FORMS)
def test_encodings__raw_is_opened_by_itself(tmp_path, form):
    adata = example(50)
    adata.raw = adata
    path = write_form(tmp_path, adata[:, ["g3", "g1"]].copy(), form)
    raw = xl.open_cells(f"{path}::/raw")
    expected = read(path)
    assert expected.raw.shape == (50, 40)
    npt.assert_array_equal(raw.X.values, dense(expected.raw.X))
    assert raw.gene.values.tolist() == expected.raw.var_names.tolist()
    assert raw.cell.values.tolist() == expected.obs_names.tolist()
    assert_column_equals(raw.cell_type, expected.obs["cell_type"])
    assert xl.open_cells(path).gene.values.tolist() == ["g3", "g1"]


@pytest.mark.parametrize("form", ["h5ad", "zarr2"])
def test_encodings__dataframe_0_1_0(tmp_path, form):
    path = write_form(tmp_path, ad.AnnData(counts(4, 3)), form)
    with changed(path) as root:
        obs = root["obs"]
        put(obs, "kind", np.array([1, -1, 0, 1], np.int8))
        categories = obs.create_group("__categories")
        put(categories, "kind", np.array([b"no", b"yes"]) if form == "h5ad" else np.array([2.5, 7]))
        categories["kind"].attrs["ordered"] = True
        reference = categories["kind"].ref if form == "h5ad" else "__categories/kind"
        obs["kind"].attrs["categories"] = reference
        put(obs, "score", np.arange(4.0))
        obs.attrs.update({"encoding-version": "0.1.0", "column-order": ["kind", "score"]})
    ds = opened(path)
    vocabulary = ["no", "yes"] if form == "h5ad" else [2.5, 7]
    assert ds.kind.attrs == {"categories": vocabulary, "ordered": True}
    assert pd.isna(ds.kind.values[1])
    assert ds.kind.values[[0, 2, 3]].tolist() == [vocabulary[1], vocabulary[0], vocabulary[1]]
    npt.assert_array_equal(ds.score, np.arange(4.0))


@pytest.mark.parametrize("form", FORMS)
def test_encodings__names_that_could_be_missing(tmp_path, form):
    # newer versions of anndata write names so
    path = write_form(tmp_path, ad.AnnData(counts(4, 3)), form)
    with changed(path) as root:
        del root["obs/_index"]
        ad.io.write_elem(root["obs"], "_index", np.array([], object))
        del root["obs/_index"]
        with ad.settings.override(allow_write_nullable_strings=True):
            ad.io.write_elem(root["obs"], "_index", pd.array(list("wxyz"), dtype="string"))
        assert root["obs/_index"].attrs["encoding-type"] == "nullable-string-array"
    assert opened(path).cell.values.tolist() == list("wxyz")


def test_before_0_7__is_read_as_anndata_reads_it(tmp_path):
    path = tmp_path / "old.h5ad"
    x = counts(6, 4)
    kinds = np.array([(f"c{k}", k % 2, k / 2, f"t{k % 3}") for k in range(6)],
                     [("index", "S4"), ("kind", "i1"), ("score", "f4"), ("text", "S4")])  # fmt: skip
    genes = np.array([(f"g{k}", k) for k in range(4)], [("index", "S2"), ("length", "i8")])
    with h5py.File(path, "w") as f:
        f["obs"], f["var"] = kinds, genes
        group = f.create_group("X")
        group.attrs.update({"h5sparse_format": "csr", "h5sparse_shape": x.shape})
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(x, name)
        f["uns/kind_categories"] = np.array([b"no", b"yes"])
        f["obsm"] = np.array([((1.0, 2.0),)] * 6, [("X_pca", "f8", (2,))])
    with pytest.warns(XloaderWarning, match=r"left out: `obsm` \(records of anndata before 0.7\)"):
        ds = opened(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = ad.read_h5ad(path)
    npt.assert_array_equal(ds.X.values, dense(old.X))
    assert ds.cell.values.tolist() == old.obs_names.tolist() == [f"c{k}" for k in range(6)]
    for name in ("kind", "score", "text"):
        assert_column_equals(ds[name], old.obs[name])
    assert ds.kind.values.tolist() == ["no", "yes"] * 3
    npt.assert_array_equal(ds.length, old.var["length"])


# reading


COMPRESSORS = {
    "none": None,
    "blosc": {"id": "blosc", "cname": "zstd", "shuffle": 2, "clevel": 1},
    "zstd": {"id": "zstd", "level": 1},
    "gzip": {"id": "gzip", "level": 1},
    "zlib": {"id": "zlib", "level": 1},
    "lz4": {"id": "lz4"},
    "bz2": {"id": "bz2"},
    "lzma": {"id": "lzma"},
}


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_zarr_2__of_every_codec_order_and_type(tmp_path, compressor, order):
    import numcodecs

    root = zarr.open_group(str(tmp_path), mode="w", zarr_format=2)
    codec = COMPRESSORS[compressor]
    for k, dtype in enumerate(["<i4", ">f8", "|b1", ">u2", "<f2"]):
        values = (np.arange(7 * 5).reshape(7, 5) % 11).astype(dtype)
        separator = "./"[k % 2]
        root.create_array(
            dtype[1:], shape=values.shape, chunks=(3, 2), dtype=dtype, order=order,
            compressors=codec and numcodecs.get_codec(codec),
            chunk_key_encoding={"name": "v2", "separator": separator},
        )[...] = values  # fmt: skip
        leaf = ZarrTree(str(tmp_path)).leaf(dtype[1:])
        npt.assert_array_equal(leaf.read(), values)
        npt.assert_array_equal(leaf.read((slice(1, 7, 2), 3)), values[1:7:2, 3])
        assert leaf.dtype == np.dtype(dtype).newbyteorder("=")


def test_zarr_3__of_codecs_of_numcodecs(tmp_path):
    root = zarr.open_group(str(tmp_path), mode="w", zarr_format=3)
    array = root.create_array("a", shape=(50,), chunks=(8,), dtype="i4", compressors=[V3LZ4()])
    array[...] = np.arange(50)
    npt.assert_array_equal(ZarrTree(str(tmp_path)).leaf("a").read(slice(5, 45)), np.arange(5, 45))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_leaf__reads_any_ranges_and_boxes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("z")
    n, chunk = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 9))
    values = np.arange(n) // 3 * data.draw(st.sampled_from([0, 1]))
    fmt = data.draw(st.sampled_from([2, 3]))
    root = zarr.open_group(str(folder), mode="w", zarr_format=fmt)
    root.create_array("a", shape=(n,), chunks=(chunk,), dtype="i8")[...] = values
    leaf = pickle.loads(pickle.dumps(ZarrTree(str(folder)).leaf("a")))
    bounds = data.draw(st.lists(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted)))
    starts, stops = np.array(bounds, np.int64).reshape(-1, 2).T
    expected = np.concatenate([values[:0], *(values[a:b] for a, b in bounds)])
    npt.assert_array_equal(leaf.read_ranges(starts, stops), expected)
    missing = [k for k in range(0, n, chunk) if not values[k : k + chunk].any()]
    absent = [k for a, b in leaf.absent() for k in range(a, b)]
    assert absent == [j for k in missing for j in range(k, min(k + chunk, n))]


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "sharded"])
def test_loader__serves_shuffled_rows_with_their_labels(tmp_path, form):
    adata = example(400)
    ds = xl.open_cells(write_form(tmp_path, adata, form)).drop_vars("log")  # by column
    assert isinstance(view(ds.X.variable).array, RowArray)
    place = {name: k for k, name in enumerate(adata.obs_names)}
    x = adata.X.toarray()
    seen = []
    for batch in xl.Loader(ds, batch_size=64, shuffle=True, seed=3):
        rows = [place[c] for c in batch.cell.values]
        seen += rows
        npt.assert_array_equal(batch.X.data.todense(), x[rows])
        npt.assert_array_equal(batch.X_pca.values, adata.obsm["X_pca"][rows])
        npt.assert_array_equal(batch.n.values, adata.obs["n"].to_numpy()[rows])
    assert sorted(seen) == list(range(400))
    assert seen != sorted(seen)


def test_convert__keeps_everything(stored, tmp_path):
    ds = opened(stored).drop_vars("log")
    back = xl.convert(ds, tmp_path / "s", progress=False)
    xr.testing.assert_identical(back.compute(), ds.compute())


def test_pickle__is_small_and_reads_the_same(stored):
    ds = opened(stored)
    dumped = pickle.dumps(view(ds.X.variable).array)
    assert len(dumped) < 6000
    npt.assert_array_equal(pickle.loads(dumped).read_rows(3, 9).todense(), ds.X[3:9].values)


def test_guess_can_open__goes_by_what_is_there(stored, tmp_path):
    guess = AnnDataBackendEntrypoint().guess_can_open
    assert guess(stored)
    (tmp_path / "zarr.json").write_text("no json")
    assert not guess(tmp_path)
    assert not guess(tmp_path / "nothing")


@pytest.mark.parametrize("form", ["zarr2", "zarr3"])
def test_symbols__sorted_where_the_store_is_not(tmp_path, form):
    x = counts()
    path = write_form(tmp_path, ad.AnnData(x), form)
    with changed(path) as root:
        indices, data = x.indices.copy(), x.data.copy()
        for a, b in zip(x.indptr[:-1], x.indptr[1:], strict=True):
            indices[a:b], data[a:b] = x.indices[a:b][::-1], x.data[a:b][::-1]
        root["X/indices"][...], root["X/data"][...] = indices, data
    rows = view(opened(path).X.variable).array.read_rows(0, 53)
    npt.assert_array_equal(rows.indices, x.indices)
    npt.assert_array_equal(rows.data, x.data)


# collections of several


def write_collection(folder, parts, kind="annbatch-preshuffled"):
    """Write several AnnData side by side, as annbatch does."""
    root = zarr.open_group(str(folder / "c.zarr"), mode="w", zarr_format=3)
    root.attrs["encoding-type"] = kind
    for k, part in enumerate(parts):
        ad.io.write_elem(root, f"dataset_{k}", part)
    return folder / "c.zarr"


def test_collection__is_one_dataset_of_all_rows(tmp_path):
    parts = [example(30 + 10 * k, seed=k) for k in range(12)]
    parts[1].obs["cell_type"] = pd.Categorical(["new"] * 40)
    del parts[2].obs["n"]
    path = write_collection(tmp_path, parts)
    whole = ad.concat(parts, join="outer")  # in the order of numbers, not of names
    ds = xl.open_cells(path)
    assert ds.cell.values.tolist() == whole.obs_names.tolist()
    for name in ("X", "log", "dense", "X_pca"):
        expected = whole.X if name == "X" else {**whole.layers, **whole.obsm}[name]
        npt.assert_array_equal(ds[name].values, dense(expected), strict=True)
    for name in ("name", "score", "n", "holes", "sure", "cell_type"):
        values, column = ds[name].values, whole.obs[name].astype(object).to_numpy()
        npt.assert_array_equal(pd.isna(values), pd.isna(column))
        assert values[~pd.isna(column)].tolist() == column[~pd.isna(column)].tolist()
    assert ds.cell_type.attrs["categories"] == ["T", "NK", "B", "unused", "new"]
    npt.assert_array_equal(ds.row, np.arange(len(whole)))
    npt.assert_array_equal(ds.id, np.arange(40))
    one = xl.open_cells(f"{path}::/dataset_10")
    assert one.cell.values.tolist() == parts[10].obs_names.tolist()


def test_collection__is_shuffled_and_converted_like_one(tmp_path):
    parts = [example(100 + k, seed=k) for k in range(3)]
    ds = xl.open_cells(write_collection(tmp_path, parts, kind=""))[["X", "dense", "cell_type"]]
    x = scipy.sparse.vstack([p.X for p in parts]).toarray()
    names = np.concatenate([p.obs_names for p in parts])
    for batch in xl.Loader(ds, batch_size=50, shuffle=True):
        rows = batch.row.values
        assert batch.cell.values.tolist() == names[rows].tolist()
        npt.assert_array_equal(batch.X.data.todense(), x[rows])
        npt.assert_array_equal(batch.dense.values, x[rows])
    back = xl.convert(ds, tmp_path / "s", progress=False)
    xr.testing.assert_identical(back.compute(), ds.compute())
    npt.assert_array_equal(back.X.values, x)


def test_collection__of_different_genes_is_refused(tmp_path):
    parts = [example(9), example(9, 30, seed=1)]
    with pytest.raises(
        SchemaError, match=r"dataset_1' of .* has 30 genes, 'dataset_0' 40, .* 30 in"
    ):
        xl.open_cells(write_collection(tmp_path, parts))
    parts = [example(9), example(9, seed=1)]
    del parts[1].layers["log"]
    with pytest.raises(SchemaError, match=r"only one has \['log'\]; open each by itself"):
        xl.open_cells(write_collection(tmp_path, parts))
    parts[1].layers["log"] = parts[1].X.toarray()
    with pytest.raises(SchemaError, match=r"hold 'log' in several forms .* 1 of 2 sparse"):
        xl.open_cells(write_collection(tmp_path, parts))


def test_collection__of_text_and_numbers_in_a_column_is_refused(tmp_path):
    parts = [example(9), example(9, seed=1)]
    parts[1].obs["n"] = ["one"] * 9
    expected = (
        r"'n' of `obs` holds text in 'dataset_1' and numbers in 'dataset_0'; give it one type"
    )
    with pytest.raises(SchemaError, match=expected):
        xl.open_cells(write_collection(tmp_path, parts))


def test_collection__that_lost_a_dataset_is_refused(tmp_path):
    path = write_collection(tmp_path, [example(9, seed=k) for k in range(4)])
    shutil.rmtree(path / "dataset_1")
    expected = r"c\.zarr' lacks \['dataset_1'\] of its datasets, and has 'dataset_3': copy it again"
    with pytest.raises(ReadError, match=expected):
        xl.open_cells(path)
    assert xl.open_cells(f"{path}::/dataset_2").sizes["cell"] == 9


# bad input


def test_bad_input__directories_that_are_no_anndata(tmp_path):
    with pytest.raises(ReadError, match=r"is no zarr store: it has none of the files zarr\.json"):
        opened(tmp_path)
    zarr.open_group(str(tmp_path / "g"), mode="w", zarr_format=2)
    with pytest.raises(SchemaError, match=r"g' is not an AnnData file: it has \[\] and no `obs`"):
        opened(tmp_path / "g")
    with pytest.raises(SchemaError, match="is no xloader store: it is"):
        xl.open_cells(tmp_path / "g")
    with pytest.raises(SchemaError, match="g' has no AnnData at 'a'"):
        xl.open_cells(f"{tmp_path / 'g'}::a")


def test_bad_input__a_url():
    with pytest.raises(
        ReadError, match=r"'s3://b/x.zarr' is a URL, and AnnData is read from a disk"
    ):
        xr.open_dataset("s3://b/x.zarr", engine="anndata")


def lose(name):
    """Return what removes the chunks of an array."""

    def change(path):
        for file in (path / name).rglob("*"):
            if file.is_file() and file.name not in {".zarray", ".zattrs", "zarr.json"}:
                file.unlink()

    return change


def lose_one(name):
    """Return what removes the first chunk of an array of several."""

    def change(path):
        with changed(path) as root:
            values = root[name][...]
            put(root, name, values, chunks=(max(1, len(values) // 3),))
        first = path / name / ("0" if path.suffix == ".zarr2" else "c/0")
        assert first.exists()
        first.unlink()

    return change


def replace(name, make):
    def change(path):
        with changed(path) as root:
            put(root, name, make(root[name][...]))

    return change


def fill_with_nothing(path):
    file = path / "layers/dense/.zarray"
    file.write_text(file.read_text().replace('"fill_value": 0.0', '"fill_value": null'))
    lose("layers/dense")(path)


def cut_chunk(name):
    def change(path):
        files = [f for f in (path / name).rglob("*") if f.is_file() and "z" not in f.name]
        files[0].write_bytes(files[0].read_bytes()[:-9])

    return change


def cut_metadata(path):
    for name in (".zarray", "zarr.json"):
        if (path / "X/data" / name).exists():
            (path / "X/data" / name).write_text('{"node_type": "array", "shape": [')


LOST = r"lacks the chunks of values \d+ to \d+, which are not zero.*they were lost; copy it again"


@pytest.mark.parametrize("form", ["zarr2", "zarr3"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose("X/data"), f"`X/data` of .* {LOST}"),
        (lose_one("X/data"), f"`X/data` of .* {LOST}"),
        (lose_one("X/indices"), f"`X/indices` of .* {LOST}"),
        (lose_one("X/indptr"), f"`X/indptr` of .* {LOST}"),
        (lose("obs/barcode"), "`obs/barcode` of .* lacks the names from 0 on: its chunks were lost"),
        (replace("X/indptr", lambda v: v[:-1]), "`X/indptr` of .* has 300 entries, its shape asks for 301"),
        (replace("X/indptr", lambda v: v[::-1]), "`X/indptr` of .* does not fit its"),
        (replace("X/indptr", lambda v: v + 1), "`X/indptr` of .* does not fit its"),
        (replace("X/indices", lambda v: v.reshape(-1, 1)), r"`X/indices` .* should be a line of numbers, and is of shape"),
        (replace("obs/cell_type/codes", lambda v: v + 3), "`obs/cell_type/codes` of .* holds codes 2 to 5 for 4 categories"),
        (replace("obs/n", lambda v: v[1:]), "column 'n' of `obs` has 299 values, its index 300"),
        (replace("obs/holes/mask", lambda v: v[1:]), "column 'holes/mask' of `obs` has 299 values"),
        (lambda path: shutil.rmtree(path / "X/indptr"), r"`X/indptr` of .* is missing: beside it .*'data'"),
        (lambda path: shutil.rmtree(path / "obs/n"), "`obs/n` of .* is missing"),
        (lambda path: shutil.rmtree(path / "obs/cell_type/codes"), "`obs/cell_type/codes` of .* is missing"),
        (cut_metadata, r"cannot read .*X/data/(\.zarray|zarr\.json)'.*damaged"),
    ],
    ids=[
        "data lost", "one chunk of data", "one of indices", "one of indptr", "names", "short indptr",
        "falling indptr", "shifted indptr", "wide indices", "codes", "column", "mask", "no indptr",
        "no column", "no codes", "metadata",
    ],
)  # fmt: skip
def test_bad_input__told_when_it_is_opened(tmp_path, form, damage, message):
    path = write_form(tmp_path, example(), form)
    damage(path)
    with pytest.raises((ReadError, SchemaError), match=message):
        opened(path)


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "sharded"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_chunk("X/data"), "of array .*X/data', in file .* cannot be decoded"),
        (replace("X/indices", lambda v: v + 40), r"`X/indices` of .* holds 40 to 79 .* outside \[0, 40\)"),
        (replace("X/indices", lambda v: 0 * v + 1), "`X` of .* stores an element twice"),
    ],
    ids=["cut", "outside", "twice"],
)  # fmt: skip
def test_bad_input__told_when_it_is_read(tmp_path, form, damage, message):
    path = write_form(tmp_path, example(), form)
    damage(path)
    ds = opened(path)
    with pytest.raises(ReadError, match=message):
        ds.X.load()


def test_bad_input__a_chunk_that_went_after_opening(tmp_path):
    path = write_form(tmp_path, example(), "zarr3")
    ds = opened(path)
    lose("X/data")(path)
    with pytest.raises(ReadError, match="X/data/c/0', is missing, and was there"):
        ds.X.load()


def test_bad_input__no_chunk_and_no_fill_value(tmp_path):
    path = write_form(tmp_path, example(), "zarr2")
    fill_with_nothing(path)
    ds = opened(path)
    with pytest.raises(ReadError, match="layers/dense/0.0', is missing"):
        ds.dense.load()


def test_zeros__that_were_not_written_are_zeros(tmp_path):
    x = np.zeros((50, 2), np.float32)
    x[20:40, 0] = 1  # all columns are 0: such a chunk is not written
    adata = ad.AnnData(scipy.sparse.csr_matrix(x), layers={"d": np.zeros((50, 2))})
    adata.obs["codes"] = pd.Categorical(["a"] * 50)
    path = write_form(tmp_path, adata, "zarr3")
    with changed(path) as root:
        put(root["X"], "indptr", adata.X.indptr, chunks=(10,))
    assert not (path / "X/indptr/c/0").exists()
    assert (path / "X/indptr/c/2").exists()
    assert not (path / "X/indices/c").exists()
    assert not (path / "obs/codes/codes/c").exists()
    assert not (path / "layers/d/c").exists()
    assert_equals_anndata(opened(path), adata)


def test_bad_input__a_store_that_leads_elsewhere(tmp_path):
    path = write_form(tmp_path, example(), "zarr3")
    with changed(path) as root:
        root["obs"].attrs["column-order"] = ["../../other/secret"]
    with pytest.raises(ReadError, match=r"'obs/../../other/secret' leads out of .*not trusted"):
        opened(path)


def external_link(f, other):
    del f["X/data"]
    f["X/data"] = h5py.ExternalLink(other, "/X/data")


def soft_link(f, other):
    f["elsewhere"] = h5py.ExternalLink(other, "/X")
    del f["X/data"]
    f["X/data"] = h5py.SoftLink("/elsewhere/data")


def external_group(f, other):
    del f["obs"]
    f["obs"] = h5py.ExternalLink(other, "/obs")


def external_storage(f, other):
    shape = f["layers/dense"].shape
    del f["layers/dense"]
    f["layers"].create_dataset("dense", shape, "f4", external=[(other, 0, 10**9)])


def virtual_dataset(f, other):
    shape = f["layers/dense"].shape
    del f["layers/dense"]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource(other, "layers/dense", shape)
    f["layers"].create_virtual_dataset("dense", layout)


@pytest.mark.parametrize(
    "how", [external_link, soft_link, external_group, external_storage, virtual_dataset]
)
def test_bad_input__hdf5_that_lies_in_other_files(tmp_path, how):
    path = write_form(tmp_path, example(), "h5ad")
    other = write_form(tmp_path, example(), "h5ad", name="other")
    with changed(path) as f:
        how(f, str(other))
    assert h5py.File(path)["obs"] is not None  # HDF5 itself follows them
    with pytest.raises(
        ReadError, match=r"lies in another file, .*other\.h5ad', which is not followed"
    ):
        opened(path)
