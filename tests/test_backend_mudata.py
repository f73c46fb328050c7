"""Modalities of partly the same cells: masks, empty rows and labels, held equal to what anndata reads."""

import pickle

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
from typing_extensions import override

import xloader as xl
from tests.anndata_files import counts, dense
from tests.anndata_zarr import put
from tests.mudata_files import write_mudata
from xloader.arrays import RowArray, StoredArray
from xloader.backends.elements import DenseElement
from xloader.backends.hdf5 import HDF5File
from xloader.backends.mapped import MappedArray, MappedRows, RowMap
from xloader.backends.modalities import modalities_dataset
from xloader.backends.mudata import MuDataBackendEntrypoint
from xloader.csr import CSRArray
from xloader.errors import ReadError, SchemaError, XloaderWarning
from xloader.open import identify
from xloader.schema import cells_dataset
from xloader.trace import _Rows, view


def modality(cells, n_features, seed, *, sparse=True):
    rng = np.random.default_rng(seed)
    x = counts(len(cells), n_features, 0.4, seed=seed)
    obs = pd.DataFrame(
        {
            "n": rng.integers(1, 9, len(cells)),
            "kind": pd.Categorical(np.array(["a", "b"])[rng.integers(0, 2, len(cells))]),
            "ok": rng.random(len(cells)) < 0.5,
        },
        index=[f"c{k}" for k in cells],
    )
    var = pd.DataFrame({"id": range(n_features)}, index=[f"f{seed}_{k}" for k in range(n_features)])
    adata = ad.AnnData(x if sparse else x.toarray(), obs=obs, var=var)
    adata.layers["log"] = x.log1p()
    adata.obsm["pca"] = rng.random((len(cells), 2))
    return adata


@pytest.fixture
def mods():
    rng = np.random.default_rng(5)
    return {
        "rna": modality(np.arange(0, 200), 12, 1),
        "prot": modality(rng.permutation(np.arange(100, 260)), 5, 2, sparse=False),
        "atac": modality(np.arange(60, 300, 3), 30, 3),
        "spatial": modality(np.array([7, 5]), 3, 4),
    }


def assert_equals_modalities(ds, mods, dims):
    """Compare row by row with the modalities, found by the names of cells."""
    cells = ds.cell.values
    for name, adata in mods.items():
        where = adata.obs_names.get_indexer(cells)
        there = where >= 0
        npt.assert_array_equal(ds[f"{name}_present"].values, there, strict=True)
        for key, matrix in {name: adata.X, f"{name}_log": adata.layers["log"]}.items():
            assert ds[key].dims == ("cell", dims[name])
            values = ds[key].data
            values = values.todense() if isinstance(values, CSRArray) else np.asarray(values)
            npt.assert_array_equal(values[there], dense(matrix)[where[there]], strict=True)
            assert not values[~there].any()
        npt.assert_array_equal(ds[f"{name}_pca"][there], adata.obsm["pca"][where[there]])
        assert ds[dims[name]].values.tolist() == adata.var_names.tolist()
        npt.assert_array_equal(ds[f"{name}_id"], adata.var["id"])
        for column in adata.obs:
            values = ds[f"{name}_{column}"].values
            npt.assert_array_equal(pd.isna(values), ~there)
            expected = adata.obs[column].astype(object).to_numpy()[where[there]]
            assert values[there].tolist() == expected.tolist()


DIMS = {"rna": "gene", "prot": "protein", "atac": "peak", "spatial": "spatial_feature"}


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("chunks", [None, {}])
def test_union__equals_every_modality(tmp_path, mods, maps, chunks):
    names = write_mudata(tmp_path / "x.h5mu", mods, maps=maps)
    assert identify(tmp_path / "x.h5mu") == ("mudata", "cells")
    ds = xl.open_cells(tmp_path / "x.h5mu", chunks=chunks)
    assert ds.cell.values.tolist() == names
    assert list(ds.data_vars)[::3] == list(mods)  # in the order of the file, with layer and obsm
    assert_equals_modalities(ds, mods, DIMS)
    npt.assert_array_equal(ds.row, np.arange(len(names)))
    assert ds.rna_kind.attrs["categories"] == ["a", "b"]
    # a modality by itself
    one = xl.open_cells(f"{tmp_path / 'x.h5mu'}::/mod/prot")
    npt.assert_array_equal(one.X.values, mods["prot"].X)
    assert one.cell.values.tolist() == mods["prot"].obs_names.tolist()


def test_union__in_zarr(tmp_path, mods):
    write_mudata(tmp_path / "x.h5mu", mods)
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w", zarr_format=2)
    with h5py.File(tmp_path / "x.h5mu") as f:
        for key in ("obs", "var"):
            ad.io.write_elem(group, key, ad.io.read_elem(f[key]))
        for table in ("obsm", "obsmap"):
            for name in mods:
                put(group.require_group(table), name, f[table][name][()])
        group.create_group("mod").attrs["mod-order"] = list(mods)
    for name, m in mods.items():
        ad.io.write_elem(group["mod"], name, m)
    assert identify(tmp_path / "x.zarr") == ("mudata", "cells")
    xr.testing.assert_identical(
        xl.open_cells(tmp_path / "x.zarr").compute(), xl.open_cells(tmp_path / "x.h5mu").compute()
    )


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("selected", [False, True])
def test_loader__labels_stay_with_rows_after_a_shuffle(tmp_path, mods, layout, selected):
    write_mudata(tmp_path / "x.h5mu", mods)
    ds = xl.open_cells(tmp_path / "x.h5mu")
    if selected:
        ds = ds.query(cell="rna_present and (prot_present or rna_n > 3)").isel(peak=[3, 9, 1])
        mods["atac"] = mods["atac"][:, [3, 9, 1]].copy()
    assert isinstance(view(ds.atac.variable).array, RowArray)
    seen = []
    for batch in xl.Loader(ds, batch_size=32, shuffle=True, seed=1, layout=layout):
        assert_equals_modalities(batch, mods, DIMS)
        seen += batch.cell.values.tolist()
    assert sorted(seen) == sorted(ds.cell.values)
    assert seen != ds.cell.values.tolist()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_labels__of_cells_that_a_modality_lacks_are_missing(tmp_path, mods):
    torch = pytest.importorskip("torch")
    write_mudata(tmp_path / "x.h5mu", mods)
    ds = xl.open_cells(tmp_path / "x.h5mu")
    loader = xl.Loader(ds, batch_size=64, shuffle=True, labels=["rna_kind"], variables=["rna"])
    assert loader.categories == {"rna_kind": ["a", "b"]}
    kinds = mods["rna"].obs["kind"].cat.codes
    names, n = ds.cell.values, 0
    for batch in xl.torch.IterableDataset(loader):
        expected = [kinds.get(names[k], -1) for k in batch["sample_id"].tolist()]
        assert batch["rna_kind"].tolist() == expected
        assert batch["rna_kind"].dtype == torch.int64
        n += len(expected)
    assert n == len(names)


def test_convert__keeps_the_union(tmp_path, mods):
    write_mudata(tmp_path / "x.h5mu", mods)
    ds = xl.open_cells(tmp_path / "x.h5mu")
    back = xl.convert(ds, tmp_path / "s", progress=False)
    xr.testing.assert_identical(back.compute(), ds.compute())
    mixed = xl.convert(ds, tmp_path / "m", shuffle=True, progress=False)
    assert mixed.cell.values.tolist() != ds.cell.values.tolist()
    assert_equals_modalities(mixed, mods, DIMS)


def test_union__other_columns_and_joint_embeddings(tmp_path, mods):
    cells = [f"c{k}" for k in range(300)]
    obs = pd.DataFrame(
        {"donor": pd.Categorical(["d1", "d2", None] * 100), "row": range(300)}, index=cells
    )
    mofa = np.arange(600.0).reshape(300, 2)
    table = pd.DataFrame({"a": ["x"] * 300}, index=cells)
    obsm = {"X_mofa": mofa, "text": table}
    write_mudata(tmp_path / "x.h5mu", mods, obs=obs, obsm=obsm)
    with pytest.warns(XloaderWarning, match=r"`obsm/text` \(not a matrix over all cells\)"):
        ds = xl.open_cells(tmp_path / "x.h5mu")
    npt.assert_array_equal(ds.X_mofa, mofa)
    assert ds.X_mofa.dims == ("cell", "X_mofa_dim")
    assert ds.donor.values[:2].tolist() == ["d1", "d2"]
    assert pd.isna(ds.donor.values[2])
    npt.assert_array_equal(ds.cell_row, range(300))
    assert not [c for c in ds.coords if ":" in str(c)]  # repeated columns of modalities
    assert not ds.rna_present.values[250]


def test_modalities__of_names_that_are_taken(tmp_path):
    parts = {
        n: modality(np.arange(4), 3, k) for k, n in enumerate(["protein", "cell", "rna", "gex"])
    }
    write_mudata(tmp_path / "x.h5mu", parts)
    ds = xl.open_cells(tmp_path / "x.h5mu")
    # no array can be named like one of its dimensions
    assert ds.modality_protein.dims == ("cell", "protein_feature")
    assert ds.modality_cell.dims == ("cell", "cell_feature")
    assert ds.rna.dims == ("cell", "gene")
    assert ds.gex.dims == ("cell", "gex_feature")


def test_modalities__of_arrays_in_memory():
    def cells(names, n_genes):
        values = np.arange(1.0, len(names) * n_genes + 1).reshape(len(names), n_genes)
        genes = np.array([f"g{k}" for k in range(n_genes)], object)
        return cells_dataset(
            {"X": (("cell", "gene"), values, {})},
            cell=np.array(names, object), gene=genes, obs={}, var={},
        )  # fmt: skip

    ds = modalities_dataset({"rna": cells(["b", "a"], 2), "adt": cells(["c", "b"], 1)})
    assert ds.cell.values.tolist() == ["b", "a", "c"]
    npt.assert_array_equal(ds.rna, [[1, 2], [3, 4], [0, 0]])
    npt.assert_array_equal(ds.adt, [[2], [0], [1]])
    npt.assert_array_equal(ds.adt_present, [True, False, True])
    with pytest.raises(SchemaError, match="has no modality"):
        modalities_dataset({})


# rows that lie in several arrays


class Dense(StoredArray):
    def __init__(self, values):
        super().__init__(values.shape, values.dtype)
        self.values = values

    @override
    def _raw(self, key):
        return self.values[key]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mapped__any_rows_of_any_parts(data):
    n_columns = data.draw(st.integers(1, 4))
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 3, (n, n_columns)).astype("i4" if n % 2 else "i8") for n in lengths]
    joined = np.concatenate([*parts, np.zeros((1, n_columns), int)])
    if data.draw(st.booleans()):
        rows, where = RowMap.stacked(lengths), np.arange(sum(lengths))
    else:
        where = np.array(data.draw(st.lists(st.integers(-1, sum(lengths) - 1), max_size=12)), int)
        rows = RowMap(where, lengths)
    expected = joined[where]  # the last row is the empty one
    sparse = [_Rows(_csr(part)) for part in parts]
    array = pickle.loads(pickle.dumps(MappedRows(sparse, rows)))
    bounds = data.draw(
        st.lists(st.tuples(*[st.integers(0, len(where))] * 2).map(sorted), min_size=1, max_size=4)
    )
    starts, stops = np.array(bounds, np.int64).T
    got = array.read_ranges(starts, stops)
    picked = np.concatenate([np.arange(a, b) for a, b in bounds])
    npt.assert_array_equal(got.todense(), expected[picked])
    assert got.dtype == array.dtype
    counted = [np.count_nonzero(expected[a:b]) for a, b in bounds]
    npt.assert_array_equal(array.nnz_of(starts, stops), counted)
    whole = MappedArray([Dense(part) for part in parts], rows)
    a, b = bounds[0]
    key = (slice(a, b, data.draw(st.integers(1, 3))), slice(0, n_columns, 2))
    npt.assert_array_equal(whole._raw(key), expected[key])
    if len(where):
        npt.assert_array_equal(whole._raw((len(where) - 1, 0)), expected[-1, 0])


def _csr(values):
    m = scipy.sparse.csr_matrix(values)
    return CSRArray(m.data, m.indices, m.indptr.astype(np.int64), m.shape)


def test_mapped__rows_in_order_are_read_in_few_pieces():
    rows = RowMap(np.r_[np.arange(5, 100), [-1] * 50, np.arange(0, 5)], [100])
    pieces = rows.pieces(np.array([0]), np.array([150]))
    assert [(k, runs.tolist()) for k, runs in pieces] == [(0, [[5, 100, 0], [0, 5, 145]])]


# bad input


def test_guess_can_open__goes_by_the_suffix():
    assert MuDataBackendEntrypoint().guess_can_open("a.h5mu")
    assert not MuDataBackendEntrypoint().guess_can_open("a.h5ad")


def test_bad_input__another_engine(tmp_path, mods):
    write_mudata(tmp_path / "x.h5mu", mods)
    with pytest.raises(SchemaError, match=r'not an AnnData file.*use engine="mudata", or open one'):
        xr.open_dataset(tmp_path / "x.h5mu", engine="anndata")
    mods["rna"].write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(SchemaError, match=r"x\.h5ad' is not a MuData file: it has .*no `mod`"):
        xr.open_dataset(tmp_path / "x.h5ad", engine="mudata")
    with pytest.raises(ReadError, match="cannot open a int as MuData"):
        MuDataBackendEntrypoint().open_dataset(3)
    with pytest.raises(SchemaError, match="has no group 'mod/none'"):
        xl.open_cells(f"{tmp_path / 'x.h5mu'}::mod/none")


def test_bad_input__cells_of_one_name(tmp_path, mods):
    write_mudata(tmp_path / "x.h5mu", mods)
    with h5py.File(tmp_path / "x.h5mu", "r+") as f:
        f["mod/prot/obs/_index"][:2] = "c101"
    expected = (
        r"modality 'prot' of .* has 1 names of cells more than once, such as 'c101'.*unique\(\)"
    )
    with pytest.raises(SchemaError, match=expected):
        xl.open_cells(tmp_path / "x.h5mu")


def test_bad_input__cells_that_the_union_lacks(tmp_path, mods):
    write_mudata(tmp_path / "x.h5mu", mods, obs=pd.DataFrame(index=[f"c{k}" for k in range(250)]))
    with pytest.raises(
        SchemaError, match=r"'prot' of .* has 10 cells that .* lacks, such as 'c2\d\d'"
    ):
        xl.open_cells(tmp_path / "x.h5mu")


@pytest.mark.parametrize("table", ["obsm", "obsmap"])
def test_bad_input__maps_that_contradict_the_names(tmp_path, mods, table):
    write_mudata(tmp_path / "x.h5mu", mods)
    with h5py.File(tmp_path / "x.h5mu", "r+") as f:
        f[table]["atac"][4] = 1
    expected = (
        rf"`{table}/atac` of .* contradicts the names .* first at cell 4 \('c4'\); call `mdata"
    )
    with pytest.raises(SchemaError, match=expected):
        xl.open_cells(tmp_path / "x.h5mu")
    assert xl.open_cells(f"{tmp_path / 'x.h5mu'}::/mod/atac").sizes["cell"] == 80


@pytest.mark.parametrize(("axis", "shared"), [(1, "genes"), (-1, "both cells and genes")])
def test_bad_input__modalities_that_share_genes(tmp_path, mods, axis, shared):
    write_mudata(tmp_path / "x.h5mu", mods, axis=axis)
    with pytest.raises(SchemaError, match=rf"share {shared} \(axis={axis}\).*::/mod/<name>"):
        xl.open_cells(tmp_path / "x.h5mu")


def test_bad_input__cut_and_incomplete(tmp_path, mods):
    path = tmp_path / "x.h5mu"
    write_mudata(path, mods, drop=["mod/rna/X/data"])
    with pytest.raises(ReadError, match=r"cannot read 'mod/rna/X/data' of .*get a new copy"):
        xl.open_cells(path)
    HDF5File(str(path)).close()
    write_mudata(path, mods)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReadError, match="truncated, damaged or of another format.*get a new copy"):
        xl.open_cells(path)


def test_dense__elements_are_numbers(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["x"] = np.arange(6.0).reshape(3, 2)
    leaf = HDF5File(str(tmp_path / "a.h5")).leaf("x")
    assert DenseElement(leaf).unit == (1, 2)
