"""Conversion in parts, as job arrays do it: any order, any process, the same bytes (L9)."""

import shutil
import signal
import subprocess
import sys
import textwrap

import anndata
import cooler
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
from click.testing import CliRunner

import xloader as xl
from tests.sources import sparse, write_h5ad
from xloader.cli import cli
from xloader.errors import PlanError, ReadError
from xloader.store import rows_writer, writers
from xloader.store.building import building_part, locked


def tree(store):
    return {p.relative_to(store): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@pytest.fixture
def small_shards(monkeypatch):
    """Make several tasks of small data."""
    monkeypatch.setattr(rows_writer, "_SHARD_CHUNKS", 2)
    monkeypatch.setattr(writers, "SHARD_NBYTES", 2**12)
    monkeypatch.setattr(writers, "SHARD_SIDE", 256)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Counts of which only the last row needs a wider type."""
    x = sparse(500, 40)
    x[-1, 7] = 300
    dense = x[:, :3] * 0.5
    return write_h5ad(
        tmp_path_factory.mktemp("c") / "a.h5ad",
        scipy.sparse.csr_matrix(x),
        obsm={"U": dense},
        layers={"d": x, "c": scipy.sparse.csc_matrix(x)},
    )


@pytest.fixture(scope="module")
def contacts(tmp_path_factory):
    n = 900
    starts = np.arange(n) * 1_000
    bins = pd.DataFrame({"chrom": "a", "start": starts, "end": starts + 1_000})
    pairs = np.random.default_rng(0).integers(0, n, (9_000, 2))
    pairs = np.unique(np.sort(pairs), axis=0)
    counts = np.ones(len(pairs), int)
    counts[-1] = 70_000
    path = tmp_path_factory.mktemp("m") / "a.cool"
    pixels = pd.DataFrame({"bin1_id": pairs[:, 0], "bin2_id": pairs[:, 1], "count": counts})
    cooler.create_cooler(str(path), bins, pixels)
    return path


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("n", [1, 3, 11])
@pytest.mark.parametrize("kind", ["cells", "shuffled", "contacts"])
def test_parts__make_the_bytes_of_the_whole(kind, n, cells, contacts, tmp_path):
    source = contacts if kind == "contacts" else cells
    options = {"shuffle": kind == "shuffled", "progress": False}
    options["memory_budget"] = "40MB" if kind == "contacts" else "2MB"
    expected = xl.convert(source, tmp_path / "whole", **options)
    order = np.random.default_rng(n).permutation(n) + 1
    complete = [xl.convert_part(source, tmp_path / "s", i, n, **options) for i in order.tolist()]
    if kind == "contacts":
        assert all(complete)
    else:  # a layer that is stored by columns is put in order, too
        assert complete[-1]
        assert not any(complete[: n // 2])
        for i in order[~np.array(complete)].tolist():
            assert xl.convert_part(source, tmp_path / "s", i, n, **options)
    assert not (tmp_path / "s").exists()
    out = xl.finalise(tmp_path / "s", progress=False)
    xr.testing.assert_identical(out.compute(), expected.compute())
    assert tree(tmp_path / "s") == tree(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "whole"]
    assert xl.verify(tmp_path / "s", progress=False).is_whole


@pytest.mark.usefixtures("small_shards")
def test_finalise__names_the_parts_that_are_missing(cells, tmp_path):
    store = tmp_path / "s"
    options = {"shuffle": True, "memory_budget": "2MB", "progress": False}
    with pytest.raises(ReadError, match="no part of store .* is there; write them with"):
        xl.finalise(store, progress=False)
    for i in (2, 4):
        assert not xl.convert_part(cells, store, i, 5, **options)
    with pytest.raises(ReadError, match=r"lacks parts 1, 3, 5 of 5: not begun, killed"):
        xl.finalise(store, progress=False)
    for i in (1, 3, 5):
        xl.convert_part(cells, store, i, 5, **options)
    with pytest.raises(ReadError, match="lacks part"):
        xl.finalise(store, progress=False)
    for i in (2, 4, 1, 3):
        assert xl.convert_part(cells, store, i, 5, **options)
    out = xl.finalise(store, progress=False).compute()
    x = anndata.read_h5ad(cells).X.toarray()
    np.testing.assert_array_equal(out.X.values, x[out.row.values])


def test_parts__refuse_what_does_not_belong_together(cells, tmp_path):
    store = tmp_path / "s"
    xl.convert_part(cells, store, 1, 3, progress=False)
    for options, n in (({}, 4), ({"codec": "small"}, 3), ({"shuffle": True}, 3)):
        with pytest.raises(
            ReadError, match=r"holds a conversion in \[3\] parts .* remove the fold"
        ):
            xl.convert_part(cells, store, 2, n, progress=False, **options)
    with pytest.raises(ReadError, match="is being converted in parts; finish them and run"):
        xl.convert(cells, store, progress=False)
    with pytest.raises(PlanError, match="part 4 of 3: parts are counted from 1"):
        xl.convert_part(cells, store, 4, 3, progress=False)
    lazy = xl.open_cells(cells, chunks=None)
    with pytest.raises(PlanError, match=r"cannot be told .* chunks=\{\}"):
        xl.convert_part(lazy, tmp_path / "t", 1, 2, progress=False)
    for i in (2, 3, 1):
        xl.convert_part(cells, store, i, 3, progress=False)
    with building_part(store, (2, 3)):
        with pytest.raises(ReadError, match="another process is doing part 2 of '.*s'"):
            xl.convert_part(cells, store, 2, 3, progress=False)
        xl.convert_part(cells, store, 1, 3, progress=False)
        with pytest.raises(ReadError, match="another process is converting to '.*s'"):
            xl.finalise(store, progress=False)
    with (
        locked(tmp_path / ".s.partial", store),
        pytest.raises(ReadError, match="another process is converting to"),
    ):
        xl.convert_part(cells, store, 1, 3, progress=False)
    shutil.copytree(tmp_path / ".s.partial", store)
    with pytest.raises(ReadError, match="'.*s' exists; pass overwrite=True"):
        xl.finalise(store, progress=False)


def test_finalise__of_what_is_in_one_piece_says_so(tmp_path):
    (tmp_path / ".s.partial").mkdir()
    with pytest.raises(ReadError, match="in one piece; run xl.convert again"):
        xl.finalise(tmp_path / "s", progress=False)


def test_finalise__killed_just_before_its_end_goes_on(cells, tmp_path, monkeypatch):
    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    xl.convert(cells, tmp_path / "whole", progress=False)
    for i in (2, 1):
        xl.convert_part(cells, tmp_path / "s", i, 2, progress=False)
    assert xl.convert_part(cells, tmp_path / "s", 2, 2, progress=False)
    for where in (
        "converting.join",
        "converting.manifest",
        "converting.forget",
        "conversion.publish",
    ):
        with monkeypatch.context() as m:
            m.setattr(f"xloader.{where}", stop)
            m.setattr("xloader.conversion.join", sys.modules["xloader.converting"].join)
            with pytest.raises(Stopped):
                xl.finalise(tmp_path / "s", progress=False)
    xl.finalise(tmp_path / "s", progress=False)
    assert tree(tmp_path / "s") == tree(tmp_path / "whole")


SCRIPT = textwrap.dedent("""
    import os, signal, sys
    import xloader as xl
    from xloader.store import rows_writer, staging
    rows_writer._SHARD_CHUNKS = 2
    left = int(sys.argv[3])
    def limited(real):
        def do(self, *args):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(self, *args)
        return do
    rows_writer.RowsWriter.write = limited(rows_writer.RowsWriter.write)
    staging.RowStaging.do = limited(staging.RowStaging.do)
    xl.convert_part(sys.argv[1], sys.argv[2], 2, 3, memory_budget="1MB", shuffle=True, progress=False)
""")


@pytest.mark.slow
def test_part__killed_while_others_run_goes_on(tmp_path):
    x = sparse(3_000, 60)
    source = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(x))
    store = tmp_path / "s"
    options = {"memory_budget": "1MB", "shuffle": True, "progress": False}
    rows_writer_chunks = rows_writer._SHARD_CHUNKS
    rows_writer._SHARD_CHUNKS = 2
    try:
        xl.convert(source, tmp_path / "whole", **options)
        for left in (1, 4):
            running = subprocess.Popen([sys.executable, "-c", SCRIPT, source, store, str(left)])
            for i in (1, 3):  # at the same time
                xl.convert_part(source, store, i, 3, **options)
            assert running.wait(60) in (-signal.SIGKILL, 0)
        for _ in range(2):
            for i in (1, 2, 3):
                xl.convert_part(source, store, i, 3, **options)
        xl.finalise(store, progress=False)
    finally:
        rows_writer._SHARD_CHUNKS = rows_writer_chunks
    assert tree(store) == tree(tmp_path / "whole")


def test_command_line__of_job_arrays(cells, tmp_path):
    store = str(tmp_path / "s")
    run = CliRunner().invoke
    common = [str(cells), store, "--shuffle", "--seed", "3", "--no-progress"]
    said = [run(cli, ["convert", *common, "--part", f"{i}/2"]) for i in (2, 1, 2)]
    assert [each.exit_code for each in said] == [0, 0, 0]
    assert [each.output for each in said] == [
        "part 2 of 2 has put its rows in order; run it again when all parts have\n",
        "part 1 of 2 is complete\n",
        "part 2 of 2 is complete\n",
    ]
    done = run(cli, ["finalise", store, "--no-progress"])
    assert done.exit_code == 0
    assert "xarray.Dataset" in done.output
    xl.convert(cells, tmp_path / "whole", shuffle=True, seed=3, progress=False)
    assert tree(tmp_path / "s") == tree(tmp_path / "whole")
    for wrong in ("2", "a/b", "/3"):
        assert (
            "no part of some number of parts"
            in run(cli, ["convert", *common, "--part", wrong]).output
        )
    refused = run(cli, ["convert", *common, "--append", "--part", "1/2"])
    assert refused.exit_code == 2
    assert "leave out --part" in refused.output
