"""Panels of real files: the values of anndata, and the bytes that the plan says for each layout."""

import anndata
import h5py
import numpy as np
import numpy.testing as npt
import pytest
import scipy.sparse

import xloader as xl
from xloader.csr import CSRArray

SECTION = "visium_mouse_2898x19465.h5ad"
FILES = (
    SECTION,
    "czi_small_perturbations.h5ad",
    "pbmc8k_200hvg_counts.h5ad",
    "pbmc68k_reduced.h5ad",
)

pytestmark = pytest.mark.filterwarnings("ignore")  # what real files lack is told elsewhere


def served(ds):
    """Return what an epoch serves in the order of cells, and what the plan says of the panel."""
    loader = xl.Loader(ds, batch_size=256, shuffle=True)
    (chosen,) = loader.plan.chosen
    x = np.empty(ds.X.shape, ds.X.dtype)
    for batch in loader:
        data = batch.X.data
        x[batch.sample_id.values] = data.todense() if isinstance(data, CSRArray) else data
    return x, chosen


def dense(x):
    return x.toarray() if scipy.sparse.issparse(x) else np.asarray(x)


@pytest.mark.parametrize("name", FILES)
def test_panel__equals_anndatas(name, real_data):
    path = real_data / "sc" / name
    theirs = anndata.read_h5ad(path)
    genes = theirs.var_names[::-7][:50].tolist()
    x, chosen = served(xl.open_cells(path)[["X"]].xl.select(gene=genes))
    npt.assert_array_equal(x, dense(theirs[:, genes].X))
    if name == "pbmc68k_reduced.h5ad":  # chunks of half of the genes
        assert chosen.nbytes * 2 < chosen.whole_nbytes * 1.01
    else:
        assert chosen.nbytes == chosen.whole_nbytes


def test_panel__of_a_section_is_read_from_what_holds_it(tmp_path, real_data):
    theirs = anndata.read_h5ad(real_data / "sc" / SECTION)
    x = scipy.sparse.csr_matrix(theirs.X)
    genes = theirs.var_names[100:2000:38].tolist()
    found = {}
    for form, values in {"csr": x, "csc": scipy.sparse.csc_matrix(x), "dense": x.toarray()}.items():
        path = tmp_path / f"{form}.h5ad"
        anndata.AnnData(values, theirs.obs[[]], theirs.var[[]]).write_h5ad(path)
        if form == "dense":
            with h5py.File(path, "a") as f:
                attrs = dict(f["X"].attrs)
                del f["X"]
                f.create_dataset("X", data=values, chunks=(256, 256), compression="lzf")
                f["X"].attrs.update(attrs)
        panel, chosen = served(xl.open_cells(path)[["X"]].xl.select(gene=genes))
        npt.assert_array_equal(panel, x[:, theirs.var_names.get_indexer(genes)].toarray())
        found[form] = chosen.nbytes, chosen.whole_nbytes
    n, m = x.nnz, x[:, theirs.var_names.get_indexer(genes)].nnz
    assert found["csr"] == (8 * n, 8 * n)
    assert found["csc"] == (8 * m, 8 * n)
    chunks = np.unique(theirs.var_names.get_indexer(genes) // 256)
    assert found["dense"] == (4 * 2898 * 256 * len(chunks), 4 * 2898 * 19465)
