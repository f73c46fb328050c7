"""Predictions of cells come back as rows with their labels, whatever wrote them, in whatever order."""

import multiprocessing
import os
import signal
import tracemalloc
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xloader as xl
import xloader.torch as xt
from tests.doubles import Rows, cells, cells_in, contacts, counts
from xloader.errors import PlanError, ReadError, SchemaError, XloaderWarning
from xloader.windows import diagonal

WEIGHTS = np.random.default_rng(0).normal(size=(17, 4))


def loader_of(ds=None, **options):
    options = {"batch_size": 8, "variables": ["X"], "shuffle": True, **options}
    return xl.Loader(cells(Rows(counts())) if ds is None else ds, **options)


def writer_of(loader, path, **options):
    return xl.PredictionWriter(loader, path, progress=False, **options)


def embedding(ids):
    """Return what depends on the cell alone."""
    return counts()[ids] @ WEIGHTS


@settings(max_examples=15)
@given(data=st.data())
def test_cells__each_once_in_order_from_any_order_ranks_and_padding(data, tmp_path_factory):
    n, folder = data.draw(st.integers(1, 61)), tmp_path_factory.mktemp("p")
    ds = cells(Rows(counts())).isel(cell=data.draw(st.permutations(range(61)))[:n])
    world = data.draw(st.integers(1, 3))
    shape = data.draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    values = np.random.default_rng(n).normal(size=(n, *shape)).astype(dtype)
    remainder = data.draw(st.sampled_from(["keep", "pad"]))
    for rank in data.draw(st.permutations(range(world))):
        loader = loader_of(ds, rank=rank, world_size=world, batch_size=5, remainder=remainder)
        w = writer_of(loader, folder / "o")
        for k in data.draw(st.permutations(range(len(loader)))):
            batch = loader[k]
            mine = values[batch.sample_id.values]
            if "valid" in batch.coords:
                mine[~batch.valid.values] = 1e9  # what only pads is nothing
            w.write(batch, mine)
        out = w.close()
    assert out.prediction.dims == ("cell", "prediction_dim", "prediction_dim1")[: 1 + len(shape)]
    assert out.prediction.dtype == dtype
    np.testing.assert_array_equal(out.prediction, values)
    assert out.coverage.values.tolist() == [1] * n
    assert out.attrs["n_missing"] == 0
    for name in ("cell", "cell_type", "depth", "row"):
        np.testing.assert_array_equal(out[name], ds[name])


def test_several__by_name_with_their_dimensions(tmp_path):
    loader = loader_of()
    w = writer_of(loader, tmp_path / "o")
    for batch in loader:
        ids = batch.sample_id.values
        x = xr.DataArray(embedding(ids).T, dims=("latent", "cell"))
        w.write(batch, xr.Dataset({"embedding": x, "score": ("cell", ids / 2)}))
    out = w.close()
    assert out.embedding.dims == ("cell", "latent")
    np.testing.assert_array_equal(out.embedding, embedding(np.arange(61)))
    np.testing.assert_array_equal(out.score, np.arange(61) / 2)
    assert set(out.data_vars) == {"embedding", "score", "coverage"}


@pytest.mark.parametrize("workers", [0, 2])
def test_tensors__of_workers_by_name(workers, tmp_path):
    loader = loader_of(remainder="pad")
    served = xt.make_loader(
        loader, num_workers=workers, **({"start_method": "fork"} if workers else {})
    )
    weights = torch.from_numpy(WEIGHTS).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of sparse tensors, and Python's of fork
        with writer_of(served, tmp_path / "o") as w:
            for batch in served:
                z = xt.to_device(batch, "cpu")["X"].float() @ weights
                w.write(batch, {"embedding": z, "of/it": z.mean(1, dtype=torch.bfloat16)})
    out = xl.open_cells(tmp_path / "o")
    expected = torch.from_numpy(counts()) @ weights
    np.testing.assert_allclose(out.embedding, expected, rtol=1e-6)
    assert out.embedding.dims == ("cell", "embedding_dim")
    assert out["of/it"].dtype == np.float32
    assert out.coverage.values.all()


def test_assign__aligns_by_cell(tmp_path):
    chosen = loader_of(cells().isel(cell=[40, 3, 7]))
    with writer_of(chosen, tmp_path / "o") as w:
        for batch in chosen:
            w.write(batch, batch.depth.values)
    out = xl.open_cells(tmp_path / "o")
    ds = cells().assign(embedding=out.prediction)
    expected = np.where(np.isin(np.arange(61), [40, 3, 7]), cells().depth, np.nan)
    np.testing.assert_array_equal(ds.embedding, expected)


@pytest.mark.parametrize("form", ["h5ad", "store"])
def test_law__identity_rebuilds_the_source(form, tmp_path):
    loader = loader_of(cells_in(form, tmp_path), layout="dense", remainder="pad")
    out = xl.testing.assert_rebuilds(loader, tmp_path / "o")
    np.testing.assert_array_equal(out.prediction, counts())


def test_replacement__the_last_one_counts_and_the_rest_is_missing(tmp_path):
    order = xl.orders.weighted(np.where(np.arange(61) < 9, 1.0, 0.0))
    loader = loader_of(order=order, shuffle=False)
    w = writer_of(loader, tmp_path / "o")
    last = {}
    for step, batch in enumerate(loader):
        ids = batch.sample_id.values
        values = step * 100.0 + np.arange(len(ids))
        last.update(zip(ids.tolist(), values.tolist(), strict=True))
        w.write(batch, values)
    assert len(last) <= 9
    with pytest.warns(XloaderWarning, match=f"{61 - len(last)} of 61 samples were not predicted"):
        out = w.close()
    expected = [last.get(k, np.nan) for k in range(61)]
    np.testing.assert_array_equal(out.prediction, expected)
    np.testing.assert_array_equal(out.coverage, [k in last for k in range(61)])
    assert out.attrs["n_missing"] == 61 - len(last)


def killed(folder, n):
    loader = loader_of(shuffle=False)
    w = writer_of(loader, folder)
    for batch in loader.batches(0, range(n)):
        x = embedding(batch.sample_id.values)
        w.write(batch, {"embedding": x, "first": x[:, 0]})
    os.kill(os.getpid(), signal.SIGKILL)


def test_resume__a_killed_writer_goes_on(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "o", 3))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "o").exists()
    loader = loader_of(batch_size=7, seed=5)  # order and batches may change
    w = writer_of(loader, tmp_path / "o")
    assert w.missing.tolist() == list(range(24, 61))
    with pytest.raises(
        SchemaError, match=r"other names than \['prediction'\].*\['embedding', 'first'\]"
    ):
        w.write(loader[0], np.zeros(7))
    # a sample that lacks one of them is not there
    (part,) = (tmp_path / ".o.predictions" / "of-first").glob("*float64*")
    with part.open("r+b") as f:
        f.truncate(part.stat().st_size - 1)
    assert w.missing.tolist() == list(range(23, 61))
    batch = loader.samples(w.missing)
    x = embedding(w.missing)
    w.write(batch, {"first": x[:, 0], "embedding": x})
    out = w.close()
    np.testing.assert_array_equal(out.embedding, embedding(np.arange(61)))
    np.testing.assert_array_equal(out["first"], embedding(np.arange(61))[:, 0])
    assert out.coverage.values.all()
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


BAD = {
    "shape": (np.zeros((7, 2)), r"'prediction' is of shape \(7, 2\), .* \(cell, \.\.\.\) = \(8, \.\.\.\)"),
    "scalar": (1.0, r"'prediction' is of shape \(\), "),
    "nothing": (np.zeros((8, 0)), r"is of shape \(8, 0\)"),
    "text": (np.full(8, "a"), "predictions are <U1; give real numbers"),
    "no names": ({}, "the prediction is empty"),
    "label": ({"cell_type": np.zeros(8)}, "cannot be called 'cell_type'.* call it otherwise"),
    "dimension": ({"cell": np.zeros(8)}, "cannot be called 'cell'"),
    "coverage": ({"coverage": np.zeros(8)}, "cannot be called 'coverage'"),
    "one of two": ({"a": np.zeros(8), "b": np.zeros(3)}, r"'b' is of shape \(3,\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_write__refuses_what_has_no_place(case, tmp_path):
    values, message = BAD[case]
    loader = loader_of()
    w = writer_of(loader, tmp_path / "o")
    with pytest.raises(SchemaError, match=message):
        w.write(loader[0], values)
    assert len(w.missing) == 61  # nothing of it was written


def test_write__all_of_one_kind(tmp_path):
    loader = loader_of()
    w = writer_of(loader, tmp_path / "o")
    w.write(loader[0], {"a": np.zeros((8, 2))})
    for other in ({"b": np.zeros((8, 2))}, {"a": np.zeros((8, 3))}, np.zeros(8)):
        with pytest.raises(SchemaError, match="before were {'a': 'float64 of shape"):
            w.write(loader[1], other)


def test_dimensions__of_two_sizes_are_told(tmp_path):
    loader = loader_of(batch_size=61)
    w = writer_of(loader, tmp_path / "o")
    two = {k: xr.DataArray(np.zeros((61, n)), dims=("cell", "z")) for k, n in (("a", 2), ("b", 3))}
    w.write(loader[0], two)
    with pytest.raises(SchemaError, match=r"dimension 'z' of prediction 'b' has 3 elements"):
        w.close()


def test_maps__several_by_name(tmp_path):
    loader = xl.Loader(contacts(), windows=diagonal(size=10, stride=10), batch_size=4)
    w = writer_of(loader, tmp_path / "o")
    for batch in loader:
        x = batch["count"].values.astype(float)
        w.write(batch, {"mean": x, "spread": np.where(x > 3, x / 2, np.nan)})
    out = w.close()
    seen = out.mean_coverage.values > 0
    source = loader.ds["count"].values
    np.testing.assert_array_equal(out["mean"].values[seen], source[seen])
    half = np.where(seen & (source > 3), source / 2, np.nan)
    np.testing.assert_array_equal(out.spread, half)
    np.testing.assert_array_equal(out.spread_coverage.values > 0, ~np.isnan(half))
    with pytest.raises(SchemaError, match="variable=None names none .*'mean'"):
        xl.export(tmp_path / "o", tmp_path / "o.cool", progress=False)
    xl.export(tmp_path / "o", tmp_path / "o.cool", variable="mean", progress=False)


def test_disk__that_is_full_loses_nothing(tmp_path, monkeypatch):
    loader = loader_of(shuffle=False)
    w = writer_of(loader, tmp_path / "o")
    w.write(loader[0], {"a": np.zeros(8), "b": np.zeros((8, 2))})
    append, calls = type(w._parts["a"]).append, []

    def full(self, ids, values):
        calls.append(1)
        if len(calls) == 2:
            msg = "no space"
            raise ReadError(msg)
        append(self, ids, values)

    with monkeypatch.context() as m:
        m.setattr(type(w._parts["a"]), "append", full)
        with pytest.raises(ReadError, match="no space"):
            w.write(loader[1], {"a": np.ones(8), "b": np.ones((8, 2))})
    assert w.missing.tolist() == list(range(8, 61))
    for step in range(1, len(loader)):
        n = loader[step].sizes["cell"]
        w.write(loader[step], {"a": np.full(n, 2.0), "b": np.full((n, 2), 3.0)})
    out = w.close()
    np.testing.assert_array_equal(out.a, np.where(np.arange(61) < 8, 0, 2))
    np.testing.assert_array_equal(out.b[:, 0], np.where(np.arange(61) < 8, 0, 3))


def test_close__without_anything_is_told(tmp_path):
    with pytest.raises(PlanError, match="no prediction was written to .*, of 61 samples"):
        writer_of(loader_of(), tmp_path / "o").close()


def test_memory__does_not_grow_with_the_size_of_predictions(tmp_path):
    peaks = []
    for n in (2, 1, 4):  # the first one warms up
        ds = xr.Dataset({"x": ("cell", np.zeros(n * 512, np.uint8))})
        loader = xl.Loader(ds, batch_size=128)
        tracemalloc.start()
        w = writer_of(loader, tmp_path / f"{n}", memory_budget="8MB")
        for batch in loader:
            w.write(batch, np.ones((128, 1024), np.float32))
        w.close().close()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 3e6  # 6.3 MB more were written


@pytest.mark.real
@pytest.mark.parametrize("name", ["czi_small_perturbations.h5ad", "pbmc68k_reduced.h5ad"])
def test_identity__rebuilds_real_cells(name, real_data, tmp_path):
    path = real_data / "sc" / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = ad.read_h5ad(path)
    ds = xl.open_cells(path)
    parts = [
        xl.Loader(ds, batch_size=32, shuffle=True, seed=3, layout="dense" if sparse else None,
                  variables=["X"], rank=r, world_size=2, remainder="pad")
        for r in range(2)
        for sparse in [name.startswith("czi")]
    ]  # fmt: skip
    for loader in parts:
        w = writer_of(loader, tmp_path / "o")
        for batch in loader:
            w.write(batch, {"denoised": batch.X, "again": batch.X.values})
        out = w.close()
    x = source.X.toarray() if hasattr(source.X, "toarray") else source.X
    for got in (out.denoised, out.again):
        assert got.dtype == x.dtype
        assert got.values.tobytes() == np.ascontiguousarray(x).tobytes()
    xr.testing.assert_equal(
        out.coords.to_dataset(),
        ds.drop_vars(list(ds.data_vars))
        .drop_dims("X_pca_dim", errors="ignore")
        .drop_dims("X_umap_dim", errors="ignore"),
    )
    back = xl.export(tmp_path / "o", tmp_path / "o.h5ad", progress=False)
    again = ad.read_h5ad(back)
    np.testing.assert_array_equal(again.X, x)
    np.testing.assert_array_equal(again.obsm["again"], x)
    pd.testing.assert_frame_equal(again.var, source.var)
    assert again.obs_names.equals(source.obs_names)
