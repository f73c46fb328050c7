"""Compiled loops against plain numpy, at the edges of what they are given."""

import tempfile

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from numcodecs import blosc

from xloader.buffers import Buffers
from xloader.csr import CSRArray
from xloader.errors import ReadError
from xloader.kernels import decode, tiles
from xloader.kernels.stream import stream
from xloader.packed import PackedRows, pack, panel, slice_rows, take, take_dense


def encoded(values, codec=b"lz4"):
    return np.frombuffer(blosc.compress(values, codec, 5, blosc.SHUFFLE), np.uint8)


def decode_all(chunks, outs, size, told=None):
    """Decode chunks from a file, in which they may be shorter than they are told to be."""
    lengths = np.array([len(c) for c in chunks] if told is None else told)
    with tempfile.TemporaryFile() as file:
        file.write(b"".join(c.tobytes() for c in chunks))
        file.flush()
        files = np.full(len(chunks), file.fileno())
        offsets = np.append(0, np.cumsum([len(c) for c in chunks]))[:-1]
        targets = np.array([a.ctypes.data for a in outs], np.int64)
        return decode.decode(decode.functions(), files, offsets, lengths, targets, size)


@pytest.mark.parametrize("codec", [b"lz4", b"lz4hc", b"zstd", b"blosclz"])
def test_decode__equals_numcodecs(codec):
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 9, 5_000).astype("u2") for _ in range(4)]
    chunks = [encoded(v, codec) for v in values]
    outs = [np.zeros(5_000, "u2") for _ in values]
    assert decode_all(chunks, outs, 10_000) == -1
    for out, value, chunk in zip(outs, values, chunks, strict=True):
        np.testing.assert_array_equal(out, value)
        np.testing.assert_array_equal(out, np.frombuffer(blosc.decompress(chunk), "u2"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c[:10],
        lambda c: c[:-1],
        lambda c: np.append(c, np.uint8(0)),
        lambda c: np.concatenate([c[:4], np.array([255], "u1"), c[5:]]),
        lambda c: np.concatenate([c[:12], np.array([255, 255], "u1"), c[14:]]),
    ],
    ids=["short", "cut", "long", "other size", "other length"],
)
def test_decode__says_which_chunk_is_broken_and_writes_nothing_beyond(spoil):
    value = np.arange(5_000, dtype="u2")
    whole = encoded(value)
    guarded = np.full(15_000, 7, "u2")
    outs = [guarded[:5_000], guarded[5_000:10_000]]
    assert decode_all([whole, spoil(whole)], outs, 10_000) == 1
    assert decode_all([whole, whole], outs, 10_000, told=[len(whole), len(whole) + 1]) == 1
    np.testing.assert_array_equal(guarded[:5_000], value)
    assert (guarded[10_000:] == 7).all()


def sparse(rng, shape, density, dtype="f4"):
    x = scipy.sparse.random(*shape, density, "csr", np.float64, rng)
    x.data = np.ceil(x.data * 9)
    x.sort_indices()
    return x.astype(dtype)


def packed_as_stored(x, rng):
    """Lay rows out with gaps, columns as differences, as blocks of a store do."""
    steps = np.diff(x.indices, prepend=0)
    starts = x.indptr[:-1]
    filled = starts[np.diff(x.indptr) > 0]
    steps[filled] = x.indices[filled]
    gaps = rng.integers(0, 5, x.shape[0])
    begin = starts + np.cumsum(gaps)
    size = x.nnz + int(gaps.sum()) + 5
    values, columns = np.full(size, 99, "u2"), np.full(size, 9, "u2")
    for at, a, b in zip(begin, x.indptr[:-1], x.indptr[1:], strict=True):
        values[at : at + b - a] = x.data[a:b]
        columns[at : at + b - a] = steps[a:b]
    lengths = np.diff(x.indptr).astype(np.int64)
    return PackedRows(
        values,
        columns,
        begin.astype(np.int64),
        lengths,
        x.shape[1],
        True,
        "`x`",
        np.arange(x.shape[0]),
    )


def packed_as_csr(x, _):
    return pack(CSRArray(x.data, x.indices, x.indptr.astype(np.int64), x.shape), "`x`")


@pytest.mark.parametrize("form", [packed_as_stored, packed_as_csr], ids=["deltas", "csr"])
@given(data=st.data())
def test_rows__any_rows_and_columns_equal_scipy(form, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 30)))
    x = sparse(rng, shape, data.draw(st.sampled_from([0, 0.1, 0.6, 1])))
    rows = rng.integers(0, shape[0], data.draw(st.integers(0, 60)))
    columns = rng.permutation(shape[1])[: data.draw(st.integers(0, shape[1]))]
    if data.draw(st.booleans()):
        columns = np.arange(shape[1])
    dtype = np.dtype(data.draw(st.sampled_from(["f4", "f8", "u2", "i8"])))
    packed, wanted = form(x, rng), panel(columns, shape[1])
    expected = x[rows][:, columns].toarray()
    got = packed.take(rows, dtype, wanted, Buffers())
    assert (got.dtype, got.shape) == (dtype, expected.shape)
    np.testing.assert_array_equal(got.todense(), expected)
    rising = [
        np.diff(got.indices[a:b]) for a, b in zip(got.indptr[:-1], got.indptr[1:], strict=True)
    ]
    assert all((r > 0).all() for r in rising)
    dense = take_dense([(packed, rows)], dtype, wanted, Buffers())
    assert dense.dtype == dtype
    np.testing.assert_array_equal(dense, expected)
    a = data.draw(st.integers(0, len(rows)))
    other = form(x, rng)  # rows of two pools in one batch
    both = take([(packed, rows[:a]), (other, rows[a:])], dtype, wanted, Buffers())
    np.testing.assert_array_equal(both.todense(), expected)
    both_dense = take_dense([(packed, rows[:a]), (other, rows[a:])], dtype, wanted, Buffers())
    np.testing.assert_array_equal(both_dense, expected)
    np.testing.assert_array_equal(slice_rows(got, a, len(rows)).todense(), expected[a:])


def test_rows__on_threads_equal_those_without():
    rng = np.random.default_rng(0)
    x = sparse(rng, (3_000, 400), 0.3)
    rows = rng.permutation(3_000)
    packed = packed_as_stored(x, rng)
    got = packed.take(rows, np.dtype("f4"), None, Buffers())
    assert got.nnz > 2**17
    np.testing.assert_array_equal(got.todense(), x[rows].toarray())
    columns = rng.permutation(400)[:300]
    for wanted, expected in ((None, x[rows]), (panel(columns, 400), x[rows][:, columns])):
        dense = take_dense([(packed, rows)], np.dtype("f4"), wanted, Buffers())
        np.testing.assert_array_equal(dense, expected.toarray())


@given(
    st.integers(0, 200),
    st.integers(0, 40),
    st.sampled_from(["?", "u1", "u2", "i4", "f4", "f8", "c16"]),
)
def test_stream__any_place_and_type_equal_slices(n, begin, dtype):
    source = np.arange(200).astype(dtype)
    target = np.full(begin + n + 40, 7, dtype)
    expected = target.copy()
    expected[begin : begin + n] = source[:n]
    stream(source, n, target, begin)
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("columns", [None, [0, 2]], ids=["all", "some"])
@pytest.mark.parametrize("dense", [False, True], ids=["csr", "dense"])
def test_rows__columns_beyond_the_matrix_are_refused(columns, dense):
    steps = np.array([1, 2, 9], "u2")
    packed = PackedRows(
        np.ones(3, "u1"),
        steps,
        np.array([0, 2]),
        np.array([2, 1]),
        5,
        True,
        "`a/X`",
        np.array([30, 31]),
    )
    wanted = None if columns is None else panel(np.array(columns), 5)
    gather = take_dense if dense else take
    assert gather([(packed, np.array([0]))], np.dtype("f4"), wanted, Buffers()).shape[0] == 1
    with pytest.raises(
        ReadError, match=r"`a/X` \(rows 31-32\) has a column beyond its 5; the file is damaged"
    ):
        gather([(packed, np.array([0, 1]))], np.dtype("f4"), wanted, Buffers())


@njit(error_model="numpy")
def log1p_of(x):
    out = np.empty_like(x)
    for k in range(len(x)):
        out[k] = tiles.log1p(x[k])
    return out


def test_log1p__as_exact_as_numpy():
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-60, 80, 200_000)).astype("f4")
    x = np.concatenate([x, -rng.uniform(0, 0.999, 1_000).astype("f4")])
    exact = np.log1p(x.astype("f8"))
    np.testing.assert_allclose(log1p_of(x), exact, rtol=4e-7, atol=0)
    special = np.array([0, np.nan, np.inf, -1, -2, -np.inf, 3e38], "f4")
    with np.errstate(invalid="ignore", divide="ignore"):
        np.testing.assert_allclose(log1p_of(special), np.log1p(special.astype("f8")), rtol=4e-7)


@given(data=st.data())
def test_windows__equal_slices_of_the_whole_map(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    side = data.draw(st.sampled_from([8, 16, 20]))
    n_tiles = data.draw(st.integers(2, 4))
    n = side * n_tiles
    full = rng.poisson(3, (n, n)).astype("u2")
    symmetric = data.draw(st.booleans())
    if symmetric:
        full = np.triu(full) + np.triu(full, 1).T
    numbers = {}
    for i in range(n_tiles):
        for j in range(i if symmetric else 0, n_tiles):
            numbers[i, j] = len(numbers)
    stored = np.stack(
        [full[i * side : (i + 1) * side, j * side : (j + 1) * side] for i, j in numbers]
    )
    size = data.draw(st.tuples(st.integers(1, n), st.integers(1, n)))
    places = np.stack([rng.integers(0, n - s + 1, 5) for s in size], axis=1)
    slots = np.zeros((5, n_tiles, n_tiles), np.int64)
    for k, (a, b) in enumerate(places // side):
        for i in range(n_tiles - a):
            for j in range(n_tiles - b):
                pair = (a + i, b + j)
                slots[k, i, j] = numbers[(min(pair), max(pair)) if symmetric else pair]
    out = np.zeros((5, *size), "i4")
    tiles.cut(stored, slots, places, symmetric, out, 0, 5)
    weights = rng.uniform(0.1, 2, (2, n)).astype("f4")
    weights[:, rng.integers(0, n)] = np.nan
    finished = np.zeros((5, *size), "f4")
    args = (stored, slots, places, symmetric, finished, places, *weights, True, True)
    tiles.cut_finished(*args, 0, 5)
    balanced = full * weights[0].astype("f8")[:, None] * weights[1].astype("f8")
    for k, (a, b) in enumerate(places):
        box = (slice(a, a + size[0]), slice(b, b + size[1]))
        np.testing.assert_array_equal(out[k], full[box])
        np.testing.assert_allclose(finished[k], np.log1p(balanced[box]), rtol=2e-6)
    whole = np.zeros(stored.shape, "f4")
    ij = np.array(list(numbers))
    tiles.finish_tiles(stored, ij, whole, *weights, True, False, 0, len(ij))
    for tile, (i, j) in zip(whole, ij, strict=True):
        box = (slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side))
        np.testing.assert_allclose(tile, balanced[box], rtol=1e-6)
