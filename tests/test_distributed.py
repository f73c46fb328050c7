"""Conversion on workers of dask.distributed: other processes, which may be lost, and the same bytes."""

import copy
import os
import signal
import subprocess
import sys

import dask
import numpy as np
import pytest
import scipy.sparse
import xarray as xr
from typing_extensions import override

import xloader as xl
from tests.sources import sparse, write_h5ad
from tests.test_convert_parts import tree
from xloader.store import tasks
from xloader.store.rows_writer import RowsWriter
from xloader.store.staging import RowStaging

distributed = pytest.importorskip("distributed")

X = sparse(3_000, 60)
X[-1, 7] = 300
OPTIONS = {"memory_budget": "2MB", "progress": False}


@pytest.fixture(autouse=True)
def same_config():
    """Leave dask's settings as they were: of two clients the one that is closed last restores the other's."""
    before = copy.deepcopy(dask.config.config)
    yield
    dask.config.config.clear()
    dask.config.config.update(before)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    return write_h5ad(
        folder / "a.h5ad", scipy.sparse.csr_matrix(X), obsm={"U": X[:, :3] * 0.5}, layers={"d": X}
    )


def workers(threads):
    """Start two worker processes; no port is asked for by number, which may be taken."""
    return distributed.LocalCluster(
        n_workers=2, threads_per_worker=threads, processes=True, dashboard_address=":0"
    )


@pytest.fixture(scope="module")
def cluster():
    with workers(2) as made:
        yield made


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as made:
        yield made


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("xloader.store.rows_writer._SHARD_CHUNKS", 8)
    monkeypatch.setattr("xloader.store.writers.SHARD_NBYTES", 2**15)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("shuffle", [False, True])
def test_convert__on_workers_writes_the_bytes_of_threads(
    shuffle, source, client, tmp_path, monkeypatch
):
    here = []
    for kind in (RowsWriter, RowStaging):
        monkeypatch.setattr(
            kind, "do", lambda self, k, real=kind.do: here.append(k) or real(self, k)
        )
    out = xl.convert(source, tmp_path / "s", shuffle=shuffle, **OPTIONS)
    assert here == []  # not in this process
    np.testing.assert_array_equal(out.X.values, X[out.row.values])
    np.testing.assert_array_equal(out.d.values, X[out.row.values])
    client.close()
    xl.convert(source, tmp_path / "threads", shuffle=shuffle, **OPTIONS)
    assert here
    assert tree(tmp_path / "s") == tree(tmp_path / "threads")
    assert len(tree(tmp_path / "s")) > 30


@pytest.mark.usefixtures("client")
def test_convert__on_workers_of_an_expression(source, tmp_path):
    ds = np.log1p(xl.open_cells(source).isel(gene=[5, 2, 9]))
    out = xl.convert(ds, tmp_path / "s", **OPTIONS)
    xr.testing.assert_identical(out.compute(), ds.compute())


def test_convert__contacts_on_workers(client, tmp_path):
    path = xl.simulate.contacts(
        tmp_path / "a.mcool", chromosomes={"a": 3_000_000}, resolutions=(10_000, 50_000)
    )
    options = {"max_distance": 500_000, "progress": False}
    xl.convert(path, tmp_path / "s", **options)
    client.close()
    xl.convert(path, tmp_path / "threads", **options)
    assert tree(tmp_path / "s") == tree(tmp_path / "threads")


class Fragile(RowsWriter):
    """Kills the process of the first worker that does its fourth task."""

    @override
    def do(self, task):
        flag = self.path.parents[1] / "killed"
        if task == 3 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().do(task)


class Broken(RowsWriter):
    @override
    def do(self, task):
        if task == 3:
            msg = "no such disk"
            raise OSError(msg)
        return super().do(task)


@pytest.mark.slow
@pytest.mark.usefixtures("small_shards")
def test_convert__whose_worker_is_killed_is_whole(source, tmp_path, monkeypatch):
    xl.convert(source, tmp_path / "threads", shuffle=True, **OPTIONS)
    monkeypatch.setattr("xloader.converting.RowsWriter", Fragile)
    with workers(1) as cluster, distributed.Client(cluster) as client:
        before = set(client.run(os.getpid).values())
        xl.convert(source, tmp_path / "s", shuffle=True, **OPTIONS)
        assert before - set(client.run(os.getpid).values())
    assert (tmp_path / "killed").exists()
    assert tree(tmp_path / "s") == tree(tmp_path / "threads")


@pytest.mark.usefixtures("small_shards", "client")
def test_convert__that_fails_on_a_worker_leaves_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setattr("xloader.converting.RowsWriter", Broken)
    with pytest.raises(OSError, match="no such disk"):
        xl.convert(source, tmp_path / "s", **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_client__is_used_only_where_there_is_one(cluster):
    assert tasks.active_client() is None
    with distributed.Client(cluster) as client:
        assert tasks.active_client() is client
    assert tasks.active_client() is None
    code = (
        "import sys, tempfile\n"
        "sys.modules['distributed'] = None\n"
        "import xloader as xl\n"
        "d = tempfile.mkdtemp()\n"
        "xl.convert(xl.simulate.cells(d + '/a.h5ad', n_cells=50, n_genes=40), d + '/s', progress=False)\n"
        "print(xl.open_cells(d + '/s').sizes['cell'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "50\n"
