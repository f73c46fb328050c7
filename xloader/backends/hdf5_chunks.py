"""
Compressed HDF5 datasets, decoded chunk by chunk on several threads.

h5py has one lock for everything and decodes under it. Here it hands out chunks as they are stored,
and filters that are simple enough are undone outside of its lock; the rest is left to it.
"""

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from xloader.threads import cut, n_threads, run

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]
Place = tuple[int, ...]
Box = tuple[slice, ...]
Job = tuple[Place, list[tuple[Box, Box]]]
"""First element of a chunk; where its pieces lie in the dataset, and where they go."""

_GZIP, _SHUFFLE, _LZF = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_LZF
_INLINE_NBYTES = 2**18


class Chunks:
    """
    A dataset whose chunks are decoded here.

    Parameters
    ----------
    dataset : h5py.Dataset
        What `decodable` accepts.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self.dtype: np.dtype[Any] = dataset.dtype
        self.shape: Place = dataset.chunks
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        pipeline = dataset.id.get_create_plist()
        self.filters = [pipeline.get_filter(k)[0] for k in range(pipeline.get_nfilters())]

    def read(self, jobs: Sequence[Job], out: Array) -> None:
        """
        Decode chunks, each once, and copy what is asked for of them.

        Parameters
        ----------
        jobs : sequence of Job
            One per chunk.
        out : ndarray
            Where it goes, of the dtype of the dataset.
        """
        parts = n_threads() if len(jobs) * self.nbytes > _INLINE_NBYTES else 1
        run("decode", self._copy, [(jobs[a:b], out) for a, b in cut(len(jobs), parts)])

    def _copy(self, jobs: Sequence[Job], out: Array) -> None:
        for place, pieces in jobs:
            chunk = self._decode(place)
            for source, target in pieces:
                if chunk is None:
                    out[target] = self.dataset[source]
                else:
                    inside = zip(source, place, strict=True)
                    out[target] = chunk[tuple(slice(s.start - p, s.stop - p) for s, p in inside)]

    def _decode(self, place: Place) -> Array | None:
        """Return a whole chunk; None if it was never written or is damaged, which h5py tells."""
        try:
            mask, encoded = self.dataset.id.read_direct_chunk(place)
        except (OSError, RuntimeError):
            return None
        for k in reversed(range(len(self.filters))):
            if mask >> k & 1:
                continue  # this filter was left out, as it saved nothing
            try:
                encoded = self._undo(self.filters[k], encoded)
            except zlib.error:
                return None
            if len(encoded) != self.nbytes:  # which HDF5 does not notice
                msg = f"the chunk at {place} decodes to {len(encoded)} bytes, not {self.nbytes}"
                raise OSError(msg)
        return np.frombuffer(encoded, self.dtype).reshape(self.shape)

    def _undo(self, code: int, encoded: Any) -> Any:
        if code == _GZIP:
            return zlib.decompress(encoded, bufsize=self.nbytes)
        from xloader.kernels import scatter  # numba is imported when bytes are first read

        source = np.frombuffer(encoded, np.uint8)
        if code == _LZF:
            out = np.empty(self.nbytes, np.uint8)
            return out[: scatter.undo_lzf(source, out)]
        words = np.empty(self.nbytes // self.dtype.itemsize, f"u{self.dtype.itemsize}")
        scatter.undo_shuffle(source, words)
        return words.view(np.uint8)


def decodable(dataset: h5py.Dataset) -> bool:
    """
    Return whether chunks of a dataset can be decoded here.

    Parameters
    ----------
    dataset : h5py.Dataset
        Any dataset.

    Returns
    -------
    bool
        False if h5py has to read it, which is as fast where nothing is compressed.
    """
    if dataset.chunks is None or dataset.size == 0 or dataset.dtype.kind not in "iuf":
        return False
    pipeline = dataset.id.get_create_plist()
    filters = [pipeline.get_filter(k)[0] for k in range(pipeline.get_nfilters())]
    return (
        {*filters} <= {_GZIP, _SHUFFLE, _LZF}
        and bool({*filters} & {_GZIP, _LZF})
        # numbers as they are in memory, with no bits to be picked out
        and dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype)
        and dataset.dtype.itemsize in {1, 2, 4, 8}
    )


def read_ranges(dataset: h5py.Dataset, starts: Int64, stops: Int64) -> Array:
    """
    Read several ranges of a one-dimensional dataset, each chunk once.

    Parameters
    ----------
    dataset : h5py.Dataset
        Any one-dimensional dataset of numbers.
    starts, stops : ndarray of int64, shape (m,)
        Half-open ranges.

    Returns
    -------
    ndarray
        All ranges, joined, as stored.
    """
    lengths = stops - starts
    ends = np.cumsum(lengths)
    out = np.empty(int(lengths.sum()), dataset.dtype)
    ranges = zip(starts.tolist(), stops.tolist(), (ends - lengths).tolist(), strict=True)
    if not decodable(dataset):
        for start, stop, to in ranges:
            if stop > start:
                dataset.read_direct(out, np.s_[start:stop], np.s_[to : to + stop - start])
        return out
    size = dataset.chunks[0]
    jobs: dict[int, list[tuple[Box, Box]]] = {}
    for start, stop, to in ranges:
        for place in range(start // size * size, stop, size):
            a, b = max(place, start), min(place + size, stop)
            piece = (slice(a, b),), (slice(to + a - start, to + b - start),)
            jobs.setdefault(place, []).append(piece)
    Chunks(dataset).read([((place,), pieces) for place, pieces in sorted(jobs.items())], out)
    return out


def read_box(dataset: h5py.Dataset, box: Sequence[tuple[int, int]]) -> Array:
    """
    Read a box of a dataset, each chunk once.

    Parameters
    ----------
    dataset : h5py.Dataset
        What `decodable` accepts.
    box : sequence of (int, int)
        Half-open bounds along each dimension.

    Returns
    -------
    ndarray
        As stored.
    """
    out = np.empty([b - a for a, b in box], dataset.dtype)
    if not out.size:
        return out
    axes = []
    for (start, stop), size in zip(box, dataset.chunks, strict=True):
        places = range(start // size * size, stop, size)
        bounds = [(max(p, start), min(p + size, stop)) for p in places]
        axes.append(
            [
                (p, slice(a, b), slice(a - start, b - start))
                for p, (a, b) in zip(places, bounds, strict=True)
            ]
        )
    jobs = []
    for parts in itertools.product(*axes):
        place, source, target = zip(*parts, strict=True)
        jobs.append((place, [(source, target)]))
    Chunks(dataset).read(jobs, out)
    return out
