"""How conversion works: the same bytes on any machine, types that widen late, tiles that hold something."""

import anndata
import cooler
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
import zarr

import xloader as xl
from tests.sources import sparse, write_h5ad
from xloader import converting, threads
from xloader.backends.cooler import TILE, CoolerArray
from xloader.backends.hdf5 import HDF5File
from xloader.errors import ReadError
from xloader.store import rows_writer, staging, tasks, writers


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_cool(path, matrix, dtype=np.int32):
    bins = pd.DataFrame({"chrom": "c", "start": np.arange(len(matrix)) * 1_000})
    i, j = np.nonzero(np.triu(matrix))
    pixels = pd.DataFrame({"bin1_id": i, "bin2_id": j, "count": matrix[i, j]})
    cooler.create_cooler(
        str(path), bins.assign(end=bins.start + 1_000), pixels, dtypes={"count": dtype}
    )
    return path


def band(n, width, seed=0):
    """Return a symmetric map with counts near the diagonal only."""
    m = np.random.default_rng(seed).poisson(2, (n, n))
    m = np.triu(m) - np.triu(m, width)
    return m + np.triu(m, 1).T


@pytest.fixture
def small_shards(monkeypatch):
    """Make several tasks of small data."""
    monkeypatch.setattr(rows_writer, "_SHARD_CHUNKS", 2)
    monkeypatch.setattr(writers, "SHARD_NBYTES", 2**12)
    monkeypatch.setattr(writers, "SHARD_SIDE", 2 * TILE)


@pytest.mark.usefixtures("small_shards")
def test_bytes__are_the_same_on_any_number_of_processors(tmp_path, monkeypatch):
    x = sparse(500, 40)
    cells = write_h5ad(
        tmp_path / "a.h5ad", scipy.sparse.csr_matrix(x), obsm={"U": x[:, :2]}, layers={"d": x}
    )
    contacts = write_cool(tmp_path / "a.cool", band(900, 200))
    made = []
    for n in (1, 2, 7):
        for module in (threads, tasks, converting):
            monkeypatch.setattr(module, "n_cpus", lambda n=n: n)
        for source, shuffle in ((cells, True), (cells, False), (contacts, False)):
            store = tmp_path / f"{source.suffix}{n}{shuffle}"
            xl.convert(source, store, shuffle=shuffle, progress=False)
            made.append(tree(store))
    assert len(made[0]) > 15
    assert sum(p.match("values/c/*/0") for p in made[0]) > 3
    for k, each in enumerate(made):
        assert each.keys() == made[k % 3].keys()
        assert [p for p in each if each[p] != made[k % 3][p]] == []
    assert made[0].keys() == made[1].keys()
    assert any(made[0][p] != made[1][p] for p in made[0])


@pytest.mark.parametrize("budget", ["1MB", "1GB"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_shuffled__of_a_compressed_file_through_many_slabs(dtype, budget, tmp_path, monkeypatch):
    x = sparse(9_000, 300, dtype=dtype)
    path = tmp_path / "a.h5ad"
    anndata.AnnData(scipy.sparse.csr_matrix(x)).write_h5ad(path, compression="gzip")
    slabs = []
    real = staging.StagedRows.__init__

    def init(self, parts, *args):
        slabs.append(len(parts))
        real(self, parts, *args)

    monkeypatch.setattr(staging.StagedRows, "__init__", init)
    out = xl.convert(path, tmp_path / "s", shuffle=True, memory_budget=budget, progress=False)
    np.testing.assert_array_equal(out.X.values, x[out.row.values])
    assert out.X.dtype == dtype
    stored = zarr.open_array(str(tmp_path / "s" / "X" / "values"), mode="r")
    assert stored.dtype == "u1"
    assert slabs[0] > 1 if budget == "1MB" else slabs[0] == 1


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("late", "dtype"), [(255, "u1"), (256, "u2"), (2**16, "u4"), (2**33, "f8"), (0.5, "f8")]
)
def test_type__widens_for_a_value_in_the_last_row(late, dtype, shuffle, tmp_path):
    x = sparse(1_000, 40).astype("f8")
    x[-1, 7] = late
    x[-2, 7] = 256 if late > 256 else 1
    path = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(x), layers={"d": x})
    out = xl.convert(path, tmp_path / "s", shuffle=shuffle, progress=False)
    np.testing.assert_array_equal(out.X.values, x[out.row.values])
    np.testing.assert_array_equal(out.d.values, x[out.row.values])
    for name in ("X/values", "d"):
        assert zarr.open_array(str(tmp_path / "s" / name), mode="r").dtype == dtype


@pytest.mark.usefixtures("small_shards")
def test_type__that_does_not_fit_stops_the_pass(tmp_path, monkeypatch):
    x = sparse(1_000, 40).astype("f8")
    x[:, 0] = 0.5
    path = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(x))
    rungs = []
    real = rows_writer.RowsWriter.write

    def write(self, task, rung):
        rungs.append(rung)
        return real(self, task, rung)

    monkeypatch.setattr(rows_writer.RowsWriter, "write", write)
    monkeypatch.setattr(tasks, "n_cpus", lambda: 1)
    xl.convert(path, tmp_path / "s", progress=False)
    assert rungs.count(0) == 1
    assert rungs.count(3) > 5
    rungs.clear()
    xl.convert(path, tmp_path / "t", progress=False, shuffle=True)
    assert {*rungs} == {3}


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("codec", ["fast", "small"])
@pytest.mark.parametrize("width", [10, 900])
def test_tiles__only_those_that_hold_something_are_written(width, codec, tmp_path):
    m = band(900, width)
    m[130:300] = m[:, 130:300] = 0
    path = write_cool(tmp_path / "a.cool", m)
    out = xl.convert(path, tmp_path / "s", codec=codec, progress=False)
    xr.testing.assert_identical(xl.open_contacts(path).compute(), out.compute())
    np.testing.assert_array_equal(out["count"].values, m)
    array = tmp_path / "s" / "resolutions" / "1000" / "count"
    by_zarr = zarr.open_array(str(array), mode="r")
    assert (by_zarr.chunks, by_zarr.shards) == ((128, 128), (256, 256))
    padded = np.pad(m, (0, 1024 - 900)).reshape(8, 128, 8, 128).any(axis=(1, 3))
    there = np.zeros((8, 8), bool)
    for file in (array / "c").rglob("*"):
        if file.is_file():
            index = np.frombuffer(file.read_bytes()[-68:-4], "<u8").reshape(2, 2, 2)
            i, j = int(file.parent.name) * 2, int(file.name) * 2
            there[i : i + 2, j : j + 2] = index[:, :, 0] != 2**64 - 1
    np.testing.assert_array_equal(there, np.triu(padded))


@pytest.mark.parametrize("most", [1, 3, 100])
def test_read_filled__equals_read_tiles(most, tmp_path, monkeypatch):
    m = band(900, 300)
    array = CoolerArray(HDF5File(str(write_cool(tmp_path / "a.cool", m))), "/")
    ij = np.array([(0, 0), (0, 1), (0, 6), (2, 2), (2, 3), (2, 7), (7, 7)])
    expected = array.read_tiles(ij)
    for pixels in (2**20, 700):
        monkeypatch.setattr("xloader.backends.cooler.PIXELS", pixels)
        got = {}
        for part, tiles in array.read_filled(ij, most):
            assert len(part) <= most
            got.update({tuple(at): tile for at, tile in zip(part.tolist(), tiles, strict=True)})
        for at, tile in zip(ij.tolist(), expected, strict=True):
            np.testing.assert_array_equal(got.get(tuple(at), 0 * tile), tile)
        assert len(got) == (5 if pixels > 700 else 7)


@pytest.mark.parametrize("bin2", [899 + 1, 10**6, -1, 3])
def test_convert__refuses_a_pixel_outside_of_what_is_read(bin2, tmp_path):
    m = band(900, 20)
    m[600:, :] = m[:, 600:] = 0
    m[899, 899] = 5
    path = write_cool(tmp_path / "a.cool", m)
    with h5py.File(path, "r+") as f:
        f["pixels/bin2_id"][-1] = bin2
    with pytest.raises(ReadError, match=rf"lies at bins \(899, {bin2}\), outside the upper"):
        xl.convert(path, tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("order", [np.s_[::-1], np.s_[40:700], [3, 9, 4]])
@pytest.mark.parametrize("budget", ["36MB", "1GB"])
def test_rectangles__of_any_width_make_the_same_tiles(order, budget, tmp_path):
    m = band(700, 500)
    ds = xl.open_contacts(write_cool(tmp_path / "a.cool", m)).isel(bin1=order, bin2=order)
    out = xl.convert(ds, tmp_path / "s", memory_budget=budget, progress=False)
    np.testing.assert_array_equal(out["count"].values, m[order][:, order])
    xr.testing.assert_identical(ds.compute(), out.compute())
