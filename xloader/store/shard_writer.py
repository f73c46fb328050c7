"""Shards of new zarr arrays, written by the calling thread without zarr."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from xloader.store.write import compression, create_array

# threads are ours: blosc's own pool is global, locked, and does not survive a fork
blosc.use_threads = False

_ABSENT = 2**64 - 1

WAITING_NBYTES = 2**17
"""Bytes of a shard that are written together."""


class Shards:
    """
    A new sharded array, whose shards are written whole by the calling thread.

    Bytes depend on nothing but the values; a chunk that holds nothing but the fill value and a shard of
    such chunks are left out.

    Parameters
    ----------
    path : Path
        Directory of the array.
    codec : {"fast", "small"}
        How to compress.
    kind : {"counts", "deltas", "tiles", "dense"}
        What it holds.
    shape, chunks, shards : sequence of int
        Of the array, of a chunk and of a shard; a shard is a multiple of a chunk.
    dtype : dtype
        Type of the elements.
    dimension_names : sequence of str
        One per dimension.
    fill_value : float, optional
        What is read where nothing was written: 0 or NaN. Default: 0.
    """

    def __init__(
        self,
        path: Path,
        *,
        codec: str,
        kind: str,
        shape: Sequence[int],
        chunks: Sequence[int],
        shards: Sequence[int],
        dtype: np.dtype[Any],
        dimension_names: Sequence[str],
        fill_value: float = 0,
    ) -> None:
        create_array(
            path,
            codec=codec,
            kind=kind,
            shape=shape,
            chunks=chunks,
            shards=shards,
            dtype=dtype,
            dimension_names=dimension_names,
            fill_value=fill_value,
        )
        self.path, self.dtype, self.chunk_shape = path, dtype, tuple(chunks)
        self.per_shard = tuple(s // c for s, c in zip(shards, chunks, strict=True))
        self.compression = compression(codec, kind, dtype)
        self.fill_value = fill_value

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
        self.index = np.full((*array.per_shard, 2), _ABSENT, "<u8")
        self.nbytes = 0
        self.begun = False
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

    def _append(self, encoded: bytes) -> None:
        self.waiting.append(encoded)
        self.nbytes += len(encoded)
        self.waiting_nbytes += len(encoded)
        if self.waiting_nbytes > WAITING_NBYTES:
            self._flush()

    def _flush(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # many shards may be open at a time, but not files; one of a killed process begins anew
        with self.path.open("ab" if self.begun else "wb") as file:
            file.writelines(self.waiting)
        self.begun = True
        self.waiting, self.waiting_nbytes = [], 0
