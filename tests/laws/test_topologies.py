"""L1, L3, L4, L5, L6: the same global batches whatever ranks, workers and processes serve them."""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch.utils.data
from typing_extensions import override

import xloader as xl
from tests.doubles import Rows, cells, contacts, counts
from tests.laws import processes
from xloader import torch as xt
from xloader.torch import datasets

WORLDS = (1, 2, 3, 4, 6, 8)
WORKERS = (0, 1, 2, 5)
KINDS = ("cells", "contacts")
ORDERS = ("shuffled", "weighted", "grouped", "uniform", "sequential")
ONCE = frozenset(ORDERS) - {"weighted"}
REMAINDERS = ("keep", "drop", "pad")

pytestmark = [
    # Python 3.12 warns of any fork while threads live; that it works nevertheless is tested here
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


class Planned(xl.Loader):
    """Serves what the plan says, and reads nothing."""

    @override
    def batches(self, epoch, steps):
        if len(steps) == 0:
            return
        samples, ptr = self.plan.batches(epoch, steps)
        for a, b in itertools.pairwise(ptr.tolist()):
            yield samples.ids[a:b], samples.valid[a:b]


def planned(kind, order, **options):
    """Return a loader of several pools, in the order of that name."""
    if kind == "cells":
        ds, budget = cells(Rows(counts(101), 5), n=101), 6_000
        options = {"labels": ["cell_type"], **options}
    else:
        ds = contacts().chunk({"bin1": 24, "bin2": 40})
        options, budget = {"windows": xl.windows.diagonal(size=12, stride=1), **options}, 100_000
    made = {
        "weighted": xl.orders.weighted(np.arange(101 if kind == "cells" else 79) % 4.0),
        "grouped": xl.orders.grouped("cell_type" if kind == "cells" else "chrom1"),
    }
    options = {"memory_budget": budget, "seed": 5, "order": made.get(order, order), **options}
    return Planned(ds, **options)


@pytest.fixture
def emulated(monkeypatch):
    """Let datasets of this process take themselves for those of workers."""
    worker = SimpleNamespace(info=None)
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: worker.info)
    monkeypatch.setattr(datasets, "share_in_workers", lambda _: None)
    monkeypatch.setattr(datasets, "to_tensors", lambda batch, *_, **__: batch)

    def serve(dataset, state, workers):
        """Return two passes over a dataset, put together as torch's DataLoader does it."""
        dataset.load_state_dict(state)
        parts = []
        for k in range(max(1, workers)):
            mine = copy.copy(dataset)
            worker.info = SimpleNamespace(id=k, num_workers=workers) if workers else None
            parts.append([list(mine), list(mine)])
        worker.info = None
        return [
            [batch for step in itertools.zip_longest(*each) for batch in step if batch is not None]
            for each in zip(*parts, strict=True)
        ]

    return serve


def combinations():
    for kind, order, remainder in itertools.product(KINDS, ORDERS, REMAINDERS):
        for whole in (24, 72, 120):
            if whole < 79 or remainder != "drop":  # else nothing is left
                turn = REMAINDERS[(ORDERS.index(order) + KINDS.index(kind)) % 3]
                marks = [] if whole == 24 and remainder == turn else pytest.mark.long
                yield pytest.param(kind, order, remainder, whole, marks=marks)


@pytest.mark.parametrize(("kind", "order", "remainder", "whole"), list(combinations()), ids=str)
def test_plan__serves_the_same_global_batches_to_all_ranks_and_workers(
    emulated, kind, order, remainder, whole
):
    loader = planned(kind, order, batch_size=whole, remainder=remainder)
    plan, n = loader.plan, len(loader)
    assert len(plan.blocks) > 1 or kind == "contacts"  # a small map is one block of tiles
    epochs = [[plan.batch(e, k) for k in range(n)] for e in range(3)]
    expected = [[b.ids[b.valid].tolist() for b in batches] for batches in epochs]
    for batches in expected if order in ONCE else []:
        ids = sorted(itertools.chain(*batches))
        assert len(ids) == len(set(ids)) == len(plan.windows) - plan.n_dropped
    if order != "sequential" and n > 1:
        assert expected[0] != expected[1] != expected[2]
    for world in WORLDS:
        ranks = [xt.IterableDataset(loader.on_rank(rank, world)) for rank in range(world)]
        for workers, first in itertools.product(WORKERS, range(n + 1)):
            state = loader.state_at(1, first)
            passes = [emulated(rank, state, workers) for rank in ranks]
            for epoch, done, parts in zip(
                (1, 2), (first, 0), zip(*passes, strict=True), strict=True
            ):
                steps = list(zip(*parts, strict=True))  # equal steps on every rank
                joined = [[i for ids, valid in step for i in ids[valid].tolist()] for step in steps]
                assert joined == expected[epoch][done:], (world, workers, first, epoch)
                assert all(len(ids) > 0 for step in steps for ids, _ in step)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("topologies")
    processes.write_stores(where)
    return where


def check(folder, kind, order, served, first, what):
    """Compare what was served after some steps with the run that was not interrupted."""
    expected = processes.uninterrupted(folder, kind, order)
    for epoch, (steps, done) in enumerate(zip(served, (first, 0), strict=False)):
        wanted = expected[epoch][done:]
        wanted = wanted if len(served) == 2 else wanted[: len(steps)]
        assert [[i for i, _ in s] for s in steps] == [[i for i, _ in s] for s in wanted], what
        assert steps == wanted, what  # and every byte


def start(folder, kind, order, first, **how):
    served, state = processes.serve(processes.make(folder, kind, order), kind, most=first, **how)
    check(folder, kind, order, served, 0, "before it stopped")
    assert (state["epoch"], state["step"]) == (0, first)
    return state


ALL = [
    (workers, method, persistent)
    for workers in (2, 5)
    for method in ("fork", "spawn", "forkserver")
    for persistent in (True, False)
]
SOME = [(5, "fork", True), (2, "fork", False), (2, "spawn", True), (2, "forkserver", False)]


def check_workers(folder, kind, order, workers, method, persistent, first):
    """Stop after some steps with workers, go on without; stop without, go on with."""
    how = {"workers": workers, "method": method, "persistent": persistent}
    state = start(folder, kind, order, first, **how)
    assert state == start(folder, kind, order, first)
    for resumed in ({}, how):
        served, after = processes.serve(
            processes.make(folder, kind, order), kind, state=state, **resumed
        )
        check(folder, kind, order, served, first, (how, resumed))
        assert (after["epoch"], after["step"]) == (2, 0)


@pytest.mark.parametrize(("workers", "method", "persistent"), SOME)
def test_workers__of_any_kind_continue_what_others_began(folder, workers, method, persistent):
    kind, order = ("contacts", "weighted") if persistent else ("cells", "shuffled")
    check_workers(folder, kind, order, workers, method, persistent, 3)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["shuffled", "weighted"])
@pytest.mark.parametrize(("workers", "method", "persistent"), ALL)
def test_workers__all_of_them(folder, kind, order, workers, method, persistent):
    for first in (1, 4):
        check_workers(folder, kind, order, workers, method, persistent, first)


def check_groups(folder, orders, worlds, workers):
    """Hand training from one process to groups of ranks and back, each time within the epoch."""
    what = [(kind, order) for kind in KINDS for order in orders]
    first = 1
    states = [start(folder, *each, first, workers=2, method="fork") for each in what]
    for world in worlds:
        jobs = [
            {"kind": kind, "order": order, "state": state, "workers": workers}
            for (kind, order), state in zip(what, states, strict=True)
        ]
        results = processes.run_group(world, folder, [*jobs, *({**j, "most": 2} for j in jobs)])
        for k, (each, (served, state)) in enumerate(zip(what * 2, results, strict=True)):
            check(folder, *each, served, first, (world, k))
            position = (2, 0) if k < len(what) else (0, first + 2)
            assert (state["epoch"], state["step"]) == position
        states, first = [state for _, state in results[len(what) :]], first + 2
    for (kind, order), state in zip(what, states, strict=True):
        served, _ = processes.serve(
            processes.make(folder, kind, order), kind, state=state, workers=5, method="fork"
        )
        check(folder, kind, order, served, first, "one process again")


def test_ranks__of_real_groups_continue_what_others_began(folder):
    check_groups(folder, ["shuffled"], (3, 2), 0)


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("worlds", [(2, 3), (3, 2)])
def test_ranks__of_all_groups(folder, worlds, workers):
    check_groups(folder, ["shuffled", "weighted"], worlds, workers)
