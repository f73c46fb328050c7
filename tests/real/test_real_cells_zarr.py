"""Real cells, written by anndata as zarr, and a real multiome file: equal to what anndata reads."""

import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr

import xloader as xl
from tests.anndata_zarr import write_form
from tests.real.test_every_file import CELLS, dense, opened
from xloader.csr import CSRArray
from xloader.trace import view

FORMS = ("zarr2", "zarr3", "sharded")


def write(real_data, folder, name, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.read_h5ad(real_data / "sc" / name)
    adata.uns.clear()
    return adata, write_form(folder, adata, form, unit=2048)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CELLS)
def test_zarr__is_opened_as_the_file_is(name, form, real_data, tmp_path):
    adata, path = write(real_data, tmp_path, name, form)
    ds, of_file = opened(path), opened(real_data / "sc" / name)
    np.testing.assert_array_equal(ds.X.values, dense(adata.X))
    for key in (*adata.layers, *adata.obsm):
        np.testing.assert_array_equal(ds[key].values, dense({**adata.layers, **adata.obsm}[key]))
    assert set(ds.coords) == set(of_file.coords)
    for key in ds.coords:
        mine, theirs = ds[key].values, of_file[key].values
        there = pd.notna(theirs)
        np.testing.assert_array_equal(pd.notna(mine), there)
        assert mine.dtype == theirs.dtype
        assert mine[there].tolist() == theirs[there].tolist()


@pytest.mark.parametrize("name", ["czi_small_perturbations.h5ad", "pbmc8k_200hvg_counts.h5ad"])
@pytest.mark.parametrize("form", FORMS)
def test_zarr__serves_shuffled_batches_and_converts(name, form, real_data, tmp_path):
    adata, path = write(real_data, tmp_path, name, form)
    ds = opened(path)
    x = scipy.sparse.csr_matrix(adata.X)
    place = {c: k for k, c in enumerate(adata.obs_names)}
    loader = xl.Loader(ds, batch_size=256, shuffle=True, variables=["X"])
    n = 0
    for batch in loader:
        rows = [place[c] for c in batch.cell.values]
        assert rows == batch.row.values.tolist()
        values = batch.X.data
        values = values.todense() if isinstance(values, CSRArray) else values
        np.testing.assert_array_equal(values, x[rows].toarray())
        n += len(rows)
    assert n == adata.n_obs
    back = xl.convert(ds[["X"]], tmp_path / "s", progress=False)
    xr.testing.assert_identical(back.compute(), ds[["X"]].compute())


def test_multiome__equals_its_modalities(real_data, tmp_path):
    path = real_data / "sc" / "muon_multiome_1000.h5mu"
    ds = xl.open_cells(path)
    assert ds.rna.dims == ("cell", "gene")
    assert ds.atac.dims == ("cell", "peak")
    expected = {}
    with h5py.File(path) as f, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = [c.decode() for c in f["obs/_index"][()]]
        for name in ("rna", "atac"):
            expected[name] = anndata.io.read_elem(f[f"mod/{name}/X"])
            var, obs = (anndata.io.read_elem(f[f"mod/{name}/{t}"]) for t in ("var", "obs"))
            assert ds[ds[name].dims[1]].values.tolist() == var.index.tolist()
            for column in var:
                assert ds[f"{name}_{column}"].values.tolist() == var[column].tolist()
            expected[name] = expected[name][obs.index.get_indexer(cells)].toarray()
            assert ds[f"{name}_present"].values.tolist() == [c in obs.index for c in cells]
            np.testing.assert_array_equal(ds[name].values, expected[name])
    assert ds.cell.values.tolist() == cells
    seen = []
    for batch in xl.Loader(ds, batch_size=64, shuffle=True):
        rows = [cells.index(c) for c in batch.cell.values]
        for name, values in expected.items():
            np.testing.assert_array_equal(batch[name].data.todense(), values[rows])
        seen += rows
    assert sorted(seen) == list(range(1000))
    back = xl.convert(ds, tmp_path / "s", progress=False)
    xr.testing.assert_identical(back.compute(), ds.compute())
    one = xl.open_cells(f"{path}::/mod/atac")
    np.testing.assert_array_equal(one.X.values, expected["atac"])


def test_multiome__with_cells_that_a_modality_lacks(real_data, tmp_path):
    path = tmp_path / "part.h5mu"
    with h5py.File(real_data / "sc" / "muon_multiome_1000.h5mu") as f, h5py.File(path, "w") as g:
        for name in ("obs", "var"):
            f.copy(name, g)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, kept in (("rna", slice(0, 700)), ("atac", slice(999, 300, -1))):
                adata = anndata.AnnData(
                    anndata.io.read_elem(f[f"mod/{name}/X"]),
                    *(anndata.io.read_elem(f[f"mod/{name}/{t}"]) for t in ("obs", "var")),
                )
                anndata.io.write_elem(g, f"mod/{name}", adata[kept].copy())
    whole = xl.open_cells(real_data / "sc" / "muon_multiome_1000.h5mu").compute()
    ds = xl.open_cells(path)
    assert view(ds.atac.variable).array.shape == (1000, 174)
    there = {"rna": np.arange(1000) < 700, "atac": np.arange(1000) > 300}
    for batch in xl.Loader(ds, batch_size=100, shuffle=True, seed=2):
        rows = batch.row.values
        assert batch.cell.values.tolist() == whole.cell.values[rows].tolist()
        for name, present in there.items():
            np.testing.assert_array_equal(batch[f"{name}_present"].values, present[rows])
            expected = whole[name].values[rows] * present[rows, None]
            np.testing.assert_array_equal(batch[name].data.todense(), expected)
