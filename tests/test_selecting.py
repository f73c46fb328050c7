"""Selections made by xarray before the Loader: the values of numpy, and no more read than must be."""

import itertools
import re
from collections import Counter
from unittest import mock

import anndata
import h5py
import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override
from zarr.storage import LocalStore

import xloader as xl
from tests.doubles import Dense, Rows, cells, counts, plain, stored, to_csr
from xloader import trace
from xloader.backends import hdf5_chunks
from xloader.csr import CSRArray
from xloader.errors import PerformanceWarning, PlanError, SchemaError
from xloader.schema import lazy

N, G = 61, 17
CHUNKS = (8, 5)
GENES = [f"g{i}" for i in range(G)]
FORMS = ("csr", "csc", "dense", "contiguous", "store", "zarr", "memory", "memory-csr")
PANEL = ["g9", "g1", "g16", "g2"]
KINDS = np.array(["B", "NK", "T"])[np.arange(N) % 3]
DEPTH = (np.arange(N) * 37 % N) * 20.0


def write(path, form, x=None):
    """Write cells with anndata; a dense matrix is then stored anew in chunks of some genes."""
    x = counts() if x is None else x
    sparse = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix}.get(form, np.asarray)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(KINDS), "n_counts": DEPTH}, [f"c{i}" for i in range(N)]
    )
    var = pd.DataFrame({"symbol": [f"S{i}" for i in range(G)], "hvg": np.arange(G) % 4 == 1}, GENES)
    layers = {"raw": sparse(x * 2)}
    obsm = {"X_pca": np.arange(N * 3.0).reshape(N, 3)}
    anndata.AnnData(sparse(x), obs, var, obsm=obsm, layers=layers).write_h5ad(path)
    if form == "dense":
        with h5py.File(path, "a") as f:
            for name in ("X", "layers/raw"):
                values, attrs = f[name][:], dict(f[name].attrs)
                del f[name]
                f.create_dataset(name, data=values, chunks=CHUNKS, compression="gzip")
                f[name].attrs.update(attrs)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return where the same cells lie in every form."""
    folder = tmp_path_factory.mktemp("cells")
    for form in ("csr", "csc", "dense", "contiguous"):
        write(folder / f"{form}.h5ad", form)
    xl.convert(folder / "csr.h5ad", folder / "store", progress=False)
    ds = xl.open_cells(folder / "contiguous.h5ad").drop_vars("hvg")
    stored(plain(ds), folder / "zarr", {"cell": CHUNKS[0], "gene": CHUNKS[1]})
    return folder


def opened(form, folder, chunks=None):
    if form == "store":
        return xl.open_cells(folder / "store", chunks=chunks)
    if form == "zarr":
        ds = xr.open_dataset(folder / "zarr", engine="zarr", chunks=chunks, consolidated=False)
        return ds.assign_coords({k: v.load() for k, v in ds.coords.items()})
    if form.startswith("memory"):
        ds = xl.open_cells(folder / "contiguous.h5ad").load()
        return ds.assign(X=(("cell", "gene"), to_csr(counts()))) if form == "memory-csr" else ds
    return xl.open_cells(folder / f"{form}.h5ad", chunks=chunks)


def values(x):
    return x.todense() if isinstance(x, CSRArray) else np.asarray(x)


def table(loader, name="X"):
    """Return what an epoch serves, by number of the sample."""
    batches = list(loader)
    order = np.concatenate([b.sample_id.values for b in batches])
    served = np.concatenate([values(b[name].data) for b in batches])
    return served[np.argsort(order)]


# rows: which, and the same by numpy

ROWS = {
    "slice": (lambda ds: ds.isel(cell=slice(5, 40)), np.arange(5, 40)),
    "every third": (lambda ds: ds.isel(cell=slice(None, None, 3)), np.arange(0, N, 3)),
    "backwards": (lambda ds: ds.isel(cell=slice(None, None, -1)), np.arange(N)[::-1]),
    "list": (lambda ds: ds.isel(cell=[40, 3, 17]), [40, 3, 17]),
    "repeated": (lambda ds: ds.isel(cell=[40, 3, 40]), [40, 3, 40]),
    "mask": (lambda ds: ds.isel(cell=(ds.n_counts > 500).values), np.flatnonzero(DEPTH > 500)),
    "names": (lambda ds: ds.sel(cell=["c9", "c2"]), [9, 2]),
    "query": (
        lambda ds: ds.query(cell="cell_type == 'B' and n_counts > 500"),
        np.flatnonzero((KINDS == "B") & (DEPTH > 500)),
    ),
    "where": (
        lambda ds: ds.where(ds.cell_type == "T", drop=True),
        np.flatnonzero(KINDS == "T"),
    ),
    "twice": (
        lambda ds: ds.query(cell="n_counts > 300").isel(cell=slice(1, None, 2)),
        np.flatnonzero(DEPTH > 300)[1::2],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:this matrix is stored by column")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ROWS)
def test_rows__equal_numpy(form, name, folder):
    select, rows = ROWS[name]
    for chunks in (None, {}) if form in {"csr", "dense", "zarr"} else ({},):
        whole = opened(form, folder, chunks)
        if name == "where" and chunks is None:
            continue  # xarray itself reads everything here
        if form == "memory-csr" and name == "where":
            whole = whole[["X"]]
        ds = select(whole[["X"]])
        loader = xl.Loader(ds, batch_size=7, shuffle=True, labels=["cell_type"])
        npt.assert_array_equal(table(loader), counts()[rows])
        names = np.concatenate([b.cell.values for b in loader.batches(0, range(len(loader)))])
        ids = np.concatenate([b.sample_id.values for b in loader.batches(0, range(len(loader)))])
        npt.assert_array_equal(names[np.argsort(ids)], [f"c{i}" for i in np.arange(N)[rows]])


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_rows__are_read_from_the_blocks_they_lie_in_and_no_others(name, kind):
    select, rows = ROWS[name]
    array = {"sparse": Rows, "dense": Dense}[kind](counts())
    labels = {
        "cell": [f"c{i}" for i in range(N)],
        "cell_type": ("cell", KINDS.astype(object)),
        "n_counts": ("cell", DEPTH),
    }
    ds = xr.Dataset({"X": lazy(("cell", "gene"), array)}, labels).chunk({"cell": 10})
    ds = select(ds.assign_coords({k: v.load() for k, v in ds.coords.items()}))
    loader = xl.Loader(ds, batch_size=5, shuffle=True)
    assert array.log == []
    npt.assert_array_equal(table(loader), counts()[rows])
    if kind == "sparse":
        assert sorted(array.log) == sorted({int(r) // 8 for r in rows})
    else:  # all rows fit into one piece
        assert array.log == [(slice(0, N), slice(0, G))]


# genes

COLUMNS = {
    "panel": (lambda ds: ds.sel(gene=PANEL), [9, 1, 16, 2]),
    "one gene": (lambda ds: ds.sel(gene=["g7"]), [7]),
    "permuted": (lambda ds: ds.isel(gene=np.arange(G)[::-1]), np.arange(G)[::-1]),
    "slice": (lambda ds: ds.isel(gene=slice(3, 11, 2)), np.arange(3, 11, 2)),
    "by a column": (lambda ds: ds.isel(gene=(ds.symbol.isin(["S4", "S12"])).values), [4, 12]),
    "both": (lambda ds: ds.sel(gene=PANEL).isel(cell=slice(10, 30)), [9, 1, 16, 2]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:this matrix is stored by column")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COLUMNS)
def test_genes__equal_numpy_in_the_order_asked_for(form, name, folder):
    select, columns = COLUMNS[name]
    expected = counts()[:, columns]
    for chunks in (None, {}) if form in {"csr", "dense", "zarr"} else ({},):
        ds = select(opened(form, folder, chunks)[["X"]])
        for layout in (None, "dense"):
            loader = xl.Loader(ds, batch_size=7, shuffle=True, layout=layout)
            rows = slice(10, 30) if name == "both" else slice(None)
            npt.assert_array_equal(table(loader), expected[rows])
            for batch in loader:  # also those where none of the genes is read
                assert batch.gene.values.tolist() == [GENES[k] for k in columns]
                assert batch.X.shape[1] == len(columns)
                assert batch.X.dtype == np.float32


@pytest.mark.parametrize("form", ["csr", "dense", "store", "zarr"])
def test_genes__asked_for_twice_are_there_twice(form, folder, recwarn):
    ds = opened(form, folder, {})[["X"]].isel(gene=[4, 1, 4])
    sparse = form in {"csr", "store"}
    if sparse:
        with pytest.raises(PlanError, match="'X' shows 1 of its stored columns more than once"):
            xl.Loader(ds, batch_size=7, layout="csr")
        with pytest.warns(PerformanceWarning, match="its batches are dense; name each column once"):
            loader = xl.Loader(ds, batch_size=7)
    else:
        loader = xl.Loader(ds, batch_size=7)
    npt.assert_array_equal(table(loader), counts()[:, [4, 1, 4]])
    npt.assert_array_equal(
        table(xl.Loader(ds, batch_size=7, layout="dense" if sparse else None)),
        counts()[:, [4, 1, 4]],
    )
    assert not recwarn.list


# layers and embeddings


@pytest.mark.parametrize("form", ["csr", "dense"])
def test_variables__are_those_asked_for(form, folder):
    ds = opened(form, folder, {}).sel(gene=PANEL)
    loader = xl.Loader(ds, batch_size=10, shuffle=True, variables=["raw", "X", "X_pca"])
    npt.assert_array_equal(table(loader, "raw"), 2 * counts()[:, [9, 1, 16, 2]])
    npt.assert_array_equal(table(loader), counts()[:, [9, 1, 16, 2]])
    npt.assert_array_equal(table(loader, "X_pca"), np.arange(N * 3.0).reshape(N, 3))
    alone = xl.Loader(ds, batch_size=10, variables=["X_pca"])
    assert set(alone[0].data_vars) == {"X_pca"}
    some = xl.Loader(ds.isel(X_pca_dim=[2, 0]), batch_size=10, variables=["X_pca"])
    npt.assert_array_equal(table(some, "X_pca"), np.arange(N * 3.0).reshape(N, 3)[:, [2, 0]])
    with pytest.raises(SchemaError, match=r"\['spliced'\] cannot be delivered; the Dataset has"):
        xl.Loader(ds, batch_size=10, variables=["X", "spliced"])


# what is read


@pytest.fixture
def hdf5_reads(monkeypatch):
    """Count the chunks of HDF5 datasets that are decoded, by name and place in the grid."""
    found, read = Counter(), hdf5_chunks.Chunks.read

    def counted(self, jobs, out):
        sizes = self.dataset.chunks
        found.update(
            (self.dataset.name, *(p // c for p, c in zip(place, sizes, strict=True)))
            for place, _ in jobs
        )
        read(self, jobs, out)

    monkeypatch.setattr(hdf5_chunks.Chunks, "read", counted)
    return found


@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize("name", ["panel", "one gene", "slice", "both"])
def test_dense_chunks_of_genes__only_those_of_the_panel_are_read(chunks, name, folder, hdf5_reads):
    select, columns = COLUMNS[name]
    ds = select(opened("dense", folder, chunks))
    loader = xl.Loader(ds, batch_size=7, shuffle=True, variables=["X"])
    assert not hdf5_reads  # planning reads nothing
    assert "read" in repr(loader)
    for epoch in range(2):
        table(loader) if epoch == 0 else list(loader.batches(epoch, range(len(loader))))
    wanted = {c // CHUNKS[1] for c in np.asarray(columns).tolist()}
    rows = range(10 // 8, 30 // 8 + 1) if name == "both" else range(-(-N // 8))
    touched = {(r, c) for r in rows for c in wanted}
    read = {key[1:] for key in hdf5_reads}
    # rows are read in pieces of several chunks; of genes nothing else
    assert {c for _, c in read} == wanted
    assert touched <= read
    assert set(hdf5_reads.values()) == {1}
    (chosen,) = loader.plan.chosen
    assert (chosen.variable, chosen.dim, chosen.n, chosen.n_stored) == (
        "X",
        "gene",
        len(columns),
        G,
    )
    n_genes = sum(min(5, G - 5 * c) for c in wanted)
    n_cells = sum(min(8, N - 8 * r) for r in rows)
    assert (chosen.nbytes, chosen.whole_nbytes) == (4 * n_cells * n_genes, 4 * n_cells * G)


@pytest.mark.parametrize("chunks", [None, {}])
def test_zarr_chunks_of_genes__only_those_of_the_panel_are_read(chunks, folder, monkeypatch):
    found, get = Counter(), LocalStore.get

    async def counted(self, key, *args, **kwargs):
        if key.startswith("X/c/"):
            found[key] += 1
        return await get(self, key, *args, **kwargs)

    ds = opened("zarr", folder, chunks).sel(gene=["g6", "g5", "g16"])[["X"]]
    monkeypatch.setattr(LocalStore, "get", counted)
    npt.assert_array_equal(table(xl.Loader(ds, batch_size=7)), counts()[:, [6, 5, 16]])
    assert found == Counter(f"X/c/{r}/{c}" for r in range(8) for c in (1, 3))


def test_columns_stored_apart__those_of_the_panel_alone_are_read(folder, monkeypatch):
    values_read, read_ranges = [], hdf5_chunks.read_ranges

    def counted(dataset, starts, stops):
        values_read.append((dataset.name, int((stops - starts).sum())))
        return read_ranges(dataset, starts, stops)

    ds = opened("csc", folder).sel(gene=PANEL)[["X"]]
    loader = xl.Loader(ds, batch_size=7, shuffle=True)  # one scan, so nothing to warn of
    (chosen,) = loader.plan.chosen
    monkeypatch.setattr(hdf5_chunks, "read_ranges", counted)
    npt.assert_array_equal(table(loader), counts()[:, [9, 1, 16, 2]])
    n = int((counts()[:, [9, 1, 16, 2]] != 0).sum())
    assert set(values_read) == {("/X/indices", n), ("/X/data", n)}
    assert chosen.n == 4
    assert chosen.nbytes / chosen.whole_nbytes == n / int((counts() != 0).sum())


def test_columns_stored_apart__in_several_scans_say_so(folder, monkeypatch):
    ds = opened("csc", folder).sel(gene=PANEL)[["X"]]
    module = type(trace.view(ds.X.variable).array).__module__
    monkeypatch.setattr(f"{module}.SCAN_NBYTES", 400)
    with pytest.warns(PerformanceWarning, match="every read of some cells scans all of 4 columns"):
        loader = xl.Loader(ds, batch_size=7)
    npt.assert_array_equal(table(loader), counts()[:, [9, 1, 16, 2]])


class Chunked(Dense):
    """A dense array in memory, in chunks; `touched` holds those that were read."""

    def __init__(self, values, chunks):
        self.chunks = chunks
        self.touched = Counter()
        super().__init__(values)

    @property
    @override
    def unit(self):
        return self.chunks

    @override
    def _raw(self, key):
        spans = [np.arange(n)[k] // c for n, k, c in zip(self.shape, key, self.chunks, strict=True)]
        self.touched.update(itertools.product(*(np.unique(s).tolist() for s in spans)))
        return super()._raw(key)


@given(
    chunks=st.tuples(st.integers(1, 70), st.integers(1, 20)),
    rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=80),
    columns=st.lists(st.integers(0, G - 1), min_size=1, max_size=20),
    batch_size=st.integers(1, 9),
    piece=st.sampled_from([300, 16 * 2**20]),
)
def test_dense_chunks__any_selection_equals_numpy_and_reads_nothing_else(
    chunks, rows, columns, batch_size, piece
):
    array = Chunked(counts(), chunks)
    ds = xr.Dataset({"X": lazy(("cell", "gene"), array)}).isel(cell=rows, gene=columns)
    with mock.patch("xloader.schema.CHUNK_NBYTES", piece):
        loader = xl.Loader(ds, batch_size=batch_size, shuffle=True)
    assert not array.touched
    npt.assert_array_equal(table(loader), counts()[np.ix_(rows, columns)])
    assert {c for _, c in array.touched} == {c // chunks[1] for c in columns}
    assert {r // chunks[0] for r in rows} <= {r for r, _ in array.touched}
    if len(np.unique(columns)) < G:
        (chosen,) = loader.plan.chosen
        unique = {c // chunks[1] for c in columns}
        n_columns = sum(min(chunks[1], G - c * chunks[1]) for c in unique)
        n_rows = sum(min(chunks[0], N - r * chunks[0]) for r in {r // chunks[0] for r in rows})
        assert chosen.nbytes == 4 * n_columns * n_rows


# what the plan says


def said(loader):
    return re.search(r"panel +: (.*)", repr(loader))


def test_plan__says_how_much_is_read_for_a_panel(folder):
    forms = {form: opened(form, folder, {}) for form in ("csr", "csc", "dense", "store")}
    for ds in forms.values():
        if ds is not forms["csc"]:
            assert said(xl.Loader(ds, batch_size=7)) is None
    panels = {k: xl.Loader(ds.sel(gene=PANEL), batch_size=7) for k, ds in forms.items()}
    for form in ("csr", "store"):
        (line,) = said(panels[form]).groups()
        assert re.search(
            r"X: 4 of 17 along gene, for which (.*) of \1 are read, as columns are not stored apart",
            line,
        )
        assert "; raw: 4 of 17" in line
    (line,) = said(panels["dense"]).groups()
    assert line.startswith("X: 4 of 17 along gene, for which 2.86 kiB of 4.05 kiB are read; raw")
    assert said(panels["dense"])[0] in repr(panels["dense"].plan)
    assert "for which" in panels["dense"].plan._repr_html_()
    (line,) = said(panels["csc"]).groups()
    assert "not stored apart" not in line
    (csr,) = (c for c in panels["csr"].plan.chosen if c.variable == "X")
    n = int((counts() != 0).sum())
    assert csr.whole_nbytes == csr.nbytes == 8 * n


def test_plan__of_some_rows_counts_their_blocks_alone():
    array = Dense(counts())
    ds = xr.Dataset({"X": lazy(("cell", "gene"), array)}, {"cell": np.arange(N)})
    (chosen,) = xl.Loader(ds.isel(cell=[3, 5], gene=[1, 2]), batch_size=1).plan.chosen
    assert (chosen.nbytes, chosen.whole_nbytes) == (2 * G * 4, 2 * G * 4)


def test_pictures_of_everything__have_no_panel():
    assert said(xl.Loader(cells(), batch_size=7)) is None
