"""What xl.export writes of cells, anndata reads, and it is what was there."""

import multiprocessing
import os
import re
import signal
import tracemalloc

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

import xloader as xl
from tests.doubles import Rows, cells, cells_in, contacts, counts
from tests.real.test_cells_way_back import assert_same, read
from xloader.backends import anndata_writer
from xloader.cli import cli
from xloader.errors import PlanError, ReadError, SchemaError, XloaderWarning
from xloader.exporting import cells as exporting

SUFFIXES = (".h5ad", ".zarr")


def exported(source, path, **options):
    return read(xl.export(source, path, progress=False, **options))


def table(n, seed=0):
    """Return columns of every kind that AnnData has and a label can be."""
    rng = np.random.default_rng(seed)
    text = np.array(["b", "a", "ü"], object)[rng.integers(0, 3, n)]
    return pd.DataFrame(
        {
            "kind": pd.Categorical(text, ["z", "ü", "b", "a"]),
            "grade": pd.Categorical(np.where(rng.random(n) < 0.3, None, "low"), ["low", "high"], ordered=True),
            "number": pd.Categorical(rng.integers(0, 3, n) * 10, [20, 10, 0]),
            "name": [f"x{k}" for k in range(n)],
            "few": text,
            "n": rng.integers(-5, 5, n).astype("int16"),
            "level": np.where(rng.random(n) < 0.5, np.nan, rng.random(n)),
            "half": rng.random(n).astype("float32"),
            "seen": rng.random(n) < 0.5,
            "row": rng.integers(0, 9, n),
        },
        [f"i{k}" for k in range(n)],
    )  # fmt: skip


def anndata_of(n=61, g=17, form="csr", seed=0):
    x = counts(n, g, seed=seed)
    make = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix, "dense": np.asarray}[
        form
    ]
    rng = np.random.default_rng(seed)
    a = ad.AnnData(
        make(x),
        table(n, seed),
        table(g, seed + 1).rename(columns={"few": "kind2"}),
        layers={"raw counts": scipy.sparse.csr_matrix(x * 2), "dense": x[:, ::-1].copy()},
        obsm={"X_pca": rng.random((n, 3)), "cube": rng.random((n, 2, 2)).astype("float32")},
    )
    a.obs.index.name, a.var.index.name = "barcode", None
    return a


def written(a, path):
    a.copy().write_h5ad(path, convert_strings_to_categoricals=False)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("through", ["file", "store"])
def test_export__is_the_file_that_was_converted(through, form, suffix, tmp_path):
    a = anndata_of(form=form)
    source = written(a, tmp_path / "a.h5ad")
    if through == "store":
        xl.convert(source, tmp_path / "s", progress=False)
        source = tmp_path / "s"
    out = exported(source, tmp_path / f"b{suffix}")
    assert out.obs["kind"].cat.categories.tolist() == ["z", "ü", "b", "a"]
    a.X = scipy.sparse.csr_matrix(a.X) if form == "csc" else a.X
    assert_same(out, a)


@settings(max_examples=15)
@given(data=st.data())
def test_export__any_selection_in_any_blocks(data, tmp_path_factory):
    n, g = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 20))
    folder = tmp_path_factory.mktemp("e")
    ds = cells(Rows(counts(n, g), data.draw(st.integers(1, 40))), n, g)
    if data.draw(st.booleans()):
        ds = ds.chunk({"cell": 9})
    some = st.lists(st.integers(0, n - 1), min_size=1, max_size=n)
    rows = data.draw(st.one_of(st.permutations(range(n)), some, st.just(list(range(n)))))
    columns = data.draw(st.lists(st.integers(0, g - 1), min_size=1, max_size=g, unique=True))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(exporting, "VALUES", data.draw(st.integers(1, 200)))
        m.setattr(exporting, "NBYTES", data.draw(st.integers(1, 400)))
        m.setattr(anndata_writer, "CHUNK", data.draw(st.integers(2, 9)))
        suffix = data.draw(st.sampled_from(SUFFIXES))
        path = xl.export(ds.isel(cell=rows, gene=columns), folder / f"x{suffix}", progress=False)
    x = (h5py.File(path) if suffix == ".h5ad" else zarr.open_group(path, mode="r"))["X"]
    # scipy trusts these lengths, and would end the process
    assert x["indptr"].shape == (len(rows) + 1,)
    assert x["data"].shape == x["indices"].shape == (x["indptr"][-1],)
    out = read(path)
    expected = scipy.sparse.csr_matrix(counts(n, g)[np.ix_(rows, columns)])
    assert scipy.sparse.issparse(out.X)
    assert out.X.has_canonical_format
    assert out.X.dtype == np.float32
    np.testing.assert_array_equal(out.X.toarray(), expected.toarray())
    assert out.X.nnz == expected.nnz  # no zero is stored
    np.testing.assert_array_equal(out.obsm["X_pca"], ds.X_pca.values[rows])
    assert out.obs_names.tolist() == [f"c{k}" for k in rows]
    assert out.var_names.tolist() == [f"g{k}" for k in columns]
    np.testing.assert_array_equal(out.varm["loadings"], ds.loadings.values[columns])


@pytest.mark.parametrize("form", ["numpy", "dask", "rows-dask", "csr", "h5ad", "store"])
def test_export__cells_of_every_kind(form, tmp_path):
    ds = cells_in(form, tmp_path)
    out = exported(ds, tmp_path / "x.h5ad")
    x = out.X.toarray() if scipy.sparse.issparse(out.X) else out.X
    np.testing.assert_array_equal(x, counts())
    assert scipy.sparse.issparse(out.X) == (form not in {"numpy", "dask"})
    assert out.obs["depth"].tolist() == ds.depth.values.tolist()
    assert out.obs["cell_type"].tolist() == ds.cell_type.values.tolist()
    assert out.var["length"].tolist() == ds.length.values.tolist()
    assert set(out.obs) == {"cell_type", "depth"}


def test_computed__values_stay_sparse_where_they_are(tmp_path):
    ds = cells(Rows(counts())).chunk({"cell": 16})
    new = ds.assign(log=np.log1p(ds.X), shifted=ds.X + 1)
    out = exported(new, tmp_path / "x.h5ad")
    assert scipy.sparse.issparse(out.layers["log"])
    assert not scipy.sparse.issparse(out.layers["shifted"])
    np.testing.assert_array_equal(out.layers["log"].toarray(), np.log1p(counts()))
    np.testing.assert_array_equal(out.layers["shifted"], counts() + 1)


def test_variable__says_what_becomes_x(tmp_path):
    ds = cells(Rows(counts())).rename(X="a").assign(b=cells().X * 2)
    with pytest.raises(SchemaError, match=r"none of \['a', 'b'\] is called X; .* variable='a'"):
        xl.export(ds, tmp_path / "x.h5ad")
    out = exported(ds, tmp_path / "x.h5ad", variable="b")
    np.testing.assert_array_equal(out.X, counts() * 2)
    np.testing.assert_array_equal(out.layers["a"].toarray(), counts())
    only = exported(ds[["a"]], tmp_path / "y.h5ad")
    np.testing.assert_array_equal(only.X.toarray(), counts())
    assert not only.layers


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels__of_every_kind(suffix, tmp_path):
    n = 4
    columns = {
        "text": np.array(["a", "b", "", "ü"]),
        "gaps": np.array(["a", np.nan, None, "a"], object),
        "maybe": np.array([True, False, np.nan, None], object),
        "flags": np.array([True, False, True, True], object),
        "wide": np.array([2**62, -1, 0, 1]),
    }
    ds = xr.Dataset(
        {"score": ("cell", np.arange(4.0)), "size": ("gene", np.array([7, 8], "u1"))},
        {"gene": ["g", "h"], "row": ("cell", np.arange(4))},
        {"title": "some", "n": 3, "flag": True, "list": [1, 2], "names": ["x", "y"]},
    ).assign_coords({k: ("cell", v) for k, v in columns.items()})
    out = exported(ds, tmp_path / f"x{suffix}")
    assert out.X is None
    assert out.obs_names.tolist() == ["0", "1", "2", "3"]
    assert out.obs["text"].tolist() == ["a", "b", "", "ü"]
    assert out.obs["gaps"].isna().tolist() == [False, True, True, False]
    assert out.obs["gaps"].cat.categories.tolist() == ["a"]
    assert out.obs["maybe"].dtype == "boolean"
    assert out.obs["maybe"].isna().tolist() == [False, False, True, True]
    assert out.obs["maybe"].tolist()[:2] == [True, False]
    assert out.obs["flags"].dtype == bool
    assert out.obs["wide"].tolist() == [2**62, -1, 0, 1]
    assert out.obs["score"].tolist() == list(range(n))
    assert out.var["size"].tolist() == [7, 8]
    assert out.var["size"].dtype == np.uint8
    uns = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in out.uns.items()}
    assert uns == {"title": "some", "n": 3, "flag": True, "list": [1, 2], "names": ["x", "y"]}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n", [127, 128, 129, 40_000])
def test_categories__of_any_number(n, suffix, tmp_path):
    names = np.array([f"k{k}" for k in range(n)], object)
    values, attrs = xl.schema.categorical_column(np.append(np.arange(n), -1), names, ordered=True)
    ds = xr.Dataset(coords={"kind": ("cell", values, attrs)}).assign(x=("cell", np.zeros(n + 1)))
    out = exported(ds, tmp_path / f"x{suffix}")
    assert out.obs["kind"].tolist()[:-1] == names.tolist()
    assert pd.isna(out.obs["kind"].iloc[-1])
    assert out.obs["kind"].cat.categories.tolist() == names.tolist()
    assert out.obs["kind"].cat.ordered


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tables__of_numbers_keep_their_names(suffix, tmp_path):
    protein = pd.DataFrame(
        {"CD3": np.arange(61, dtype="f4"), "CD4": np.ones(61, "f4")}, [f"i{k}" for k in range(61)]
    )
    a = anndata_of()
    a.obsm = {"protein": protein.set_axis(a.obs_names)}
    out = exported(written(a, tmp_path / "a.h5ad"), tmp_path / f"b{suffix}")
    pd.testing.assert_frame_equal(out.obsm["protein"], a.obsm["protein"], check_names=False)


def test_predictions__go_along(tmp_path):
    loader = xl.Loader(cells(), batch_size=8, variables=["X_pca"])
    with xl.PredictionWriter(loader, tmp_path / "p", progress=False) as w:
        for batch in loader:
            w.write(batch, batch.X_pca)
    alone = exported(tmp_path / "p", tmp_path / "p.h5ad")
    np.testing.assert_array_equal(alone.obsm["prediction"], cells().X_pca)
    assert alone.shape == (61, 0)
    both = cells().assign(embedding=xl.open_cells(tmp_path / "p").prediction)
    out = exported(both, tmp_path / "b.h5ad")
    np.testing.assert_array_equal(out.obsm["embedding"], cells().X_pca)
    np.testing.assert_array_equal(out.X, counts())


def modalities():
    ds = cells().rename(X="rna")
    protein = counts(61, 5, seed=3)
    present = np.arange(61) % 3 > 0
    return ds.assign(protein=(("cell", "protein"), protein)).assign_coords(
        rna_present=("cell", np.ones(61, bool)), protein_present=("cell", present)
    )


def test_modalities__are_written_one_by_one_as_the_message_says(tmp_path):
    ds = modalities()
    with pytest.raises(
        SchemaError, match=r"one modality, .*\['rna', 'protein'\]; write each"
    ) as told:
        xl.export(ds, tmp_path / "x.h5ad")
    remedy = re.search(r"xl\.export\((.*), '", str(told.value))[1]
    out = exported(eval(remedy, {"ds": ds}), tmp_path / "rna.h5ad")  # what it tells to run
    np.testing.assert_array_equal(out.X, counts())
    other = ds.isel(cell=ds.protein_present.values).drop_dims("gene")
    out = exported(other, tmp_path / "protein.h5ad")
    np.testing.assert_array_equal(out.X, counts(61, 5, seed=3)[np.arange(61) % 3 > 0])
    assert out.n_vars == 5


def test_left_out__is_told(tmp_path):
    ds = cells().assign_coords(
        when=("cell", np.zeros(61, "M8[ns]")),
        mixed=("cell", np.array([1, "a"] + [2.5] * 59, object)),
    )
    ds = ds.assign(nothing=("pc", np.zeros(3)), text=(("cell", "pc"), np.full((61, 3), "a")))
    with pytest.warns(XloaderWarning, match="will lack") as caught:
        out = exported(ds, tmp_path / "x.h5ad")
    told = str(caught[0].message)
    for name in ("when", "mixed", "nothing", "text"):
        assert f"`{name}`" in told
    assert set(out.obs) == {"cell_type", "depth"}
    np.testing.assert_array_equal(out.X, counts())


BAD = {
    "column": (lambda: cells().rename(depth="a/b"), "AnnData allows no 'a/b' as a name"),
    "array": (lambda: cells().rename(X_pca="a/b"), "AnnData allows no 'a/b' as a name"),
    "attribute": (lambda: cells().assign_attrs({"a/b": 1}), "AnnData allows no 'a/b' as a name"),
    "index": (lambda: cells().rename(depth="_index"), "'_index' as a name"),
    "twice": (
        lambda: cells().assign_coords(b=("cell", np.zeros(61), {"column": "depth"})),
        "two variables would both be 'depth' in AnnData; rename",
    ),
    "category": (
        lambda: cells().assign_coords(
            cell_type=("cell", ["x"] * 61, {"categories": ["y"], "ordered": False})
        ),
        "column 'cell_type' holds 'x', which is none of its 1 categories",
    ),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", BAD)
def test_bad_sources__are_refused_and_leave_nothing(case, suffix, tmp_path):
    make, message = BAD[case]
    with pytest.raises(SchemaError, match=message):
        xl.export(make(), tmp_path / f"x{suffix}", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("b.cool", {}, SchemaError, r"holds cells .*ends in \.h5ad or \.zarr; contact maps"),
        ("b.h5mu", {}, SchemaError, r"ends in \.h5ad or \.zarr"),
        ("b", {}, SchemaError, r"ends in \.h5ad or \.zarr"),
        ("b.h5ad", {"resolutions": [1]}, PlanError, "resolutions are about contact maps"),
        ("b.h5ad", {"variable": "y"}, SchemaError, r"'y' names none .* cell and gene; they are \['X'\]"),
        ("no/b.h5ad", {}, ReadError, "there is no folder"),
        ("no/b.zarr", {}, ReadError, "there is no folder"),
    ],
)  # fmt: skip
def test_bad_requests__are_refused(name, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        xl.export(cells(), tmp_path / name, progress=False, **options)
    assert not list(tmp_path.iterdir())


def test_kind__contacts_do_not_go_to_h5ad(tmp_path):
    with pytest.raises(SchemaError, match=r"holds contact maps .*ends in \.cool or \.mcool; cells"):
        xl.export(contacts(), tmp_path / "x.h5ad")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_overwrite__replaces_its_own_kind_only_when_asked(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    exported(cells(), path)
    with pytest.raises(ReadError, match="exists; pass overwrite=True"):
        xl.export(cells(), path, progress=False)
    out = exported(cells().isel(cell=slice(9)), path, overwrite=True)
    assert out.n_obs == 9
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_overwrite__of_a_folder_that_is_something_else_is_refused(tmp_path):
    xl.convert(written(anndata_of(), tmp_path / "a.h5ad"), tmp_path / "x.zarr", progress=False)
    (tmp_path / "y.zarr").mkdir()
    (tmp_path / "y.zarr" / "notes.txt").write_text("mine")
    for name in ("x.zarr", "y.zarr"):
        with pytest.raises(ReadError, match="overwrite=True replaces only AnnData"):
            xl.export(cells(), tmp_path / name, progress=False, overwrite=True)
    assert (tmp_path / "y.zarr" / "notes.txt").read_text() == "mine"
    assert xl.open_cells(tmp_path / "x.zarr").sizes["cell"] == 61


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failure__leaves_what_was_there(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"x{suffix}"
    exported(cells(), path)

    def full(*args):  # noqa: ARG001 # has the arguments of what it stands for
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(anndata_writer.AppendedCSR, "append", full)
    with pytest.raises(ReadError, match=r"No space left on device.*make room"):
        xl.export(cells(Rows(counts())), path, progress=False, overwrite=True)
    assert read(path).n_obs == 61
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def killed(path):
    anndata_writer.AppendedCSR.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    xl.export(cells(Rows(counts())), path, progress=False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_kill__leaves_nothing_that_opens_and_the_next_one_writes_it(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    process = multiprocessing.get_context("fork").Process(target=killed, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == [f".{path.name}.partial"]
    np.testing.assert_array_equal(exported(cells(Rows(counts())), path).X.toarray(), counts())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Many(Rows):
    """Rows that are made when they are read."""

    def __init__(self, n, g):
        super().__init__(np.zeros((1, 1), np.float32), 64)
        self.shape = (n, g)

    @override
    def read_rows(self, start, stop):
        dense = np.zeros((stop - start, self.shape[1]), np.float32)
        dense[:, ::3] = np.arange(start, stop)[:, None] + 1
        return exporting._to_csr(dense)

    @override
    def nnz_of(self, starts, stops):
        return (stops - starts) * -(-self.shape[1] // 3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory__does_not_grow_with_the_number_of_cells(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "VALUES", 2**14)
    exported(cells(), tmp_path / f"warm{suffix}")
    peaks = []
    for n in (400, 2_000):
        ds = xr.Dataset({"X": xl.schema.lazy(("cell", "gene"), Many(n, 3_000))})
        tracemalloc.start()
        path = xl.export(ds, tmp_path / f"{n}{suffix}", progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # five times the rows: 12.8 MB more of values and columns, and names of cells
    assert peaks[1] < peaks[0] + 2e6
    x = read(path).X
    np.testing.assert_array_equal(x.sum(axis=1).A1, (np.arange(2_000) + 1) * 1000.0)


def test_progress__counts_rows(tmp_path, capsys):
    xl.export(cells(Rows(counts())), tmp_path / "x.h5ad")
    assert "122/122" not in capsys.readouterr().err  # X, X_pca of cells, and loadings of genes:
    xl.export(cells(Rows(counts())), tmp_path / "y.h5ad")
    assert "139/139" in capsys.readouterr().err


def test_command_line__exports(tmp_path):
    source = written(anndata_of(), tmp_path / "a.h5ad")
    done = CliRunner().invoke(cli, ["export", str(source), str(tmp_path / "b.zarr")])
    assert done.exit_code == 0, done.output
    assert_same(read(tmp_path / "b.zarr"), anndata_of())
    again = CliRunner().invoke(cli, ["export", str(source), str(tmp_path / "b.zarr")])
    assert isinstance(again.exception, ReadError)
    done = CliRunner().invoke(cli, ["export", str(source), str(tmp_path / "b.zarr"), "--overwrite"])
    assert done.exit_code == 0


def test_h5ad__is_packed_and_chunked(tmp_path):
    path = xl.export(cells(Rows(counts())), tmp_path / "x.h5ad", progress=False)
    with h5py.File(path) as f:
        for name in ("data", "indices"):
            assert f["X"][name].compression == "gzip"
        assert f["X/indices"].dtype == f["X/indptr"].dtype == np.int32


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_joined_files__come_back_row_by_row(tmp_path, suffix):
    values = [counts(n=9, seed=1), counts(n=7, seed=2)]
    parts = [cells(Rows(v), n=len(v)).drop_vars("loadings") for v in values]
    joined = xl.concat({"a": parts[0], "b": parts[1].isel(gene=slice(3, 17))})
    joined = joined.assign_coords(cell=[f"x{k}" for k in range(16)])
    with pytest.warns(XloaderWarning, match="will lack .* `dataset_name`"):
        path = xl.export(joined, tmp_path / f"out{suffix}", progress=False)
    back = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
    whole = np.concatenate(values)
    whole[9:, :3] = 0
    np.testing.assert_array_equal(np.asarray(back.X.todense()), whole)
    assert back.obs["dataset"].tolist() == ["a"] * 9 + ["b"] * 7
    assert back.obs_names.tolist() == joined["cell"].values.tolist()
