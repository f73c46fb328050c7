"""Every notebook runs from top to bottom, and is committed without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook__runs(path, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells)
    names = {"__name__": "notebook"}
    for cell in cells:
        exec(compile("".join(cell["source"]), f"{path.name}: {cell['id']}", "exec"), names)  # noqa: S102
    assert names["losses"][-1] < names["losses"][0]


def test_notebooks__are_there():
    assert NOTEBOOKS
