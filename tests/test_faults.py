"""What goes wrong on the way: an error that names the samples, no hang, nothing left behind (L9)."""

import multiprocessing
import os
import re
import shutil
import signal
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import xloader as xl
from tests.faulty import (
    SIZE,
    Child,
    X,
    check,
    check_whole,
    failing,
    make,
    nothing_left,
    through,
    values_of,
)
from tests.sources import write_h5ad


@pytest.fixture(scope="module")
def child():
    with Child() as process:
        yield process


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    source = write_h5ad(folder / "cells.h5ad", scipy.sparse.csr_matrix(X))
    xl.convert(source, folder / "cells", progress=False, memory_budget="1MB")
    assert len(list((folder / "cells" / "X" / "values" / "c").iterdir())) > 2
    cool = xl.simulate.contacts(folder / "map.cool", chromosomes={"c1": 900_000, "c2": 500_000})
    xl.convert(cool, folder / "map", progress=False)
    return folder


@pytest.fixture
def store(stores, tmp_path):
    return Path(shutil.copytree(stores / "cells", tmp_path / "cells"))


WAYS_BY_LENGTH = [
    "threads",
    "make 0",
    "make 2 fork",
    pytest.param("make 2 spawn persistent", marks=pytest.mark.long),
    "map 0",
    "map 2",
]


# --- a worker that is killed ----------------------------------------------------------------------


def suicidal(batch, *, sample, flag):
    """Die of the signal that the kernel sends where memory is short."""
    if flag.exists() and sample in batch.sample_id.values:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def killed(store, way, flag):
    order = make(store, shuffle=True).plan
    step = 7
    sample = int(order.batch(0, step).ids[3])
    loader = make(store, shuffle=True, transform=partial(suicidal, sample=sample, flag=flag))
    check_whole(through(way, make(store)))
    with nothing_left(store):
        served = through(way, loader)
        flag.touch()
        seen, text = failing(RuntimeError, served)
        assert len(seen) < (step + 1) * SIZE
        # other workers' batches that were done may not have been taken
        k = len(seen) // SIZE
        assert "a worker was killed" in text, text[-1500:]
        assert f"which are batch {k} of epoch 0; loader.batch(0, {k}) makes it again" in text
        assert f"samples [{', '.join(map(str, order.batch(0, k).ids[:8].tolist()))}, ...]" in text
        state = served.state_dict()
        assert (state["epoch"], state["step"]) == (0, k)
        flag.unlink()
        served.load_state_dict(state)
        rest = check(served)
        np.testing.assert_array_equal(np.sort(np.append(seen, rest)), np.arange(len(X)))
        check_whole(served)
        flag.unlink(missing_ok=True)
        check_whole(through(way, make(store)))
        del served


@pytest.mark.parametrize(
    "way",
    [
        "make 2 fork",
        "make 2 fork persistent",
        # torch's own loaders tell of it anywhere, whenever the signal comes: not ours to test
        pytest.param("make 2 spawn persistent", marks=pytest.mark.long),
        pytest.param("make 2 forkserver", marks=pytest.mark.long),
    ],
)
def test_worker__killed_while_it_makes_a_batch(way, store, child, tmp_path):
    child.run(killed, store, way, tmp_path / "flag")


def killed_from_outside(store, way):
    check_whole(through(way, make(store)))
    with nothing_left(store):
        served = through(way, make(store, shuffle=True))
        with pytest.raises(RuntimeError, match="[wW]orker"):  # noqa: PT012 # whichever batch it is
            for k, batch in enumerate(served):
                check([batch])
                if k == 3:
                    # torch may notice in the body of the loop, where no generator of ours is told
                    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
                    time.sleep(1)
        check_whole(served)
        check_whole(through(way, make(store)))
        del served, batch


@pytest.mark.parametrize(
    "way",
    [
        "make 2 fork",
        "make 2 fork persistent",
        pytest.param("make 2 spawn persistent", marks=pytest.mark.long),
    ],
)
def test_worker__killed_while_the_loop_trains(way, store, child):
    child.run(killed_from_outside, store, way)


# --- a transform that raises ----------------------------------------------------------------------


class Clumsy:
    """A transform that fails on one sample, as long as it is told to."""

    def __init__(self, sample, flag):
        self.sample, self.flag = sample, flag

    def __call__(self, batch):
        if self.flag.exists() and self.sample in batch.sample_id.values:
            msg = "seven is unlucky"
            raise ZeroDivisionError(msg)
        return batch


def raising(store, way, flag, form):
    if form == "cells":
        plain = partial(make, store, shuffle=True)
    else:
        ds = xl.open_contacts(store, resolution=10_000, chunks=None)
        windows = xl.windows.diagonal(size=8, stride=4)
        plain = partial(xl.Loader, ds, windows=windows, batch_size=4, shuffle=True)
    planned = plain().plan.batch(1, 2)
    sample = int(planned.ids[1])
    loader = plain(transform=Clumsy(sample, flag))
    list(through(way, plain()))  # whatever is made once
    with nothing_left(store):
        loader.set_epoch(1)
        served = through(way, loader)
        flag.touch()
        n = 0
        try:
            for batch in served:
                n += len(values_of(batch)[0]) if form == "cells" else len(batch["sample_id"])
        except ZeroDivisionError as e:
            text = "".join(traceback.format_exception(e))
        assert n == 2 * len(planned.ids)
        assert "seven is unlucky" in text
        assert "in __call__" in text
        numbers = ", ".join(map(str, planned.ids[:8].tolist()))
        assert f"while transforming samples [{numbers}" in text
        assert "which are batch 2 of epoch 1; loader.batch(1, 2) makes it again" in text
        first = plain().batch(1, 2).isel({loader.sample_dim: 0})
        if form == "cells":
            assert f"(cell {first.cell.item()!r}; cell " in text
        else:
            place = [
                f"{first[f'chrom{k}'].values[0]}:{first[f'start{k}'].values[0]:,}-{first[f'end{k}'].values[-1]:,}"
                for k in "12"
            ]
            assert f"({' x '.join(place)}; c" in text
        with pytest.raises(ZeroDivisionError, match="seven is unlucky"):
            loader.batch(1, 2)
        loader.batch(1, 1)
        flag.unlink()
        again = through(way, plain())
        assert sum(len(batch["sample_id"]) for batch in again) == len(loader.plan.windows)
        del served, again, batch


@pytest.mark.parametrize("form", ["cells", "map"])
@pytest.mark.parametrize("way", ["unthreaded", *WAYS_BY_LENGTH])
def test_transform__that_raises(way, form, stores, child, tmp_path):
    if way == "unthreaded" and form == "map":
        form = "cells"  # one is enough where nothing runs beside
    child.run(raising, stores / form, way, tmp_path / "flag", form)


# --- files that are damaged or lost in the middle of an epoch -------------------------------------


def last_shard(store):
    return max((store / "X" / "values" / "c").glob("*/0"), key=lambda p: int(p.parent.name))


def flip(store):
    """Damage the first chunk of the last shard where decoding cannot notice."""
    file = last_shard(store)
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    with file.open("r+b") as f:
        f.write(content)
    return file


def truncate(store):
    file = last_shard(store)
    os.truncate(file, file.stat().st_size // 2)
    return file


def remove(store):
    file = last_shard(store)
    file.unlink()
    return file


def move(store):
    store.rename(store.with_name("elsewhere"))
    return store


LOSSES = {"a flipped bit": flip, "cut": truncate, "a shard removed": remove, "all moved": move}


def losing(store, way, loss, whole):
    check_whole(through(way, make(store)))
    with nothing_left(store):
        loader = make(store)
        served = through(way, loader)
        batches = iter(served)
        seen = check([next(batches)])
        file = LOSSES[loss](store)
        more, text = failing(xl.errors.ReadError, batches)
        assert str(file) in text
        seen = np.append(seen, more)
        np.testing.assert_array_equal(seen, np.arange(len(seen)))
        assert SIZE <= len(seen) < len(X)
        epoch, step = map(
            int, re.search(r"loader.batch\((\d+), (\d+)\) makes it again", text).groups()
        )
        # the first batch of the pool that failed, which another worker may have read while it was whole
        assert epoch == 0 <= step <= len(seen) // SIZE
        assert f"which are batch {step} of epoch 0" in text
        assert f"samples [{SIZE * step}, " in text
        with pytest.raises(xl.errors.ReadError, match=re.escape(str(file))):
            make_again(loader, step)
        if loss == "all moved":
            store.with_name("elsewhere").rename(store)
        else:
            shutil.copy2(whole / file.relative_to(store), file)
        if hasattr(served, "load_state_dict"):
            served.load_state_dict(served.state_dict())
            np.testing.assert_array_equal(check(served), np.arange(len(seen), len(X)))
        check_whole(through(way, make(store)))
        del served, batches


def make_again(loader, step):
    """Follow the advice of a message, in a process that has read nothing yet."""
    loader._reset()
    loader.batch(0, step)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "way",
    [
        "threads",
        "make 0",
        "make 2 fork",
        pytest.param("make 2 spawn persistent", marks=pytest.mark.long),
    ],
)
def test_files__lost_in_the_middle_of_an_epoch(way, loss, store, stores, child):
    child.run(losing, store, way, loss, stores / "cells")
