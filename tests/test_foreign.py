"""Stores that another tool wrote give what the store as we write it gives, or an error."""

import functools
import json
import pickle
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec

import xloader as xl
from tests.rewritten import (
    REWRITES,
    arrays_of,
    assert_equal_stores,
    opened,
    rewrite,
    shards,
    write_stores,
)
from xloader.errors import ReadError, SchemaError, XloaderError
from xloader.store.foreign import ForeignArray
from xloader.store.keys import Keys
from xloader.store.layout import checksum, metadata_of, read_root, write_root
from xloader.store.opened import seal
from xloader.store.places import listing
from xloader.store.shards import ShardedArray


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Only read."""
    return write_stores(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("kind", ["cells", "contacts"])
@pytest.mark.parametrize("how", list(REWRITES))
def test_rewritten__is_read_like_the_store(kind, how, stores, tmp_path):
    other = rewrite(stores[kind], tmp_path / "other", REWRITES[how])
    with pytest.raises(ReadError, match=r"do not match their checksum.*accept it with xloader"):
        opened(kind, other)
    seal(other)
    assert type(arrays_of(opened(kind, other, chunks=None))[0]) is ForeignArray
    assert_equal_stores(kind, other, stores[kind])


def test_rewritten__as_we_write_it_is_mapped(stores, tmp_path):
    how = functools.partial(shards, inner=[BloscCodec(), Crc32cCodec()], sides=(1, 10**6))
    other = rewrite(stores["cells"], tmp_path / "other", how)
    seal(other)
    arrays = arrays_of(opened("cells", other, chunks=None))
    assert [type(a) for a in arrays] == [ShardedArray] * 3
    assert_equal_stores("cells", other, stores["cells"])


@pytest.mark.parametrize("kind", ["cells", "contacts"])
def test_rewritten__by_tensorstore(kind, stores, tmp_path):
    ts = pytest.importorskip("tensorstore")
    other = tmp_path / "other"
    shutil.copytree(stores[kind], other)
    for name in read_root(other)["arrays"]:
        metadata = metadata_of(other / name)
        if metadata["data_type"] == "string" or 0 in metadata["shape"]:
            continue
        old = zarr.open_array(str(other / name), mode="r")[...]
        shutil.rmtree(other / name)
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(other / name)},
            "schema": {"chunk_layout": {"read_chunk": {"shape_soft_constraint": [6] * old.ndim}}},
        }
        new = ts.open(spec, create=True, dtype=old.dtype, shape=old.shape).result()
        new.write(old).result()
    seal(other)
    assert {type(a) for a in arrays_of(opened(kind, other, chunks=None))} == {ForeignArray}
    assert_equal_stores(kind, other, stores[kind])


@given(data=st.data())
def test_array__any_chunks_of_any_chunks(data, tmp_path_factory):
    ndim = data.draw(st.integers(1, 3))
    sizes = st.lists(st.integers(1, 9), min_size=ndim, max_size=ndim).map(tuple)
    shape, stored, times, sides = (data.draw(sizes) for _ in range(4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = rng.integers(0, 3, shape).astype(data.draw(st.sampled_from(["i4", "f8", "u1", "?"])))
    fill = values.dtype.type(1)
    sharded = data.draw(st.booleans())
    order = data.draw(st.permutations(range(ndim)))
    path = tmp_path_factory.mktemp("a") / "a"
    zarr.create_array(
        str(path), shape=shape, dtype=values.dtype, chunks=stored, fill_value=fill,
        shards=tuple(c * min(t, 3) for c, t in zip(stored, times, strict=True)) if sharded else None,
        filters=[TransposeCodec(order=order)], config={"write_empty_chunks": False},
    )[...] = values  # fmt: skip
    metadata = metadata_of(path)
    keys = Keys(metadata)
    written = keys.numbers(listing(path) or []).tolist()
    array = ForeignArray(path, metadata, [(0, 10**6)], sides)
    grid = [-(-n // s) for n, s in zip(shape, sides, strict=True)]
    ids = np.stack([rng.integers(0, g, 6) for g in grid], axis=1)
    padding = [(0, g * s - n) for n, g, s in zip(shape, grid, sides, strict=True)]
    padded = np.pad(values, padding, constant_values=fill)
    boxes = [tuple(slice(i * s, i * s + s) for i, s in zip(c, sides, strict=True)) for c in ids]
    expected = np.stack([padded[box] for box in boxes])
    if len(written) < len(list(np.ndindex(*keys.grid))):
        with pytest.raises(ReadError, match="is missing, and was there when the store was made"):
            array.read_all()
        # chunks of nothing but the fill value are not written
        array = ForeignArray(path, metadata, [(k, k + 1) for k in written], sides)
    got = pickle.loads(pickle.dumps(array)).read_chunks(ids)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(array.read_all(), values)


def test_array__scalars_and_nothing(tmp_path):
    for name in ("default", "v2"):
        path = tmp_path / name
        keys = {"name": name, "separator": "."}
        zarr.create_array(str(path), shape=(), dtype="f4", chunk_key_encoding=keys)[...] = 7
        assert Keys(metadata_of(path)).numbers(listing(path) or []).tolist() == [0]
        assert ForeignArray(path, metadata_of(path), [(0, 1)]).read_all() == np.float32(7)
    zarr.create_array(str(tmp_path / "e"), shape=(0, 3), dtype="f4", chunks=(1, 3))
    empty = ForeignArray(tmp_path / "e", metadata_of(tmp_path / "e"), [])
    assert empty.read_all().shape == (0, 3)


def test_replaced__is_told(stores, tmp_path):
    other = rewrite(stores["cells"], tmp_path / "other", REWRITES["gzip"])
    seal(other)
    ds = xl.open_cells(other, chunks=None)
    metadata = other / "X" / "values" / "zarr.json"
    metadata.write_bytes(metadata.read_bytes() + b" ")
    with pytest.raises(ReadError, match="values' was replaced after it was opened"):
        ds.X.load()
    metadata.unlink()
    with pytest.raises(ReadError, match="values' is gone: No such file"):
        ds.X.load()


@pytest.mark.parametrize("how", ["gzip", "raw", "dots", "shards", "index_unchecked"])
def test_files__that_changed_places_are_told(how, stores, tmp_path):
    other = rewrite(stores["cells"], tmp_path / "other", REWRITES[how])
    seal(other)
    folder = other / "X" / "values"
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != "zarr.json"]
    one, two = files[:2]
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])
    with pytest.raises(
        ReadError, match="rows .* cannot be decoded: it is not the file that was wri"
    ):
        xl.open_cells(other, chunks=None).X.load()


def test_seal__takes_only_whole_stores(stores, tmp_path):
    with pytest.raises(ReadError, match="is not on a local disk; seal the store before"):
        seal("memory://store")
    other = rewrite(stores["cells"], tmp_path / "other", REWRITES["gzip"])
    chunk = other / "X" / "values" / "c" / "1" / "0"
    content = chunk.read_bytes()
    seal(other)
    chunk.unlink()
    with pytest.raises(ReadError, match="1 of the .* files of array .*values' are missing"):
        xl.open_cells(other)
    chunk.write_bytes(content)
    assert xl.open_cells(other).compute().identical(xl.open_cells(stores["cells"]).compute())
    shutil.rmtree(other / "X" / "deltas")
    with pytest.raises(
        ReadError, match=r"lacks 1 of its arrays, such as \['X/deltas'\]; write them"
    ):
        seal(other)
    with pytest.raises(SchemaError, match="no xloader store"):
        seal(tmp_path)


def odd_codec(metadata):
    metadata["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.delta"})


def odd_shard(metadata):
    metadata["codecs"].append({"name": "gzip", "configuration": {"level": 1}})


def odd_grid(metadata):
    metadata["chunk_grid"]["name"] = "rectilinear"


def odd_keys(metadata):
    metadata["chunk_key_encoding"]["name"] = "suffix"


def odd_index(metadata):
    metadata["codecs"][0]["configuration"]["index_codecs"].append({"name": "gzip"})


def odd_type(metadata):
    metadata["data_type"] = {"name": "numpy.datetime64"}


def odd_fill(metadata):
    metadata["fill_value"] = "0x7f"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (odd_codec, "codecs are .*'numcodecs.delta'"),
        (odd_shard, "codecs are .*'gzip'.*, and shards are read without others"),
        (odd_grid, "chunk_grid is 'rectilinear'"),
        (odd_keys, "suffix"),
        (odd_index, "codecs of the shard index are .*'gzip'"),
        (odd_type, "data_type is .*datetime64"),
        (odd_fill, "0x7f"),
    ],
)
def test_unknown__is_refused_by_name(change, message, stores, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(stores["cells"], other)
    path = other / "X" / "values"
    document = json.loads((path / "zarr.json").read_text())
    change(document)
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(
        ReadError, match=f"values' is no zarr v3 array that xloader reads.*{message}"
    ):
        ForeignArray(path, metadata_of(path), [(0, 1)])
    root = read_root(other)
    root.pop("format")
    root["arrays"]["X/values"]["metadata"] = checksum(metadata_of(path))
    write_root(other, root)
    with pytest.raises(XloaderError, match=r"values|suffix"):
        xl.open_cells(other)
