"""The plan is arithmetic: who gets which sample when, for any number of ranks."""

import pickle

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xloader import axes
from xloader.errors import PlanError
from xloader.plan import Blocks, Plan, even_blocks, group

REMAINDERS = ("keep", "drop", "pad")


def make(n, *, keys=None, pool_blocks=2, batch_size=4, shuffle=True, seed=0, **kwargs):
    blocks = even_blocks(n, 5) if keys is None else group(np.asarray(keys))
    return Plan(
        windows=axes.rows("cell", n),
        blocks=blocks,
        pool_blocks=pool_blocks,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        block_nbytes=1,
        **{"remainder": "keep", **kwargs},
    )


@st.composite
def options(draw):
    """Draw a plan that leaves at least one batch, but for its rank and world size."""
    n = draw(st.integers(1, 80))
    keys = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    world = draw(st.integers(1, 5))
    chosen = {
        "keys": draw(st.sampled_from([None, keys])),
        "pool_blocks": draw(st.integers(1, 12)),
        "batch_size": draw(st.integers(1, 9)),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 3)),
        "remainder": draw(st.sampled_from(REMAINDERS)),
    }
    assume(chosen["remainder"] != "drop" or n >= world * chosen["batch_size"])
    return n, world, chosen


def epoch_of(plan, epoch=0):
    return [plan.batch(epoch, k) for k in range(len(plan))]


@given(options(), st.integers(0, 3))
def test_epoch__every_sample_once_over_all_ranks_and_what_is_left_is_counted(drawn, epoch):
    n, world, chosen = drawn
    plans = [make(n, rank=r, world_size=world, **chosen) for r in range(world)]
    batches = [b for p in plans for b in epoch_of(p, epoch)]
    served = np.concatenate([b.ids[b.valid] for b in batches])
    assert len(np.unique(served)) == len(served)
    assert n - len(served) == plans[0].n_dropped
    assert sum((~b.valid).sum() for b in batches) == plans[0].n_padded
    assert plans[0].n_dropped == 0 or chosen["remainder"] == "drop"
    assert plans[0].n_dropped < plans[0].global_batch
    assert all(plans[0].has_valid or b.valid.all() for b in batches)
    assert all(set(b.ids) <= set(range(n)) for b in batches)


@given(options())
def test_ranks__make_equal_steps_and_len_tells_the_truth(drawn):
    n, world, chosen = drawn
    plans = [make(n, rank=r, world_size=world, **chosen) for r in range(world)]
    assert len({len(p) for p in plans}) == 1
    full, rest = divmod(n, plans[0].global_batch)
    assert len(plans[0]) == full + (rest > 0 and chosen["remainder"] != "drop")
    for plan in plans:
        lengths = [len(b.ids) for b in epoch_of(plan)]
        assert lengths[:-1] == [chosen["batch_size"]] * (len(plan) - 1)
        assert 1 <= lengths[-1] <= chosen["batch_size"]
        assert chosen["remainder"] == "keep" or lengths[-1] == chosen["batch_size"]
        with pytest.raises(IndexError, match=f"batches 0 to {len(plan) - 1}"):
            plan.batch(0, len(plan))


@given(options(), st.integers(0, 2))
def test_global_batch__holds_the_same_ordered_samples_for_every_world_size(drawn, epoch):
    n, world, chosen = drawn
    plans = [make(n, rank=r, world_size=world, **chosen) for r in range(world)]
    alone = make(n, **{**chosen, "batch_size": plans[0].global_batch})
    for step, whole in enumerate(epoch_of(alone, epoch)):
        parts = [p.batch(epoch, step) for p in plans]
        together = np.concatenate([b.ids[b.valid] for b in parts])
        npt.assert_array_equal(together, whole.ids[whole.valid])


@given(options(), st.integers(0, 3))
def test_order__depends_on_seed_and_epoch_alone(drawn, epoch):
    n, _, chosen = drawn
    plan, copy = make(n, **chosen), pickle.loads(pickle.dumps(make(n, **chosen)))
    there = [b.ids for b in epoch_of(plan, epoch)]
    plan.batch(epoch + 1, 0)  # whatever was asked before changes nothing
    back = [copy.batch(epoch, k).ids for k in reversed(range(len(copy)))]
    for a, b in zip(there, reversed(back), strict=True):
        npt.assert_array_equal(a, b)


@given(options())
def test_order__without_shuffling_follows_the_blocks(drawn):
    n, _, chosen = drawn
    plan = make(n, **{**chosen, "shuffle": False, "remainder": "keep"})
    order = np.concatenate([b.ids for b in epoch_of(plan)])
    keys = np.arange(n) if chosen["keys"] is None else np.asarray(chosen["keys"])
    npt.assert_array_equal(order, np.argsort(keys, kind="stable"))


def test_epochs__differ_from_each_other_and_between_seeds():
    plans = [make(60, seed=seed, pool_blocks=3) for seed in range(4)]
    orders = [np.concatenate([b.ids for b in epoch_of(p, e)]) for p in plans for e in range(4)]
    assert len({tuple(o) for o in orders}) == 16


def test_order__is_pinned():
    # training runs are repeated from (seed, epoch): this order may never change
    plan = make(14, keys=np.arange(14) // 2, pool_blocks=2, batch_size=14, seed=7)
    assert plan.batch(0, 0).ids.tolist() == [10, 9, 11, 8, 3, 12, 13, 2, 5, 6, 4, 7, 1, 0]
    assert plan.batch(1, 0).ids.tolist() == [13, 7, 6, 12, 10, 11, 4, 5, 1, 8, 0, 9, 3, 2]


def test_order__uses_no_random_number_twice():
    plan = make(40, keys=np.arange(40), pool_blocks=40, batch_size=40, seed=0)
    orders = [plan.block_order(e).tolist() for e in (0, 1)]
    within = np.random.default_rng([2, 0, 0, 0]).permutation(40).tolist()
    assert len({tuple(o) for o in (*orders, within)}) == 3
    assert (
        orders[0]
        != make(40, keys=np.arange(40), pool_blocks=40, batch_size=40, seed=1)
        .block_order(0)
        .tolist()
    )


@given(options(), st.integers(0, 2))
def test_pools__each_block_belongs_to_one_pool_which_batches_pass_in_order(drawn, epoch):
    n, _, chosen = drawn
    plan = make(n, **chosen)
    pool_of = np.empty(n, int)
    for p in range(plan.n_pools):
        pool_of[plan.pool_ids(epoch, p)] = p
    for b in range(len(plan.blocks)):
        assert len(set(pool_of[plan.blocks.of(b)])) == 1
    batches = epoch_of(plan, epoch)
    for b in batches:
        npt.assert_array_equal(b.pools, pool_of[b.ids])
    assert (np.diff(np.concatenate([b.pools for b in batches])) >= 0).all()
    assert plan.n_pools == -(-len(plan.blocks) // plan.pool_blocks)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_group__gathers_equal_keys_in_increasing_order(keys):
    blocks = group(np.array(keys))
    assert len(blocks) == len(set(keys))
    for b, key in enumerate(sorted(set(keys))):
        assert blocks.of(b).tolist() == [i for i, k in enumerate(keys) if k == key]
    assert (blocks.members is None) == (sorted(keys) == keys)


def test_plan__of_a_million_rows_pickles_small():
    plan = Plan(
        windows=axes.rows("cell", 10**6),
        blocks=Blocks(np.arange(0, 10**6 + 1, 64), None),
        pool_blocks=100,
        batch_size=4096,
        shuffle=True,
        seed=0,
        remainder="keep",
        block_nbytes=1,
    )
    plan.batch(0, 3)
    assert len(pickle.dumps(plan)) < 130_000  # 8 bytes per block, nothing per row


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is impossible; it must be at least 1"),
        (
            {"remainder": "wrap"},
            r"remainder='wrap' is unknown; choose one of \('keep', 'drop', 'pad'\)",
        ),
        ({"rank": 2, "world_size": 2}, "rank 2 of world_size 2 is impossible; ranks count from 0"),
        ({"rank": -1}, "rank -1 of world_size 1 is impossible"),
        ({"seed": -1}, "seed=-1 is impossible; it must be at least 0"),
        (
            {"batch_size": 8, "world_size": 3, "remainder": "drop"},
            "batch_size=8 x world_size=3 is more than the 20 samples, and remainder='drop' leaves no",
        ),
    ],
)
def test_plan__refuses_what_is_impossible(changed, message):
    with pytest.raises(PlanError, match=message):
        make(20, **changed)
