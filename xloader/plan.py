"""Which samples make up each batch: arithmetic on integers, a pure function of (seed, epoch, step)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from xloader.axes import Int64, Windows
from xloader.errors import PlanError

Remainder = Literal["keep", "drop", "pad"]

# first word of every seed, so that no two uses of one (seed, epoch) draw the same numbers:
# numpy pads seeds with zeros, which makes [7, 0] and [7, 0, 0] the same
_BLOCKS, _POOL = 1, 2


@dataclass(frozen=True, eq=False)
class Blocks:
    """Samples grouped so that those of one block lie together in storage."""

    ptr: Int64
    """Block ``b`` is ``ptr[b]:ptr[b + 1]`` of `members`, shape (n_blocks + 1,)."""
    members: Int64 | None
    """Sample numbers, block after block; None where they are simply in order."""

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def of(self, block: int) -> Int64:
        """
        Return the samples of one block.

        Parameters
        ----------
        block : int
            Number of the block.

        Returns
        -------
        ndarray of int64
            Sample numbers in increasing order.
        """
        span = np.arange(self.ptr[block], self.ptr[block + 1])
        return span if self.members is None else self.members[span]


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


@dataclass(frozen=True)
class Batch:
    """Which samples one rank gets at one step."""

    ids: Int64
    """Sample numbers in order, shape (n,)."""
    pools: Int64
    """Pool that each sample is read with, non-decreasing, shape (n,)."""
    valid: npt.NDArray[np.bool_]
    """False for samples that only pad, shape (n,)."""


@dataclass(frozen=True, eq=False)
class Plan:
    """
    All decisions made before anything is read.

    An epoch visits blocks in a permuted order; the samples of `pool_blocks` successive blocks are
    mixed; batches are cut from the resulting sequence. A batch may span two pools.
    """

    windows: Windows
    """Where the samples lie."""
    blocks: Blocks
    """Which of them are read together."""
    pool_blocks: int
    """Blocks that are in memory and mixed at the same time."""
    batch_size: int
    """Samples per rank and step."""
    shuffle: bool
    """Whether blocks and samples are permuted."""
    seed: int
    """Seed of every permutation."""
    remainder: Remainder
    """What becomes of the last, incomplete batch."""
    block_nbytes: int
    """Bytes that the largest block takes once decoded."""
    rank: int = 0
    """Which part of each global batch is ours."""
    world_size: int = 1
    """Number of parts."""

    def __post_init__(self) -> None:
        """Refuse what cannot be planned."""
        if self.batch_size < 1:
            msg = f"batch_size={self.batch_size} is impossible; it must be at least 1"
            raise PlanError(msg)
        if self.remainder not in get_args(Remainder):
            msg = f"remainder={self.remainder!r} is unknown; choose one of {get_args(Remainder)}"
            raise PlanError(msg)
        if self.seed < 0:
            msg = f"seed={self.seed} is impossible; it must be at least 0"
            raise PlanError(msg)
        if not 0 <= self.rank < self.world_size:
            msg = f"rank {self.rank} of world_size {self.world_size} is impossible; ranks count from 0"
            raise PlanError(msg)
        if len(self) == 0:
            msg = (
                f"batch_size={self.batch_size} x world_size={self.world_size} is more than the "
                f"{len(self.windows)} samples, and remainder='drop' leaves no batch; choose a smaller "
                "batch_size, or remainder='keep' or 'pad'"
            )
            raise PlanError(msg)

    @property
    def global_batch(self) -> int:
        """
        Return the samples of all ranks together at one step.

        Returns
        -------
        int
            ``batch_size * world_size``.
        """
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        full, rest = divmod(len(self.windows), self.global_batch)
        return full + (rest > 0 and self.remainder != "drop")

    @property
    def n_dropped(self) -> int:
        """
        Return how many samples an epoch leaves out.

        Returns
        -------
        int
            Not zero only for ``remainder="drop"``.
        """
        return max(0, len(self.windows) - len(self) * self.global_batch)

    @property
    def n_padded(self) -> int:
        """
        Return how many samples an epoch repeats, over all ranks.

        Returns
        -------
        int
            Each of them has ``valid=False``.
        """
        rest = len(self.windows) % self.global_batch
        if rest == 0 or self.remainder == "drop":
            return 0
        if self.remainder == "pad":
            return self.global_batch - rest
        return max(0, self.world_size - rest)

    @property
    def has_valid(self) -> bool:
        """
        Say whether batches carry `valid`, which is so for a whole epoch or not at all.

        Returns
        -------
        bool
            True if any sample of the epoch only pads.
        """
        return self.n_padded > 0

    @property
    def n_pools(self) -> int:
        """
        Return the number of pools of an epoch.

        Returns
        -------
        int
            ``ceil(n_blocks / pool_blocks)``.
        """
        return -(-len(self.blocks) // self.pool_blocks)

    def block_order(self, epoch: int) -> Int64:
        """
        Return the order in which an epoch visits the blocks.

        Parameters
        ----------
        epoch : int
            Number of the epoch.

        Returns
        -------
        ndarray of int64, shape (n_blocks,)
            Every block once.
        """
        if not self.shuffle:
            return np.arange(len(self.blocks))
        return np.random.default_rng([_BLOCKS, self.seed, epoch]).permutation(len(self.blocks))

    def pool_ids(self, epoch: int, pool: int) -> Int64:
        """
        Return the samples of one pool in the order they are served.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        pool : int
            Number of the pool within the epoch.

        Returns
        -------
        ndarray of int64
            Sample numbers.
        """
        order, _ = _epoch(self, epoch)
        blocks = order[pool * self.pool_blocks : (pool + 1) * self.pool_blocks]
        ids = np.concatenate([self.blocks.of(int(b)) for b in blocks])
        if not self.shuffle:
            return ids
        return np.random.default_rng([_POOL, self.seed, epoch, pool]).permutation(ids)

    def batch(self, epoch: int, step: int) -> Batch:
        """
        Return which samples this rank gets at one step.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        step : int
            Number of the step, from 0.

        Returns
        -------
        Batch
            The same for every call, process and machine.

        Raises
        ------
        IndexError
            If there is no such step.
        """
        return self.batches(epoch, [step])[0]

    def batches(self, epoch: int, steps: Sequence[int]) -> tuple[Batch, Int64]:
        """
        Return which samples this rank gets at several steps.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        steps : sequence of int
            Numbers of steps, increasing, at least one.

        Returns
        -------
        samples : Batch
            Those of all steps, one after the other.
        ptr : ndarray of int64, shape (n_steps + 1,)
            Step ``k`` gets ``ptr[k]:ptr[k + 1]`` of them.

        Raises
        ------
        IndexError
            If there is no such step.
        """
        if not 0 <= steps[0] <= steps[-1] < len(self):
            msg = f"batches {list(steps)} of {len(self)}; an epoch has batches 0 to {len(self) - 1}"
            raise IndexError(msg)
        mine = [self._places(step) for step in steps]
        ptr = np.append(0, np.cumsum([len(m) for m in mine]))
        joined = mine[0] if len(mine) == 1 else np.concatenate(mine)
        n = len(self.windows)
        valid = joined < n
        # padding repeats the last samples of the epoch, which are in memory anyway
        places = np.minimum(joined, n - 1)
        _, begins = _epoch(self, epoch)
        # places rise, and so do the pools they are in
        first, last = (np.searchsorted(begins, places[[0, -1]], side="right") - 1).tolist()
        if first == last:
            pools = np.full(len(places), first)
            return Batch(_pool(self, epoch, first)[places - begins[first]], pools, valid), ptr
        pools = np.searchsorted(begins, places, side="right") - 1
        parts = range(first, last + 1)
        ids = [_pool(self, epoch, p)[places[pools == p] - begins[p]] for p in parts]
        return Batch(np.concatenate(ids), pools, valid), ptr

    def _places(self, step: int) -> Int64:
        """Return which places of the epoch's sequence this rank gets; those beyond its end pad."""
        n = len(self.windows)
        first = step * self.global_batch
        rest = min(self.global_batch, n - first)
        if rest == self.global_batch or self.remainder == "pad":
            begin = first + self.rank * self.batch_size
            return np.arange(begin, begin + self.batch_size)
        low, high = (self.rank * rest // self.world_size, (self.rank + 1) * rest // self.world_size)
        # with fewer samples than ranks, the step of some ranks only pads
        return np.array([n]) if low == high else np.arange(first + low, first + high)


@lru_cache(maxsize=8)
def _epoch(plan: Plan, epoch: int) -> tuple[Int64, Int64]:
    """Return the order of blocks and where each pool begins in the sequence of samples."""
    order = plan.block_order(epoch)
    lengths = np.diff(plan.blocks.ptr)[order]
    pools = np.add.reduceat(lengths, np.arange(0, len(order), plan.pool_blocks))
    return order, np.concatenate([[0], np.cumsum(pools)])


@lru_cache(maxsize=8)
def _pool(plan: Plan, epoch: int, pool: int) -> Int64:
    return plan.pool_ids(epoch, pool)
