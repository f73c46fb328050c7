"""Which samples make up each batch: arithmetic on integers, a pure function of (seed, epoch, step)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.axes import Int64, Windows
from xloader.errors import PlanError
from xloader.planned import Chosen, as_table, as_text, facts, heading
from xloader.randomness import Randomness, predict
from xloader.visits import Blocks, Listed, Visits

Remainder = Literal["keep", "drop", "pad"]


@dataclass(frozen=True)
class Batch:
    """Which samples one rank gets at one step."""

    ids: Int64
    """Sample numbers in order, shape (n,)."""
    pools: Int64
    """Pool that each sample is read with, non-decreasing, shape (n,)."""
    valid: npt.NDArray[np.bool_]
    """False for samples that only pad, shape (n,)."""


class Order(ABC):
    """What an epoch serves, and in which order; a pure function of the plan's seed and the epoch."""

    in_order: ClassVar[bool] = False
    """Whether samples come as they are stored."""

    @abstractmethod
    def n_samples(self, plan: "Plan") -> int:
        """
        Return how many samples an epoch serves.

        Parameters
        ----------
        plan : Plan
            What there is.

        Returns
        -------
        int
            The same for every epoch.
        """

    @abstractmethod
    def visits(self, plan: "Plan", epoch: int) -> Visits:
        """
        Return the sequence of samples of an epoch.

        Parameters
        ----------
        plan : Plan
            What there is.
        epoch : int
            Number of the epoch.

        Returns
        -------
        Visits
            The same for every rank and number of ranks.
        """

    def expected(self, plan: "Plan") -> npt.NDArray[np.float64] | None:  # noqa: ARG002
        """
        Return how often each sample is served.

        Parameters
        ----------
        plan : Plan
            What there is.

        Returns
        -------
        ndarray of float64 or None, shape (n_samples,)
            In any unit; None for all of them equally often.
        """
        return None


@dataclass(frozen=True, eq=False)
class Plan:
    """
    All decisions made before anything is read.

    An `Order` says in which sequence an epoch serves its samples, and which of them are read and
    mixed together (a pool); batches are cut from that sequence. A batch may span two pools.
    """

    windows: Windows
    """Where the samples lie."""
    blocks: Blocks
    """Which of them are read together."""
    order: Order
    """What an epoch serves, and in which order."""
    pool_blocks: int
    """Blocks that are in memory and mixed at the same time."""
    batch_size: int
    """Samples per rank and step."""
    seed: int
    """Seed of everything that is random."""
    remainder: Remainder
    """What becomes of the last, incomplete batch."""
    block_nbytes: int
    """Bytes that the largest block takes once decoded."""
    rank: int = 0
    """Which part of each global batch is ours."""
    world_size: int = 1
    """Number of parts."""
    nbytes: int = 0
    """Bytes that are decoded if each block is read once, at most; 0 if everything is in memory."""
    sample_nbytes: int = 0
    """Bytes of them that one sample asks for, on average."""
    chosen: tuple[Chosen, ...] = ()
    """Variables of which some columns are wanted."""

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
                f"{self.n_samples} samples, and remainder='drop' leaves no batch; choose a smaller "
                "batch_size, or remainder='keep' or 'pad'"
            )
            raise PlanError(msg)

    @property
    def n_samples(self) -> int:
        """
        Return how many samples an epoch serves.

        Returns
        -------
        int
            As many as there are windows, unless `order` chooses or repeats some.
        """
        return self.order.n_samples(self)

    @property
    def in_memory(self) -> bool:
        """
        Say whether everything is read at once and kept.

        Returns
        -------
        bool
            True if all blocks are one pool's.
        """
        return self.pool_blocks >= len(self.blocks)

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

    @override
    def __repr__(self) -> str:
        return as_text("xloader.Plan", heading(self), facts(self, 0, prefetch=1))

    def _repr_html_(self) -> str:
        return as_table("xloader.Plan", heading(self), facts(self, 0, prefetch=1))

    def __len__(self) -> int:
        full, rest = divmod(self.n_samples, self.global_batch)
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
        return max(0, self.n_samples - len(self) * self.global_batch)

    @property
    def n_padded(self) -> int:
        """
        Return how many samples an epoch repeats, over all ranks.

        Returns
        -------
        int
            Each of them has ``valid=False``.
        """
        rest = self.n_samples % self.global_batch
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

    def n_pools(self, epoch: int) -> int:
        """
        Return the number of pools of an epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch.

        Returns
        -------
        int
            Blocks of one pool are in memory at the same time.
        """
        return len(_visits(self, epoch).begins) - 1

    def span(self, epoch: int) -> int:
        """
        Return how many pools a global batch is made of, at most.

        Parameters
        ----------
        epoch : int
            Number of the epoch.

        Returns
        -------
        int
            They are in memory together.
        """
        within = _visits(self, epoch).begins[1:-1]
        within = within[within % self.global_batch > 0]
        _, counts = np.unique(within // self.global_batch, return_counts=True)
        return 1 + int(counts.max(initial=0))

    def pool_ids(self, epoch: int, pool: int) -> Int64:
        """
        Return the samples of one pool that this rank serves, in order.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        pool : int
            Number of the pool within the epoch.

        Returns
        -------
        ndarray of int64
            Sample numbers; what only pads is among them.
        """
        return _pool(self, epoch, pool)[1]

    def first_step(self, epoch: int, pool: int) -> int:
        """
        Return the first step at which this rank needs a pool.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        pool : int
            Number of a pool of which this rank serves samples.

        Returns
        -------
        int
            From 0.
        """
        return int(_pool(self, epoch, pool)[0][0]) // self.global_batch

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
        valid = joined < self.n_samples
        places = np.minimum(joined, self.n_samples - 1)
        begins = _visits(self, epoch).begins
        # places rise, and so do the pools they are in
        pools = np.searchsorted(begins, places, side="right") - 1
        ids = []
        for pool in np.unique(pools).tolist():
            own, found = _pool(self, epoch, pool)
            ids.append(found[np.searchsorted(own, places[pools == pool])])
        return Batch(ids[0] if len(ids) == 1 else np.concatenate(ids), pools, valid), ptr

    def ids_at(self, epoch: int, places: Int64) -> Int64:
        """
        Return the samples at some places of the sequence of an epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        places : ndarray of int64, shape (m,)
            Increasing, at least 0 and less than `n_samples`.

        Returns
        -------
        ndarray of int64, shape (m,)
            Sample numbers; step ``k`` has those from ``k * global_batch`` on.
        """
        visits = _visits(self, epoch)
        if isinstance(visits, Listed):  # whatever the pool
            return visits.at(places)
        pools = np.searchsorted(visits.begins, places, side="right") - 1
        cuts = np.flatnonzero(np.diff(pools)) + 1
        parts = zip(pools[np.append(0, cuts)].tolist(), np.split(places, cuts), strict=True)
        return np.concatenate([visits.ids(p, at, self.global_batch) for p, at in parts])

    def randomness(self, labels: npt.ArrayLike, *, own: bool = False) -> Randomness:
        """
        Say how random batches are on average over epochs, before anything is read.

        Parameters
        ----------
        labels : array-like, shape (n_samples,)
            Label of each sample.
        own : bool, optional
            Whether the batches of this rank are meant, not those of all ranks together.

        Returns
        -------
        Randomness
            With a verdict, and what to change if it is bad.

        Raises
        ------
        PlanError
            If there is not one label per sample.
        """
        return predict(self, labels, own=own)

    def _places(self, step: int) -> Int64:
        """Return which places of the epoch's sequence this rank gets; those beyond its end pad."""
        n = self.n_samples
        first = step * self.global_batch
        rest = min(self.global_batch, n - first)
        if rest == self.global_batch or self.remainder == "pad":
            begin = first + self.rank * self.batch_size
            return np.arange(begin, begin + self.batch_size)
        low, high = (self.rank * rest // self.world_size, (self.rank + 1) * rest // self.world_size)
        # with fewer samples than ranks, the step of some ranks only pads
        return np.array([n]) if low == high else np.arange(first + low, first + high)

    def _own(self, first: int, last: int) -> Int64:
        """Return which of some successive places this rank serves; padding repeats the last one."""
        steps = np.arange(first // self.global_batch, min(-(-last // self.global_batch), len(self)))
        if len(steps) == 0:
            return steps
        begins = steps[:-1, None] * self.global_batch + self.rank * self.batch_size
        full = (begins + np.arange(self.batch_size)).reshape(-1)
        end = np.minimum(self._places(int(steps[-1])), self.n_samples - 1)
        places = np.concatenate([full, np.unique(end)])
        return places[(places >= first) & (places < last)]


@lru_cache(maxsize=4)  # what an epoch in memory lists is as long as the data
def _visits(plan: Plan, epoch: int) -> Visits:
    visits = plan.order.visits(plan, epoch)
    first, last = visits.begins[[0, -1]].tolist()
    if (first, last) != (0, plan.n_samples):
        msg = (
            f"order {str(plan.order)!r} gives epoch {epoch} places {first} to {last} and says that an "
            f"epoch has {plan.n_samples} samples; begin at 0 and serve as many as `n_samples` says"
        )
        raise PlanError(msg)
    return visits


def _pool(plan: Plan, epoch: int, pool: int) -> tuple[Int64, Int64]:
    """Return the places of one pool that this rank serves, and their samples."""
    # a pool of everything takes 16 bytes a sample, and is not needed again in the next epoch
    return (_large_pool if plan.in_memory else _small_pool)(plan, epoch, pool)


def _find_pool(plan: Plan, epoch: int, pool: int) -> tuple[Int64, Int64]:
    visits = _visits(plan, epoch)
    places = plan._own(*map(int, visits.begins[pool : pool + 2]))
    return places, visits.ids(pool, places, plan.global_batch)


_small_pool = lru_cache(maxsize=4)(_find_pool)
_large_pool = lru_cache(maxsize=2)(_find_pool)
