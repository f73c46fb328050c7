"""Blocks in memory: the pools that batches are cut from, each read once."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Key = tuple[int, ...]


def pool_nbytes(budget: int) -> int:
    """
    Return what a memory budget leaves for one pool: three eighths, as much for the next, the rest for batches.

    Parameters
    ----------
    budget : int
        Bytes.

    Returns
    -------
    int
        Bytes.
    """
    return budget * 3 // 8


def budget_of(nbytes: int) -> int:
    """
    Return the smallest memory budget that has room for a pool.

    Parameters
    ----------
    nbytes : int
        Bytes of the pool.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> budget_of(300), pool_nbytes(800), pool_nbytes(799)
    (800, 300, 299)
    """
    return -(-nbytes * 8 // 3)


class Pools(Generic[T]):
    """
    The pools that were used last.

    Parameters
    ----------
    most : int
        How many are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._pools: OrderedDict[Key, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, read: Callable[[], T]) -> T:
        """
        Return a pool, reading it if it is not there.

        Parameters
        ----------
        key : tuple of int
            What it is known by.
        read : callable
            Reads it.

        Returns
        -------
        object
            The pool.
        """
        with self._lock:
            if key not in self._pools:
                while len(self._pools) >= self.most:
                    self._pools.popitem(last=False)  # before another one takes memory
                self._pools[key] = read()
            self._pools.move_to_end(key)
            return self._pools[key]

    def clear(self) -> None:
        """Forget all pools."""
        self._pools.clear()
