"""Counted reads: each stored chunk is decoded once per pool, and labels are made once per batch."""

from collections import Counter

import dask.array
import numpy as np
import numpy.testing as npt
import pytest
import xarray as xr
import zarr
from zarr.storage import LocalStore, LoggingStore

import xloader as xl
from tests.doubles import (
    Dense,
    Rows,
    Tiles,
    assert_equals_naive,
    cells,
    contact_map,
    contacts,
    counts,
    grid,
    plain,
    stored,
)
from xloader.backends.store import StoreRows, StoreTiles
from xloader.schema import lazy

DIAGONAL = xl.windows.diagonal(size=16, stride=5)
GRID = xl.windows.grid(size=16, stride=7)


class Chunks(Dense):
    """A dense array read by whole chunks of rows; `log` holds the first row of each."""

    def __init__(self, values, rows=8):
        super().__init__(values)
        self.rows = rows

    @property
    def unit(self):
        return (self.rows, *self.shape[1:])

    def _raw(self, key):
        wanted = np.atleast_1d(np.arange(self.shape[0])[key[0]])
        self.log += np.unique(wanted // self.rows).tolist()
        return self.values[key]


def pools_of(loader, epoch=0):
    return [loader.plan.pool_ids(epoch, p) for p in range(loader.plan.n_pools)]


def read_log(loader, log, epoch=0):
    """Serve an epoch and return what was decoded, in order."""
    log.clear()
    for _ in loader.batches(epoch, range(len(loader))):
        pass
    return list(log)


def assert_once_per_pool(decoded, needed_by_pool):
    """Compare what was decoded with what each pool touches, each once."""
    assert Counter(decoded) == Counter(c for needed in needed_by_pool for c in set(needed))


# --- stored sparse rows

SELECTIONS = {
    "all": lambda ds: ds,
    "permuted": lambda ds: ds.isel(cell=np.random.default_rng(0).permutation(61)[:45]),
    "genes": lambda ds: ds.isel(gene=[3, 1, 8]),
    "slice": lambda ds: ds.isel(cell=slice(5, 50)),
}


@pytest.mark.parametrize("select", sorted(SELECTIONS))
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("budget", [1_600, "1GB"])
def test_rows__each_block_is_decoded_once_per_pool(select, chunked, budget):
    array = Rows(counts(), block_rows=8)
    ds = cells(array)[["X"]]
    ds = SELECTIONS[select](ds.chunk({"cell": 20}) if chunked else ds)
    row = ds.row.values
    loader = xl.Loader(ds, batch_size=6, shuffle=True, memory_budget=budget)
    assert array.log == []  # planning reads nothing
    assert (loader.plan.n_pools == 1) == (budget == "1GB")
    decoded = read_log(loader, array.log)
    assert_once_per_pool(decoded, [row[ids] // 8 for ids in pools_of(loader)])
    # shuffled blocks are whole chunks: none is decoded twice in an epoch
    assert max(Counter(decoded).values()) == 1


@pytest.mark.parametrize("n", [61, 64, 57, 9])
def test_rows__in_order_are_decoded_once_per_epoch(n):
    array = Rows(counts(n), block_rows=8)
    ds = cells(array, n=n)[["X"]]
    loader = xl.Loader(ds, batch_size=5, memory_budget=1_600)
    assert sorted(read_log(loader, array.log)) == list(range(-(-n // 8)))


def test_rows__that_all_fit_are_read_once_for_all_epochs():
    array = Rows(counts())
    loader = xl.Loader(cells(array), batch_size=6, shuffle=True)
    for epoch in range(3):
        read_log(loader, [], epoch)
    assert sorted(array.log) == list(range(8))


def test_rows__single_batches_reuse_the_pools_in_memory():
    array = Rows(counts())
    loader = xl.Loader(cells(array)[["X"]], batch_size=4, shuffle=True, memory_budget=1_600)
    for k in range(len(loader)):
        loader[k]
    assert sorted(array.log) == list(range(8))


# --- stored tiles


def touched_tiles(loader, ds, ids, tile=8):
    """Return the upper tiles that windows touch."""
    size = loader.plan.windows.size
    found = set()
    for i, j in loader.plan.windows.starts_of(ids).tolist():
        rows = np.unique(ds.bin1.values[i : i + size[0]] // tile).tolist()
        columns = np.unique(ds.bin2.values[j : j + size[1]] // tile).tolist()
        found |= {(min(a, b), max(a, b)) for a in rows for b in columns}
    return found


@pytest.mark.parametrize("windows", [DIAGONAL, GRID], ids=["diagonal", "grid"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("budget", [180_000, "1GB"])
@pytest.mark.parametrize("select", ["all", "inside"])
def test_tiles__each_is_decoded_once_per_pool(windows, chunked, budget, select):
    array = Tiles(contact_map(400), tile=8)
    ds = contacts(array, chroms=(250, 150))
    ds = ds.chunk({"bin1": 100, "bin2": 100}) if chunked else ds
    if select == "inside":
        keep = np.r_[20:120, 130:380]
        ds = ds.isel(bin1=keep, bin2=keep)
    loader = xl.Loader(ds, batch_size=16, windows=windows, shuffle=True, memory_budget=budget)
    decoded = read_log(loader, array.log)
    assert_once_per_pool(decoded, [touched_tiles(loader, ds, ids) for ids in pools_of(loader)])
    if budget == "1GB":
        assert max(Counter(decoded).values()) == 1
    elif windows is GRID:
        assert loader.plan.n_pools > 1


# --- plain zarr


def counting_store(path):
    return LoggingStore(LocalStore(path, read_only=True), log_level="ERROR")


def chunk_gets(store, monkeypatch):
    """Count reads of stored chunks by key."""
    found = Counter()
    get = LocalStore.get

    async def counted(self, key, *args, **kwargs):
        if "/c/" in key:
            found[key] += 1
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "get", counted)
    return found


@pytest.fixture
def zarr_gets(monkeypatch):
    """Count reads of stored chunks by key, labels left out."""
    found = Counter()
    get = LocalStore.get

    async def counted(self, key, *args, **kwargs):
        if key.startswith(("X/c/", "count/c/", "v/c/")):
            found[key] += 1
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "get", counted)
    return found


@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize("budget", [3_000, "1GB"])
@pytest.mark.parametrize("select", ["all", "slice", "permuted"])
def test_zarr__each_chunk_is_decoded_once_per_pool(tmp_path, zarr_gets, chunks, budget, select):
    path = stored(plain(cells()[["X"]]), tmp_path / "x.zarr", {"cell": 8, "gene": 10})
    ds = xr.open_dataset(path, engine="zarr", chunks=chunks, consolidated=False)
    row = SELECTIONS[select](cells()).row.values
    ds = SELECTIONS[select](ds)
    loader = xl.Loader(ds[["X"]], batch_size=6, shuffle=True, memory_budget=budget)
    zarr_gets.clear()
    for _ in loader:
        pass
    expected = Counter(
        f"X/c/{c}/{g}" for ids in pools_of(loader) for c in set(row[ids] // 8) for g in (0, 1)
    )
    assert zarr_gets == expected
    assert (loader.plan.n_pools > 1) == (budget != "1GB")
    if select != "permuted" or budget == "1GB":
        assert max(zarr_gets.values()) == 1
