"""The reading engine as a whole: fused transforms, memory used again, rows of unequal length, fallbacks."""

import gc
import itertools
import pickle
import threading

import numpy as np
import pytest
import scipy.sparse
import xarray as xr
import zarr

import xloader as xl
from tests.doubles import Rows, Tiles, cells, contact_map, contacts, counts
from tests.sources import sparse, write_h5ad
from xloader import transforms as T
from xloader.buffers import Buffers
from xloader.contract import fusion_of
from xloader.kernels import decode
from xloader.store import shards

DIAGONAL = xl.windows.diagonal(size=20, stride=3)
GRID = xl.windows.grid(size=20, stride=9, max_distance=40)


def weighted(array, *, divisive=False):
    """Return a contact map with balancing vectors of both kinds."""
    ds = contacts(array)
    rng = np.random.default_rng(3)
    vector = rng.uniform(0.2, 3, ds.sizes["bin1"])
    vector[[5, 40]] = np.nan
    vector[7] = 0 if divisive else np.nan
    attrs = {"divisive": divisive}
    return ds.assign_coords(
        {f"w{s}": (f"bin{s}", vector, attrs) for s in "12"},
    )


def unfused(transform):
    """Return the same transform as a function of which nothing is known."""

    def plain(batch):
        return transform(batch)

    return plain


TRANSFORMS = {
    "balance": T.balance("w"),
    "both": T.compose(T.balance("w"), T.log1p("count")),
    "further": T.compose(T.balance("w"), T.log1p("count"), T.fill(0, "count")),
    "clip between": T.compose(T.balance("w"), T.clip(0, 2, "count"), T.log1p("count")),
}


@pytest.mark.parametrize("windows", [DIAGONAL, GRID], ids=["overlapping", "grid"])
@pytest.mark.parametrize("divisive", [False, True], ids=["times", "divided"])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dtype", ["int32", "float32", "float64"])
def test_fused_transforms__equal_the_same_on_the_batch(name, windows, divisive, dtype):
    transform = TRANSFORMS[name]
    ds = weighted(Tiles(contact_map(dtype=dtype)), divisive=divisive)
    options = {"windows": windows, "batch_size": 7, "shuffle": True, "variables": ["count"]}
    fused = xl.Loader(ds, transform=transform, **options)
    plain = xl.Loader(ds, transform=unfused(transform), **options)
    n = 0
    for one, other in zip(fused, plain, strict=True):
        xr.testing.assert_allclose(one, other, rtol=2e-6)
        assert one["count"].dtype == other["count"].dtype
        assert one["count"].attrs == other["count"].attrs
        assert set(one.coords) == set(other.coords)
        n += one.sizes["sample"]
    assert n == len(fused.plan.windows)
    source = fused._source
    assert source is not None
    assert source.fused == (dtype != "float64")


def test_fused_transforms__after_a_selection_and_with_other_factors_on_each_side():
    ds = weighted(Tiles(contact_map()))
    ds["w2"] = ds.w2 * np.linspace(1, 2, ds.sizes["bin2"])
    order = np.r_[61:101, 0:61]
    for selected in (
        ds,
        ds.isel(bin1=order, bin2=order),
        ds.isel(bin1=slice(3, 55), bin2=slice(3, 55)),
    ):
        options = {"windows": DIAGONAL, "batch_size": 5}
        fused = xl.Loader(selected, transform=TRANSFORMS["both"], **options)
        plain = xl.Loader(selected, transform=unfused(TRANSFORMS["both"]), **options)
        for one, other in zip(fused, plain, strict=True):
            xr.testing.assert_allclose(one, other, rtol=2e-6)


def test_fusion__is_what_the_first_transforms_do_to_one_variable():
    fusion, rest = fusion_of(T.compose(T.balance("KR"), T.log1p("count")))
    assert (fusion.variable, fusion.weight, fusion.log, rest) == ("count", "KR", True, None)
    fusion, rest = fusion_of(T.compose(T.balance(), T.log1p("other"), T.log1p("count")))
    assert (fusion.log, len(rest.transforms)) == (False, 2)
    fusion, rest = fusion_of(T.log1p("count"))
    assert (fusion.weight, fusion.log, rest) == (None, True, None)
    for whole in (T.log1p("a", "b"), T.compose(), T.clip(0, 1, "count"), lambda b: b, None):
        assert fusion_of(whole) == (None, whole)
    thinned = T.compose(T.thin(0.5), T.balance())
    assert fusion_of(thinned) == (None, thinned)


def test_fused_transforms__missing_vector_is_told_as_ever():
    loader = xl.Loader(contacts(Tiles(contact_map())), windows=DIAGONAL, batch_size=4,
                       transform=T.balance("VC"))  # fmt: skip
    with pytest.raises(ValueError, match="no balancing vector 'VC' here"):
        loader[0]


def lengths_of(name, rng):
    """Return how many values each of 400 rows of 3,000 columns has."""
    lengths = rng.poisson(20, 400)
    if name == "one long":
        lengths[137] = 2_000  # a hundred times the mean
    elif name == "many empty":
        lengths[rng.permutation(400)[:350]] = 0
    elif name == "all empty":
        lengths[:] = 0
    elif name == "growing":
        lengths = np.linspace(0, 600, 400).astype(int)
    return lengths


@pytest.mark.parametrize("name", ["even", "one long", "many empty", "all empty", "growing"])
@pytest.mark.parametrize("dtype", ["float32", "float64"], ids=["counts", "fractions"])
def test_store__rows_of_unequal_length_are_not_padded_to_the_longest(name, dtype, tmp_path):
    rng = np.random.default_rng(1)
    x = np.zeros((400, 3_000), dtype)
    for row, n in zip(x, lengths_of(name, rng), strict=True):
        row[rng.permutation(3_000)[:n]] = rng.integers(1, 9, n) / (1 if dtype == "float32" else 3)
    matrix = scipy.sparse.csr_matrix(x)
    source = write_h5ad(tmp_path / "a.h5ad", matrix)
    ds = xl.convert(source, tmp_path / "s", progress=False)
    np.testing.assert_array_equal(ds.X.values, x)
    values = zarr.open_array(str(tmp_path / "s" / "X" / "values"), mode="r")
    assert values.size <= 2 * matrix.nnz + 2 * values.shape[1]
    assert values.dtype == ("u1" if dtype == "float32" or name == "all empty" else "f8")
    loader = xl.Loader(ds, batch_size=33, shuffle=True, memory_budget="500kB")
    seen = []
    for batch in loader:
        np.testing.assert_array_equal(batch.X.data.todense(), x[batch.row.values])
        seen.append(batch.row.values)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(400))


def test_batches__of_any_size_are_the_same_samples():
    ds = cells(Rows(counts(n=500, g=30)), n=500, g=30)
    names = ("X", "X_pca", "row", "cell_type", "sample_id")
    whole = next(iter(xl.Loader(ds, batch_size=500, shuffle=True, seed=4)))
    place = np.argsort(whole.sample_id.values)
    for size in (1, 7, 64, 499):
        options = {"shuffle": True, "seed": 4, "memory_budget": "1GB"}
        seen = []
        for batch in xl.Loader(ds, batch_size=size, **options):
            same = place[batch.sample_id.values]
            for name in names:
                given = stored_values(batch[name])
                np.testing.assert_array_equal(given, stored_values(whole[name])[same])
            seen.extend(same.tolist())
        assert sorted(seen) == list(range(500))


def stored_values(array):
    return array.data.todense() if hasattr(array.data, "todense") else array.values


def test_batches__stay_as_they_are_while_others_are_made():
    x = counts(n=4_000, g=300)
    ds = cells(Rows(x, block_rows=64), n=4_000, g=300)
    loader = xl.Loader(ds, batch_size=100, shuffle=True, memory_budget="3MB", variables=["X"])
    assert loader.plan.n_pools(0) > 2
    for epoch in range(2):
        kept = list(loader)
        for batch in kept:
            np.testing.assert_array_equal(batch.X.data.todense(), x[batch.row.values], str(epoch))
        kept[0].X.data.data[:] = -1  # a batch belongs to whoever got it
        np.testing.assert_array_equal(kept[1].X.data.todense(), x[kept[1].row.values])


def test_buffers__are_never_handed_out_twice():
    buffers, held, places = Buffers(), [], set()
    rng = np.random.default_rng(0)
    for k in range(200):
        array = buffers.empty((int(rng.integers(20_000, 60_000)),), np.int64)
        array[:] = k
        part = array[5:50].view(np.uint64) if k % 3 else array.reshape(1, -1)[:, 5:50]
        places.add(array.ctypes.data)
        held.append((k, part))
        del array
        for value, kept in held:
            assert (kept == value).all()
        if rng.random() < 0.6:
            held.pop(int(rng.integers(len(held))))
    assert len(places) < 150  # memory was used again


def test_buffers__from_several_threads():
    buffers, failed = Buffers(), []

    def work(mark):
        for _ in range(200):
            array = buffers.empty((20_000,), np.int64)
            array[:] = mark
            if not (array == mark).all():
                failed.append(mark)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize("codec", ["fast", "small"])
def test_decoding__without_blosc_s_own_symbol_gives_the_same(codec, tmp_path, monkeypatch):
    x = sparse(300, 50)
    ds = xl.convert(
        write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(x)), tmp_path / "s", codec=codec,
        progress=False,
    )  # fmt: skip
    assert decode.functions() is not None
    np.testing.assert_array_equal(ds.X.values, x)
    calls = []
    real = shards._decode_one

    def count(*args, **kwargs):
        calls.append(1)
        real(*args, **kwargs)

    monkeypatch.setattr(shards, "_decode_one", count)
    monkeypatch.setattr(shards, "_functions", lambda: None)
    np.testing.assert_array_equal(xl.open_cells(tmp_path / "s").X.values, x)
    assert calls


def test_functions__is_refused_where_it_does_something_else(monkeypatch):
    for result in (None, "missing", "wrong"):
        decode.functions.cache_clear()
        with monkeypatch.context() as m:
            if result == "missing":
                m.setattr(decode.ctypes, "CDLL", lambda _: object())
            if result == "wrong":
                m.setattr(decode.blosc, "decompress", lambda _: bytes(10_000))
            assert (decode.functions() is None) == (result is not None)
    decode.functions.cache_clear()


def test_loader__leaves_no_threads_when_it_is_left():
    def alive():
        return {t.name for t in threading.enumerate() if t.name.startswith("xloader-read")}

    ds = cells(Rows(counts(n=900, g=20)), n=900, g=20)
    loader = xl.Loader(ds, batch_size=10, shuffle=True, memory_budget="60kB")
    assert loader.plan.n_pools(0) > 1
    iterator = iter(loader)
    next(iterator)
    assert alive()
    del iterator
    gc.collect()
    assert not alive()
    again = pickle.loads(pickle.dumps(loader))
    np.testing.assert_array_equal(again[3].row.values, loader[3].row.values)


def test_unconverted_files__are_told_once_to_be_slow(monkeypatch):
    monkeypatch.setattr("xloader.read.base.TELL_AFTER", 0.0)
    monkeypatch.setattr("xloader.read.base.TELL_BEYOND", 0)
    for ds, options in (
        (cells(Rows(counts(n=300, g=20)), n=300, g=20), {"memory_budget": "20kB"}),
        (weighted(Tiles(contact_map())), {"windows": DIAGONAL}),
    ):
        loader = xl.Loader(ds, batch_size=10, shuffle=True, **options)
        with pytest.warns(xl.errors.PerformanceWarning, match="xl.convert is read about") as told:
            list(itertools.chain(loader, loader, loader))
        assert len(told) == 1
        assert told[0].filename == __file__


def test_converted_stores__are_not_told_to_be_slow(tmp_path, monkeypatch):
    monkeypatch.setattr("xloader.read.base.TELL_AFTER", 0.0)
    monkeypatch.setattr("xloader.read.base.TELL_BEYOND", 0)
    source = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(sparse(300, 20)))
    ds = xl.convert(source, tmp_path / "s", progress=False)
    assert len(list(xl.Loader(ds, batch_size=10, shuffle=True))) == 30
