"""What is at a path is found out; views keep whole bins; what is wrong is told with what is there."""

import anndata
import cooler
import h5py
import numpy as np
import pandas as pd
import pytest

import xloader as xl
from xloader.errors import ReadError, SchemaError
from xloader.open import identify

LENGTHS = {"chr2": 95_000, "chr10": 42_000, "chr2:1-9": 30_000}


def write_map(uri, size):
    """Write a map of three chromosomes, one with the name of a region, and return it."""
    bins = cooler.util.binnify(pd.Series(LENGTHS), size)
    bins["weight"] = np.linspace(0.5, 1, len(bins))
    n = len(bins)
    matrix = np.triu(np.random.default_rng(size).poisson(1, (n, n))).astype(np.int32)
    i, j = np.nonzero(matrix)
    pixels = pd.DataFrame({"bin1_id": i, "bin2_id": j, "count": matrix[i, j]})
    cooler.create_cooler(str(uri), bins, pixels, mode="a")
    return matrix + np.triu(matrix, 1).T


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One of every kind, good and bad; written once, and only read."""
    folder = tmp_path_factory.mktemp("files")
    write_map(folder / "a.cool", 10_000)
    for size in (5_000, 10_000, 2_000):
        write_map(f"{folder / 'a.mcool'}::/resolutions/{size}", size)
        write_map(f"{folder / 'old.mcool'}::/{size // 2_000}", size)
    i = pd.DataFrame({"bin1_id": [0], "bin2_id": [1], "count": [1]})
    cooler.create_scool(
        str(folder / "a.scool"), cooler.util.binnify(pd.Series(LENGTHS), 5_000), {"x.1": i, "y": i}
    )
    cells = anndata.AnnData(np.eye(7, 4, dtype=np.float32))
    cells.write_h5ad(folder / "a.h5ad")
    xl.convert(folder / "a.mcool", folder / "map", progress=False)
    xl.convert(folder / "a.h5ad", folder / "cells", progress=False)
    (folder / "folder").mkdir()
    (folder / "folder" / "one").write_text("")
    (folder / "half.partial").mkdir()
    (folder / "text").write_text("hello")
    (folder / "cut").write_bytes((folder / "a.mcool").read_bytes()[:9_000])
    with h5py.File(folder / "other.h5", "w") as f:
        f["thing"] = 1
    h5py.File(folder / "empty.h5", "w").close()
    return folder


@pytest.fixture(autouse=True)
def inside(files, monkeypatch):
    monkeypatch.chdir(files)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.cool", ("cooler", "contacts")),
        ("a.mcool", ("cooler", "contacts")),
        ("a.mcool::/resolutions/5000", ("cooler", "contacts")),
        ("old.mcool", ("cooler", "contacts")),
        ("a.scool", ("cooler", "contacts")),
        ("a.scool::/cells/y", ("cooler", "contacts")),
        ("a.scool::/cells", ("cooler", "contacts")),
        ("a.h5ad", ("anndata", "cells")),
        ("map", ("xloader", "contacts")),
        ("cells", ("xloader", "cells")),
    ],
)
def test_identify__goes_by_structure(path, found, files):
    assert identify(path) == identify(files / path) == found
    name = files / "no_ending"
    if (files / path).is_file():
        name.unlink(missing_ok=True)
        name.hardlink_to(path)
        assert identify(name) == found


@pytest.mark.parametrize(
    ("path", "sizes"),
    [
        ("a.cool", [10_000]),
        ("a.mcool", [2_000, 5_000, 10_000]),
        ("a.mcool::/resolutions/5000", [5_000]),
        ("a.mcool::resolutions/5000", [5_000]),
        ("old.mcool", [2_000, 5_000, 10_000]),
        ("a.scool", [5_000]),
        ("a.scool::/cells/x.1", [5_000]),
        ("map", [2_000, 5_000, 10_000]),
    ],
)
def test_resolutions__are_those_that_open(path, sizes):
    assert xl.resolutions(path) == sizes
    for size in sizes:
        ds = xl.open_contacts(path, resolution=size)
        assert ds.attrs["resolution"] == size
        assert np.diff(ds.start1.values)[0] == size


def test_resolutions__none_where_bins_vary(tmp_path):
    bins = pd.DataFrame({"chrom": "c", "start": [0, 7, 9], "end": [7, 9, 30]})
    pixels = pd.DataFrame({"bin1_id": [0], "bin2_id": [1], "count": [1]})
    cooler.create_cooler(str(tmp_path / "v.cool"), bins, pixels)
    assert xl.resolutions(tmp_path / "v.cool") == []
    assert xl.open_contacts(tmp_path / "v.cool").sizes == {"bin1": 3, "bin2": 3}


def test_file_and_store__open_alike(files):
    for path, opener in ((files / "a.cool", xl.open_contacts), ("a.h5ad", xl.open_cells)):
        assert opener(path).chunks
        assert not opener(path, chunks=None).chunks
    for size in (2_000, 10_000):
        pair = [xl.open_contacts(p, resolution=size, view="chr10") for p in ("a.mcool", "map")]
        assert pair[0].compute().identical(pair[1].compute())
    assert xl.open_cells("a.h5ad").compute().identical(xl.open_cells("cells").compute())


def bins_within(ds, chrom, low, high):
    """Name the bins that touch ``[low, high)``, one at a time."""
    rows = zip(ds.chrom1.values, ds.start1.values, ds.end1.values, strict=True)
    return [k for k, (c, a, b) in enumerate(rows) if c == chrom and a < high and low < b]


@pytest.mark.parametrize("path", ["a.cool", "map"])
@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize(
    ("view", "regions"),
    [
        ("chr2", [("chr2", 0, 95_000)]),
        (["chr10", "chr2"], [("chr10", 0, 42_000), ("chr2", 0, 95_000)]),
        ("chr2:1-9", [("chr2:1-9", 0, 30_000)]),  # a name first, then a region
        ("chr2:1-10", [("chr2", 1, 10)]),
        ("chr2:20,000-40,000", [("chr2", 20_000, 40_000)]),
        ("chr2:20000-40001", [("chr2", 20_000, 40_001)]),
        ("chr2:19,999-40,000", [("chr2", 19_999, 40_000)]),
        ("chr2:94,999-95,000", [("chr2", 94_999, 95_000)]),
        (("chr10:0-10,000", "chr2:1-9:0-9"), [("chr10", 0, 10_000), ("chr2:1-9", 0, 9)]),
        (["chr2:50,000-90,000", "chr2:0-50,000"], [("chr2", 50_000, 90_000), ("chr2", 0, 50_000)]),
    ],
    ids=str,
)
def test_view__keeps_the_bins_that_regions_touch(path, chunks, view, regions):
    whole = xl.open_contacts(path, resolution=10_000).load()
    kept = [k for region in regions for k in bins_within(whole, *region)]
    assert kept
    ds = xl.open_contacts(path, resolution=10_000, view=view, chunks=chunks)
    assert ds.compute().identical(whole.isel(bin1=kept, bin2=kept))
    assert ds.bin1.values.tolist() == kept
    assert bool(ds.chunks) == (chunks is not None)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (
            "chr3",
            r"no chromosome 'chr3' \(region 'chr3'\), and no such file; there are \['chr2', 'chr10', 'chr2:1-9'\]",
        ),
        (
            "2:0-9",
            r"no chromosome '2' .*, and no such file; there are \['chr2', .*; 'chr2' may be meant",
        ),
        ("chr2:,-,", r"no chromosome 'chr2:,-,'"),
        ("chr2:5-", "no chromosome 'chr2:5-'"),
        ("", "no chromosome ''"),
        ("chr10:0-42,001", "'chr10:0-42,001' is not within 'chr10', which has 0-42,000 bp"),
        ("chr10:42,000-43,000", "is not within 'chr10'"),
        ("chr10:7-7", "is not within 'chr10'"),
        ("chr10:9-7", "is not within 'chr10'"),
        (["chr2", "chr10", "chr2:0-9"], r"regions of view=\['chr2', .* overlap; .* at most once"),
        # apart in bp, but in one bin
        (["chr2:0-9", "chr2:9-20"], "overlap; a view holds each bin at most once"),
        ([], r"view=\[\] keeps nothing; name chromosomes or regions, or leave it out"),
    ],
    ids=str,
)
def test_view__impossible_is_refused(view, message):
    with pytest.raises(SchemaError, match=message):
        xl.open_contacts("a.cool", view=view)


@pytest.mark.parametrize(
    ("opener", "path", "error", "message"),
    [
        (
            xl.open_contacts,
            "a.h5ad",
            SchemaError,
            "'a.h5ad' holds cells, .*; open it with xl.open_cells",
        ),
        (
            xl.open_contacts,
            "cells",
            SchemaError,
            "holds cells, not contacts; open it with xl.open_c",
        ),
        (
            xl.resolutions,
            "a.h5ad",
            SchemaError,
            "holds cells, not contacts; open it with xl.open_c",
        ),
        (xl.open_cells, "a.cool", SchemaError, "holds contacts, .*; open it with xl.open_contacts"),
        (xl.open_cells, "a.mcool::/resolutions/5000", SchemaError, "open it with xl.open_contacts"),
        (
            xl.open_cells,
            "map",
            SchemaError,
            "'map' holds contacts, .*; open it with xl.open_contacts",
        ),
        (
            xl.open_contacts,
            "a.mcool",
            SchemaError,
            r"3 resolutions \(2000, 5000, 10000 bp\) and none",
        ),
        (xl.open_contacts, "map", SchemaError, "none was asked for; .* has are 2000, 5000, 10000"),
        (xl.resolutions, "a.mcool::/5000", SchemaError, r"no group '/5000'; .*\['resolutions'\]"),
    ],
)
def test_wrong_kind__says_what_opens_it(opener, path, error, message):
    with pytest.raises(error, match=message):
        opener(path)


@pytest.mark.parametrize("opener", [identify, xl.open_contacts, xl.open_cells, xl.resolutions])
@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("none", ReadError, "nothing is at 'none'; check the path"),
        ("none.mcool::/resolutions/5", ReadError, "nothing is at 'none.mcool'; check the path"),
        (
            "folder",
            SchemaError,
            "'folder' is no xloader store: it is a directory of 1 .*xl.convert",
        ),
        ("text", ReadError, r"cannot read 'text' \(5 bytes\) as HDF5: .* of another format"),
        ("cut", ReadError, r"cannot read 'cut' \(9000 bytes\) as HDF5: it is truncated"),
        ("other.h5", SchemaError, r"neither a cooler .* nor AnnData .*: it has \['thing'\]"),
        ("empty.h5", SchemaError, r"neither a cooler .* nor AnnData .*: it has \[\]"),
    ],
)
def test_bad_path__is_refused_by_each(opener, path, error, message):
    with pytest.raises(error, match=message):
        opener(path)


def test_damaged_groups__are_a_read_error(files, tmp_path):
    """Every way to look into the file tells of damage in its groups, whatever h5py raises."""
    raw = (files / "a.mcool").read_bytes()
    for signature in (b"HEAP", b"TREE", b"SNOD"):
        bad = tmp_path / f"{signature.decode()}.mcool"
        bad.write_bytes(raw.replace(signature, b"\0\0\0\0"))
        for opener in (identify, xl.resolutions, xl.open_contacts):
            with pytest.raises(ReadError, match="cannot read .*mcool'.* damaged"):
                opener(bad)


def test_damage_below_the_root__is_a_read_error(files, tmp_path):
    """The root says what the file is; what lies in it cannot be listed."""
    head, *rest = (files / "a.mcool").read_bytes().split(b"HEAP")
    (tmp_path / "bad.mcool").write_bytes(head + b"HEAP" + b"\0\0\0\0".join(rest))
    assert identify(tmp_path / "bad.mcool") == ("cooler", "contacts")
    for opener in (xl.resolutions, xl.open_contacts):
        with pytest.raises(ReadError, match="cannot read .*bad.mcool': .* damaged"):
            opener(tmp_path / "bad.mcool")
