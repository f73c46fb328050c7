"""The training store: what goes in comes out, whole or not at all; damage is an error."""

import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import anndata
import numpy as np
import psutil
import pytest
import scipy.sparse
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl
from xloader import trace
from xloader.errors import PlanError, ReadError, SchemaError, XloaderError
from xloader.store import shards
from xloader.store.shards import ShardedArray


def sparse(n_rows, n_columns, seed=0, high=9, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = (rng.random((n_rows, n_columns)) < 0.15) * rng.integers(1, high, (n_rows, n_columns))
    x[rng.random(n_rows) < 0.2] = 0
    return x.astype(dtype)


def write_h5ad(path, x, **kwargs):
    anndata.AnnData(x, **kwargs).write_h5ad(path)
    return path


def stored(variable):
    """Return the stored array beneath a variable."""
    return trace.view(variable.variable).array


@given(data=st.data())
def test_rows__any_ranges_equal_the_matrix(data, tmp_path_factory):
    n = data.draw(st.integers(1, 300))
    wide = data.draw(st.booleans())
    x = sparse(n, 90_000 if wide else 50, seed=n) if n < 80 or not wide else sparse(n, 50, seed=n)
    folder = tmp_path_factory.mktemp("s")
    source = write_h5ad(folder / "a.h5ad", scipy.sparse.csr_matrix(x))
    array = stored(xl.convert(source, folder / "s", progress=False).X)
    edges = data.draw(
        st.lists(st.tuples(st.integers(0, n), st.integers(0, n)), min_size=1, max_size=4)
    )
    starts = np.array([min(e) for e in edges])
    stops = np.array([max(e) for e in edges])
    block = array.read_ranges(starts, stops)
    expected = np.concatenate([x[a:b] for a, b in zip(starts, stops, strict=True)])
    np.testing.assert_array_equal(block.todense(), expected)
    assert block.dtype == np.float32
    np.testing.assert_array_equal(
        array.nnz_of(starts, stops),
        [(x[a:b] != 0).sum() for a, b in zip(starts, stops, strict=True)],
    )


@pytest.mark.parametrize(
    ("high", "factor", "width"),
    [
        (9, 1, np.uint8),
        (300, 1, np.uint16),
        (70_000, 1, np.uint32),
        (9, 0.5, np.float32),
        (9, -1, np.float32),
    ],
)
def test_rows__narrowest_exact_type(high, factor, width, tmp_path):
    x = sparse(130, 40, high=high) * np.float32(factor)
    x[3, 3] = (high - 1) * factor
    ds = xl.convert(
        write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(x)), tmp_path / "s", progress=False
    )
    assert ds.X.dtype == np.float32
    np.testing.assert_array_equal(ds.X.values, x)
    assert zarr.open_array(str(tmp_path / "s" / "X" / "values"), mode="r").dtype == width


def test_store__is_plain_zarr(tmp_path):
    x = sparse(200, 30)
    xl.convert(
        write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(x)), tmp_path / "s", progress=False
    )
    group = zarr.open_group(str(tmp_path / "s"), mode="r")
    values, deltas, indptr = (group[f"X/{k}"][...] for k in ("values", "deltas", "indptr"))
    rebuilt = np.zeros_like(x)
    for row in range(200):
        place = indptr[row] - indptr[row // 64 * 64]
        n = indptr[row + 1] - indptr[row]
        columns = np.cumsum(deltas[row // 64, place : place + n].astype(int))
        rebuilt[row, columns] = values[row // 64, place : place + n]
    np.testing.assert_array_equal(rebuilt, x)
    mcool = xl.simulate.contacts(
        tmp_path / "a.mcool", chromosomes={"c": 3_000_000}, resolutions=(10_000,)
    )
    ds = xl.convert(mcool, tmp_path / "m", progress=False)
    tiles = zarr.open_array(str(tmp_path / "m" / "resolutions" / "10000" / "count"), mode="r")
    assert tiles.chunks == (128, 128)
    np.testing.assert_array_equal(np.triu(tiles[...]), np.triu(ds["count"].values))
    assert (tiles[128:256, :128] == 0).all()  # below the diagonal nothing is written


def test_sharded_array__equals_zarr(tmp_path):
    rng = np.random.default_rng(0)
    for k, (dtype, codec) in enumerate([("u1", "lz4"), (">f8", "zstd"), ("i4", "lz4")]):
        data = rng.integers(0, 9, (50, 33)).astype(dtype)
        data[16:32] = 0
        array = zarr.create_array(
            str(tmp_path / str(k)), shape=data.shape, chunks=(8, 11), shards=(16, 33), dtype=dtype,
            compressors=[zarr.codecs.BloscCodec(cname=codec), zarr.codecs.Crc32cCodec()],
            config={"write_empty_chunks": False},
        )  # fmt: skip
        array[...] = data
        mine = ShardedArray(str(tmp_path / str(k)))
        ids = np.stack([rng.integers(0, 7, 20), rng.integers(0, 3, 20)], axis=1)
        chunks = pickle.loads(pickle.dumps(mine)).read_chunks(ids)
        padded = np.pad(data, ((0, 6), (0, 0)))
        for (i, j), chunk in zip(ids, chunks, strict=True):
            expected = padded[i * 8 : i * 8 + 8, j * 11 : j * 11 + 11]
            np.testing.assert_array_equal(chunk[: 50 - i * 8], expected[: 50 - i * 8])


def test_reading__decodes_each_chunk_once_per_pool(tmp_path, monkeypatch):
    source = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(sparse(1_000, 40)))
    ds = xl.convert(source, tmp_path / "s", progress=False)
    decoded, lock = [], threading.Lock()
    real = shards._decode

    def count(*args, **kwargs):
        with lock:
            decoded.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(shards, "_decode", count)
    for budget, pools in (("1GB", 1), (40_000, 6)):
        loader = xl.Loader(ds, batch_size=64, shuffle=True, memory_budget=budget)
        assert loader.plan.n_pools >= pools
        decoded.clear()
        assert sum(b.sizes["cell"] for b in loader) == 1_000
        assert len(decoded) == 2 * -(-1_000 // 64)  # values and deltas of 16 blocks
    mcool = xl.simulate.contacts(
        tmp_path / "a.mcool", chromosomes={"c": 6_000_000}, resolutions=(10_000,)
    )
    maps = xl.convert(mcool, tmp_path / "m", progress=False)
    loader = xl.Loader(
        maps, windows=xl.windows.diagonal(size=64, stride=4), batch_size=16, shuffle=True
    )
    decoded.clear()
    assert sum(b.sizes["sample"] for b in loader) == len(loader.plan.windows)
    assert len(decoded) == 9  # 5 tiles on the diagonal, 4 beside it


def selections(ds):
    rng = np.random.default_rng(1)
    yield ds
    yield ds.isel(cell=rng.permutation(ds.sizes["cell"])[:77], gene=[5, 2, 9])
    yield ds.isel(gene=slice(None, None, -2))
    yield np.log1p(ds)
    yield ds.isel(cell=[4, 4, 1])


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_convert__any_selection_of_cells(form, tmp_path):
    x = sparse(150, 20)
    make = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix, "dense": np.asarray}
    source = write_h5ad(
        tmp_path / "a.h5ad", make[form](x), obsm={"U": x[:, :2]}, layers={"L": make[form](x + x)}
    )
    for k, ds in enumerate(selections(xl.open_cells(source))):
        out = xl.convert(ds, tmp_path / str(k), progress=False, memory_budget="8MB")
        xr.testing.assert_identical(ds.compute(), out.compute())


def test_convert__selection_of_contacts(tmp_path):
    path = xl.simulate.contacts(
        tmp_path / "a.mcool",
        chromosomes={"a": 4_000_000, "b": 2_000_000},
        resolutions=(10_000, 20_000),
    )
    ds = xl.open_contacts(path, resolution=10_000, view=["b", "a:1,000,000-1,700,000"])
    xr.testing.assert_identical(
        ds.compute(), xl.convert(ds, tmp_path / "s", progress=False).compute()
    )
    both = xl.convert(path, tmp_path / "both", progress=False)
    assert xl.resolutions(tmp_path / "both") == [10_000, 20_000]
    assert both.attrs["resolution"] == 10_000
    with pytest.raises(SchemaError, match="the resolutions it has are 10000, 20000"):
        xl.open_contacts(tmp_path / "both", resolution=5)
    near = xl.convert(ds, tmp_path / "near", max_distance=500_000, progress=False)["count"].values
    full = ds["count"].values
    same = near == full
    chrom, start = ds.chrom1.values, ds.start1.values
    within = (chrom[:, None] == chrom) & (np.abs(start[:, None] - start) <= 500_000)
    assert same[within].all()
    assert (near[~same] == 0).all()
    assert not same.all()


def test_convert__shuffles_rows_and_says_where_from(tmp_path):
    x = sparse(300, 20)
    source = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(x), obsm={"U": x[:, :2]})
    one, again, other = (
        xl.convert(source, tmp_path / str(k), shuffle=True, seed=seed, progress=False)
        for k, seed in enumerate([1, 1, 2])
    )
    row = one.row.values
    assert sorted(row) == list(range(300))
    assert (np.diff(row) != 1).mean() > 0.9
    np.testing.assert_array_equal(one.X.values, x[row])
    np.testing.assert_array_equal(one.U.values, x[row, :2])
    np.testing.assert_array_equal(again.row.values, row)
    assert (other.row.values != row).any()


def test_convert__small_is_smaller(tmp_path):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=2_000, n_genes=500)
    sizes = []
    for codec in ("fast", "small"):
        ds = xl.convert(source, tmp_path / codec, codec=codec, progress=False)
        xr.testing.assert_identical(ds.compute(), xl.open_cells(source).compute())
        sizes.append(
            sum(p.stat().st_size for p in (tmp_path / codec / "X").rglob("*") if p.is_file())
        )
    assert sizes[1] < 0.85 * sizes[0]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"codec": "gzip"},
            PlanError,
            r"codec='gzip' is unknown; choose one of \('fast', 'small'\)",
        ),
        (
            {"memory_budget": 1000},
            PlanError,
            "needs .* MB at a time .*allows 0 MB; choose a budget",
        ),
        ({"max_distance": 5}, PlanError, "max_distance is about contacts"),
        ({"source": 3}, SchemaError, "cannot convert a int; give a path or an opened Dataset"),
        ({"source": "no.h5ad"}, ReadError, "nothing is at 'no.h5ad'"),
        ({"source": xr.Dataset({"v": ("time", [1.0])})}, SchemaError, "a store holds contacts"),
        ({"store": "there"}, ReadError, "'there' exists; pass overwrite=True"),
        ({"store": "no/where"}, ReadError, "there is no folder 'no'"),
    ],
    ids=map(str, range(8)),
)
def test_convert__refuses_what_cannot_be(kwargs, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xl.simulate.cells("a.h5ad", n_cells=100, n_genes=60)
    (tmp_path / "there").mkdir()
    with pytest.raises(error, match=message):
        xl.convert(**{"source": "a.h5ad", "store": "s", "progress": False, **kwargs})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "there"]


def test_convert__refuses_odd_selections(tmp_path):
    cells = xl.open_cells(xl.simulate.cells(tmp_path / "a.h5ad", n_cells=100, n_genes=60))
    with pytest.raises(PlanError, match="nothing to convert.*'cell': 0"):
        xl.convert(cells.isel(cell=[]), tmp_path / "s", progress=False)
    maps = xl.open_contacts(
        xl.simulate.contacts(
            tmp_path / "a.mcool", chromosomes={"c": 900_000}, resolutions=(10_000,)
        )
    )
    with pytest.raises(PlanError, match="square.*'bin1': 3"):
        xl.convert(maps.isel(bin1=slice(3)), tmp_path / "s", progress=False)
    with pytest.raises(PlanError, match="shuffle=True permutes cells"):
        xl.convert(maps, tmp_path / "s", shuffle=True, progress=False)


def test_convert__failure_leaves_the_old_store(tmp_path, monkeypatch):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=100, n_genes=60)
    before = xl.convert(source, tmp_path / "s", progress=False).compute()

    def fail(*_):
        msg = "disk full"
        raise OSError(msg)

    with monkeypatch.context() as m:
        m.setattr("xloader.store.writers.RowsWriter.write", fail)
        for name in ("s", "new"):
            with pytest.raises(OSError, match="disk full"):
                xl.convert(source, tmp_path / name, overwrite=True, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "s"]
    xr.testing.assert_identical(xl.open_cells(tmp_path / "s").compute(), before)


def test_convert__killed_leaves_nothing_that_opens(tmp_path):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=300, n_genes=60)
    script = textwrap.dedent("""
        import sys, time
        import xloader as xl
        from xloader.store.writers import RowsWriter
        real = RowsWriter.write
        def slow(self, task, rung):
            done = real(self, task, rung)
            print("written", flush=True)
            time.sleep(60)
            return done
        RowsWriter.write = slow
        xl.convert(sys.argv[1], sys.argv[2], progress=False)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(source), str(tmp_path / "s")], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "s").exists()
    for opening in (
        lambda: xl.open_cells(tmp_path / "s"),
        lambda: xr.open_dataset(tmp_path / "s", engine="xloader"),
    ):
        with pytest.raises(ReadError, match="conversion was interrupted.*run xl.convert again"):
            opening()
    # what is half there does not open as a store either
    with pytest.raises(XloaderError):
        xl.open_cells(tmp_path / ".s.partial")
    ds = xl.convert(source, tmp_path / "s", progress=False)
    xr.testing.assert_identical(ds.compute(), xl.open_cells(source).compute())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "s"]


def small_store(kind, folder):
    """Write a small store and return its directory."""
    if kind == "cells":
        x = sparse(150, 40)
        source = write_h5ad(folder / "a.h5ad", scipy.sparse.csr_matrix(x), obsm={"U": x[:, :2]})
    else:
        source = xl.simulate.contacts(
            folder / "a.mcool", chromosomes={"c": 2_000_000}, resolutions=(10_000,)
        )
    xl.convert(source, folder / "s", progress=False)
    return folder / "s"


def read_all(store):
    """Read everything, as a process that has not mapped any file of the store would."""
    shards._shards.clear()
    return xr.open_dataset(store, engine="xloader").compute()


def files_of(store):
    """Return the files that hold data or describe them; zarr's groups in between do neither."""
    files = [p for p in sorted(store.rglob("*")) if p.is_file()]
    return [
        p for p in files if p.parent == store or p.name != "zarr.json" or '"array"' in p.read_text()
    ]


@pytest.mark.parametrize("kind", ["cells", "contacts"])
def test_damage__a_flipped_bit_is_an_error(kind, tmp_path):
    store = small_store(kind, tmp_path)
    whole = read_all(store)
    files = files_of(store)
    rng = np.random.default_rng(0)
    for file in files:
        original = file.read_bytes()
        # data evenly; a shard's last bytes are its index
        places = rng.integers(len(original), size=max(5, 240 // len(files)))
        for place in (*places, len(original) - 1, max(0, len(original) - 12)):
            damaged = bytearray(original)
            damaged[place] ^= 1 << rng.integers(8)
            file.write_bytes(damaged)
            try:
                again = read_all(store)
            except XloaderError:
                continue
            # white space of JSON may change
            assert file.name == "zarr.json", (file, place)
            xr.testing.assert_identical(again, whole)
        file.write_bytes(original)
    xr.testing.assert_identical(read_all(store), whole)


@pytest.mark.parametrize("kind", ["cells", "contacts"])
def test_damage__lost_and_cut_files_are_an_error(kind, tmp_path):
    store = small_store(kind, tmp_path)
    for file in files_of(store):
        original = file.read_bytes()
        file.unlink()
        with pytest.raises(XloaderError):
            read_all(store)
        for size in (0, len(original) // 2, len(original) - 1):
            file.write_bytes(original[:size])
            with pytest.raises(XloaderError):
                read_all(store)
            file.unlink()  # a new file each time: the old one may still be mapped
        file.write_bytes(original)
    read_all(store)


def test_damage__errors_name_the_file_and_what_to_do(tmp_path):
    store = small_store("cells", tmp_path)
    shard = store / "X" / "values" / "c" / "0" / "0"
    content = shard.read_bytes()
    shard.write_bytes(content[:-9])
    with pytest.raises(ReadError, match="values/c/0/0.*truncated or damaged, convert the source"):
        read_all(store)
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(ReadError, match=r"chunk \(0, 0\).*values/c/0/0.*do not match their crc32c"):
        read_all(store)
    shard.unlink()
    with pytest.raises(ReadError, match="1 of the 1 files of array .*values' are missing"):
        read_all(store)
    shard.write_bytes(content)
    (shard.parent / ".DS_Store").write_bytes(b"harmless")
    opened = xr.open_dataset(store, engine="xloader")
    shard.unlink()
    shards._shards.clear()
    with pytest.raises(ReadError, match="shard file .*values/c/0/0' of array .* is missing"):
        opened.X.load()
    shard.write_bytes(content)
    metadata = store / "X" / "values" / "zarr.json"
    whole = metadata.read_text()
    metadata.write_text(whole.replace('"fill_value": 0', '"fill_value": 1'))
    with pytest.raises(ReadError, match="metadata of array .*values' do not match their checksum"):
        read_all(store)
    metadata.write_text(whole)
    root = store / "zarr.json"
    whole = root.read_text()
    root.write_text(whole.replace('"kind": "cells"', '"kind": "cell"'))
    with pytest.raises(ReadError, match="zarr.json is damaged or was edited; convert the source"):
        read_all(store)
    root.write_text(whole.replace('"format": 1', '"format": 2'))
    with pytest.raises(ReadError, match="has format 2, and this version of xloader reads up to 1"):
        read_all(store)


@pytest.mark.slow
def test_convert_and_load__in_bounded_memory(tmp_path):
    xl.simulate.cells(tmp_path / "a.h5ad", n_cells=12_000, n_genes=4_000)
    ds = xl.open_cells(tmp_path / "a.h5ad")
    peak, done, me = [0], threading.Event(), psutil.Process()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], me.memory_info().rss)
            time.sleep(0.005)

    base = me.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        np.log1p(ds.X).mean("cell").compute()
        store = xl.convert(ds, tmp_path / "s", memory_budget="60MB", progress=False)
        for _ in xl.Loader(
            store, batch_size=256, variables=["X"], shuffle=True, memory_budget="20MB"
        ):
            pass
    finally:
        done.set()
        watcher.join()
    assert ds.X.nbytes == 192_000_000
    assert peak[0] - base < 160e6
