"""Appending cells to a store: what was there stays as it is, byte by byte, and all of it is read as one."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import xloader as xl
from tests.sources import Stopped, sparse, stop_at, write_h5ad
from tests.test_convert_parts import tree
from xloader import trace
from xloader.backends.appended import AppendedDense, AppendedRows
from xloader.buffers import Buffers
from xloader.errors import PlanError, ReadError, SchemaError
from xloader.store.building import locked
from xloader.store.journal import Journal
from xloader.store.rows_writer import RowsWriter

SIZES = (150, 1, 77)


def matrices():
    first, second, third = (sparse(n, 40, seed=n) for n in SIZES)
    second[0, 3] = 70_000  # wider than what the store was written in
    third[5, 5] = 0.5
    return [first, second, third]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("f")
    made = []
    for k, x in enumerate(matrices()):
        obs = pd.DataFrame(index=[f"{k}-{i}" for i in range(len(x))])
        obs["kind"] = pd.Categorical(
            [["B", "T"], ["NK", "T"], ["B"]][k][i % (1 + (k < 2))] for i in range(len(x))
        )
        obs["age"] = np.arange(len(x)) * 1.5
        made.append(
            write_h5ad(
                folder / f"{k}.h5ad",
                scipy.sparse.csr_matrix(x),
                obs=obs,
                obsm={"U": x[:, :3] * 0.25},
                layers={"d": x},
            )
        )
    return made


def append(source, store, **options):
    return xl.convert(source, store, append=True, progress=False, **options)


@pytest.fixture
def store(files, tmp_path):
    xl.convert(files[0], tmp_path / "s", progress=False)
    return tmp_path / "s"


def check(out, upto=3):
    x = np.concatenate(matrices()[:upto])
    np.testing.assert_array_equal(out.X.values, x)
    np.testing.assert_array_equal(out.d.values, x)
    np.testing.assert_array_equal(out.U.values, x[:, :3] * 0.25)
    names = [f"{k}-{i}" for k, n in enumerate(SIZES[:upto]) for i in range(n)]
    assert out.cell.values.tolist() == names
    np.testing.assert_array_equal(
        out.age.values, np.concatenate([np.arange(n) * 1.5 for n in SIZES[:upto]])
    )


def test_append__keeps_every_byte_that_was_there(files, store):
    for k in (1, 2):
        before = tree(store)
        out = append(files[k], store)
        after = tree(store)
        assert [p.name for p in before if after[p] != before[p]] == ["zarr.json"]
        assert (store / "zarr.json").read_bytes() == after[
            next(p for p in after if str(p) == "zarr.json")
        ]
        check(out, k + 1)
        check(xl.open_cells(store, chunks=None), k + 1)
        check(xr.open_dataset(store, engine="xloader").load(), k + 1)
        assert xl.verify(store, progress=False).is_whole
    types = [zarr.open_array(str(f), mode="r").dtype for f in sorted(store.glob("**/X/values"))]
    assert types == ["u1", "f4", "u4"] or sorted(map(str, types)) == ["float32", "uint32", "uint8"]
    assert out.kind.attrs["categories"] == ["B", "T", "NK"]
    assert out.kind.values.tolist()[-78:-76] == ["NK", "B"]
    assert sorted(p.name for p in store.parent.iterdir()) == ["s"]


def test_append__is_read_by_the_loader_like_one_store(files, store, tmp_path):
    for k in (1, 2):
        append(files[k], store)
    x = np.concatenate(matrices())
    whole = xl.open_cells(store)
    for options in ({}, {"shuffle": True}, {"layout": "dense"}):
        loader = xl.Loader(whole, batch_size=16, variables=["X"], **options)
        seen = []
        for batch in loader:
            ids = batch.sample_id.values
            data = batch.X.data
            found = data.todense() if hasattr(data, "todense") else data
            np.testing.assert_array_equal(found, x[ids])
            seen.append(ids)
        assert sorted(np.concatenate(seen).tolist()) == list(range(len(x)))
    some = whole.isel(cell=[227, 0, 150, 151, 149], gene=[7, 3])
    np.testing.assert_array_equal(some.X.values, x[[227, 0, 150, 151, 149]][:, [7, 3]])
    again = xl.convert(whole, tmp_path / "again", shuffle=True, progress=False)
    order = [whole.cell.values.tolist().index(name) for name in again.cell.values]
    np.testing.assert_array_equal(again.X.values, x[order])


def test_append__shuffles_the_new_cells_alone(files, store):
    out = append(files[2], store, shuffle=True, seed=3)
    np.testing.assert_array_equal(out.row.values[:150], np.arange(150))
    new = out.row.values[150:]
    assert sorted(new.tolist()) == list(range(77))
    assert (new != np.arange(77)).any()
    np.testing.assert_array_equal(out.X.values[150:], matrices()[2][new])


def test_append__in_the_type_of_the_store(files, tmp_path):
    ds = xl.open_cells(files[0])
    xl.convert(ds.astype("float64"), tmp_path / "wide", progress=False)
    out = append(files[1], tmp_path / "wide")
    assert out.X.dtype == np.float64
    np.testing.assert_array_equal(out.X.values, np.concatenate(matrices()[:2]))
    xl.convert(ds.astype("int32"), tmp_path / "narrow", progress=False)
    for dtype in ("float32", "int64", "uint32"):
        new = xl.open_cells(files[1]).astype({"X": dtype, "d": "int32", "U": "int32"})
        with pytest.raises(
            SchemaError,
            match=rf"`X` is of type {dtype}, which the int32 of the store may not hold exactly",
        ):
            append(new, tmp_path / "narrow")
    small = xl.open_cells(files[1]).astype({"X": "int16", "d": "int32", "U": "int32"})
    assert append(small, tmp_path / "narrow").X.dtype == np.int32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.isel(gene=slice(39)), r"`X` is \{'gene': 39\}, and \{'gene': 40\} there"),
        (
            lambda ds: ds.isel(gene=slice(None, None, -1)),
            "`gene` has other values.*0 of its 40 are missing",
        ),
        (
            lambda ds: ds.assign_coords(gene=[f"x{k}" for k in range(40)]),
            "`gene` has other values than the store: 40 of its 40 are missing, 40 are new, and number 0",
        ),
        (
            lambda ds: ds.assign_coords(column=ds.column + 1),
            "`column` has other values than the store: .* number 0 is 1 and not 0; if those",
        ),
        (
            lambda ds: ds.drop_vars("age"),
            r"coordinates are not those .*\['age'\] are missing and \[\]",
        ),
        (
            lambda ds: ds.assign(V=ds.U),
            r"variables are not those .*\[\] are missing and \['V'\] are new",
        ),
        (
            lambda ds: ds.assign_coords(age=("cell", ["x"] * 1)),
            "`age` is of type <U1, which the float64",
        ),
        (
            lambda ds: ds.assign_coords(cell=["0-7"]),
            r"1 of 1 cells are there already, such as '0-7'",
        ),
        (
            lambda ds: ds.transpose("gene", "cell", ...),
            "`X` has dimensions .*'gene', 'cell'.* transpose",
        ),
    ],
    ids=map(str, range(9)),
)
def test_append__refuses_what_does_not_fit(change, message, files, store):
    before = tree(store)
    with pytest.raises(SchemaError, match=f"cannot append to '.*s': {message}"):
        append(change(xl.open_cells(files[1])), store)
    assert tree(store) == before


def test_append__refuses_places_and_options(files, store, tmp_path):
    with pytest.raises(ReadError, match="nothing is at '.*none'"):
        append(files[1], tmp_path / "none")
    with pytest.raises(PlanError, match="leave out overwrite=True"):
        append(files[1], store, overwrite=True)
    path = xl.simulate.contacts(
        tmp_path / "a.cool", chromosomes={"a": 900_000}, resolutions=(10_000,)
    )
    with pytest.raises(PlanError, match="append=True adds cells"):
        append(path, store)
    with pytest.raises(SchemaError, match="is no xloader store"):
        append(files[1], files[0])
    with (
        locked(store, store),
        pytest.raises(ReadError, match="another process is appending to '.*s' at this moment"),
    ):
        append(files[1], store)
    append(files[1], store)
    with pytest.raises(SchemaError, match="1 of 1 cells are there already"):  # once is enough
        append(files[1], store)


def test_append__killed_at_any_point_leaves_the_store_as_it_was(files, store, monkeypatch):
    before = tree(store)
    with monkeypatch.context() as m:
        state = stop_at(m, ((Path, "replace"), (Path, "rename"), (Journal, "_add")))
        state["left"] = 10**6
        twin = store.with_name("t")
        shutil.copytree(store, twin)
        append(files[2], twin)
        n, state["seen"] = state["seen"], 0
        for k in (*range(0, n - 1, 5), n - 1):  # the last is the list of the store
            shutil.rmtree(store / "~appended-1", ignore_errors=True)
            state["left"] = k
            with pytest.raises(Stopped):
                append(files[2], store)
            now = tree(store)
            assert {p: now[p] for p in before} == before
            check(xl.open_cells(store), 1)
            assert xl.verify(store, progress=False).is_whole
    written = []
    real = RowsWriter.write
    monkeypatch.setattr(RowsWriter, "write", lambda self, *a: written.append(a) or real(self, *a))
    append(files[2], store)
    assert written == []  # it was done before it was stopped for the last time
    after = tree(store)
    assert after == tree(twin)


def test_append__that_fails_leaves_nothing(files, store, monkeypatch):
    before = tree(store)

    def fail(*_):
        msg = "no such disk"
        raise OSError(msg)

    monkeypatch.setattr("xloader.store.rows_writer.RowsWriter.write", fail)
    with pytest.raises(OSError, match="no such disk"):
        append(files[1], store)
    assert tree(store) == before


@pytest.fixture(scope="module")
def appended(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a")
    for k, source in enumerate(files):
        xl.convert(source, folder / "s", append=k > 0, progress=False)
    return xl.open_cells(folder / "s", chunks=None)


X = np.concatenate(matrices())
CUTS = st.lists(st.integers(0, len(X)), min_size=2, max_size=2).map(sorted)


def slices(n):
    """Draw slices that xarray itself understands: those without elements only step forwards."""
    return st.slices(n).filter(lambda s: (s.step or 1) > 0 or len(range(*s.indices(n))))


@settings(max_examples=50)
@given(data=st.data())
def test_appended_arrays__equal_one_array(data, appended):
    rows, dense = (trace.view(appended[name].variable).array for name in ("X", "d"))
    assert isinstance(rows, AppendedRows)
    assert isinstance(dense, AppendedDense)
    pairs = np.array(data.draw(st.lists(CUTS, min_size=1, max_size=4)))
    expected = np.concatenate([X[a:b] for a, b in pairs])
    got = rows.read_ranges(pairs[:, 0], pairs[:, 1])
    np.testing.assert_array_equal(got.todense(), expected)
    packed = rows.read_packed(pairs[:, 0], pairs[:, 1], Buffers())
    np.testing.assert_array_equal(packed.rows, np.concatenate([np.arange(a, b) for a, b in pairs]))
    stored = [(X[a:b] != 0).sum() for a, b in pairs]
    np.testing.assert_array_equal(rows.nnz_of(pairs[:, 0], pairs[:, 1]), stored)
    key = data.draw(slices(len(X))), data.draw(st.integers(0, 39) | slices(40))
    one = data.draw(st.integers(0, len(X) - 1))
    for name in ("X", "d"):
        np.testing.assert_array_equal(appended[name][key].values, X[key])
        np.testing.assert_array_equal(appended[name][one].values, X[one])
