"""Maps of .hic files equal the matrix that was written; their reader lives and dies by itself."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl
from tests.doubles import assert_equals_naive
from tests.hic_files import HicFile
from xloader.backends import hic, hic_process
from xloader.errors import ReadError, SchemaError
from xloader.open import identify

LENGTHS = {"chrB": 170_000, "chrE": 7_500, "chrA": 90_400, "2:1-9": 40_000}
SIZES = (1_000, 5_000)


def bins(size):
    return [-(-length // size) for length in LENGTHS.values()]


def matrix(size, dtype=np.int32, seed=0):
    """Return a map with contacts of every pair of chromosomes, but those of the empty `chrE`."""
    n, rng = sum(bins(size)), np.random.default_rng([size, seed])
    m = np.triu(rng.poisson(0.3, (n, n)) * rng.integers(1, 60_000, (n, n)))
    m = m + np.triu(m, 1).T
    a, b = np.cumsum(bins(size))[:2]
    m[a:b], m[:, a:b] = 0, 0
    return (m / 8).astype(dtype) if np.dtype(dtype).kind == "f" else m.astype(dtype)


def vector(n):
    v = np.linspace(0.5, 2, n)
    v[4], v[7], v[9] = np.nan, 0, np.inf
    return v


@pytest.fixture(scope="module", params=[8, 9])
def path(request, tmp_path_factory):
    """A file of each version, its name without the usual ending."""
    maps = {size: matrix(size) for size in SIZES}
    vectors = {(name, 1_000): vector(sum(bins(1_000))) for name in ("KR", "VC")}
    made = HicFile(LENGTHS, maps, vectors, version=request.param)
    return made.write(tmp_path_factory.mktemp("hic") / "map")


@pytest.fixture(autouse=True, scope="module")
def ended():
    """Leave no helper behind."""
    yield
    hic_process.end_helper()


def opened(path, **kwargs):
    return xr.open_dataset(path, engine="hic", **kwargs)


def one(folder, values, **kwargs):
    """Write one map of 1 kb."""
    return HicFile(LENGTHS, {1_000: values}, **kwargs).write(folder / "one.hic")


@pytest.mark.parametrize("chunks", [None, {}, {"bin1": 150, "bin2": 200}])
@pytest.mark.filterwarnings("ignore:The specified chunks separate:UserWarning")
def test_values__any_selection_equals_the_matrix(chunks, path):
    for size in SIZES:
        ds, m = opened(path, resolution=size, chunks=chunks), matrix(size)
        assert ds["count"].dtype == np.int32
        np.testing.assert_array_equal(ds["count"].values, m)
    ds, m = opened(path, resolution=1_000, chunks=chunks), matrix(1_000)
    n, rng = len(m), np.random.default_rng(0)
    for _ in range(8):
        a, b = (np.sort(rng.choice(n, rng.integers(1, 40), replace=False)) for _ in "12")
        np.testing.assert_array_equal(ds["count"].isel(bin1=a, bin2=b).values, m[np.ix_(a, b)])
    part = ds["count"].isel(bin1=slice(250, 100, -3), bin2=17)
    np.testing.assert_array_equal(part.values, m[250:100:-3, 17])
    assert ds["count"].isel(bin1=slice(5, 5)).shape == (0, n)


@pytest.mark.parametrize("most", [1, 3, 100, 256])
def test_tiles__in_any_pattern_are_those_of_the_map(most, path):
    """Whichever rectangles they are asked for in, each tile is itself, and none is lost."""
    array = opened(path, resolution=1_000)["count"].variable._data
    while not isinstance(array, hic.HicArray):
        array = array.array
    m, t = matrix(1_000), array.tile
    padded = np.pad(m, (0, 3 * t - len(m)))
    every = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    for ij in (every, [(0, 0), (2, 2)], [(1, 2)], [(0, 2), (1, 1)], every[1:]):
        expected = {(i, j): padded[i * t : i * t + t, j * t : j * t + t] for i, j in ij}
        for at, tile in zip(ij, array.read_tiles(np.array(ij)), strict=True):
            np.testing.assert_array_equal(tile, expected[at])
        found = {}
        for some, tiles in array.read_filled(np.array(ij), most):
            assert len(some) <= most
            found.update({tuple(at): tile for at, tile in zip(some.tolist(), tiles, strict=True)})
        assert found.keys() == {at for at, tile in expected.items() if tile.any()}
        for at, tile in found.items():
            np.testing.assert_array_equal(tile, expected[at])
    assert array.read_tiles(np.empty((0, 2), np.int64)).shape == (0, t, t)


@given(ij=st.sets(st.tuples(st.integers(0, 40), st.integers(0, 90))), most=st.integers(1, 300))
def test_boxes__hold_every_tile_once(ij, most):
    ij = np.array(sorted((min(p), max(p)) for p in ij)).reshape(-1, 2)
    ij = np.unique(ij, axis=0).astype(np.int64)
    seen = []
    for which, low, high in hic._boxes(ij, most):
        assert ((ij[which] >= low) & (ij[which] < high)).all()
        assert len(which) <= np.prod(high - low) <= most
        assert 2 * len(which) >= np.prod(high - low)
        assert low[0] <= low[1]  # hictkpy reads nothing else
        seen += which.tolist()
    assert sorted(seen) == list(range(len(ij)))


def test_labels__are_those_of_the_file(path):
    ds = opened(path, resolution=1_000, chunks={})
    assert dask.is_dask_collection(ds["count"].data)
    for side in "12":
        assert ds[f"chrom{side}"].values.tolist() == np.repeat([*LENGTHS], bins(1_000)).tolist()
        start = np.concatenate([np.arange(0, length, 1_000) for length in LENGTHS.values()])
        np.testing.assert_array_equal(ds[f"start{side}"], start)
        end = np.minimum(start + 1_000, np.repeat([*LENGTHS.values()], bins(1_000)))
        np.testing.assert_array_equal(ds[f"end{side}"], end)
        assert isinstance(ds[f"chrom{side}"].variable._data, np.ndarray)
    assert ds.attrs == {
        "binsize": 1_000,
        "resolution": 1_000,
        "assembly": "test1",
        "storage_mode": "symmetric-upper",
        "chroms": [*LENGTHS],
        "chrom_lengths": [*LENGTHS.values()],
    }
    assert "KR1" not in opened(path, resolution=1_000, drop_variables=["KR1"]).coords
    assert "count" not in opened(path, resolution=1_000, drop_variables="count")


def test_vectors__divide_and_mask(path):
    ds = opened(path, resolution=1_000)
    v = vector(len(ds.bin1))
    v[[7, 9]] = np.nan  # zero and infinity say nothing about a bin
    v[170:178] = np.nan  # hictkpy gives none for a chromosome that has no contact within it
    for name in ("KR1", "KR2", "VC1", "VC2"):
        assert ds[name].attrs["divisive"] is True
        np.testing.assert_allclose(ds[name], v, rtol=1e-7)
    balanced = xl.transforms.balance("KR")(ds.load())["count"]
    np.testing.assert_allclose(balanced, matrix(1_000) / v[:, None] / v, rtol=1e-6)
    assert not [c for c in opened(path, resolution=5_000).coords if str(c).startswith("KR")]


@pytest.mark.parametrize("version", [8, 9])
def test_fractions__are_never_cut_off(version, tmp_path):
    m = matrix(1_000, np.float32)
    assert (m != np.rint(m)).any()
    path = one(tmp_path, m, version=version)
    ds = opened(path)
    assert ds["count"].dtype == np.float32
    np.testing.assert_array_equal(ds["count"].values, m)
    whole = opened(path, count_type="int32")["count"]
    message = r"the count at \S+:\S+ x \S+ is [\d.]+, which no int32 holds; .*count_type='float32'"
    with pytest.raises(ReadError, match=message):
        whole.load()
    with pytest.raises(
        SchemaError, match=r"count_type='int16' is unknown; choose one of \('int32'"
    ):
        opened(path, count_type="int16")


def test_a_fraction_far_from_the_diagonal__is_an_error_and_not_cut_off(tmp_path):
    m = matrix(1_000).astype(np.float32)
    m[3, 300] = m[300, 3] = 0.5
    ds = opened(one(tmp_path, m))
    assert ds["count"].dtype == np.int32
    np.testing.assert_array_equal(ds["count"][:128, :128].values, m[:128, :128])
    with pytest.raises(ReadError, match=r"chrB:3,000-4,000 x 2:1-9:31,000-32,000 is 0.5, which no"):
        ds["count"][:128, 256:].load()


@pytest.mark.parametrize("wrong", [-3.0, np.nan, np.inf])
def test_what_is_no_count__is_an_error(wrong, tmp_path):
    m = matrix(1_000, np.float32)
    m[2, 5] = m[5, 2] = wrong
    ds = opened(one(tmp_path, m), count_type="float32")
    message = (
        rf"one.hic' at 1,000 bp: the count at chrB:2,000-3,000 x chrB:5,000-6,000 is {wrong}, and"
    )
    with pytest.raises(ReadError, match=message):
        ds["count"].load()


def test_resolution__is_one_that_is_there(path):
    with pytest.raises(SchemaError, match=r"has no resolution 7; it has 1000, 5000 \(bp\)"):
        opened(path, resolution=7)
    with pytest.raises(
        SchemaError, match=r"\(1000, 5000 bp\) and none was asked .*`resolution=5000`"
    ):
        opened(path)


def test_region__outside_a_chromosome_is_refused(path):
    with pytest.raises(
        SchemaError, match=r"map', view: region 'chrA:1-99,000' is not within .* 0-90,400"
    ):
        xl.open_contacts(path, resolution=1_000, view="chrA:1-99,000")
    ds = xl.open_contacts(path, resolution=1_000, view=["2:1-9", "chrE"])
    assert ds.chrom1.values.tolist() == ["2:1-9"] * 40 + ["chrE"] * 8
    e = np.cumsum([0, *bins(1_000)])
    rows = [*range(e[3], e[4]), *range(e[1], e[2])]
    np.testing.assert_array_equal(ds["count"].values, matrix(1_000)[np.ix_(rows, rows)])
    assert not ds["count"][40:].any()  # no contact at all, and no error


def test_structure__says_what_a_file_is(path, tmp_path):
    assert identify(path) == ("hic", "contacts")
    assert xl.resolutions(path) == [*SIZES]
    ds = xl.open_contacts(path, resolution=5_000)
    np.testing.assert_array_equal(ds["count"].values, matrix(5_000))
    (tmp_path / "a.hic").write_text("chr1 0 1000")
    with pytest.raises(SchemaError, match=r"a.hic' is no .hic file, which begins with b'HIC"):
        opened(tmp_path / "a.hic")
    with pytest.raises(ReadError, match="none.hic': no such file; check the path"):
        opened(tmp_path / "none.hic")
    assert hic.HicBackendEntrypoint().guess_can_open(str(path))
    assert xr.open_dataset(path, resolution=5_000).sizes["bin1"] == sum(bins(5_000))
    assert not hic.HicBackendEntrypoint().guess_can_open(tmp_path / "a.hic")
    assert not hic.HicBackendEntrypoint().guess_can_open(tmp_path / "none.hic")
    assert not hic.HicBackendEntrypoint().guess_can_open(b"HIC\0")


def test_cut_file__is_an_error_or_still_whole(tmp_path):
    """Wherever a file ends early, nothing of it reads as zeros."""
    m = matrix(1_000)
    made = HicFile(LENGTHS, {1_000: m}, {("KR", 1_000): vector(len(m))})
    whole = made.write(tmp_path / "whole.hic").read_bytes()
    start, length = made.places["footer"]
    cuts = [4, 9, 40, start // 3, start - 1, start + 3, start + length // 2, start + length + 2]
    for cut in [*cuts, len(whole) - 9]:
        short = tmp_path / f"{cut}.hic"
        short.write_bytes(whole[:cut])
        with pytest.raises(ReadError, match=rf"{cut}.hic.* (damaged|died)"):
            opened(short).load()


def test_damaged_block__is_told_with_its_region(tmp_path):
    made = HicFile(LENGTHS, {1_000: matrix(1_000)})
    file = made.write(tmp_path / "a.hic")
    start, length = made.places["block", 0, 2, 1_000]
    data = bytearray(file.read_bytes())
    data[start + 20 : start + length] = bytes(length - 20)
    file.write_bytes(data)
    ds = opened(file)
    np.testing.assert_array_equal(ds["count"][:128, :128].values, matrix(1_000)[:128, :128])
    with pytest.raises(ReadError, match=r"at chrB:0-170,000 x chrA:0-\S+: .*; the file is trunc"):
        ds["count"][:128, 128:].load()


def test_index_without_entries__is_not_an_empty_map(tmp_path):
    """The file is whole, its maps are there, and nothing leads to them."""
    made = HicFile(LENGTHS, {1_000: matrix(1_000)})
    file = made.write(tmp_path / "a.hic")
    start, _ = made.places["footer"]
    data = bytearray(file.read_bytes())
    data[start : start + 8] = (8).to_bytes(4, "little") + bytes(4)
    file.write_bytes(data[: start + 8] + bytes(12))
    with pytest.raises(
        ReadError, match="holds no contact within any chromosome at 1,000 bp: its ind"
    ):
        opened(file)
    assert not opened(file, count_type="int32")["count"].values.any()


def test_file_replaced_after_it_was_opened__is_read_anew(tmp_path):
    path = one(tmp_path, matrix(1_000))
    ds = opened(path)
    first = ds["count"].isel(bin1=slice(50)).values
    one(tmp_path, matrix(1_000, seed=1))
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(first, matrix(1_000)[:50])
    np.testing.assert_array_equal(opened(path)["count"].values, matrix(1_000, seed=1))
    for old in (ds, pickle.loads(pickle.dumps(ds))):
        with pytest.raises(ReadError, match="one.hic' was replaced or changed after it was opened"):
            old["count"].isel(bin1=slice(50, 100)).load()
    path.unlink()
    with pytest.raises(ReadError, match=r"one.hic'.* No such file"):
        ds["count"].isel(bin1=slice(100, 150)).load()


def test_convert__keeps_every_resolution(path, tmp_path):
    xl.convert(path, tmp_path / "s", progress=False)
    assert xl.resolutions(tmp_path / "s") == [*SIZES]
    for size in SIZES:
        pair = [xl.open_contacts(p, resolution=size).compute() for p in (path, tmp_path / "s")]
        xr.testing.assert_identical(*pair)
        np.testing.assert_array_equal(pair[1]["count"], matrix(size))


def test_convert__asks_for_several_rows_of_tiles_at_once(path, tmp_path, monkeypatch):
    asked = []
    plain = hic.ask
    monkeypatch.setattr(
        hic, "ask", lambda what, **request: asked.append(request) or plain(what, **request)
    )
    xl.convert(path, tmp_path / "s", progress=False)
    boxes = {tuple(request["box"]) for request in asked if request["ask"] == "rectangle"}
    assert boxes == {(0, 309, 0, 309), (0, 63, 0, 63)}


def test_loader__serves_windows(path):
    ds = opened(path, resolution=1_000, chunks={})
    for kwargs in ({"windows": xl.windows.diagonal(size=8)}, {"input_dims": {"bin1": 7}}):
        loader = xl.Loader(ds, batch_size=4, shuffle=True, **kwargs)
        assert_equals_naive(loader, ds, loader[0], loader[1])


def totals(ds):
    with dask.config.set(scheduler="synchronous"):
        return ds["count"].values.sum(axis=0).tolist(), ds.chrom1.values.tolist()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes__read_while_the_parent_reads(method, path):
    ds = opened(path, resolution=5_000, chunks={})
    expected = matrix(5_000).sum(axis=0).tolist(), np.repeat([*LENGTHS], bins(5_000)).tolist()
    assert totals(ds) == totals(pickle.loads(pickle.dumps(ds))) == expected
    with multiprocessing.get_context(method).Pool(2) as pool:
        theirs = pool.map_async(totals, [ds] * 4)
        mine = [totals(ds) for _ in range(4)]
        assert theirs.get(timeout=200) == mine == [expected] * 4


def helper():
    """Return the running helper of this process."""
    process = hic_process._helpers.mine()._process
    assert process is not None
    return process


def test_hictkpy__stays_out_of_this_process(path):
    script = (
        "import sys, xloader as xl\n"
        f"xl.open_contacts({str(path)!r}, resolution=5000)['count'].load()\n"
        "print('hictkpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert not done.stderr


def test_helper__ends_when_idle_and_comes_again(path, monkeypatch):
    hic_process.end_helper()
    monkeypatch.setattr(hic_process, "IDLE", 0.2)
    ds = opened(path, resolution=5_000)
    assert helper().wait(timeout=100) == 0
    np.testing.assert_array_equal(ds["count"].values, matrix(5_000))
    hic_process.end_helper()


def test_helper__ends_when_nobody_is_there_to_ask(path):
    opened(path, resolution=5_000)
    process = helper()
    process.stdin.close()
    assert process.wait(timeout=100) == 0
    hic_process.end_helper()


def test_death_of_the_helper__is_told_and_does_not_last(path):
    ds = opened(path, resolution=5_000)
    helper().send_signal(signal.SIGKILL)
    message = (
        r"bins 0-63 x 0-63 of .*map' at 5,000 bp: the process .* died \(signal 9\); .*Read it again"
    )
    with pytest.raises(ReadError, match=message):
        ds["count"].load()
    np.testing.assert_array_equal(ds["count"].values, matrix(5_000))


def test_helper_without_an_answer__is_given_up(path, monkeypatch):
    ds = opened(path, resolution=5_000)
    stopped = helper()
    stopped.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(hic_process, "TIMEOUT", 0.2)
    with pytest.raises(ReadError, match="gave no answer for 0 s and was ended"):
        ds["count"].load()
    assert stopped.returncode == -signal.SIGKILL
    monkeypatch.undo()
    np.testing.assert_array_equal(ds["count"].values, matrix(5_000))


def test_interrupted_request__leaves_no_answer_to_the_next(path, monkeypatch):
    ds = opened(path, resolution=5_000)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hic_process._Helper, "_fill", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ds["count"].load()
    monkeypatch.undo()
    small = opened(path, resolution=1_000)
    np.testing.assert_array_equal(small["count"].values, matrix(1_000))


def test_without_hictkpy__the_error_says_what_to_install(path, monkeypatch):
    hic_process.end_helper()
    monkeypatch.setattr(hic_process.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ReadError, match=r"hictkpy, which is not installed: pip install 'xloader\[hic\]'"
    ):
        opened(path, resolution=5_000)


def test_tree__has_a_node_for_each_resolution(path):
    tree = xr.open_datatree(path, engine="hic", chunks={})
    assert list(tree.children) == [str(size) for size in SIZES]
    for size in SIZES:
        assert dask.is_dask_collection(tree[str(size)]["count"].data)
        np.testing.assert_array_equal(tree[str(size)]["count"].values, matrix(size))
