"""Shards of new zarr arrays, written by the calling thread without zarr."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from xloader.store.new_files import replace_file, unfinished
from xloader.store.write import compression, create_array

# threads are ours: blosc's own pool is global, locked, and does not survive a fork
blosc.use_threads = False

_ABSENT = 2**64 - 1

WAITING_NBYTES = 2**17
"""Bytes of a shard that are written together."""


class Shards:
    """
    A sharded array, whose shards are written whole by the calling thread.

    Bytes depend on nothing but the values; a chunk that holds nothing but the fill value and a shard of
    such chunks are left out. A shard gets its name when it is whole, so that it may be written again,
    and by several processes.

    Parameters
    ----------
    path : Path
        Directory of the array.
    codec : {"fast", "small"}
        How to compress.
    kind : {"counts", "deltas", "tiles", "dense"}
        What it holds.
    dtype : dtype
        Type of the elements.
    chunks, shards : sequence of int
        Shape of a chunk and of a shard, which is a multiple of a chunk.
    fill_value : float, optional
        What is read where nothing was written: 0 or NaN. Default: 0.
    **kwargs
        `shape` and `dimension_names` for `zarr.create_array`.
    """

    def __init__(
        self,
        path: Path,
        *,
        codec: str,
        kind: str,
        dtype: np.dtype[Any],
        chunks: Sequence[int],
        shards: Sequence[int],
        fill_value: float = 0,
        **kwargs: Any,
    ) -> None:
        self.path, self.dtype, self.chunk_shape = path, dtype, tuple(chunks)
        self.per_shard = tuple(s // c for s, c in zip(shards, chunks, strict=True))
        self.compression = compression(codec, kind, dtype)
        self.fill_value = fill_value
        self.metadata: dict[str, Any] = {
            "codec": codec,
            "kind": kind,
            "dtype": dtype,
            "chunks": tuple(chunks),
            "shards": tuple(shards),
            "fill_value": fill_value,
            **kwargs,
        }

    def create(self) -> None:
        """Write the metadata of the array, unless they are there."""
        if not (self.path / "zarr.json").exists():
            made: dict[str, Any] = {}
            create_array(made, **self.metadata)
            replace_file(self.path / "zarr.json", [made["zarr.json"].to_bytes()])

    def write(self, place: Sequence[int], values: npt.NDArray[Any]) -> None:
        """
        Write one shard.

        Parameters
        ----------
        place : sequence of int
            Where it is in the grid of shards.
        values : ndarray
            Its values, as many as the array has.
        """
        shard = Shard(self, place)
        for at in np.ndindex(self.per_shard):
            sides = zip(at, self.chunk_shape, strict=True)
            chunk = values[tuple(slice(k * n, (k + 1) * n) for k, n in sides)]
            if chunk.size:
                shard.add(at, chunk)
        shard.close()


class Shard:
    """
    One shard, to which chunks are added in any order.

    Parameters
    ----------
    array : Shards
        What it is a part of.
    place : sequence of int
        Where it is in the grid of shards.
    """

    def __init__(self, array: Shards, place: Sequence[int]) -> None:
        self.array = array
        self.path = array.path.joinpath("c", *map(str, place))
        self.new = unfinished(self.path)
        self.index = np.full((*array.per_shard, 2), _ABSENT, "<u8")
        self.nbytes = 0
        self.waiting: list[bytes] = []
        self.waiting_nbytes = 0

    def add(self, at: Sequence[int], chunk: npt.NDArray[Any]) -> None:
        """
        Compress a chunk, if anything is in it.

        Parameters
        ----------
        at : sequence of int
            Where it is in the shard.
        chunk : ndarray
            Its values, of the dtype of the array; fewer at the ends of the array.
        """
        if np.isnan(chunk).all() if self.array.fill_value else not chunk.any():  # NaN is true
            return
        if chunk.shape != self.array.chunk_shape:
            ends = zip(self.array.chunk_shape, chunk.shape, strict=True)
            chunk = np.pad(chunk, [(0, whole - n) for whole, n in ends])
        cname, clevel, shuffle = self.array.compression
        chunk = np.ascontiguousarray(chunk)
        encoded = blosc.compress(chunk, cname.encode(), clevel, getattr(blosc, shuffle.upper()))
        crc = google_crc32c.value(encoded).to_bytes(4, "little")
        self.index[tuple(at)] = self.nbytes, len(encoded) + 4
        self._append(encoded + crc)

    def close(self) -> None:
        """Write the rest and the index, unless the shard is empty."""
        if self.nbytes:
            index = self.index.tobytes()
            self._append(index + google_crc32c.value(index).to_bytes(4, "little"))
            self._flush()
            self.new.replace(self.path)

    def _append(self, encoded: bytes) -> None:
        self.waiting.append(encoded)
        self.nbytes += len(encoded)
        self.waiting_nbytes += len(encoded)
        if self.waiting_nbytes > WAITING_NBYTES:
            self._flush()

    def _flush(self) -> None:
        self.new.parent.mkdir(parents=True, exist_ok=True)
        with self.new.open("ab") as file:  # many shards may be open at a time, but not files
            file.writelines(self.waiting)
        self.waiting, self.waiting_nbytes = [], 0
