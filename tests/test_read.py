"""Counted reads: each stored chunk is decoded once per pool, and labels are made once per batch."""

from collections import Counter

import dask.array
import numpy as np
import numpy.testing as npt
import pytest
import xarray as xr
from zarr.storage import LocalStore

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
from xloader.schema import lazy

DIAGONAL = xl.windows.diagonal(size=16, stride=5)
GRID = xl.windows.grid(size=16, stride=7)


def pools_of(loader, epoch=0):
    return [loader.plan.pool_ids(epoch, p) for p in range(loader.plan.n_pools(epoch))]


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
@pytest.mark.parametrize("budget", [4_000, "1GB"])
def test_rows__each_block_is_decoded_once_per_pool(select, chunked, budget):
    array = Rows(counts(), block_rows=8)
    ds = cells(array)[["X"]].drop_vars(["depth", "cell_type"])
    ds = SELECTIONS[select](ds.chunk({"cell": 20}) if chunked else ds)
    row = ds.row.values
    loader = xl.Loader(ds, batch_size=6, shuffle=True, memory_budget=budget)
    assert array.log == []  # planning reads nothing
    assert (loader.plan.n_pools(0) == 1) == (budget == "1GB")
    decoded = read_log(loader, array.log)
    assert_once_per_pool(decoded, [row[ids] // 8 for ids in pools_of(loader)])
    # shuffled blocks are whole chunks: none is decoded twice in an epoch
    assert max(Counter(decoded).values()) == 1


@pytest.mark.parametrize("n", [61, 64, 57, 9])
def test_rows__in_order_are_decoded_once_per_epoch(n):
    array = Rows(counts(n), block_rows=8)
    ds = cells(array, n=n)[["X"]]
    loader = xl.Loader(ds, batch_size=5, memory_budget=3_800)
    assert sorted(read_log(loader, array.log)) == list(range(-(-n // 8)))


def test_rows__that_all_fit_are_read_once_for_all_epochs():
    array = Rows(counts())
    loader = xl.Loader(cells(array), batch_size=6, shuffle=True)
    for epoch in range(3):
        read_log(loader, [], epoch)
    assert sorted(array.log) == list(range(8))


def test_rows__single_batches_reuse_the_pools_in_memory():
    array = Rows(counts())
    loader = xl.Loader(cells(array)[["X"]], batch_size=4, shuffle=True, memory_budget=3_800)
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
@pytest.mark.parametrize("budget", [275_000, "1GB"])
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
        assert loader.plan.n_pools(0) > 1


# --- plain zarr


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
@pytest.mark.parametrize("budget", [4_800, "1GB"])
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
    assert (loader.plan.n_pools(0) > 1) == (budget != "1GB")
    assert max(zarr_gets.values()) == 1 or (chunks == {} and select == "permuted")


@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize("select", [slice(None), slice(7, 90), np.r_[3:60, 70:99]], ids=str)
def test_zarr__each_chunk_of_a_map_is_decoded_once(tmp_path, zarr_gets, chunks, select):
    path = stored(plain(contacts()), tmp_path / "map.zarr", {"bin1": 16, "bin2": 24})
    ds = xr.open_dataset(path, engine="zarr", chunks=chunks, consolidated=False)
    ds = ds.isel(bin1=select, bin2=select)
    loader = xl.Loader(ds, batch_size=8, windows=xl.windows.grid(size=12, stride=5), shuffle=True)
    zarr_gets.clear()
    for _ in loader:
        pass
    needed = set()
    for i, j in loader.plan.windows.starts.tolist():
        rows, columns = ds.bin1.values[i : i + 12] // 16, ds.bin2.values[j : j + 12] // 24
        needed |= {f"count/c/{a}/{b}" for a in set(rows) for b in set(columns)}
    if chunks is None:
        assert zarr_gets == Counter(needed)
    else:  # dask joins what lies on both sides of a hole into one block
        assert max(zarr_gets.values()) == 1
        assert needed <= set(zarr_gets)


def test_zarr__scattered_genes_and_dropped_dimensions_read_right(tmp_path, zarr_gets):
    path = stored(grid(), tmp_path / "grid.zarr", {"time": 2, "lat": 5, "lon": 8})
    ds = xr.open_dataset(path, engine="zarr", chunks=None, consolidated=False)
    for chosen in (
        ds.isel(lon=[30, 2, 17], lat=slice(3, 20)),
        ds.isel(time=1).isel(lat=slice(1, None)),
        ds.transpose("lon", "lat", "time").isel(lat=slice(2, None)),
        ds.isel(lat=slice(None, None, -1)),
        ds.isel(lat=slice(1, None, 2)),
        ds.isel(lat=np.random.default_rng(0).permutation(23)),
    ):
        loader = xl.Loader(chosen, batch_size=3, input_dims={"lat": 4}, shuffle=True)
        assert_equals_naive(loader, chosen, *loader)
        rows = xl.Loader(chosen, batch_size=3, input_dims={"lat": 1}, shuffle=True)
        zarr_gets.clear()
        first = list(rows)
        if chosen.sizes["lon"] == 3:
            assert max(zarr_gets.values()) == 1
        assert_equals_naive(rows, chosen, *first)


# --- dask


@pytest.mark.parametrize("budget", [152_000, "1GB"])
def test_dask__each_block_is_computed_once_per_pool(budget):
    computed = []

    def block(values, block_info=None):
        computed.append(tuple(block_info[0]["chunk-location"]))
        return values + 1

    source = dask.array.from_array(grid(160).v.values, chunks=(4, 5, 8))
    mapped = dask.array.map_blocks(block, source, dtype=source.dtype, meta=np.empty((0, 0, 0)))
    ds = grid(160)[["v"]].assign(v=(("time", "lat", "lon"), mapped))
    loader = xl.Loader(
        ds,
        batch_size=3,
        input_dims={"lat": 6, "lon": 4},
        input_overlap={"lat": 4},
        shuffle=True,
        memory_budget=budget,
    )
    computed.clear()
    batches = list(loader)
    expected = Counter()
    for ids in pools_of(loader):
        touched = {
            (0, a // 5, b // 8)
            for i, j in loader.plan.windows.starts_of(ids).tolist()
            for a in range(i, i + 6)
            for b in range(j, j + 4)
        }
        expected.update(touched)
    assert Counter(computed) == expected
    assert (loader.plan.n_pools(0) > 1) == (budget != "1GB")
    assert_equals_naive(loader, ds, *batches)


def test_dask__a_shared_chunk_beneath_several_blocks_is_read_once():
    array = Dense(counts(64))
    ds = xr.Dataset({"X": lazy(("cell", "gene"), array)}).chunk({"cell": 16}) + 0.5
    permuted = ds.isel(cell=np.random.default_rng(0).permutation(64))
    with pytest.warns(xl.errors.PerformanceWarning, match="is an expression"):
        loader = xl.Loader(permuted, batch_size=8, shuffle=True)
    array.log.clear()
    list(loader)
    assert len(array.log) == 4


# --- labels


@pytest.mark.parametrize(
    ("ds", "options"),
    [
        (cells(), {}),
        (cells(Rows(counts())), {"transform": xl.transforms.log1p("X")}),
        (contacts(), {"windows": DIAGONAL}),
        (grid(), {"input_dims": {"lat": 5}}),
    ],
    ids=["cells", "transformed", "windows", "grid"],
)
def test_batches__are_labelled_once_each_never_once_per_window(ds, options, monkeypatch):
    loader = xl.Loader(ds, batch_size=4, **options)
    made, built, init, direct = [], [], xr.Dataset.__init__, xr.Dataset._construct_direct

    def counted(self, *args, **kwargs):
        built.append(self)
        init(self, *args, **kwargs)

    def counted_too(*args, **kwargs):
        made.append(1)
        return direct(*args, **kwargs)

    def refuse(*_, **__):
        msg = "a batch is cut by integers, never by isel"
        raise AssertionError(msg)

    loader[0]  # the first is made twice, in both ways
    monkeypatch.setattr(xr.Dataset, "__init__", counted)
    monkeypatch.setattr(xr.Dataset, "isel", refuse)
    if "transform" not in options:  # which makes another one
        monkeypatch.setattr(xr.Dataset, "_construct_direct", counted_too)
    n = sum(1 for _ in loader)
    assert n == len(loader) > 1
    assert not built
    assert len(made) in {0, n}


def test_reordered_chromosomes__are_read_from_tiles():
    array = Tiles(contact_map())
    ds = contacts(array).chunk({"bin1": 50, "bin2": 50})
    order = np.r_[61:101, 0:61]
    swapped = ds.isel(bin1=order, bin2=order)
    loader = xl.Loader(swapped, batch_size=4, windows=xl.windows.diagonal(size=10))
    decoded = read_log(loader, array.log)
    assert max(Counter(decoded).values()) == 1
    full = contact_map()[np.ix_(order, order)]
    for batch in loader:
        for k, (i, j) in enumerate(loader.plan.windows.starts_of(batch.sample_id.values)):
            npt.assert_array_equal(batch["count"][k], full[i : i + 10, j : j + 10])
