"""Shards written without zarr are what zarr reads, whatever their shape, and narrow types are exact."""

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from tests.doubles import Rows, counts, to_csr
from xloader.errors import ReadError
from xloader.store import staging as module
from xloader.store.layout import write_group
from xloader.store.narrow import narrowed, rung_of, types_for
from xloader.store.shard_writer import Shard, Shards
from xloader.store.shards import ShardedArray
from xloader.store.staging import RowStaging, StraightRows

KINDS = [("fast", "counts"), ("fast", "tiles"), ("small", "dense"), ("small", "deltas")]
DTYPES = ["u1", "u2", "i4", "f2", "f4", "f8", "bool", "c8"]
GRIDS = [
    ((7,), (3,), (6,)),
    ((10, 9), (4, 3), (8, 9)),
    ((256, 300), (128, 128), (256, 256)),
    ((5, 4, 3), (2, 4, 3), (4, 4, 3)),
]


@pytest.mark.parametrize(("codec", "kind"), KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "chunks", "shards"), GRIDS, ids=range(4))
def test_shards__are_read_by_zarr(shape, chunks, shards, dtype, codec, kind, tmp_path):
    rng = np.random.default_rng(0)
    values = (rng.integers(0, 9, shape) * (rng.random(shape) < 0.5)).astype(dtype)
    values[tuple(slice(c) for c in chunks)] = 0
    write_group(tmp_path)
    array = Shards(
        tmp_path / "a",
        codec=codec,
        kind=kind,
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype=np.dtype(dtype),
        dimension_names=[f"d{k}" for k in range(len(shape))],
    )
    array.create()
    for at in np.ndindex(*(-(-n // s) for n, s in zip(shape, shards, strict=True))):
        box = tuple(slice(k * s, (k + 1) * s) for k, s in zip(at, shards, strict=True))
        array.write(at, values[box])
    by_zarr = zarr.open_array(str(tmp_path / "a"), mode="r")
    assert (by_zarr.chunks, by_zarr.shards, by_zarr.dtype) == (chunks, shards, dtype)
    np.testing.assert_array_equal(by_zarr[...], values)
    grid = np.indices([-(-n // c) for n, c in zip(shape, chunks, strict=True)])
    ids = grid.reshape(len(shape), -1).T
    ours = ShardedArray(str(tmp_path / "a")).read_chunks(ids)
    for at, chunk in zip(ids.tolist(), ours, strict=True):
        part = values[tuple(slice(k * c, (k + 1) * c) for k, c in zip(at, chunks, strict=True))]
        np.testing.assert_array_equal(chunk[tuple(slice(n) for n in part.shape)], part)


def test_shards__leave_out_what_is_empty(tmp_path):
    array = Shards(
        tmp_path / "a",
        codec="fast",
        kind="tiles",
        shape=(8, 8),
        chunks=(2, 2),
        shards=(4, 4),
        dtype=np.dtype("u2"),
        dimension_names=("x", "y"),
    )
    array.create()
    tile = np.arange(4, dtype="u2").reshape(2, 2)
    shard = Shard(array, (1, 0))
    shard.add((1, 0), tile)
    shard.add((0, 1), tile * 0)
    shard.close()
    Shard(array, (1, 1)).close()
    array.write((0, 0), np.zeros((4, 4), "u2"))
    assert [p.name for p in (tmp_path / "a" / "c").rglob("*") if p.is_file()] == ["0"]
    index = np.frombuffer((tmp_path / "a" / "c" / "1" / "0").read_bytes()[-68:-4], "<u8")
    assert (index.reshape(2, 2, 2) == 2**64 - 1).all(axis=2).tolist() == [
        [True, True],
        [False, True],
    ]
    expected = np.zeros((8, 8), "u2")
    expected[6:8, 0:2] = tile
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "a"), mode="r")[...], expected)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], "u1"),
        ([0, 256], "u2"),
        ([2**16], "u4"),
        ([2**24], "u4"),
        ([2**32], "f4"),
        ([-1, 0], "f4"),
        ([0, 0.5], "f4"),
        ([np.nan, 1], "f4"),
        ([1, np.inf], "f4"),
        ([], "u1"),
    ],
)
@pytest.mark.parametrize("n", [0, 100, 2**21])
def test_rung_of__is_the_narrowest_that_is_exact(values, dtype, n):
    types = types_for(np.dtype("f4"), bits=(8, 16, 32), floats=True)
    padded = np.append(np.zeros(n), values).astype("f4")
    rung = rung_of(padded, types)
    assert types[rung] == dtype
    np.testing.assert_array_equal(narrowed(padded, types[rung]).astype("f4"), padded)
    assert rung_of(padded, types, 2) == max(rung, 2)


@given(data=st.data())
def test_stage_rows__any_order_of_rows_and_columns(data, tmp_path_factory):
    n, g = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
    dense = counts(n, g, seed=n * 13 + g)
    dense[data.draw(st.integers(0, n - 1))] = data.draw(st.sampled_from([0, 1, 300, 70_000, 0.5]))
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=60)))
    columns = data.draw(st.permutations(range(g)))[: data.draw(st.integers(1, g))]
    source = Rows(dense, block_rows=4)
    budget = data.draw(st.sampled_from([1, 2_400, 10**7]))
    staging = RowStaging(source, rows, np.array(columns), tmp_path_factory.mktemp("s"), budget)
    staged = staging.staged({k: staging.do(k) for k in range(staging.n_tasks)})
    wanted = dense[rows][:, columns]
    assert (np.diff(source.log) >= 0).all()  # in the order of storage
    np.testing.assert_array_equal(np.diff(staged.indptr), (wanted != 0).sum(axis=1))
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, len(rows))] * 2)))
    got = np.zeros_like(wanted)
    for part in staged.read(a, b, 5):
        for k, row in enumerate(part.rows):
            span = slice(part.indptr[k], part.indptr[k + 1])
            got[row, np.cumsum(part.deltas[span], dtype=int)] = part.values[span]
    np.testing.assert_array_equal(got[a:b], wanted[a:b])
    assert not got[:a].any()
    assert not got[b:].any()
    types = types_for(dense.dtype, bits=(8, 16, 32), floats=True)
    assert staged.rung == rung_of(wanted, types) or not wanted.any()


def test_straight_rows__come_in_bounded_parts_and_are_checked():
    dense = counts(50, 9)
    source = StraightRows(Rows(dense), np.arange(3, 50, 2))
    parts = list(source.read(0, 24, 10))
    assert max(len(p.values) for p in parts) <= 10
    assert np.concatenate([p.rows for p in parts]).tolist() == list(range(24))

    class Falling(Rows):
        @override
        def read_rows(self, start, stop):
            csr = to_csr(self.dense[start:stop])
            csr.indices[:] = csr.indices[::-1].copy()
            return csr

    with pytest.raises(ReadError, match="columns of the source are not in increasing order"):
        list(StraightRows(Falling(dense), np.arange(50)).read(0, 50, 1000))
    source.indptr[5:] += 1
    with pytest.raises(ReadError, match="other numbers of values than their index says"):
        list(source.read(0, 24, 1000))


def test_as_words__shares_memory():
    for dtype in ("f4", "f2", "bool", "c16", "i8"):
        values = np.zeros(4, dtype)
        assert np.shares_memory(module.as_words(values), values)
        assert module.as_words(values).dtype == (dtype if dtype == "c16" else f"u{values.itemsize}")
