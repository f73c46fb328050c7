"""Conversion: what goes in comes out, whole or not at all, in bounded memory."""

import importlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc

import anndata
import cooler
import h5py
import numpy as np
import pandas as pd
import psutil
import pytest
import scipy.sparse
import xarray as xr
import zarr
from dask.utils import parse_bytes

import xloader as xl
from tests.sources import sparse, write_h5ad
from xloader.errors import PlanError, ReadError, SchemaError, XloaderError
from xloader.store import rows_writer
from xloader.store.building import building


def selections(ds):
    rng = np.random.default_rng(1)
    yield ds
    yield ds.isel(cell=rng.permutation(ds.sizes["cell"])[:77], gene=[5, 2, 9])
    yield ds.isel(gene=slice(None, None, -2))
    yield np.log1p(ds)
    yield ds.isel(cell=[4, 4, 1])


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_convert__any_selection_of_cells(form, tmp_path):
    x = sparse(150, 20)
    make = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix, "dense": np.asarray}
    source = write_h5ad(
        tmp_path / "a.h5ad", make[form](x), obsm={"U": x[:, :2]}, layers={"L": make[form](x + x)}
    )
    for k, ds in enumerate(selections(xl.open_cells(source))):
        out = xl.convert(ds, tmp_path / str(k), progress=False, memory_budget="8MB")
        xr.testing.assert_identical(ds.compute(), out.compute())


def test_convert__selection_of_contacts(tmp_path):
    path = xl.simulate.contacts(
        tmp_path / "a.mcool",
        chromosomes={"a": 4_000_000, "b": 2_000_000},
        resolutions=(10_000, 20_000),
    )
    ds = xl.open_contacts(path, resolution=10_000, view=["b", "a:1,000,000-1,700,000"])
    xr.testing.assert_identical(
        ds.compute(), xl.convert(ds, tmp_path / "s", progress=False).compute()
    )
    both = xl.convert(path, tmp_path / "both", progress=False)
    assert xl.resolutions(tmp_path / "both") == [10_000, 20_000]
    assert both.attrs["resolution"] == 10_000
    with pytest.raises(SchemaError, match="the resolutions it has are 10000, 20000"):
        xl.open_contacts(tmp_path / "both", resolution=5)
    near = xl.convert(ds, tmp_path / "near", max_distance=500_000, progress=False)["count"].values
    full = ds["count"].values
    same = near == full
    chrom, start = ds.chrom1.values, ds.start1.values
    within = (chrom[:, None] == chrom) & (np.abs(start[:, None] - start) <= 500_000)
    assert same[within].all()
    assert (near[~same] == 0).all()
    assert not same.all()


def test_convert__shuffles_rows_and_says_where_from(tmp_path):
    x = sparse(300, 20)
    source = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(x), obsm={"U": x[:, :2]})
    one, again, other = (
        xl.convert(source, tmp_path / str(k), shuffle=True, seed=seed, progress=False)
        for k, seed in enumerate([1, 1, 2])
    )
    row = one.row.values
    assert sorted(row) == list(range(300))
    assert (np.diff(row) != 1).mean() > 0.9
    np.testing.assert_array_equal(one.X.values, x[row])
    np.testing.assert_array_equal(one.U.values, x[row, :2])
    np.testing.assert_array_equal(again.row.values, row)
    assert (other.row.values != row).any()


def test_convert__small_is_smaller(tmp_path):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=2_000, n_genes=500)
    sizes = []
    for codec in ("fast", "small"):
        ds = xl.convert(source, tmp_path / codec, codec=codec, progress=False)
        xr.testing.assert_identical(ds.compute(), xl.open_cells(source).compute())
        sizes.append(
            sum(p.stat().st_size for p in (tmp_path / codec / "X").rglob("*") if p.is_file())
        )
    assert sizes[1] < 0.85 * sizes[0]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"codec": "gzip"},
            PlanError,
            r"codec='gzip' is unknown; choose one of \('fast', 'small'\)",
        ),
        ({"memory_budget": "lots"}, PlanError, "memory_budget='lots' is no size; give bytes"),
        (
            {"memory_budget": 1000},
            PlanError,
            "needs .* MB at a time .*allows 0 MB; choose a budget",
        ),
        ({"max_distance": 5}, PlanError, "max_distance is about contacts"),
        ({"shuffle": True, "seed": -1}, PlanError, "seed=-1 is negative; choose any whole number"),
        ({"source": 3}, SchemaError, "cannot convert a int; give a path or an opened Dataset"),
        ({"source": "no.h5ad"}, ReadError, "nothing is at 'no.h5ad'"),
        ({"source": xr.Dataset({"v": ("time", [1.0])})}, SchemaError, "a store holds contacts"),
        ({"store": "there"}, ReadError, "'there' exists; pass overwrite=True"),
        ({"store": "no/where"}, ReadError, "there is no folder 'no'"),
    ],
    ids=map(str, range(10)),
)
def test_convert__refuses_what_cannot_be(kwargs, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xl.simulate.cells("a.h5ad", n_cells=100, n_genes=60)
    (tmp_path / "there").mkdir()
    with pytest.raises(error, match=message):
        xl.convert(**{"source": "a.h5ad", "store": "s", "progress": False, **kwargs})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "there"]


def test_convert__refuses_odd_selections(tmp_path):
    cells = xl.open_cells(xl.simulate.cells(tmp_path / "a.h5ad", n_cells=100, n_genes=60))
    with pytest.raises(PlanError, match="nothing to convert.*'cell': 0"):
        xl.convert(cells.isel(cell=[]), tmp_path / "s", progress=False)
    maps = xl.open_contacts(
        xl.simulate.contacts(
            tmp_path / "a.mcool", chromosomes={"c": 900_000}, resolutions=(10_000,)
        )
    )
    with pytest.raises(PlanError, match="square.*'bin1': 3"):
        xl.convert(maps.isel(bin1=slice(3)), tmp_path / "s", progress=False)
    with pytest.raises(PlanError, match="shuffle=True permutes cells"):
        xl.convert(maps, tmp_path / "s", shuffle=True, progress=False)


def test_convert__failure_leaves_the_old_store(tmp_path, monkeypatch):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=100, n_genes=60)
    before = xl.convert(source, tmp_path / "s", progress=False).compute()

    def fail(*_):
        msg = "disk full"
        raise OSError(msg)

    with monkeypatch.context() as m:
        m.setattr("xloader.store.rows_writer.RowsWriter.write", fail)
        for name in ("s", "new"):
            with pytest.raises(OSError, match="disk full"):
                xl.convert(source, tmp_path / name, overwrite=True, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "s"]
    xr.testing.assert_identical(xl.open_cells(tmp_path / "s").compute(), before)


def test_convert__killed_leaves_nothing_that_opens(tmp_path):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=300, n_genes=60)
    script = textwrap.dedent("""
        import sys, time
        import xloader as xl
        from xloader.store.rows_writer import RowsWriter
        real = RowsWriter.write
        def slow(self, task, rung):
            done = real(self, task, rung)
            print("written", flush=True)
            time.sleep(60)
            return done
        RowsWriter.write = slow
        xl.convert(sys.argv[1], sys.argv[2], progress=False)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(source), str(tmp_path / "s")], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "s").exists()
    for opening in (
        lambda: xl.open_cells(tmp_path / "s"),
        lambda: xr.open_dataset(tmp_path / "s", engine="xloader"),
    ):
        with pytest.raises(ReadError, match="conversion was interrupted.*run xl.convert again"):
            opening()
    # what is half there does not open as a store either
    with pytest.raises(XloaderError):
        xl.open_cells(tmp_path / ".s.partial")
    ds = xl.convert(source, tmp_path / "s", progress=False)
    xr.testing.assert_identical(ds.compute(), xl.open_cells(source).compute())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "s"]


def bytes_below(store):
    return {p.relative_to(store): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@pytest.mark.parametrize("how", ["killed", "interrupted"])
@pytest.mark.parametrize("kind", ["cells", "shuffled", "contacts"])
def test_convert__goes_on_where_it_was_stopped(kind, how, tmp_path, monkeypatch):
    if kind == "contacts":
        source = tmp_path / "a.cool"
        starts = np.arange(17_000) * 1_000
        bins = pd.DataFrame({"chrom": "a", "start": starts, "end": starts + 1_000})
        pairs = np.random.default_rng(0).integers(0, 17_000, (20_000, 2))
        pairs = np.unique(np.sort(pairs), axis=0)
        pixels = pd.DataFrame({"bin1_id": pairs[:, 0], "bin2_id": pairs[:, 1], "count": 1})
        cooler.create_cooler(str(source), bins, pixels)
    else:
        source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=8_000, n_genes=60)
    options = {"memory_budget": "2MB", "shuffle": kind == "shuffled", "progress": False}
    options["memory_budget"] = "40MB" if kind == "contacts" else "2MB"
    script = textwrap.dedent("""
        import os, signal, sys, time
        import xloader as xl
        from xloader.store import rows_writer, writers
        # what a shell starts in the background ignores it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        left = 3
        def limited(real):
            def write(self, task, rung):
                global left
                if left <= 0:  # no more tasks are done while the signal is on its way
                    time.sleep(2)
                done = real(self, task, rung)
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), getattr(signal, sys.argv[3]))
                    time.sleep(1)
                return done
            return write
        for kind in (rows_writer.RowsWriter, writers.TilesWriter):
            kind.write = limited(kind.write)
        xl.convert(sys.argv[1], sys.argv[2], **eval(sys.argv[4]))
    """)
    name = {"killed": "SIGKILL", "interrupted": "SIGINT"}[how]
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "s"), name, repr(options)]
    process = subprocess.run(command, capture_output=True, timeout=100, check=False)
    assert process.returncode != 0
    lines = (tmp_path / ".s.partial" / "~journal").read_text().splitlines()
    before = sum('"task"' in line and "~staged" not in line for line in lines)
    assert before >= 1
    written = []
    for writer in ("rows_writer.RowsWriter", "writers.TilesWriter"):
        where = f"xloader.store.{writer}.write"
        module, cls = writer.split(".")
        real = getattr(importlib.import_module(f"xloader.store.{module}"), cls).write
        monkeypatch.setattr(
            where,
            lambda self, k, r, real=real: written.append((self.path, k, r)) or real(self, k, r),
        )
    xl.convert(source, tmp_path / "s", **options)
    again, written[:] = len(written), []
    xl.convert(source, tmp_path / "whole", **options)
    assert again == len(written) - before > 0
    assert bytes_below(tmp_path / "s") == bytes_below(tmp_path / "whole")


@pytest.mark.parametrize("changed", ["source", "options"])
def test_convert__begins_anew_where_anything_differs(changed, tmp_path, monkeypatch):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=600, n_genes=60)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("xloader.converting.write_root", interrupt)
        with pytest.raises(KeyboardInterrupt):
            xl.convert(source, tmp_path / "s", progress=False)
    assert (tmp_path / ".s.partial").exists()
    codec = "fast"
    if changed == "source":
        source = xl.simulate.cells(source, n_cells=600, n_genes=60, seed=5, overwrite=True)
    else:
        codec = "small"
    xl.convert(source, tmp_path / "s", codec=codec, progress=False)
    xl.convert(source, tmp_path / "whole", codec=codec, progress=False)
    assert bytes_below(tmp_path / "s") == bytes_below(tmp_path / "whole")


@pytest.mark.slow
def test_convert_and_load__in_bounded_memory(tmp_path):
    xl.simulate.cells(tmp_path / "a.h5ad", n_cells=12_000, n_genes=4_000)
    ds = xl.open_cells(tmp_path / "a.h5ad")
    peak, done, me = [0], threading.Event(), psutil.Process()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], me.memory_info().rss)
            time.sleep(0.005)

    base = me.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        np.log1p(ds.X).mean("cell").compute()
        store = xl.convert(ds, tmp_path / "s", memory_budget="60MB", progress=False)
        for _ in xl.Loader(
            store, batch_size=256, variables=["X"], shuffle=True, memory_budget="20MB"
        ):
            pass
    finally:
        done.set()
        watcher.join()
    assert ds.X.nbytes == 192_000_000
    assert peak[0] - base < 160e6


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Cells with labels in every encoding that anndata writes."""
    n, x = 150, sparse(150, 20)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n)])
    obs["kind"] = pd.Categorical(["b", "a", None] * 50, categories=["b", "a", "never"])
    obs["grade"] = pd.Categorical([1, 3] * 75, categories=[3, 1], ordered=True)
    obs["text"] = [f"t{i % 7}" for i in range(n)]
    obs["whole"] = pd.array([1, None, 3] * 50, dtype="Int64")
    obs["flag"] = pd.array([True, None, False] * 50, dtype="boolean")
    obs["real"] = np.where(np.arange(n) % 5, np.linspace(0, 1, n), np.nan)
    obs["sure"] = np.arange(n) % 2 == 0
    var = pd.DataFrame({"real": np.arange(20.0)}, index=[f"g{i}" for i in range(20)])
    return write_h5ad(
        tmp_path_factory.mktemp("l") / "a.h5ad", scipy.sparse.csr_matrix(x), obs=obs, var=var
    )


@pytest.mark.parametrize("shuffle", [False, True])
def test_convert__keeps_every_label(labelled, shuffle, tmp_path):
    source = xl.open_cells(labelled).compute()
    out = xl.convert(labelled, tmp_path / "s", shuffle=shuffle, progress=False).compute()
    xr.testing.assert_identical(source.isel(cell=out.row.values), out)
    for name, label in source.coords.items():
        kinds = [
            type(v) for v in label.values[out.row.values if "cell" in label.dims else slice(None)]
        ]
        assert [type(v) for v in out[name].values] == kinds, name


def odd_datasets():
    rng = np.random.default_rng(0)
    yield "scalars", {"q": 3.5}, {"run": 3, "plate": "p1"}
    yield "cube", {"V": (("cell", "a", "b"), rng.random((150, 3, 4)))}, {}
    yield "last", {"V": (("a", "cell"), rng.random((3, 150)))}, {}
    yield "bool", {"m": ("cell", rng.random(150) < 0.5)}, {}
    yield "int8", {"m": ("cell", rng.integers(-128, 128, 150).astype("i1"))}, {}
    yield "wide", {"m": ("cell", np.arange(150) * 2**55)}, {}
    yield "half", {"m": ("cell", rng.random(150).astype("f2"))}, {}
    yield "swapped", {"m": ("cell", rng.random(150).astype(">f4"))}, {}
    yield "odd", {"m": ("cell", np.r_[np.nan, np.inf, np.arange(148.0)])}, {}
    yield "zeros", {"m": ("cell", np.zeros(150))}, {}
    yield "names", {k: ("cell", rng.random(150)) for k in ("~1", "a/b", "coords", "zarr.json")}, {}
    yield "times", {}, {"t": ("cell", pd.date_range("2020", periods=150))}
    mixed = np.array([True, None, 1, 1.0, "a", ""] * 25, object)
    yield "mixed", {}, {"o": ("cell", mixed)}


@pytest.mark.parametrize(
    ("variables", "coords"),
    [pytest.param(v, c, id=name) for name, v, c in odd_datasets()],
)
def test_convert__variables_of_every_type(variables, coords, tmp_path):
    cells = xr.Dataset({"X": (("cell", "gene"), sparse(150, 20))}, attrs={"n": [1, (2, np.inf)]})
    ds = cells.assign(variables).assign_coords(coords)
    out = xl.convert(ds, tmp_path / "s", progress=False)
    xr.testing.assert_identical(ds, out.compute())
    for name in (*variables, *coords):
        assert out[name].dtype == ds[name].dtype.newbyteorder("=")


def write_map(path, matrix, bins=None, *, symmetric=True, **columns):
    """Write a cooler with cooler itself: two chromosomes, unless bins are given."""
    n = len(matrix)
    if bins is None:
        first = n * 2 // 3
        start = np.r_[np.arange(first), np.arange(n - first)] * 1_000
        chrom = np.repeat(["b", "a"], [first, n - first])
        bins = pd.DataFrame({"chrom": chrom, "start": start, "end": start + 1_000})
    kept = np.triu(matrix) if symmetric else matrix
    i, j = np.nonzero(kept)
    cooler.create_cooler(
        str(path),
        bins.assign(**columns),
        pd.DataFrame({"bin1_id": i, "bin2_id": j, "count": kept[i, j]}),
        dtypes={"count": matrix.dtype},
        symmetric_upper=symmetric,
        triucheck=symmetric,
    )
    return path


@pytest.mark.parametrize(
    ("high", "dtype", "factor", "width"),
    [
        (9, np.int32, 1, np.uint16),
        (70_000, np.int32, 1, np.uint32),
        (2**40, np.int64, 1, np.int64),
        (9, np.float64, 0.25, np.float64),
        (9, np.float64, 1, np.float64),
    ],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_convert__counts_of_every_type(high, dtype, factor, width, symmetric, tmp_path):
    m = np.random.default_rng(0).poisson(0.3, (300, 300))
    m = ((m + m.T) * factor).astype(dtype)
    m[7, 299] = m[299, 7] = high
    if not symmetric:
        m[200:, :50] = 3
    weight = np.r_[np.nan, np.linspace(0.5, 2, 299)]
    path = write_map(tmp_path / "a.cool", m, symmetric=symmetric, weight=weight, KR=weight)
    out = xl.convert(path, tmp_path / "s", progress=False)
    xr.testing.assert_identical(xl.open_contacts(path).compute(), out.compute())
    np.testing.assert_array_equal(out["count"].values, m)
    stored = zarr.open_array(str(tmp_path / "s" / "resolutions" / "1000" / "count"), mode="r")
    assert stored.dtype == width
    np.testing.assert_array_equal(np.triu(stored[...]), np.triu(m))


def test_convert__variable_bins(tmp_path):
    ends = np.cumsum(np.random.default_rng(0).integers(500, 1_500, 200))
    bins = pd.DataFrame({"chrom": "c", "start": np.r_[0, ends[:-1]], "end": ends})
    m = np.random.default_rng(1).poisson(0.5, (200, 200)).astype(np.int32)
    path = write_map(tmp_path / "a.cool", m + m.T, bins)
    out = xl.convert(path, tmp_path / "s", progress=False)
    xr.testing.assert_identical(xl.open_contacts(path).compute(), out.compute())
    assert xl.resolutions(tmp_path / "s") == []


def test_convert__expressions_over_contacts(tmp_path):
    m = np.random.default_rng(1).poisson(0.5, (200, 200)).astype(np.int32)
    ds = xl.open_contacts(write_map(tmp_path / "a.cool", m + m.T, weight=np.linspace(1, 2, 200)))
    balanced = ds.assign(count=np.log1p(ds["count"] * ds.weight1 * ds.weight2))
    shown = ds.isel(bin1=slice(None, None, -1), bin2=slice(None, None, -1))
    for k, made in enumerate((balanced, shown, ds.isel(bin1=[3, 9, 4], bin2=[3, 9, 4]))):
        out = xl.convert(made, tmp_path / str(k), progress=False)
        xr.testing.assert_identical(made.compute(), out.compute())


def test_convert__overwrites_stores_only(tmp_path):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=100, n_genes=60)
    before = source.read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    for name, what in (("mine", "a directory of 1 files, such as"), ("a.h5ad", "a file of")):
        with pytest.raises(ReadError, match=f"is {what}.*overwrite=True replaces only stores"):
            xl.convert(source, tmp_path / name, overwrite=True, progress=False)
    assert source.read_bytes() == before
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "words"
    (tmp_path / "empty").mkdir()
    xl.convert(source, tmp_path / "empty", overwrite=True, progress=False)


def test_convert__a_store_onto_itself(tmp_path):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=100, n_genes=60)
    first = xl.convert(source, tmp_path / "s", progress=False)
    backwards = first.isel(cell=slice(None, None, -1))
    expected = backwards.compute()
    out = xl.convert(backwards, tmp_path / "s", overwrite=True, progress=False)
    xr.testing.assert_identical(expected, out.compute())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "s"]


def test_convert__a_store_that_cannot_move_leaves_the_old_one(tmp_path, monkeypatch):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=100, n_genes=60)
    before = xl.convert(source, tmp_path / "s", progress=False).compute()
    rename = type(tmp_path).rename

    def refuse(self, target):
        if self.name.endswith(".partial"):
            msg = "no permission"
            raise OSError(msg)
        return rename(self, target)

    with monkeypatch.context() as m:
        m.setattr(type(tmp_path), "rename", refuse)
        with pytest.raises(OSError, match="no permission"):
            xl.convert(source, tmp_path / "s", overwrite=True, progress=False)
    xr.testing.assert_identical(xl.open_cells(tmp_path / "s").compute(), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "s"]


@pytest.mark.parametrize(
    ("form", "shuffle", "budget"),
    [("csr_matrix", False, "16MB"), ("csr_matrix", True, "16MB"), ("csc_matrix", True, "520MB")],
)
def test_convert__memory_stays_within_the_budget(form, shuffle, budget, tmp_path):
    x = scipy.sparse.random(40_000, 2_000, 0.1, "csr", np.float32, np.random.default_rng(0))
    x.data[:] = np.ceil(x.data * 9)
    path = tmp_path / "a.h5ad"
    anndata.AnnData(getattr(scipy.sparse, form)(x)).write_h5ad(path)
    with h5py.File(path) as f:
        assert sum(f["X"][name].nbytes for name in ("data", "indices")) > 3 * 16e6
    if form == "csc_matrix":
        with pytest.raises(
            PlanError, match="a matrix by rows, .* columns, needs .* MB .* allows 16 MB"
        ):
            xl.convert(path, tmp_path / "s", memory_budget="16MB", progress=False)
    tracemalloc.start()
    try:
        out = xl.convert(
            path, tmp_path / "s", shuffle=shuffle, memory_budget=budget, progress=False
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # labels, row pointers and an order of the rows are held beside the tasks
    assert peak < parse_bytes(budget) + 12_000_000
    some = out.isel(cell=slice(20_000, 20_100))
    np.testing.assert_array_equal(some.X.values, x[some.row.values].toarray())


def test_convert__a_failure_leaves_no_task_that_still_writes(tmp_path, monkeypatch):
    source = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(sparse(32 * 12, 20)))
    monkeypatch.setattr(rows_writer, "_SHARD_CHUNKS", 1)
    monkeypatch.setattr("xloader.store.tasks.n_cpus", lambda: 2)
    begun, ended, second = [], [], threading.Event()
    real = rows_writer.RowsWriter.write

    def write(self, task, rung):
        begun.append(task)
        if begun[0] == task:
            second.wait(30)
            msg = "disk full"
            raise OSError(msg)
        second.set()
        time.sleep(0.2)
        done = real(self, task, rung)
        ended.append(task)
        return done

    monkeypatch.setattr(rows_writer.RowsWriter, "write", write)
    with pytest.raises(OSError, match="disk full"):
        xl.convert(source, tmp_path / "s", progress=False)
    assert sorted(begun[1:]) == sorted(ended)
    assert len(begun) < 12  # those that had not begun never do


def test_convert__two_at_a_time_are_refused(tmp_path):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=100, n_genes=60)
    with (
        building(tmp_path / "s"),
        pytest.raises(ReadError, match="another process is converting to .*s'.*wait until"),
    ):
        xl.convert(source, tmp_path / "s", progress=False)
    shutil.rmtree(tmp_path / ".s.partial")
    xl.convert(source, tmp_path / "s", progress=False)


def test_convert__killed_while_an_old_store_makes_room(tmp_path):
    source = xl.simulate.cells(tmp_path / "a.h5ad", n_cells=100, n_genes=60)
    before = xl.convert(source, tmp_path / "s", progress=False).compute()
    (tmp_path / "s").rename(tmp_path / ".s.old")
    with pytest.raises(ReadError, match="'.*s' exists; pass overwrite=True"):
        xl.convert(tmp_path / "s", tmp_path / "s", progress=False)
    xr.testing.assert_identical(xl.open_cells(tmp_path / "s").compute(), before)
    xl.convert(tmp_path / "s", tmp_path / "s", overwrite=True, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "s"]
