"""In which order an epoch visits blocks, and which sample stands at each place of its sequence."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.keyed import key_of, mixed, permuted

Int64 = npt.NDArray[np.int64]

_MAX_LANES = 64
_LANE_BLOCKS = 4
_CHUNK = 2**16
_LANE = 3


@dataclass(frozen=True, eq=False)
class Blocks:
    """Samples grouped so that those of one block lie together in storage."""

    ptr: Int64
    """Block ``b`` is ``ptr[b]:ptr[b + 1]`` of `members`, shape (n_blocks + 1,)."""
    members: Int64 | None
    """Sample numbers, block after block; None where they are simply in order."""

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def sample(self, blocks: Int64, offsets: Int64) -> Int64:
        """
        Return samples by their place in blocks.

        Parameters
        ----------
        blocks, offsets : ndarray of int64, shape (m,)
            Numbers of blocks, and places within them.

        Returns
        -------
        ndarray of int64, shape (m,)
            Sample numbers.
        """
        places = self.ptr[blocks] + offsets
        return places if self.members is None else self.members[places]

    def whose(self, ids: Int64) -> Int64:
        """
        Return the block of each sample.

        Parameters
        ----------
        ids : ndarray of int64, shape (m,)
            Sample numbers.

        Returns
        -------
        ndarray of int64, shape (m,)
            Numbers of blocks.
        """
        if self.members is not None:
            places = np.empty_like(self.members)
            places[self.members] = np.arange(len(places))
            ids = places[ids]
        return np.searchsorted(self.ptr, ids, side="right") - 1


def group(keys: npt.NDArray[np.integer]) -> Blocks:
    """
    Group samples by a key such as the number of the stored chunk they begin in.

    Parameters
    ----------
    keys : ndarray of int, shape (n,)
        Key of each sample.

    Returns
    -------
    Blocks
        One block per distinct key, in increasing order of the key.

    Examples
    --------
    >>> group(np.array([5, 5, 2])).members
    array([2, 0, 1])
    """
    members = None
    if len(keys) and (np.diff(keys) < 0).any():
        members = np.argsort(keys, kind="stable")
        keys = keys[members]
    edges = np.flatnonzero(np.diff(keys)) + 1
    return Blocks(np.concatenate([[0], edges, [len(keys)]]).astype(np.int64), members)


def even_blocks(n: int, length: int) -> Blocks:
    """
    Cut samples into runs of equal length; the last may be shorter.

    Parameters
    ----------
    n : int
        Number of samples.
    length : int
        Samples in a block.

    Returns
    -------
    Blocks
        In order.
    """
    return Blocks(np.append(np.arange(0, n, length), n).astype(np.int64), None)


@dataclass(frozen=True, eq=False)
class Visits(ABC):
    """The sequence of samples that one epoch serves, cut into pools that are read one by one."""

    begins: Int64
    """Where each pool begins in the sequence, and where the last one ends, shape (n_pools + 1,)."""

    @abstractmethod
    def ids(self, pool: int, places: Int64, global_batch: int) -> Int64:
        """
        Return the samples at some places of one pool.

        Parameters
        ----------
        pool : int
            Number of the pool.
        places : ndarray of int64, shape (m,)
            Places in the sequence of the epoch, all of them in this pool.
        global_batch : int
            Places of one step, over all ranks.

        Returns
        -------
        ndarray of int64, shape (m,)
            Sample numbers.
        """


@dataclass(frozen=True, eq=False)
class Listed(Visits):
    """A sequence that is what it is: pools are runs of it."""

    at: Callable[[Int64], Int64]
    """Samples at places of the sequence."""

    @override
    def ids(self, pool: int, places: Int64, global_batch: int) -> Int64:  # numpydoc ignore=GL08
        return self.at(places)


@dataclass(frozen=True, eq=False)
class Mixed(Visits):
    """
    Blocks in some order; several successive ones make a pool, whose samples are mixed.

    The samples of a pool, block after block, are cut into lanes of at least 4 blocks, at most 64 of
    them, and each global batch takes those of lane ``l`` for the ``l``-th part of its places,
    permuted within the lane. So the order of samples is the same for every number of ranks, and
    each rank, whose samples are some successive places of every global batch, needs only the
    blocks of its lanes.
    """

    ptr: Int64
    """Samples of block ``b``: ``ptr[b + 1] - ptr[b]``, shape (n_blocks + 1,)."""
    sample: Callable[[Int64, Int64], Int64]
    """Samples by block and place within it."""
    order: Callable[[Int64], Int64]
    """Blocks by their place in the order of the epoch."""
    pool_ptr: Int64
    """Pool ``p`` has the blocks at places ``pool_ptr[p]:pool_ptr[p + 1]``, shape (n_pools + 1,)."""
    key: int
    """Of the permutations within lanes."""

    @override
    def ids(self, pool: int, places: Int64, global_batch: int) -> Int64:  # numpydoc ignore=GL08
        blocks = self.order(np.arange(self.pool_ptr[pool], self.pool_ptr[pool + 1]))
        bounds = np.append(0, np.cumsum(self.ptr[blocks + 1] - self.ptr[blocks]))
        n_lanes = max(1, min(_MAX_LANES, len(blocks) // _LANE_BLOCKS))
        edges = -(-np.arange(n_lanes + 1) * global_batch // n_lanes)
        low, width = edges[:-1], np.diff(edges)
        before = _lane_places(self.begins[pool], low, width, global_batch)
        sizes = _lane_places(self.begins[pool + 1], low, width, global_batch) - before
        starts = np.cumsum(sizes) - sizes
        keys = mixed(np.arange(n_lanes), key_of(_LANE, self.key, pool))
        lane = places % global_batch * n_lanes // global_batch
        nth = _lane_places(places, low[lane], width[lane], global_batch) - before[lane]
        at = starts[lane] + permuted(nth, sizes[lane], keys[lane])
        found = np.searchsorted(bounds, at, side="right") - 1
        return self.sample(blocks[found], at - bounds[found])


def _lane_places(places: npt.ArrayLike, low: Int64, width: Int64, global_batch: int) -> Int64:
    """Return how many places of a lane lie before some places of the epoch."""
    batches, slots = np.divmod(places, global_batch)
    return np.asarray(batches * width + np.clip(slots - low, 0, width), np.int64)


def begins_of(ptr: Int64, order: Callable[[Int64], Int64], pool_ptr: Int64) -> Int64:
    """
    Return where pools of blocks begin in the sequence of samples.

    Parameters
    ----------
    ptr : ndarray of int64, shape (n_blocks + 1,)
        Samples of each block.
    order : callable
        Blocks by their place in the order of the epoch.
    pool_ptr : ndarray of int64, shape (n_pools + 1,)
        Places of blocks at which pools begin.

    Returns
    -------
    ndarray of int64, shape (n_pools + 1,)
        From 0 to the number of samples. Nothing as long as the blocks is made on the way.
    """
    lengths = np.empty(len(pool_ptr) - 1, np.int64)
    for first, last in _runs(pool_ptr):
        blocks = order(np.arange(pool_ptr[first], pool_ptr[last]))
        each = np.append(0, np.cumsum(ptr[blocks + 1] - ptr[blocks]))
        edges = pool_ptr[first : last + 1] - pool_ptr[first]
        lengths[first:last] = np.diff(each[edges])
    return np.append(0, np.cumsum(lengths))


def _runs(pool_ptr: Int64) -> Iterator[tuple[int, int]]:
    """Yield runs of pools that have not too many blocks together."""
    first = 0
    while first < len(pool_ptr) - 1:
        enough = int(np.searchsorted(pool_ptr, pool_ptr[first] + _CHUNK))
        last = min(max(enough, first + 1), len(pool_ptr) - 1)
        yield first, last
        first = last
