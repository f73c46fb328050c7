"""Every notebook runs from top to bottom, and is committed without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
PIPELINES = {
    "02-tracks-to-map": ["open_track", "merge", "diagonal", "shift=", "overlap=", "flip"],
    "03-observed-over-expected": ["split", "statistics", "check_leakage", "upper_triangle"],
    "04-low-to-full-coverage": ["thin", "PredictionWriter", "export", "plot_contacts"],
    "05-sparse-items": ["MapDataset", 'layout="coo"', "collate", "num_workers=2"],
    "06-atlas-of-three-files": [
        "concat",
        "DistributedDataParallel",
        "load_state_dict",
        "X_measured",
    ],
    "07-two-modalities": ["merge", "prot_present", "PredictionWriter", "split"],
    "08-counts-to-embedding": ["balanced", "NegativeBinomial", "PredictionWriter", "split"],
}

RESULTS = {
    "01-from-file-to-training": "losses[-1] < losses[0]",
    "02-tracks-to-map": "losses[-1] < losses[0] / 3",
    "03-observed-over-expected": "np.mean(correlation) > 0.3",
    "04-low-to-full-coverage": "scores['restored'] < scores['low'] / 2",
    "05-sparse-items": "same and losses[-1] < losses[0] / 5",
    "06-atlas-of-three-files": "same and accuracy > 1.5 * commonest",
    "07-two-modalities": "scores['model'] < 0.9 * scores['mean of each protein']",
    "08-counts-to-embedding": "accuracy > 1.5 * commonest and losses[-1] < losses[0]",
}
"""What a notebook has to come to."""


def code_of(path):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.fixture
def one_thread():
    """Let torch take one thread: many that wait for each other are slow where others run, too."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
# Python 3.12 warns of any fork while threads live
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.usefixtures("one_thread")
def test_notebook__runs(path, tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "notebook"}
    for cell in code_of(path):
        exec(compile("".join(cell["source"]), f"{path.name}: {cell['id']}", "exec"), names)  # noqa: S102
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")
    assert eval(RESULTS[path.stem], names), RESULTS[path.stem]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook__has_no_outputs(path):
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code_of(path))


@pytest.mark.parametrize("name", PIPELINES)
def test_notebook__shows_what_its_pipeline_is_about(name):
    (path,) = [p for p in NOTEBOOKS if p.stem == name]
    code = "".join(line for cell in code_of(path) for line in cell["source"])
    assert [word for word in PIPELINES[name] if word not in code] == []
