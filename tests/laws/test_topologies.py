"""L1, L3, L4, L5, L6: the same global batches whatever ranks, workers and processes serve them."""

import copy
import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch.utils.data
from typing_extensions import override

import xloader as xl
from tests.doubles import Rows, cells, contacts, counts
from tests.laws import processes
from tests.laws.covering import covering
from xloader import torch as xt
from xloader.torch import datasets

WORLDS = (1, 2, 3, 4, 6, 8)
WORKERS = (0, 1, 2, 5)
KINDS = ("cells", "contacts")
ORDERS = ("shuffled", "weighted", "grouped", "uniform", "sequential")
ONCE = frozenset(ORDERS) - {"weighted"}
REMAINDERS = ("keep", "drop", "pad")
WHOLE = (24, 48, 72)
METHODS = ("fork", "spawn", "forkserver")

pytestmark = [
    # Python 3.12 warns of any fork while threads live; that it works nevertheless is tested here
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


class Planned(xl.Loader):
    """Serves what the plan says, and reads nothing."""

    @override
    def batches(self, epoch, steps):
        batches = epoch_of(self.plan, epoch)
        for step in steps:
            yield batches[step].ids, batches[step].valid


@functools.lru_cache(maxsize=256)
def epoch_of(plan, epoch):
    return [plan.batch(epoch, step) for step in range(len(plan))]


def planned(kind, order, *, small=True, **options):
    """Return a loader of several blocks, and of several pools if it is `small`."""
    if kind == "cells":
        ds, budget = cells(Rows(counts(101), 5), n=101), 6_000
        options = {"labels": ["cell_type"], **options}
    else:
        ds, budget = contacts(chroms=(600, 300)), 90_000
        options = {"windows": xl.windows.diagonal(size=12, stride=8), **options}
    n = len(xl.Loader(ds, **{**options, "batch_size": 1}).plan.windows)
    made = {
        "weighted": xl.orders.weighted(np.arange(n) % 4.0),
        "grouped": xl.orders.grouped("cell_type" if kind == "cells" else "chrom1"),
    }
    options = {"memory_budget": budget if small else "1GB", "seed": 5, **options}
    return Planned(ds, order=made.get(order, order), **options)


@pytest.fixture
def emulated(monkeypatch):
    """Let datasets of this process take themselves for those of workers."""
    worker = SimpleNamespace(info=None)
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: worker.info)
    monkeypatch.setattr(datasets, "share_in_workers", lambda _: None)
    monkeypatch.setattr(datasets, "in_form", lambda batch, *_, **__: batch)

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


def plans():
    """Return all that a plan can be asked for; orders that the issue does not multiply are long."""
    for order in ORDERS:
        marks = [] if order in ("shuffled", "weighted") else pytest.mark.long
        for case in itertools.product(KINDS, REMAINDERS, WHOLE, (True, False)):
            yield pytest.param(order, *case, marks=marks)


@pytest.mark.parametrize(("order", "kind", "remainder", "whole", "small"), list(plans()), ids=str)
def test_plan__serves_the_same_global_batches_to_all_ranks_and_workers(
    emulated, order, kind, remainder, whole, small
):
    loader = planned(kind, order, batch_size=whole, remainder=remainder, small=small)
    plan, n = loader.plan, len(loader)
    assert len(plan.blocks) > 9
    assert (plan.n_pools(0) > 2) == small or order == "grouped"
    expected = [[b.ids[b.valid].tolist() for b in epoch_of(plan, e)] for e in range(3)]
    for batches in expected if order in ONCE else []:
        ids = sorted(itertools.chain(*batches))
        assert len(ids) == len(set(ids)) == len(plan.windows) - plan.n_dropped
    if order != "sequential":
        assert len(set(map(str, expected))) == 3
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


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_plan__of_some_steps_is_that_of_each(order, kind, small):
    for remainder, world in itertools.product(REMAINDERS, (1, 3, 8)):
        options = {"remainder": remainder, "rank": world - 1, "world_size": world}
        plan = planned(kind, order, batch_size=24 // world, small=small, **options).plan
        for workers, first in itertools.product(WORKERS, range(len(plan))):
            steps = range(first, len(plan), max(1, workers))
            samples, ptr = plan.batches(2, steps)
            for step, a, b in zip(steps, ptr[:-1], ptr[1:], strict=True):
                one = plan.batch(2, step)
                for name in ("ids", "pools", "valid"):
                    got = getattr(samples, name)[a:b]
                    np.testing.assert_array_equal(got, getattr(one, name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("topologies")
    processes.write_stores(where)
    return where


FACTORS = {
    "world": WORLDS,
    "workers": WORKERS,
    "method": (None, *METHODS),
    "persistent": (None, True, False),
    "kind": KINDS,
    "order": ("shuffled", "weighted"),
    "remainder": REMAINDERS,
    "whole": WHOLE,
    "small": (True, False),
    "first": (0.0, 0.5, 1.0),  # of an epoch, where training goes on
    "stops": (0, 1, 2),  # how often it stops again in this epoch
}


def starts(case):
    """Return how many processes import everything anew; servers of forks do it once."""
    if case["method"] != "spawn":
        return 0
    return case["world"] * case["workers"] * (case["stops"] + 2 - bool(case["persistent"]))


def possible(case, most=5):
    """Say whether there is such a case, and whether it takes not too long."""
    of_workers = {case["workers"] > 0, case["method"] is not None, case["persistent"] is not None}
    at_end = case["first"] == 1 and case["stops"] > 0
    return len(of_workers) == 1 and not at_end and starts(case) <= max(case["world"], most)


@functools.cache
def sample():
    return covering(FACTORS, possible)


def test_sample__lets_each_two_choices_meet():
    cases = sample()
    assert len(cases) < 40
    for (a, of_a), (b, of_b) in itertools.combinations(FACTORS.items(), 2):
        met = {(case[a], case[b]) for case in cases}
        for pair in set(itertools.product(of_a, of_b)) - met:
            about = dict(zip((a, b), pair, strict=True))
            rest = {k: v for k, v in FACTORS.items() if k not in about}
            others = itertools.product(*rest.values())
            tried = ({**about, **dict(zip(rest, other, strict=True))} for other in others)
            assert not any(map(possible, tried)), about


def check(folder, case, served, last):
    """Compare steps and states with the run that was not interrupted."""
    plan, batches, states = processes.uninterrupted(folder, case)
    assert len(plan.blocks) > 1
    assert (plan.n_pools(0) > 1) == case["small"]
    first = case["state"]["step"]
    expected = [*batches[0][first:], *batches[1]]
    ids = [[i for i, _ in step] for step, _ in served]
    assert ids == [[i for i, _ in step] for step in expected], case
    assert [step for step, _ in served] == expected, case  # and every byte
    assert [state for _, state in served] == [*states[0][first + 1 :], *states[1][1:]], case
    assert (last["epoch"], last["step"]) == (2, 0)


def serve_in_groups(folder, world, cases):
    """Go on with each case in real processes."""
    for case in cases:
        _, batches, states = processes.uninterrupted(folder, case)
        first = int(case["first"] * len(batches[0]))
        case["state"] = states[0][first]
        case["stops"] = min(case["stops"], len(batches[0]) - first)
    if world == 1:
        found = [processes.serve(processes.loader_of(folder, case), case) for case in cases]
    else:
        found = processes.run_group(world, folder, cases)
    for case, (served, last) in zip(cases, found, strict=True):
        check(folder, case, served, last)


@pytest.mark.parametrize("world", WORLDS)
def test_processes__of_any_kind_continue_what_others_began(folder, world):
    """States do not tell who saved them, so who goes on from each goes on from all."""
    serve_in_groups(folder, world, [dict(case) for case in sample() if case["world"] == world])


@pytest.mark.parametrize(("workers", "persistent"), [(0, None), (2, True), (2, False)])
def test_workers__that_live_on_follow_epochs_states_and_early_ends(workers, persistent):
    options = {"batch_size": 12, "memory_budget": 4_000, "layout": "dense"}
    loader = xl.Loader(cells(Rows(counts(), 5)), shuffle=True, variables=["X"], **options)
    method = "fork" if workers else None
    made = xt.make_loader(
        loader, num_workers=workers, start_method=method, persistent_workers=persistent
    )
    epochs = [[b.ids.tolist() for b in epoch_of(loader.plan, e)] for e in range(7)]

    def take(most=None):
        return [batch["sample_id"].tolist() for batch in itertools.islice(made, most)]

    assert take(2) == epochs[0][:2]
    assert [take(), take()] == epochs[1:3]
    made.set_epoch(5)
    assert [take(), take()] == epochs[5:]
    for _ in range(2):
        made.load_state_dict(loader.state_at(2, 3))
        assert take(1) == epochs[2][3:4]
        made.load_state_dict(made.state_dict())
        assert [take(), take()] == [epochs[2][4:], epochs[3]]


def topologies():
    """Return all of them with at most 16 processes that import anew, other choices in turn."""
    taken = {name: itertools.cycle(FACTORS[name]) for name in list(FACTORS)[4:]}
    for world, workers, method, persistent in itertools.product(*list(FACTORS.values())[:4]):
        case = {"world": world, "workers": workers, "method": method, "persistent": persistent}
        case |= {name: next(levels) for name, levels in taken.items()}
        case["stops"] *= case["first"] < 1 and method != "spawn"
        if possible(case, most=16):
            yield pytest.param(case, id="-".join(map(str, list(case.values())[:4])))


@pytest.mark.long
@pytest.mark.parametrize("case", list(topologies()))
def test_processes__of_all_kinds(folder, case):
    serve_in_groups(folder, case["world"], [dict(case)])
