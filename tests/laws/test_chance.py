"""L7: each thing that is left to chance is another one in each epoch and for each seed, and the same again."""

import itertools

import numpy as np
import pytest

import xloader as xl
from tests.doubles import Rows, cells, counts

BLOCK = 8
BY = np.arange(61) // 6


def plan_of(order, seed, *, n=61, budget="1GB"):
    ds = cells(Rows(counts(n=n), block_rows=BLOCK), n=n)[["X"]].assign_coords(
        by=("cell", BY[:n]), one=("cell", np.zeros(n, int))
    )
    return xl.Loader(ds, batch_size=7, order=order, memory_budget=budget, seed=seed).plan


def served(plan, epoch):
    return np.concatenate([plan.batch(epoch, k).ids for k in range(len(plan))])


def drawn(plan, epoch):
    """Return which samples come, and how often."""
    return sorted(served(plan, epoch).tolist())


def together(plan, epoch):
    """Return which blocks are mixed, pool by pool."""
    pools = (plan.pool_ids(epoch, p) // BLOCK for p in range(plan.n_pools(epoch)))
    return [sorted(set(p.tolist())) for p in pools]


def groups(plan, epoch):
    """Return the groups as they come."""
    return [int(g) for g, _ in itertools.groupby(BY[served(plan, epoch)])]


def sequence(plan, epoch):
    return served(plan, epoch).tolist()


SMALL = {"budget": 2_100}
WEIGHTS = np.arange(61) % 4.0
CHANCES = {
    "blocks": ("shuffled", together, SMALL),
    "samples within a block": ("shuffled", sequence, {"n": BLOCK}),
    "all samples": ("uniform", sequence, {}),
    "draws": (xl.orders.weighted(WEIGHTS), drawn, SMALL),
    "blocks of draws": (xl.orders.weighted(np.ones(61)), together, SMALL),
    "choice": (xl.orders.weighted(WEIGHTS, replacement=False, n=20), drawn, SMALL),
    "groups": (xl.orders.grouped("by"), groups, SMALL),
    "blocks within a group": (xl.orders.grouped("one"), together, SMALL),
    "user's own": (lambda plan, rng: rng.permutation(len(plan.windows)), sequence, {}),
}


@pytest.mark.parametrize("name", CHANCES)
def test_chance__follows_from_seed_and_epoch(name):
    order, seen, options = CHANCES[name]
    keys = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (1, 2)]
    first, again = (
        [seen(plan_of(order, seed, **options), epoch) for seed, epoch in each]
        for each in (keys, keys[::-1])
    )
    assert first == again[::-1]
    assert len(set(map(str, first))) == len(keys)


@pytest.mark.parametrize("budget", [2_100, "1GB"])
def test_choice__takes_no_sample_twice_and_none_without_weight(budget):
    order = xl.orders.weighted(WEIGHTS, replacement=False, n=30)
    plan = plan_of(order, 4, budget=budget)
    for epoch in range(5):
        ids = drawn(plan, epoch)
        assert len(set(ids)) == len(ids) == 30
        assert (WEIGHTS[ids] > 0).all()
