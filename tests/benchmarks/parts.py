"""
Single parts of the engine, timed by themselves: the numbers of docs/design/003-the-engine.md.

``python -m tests.benchmarks.parts cells.h5ad`` (counts, stored by row; the first 12,800 cells are used)
"""

import itertools
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numcodecs import blosc

import xloader as xl
from xloader.buffers import Buffers
from xloader.csr import CSRArray
from xloader.kernels import tiles
from xloader.packed import PackedRows
from xloader.trace import view

CODECS = {
    "counts": [("lz4", 3, 0), ("lz4", 5, 2), *(("lz4hc", k, 0) for k in (1, 5, 9)),
               *(("zstd", k, 0) for k in (1, 5, 9))],
    "deltas": [("lz4", 3, 1), ("lz4", 5, 2), ("lz4hc", 5, 1), ("zstd", 2, 1), ("zstd", 3, 2)],
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


def codecs(csr: CSRArray) -> None:
    bounds = csr.indptr[::ROWS]
    parts = {
        "counts": np.minimum(csr.data, 255).astype(np.uint8),
        "deltas": deltas_of(csr),
        "float32": csr.data.astype(np.float32),
        "uint16 columns": csr.indices.astype(np.uint16),
    }
    table = [(n, *c) for n, cs in CODECS.items() for c in cs]
    table += [("float32", "lz4", 3, 1), ("uint16 columns", "lz4", 3, 1)]
    print("what            codec    level shuffle  B/value  decode M/s  encode M/s")
    for name, cname, level, shuffle in table:
        pieces = [parts[name][a:b] for a, b in itertools.pairwise(bounds)]
        n = sum(map(len, pieces))

        def encode(pieces=pieces, cname=cname, level=level, shuffle=shuffle):
            return [blosc.compress(p, cname.encode(), level, shuffle) for p in pieces]

        begin = time.perf_counter()
        packed = encode()
        encoding = time.perf_counter() - begin
        out = np.empty(max(map(len, pieces)), parts[name].dtype)

        def decode(packed=packed, pieces=pieces, out=out):
            for chunk, piece in zip(packed, pieces, strict=True):
                blosc.decompress(chunk, out[: len(piece)])

        size = sum(map(len, packed)) / n
        print(f"{name:15s} {cname:8s} {level:5d} {shuffle:7d} {size:8.3f} "
              f"{n / best(decode) / 1e6:11.0f} {n / encoding / 1e6:11.0f}")  # fmt: skip


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
    ds = xr.Dataset({"X": (("cell", "gene"), packed.take(order, dtype, None, reused))})
    for size in (64, 4096):
        loader = xl.Loader(ds, batch_size=size)
        loader[0]
        batch = loader.plan.batch(0, 0)
        values = {"X": packed.take(order[:size], dtype, None, reused)}
        seconds = best(partial(loader._label, values, batch), 50)
        print(f"one labelled Dataset of {size} cells: {seconds * 1e6:.0f} us")


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
    codecs(rows)
