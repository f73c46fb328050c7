"""Small AnnData files for tests."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse
import xarray as xr

from xloader.backends.anndata import CSCGroup, CSRGroup
from xloader.backends.hdf5 import HDF5File

LAYOUTS = {
    "csr": scipy.sparse.csr_matrix,
    "csc": scipy.sparse.csc_matrix,
    "dense": lambda m: m.toarray(),
}


def counts(n_cells=53, n_genes=31, density=0.2, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    m = scipy.sparse.random(n_cells, n_genes, density, "csr", np.float64, rng)
    m.data = rng.integers(1, 100, m.nnz).astype(np.float64)
    return m.astype(dtype)


def write(path, x, **kwargs):
    kwargs.setdefault("obs", pd.DataFrame(index=[f"c{i}" for i in range(x.shape[0])]))
    kwargs.setdefault("var", pd.DataFrame(index=[f"g{i}" for i in range(x.shape[1])]))
    adata = ad.AnnData(x, **kwargs)
    adata.write_h5ad(path, convert_strings_to_categoricals=False)
    return adata


def opened(path, **kwargs):
    return xr.open_dataset(path, engine="anndata", **kwargs)


def dense(x):
    return x.toarray() if scipy.sparse.issparse(x) else np.asarray(x)


def stored(path, matrix, change=lambda _: None):
    """Write one sparse matrix, change it on disk, and open it."""
    with h5py.File(path, "w") as f:
        ad.io.write_elem(f, "m", matrix)
        change(f["m"])
    cls = CSRGroup if matrix.format == "csr" else CSCGroup
    return cls(HDF5File(str(path)), "m", matrix.shape)


def rechunk(group, name, chunks):
    values = group[name][()]
    del group[name]
    group.create_dataset(name, data=values, chunks=chunks)


def write_example(folder):
    """Write an example and return its path and what anndata holds."""
    path = folder / "example.h5ad"
    x = counts(300, 40)
    adata = write(
        path,
        x,
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical(np.array(["B", "T", "NK"])[np.arange(300) % 3])},
            index=[f"c{i}" for i in range(300)],
        ),
        layers={"log": np.log1p(x)},
        obsm={"X_pca": np.arange(600, dtype=np.float32).reshape(300, 2)},
    )
    with h5py.File(path, "r+") as f:
        for name in ("data", "indices"):
            rechunk(f["X"], name, (256,))
    return path, adata
