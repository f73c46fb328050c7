"""What a plan says about itself, as text and as a table."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from dask.utils import format_bytes

if TYPE_CHECKING:
    from xloader.plan import Plan

Facts = Mapping[str, str]


@dataclass(frozen=True)
class Chosen:
    """Some columns of a variable, and what is read for them."""

    variable: str
    """Whose columns."""
    dim: str
    """Along which dimension."""
    n: int
    """How many are wanted."""
    n_stored: int
    """How many are stored."""
    nbytes: int
    """Bytes that are decoded if each row is read once."""
    whole_nbytes: int
    """Bytes that all columns of these rows have."""


_POOLS = 4
_SAMPLES = 2**16
_NAMED = 5


def heading(plan: "Plan") -> str:
    """
    Return what an epoch is.

    Parameters
    ----------
    plan : Plan
        What was decided.

    Returns
    -------
    str
        Batches, and the windows they are made of.
    """
    w = plan.windows
    sizes = zip(w.dims, w.size, strict=True)
    size = ", ".join(f"{d}: {n}" for d, n in sizes if d in w.unlinked.dims or d not in w.points)
    drawn = "" if plan.n_samples == len(w) else f"{plan.n_samples:,} samples of "
    batches = f"{len(plan):,} batch{'es' * (len(plan) != 1)} of {plan.batch_size}"
    windows = f"{len(w):,} window{'s' * (len(w) != 1)} of {size}"
    far = 0 if w.shift is None else (int(w.shift.room.max()) - 1) * w.shift.step
    shifted = f", shifted by up to {far}" if far else ""
    return f"{batches} per epoch ({drawn}{windows}{shifted})"


def facts(plan: "Plan", epoch: int, *, prefetch: int) -> dict[str, str]:
    """
    Return the decisions of a plan.

    Parameters
    ----------
    plan : Plan
        What was decided.
    epoch : int
        Number of the epoch.
    prefetch : int
        Pools of blocks that are read ahead.

    Returns
    -------
    dict of str to str
        What each is about, and what was decided.
    """
    w = plan.windows
    empty = [name for name in w.empty if name not in w.skipped]
    counted = {
        "flush window{s}": w.n_flush,
        "window{s} moved inward": w.n_moved,
        "window{s} padded": w.n_padded,
        "position{s} without a window": sum(w.uncovered.values()),
        f"region{{s}} too short{_named(w.skipped)}": len(w.skipped),
        f"chromosome{{s}} without a window{_named(empty)}": len(empty),
        "sample{s} dropped": plan.n_dropped,
        "sample{s} padded": plan.n_padded,
    }
    told = (f"{v:,} {k.format(s='s' * (v != 1))}" for k, v in counted.items() if v)
    rest = ", ".join(told) or "nothing left over"
    left_out = ", ".join(f"{n:,} {why}" for why, n in w.left_out.items())
    n_pools = plan.n_pools(epoch)
    pools = f"{len(plan.blocks):,} in {n_pools:,} pool{'s' * (n_pools > 1)}"
    span = plan.span(epoch)
    at_once = max(1 + prefetch, span)
    memory = min(plan.pool_blocks * at_once, len(plan.blocks)) * plan.block_nbytes
    why = ", what is read ahead included" if prefetch and not plan.in_memory else ""
    if span > 2 and not plan.in_memory:
        why = f", because a batch is made of up to {span} pools"
    return {
        "blocks": f"{pools}; order: {plan.order}, seed {plan.seed}",
        "reading": _reading(plan, epoch),
        **({"panel": "; ".join(map(_chosen, plan.chosen))} if plan.chosen else {}),
        "memory": f"up to {format_bytes(memory)} of blocks{why}, in each process that reads; rank "
        f"{plan.rank} of {plan.world_size}",
        "remainder": f"{plan.remainder}; {rest}",
        **({"left out": f"windows: {left_out}"} if left_out else {}),
    }


def _named(names: Sequence[str]) -> str:
    """Return the first of some names, in brackets."""
    return (
        f" ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})" if names else ""
    )


def _chosen(c: Chosen) -> str:
    """Say what is read for some columns."""
    share = f"{format_bytes(c.nbytes)} of {format_bytes(c.whole_nbytes)}"
    why = ", as columns are not stored apart" if c.nbytes == c.whole_nbytes else ""
    return f"{c.variable}: {c.n:,} of {c.n_stored:,} along {c.dim}, for which {share} are read{why}"


def _reading(plan: "Plan", epoch: int) -> str:
    """Say how many bytes this rank decodes, and how many times those of its samples."""
    if plan.nbytes == 0:
        return "nothing, all data are in memory"
    read = blocks_read(plan, epoch)
    nbytes = int(read / len(plan.blocks) * plan.nbytes)
    mine = plan.n_samples / plan.world_size * plan.sample_nbytes
    often = "read once" if plan.in_memory else "read per epoch"
    amplified = f"{nbytes / mine:.1f} times its samples" if mine else "beside data in memory"
    share = "" if plan.world_size == 1 else f"; {read / len(plan.blocks):.0%} of the blocks"
    return f"up to {format_bytes(nbytes)} of blocks {often}, {amplified}{share}"


def blocks_read(plan: "Plan", epoch: int) -> float:
    """
    Return how many blocks a rank reads in an epoch.

    Parameters
    ----------
    plan : Plan
        What was decided.
    epoch : int
        Number of the epoch.

    Returns
    -------
    float
        Those that are read again in another pool count again; an estimate from a few pools where
        there are many.
    """
    if plan.in_memory:
        return len(plan.blocks)
    n = plan.n_pools(epoch)
    enough = max(_POOLS, _SAMPLES * n // plan.n_samples)
    # at random: ranks have their samples at regular places
    some = range(n) if n <= enough else np.random.default_rng(0).integers(0, n, enough).tolist()
    each = [len(np.unique(plan.blocks.whose(plan.pool_ids(epoch, p)))) for p in some]
    return sum(each) / len(each) * n


def as_text(title: str, head: str, rows: Facts) -> str:
    """
    Return facts as lines.

    Parameters
    ----------
    title, head : str
        What is described, and its first line.
    rows : mapping of str to str
        What each is about, and what it is.

    Returns
    -------
    str
        One line each.
    """
    return "\n  ".join([f"<{title}> {head}", *(f"{k:<9} : {v}" for k, v in rows.items())])


def as_table(title: str, head: str, rows: Facts) -> str:
    """
    Return facts as a table in HTML.

    Parameters
    ----------
    title, head : str
        What is described, and its first line.
    rows : mapping of str to str
        What each is about, and what it is.

    Returns
    -------
    str
        In the colours of the page that shows it.
    """
    cell = "padding:2px 12px 2px 0;text-align:left;vertical-align:top;background:transparent"
    body = "".join(
        f'<tr style="background:transparent"><th style="{cell};font-weight:600;opacity:.65">{html.escape(k)}</th>'
        f'<td style="{cell}">{html.escape(v)}</td></tr>'
        for k, v in rows.items()
    )
    return (
        f'<div style="border-left:3px solid #4c78a8;padding-left:10px"><div><b>{html.escape(title)}</b> '
        f'{html.escape(head)}</div><table style="border:none;margin:4px 0 0 0">{body}</table></div>'
    )
