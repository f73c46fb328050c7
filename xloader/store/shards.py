"""Sharded zarr arrays on local disks, read without zarr: shards kept open, their indexes parsed once."""

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from xloader.errors import ReadError
from xloader.store.layout import metadata_of
from xloader.threads import cut, n_threads, run

Int64 = npt.NDArray[np.int64]
T = TypeVar("T")

# threads are ours: blosc's own pool is global, locked, and does not survive a fork
blosc.use_threads = False

# the CRC32C of any bytes followed by their own CRC32C, which saves a copy without the last four
_CRC_OF_CHECKED = 0x48674BC7
_ABSENT = np.uint64(2**64 - 1)
_INLINE_NBYTES = 2**18
_MAX_KNOWN = 2**14
_MAX_OPEN = 512
_Key = tuple[str, int]
"""Path of an array, and number of a shard in it."""
_shards: "OrderedDict[_Key, _Shard]" = OrderedDict()
_files: "OrderedDict[_Key, _File]" = OrderedDict()
"""Read only by position, which is safe to inherit through a fork."""


@dataclass(frozen=True)
class _Shard:
    """What is known of one shard file."""

    path: str
    size: int
    """Bytes of the file."""
    stamp: tuple[int, ...]
    """What changes with the file; see `_stamp_of`."""
    index: npt.NDArray[np.uint64]
    """Offset and length of each inner chunk in bytes, shape (n_chunks, 2)."""
    checked: npt.NDArray[np.bool_]
    """Whether the checksum of each inner chunk was compared since the index was read."""


@dataclass(frozen=True)
class _Jobs:
    """Chunks to decode."""

    slots: Int64
    """Place of each in the output."""
    files: Int64
    """Descriptor of the file of each."""
    offsets: Int64
    """Where each begins in its file."""
    lengths: Int64
    """Encoded bytes of each, without checksum."""
    paths: list[str]
    """Path of each file, for messages, shape (n_shards,)."""
    shards: Int64
    """Place in `paths` of the file of each."""
    held: list["_File"]
    """What keeps the files open."""

    def read(self, job: int) -> bytes:
        """Return the bytes of a chunk, fewer where its file ends."""
        where = self.files[job], self.lengths[job], self.offsets[job]
        return os.pread(*map(int, where))

    def path(self, job: int) -> str:
        """Return the file of a chunk."""
        return self.paths[int(self.shards[job])]


class ShardedArray:
    """
    A sharded zarr v3 array of a local store.

    Inner chunks may be compressed with blosc and checked with crc32c. The array pickles as a
    recipe: shard files are opened when they are first read, in each process.

    Parameters
    ----------
    path : str
        Directory of the array.
    shards : sequence of (int, int), optional
        Half-open runs of the shards that were written, in row-major order; one of them that is
        missing is an error. Default: a missing shard holds the fill value.

    marks : sequence of int, optional
        What `xloader.store.write.mark` said of each shard that was written, in the same order.

    Attributes
    ----------
    shape, chunk_shape, shard_shape : tuple of int
        In elements.
    dtype : numpy.dtype
        Type of the elements.
    whose : callable or None
        Says what a run of chunks holds, such as its rows, for messages.

    Raises
    ------
    ReadError
        If the metadata are missing, damaged, or of an array that is written in another way.
    """

    def __init__(
        self,
        path: str,
        shards: Sequence[Sequence[int]] | None = None,
        marks: Sequence[int] | None = None,
    ) -> None:
        self.path = path
        metadata = metadata_of(Path(path))
        self._stamp = _stamp(path)
        try:
            self._parse(metadata)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
            msg = f"array {path!r} is no sharded zarr v3 array that xloader reads: {e!r}"
            raise ReadError(msg) from e
        self.whose: Callable[[Int64, Int64], str] | None = None
        self._runs = None if shards is None else np.asarray(shards, np.int64).reshape(-1, 2)
        self._marks: dict[int, int] | None = None
        if self._runs is not None and marks is not None:
            written = np.concatenate([np.arange(0), *(np.arange(a, b) for a, b in self._runs)])
            self._marks = dict(zip(written.tolist(), marks, strict=True))

    def _parse(self, metadata: dict[str, Any]) -> None:
        self.shape = tuple(map(int, metadata["shape"]))
        self.shard_shape = tuple(map(int, metadata["chunk_grid"]["configuration"]["chunk_shape"]))
        (sharding,) = _configurations(metadata["codecs"], ["sharding_indexed"]).values()
        self.chunk_shape = tuple(map(int, sharding["chunk_shape"]))
        self._check_sharding(metadata, sharding)
        codecs = _configurations(sharding["codecs"], ["bytes", "blosc", "crc32c"])
        order = ">" if codecs["bytes"].get("endian") == "big" else "<"
        self.dtype = np.dtype(metadata["data_type"]).newbyteorder(order)
        fill = metadata["fill_value"]
        self.fill_value = self.dtype.type(complex(*map(float, fill)) if _is_pair(fill) else fill)
        self._compressed = "blosc" in codecs
        self._checked = "crc32c" in codecs
        self._per_shard = tuple(
            s // c for s, c in zip(self.shard_shape, self.chunk_shape, strict=True)
        )
        self._grid = tuple(-(-n // s) for n, s in zip(self.shape, self.shard_shape, strict=True))

    @staticmethod
    def _check_sharding(metadata: dict[str, Any], sharding: dict[str, Any]) -> None:
        """Refuse what is legal zarr but not read here."""
        keys = metadata["chunk_key_encoding"]
        index = _configurations(sharding["index_codecs"], ["bytes", "crc32c"])
        for what, found, wanted in (
            ("chunk_grid", metadata["chunk_grid"]["name"], "regular"),
            ("chunk_key_encoding", keys["name"], "default"),
            ("separator", keys.get("configuration", {}).get("separator", "/"), "/"),
            ("index_location", sharding.get("index_location", "end"), "end"),
            ("index_codecs", list(index), ["bytes", "crc32c"]),
            ("index endian", index.get("bytes", {}).get("endian"), "little"),
        ):
            if found != wanted:
                msg = f"{what} is {found!r}, not {wanted!r}"
                raise ValueError(msg)

    @property
    def chunk_nbytes(self) -> int:
        """
        Return the bytes of one decoded inner chunk.

        Returns
        -------
        int
            Without compression.
        """
        return int(math.prod(self.chunk_shape) * self.dtype.itemsize)

    def read_chunks(
        self, chunk_ids: Int64, out: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[Any]:
        """
        Decode inner chunks, each as often as it is named.

        Parameters
        ----------
        chunk_ids : ndarray of int64, shape (m, ndim)
            Places in the grid of inner chunks.
        out : ndarray, shape (m, *chunk_shape), optional
            Where they go, contiguous and of type `dtype`. Default: a new array.

        Returns
        -------
        ndarray, shape (m, *chunk_shape)
            Values of type `dtype` in native byte order; chunks that were never written hold the
            fill value, and so does what lies beyond the array.

        Raises
        ------
        ReadError
            If a shard file is missing, truncated or damaged; names the array, file and chunk.
        """
        ids = np.asarray(chunk_ids, np.int64).reshape(-1, len(self.shape))
        if out is None:
            out = np.empty((len(ids), *self.chunk_shape), self.dtype)
        if len(ids) == 0:
            return out
        jobs = self._plan(ids, out)
        n_parts = n_threads() if len(jobs.slots) * self.chunk_nbytes > _INLINE_NBYTES else 1
        functions = _functions() if self._compressed else None
        parts = [(jobs, a, b, out, functions) for a, b in cut(len(jobs.slots), n_parts)]
        for failed in run("decode", self._decode, parts):
            if failed is not None:
                job, why = failed
                raise self._broken(jobs.path(job), ids[jobs.slots[job]], why)
        return out.astype(self.dtype.newbyteorder("="), copy=False)

    def _plan(self, ids: Int64, out: npt.NDArray[Any]) -> _Jobs:
        """Find where chunks lie; those that were never written are filled at once."""
        shard_ids, inner_ids = np.divmod(ids, self._per_shard)
        shard_of = np.ravel_multi_index(tuple(shard_ids.T), self._grid)
        inner = np.ravel_multi_index(tuple(inner_ids.T), self._per_shard)
        numbers, which = np.unique(shard_of, return_inverse=True)
        found = [self._shard(number) for number in numbers.tolist()]
        written = [x for x in found if x is not None]
        place = np.cumsum([x is not None for x in found]) - 1
        place[[x is None for x in found]] = -1
        # the table of all shards needed is small, and one lookup in it saves one for each shard
        none = np.full((1, 2), _ABSENT)
        n_chunks = math.prod(self._per_shard)
        table = np.concatenate([*(shard.index for shard, _ in written), none])
        which = place[which]
        at = np.where(which < 0, len(table) - 1, which * n_chunks + inner)
        spans = table[at]
        absent = (spans == _ABSENT).all(axis=1)
        if absent.any():
            out[absent] = self.fill_value
        slots = np.flatnonzero(~absent)
        slots = slots[np.argsort(which[slots], kind="stable")]
        spans, which, inner = spans[slots], which[slots], inner[slots]
        jobs = _Jobs(
            slots,
            np.array([file.fileno() for _, file in written], np.int64)[which],
            spans[:, 0].astype(np.int64),
            spans[:, 1].astype(np.int64) - (4 if self._checked else 0),
            [shard.path for shard, _ in written],
            which,
            [file for _, file in written],
        )
        self._check(jobs, [shard for shard, _ in written], spans, inner, ids)
        return jobs

    def _check(
        self,
        jobs: _Jobs,
        shards: Sequence[_Shard],
        spans: npt.NDArray[np.uint64],
        inner: Int64,
        ids: Int64,
    ) -> None:
        """Compare places with the size of the file, and bytes with checksums the first time."""
        end = 16 * math.prod(self._per_shard) + 4
        limit = np.array([shard.size - end for shard in shards], np.uint64)[jobs.shards]
        offset, length = spans.T
        outside = (offset > limit) | (length > limit - np.minimum(offset, limit))
        for k in np.flatnonzero(outside).tolist():
            why = f"lies at bytes {offset[k]}-{int(offset[k]) + int(length[k])} of {limit[k]}"
            raise self._broken(jobs.path(k), ids[jobs.slots[k]], why)
        if not self._checked:
            return
        checked = np.concatenate([shard.checked for shard in shards] or [np.zeros(0, bool)])
        new = ~checked[jobs.shards * math.prod(self._per_shard) + inner]
        for k in np.flatnonzero(new).tolist():
            encoded = os.pread(int(jobs.files[k]), int(length[k]), int(offset[k]))
            if google_crc32c.value(encoded) != _CRC_OF_CHECKED:
                why = "its bytes do not match their crc32c checksum"
                raise self._broken(jobs.path(k), ids[jobs.slots[k]], why)
            shards[jobs.shards[k]].checked[inner[k]] = True

    def _decode(
        self,
        jobs: _Jobs,
        first: int,
        last: int,
        out: npt.NDArray[Any],
        functions: tuple[int, int] | None,
    ) -> tuple[int, str] | None:
        """Decode some chunks; return the first that fails, and why."""
        size, slots = self.chunk_nbytes, jobs.slots[first:last]
        if functions is not None:
            from xloader.kernels.decode import decode

            where = (jobs.files[first:last], jobs.offsets[first:last], jobs.lengths[first:last])
            failed = decode(functions, *where, out.ctypes.data + slots * size, size)
            return (
                None if failed < 0 else (first + failed, f"blosc cannot decode it to {size} bytes")
            )
        for k, slot in enumerate(slots.tolist(), first):
            try:
                _decode_one(jobs.read(k), out[slot], compressed=self._compressed)
            except (ValueError, RuntimeError) as e:
                return k, str(e)
        return None

    def _broken(self, shard: str, chunk: Int64, why: str) -> ReadError:
        held = f" ({self.whose(chunk, chunk)})" if self.whose else ""
        return ReadError(
            f"chunk {tuple(chunk.tolist())}{held} of array {self.path!r}, in shard file {shard!r}, "
            f"cannot be read: {why}; the file is damaged, convert the source again"
        )

    def _shard(self, number: int) -> "tuple[_Shard, _File] | None":
        """Return a shard and its open file; None if it was never written."""
        key = self.path, number
        shard, file = _shards.get(key), _files.get(key)
        try:
            if shard is not None and shard.stamp == _stamp_of(os.stat(shard.path)):  # noqa: PTH116 # hot
                if file is not None:
                    return shard, file
                file = _File(shard.path)
                if shard.stamp == _stamp_of(os.fstat(file.fileno())):
                    _keep(_files, key, file, _MAX_OPEN)
                    return shard, file
        except OSError:
            pass  # told below
        if self._runs is not None:
            run = int(np.searchsorted(self._runs[:, 0], number, "right")) - 1
            if run < 0 or number >= self._runs[run, 1]:
                return None
        found = self._open(number)
        if found is not None:
            _keep(_shards, key, found[0], _MAX_KNOWN)
            _keep(_files, key, found[1], _MAX_OPEN)
        return found

    def _open(self, number: int) -> "tuple[_Shard, _File] | None":
        place = np.unravel_index(number, self._grid)
        path = "/".join([self.path, "c", *(str(int(k)) for k in place)])
        if _stamp(self.path) != self._stamp:
            msg = (
                f"array {self.path!r} was replaced after it was opened; open the store again to "
                "read the new one"
            )
            raise ReadError(msg)
        try:
            file = _File(path)
        except FileNotFoundError:
            if self._runs is None:
                return None
            msg = f"shard file {path!r} of array {self.path!r} is missing; convert the source again"
            raise ReadError(msg) from None
        except OSError as e:
            msg = f"cannot read shard file {path!r} of array {self.path!r}: {e.strerror}"
            raise ReadError(msg) from e
        status = os.fstat(file.fileno())
        n_chunks = math.prod(self._per_shard)
        length = 16 * n_chunks + 4
        # with the last four bytes of the last chunk, which are its checksum
        tail = os.pread(file.fileno(), length + 4, max(0, status.st_size - length - 4))
        index = tail[-length:]
        crc = int.from_bytes(index[-4:], "little")
        if len(index) != length or google_crc32c.value(index[:-4]) != crc:
            msg = (
                f"shard file {path!r} of array {self.path!r} ({status.st_size} bytes"
                f"{self._held(number)}) does not end with the index of its {n_chunks} chunks: it is "
                "truncated or damaged, convert the source again"
            )
            raise ReadError(msg)
        if self._marks is not None and google_crc32c.value(tail[:-4]) != self._marks[number]:
            msg = (
                f"shard file {path!r} of array {self.path!r} ({status.st_size} bytes"
                f"{self._held(number)}) is not the one that was written: it was replaced, or "
                "the index of its chunks is damaged; convert the source again"
            )
            raise ReadError(msg)
        spans = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
        stamp = _stamp_of(status)
        return _Shard(path, status.st_size, stamp, spans, np.zeros(n_chunks, bool)), file

    def _held(self, number: int) -> str:
        """Say what a shard holds, for messages."""
        if self.whose is None:
            return ""
        first = np.array(np.unravel_index(number, self._grid)) * self._per_shard
        n_chunks = [-(-n // c) for n, c in zip(self.shape, self.chunk_shape, strict=True)]
        return f", {self.whose(first, np.minimum(first + self._per_shard, n_chunks) - 1)}"


class _File:
    """A file descriptor, closed when nobody needs it."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _keep(known: "OrderedDict[_Key, T]", key: _Key, value: T, limit: int) -> None:
    """Remember something, and forget what was learnt first where that is too much."""
    known[key] = value
    while len(known) > limit:
        known.popitem(last=False)


def _stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes with a file, so that what was checked is checked again."""
    return status.st_mtime_ns, status.st_size, status.st_ino


def _functions() -> tuple[int, int] | None:
    from xloader.kernels.decode import functions  # numba is imported when bytes are first read

    return functions()


def _decode_one(encoded: bytes, out: npt.NDArray[Any], *, compressed: bool) -> None:
    """Decode one inner chunk into `out`, or say in a ValueError what is wrong with it."""
    # a blosc header gives the decoded size in its bytes 4-7
    size = int.from_bytes(encoded[4:8], "little") if compressed else len(encoded)
    if size != out.nbytes:
        msg = f"it decodes to {size} bytes, not {out.nbytes}"
        raise ValueError(msg)
    if compressed:
        blosc.decompress(encoded, out)
    else:
        out[...] = np.frombuffer(encoded, out.dtype).reshape(out.shape)


def _stamp(path: str) -> int:
    """Return the time an array was written, which tells it from one that replaced it."""
    try:
        return (Path(path) / "zarr.json").stat().st_mtime_ns
    except OSError as e:
        msg = f"array {path!r} is gone: {e.strerror}; check that its store is still there"
        raise ReadError(msg) from e


def _configurations(codecs: Sequence[dict[str, Any]], known: list[str]) -> dict[str, Any]:
    """Return the configurations of a chain of codecs by name, refusing others and other orders."""
    names = [codec["name"] for codec in codecs]
    if names != [name for name in known if name in names] or known[0] not in names:
        msg = f"codecs are {names}, and what is read is {known}, in this order, without others"
        raise ValueError(msg)
    return {codec["name"]: codec.get("configuration", {}) for codec in codecs}


def _is_pair(value: Any) -> bool:
    return isinstance(value, list)
