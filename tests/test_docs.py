"""The pages about contact matrices and cells print what they show, and the reference lists what is public."""

import doctest
import re
from pathlib import Path

import pandas as pd
import pytest

import xloader as xl

DOCS = Path(__file__).parent.parent / "docs"
CONTACTS = DOCS / "contacts.md"
CELLS = DOCS / "cells.md"
INTERNAL = {"Bins", "ContactBins", "best_workers", "boxes", "to_bins"}


@pytest.fixture
def agg():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.mark.usefixtures("agg")
def test_contacts__the_page_prints_what_it_shows(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS
    failed, tried = doctest.testfile(str(CONTACTS), module_relative=False, optionflags=flags)
    assert tried > 40
    assert failed == 0


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_cells__the_page_prints_what_it_shows(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS
    failed, tried = doctest.testfile(str(CELLS), module_relative=False, optionflags=flags)
    assert tried > 80
    assert failed == 0


def in_tables(page=CONTACTS):
    """Return the calls that the tables of a page name."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [code for row in rows for code in re.findall(r"`([\w.]+\([^`]*\))`", row)]


@pytest.mark.parametrize("code", in_tables())
def test_contacts__what_the_tables_say_can_be_written(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("blacklist.bed").write_text("chr1\t0\t100\n")
    Path("loops.bedpe").write_text("chr1\t0\t100\tchr1\t500\t600\n")
    path = xl.simulate.contacts("a.mcool", chromosomes={"chr1": 2_000_000}, resolutions=[40_000])
    stats = xl.statistics(xl.open_contacts(path), progress=False)
    names = {name: getattr(xl.transforms, name) for name in xl.transforms.__all__}
    made = eval(code, {**names, "xl": xl, "stats": stats, "pd": pd})
    assert callable(made) or isinstance(made, xl.windows.Shape)


@pytest.mark.parametrize("code", in_tables(CELLS))
def test_cells__what_the_tables_say_can_be_written(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ds = xl.open_cells(xl.simulate.cells("cells.h5ad", n_cells=300, n_genes=400))
    stats = xl.statistics(ds, progress=False)
    names = {name: getattr(xl.transforms, name) for name in xl.transforms.__all__}
    made = eval(code, {**names, "xl": xl, "ds": ds, "stats": stats})
    if callable(made):
        made = xl.Loader(ds, batch_size=9, transform=made)
    made = made if isinstance(made, xl.Loader) else xl.Loader(made, batch_size=9)
    assert {"X", "X_latent"} <= set(made[0])


def test_tables__are_read():
    assert len(in_tables()) > 20
    assert len(in_tables(CELLS)) > 15


def public():
    for name in xl.__all__:
        thing = getattr(xl, name)
        if callable(thing):
            yield f"xloader.{name}"
    for module in (xl.windows, xl.transforms, xl.simulate, xl.torch):
        for name in module.__all__:
            if name not in INTERNAL:
                yield f"{module.__name__}.{name}"
    yield from (
        "xloader.plot.plot_contacts",
        "xloader.plot.plot_batch",
        "xloader.plot.plot_windows",
    )


def test_reference__lists_everything_that_is_public():
    pytest.importorskip("torch")
    text = (DOCS / "reference.md").read_text()
    listed = set(re.findall(r"auto(?:function|class):: (\S+)", text))
    for module, members in re.findall(r"automodule:: (\S+)\n\s+:members: (.+)", text):
        listed |= {f"{module}.{name.strip()}" for name in members.split(",")}
    assert [name for name in public() if name not in listed] == []


def test_index__leads_to_every_page():
    text = (DOCS / "index.md").read_text().splitlines()
    pages = {str(p.relative_to(DOCS).with_suffix("")) for p in DOCS.rglob("*.md")}
    pages = {p for p in pages if not p.startswith("_build")}
    assert pages - {"index"} <= set(text)
