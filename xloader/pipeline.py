"""Batches ahead of who consumes them: pools are read, and small batches gathered together, by threads."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from xloader.axes import Int64
from xloader.batch import split
from xloader.plan import Batch, Plan
from xloader.read import Values
from xloader.source import Loaded, Source
from xloader.threads import alone

Read = Callable[[int, int], Loaded]
"""Takes an epoch and the number of a pool."""

_PATIENCE = 5
"""Seconds that closing an iteration waits for what is being read."""


@dataclass(frozen=True)
class Ahead:
    """How far the pipeline runs ahead."""

    pools: int
    """Pools that are read while one is served."""
    group: int
    """Batches that are gathered at once."""
    groups: int
    """Groups that are gathered while one is served; 0 for those that take much memory."""


@dataclass(frozen=True)
class _Group:
    """Successive batches that are gathered at once."""

    samples: Batch
    """Their samples, batch after batch."""
    ptr: Int64
    """Batch ``k`` is ``ptr[k]:ptr[k + 1]``."""

    def batches(self, values: dict[str, Values]) -> Iterator[tuple[Batch, dict[str, Values]]]:
        """Cut the values of the group into those of its batches."""
        if len(self.ptr) == 2:
            yield self.samples, values
            return
        s = self.samples
        for a, b in itertools.pairwise(self.ptr.tolist()):
            yield Batch(s.ids[a:b], s.pools[a:b], s.valid[a:b]), split(values, a, b)


@dataclass(frozen=True)
class _Waiting:
    """A group that is gathered, or soon will be."""

    group: _Group
    values: Future[dict[str, Values]]
    started: threading.Event | None
    """Set when a thread that works alone needs the interpreter no more."""


def gathered(
    plan: Plan, source: Source, epoch: int, steps: Sequence[int], read: Read, ahead: Ahead
) -> Iterator[tuple[Batch, dict[str, Values]]]:
    """
    Yield the values of some batches, working on the next ones meanwhile.

    Parameters
    ----------
    plan : Plan
        Says which samples they are.
    source : Source
        Cuts them out of pools.
    epoch : int
        Number of the epoch.
    steps : sequence of int
        Numbers of steps, increasing.
    read : Read
        Reads a pool; called by a thread of its own.
    ahead : Ahead
        How far to run ahead.

    Yields
    ------
    tuple of Batch and dict of str to array
        Samples, and their values by variable.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="xloader-read")
    gatherer = ThreadPoolExecutor(ahead.groups or 1, thread_name_prefix="xloader-batch")
    consumer = threading.get_ident()
    pools: dict[int, Future[Loaded]] = {}
    waiting: deque[_Waiting] = deque()
    try:
        for group in _groups(plan, epoch, steps, ahead.group):
            first, last = int(group.samples.pools[0]), int(group.samples.pools[-1])
            if waiting and first not in pools:
                wait([w.values for w in waiting])  # only then are earlier pools out of memory
            end = min(max(last, first + ahead.pools) + 1, plan.n_pools(epoch))
            # pools are needed in order, so those before the first are done with
            pools = {p: pools.get(p) or reader.submit(read, epoch, p) for p in range(first, end)}
            needed = {p: pools[p] for p in range(first, last + 1)}
            started = threading.Event() if ahead.group > 1 else None
            values = gatherer.submit(_gather, source, group.samples, epoch, needed, started)
            waiting.append(_Waiting(group, values, started))
            if len(waiting) > ahead.groups:
                yield from _served(waiting)
        while waiting:
            yield from _served(waiting)
    finally:
        futures: list[Future[Any]] = [*pools.values(), *(w.values for w in waiting)]
        running = [future for future in futures if not future.cancel()]
        # what runs is waited for, because of the memory it takes, but not for ever: an iterator that
        # is garbage may be closed by any thread at any moment, also by one that is waited for
        ours = threading.get_ident() == consumer
        left = wait(running, _PATIENCE if ours else 0).not_done
        for threads in (reader, gatherer):
            threads.shutdown(wait=ours and not left, cancel_futures=True)


def _groups(plan: Plan, epoch: int, steps: Sequence[int], length: int) -> Iterator[_Group]:
    for k in range(0, len(steps), length):
        yield _Group(*plan.batches(epoch, steps[k : k + length]))


def _served(waiting: deque[_Waiting]) -> Iterator[tuple[Batch, dict[str, Values]]]:
    first = waiting.popleft()
    values = first.values.result()
    for later in waiting:
        if later.started is not None:
            # labelling keeps the interpreter, without which no compiled loop can be entered
            later.started.wait()
    yield from first.group.batches(values)


def _gather(
    source: Source,
    samples: Batch,
    epoch: int,
    pools: Mapping[int, Future[Loaded]],
    started: threading.Event | None,
) -> dict[str, Values]:
    """Cut a group of batches, alone if whoever waits for `started` labels another meanwhile."""
    if started is None:
        return cut(source, samples, epoch, {p: f.result() for p, f in pools.items()})
    try:
        with alone(started.set):
            return cut(source, samples, epoch, {p: f.result() for p, f in pools.items()})
    finally:
        started.set()


def cut(
    source: Source, samples: Batch, epoch: int, pools: Mapping[int, Loaded]
) -> dict[str, Values]:
    """
    Cut samples out of the pools that hold them.

    Parameters
    ----------
    source : Source
        Where the pools were loaded from.
    samples : Batch
        Which ones.
    epoch : int
        Epoch that shifts windows.
    pools : mapping of int to Loaded
        Pools in memory, by number, increasing.

    Returns
    -------
    dict of str to array, samples first
        One array per variable and windowed coordinate.
    """
    if len(pools) == 1:
        (loaded,) = pools.values()
        return source.gather([(loaded, samples.ids)], epoch)
    # pools between those that are needed may hold nothing of this rank
    needed = [(p, samples.ids[samples.pools == p]) for p in np.unique(samples.pools).tolist()]
    return source.gather([(pools[p], ids) for p, ids in needed], epoch)
