"""Simulated files are real ones: cooler and anndata open them, and they look like experiments."""

import itertools

import anndata
import cooler
import h5py
import numpy as np
import pytest

from xloader import simulate
from xloader.errors import PlanError, ReadError


@pytest.fixture(scope="module")
def mcool(tmp_path_factory):
    path = tmp_path_factory.mktemp("sim") / "a.mcool"
    chromosomes = {"chrA": 3_000_000, "chrB": 2_005_000}
    return simulate.contacts(path, chromosomes=chromosomes, resolutions=(10_000, 30_000), seed=3)


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    path = tmp_path_factory.mktemp("sim") / "a.h5ad"
    return simulate.cells(path, n_cells=900, n_genes=300, seed=3)


def test_contacts__are_a_multires_cooler(mcool):
    assert cooler.fileops.is_multires_file(str(mcool))
    fine = cooler.Cooler(f"{mcool}::/resolutions/10000")
    assert fine.chromsizes.to_dict() == {"chrA": 3_000_000, "chrB": 2_005_000}
    assert fine.bins()[:].end.max() == 3_000_000
    pixels = fine.pixels()[:]
    assert (np.diff(pixels.bin1_id * fine.info["nbins"] + pixels.bin2_id) > 0).all()
    assert (pixels.bin1_id <= pixels.bin2_id).all()
    assert pixels["count"].sum() == fine.info["sum"]


def test_contacts__coarse_levels_are_exact_sums(mcool):
    fine = cooler.Cooler(f"{mcool}::/resolutions/10000").matrix(balance=False)
    coarse = cooler.Cooler(f"{mcool}::/resolutions/30000").matrix(balance=False)
    whole = np.triu(fine.fetch("chrA"))
    expected = whole.reshape(100, 3, 100, 3).sum(axis=(1, 3))
    np.testing.assert_array_equal(np.triu(coarse.fetch("chrA")), expected)
    trans = fine.fetch("chrA", "chrB")
    padded = np.pad(trans, ((0, 0), (0, 201 - trans.shape[1])))
    expected = padded.reshape(100, 3, 67, 3).sum(axis=(1, 3))
    np.testing.assert_array_equal(coarse.fetch("chrA", "chrB"), expected)


def test_contacts__balanced_rows_sum_to_one(mcool):
    for resolution in (10_000, 30_000):
        c = cooler.Cooler(f"{mcool}::/resolutions/{resolution}")
        sums = np.nansum(c.matrix(balance=True)[:], axis=0)
        masked = c.bins()[:].weight.isna().to_numpy()
        np.testing.assert_allclose(sums[~masked], 1, atol=1e-3)
        assert 0 < masked.sum() < len(masked) / 5


def test_contacts__decay_with_distance(mcool):
    m = cooler.Cooler(f"{mcool}::/resolutions/10000").matrix(balance=False).fetch("chrA")
    decay = [np.diagonal(m, d).mean() for d in (1, 4, 16, 64)]
    assert all(a > 2 * b for a, b in itertools.pairwise(decay))


def test_cells__open_without_warnings(h5ad):
    a = anndata.read_h5ad(h5ad)
    assert a.shape == (900, 300)
    assert a.X.dtype == np.float32
    np.testing.assert_array_equal(a.X.data, np.round(a.X.data))
    np.testing.assert_array_equal(a.obs.n_counts, np.asarray(a.X.sum(axis=1)).ravel())
    assert (a.obs.age.isna() == (a.obs.donor == "donor1")).all()
    assert a.obsm["X_latent"].shape == (900, 8)


def test_cells__split_by_donor(h5ad):
    obs = anndata.read_h5ad(h5ad).obs
    assert (obs.groupby("donor", observed=True).split.nunique() == 1).all()
    assert set(obs.split) == {"train", "val", "test"}


def test_cells__overdispersed_with_markers(h5ad):
    a = anndata.read_h5ad(h5ad)
    dense = a.X.toarray()
    mean, variance = dense.mean(axis=0), dense.var(axis=0)
    assert np.median(variance[mean > 1] / mean[mean > 1]) > 1.3
    by_type = np.stack(
        [dense[a.obs.cell_type == t].mean(axis=0) for t in a.obs.cell_type.cat.categories]
    )
    ratio = by_type.max(axis=0) / (by_type.mean(axis=0) + 0.1)
    marker = a.var.marker.to_numpy()
    assert ratio[marker].mean() > 1.2 * ratio[~marker].mean()


@pytest.mark.parametrize(
    ("make", "name"), [(simulate.contacts, "a.mcool"), (simulate.cells, "a.h5ad")]
)
def test_simulate__same_seed_same_data(make, name, tmp_path):
    small = (
        {"chromosomes": {"x": 900_000}, "resolutions": (10_000,)}
        if make is simulate.contacts
        else {"n_cells": 60, "n_genes": 50}
    )

    def values(seed, file):
        found = {}
        with h5py.File(make(tmp_path / file, seed=seed, **small)) as f:
            f.visititems(lambda k, v: found.update({k: v[()]}) if hasattr(v, "shape") else None)
        return found

    first, again, other = values(1, f"1{name}"), values(1, f"2{name}"), values(2, f"3{name}")
    assert first.keys() == again.keys()
    assert all(
        np.array_equal(first[k], again[k], equal_nan=first[k].dtype.kind == "f") for k in first
    )
    counts = "resolutions/10000/pixels/count" if make is simulate.contacts else "X/data"
    assert not np.array_equal(first[counts], other[counts])


@pytest.mark.parametrize("make", [simulate.contacts, simulate.cells])
def test_simulate__refuses_what_exists(make, tmp_path):
    path = tmp_path / "there"
    path.write_text("mine")
    with pytest.raises(ReadError, match="exists; pass overwrite=True"):
        make(path)
    assert path.read_text() == "mine"
    with pytest.raises(ReadError, match="no folder"):
        make(tmp_path / "nowhere" / "a")


def test_simulate__interrupted_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("xloader.simulate.single_cell._categorical", None)
    with pytest.raises(TypeError):
        simulate.cells(tmp_path / "a.h5ad", n_cells=60, n_genes=50)
    assert list(tmp_path.iterdir()) == []


def test_simulate__impossible_numbers(tmp_path):
    with pytest.raises(PlanError, match="no multiples of the finest"):
        simulate.contacts(tmp_path / "a", resolutions=(10_000, 25_000))
    with pytest.raises(PlanError, match="3 donors"):
        simulate.cells(tmp_path / "a", n_donors=1)
