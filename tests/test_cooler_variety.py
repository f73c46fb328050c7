"""Every variety of cooler that real files show opens with its own values; what is damaged does not."""

import cooler
import h5py
import numpy as np
import pytest
import scipy.sparse
import xarray as xr

import xloader as xl
from tests.test_backend_cooler import bins_of, random_map, rewrite, write
from xloader.backends import cooler as backend
from xloader.backends.hdf5 import close_hdf5
from xloader.errors import ReadError, SchemaError
from xloader.open import identify

N = 60
VECTOR = np.where(np.arange(N) % 9, np.linspace(0.5, 2, N), np.nan)


def opened(path, **kwargs):
    return xr.open_dataset(path, engine="cooler", **kwargs)


def plain(path, group="/"):
    """Read a map without cooler or xloader: its table of pixels is a CSR matrix."""
    with h5py.File(path) as f:
        cool = f[group]
        n = len(cool["bins/start"])
        parts = [
            cool[name][()] for name in ("pixels/count", "pixels/bin2_id", "indexes/bin1_offset")
        ]
        stored = scipy.sparse.csr_matrix(tuple(parts), shape=(n, n))
        square = cool.attrs.get("storage-mode") == "square"
    dense = stored.toarray()
    return dense if square else dense + np.triu(dense, 1).T


def strip(f, *names):
    """Remove attributes of the root and of every group below it."""
    groups = [f]
    f.visititems(lambda _, o: groups.append(o) if isinstance(o, h5py.Group) else None)
    for group in groups:
        for name in set(names or group.attrs) & set(group.attrs):
            del group.attrs[name]


def narrow(f, dtype, *names):
    for name in names:
        values = f[name][()].astype(dtype)
        del f[name]
        f[name] = values


def schema_2(f):
    """Make schema v2: no `format`, no `storage-mode`, narrow index, no shuffle."""
    strip(f, "format", "format-version", "storage-mode", "bin-type", "sum")
    narrow(f, "i4", "indexes/bin1_offset", "indexes/chrom_offset")


def hic2cool(f):
    """Make what hic2cool wrote: `format` without a version, no sum, no metadata."""
    strip(f, "format-version", "sum", "metadata", "storage-mode", "bin-type", "nchroms")
    f.attrs["format"] = "HDF5::Cooler"
    f.attrs["generated-by"] = "hic2cool-0.4.0"


def narrow_ids(f):
    narrow(f, "i4", "pixels/bin1_id", "pixels/bin2_id")


def no_bin1(f):
    """Drop what `bin1_offset` says as well."""
    del f["pixels/bin1_id"]


def plain_chroms(f):
    """Chromosomes by number, without an enum, names of another width."""
    codes = f["bins/chrom"][()].astype("i4")
    del f["bins/chrom"]
    f["bins/chrom"] = codes
    names = f["chroms/name"][()].astype("S32")
    del f["chroms/name"]
    f["chroms/name"] = names


def uncompressed(f):
    """Lie in one piece, as small files of other writers do."""
    narrow(f, "i8", "pixels/bin2_id")
    narrow(f, "i4", "pixels/count")


def lzf(f):
    values = f["pixels/count"][()]
    del f["pixels/count"]
    f.create_dataset("pixels/count", data=values, compression="lzf", chunks=(37,))


def big_endian(f):
    narrow(f, ">i4", "pixels/count", "pixels/bin2_id")


VARIETIES = [
    schema_2, hic2cool, strip, narrow_ids, no_bin1, plain_chroms, uncompressed, lzf, big_endian
]  # fmt: skip


@pytest.mark.parametrize("vary", VARIETIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("symmetric", [True, False], ids=["upper", "square"])
def test_variety__keeps_its_values(vary, symmetric, tmp_path):
    matrix = random_map(N, symmetric=symmetric)
    path = write(tmp_path / "file", matrix, symmetric=symmetric, KR=VECTOR)
    with h5py.File(path, "r+") as f:
        mode = f.attrs["storage-mode"]
        vary(f)
        if not symmetric:  # which no old file is, and nothing else says
            f.attrs["storage-mode"] = mode
    ds = opened(path)
    np.testing.assert_array_equal(plain(path), matrix)
    np.testing.assert_array_equal(ds["count"].values, matrix)
    assert ds["count"].dtype == np.int32
    assert ds.attrs["binsize"] == 1_000
    assert ds.attrs["storage_mode"] == ("symmetric-upper" if symmetric else "square")
    assert ds.attrs["assembly"] == "unknown"
    assert ds.chrom1.values.tolist() == bins_of(N).chrom.tolist()
    np.testing.assert_array_equal(ds.KR1, VECTOR)
    assert ds.KR1.attrs["divisive"] is True
    assert identify(path) == ("cooler", "contacts")
    assert xl.resolutions(path) == [1_000]
    assert backend.CoolerBackendEntrypoint().guess_can_open(path)
    if vary not in (no_bin1, strip):  # which cooler does not read
        oracle = cooler.Cooler(path).matrix(balance=False)[:]
        np.testing.assert_array_equal(ds["count"].values, oracle)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "i8", "u4", "f4", "f8"])
def test_counts__keep_their_type(dtype, tmp_path):
    matrix = random_map(N)
    matrix = (matrix / 7).astype(dtype) if dtype[0] == "f" else (matrix % 251).astype(dtype)
    path = write(tmp_path / "a.cool", matrix)
    ds = opened(path)
    assert ds["count"].dtype == dtype
    np.testing.assert_array_equal(ds["count"].values, matrix)
    np.testing.assert_array_equal(ds["count"].values, plain(path))


@pytest.mark.parametrize("root", ["all", "none"])
@pytest.mark.parametrize("versions", ["with version", "without version"])
def test_resolutions__without_attributes_at_the_root(root, versions, tmp_path):
    path = tmp_path / "file"
    sizes = (10_000, 2_000, 500)
    for size in sizes:
        write(f"{path}::/resolutions/{size}", random_map(N, size), bins_of(N, size), VC_SQRT=VECTOR)
    with h5py.File(path, "r+") as f:
        f.attrs.clear()
        if root == "all":
            f.attrs.update({"format": "HDF5::MCOOL", "format-version": 2})
        if versions == "without version":
            for size in sizes:
                hic2cool(f[f"resolutions/{size}"])
    assert xl.resolutions(path) == sorted(sizes)
    for size in sizes:
        ds = xl.open_contacts(path, resolution=size)
        assert ds.attrs["resolution"] == size
        np.testing.assert_array_equal(ds["count"].values, plain(path, f"resolutions/{size}"))
        assert ds.VC_SQRT2.attrs["divisive"] is True


def test_zoom_levels__with_weights_at_the_finest_only(tmp_path):
    path = tmp_path / "file"
    sizes = {str(level): 1_000 * 2 ** (10 - level) for level in range(11)}
    for level, size in sizes.items():
        columns = {"weight": VECTOR} if level == "10" else {}
        write(f"{path}::/{level}", random_map(N, size), bins_of(N, size), **columns)
    with h5py.File(path, "r+") as f:
        f.attrs.clear()
        f.attrs["max-zoom"] = 10
        for level in sizes:
            strip(f[level], "format", "format-version", "storage-mode")
    assert xl.resolutions(path) == sorted(sizes.values())
    for level, size in sizes.items():
        ds = xl.open_contacts(path, resolution=size)
        np.testing.assert_array_equal(ds["count"].values, plain(path, level))
        same = opened(f"{path}::{level}")
        xr.testing.assert_identical(ds.compute(), same.load())
        balance = xl.transforms.balance("weight")
        if level == "10":
            expected = plain(path, level) * VECTOR[:, None] * VECTOR
            np.testing.assert_allclose(balance(ds.load())["count"], expected, rtol=1e-6)
        else:
            with pytest.raises(
                ValueError, match="no balancing vector 'weight' here; there are none"
            ):
                balance(ds)


def test_square_map__is_not_mirrored(tmp_path):
    matrix = random_map(N, symmetric=False)
    assert (matrix != matrix.T).any()
    path = write(tmp_path / "a.cool", matrix, symmetric=False)
    np.testing.assert_array_equal(opened(path)["count"][40:, :9], matrix[40:, :9])
    np.testing.assert_array_equal(plain(path), matrix)


@pytest.mark.parametrize(
    ("attrs", "told"),
    [
        ({"genome-assembly": "hg19"}, "hg19"),
        ({"genome-assembly": np.bytes_("../references/hg19.sizes")}, "../references/hg19.sizes"),
        ({"assembly": "dm6"}, "dm6"),
        ({}, "unknown"),
    ],
    ids=str,
)
def test_assembly__is_what_the_file_says(attrs, told, tmp_path):
    path = write(tmp_path / "a.cool", random_map(9))
    with h5py.File(path, "r+") as f:
        del f.attrs["genome-assembly"]
        f.attrs.update(attrs)
    assert opened(path).attrs["assembly"] == told


@pytest.mark.parametrize("divisive", [True, False, None])
@pytest.mark.parametrize("name", ["KR", "SCALE", "weight", "ICE"])
def test_vector__balances_the_way_the_file_says(name, divisive, tmp_path):
    """Both ways by cooler, which is told, for it goes by the name alone and does not know SCALE."""
    matrix = random_map(N)
    path = write(tmp_path / "a.cool", matrix, **{name: VECTOR})
    if divisive is not None:
        with h5py.File(path, "r+") as f:
            f[f"bins/{name}"].attrs["divisive_weights"] = divisive
    right = divisive if divisive is not None else name in {"KR", "SCALE"}
    ds = opened(path).load()
    oracle = cooler.Cooler(path).matrix(balance=name, divisive_weights=right)[:]
    np.testing.assert_allclose(xl.transforms.balance(name)(ds)["count"], oracle, rtol=1e-6)


def test_cis_only_weights__keep_their_scales(tmp_path):
    path = write(tmp_path / "a.cool", random_map(N), weight=VECTOR)
    with h5py.File(path, "r+") as f:
        f["bins/weight"].attrs.update({"cis_only": True, "scale": np.array([1.5, 0.25])})
    assert opened(path).weight1.attrs == {"divisive": False, "cis_only": True, "scale": [1.5, 0.25]}


def test_structure__not_the_name_says_what_a_file_is(tmp_path):
    guess = backend.CoolerBackendEntrypoint().guess_can_open
    write(tmp_path / "right", random_map(9))
    (tmp_path / "wrong.cool").write_text("chr1\t0\t1000")
    with h5py.File(tmp_path / "other.mcool", "w") as f:
        f["obs"] = 1
    assert guess(tmp_path / "right")
    np.testing.assert_array_equal(xr.open_dataset(tmp_path / "right")["count"], random_map(9))
    assert guess(f"{tmp_path}/right::/")
    assert not guess(f"{tmp_path}/right::/7")
    assert not guess(tmp_path / "wrong.cool")
    assert not guess(tmp_path / "other.mcool")
    assert not guess(tmp_path / "none.cool")
    assert not guess(b"\x89HDF")
    write(f"{tmp_path}/nested::/my/map", random_map(9))
    assert identify(f"{tmp_path}/nested::/my/map") == ("cooler", "contacts")
    np.testing.assert_array_equal(
        xl.open_contacts(f"{tmp_path}/nested::/my/map")["count"].values, random_map(9)
    )
    with pytest.raises(SchemaError, match=r"nested' has no group '/my/other'; at its root .*'my'"):
        xl.open_contacts(f"{tmp_path}/nested::/my/other")


def set_attr(name, value):
    return lambda f: f.attrs.__setitem__(name, value)


def replace(name, change):
    def do(f):
        values = change(f[name][()])
        del f[name]
        f[name] = values

    return do


def unwritten(name, chunks=None):
    def do(f):
        shape = f[name].shape
        del f[name]
        f.create_dataset(name, shape, "i4", chunks=chunks)
        if chunks:
            f[name][: chunks[0]] = 1

    return do


def emptied(f):
    """Lose all pixels, as a file whose writer was stopped; the index is as empty."""
    for name in ("bin1_id", "bin2_id", "count"):
        del f[f"pixels/{name}"]
        f.create_dataset(f"pixels/{name}", (0,), "i4", maxshape=(None,))
    replace("indexes/bin1_offset", lambda x: x * 0)(f)


DAMAGES = {
    "index of zeros": (replace("indexes/bin1_offset", lambda x: x * 0), "does not fit its 60 bins"),
    "no pixels": (emptied, r"hold 0 `bin2_id` and 0 `count`, and attribute `nnz` says \d+: .* new copy"),
    "fewer counts": (replace("pixels/count", lambda x: x[:-3]), "`bin2_id` and .* `count`, and attr"),
    "nnz": (set_attr("nnz", 7), "attribute `nnz` says 7: the file was not written to its end"),
    "never written": (unwritten("pixels/count"), "`pixels/count` of '/' of .* has 0 of its 1 chunks"),
    "partly written": (unwritten("pixels/bin2_id", (64,)), r"`pixels/bin2_id` of .* has 1 of its \d+"),
    "storage": (set_attr("storage-mode", "lower"), "'lower', and what it means .* correct it to one of"),
    "bin size": (set_attr("bin-size", 2_000), r"is 2000 bp, but its bins have \[1000\] bp; correct"),
    "short bins": (replace("bins/end", lambda x: x[:-1]), "columns of 60, 60 and 59 bins; .* again"),
    "empty bin": (replace("bins/end", lambda x: x * (np.arange(60) != 5)), "bin 5 of .* chrB:5000-0, wh"),
    "bins back": (replace("bins/start", lambda x: x - 9 * (np.arange(60) == 7)), "bin 7 of '/' of .*6991"),
    "apart": (replace("bins/chrom", lambda x: 0 * x + np.arange(60) // 10 % 2), "chromosome of .* lie apart; sor"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage__is_refused_when_opened(name, tmp_path):
    """Each would otherwise read as zeros, or as counts at the wrong place."""
    damage, message = DAMAGES[name]
    path = write(tmp_path / "a.cool", random_map(N))
    with h5py.File(path, "r+") as f:
        damage(f)
    with pytest.raises((ReadError, SchemaError), match=message) as told:
        opened(path)
    assert path in str(told.value)


@pytest.mark.parametrize("value", [-2.0, np.nan, np.inf])
def test_what_is_no_count__is_told_where_it_is(value, tmp_path):
    path = write(tmp_path / "a.cool", random_map(N, dtype=np.float64))
    first = np.argwhere(np.triu(random_map(N, dtype=np.float64)))[300]
    rewrite(path, "pixels/count", lambda x: np.where(np.arange(len(x)) == 300, value, x))
    at = [f"{c}:{s:,}-{e:,}" for c, s, e in bins_of(N).iloc[first].itertuples(index=False)]
    message = (
        rf"pixel 300 of '/' of .*a.cool', at {at[0]} x {at[1]} \(bins .*\), has the count {value}"
    )
    with pytest.raises(ReadError, match=message):
        opened(path)["count"].load()


def test_negative_integer__is_no_count(tmp_path):
    path = write(tmp_path / "a.cool", random_map(N))
    rewrite(path, "pixels/count", lambda x: np.where(np.arange(len(x)) == 9, -1, x))
    with pytest.raises(
        ReadError, match="has the count -1, and counts are numbers from 0 on: write"
    ):
        opened(path)["count"].load()


def test_pixel_that_is_there_twice__is_an_error(tmp_path):
    path = write(tmp_path / "a.cool", random_map(N))
    rewrite(path, "pixels/bin2_id", lambda x: np.where(np.arange(len(x)) == 1, x[0], x))
    with pytest.raises(ReadError, match="pixel 1 of .* is there twice: sum or drop duplicates"):
        opened(path)["count"].load()


def test_square_map_said_to_be_symmetric__is_an_error(tmp_path):
    path = write(tmp_path / "a.cool", random_map(N, symmetric=False), symmetric=False)
    with h5py.File(path, "r+") as f:
        f.attrs["storage-mode"] = "symmetric-upper"
    message = r"outside the upper triangle of 60 bins: if it holds a whole map, .* to 'square'"
    with pytest.raises(ReadError, match=message):
        opened(path)["count"].load()
    close_hdf5(path)
    with h5py.File(path, "r+") as f:
        f.attrs["storage-mode"] = "square"
    np.testing.assert_array_equal(opened(path)["count"].values, random_map(N, symmetric=False))


@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize("form", ["mcool", "legacy", "store", "cool", "variable"])
def test_tree__has_a_lazy_node_for_each_resolution(form, chunks, tmp_path):
    path, engine, sizes = tmp_path / "file", "cooler", [500, 2_000, 10_000]
    if form == "cool":
        sizes = [1_000]
        write(path, random_map(9, 1_000), bins_of(9))
    elif form == "variable":
        sizes = ["variable"]
        bins = bins_of(9).assign(end=lambda b: b.end - np.arange(9))
        write(path, random_map(9, 7), bins)
    else:
        for k, size in enumerate(reversed(sizes)):
            group = k if form == "legacy" else f"resolutions/{size}"
            write(f"{path}::/{group}", random_map(9, size), bins_of(9, size), weight=np.ones(9))
    if form == "store":
        xl.convert(path, tmp_path / "store", progress=False)
        path, engine = tmp_path / "store", "xloader"
    for tree in (
        xr.open_datatree(path, engine=engine, chunks=chunks),
        xr.DataTree.from_dict(xr.open_groups(path, engine=engine, chunks=chunks)),
    ):
        assert list(tree.children) == [str(size) for size in sizes]
        for size in sizes:
            node = tree[str(size)]
            assert (node["count"].chunks is None) == (chunks is None)
            assert not node["count"].variable._in_memory
            assert isinstance(node["chrom1"].variable._data, np.ndarray)
            matrix = random_map(9, 7 if size == "variable" else size)
            np.testing.assert_array_equal(node["count"].values, matrix)
            if form not in {"variable", "cool"}:
                one = xr.open_dataset(path, engine=engine, resolution=size)
                xr.testing.assert_identical(node.to_dataset().compute(), one.compute())
    dropped = xr.open_datatree(path, engine=engine, drop_variables=["weight1"])
    assert not [c for c in dropped[str(sizes[0])].coords if c == "weight1"]


def test_tree__of_cells_has_one_node(tmp_path):
    import anndata

    anndata.AnnData(np.eye(5, dtype=np.float32)).write_h5ad(tmp_path / "a.h5ad")
    xl.convert(tmp_path / "a.h5ad", tmp_path / "store", progress=False)
    tree = xr.open_datatree(tmp_path / "store", engine="xloader")
    np.testing.assert_array_equal(tree["X"].values, np.eye(5))
