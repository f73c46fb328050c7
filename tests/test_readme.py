"""What the README shows is what happens."""

import doctest
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_readme__is_short():
    assert len(README.read_text().splitlines()) < 60


def test_readme__prints_what_it_shows(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS
    failed, tried = doctest.testfile(str(README), module_relative=False, optionflags=flags)
    assert tried > 10
    assert failed == 0
