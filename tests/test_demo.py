"""The main job runs from files to figures, on simulated and on real input."""

import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import xloader as xl
from xloader.cli import cli

pytest.importorskip("torch")


def demo(out, *options):
    """Run the command in a process of its own; return what it printed and its exit code."""
    command = [sys.executable, "-m", "xloader.cli", "demo", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr, done.returncode


def figures(printed):
    """Return (metric, model, baseline) as printed."""
    found = re.findall(r"(mean squared error|accuracy) .*: ([\d.]+), baseline ([\d.]+)", printed)
    return {name: (float(model), float(baseline)) for name, model, baseline in found}


def check_outputs(out, label):
    picture = matplotlib.image.imread(out / "demo.png")
    assert picture.shape[0] > 800
    assert picture[..., :3].std() > 0.1
    contacts = xr.open_zarr(out / "predictions.zarr", group="contacts", consolidated=False)
    assert contacts.prediction.dims == ("sample", "bin1", "bin2")
    seen = contacts.seen.values
    assert np.isfinite(contacts.prediction.values[seen]).all()
    assert np.isnan(contacts.prediction.values[~seen]).all()
    assert {"chrom1", "start1", "end2", "sample_id"} <= set(contacts.coords)
    cells = xr.open_zarr(out / "predictions.zarr", group="cells", consolidated=False)
    assert {"cell", label} <= set(cells.coords)
    return contacts, cells


def test_demo__simulated_input_beats_its_baselines(tmp_path):
    printed, code = demo(tmp_path, "--steps", "100")
    assert code == 0, printed
    error, baseline = figures(printed)["mean squared error"]
    assert error < baseline / 2
    accuracy, majority = figures(printed)["accuracy"]
    assert accuracy > majority
    assert re.search(r"\d samples/s in training, [\d.]+% of the time waiting", printed)
    contacts, cells = check_outputs(tmp_path, "cell_type")
    # the figures that were printed are those of the predictions that were written
    seen = contacts.seen.values
    square = (contacts.prediction.values - contacts.target.values)[seen] ** 2
    assert square.mean() == pytest.approx(error, abs=1e-3)
    assert float((cells.predicted == cells.cell_type).mean()) == pytest.approx(accuracy, abs=1e-4)
    # the held-out donor, and no other
    source = xl.open_cells(tmp_path / "simulated.h5ad")
    held_out = source.cell[(source.donor == "donor5").values]
    assert sorted(cells.cell.values) == sorted(held_out.values)


def test_demo__real_input_beats_its_baselines(tmp_path, real_data):
    printed, code = demo(
        tmp_path,
        "--contacts", str(real_data / "hic" / "scer_w303_g1_2kb_SRR8769554.cool"),
        "--cells", str(real_data / "sc" / "pbmc8k_200hvg_counts.h5ad"),
        "--label", "cell_type",
        "--held-out-chromosome", "chr5",
        "--steps", "100",
    )  # fmt: skip
    assert code == 0, printed
    error, baseline = figures(printed)["mean squared error"]
    assert error < baseline / 2
    accuracy, majority = figures(printed)["accuracy"]
    assert accuracy > majority + 0.2
    contacts, _ = check_outputs(tmp_path, "cell_type")
    assert set(contacts.chrom1.values.ravel().tolist()) == {"chr5"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cells", "nothing.h5ad"], "nothing is at 'nothing.h5ad'"),
        (
            ["--contacts", "a.h5ad"],
            "'a.h5ad' holds cells, not contacts; open it with xl.open_cells",
        ),
        (["--cells", "a.h5ad", "--label", "mood"], "no column 'mood' on cells; name one of"),
        (["--cells", "a.h5ad", "--held-out", "donor9"], "'donor' cannot hold out 'donor9'"),
        (["--cells", "a.h5ad", "--variable", "raw"], "no variable 'raw' in this file"),
        (["--contacts", "a.mcool", "--resolution", "7"], "no resolution 7; it has 10000, 20000"),
        (["--contacts", "a.mcool", "--held-out-chromosome", "chr9"], "'chr9' cannot be held out"),
    ],
)
def test_demo__bad_input_is_one_clear_line(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xl.simulate.cells("a.h5ad", n_cells=200, n_genes=60)
    sizes = {"chr1": 1_000_000, "chr2": 900_000}
    xl.simulate.contacts("a.mcool", chromosomes=sizes, resolutions=(10_000, 20_000))
    monkeypatch.setattr(sys, "argv", ["xloader", "demo", "--steps", "1", *options])
    with pytest.raises(xl.errors.XloaderError) as e:
        CliRunner().invoke(cli, sys.argv[1:], catch_exceptions=False)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_cli__errors_are_no_tracebacks(tmp_path):
    printed, code = demo(tmp_path, "--cells", "nothing.h5ad")
    assert code == 1
    assert "Traceback" not in printed
    assert "xloader: nothing is at 'nothing.h5ad'; check the path" in printed


def test_cli__converts(tmp_path):
    xl.simulate.cells(tmp_path / "a.h5ad", n_cells=200, n_genes=60)
    done = CliRunner().invoke(cli, ["convert", str(tmp_path / "a.h5ad"), str(tmp_path / "s")])
    assert done.exit_code == 0, done.output
    stored, source = xl.open_cells(tmp_path / "s"), xl.open_cells(tmp_path / "a.h5ad")
    xr.testing.assert_identical(stored.compute(), source.compute())
