"""Cooler and AnnData files of every make, lazily opened, equal to what wrote them; bad ones refused."""

import multiprocessing
import pickle
import shutil
from typing import Any

import anndata
import cloudpickle
import cooler
import dask
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl
from xloader.backends.hdf5 import HDF5File
from xloader.errors import ReadError, SchemaError, XloaderError


def bins_of(n, size=1_000):
    chrom = np.where(np.arange(n) < n * 2 // 3, "chrB", "chrA")
    start = np.concatenate(
        [np.arange(k) * size for k in (sum(chrom == "chrB"), sum(chrom == "chrA"))]
    )
    return pd.DataFrame({"chrom": chrom, "start": start, "end": start + size})


def write_cool(path, matrix, bins=None, *, symmetric=True, **columns):
    """Write a small cooler with cooler itself."""
    bins = (bins_of(len(matrix)) if bins is None else bins).assign(**columns)
    kept = np.triu(matrix) if symmetric else matrix
    i, j = np.nonzero(kept)
    pixels = pd.DataFrame({"bin1_id": i, "bin2_id": j, "count": kept[i, j]})
    cooler.create_cooler(
        str(path),
        bins,
        pixels,
        dtypes={"count": matrix.dtype},
        symmetric_upper=symmetric,
        triucheck=symmetric,
    )
    return path


def random_map(n, seed=0, dtype=np.int32):
    m = np.random.default_rng(seed).poisson(0.7, (n, n))
    return (m + m.T).astype(dtype)


@given(data=st.data())
def test_cool__any_selection_equals_the_matrix(data, tmp_path_factory):
    n = data.draw(st.integers(1, 300))
    matrix = random_map(n, seed=n)
    path = write_cool(tmp_path_factory.mktemp("c") / "a.cool", matrix)
    ds = xl.open_contacts(path, chunks=data.draw(st.sampled_from([None, {}, "auto"])))
    key = st.one_of(
        # xarray itself fails on empty slices of negative step
        st.slices(n).filter(lambda s: len(range(n)[s]) > 0 or (s.step or 1) > 0),
        st.lists(st.integers(0, n - 1), max_size=5),
        st.integers(0, n - 1),
    )
    a, b = data.draw(key), data.draw(key)
    expected = matrix[a][..., b] if not isinstance(a, list) else matrix[a][:, b]
    np.testing.assert_array_equal(ds["count"].isel(bin1=a, bin2=b).values, expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_cool__dtype_and_storage(dtype, symmetric, tmp_path):
    matrix = random_map(150).astype(dtype) * (1 if dtype != np.float64 else 0.25)
    if not symmetric:
        matrix[3:90, 100:] = 7
    ds = xl.open_contacts(write_cool(tmp_path / "a.cool", matrix, symmetric=symmetric))
    assert ds["count"].dtype == dtype
    assert ds.attrs["storage_mode"] == ("symmetric-upper" if symmetric else "square")
    np.testing.assert_array_equal(ds["count"].values, matrix)


def test_cool__labels_and_weights(tmp_path):
    weight = np.linspace(0.5, 2, 30)
    weight[4] = np.nan
    path = write_cool(tmp_path / "a.cool", random_map(30), KR=weight, weight=weight, SCALE=weight)
    with h5py.File(path, "r+") as f:
        f["bins/weight"].attrs["divisive_weights"] = True
    ds = xl.open_contacts(path)
    assert ds.chrom1.values.tolist() == ["chrB"] * 20 + ["chrA"] * 10
    assert ds.attrs["binsize"] == 1_000
    np.testing.assert_array_equal(ds.KR2, weight)
    divisive = {name: ds[f"{name}1"].attrs["divisive"] for name in ("KR", "weight", "SCALE")}
    assert divisive == {"KR": True, "weight": True, "SCALE": True}


def test_cool__variable_bins(tmp_path):
    bins = bins_of(40)
    bins["end"] += np.arange(40) % 3
    bins["start"] = np.where(bins.start > 0, bins.end.shift(fill_value=0), 0)
    matrix = random_map(40)
    ds = xl.open_contacts(write_cool(tmp_path / "a.cool", matrix, bins))
    assert ds.attrs["binsize"] is None
    np.testing.assert_array_equal(ds["count"].values, matrix)


def test_cool__schema_2_without_attributes(tmp_path):
    matrix = random_map(60)
    path = write_cool(tmp_path / "a.cool", matrix)
    with h5py.File(path, "r+") as f:
        for name in set(f.attrs) - {"bin-size"}:
            del f.attrs[name]
        offset = f["indexes/bin1_offset"][:].astype("i4")
        del f["indexes/bin1_offset"]
        f["indexes/bin1_offset"] = offset
    np.testing.assert_array_equal(xl.open_contacts(path)["count"].values, matrix)


def test_mcool__legacy_zoom_levels(tmp_path):
    sizes = {"0": 100_000, "1": 20_000, "2": 3_000}
    with h5py.File(tmp_path / "a.mcool", "w") as f:
        for level, size in sizes.items():
            write_cool(tmp_path / "one.cool", random_map(30, seed=size), bins_of(30, size))
            with h5py.File(tmp_path / "one.cool") as one:
                one.copy("/", f, name=level)
    assert xl.resolutions(tmp_path / "a.mcool") == [3_000, 20_000, 100_000]
    ds = xl.open_contacts(tmp_path / "a.mcool", resolution=20_000)
    np.testing.assert_array_equal(ds["count"].values, random_map(30, seed=20_000))


def test_lazy__expressions_stay_lazy_and_select_by_label(tmp_path):
    matrix = random_map(200)
    path = write_cool(tmp_path / "a.cool", matrix, weight=np.ones(200))
    ds = xr.open_dataset(path, engine="cooler", chunks={})
    made = np.log1p(ds["count"] * ds.weight1).where(ds.start1 > 5_000).isel(bin2=slice(3, 90))
    assert dask.is_dask_collection(made.data)
    expected = np.where((ds.start1.values > 5_000)[:, None], np.log1p(matrix), np.nan)[:, 3:90]
    np.testing.assert_allclose(made.values, expected)
    chosen = ds.where(ds.chrom1 == "chrA", drop=True).sel(bin2=[7, 3])
    np.testing.assert_array_equal(chosen["count"].values, matrix[133:, [7, 3]])
    lazy = xr.open_dataset(path, engine="cooler")
    assert not dask.is_dask_collection(lazy["count"].data)


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint16])
def test_h5ad__values_in_every_form(form, dtype, tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.random((90, 40)) < 0.2) * rng.integers(1, 9, (90, 40))
    x[[0, 50]] = 0
    x = x.astype(dtype)
    make = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix, "dense": np.asarray}
    a = anndata.AnnData(
        make[form](x), layers={"twice": make[form](2 * x)}, obsm={"U": x[:, :3] * 0.5}
    )
    a.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    ds = xl.open_cells(tmp_path / "a.h5ad")
    assert ds.X.dtype == dtype
    np.testing.assert_array_equal(ds.X.values, x)
    np.testing.assert_array_equal(ds.twice.values, 2 * x)
    np.testing.assert_array_equal(ds.U.values, x[:, :3] * 0.5)
    rows, genes = rng.permutation(90)[:33], rng.permutation(40)[:7]
    np.testing.assert_array_equal(ds.X.isel(cell=rows, gene=genes).values, x[np.ix_(rows, genes)])
    mean = np.log1p(ds.X.sel(gene=["3", "1"])).mean("cell")
    assert dask.is_dask_collection(mean.data)
    np.testing.assert_allclose(mean.values, np.log1p(x[:, [3, 1]]).mean(axis=0), rtol=1e-6)
    loaded = (
        xl.Loader(ds.isel(cell=rows), batch_size=50, variables=["X"])[0].X.data
        if form != "csc"
        else None
    )
    if loaded is not None:
        got = loaded.todense() if form == "csr" else loaded
        np.testing.assert_array_equal(got, x[rows])


def test_h5ad__columns_in_every_encoding(tmp_path):
    n = 12
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n)])
    obs["kind"] = pd.Categorical(["b", "a", None] * 4, categories=["b", "a", "z"])
    obs["grade"] = pd.Categorical([1, 3] * 6, categories=[3, 1], ordered=True)
    obs["text"] = [f"t{i % 3}" for i in range(n)]
    obs["whole"] = pd.array([1, None, 3] * 4, dtype="Int64")
    obs["flag"] = pd.array([True, None, False] * 4, dtype="boolean")
    obs["real"] = np.linspace(0, 1, n)
    obs["sure"] = np.arange(n) % 2 == 0
    var = pd.DataFrame({"real": np.arange(3.0)}, index=["x", "y", "w"])
    anndata.AnnData(np.ones((n, 3), "f4"), obs, var).write_h5ad(tmp_path / "a.h5ad")
    ds = xl.open_cells(tmp_path / "a.h5ad")
    assert ds.kind.attrs["categories"] == ["b", "a", "z"]
    assert ds.grade.attrs == {"categories": [3, 1], "ordered": True}
    for name in obs:
        mine, theirs = pd.Series(ds[name].values), obs[name].astype(object).reset_index(drop=True)
        assert (mine.isna() == theirs.isna()).all(), name
        assert (mine[mine.notna()] == theirs[theirs.notna()]).all(), name
    # a name that both tables have: obs keeps it
    assert ds["real"].dims == ("cell",)
    assert ds.gene_real.attrs["column"] == "real"
    some = ds.query(cell="kind == 'b' and real > 0.3")
    assert some.cell.values.tolist() == obs.query("kind == 'b' and real > 0.3").index.tolist()


def total(ds):
    """Sum everything; run in child processes."""
    return float(ds[next(iter(ds.data_vars))].sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("make", ["cool", "h5ad", "store"])
def test_open_files__survive_processes_and_pickles(method, make, tmp_path):
    if make == "cool":
        ds = xl.open_contacts(write_cool(tmp_path / "a.cool", random_map(100)))
    else:
        ds = xl.open_cells(xl.simulate.cells(tmp_path / "a.h5ad", n_cells=150, n_genes=60))
        if make == "store":
            ds = xl.convert(ds, tmp_path / "s", progress=False)
    expected = total(ds)
    assert total(pickle.loads(pickle.dumps(ds))) == expected
    assert total(cloudpickle.loads(cloudpickle.dumps(ds))) == expected
    with dask.config.set(scheduler="synchronous"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(total, [ds] * 4) == [expected] * 4
        assert total(ds) == expected


def opens_anew(path):
    """Say whether this process has a handle other than the one that it inherited."""
    return HDF5File(path).handle is not inherited["handle"]


inherited: dict[str, Any] = {}


def test_open_files__handles_are_not_shared_over_fork(tmp_path):
    path = str(xl.simulate.cells(tmp_path / "a.h5ad", n_cells=50, n_genes=60))
    inherited["handle"] = HDF5File(path).handle
    assert not opens_anew(path)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(opens_anew, [path])


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with good and bad files."""
    monkeypatch.chdir(tmp_path)
    xl.simulate.contacts("a.mcool", chromosomes={"c": 3_000_000}, resolutions=(10_000, 20_000))
    xl.simulate.cells("a.h5ad", n_cells=400, n_genes=100)
    for name in ("a.mcool", "a.h5ad"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5ad").write_text("hello")
    (tmp_path / "folder").mkdir()
    with h5py.File("other.h5", "w") as f:
        f["thing"] = 1
    return tmp_path


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: xl.open_contacts("no.cool"), ReadError, "nothing is at 'no.cool'; check the path"),
        (lambda: xr.open_dataset("no.cool", engine="cooler"), ReadError, "No such file"),
        (lambda: xr.open_dataset("no.h5ad", engine="anndata"), ReadError, "No such file"),
        (lambda: xr.open_dataset("no", engine="xloader"), ReadError, "nothing is at 'no'"),
        (lambda: xl.open_cells("text.h5ad"), ReadError, "as HDF5: it is truncated, damaged or of"),
        (lambda: xl.open_cells("cut-a.h5ad"), ReadError, "truncated"),
        (lambda: xl.open_contacts("cut-a.mcool"), ReadError, "truncated"),
        (lambda: xl.open_contacts("a.mcool"), SchemaError, r"2 resolutions \(10000, 20000 bp\)"),
        (lambda: xl.open_contacts("a.mcool", resolution=7), SchemaError, "it has 10000, 20000"),
        (lambda: xl.open_contacts("a.h5ad"), SchemaError, "holds cells.*xl.open_cells"),
        (lambda: xl.open_cells("a.mcool"), SchemaError, "holds contacts.*xl.open_contacts"),
        (lambda: xr.open_dataset("a.h5ad", engine="cooler"), SchemaError, "no cooler.*'obs'"),
        (
            lambda: xr.open_dataset("a.mcool", engine="anndata"),
            SchemaError,
            "not an AnnData.*'reso",
        ),
        (lambda: xl.open_cells("other.h5"), SchemaError, r"neither a cooler.*\['thing'\]"),
        (lambda: xl.open_cells("folder"), SchemaError, "no xloader store: it is a directory of 0"),
        (
            lambda: xl.open_contacts("a.mcool", resolution=10_000, view=["d"]),
            SchemaError,
            r"no chromosome 'd'.*there are \['c'\]",
        ),
        (
            lambda: xl.open_contacts("a.mcool", resolution=10_000, view="c:0-9,000,000"),
            SchemaError,
            "not within 'c', which has 0-3,000,000 bp",
        ),
        (
            lambda: xl.transforms.select(gene=["gene00001", "gene0000X"])(xl.open_cells("a.h5ad")),
            SchemaError,
            r"1 of 2 labels that are not among the 100 of 'gene': 'gene0000X' \(like 'gene000",
        ),
    ],
    ids=map(str, range(18)),
)
@pytest.mark.usefixtures("files")
def test_bad_files__are_refused_with_what_is_possible(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, XloaderError)


def test_damage_inside__is_an_error_and_no_wrong_number(files):
    for name, group in (("a.h5ad", "X/data"), ("a.mcool", "resolutions/10000/pixels/count")):
        copy = files / f"bad-{name}"
        shutil.copy(files / name, copy)
        with h5py.File(copy) as f:
            chunk = f[group].id.get_chunk_info(0)
        with copy.open("r+b") as f:
            f.seek(chunk.byte_offset)
            f.write(b"\xff" * chunk.size)
        is_map = name.endswith("mcool")
        ds = xl.open_contacts(copy, resolution=10_000) if is_map else xl.open_cells(copy)
        with pytest.raises(ReadError, match=r"cannot read .*(damaged|truncated)"):
            total(ds)


def test_view__names_and_regions(files):
    ds = xl.open_contacts(files / "a.mcool", resolution=10_000, view="c:1,000,000-1,250,000")
    assert ds.start1.values[0] == 1_000_000
    assert ds.end2.values[-1] == 1_250_000
    whole = xl.open_contacts(files / "a.mcool", resolution=10_000, view=["c"])
    assert whole.sizes["bin1"] == 300
    with pytest.raises(SchemaError, match="overlap; a view holds each bin at most once"):
        xl.open_contacts(files / "a.mcool", resolution=10_000, view=["c", "c:0-20,000"])
