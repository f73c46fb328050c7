"""The plan is arithmetic: who gets which sample when, for any number of ranks."""

import pickle

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xloader import axes
from xloader.errors import PlanError
from xloader.orders import Sequential, Shuffled
from xloader.plan import Plan
from xloader.visits import Blocks, even_blocks, group

REMAINDERS = ("keep", "drop", "pad")


def make(n, *, keys=None, pool_blocks=2, batch_size=4, shuffle=True, seed=0, **kwargs):
    blocks = even_blocks(n, 5) if keys is None else group(np.asarray(keys))
    return Plan(
        windows=axes.rows("cell", n),
        blocks=blocks,
        pool_blocks=pool_blocks,
        batch_size=batch_size,
        order=Shuffled() if shuffle else Sequential(),
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


def of(blocks, b):
    """Return the samples of a block."""
    n = int(np.diff(blocks.ptr)[b])
    return blocks.sample(np.full(n, b), np.arange(n))


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
    assert plan.batch(0, 0).ids.tolist() == [13, 9, 8, 12, 6, 5, 7, 4, 11, 0, 1, 10, 2, 3]
    assert plan.batch(1, 0).ids.tolist() == [2, 7, 3, 6, 12, 13, 4, 5, 10, 11, 1, 0, 9, 8]


@given(options(), st.integers(0, 2))
def test_pools__each_block_belongs_to_one_pool_which_batches_pass_in_order(drawn, epoch):
    n, _, chosen = drawn
    plan = make(n, **chosen)
    pool_of = np.full(n, -1)
    for p in range(plan.n_pools(epoch)):
        pool_of[plan.pool_ids(epoch, p)] = p
    for b in range(len(plan.blocks)):
        assert len(set(pool_of[of(plan.blocks, b)]) - {-1}) <= 1  # -1: dropped
    batches = epoch_of(plan, epoch)
    for b in batches:
        npt.assert_array_equal(b.pools, pool_of[b.ids])
    assert (np.diff(np.concatenate([b.pools for b in batches])) >= 0).all()
    assert plan.n_pools(epoch) == -(-len(plan.blocks) // plan.pool_blocks)


@given(options(), st.integers(0, 2))
def test_pools__give_each_rank_what_its_batches_ask_for_and_no_more(drawn, epoch):
    n, world, chosen = drawn
    for rank in range(world):
        plan = make(n, rank=rank, world_size=world, **chosen)
        asked = {}
        for b in epoch_of(plan, epoch):
            for p, i in zip(b.pools.tolist(), b.ids.tolist(), strict=True):
                asked.setdefault(p, set()).add(i)
        for p in range(plan.n_pools(epoch)):
            assert set(plan.pool_ids(epoch, p)) == asked.get(p, set())


def test_ranks__read_their_share_of_the_blocks():
    # 40 pools of 500 blocks of 32 rows, batches of 4,096 rows over all ranks
    ptr = np.arange(0, 640_001, 32)
    for world, most in ((1, 1), (2, 1.01), (3, 1.1), (6, 1.1), (8, 1.05)):
        shared = {
            "order": Shuffled(),
            "seed": 0,
            "remainder": "keep",
            "block_nbytes": 1,
            "world_size": world,
        }
        size = {3: 1365, 6: 683}.get(world, 4096 // world)
        plans = [
            Plan(
                axes.rows("cell", 640_000),
                Blocks(ptr, None),
                pool_blocks=500,
                batch_size=size,
                rank=r,
                **shared,
            )
            for r in range(world)
        ]
        read = [sum(len(np.unique(p.pool_ids(0, k) // 32)) for k in range(1, 7)) for p in plans]
        assert 1 <= sum(read) / (6 * 500) <= most
        assert max(read) <= 1.2 * min(read)


def test_shares__differ_from_epoch_to_epoch():
    plan = make(2000, pool_blocks=20, batch_size=50, rank=1, world_size=4)
    shares = [set(np.concatenate([b.ids for b in epoch_of(plan, e)]).tolist()) for e in (0, 1)]
    assert 0.15 < len(shares[0] & shares[1]) / 500 < 0.35  # a quarter by chance
    assert max(np.histogram(list(shares[0]), 10, (0, 2000))[0]) < 80  # of 50 where spread evenly


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_group__gathers_equal_keys_in_increasing_order(keys):
    blocks = group(np.array(keys))
    assert len(blocks) == len(set(keys))
    for b, key in enumerate(sorted(set(keys))):
        assert of(blocks, b).tolist() == [i for i, k in enumerate(keys) if k == key]
    assert (blocks.members is None) == (sorted(keys) == keys)


def test_plan__of_a_million_rows_pickles_small():
    plan = Plan(
        windows=axes.rows("cell", 10**6),
        blocks=Blocks(np.arange(0, 10**6 + 1, 64), None),
        pool_blocks=100,
        batch_size=4096,
        order=Shuffled(),
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
