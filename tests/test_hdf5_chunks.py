"""Chunks of HDF5 decoded here hold what h5py reads from them, or are its error."""

import zlib

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xloader.backends import hdf5_chunks
from xloader.backends.elements import DenseElement
from xloader.backends.hdf5 import HDF5File, close_hdf5, read, read_ranges
from xloader.errors import ReadError

SHAPES = [
    ((1000,), (64,)),
    ((1000,), (1000,)),
    ((37, 50), (8, 50)),
    ((37, 50), (10, 7)),
    ((5, 6, 7), (2, 3, 4)),
]
DTYPES = ["<f4", ">f4", "<i8", ">i2", "u1", "<f2", "<f8", "i1", ">u4"]
FILTERS = [
    {"compression": "gzip"},
    {"compression": "gzip", "compression_opts": 9, "shuffle": True},
    {"compression": "lzf"},
    {"compression": "lzf", "shuffle": True},
]


@pytest.fixture
def no_h5py(monkeypatch):
    """Fail where h5py itself is asked for numbers."""

    def refuse(*_):
        msg = "read by h5py"
        raise AssertionError(msg)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    monkeypatch.setattr(h5py.Dataset, "read_direct", refuse)


def values_of(shape, dtype, seed=0):
    """Return numbers of which about half the bytes can be compressed."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 100, shape) * (rng.random(shape) < 0.5)
    values.reshape(-1)[: values.size // 5] = rng.integers(0, 2**7, values.size // 5)
    return values.astype(dtype)


@pytest.mark.usefixtures("no_h5py")
@pytest.mark.parametrize("filters", FILTERS, ids=range(4))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "chunks"), SHAPES)
def test_read__whole_datasets_of_every_make(shape, chunks, dtype, filters, tmp_path):
    expected = values_of(shape, dtype)
    path = str(tmp_path / "a.h5")
    with h5py.File(path, "w") as f:
        f.create_dataset("x", data=expected, chunks=chunks, **filters)
    got = read(HDF5File(path), "x")
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    array = DenseElement(HDF5File(path).leaf("x"))
    native = array._raw(tuple(slice(n // 3, n) for n in shape))
    assert native.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(native, expected[tuple(slice(n // 3, n) for n in shape)])


@pytest.fixture(scope="module")
def sparse_file(tmp_path_factory):
    """Chunks of which some were never written, and of which filters were left out in some."""
    path = str(tmp_path_factory.mktemp("h") / "a.h5")
    with h5py.File(path, "w") as f:
        for name, shape, chunks in (("line", (1000,), (64,)), ("plane", (70, 90), (16, 32))):
            x = f.create_dataset(
                name, shape, "<i4", chunks=chunks, compression="gzip", shuffle=True, fillvalue=-7
            )
            half = tuple(slice(n // 3, n // 2) for n in shape)
            x[half] = values_of(shape, "<i4")[half]
        block = np.arange(64, dtype="<i4")
        shuffled = np.ascontiguousarray(block.view("u1").reshape(64, 4).T).tobytes()
        line = f["line"].id
        line.write_direct_chunk((0,), block.tobytes(), 0b11)
        line.write_direct_chunk((64,), shuffled, 0b10)
        line.write_direct_chunk((960,), zlib.compress(block.tobytes()), 0b01)
        written = [line.get_chunk_info(k).filter_mask for k in range(line.get_num_chunks())]
        assert {*written} == {0, 1, 2, 3}
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_read__any_index_equals_h5py(data, sparse_file, monkeypatch):
    monkeypatch.setattr(hdf5_chunks, "_INLINE_NBYTES", data.draw(st.sampled_from([0, 2**18])))
    name = data.draw(st.sampled_from(["line", "plane"]))
    with h5py.File(sparse_file) as f:
        whole = f[name][()]
    keys = tuple(
        data.draw(st.one_of(st.slices(n), st.integers(0, n - 1)))
        for n in whole.shape[: data.draw(st.integers(0, whole.ndim))]
    )
    if any(isinstance(k, slice) and (k.step or 1) < 0 for k in keys):
        return
    got = read(HDF5File(sparse_file), name, keys)
    assert got.shape == whole[keys].shape
    np.testing.assert_array_equal(got, whole[keys])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spans=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=9),
    inline=st.booleans(),
)
def test_read_ranges__in_any_order_and_overlapping(spans, inline, sparse_file, monkeypatch):
    monkeypatch.setattr(hdf5_chunks, "_INLINE_NBYTES", 2**18 * inline)
    with h5py.File(sparse_file) as f:
        whole = f["line"][()]
    starts, stops = np.sort(np.array(spans, np.int64).reshape(-1, 2), axis=1).T
    expected = [whole[a:b] for a, b in zip(starts, stops, strict=True)]
    got = read_ranges(HDF5File(sparse_file), "line", starts, stops)
    np.testing.assert_array_equal(got, np.concatenate([whole[:0], *expected]))


def test_read_ranges__decodes_each_chunk_once(tmp_path, monkeypatch):
    path = str(tmp_path / "a.h5")
    with h5py.File(path, "w") as f:
        f.create_dataset("x", data=np.arange(1000), chunks=(100,), compression="gzip")
    read_once = []
    real = hdf5_chunks.Chunks._decode

    def decode(self, place):
        read_once.append(place[0])
        return real(self, place)

    monkeypatch.setattr(hdf5_chunks.Chunks, "_decode", decode)
    starts, stops = np.array([350, 10, 180, 300]), np.array([420, 30, 340, 301])
    got = read_ranges(HDF5File(path), "x", starts, stops)
    np.testing.assert_array_equal(got, np.r_[350:420, 10:30, 180:340, 300:301])
    assert sorted(read_once) == [0, 100, 200, 300, 400]


PLAIN = {
    "contiguous": {},
    "unfiltered": {"chunks": (64,)},
    "shuffled": {"chunks": (64,), "shuffle": True},
    "checked": {"chunks": (64,), "compression": "gzip", "fletcher32": True},
    "scaled": {"chunks": (64,), "scaleoffset": 3},
}


@pytest.mark.parametrize("make", PLAIN)
def test_read__what_h5py_has_to_do(make, tmp_path):
    path, expected = str(tmp_path / "a.h5"), values_of(1000, "<i4")
    with h5py.File(path, "w") as f:
        f.create_dataset("x", data=expected, **PLAIN[make])
        assert not hdf5_chunks.decodable(f["x"])
        stored = f["x"][()]
    np.testing.assert_array_equal(read(HDF5File(path), "x", slice(3, 900)), stored[3:900])
    starts, stops = np.array([500, 7, 9]), np.array([900, 7, 600])
    np.testing.assert_array_equal(
        read_ranges(HDF5File(path), "x", starts, stops), np.r_[stored[500:900], stored[9:600]]
    )


@pytest.mark.parametrize("dtype", ["bool", "S5", h5py.string_dtype(), "complex64"])
def test_read__other_types(dtype, tmp_path):
    path = str(tmp_path / "a.h5")
    values = np.array([b"a", b"", b"ccc"] * 40) if dtype != "complex64" else np.arange(120) * 1j
    values = np.arange(120) % 3 == 0 if dtype == "bool" else values
    with h5py.File(path, "w") as f:
        f.create_dataset("x", data=values, dtype=dtype, chunks=(50,), compression="gzip")
        expected = f["x"][()]
    got = read(HDF5File(path), "x", slice(10, 110))
    assert got.dtype == expected.dtype
    assert got.tolist() == expected[10:110].tolist()


def test_read__numbers_of_fewer_bits_than_bytes(tmp_path):
    path = str(tmp_path / "a.h5")
    odd = h5py.h5t.STD_I32LE.copy()
    odd.set_precision(12)
    odd.set_offset(4)
    pipeline = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    pipeline.set_chunk((50,))
    pipeline.set_deflate(4)
    with h5py.File(path, "w") as f:
        space = h5py.h5s.create_simple((120,))
        x = h5py.Dataset(h5py.h5d.create(f.id, b"x", odd, space, pipeline))
        x[:] = np.arange(120)
    np.testing.assert_array_equal(read(HDF5File(path), "x", slice(5, 110)), np.arange(5, 110))


@pytest.mark.parametrize("filters", FILTERS, ids=range(4))
def test_read__damage_is_an_error_where_h5py_sees_it(filters, tmp_path):
    path = tmp_path / "a.h5"
    expected = values_of((2000,), "<i4")
    with h5py.File(path, "w") as f:
        f.create_dataset("x", data=expected, chunks=(500,), **filters)
        chunk = f["x"].id.get_chunk_info(2)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    told = []
    for at in rng.integers(chunk.byte_offset, chunk.byte_offset + chunk.size, 60).tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        close_hdf5(str(path))
        try:
            with h5py.File(path) as f:
                by_h5py = f["x"][()]
        except OSError:
            told.append(at)
            by_h5py = None
        try:
            got = read(HDF5File(str(path)), "x")
        except ReadError as e:
            got, message = None, str(e)
        if got is not None:
            np.testing.assert_array_equal(got, by_h5py)
        else:
            assert "cannot read 'x' of" in message
            # h5py shows whatever was in memory where lzf ends too early
            assert by_h5py is None or "bytes, not 2000" in message
        close_hdf5(str(path))
    assert len(told) > (50 if filters["compression"] == "gzip" else 0)


def test_read__cut_file_is_told(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as f:
        f.create_dataset("x", data=values_of((20_000,), "<i4"), chunks=(500,), compression="gzip")
    assert HDF5File(str(path)).handle["x"].shape == (20_000,)
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size // 2)
    close_hdf5(str(path))
    with pytest.raises(ReadError, match="cannot read .* truncated"):
        read(HDF5File(str(path)), "x")
