"""Laws of a plan: what ranks and epochs serve. Nothing is read."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xloader.errors import PlanError
from xloader.loader import Loader
from xloader.orders import Grouped, Sequential, Shuffled, Uniform
from xloader.plan import Batch, Plan
from xloader.testing.told import few, same, that

WORLDS = (1, 2, 3, 4, 6, 8)


def assert_covers(
    loader: Loader,
    *,
    worlds: Iterable[int] = WORLDS,
    epochs: Iterable[int] = range(2),
    once: bool | None = None,
) -> None:
    """
    Assert that all ranks together serve what an epoch is to serve, and that the plan counts the rest.

    Nothing is read.

    Parameters
    ----------
    loader : Loader
        What is tested, with its batch size on each rank.
    worlds : iterable of int, optional
        World sizes; those that leave no batch are passed over.
    epochs : iterable of int, optional
        Epochs.
    once : bool, optional
        Whether each sample comes once in an epoch. Default: if the order is one of those of
        `xloader.orders` that choose nothing; of others, the samples are what one process serves.

    Raises
    ------
    AssertionError
        If samples are missing, repeated or not counted; names epoch, step, rank and samples.
    """
    plan = loader.plan
    if once is None:
        once = isinstance(plan.order, Sequential | Shuffled | Uniform | Grouped)
    for epoch in epochs:
        alone = _on_rank(plan, 0, 1, plan.global_batch, remainder="keep")
        ids = range(len(plan.windows)) if once else order_of(alone, epoch)
        wanted = np.bincount(ids, minlength=len(plan.windows))
        for plans in _each_world(plan, worlds):
            _check_cover(plans, epoch, wanted)


def _check_cover(plans: Sequence[Plan], epoch: int, wanted: npt.NDArray[np.intp]) -> None:
    """Compare what ranks serve with how often each sample is wanted, and count what is left."""
    world, first = len(plans), plans[0]
    seen, padded = np.zeros_like(wanted), 0
    for step in range(len(first)):
        for rank, plan in enumerate(plans):
            batch = plan.batch(epoch, step)
            where = f"epoch {epoch}, step {step}, rank {rank} of {world}"
            exist(batch, len(wanted), where)
            served, counts = np.unique(batch.ids[batch.valid], return_counts=True)
            seen[served] += counts
            many = served[seen[served] > wanted[served]]
            that(
                not len(many),
                f"{where}: samples {few(many)} come too often, {few(seen[many])} times in this epoch "
                f"instead of {few(wanted[many])}",
            )
            padded += int((~batch.valid).sum())
    where = f"epoch {epoch}, all {len(first)} steps, {world} ranks"
    left, rest = wanted - seen, int(wanted.sum()) % first.global_batch
    dropped = rest if first.remainder == "drop" else 0
    that(
        left.sum() == dropped,
        f"{where}: {left.sum()} samples {few(np.flatnonzero(left))} never come, and {dropped} are to be "
        "dropped",
    )
    that(
        first.n_dropped == dropped,
        f"{where}: the plan says {first.n_dropped} samples are dropped, and {dropped} are",
    )
    that(
        first.n_padded == padded,
        f"{where}: the plan says {first.n_padded} samples pad, and {padded} do",
    )


def assert_equal_steps(
    loader: Loader, *, worlds: Iterable[int] = WORLDS, epochs: Iterable[int] = range(2)
) -> None:
    """
    Assert that every rank has the same number of steps, none of them empty, and that `len` says so.

    Nothing is read.

    Parameters
    ----------
    loader : Loader
        What is tested, with its batch size on each rank.
    worlds : iterable of int, optional
        World sizes; those that leave no batch are passed over.
    epochs : iterable of int, optional
        Epochs.

    Raises
    ------
    AssertionError
        If ranks would wait for each other; names epoch, step and samples.
    """
    that(
        len(loader) == len(loader.plan),
        f"every epoch: len(loader) is {len(loader)}, and its plan has {len(loader.plan)} steps",
    )
    for plans, epoch in itertools.product(_each_world(loader.plan, worlds), epochs):
        first, world = plans[0], len(plans)
        full, rest = divmod(first.n_samples, first.global_batch)
        steps = full + (rest > 0 and first.remainder != "drop")
        for rank, plan in enumerate(plans):
            that(
                len(plan) == steps,
                f"epoch {epoch}, rank {rank} of {world}: {len(plan)} steps, and {plan.n_samples} "
                f"samples in global batches of {plan.global_batch} make {steps}",
            )
        for step in range(steps):
            lengths = [len(plan.batch(epoch, step).ids) for plan in plans]
            whole = step < full or first.remainder == "pad"
            least, most = (first.batch_size,) * 2 if whole else (1, -(-rest // world))
            that(
                least <= min(lengths) and max(lengths) <= most,
                f"epoch {epoch}, step {step}: {world} ranks have {lengths} samples, not {least} to {most}",
            )


def assert_topology_free(
    loader: Loader, *, worlds: Iterable[int] = WORLDS, epochs: Iterable[int] = range(2)
) -> None:
    """
    Assert that global batches hold the same samples in the same order for every number of ranks.

    Nothing is read.

    Parameters
    ----------
    loader : Loader
        What is tested, with its global batch.
    worlds : iterable of int, optional
        World sizes; those that do not divide the global batch are passed over.
    epochs : iterable of int, optional
        Epochs.

    Raises
    ------
    AssertionError
        If a global batch differs; names epoch, step and samples.
    """
    plan = loader.plan
    whole = plan.global_batch
    alone = _on_rank(plan, 0, 1, whole)
    for world, epoch in itertools.product(dividing(plan, worlds), epochs):
        plans = [_on_rank(plan, rank, world, whole // world) for rank in range(world)]
        for step in range(len(alone)):
            expected = valid(alone.batch(epoch, step))
            found = [i for p in plans for i in valid(p.batch(epoch, step))]
            same(found, expected, f"epoch {epoch}, step {step}, {world} ranks and one process")


def assert_epochs_differ(loader: Loader, *, epochs: int = 3) -> None:
    """
    Assert that no two epochs or seeds serve the same samples in the same order, and that each can be repeated.

    Nothing is read.

    Parameters
    ----------
    loader : Loader
        What is tested.
    epochs : int, optional
        How many, from epoch 0.

    Raises
    ------
    AssertionError
        If two epochs or seeds are the same, or one is not the same twice; names them and their samples.
    """
    plan = loader.plan
    plan = _on_rank(plan, 0, 1, plan.global_batch)
    orders = [order_of(plan, e) for e in range(epochs)]
    for a, b in itertools.combinations(range(epochs), 2):
        that(
            orders[a] != orders[b],
            f"epochs {a} and {b}, all {len(plan)} steps: the same samples in the same order, "
            f"{few(orders[a])}; order {str(plan.order)!r} has to follow from the epoch",
        )
    that(
        order_of(replace(plan, seed=plan.seed + 1), 0) != orders[0],
        f"epoch 0 of seeds {plan.seed} and {plan.seed + 1}, all {len(plan)} steps: the same samples in "
        f"the same order, {few(orders[0])}; order {str(plan.order)!r} has to follow from the seed",
    )
    for epoch in reversed(range(epochs)):
        same(
            order_of(replace(plan), epoch), orders[epoch], f"epoch {epoch}, all steps, asked again"
        )


def exist(batch: Batch, n: int, where: str) -> None:
    """
    Raise if a batch asks for samples that there are not.

    Parameters
    ----------
    batch : Batch
        As a plan says it.
    n : int
        How many samples there are.
    where : str
        Epoch, step and rank.

    Raises
    ------
    AssertionError
        Names them.
    """
    foreign = batch.ids[(batch.ids < 0) | (batch.ids >= n)]
    that(not len(foreign), f"{where}: there are no samples {few(foreign)}, only 0 to {n - 1}")


def valid(batch: Batch) -> list[int]:
    """
    Return the samples of a batch that do not pad.

    Parameters
    ----------
    batch : Batch
        As a plan says it.

    Returns
    -------
    list of int
        Sample numbers in order.
    """
    return list(batch.ids[batch.valid].tolist())


def order_of(plan: Plan, epoch: int) -> list[int]:
    """
    Return what a rank serves in an epoch.

    Parameters
    ----------
    plan : Plan
        Of that rank.
    epoch : int
        Number of the epoch.

    Returns
    -------
    list of int
        Sample numbers in order, without those that pad.
    """
    return [i for step in range(len(plan)) for i in valid(plan.batch(epoch, step))]


def dividing(plan: Plan, worlds: Iterable[int]) -> list[int]:
    """
    Return the world sizes that can share the global batches of a plan.

    Parameters
    ----------
    plan : Plan
        With its global batch.
    worlds : iterable of int
        World sizes.

    Returns
    -------
    list of int
        Those that divide it.
    """
    return [w for w in worlds if plan.global_batch % w == 0]


def _on_rank(plan: Plan, rank: int, world: int, batch_size: int, **changes: Any) -> Plan:
    return replace(plan, rank=rank, world_size=world, batch_size=batch_size, **changes)


def _each_world(plan: Plan, worlds: Iterable[int]) -> Iterator[list[Plan]]:
    """Yield the plans of all ranks, for each world size that leaves a batch."""
    for world in worlds:
        try:
            yield [_on_rank(plan, rank, world, plan.batch_size) for rank in range(world)]
        except PlanError:  # "drop" leaves nothing
            continue
