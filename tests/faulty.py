"""Tools for tests of faults: a process to run them in, and what it must not keep."""

import gc
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch.utils.data

import xloader as xl
import xloader.memory
import xloader.torch as xt
from tests.sources import sparse

SECONDS = 150
"""After which a scenario counts as hanging; the errors themselves come within a few seconds."""

X = sparse(1_600, 60, high=200)
SIZE = 40


# --- a process in which scenarios run, so that one that hangs can be ended -----------------------


def serve(pipe):
    os.setpgid(0, 0)
    sys.addaudithook(note_probe)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "Sparse")
    xloader.memory._GROUP_NBYTES = 1  # so small data would else be made ahead whole
    while (asked := pipe.recv()) is not None:
        function, args = asked
        try:
            function(*args)
            pipe.send(None)
        except BaseException:  # noqa: BLE001 # told by the other process
            pipe.send(traceback.format_exc())


class Child:
    """A process that runs functions one after the other."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other,))
        self.process.start()
        other.close()

    def run(self, function, *args):
        self.pipe.send((function, args))
        if not self.pipe.poll(SECONDS):
            self.end()
            self.__init__()
            pytest.fail(f"no end within {SECONDS} s")
        try:
            failure = self.pipe.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.__init__()
            pytest.fail(f"the process died with exit code {code}")
        assert failure is None, failure

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pipe.send(None)
        self.process.join(SECONDS)
        self.end()

    def end(self):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with its workers
        self.process.join()


# --- what a process holds -------------------------------------------------------------------------


probes: set[str] = set()
"""
Files that torch opened to find out whether any more can be opened, when a worker told it nothing.

Its own handler of SIGCHLD may raise in the midst of that, and then one of them stays open for ever.
"""


def note_probe(event, args):
    if event == "tempfile.mkstemp":
        frame = sys._getframe()
        while frame is not None:
            if frame.f_code.co_name == "_try_get_data":
                probes.add(args[0])
            frame = frame.f_back


def held(source):
    """Count what this process holds, but for what is kept for all loaders: a source's open files, some threads (zarr's too)."""
    gc.collect()
    named = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            named += [f"file {fd.readlink()}"]
    maps = Path("/proc/self/maps").read_text().splitlines()
    named += [
        f"memory {line.split(maxsplit=5)[-1]}"
        for line in maps
        if "/dev/shm" in line or "torch_" in line
    ]
    named += [f"name {p}" for p in Path("/dev/shm").glob(f"torch_{os.getpid()}_*")]
    named += [f"thread {t.name}" for t in threading.enumerate()]
    for task in Path("/proc/self/task").iterdir():
        named += [f"child {pid}" for pid in (task / "children").read_text().split()]
    named = [name for name in named if name.removeprefix("file ") not in probes]
    kept = re.compile(
        rf"thread (xloader-(decode|gather)|zarr_io|asyncio_)|file {source}(/.*/c/.*)?( \(deleted\))?$|file /proc/"
    )
    return Counter(name for name in named if not kept.match(name))


@contextmanager
def nothing_left(source):
    before = held(source)
    yield
    end = time.monotonic() + 10  # threads that were told to end need a moment
    while (more := held(source) - before) and time.monotonic() < end:
        time.sleep(0.05)
    assert not more, f"left behind: {dict(more)}"


# --- ways to serve --------------------------------------------------------------------------------


def make(store, **options):
    """Make a Loader of several pools, some batches of which span two."""
    ds = xl.open_cells(store, chunks=None)
    options = {"batch_size": SIZE, "layout": "dense", "memory_budget": "16kB", **options}
    return xl.Loader(ds, **options)


def through(way, loader):
    """Return what serves a Loader's batches."""
    kind, *options = way.split()
    if kind == "threads":
        return loader
    if kind == "unthreaded":
        return (loader.batch(loader.epoch, k) for k in range(len(loader)))
    workers = int(options[0])
    if kind == "map":
        data = xt.MapDataset(loader)
        return torch.utils.data.DataLoader(
            data,
            batch_sampler=xt.BlockSampler(data),
            collate_fn=xt.collate,
            num_workers=workers,
            # a spawned process, as a `Child` is, would spawn its own too, which takes many seconds
            multiprocessing_context="fork" if workers else None,
        )
    some = {}
    if workers:
        some = {"start_method": options[1], "persistent_workers": "persistent" in options}
    return xt.make_loader(loader, num_workers=workers, **some)


def values_of(batch):
    """Return sample numbers and values of a Dataset or of tensors."""
    ids, x = batch["sample_id"], batch["X"]
    return (
        (ids.values, x.values)
        if hasattr(ids, "values") and not callable(ids.values)
        else (ids.numpy(), x.numpy())
    )


def check(batches):
    """Compare batches with what was written; return all sample numbers."""
    seen = [np.zeros(0, np.int64)]
    for batch in batches:
        ids, x = values_of(batch)
        np.testing.assert_array_equal(x, X[ids])
        seen.append(np.array(ids))
    return np.concatenate(seen)


def check_whole(batches):
    np.testing.assert_array_equal(np.sort(check(batches)), np.arange(len(X)))


def failing(error, batches):
    """Return the numbers of the samples served before an error, and all that it says."""
    seen = []
    try:
        seen.extend(check([batch]) for batch in batches)
    except error as e:
        return np.concatenate([np.zeros(0, np.int64), *seen]), "".join(
            traceback.format_exception(e)
        )
    pytest.fail("no error")
