"""A disk that is full, or a file that grows too large, at any moment of a conversion (L9)."""

import builtins
import errno
import io
import os
import resource
import shutil
import subprocess
import threading
from pathlib import Path

import cooler
import numpy as np
import pytest
import scipy.sparse
from typing_extensions import override

import xloader as xl
from tests.faulty import Child, nothing_left
from tests.sources import sparse, write_h5ad
from xloader.errors import ReadError, XloaderError

X = sparse(700, 60, high=200)
U = np.random.default_rng(0).random((700, 5))

CONVERSIONS = {"cells": {}, "shuffled": {"shuffle": True}, "contacts": {}}
KINDS = ["cells", "shuffled", pytest.param("contacts", marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    cells = write_h5ad(folder / "a.h5ad", scipy.sparse.csr_matrix(X), obsm={"U": U})
    sizes = {"a": 1_500_000, "b": 900_000}
    contacts = xl.simulate.contacts(folder / "a.cool", chromosomes=sizes, resolutions=(10_000,))
    return {"cells": cells, "shuffled": cells, "contacts": contacts}


def convert(sources, kind, store, **options):
    return xl.convert(sources[kind], store, progress=False, **CONVERSIONS[kind], **options)


def check(sources, kind, store):
    """Compare a store, opened anew, with what other libraries read."""
    if kind == "contacts":
        counts = xl.open_contacts(store)["count"].values
        file = cooler.Cooler(f"{sources[kind]}::/resolutions/10000")
        np.testing.assert_array_equal(counts, file.matrix(balance=False)[:])
    else:
        ds = xl.open_cells(store).compute()
        row = ds.row.values
        np.testing.assert_array_equal(np.sort(row), np.arange(len(X)))
        assert (kind == "shuffled") == (row != np.sort(row)).any()
        np.testing.assert_array_equal(ds.X.values, X[row])
        np.testing.assert_array_equal(ds.U.values, U[row])


def tree(folder):
    return {p.relative_to(folder): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def opened(store):
    """Return what any of our doors makes of a directory; None if nothing opens it."""
    for door in (xl.open_cells, xl.open_contacts):
        try:
            return door(store)
        except XloaderError:
            pass
    return None


def assert_fails_whole(sources, kind, folder, *, over, why="No space left on device"):
    """Convert in vain: an error that says what to do, and everything as it was."""
    before = tree(folder)
    with nothing_left(sources[kind]), pytest.raises(ReadError) as caught:
        convert(sources, kind, folder / "s", overwrite=over)
    said = str(caught.value)
    assert said.startswith(f"cannot write {str(folder / 's')!r}: {why}; ")
    for part in (" MB of it were written", " MB are free there now", "make room, or choose a path"):
        assert part in said
    assert ("the old store is as it was" in said) == over
    assert tree(folder) == before
    assert over or opened(folder / "s") is None
    assert opened(folder / ".s.partial") is None


# --- the k-th write fails, and all after it -------------------------------------------------------


class Disk:
    """Stands for a disk with room for some writes, on which a folder lies."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.room = self.used = 0
        self.lock = threading.Lock()
        self.open = io.open

    def opening(self, file, mode="r", buffering=-1, encoding=None, *args, **kwargs):
        """Open a file as ever, but so that its writes are counted below Python's buffers."""
        if not {*mode} & {*"wax+"} or not str(file).startswith(self.folder):
            return self.open(file, mode, buffering, encoding, *args, **kwargs)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""))
        raw.disk = self
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8")

    def take(self):
        with self.lock:
            self.used += 1
            if self.used > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Raw(io.FileIO):
    @override
    def write(self, data):
        self.disk.take()
        return super().write(data)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk that is full; `room` makes room for some writes."""
    made = Disk(tmp_path)
    for module in (io, builtins):
        monkeypatch.setattr(module, "open", made.opening)
    return made


@pytest.mark.parametrize("over", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize("kind", KINDS)
def test_disk_full__at_the_kth_write(kind, over, sources, disk, tmp_path):
    disk.room = 10**9
    convert(sources, kind, tmp_path / "s")
    n_writes = disk.used
    assert n_writes > 15
    if not over:
        shutil.rmtree(tmp_path / "s")
    for room in np.unique(np.linspace(0, n_writes - 1, 5).astype(int)).tolist():
        disk.room, disk.used = room, 0
        assert_fails_whole(sources, kind, tmp_path, over=over)
        assert disk.used > room
    disk.room = 10**9
    convert(sources, kind, tmp_path / "s", overwrite=over)
    check(sources, kind, tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("over", [False, True], ids=["new", "over an old one"])
def test_disk_full__when_the_store_is_moved_to_its_place(over, sources, tmp_path, monkeypatch):
    if over:
        convert(sources, "cells", tmp_path / "s")
    rename = Path.rename

    def full(self, target):
        if self.name == ".s.partial":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        assert_fails_whole(sources, "cells", tmp_path, over=over)
    convert(sources, "cells", tmp_path / "s", overwrite=over)
    check(sources, "cells", tmp_path / "s")


def test_other_errors__are_told_as_they_are(sources, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("xloader.store.rows_writer.RowsWriter.write", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        convert(sources, "cells", tmp_path / "s")
    assert not isinstance(caught.value, XloaderError)
    assert not any(tmp_path.iterdir())


# --- real limits, in a process of its own, which a signal may end --------------------------------


@pytest.fixture(scope="module")
def child():
    with Child() as process:
        yield process


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """Return what gives a real file system of some bytes and files, mounted at a folder."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o"]
    try:
        done = subprocess.run(
            [*mount, "size=1m", "tmpfs", folder], capture_output=True, check=False
        )
        why = done.stderr.decode().strip()
    except OSError as e:
        done, why = None, str(e)
    if done is None or done.returncode:
        pytest.skip(f"no file system can be mounted here (that takes root): {why}")

    def resize(nbytes, files):
        options = f"remount,size={nbytes},nr_inodes={files}"
        subprocess.run([*mount, options, "tmpfs", folder], check=True)

    yield folder, resize
    subprocess.run(["umount", "--lazy", folder], check=True)


def fills(sources, kind, folder, over):
    assert_fails_whole(sources, kind, folder, over=over)


def finishes(sources, kind, folder, over):
    convert(sources, kind, folder / "s", overwrite=over)
    check(sources, kind, folder / "s")
    assert [p.name for p in folder.iterdir()] == ["s"]


def used(folder):
    """Return bytes and files that a folder takes on its disk."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize, status.f_files - status.f_ffree


@pytest.mark.parametrize("over", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize("kind", KINDS)
def test_disk_full__of_a_real_disk(kind, over, sources, small_disk, child):
    folder, resize = small_disk
    resize(2**26, 10_000)
    child.run(finishes, sources, kind, folder, False)
    taken = used(folder)
    if not over:
        shutil.rmtree(folder / "s")
    base = used(folder)
    for share in (0.02, 0.3, 0.6, 0.95):
        resize(base[0] + int(share * taken[0]) // 4096 * 4096 + 4096, 10_000)
        child.run(fills, sources, kind, folder, over)
        resize(2**26, base[1] + 1 + int(share * (taken[1] - 2)))
        child.run(fills, sources, kind, folder, over)
    resize(2**26, 10_000)
    child.run(finishes, sources, kind, folder, over)
    shutil.rmtree(folder / "s")


def outgrows(sources, kind, folder, nbytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        assert_fails_whole(sources, kind, folder, over=False, why="File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", KINDS)
def test_file_too_large__for_its_process(kind, sources, child, tmp_path):
    for nbytes in (0, 300, 1_000, 3_000):
        child.run(outgrows, sources, kind, tmp_path, nbytes)
    child.run(finishes, sources, kind, tmp_path, False)
