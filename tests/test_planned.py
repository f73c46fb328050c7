"""What a plan says about itself is what happens when it is read."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from typing_extensions import override

import xloader as xl
from tests.doubles import Rows, cells, counts
from xloader.planned import as_table, blocks_read

N, BLOCK = 2048, 16


def loader_of(rows=None, **kwargs):
    rows = Rows(counts(N), block_rows=BLOCK) if rows is None else rows
    ds = cells(rows, n=N)
    options = {"batch_size": 32, "variables": ["X"], "memory_budget": "40kB", "prefetch": 0}
    return xl.Loader(ds, **{**options, **kwargs})


def stated(loader, key):
    (line,) = (line for line in repr(loader).split("\n") if line.startswith(f"  {key}"))
    return line.partition(" : ")[2]


@pytest.mark.parametrize("order", ["shuffled", "sequential", "uniform", "weighted"])
@pytest.mark.parametrize("world", [1, 4])
def test_reading__is_what_an_epoch_decodes(order, world):
    rows = Rows(counts(N), block_rows=BLOCK)
    asked = xl.orders.weighted(np.arange(N) % 7 == 0) if order == "weighted" else order
    options = {"rank": world - 1, "world_size": world, "batch_size": 32 // world}
    loader = loader_of(rows, order=asked, memory_budget="80kB", **options)
    planned = blocks_read(loader.plan, 0)
    for _ in loader:
        pass
    assert not loader.plan.in_memory
    # a few pools stand for all, and of the last batch a rank has more or less
    assert abs(planned - len(rows.log)) <= 0.15 * len(rows.log)
    decoded = len(rows.log) / (N // BLOCK)
    amplified = float(re.search(r"([\d.]+) times its samples", stated(loader, "reading"))[1])
    assert abs(amplified - decoded * world) <= 0.2 * decoded * world
    assert ("of the blocks" in stated(loader, "reading")) == (world > 1)


def test_reading__of_some_cells_decodes_more_than_they_are():
    ds = cells(Rows(counts(N), block_rows=BLOCK), n=N)
    options = {"batch_size": 32, "variables": ["X"], "shuffle": True}
    some = xl.Loader(ds.isel(cell=slice(None, None, 8)), **options)
    every = xl.Loader(ds, **options)
    assert "1.0 times its samples" in stated(every, "reading")
    assert "8.1 times its samples" in stated(some, "reading")  # bytes of a cell are rounded down
    assert "read once" in stated(some, "reading")
    assert (
        stated(xl.Loader(ds.compute(), **options), "reading") == "nothing, all data are in memory"
    )


def test_reading__counts_a_chunk_once_per_pool_however_many_blocks_touch_it():
    ds = cells(Rows(counts(N), block_rows=BLOCK), n=N)
    one_chunk = ds.X_pca.compute().chunk({"cell": N, "pc": 3})
    ds = ds.assign(X_pca=one_chunk)
    plan = xl.Loader(ds, batch_size=32, variables=["X", "X_pca"], shuffle=True).plan
    alone = xl.Loader(ds, batch_size=32, variables=["X"], shuffle=True).plan
    assert plan.n_pools(0) == 1
    assert plan.nbytes == alone.nbytes + one_chunk.nbytes


def test_text__states_memory_order_remainder_and_counts():
    loader = loader_of(shuffle=True, batch_size=100, remainder="drop", seed=3)
    assert stated(loader, "remainder") == "drop; 48 samples dropped"
    assert "order: shuffled blocks, seed 3" in stated(loader, "blocks")
    assert "128 in" in stated(loader, "blocks")
    padded = loader_of(batch_size=100, remainder="pad")
    assert stated(padded, "remainder") == "pad; 52 samples padded"
    assert stated(loader_of(remainder="keep"), "remainder") == "keep; nothing left over"
    # no batch is made of two pools
    twice = [stated(loader_of(prefetch=p, batch_size=BLOCK), "memory") for p in (0, 1)]
    sizes = [float(re.search(r"up to ([\d.]+) kiB", t)[1]) for t in twice]
    assert abs(sizes[1] - 2 * sizes[0]) < 0.1
    assert "what is read ahead included, in each process that reads" in twice[1]
    once, many = loader_of(prefetch=0, batch_size=BLOCK), loader_of(batch_size=N)
    n_pools = many.plan.n_pools(0)
    assert (once.plan.span(0), many.plan.span(0)) == (1, n_pools)
    assert n_pools > 2
    assert f"because a batch is made of up to {n_pools} pools" in stated(many, "memory")
    assert loader_of(batch_size=BLOCK + 1).plan.span(0) == 2
    drawn = loader_of(order=xl.orders.weighted(np.ones(N), n=640))
    assert "20 batches of 32 per epoch (640 samples of 2,048 windows of cell: 1)" in repr(drawn)


def test_plan__says_the_same_as_its_loader():
    loader = loader_of(prefetch=1)
    lines, plan = repr(loader).split("\n"), repr(loader.plan).split("\n")
    assert lines.pop(1) == "  variables : X; labels: none"
    assert plan == [lines[0].replace("Loader", "Plan"), *lines[1:]]


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    @override
    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    @override
    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    @override
    def handle_data(self, data):
        self.texts.append(data)


def test_table__has_every_fact_and_closes_every_tag():
    loader = loader_of(shuffle=True)
    for shown in (loader, loader.plan):
        parser = Cells()
        parser.feed(shown._repr_html_())
        assert parser.open == []
        assert " ".join(parser.texts).split() == [w for w in re.sub(r"[<>]", "", repr(shown)).split() if w != ":"]  # fmt: skip
    parser = Cells()
    parser.feed(as_table("t", "a < b", {"k": "<script>&"}))
    assert parser.texts[-1] == "<script>&"
