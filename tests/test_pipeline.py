"""The pipeline by itself: what it serves, and that closing it in any way leaves nothing behind."""

import gc
import threading
import time
import weakref
from itertools import islice

import numpy as np
import pytest

from xloader import pipeline
from xloader.pipeline import Ahead, gathered
from xloader.plan import Batch

EPOCH, SIZE = 5, 3
"""Which epoch; samples per batch."""

SECONDS = 30
"""After which what should happen counts as never happening."""

ONE_BY_ONE, TWO, THREE, GROUPS = Ahead(1, 1, 0), Ahead(2, 1, 2), Ahead(2, 1, 3), Ahead(1, 3, 1)
"""Pools read ahead, batches gathered at once, groups of them gathered ahead."""


class Plan:
    """Batches in sequence over pools of equal length."""

    def __init__(self, pool_length=4, n_batches=40):
        self.n, self.pool_length = n_batches * SIZE, pool_length

    def n_pools(self, epoch):
        assert epoch == EPOCH
        return -(-self.n // self.pool_length)

    def batches(self, epoch, steps):
        assert epoch == EPOCH
        ids = np.concatenate([np.arange(k * SIZE, (k + 1) * SIZE) for k in steps])
        samples = Batch(ids, ids // self.pool_length, np.ones(len(ids), bool))
        return samples, np.arange(len(steps) + 1) * SIZE


class Pool:
    """Samples in memory: sample ``i`` holds ``i ** 2``."""

    def __init__(self, ids):
        self.first, self.x = ids[0], ids**2


class Source:
    """Cuts samples out of pools."""

    def __init__(self, fails=None):
        self.fails = fails

    def gather(self, parts, epoch):
        assert epoch == EPOCH
        if any(self.fails in ids for _, ids in parts):
            msg = f"sample {self.fails} is broken"
            raise OSError(msg)
        return {"x": np.concatenate([pool.x[ids - pool.first] for pool, ids in parts])}


class Reader:
    """Reads pools, is held up at one of them, and remembers what it did."""

    def __init__(self, plan, *, blocked=None, fails=None, then=None):
        self.plan, self.blocked, self.fails, self.then = plan, blocked, fails, then
        self.begun, self.ended = [], []
        self.pools = weakref.WeakSet()
        self.is_blocked, self.go_on = threading.Event(), threading.Event()

    def __call__(self, epoch, p):
        assert epoch == EPOCH
        self.begun.append(p)
        if p == self.blocked:
            self.is_blocked.set()
            assert self.go_on.wait(SECONDS)
            if self.then:
                self.then()
        if p == self.fails:
            msg = f"pool {p} is broken"
            raise OSError(msg)
        pool = Pool(np.arange(p * self.plan.pool_length, (p + 1) * self.plan.pool_length))
        self.pools.add(pool)
        self.ended.append(p)
        return pool


def serve(reader, ahead, steps=range(40), source=None):
    return gathered(reader.plan, source or Source(), EPOCH, steps, reader, ahead)


def check(batches):
    """Compare what is served with what was stored; return the sample numbers."""
    seen = []
    for batch, values in batches:
        np.testing.assert_array_equal(values["x"], batch.ids**2)
        assert len(batch.ids) == len(batch.pools) == len(batch.valid) == SIZE
        seen += batch.ids.tolist()
    return seen


def eventually(condition):
    end = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    return condition()


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert eventually(lambda: set(threading.enumerate()) <= before), threading.enumerate()


@pytest.mark.parametrize("pool_length", [2, 4, 1000])
@pytest.mark.parametrize("steps", [range(40), [1, 2, 6, 30], []], ids=["all", "some", "none"])
@pytest.mark.parametrize("ahead", [ONE_BY_ONE, TWO, THREE, GROUPS], ids=repr)
def test_gathered__every_sample_once_and_in_order(ahead, steps, pool_length):
    reader = Reader(Plan(pool_length))
    expected = [i for k in steps for i in range(k * SIZE, (k + 1) * SIZE)]
    assert check(serve(reader, ahead, steps)) == expected
    assert reader.begun == sorted({*reader.begun})
    assert {i // pool_length for i in expected} <= {*reader.begun}
    assert eventually(lambda: not reader.pools)


@pytest.mark.parametrize("taken", [0, 5, 39])
@pytest.mark.parametrize("ahead", [ONE_BY_ONE, THREE, GROUPS], ids=repr)
@pytest.mark.parametrize("how", ["close", "throw", "drop"])
def test_leaving__reads_no_further_and_keeps_nothing(how, ahead, taken):
    reader, before = Reader(Plan()), threading.active_count()
    batches = serve(reader, ahead)
    assert check(islice(batches, taken)) == list(range(taken * SIZE))
    if how == "close":
        batches.close()
    elif how == "throw":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt)
    del batches
    # at once: nothing that was begun still runs, and nobody is there who would begin more
    assert reader.begun == reader.ended
    assert threading.active_count() == before
    assert (len(reader.begun) < reader.plan.n_pools(EPOCH)) == (taken < 39)
    assert eventually(lambda: not reader.pools)


@pytest.mark.parametrize("ahead", [ONE_BY_ONE, TWO, THREE], ids=repr)
def test_closing__waits_for_what_is_being_read(ahead):
    reader, before = Reader(Plan(), blocked=1), threading.active_count()
    batches = serve(reader, ahead)
    assert check(islice(batches, 1)) == [0, 1, 2]
    assert reader.is_blocked.wait(SECONDS)
    release = threading.Timer(0.2, reader.go_on.set)
    release.start()
    batches.close()
    assert reader.begun == reader.ended == [0, 1]
    release.join()
    assert threading.active_count() == before
    assert eventually(lambda: not reader.pools)


@pytest.mark.parametrize("ahead", [ONE_BY_ONE, TWO, THREE], ids=repr)
def test_closing__does_not_wait_for_ever(ahead, monkeypatch):
    monkeypatch.setattr(pipeline, "_PATIENCE", 0.1)
    reader = Reader(Plan(), blocked=1)
    batches = serve(reader, ahead)
    assert check(islice(batches, 1)) == [0, 1, 2]
    assert reader.is_blocked.wait(SECONDS)
    batches.close()
    assert reader.ended == [0]
    reader.go_on.set()
    assert eventually(lambda: len(reader.ended) == 2)
    assert eventually(lambda: not reader.pools)
    # also those that a batch waits for (with `THREE`) are never read
    assert reader.begun == [0, 1]


@pytest.mark.parametrize("how", ["close", "collect"])
@pytest.mark.parametrize("ahead", [ONE_BY_ONE, TWO, THREE], ids=repr)
def test_closing__by_another_thread_waits_for_nothing(how, ahead, monkeypatch):
    monkeypatch.setattr(pipeline, "_PATIENCE", 10 * SECONDS)
    reader = Reader(Plan(), blocked=1)
    batches = serve(reader, ahead)
    assert check(islice(batches, 1)) == [0, 1, 2]
    assert reader.is_blocked.wait(SECONDS)
    gone = weakref.ref(batches)
    other = threading.Thread(target=batches.close if how == "close" else gc.collect)
    circle = [batches]
    circle.append(circle)
    if how == "collect":
        gc.disable()  # so that no other thread does it
        del batches, circle
    try:
        other.start()
        other.join(SECONDS)
        assert not other.is_alive()
        assert how == "close" or gone() is None
    finally:
        gc.enable()
    assert reader.ended == [0]
    reader.go_on.set()
    assert eventually(lambda: len(reader.ended) == 2)
    assert reader.begun == reader.ended == [0, 1]


@pytest.mark.parametrize("ahead", [ONE_BY_ONE, TWO, THREE], ids=repr)
def test_closing__by_the_thread_that_reads(ahead, monkeypatch):
    monkeypatch.setattr(pipeline, "_PATIENCE", 10 * SECONDS)
    closed = threading.Event()

    def close():
        batches.close()
        closed.set()

    reader = Reader(Plan(), blocked=1, then=close)
    batches = serve(reader, ahead)
    assert check(islice(batches, 1)) == [0, 1, 2]
    reader.go_on.set()
    assert closed.wait(SECONDS)
    assert eventually(lambda: len(reader.ended) == 2)
    assert reader.begun == [0, 1]
    assert next(batches, None) is None


@pytest.mark.parametrize("pool", [0, 7, 29])
@pytest.mark.parametrize("ahead", [ONE_BY_ONE, TWO, THREE, GROUPS], ids=repr)
@pytest.mark.parametrize("where", ["reader", "source"])
def test_error__comes_after_the_batches_before_it(where, ahead, pool, monkeypatch):
    monkeypatch.setattr(pipeline, "_PATIENCE", 10 * SECONDS)
    reader = Reader(Plan(), fails=pool if where == "reader" else None)
    broken = pool * reader.plan.pool_length
    source = Source(broken if where == "source" else None)
    batches = serve(reader, ahead, source=source)
    seen = []
    expected = f"{'pool' if where == 'reader' else 'sample'} \\d+ is broken"
    with pytest.raises(OSError, match=expected):
        seen.extend(check([batch]) for batch in batches)
    ids = [i for each in seen for i in each]
    assert ids == list(range(len(ids)))
    # batches that were gathered together with the broken one are lost with it
    assert 0 <= broken - len(ids) < SIZE * ahead.group
    assert next(batches, None) is None
    # later pools were read ahead at most, also those after the broken one
    assert len(reader.begun) <= pool + 1 + ahead.pools + ahead.group * (ahead.groups + 1)
    assert eventually(lambda: not reader.pools)


def test_error__in_a_pool_that_nobody_came_to_need_is_not_told():
    reader = Reader(Plan(), fails=1)
    batches = serve(reader, ONE_BY_ONE)
    assert check(islice(batches, 1)) == [0, 1, 2]
    assert eventually(lambda: reader.begun == [0, 1])
    batches.close()
    assert next(batches, None) is None
