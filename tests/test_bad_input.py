"""Impossible requests: refused when made, by kind, saying what is possible."""

import numpy as np
import pytest
import xarray as xr
import xbatcher
from typing_extensions import override

import xloader as xl
from tests.doubles import Rows, Tiles, cells, contact_map, contacts, counts, grid
from xloader.errors import PlanError, SchemaError, TransformError

DIAGONAL = xl.windows.diagonal(size=8)


def generator():
    return xbatcher.BatchGenerator(grid(), {"lat": 4})


PLANS = {
    "window longer than a chromosome": (
        contacts,
        {"windows": xl.windows.diagonal(size=50)},
        (
            r"a window of \{'bin1': 50\} elements is longer than 'chr2' \(40\); "
            r"choose windows of at most 40, .* or pass remainder='drop'"
        ),
    ),
    "window in bp longer than a chromosome": (
        contacts,
        {"windows": xl.windows.grid(size="50kb")},
        r"longer than 'chr2' \(40\); choose windows of at most 40",
    ),
    "window longer than every chromosome": (
        contacts,
        {"windows": xl.windows.diagonal(size=99), "remainder": "drop"},
        "no window of .*99.* elements fits the selection; choose smaller windows",
    ),
    "window longer than a dimension": (
        grid,
        {"input_dims": {"lat": 24}},
        r"a window of \{'lat': 24\} elements is longer than the whole axis \(23\)",
    ),
    "overlap of a window": (
        grid,
        {"input_dims": {"lat": 4}, "input_overlap": {"lat": 4}},
        "overlap of 4 along 'lat' leaves no step between windows of 4; .* at most 3",
    ),
    "overlap of a dimension that is not cut": (
        grid,
        {"input_dims": {"lat": 4}, "input_overlap": {"lon": 1}},
        r"input_overlap names \['lon'\], which input_dims \{'lat': 4\} do not cut",
    ),
    "no step between windows": (
        contacts,
        {"windows": xl.windows.diagonal(size=8, stride=0)},
        "windows of 8 elements every 0 along 'bin1' are impossible",
    ),
    "window of nothing": (
        grid,
        {"input_dims": {"lat": 0}},
        "windows of 0 elements",
    ),
    "length in bp that is no multiple": (
        contacts,
        {"windows": xl.windows.diagonal(size="8500bp")},
        "'8500bp' is no multiple of the bin size, 1000 bp",
    ),
    "length without a unit": (
        contacts,
        {"windows": xl.windows.diagonal(size="lots")},
        "'lots' is no length; write bins as a number, or bp as '500kb'",
    ),
    "unknown dimension": (
        grid,
        {"input_dims": {"x": 4}},
        r"input_dims \['x'\] are no dimensions; the Dataset has \{'time': 4, 'lat': 23, 'lon': 31\}",
    ),
    "no word on what a sample is": (
        grid,
        {},
        "say what a sample is: `input_dims`, such as .* for one window",
    ),
    "contacts without windows": (
        contacts,
        {},
        r"say what a sample is: .* `windows=xl.windows.diagonal\(size=...\)`",
    ),
    "both windows and input_dims": (
        contacts,
        {"windows": DIAGONAL, "input_dims": {"bin1": 4}},
        "`windows` and `input_dims`/`input_overlap` both say where windows lie; give one",
    ),
    "both windows and input_overlap": (
        contacts,
        {"windows": DIAGONAL, "input_overlap": {"bin1": 4}},
        "`windows` and `input_dims`/`input_overlap` both say where windows lie; give one",
    ),
    "a generator and input_dims": (
        generator,
        {"input_dims": {"lat": 4}},
        r"a BatchGenerator brings its own windows; leave out \['input_dims'\]",
    ),
    "a generator and input_overlap": (
        generator,
        {"input_overlap": {"lat": 1}},
        r"a BatchGenerator brings its own windows; leave out \['input_overlap'\]",
    ),
    "empty selection": (
        lambda: cells().isel(cell=[]),
        {},
        r"the selection is empty along \['cell'\]: .*'cell': 0.*; select something",
    ),
    "empty selection of genes": (
        lambda: cells(Rows(counts())).chunk({"cell": 10}).isel(gene=slice(0, 0)),
        {},
        r"the selection is empty along \['gene'\]",
    ),
    "memory for rows": (
        lambda: cells(Rows(counts(400, 50), 100), 400, 50),
        {"memory_budget": "1kB", "shuffle": True},
        (
            r"a block of 100 samples decodes to .*, but a memory_budget of 0.98 kiB has 375 B for the "
            r"blocks that are mixed, .* allow at least .* take fewer `variables`"
        ),
    ),
    "memory for windows": (
        contacts,
        {"windows": DIAGONAL, "memory_budget": 5000, "prefetch": 0},
        "a memory_budget of 4.88 kiB has 1.83 kiB for the blocks that are mixed, .* allow at least",
    ),
    "batch size": (cells, {"batch_size": 0}, "batch_size=0 is impossible; it must be at least 1"),
    "batches of more than there is": (
        cells,
        {"batch_size": 62, "remainder": "drop"},
        "batch_size=62 x world_size=1 is more than the 61 samples",
    ),
    "remainder": (
        cells,
        {"remainder": "wrap"},
        r"remainder='wrap' is unknown; choose one of \('keep', 'drop', 'pad'\)",
    ),
    "layout": (
        cells,
        {"layout": "coo"},
        r"layout='coo' is unknown; choose one of \(None, 'csr', 'dense'\)",
    ),
    "layout of data that are not sparse": (
        lambda: cells()[["X_pca"]],
        {"layout": "csr"},
        r"layout='csr' needs a variable that is stored sparse .* but \['X_pca'\] have none",
    ),
    "budget text": (cells, {"memory_budget": "abc"}, "memory_budget='abc' is no size; give bytes"),
    "budget none": (cells, {"memory_budget": None}, "memory_budget=None is no size; give bytes"),
    "batch size of text": (cells, {"batch_size": "4"}, "batch_size='4' is no whole number"),
    "seed of no number": (cells, {"seed": 1.5}, "seed=1.5 is no whole number"),
    "prefetch": (cells, {"prefetch": -1}, "prefetch=-1 is impossible; choose 1"),
    "seed": (cells, {"seed": -1}, "seed=-1 is impossible; it must be at least 0"),
    "rank alone": (
        cells,
        {"rank": 1},
        "rank=1 and world_size=None belong together; give both or neither",
    ),
    "rank beyond the world": (
        cells,
        {"rank": 2, "world_size": 2},
        "rank 2 of world_size 2 is impossible; ranks count from 0",
    ),
    "other bins on the second axis": (
        lambda: contacts().isel(bin2=slice(3, None)),
        {"windows": DIAGONAL},
        (
            "diagonal windows need the same bins on both axes, but 'chr1' has 61 bins from 0 on 'bin1' "
            "and 58 from 3 on 'bin2'"
        ),
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_plan_error__says_what_is_possible(case):
    make, options, message = PLANS[case]
    source = make()
    with pytest.raises(PlanError, match=message):
        xl.Loader(source, **{"batch_size": 4, **options})


SCHEMAS = {
    "unknown variable": (
        cells,
        {"variables": ["X", "Y"]},
        r"variables \['Y'\] cannot be delivered; the Dataset has \['X', 'X_pca', 'loadings'\]",
    ),
    "a coordinate is no variable": (
        cells,
        {"variables": ["cell_type"]},
        r"variables \['cell_type'\] cannot be delivered",
    ),
    "no variable": (cells, {"variables": []}, "variables none cannot be delivered"),
    "one name as variables": (
        cells,
        {"variables": "X"},
        r"variables='X' is one name; write variables=\['X'\]",
    ),
    "unknown label": (
        cells,
        {"labels": ["celltype"]},
        (
            r"label 'celltype' is no coordinate of single samples; there are "
            r"\['cell', 'cell_type', 'depth', 'row'\]"
        ),
    ),
    "label of genes": (cells, {"labels": ["length"]}, "label 'length' is no coordinate of single"),
    "label of windows": (
        contacts,
        {"labels": ["chrom1"], "windows": DIAGONAL},
        "label 'chrom1' is no coordinate of single samples",
    ),
    "one name as labels": (
        cells,
        {"labels": "depth"},
        r"labels='depth' is one name; write labels=\['depth'\]",
    ),
    "a path": (
        lambda: "cells.h5ad",
        {},
        "a Loader reads a Dataset, not str; open files with xl.open_contacts or xl.open_cells",
    ),
    "contact windows of cells": (
        cells,
        {"windows": DIAGONAL},
        r"contact windows needs \['chrom1', 'chrom2', 'bin1', 'bin2'\], which the Dataset lacks",
    ),
    "a name that batches need": (
        lambda: cells().assign_coords(valid=("cell", np.ones(61, bool))),
        {},
        r"batches name their samples with .* but the Dataset has \['valid'\]",
    ),
}


@pytest.mark.parametrize("case", SCHEMAS)
def test_schema_error__says_what_there_is(case):
    make, options, message = SCHEMAS[case]
    source = make()
    with pytest.raises(SchemaError, match=message):
        xl.Loader(source, **{"batch_size": 4, **options})


def test_refusal__reads_nothing():
    rows, tiles = Rows(counts(400, 50), 100), Tiles(contact_map())
    for source, options in (
        (cells(rows, 400, 50), {"memory_budget": "1kB"}),
        (cells(rows, 400, 50).chunk({"cell": 50}), {"labels": ["no"]}),
        (contacts(tiles), {"windows": xl.windows.diagonal(size=50)}),
    ):
        with pytest.raises((PlanError, SchemaError)):
            xl.Loader(source, batch_size=4, **options)
    assert rows.log == tiles.log == []


TRANSFORMS = {
    "fewer samples": (
        lambda b: b.isel(cell=slice(2, None)),
        "changed the batch dimension 'cell' from 4 to 2 samples; a transform keeps every sample",
    ),
    "no samples": (lambda b: b.isel(cell=0), "from 4 to None samples"),
    "another dimension": (lambda b: b.rename(cell="row_"), "from 4 to None samples"),
    "nothing": (lambda _: None, "returned NoneType; return the xarray.Dataset"),
    "one variable": (lambda b: b["X"], "returned DataArray; return the xarray.Dataset"),
    "another order": (lambda b: b.isel(cell=[1, 0, 2, 3]), "dropped or reordered `sample_id`"),
    "no identity": (lambda b: b.drop_vars("sample_id"), "dropped or reordered `sample_id`"),
}


@pytest.mark.parametrize("case", TRANSFORMS)
def test_transform_error__names_the_samples(case):
    transform, message = TRANSFORMS[case]
    loader = xl.Loader(cells(), batch_size=4, transform=transform)
    with pytest.raises(TransformError, match=message) as caught:
        loader[1]
    (told,) = caught.value.__notes__
    assert told == (
        "while transforming samples [4, 5, 6, 7] (cell 'c4'; cell 'c5'; cell 'c6'; ...), which are "
        "batch 1 of epoch 0; loader.batch(0, 1) makes it again"
    )


def test_transform__an_error_of_its_own_stays_itself():
    loader = xl.Loader(cells(), batch_size=4, transform=xl.transforms.log1p("counts"))
    with pytest.raises(
        SchemaError, match=r"transform 'log1p' needs \['counts'\], which the Dataset"
    ):
        loader[0]
    loader = xl.Loader(
        contacts(), batch_size=4, windows=DIAGONAL, transform=xl.transforms.balance("VC")
    )
    with pytest.raises(
        SchemaError, match=r"no balancing vector 'VC' here; there are \['KR', 'weight'\]"
    ):
        loader[0]
    with pytest.raises(
        SchemaError, match=r"select\(gene=...\) names 1 of 2 labels .*'g99' \(like 'g9'\)"
    ):
        xl.Loader(cells(), batch_size=4, transform=xl.transforms.select(gene=["g1", "g99"]))


def test_index_error__says_how_many_there_are():
    loader = xl.Loader(cells(), batch_size=4)
    for step in (16, -17):
        with pytest.raises(IndexError, match="an epoch has batches 0 to 15"):
            loader[step]
    for ids in ([61], [-62], [3, 99]):
        with pytest.raises(IndexError, match="samples count from 0 to 60"):
            loader.samples(ids)
    with pytest.raises(IndexError, match=r"samples \[\] of 61"):
        loader.samples([])
    with pytest.raises(
        PlanError, match="epoch -1 is impossible; epochs are whole numbers and count from 0"
    ):
        loader.set_epoch(-1)


def test_sparse_layout__is_refused_where_windows_are_not_rows():
    ds = cells(Rows(counts()))[["X"]]
    with pytest.raises(PlanError, match="layout='csr' needs a variable that is stored sparse"):
        xl.Loader(ds, batch_size=4, input_dims={"cell": 5}, layout="csr")


def test_reading__an_error_names_the_pool():
    class Broken(Rows):
        @override
        def read_rows(self, start, stop):
            if start <= 40 < stop:
                msg = f"chunk {start} is damaged"
                raise xl.errors.ReadError(msg)
            return super().read_rows(start, stop)

    loader = xl.Loader(cells(Broken(counts()))[["X"]], batch_size=8, memory_budget=2100)
    assert loader.plan.n_pools(0) > 2
    with pytest.raises(xl.errors.ReadError, match="is damaged") as caught:
        list(loader)
    assert "while reading pool" in caught.value.__notes__[0]
    assert "of epoch 0" in caught.value.__notes__[0]


def test_source__a_data_array_is_read_like_its_dataset():
    # the other side of "a Loader reads a Dataset": what can be understood is not refused
    for array in (grid().v, grid().v.rename(None)):
        loader = xl.Loader(array, batch_size=2, input_dims={"lat": 5})
        assert isinstance(loader[0], xr.Dataset)
        assert loader.variables == (array.name or "data",)
