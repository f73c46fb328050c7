"""
What reads stores that cannot be read directly: ``python -m tests.benchmarks.foreign STORE`` (cells).

Chunks of one array in random order, 256 at a time, from local files: through xloader's reader of
foreign stores, TensorStore (where it is installed) and zarr-python. Medians of interleaved passes.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

from xloader.store.foreign import ForeignArray
from xloader.store.layout import read_root
from xloader.store.opened import Arrays

ARRAY = "X/values"
ROUNDS, CHUNKS, TOGETHER = 5, 1024, 256

Read = Callable[[np.ndarray], Any]


def ours(store: Path) -> ForeignArray:
    arrays = Arrays(store, read_root(store)["arrays"], "")
    metadata, entry = arrays.metadata[ARRAY], arrays.listed[ARRAY]
    chunk = metadata["codecs"][0]["configuration"]["chunk_shape"]
    return ForeignArray(store / ARRAY, metadata, entry["files"], tuple(chunk))


def by_zarr(store: Path) -> Read:
    array = zarr.open_array(str(store), path=ARRAY, mode="r")._async_array

    async def read(rows: np.ndarray) -> None:
        await asyncio.gather(
            *(array.getitem((slice(r, r + 1), slice(None))) for r in rows.tolist())
        )

    return lambda rows: sync(read(rows))


def by_tensorstore(store: Path) -> Read:
    import tensorstore as ts

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store}/{ARRAY}/"}}
    context = ts.Context({"data_copy_concurrency": {"limit": 2}})
    array = ts.open(spec, open=True, read=True, context=context).result()

    def read(rows: np.ndarray) -> None:
        for waiting in [array[r : r + 1].read() for r in rows.tolist()]:
            waiting.result()

    return read


def main(store: Path) -> None:
    array = ours(store)
    rows = np.random.default_rng(0).permutation(array.shape[0])[:CHUNKS]
    readers: dict[str, Read] = {
        "xloader": lambda some: array.read_chunks(np.stack([some, some * 0], 1)),
        "zarr": by_zarr(store),
    }
    try:
        readers["tensorstore"] = by_tensorstore(store)
    except ImportError:
        print("tensorstore is not installed")
    taken: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(ROUNDS):
        for name, read in readers.items():
            begin = time.perf_counter()
            for k in range(0, len(rows), TOGETHER):
                read(rows[k : k + TOGETHER])
            taken[name].append(time.perf_counter() - begin)
    for name, seconds in taken.items():
        print(f"{name:12s} {len(rows) / statistics.median(seconds):8.0f} chunks/s")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
