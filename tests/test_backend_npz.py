"""Collections of numpy arrays have named dimensions, are mapped, and never unpickled."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import scipy.sparse
import xarray as xr
from typing_extensions import override

import xloader as xl
from tests.tenx_files import counts
from xloader import trace
from xloader.backends import npy, sizes
from xloader.backends.npy import members_of
from xloader.backends.npz import SparseNpz
from xloader.errors import ReadError, SchemaError
from xloader.open import identify

CELLS = np.array([f"c{k}" for k in range(53)])
GENES = np.array([f"g{k}" for k in range(31)], "S")
KINDS = np.array(["B", "T", "é"])[np.arange(53) % 3]
DIMS = {"X": ["cell", "gene"], "kind": ["cell"], "pca": ["cell", "pc"], "depth": ["cell"]}


def arrays(dtype="float32"):
    rng = np.random.default_rng(0)
    return {
        "X": counts(dtype=dtype).toarray(),
        "pca": np.asfortranarray(rng.normal(size=(53, 2))),
        "depth": np.arange(53, dtype=">i4"),
        "kind": KINDS,
        "cell": CELLS,
        "gene": GENES,
    }


def opened(path, **kwargs):
    return xr.open_dataset(path, engine="npz", **kwargs)


def save(path, packed, **values):
    (np.savez_compressed if packed else np.savez)(path, **values)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("told", ["inside", "given"])
def test_npz__is_labelled(tmp_path, packed, told):
    values = arrays()
    extra = {"dims": np.array(json.dumps(DIMS))} if told == "inside" else {}
    path = save(tmp_path / "a.npz", packed, **values, **extra)
    ds = opened(path) if told == "inside" else opened(path, dims=DIMS)
    if told == "inside":
        assert identify(path) == ("npz", "cells")
        assert xl.open_cells(path).compute().identical(ds.compute())
    assert {k: v.dims for k, v in ds.data_vars.items()} == {
        "X": ("cell", "gene"),
        "pca": ("cell", "pc"),
    }
    assert set(ds.coords) == {"cell", "gene", "kind", "depth", "row", "column"}
    assert ds.cell.values.tolist() == CELLS.tolist()
    assert ds.gene.values.tolist() == [g.decode() for g in GENES]
    assert ds.kind.values.tolist() == KINDS.tolist()
    assert ds.kind.attrs["categories"] == ["B", "T", "é"]
    assert ds.depth.values.tolist() == list(range(53))
    assert ds.depth.dtype == np.int32
    for name in ("X", "pca"):
        np.testing.assert_array_equal(ds[name].values, values[name])
    again = opened(path, dims=DIMS, drop_variables="pca")
    assert "pca" not in again
    np.testing.assert_array_equal(again.X[5:40:7, 3].values, values["X"][5:40:7, 3])
    np.testing.assert_array_equal(again.X[[9, 2]].values, values["X"][[9, 2]])


@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize("packed", [False, True])
def test_npz__sparse_equals_scipy(tmp_path, layout, packed):
    m = counts(dtype="float64")
    path = tmp_path / "a.npz"
    scipy.sparse.save_npz(path, m.asformat(layout), compressed=packed)
    assert identify(path) == ("npz", "cells")
    ds = xl.open_cells(path)
    assert ds.X.dims == ("cell", "gene")
    np.testing.assert_array_equal(ds.X.values, scipy.sparse.load_npz(path).toarray())
    assert isinstance(trace.view(ds.X.variable).array, SparseNpz)
    seen = []
    for batch in xl.Loader(ds, batch_size=8, order="shuffled"):
        np.testing.assert_array_equal(batch.X.data.todense(), m.toarray()[batch.row.values])
        seen += batch.row.values.tolist()
    assert sorted(seen) == list(range(53))
    stored = xl.convert(path, tmp_path / "s", progress=False)
    assert stored.compute().identical(ds.compute())
    ds = opened(path, dims={"X": ("spot", "peak")})
    assert ds.X.dims == ("spot", "peak")


def test_npz__sparse_with_labels(tmp_path):
    m = counts()
    parts = {"data": m.data, "indices": m.indices, "indptr": m.indptr, "shape": m.shape}
    path = save(tmp_path / "a.npz", False, format=b"csr", cell=CELLS, gene=GENES, **parts)
    ds = xl.open_cells(path)
    assert ds.sel(cell="c7", gene="g3").X.values == m[7, 3]


def test_npz__sparse_array_of_scipy(tmp_path):
    m = scipy.sparse.csr_array(counts())
    scipy.sparse.save_npz(tmp_path / "a.npz", m)
    np.testing.assert_array_equal(xl.open_cells(tmp_path / "a.npz").X.values, m.toarray())


@pytest.mark.parametrize("told", ["file", "given"])
def test_folder__of_npy_and_sparse_npz(tmp_path, told):
    values, m = arrays(), counts(seed=4)
    folder = tmp_path / "f"
    folder.mkdir()
    for name, array in values.items():
        np.save(folder / f"{name}.npy", array)
    scipy.sparse.save_npz(folder / "counts.npz", m, compressed=False)
    dims = {**DIMS, "counts": ["cell", "gene"]}
    if told == "file":
        (folder / "dims.json").write_text(json.dumps(dims))
        ds = xl.open_cells(folder)
    else:
        ds = opened(folder, dims=dims, chunks={})
    for name in ("X", "pca"):
        np.testing.assert_array_equal(ds[name].values, values[name])
    np.testing.assert_array_equal(ds.counts.values, m.toarray())
    for batch in xl.Loader(ds, batch_size=8, order="shuffled"):
        rows = batch.row.values
        np.testing.assert_array_equal(batch.X.values, values["X"][rows])
        np.testing.assert_array_equal(batch.pca.values, values["pca"][rows])
        np.testing.assert_array_equal(batch.counts.data.todense(), m.toarray()[rows])
        assert batch.kind.values.tolist() == KINDS[rows].tolist()


def test_npy__any_array_is_cut_into_windows(tmp_path):
    signal = np.arange(1000.0)
    np.save(tmp_path / "signal.npy", signal)
    path = tmp_path / "signal.npy"
    ds = opened(path, dims={"signal": ("position",)})
    assert list(ds.data_vars) == ["signal"]
    loader = xl.Loader(ds, input_dims={"position": 100}, batch_size=3)
    np.testing.assert_array_equal(loader[1].signal.values, signal.reshape(10, 100)[3:6])
    with pytest.raises(
        SchemaError, match=r"of \['signal'\] in .* have no names .*dims=\{'signal': \['dim0'\]\}"
    ):
        xl.open_cells(path)
    np.savez(tmp_path / "a.npz", x=signal, dims=json.dumps({"x": ["position"]}))
    with pytest.raises(SchemaError, match="holds arrays, not cells; open it with xr.open_dataset"):
        xl.open_cells(tmp_path / "a.npz")


def test_npy__is_mapped_and_travels_small(tmp_path):
    values = np.arange(2_000_000, dtype=np.int32).reshape(-1, 10)
    np.save(tmp_path / "x.npy", values)
    np.savez(tmp_path / "x.npz", x=values)
    for name in ("x.npy", "x.npz"):
        ds = opened(tmp_path / name, dims={"x": ("a", "b")})
        array = trace.view(ds.x.variable).array
        np.testing.assert_array_equal(ds.x[777_77:777_80].values, values[777_77:777_80])
        assert isinstance(array._values, np.memmap)
        assert len(pickle.dumps(array)) < 2_000
        assert pickle.loads(pickle.dumps(ds)).x[5, 3].item() == values[5, 3]


def test_npz__compressed_memory_is_asked_for_first(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((300, 1000)))
    ds = opened(tmp_path / "a.npz", dims={"x": ("a", "b")})
    monkeypatch.setattr(npy, "require_memory", sizes.require_memory)
    monkeypatch.setattr(sizes, "available_memory", lambda: 100_000)
    with pytest.raises(ReadError, match="array 'x' of .*a.npz' takes 2.29 MiB .* uncompressed"):
        ds.x.load()


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (
            {"X": ["cell", "gene"], "x": ["a"]},
            r"`dims` names \['x'\], which .* it has \['X', 'cell'",
        ),
        ({}, r"dimensions of \['X', 'pca', 'depth', .*\] .* have no names .*JSON"),
        (
            {**DIMS, "X": ["gene", "cell"]},
            r"array 'pca' .*\(53, 2\), .*\('cell', 'pc'\) .*31 in 'X'",
        ),
        (
            {**DIMS, "X": ["cell"], "gene": ["g"]},
            r"array 'X' .* has shape \(53, 31\), .* dimensions \('cell',\)",
        ),
        (
            {**DIMS, "X": ["cell", "cell"], "gene": ["g"]},
            r"array 'X' .* does not fit the dimensions \('cell', 'c",
        ),
    ],
)
def test_bad_input__dims_that_do_not_fit(tmp_path, dims, message):
    path = save(tmp_path / "a.npz", False, **arrays())
    with pytest.raises(SchemaError, match=message):
        opened(path, dims=dims)


@pytest.mark.parametrize("text", ["X: cell, gene", "[]", '{"X": "cell"}'])
def test_bad_input__dims_that_are_no_json(tmp_path, text):
    path = save(tmp_path / "a.npz", False, dims=text, **arrays())
    with pytest.raises(SchemaError, match=r"names of dimensions in .*, are no JSON such as \{"):
        opened(path)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_untrusted__pickles_are_not_read(tmp_path, name):
    class Bomb:
        @override
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / name
    values = np.array([Bomb()], object)
    if name == "a.npz":
        np.savez(path, x=values)
    else:
        np.save(path, values)
    with pytest.raises(
        SchemaError, match=r"holds pickled Python objects, which can run any program"
    ):
        opened(path, dims={"x": ("n",)})
    assert not (tmp_path / "exploded").exists()
    np.load(path, allow_pickle=True)["x" if name == "a.npz" else 0]
    assert (tmp_path / "exploded").exists()  # they would have


def packed(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../../x.npy", "a\\x.npy", "c:x.npy"])
def test_untrusted__names_that_leave_the_archive(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as f:
        f.writestr(name, packed(np.arange(3)))
    with pytest.raises(SchemaError, match="a name that leads out of its folder"):
        opened(tmp_path / "a.npz", dims={"x": ("n",)})


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [["x.npy", "x.npy"], ["readme.txt"]])
def test_untrusted__archives_of_something_else(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as f:
        for name in names:
            f.writestr(name, packed(np.arange(3)))
    with pytest.raises(SchemaError, match="there twice, is encrypted, .* or no .npy array"):
        opened(tmp_path / "a.npz", dims={"x": ("n",)})


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_untrusted__heads_that_lie_take_no_memory(tmp_path, compression):
    lie = packed(np.arange(30)).replace(b"(30,), }", b"(10000000000000,), }")
    lie = lie.replace(b" " * 12 + b"\n", b"\n")
    assert np.lib.format.read_magic(io.BytesIO(lie)) == (1, 0)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as f:
        f.writestr("x.npy", lie)
    (tmp_path / "x.npy").write_bytes(lie)
    for name in ("a.npz", "x.npy"):
        with pytest.raises(ReadError, match=r"should have 80000000000000 bytes .*, and has 240"):
            opened(tmp_path / name, dims={"x": ("n",)})


def test_untrusted__archives_that_say_they_are_larger_than_they_can_be(tmp_path):
    path = save(tmp_path / "a.npz", True, x=np.zeros((10, 10)))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02") + 24  # decompressed size in the directory
    raw[at : at + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(ReadError, match=r"says it has 2147483648 bytes, which \d+ compressed ones"):
        opened(path, dims={"x": ("a", "b")})


@pytest.mark.parametrize("share", [0.2, 0.9])
@pytest.mark.parametrize("name", ["a.npz", "x.npy"])
def test_bad_input__truncated(tmp_path, name, share):
    path = tmp_path / name
    values = np.arange(3000.0)
    np.savez(path, x=values) if name == "a.npz" else np.save(path, values)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ReadError, match="truncated or damaged|was not written to its end"):
        opened(path, dims={"x": ("n",)})


def test_bad_input__a_changed_byte_is_told_where_there_is_a_checksum(tmp_path):
    path = save(tmp_path / "a.npz", True, x=np.random.default_rng(0).normal(size=(50, 50)))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)
    with pytest.raises(ReadError, match="cannot read array 'x' of .*truncated or damaged"):
        opened(path, dims={"x": ("a", "b")}).x.load()


def test_bad_input__a_file_cut_after_it_was_opened(tmp_path):
    """Touching what a mapping has lost would end the process."""
    np.save(tmp_path / "x.npy", np.arange(100_000.0).reshape(-1, 10))
    ds = opened(tmp_path / "x.npy", dims={"x": ("a", "b")})
    assert ds.x[5, 5].item() == 55
    os.truncate(tmp_path / "x.npy", 4_000)
    with pytest.raises(ReadError, match="was replaced or changed after it was opened"):
        ds.x[9_000:].load()


def broken(name, at, value):
    def change(parts):
        parts[name] = parts[name].copy()
        parts[name][at] = value

    return change


def shorter(name):
    def change(parts):
        parts[name] = parts[name][:-1]

    return change


@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken("indptr", 4, 0), "`indptr` of the matrix of .* does not fit"),
        (broken("indptr", -1, 10**6), r"`indptr` of .* and \d+ values: it must rise"),
        (broken("indices", 3, 99), r"outside \[0, "),
        (broken("indices", 3, -1), r"outside \[0, \d"),
        (shorter("indptr"), r"`indptr` of .* numbers, its shape .* asks for"),
        (shorter("indices"), "no sparse matrix that can be: arrays of shapes"),
        (lambda parts: parts.update(format=b"bsr"), r"format 'bsr'; .*tocsr\(\)"),
        (lambda parts: parts.update(shape=np.array([1.0])), "no sparse matrix that can be"),
    ],
)
def test_bad_input__sparse_that_disagrees(tmp_path, layout, change, message):
    m = counts().asformat(layout)
    parts = {"data": m.data, "indices": m.indices, "indptr": m.indptr}
    parts |= {"shape": np.array(m.shape), "format": layout.encode()}
    change(parts)
    path = save(tmp_path / "a.npz", True, **parts)
    with pytest.raises((ReadError, SchemaError), match=message):
        opened(path).X.load()


def test_bad_input__sparse_element_twice(tmp_path):
    m = counts()
    m.indices[1] = m.indices[0]
    scipy.sparse.save_npz(tmp_path / "a.npz", m)
    with pytest.raises(ReadError, match="row 0 of the matrix of .* stores an element twice"):
        opened(tmp_path / "a.npz").X.load()


def test_bad_input__folders(tmp_path):
    (tmp_path / "f").mkdir()
    save(tmp_path / "f/x.npz", False, x=np.eye(3))
    with pytest.raises(SchemaError, match="x.npz' is no sparse matrix of scipy; in a folder"):
        opened(tmp_path / "f")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match=r"holds no .npy or .npz files"):
        opened(tmp_path / "empty")
    with pytest.raises(ReadError, match="cannot open a BytesIO as numpy's file"):
        opened(io.BytesIO())
    np.savez(tmp_path / "s.npz", x=np.zeros(3, [("a", "i4"), ("b", "f4")]))
    with pytest.raises(SchemaError, match=r"plain numbers, truth values and text"):
        members_of(tmp_path / "s.npz")
