"""How a memory budget is divided: blocks that are mixed, blocks that are read ahead, batches."""

from dataclasses import dataclass

import numpy as np
from dask.utils import format_bytes, parse_bytes

from xloader.axes import Windows
from xloader.errors import PlanError
from xloader.pipeline import Ahead
from xloader.pools import budget_of, pool_nbytes
from xloader.source import Source
from xloader.threads import n_threads
from xloader.visits import Blocks

_GROUP_NBYTES = 32 * 2**20
"""Bytes of small batches that are gathered at once: few calls, and memory that caches hold."""


def nbytes_of(memory_budget: int | str) -> int:
    """
    Return a budget in bytes.

    Parameters
    ----------
    memory_budget : int or str
        Bytes, or text with a unit.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    PlanError
        If it is no size.

    Examples
    --------
    >>> nbytes_of("1.5kB")
    1500
    """
    try:
        return int(parse_bytes(memory_budget))
    except (ValueError, AttributeError, TypeError) as e:  # dask's own for text, and for the rest
        msg = f"memory_budget={memory_budget!r} is no size; give bytes, or a text such as '500MB'"
        raise PlanError(msg) from e


@dataclass(frozen=True)
class Division:
    """What a budget allows."""

    pool_blocks: int
    """Blocks that are mixed."""
    block_nbytes: int
    """Bytes of the largest block."""
    nbytes: int
    """Bytes that an epoch decodes."""
    ahead: Ahead
    """How far the pipeline runs ahead."""


def divide(
    budget: int, source: Source, windows: Windows, blocks: Blocks, batch_size: int, *, prefetch: int
) -> Division:
    """
    Divide a budget between blocks that are mixed, those that are read ahead, and batches.

    Parameters
    ----------
    budget : int
        Bytes.
    source : Source
        What is read.
    windows : Windows
        Where its samples lie.
    blocks : Blocks
        Samples that are read together.
    batch_size : int
        Samples of one batch.
    prefetch : int
        Pools of blocks that are read ahead.

    Returns
    -------
    Division
        What is mixed depends on the budget alone: otherwise the order of samples would change with
        `prefetch`, the size of a rank's batches or the number of threads.

    Raises
    ------
    PlanError
        If a single block does not fit.
    """
    members = np.arange(len(windows)) if blocks.members is None else blocks.members
    each = source.block_nbytes(members, blocks.ptr)
    nbytes = each.sum(axis=0)
    batch_nbytes = batch_size * source.sample_nbytes
    largest, pool = int(nbytes.max(initial=0)), pool_nbytes(budget)
    if int(nbytes.sum()) <= 2 * pool:
        pool_blocks = len(blocks)
    elif largest <= pool:
        pool_blocks = pool // largest
    else:
        samples = int(np.diff(blocks.ptr)[nbytes.argmax()])
        msg = (
            f"a block of {samples} samples decodes to {format_bytes(largest)}, but a memory_budget of "
            f"{format_bytes(budget)} has {format_bytes(pool)} for the blocks that are mixed, as much for "
            f"those read ahead, and a quarter for batches; allow at least "
            f"{format_bytes(budget_of(largest))}, take fewer `variables`, or write a finer store with "
            "xl.convert"
        )
        raise PlanError(msg)
    total = source.epoch_nbytes(each, -(-len(blocks) // pool_blocks))
    ahead = _ahead(budget // 4, batch_nbytes, prefetch)
    return Division(pool_blocks, largest, total, ahead)


def _ahead(budget: int, batch_nbytes: int, prefetch: int) -> Ahead:
    """Return how far to run ahead with batches in a part of the budget."""
    if prefetch == 0:
        return Ahead(prefetch, 1, 0)
    # one group is served while each thread gathers another
    group = min(_GROUP_NBYTES, budget // (n_threads() + 1)) // max(1, batch_nbytes)
    if group > 1:
        return Ahead(prefetch, group, n_threads())
    return Ahead(prefetch, 1, int(2 * batch_nbytes <= budget))
