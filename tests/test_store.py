"""The training store: what goes in comes out, whole or not at all; damage is an error."""

import pickle
import threading

import numpy as np
import pytest
import scipy.sparse
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl
from tests.sources import sparse, write_h5ad
from xloader import trace
from xloader.errors import ReadError, XloaderError
from xloader.store import shards
from xloader.store.shards import ShardedArray


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
        block = row // 32 * 32
        sizes = [indptr[min(b + 32, 200)] - indptr[b] for b in range(0, block, 32)]
        chunk = sum(-(-n // values.shape[1]) for n in sizes)
        place = chunk * values.shape[1] + indptr[row] - indptr[block]
        n = indptr[row + 1] - indptr[row]
        columns = np.cumsum(deltas.ravel()[place : place + n].astype(int))
        rebuilt[row, columns] = values.ravel()[place : place + n]
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
    n_chunks = zarr.open_array(str(tmp_path / "s" / "X" / "values"), mode="r").shape[0]
    decoded, lock = [], threading.Lock()
    real = ShardedArray._decode

    def count(self, jobs, first, last, *args):
        with lock:
            decoded.extend(range(first, last))
        return real(self, jobs, first, last, *args)

    monkeypatch.setattr(ShardedArray, "_decode", count)
    for budget, pools in (("1GB", 1), (3_000, 6)):
        loader = xl.Loader(ds, batch_size=64, shuffle=True, memory_budget=budget)
        assert loader.plan.n_pools(0) >= pools
        decoded.clear()
        assert sum(b.sizes["cell"] for b in loader) == 1_000
        assert len(decoded) == 2 * n_chunks  # values and deltas
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
    with pytest.raises(
        ReadError, match=r"chunk \(0, 0\) \(rows 0-32\).*values/c/0/0.*do not match their crc32c"
    ):
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
    for version, advice in ((1, "; convert the source"), (3, "; update xloader, or convert the")):
        root.write_text(whole.replace('"format": 2', f'"format": {version}'))
        with pytest.raises(ReadError, match=f"has format {version}.* reads format 2{advice}"):
            read_all(store)
