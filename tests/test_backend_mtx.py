"""MTX folders equal scipy's reading of them; names that do not fit and lines that lie are refused."""

import gzip
import pickle
import shutil

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import xarray as xr

import xloader as xl
from tests.tenx_files import barcodes, counts, features, write_mtx, write_text, write_v3
from xloader.backends import mtx, sizes
from xloader.errors import ReadError, SchemaError
from xloader.open import identify


def opened(path, **kwargs):
    return xr.open_dataset(path, engine="tenx", **kwargs)


def rewrite(path, change):
    """Change the lines of a file, gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as f:
        lines = f.read().splitlines()
    write_text(path, change(lines) or lines)


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("prefix", ["", "GSM123_", "a.b-"])
@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_folder__equals_scipy(tmp_path, gz, old, prefix, dtype):
    m = counts(dtype=dtype)
    m.data = m.data / (8 if dtype == "float64" else 1)
    m = m.astype(dtype)
    path = write_mtx(tmp_path / "f", m, prefix=prefix, gz=gz, old=old)
    oracle = scipy.io.mmread(path).T.toarray()
    for place in (tmp_path / "f", path):
        assert identify(place) == ("tenx", "cells")
        ds = xl.open_cells(place)
        assert ds.X.dims == ("cell", "gene")
        assert ds.X.dtype == dtype
        np.testing.assert_array_equal(ds.X.values, oracle)
        assert ds.cell.values.tolist() == barcodes(53)
        assert ds.gene.values.tolist() == features(31)[0]
        assert ds.gene_name.values.tolist() == features(31)[1]
    assert xr.open_dataset(path, engine="tenx").identical(opened(tmp_path / "f"))


def test_folder__rows_in_any_order_are_put_in_order(tmp_path):
    m = counts()
    path = write_mtx(tmp_path / "f", m)

    def shuffled(lines):
        body = lines[3:]
        np.random.default_rng(0).shuffle(body)
        return [*lines[:3], *body]

    rewrite(path, shuffled)
    np.testing.assert_array_equal(opened(tmp_path / "f").X.values, m.toarray())
    batch = xl.Loader(opened(tmp_path / "f"), batch_size=53)[0]
    np.testing.assert_array_equal(batch.X.data.indices, m.sorted_indices().indices)


def test_folder__types_are_variables_and_travel(tmp_path, monkeypatch):
    monkeypatch.setattr(mtx, "_PART_LINES", 16)  # many parts
    m = counts(n_features=40)
    write_mtx(tmp_path / "f", m, types=("Gene Expression", "Antibody Capture"))
    ds = opened(tmp_path / "f", chunks={})
    np.testing.assert_array_equal(ds.rna.values, m.toarray()[:, :20])
    np.testing.assert_array_equal(ds.prot.values, m.toarray()[:, 20:])
    seen = []
    for batch in xl.Loader(ds, batch_size=8, order="shuffled"):
        expected = m.toarray()[batch.row.values]
        np.testing.assert_array_equal(batch.rna.data.todense(), expected[:, :20])
        np.testing.assert_array_equal(batch.prot.data.todense(), expected[:, 20:])
        seen += batch.row.values.tolist()
    assert sorted(seen) == list(range(53))
    array = mtx.MTXRows(tmp_path / "f/matrix.mtx.gz", mtx.read_header(tmp_path / "f/matrix.mtx.gz"))
    before = len(pickle.dumps(array))
    assert array.read_rows(3, 9).todense().tolist() == m.toarray()[3:9].tolist()
    assert len(pickle.dumps(array)) == before  # without what is in memory
    stored = xl.convert(tmp_path / "f", tmp_path / "s", progress=False)
    assert stored.compute().identical(ds.compute())


def test_folder__without_any_count(tmp_path):
    path = write_mtx(tmp_path / "f", scipy.sparse.csr_matrix((3, 4), dtype=np.int32))
    assert opened(tmp_path / "f").X.values.tolist() == [[0] * 4] * 3
    write_text(path, ["%%MatrixMarket  matrix COORDINATE integer general", "4\t3 0", ""])
    assert opened(tmp_path / "f").X.values.tolist() == [[0] * 4] * 3


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (200, 2), (2, 200), (70, 40)], ids=str)
@pytest.mark.parametrize("density", [0, 0.03, 1])
def test_formats__agree(tmp_path, shape, density):
    m = counts(*shape, density=density, seed=5)
    write_mtx(tmp_path / "f", m)
    write_v3(tmp_path / "a.h5", m)
    scipy.sparse.save_npz(tmp_path / "a.npz", m)
    for path in ("f", "a.h5", "a.npz"):
        ds = xl.open_cells(tmp_path / path)
        np.testing.assert_array_equal(ds.X.values, m.toarray())
        assert ds.X.dtype == np.int32 or not m.nnz  # scipy writes `real` where there is nothing
        if min(shape):
            (batch,) = xl.Loader(ds, batch_size=m.shape[0], order="shuffled", layout="dense")
            np.testing.assert_array_equal(batch.X.values, m.toarray()[batch.row.values])


def test_folder__several_matrices_are_chosen_by_path(tmp_path):
    m = {p: counts(seed=k) for k, p in enumerate(["GSM1_", "GSM2_"])}
    paths = [write_mtx(tmp_path, m[p], prefix=p) for p in m]
    with pytest.raises(
        SchemaError, match=r"2 matrices \(GSM1_matrix.*such as '.*GSM1_matrix.mtx.gz'"
    ):
        xl.open_cells(tmp_path)
    for path, each in zip(paths, m.values(), strict=True):
        np.testing.assert_array_equal(xl.open_cells(path).X.values, each.toarray())


def test_folder__that_changes_is_told(tmp_path):
    path = write_mtx(tmp_path / "f", counts())
    ds = opened(tmp_path / "f")
    write_mtx(tmp_path / "f", counts(seed=1))
    with pytest.raises(ReadError, match="was replaced or changed after it was opened"):
        ds.X.load()
    path.unlink()
    with pytest.raises(ReadError, match="nothing is at|cannot read"):
        xl.open_cells(path)


def drop_last(lines):
    return lines[:-1]


def repeat(lines):
    return [*lines[:7], lines[2], *lines[8:]]


def heading(lines):
    return ["barcode", *lines]


def ragged(lines):
    return [*lines[:4], lines[4] + "\tx", *lines[5:]]


def unnamed(lines):
    return [*lines[:4], "\tx\ty", *lines[5:]]


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        (
            "barcodes",
            drop_last,
            SchemaError,
            r"barcodes.tsv.gz' has 52 lines, .*mtx.gz' asks for 53",
        ),
        ("barcodes", heading, SchemaError, r"has more than 53 lines, .* no heading"),
        ("features", drop_last, SchemaError, r"features.tsv.gz' has 30 lines, .* asks for 31"),
        ("barcodes", repeat, SchemaError, r"of '.*barcodes.tsv.gz', numbers 3 and 8, .*'AAAC2-1'"),
        ("features", repeat, SchemaError, r"of '.*features.tsv.gz', numbers 3 and 8, .*'ENSG2'"),
        ("features", unnamed, ReadError, r"line 5 of '.*features.tsv.gz' is '\\tx\\ty'"),
        (
            "barcodes",
            ragged,
            ReadError,
            r"line 5 of '.*barcodes.tsv.gz' .* 2 columns where line 1 has 1",
        ),
        (
            "barcodes",
            lambda lines: ["x" * 70_000, *lines[1:]],
            ReadError,
            "barcodes.tsv.gz' has a line of more than 65536 bytes",
        ),
    ],
)
def test_bad_input__names_that_do_not_fit(tmp_path, name, change, error, message):
    write_mtx(tmp_path / "f", counts())
    rewrite(tmp_path / f"f/{name}.tsv.gz", change)
    with pytest.raises(error, match=message):
        xl.open_cells(tmp_path / "f")


def test_bad_input__names_that_are_missing_or_there_twice(tmp_path):
    write_mtx(tmp_path / "f", counts())
    folder = tmp_path / "f"
    shutil.copy(folder / "features.tsv.gz", folder / "genes.tsv.gz")
    with pytest.raises(
        ReadError, match=r"there is \['features.tsv.gz', 'genes.tsv.gz'\]; put exactly"
    ):
        xl.open_cells(folder)
    for name in ("features", "genes"):
        (folder / f"{name}.tsv.gz").unlink()
    with pytest.raises(ReadError, match=r"the features of .*matrix.mtx.gz' lie .* none of them"):
        xl.open_cells(folder)


def header(**kwargs):
    def change(lines):
        for key, text in kwargs.items():
            lines[int(key[1:])] = text
        return lines

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            header(_2="31 53 999999999999"),
            ReadError,
            r"line 3 of .* 999999999999 entries, more than",
        ),
        (header(_2="31 53 1644"), ReadError, "1644 entries, more than the matrix"),
        (
            header(_2="99999999999999 53 9"),
            ReadError,
            "99999999999999 names .* PiB of memory, and th",
        ),
        (header(_2="31 53"), ReadError, "line 3 of .* is '31 53', not three sizes"),
        (header(_2="31 -53 4"), ReadError, "not three sizes"),
        (
            header(_0="%%MatrixMarket matrix coordinate pattern general"),
            SchemaError,
            "line 1 of .*'integer' or 'real'",
        ),
        (header(_0="%%MatrixMarket matrix array integer general"), SchemaError, "are 'coordinate'"),
        (
            header(_0="%%MatrixMarket matrix coordinate integer symmetric"),
            SchemaError,
            "and 'general'",
        ),
    ],
)
def test_bad_input__heads_that_lie(tmp_path, change, error, message):
    path = write_mtx(tmp_path / "f", counts())
    rewrite(path, change)
    with pytest.raises(error, match=message):
        xl.open_cells(tmp_path / "f")


@pytest.mark.parametrize(
    ("dtype", "line", "reason"),
    [
        ("int32", "32 1 1", "features are 1 to 31 and cells 1 to 53"),
        ("int32", "0 1 1", "features are 1 to 31"),
        ("int32", "1 54 1", "cells 1 to 53"),
        ("int32", "1 1 -4", "a count is a whole number, not negative"),
        ("int32", "1 1 2147483648", "below 2.15e.09"),
        ("int32", "1 1 1.5", "a whole number"),
        ("int32", "1 1 99999999999999999999999", "a whole number"),
        ("int32", "1 1", "an entry has a feature, a cell and a count"),
        ("int32", "1 1 1 1", "an entry has a feature, a cell and a count"),
        ("int32", "x 1 1", "an entry has"),
        ("float64", "1 1 nan", "a count is a number, not negative or missing"),
        ("float64", "1 1 -0.5", "not negative"),
        ("float64", "1 1 1e999", "below inf"),
    ],
)
def test_bad_input__lines_that_lie(tmp_path, dtype, line, reason):
    path = write_mtx(tmp_path / "f", counts(dtype=dtype))
    rewrite(path, lambda lines: [*lines[:20], line, *lines[21:]])
    ds = xl.open_cells(tmp_path / "f")
    with pytest.raises(ReadError, match=f"line 21 of '.*matrix.mtx.gz' is '{line}': .*{reason}"):
        ds.X.load()


@pytest.mark.parametrize("n", [-1, 1])
def test_bad_input__more_or_fewer_lines_than_said(tmp_path, n):
    path = write_mtx(tmp_path / "f", counts())
    rewrite(path, lambda lines: lines[:-1] if n < 0 else [*lines, lines[-1]])
    said = counts().nnz
    with pytest.raises(ReadError, match=rf"has {said + n} entries, but line 3 says {said}"):
        opened(tmp_path / "f").X.load()


def test_bad_input__an_entry_twice(tmp_path):
    path = write_mtx(tmp_path / "f", counts())
    rewrite(path, lambda lines: [*lines[:9], lines[8], *lines[10:]])
    with pytest.raises(ReadError, match="row 0 of the counts of .* stores an element twice"):
        opened(tmp_path / "f").X.load()


@pytest.mark.parametrize("name", ["matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_bad_input__damaged_gzip(tmp_path, name, damage):
    write_mtx(tmp_path / "f", counts())
    path = tmp_path / "f" / name
    whole = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(whole[:-20])
    else:
        whole[-6] ^= 1  # the checksum
        path.write_bytes(whole)
    with pytest.raises(ReadError, match=f"cannot read '.*{name}': .*truncated or damaged"):
        opened(tmp_path / "f").X.load()


def test_memory__is_asked_for_first(tmp_path, monkeypatch):
    write_mtx(tmp_path / "f", counts())
    ds = opened(tmp_path / "f")
    monkeypatch.setattr(sizes, "available_memory", lambda: 5_000)
    with pytest.raises(ReadError, match=r"53 x 31, \d+ entries\) takes .* of memory.*xl.convert"):
        ds.X.load()
