"""Memory: what planning takes, what loading takes beyond its budget, and that an epoch takes no more at its end (L11)."""

import gc
import json
import pickle
import re
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from pathlib import Path

import cooler
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import xloader as xl
from tests.sources import write_h5ad
from xloader import axes
from xloader.buffers import Buffers
from xloader.orders import Shuffled
from xloader.plan import Plan
from xloader.visits import Blocks

MB = 10**6
ROOT = Path(__file__).parents[1]
BESIDE = 100
"""MB that a process takes beside its budget, as the docstring of Loader says."""
TOLERANCE = 40
"""MB by which five processes together may grow, of which each step makes 2."""

linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells it")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Cells that take 72 MB in memory, and contacts that take 40 MB."""
    folder = tmp_path_factory.mktemp("stores")
    n, g, nnz = 20_000, 4_000, 1_200
    rng = np.random.default_rng(0)
    some = [np.sort(rng.choice(g, nnz, replace=False)) for _ in range(100)]
    columns = np.tile(np.concatenate(some), n // 100).astype(np.int32)
    x = (np.ones(len(columns), np.float32), columns, np.arange(n + 1) * nnz)
    write_h5ad(folder / "x.h5ad", scipy.sparse.csr_matrix(x, (n, g)))
    xl.convert(folder / "x.h5ad", folder / "cells", progress=False)
    n = 8_000
    i = np.repeat(np.arange(n), 20)
    j = i + np.tile(np.arange(20) * 100, n)
    pixels = {"bin1_id": i[j < n], "bin2_id": j[j < n], "count": np.ones((j < n).sum(), np.int32)}
    start = np.arange(n) * 1_000
    bins = pd.DataFrame({"chrom": "c", "start": start, "end": start + 1_000, "weight": 1.0})
    cooler.create_cooler(str(folder / "x.cool"), bins, pixels)
    xl.convert(folder / "x.cool", folder / "contacts", progress=False)
    return folder


def measured(*args):
    """Return what tests/measured.py says."""
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.measured", *map(str, args)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


@linux
@pytest.mark.parametrize("kind", ["cells", "contacts"])
def test_epochs__with_four_workers_take_no_more_memory_at_their_end(kind, stores):
    for name, epochs in measured("flat", stores / kind, "24MB", 3).items():
        within = max(max(epoch) - epoch[0] for epoch in epochs)
        over = max(epochs[-1]) - max(epochs[0])
        print(f"{name}: {within:.0f} MB within an epoch, {over:.0f} MB over all")
        for grown in (within, over):
            assert (grown < TOLERANCE) == (name != "a batch kept at each step"), (name, epochs)


@linux
@pytest.mark.parametrize("budget", [16, 64])
@pytest.mark.parametrize("kind", ["cells", "contacts"])
def test_peak__is_the_budget_and_what_the_documentation_says(kind, budget, stores):
    assert f"this much and {BESIDE} MB" in re.sub(r"\s+", " ", xl.Loader.__doc__)
    told = measured("peak", stores / kind, f"{budget}MB")
    print(told)
    assert told["pools"] > 3
    assert len(told["workers"]) == 2
    assert max(told["alone"], *told["workers"]) < budget + BESIDE


OPTIONS = {
    "rows": {},
    "some_columns": {"layout": "dense"},
    "large_batches": {"batch_size": 1_000},
    "windows": {},
}


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("what", list(OPTIONS))
def test_pools__are_two_at_most(what, prefetch, stores, monkeypatch):
    from tests.measured import loader_of

    read, refs, alive = xl.Loader._read, [], []

    def reading(self, epoch, pool):
        alive.append(sum(ref() is not None for ref in refs))
        loaded = read(self, epoch, pool)
        found = loaded["count" if what == "windows" else "X"]
        refs.append(weakref.ref(found if what == "windows" else found[0]))
        return loaded

    monkeypatch.setattr(xl.Loader, "_read", reading)
    loader = loader_of(
        stores / ("contacts" if what == "windows" else "cells"),
        "16MB",
        prefetch=prefetch,
        **OPTIONS[what],
    )
    if what == "some_columns":
        loader = xl.Loader(
            loader.ds.isel(gene=slice(8)), batch_size=256, shuffle=True, layout="dense",
            memory_budget="16MB", variables=["X"], prefetch=prefetch,
        )  # fmt: skip
    for _ in range(2):
        for batch in loader:
            del batch
    assert len(alive) >= 2 * loader.plan.n_pools(0) > 10
    assert max(alive) <= 1  # beside the one that is read


def beside_dataset(loader):
    """Return the bytes that a spawned worker is sent, beside the Dataset."""
    return len(pickle.dumps(loader)) - len(pickle.dumps(loader.ds))


def test_workers__are_sent_what_the_user_gave_and_where_windows_lie(stores):
    ds, few, small = xl.open_cells(stores / "cells"), slice(3_200), 4_000
    n, n_blocks = ds.sizes["cell"], ds.sizes["cell"] // 32
    sizes = [
        beside_dataset(xl.Loader(d, batch_size=16, shuffle=True)) for d in (ds.isel(cell=few), ds)
    ]
    assert sizes[0] < small
    assert sizes[1] - sizes[0] < 8 * n_blocks + small  # the list of blocks
    weights = np.arange(1.0, n + 1)
    given = xl.Loader(ds, batch_size=16, order=xl.orders.weighted(weights))
    assert beside_dataset(given) - sizes[1] < weights.nbytes + small
    contacts = xl.open_contacts(stores / "contacts", resolution=1_000)
    for stride in (16, 128):
        shape = xl.windows.grid(size=128, stride=stride)
        loader = xl.Loader(contacts, batch_size=16, shuffle=True, windows=shape)
        # two starts of each window, and its place in the blocks
        assert beside_dataset(loader) < 24 * len(loader.plan.windows) + 2 * small


@linux
def test_buffers__give_back_to_the_system_what_they_drop():
    def anonymous():
        return (
            int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])
            * 1024
            / MB
        )

    buffers, small, grown = Buffers(), [], []

    def work():
        before = anonymous()
        for n in (24, 11, 5, 24, 11, 5):  # none fits into the one before
            buffers.empty((n * MB,), np.uint8).fill(1)
            small.append(np.ones(100_000, np.uint8))
        grown.append(anonymous() - before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert grown[0] < 12  # the last one, and what is small


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
