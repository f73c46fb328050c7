"""The repository keeps its own promises: one list of dependencies, small modules, one direction."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpydoc.docscrape
import pytest
import yaml
from packaging.requirements import Requirement

import xloader

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted((ROOT / "xloader").rglob("*.py"))
CONDA_NAMES = {"dask": "dask-core", "torch": "pytorch", "matplotlib": "matplotlib-base"}
PIP_ONLY = {"xbatcher", "hictkpy", "pybigtools"}  # pip installs them with `-e .[all]`

pytestmark = pytest.mark.skipif(
    not (ROOT / "constraints.txt").exists(), reason="not a checkout of the repository"
)


def requirements():
    """Return core requirements and those of the extra `all`, by name."""
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    named = re.fullmatch(r"xloader\[(.*)\]", everything)[1].split(",")
    lines = [*PROJECT["dependencies"], *(line for name in named for line in extras[name])]
    return {r.name: r for r in map(Requirement, lines)}


def test_environment__equals_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (item["pip"] for item in listed if isinstance(item, dict))
    assert pip == ["-e .[all]"]
    conda = {r.name: r for r in map(Requirement, (x for x in listed if isinstance(x, str)))}
    assert str(conda.pop("python").specifier) == PROJECT["requires-python"]
    del conda["pip"]
    wanted = {
        CONDA_NAMES.get(name, name): r.specifier
        for name, r in requirements().items()
        if name not in PIP_ONLY
    }
    assert {name: r.specifier for name, r in conda.items()} == wanted


def test_constraints__satisfy_pyproject():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    pins = {re.sub("[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    tests = {r.name: r for r in map(Requirement, PROJECT["optional-dependencies"]["test"])}
    for name, r in {**requirements(), **tests}.items():
        assert r.specifier.contains(pins[re.sub("[-_.]+", "-", name).lower()]), r


def test_tree__holds_what_it_should():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    top = {line.split("/")[0] for line in tracked if line} or {p.name for p in ROOT.iterdir()}
    assert top >= {"pyproject.toml", "xloader", "tests", "notebooks", "docs", "environment.yml"}
    assert top <= {
        "pyproject.toml", "xloader", "tests", "notebooks", "docs", "environment.yml", "README.md",
        "LICENSE", "Makefile", "constraints.txt", ".ci", ".gitignore", ".pre-commit-config.yaml",
    }  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules__are_small(path):
    text = path.read_text()
    assert text.count("\n") < 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = node.end_lineno - body[0].lineno if body else 0
            assert length <= 80, f"{node.name}: {length} lines"


def test_public_names__are_sorted_and_documented():
    assert xloader.__all__ == sorted(xloader.__all__)
    assert len(xloader.__all__) <= 24
    for name in xloader.__all__:
        assert getattr(xloader, name).__doc__, name
    doc = numpydoc.docscrape.ClassDoc(xloader.Loader)
    assert next(p.name for p in doc["Parameters"]) == "source"


def test_public_names__are_never_hidden_by_modules_of_the_same_name():
    # importing a module sets it as an attribute of its package, whatever was there
    for name in xloader.__all__:
        value = getattr(xloader, name)
        is_module = (ROOT / "xloader" / f"{name}.py").exists()
        assert not (is_module and callable(value)), name


def test_import__needs_no_torch():
    code = "import sys, xloader; print([m for m in ('torch', 'matplotlib', 'hictkpy', 'cooler', 'anndata', 'zarr') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_torch__is_there_when_asked_for_and_says_what_is_missing():
    pytest.importorskip("torch")
    assert xloader.torch.MapDataset.__name__ == "MapDataset"
    with pytest.raises(AttributeError, match="no attribute 'tensorflow'; it has"):
        _ = xloader.tensorflow
    code = "import sys; sys.modules['torch'] = None; import xloader; xloader.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: xloader.torch needs torch: pip install 'xloader[torch]'" in done.stderr


def test_pre_commit__runs_the_tools_of_the_project():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = {hook["id"] for repo in config["repos"] for hook in repo["hooks"]}
    assert hooks >= {"ruff-check", "ruff-format", "mypy", "lint-imports", "numpydoc"}
