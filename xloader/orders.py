"""Orders: what an epoch serves, and in which sequence; all of them the same on every rank."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.errors import PlanError
from xloader.keyed import key_of, permuted, uniform
from xloader.plan import Order, Plan
from xloader.visits import Blocks, Int64, Listed, Mixed, Visits, begins_of, group

Weights = npt.NDArray[np.float64]
UserOrder = Callable[[Plan, np.random.Generator], npt.ArrayLike]

# first word of every key, so that no two uses of one (seed, epoch) draw the same numbers
_BLOCKS, _MIX, _UNIFORM, _USER, _DRAWS, _CHOICE, _GROUPS = range(1, 8)


@dataclass(frozen=True)
class Sequential(Order):
    """Samples as they are stored, or as windows were drawn where that is another order."""

    in_order: ClassVar[bool] = True

    @override
    def __str__(self) -> str:
        return "in order"

    @override
    def n_samples(self, plan: Plan) -> int:  # numpydoc ignore=GL08
        return len(plan.windows)

    @override
    def visits(self, plan: Plan, epoch: int) -> Visits:  # numpydoc ignore=GL08
        blocks = plan.blocks
        begins = blocks.ptr[_even(len(blocks), plan.pool_blocks)]
        members = blocks.members
        at = (lambda places: places) if members is None else members.__getitem__
        return Listed(begins, at)


@dataclass(frozen=True)
class Shuffled(Order):
    """Blocks in a permuted order, the samples of successive ones mixed: what ``shuffle=True`` means."""

    @override
    def __str__(self) -> str:
        return "shuffled blocks"

    @override
    def n_samples(self, plan: Plan) -> int:  # numpydoc ignore=GL08
        return len(plan.windows)

    @override
    def visits(self, plan: Plan, epoch: int) -> Visits:  # numpydoc ignore=GL08
        return _mixed(plan, epoch, plan.blocks.ptr, plan.blocks.sample)


def _even(n: int, length: int) -> Int64:
    return np.append(np.arange(0, n, length), n)


def _mixed(plan: Plan, epoch: int, ptr: Int64, sample: Callable[[Int64, Int64], Int64]) -> Mixed:
    """Visit blocks in a permuted order, `plan.pool_blocks` at a time."""
    n = len(ptr) - 1
    order = partial(permuted, n=n, key=key_of(_BLOCKS, plan.seed, epoch))
    pool_ptr = _even(n, plan.pool_blocks)
    begins = begins_of(ptr, order, pool_ptr)
    return Mixed(begins, ptr, sample, order, pool_ptr, key_of(_MIX, plan.seed, epoch))


@dataclass(frozen=True)
class Uniform(Order):
    """
    All samples in a uniformly random order, as torch's RandomSampler gives them.

    Unless everything fits into memory, each sample costs the reading of its whole block.
    """

    @override
    def __str__(self) -> str:
        return "uniform"

    @override
    def n_samples(self, plan: Plan) -> int:  # numpydoc ignore=GL08
        return len(plan.windows)

    @override
    def visits(self, plan: Plan, epoch: int) -> Visits:  # numpydoc ignore=GL08
        n = self.n_samples(plan)
        key = key_of(_UNIFORM, plan.seed, epoch)
        # each sample may be of another block
        return Listed(
            _even(n, n if plan.in_memory else plan.pool_blocks), partial(permuted, n=n, key=key)
        )


class Custom(Order):
    """
    An order of the user's own.

    Parameters
    ----------
    function : callable
        Takes the plan and a random generator, and returns sample numbers, as many in each epoch. To
        be the same on every rank it may use neither `rank` nor `world_size` of the plan.
    """

    def __init__(self, function: UserOrder) -> None:
        self.function = function
        self._n: int | None = None

    @override
    def __str__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))

    @override
    def n_samples(self, plan: Plan) -> int:  # numpydoc ignore=GL08
        if self._n is None:
            self._n = len(self.ids(plan, 0))
        return self._n

    def ids(self, plan: Plan, epoch: int) -> Int64:
        """
        Return the samples of an epoch.

        Parameters
        ----------
        plan : Plan
            What there is.
        epoch : int
            Number of the epoch.

        Returns
        -------
        ndarray of int64, shape (n,)
            Sample numbers in order.

        Raises
        ------
        PlanError
            If the function returned something else, or another number of samples than before.
        """
        rng = np.random.default_rng([_USER, plan.seed, epoch])
        name = getattr(self.function, "__name__", repr(self.function))
        ids = np.asarray(self.function(plan, rng))
        n = len(plan.windows)
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
            msg = (
                f"order {name!r} returned {ids.dtype} of shape {ids.shape}; return sample numbers, "
                "one array of integers"
            )
            raise PlanError(msg)
        if ids.min() < 0 or ids.max() >= n:
            msg = f"order {name!r} returned samples {ids.min()} to {ids.max()}; there are 0 to {n - 1}"
            raise PlanError(msg)
        if self._n is not None and len(ids) != self._n:
            msg = (
                f"order {name!r} returned {len(ids)} samples for epoch {epoch} and {self._n} for epoch "
                "0; return equally many in each"
            )
            raise PlanError(msg)
        return ids.astype(np.int64)

    @override
    def expected(self, plan: Plan) -> Weights:  # numpydoc ignore=GL08
        return np.bincount(self.ids(plan, 0), minlength=len(plan.windows)).astype(np.float64)

    @override
    def visits(self, plan: Plan, epoch: int) -> Visits:  # numpydoc ignore=GL08
        ids = self.ids(plan, epoch)
        if plan.in_memory:
            return Listed(np.array([0, len(ids)]), ids.__getitem__)
        whose = plan.blocks.whose(ids)
        begins, seen = [0], set[int]()
        changes = np.flatnonzero(np.diff(whose, prepend=-1))
        for place, block in zip(changes.tolist(), whose[changes].tolist(), strict=True):
            seen.add(block)
            if len(seen) > plan.pool_blocks:
                begins.append(place)
                seen = {block}
        return Listed(np.array([*begins, len(ids)]), ids.__getitem__)


@dataclass(frozen=True, eq=False)
class Weighted(Order):
    """
    Samples drawn in proportion to weights, block by block, so that chunks are still read together.

    Each block gets the number of draws that its share of the weights asks for, rounded at random, so
    that every sample is expected ``n * weight / sum(weights)`` times.
    """

    weights: Weights
    """Weight of each sample, shape (n_samples,)."""
    n: int
    """Samples of an epoch."""
    replacement: bool
    """Whether a sample may be drawn twice in an epoch."""

    @override
    def __str__(self) -> str:
        return f"weighted, {'with' if self.replacement else 'without'} replacement"

    @override
    def n_samples(self, plan: Plan) -> int:  # numpydoc ignore=GL08
        return self.n

    @override
    def visits(self, plan: Plan, epoch: int) -> Visits:  # numpydoc ignore=GL08
        blocks = plan.blocks
        if not self.replacement:
            return self._chosen(plan, epoch)
        weights = self.weights if blocks.members is None else self.weights[blocks.members]
        total = np.append(0, np.cumsum(weights))
        key = key_of(_DRAWS, plan.seed, epoch)
        edges = total[blocks.ptr] / total[-1] * self.n + uniform(np.zeros(1, np.int64), key)
        ptr = np.floor(edges).astype(np.int64)
        ptr[-1] = self.n  # whatever the rounding of the sums
        ptr = np.minimum(ptr, self.n)

        def sample(of: Int64, nth: Int64) -> Int64:  # numpydoc ignore=GL08
            low, high = total[blocks.ptr[of]], total[blocks.ptr[of + 1]]
            at = low + uniform(ptr[of] + nth, key + 1) * (high - low)
            at = np.minimum(at, np.nextafter(high, low))  # rounding may reach the next block
            found = np.searchsorted(total, at, side="right") - 1
            return np.asarray(found if blocks.members is None else blocks.members[found], np.int64)

        return _mixed(plan, epoch, ptr, sample)

    @override
    def expected(self, plan: Plan) -> Weights:  # numpydoc ignore=GL08
        if self.replacement:
            return self.weights
        return np.bincount(self._choice(plan, 0), minlength=len(self.weights)).astype(np.float64)

    def _choice(self, plan: Plan, epoch: int) -> Int64:
        """Choose without replacement: the largest of ``u ** (1 / weight)`` (Efraimidis, Spirakis 2006)."""
        possible = np.flatnonzero(self.weights)
        keys = (
            np.log1p(-uniform(possible, key_of(_CHOICE, plan.seed, epoch))) / self.weights[possible]
        )
        chosen = possible[np.argpartition(-keys, self.n - 1)[: self.n]]
        return np.sort(chosen)

    def _chosen(self, plan: Plan, epoch: int) -> Visits:
        chosen = self._choice(plan, epoch)
        blocks = group(plan.blocks.whose(chosen))
        members = chosen if blocks.members is None else chosen[blocks.members]
        found = Blocks(blocks.ptr, members)
        return _mixed(plan, epoch, found.ptr, found.sample)


@dataclass(frozen=True, eq=False)
class Grouped(Order):
    """Samples of one group after those of another; within each, blocks are shuffled."""

    codes: Int64
    """Group of each sample, shape (n_samples,)."""

    @override
    def __str__(self) -> str:
        return "group by group"

    @override
    def n_samples(self, plan: Plan) -> int:  # numpydoc ignore=GL08
        return len(plan.windows)

    @override
    def visits(self, plan: Plan, epoch: int) -> Visits:  # numpydoc ignore=GL08
        members = (
            np.arange(len(plan.windows)) if plan.blocks.members is None else plan.blocks.members
        )
        members = members[np.argsort(self.codes[members], kind="stable")]
        codes, whose = self.codes[members], plan.blocks.whose(members)
        blocks = Blocks(group(codes * (len(plan.blocks) + 1) + whose).ptr, members)
        of = codes[blocks.ptr[:-1]]  # blocks lie group after group
        first = np.flatnonzero(np.diff(of, prepend=-1))
        groups = permuted(np.arange(len(first)), len(first), key_of(_GROUPS, plan.seed, epoch))
        sizes = np.diff(np.append(first, len(of)))
        within = [
            first[g]
            + permuted(np.arange(sizes[g]), sizes[g], key_of(_BLOCKS, plan.seed, epoch, int(g)))
            for g in groups
        ]
        ends = np.cumsum(sizes[groups])
        cuts = [
            np.arange(b - n, b, plan.pool_blocks) for b, n in zip(ends, sizes[groups], strict=True)
        ]
        pool_ptr = np.concatenate([*cuts, ends[-1:]])
        order = np.concatenate(within).__getitem__
        begins = begins_of(blocks.ptr, order, pool_ptr)
        key = key_of(_MIX, plan.seed, epoch)
        return Mixed(begins, blocks.ptr, blocks.sample, order, pool_ptr, key)


@dataclass(frozen=True, eq=False)
class Asked:
    """An order that needs values of the data, as a user asks for it."""

    by: Any
    """Name of a coordinate, or one value per sample."""
    make: Callable[[npt.NDArray[Any], str], Order]
    """Takes the values and what they are called."""


def weighted(
    weights: str | npt.ArrayLike, *, replacement: bool = True, n: int | None = None
) -> Asked:
    """
    Ask for samples in proportion to weights.

    Parameters
    ----------
    weights : str or array-like of float, shape (n_samples,)
        A coordinate, or one weight per sample, each at least 0.
    replacement : bool, optional
        Whether a sample may be drawn twice in an epoch.
    n : int, optional
        Samples of an epoch. Default with replacement: as many as there are.

    Returns
    -------
    Asked
        For ``xl.Loader(..., order=...)``.
    """

    def make(values: npt.NDArray[Any], name: str) -> Order:  # numpydoc ignore=GL08
        return _weighted(values, name, replacement=replacement, n=n)

    return Asked(weights, make)


def balanced(
    label: str, *, replacement: bool = True, n: int | None = None, classes: Any = None
) -> Asked:
    """
    Ask for every class equally often.

    Parameters
    ----------
    label : str
        A coordinate of classes.
    replacement : bool, optional
        Whether a sample may be drawn twice in an epoch.
    n : int, optional
        Samples of an epoch. Default with replacement: as many as there are.
    classes : sequence, optional
        Which classes; the others are left out. Default: all.

    Returns
    -------
    Asked
        For ``xl.Loader(..., order=...)``.
    """

    def make(values: npt.NDArray[Any], name: str) -> Order:  # numpydoc ignore=GL08
        codes, found = _codes(values, name, allow_missing=classes is not None)
        wanted = list(found) if classes is None else list(classes)
        empty = [c for c in wanted if c not in found]
        if empty or not wanted:
            msg = f"classes {empty} of {name} have no sample; there are {found}: name some of them"
            raise PlanError(msg)
        counts = np.bincount(codes[codes >= 0], minlength=len(found))
        share = np.array([c in wanted for c in found]) / counts
        weights = np.where(codes >= 0, share[codes], 0.0)
        return _weighted(weights, name, replacement=replacement, n=n)

    return Asked(label, make)


def grouped(label: str) -> Asked:
    """
    Ask for the samples of one group after those of another, groups in a random order.

    Parameters
    ----------
    label : str
        A coordinate, such as a donor, or ``"chrom1"`` for contact windows.

    Returns
    -------
    Asked
        For ``xl.Loader(..., order=...)``.
    """
    return Asked(label, lambda values, name: Grouped(_codes(values, name)[0]))


def _codes(
    values: npt.NDArray[Any], name: str, *, allow_missing: bool = False
) -> tuple[Int64, list[Any]]:
    """Return numbers of classes, -1 for missing ones, and the classes."""
    import pandas as pd

    codes, found = pd.factorize(values, sort=True)
    missing = int((codes < 0).sum())
    if missing and not allow_missing:
        msg = f"{missing} of {len(codes)} samples have no {name}; select those that do first"
        raise PlanError(msg)
    return codes.astype(np.int64), np.asarray(found).tolist()


def _weighted(values: npt.NDArray[Any], name: str, *, replacement: bool, n: int | None) -> Weighted:
    weights = np.asarray(values, np.float64)
    bad = {
        "NaN": int(np.isnan(weights).sum()),
        "negative": int((weights < 0).sum()),
        "infinite": int(np.isinf(weights).sum()),
    }
    if any(bad.values()):
        told = ", ".join(f"{v} {k}" for k, v in bad.items() if v)
        msg = f"weights {name} have {told} of {len(weights)}; give finite ones of at least 0"
        raise PlanError(msg)
    possible = int(np.count_nonzero(weights))
    if possible == 0:
        msg = f"all {len(weights)} weights {name} are 0; give some sample a weight"
        raise PlanError(msg)
    if n is None and not replacement:
        msg = f"without replacement, say how many: n= at most {possible}, those with a weight"
        raise PlanError(msg)
    wanted = len(weights) if n is None else n
    if wanted < 1 or (not replacement and wanted > possible):
        most = "any number" if replacement else f"at most {possible}, those with a weight,"
        msg = f"n={wanted} samples cannot be drawn; ask for {most} and at least 1"
        raise PlanError(msg)
    return Weighted(weights, wanted, replacement)
