"""Single cells of one file: each by its path, and all as one lazy Dataset that a Loader reads."""

import pickle

import cooler
import dask
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xloader as xl
from tests.doubles import assert_equals_naive
from tests.test_backend_cooler import bins_of, random_map, rewrite
from xloader.backends.cooler import CellsArray
from xloader.backends.hdf5 import close_hdf5
from xloader.errors import PlanError, ReadError, SchemaError
from xloader.schema import lazy

N = 60
CELLS = {"cell-2.cool": 2, "11": 11, "cell.10": 10}


def write_scool(path, n=N, cells=CELLS, dtype=np.int32, **columns):
    """Write a file with cooler itself, and return the maps in the order of their names."""
    maps = {name: random_map(n, seed, dtype) for name, seed in sorted(cells.items())}
    pixels = {}
    for name, m in maps.items():
        i, j = np.nonzero(np.triu(m))
        pixels[name] = pd.DataFrame({"bin1_id": i, "bin2_id": j, "count": m[i, j]})
    bins = bins_of(n).assign(**columns)
    cooler.create_scool(str(path), bins, pixels, dtypes={"count": dtype})
    return maps


def opened(path, **kwargs):
    return xr.open_dataset(path, engine="cooler", **kwargs)


@pytest.mark.parametrize("chunks", [None, {}])
def test_all_cells__are_one_dataset(chunks, tmp_path):
    path = tmp_path / "a"
    maps = write_scool(path, weight=np.linspace(0.5, 1, N))
    stacked = np.stack([*maps.values()])
    for ds in (
        opened(path, chunks=chunks),
        opened(f"{path}::/cells", chunks=chunks),
        xl.open_contacts(path, chunks=chunks),
        opened(path, chunks=chunks, resolution=1_000),
    ):
        assert ds["count"].dims == ("cell", "bin1", "bin2")
        assert not ds["count"].variable._in_memory
        assert ds.cell.values.tolist() == [*maps] == cooler_names(path)
        assert ds["count"].dtype == np.int32
        np.testing.assert_array_equal(ds["count"].values, stacked)
        assert ds.weight1.dims == ("bin1",)
        np.testing.assert_array_equal(ds.weight2, np.linspace(0.5, 1, N))
        assert ds.chrom1.values.tolist() == bins_of(N).chrom.tolist()
        assert ds.attrs["binsize"] == 1_000
    assert xl.resolutions(path) == [1_000]
    with pytest.raises(SchemaError, match="has no resolution 7; it has 1000"):
        opened(path, resolution=7)


def cooler_names(path):
    return [
        name.removeprefix("/cells/") for name in sorted(cooler.fileops.list_scool_cells(str(path)))
    ]


@pytest.mark.parametrize(("n", "side"), [(5_000, 1_024), (300, 300), (0, 1)])
def test_chunks__are_squares_of_one_cell(n, side):
    """A chunk of all bins would take gigabytes of a fine map."""
    cells = CellsArray(None, ["/cells/a", "/cells/b"], n, "int32")
    preferred = lazy(("cell", "bin1", "bin2"), cells).encoding["preferred_chunks"]
    assert preferred == {"cell": 1 if n == 5_000 else 2, "bin1": side, "bin2": side}


def test_each_cell__opens_by_its_path(tmp_path):
    for name, m in write_scool(tmp_path / "a.scool").items():
        ds = xl.open_contacts(f"{tmp_path}/a.scool::/cells/{name}")
        assert ds["count"].dims == ("bin1", "bin2")
        np.testing.assert_array_equal(ds["count"].values, m)
        oracle = cooler.Cooler(f"{tmp_path}/a.scool::/cells/{name}").matrix(balance=False)[:]
        np.testing.assert_array_equal(ds["count"].values, oracle)


@pytest.mark.parametrize("chunks", [None, {}, {"cell": 2, "bin1": 17, "bin2": 60}])
@pytest.mark.filterwarnings("ignore:The specified chunks separate:UserWarning")
def test_selections__equal_those_of_the_array(chunks, tmp_path):
    maps = write_scool(tmp_path / "a.scool")
    m = np.stack([*maps.values()])
    count = opened(tmp_path / "a.scool", chunks=chunks)["count"]
    for key in (
        (slice(None), 3, slice(5, 40)),
        (1, slice(None), slice(None, None, -2)),
        ([2, 0], slice(10, 20), [4, 4, 59]),
        (slice(0, 0), slice(3), slice(4)),
        (slice(0, 0), 2, slice(4)),
        (-1, -1, -1),
    ):
        cells, rows, columns = key
        expected = m[cells][..., rows, :][..., columns]
        np.testing.assert_array_equal(count[key].values, expected)
    by_name = count.sel(cell="cell.10", bin1=slice(5, 9))
    np.testing.assert_array_equal(by_name.values, maps["cell.10"][5:10])


def test_bins__are_read_once_and_shared(tmp_path, monkeypatch):
    write_scool(tmp_path / "a.scool", cells={f"c{k:02}": k for k in range(12)})
    reads = []
    plain = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset,
        "__getitem__",
        lambda self, *a, **k: reads.append(self.name) or plain(self, *a, **k),
    )
    opened(tmp_path / "a.scool")
    assert len([name for name in reads if name.endswith("bins/start")]) == 1
    assert not [name for name in reads if "pixels" in name or "indexes" in name]


def test_vector_of_single_cells__has_the_cell_dimension(tmp_path):
    path = tmp_path / "a.scool"
    maps = write_scool(path)
    own = {name: np.random.default_rng(k).random(N) for k, name in enumerate(maps)}
    with h5py.File(path, "r+") as f:
        for name in ("11", "cell.10"):
            bins = f[f"cells/{name}/bins"]
            bins["KR"] = own[name]
            bins["KR"].attrs["divisive_weights"] = False
    ds = opened(path)
    assert ds.KR1.dims == ("cell", "bin1")
    assert ds.KR2.dims == ("cell", "bin2")
    assert ds.KR1.attrs["divisive"] is False
    for name in maps:
        expected = own[name] if name != "cell-2.cool" else np.full(N, np.nan)
        np.testing.assert_array_equal(ds.KR1.sel(cell=name), expected)
    close_hdf5(str(path))
    with h5py.File(path, "r+") as f:
        f["cells/11/bins/KR"].attrs["divisive_weights"] = True
    with pytest.raises(
        SchemaError, match="'KR' divides in some cells of .*a.scool' and multiplies in"
    ):
        opened(path)


@pytest.mark.parametrize("shared", [True, False])
def test_balance__takes_the_vector_of_each_cell(shared, tmp_path):
    path = tmp_path / "a.scool"
    vector = np.linspace(0.5, 1, N)
    maps = write_scool(path, **({"weight": vector} if shared else {}))
    m = np.stack([*maps.values()])
    factors = np.stack([vector * (1 if shared else k + 1) for k in range(len(maps))])
    if not shared:
        with h5py.File(path, "r+") as f:
            for name, values in zip(maps, factors, strict=True):
                f[f"cells/{name}/bins/weight"] = values
    expected = m * factors[:, :, None] * factors[:, None, :]
    for input_dims in ({"bin1": 30, "bin2": 30}, {"cell": 1}):
        ds = opened(path, chunks={}).isel(bin1=slice(30), bin2=slice(30))
        balance = xl.transforms.balance("weight")
        loader = xl.Loader(ds, input_dims=input_dims, batch_size=3, transform=balance)
        got = loader[0]["count"].values.reshape(3, 30, 30)
        np.testing.assert_allclose(got, expected[:, :30, :30], rtol=1e-6)


def test_counts__of_every_cell_fit_the_type(tmp_path):
    path = tmp_path / "a.scool"
    maps = write_scool(path)
    fractions = random_map(N, 11, np.float64)
    i, j = np.nonzero(np.triu(fractions))
    rewrite(path, "cells/11/pixels/count", lambda _: fractions[i, j])
    maps["11"] = fractions
    ds = opened(path)
    assert ds["count"].dtype == np.float64
    np.testing.assert_array_equal(ds["count"].values, np.stack([*maps.values()]))


def test_cells_of_different_bins__are_refused(tmp_path):
    path = tmp_path / "a.scool"
    write_scool(path)
    rewrite(path, "cells/cell.10/bins/end", lambda x: x + (np.arange(len(x)) == 59))
    message = (
        r"cells '11' and 'cell.10' of .*a.scool' have different bins \(`end`\); open each by itself"
    )
    with pytest.raises(SchemaError, match=message):
        opened(path)


def test_damaged_cell__is_named(tmp_path):
    path = tmp_path / "a.scool"
    maps = write_scool(path)
    rewrite(path, "cells/11/indexes/bin1_offset", lambda x: x * 0)
    ds = opened(path)
    np.testing.assert_array_equal(ds["count"].sel(cell="cell.10"), maps["cell.10"])
    with pytest.raises(
        ReadError, match=r"`/cells/11/indexes/bin1_offset` of .*a.scool' .* does not fit"
    ):
        ds["count"].load()
    close_hdf5(str(path))
    with h5py.File(path, "r+") as f:
        del f["cells/11/pixels"]
    with pytest.raises(
        SchemaError, match=r"'/cells' of .* but has \['11'\], which lack a part of a coo"
    ):
        opened(path)
    close_hdf5(str(path))
    with h5py.File(path, "r+") as f:
        for name in maps:
            del f[f"cells/{name}"]
    with pytest.raises(
        SchemaError, match="should hold single cells, but has none; .* write it again"
    ):
        opened(path)


@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"input_dims": {"bin1": 8, "bin2": 6}},
        {"input_dims": {"cell": 1, "bin1": 8, "bin2": 6}},
        {"input_dims": {"cell": 2, "bin1": 8}, "input_overlap": {"cell": 1}},
        {"input_dims": {"cell": 1}},
        {"windows": xl.windows.diagonal(size=12, stride=6)},
    ],
    ids=["bins", "cell and bins", "cells and rows", "cells", "diagonal"],
)
def test_loader__cuts_windows_over_bins_and_cells(kwargs, chunks, tmp_path):
    write_scool(tmp_path / "a.scool", weight=np.linspace(0.5, 1, N))
    ds = opened(tmp_path / "a.scool", chunks=chunks)
    loader = xl.Loader(ds, batch_size=3, shuffle=True, **kwargs)
    assert_equals_naive(loader, ds, *(loader[k] for k in range(min(4, len(loader)))))


def test_pickle__holds_no_data(tmp_path):
    maps = write_scool(tmp_path / "a.scool")
    ds = pickle.loads(pickle.dumps(opened(tmp_path / "a.scool", chunks={})))
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(ds["count"].values, np.stack([*maps.values()]))


def test_convert__takes_a_cell_and_refuses_all(tmp_path):
    maps = write_scool(tmp_path / "a.scool")
    stored = xl.convert(f"{tmp_path}/a.scool::/cells/11", tmp_path / "s", progress=False)
    np.testing.assert_array_equal(stored["count"].values, maps["11"])
    with pytest.raises(PlanError, match="one contact map, not those of 3 cells; .*::/cells/ID'"):
        xl.convert(tmp_path / "a.scool", tmp_path / "t", progress=False)
    one = opened(tmp_path / "a.scool").isel(cell=1, drop=True)
    np.testing.assert_array_equal(
        xl.convert(one, tmp_path / "u", progress=False)["count"].values, maps["cell-2.cool"]
    )
