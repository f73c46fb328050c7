"""Loops that are left early, in every way: nothing stays behind, and what comes next is whole (L9)."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.sparse

import xloader as xl
from tests.faulty import (
    SECONDS,
    SIZE,
    Child,
    X,
    check,
    check_whole,
    make,
    nothing_left,
    through,
)
from tests.sources import write_h5ad

TAKEN = 3
"""Batches that a loop takes before it is left."""

HELD_UP = 2
"""Number of the pool that is slow to read, where that is asked for."""


@pytest.fixture(scope="module")
def child():
    with Child() as process:
        yield process


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    source = write_h5ad(folder / "cells.h5ad", scipy.sparse.csr_matrix(X))
    xl.convert(source, folder / "cells", progress=False, memory_budget="1MB")
    return folder / "cells"


# --- ways to leave a loop -------------------------------------------------------------------------


class Left(Exception):
    """What a loop body raises."""


def loop(served, leave):
    """Take some batches, all of them right, then do something else."""
    for k, batch in enumerate(served, 1):
        check([batch])
        if k == TAKEN:
            if leave():
                break
        elif k > TAKEN:
            pytest.fail("the loop went on")


def by_break(served):
    loop(served, lambda: True)


def by_exception(served):
    def leave():
        raise Left

    with pytest.raises(Left):
        loop(served, leave)


def by_interrupt(served):
    with pytest.raises(KeyboardInterrupt):
        loop(served, lambda: os.kill(os.getpid(), signal.SIGINT))


def by_interrupt_of_all(served):
    """As a terminal does: every process of the group is told."""
    with pytest.raises(KeyboardInterrupt):
        loop(served, lambda: os.killpg(0, signal.SIGINT))
    while multiprocessing.active_children():  # a person would need longer to begin again
        time.sleep(0.01)


def by_deletion(served):
    batches = iter(served)
    check(islice(batches, TAKEN))
    del batches


def by_collection(served):
    batches = iter(served)
    check(islice(batches, TAKEN))
    circle = [batches]
    circle.append(circle)
    del batches, circle
    gc.collect()


def by_collection_elsewhere(served):
    batches = iter(served)
    check(islice(batches, TAKEN))
    circle = [batches]
    circle.append(circle)
    del batches, circle
    other = threading.Thread(target=gc.collect)
    other.start()
    other.join()


LEAVING = [
    by_break,
    by_exception,
    by_interrupt,
    by_interrupt_of_all,
    by_deletion,
    by_collection,
    by_collection_elsewhere,
]
WAYS = [
    "threads",
    "make 0",
    "make 2 fork",
    "make 2 fork persistent",
    "map 0",
    pytest.param("map 2", marks=pytest.mark.long),
    pytest.param("make 2 spawn", marks=pytest.mark.long),
    pytest.param("make 2 spawn persistent", marks=pytest.mark.long),
    pytest.param("make 2 forkserver persistent", marks=pytest.mark.long),
]

FEWER_WAYS = [
    "threads",
    *(
        pytest.param(way, marks=pytest.mark.long)
        for way in ("make 0", "make 2 fork", "make 2 fork persistent", "map 0", "map 2")
    ),
]


def leaving(store, way, leave):
    # a process that was started in the background of a shell would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    check_whole(through(way, make(store)))  # whatever is made once
    with nothing_left(store):
        loader = make(store, shuffle=True)
        served = through(way, loader)
        leave(served)
        if hasattr(served, "state_dict"):
            state = served.state_dict()
            assert (state["epoch"], state["step"]) == (0, TAKEN)
            served.load_state_dict(state)
            rest = check(served)
            first = [loader.plan.batch(0, k).ids for k in range(TAKEN)]
            np.testing.assert_array_equal(
                np.sort(np.concatenate([*first, rest])), np.arange(len(X))
            )
        leave(served)
        check_whole(served)
        check_whole(through(way, make(store)))
        del served


@pytest.mark.parametrize("leave", LEAVING, ids=lambda f: f.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_leaving__in_the_body_of_the_loop(way, leave, store, child):
    child.run(leaving, store, way, leave)


# --- interrupted while a batch is waited for ------------------------------------------------------


@contextmanager
def held_up(folder):
    """Make one pool wait, in this process and those forked from it, for as long as a file is there."""
    flag, begun = folder / "flag", folder / "begun"
    read = xl.Loader._read

    def slow(self, epoch, pool):
        while pool >= HELD_UP and flag.exists():
            begun.touch()
            time.sleep(0.01)
        return read(self, epoch, pool)

    flag.touch()
    with mock.patch.object(xl.Loader, "_read", slow):
        yield flag, begun


def interrupt(flag, begun, whom):
    """Interrupt whoever waits for a pool, which is read a little later."""
    end = time.monotonic() + SECONDS
    while not begun.exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.5)  # so that all that can be served has been, and somebody waits
    whom()
    time.sleep(0.5)
    flag.unlink()


def waiting(store, way, folder, *, of_all):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    check_whole(through(way, make(store)))
    whom = partial(os.killpg, 0) if of_all else partial(os.kill, os.getpid())
    with nothing_left(store), held_up(folder) as files:
        served = through(way, make(store, shuffle=True))
        other = threading.Thread(target=interrupt, args=(*files, partial(whom, signal.SIGINT)))
        other.start()
        seen = []
        with pytest.raises(KeyboardInterrupt):
            seen.extend(check([batch]) for batch in served)
        assert 0 < len(seen) < len(X) // SIZE
        other.join()
        if hasattr(served, "state_dict"):
            state = served.state_dict()
            assert (state["epoch"], state["step"]) == (0, len(seen))
            served.load_state_dict(state)
            rest = check(served)
            np.testing.assert_array_equal(np.sort(np.concatenate([*seen, rest])), np.arange(len(X)))
        check_whole(served)
        check_whole(through(way, make(store)))
        del served


@pytest.mark.parametrize("of_all", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("way", FEWER_WAYS)
def test_interrupted__while_it_waits_for_a_batch(way, of_all, store, child, tmp_path):
    child.run(partial(waiting, of_all=of_all), store, way, tmp_path)


# --- several iterations at the same time ----------------------------------------------------------


def together(store, way):
    check_whole(through(way, make(store)))
    with nothing_left(store):
        served = through(way, make(store, shuffle=True))
        seen = [[], []]
        both = [iter(served), iter(served)]
        for _ in range(len(X) // SIZE):
            for batches, ids in zip(both, seen, strict=True):
                ids.append(check([next(batches)]))
        for batches, ids in zip(both, seen, strict=True):
            assert next(batches, None) is None
            np.testing.assert_array_equal(np.sort(np.concatenate(ids)), np.arange(len(X)))
        # and one that is left while another goes on
        both = [iter(served), iter(served)]
        check(islice(both[0], TAKEN))
        check(islice(both[1], TAKEN))
        del both[0]
        check(both[0])
        check_whole(served)
        del both, batches, served


@pytest.mark.parametrize("way", [way for way in FEWER_WAYS if "persistent" not in str(way)])
def test_two_iterations__at_the_same_time(way, store, child):
    child.run(together, store, way)


def overtaking(store, way):
    served = through(way, make(store, shuffle=True))
    older = iter(served)
    check(islice(older, TAKEN))
    newer = iter(served)
    seen = [check(islice(newer, TAKEN))]
    with pytest.raises(xl.errors.PlanError, match="overtaken .* persistent_workers=False"):
        next(older)
    assert (served.state_dict()["epoch"], served.state_dict()["step"]) == (1, TAKEN)
    seen.append(check(newer))
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(X)))
    check_whole(served)


def test_two_iterations__of_workers_that_persist(store, child):
    child.run(overtaking, store, "make 2 fork persistent")


# --- the end of the process -----------------------------------------------------------------------

SCRIPT = """
    import signal, sys, time
    from pathlib import Path
    import xloader as xl
    from tests.faulty import check, make, through

    def main():
        global served, batches
        signal.signal(signal.SIGINT, signal.default_int_handler)
        way, store, how = sys.argv[1:]
        served = through(way, make(store, shuffle=True))
        batches = iter(served)
        check([next(batches), next(batches)])
        if how == "interrupted":
            print("ready", flush=True)
            for batch in batches:
                time.sleep(1)

    if __name__ == "__main__":
        main()
"""
"""Global names live longest: they are there until the interpreter takes itself apart."""


@pytest.fixture(scope="module")
def ends(store, tmp_path_factory):
    """Start one process for each way to end, all at the same time; return how each ended."""
    script = tmp_path_factory.mktemp("script") / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    running = {}
    for way in ("threads", "make 2 fork", "make 2 fork persistent", "map 2"):
        for how in ("ended", "interrupted"):
            command = [sys.executable, "-W", "error", str(script), way, str(store), how]
            running[way, how] = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
                start_new_session=True,
            )
    found = {}
    for (way, how), process in running.items():
        if how == "interrupted":
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.3)
            os.killpg(process.pid, signal.SIGINT)
        try:
            found[way, how] = (*process.communicate(timeout=SECONDS), process.returncode)
        finally:
            process.kill()
    return found


@pytest.mark.parametrize("way", ["threads", "make 2 fork", "make 2 fork persistent", "map 2"])
def test_end_of_the_process__with_an_iteration_half_used(way, ends):
    assert ends[way, "ended"] == ("", "", 0)


@pytest.mark.parametrize("way", ["threads", "make 2 fork", "make 2 fork persistent", "map 2"])
def test_end_of_the_process__interrupted(way, ends):
    out, err, code = ends[way, "interrupted"]
    assert (out, code) == ("", -signal.SIGINT)
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert not {"ignored", "leaked", "Fatal"} & {*err.split()}
