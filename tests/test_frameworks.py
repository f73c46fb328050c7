"""The same batches through torch, torchdata, Lightning and accelerate; what would share twice is noticed."""

import doctest
import itertools
import json
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import xloader as xl
from tests.doubles import cells
from xloader import torch as xt
from xloader.errors import StateError

pytestmark = [
    # Python 3.12 warns of any fork while threads live
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:'set_vital' is deprecated:UserWarning"
    ),  # torchdata calls it
]
STEPS = 8  # of 61 cells in batches of 8


def jitter(batch, *, rng):
    """Add noise that differs by sample and epoch."""
    return batch.assign(X_pca=batch.X_pca + np.array([[g.random()] for g in rng], np.float32))


def loader(**options):
    options = {"batch_size": 8, "variables": ["X_pca"], "seed": 5, "shuffle": True, **options}
    source = cells().chunk(cell=10)
    return xl.Loader(source, transform=jitter, memory_budget="1kB", **options)


def iterable(**options):
    return {"dataset": xt.IterableDataset(loader(**options)), "batch_size": None}


def mapped(**options):
    source = xt.MapDataset(loader(**options))
    return {"dataset": source, "batch_sampler": xt.BlockSampler(source), "collate_fn": xt.collate}


KINDS = pytest.mark.parametrize("kind", [iterable, mapped], ids=["iterable", "map"])
WORKERS = pytest.mark.parametrize("workers", [0, 2])


@pytest.fixture(scope="module")
def expected():
    """Samples of each step, and their noisy values, by (epoch, step)."""
    reader = loader()
    return {(e, k): reader.batch(e, k) for e in range(3) for k in range(len(reader))}


def assert_batches(batches, expected, places):
    batches, places = list(batches), list(places)
    assert len(batches) == len(places)
    for batch, place in zip(batches, places, strict=True):
        npt.assert_array_equal(batch["sample_id"], expected[place].sample_id, err_msg=str(place))
        npt.assert_array_equal(batch["X_pca"], expected[place].X_pca, err_msg=str(place))


def rest(epoch, step):
    """Return what is left of an epoch, and the next one."""
    return [(epoch, k) for k in range(step, STEPS)] + [(epoch + 1, k) for k in range(STEPS)]


def through_json(state):
    return json.loads(json.dumps(state))


def after(make, epoch, step):
    """Return a loader that served `step` batches of an epoch, and what else must live for that."""
    served = make()
    for _ in range(epoch):
        list(served)
    batches = iter(served)
    return served, batches, list(itertools.islice(batches, step))


def test_expected__is_shuffled_anew_and_read_right(expected):
    orders = [np.concatenate([expected[e, k].sample_id for k in range(STEPS)]) for e in range(3)]
    assert len({tuple(o) for o in orders}) == 3
    assert all(sorted(o) == list(range(61)) for o in orders)
    assert loader().plan.n_pools(0) > 2
    for batch in expected.values():
        noise = batch.X_pca.values - cells().X_pca.values[batch.sample_id]
        assert 0 <= noise.min() < noise.max() < 1
        assert len(np.unique(noise[:, 0])) == len(noise)


# --- torch alone


@KINDS
def test_torch__resumes_after_every_step_without_workers(kind, expected):
    def source(options):
        return options.get("batch_sampler", options["dataset"])

    for epoch, step in [(0, k) for k in range(STEPS + 1)] + [(1, 0), (1, 3)]:
        one, two = kind(), kind()
        alive = after(partial(DataLoader, **one), epoch, step)
        source(two).load_state_dict(through_json(source(one).state_dict()))
        served = DataLoader(**two)
        assert_batches([b for _ in range(2) for b in served], expected, rest(epoch, step))
        del alive


@pytest.mark.parametrize("persistent", [True, False])
def test_torch__workers_leave_a_dataset_without_a_state(persistent, expected):
    options = {"num_workers": 2, "persistent_workers": persistent}
    dataset = iterable()["dataset"]
    dataset.load_state_dict(loader().state_at(0, 3))
    assert (dataset.state_dict()["epoch"], dataset.state_dict()["step"]) == (0, 3)
    served = DataLoader(dataset, batch_size=None, **options)
    assert_batches(served, expected, rest(0, 3)[: STEPS - 3])
    with pytest.raises(StateError, match=r"use the state_dict\(\) of make_loader"):
        dataset.state_dict()
    assert_batches(served, expected, [(1, k) for k in range(STEPS)])
    with pytest.raises(StateError, match="does not know how far the training is"):
        dataset.state_dict()


@pytest.mark.parametrize("prefetch_factor", [1, 4])
def test_torch__workers_ask_a_sampler_ahead_and_it_says_so(prefetch_factor, expected):
    options = {"num_workers": 2, "prefetch_factor": prefetch_factor}
    one, two = mapped(), mapped()
    for step, batch in enumerate(DataLoader(**one, **options), 1):
        assert_batches([batch], expected, [(0, step - 1)])
        if step == 3:
            break
    asked = {1: "step 5 of epoch 0", 4: "step 0 of epoch 1"}[prefetch_factor]
    told = rf"ahead of the training, up to {asked}, .* save state_at\(epoch, step\)"
    with pytest.raises(StateError, match=told):
        one["batch_sampler"].state_dict()
    two["batch_sampler"].load_state_dict(through_json(one["batch_sampler"].state_at(0, 3)))
    served = DataLoader(**two, **options)
    assert_batches([b for _ in range(2) for b in served], expected, rest(0, 3))


def test_torch__a_sampler_used_again_without_workers_knows_its_state():
    options = mapped()
    list(DataLoader(**options, num_workers=1))
    assert len(list(DataLoader(**options))) == STEPS
    state = options["batch_sampler"].state_dict()
    assert (state["epoch"], state["step"]) == (2, 0)


@WORKERS
def test_make_loader__resumes_with_any_number_of_workers(workers, expected):
    for step in range(STEPS + 1):
        one, *alive = after(lambda: xt.make_loader(loader(), num_workers=workers), 0, step)
        two = xt.make_loader(loader(), num_workers=2 - workers)
        two.load_state_dict(through_json(one.state_dict()))
        assert_batches([b for _ in range(2) for b in two], expected, rest(0, step))
        del alive


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["make_loader", "sampler"])
def test_set_epoch__of_the_running_epoch_changes_nothing(kind, workers, expected):
    # Lightning makes the iterator, then sets the epoch, then takes the first batch
    if kind == "make_loader":
        served = stateful = xt.make_loader(loader(), num_workers=workers)
        sampler = served.sampler
    else:
        served = StatefulDataLoader(**mapped(), num_workers=workers)
        stateful, sampler = served, served.batch_sampler.sampler
    for epoch in range(2):
        batches = iter(served)
        sampler.set_epoch(epoch)
        assert_batches(itertools.islice(batches, 5), expected, [(epoch, k) for k in range(5)])
        again = (
            xt.make_loader(loader())
            if kind == "make_loader"
            else StatefulDataLoader(**mapped(), num_workers=workers)
        )
        again.load_state_dict(through_json(stateful.state_dict()))
        assert_batches([b for _ in range(2) for b in again], expected, rest(epoch, 5))
        del batches


def pass_on(dataset, queue):
    batches = iter(DataLoader(dataset, batch_size=None))
    queue.put([next(batches)["sample_id"].tolist() for _ in range(3)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ranks__made_of_one_dataset_keep_apart(method, expected):
    context = torch.multiprocessing.get_context(method)
    dataset, queue = iterable()["dataset"], context.SimpleQueue()
    for _ in range(2):  # what another process takes is not ours
        other = context.Process(target=pass_on, args=(dataset, queue))
        other.start()
        got = queue.get()
        other.join()
        assert got == [expected[0, k].sample_id.values.tolist() for k in range(3)]
    served = DataLoader(dataset, batch_size=None)
    assert_batches(served, expected, [(0, k) for k in range(STEPS)])


# --- torchdata


@KINDS
@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (0, {}),
        (2, {}),
        (2, {"persistent_workers": True}),
        (2, {"snapshot_every_n_steps": 3, "prefetch_factor": 3}),
    ],
)
def test_torchdata__resumes_after_every_step(kind, workers, options, expected):
    def make():
        return StatefulDataLoader(**kind(), num_workers=workers, **options)

    one = make()
    saved = [((0, 0), one.state_dict())]
    for epoch in range(2):
        for step, batch in enumerate(one, 1):
            assert_batches([batch], expected, [(epoch, step - 1)])
            saved.append(((epoch, step), one.state_dict()))
        saved.append(((epoch + 1, 0), one.state_dict()))
    for (epoch, step), state in saved[: STEPS + 6]:
        two = make()
        two.load_state_dict(through_json(state))
        got = [batch for _ in range(2) for batch in two]
        assert_batches(got, expected, rest(epoch, step))


@KINDS
def test_torchdata__resumes_twice_in_an_epoch(kind, expected):
    state = None
    for first, last in [(0, 2), (2, 3), (3, 7)]:
        served = StatefulDataLoader(**kind(), num_workers=2)
        if state:
            served.load_state_dict(through_json(state))
        got = list(itertools.islice(iter(served), last - first))
        assert_batches(got, expected, [(0, k) for k in range(first, last)])
        state = served.state_dict()


def test_torchdata__refuses_other_numbers_of_workers_and_make_loader_does_not(expected):
    served, *alive = after(lambda: StatefulDataLoader(**iterable(), num_workers=2), 0, 3)
    ours = r"of worker (None|\[\d, 2\]) and this is \[\d, 3\] .* make_loader"
    for workers, error, message in [(0, AssertionError, "_num_yielded"), (3, StateError, ours)]:
        other = StatefulDataLoader(**iterable(), num_workers=workers)
        other.load_state_dict(served.state_dict())
        with pytest.raises(error, match=message):
            iter(other)
    worker = served.state_dict()["_snapshot"]["_worker_snapshots"]["worker_0"]["dataset_state"]
    assert worker["worker"] == [0, 2]
    with pytest.raises(StateError, match=r"of worker \[0, 2\] and this is None .* make_loader"):
        iterable()["dataset"].load_state_dict(worker)
    del alive
    ours, *_alive = after(lambda: xt.make_loader(loader(), num_workers=2), 0, 3)
    for workers in (0, 1, 3):
        other = xt.make_loader(loader(), num_workers=workers)
        other.load_state_dict(ours.state_dict())
        assert_batches([b for _ in range(2) for b in other], expected, rest(0, 3))


# --- Lightning, one process


@pytest.fixture
def lightning():
    """Return how to train with Lightning; its warnings are about the test, not about us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("tests.framework_ranks")


def places(n_epochs, n_steps=STEPS):
    return [(e, k) for e in range(n_epochs) for k in range(n_steps)]


def ids_at(expected, where):
    return [expected[place].sample_id.values.tolist() for place in where]


@WORKERS
@pytest.mark.parametrize("limit", [None, 3])
def test_lightning__each_epoch_is_the_next(lightning, workers, limit, expected):
    net = lightning.Net()
    trainer = lightning.trainer(limit_train_batches=limit)
    trainer.fit(net, xt.make_loader(loader(), num_workers=workers))
    assert net.seen == ids_at(expected, places(2, limit or STEPS))


@WORKERS
def test_lightning__goes_on_from_any_checkpoint(lightning, workers, expected, tmp_path):
    every = {"filename": "{step}", "every_n_train_steps": 1, "save_top_k": -1}
    callback = lightning.pl.callbacks.ModelCheckpoint(tmp_path, **every)
    trainer = lightning.trainer(enable_checkpointing=True, callbacks=[callback])
    trainer.fit(lightning.Net(), xt.make_loader(loader(), num_workers=workers))
    for step in (1, 5, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS - 1):
        net, served = lightning.Net(), xt.make_loader(loader(), num_workers=2 - workers)
        checkpoint = tmp_path / f"step={step}.ckpt"
        lightning.trainer(max_epochs=3).fit(net, served, ckpt_path=checkpoint)
        assert net.seen == ids_at(expected, places(3)[step:]), step


@WORKERS
def test_lightning__predicts_each_sample_once(lightning, workers):
    served = xt.make_loader(loader(shuffle=False), num_workers=workers)
    predictions = lightning.trainer().predict(lightning.Net(), served)
    assert torch.cat(predictions).tolist() == list(range(61))


def test_lightning__never_leads_back_a_loader_that_was_resumed(expected):
    # Fabric counts epochs from 0 in each process
    served = xt.make_loader(loader())
    served.load_state_dict(loader().state_at(1, 5))
    served.sampler.set_epoch(0)
    assert_batches(served, expected, rest(1, 5)[: STEPS - 5])
    served.sampler.set_epoch(1)
    assert_batches(served, expected, [(2, k) for k in range(STEPS)])


# --- two ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes were told by each case of tests.framework_ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *run, "-m", "tests.framework_ranks", str(folder)]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def truth():
    """Samples of both ranks' steps, as one process of twice the batch size gets them."""
    whole = framework_ranks().make(batch_size=8, rank=0, world_size=1)
    ids = [whole.batch(e, k).sample_id.values.tolist() for e in range(2) for k in range(len(whole))]
    assert len(ids) == 14
    for e in range(2):
        assert len(set(itertools.chain(*ids[e * 7 : e * 7 + 7]))) == 56
    return ids


def framework_ranks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tests.framework_ranks")


@pytest.mark.parametrize(
    "case",
    ["lightning", "lightning workers", "lightning BlockSampler alone", "accelerate"],
)
def test_ranks__together_make_the_global_batches(case, ranks, truth):
    assert [a + b for a, b in zip(*(told[case] for told in ranks), strict=True)] == truth


def test_ranks__stop_halfway_and_one_process_goes_on(ranks, truth):
    (seen, state), (other, same) = (told["lightning halfway"] for told in ranks)
    assert [a + b for a, b in zip(seen, other, strict=True)] == truth[:10]
    assert state == same
    alone = xt.make_loader(framework_ranks().make(batch_size=8, rank=0, world_size=1))
    alone.load_state_dict(state)
    assert [b["sample_id"].tolist() for b in alone] == truth[10:]


PREPARED = [
    *("prepared", "prepared workers", "prepared spawn", "sharded", "sharded workers"),
    *("sharded spawn", "stateful", "one rank's own", "BlockSampler", "BlockSampler workers"),
]


@pytest.mark.parametrize("case", PREPARED)
def test_ranks__all_notice_accelerate(case, ranks):
    for rank, told in enumerate(ranks):
        of = "rank 0 of 1" if "own" in case else f"rank {rank} of 2"
        message = told[f"accelerate {case}"]
        assert message.startswith("PlanError: "), message
        assert f"as this loader does itself (it is {of})" in message
        assert "leave it out of accelerator.prepare()" in message


def test_ranks__notice_a_sampler_that_lightning_would_share(ranks):
    for rank, told in enumerate(ranks):
        message = told["lightning BlockSampler as sampler"]
        assert message.startswith("PlanError: DistributedSamplerWrapper shares batches"), message
        assert f"(it is rank {rank} of 2); set Trainer(use_distributed_sampler=False)" in message
        assert "set `Trainer(use_distributed_sampler=False)`" in told["lightning BlockSampler"]


def test_ranks__map_datasets_leave_the_sharing_to_others(ranks):
    def served(case, first, last):
        return sorted(i for told in ranks for ids in told[case][first:last] for i in ids)

    dropped = served("DistributedSampler", 0, None)
    assert len(set(dropped)) == len(dropped) == 60
    for epoch in range(2):  # accelerate fills up the last step
        filled = served("accelerate MapDataset", epoch * 8, epoch * 8 + 8)
        assert set(filled) == set(range(61))
        assert len(filled) == 64


def test_docs__print_what_they_show():
    page = Path(__file__).parent.parent / "docs" / "training.md"
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 20
    assert failed == 0
