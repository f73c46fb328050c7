"""Zarr arrays that another tool wrote, or that lie elsewhere, read as if xloader had written them here."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.errors import ReadError
from xloader.store.codecs import Chain
from xloader.store.keys import Keys, strides
from xloader.store.places import Place, Span, Url, read_files
from xloader.store.write import tail_length
from xloader.threads import cut, n_threads, run

Int64 = npt.NDArray[np.int64]

_ABSENT = np.uint64(2**64 - 1)
_BATCH_NBYTES = 2**26
_INLINE_NBYTES = 2**18
_MAX_INDEXES = 4096


class ForeignArray:
    """
    A zarr array on any file system, cut into whatever chunks are asked for.

    It answers like `ShardedArray`, for any regular chunks, shards and codecs of the specification.
    Each stored chunk is fetched and decoded once per call. The array pickles as a recipe.

    Parameters
    ----------
    place : Path or Url
        Directory of the array.
    metadata : mapping
        Its metadata, in the form of zarr v3 (`xloader.store.zarr_v2.as_v3` gives it to others).
    files : sequence of (int, int)
        Half-open runs of the files, shards or chunks, that were written, in row-major order; one of
        them that is missing is an error.
    chunk_shape : tuple of int, optional
        Shape of the chunks that `read_chunks` counts and returns. Default: stored chunks along the
        first dimension, everything along the others.
    marks : sequence of int, optional
        What `xloader.store.write.mark` said of each file that was written, in the same order. Shards
        that begin with their index are not compared with it, as that takes the whole file.

    Attributes
    ----------
    shape : tuple of int
        In elements.
    dtype : numpy.dtype
        Type of the elements, in native byte order.
    path : str
        Its place, for messages.
    whose : callable or None
        Says what a run of chunks holds, such as its rows, for messages.

    Raises
    ------
    ReadError
        If the metadata are damaged, or of an array that cannot be read.
    """

    def __init__(
        self,
        place: Place,
        metadata: Mapping[str, Any],
        files: Sequence[Sequence[int]],
        chunk_shape: tuple[int, ...] | None = None,
        marks: Sequence[int] | None = None,
    ) -> None:
        self.place = place
        self.path = str(place)
        self.whose: Callable[[Int64, Int64], str] | None = None
        self._files = np.asarray(files, np.int64).reshape(-1, 2)
        self._indexes: dict[int, npt.NDArray[np.uint64]] = {}
        self._stamp = _stamp(place)
        try:
            self._parse(metadata)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
            msg = f"array {self.path!r} is no zarr v3 array that xloader reads: {e!r}"
            raise ReadError(msg) from e
        self.chunk_shape = chunk_shape or (*self._stored[:1], *self.shape[1:])
        written = np.concatenate([np.arange(0), *(np.arange(a, b) for a, b in self._files)])
        comparable = marks is not None and (self._sharding is None or self._sharding.at_end)
        self._marks = dict(zip(written.tolist(), marks or (), strict=True)) if comparable else None

    def _parse(self, metadata: Mapping[str, Any]) -> None:
        self.shape = tuple(map(int, metadata["shape"]))
        grid = metadata["chunk_grid"]
        if grid["name"] != "regular" or metadata.get("storage_transformers"):
            msg = f"chunk_grid is {grid['name']!r}, with {metadata.get('storage_transformers')}"
            raise ValueError(msg)
        self._keys = Keys(metadata)
        file_shape = self._keys.file_shape
        kind = metadata["data_type"]
        if not isinstance(kind, str):
            msg = f"data_type is {kind}"
            raise ValueError(msg)  # noqa: TRY004 # the file is wrong, not the program
        is_text = kind == "string"
        self.dtype = np.dtype(object if is_text else kind)
        fill = metadata["fill_value"]
        self.fill_value = complex(*map(float, fill)) if isinstance(fill, list) else fill
        if not is_text:
            self.fill_value = self.dtype.type(self.fill_value)
        codecs = metadata["codecs"]
        self._sharding = None
        self._stored = file_shape
        if codecs[0]["name"] == "sharding_indexed":
            self._sharding = _Sharding(codecs, file_shape, tail_length(metadata))
            codecs, self._stored = self._sharding.codecs, self._sharding.chunk_shape
        self._chain = Chain(codecs, self._stored, self.dtype)
        self._per_file = tuple(f // s for f, s in zip(file_shape, self._stored, strict=True))

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": {}}

    @property
    def chunk_nbytes(self) -> int:
        """
        Return the bytes of one chunk.

        Returns
        -------
        int
            Of `chunk_shape`, without compression.
        """
        return math.prod(self.chunk_shape) * self.dtype.itemsize

    def read_all(self) -> npt.NDArray[Any]:
        """
        Read the whole array.

        Returns
        -------
        ndarray
            In memory.

        Raises
        ------
        ReadError
            As for `read_chunks`.
        """
        zero = np.zeros((1, len(self.shape)), np.int64)
        return self.read_boxes(zero, zero + np.array(self.shape, np.int64)).reshape(self.shape)

    @property
    def stored_chunk(self) -> tuple[int, ...]:
        """
        Return the shape of what is decoded together.

        Returns
        -------
        tuple of int
            In elements.
        """
        return self._stored

    def read_boxes(self, begin: Int64, end: Int64) -> npt.NDArray[Any]:
        """
        Read boxes of any size; each stored chunk is decoded once.

        Parameters
        ----------
        begin, end : ndarray of int64, shape (m, ndim)
            Half-open bounds, in elements, inside the array.

        Returns
        -------
        ndarray
            The values of all boxes, each in row-major order, one after the other.

        Raises
        ------
        ReadError
            As for `read_chunks`.
        """
        sizes = (end - begin).prod(axis=1)
        flat = np.empty(int(sizes.sum()), self.dtype)
        cuts = np.append(0, np.cumsum(sizes)).tolist()
        shapes = (end - begin).tolist()
        out = [flat[a:b].reshape(s) for a, b, s in zip(cuts, cuts[1:], shapes, strict=False)]
        self._read(_Pastes(begin, end, self._stored, self.shape), out)
        return flat

    def read_chunks(
        self, chunk_ids: Int64, out: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[Any]:
        """
        Read chunks, each as often as it is named.

        Parameters
        ----------
        chunk_ids : ndarray of int64, shape (m, ndim)
            Places in the grid of chunks.
        out : ndarray, shape (m, *chunk_shape), optional
            Where they go. Default: a new array.

        Returns
        -------
        ndarray, shape (m, *chunk_shape)
            Values; what was never written holds the fill value, and so does what lies beyond the
            array.

        Raises
        ------
        ReadError
            If a file is missing, cannot be reached, or is damaged; names the array, file and chunk.
        """
        ids = np.asarray(chunk_ids, np.int64).reshape(len(chunk_ids), len(self.shape))
        if out is None:
            out = np.empty((len(ids), *self.chunk_shape), self.dtype)
        crossing = ((ids + 1) * self.chunk_shape > self.shape).any(axis=1)
        out[crossing] = self.fill_value
        begin = ids * np.array(self.chunk_shape, np.int64)
        end = np.minimum(begin + self.chunk_shape, self.shape)
        boxes = [out[k, ...] for k in range(len(out))]  # views, those of scalars too
        self._read(_Pastes(begin, end, self._stored, self.shape, ids), boxes)
        return out

    def _read(self, pastes: "_Pastes", out: Sequence[npt.NDArray[Any]]) -> None:
        if _stamp(self.place) != self._stamp:
            msg = (
                f"array {self.path!r} was replaced after it was opened; open the store again to "
                "read the new one"
            )
            raise ReadError(msg)
        if len(pastes.chunks) == 0:
            return
        nbytes = math.prod(self._stored) * self.dtype.itemsize
        n = max(1, _BATCH_NBYTES // nbytes)
        for first in range(0, len(pastes.chunks), n):
            chunks = pastes.chunks[first : first + n]
            encoded = self._fetch(chunks, pastes, first)
            n_parts = n_threads() if len(chunks) * nbytes > _INLINE_NBYTES else 1
            parts = [(pastes, first, encoded, a, b, out) for a, b in cut(len(chunks), n_parts)]
            run("decode", self._decode, parts)

    def _decode(
        self,
        pastes: "_Pastes",
        first: int,
        encoded: list[bytes | None],
        low: int,
        high: int,
        out: Sequence[npt.NDArray[Any]],
    ) -> None:
        for k in range(low, high):
            raw = encoded[k]
            if raw is None:
                chunk = np.broadcast_to(np.asarray(self.fill_value, self.dtype), self._stored)
            else:
                try:
                    if self._sharding is None:
                        number = int(pastes.chunks[first + k] @ strides(self._keys.grid))
                        self._check_mark(number, raw)
                    chunk = self._chain.decode(raw)
                except Exception as e:  # by a codec of any make
                    why = f"cannot be decoded: {e}; {_DAMAGED}"
                    raise self._broken(pastes, first + k, why) from e
            pastes.paste(first + k, chunk, out)

    def _fetch(self, chunks: Int64, pastes: "_Pastes", first: int) -> list[bytes | None]:
        """Return the encoded bytes of stored chunks; None for those that were never written."""
        files, inner = np.divmod(chunks, self._per_file)
        numbers = files @ strides(self._keys.grid)
        run_of = np.searchsorted(self._files[:, 0], numbers, "right") - 1
        stops = np.append(self._files[:, 1], 0)  # for those before the first run
        written = np.flatnonzero(numbers < stops[run_of])
        places = [self._place(files[k]) for k in written]
        spans = None
        if self._sharding is not None:
            at = (inner @ strides(self._per_file))[written]
            indexes = self._shard_indexes(
                numbers[written],
                places,
                lambda k, why: self._broken(pastes, first + written[k], why),
            )
            rows = np.array([index[i] for index, i in zip(indexes, at, strict=True)], np.uint64)
            rows = rows.reshape(-1, 2)
            there = np.flatnonzero((rows != _ABSENT).any(axis=1))
            written, places = written[there], [places[k] for k in there]
            spans = [(a, a + n) for a, n in rows[there].tolist()]
        out: list[bytes | None] = [None] * len(chunks)
        for k, raw in zip(written.tolist(), read_files(places, spans), strict=True):
            if raw is None:
                raise self._broken(pastes, first + k, _MISSING)
            out[k] = raw
        return out

    def _shard_indexes(
        self, numbers: Int64, places: Sequence[Place], blame: Callable[[int, str], ReadError]
    ) -> list[npt.NDArray[np.uint64]]:
        """Return the index of the shard of each chunk, fetching those that are new."""
        assert self._sharding is not None
        indexes = self._indexes
        known = {k: indexes[k] for k in numbers.tolist() if k in indexes}
        new = {n: k for k, n in reversed([*enumerate(numbers.tolist())]) if n not in known}
        answers = read_files([places[k] for k in new.values()], [self._sharding.span] * len(new))
        for (number, k), raw in zip(new.items(), answers, strict=True):
            if raw is None:
                raise blame(k, _MISSING)
            try:
                known[number] = self._sharding.parse(raw)
                self._check_mark(number, raw)
            except ValueError as e:
                raise blame(k, f"cannot be decoded: {e}; {_DAMAGED}") from e
        if len(indexes) > _MAX_INDEXES:
            indexes = self._indexes = {}  # another thread may still look into the old one
        indexes.update(known)
        return [known[k] for k in numbers.tolist()]

    def _check_mark(self, number: int, end: bytes) -> None:
        """Tell a file, by its last bytes, from one that was written to another place."""
        if self._marks is not None and google_crc32c.value(end[:-4]) != self._marks[number]:
            msg = "it is not the file that was written"
            raise ValueError(msg)

    def _place(self, file: Int64) -> Place:
        return self.place / self._keys.name(file.tolist())

    def _broken(self, pastes: "_Pastes", k: int, why: str) -> ReadError:
        file = self._place(pastes.chunks[k] // self._per_file)
        chunk = pastes.first_user(k) if pastes.ids is not None else pastes.chunks[k]
        held = f" ({self.whose(chunk, chunk)})" if self.whose else ""
        return ReadError(
            f"chunk {tuple(chunk.tolist())}{held} of array {self.path!r}, in file {str(file)!r}, {why}"
        )


_MISSING = "is missing, and was there when the store was made; copy or convert it again"
_DAMAGED = "the file is truncated, damaged or another one: copy or convert it again"


class _Sharding:
    """How the chunks of a shard file are found."""

    def __init__(
        self,
        codecs: Sequence[Mapping[str, Any]],
        shard_shape: tuple[int, ...],
        tail: int | None,
    ) -> None:
        if len(codecs) > 1:
            msg = f"codecs are {[c['name'] for c in codecs]}, and shards are read without others"
            raise ValueError(msg)
        options = codecs[0]["configuration"]
        self.codecs = options["codecs"]
        self.chunk_shape = tuple(map(int, options["chunk_shape"]))
        pairs = zip(shard_shape, self.chunk_shape, strict=True)
        self.n_chunks = math.prod(s // c for s, c in pairs)
        names = [codec["name"] for codec in options["index_codecs"]]
        self.at_end = tail is not None
        self.checked = "crc32c" in names
        if names not in (["bytes"], ["bytes", "crc32c"]):
            msg = f"codecs of the shard index are {names}, not bytes and crc32c"
            raise ValueError(msg)
        big = options["index_codecs"][0].get("configuration", {}).get("endian") == "big"
        self.dtype = np.dtype(">u8" if big else "<u8")

        self.size = 16 * self.n_chunks + 4 * self.checked
        # the end of a file: its index, and a little of its last chunk
        self.span: Span = (0, self.size) if tail is None else (-tail, None)

    def parse(self, raw: bytes) -> npt.NDArray[np.uint64]:
        """Return offset and length of each chunk."""
        raw = raw[-self.size :] if self.at_end else raw
        size = 16 * self.n_chunks
        crc = google_crc32c.value(raw[:size]).to_bytes(4, "little") if self.checked else b""
        if len(raw) < size or raw[size:] != crc:
            msg = f"there is no index of its {self.n_chunks} chunks"
            raise ValueError(msg)
        return np.frombuffer(raw[:size], self.dtype).astype(np.uint64).reshape(-1, 2)


class _Pastes:
    """Which parts of stored chunks go where: boxes of one grid cut by those of another."""

    def __init__(
        self,
        begin: Int64,
        end: Int64,
        stored: tuple[int, ...],
        shape: tuple[int, ...],
        ids: Int64 | None = None,
    ) -> None:
        first, last = begin // stored, (end - 1) // stored
        spans = (last - first).max(axis=0, initial=0) + 1
        steps = np.array(list(np.ndindex(*spans.tolist())), np.int64)
        every = first[:, None] + steps
        touched = ((every <= last[:, None]) & (begin < end)[:, None]).all(axis=2)
        slots, chunks = np.nonzero(touched)[0], every[touched]
        self.ids = ids
        grid = [-(-n // side) for n, side in zip(shape, stored, strict=True)]
        _, one, which = np.unique(chunks @ strides(grid), return_index=True, return_inverse=True)
        self.chunks = chunks[one]
        order = np.argsort(which, kind="stable")
        self.slots, owners = slots[order], which[order]
        low = np.maximum(begin[self.slots], self.chunks[owners] * stored)
        high = np.minimum(end[self.slots], (self.chunks[owners] + 1) * stored)
        self._ptr = np.searchsorted(owners, np.arange(len(self.chunks) + 1))
        origins = (begin[self.slots], self.chunks[owners] * stored)
        self._targets, self._sources = (np.stack([low - o, high - o], axis=2) for o in origins)

    def first_user(self, k: int) -> Int64:
        """Return the number of the first box that a stored chunk is needed for."""
        assert self.ids is not None
        return np.asarray(self.ids[self.slots[self._ptr[k]]])

    def paste(self, k: int, chunk: npt.NDArray[Any], out: Sequence[npt.NDArray[Any]]) -> None:
        """Copy a stored chunk to wherever it belongs."""
        a, b = int(self._ptr[k]), int(self._ptr[k + 1])
        boxes = zip(
            self.slots[a:b].tolist(), self._targets[a:b].tolist(), self._sources[a:b].tolist(),
            strict=True,
        )  # fmt: skip
        for slot, target, source in boxes:
            out[slot][tuple(slice(*t) for t in target)] = chunk[tuple(slice(*s) for s in source)]


def _stamp(place: Place) -> int | None:
    """Return the time an array was written, which tells it from one that replaced it."""
    if isinstance(place, Url):
        return None
    file = Path(place) / "zarr.json"
    try:
        return (file if file.exists() else file.with_name(".zarray")).stat().st_mtime_ns
    except OSError as e:
        msg = f"array {str(place)!r} is gone: {e.strerror}; check that its store is still there"
        raise ReadError(msg) from e
