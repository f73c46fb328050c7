"""Memory of batches and blocks, used again once nobody holds it: fresh pages cost more than decoding."""

import mmap
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALL = 2**16
_LARGE = 2**22
"""Bytes from which on the system gives and takes memory itself, in huge pages."""

Allocate = Callable[[int], npt.NDArray[np.uint8]]


class Buffers:
    """
    Arrays whose memory is used again as soon as no array, view or tensor refers to it.

    Parameters
    ----------
    allocate : callable, optional
        Takes bytes and returns an array of uint8 that is never used again, such as memory that
        other processes see. Default: memory of this process.

    Examples
    --------
    >>> buffers = Buffers()
    >>> a = buffers.empty((1024, 1024), np.float32)
    >>> place = a.ctypes.data
    >>> buffers.empty((1024, 1024), np.float32).ctypes.data == place
    False
    >>> del a
    >>> buffers.empty((1024, 1024), np.int32).ctypes.data == place
    True
    """

    def __init__(self, allocate: Allocate | None = None) -> None:
        self._allocate = allocate
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """
        Return an array with arbitrary values.

        Parameters
        ----------
        shape : tuple of int
            Its shape.
        dtype : dtype-like
            Its type.

        Returns
        -------
        ndarray
            Nobody else's until it and all its views are gone.
        """
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if nbytes < _SMALL or dtype.hasobject:  # whose memory belongs to Python
            return np.empty(shape, dtype)
        if self._allocate is not None:
            return self._allocate(nbytes)[:nbytes].view(dtype).reshape(shape)
        with self._lock:
            block = self._take(nbytes)
            return block[:nbytes].view(dtype).reshape(shape)

    def _take(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Return a block that nobody holds and that wastes little, or a new one."""
        blocks = self._blocks
        for k in range(len(blocks)):
            fits = nbytes <= blocks[k].nbytes <= 2 * nbytes
            if fits and sys.getrefcount(blocks[k]) <= _FREE:
                blocks.append(blocks.pop(k))  # those at the front were not wanted for longest
                return blocks[-1]
        # one that does not fit makes room, so that memory follows what is asked for
        for k in range(len(blocks)):
            if sys.getrefcount(blocks[k]) <= _FREE:
                del blocks[k]
                break
        blocks.append(_new(nbytes + nbytes // 8))
        return blocks[-1]


def _new(nbytes: int) -> npt.NDArray[np.uint8]:
    """
    Return a new block, whose memory goes back to the system when it is dropped.

    The allocator of C would keep up to 32 MB of each block, in a heap of each thread, in pieces.
    """
    if nbytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(nbytes, np.uint8)
    block = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(block, np.uint8)


def _references_of_free() -> int:
    """Count the references to a block that only its list holds, as `_take` counts them."""
    blocks = [np.empty(1, np.uint8)]
    return sys.getrefcount(blocks[0])


_FREE = _references_of_free()
