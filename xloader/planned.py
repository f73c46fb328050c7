"""What a plan says about itself."""

from dask.utils import format_bytes

from xloader.plan import Plan


def describe(plan: Plan, epoch: int, *, prefetch: int) -> list[str]:
    """
    Return the decisions of a plan as text.

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
    list of str
        One line each.
    """
    w = plan.windows
    size = ", ".join(f"{d}: {n}" for d, n in zip(w.dims, w.size, strict=True))
    memory = min(plan.pool_blocks * (1 + prefetch), len(plan.blocks)) * plan.block_nbytes
    counted = {
        "flush windows": w.n_flush,
        "positions without a window": sum(w.uncovered.values()),
        "regions too short": len(w.skipped),
        "samples dropped": plan.n_dropped,
        "samples padded": plan.n_padded,
    }
    rest = ", ".join(f"{v:,} {k}" for k, v in counted.items() if v) or "nothing left over"
    blocks = f"{len(plan.blocks):,} in {plan.n_pools(epoch):,} pools"
    return [
        f"{len(plan):,} batches of {plan.batch_size} per epoch ({len(w):,} windows of {size})",
        f"blocks    : {blocks}; order: {plan.order}, seed {plan.seed}",
        f"memory    : up to {format_bytes(memory)}; rank {plan.rank} of {plan.world_size}",
        f"remainder : {plan.remainder}; {rest}",
    ]
