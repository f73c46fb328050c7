"""The global shuffle: a permutation as good as a uniform one, in bounded memory, stopped at any point."""

import json
import shutil
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse

import xloader as xl
from tests.sources import Stopped, sparse, stop_at, write_h5ad
from tests.test_convert_parts import tree
from xloader.keyed import key_of, permuted
from xloader.store.journal import Journal
from xloader.store.shard_writer import Shard
from xloader.store.staging import RowStaging

# --- how well rows are mixed ----------------------------------------------------------------------

N, PLATES, BATCH = 50_000, 14, 64
SEEDS = range(20)


def convert_order(seed, n=N):
    return permuted(np.arange(n), n, key_of(seed))


def entropy(labels):
    """Return the mean entropy of the labels of a batch, in bits."""
    batches = labels[: len(labels) // BATCH * BATCH].reshape(-1, BATCH)
    share = np.stack([(batches == k).mean(axis=1) for k in range(PLATES)])
    return -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=0).mean()


def measures(order):
    """Return what tells a bad shuffle from a good one; each has the same distribution for all uniform ones."""
    plates = order * PLATES // N  # sorted by plate, which is the worst case
    moved = np.abs(order - np.arange(N)).mean() / (N / 3)
    halves = np.array_split(plates, 8)
    tv = np.mean(
        [np.abs(np.bincount(h, minlength=PLATES) / len(h) - 1 / PLATES).sum() for h in halves]
    )
    neighbours = (np.abs(np.diff(order)) == 1).mean() * N
    serial = np.corrcoef(order[:-1], order[1:])[0, 1] * np.sqrt(N)
    same = (order // 32)[: N // BATCH * BATCH].reshape(-1, BATCH)
    pairs = np.mean([len(np.unique(batch)) for batch in same])
    return np.array([entropy(plates), moved, tv, neighbours, serial, pairs])


def block_shuffle(seed, size=1_000):
    """Return what a shuffle within runs of blocks makes: each part of a store knows few of them."""
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(N // size)
    parts = np.array_split(blocks, 10)
    rows = [np.concatenate([np.arange(b * size, (b + 1) * size) for b in part]) for part in parts]
    return np.concatenate([rng.permutation(r) for r in rows])


def distances(orders):
    """Return by how many standard deviations of a uniform permutation each measure is off, on average."""
    uniform = np.stack(
        [measures(np.random.default_rng(1_000 + s).permutation(N)) for s in range(40)]
    )
    found = np.stack([measures(order) for order in orders])
    spread = uniform.std(axis=0) * np.sqrt(1 / len(found) + 1 / len(uniform))
    return (found.mean(axis=0) - uniform.mean(axis=0)) / spread, found


def test_order__mixes_as_a_uniform_permutation_does():
    off, found = distances([convert_order(seed) for seed in SEEDS])
    assert (np.abs(off) < 4).all(), off
    # the closed form for rows that were shuffled before: m_eff = m
    expected = np.log2(PLATES) - (PLATES - 1) / (2 * BATCH * np.log(2))
    assert found[:, 0].mean() == pytest.approx(expected, abs=0.02)
    off, _ = distances([block_shuffle(seed) for seed in SEEDS])
    assert np.abs(off).max() > 20  # what is bad is told


def test_order__every_place_of_every_row_is_equally_likely():
    n, seeds = 64, 4_000
    orders = np.stack([convert_order(seed, n) for seed in range(seeds)])
    assert (np.sort(orders, axis=1) == np.arange(n)).all()
    counts = np.stack([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    chi2 = ((counts - seeds / n) ** 2 / (seeds / n)).sum()
    freedom = (n - 1) ** 2
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_order__of_a_seed_is_the_same_for_ever(tmp_path):
    source = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(sparse(12, 5)))
    out = xl.convert(source, tmp_path / "s", shuffle=True, seed=7, progress=False)
    assert out.row.values.tolist() == convert_order(7, 12).tolist()
    assert out.row.values.tolist() == [0, 9, 7, 4, 8, 5, 11, 10, 1, 2, 6, 3]


# --- rows and memory ------------------------------------------------------------------------------

SCRIPT = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    from tests.measured import MB, status
    import xloader as xl
    source, store, budget = sys.argv[1:]
    xl.convert(Path(source).with_name("warm.h5ad"), store + "-warm", shuffle=True, progress=False)
    baseline = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    xl.convert(source, store, shuffle=True, memory_budget=budget, progress=False)
    print(json.dumps(status("VmHWM") - baseline))
""")


def write_many(path, n, g, per_row):
    """Write counts chunk by chunk, compressed, and return a checksum of each row."""
    rng = np.random.default_rng(0)
    step = 5_000
    sums = []
    with h5py.File(path, "w") as f:
        anndata.AnnData(scipy.sparse.csr_matrix((n, g), dtype="f4")).write_h5ad(path.with_name("e"))
        with h5py.File(path.with_name("e")) as empty:
            for name in ("obs", "var"):
                empty.copy(name, f)
            f.attrs.update(dict(empty.attrs))
        x = f.create_group("X")
        x.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n, g)}
        )
        x["indptr"] = np.arange(n + 1) * per_row
        size = {"shape": n * per_row, "chunks": 2**15, "compression": "lzf"}
        data = x.create_dataset("data", dtype="f4", **size)
        indices = x.create_dataset("indices", dtype="i4", **size)
        for a in range(0, n, step):
            columns = rng.integers(0, g // per_row, (step, per_row)) + np.arange(per_row) * (
                g // per_row
            )
            counts = rng.integers(1, 9, (step, per_row)).astype("f4")
            here = slice(a * per_row, (a + step) * per_row)
            data[here], indices[here] = counts.ravel(), columns.ravel().astype("i4")
            sums += [row_sum(c, v) for c, v in zip(columns, counts, strict=True)]
    path.with_name("e").unlink()
    return np.array(sums)


def row_sum(columns, values):
    return zlib.crc32(
        np.ascontiguousarray(values, "f4"), zlib.crc32(np.ascontiguousarray(columns, "i4"))
    )


@pytest.mark.slow
def test_shuffle__of_ten_times_the_budget_stays_within_it(tmp_path):
    budget = 8
    n, g, per_row = 20_000, 2_000, 500
    sums = write_many(tmp_path / "a.h5ad", n, g, per_row)
    assert n * per_row * 8 == 10 * budget * 10**6  # float32 counts and int32 columns
    write_h5ad(tmp_path / "warm.h5ad", scipy.sparse.csr_matrix(sparse(300, 20)))
    command = [sys.executable, "-c", SCRIPT, tmp_path / "a.h5ad", tmp_path / "s", f"{budget}MB"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    # labels, row pointers, two orders, and what allocators keep
    assert json.loads(done.stdout) < budget + 32, done.stdout
    out = xl.open_cells(tmp_path / "s", chunks=None)
    rows = out.row.values
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))
    found = []
    for a in range(0, n, 2_000):
        x = scipy.sparse.csr_matrix(out.X[a : a + 2_000].values)
        x.sort_indices()
        spans = zip(x.indptr[:-1], x.indptr[1:], strict=True)
        found += [row_sum(x.indices[i:j], x.data[i:j]) for i, j in spans]
    np.testing.assert_array_equal(np.array(found), sums[rows])


# --- stopped at any point -------------------------------------------------------------------------


@pytest.fixture
def stops(monkeypatch):
    """Stop before the k-th time that something on the disk changes its name, or a journal is written."""
    names = ((Path, "replace"), (Path, "rename"), (Path, "unlink"))
    return stop_at(monkeypatch, (*names, (Journal, "_add"), (Shard, "close")))


def test_shuffle__stopped_at_any_point_goes_on(tmp_path, stops, monkeypatch):
    monkeypatch.setattr("xloader.store.rows_writer._SHARD_CHUNKS", 32)
    monkeypatch.setattr("xloader.store.tasks.n_cpus", lambda: 1)
    x = sparse(6_000, 150)
    source = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(x), obsm={"U": x[:, :2]})
    options = {"shuffle": True, "memory_budget": "2MB", "progress": False}
    staged = []
    real = RowStaging.do
    monkeypatch.setattr(RowStaging, "do", lambda self, k: staged.append(k) or real(self, k))
    xl.convert(source, tmp_path / "whole", **options)
    n_staged, n_events = len(staged), stops["seen"]
    assert n_staged > 1
    expected = tree(tmp_path / "whole")
    again = []
    for k in np.unique(np.linspace(0, n_events - 1, 10).astype(int)).tolist():
        stops["left"], staged[:] = k, []
        with pytest.raises(Stopped):
            xl.convert(source, tmp_path / "s", **options)
        first = len(staged)
        stops["left"], staged[:] = max(1, k // 2), []  # and once more, in the middle of going on
        try:
            xl.convert(source, tmp_path / "s", **options)
        except Stopped:
            stops["left"] = -1
            xl.convert(source, tmp_path / "s", **options)
        stops["left"] = -1
        again.append(first + len(staged))
        assert tree(tmp_path / "s") == expected, k
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "s", "whole"]
        shutil.rmtree(tmp_path / "s")
    # what was staged is not staged again, but for the task that was stopped
    assert max(again) <= n_staged + 2
