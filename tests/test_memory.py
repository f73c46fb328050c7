"""Memory: what planning takes, what loading takes beyond its budget, and that an epoch takes no more at its end (L11)."""

import gc
import time
import tracemalloc

import numpy as np

from xloader import axes
from xloader.orders import Shuffled
from xloader.plan import Plan
from xloader.visits import Blocks

MB = 10**6


def test_plan__of_100_million_rows_takes_little_beyond_its_blocks():
    n = 100_000_000
    plan = Plan(
        windows=axes.rows("cell", n),
        blocks=Blocks(np.arange(0, n + 1, 32), None),
        order=Shuffled(),
        pool_blocks=2_000,
        batch_size=4_096,
        seed=0,
        remainder="keep",
        block_nbytes=1,
    )
    gc.collect()
    tracemalloc.start()
    begin = time.process_time()
    n_pools, batch = plan.n_pools(3), plan.batch(3, 0)
    seconds = time.process_time() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{seconds:.2f} s of CPU, {peak / MB:.1f} MB beyond the block list")
    assert n_pools == -(-n // 32 // 2_000)
    assert len(np.unique(batch.ids)) == 4_096
    assert 0.3 * n < batch.ids.mean() < 0.7 * n  # from everywhere
    assert peak < 50 * MB
