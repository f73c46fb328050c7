"""Real cells go through stores and files, and anndata finds them as they were."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import xloader as xl

FILES = [
    "czi_small_perturbations.h5ad",
    "pbmc68k_reduced.h5ad",
    "pbmc8k_200hvg_counts.h5ad",
    "visium_mouse_2898x19465.h5ad",
    "wu2020_200_vdj.h5ad",
]


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old forms
        return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def assert_same_matrix(a, b):
    assert scipy.sparse.issparse(a) == scipy.sparse.issparse(b)
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    if scipy.sparse.issparse(a):
        assert a.has_sorted_indices
        b = scipy.sparse.csr_matrix(b).sorted_indices()  # some files have them in any order
        for name in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    else:
        np.testing.assert_array_equal(a, b)


def assert_same(a, b):
    """Compare what a labelled Dataset holds of two AnnData."""
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    assert_same_matrix(a.X, b.X)
    for ours, theirs in ((a.layers, b.layers), (a.obsm, b.obsm)):
        assert set(ours) == set(theirs)
        for key in ours:
            assert_same_matrix(ours[key], theirs[key])


@pytest.mark.real
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("name", FILES)
def test_export__is_the_file_that_was_converted(name, suffix, real_data, tmp_path):
    source = real_data / "sc" / name
    xl.convert(source, tmp_path / "s", progress=False)
    out = xl.export(tmp_path / "s", tmp_path / f"out{suffix}", progress=False)
    assert_same(read(out), read(source))
