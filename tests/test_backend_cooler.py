"""Cooler files of every make equal the matrix that was written, lazily and in any process."""

import multiprocessing
import pickle

import cooler
import dask
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xloader.backends import cooler as backend
from xloader.backends.hdf5 import HDF5File
from xloader.errors import ReadError, SchemaError

SMALL_CHUNKS = pytest.mark.filterwarnings("ignore:The specified chunks separate:UserWarning")


def random_map(n, seed=0, dtype=np.int32, symmetric=True):
    """Return a map with empty rows, of more than one tile where n > 128."""
    rng = np.random.default_rng(seed)
    m = rng.poisson(0.4, (n, n)) * rng.integers(1, 60_000, (n, n))
    empty = rng.random(n) < 0.1
    m[empty], m[:, empty] = 0, 0
    m = np.triu(m) + np.triu(m, 1).T if symmetric else m
    return (m * 0.37).astype(dtype) if np.dtype(dtype).kind == "f" else m.astype(dtype)


def bins_of(n, size=1_000):
    """Return bins of two chromosomes, not in alphabetical order, the last of each shorter."""
    first = n - n // 3
    parts = []
    for chrom, k in (("chrB", first), ("chrA", n - first)):
        start = np.arange(k) * size
        end = np.minimum(start + size, k * size - size // 4)
        parts.append(pd.DataFrame({"chrom": chrom, "start": start, "end": end}))
    return pd.concat(parts, ignore_index=True)


def write(uri, matrix, bins=None, *, symmetric=True, **columns):
    """Write a map with cooler itself."""
    bins = (bins_of(len(matrix)) if bins is None else bins).assign(**columns)
    kept = np.triu(matrix) if symmetric else matrix
    i, j = np.nonzero(kept)
    pixels = pd.DataFrame({"bin1_id": i, "bin2_id": j, "count": kept[i, j]})
    cooler.create_cooler(
        str(uri),
        bins,
        pixels,
        dtypes={"count": matrix.dtype},
        symmetric_upper=symmetric,
        triucheck=symmetric,
        mode="a",
    )
    return str(uri).partition("::")[0]


def write_plain(path, matrix, *, symmetric, chunk, ids):
    """Write the least that a cooler can be, with h5py: no attribute, chunks of any length."""
    bins = bins_of(len(matrix))
    i, j = np.nonzero(np.triu(matrix) if symmetric else matrix)
    offset = np.searchsorted(i, np.arange(len(matrix) + 1)).astype(ids)
    chunks = (min(chunk, len(i)),) if len(i) else None
    with h5py.File(path, "w") as f:
        f["chroms/name"] = np.array(["chrB", "chrA"], "S4")
        f["chroms/length"] = np.array([10**6, 10**6], "i4")
        f["bins/chrom"] = (bins.chrom == "chrA").to_numpy("i4")
        f["bins/start"], f["bins/end"] = bins.start.to_numpy("i4"), bins.end.to_numpy("i4")
        f["indexes/bin1_offset"] = offset
        f.create_dataset("pixels/bin2_id", data=j.astype(ids), chunks=chunks)
        f.create_dataset("pixels/count", data=matrix[i, j], chunks=chunks)
        if not symmetric:
            f.attrs["storage-mode"] = "square"
    return path


def opened(path, **kwargs):
    return xr.open_dataset(path, engine="cooler", **kwargs)


def keys(n):
    steps = st.slices(n).filter(lambda s: (s.step or 1) > 0 or len(range(n)[s]) > 0)
    scattered = st.lists(st.integers(0, n - 1), max_size=6).map(lambda v: np.array(v, np.int64))
    return st.one_of(steps, scattered, st.integers(-n, n - 1))


@SMALL_CHUNKS
@given(data=st.data())
def test_values__any_selection_equals_the_matrix(data, tmp_path_factory):
    n, symmetric = data.draw(st.integers(1, 300)), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([np.int32, np.int64, np.float64]))
    matrix = random_map(n, n, dtype, symmetric)
    path = write_plain(
        tmp_path_factory.mktemp("c") / "a.cool",
        matrix,
        symmetric=symmetric,
        chunk=data.draw(st.sampled_from([1, 37, 4096])) if n < 60 else 4096,
        ids=data.draw(st.sampled_from(["i4", "i8"])),
    )
    chunks = data.draw(st.sampled_from([None, {}, {"bin1": 50, "bin2": 77}]))
    count = opened(path, chunks=chunks)["count"]
    a, b = data.draw(keys(n)), data.draw(keys(n))
    got = count.isel(bin1=a, bin2=b).values
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, matrix[a][..., b])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("pixels", [1, 100, 5_000])
def test_values__are_the_same_however_few_pixels_are_held(pixels, symmetric, tmp_path, monkeypatch):
    matrix = random_map(300, symmetric=symmetric)
    path = write(tmp_path / "a.cool", matrix, symmetric=symmetric)
    monkeypatch.setattr(backend, "PIXELS", pixels)
    ds = opened(path)
    assert ds.attrs["storage_mode"] == ("symmetric-upper" if symmetric else "square")
    np.testing.assert_array_equal(ds["count"].values, matrix)
    np.testing.assert_array_equal(ds["count"][250:, 3:140].values, matrix[250:, 3:140])


def test_values__tiles_far_apart_and_in_holes(tmp_path):
    """Tiles asked for in any pattern of rows: each gets its own pixels and no other's."""
    matrix = random_map(900)
    array = backend.CoolerArray(HDF5File(write(tmp_path / "a.cool", matrix)), "/")
    t = array.tile
    padded = np.pad(matrix, (0, 8 * t - 900))
    for ij in ([(0, 7), (2, 2), (2, 5), (3, 3), (7, 7)], [(1, 6)], [(0, 0), (1, 1), (5, 6)]):
        got = array.read_tiles(np.array(ij))
        for (i, j), tile in zip(ij, got, strict=True):
            np.testing.assert_array_equal(tile, padded[i * t : i * t + t, j * t : j * t + t])
    assert array.read_tiles(np.empty((0, 2), np.int64)).shape == (0, t, t)


def test_values__a_map_without_a_pixel(tmp_path):
    ds = opened(write(tmp_path / "a.cool", np.zeros((30, 30), np.int32)), chunks={})
    assert ds["count"].shape == (30, 30)
    assert not ds["count"].values.any()


def test_labels__equal_cooler(tmp_path):
    path = write(tmp_path / "a.cool", random_map(40), size=np.arange(40))
    with h5py.File(path, "r+") as f:
        f["bins/strand"] = np.array(["+", "-"] * 20, "S1")
    bins = cooler.Cooler(path).bins()[:]
    ds = opened(path, chunks={})
    for side in "12":
        assert ds[f"chrom{side}"].values.tolist() == bins["chrom"].astype(str).tolist()
        assert ds[f"start{side}"].attrs["units"] == "bp"
        for name in ("start", "end", "size"):
            np.testing.assert_array_equal(ds[f"{name}{side}"], bins[name])
        assert ds[f"strand{side}"].values.tolist() == ["+", "-"] * 20
        assert "divisive" not in ds[f"size{side}"].attrs
    assert ds.attrs["chroms"] == ["chrB", "chrA"]
    assert ds.attrs["chrom_lengths"] == cooler.Cooler(path).chromsizes.tolist()
    assert ds.attrs["binsize"] == ds.attrs["resolution"] == 1_000
    assert "count" not in opened(path, drop_variables="count")
    assert "size1" not in opened(path, drop_variables=["size1"]).coords


def test_weights__are_divisive_by_attribute_then_by_name(tmp_path):
    names = ("KR", "VC", "VC_SQRT", "SCALE", "weight", "ICE", "kr_", "said", "denied", "VC_")
    weight = np.linspace(0.5, 2, 30)
    weight[4] = np.nan
    path = write(tmp_path / "a.cool", random_map(30), **dict.fromkeys(names, weight))
    with h5py.File(path, "r+") as f:
        f["bins/said"].attrs["divisive_weights"] = True
        f["bins/denied"].attrs["divisive_weights"] = False
        f["bins/VC_"].attrs["divisive_weights"] = np.True_
        f["bins/VC"].attrs["divisive_weights"] = False
        f["bins/weight"].attrs["scale"] = np.array([1.5, 2.5])
        f["bins/weight"].attrs["cis_only"] = True
        f["bins/ICE"].attrs["of"] = np.bytes_("cooler")
    ds = opened(path, chunks={})
    divisive = {k for k in names if ds[f"{k}1"].attrs["divisive"] and ds[f"{k}2"].attrs["divisive"]}
    assert divisive == {"KR", "VC_SQRT", "SCALE", "said", "VC_"}
    assert all(type(ds[f"{k}1"].attrs["divisive"]) is bool for k in names)
    for name in names:
        np.testing.assert_array_equal(ds[f"{name}2"], weight)
    assert ds.weight1.attrs["scale"] == [1.5, 2.5]
    assert ds.weight1.attrs["cis_only"] is True
    assert ds.ICE2.attrs["of"] == "cooler"


def test_bins__may_vary_in_size(tmp_path):
    bins = bins_of(40)
    bins["end"] += np.arange(40) * 7 % 13
    bins["start"] = np.where(bins.start > 0, bins.end.shift(fill_value=0), 0)
    matrix = random_map(40)
    said = write(tmp_path / "said.cool", matrix, bins)
    silent = write(tmp_path / "silent.cool", matrix, bins)
    with h5py.File(silent, "r+") as f:
        f.attrs.clear()
    for path in (said, silent):
        ds = opened(path)
        assert ds.attrs["binsize"] is None
        np.testing.assert_array_equal(ds.end1, bins.end)
        np.testing.assert_array_equal(ds["count"].values, matrix)
    with pytest.raises(SchemaError, match="whose bins have no one size; leave `resolution` out"):
        opened(path, resolution=1_000)


@pytest.mark.parametrize("chrom", ["enum", "code", "text"])
def test_schema_2__is_known_by_its_groups(chrom, tmp_path):
    """Attributes stripped, narrow indexes, chromosomes in each way that writers have put them."""
    matrix = random_map(60)
    path = write(tmp_path / "a.cool", matrix)
    with h5py.File(path, "r+") as f:
        f.attrs.clear()
        narrow = dict.fromkeys(("indexes/bin1_offset", "pixels/bin1_id", "pixels/bin2_id"), "i4")
        if chrom != "enum":
            codes = f["bins/chrom"][()].astype("i4")
            values = codes if chrom == "code" else f["chroms/name"][()][codes]
            del f["bins/chrom"]
            f["bins/chrom"] = values
        for name, dtype in narrow.items():
            values = f[name][()].astype(dtype)
            del f[name]
            f[name] = values
    ds = opened(path)
    assert ds.attrs["binsize"] == 1_000
    assert ds.attrs["storage_mode"] == "symmetric-upper"
    assert ds.attrs["assembly"] == "unknown"
    assert ds.chrom1.values.tolist() == bins_of(60).chrom.tolist()
    np.testing.assert_array_equal(ds["count"].values, matrix)


def test_bin_size__is_found_where_no_attribute_says_it(tmp_path):
    path = write(tmp_path / "a.cool", random_map(10), bins_of(10, 2_500))
    with h5py.File(path, "r+") as f:
        f.attrs["bin-size"] = "null"
    assert opened(path).attrs["binsize"] == 2_500
    assert opened(path, resolution=2_500).sizes["bin1"] == 10


def test_legacy_zoom_levels__are_resolutions(tmp_path):
    sizes = {str(k): 1_000 * 2 ** (11 - k) for k in range(12)}  # level 10 sorts before level 2
    for level, size in sizes.items():
        write(f"{tmp_path / 'a.mcool'}::/{level}", random_map(9, size), bins_of(9, size))
    with pytest.raises(SchemaError, match=r"has 12 resolutions \(1000, 2000, 4000, .*, 2048000 bp"):
        opened(tmp_path / "a.mcool")
    for level, size in sizes.items():
        for ds in (
            opened(tmp_path / "a.mcool", resolution=size),
            opened(f"{tmp_path / 'a.mcool'}::/{level}"),
        ):
            assert ds.attrs["binsize"] == size
            np.testing.assert_array_equal(ds["count"].values, random_map(9, size))


@pytest.fixture
def mcool(tmp_path):
    """Three resolutions whose names sort otherwise as text."""
    for size in (10_000, 2_000, 500):
        write(f"{tmp_path / 'a.mcool'}::/resolutions/{size}", random_map(9, size), bins_of(9, size))
    return tmp_path / "a.mcool"


@pytest.mark.parametrize(
    "group", ["::/resolutions/2000", "::resolutions/2000", "::/resolutions/2000/"]
)
def test_group_of_a_file__is_opened_by_its_path(group, mcool):
    for resolution in (None, 2_000):
        ds = opened(f"{mcool}{group}", resolution=resolution)
        assert ds.attrs["resolution"] == 2_000
        np.testing.assert_array_equal(ds["count"].values, random_map(9, 2_000))


def test_one_resolution__needs_no_asking(tmp_path):
    path = write(f"{tmp_path / 'a.mcool'}::/resolutions/500", random_map(9), bins_of(9, 500))
    assert opened(path).attrs["resolution"] == 500


def test_chunks__dask_or_lazily_indexed(tmp_path):
    path = write(tmp_path / "a.cool", random_map(200), weight=np.ones(200))
    ds = opened(path, chunks={})
    assert dask.is_dask_collection(ds["count"].data)
    lazy = opened(path, chunks=None)
    assert not lazy["count"].variable._in_memory
    assert not lazy["count"].isel(bin1=3).variable._in_memory
    for name in ("chrom1", "start2", "weight1", "bin2"):
        assert isinstance(ds[name].variable._data, np.ndarray) or name == "bin2"
        assert not dask.is_dask_collection(ds[name].data)
        assert lazy[name].values.tolist() == ds[name].values.tolist()


@SMALL_CHUNKS
@pytest.mark.parametrize(
    "expression",
    [
        np.log1p,
        lambda m: m.where(m > 1_000),
        lambda m: m.where(m.start1 > 5_000, 0).isel(bin2=slice(3, 90)),
        lambda m: m.sel(bin1=slice(20, 150), bin2=[7, 199, 3]),
        lambda m: m.sel(bin1=17).isel(bin2=slice(None, None, -3)),
        lambda m: m.sum("bin2"),
        lambda m: (m * m.weight1 * m.weight2).sum("bin1"),
        lambda m: m.T[5:9] - m[5:9].values.T.mean(),
    ],
    ids=["log1p", "where", "where isel", "sel", "sel isel", "sum", "balance", "transpose"],
)
def test_expressions__are_lazy_and_right(expression, tmp_path):
    path = write(tmp_path / "a.cool", random_map(200), weight=np.linspace(0.5, 1, 200))
    whole = opened(path).load()["count"]
    np.testing.assert_array_equal(whole.values, random_map(200))
    made = expression(opened(path, chunks={"bin1": 70, "bin2": 90})["count"])
    assert dask.is_dask_collection(made.data)
    xr.testing.assert_allclose(made.compute(), expression(whole), rtol=1e-12)
    xr.testing.assert_allclose(expression(opened(path)["count"]), expression(whole), rtol=1e-12)


def test_coordinates__choose_bins(tmp_path):
    matrix = random_map(90)
    path = write(tmp_path / "a.cool", matrix, weight=np.where(np.arange(90) % 4, 1, np.nan))
    ds = opened(path, chunks={})
    asked = ds.query(bin1="chrom1 == 'chrA' and start1 >= 5_000", bin2="weight2 == weight2")
    assert dask.is_dask_collection(asked["count"].data)
    assert asked.bin1.values.tolist() == list(range(65, 90))
    np.testing.assert_array_equal(asked["count"].values, matrix[65:, np.arange(90) % 4 > 0])
    kept = ds.where(ds.chrom1 == "chrA", drop=True)
    assert dask.is_dask_collection(kept["count"].data)
    np.testing.assert_array_equal(kept["count"].values, matrix[60:])


def totals(ds):
    """Read everything in this process, without a pool of threads that a fork would not copy."""
    with dask.config.set(scheduler="synchronous"):
        return ds["count"].values.sum(axis=0).tolist(), ds.chrom1.values.tolist()


@pytest.mark.parametrize("chunks", [None, {}])
def test_pickle__holds_no_data_and_reads_the_same(chunks, tmp_path):
    ds = opened(write(tmp_path / "a.cool", random_map(900)), chunks=chunks)
    for source in (ds, ds.isel(bin1=slice(0, 800)), np.log1p(ds) if chunks == {} else ds):
        assert totals(pickle.loads(pickle.dumps(source))) == totals(source)
    array = backend.CoolerArray(HDF5File(str(tmp_path / "a.cool")), "/")
    assert len(pickle.dumps(array)) < 1_000


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes__read_while_the_parent_has_the_file_open(method, chunks, tmp_path):
    matrix = random_map(300)
    ds = opened(write(tmp_path / "a.cool", matrix), chunks=chunks)
    expected = matrix.sum(axis=0).tolist(), bins_of(300).chrom.tolist()
    assert totals(ds) == expected
    with multiprocessing.get_context(method).Pool(2) as pool:
        theirs = pool.map_async(totals, [ds] * 6)
        mine = [totals(ds) for _ in range(6)]
        assert theirs.get(timeout=100) == mine == [expected] * 6


def write_other(path):
    with h5py.File(path, "w") as f:
        f.create_group("obs"), f.create_group("var"), f.create_group("X")
    return path


def test_bad_file__is_refused_when_opened(tmp_path, mcool):
    whole = mcool.read_bytes()
    (tmp_path / "cut.mcool").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.cool").write_text("chr1\t0\t1000\n")
    write_other(tmp_path / "cells.h5ad")
    for name, error, message in [
        ("none.cool", ReadError, "none.cool': No such file or directory; check the path"),
        ("text.cool", ReadError, r"text.cool' \(12 bytes\) as HDF5: .* of another format"),
        ("cut.mcool", ReadError, rf"cut.mcool' \({len(whole) // 2} bytes\) .*truncated file"),
        (".", ReadError, "as HDF5"),
        (
            "cells.h5ad",
            SchemaError,
            r"HDF5 but no cooler: '/' has \['X', 'obs', 'var'\], a cooler has",
        ),
        (
            "a.mcool::/resolutions/7",
            SchemaError,
            r"no group '/resolutions/7'; at its root .*\['resol",
        ),
        (
            "a.mcool::/resolutions/500/bins/start",
            SchemaError,
            "has no group '/resolutions/500/bins/st",
        ),
        ("a.mcool::/resolutions/500/bins", SchemaError, r"no cooler: .*'chrom', 'end', 'start'"),
    ]:
        with pytest.raises(error, match=message):
            opened(f"{tmp_path}/{name}")


def test_resolution__is_one_that_is_there(mcool):
    with pytest.raises(SchemaError, match=r"no resolution 7; it has 500, 2000, 10000 \(bp\)"):
        opened(mcool, resolution=7)
    no_choice = (
        r"has 3 resolutions \(500, 2000, 10000 bp\) and none was asked for; .*`resolution=10000`"
    )
    with pytest.raises(SchemaError, match=no_choice):
        opened(mcool)
    with pytest.raises(SchemaError, match="has no resolution 500; it has 2000 .bp"):
        opened(f"{mcool}::/resolutions/2000", resolution=500)


@pytest.mark.parametrize("name", ["bins/end", "chroms/name", "pixels/count", "indexes/bin1_offset"])
def test_lost_part__is_named(name, tmp_path):
    path = write(tmp_path / "a.cool", random_map(9))
    with h5py.File(path, "r+") as f:
        del f[name]
    with pytest.raises(
        SchemaError, match=f"lacks `{name}`, which every cooler has .*write it again"
    ):
        opened(path)


def rewrite(path, name, change):
    with h5py.File(path, "r+") as f:
        values = f[name][()]
        del f[name]
        f[name] = change(values)


def test_index__must_fit_the_pixels(tmp_path):
    for k, change in enumerate([lambda x: x[:-1], lambda x: x - (x == x[-1]), lambda x: x[::-1]]):
        path = write(tmp_path / f"{k}.cool", random_map(50))
        rewrite(path, "indexes/bin1_offset", change)
        with pytest.raises(ReadError, match="does not fit its 50 bins and .* pixels: .* damaged"):
            opened(path)


@pytest.mark.parametrize("bin2", [50, -1, 0])
def test_pixel_outside_the_map__is_an_error(bin2, tmp_path):
    path = write(tmp_path / "a.cool", np.triu(random_map(50), 3) + np.eye(50, dtype=np.int32))
    rewrite(path, "pixels/bin2_id", lambda x: np.append(x[:-1], bin2))
    with pytest.raises(
        ReadError, match=rf"lies at bins \(49, {bin2}\), outside the upper triangle"
    ):
        opened(path)["count"].load()


def test_code_of_no_chromosome__is_an_error(tmp_path):
    path = write(tmp_path / "a.cool", random_map(9))
    rewrite(path, "bins/chrom", lambda x: x.astype("i4") + 1)
    with pytest.raises(
        ReadError, match=r"has codes \[2\], which stand for none of its 2 chromosomes"
    ):
        opened(path)


@pytest.mark.parametrize("chunks", [None, {}])
def test_damage_of_the_data__is_told_when_they_are_read(chunks, tmp_path):
    path = write(tmp_path / "a.cool", random_map(200))
    with h5py.File(path) as f:
        chunk = f["pixels/count"].id.get_chunk_info(0)
    with (tmp_path / "a.cool").open("r+b") as f:
        f.seek(chunk.byte_offset)
        f.write(b"\xff" * chunk.size)
    ds = opened(path, chunks=chunks)
    assert ds.sizes["bin1"] == 200
    with pytest.raises(ReadError, match=r"cannot read '/pixels/count' of .*a.cool': .* damaged"):
        ds["count"].load()


@pytest.mark.parametrize("chunks", [None, {}])
def test_file_cut_after_it_was_opened__is_told_when_it_is_read(chunks, tmp_path):
    path = write(tmp_path / "a.cool", random_map(200))
    ds = opened(path, chunks=chunks)
    whole = (tmp_path / "a.cool").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut").replace(path)
    with pytest.raises(ReadError, match=r"a.cool' was replaced or changed after it was opened"):
        ds["count"].load()
