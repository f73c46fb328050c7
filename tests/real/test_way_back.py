"""Real maps go through windows, stores and files, and come back bit for bit."""

import cooler
import h5py
import numpy as np
import pytest

import xloader as xl
from xloader.windows import diagonal, grid

YEAST = "scer_w303_g1_2kb_SRR8769554.cool"
FILES = [
    YEAST,
    "scer_w303_g1.6res.balanced.mcool",
    "hictkpy_dm6_4DNFIZ1ZVXC8.mcool",
    "hg19.GM12878-MboI.matrix.2000kb.cool",
    "float_counts.cool",
]


def coolers(file):
    """Return the group of every map of a file."""
    if "pixels" in file:
        return ["/"]
    return [f"resolutions/{name}" for name in file["resolutions"]]


def same(a, b):
    return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")


@pytest.mark.real
@pytest.mark.parametrize("name", FILES)
def test_export__is_the_file_that_was_converted(name, real_data, tmp_path):
    source = real_data / "hic" / name
    xl.convert(source, tmp_path / "s", progress=False)
    path = xl.export(tmp_path / "s", tmp_path / name, progress=False)
    with h5py.File(source) as old, h5py.File(path) as new:
        assert coolers(old) == coolers(new)
        for group in coolers(old):
            a, b = old[group], new[group]
            assert set(a["bins"]) == set(b["bins"])
            for part in ("chroms", "bins", "pixels", "indexes"):
                for key in a[part]:
                    x, y = a[part][key], b[part][key]
                    assert same(x[()], y[()]), (group, part, key)
                    if part in {"bins", "pixels"}:
                        assert x.dtype == y.dtype
                    for attr, value in x.attrs.items():
                        assert same(value, y.attrs[attr]), (key, attr)
            for attr in ("nnz", "nbins", "nchroms", "bin-size"):
                assert a.attrs[attr] == b.attrs[attr]
            assert b.attrs["sum"] == pytest.approx(a["pixels/count"][()].sum(), rel=1e-15)
            again = cooler.Cooler(f"{path}::{group}")
            theirs = cooler.Cooler(f"{source}::{group}")
            assert again.matrix(balance=False)[:50, :50].tolist() == (
                theirs.matrix(balance=False)[:50, :50].tolist()
            )
            assert again.chromsizes.equals(theirs.chromsizes)


@pytest.mark.real
def test_export__is_the_single_cell_that_was_opened(real_data, tmp_path):
    source = real_data / "hic" / "scool_5cells_100kb.scool"
    with h5py.File(source) as old:
        for name in sorted(old["cells"])[:1]:
            path = xl.export(f"{source}::/cells/{name}", tmp_path / name, progress=False)
            with h5py.File(path) as new:
                for part in ("chroms", "bins", "pixels", "indexes"):
                    for key, dataset in old["cells"][name][part].items():
                        assert same(dataset[()], new[part][key][()]), (name, part, key)
                assert new["pixels/count"].dtype == old["cells"][name]["pixels/count"].dtype


@pytest.mark.real
def test_export__coarser_resolutions_equal_zoomify(real_data, tmp_path):
    # the file was made by `cooler zoomify` from the one that is exported
    zoomed = real_data / "hic" / FILES[1]
    sizes = [2000 * 2**k for k in range(6)]
    source = real_data / "hic" / YEAST
    path = xl.export(source, tmp_path / "y.mcool", resolutions=sizes, progress=False)
    with h5py.File(zoomed) as old, h5py.File(path) as new:
        for group in coolers(old):
            for key in ("bin1_id", "bin2_id", "count"):
                x, y = old[group]["pixels"][key], new[group]["pixels"][key]
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x[()], y[()])


SHAPES = {
    "diagonal": diagonal(size=100, stride=30),
    "grid": grid(size=64, stride=48, max_distance=192),
}


@pytest.mark.real
@pytest.mark.parametrize("weights", ["uniform", "triangular", "array"])
@pytest.mark.parametrize("balanced", [False, True], ids=["raw", "balanced"])
@pytest.mark.parametrize("shape", SHAPES)
def test_identity__rebuilds_yeast_bit_for_bit(shape, balanced, weights, real_data, tmp_path):
    source = xl.open_contacts(real_data / "hic" / YEAST, view=["chr1", "chr10", "chr14"])
    source = xl.convert(source, tmp_path / "s", progress=False)
    clr = cooler.Cooler(str(real_data / "hic" / YEAST))
    bins = source.bin1.values
    whole = clr.matrix(balance=balanced)[: bins[-1] + 1, : bins[-1] + 1][np.ix_(bins, bins)]
    loader = xl.Loader(source, windows=SHAPES[shape], batch_size=64, shuffle=True, seed=1)
    size = loader.plan.windows.size[0]
    if weights == "array":
        weights = np.full((size, size), 1 / 3)
    with xl.PredictionWriter(loader, tmp_path / "p", weights=weights, progress=False) as w:
        for batch in loader:
            values = batch["count"].values
            if balanced:  # as cooler multiplies: both vectors first, so that (i, j) equals (j, i)
                values = values * (batch.weight1.values[:, :, None] * batch.weight2.values[:, None])
            w.write(batch, values)
    out = xl.open_contacts(tmp_path / "p")
    held = np.zeros(whole.shape, bool)
    for r, c in loader.plan.windows.starts.tolist():
        held[r : r + size, c : c + size] = True
    held |= held.T
    assert np.isnan(whole[held]).any() == balanced
    np.testing.assert_array_equal(out.coverage.values > 0, held & ~np.isnan(whole))
    assert out.coverage.values.max() > 3
    rebuilt = out.prediction.values
    seen = held & ~np.isnan(whole)
    assert rebuilt[seen].tobytes() == whole[seen].astype(np.float64).tobytes()
    assert np.isnan(rebuilt[~seen]).all()
