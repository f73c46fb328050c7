"""The benchmarks work with little data, and say so when a contender does something else."""

import importlib
import json
import time
import warnings
from dataclasses import asdict, replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse
import torch

import xloader as xl
from tests.benchmarks import cells, cells_data, contacts_data, device, report
from tests.benchmarks.__main__ import ROWS, main
from tests.benchmarks.child import _memory, measure
from tests.benchmarks.runner import (
    Contender,
    Failure,
    Pass,
    Row,
    Runs,
    _Child,
    _summary,
    compare,
    run_row,
)
from xloader import torch as xt

TOYS = "tests.benchmarks.toys"


def contender(name="delivers", **options):
    return Contender(name, f"{TOYS}:{name}", options, label=f"label of {name}")


def row(ours, *theirs, **options):
    given = {"must": 2, "aim": 3, "data": cells_data.nothing} | options
    return Row("one", "a title", "cells/s", ours, theirs, **given)


def run(some, folder, **options):
    return run_row(some, folder, **({"rounds": 1, "small": False, "done": {}} | options))


class _Here:
    """A contender in this process: the same, but quicker than to start a new one."""

    def __init__(self, some, folder, options):
        module, name = some.make.split(":")
        self.run = getattr(importlib.import_module(module), name)(folder, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def reply(self):
        return {"label": getattr(self.run, "label", "")}

    def ask(self, question):
        return asdict(measure(self.run, 0)) if question == "pass" else {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder for data, which is made there when a test first needs it."""
    return tmp_path_factory.mktemp("bench") / "small"


def _code(some):
    return [(x.make, sorted(x.options)) for x in (some.ours, *some.theirs)]


@pytest.mark.parametrize("name", [r.name for r in ROWS])
def test_row__runs_with_little_data(name, folder, monkeypatch):
    (number,) = (k for k, r in enumerate(ROWS) if r.name == name)
    some = ROWS[number]
    if _code(some) in map(_code, ROWS[:number]):
        pytest.skip("another row runs the same code")
    if reason := some.skip_reason(small=True):
        pytest.skip(reason)
    folder.mkdir(exist_ok=True)
    if (
        "hictkpy" not in name
    ):  # which keeps a processor busy, and forks from being quiet, once imported
        monkeypatch.setattr("tests.benchmarks.runner._Child", _Here)
    for module in (cells_data, contacts_data):
        monkeypatch.setattr(module, "apart", lambda f, *args: f(*args))
    result = run(some, folder, small=True)
    assert result.get("error") is None
    assert result["verdict"] == "not judged"
    assert result["ours"]["n"] > 0


@pytest.fixture(scope="module")
def small(folder):
    """Run a row as the command does; return the exit status, what is printed, and the folder."""
    args = ["--small", "--rounds", "1", "--rows", "batch_64,batch", "--data", str(folder.parent)]
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *x, **_: lines.append(" ".join(map(str, x))))
        status = main(args)
    return status, lines, folder


def test_command__prints_a_table(small):
    status, lines, folder = small
    results = report.load(folder / "results.json")
    assert status == 0
    assert lines[:2] == ["batch_64 ...", "batch ..."]
    table = lines[2].splitlines()
    assert list(results) == ["batch_64", "batch"]
    assert [line.split()[0] for line in table] == ["row", *results]
    ends = {line.rindex("not judged") for line in table[1:]}
    assert ends == {table[0].index("verdict")}


def test_results__hold_what_a_reader_asks_for(small):
    *_, folder = small
    told = report.load(folder / "results.json")["batch_64"]
    assert told["rounds"] == len(told["ours"]["seconds"]) == 1
    assert told["ours"]["n"] == 5_000
    assert told["ours"]["label"].startswith("blocks of 32 rows, ")
    assert told["ours"]["median"] == pytest.approx(5_000 / told["ours"]["seconds"][0], rel=1e-3)
    assert told["ratio"] == pytest.approx(told["ours"]["median"] / told["theirs"][0]["median"])
    assert told["versions"]["numpy"] == np.__version__
    rows = "batch_64,batch"
    assert told["command"] == f"python -m tests.benchmarks --small --rounds 1 --rows {rows}"
    assert str(folder) not in json.dumps(told)
    assert len(told["load"]) == 2
    assert set(told["machine"]) == {"cpu", "cores", "memory_gb"}


def test_page__shows_every_row(small):
    *_, folder = small
    page = report.page(report.load(folder / "results.json"))
    for name in ("batch_64", "batch"):
        assert f"### `{name}`: " in page
    assert f"numpy {np.__version__}" in page


def test_page__is_that_of_the_results():
    assert report.RESULTS.exists() == report.PAGE.exists()
    if report.RESULTS.exists():
        assert report.PAGE.read_text() == report.page(report.load(report.RESULTS))


def test_rows__have_names_and_contenders_of_their_own():
    assert len({r.name for r in ROWS}) == len(ROWS)
    for r in ROWS:
        assert (r.must <= r.aim) == (r.measure == "rate") or r.must == r.aim


def test_skipped_row__says_why(tmp_path, capsys):
    rows = [row(contender(), needs=("os", "no_such_library"))]
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "r.json")], rows) == 0
    assert "one: skipped, no_such_library not installed" in capsys.readouterr().out
    assert report.load(tmp_path / "r.json") == {}


def test_wrong_sums__fail_the_row(tmp_path, capsys):
    rows = [row(contender(total=10.01), contender(total=10.0))]
    out = tmp_path / "r.json"
    assert main(["--data", str(tmp_path), "--out", str(out)], rows) == 1
    assert "delivers delivered total 10.01, not 10.0" in capsys.readouterr().out
    assert report.load(out)["one"]["verdict"] == "FAILED"


@pytest.mark.parametrize(
    ("ours", "says"),
    [(contender("raises"), "no store in"), (contender("dies"), "dies died with status 3")],
    ids=["raises", "dies"],
)
def test_broken_contender__fails_the_row(tmp_path, ours, says):
    result = run(row(ours, contender()), tmp_path)
    assert result["verdict"] == "FAILED"
    assert says in result["error"]


def test_failed_data__fails_the_row(tmp_path):
    def data(folder, small):
        msg = f"disk full: {folder}, {small}"
        raise OSError(msg)

    assert "disk full" in run(row(contender(), data=data), tmp_path)["error"]


@pytest.mark.parametrize(
    ("check", "agrees"),
    [
        ({"a": 1.0 + 9e-6, "b": 0.0}, True),
        ({"a": 1.0 + 2e-5, "b": 0.0}, False),
        ({"a": 1.0, "b": 1e-9}, False),
        ({"a": float("nan"), "b": 0.0}, False),
        ({"a": 1.0}, False),
        ({}, False),
    ],
)
def test_compare__wants_every_sum(check, agrees):
    reference = {"a": 1.0, "b": 0.0} if check else {}
    if agrees:
        compare(reference, check, "x")
    else:
        with pytest.raises(Failure):
            compare(reference, check, "x")


@pytest.mark.parametrize(
    ("measure", "ours", "verdict", "ratio"),
    [
        ("rate", 2.0, "aim", 4.0),  # samples per second: theirs 100 and 50, ours 400
        ("rate", 3.2, "goal", 2.5),
        ("rate", 8.0, "below goal", 1.0),
        ("ms", 2.0, "aim", 0.25),
        ("ms", 3.2, "goal", 0.4),
        ("ms", 8.0, "below goal", 1.0),
    ],
)
def test_verdict(measure, ours, verdict, ratio):
    goals = (2, 3) if measure == "rate" else (0.5, 0.25)
    some = replace(row(contender()), measure=measure, must=goals[0], aim=goals[1])
    seconds = ([ours, ours * 2, ours / 2], [16.0] * 3, [8.0] * 3)
    runs = [Runs(contender(), [Pass(s, 800, {}) for s in each], {}) for each in seconds]
    told = _summary(some, runs)
    assert told["verdict"] == verdict
    assert told["best"] == 1
    assert told["ratio"] == pytest.approx(ratio)
    assert told["spread"] == pytest.approx([ratio / 2, ratio * 2])


def test_verdict__without_peers_is_absolute():
    some = replace(row(contender()), measure="peak", must=500, aim=400)
    passes = [Pass(1.0, 1, {}, peak_mb=mb) for mb in (390.0, 450.0, 460.0)]
    told = _summary(some, [Runs(contender(), passes, {})])
    assert (told["ratio"], told["verdict"], told["best"]) == (450, "goal", None)


def test_merge__keeps_other_rows(tmp_path, small):
    *_, folder = small
    rows = report.load(folder / "results.json")
    out = tmp_path / "r.json"
    report.merge(out, rows)
    changed = rows["batch"] | {"title": "another"}
    report.merge(out, {"batch": changed})
    assert report.load(out) == rows | {"batch": changed}


def test_same_contenders__run_once(tmp_path):
    done = {}
    some = row(contender(), contender(total=10.0))
    first = run(some, tmp_path, done=done)
    second = run(replace(some, name="two", measure="ms"), tmp_path, done=done)
    assert first["ours"]["seconds"] == second["ours"]["seconds"]
    assert len(done) == 1


def test_pass_that_warms_up__is_not_counted(tmp_path):
    told = run(row(contender(first=0.5)), tmp_path, rounds=2)["ours"]
    assert len(told["seconds"]) == 2
    assert 0.002 <= min(told["seconds"]) <= max(told["seconds"]) < 0.5


def test_waiting_contender__does_not_work(tmp_path):
    with _Child(contender("ticks"), tmp_path, {}) as child:
        child.reply()
        child.ask("pass")
        time.sleep(0.05)
        before = (tmp_path / "ticks").stat().st_size
        time.sleep(0.1)
        assert (tmp_path / "ticks").stat().st_size == before
        child.ask("pass")
        assert (tmp_path / "ticks").stat().st_size > before


def test_measure__sees_the_peak_of_a_pass():
    def allocates():
        np.ones(25_000_000)
        return 1, {}

    baseline = _memory("VmRSS")
    if baseline is None:
        pytest.skip("this system does not tell the peak")
    large = measure(allocates, baseline)
    after = measure(lambda: (1, {}), baseline)
    assert 199 < large.peak_mb < 260
    assert after.peak_mb < 60


def test_measure__is_of_the_whole_pass():
    def slow():
        time.sleep(0.05)
        return 1, {}

    done = measure(slow, None)
    assert 0.05 <= done.seconds < 5
    assert done.cpu < 0.05


def test_simulated_counts__are_negative_binomial():
    n, n_genes, table = 20_000, 200, 40
    tables = cells_data.Tables.draw(np.random.default_rng(0), n_genes, np.arange(84))
    cells_data._set_tables(tables)
    lengths, genes, counts = cells_data._draw(1, 0, np.full(n, table))
    x = np.zeros((n, n_genes))
    x[np.repeat(np.arange(n), lengths), genes] = counts
    # what the alias tables draw, and what follows for a compound of Poisson and log-series
    keep, other, p = (part[table] for part in (tables.keep, tables.other, tables.size))
    rate = tables.rate[table] / n_genes * (keep + np.bincount(other, 1 - keep, n_genes))
    mean = -rate / np.log1p(-p) * p / (1 - p)
    often = (mean > 0.1) & (p < 0.9)
    assert often.sum() > 20
    np.testing.assert_allclose(x.mean(axis=0)[often], mean[often], rtol=0.1)
    np.testing.assert_allclose(x.var(axis=0)[often], (mean / (1 - p))[often], rtol=0.2)
    np.testing.assert_allclose((x == 0).mean(axis=0), np.exp(-rate), atol=0.015)


def test_simulated_file__is_that_of_its_seed_and_read_by_anndata(tmp_path):
    paths = [tmp_path / f"{k}.h5ad" for k in range(3)]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        cells_data.simulate(path, 2_500, 300, seed)
    one, same, other = (ad.read_h5ad(path) for path in paths)
    assert (one.X != same.X).nnz == 0
    assert (one.X != other.X).nnz > 0
    assert one.X.has_canonical_format
    assert one.X.nnz / 2_500 / 300 == pytest.approx(cells_data.DENSITY, rel=0.05)
    np.testing.assert_allclose(one.obs["n_counts"], one.X.sum(axis=1).A1)
    assert (np.diff(one.obs["batch"].cat.codes) >= 0).all()
    assert set(one.obs["split"]) == {"train", "val", "test"}


@pytest.mark.parametrize("wrong", ["counts", "columns", "labelled_counts"])
def test_first_pass__must_deliver_what_the_file_holds(small, tmp_path, wrong):
    *_, folder = small
    told = json.loads((folder / "cells.json").read_text())
    (tmp_path / "cells.json").write_text(json.dumps(told | {wrong: told[wrong] + 1}))
    (tmp_path / "cells.h5ad").symlink_to(folder / "cells.h5ad")
    with pytest.raises(ValueError, match=f"^{wrong} are "):
        cells.backed(tmp_path, batch_size=100, block=32, rows=512)


def test_copies__hold_every_cell_ten_times(small, tmp_path):
    *_, folder = small
    cells_data._copy(folder / "cells.h5ad", tmp_path / "copies.h5ad")
    copies = cells_data._sums(tmp_path / "copies.h5ad")
    told = json.loads((folder / "cells.json").read_text())
    assert copies == {k: 10 * v for k, v in told.items()}


def test_device__the_same_code_runs_without_cuda_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    x = scipy.sparse.random(40, 30, 0.2, "csr", np.float32, np.random.default_rng(0))
    ad.AnnData(x).write_h5ad(tmp_path / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of sparse tensors
        device.main([str(tmp_path / "a.h5ad"), "16", "2"])
        told = capsys.readouterr().out
        loader = xl.Loader(xl.open_cells(tmp_path / "a.h5ad"), batch_size=16)
        sent = device.ahead(xt.make_loader(loader, num_workers=0), torch.device("cpu"))
        got = np.concatenate([b["X"] for b in sent])
    assert told.startswith("no CUDA here")
    assert told.count(" s, ") == 5
    assert "cells/s" in told
    np.testing.assert_array_equal(got, x.toarray())
