"""The laws of `xl.testing` are kept by what keeps them, and name epoch, step and samples where it does not."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from typing_extensions import override

import xloader as xl
from tests.doubles import Rows, cells, counts, dense
from xloader.cursor import Cursor
from xloader.errors import PlanError
from xloader.orders import Shuffled
from xloader.plan import Plan
from xloader.testing import OrderContract
from xloader.visits import Listed

SERVED = np.arange(61)


def loader(order="shuffled", **options):
    ds = cells(Rows(counts(), 5))
    return xl.Loader(ds, **{"batch_size": 12, "order": order, "memory_budget": 4_000, **options})


@dataclass(frozen=True)
class Wrong(Shuffled):
    """An order that forgets a sample, repeats one, or serves what is not there."""

    change: str = ""

    @override
    def visits(self, plan, epoch):
        ids = SERVED.copy()
        if self.change == "missing":
            ids[-1] = 0
        if self.change == "world":
            ids = np.roll(ids, plan.world_size)
        if self.change == "foreign":
            ids[30] = 61
        if self.change == "epochs":
            ids = np.roll(ids, epoch + 7 * plan.seed)
        return Listed(np.array([0, len(ids)]), ids.__getitem__)


def test_covers__names_what_is_missing_repeated_or_not_there():
    xl.testing.assert_covers(loader(Wrong()))
    with pytest.raises(
        AssertionError, match=r"epoch 0, step 5, rank 0 of 1: samples \[0\] come too"
    ):
        xl.testing.assert_covers(loader(Wrong("missing")))
    with pytest.raises(
        AssertionError, match=r"epoch 1, step 2, rank 0 of 1: there are no .*\[61\]"
    ):
        xl.testing.assert_covers(loader(Wrong("foreign")), epochs=[1])
    few = xl.orders.weighted(np.arange(61) < 30, n=50)
    xl.testing.assert_covers(loader(few))
    with pytest.raises(AssertionError, match="come too often|never come"):
        xl.testing.assert_covers(loader(few), once=True)


@pytest.mark.parametrize("name", ["n_dropped", "n_padded"])
def test_covers__believes_no_count(monkeypatch, name):
    monkeypatch.setattr(Plan, name, 5)
    with pytest.raises(
        AssertionError, match=r"epoch 0, all 6 steps, 1 ranks: the plan says 5 samp"
    ):
        xl.testing.assert_covers(loader())


def test_equal_steps__names_ranks_that_have_too_many(monkeypatch):
    xl.testing.assert_equal_steps(loader(remainder="pad"))
    monkeypatch.setattr(Plan, "__len__", lambda plan: 3 + (plan.rank == 1))
    with pytest.raises(AssertionError, match="epoch 0, rank 1 of 2: 4 steps, .* make 3"):
        xl.testing.assert_equal_steps(loader(), worlds=[2])


def test_topology__names_the_step_and_its_samples():
    with pytest.raises(
        AssertionError,
        match=r"epoch 0, step 0, 2 ranks and one process: samples \[59, 60, 0, 1.* of|instead of \[60",
    ):
        xl.testing.assert_topology_free(loader(Wrong("world")))


def test_epochs__that_are_the_same_are_named():
    xl.testing.assert_epochs_differ(loader(Wrong("epochs")))
    with pytest.raises(AssertionError, match=r"epochs 0 and 1, all 6 steps: the same .*\[0, 1, 2,"):
        xl.testing.assert_epochs_differ(loader("sequential"))


def test_state__that_is_large_or_accepted_wrongly_is_named(monkeypatch):
    xl.testing.assert_state_is_small(loader(), others=[loader(seed=3)])
    with pytest.raises(
        AssertionError, match=r"a state of another Loader \(others\[0\]\) is accepted"
    ):
        xl.testing.assert_state_is_small(loader(), others=[loader()])
    state_at = xl.Loader.state_at
    monkeypatch.setattr(
        xl.Loader, "state_at", lambda self, *at: {**state_at(self, *at), "more": "x" * 1000}
    )
    with pytest.raises(AssertionError, match="epoch 0, step 0: the state has 1[0-9]{3} characters"):
        xl.testing.assert_state_is_small(loader())


def test_resume__names_where_the_run_stopped(monkeypatch):
    xl.testing.assert_resumes_everywhere(loader(), worlds=(1, 2), after=[2], times=2)
    move = Cursor.move
    monkeypatch.setattr(
        Cursor, "move", lambda self, epoch, step=None: move(self, epoch, step and step - 1)
    )
    with pytest.raises(
        AssertionError, match=r"epoch 0, step 2, stopped after step 2, gone on with 1"
    ):
        xl.testing.assert_resumes_everywhere(loader(), worlds=(1, 2), after=[2])


def test_resume__sees_states_that_count_what_was_read_ahead(monkeypatch):
    def follow(self, batches):
        for batch in list(batches):
            self._served = len(SERVED) // 12
            yield batch
        self._finished = True

    monkeypatch.setattr(Cursor, "follow", follow)
    with pytest.raises(
        AssertionError, match="epoch 0, step 1: rank 0 of 1 ranks and prefetch=0 says"
    ):
        xl.testing.assert_resumes_everywhere(loader())


def test_resume__sees_values_that_depend_on_the_ranks():
    def share(batch):
        return batch.assign(share=("cell", np.full(batch.sizes["cell"], 1 / batch.sizes["cell"])))

    with pytest.raises(
        AssertionError, match=r"epoch 0, step 0, 2 ranks .*: samples .* have other v"
    ):
        xl.testing.assert_resumes_everywhere(loader(transform=share), worlds=(2,))


def test_on_rank__keeps_the_global_batch_and_serves_as_that_rank():
    whole = loader(seed=2)
    whole.set_epoch(3)
    for world in (2, 3, 12):
        parts = [whole.on_rank(rank, world) for rank in range(world)]
        assert {p.plan.batch_size for p in parts} == {12 // world}
        for k in range(len(whole)):
            ids = np.concatenate([p[k].sample_id.values for p in parts])
            assert ids[: len(whole[k].sample_id)].tolist() == whole[k].sample_id.values.tolist()
    alike = xl.Loader(
        cells(Rows(counts(), 5)), batch_size=4, order="shuffled", memory_budget=4_000, seed=2,
        rank=1, world_size=3,
    )  # fmt: skip
    other = whole.on_rank(1, 3)
    for k in range(len(alike)):
        assert dense(other.batch(3, k)).identical(dense(alike.batch(3, k)))
    assert other.state_dict() == whole.state_dict()
    next(iter(other))
    assert whole.position == (3, 0)  # they move apart
    assert whole.on_rank(0, 5, batch_size=7).plan.global_batch == 35


@pytest.mark.parametrize("world", [0, 5, -1])
def test_on_rank__refuses_what_cannot_share(world):
    with pytest.raises(PlanError, match=f"batches of 12 samples cannot be shared by {world} ranks"):
        loader().on_rank(0, world)
    with pytest.raises(PlanError, match="rank 2 of world_size 2"):
        loader().on_rank(2, 2)


def backwards(plan, rng):
    return rng.permutation(len(plan.windows))[::-1]


class TestFunction(OrderContract):
    @override
    def order(self):
        return backwards


class TestWeighted(OrderContract):
    @override
    def order(self):
        return xl.orders.weighted("weight")


class TestGrouped(OrderContract):
    @override
    def order(self):
        return xl.orders.grouped("kind")


class TestUniform(OrderContract):
    @override
    def order(self):
        return "uniform"


def contract(order):
    class Contract(OrderContract):
        @override
        def order(self):
            return order

    return Contract()


def test_contract__refuses_orders_that_are_none():
    with pytest.raises(NotImplementedError, match="OrderContract needs a method `order`"):
        OrderContract().test_ranks__share_one_order()
    chance = np.random.default_rng(0)
    told = contract(lambda plan, _: chance.permutation(len(plan.windows)))
    with pytest.raises(AssertionError, match="epoch [012], all steps, asked again: samples"):
        told.test_order__follows_from_seed_and_epoch_alone()
    ranks = contract(lambda plan, _: np.roll(np.arange(len(plan.windows)), plan.rank))
    with pytest.raises(AssertionError, match="epoch 0, step 0, 2 ranks and one process"):
        ranks.test_ranks__share_one_order()
    uneven = contract(lambda _, rng: rng.permutation(90)[: rng.integers(50, 90)])
    with pytest.raises((AssertionError, PlanError), match="epoch [012]"):
        uneven.test_samples__exist_and_epochs_are_equally_long()
    foreign = replace(Wrong("foreign"))
    with pytest.raises(AssertionError, match="there are no samples"):
        contract(WrongMany(foreign.change)).test_samples__exist_and_epochs_are_equally_long()


class WrongMany(Wrong):
    @override
    def visits(self, plan, epoch):
        ids = np.arange(len(plan.windows))
        ids[30] = len(ids)
        return Listed(np.array([0, len(ids)]), ids.__getitem__)


@dataclass(frozen=True)
class Own(Shuffled):
    """An order as a user writes it: sample numbers from a plan and an epoch."""

    ids: object = None

    @override
    def visits(self, plan, epoch):
        ids = np.asarray(self.ids(plan, epoch))
        return Listed(np.array([0, len(ids)]), ids.__getitem__)


def drawn(*words):
    return np.random.default_rng(words).permutation(61)


CALLS = itertools.count()
ORDERS = {
    "epoch ignored": (lambda p, _: drawn(p.seed), "epochs 0 and 1, all 6 steps: the same .* follow"),
    "seed ignored": (lambda _, e: drawn(e), "epoch 0 of seeds 0 and 1, all 6 steps: the same .* follow"),
    "other each time": (lambda *_: drawn(next(CALLS)), r"epoch 0, step 0, .* samples \[.* instead of \["),
    "rank": (lambda p, e: drawn(e, p.rank), r"epoch 0, step \d, rank 1 of 2: .* \[2, .*\] times .* instead of \[1, "),
    "world": (
        lambda p, e: drawn(e, p.world_size),
        r"epoch 0, step 0, 2 ranks and one process: samples \[.* instead of \[",
    ),
    "batch size": (
        lambda p, e: drawn(e, p.batch_size),
        r"epoch 0, step 0, 2 ranks and one process: samples \[.* instead of \[",
    ),
    "repeats": (
        lambda p, e: np.r_[drawn(p.seed, e)[:-1], drawn(p.seed, e)[0]],
        r"epoch 0, step 5, rank 0 of 1: samples \[\d+\] come too often, \[2\] times .* of \[1\]",
    ),
    "short": (lambda p, e: drawn(p.seed, e)[:-1], "epoch 0 places 0 to 60 .* has 61 samples"),
    "long": (lambda p, e: np.r_[drawn(p.seed, e), 0], "epoch 0 places 0 to 62 .* has 61 samples"),
    "short later": (lambda p, e: drawn(p.seed, e)[: 61 - e], "epoch 1 places 0 to 60 .* has 61"),
    "not there": (lambda p, e: drawn(p.seed, e) + 1, r"epoch 0, step \d, .* no samples \[61\], only 0 to 60"),
}  # fmt: skip


def plan_laws(made):
    xl.testing.assert_covers(made)
    xl.testing.assert_equal_steps(made)
    xl.testing.assert_topology_free(made)
    xl.testing.assert_epochs_differ(made)


@pytest.mark.parametrize("name", ORDERS)
def test_orders__of_users_that_break_a_law_are_told_where(name):
    ids, message = ORDERS[name]
    plan_laws(loader(Own(ids=lambda p, e: drawn(p.seed, e))))
    with pytest.raises((AssertionError, PlanError), match=message):
        plan_laws(loader(Own(ids=ids)))


class Backwards(xl.Loader):
    @override
    def batches(self, epoch, steps):
        yield from reversed(list(super().batches(epoch, steps)))


class Loses(xl.Loader):
    @override
    def batches(self, epoch, steps):
        yield from super().batches(epoch, steps[:-1])


class Stale(xl.Loader):
    @override
    def batches(self, epoch, steps):
        yield from super().batches(0, steps)


class StartsAnew(xl.Loader):
    @override
    def batches(self, epoch, steps):
        yield from super().batches(epoch, range(len(steps)))


class Filters(xl.Loader):
    @override
    def batches(self, epoch, steps):
        for batch in super().batches(epoch, steps):
            yield batch.isel(cell=batch.depth.values > 0.1)


class CountsAhead(xl.Loader):
    @override
    def state_dict(self):
        epoch, step = self.position
        return self.state_at(epoch, min(step + 1, len(self)))


class SavesSamples(xl.Loader):
    @override
    def state_at(self, epoch, step):
        return {**super().state_at(epoch, step), "ids": list(range(999))}


class SavesArrays(xl.Loader):
    @override
    def state_at(self, epoch, step):
        return {**super().state_at(epoch, step), "at": np.int64(step)}


class TakesAll(xl.Loader):
    @override
    def position_of(self, state):
        return state["epoch"], state["step"]


class SaysMore(xl.Loader):
    @override
    def __len__(self):
        return 7


LOADERS = {
    Backwards: r"epoch 0, step 0, one process: samples \[60\] at place 0, instead of \[33, 31",
    Loses: "epoch 0, from step 0, one process: 5 steps, not 6",
    Stale: r"epoch 1, step 0, one process: samples \[33, 31, .* instead of \[57, 2",
    StartsAnew: r"epoch 0, step 1, stopped after step 0, .* samples \[33, .* instead of \[51",
    Filters: r"epoch 0, step 0, one process: samples \[31, .* instead of \[33, 31",
    CountsAhead: r"epoch 0, step 0: rank 0 .* says \{'step': 1\} in its state, not \{'step': 0\}",
    SavesSamples: "epoch 0, step 0: the state has 5[0-9]{3} characters, and 1000 are allowed",
    SavesArrays: "epoch 0, step 0: the state is no JSON",
    TakesAll: r"epoch 0, step 1: a state of another Loader \(seed\) is accepted and not refused",
    SaysMore: r"every epoch: len\(loader\) is 7, and its plan has 6 steps",
}


@pytest.mark.parametrize("kind", LOADERS, ids=lambda kind: kind.__name__)
def test_loaders__of_users_that_break_a_law_are_told_where(kind):
    made = kind(
        cells(Rows(counts(), 5)), batch_size=12, order="shuffled", memory_budget=4_000
    )  # fmt: skip
    with pytest.raises(AssertionError, match=LOADERS[kind]):  # noqa: PT012 - any of them
        xl.testing.assert_equal_steps(made)
        xl.testing.assert_state_is_small(made)
        xl.testing.assert_resumes_everywhere(made, worlds=(1, 2), after=[0], times=2)


def called(batch):
    return batch.assign(calls=("cell", np.full(batch.sizes["cell"], next(CALLS))))


def standardised(batch):
    return batch.assign(z=batch.X_pca - batch.X_pca.mean("cell"))


@pytest.mark.parametrize(("transform", "name"), [(called, "calls"), (standardised, "z")])
def test_transforms__of_users_that_know_more_than_the_sample_are_told_where(transform, name):
    message = rf"epoch 0, step 0, .* samples \[33, 31, .* have other values of \['{name}'\] than"
    with pytest.raises(AssertionError, match=message):
        xl.testing.assert_resumes_everywhere(loader(transform=transform), worlds=(1, 2), after=[])
