"""Predictions come back as one labelled map, whatever wrote them, in whatever order."""

import doctest
import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import tracemalloc
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import xbatcher
from hypothesis import given, settings
from hypothesis import strategies as st

import xloader as xl
import xloader.torch as xt
from tests.doubles import BIN, cells, contact_map, contacts
from xloader.errors import PlanError, ReadError, SchemaError, StateError, XloaderWarning
from xloader.store.assembled import AssembledTiles
from xloader.windows import diagonal, grid

WHOLE = {"windows": diagonal(size=10, stride=4), "batch_size": 3}


def loader_of(ds=None, **options):
    return xl.Loader(contacts() if ds is None else ds, **{**WHOLE, **options})


def writer_of(loader, path, **options):
    return xl.PredictionWriter(loader, path, progress=False, **options)


def predict(ids, n, dtype=np.float64, seed=0):
    """Return what depends on the sample alone, and is not symmetric."""
    parts = [np.random.default_rng([seed, k]).normal(size=(n, n)) for k in ids.tolist()]
    return np.array(parts, dtype).reshape(len(ids), n, n)


def expected(loader, values, weights, symmetric=True):
    """Return means and counts, one pair of bins after the other: slow and plain."""
    n = loader.ds.sizes["bin1"]
    mean, count, found = np.full((n, n), np.nan), np.zeros((n, n), int), {}
    for k, window in enumerate(values):
        r0, c0 = loader.plan.windows.starts[k].tolist()
        mine = {}
        for (a, b), v in np.ndenumerate(window):
            i, j = r0 + a, c0 + b
            # of a pair that is there twice, the place on the window's own side of the diagonal weighs
            first = (i <= j) == (r0 <= c0) or i == j
            pair = (min(i, j), max(i, j)) if symmetric else (i, j)
            mine.setdefault(pair, []).append((first, weights[a, b], v))
        for pair, each in mine.items():
            seen = [v for _, _, v in each if not np.isnan(v)]
            if seen:
                found.setdefault(pair, []).append((max(each)[1], np.mean(seen)))
    for (i, j), each in found.items():
        w, v = np.array(each).T
        mean[i, j] = (v * w).sum() / w.sum()
        count[i, j] = len(each)
        if symmetric:
            mean[j, i], count[j, i] = mean[i, j], count[i, j]
    return mean, count


SCHEMES = {
    "uniform": ("uniform", lambda n: np.ones((n, n))),
    "triangular": (
        "triangular",
        lambda n: np.outer(*[np.minimum(np.arange(n) + 1, n - np.arange(n))] * 2),
    ),
    "callable": (lambda shape: np.full(shape, 0.3), lambda n: np.full((n, n), 0.3)),
}


@settings(max_examples=25)
@given(data=st.data())
def test_identity__rebuilds_the_source_bit_for_bit(data, tmp_path_factory):
    n = data.draw(st.integers(3, 40))
    chroms = data.draw(st.lists(st.integers(n, 160), min_size=1, max_size=3).map(tuple))
    source = contact_map(sum(chroms), seed=n).astype(np.float64) * np.pi
    source[data.draw(st.integers(0, len(source) - 1))] = np.nan
    source = np.where(np.isnan(source.T), np.nan, source)
    dtype = data.draw(st.sampled_from([np.float64, np.float32]))
    source = source.astype(dtype)
    ds = contacts(chroms=chroms).assign(count=(("bin1", "bin2"), source))
    shape = data.draw(st.sampled_from([diagonal, grid]))(
        size=n, stride=data.draw(st.integers(max(1, n // 4), n))
    )
    loader = xl.Loader(ds, windows=shape, batch_size=7, shuffle=True)
    symmetric = data.draw(st.booleans())
    folder = tmp_path_factory.mktemp("p")
    weights = data.draw(st.sampled_from(sorted(SCHEMES)))
    with writer_of(loader, folder / "o", weights=SCHEMES[weights][0], symmetric=symmetric) as w:
        for batch in loader:
            w.write(batch, batch["count"])
            if data.draw(st.booleans()):
                w.write(batch, batch["count"])  # counts once
    out = xl.open_contacts(folder / "o")
    covered = np.zeros(source.shape, int)
    for r, c in loader.plan.windows.starts.tolist():
        mine = np.zeros(source.shape, bool)
        mine[r : r + n, c : c + n] = True
        covered += (mine | mine.T) if symmetric else mine
    covered[np.isnan(source)] = 0
    np.testing.assert_array_equal(out.coverage, covered)
    np.testing.assert_array_equal(out.prediction, np.where(covered > 0, source, np.nan))
    assert out.prediction.dtype == dtype


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_mean__equals_a_plain_sum(scheme, symmetric, tmp_path):
    loader = loader_of(windows=grid(size=10, stride=7, max_distance=14))
    values = predict(np.arange(len(loader.plan.windows)), 10)
    values[3, :4] = np.nan
    weights, oracle = SCHEMES[scheme]
    w = writer_of(loader, tmp_path / "o", weights=weights, symmetric=symmetric)
    for batch in loader:
        w.write(batch, torch.from_numpy(values[batch.sample_id.values]))
    out = w.close()
    mean, count = expected(loader, values, oracle(10), symmetric=symmetric)
    np.testing.assert_allclose(out.prediction, mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(out.coverage, count)
    assert out.attrs["weights"] == ("<lambda>" if scheme == "callable" else scheme)


@pytest.mark.parametrize("source", ["contacts", "masked", "cells", "between"])
def test_law__holds_for_what_keeps_it_and_tells_what_does_not(source, tmp_path):
    ds = cells() if source == "cells" else contacts()
    if source == "masked":
        weight = ds.weight1.values
        ds = ds.assign(count=ds["count"] * (weight[:, None] * weight))
    options = {"batch_size": 4, "shuffle": True, "remainder": "pad"}
    if source == "cells":
        options["layout"] = "dense"
    elif source != "between":
        options["windows"] = grid(size=10, stride=6)
    if source == "between":  # blocks that no chromosome bounds, as xbatcher cuts them
        both = {"bin1": 20, "bin2": 20}
        ds = xbatcher.BatchGenerator(ds, both, {"bin1": 5, "bin2": 5})
    loader = xl.Loader(ds, variables=["X" if source == "cells" else "count"], **options)
    out = xl.testing.assert_rebuilds(loader, tmp_path / "o")
    assert out.attrs["n_missing"] == 0
    loader = xl.Loader(ds, variables=loader.variables, transform=spoil, **options)
    with pytest.raises(AssertionError, match=r"(count|X)\[\d+, \d+\] is .* and came back as"):
        xl.testing.assert_rebuilds(loader, tmp_path / "p")


def spoil(batch):
    """Change one value in each sample by the least that there is."""
    name = next(iter(batch.data_vars))
    values = batch[name].values.astype(float)
    values[:, 3] = np.nextafter(values[:, 3], np.inf)
    return batch.assign({name: (batch[name].dims, values)})


def test_labels__are_those_of_the_source(tmp_path):
    loader = loader_of(contacts().isel(bin1=slice(61, None), bin2=slice(61, None)))
    w = writer_of(loader, tmp_path / "o")
    for batch in loader:
        w.write(batch, batch["count"])
    out = w.close()
    assert out.prediction.chunks is not None  # lazy
    labels = out.drop_vars(["prediction", "coverage"])
    xr.testing.assert_equal(labels, loader.ds.drop_vars("count"))
    assert out.bin1.values.tolist() == list(range(61, 101))
    assert out.weight1.attrs == {"divisive": False}
    told = {"binsize": BIN, "assembly": "test", "weights": "uniform", "n_missing": 0}
    assert {k: out.attrs[k] for k in told} == told
    # plain zarr, and our own engine
    assert np.isnan(xl.open_contacts(tmp_path / "o").prediction.values[0, -1])
    # the Loader reads it like any other map
    again = xl.Loader(out, windows=diagonal(size=10), batch_size=4)[0]
    np.testing.assert_array_equal(again.prediction[0], loader.ds["count"][:10, :10])


def test_zero__is_a_prediction_like_any_other(tmp_path):
    # whole tiles of 128 x 128 bins are zero, which other stores leave out
    loader = loader_of(contacts(chroms=(300,)), windows=diagonal(size=150))
    with writer_of(loader, tmp_path / "o") as w:
        w.write({"sample_id": np.arange(2)}, np.zeros((2, 150, 150)))
    out = xl.open_contacts(tmp_path / "o")
    np.testing.assert_array_equal(out.prediction == 0, out.coverage > 0)
    assert (out.prediction == 0).sum() == 2 * 150**2


@pytest.mark.parametrize("margin", [0, 3])
def test_regions__beyond_chromosomes_nothing_is_predicted(margin, tmp_path):
    middle = [(0, "chr1"), (30, "chr1"), (59, "chr1"), (1, "chr2"), (39, "chr2")]
    table = pd.DataFrame(
        [(c, m * BIN, (m + 1) * BIN) for m, c in middle], columns=["chrom", "start", "end"]
    )
    shape = xl.windows.regions(table, size=21)
    loader = xl.Loader(contacts(), windows=shape, batch_size=2, remainder="pad")
    w = writer_of(loader, tmp_path / "o", margin=margin)
    inner = slice(margin, 21 - margin)
    for batch in loader:
        w.write(batch, np.nan_to_num(batch["count"].values.astype(float), nan=99)[:, inner, inner])
    out = w.close()
    held = np.zeros((101, 101), bool)
    for m, c in middle:
        first, end = (0, 61) if c == "chr1" else (61, 101)
        low, high = max(first, first + m - 10 + margin), min(end, first + m + 11 - margin)
        held[low:high, low:high] = True
    np.testing.assert_array_equal(out.coverage.values > 0, held)
    np.testing.assert_array_equal(out.prediction.values[held], contact_map()[held])


def test_between__blocks_of_two_chromosomes(tmp_path):
    loader = loader_of(windows=xl.windows.between(size=12, stride=7))
    out = xl.testing.assert_rebuilds(loader, tmp_path / "o")
    assert (out.coverage.values[:61, 61:] > 0).all()
    assert (out.coverage.values[:61, :61] == 0).all()


def test_shift__has_no_place(tmp_path):
    loader = loader_of(windows=diagonal(size=10, stride=4, shift=2))
    with pytest.raises(PlanError, match="leave out `shift`"):
        writer_of(loader, tmp_path / "o")


def test_nothing__is_nan_wherever_a_map_of_predictions_goes(tmp_path):
    loader = loader_of(contacts(chroms=(400, 40)), remainder="drop")
    w = writer_of(loader, tmp_path / "o")
    for batch in loader:
        w.write(batch, batch["count"].astype("float32"))
    with pytest.warns(XloaderWarning, match="samples were not predicted"):
        out = w.close()
    known = out.load()
    assert np.isnan(known.prediction.values[0, 200:]).all()  # tiles that were never written
    copied = xl.convert(tmp_path / "o", tmp_path / "copy", progress=False)
    xr.testing.assert_identical(copied.compute(), known)
    size = [sum(f.stat().st_size for f in (tmp_path / n).rglob("c/*/*")) for n in ("o", "copy")]
    assert size[0] == size[1]
    cut = {"bin1": slice(60, 400), "bin2": slice(60, 400)}
    part = xl.convert(out.isel(cut), tmp_path / "part", progress=False)
    xr.testing.assert_equal(part.compute(), known.isel(cut))
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/o/", "/predictions_elsewhere/", recursive=True)
    try:
        far = xl.open_contacts("memory://predictions_elsewhere")
        xr.testing.assert_identical(far.compute(), known)
    finally:
        memory.rm("/predictions_elsewhere", recursive=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order__nothing_depends_on_it(dtype, tmp_path):
    loader = loader_of(windows=grid(size=10, stride=3, max_distance=20))
    n = len(loader.plan.windows)
    values = predict(np.arange(n), 10, dtype)
    results = []
    for seed in range(3):
        ids = np.random.default_rng(seed).permutation(n) if seed else np.arange(n)
        parts = np.array_split(ids, 1 + 4 * seed)
        for part in parts:  # each from a writer of its own, as after a kill
            writer_of(loader, tmp_path / f"{seed}").write({"sample_id": part}, values[part])
        results.append(writer_of(loader, tmp_path / f"{seed}").close())
    assert results[0].prediction.dtype == dtype
    for other in results[1:]:
        for name in ("prediction", "coverage"):
            assert results[0][name].values.tobytes() == other[name].values.tobytes()
    files = [{p.relative_to(r): p.read_bytes() for p in r.rglob("c/**/*") if p.is_file()}
             for r in (tmp_path / "0", tmp_path / "1")]  # fmt: skip
    assert files[0] == files[1]


def test_padding__is_left_out(tmp_path):
    loader = loader_of(remainder="pad", batch_size=4)
    w = writer_of(loader, tmp_path / "o")
    last = loader[len(loader) - 1]
    assert not last.valid.values.all()
    values = last["count"].values.astype(float)
    values[~last.valid.values] = np.inf
    w.write(last, values)
    with pytest.warns(XloaderWarning, match=r"20 of 23 samples were not predicted"):
        out = w.close()
    assert np.isfinite(out.prediction.values[out.coverage.values > 0]).all()


def test_write__takes_tensors_of_any_float(tmp_path):
    loader = xl.torch.make_loader(contacts(), **WHOLE, num_workers=0)
    w = writer_of(loader, tmp_path / "o")
    for tensors in loader:
        w.write({"sample_id": tensors["sample_id"]}, tensors["count"].to(torch.bfloat16))
    out = w.close()
    assert out.prediction.dtype == np.float32
    covered = out.coverage.values > 0
    np.testing.assert_array_equal(out.prediction.values[covered], contact_map()[covered])


def test_write__takes_dimensions_in_any_order_and_integers(tmp_path):
    loader = loader_of()
    w = writer_of(loader, tmp_path / "o")
    for batch in loader:
        w.write(batch, batch["count"].astype("int64").transpose("bin2", "sample", "bin1"))
    out = w.close()
    covered = out.coverage.values > 0
    np.testing.assert_array_equal(out.prediction.values[covered], contact_map()[covered])


def test_resume__a_killed_writer_goes_on(tmp_path):
    loader = loader_of()
    n = len(loader.plan.windows)
    first = writer_of(loader, tmp_path / "o")
    for batch in loader.batches(0, range(4)):
        first.write(batch, batch["count"] * 0 + 7)  # the last two of them are replaced
    (part,) = (tmp_path / ".o.predictions").rglob("*.float64.10x10")
    with part.open("ab") as file:  # a record that was cut off
        file.write(b"x" * 500)
    assert not (tmp_path / "o").exists()
    (tmp_path / ".o.predictions" / "closing").touch()  # the process that closed was killed, too
    again = writer_of(loader_of(), tmp_path / "o")
    assert (
        repr(again)
        == f"<xloader.PredictionWriter> {str(tmp_path / 'o')!r}: 12 of {n} samples written"
    )
    assert again.missing.tolist() == list(range(12, n))
    for ids in (again.missing, np.arange(12)):
        batch = loader.samples(ids)
        again.write(batch, batch["count"])
    out = again.close()
    covered = out.coverage.values > 0
    np.testing.assert_array_equal(out.prediction.values[covered], contact_map()[covered])
    assert {p.name for p in tmp_path.iterdir()} == {"o"}
    assert "closed" in repr(again)


def rank_of(folder, rank, world, stop=None):
    """Predict what one rank serves; be killed after some batches."""
    ds = contacts(chroms=(61, 40, 300))
    options = {**WHOLE, "shuffle": True, "remainder": "pad", "batch_size": 2}
    loader = xl.Loader(ds, rank=rank, world_size=world, **options)
    writer = writer_of(loader, folder / "o", weights="triangular")
    delivered = xl.torch.make_loader(loader, num_workers=2 if rank == 1 else 0)
    for k, batch in enumerate(delivered):
        if k == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        missing = np.isin(batch["sample_id"], writer.missing) if stop is None else [True]
        if np.any(missing):
            writer.write(batch, batch["count"])
    out = writer.close()
    (folder / f"closed-{rank}").write_text("no" if out is None else "last")


@pytest.mark.slow
def test_ranks__of_real_processes_killed_and_resumed(tmp_path):
    context = multiprocessing.get_context("fork")  # torch is imported once, not nine times

    def run(*each):
        processes = [context.Process(target=rank_of, args=(tmp_path, *args)) for args in each]
        for p in processes:
            p.start()
        for p in processes:
            p.join(240)
        return [p.exitcode for p in processes]

    assert run((0, 3), (1, 3, 4), (2, 3)) == [0, -signal.SIGKILL, 0]
    assert not (tmp_path / "o").exists()
    assert {(tmp_path / f"closed-{r}").read_text() for r in (0, 2)} == {"no"}
    assert run((1, 3)) == [0]
    assert (tmp_path / "closed-1").read_text() == "last"
    out, source = xl.open_contacts(tmp_path / "o"), contact_map(401)
    assert out.attrs["n_missing"] == 0
    covered = out.coverage.values > 0
    assert covered.sum() == sum(expected_cover(n) for n in (61, 40, 300))
    np.testing.assert_array_equal(out.prediction.values[covered], source[covered])
    assert {p.name for p in tmp_path.glob("*o*") if "closed" not in p.name} == {"o"}


def expected_cover(n, size=10, stride=4):
    starts = {*range(0, n - size + 1, stride), n - size}
    seen = np.zeros((n, n), bool)
    for s in starts:
        seen[s : s + size, s : s + size] = True
    return seen.sum()


def test_close__waits_for_all_ranks(tmp_path):
    writers = [writer_of(loader_of(rank=r, world_size=2), tmp_path / "o") for r in range(2)]
    for w in writers:
        for batch in w.loader:
            w.write(batch, batch["count"])
    assert writers[1].close() is None
    assert not (tmp_path / "o").exists()
    again = writer_of(loader_of(rank=1, world_size=2), tmp_path / "o")  # it is not done after all
    assert writers[0].close() is None
    assert again.close().attrs["n_missing"] == 0
    for w in writers:
        with pytest.raises(StateError, match="is closed; make another one"):
            w.write({}, 0)


def test_fork__each_process_has_a_file_of_its_own(tmp_path):
    loader = loader_of()
    w = pickle.loads(pickle.dumps(writer_of(loader, tmp_path / "o")))
    w.write(loader[0], loader[0]["count"])

    def child():
        batch = loader.samples(np.arange(3, len(loader.plan.windows)))
        w.write(batch, batch["count"])

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert len(list((tmp_path / ".o.predictions").rglob("*.float64.10x10"))) == 2
    assert len(w.missing) == 0
    covered = (out := w.close()).coverage.values > 0
    np.testing.assert_array_equal(out.prediction.values[covered], contact_map()[covered])


@pytest.mark.parametrize("margin", [0, 2])
@pytest.mark.parametrize("factor", [1, 4])
def test_margin_and_factor__predictions_of_models_that_crop_and_pool(margin, factor, tmp_path):
    # windows of 16 + 2 margins, their inner part at multiples of 4 from the chromosome's start
    ds = contacts(chroms=(62, 44))
    if margin:
        keep = np.r_[2:62, 64:106]
        ds = ds.isel(bin1=keep, bin2=keep)
    shape = diagonal(size=16 + 2 * margin, stride=8)
    loader = xl.Loader(ds, windows=shape, batch_size=1, remainder="drop")
    n = 16 // factor
    inner = slice(margin, 16 + margin)
    w = writer_of(loader, tmp_path / "o", margin=margin, factor=factor)
    for batch in loader:
        window = batch["count"].values[:, inner, inner]
        w.write(batch, window.reshape(-1, n, factor, n, factor).sum(axis=(2, 4)))
    out = w.close()
    number = np.concatenate([np.arange(k) // factor for k in (62, 44)])
    number[62:] += number[61] + 1
    one = np.eye(number[-1] + 1, dtype=int)[number]
    coarse = one.T @ contact_map(106) @ one
    if margin:
        kept = np.unique(number[keep]) if factor > 1 else keep
        coarse = coarse[np.ix_(kept, kept)]
    covered = out.coverage.values > 0
    assert covered.sum() > 100
    np.testing.assert_array_equal(out.prediction.values[covered], coarse[covered])
    assert out.attrs["binsize"] == BIN * factor
    if not margin:
        lengths = (out.end1 - out.start1).values
        assert out.start1.values.tolist()[:3] == [0, BIN * factor, 2 * BIN * factor]
        assert lengths[15 if factor == 4 else 61] == BIN * (2 if factor == 4 else 1)


@pytest.mark.parametrize("tensors", [False, True])
def test_flipped_windows__are_turned_back(tensors, tmp_path):
    loader = loader_of(transform=xl.transforms.flip())
    w = writer_of(loader, tmp_path / "o", symmetric=False)
    seen = []
    for batch in loader:
        seen += batch.flipped.values.tolist()
        w.write(xt.to_tensors(batch, loader) if tensors else batch, batch["count"])
    assert 0 < sum(seen) < len(seen)
    covered = (out := w.close()).coverage.values > 0
    np.testing.assert_array_equal(out.prediction.values[covered], contact_map()[covered])


@pytest.mark.parametrize(
    ("margin", "factor", "transform"),
    [
        (2, 1, xl.transforms.crop(2)),
        (0, 2, xl.transforms.coarsen(2)),
        (1, 2, xl.transforms.compose(xl.transforms.crop(1), xl.transforms.coarsen(2))),
        (2, 1, xl.transforms.compose(xl.transforms.flip(), xl.transforms.crop(2))),
    ],
    ids=["crop", "coarsen", "both", "flip"],
)
def test_windows_that_transforms_crop_and_pool__have_their_places(
    margin, factor, transform, tmp_path
):
    ds = contacts().isel(bin1=slice(4 - margin, 44), bin2=slice(4 - margin, 44))
    shape = diagonal(size=8 + 2 * margin, stride=4)
    loader = xl.Loader(ds, windows=shape, batch_size=1, remainder="drop", transform=transform)
    w = writer_of(loader, tmp_path / "o", margin=margin, factor=factor)
    for batch in loader:
        w.write(batch, batch.start1.values[:, :, None] + 7.0 * batch.start2.values[:, None, :])
    out = w.close()
    start = out.start1.values
    values = start[:, None] + 7.0 * start[None]
    covered = out.coverage.values > 0
    assert covered.sum() > 100 / factor
    np.testing.assert_array_equal(
        out.prediction.values[covered], ((values + values.T) / 2)[covered]
    )
    other = xl.Loader(
        ds, windows=diagonal(size=8 + 2 * margin, stride=5), batch_size=1, remainder="drop"
    )
    with pytest.raises(StateError, match="the batch is of another loader"):
        writer_of(loader, tmp_path / "p", margin=margin, factor=factor).write(
            batch := other[1], np.zeros((batch.sizes["sample"], 8 // factor, 8 // factor))
        )


def test_cells__predictions_in_order_with_their_labels(tmp_path):
    loader = xl.Loader(cells(), batch_size=8, shuffle=True, variables=["X"], remainder="pad")
    source = cells().X.values @ np.random.default_rng(0).normal(size=(17, 3))
    w = writer_of(loader, tmp_path / "o")
    for batch in loader:
        if 5 not in batch.sample_id.values:
            w.write(batch, source[batch.sample_id.values].astype("float32"))
    gone = w.missing
    assert 5 in gone
    with pytest.warns(XloaderWarning, match=f"{len(gone)} of 61 samples .*cell 'c"):
        out = w.close()
    assert out.prediction.dims == ("cell", "prediction_dim")
    assert out.prediction.dtype == np.float32
    np.testing.assert_array_equal(out.coverage, ~np.isin(np.arange(61), gone))
    wanted = np.where(np.isin(np.arange(61), gone)[:, None], np.nan, source)
    np.testing.assert_array_equal(out.prediction, wanted.astype("float32"))
    for name in ("cell", "cell_type", "depth", "row"):
        np.testing.assert_array_equal(out[name], loader.ds[name])
    assert set(out.sizes) == {"cell", "prediction_dim"}


LOADERS = {
    "other": lambda: loader_of(contacts(chroms=(50, 51)), windows=diagonal(size=10, stride=5)),
    "more": lambda: loader_of(windows=diagonal(size=10, stride=1)),
}


@pytest.mark.parametrize(
    ("batch", "values", "error", "message"),
    [
        (None, np.zeros((3, 9, 9)), SchemaError, r"shape \(3, 9, 9\).*\(3, 10, 10\)"),
        (None, np.zeros((3, 1, 10, 10)), SchemaError, "drop dimensions of channels"),
        (None, np.zeros((2, 10, 10)), SchemaError, r"shape \(2, 10, 10\)"),
        (None, np.full((3, 10, 10), "a"), SchemaError, "predictions are <U1; give real numbers"),
        (None, np.zeros((3, 10, 10), complex), SchemaError, "complex128; give real numbers"),
        ({"x": 1}, np.zeros((3, 10, 10)), SchemaError, r"no `sample_id`.*it has \['x'\]"),
        ({"sample_id": [0, 99]}, np.zeros((2, 10, 10)), StateError, "samples 0 to 99 of 23; the batch"),
        ({"sample_id": [-1]}, np.zeros((1, 10, 10)), StateError, "samples -1 to -1 of 23"),
        ("other", np.zeros((3, 10, 10)), StateError, r"sample 1 .*begins at bin1 5.*chr1:4,000-14,000"),
        ("more", np.zeros((3, 10, 10)), StateError, "sample 1 .*begins at bin1 1"),
    ],
)  # fmt: skip
def test_write__refuses_what_has_no_place(batch, values, error, message, tmp_path):
    w = writer_of(loader_of(), tmp_path / "o")
    batch = LOADERS[batch]()[0] if isinstance(batch, str) else batch or loader_of()[0]
    with pytest.raises(error, match=message):
        w.write(batch, values)
    assert len(w.missing) == 23
    with pytest.raises(PlanError, match="no prediction was written"):
        w.close()
    good = loader_of()[0]
    w.write(good, good["count"])
    with pytest.raises(SchemaError, match="predictions are .*float32 .* before were .*float64"):
        w.write(good, good["count"].astype("float32"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": "round"}, PlanError, r"'round' are unknown; choose one of \['uniform', 'triangular'\]"),
        ({"weights": np.ones((3, 3))}, PlanError, r"shape \(3, 3\), and predictions of \(10, 10\)"),
        ({"weights": np.zeros((10, 10))}, PlanError, "not all 0"),
        ({"weights": np.full((10, 10), np.nan)}, PlanError, "must be finite"),
        ({"weights": np.arange(100.0).reshape(10, 10)}, PlanError, "symmetric=False"),
        ({"margin": 5}, PlanError, "choose margin and factor"),
        ({"factor": 3}, PlanError, "no whole bins of 3"),
        ({"factor": 5}, PlanError, "do not begin at a whole bin of 5"),
    ],
)  # fmt: skip
def test_options__are_refused_at_once(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        writer_of(loader_of(), tmp_path / "o", **options)
    assert not list(tmp_path.iterdir())


def test_sources__that_have_no_map(tmp_path):
    with pytest.raises(SchemaError, match=r"a Dataset is no xl\.Loader"):
        writer_of(contacts(), tmp_path / "o")
    wide = xl.Loader(cells(), batch_size=2, input_dims={"cell": 4}, variables=["X"])
    with pytest.raises(SchemaError, match="have no place"):
        writer_of(wide, tmp_path / "o")
    rows = xl.Loader(cells(), batch_size=2, variables=["X"])
    with pytest.raises(PlanError, match="about contact windows"):
        writer_of(rows, tmp_path / "o", margin=2)
    oblong = xl.Loader(contacts(), batch_size=2, input_dims={"bin1": 4, "bin2": 8})
    with pytest.raises(PlanError, match="needs square windows"):
        writer_of(oblong, tmp_path / "o")
    w = writer_of(oblong, tmp_path / "o", symmetric=False)
    for batch in oblong:
        w.write(batch, batch["count"])
    out = w.close()
    covered = out.coverage.values > 0
    assert covered.sum() == 61**2 + 40**2
    np.testing.assert_array_equal(out.prediction.values[covered], contact_map()[covered])


def test_place__what_is_there_is_not_replaced_by_chance(tmp_path):
    loader = loader_of()
    w = writer_of(loader, tmp_path / "o")
    w.write(loader[0], loader[0]["count"])
    other = loader_of(windows=diagonal(size=10, stride=5))
    with pytest.raises(StateError, match="predictions of other windows.*remove that folder"):
        writer_of(other, tmp_path / "o")
    with pytest.raises(StateError, match="other options"):
        writer_of(loader, tmp_path / "o", weights="triangular")
    with pytest.warns(XloaderWarning, match=r"20 of 23 samples were not predicted: samples \[3, 4"):
        first = w.close().prediction.values
    with pytest.raises(ReadError, match="exists; pass overwrite=True"):
        writer_of(other, tmp_path / "o")
    w = writer_of(other, tmp_path / "o", overwrite=True)
    np.testing.assert_array_equal(xl.open_contacts(tmp_path / "o").prediction, first)
    for batch in other:
        w.write(batch, batch["count"] + 1)
    second = w.close()
    assert second.attrs["n_missing"] == 0
    assert second.prediction.values[0, 0] == first[0, 0] + 1


def test_disk__that_is_full_loses_nothing(tmp_path, monkeypatch):
    loader = loader_of()
    w = writer_of(loader, tmp_path / "o")
    w.write(loader[0], loader[0]["count"])
    write, room = os.write, [1000]

    def full(file, data):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        ReadError, match="3 predictions .*No space left on device; what was written"
    ):
        w.write(loader[1], loader[1]["count"])
    monkeypatch.undo()
    assert len(w.missing) == 20
    for k in range(1, len(loader)):
        w.write(loader[k], loader[k]["count"])
    out = w.close()
    covered = out.coverage.values > 0
    np.testing.assert_array_equal(out.prediction.values[covered], contact_map()[covered])


def test_disk__that_cannot_be_written_is_told(tmp_path):
    loader = loader_of()
    w = writer_of(loader, tmp_path / "o")
    shutil.rmtree(tmp_path / ".o.predictions")
    with pytest.raises(ReadError, match="cannot write predictions to .*No such file or directory"):
        w.write(loader[0], loader[0]["count"])
    with pytest.raises(ReadError, match="nobody may remove it before all ranks are closed"):
        w.close()


def test_close__that_fails_may_be_called_again(tmp_path, monkeypatch):
    loader = loader_of()
    w = writer_of(loader, tmp_path / "o")
    for batch in loader:
        w.write(batch, batch["count"])

    def full(shard):
        raise OSError(errno.ENOSPC, "No space left on device", str(shard.path))

    monkeypatch.setattr("xloader.store.shard_writer.Shard.close", full)
    with pytest.raises(ReadError, match=r"No space left on device.*make room") as told:
        w.close()
    assert "what was predicted is kept in" in told.value.__notes__[0]
    assert not (tmp_path / "o").exists()
    monkeypatch.undo()
    assert w.close().attrs["n_missing"] == 0


def test_damage__names_the_sample(tmp_path):
    loader = loader_of()
    w = writer_of(loader, tmp_path / "o")
    for batch in loader:
        w.write(batch, batch["count"])
    (part,) = (tmp_path / ".o.predictions").rglob("*.float64.10x10")
    raw = bytearray(part.read_bytes())
    raw[5 * 816 + 400] ^= 1
    part.write_bytes(raw)
    with pytest.raises(ReadError, match="sample 5 in .* does not match its checksum"):
        w.close()
    batch = loader.samples([5])
    again = writer_of(loader, tmp_path / "o")
    again.write(batch, batch["count"])
    covered = (out := again.close()).coverage.values > 0
    np.testing.assert_array_equal(out.prediction.values[covered], contact_map()[covered])


def test_memory__does_not_grow_with_the_genome(tmp_path):
    peaks = []
    for n in (1500, 9000):
        loader = xl.Loader(banded(n), windows=diagonal(size=64, stride=32), batch_size=16)
        w = writer_of(loader, tmp_path / str(n), memory_budget="120MB")
        tracemalloc.start()
        for ids in np.array_split(np.arange(len(loader.plan.windows)), 40):
            w.write({"sample_id": ids}, np.ones((len(ids), 64, 64), np.float32))
        out = w.close()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert out.coverage.isel(bin1=slice(40, 50), bin2=slice(40, 50)).values.max() == 2
    # labels and places of windows grow; 324 MB of map and 4.6 MB of windows do not come to memory
    assert peaks[1] - peaks[0] < 400 * (9000 - 1500)


def banded(n):
    """Return labels alone: what is predicted needs no counts."""
    start = np.arange(n) * BIN
    coords = {"bin1": start // BIN, "bin2": start // BIN}
    for side in "12":
        coords |= {f"chrom{side}": (f"bin{side}", np.full(n, "chr1", object))}
        coords |= {f"start{side}": (f"bin{side}", start)}
        coords |= {f"end{side}": (f"bin{side}", start + BIN)}
    empty = xr.Variable(("bin1",), np.zeros(n))
    return xr.Dataset({"gc": empty}, coords, {"binsize": BIN, "resolution": BIN})


def test_tiles__each_window_is_read_once_per_row_of_tiles(tmp_path, monkeypatch):
    loader = loader_of(contacts(chroms=(400,)), windows=diagonal(size=30, stride=10))
    w = writer_of(loader, tmp_path / "o")
    for batch in loader:
        w.write(batch, batch["count"])
    rows = []
    whole = AssembledTiles._assemble
    monkeypatch.setattr(
        AssembledTiles,
        "_assemble",
        lambda self, row, columns: rows.append((self.coverage, row)) or whole(self, row, columns),
    )
    w.close()
    assert sorted(rows) == [(kind, row) for kind in (False, True) for row in range(4)]


def test_docs__the_page_prints_what_it_shows(tmp_path, monkeypatch):
    page = Path(__file__).parent.parent / "docs" / "predictions.md"
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert (failed, tried > 5) == (0, True)
