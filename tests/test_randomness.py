"""Randomness is known before a byte is read: planned and delivered batches against counting and formulas."""

import itertools
import math

import numpy as np
import numpy.testing as npt
import pytest
from dask.utils import parse_bytes

import xloader as xl
from tests.doubles import Rows, cells, counts
from xloader import axes
from xloader.errors import PlanError, SchemaError
from xloader.orders import Custom, Grouped, Sequential, Shuffled, Uniform, Weighted
from xloader.plan import Plan
from xloader.randomness import expected, measure
from xloader.visits import even_blocks

N = 200_000
SHARES = np.array([0.02, 0.03, 0.05, 0.05, 0.1, 0.1, 0.15, 0.2, 0.3])
SORTED = np.repeat(np.arange(9), (SHARES * N).astype(int))
SHUFFLED = np.random.default_rng(0).permutation(SORTED)


def make(order=None, *, n=N, block=16, pool=40, batch_size=64, **kwargs):
    return Plan(
        windows=axes.rows("cell", n),
        blocks=even_blocks(n, block),
        order=Shuffled() if order is None else order,
        pool_blocks=pool,
        batch_size=batch_size,
        seed=0,
        remainder="keep",
        block_nbytes=block * 100,
        **kwargs,
    )


def bits(labels):
    p = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(p * np.log2(p)).sum())


def variation(labels, shares):
    return float(
        np.abs(np.bincount(labels, minlength=len(shares)) / len(labels) - shares).sum() / 2
    )


def served(plan, labels, epoch):
    """Return labels of all full batches of an epoch, as a Loader asks for them."""
    batches, ptr = plan.batches(epoch, range(len(plan)))
    each = np.split(labels[batches.ids], ptr[1:-1])
    return [b for b in each if len(b) == plan.batch_size]


@pytest.mark.parametrize("m", [1, 2, 5])
def test_expected__equals_the_mean_over_all_outcomes(m):
    shares = np.array([0.5, 0.3, 0.2])
    h = v = 0.0
    for outcome in itertools.product(range(3), repeat=m):
        chance = math.prod(shares[list(outcome)])
        h += chance * bits(np.array(outcome))
        v += chance * variation(np.array(outcome), shares)
    npt.assert_allclose(expected(shares, m), (h, v), rtol=1e-12)


def test_expected__agrees_with_chance_with_many_labels_and_with_its_own_limit():
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(300))
    drawn = [rng.choice(300, 100, p=shares) for _ in range(400)]
    npt.assert_allclose(expected(shares, 100)[0], np.mean([bits(d) for d in drawn]), atol=0.02)
    npt.assert_allclose(
        expected(shares, 100)[1], np.mean([variation(d, shares) for d in drawn]), atol=0.005
    )
    exact, limit = expected(shares, 2**14 - 1), expected(shares, 2**14)
    npt.assert_allclose(exact, limit, rtol=2e-3)
    low, between, high = (expected(shares, m)[0] for m in (3, 3.5, 4))
    npt.assert_allclose(between, (low + high) / 2)


def measured(plan, labels, epochs):
    """Count the labels of every full batch of some epochs: mean entropy and total variation."""
    n_classes, m = labels.max() + 1, plan.batch_size
    shares = np.bincount(labels) / len(labels)
    full = range(plan.n_samples // plan.global_batch)
    ids = np.concatenate([plan.batches(e, full)[0].ids for e in epochs])
    found = np.repeat(np.arange(len(ids) // m), m) * n_classes + labels[ids]
    parts = np.bincount(found, minlength=len(ids) // m * n_classes).reshape(-1, n_classes) / m
    entropy = -(parts * np.log2(np.maximum(parts, 1e-300))).sum(axis=1)
    return entropy.mean(), np.abs(parts - shares).sum(axis=1).mean() / 2


def test_measured__is_what_plain_counting_says():
    plan, labels = make(n=2_000), SORTED[::100]
    shares = np.bincount(labels) / len(labels)
    batches = [b for e in (3, 5) for b in served(plan, labels, e)]
    by_hand = [bits(b) for b in batches], [variation(b, shares) for b in batches]
    npt.assert_allclose(measured(plan, labels, (3, 5)), np.mean(by_hand, axis=1))


SETTINGS = [  # samples of a block, blocks of a pool, samples of a batch
    (16, 4, 16),
    (16, 20, 32),
    (16, 60, 64),
    (50, 3, 16),
    (64, 4, 128),
    (64, 8, 16),
    (64, 14, 512),
]


@pytest.mark.parametrize("n", [1_000, 8_000])
@pytest.mark.parametrize(("block", "pool", "m"), SETTINGS)
@pytest.mark.parametrize("form", ["sorted", "shuffled"])
def test_prediction__agrees_with_what_other_epochs_serve(form, block, pool, m, n):
    labels = SORTED[:: N // n] if form == "sorted" else SHUFFLED[:n]
    plan = make(n=n, block=block, pool=pool, batch_size=m)
    told = plan.randomness(labels)
    # of few pools, chance makes one epoch differ from another by up to 0.6 bit
    many = range(100, 100 + 6_000 // len(plan.blocks))
    entropy, spread = measured(plan, labels, many)
    assert abs(told.entropy - entropy) < 0.06
    assert abs(told.total_variation - spread) < 0.03
    assert not (told.is_bad and form == "shuffled")


@pytest.mark.parametrize(
    ("block", "pool", "m"),
    [(16, 4, 64), (16, 40, 64), (16, 400, 32), (64, 10, 256), (256, 16, 512), (64, 8, 64)],
)
@pytest.mark.parametrize("labels", [SORTED, SHUFFLED], ids=["sorted", "shuffled"])
def test_prediction__agrees_with_the_formula(labels, block, pool, m):
    plan = make(block=block, pool=pool, batch_size=m)
    told = plan.randomness(labels)
    entropy, spread = measured(plan, labels, [1])
    assert abs(told.entropy - entropy) < 0.06
    assert abs(told.total_variation - spread) < 0.03
    # pairs of one block: those of one lane, of which each batch takes equally many
    lanes = max(1, min(64, pool // 4))
    width, rows = m / lanes, pool * block / lanes
    q = max(0.0, width - 1) / (m - 1) * (block - 1) / (rows - 1)
    assert abs(told.same_block - q) < 0.1 * q + 0.001
    rho = 1 if labels is SORTED else 0
    assert abs(told.correlation - rho) < 0.06
    formula = expected(SHARES, m / (1 + (m - 1) * q * rho))[0]
    assert abs(told.entropy - formula) < 0.06
    assert abs(told.formula - told.entropy) < 0.06
    npt.assert_allclose((told.iid, told.iid_total_variation), expected(SHARES, m))
    npt.assert_allclose(told.ceiling, min(bits(labels), math.log2(m)))


def test_prediction__is_right_where_blocks_differ_and_the_formula_is_not():
    half = np.concatenate([SORTED[::2], SHUFFLED[: N // 2]])
    plan = make(block=64, pool=4)
    told = plan.randomness(half)
    assert abs(told.entropy - np.mean([bits(b) for b in served(plan, half, 1)])) < 0.06
    assert told.formula < told.entropy - 0.1


ORDERS = {
    "uniform": (Uniform(), 0.0),
    "sequential": (Sequential(), 3.0),
    "group-by-group": (Grouped(SORTED), 3.0),
    "custom": (Custom(lambda _, rng: rng.permutation(N // 2)), 0.0),
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders__are_judged_by_what_they_serve(name):
    order, lack = ORDERS[name]
    plan = make(order)
    told = plan.randomness(SORTED)
    assert abs(told.entropy - np.mean([bits(b) for b in served(plan, SORTED, 0)])) < 0.06
    npt.assert_allclose(told.ceiling, bits(SORTED[: order.n_samples(plan)]))
    if lack:
        assert told.is_bad
        assert told.effective < 1.1
        assert told.entropy < 0.05
    else:
        assert not told.is_bad
    advice = {"sequential": "pass shuffle=True", "group-by-group": "choose another one"}
    assert advice.get(name, "good: ") in told.verdict


@pytest.mark.parametrize("replacement", [True, False], ids=["again", "once"])
def test_weighted__is_compared_with_the_shares_of_the_weights(replacement):
    weights = np.where(SORTED < 3, 0.0, 1 / np.bincount(SORTED)[SORTED])
    n = N if replacement else 2_000
    told = make(Weighted(weights, n, replacement), pool=400).randomness(SORTED)
    assert abs(told.ceiling - math.log2(6)) < 0.01
    assert told.n_classes == 6
    assert abs(told.entropy - expected(np.ones(6) / 6, 64)[0]) < 0.03
    assert not told.is_bad


def test_ranks__share_one_global_batch_and_have_their_own():
    labels = SORTED[::10]
    whole = make(n=N // 10, batch_size=64).randomness(labels)
    ranks = [make(n=N // 10, batch_size=16, rank=r, world_size=4) for r in range(4)]
    for plan in ranks:
        assert plan.randomness(labels) == whole
        own = plan.randomness(labels, own=True)
        assert own.batch_size == 16
        assert own.iid < whole.iid
        batches = served(plan, labels, 0)
        assert abs(own.entropy - np.mean([bits(b) for b in batches])) < 0.06


def test_bad__is_told_with_a_pool_that_is_enough_and_good_is_not():
    bad = make(pool=4).randomness(SORTED)
    assert bad.is_bad
    assert bad.iid - bad.entropy > 1
    assert bad.verdict.startswith("bad: ")
    assert "xl.convert(..., shuffle=True)" in bad.verdict
    pool = int(bad.verdict.split("mix ")[1].split(" blocks")[0].replace(",", ""))
    assert not make(pool=pool).randomness(SORTED).is_bad
    assert make(pool=pool // 4).randomness(SORTED).is_bad  # and it is not far too large
    good = make(pool=4).randomness(SHUFFLED)
    assert not good.is_bad
    assert good.verdict.startswith("good: 0.0")


def test_labels__may_be_strings_and_missing_and_must_be_one_per_sample():
    codes = SORTED[::50]
    plan = make(n=len(codes))
    told = plan.randomness(codes)
    names = np.array(list("abcdefghi"), object)[codes]
    assert plan.randomness(names) == told
    names[codes == 8] = np.nan
    assert plan.randomness(names) == told
    with pytest.raises(PlanError, match=r"one label for each of 4000 samples .* \(3,\)"):
        plan.randomness([1, 2, 3])
    one = plan.randomness(np.zeros(len(codes)))
    assert (one.entropy, one.iid, one.ceiling, one.is_bad) == (0, 0, 0, False)


def test_small_data__one_short_batch_is_judged_too():
    told = make(n=10, batch_size=64).randomness(np.arange(10) % 2)
    assert (told.batch_size, told.n_batches, told.entropy) == (10, 1, 1)
    assert not told.is_bad


def sorted_cells(n=2048, kinds=8):
    ds = cells(Rows(counts(n), block_rows=16), n=n)
    return ds.assign_coords(kind=("cell", np.sort(np.arange(n) % kinds)))


@pytest.mark.filterwarnings("ignore:.*went into reading")  # one by one, if "uniform"
@pytest.mark.parametrize("order", ["shuffled", "uniform", "weighted"])
@pytest.mark.parametrize(("memory", "world"), [("40kB", 1), ("200kB", 2)])
@pytest.mark.parametrize("form", ["sorted", "shuffled"])
def test_loader__delivers_what_was_predicted(order, world, memory, form):
    ds = sorted_cells()
    if form == "shuffled":
        ds["kind"] = "cell", np.random.default_rng(3).permutation(ds.kind.values)
    weighted = xl.orders.weighted(np.where(ds.kind < 4, 3.0, 1.0))
    loader = xl.Loader(
        ds[["X"]],
        batch_size=32,
        order=weighted if order == "weighted" else order,
        memory_budget=memory,
        rank=world - 1,
        world_size=world,
    )
    told = loader.randomness("kind", own=True)
    loader.set_epoch(100)
    many = 16 if form == "sorted" and order != "uniform" else 2
    batches = [batch for _ in range(many) for batch in loader]
    assert loader.epoch > 100
    found = measure(batches, "kind", plan=loader.plan, labels=ds.kind)
    assert abs(told.entropy - found.entropy) < 0.06
    assert abs(told.total_variation - found.total_variation) < 0.03
    assert (told.same_block, told.correlation) == pytest.approx(
        (found.same_block, found.correlation), abs=0.02
    )
    assert (told.iid, told.ceiling) == (found.iid, found.ceiling)
    assert told.is_bad == found.is_bad
    # by counting labels
    counted = [bits(b.kind.values) for b in batches if b.sizes["cell"] == 32]
    npt.assert_allclose(measure(batches, "kind").entropy, np.mean(counted))


@pytest.mark.parametrize("shuffle", [False, True], ids=["bad", "good"])
def test_loader__that_serves_sorted_data_in_order_is_told_to_be_bad(shuffle):
    loader = xl.Loader(sorted_cells(), batch_size=32, shuffle=shuffle)
    told = loader.randomness("kind")
    found = measure(loader, "kind", plan=loader.plan, labels=loader.ds.kind)
    # 8 kinds of 256 cells one after the other: each batch has one label, and no entropy
    lack = 0.0 if shuffle else expected(np.ones(8) / 8, 32)[0]
    for one in (told, found):
        assert one.is_bad == (not shuffle)
        assert abs(one.iid - one.entropy - lack) < 0.06
        assert (f"verdict   : bad: {lack:.2f} bits less" in repr(one)) == (not shuffle)
    assert ("pass shuffle=True" in repr(told)) == (not shuffle)


def test_loader__advises_a_budget_that_is_enough():
    ds = sorted_cells()
    bad = xl.Loader(ds, batch_size=32, shuffle=True, memory_budget="12kB").randomness("kind")
    assert bad.is_bad
    budget = parse_bytes(bad.verdict.split("memory_budget of ")[1].split(",")[0])
    better = xl.Loader(ds, batch_size=32, shuffle=True, memory_budget=int(budget * 1.01))
    assert not better.randomness("kind").is_bad
    with pytest.raises(SchemaError, match="'species' is no coordinate"):
        better.randomness("species")


def test_prediction__reads_nothing():
    rows = Rows(counts(2048), block_rows=16)
    ds = cells(rows, n=2048)
    xl.Loader(ds, batch_size=32, shuffle=True, memory_budget="40kB").randomness("cell_type")
    assert rows.log == []


def test_measure__without_a_plan_and_with_padding():
    batches = [
        {"kind": np.array([0, 0, 1, 1]), "sample_id": np.arange(4), "valid": np.ones(4, bool)},
        {"kind": np.array([1, 1, 0, 9]), "sample_id": np.arange(4), "valid": np.arange(4) < 3},
    ]
    found = measure(batches, "kind")
    assert (found.n_batches, found.batch_size, found.entropy) == (1, 4, 1)
    assert found.ceiling == bits(np.array([0, 0, 1, 1, 1, 1, 0]))
    assert math.isnan(found.same_block)
    assert "blocks unknown" in repr(found)
    with pytest.raises(PlanError, match="no batch to measure"):
        measure([], "kind")
    with pytest.raises(PlanError, match="give plan= too"):
        measure(batches, "kind", labels=[0, 1])


def test_repr__tells_all_numbers():
    told = make(pool=4).randomness(SORTED)
    text = repr(told)
    assert f"{told.effective:.1f} independent samples" in text
    for number in (told.entropy, told.iid, told.formula, told.ceiling):
        assert f"{number:.2f}" in text
    assert "1,024 batches of 64, 9 labels" in text
    assert "verdict   : bad: " in text
