"""Small source files for tests of stores and conversion."""

import anndata
import numpy as np


def sparse(n_rows, n_columns, seed=0, high=9, dtype=np.float32):
    """Return a mostly zero matrix, a fifth of its rows empty."""
    rng = np.random.default_rng(seed)
    x = (rng.random((n_rows, n_columns)) < 0.15) * rng.integers(1, high, (n_rows, n_columns))
    x[rng.random(n_rows) < 0.2] = 0
    return x.astype(dtype)


def write_h5ad(path, x, **kwargs):
    """Write cells with anndata itself."""
    anndata.AnnData(x, **kwargs).write_h5ad(path)
    return path
