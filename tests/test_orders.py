"""What each order serves, against plain numpy; reading is counted."""

import json
from collections import Counter

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl
from tests.doubles import Rows, cells, contacts, counts, dense
from xloader.errors import PlanError, SchemaError
from xloader.keyed import key_of, mixed, permuted

ROW_NBYTES = 2_100  # a budget that leaves few blocks of 8 rows in a pool


def loader(order, *, n=61, batch_size=7, budget=ROW_NBYTES, log=None, **kwargs):
    array = Rows(counts(n=n), block_rows=8)
    made = xl.Loader(
        cells(array, n=n), batch_size=batch_size, order=order, memory_budget=budget, **kwargs
    )
    if log is not None:
        log.append(array.log)
    return made


def epoch_of(made, epoch=0):
    return list(made.batches(epoch, range(len(made))))


def ids_of(made, epoch=0):
    """Return the samples of an epoch as the plan says them, without reading."""
    plan = made.plan
    return np.concatenate([plan.batch(epoch, k).ids for k in range(len(plan))])


def check_values(made):
    x = counts(n=61)
    for batch in epoch_of(made):
        npt.assert_array_equal(dense(batch).X.values, x[batch.sample_id.values])


# --- permutations


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permuted__takes_every_place_to_another_one(n, key):
    assert sorted(permuted(np.arange(n), n, key).tolist()) == list(range(n))


@given(st.lists(st.integers(1, 90), min_size=1, max_size=20), st.integers(0, 99))
def test_permuted__many_permutations_at_once_equal_each_alone(sizes, seed):
    keys = mixed(np.arange(len(sizes)), seed)
    alone = [permuted(np.arange(n), n, k) for n, k in zip(sizes, keys, strict=True)]
    places = np.concatenate([np.arange(n) for n in sizes])
    together = permuted(places, np.repeat(sizes, sizes), np.repeat(keys, sizes))
    npt.assert_array_equal(together, np.concatenate(alone))


def test_permuted__beyond_32_bits():
    n = 2**40 + 5
    places = np.append(np.arange(1000), n - 1 - np.arange(1000))
    out = permuted(places, n, 3)
    assert len(np.unique(out)) == 2000
    assert 0 <= out.min() < out.max() < n
    assert abs(out.mean() / n - 0.5) < 0.05


@pytest.mark.parametrize("n", [3, 4, 5])
def test_permuted__every_permutation_is_equally_likely(n):
    times, orders = 24_000, {3: 6, 4: 24, 5: 120}[n]
    keys = np.repeat(mixed(np.arange(times), 1), n)
    drawn = permuted(np.tile(np.arange(n), times), n, keys).reshape(times, n)
    found = np.unique(drawn @ n ** np.arange(n), return_counts=True)[1]
    assert len(found) == orders
    chi2 = ((found - times / orders) ** 2 / (times / orders)).sum()
    assert chi2 < orders + 6 * np.sqrt(2 * orders)


def test_keys__are_pinned():
    # training runs are repeated from (seed, epoch): these may never change
    assert key_of(1, 7, 0) == 4439894817922774350
    assert permuted(np.arange(10), 10, 12345).tolist() == [7, 4, 1, 0, 6, 8, 9, 2, 5, 3]
    assert mixed(np.arange(2), 5).tolist() == [16717243559324746421, 12403000284399229050]


# --- orders


@pytest.mark.parametrize("order", ["sequential", "shuffled", "uniform"])
@pytest.mark.parametrize("budget", [ROW_NBYTES, "1GB"])
def test_orders__by_name_serve_every_sample_once(order, budget):
    made = loader(order, budget=budget)
    ids = ids_of(made)
    assert sorted(ids) == list(range(61))
    assert (order == "sequential") == (ids.tolist() == list(range(61)))
    check_values(made)


def test_order__shuffle_is_short_for_shuffled_blocks():
    npt.assert_array_equal(ids_of(loader("shuffled")), ids_of(loader(None, shuffle=True)))
    npt.assert_array_equal(ids_of(loader("sequential")), ids_of(loader(None)))


def test_uniform__all_places_are_equally_likely():
    made = loader("uniform")
    places = np.stack([np.argsort(ids_of(made, e)) for e in range(400)])
    # 400 epochs: the mean place of each sample is 30 +- 17.6 / 20
    assert np.abs(places.mean(0) - 30).max() < 4.5 * 17.6 / 20
    # neighbours in storage are nowhere closer than chance: mean distance (n + 1) / 3
    assert abs(np.abs(np.diff(places, axis=1)).mean() - 62 / 3) < 0.5


@pytest.mark.parametrize("budget", [ROW_NBYTES, "1GB"])
def test_weighted__each_sample_comes_as_often_as_its_weight_says(budget):
    weights = np.random.default_rng(0).random(61) ** 3
    weights[[0, 5, 60]] = 0
    made = loader(xl.orders.weighted(weights, n=200), budget=budget)
    assert (made.plan.n_samples, len(made)) == (200, 29)
    found = np.stack([np.bincount(ids_of(made, e), minlength=61) for e in range(300)])
    expected = 200 * weights / weights.sum()
    assert (found.sum(1) == 200).all()
    assert (found[:, weights == 0] == 0).all()
    npt.assert_array_less(np.abs(found.mean(0) - expected), 5 * np.sqrt((expected + 0.01) / 300))
    # and blocks get their share in every epoch, not only on average
    blocks = np.add.reduceat(found, np.arange(0, 61, 8), axis=1)
    share = np.add.reduceat(expected, np.arange(0, 61, 8))
    assert np.abs(blocks - share).max() < 1
    check_values(made)


def test_weighted__blocks_without_weight_are_not_read():
    weights, log = np.zeros(61), []
    weights[16:24] = weights[40:48] = 1
    made = loader(xl.orders.weighted(weights), log=log, variables=["X"])
    epoch_of(made)
    assert set(log[0]) == {2, 5}
    assert max(Counter(log[0]).values()) == 1


def test_weighted__without_replacement_chooses_like_numpy():
    weights = np.arange(1.0, 13.0)
    array = np.arange(12)
    ds = cells(n=12)
    order = xl.orders.weighted(weights, replacement=False, n=5)
    made = xl.Loader(ds, batch_size=5, order=order)
    drawn = [ids_of(made, e) for e in range(3000)]
    assert all(len(set(d.tolist())) == 5 for d in drawn)
    rng = np.random.default_rng(0)
    p = weights / weights.sum()
    numpy = [rng.choice(array, 5, replace=False, p=p) for _ in range(3000)]
    ours, theirs = (np.bincount(np.concatenate(d), minlength=12) / 3000 for d in (drawn, numpy))
    npt.assert_allclose(ours, theirs, atol=5 * np.sqrt(0.5 / 3000))


def test_weights__may_be_a_coordinate():
    made = loader(xl.orders.weighted("depth"))
    depth = np.asarray(cells(n=61).depth)
    given = loader(xl.orders.weighted(depth))
    npt.assert_array_equal(ids_of(made), ids_of(given))


def test_balanced__classes_come_equally_often():
    ds = cells(n=61)
    ds = ds.assign_coords(kind=("cell", np.where(np.arange(61) < 50, "often", "seldom")))
    made = xl.Loader(ds, batch_size=10, order=xl.orders.balanced("kind", n=100))
    kinds = np.stack([ds.kind.values[ids_of(made, e)] == "seldom" for e in range(100)])
    assert abs(kinds.mean() - 0.5) < 0.02
    only = xl.Loader(ds, batch_size=10, order=xl.orders.balanced("kind", classes=["seldom"]))
    assert set(ds.kind.values[ids_of(only)]) == {"seldom"}


@pytest.mark.parametrize("budget", [ROW_NBYTES, "1GB"])
def test_grouped__samples_of_a_group_come_together(budget):
    donor = np.random.default_rng(1).choice(["a", "b", "c", "d"], 61)
    ds = cells(Rows(counts(n=61), block_rows=8), n=61).assign_coords(donor=("cell", donor))
    made = xl.Loader(
        ds, batch_size=7, order=xl.orders.grouped("donor"), memory_budget=budget, variables=["X"]
    )
    seen = set()
    for epoch in range(8):
        ids = ids_of(made, epoch)
        assert sorted(ids) == list(range(61))
        runs = donor[ids][np.append(0, np.flatnonzero(donor[ids][1:] != donor[ids][:-1]) + 1)]
        assert sorted(runs) == ["a", "b", "c", "d"]
        seen.add(tuple(runs))
    assert len(seen) > 3
    check_values(made)


def test_grouped__windows_of_one_chromosome_come_together():
    made = xl.Loader(
        contacts(),
        windows=xl.windows.diagonal(size=8, stride=4),
        batch_size=3,
        order=xl.orders.grouped("chrom1"),
    )
    names = np.concatenate([b.chrom1.values[:, 0] for b in epoch_of(made)])
    assert (names[1:] != names[:-1]).sum() == len(set(names)) - 1


def test_custom__serves_what_the_function_says():
    def odd_ones_backwards(plan, rng):  # noqa: ARG001
        return np.arange(len(plan.windows) - 2, 0, -2)

    log = []
    made = loader(odd_ones_backwards, log=log, variables=["X"])
    assert ids_of(made).tolist() == list(range(59, 0, -2))
    assert "odd_ones_backwards" in repr(made)
    check_values(made)
    assert max(Counter(log[0]).values()) == 1  # descending rows: each block is read once


def test_custom__random_ones_depend_on_seed_and_epoch_alone():
    def some(plan, rng):
        return rng.choice(len(plan.windows), 30)

    made, again = loader(some, seed=3), loader(some, seed=3)
    other = loader(some, seed=4)
    for epoch in (2, 0, 1):
        npt.assert_array_equal(ids_of(made, epoch), ids_of(again, epoch))
        assert ids_of(made, epoch).tolist() != ids_of(other, epoch).tolist()
    assert ids_of(made, 0).tolist() != ids_of(made, 1).tolist()


@pytest.mark.parametrize(
    "order", ["uniform", xl.orders.weighted("depth"), xl.orders.grouped("cell_type")]
)
def test_orders__go_on_from_a_state(order):
    whole, part = loader(order), loader(order)
    expected = [b.sample_id.values.tolist() for _ in range(2) for b in whole]
    batches = iter(part)
    seen = [next(batches).sample_id.values.tolist() for _ in range(3)]
    state = json.loads(json.dumps(part.state_dict()))
    rest = loader(order)
    rest.load_state_dict(state)
    seen += [b.sample_id.values.tolist() for _ in range(2) for b in rest]
    assert seen == expected


def too_many(plan, rng):  # noqa: ARG001
    return np.array([0, 61])


def as_floats(plan, rng):  # noqa: ARG001
    return rng.random(3)


def more_each_time(plan, rng):  # noqa: ARG001
    return np.zeros(rng.integers(1, 10**9) % 50 + 1, int)


BAD = {
    "negative": (xl.orders.weighted(np.arange(61.0) - 3), "weights given have 3 negative of 61"),
    "nan": (xl.orders.weighted(np.where(np.arange(61) < 2, np.nan, 1)), "have 2 NaN of 61"),
    "inf": (xl.orders.weighted(np.where(np.arange(61) < 2, np.inf, 1)), "have 2 infinite of 61"),
    "zero": (xl.orders.weighted(np.zeros(61)), "all 61 weights given are 0"),
    "short": (
        xl.orders.weighted(np.ones(60)),
        r"one value for each of 61 samples .* shape \(60,\)",
    ),
    "how many": (xl.orders.weighted(np.ones(61), replacement=False), "say how many: n= at most 61"),
    "too many": (
        xl.orders.weighted(np.arange(61), replacement=False, n=61),
        "n=61 samples cannot be drawn; ask for at most 60",
    ),
    "none": (
        xl.orders.weighted(np.ones(61), n=0),
        "n=0 samples cannot be drawn; ask for any number",
    ),
    "class": (
        xl.orders.balanced("cell_type", classes=["T", "?"]),
        r"classes \['\?'\] of 'cell_type' have no sample; there are",
    ),
    "unknown": ("random", "order='random' is unknown; choose one of"),
    "range": (too_many, "order 'too_many' returned samples 0 to 61; there are 0 to 60"),
    "floats": (as_floats, "order 'as_floats' returned float64 of shape"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_orders__refuse_what_is_impossible(name):
    order, message = BAD[name]
    with pytest.raises(PlanError, match=message):
        loader(order)


def test_orders__refuse_labels_that_are_not_there():
    with pytest.raises(
        SchemaError, match="'donor' is no coordinate along .* there are .*'cell_type'"
    ):
        loader(xl.orders.grouped("donor"))
    ds = cells(n=61).assign_coords(donor=("cell", np.where(np.arange(61) < 4, None, "a")))
    for order in (xl.orders.grouped("donor"), xl.orders.balanced("donor")):
        with pytest.raises(
            PlanError, match="4 of 61 samples have no 'donor'; select those that do"
        ):
            xl.Loader(ds, batch_size=4, order=order)


def test_order__and_shuffle_exclude_each_other():
    with pytest.raises(PlanError, match="`order` and `shuffle` both say"):
        loader("uniform", shuffle=True)


def test_custom__with_another_number_of_samples_each_epoch_is_refused():
    made = loader(more_each_time)
    with pytest.raises(PlanError, match="return equally many in each"):
        ids_of(made, 1)
