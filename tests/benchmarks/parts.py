"""
Single parts of the engine, timed by themselves: the numbers of docs/design/003-the-engine.md.

``python -m tests.benchmarks.parts cells.h5ad [contacts.xl]`` (counts, stored by row; the first 12,800
cells are used; of the store of contacts 3,000 tiles of its finest map)
"""

import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numba import njit
from numcodecs import blosc

import xloader as xl
from xloader.buffers import Buffers
from xloader.csr import CSRArray
from xloader.kernels import tiles
from xloader.packed import PackedRows, take_dense
from xloader.trace import view

CODECS = {
    "counts": [("lz4", 3, 0), ("lz4", 5, 2), *(("lz4hc", k, 0) for k in (1, 5, 9)),
               *(("zstd", k, 0) for k in (1, 5, 9))],
    "deltas": [("lz4", 3, 1), ("lz4", 5, 2), ("lz4hc", 5, 1), ("zstd", 2, 1), ("zstd", 3, 2)],
    "tiles": [("lz4", 5, 2), ("lz4hc", 3, 2), ("lz4hc", 9, 2), ("zstd", 1, 2), ("zstd", 3, 2)],
}  # fmt: skip
ROWS = 32


def best(function: Any, times: int = 5) -> float:
    """Return the shortest time of some calls, in seconds."""
    function()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def rows_of(path: str) -> Any:
    variable = xl.open_cells(path, chunks=None)["X"].variable
    found: Any = view(variable)
    array = found.array
    return array.read_rows(0, min(12_800, array.shape[0]))


def deltas_of(csr: CSRArray) -> np.ndarray:
    steps = np.diff(csr.indices, prepend=0)
    first = csr.indptr[:-1][np.diff(csr.indptr) > 0]
    steps[first] = csr.indices[first]
    return steps.astype(np.uint16)


def compare(name: str, pieces: list[np.ndarray], codecs: list[tuple[str, int, int]]) -> None:
    """Print what codecs make of pieces of one kind."""
    n, nbytes = sum(p.size for p in pieces), sum(p.nbytes for p in pieces)
    out = np.empty(max(p.size for p in pieces), pieces[0].dtype)
    for cname, level, shuffle in codecs:
        begin = time.perf_counter()
        packed = [blosc.compress(p, cname.encode(), level, shuffle) for p in pieces]
        encoding = time.perf_counter() - begin

        def decode(packed=packed):
            for chunk, piece in zip(packed, pieces, strict=True):
                blosc.decompress(chunk, out[: piece.size])

        size, decoding, each = sum(map(len, packed)), best(decode), 1e6 / len(pieces)
        print(f"{name:15s} {cname:6s} {level:3d} {shuffle:3d} {size / n:8.3f} {size / nbytes:7.4f}"
              f"{n / decoding / 1e6:9.0f} {n / encoding / 1e6:9.0f}"
              f"{decoding * each:9.1f} {encoding * each:9.1f}")  # fmt: skip


def codecs(csr: CSRArray) -> None:
    bounds = csr.indptr[::ROWS]
    parts = {
        "counts": np.minimum(csr.data, 255).astype(np.uint8),
        "deltas": deltas_of(csr),
        "float32": csr.data.astype(np.float32),
        "uint16 columns": csr.indices.astype(np.uint16),
    }
    as_annbatch = [("lz4", 3, 1)]
    for name, part in parts.items():
        pieces = [part[a:b] for a, b in itertools.pairwise(bounds)]
        compare(name, pieces, CODECS.get(name, as_annbatch))


def tile_codecs(path: str) -> None:
    ds = xl.open_contacts(path, resolution=min(xl.resolutions(path)), chunks=None)
    found: Any = view(ds["count"].variable)
    n = -(-ds.sizes["bin1"] // 128)
    ij = np.array([(i, j) for i in range(n) for j in range(i, n)])
    stored = found.array.array.read_chunks(np.random.default_rng(0).permutation(ij)[:3000])
    compare("tiles", [tile for tile in stored if tile.any()], CODECS["tiles"])


def _take(packed: PackedRows, rows: np.ndarray, buffers: Any) -> None:
    packed.take(rows, np.dtype(np.float32), None, buffers())


def gathering(csr: CSRArray) -> None:
    lengths = np.diff(csr.indptr)
    counts = np.minimum(csr.data, 255).astype(np.uint8)
    order = np.arange(csr.shape[0])
    packed = PackedRows(
        counts, deltas_of(csr), csr.indptr[:-1], lengths, csr.shape[1], True, "x", order
    )
    order = np.random.default_rng(0).permutation(order)[:4096]
    reused, dtype = Buffers(), np.dtype(np.float32)
    n = int(lengths[order].sum())
    for name, buffers in (("fresh memory", Buffers), ("memory used again", lambda: reused)):
        seconds = best(partial(_take, packed, order, buffers))
        print(
            f"gather 4,096 rows, {name}: {seconds * 1e3:.1f} ms, {n / seconds / 1e6:.0f} M values/s"
        )
    dense(packed, order)
    names = np.array([f"cell {k}" for k in order], object)
    labels = {"cell": names, "kind": ("cell", names), "depth": ("cell", lengths[order])}
    ds = xr.Dataset({"X": (("cell", "gene"), packed.take(order, dtype, None, reused))}, labels)
    for size in (64, 4096):
        loader = xl.Loader(ds, batch_size=size)
        loader[0]
        batch = loader.plan.batch(0, 0)
        values = loader._open().gather([(loader._pool(0, 0), batch.ids)], 0)
        seconds = best(partial(loader._label, values, batch), 50)
        assert loader._labeller is not None
        loader._labeller._alike = False
        public = best(partial(loader._label, values, batch), 50)
        print(
            f"one labelled Dataset of {size} cells: {seconds * 1e6:.0f} us, by xarray's constructor "
            f"{public * 1e6:.0f} us"
        )


@njit(nogil=True)
def in_place(packed, rows, out):
    """Clear and fill rows where they stay."""
    values, columns, starts, lengths = packed
    for i in range(len(rows)):
        out[i, :] = 0
        at = 0
        for k in range(starts[rows[i]], starts[rows[i]] + lengths[rows[i]]):
            at += columns[k]
            out[i, at] = values[k]


def dense(packed: PackedRows, order: np.ndarray) -> None:
    reused, dtype = Buffers(), np.dtype(np.float32)
    out = np.ones((len(order), packed.n_columns), dtype)
    arrays = packed.values, packed.columns, packed.starts, packed.lengths
    half = len(order) // 2
    with ThreadPoolExecutor(2) as threads:

        def both() -> None:
            halves = (order[:half], out[:half]), (order[half:], out[half:])
            list(threads.map(lambda part: in_place(arrays, *part), halves))

        for name, function in {
            "as xloader does": lambda: take_dense([(packed, order)], dtype, None, reused),
            "cleared and filled in place": both,
            "filled with a constant by one thread": lambda: out.fill(1),
        }.items():
            print(f"{len(order)} dense rows, {name}: {best(function) * 1e3:.1f} ms")


def windows() -> None:
    rng, side, n, size = np.random.default_rng(0), 128, 8, 256
    full = rng.poisson(5, (n * side, n * side)).astype(np.uint16)
    full = np.triu(full) + np.triu(full, 1).T
    ij = np.array([(i, j) for i in range(n) for j in range(i, n)])
    stored = np.stack([full[i * side :, j * side :][:side, :side] for i, j in ij])
    places = rng.integers(0, n * side - size, (64, 2))
    slot = np.zeros((n, n), np.int64)
    slot[tuple(ij.T)] = slot[tuple(ij.T[::-1])] = np.arange(len(ij))
    slots = np.zeros((64, 3, 3), np.int64)
    for k, (i, j) in enumerate(places // side):
        slots[k] = np.pad(slot, ((0, 2), (0, 2)))[i : i + 3, j : j + 3]
    weights = rng.uniform(0.1, 1, n * side).astype(np.float32)
    out = np.empty((64, size, size), np.float32)
    whole = np.empty(stored.shape, np.float32)
    args = (stored, slots, places, True, out)
    finish = (places, weights, weights, True, True)
    timed = {
        "copied": best(lambda: tiles.cut(*args, 0, 64)),
        "balanced and log1p": best(lambda: tiles.cut_finished(*args, *finish, 0, 64)),
        "numpy's log1p alone": best(lambda: np.log1p(out, out=out)),
    }
    for name, seconds in timed.items():
        print(f"window of 256 x 256, {name}: {seconds / 64 * 1e6:.0f} us a thread")
    seconds = best(
        lambda: tiles.finish_tiles(stored, ij, whole, weights, weights, True, True, 0, len(ij))
    )
    print(f"tile of 128 x 128, balanced and log1p: {seconds / len(ij) * 1e6:.1f} us a thread")


if __name__ == "__main__":
    rows = rows_of(sys.argv[1])
    gathering(rows)
    windows()
    print("what            codec  lvl shf  B/value  of raw  decoded  encoded   decode    encode")
    print("                                              M/s       M/s   us/piece  us/piece")
    codecs(rows)
    if len(sys.argv) > 2:
        tile_codecs(sys.argv[2])
