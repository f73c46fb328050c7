"""What xl.export writes, cooler opens, and it is what was there."""

import cooler
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xloader as xl
from tests.doubles import BIN, cells, contacts
from tests.test_backend_cooler import bins_of, random_map, write
from xloader.backends import cooler_writer
from xloader.errors import PlanError, ReadError, SchemaError
from xloader.windows import diagonal


def exported(source, path, **options):
    return cooler.Cooler(str(xl.export(source, path, progress=False, **options)))


def dense(clr):
    return clr.matrix(balance=False)[:]


@settings(max_examples=20)
@given(data=st.data())
def test_export__is_the_file_that_was_converted(data, tmp_path_factory):
    n, symmetric = data.draw(st.integers(2, 300)), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([np.int32, np.int64, np.float32, np.float64]))
    folder = tmp_path_factory.mktemp("e")
    matrix = random_map(n, n, dtype, symmetric)
    vector = np.where(np.arange(n) % 5, np.linspace(0.5, 2, n), np.nan)
    path = write(folder / "a.cool", matrix, symmetric=symmetric, weight=vector, rank=np.arange(n))
    source = xl.convert(path, folder / "s", progress=False) if data.draw(st.booleans()) else path
    out = exported(source, folder / "b.cool")
    kept = np.triu(matrix) if symmetric else matrix
    i, j = np.nonzero(kept)
    pixels = out.pixels()[:]
    assert pixels.dtypes["count"] == dtype
    np.testing.assert_array_equal(pixels, np.stack([i, j, kept[i, j]], axis=1))
    np.testing.assert_array_equal(dense(out), matrix)
    pd.testing.assert_frame_equal(
        out.bins()[:], cooler.Cooler(path).bins()[:][out.bins()[:].columns]
    )
    assert out.info["nnz"] == len(i)
    assert out.info["sum"] == kept.sum(dtype=np.result_type(dtype, np.int64)) or (
        out.info["sum"] == pytest.approx(kept.sum(dtype=float))
    )
    assert out.storage_mode == ("symmetric-upper" if symmetric else "square")
    assert cooler.fileops.is_cooler(out.uri)
    again = xl.open_contacts(folder / "b.cool").load()
    xr.testing.assert_equal(again, xl.open_contacts(path).load())
    assert again.weight1.attrs["divisive"] is False


def test_vectors__balance_as_they_did(tmp_path):
    matrix = random_map(140)
    vectors = {"KR": np.linspace(1, 2, 140), "weight": np.linspace(2, 1, 140)}
    path = write(tmp_path / "a.cool", matrix, **vectors)
    with h5py.File(path, "a") as f:
        f["bins/KR"].attrs["scale"] = [0.5, np.nan]
    out = exported(path, tmp_path / "b.cool")
    for name, divisive in (("KR", True), ("weight", False)):
        with h5py.File(out.store) as f:
            assert f[f"bins/{name}"].attrs["divisive_weights"] == divisive
        balanced = out.matrix(balance=name, divisive_weights=divisive)[:]
        v = 1 / vectors[name] if divisive else vectors[name]
        np.testing.assert_allclose(balanced, matrix * np.outer(v, v), rtol=1e-14)
    with h5py.File(out.store) as f:
        np.testing.assert_array_equal(f["bins/KR"].attrs["scale"], [0.5, np.nan])


@pytest.mark.parametrize("pixels", [2**20, 50])
@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_coarser__equals_cooler(dtype, pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(cooler_writer, "PIXELS", pixels)
    path = write(tmp_path / "a.cool", random_map(300, dtype=dtype))
    sizes = [1_000, 2_000, 6_000, 500_000]
    out = xl.export(path, tmp_path / "b.mcool", resolutions=sizes, progress=False)
    assert cooler.fileops.is_multires_file(str(out))
    assert xl.resolutions(out) == sizes
    for size in sizes[1:]:
        oracle = str(tmp_path / f"{size}.cool")
        cooler.coarsen_cooler(path, oracle, size // 1_000, chunksize=10**6)
        oracle = cooler.Cooler(oracle)
        ours = cooler.Cooler(f"{out}::resolutions/{size}")
        pd.testing.assert_frame_equal(ours.bins()[:], oracle.bins()[:])
        same = np.testing.assert_array_equal if dtype == np.int32 else np.testing.assert_allclose
        same(ours.pixels()[:], oracle.pixels()[:])
        assert ours.pixels()[:].dtypes["count"] == dtype
        assert ours.binsize == size


def test_coarser__sums_that_do_not_fit_are_wider(tmp_path):
    matrix = np.full((4, 4), 2**30, np.int32)
    path = write(tmp_path / "a.cool", matrix, bins_of(4))
    out = exported(path, tmp_path / "b.cool", resolutions=[2_000])
    assert dense(out).dtype == np.int64
    # bins of two chromosomes, three and one: the upper triangle of each square is summed
    assert dense(out).tolist() == [[3 * 2**30, 2**31, 2**31], [2**31, 2**30, 2**30],
                                   [2**31, 2**30, 2**30]]  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"a.cool", "b.cool"}  # the finer map is gone


def test_resolutions__those_of_the_store_and_more(tmp_path):
    source = xl.simulate.contacts(
        tmp_path / "a.mcool", chromosomes={"b": 900_000, "a": 410_000}, resolutions=[10_000, 30_000]
    )
    xl.convert(source, tmp_path / "s", progress=False)
    path = xl.export(
        tmp_path / "s", tmp_path / "b.mcool", resolutions=[60_000, 30_000, 20_000], progress=False
    )
    assert xl.resolutions(path) == [20_000, 30_000, 60_000]
    for size, of in ((20_000, 10_000), (60_000, 30_000)):
        fine = xl.open_contacts(source, resolution=of)["count"].values
        of_chrom = [-(-n // of) for n in (900_000, 410_000)]
        number = np.concatenate([np.arange(n) // (size // of) for n in of_chrom])
        number[of_chrom[0] :] += number[of_chrom[0] - 1] + 1
        one = np.eye(number[-1] + 1, dtype=int)[number]
        # a pair in one coarse bin is counted once, as in cooler
        upper = one.T @ np.triu(fine) @ one
        got = xl.open_contacts(path, resolution=size)["count"].values
        np.testing.assert_array_equal(np.triu(got), np.triu(upper + np.tril(upper, -1).T))
    kept = cooler.Cooler(f"{path}::resolutions/30000")
    theirs = cooler.Cooler(f"{source}::resolutions/30000")
    np.testing.assert_array_equal(kept.bins()[:].weight, theirs.bins()[:].weight)


def test_selection__is_put_into_the_genome(tmp_path):
    path = write(tmp_path / "a.cool", random_map(290), weight=np.linspace(1, 2, 290))
    view = ["chrB:50,000-150,000", "chrA"]
    ds = xl.open_contacts(path, view=view)
    out = exported(ds, tmp_path / "b.cool")
    pd.testing.assert_frame_equal(
        out.bins()[:][["chrom", "start", "end"]],
        cooler.Cooler(path).bins()[:][["chrom", "start", "end"]],
    )
    inside = np.isin(np.arange(290), ds.bin1)
    wanted = np.where(inside[:, None] & inside, random_map(290), 0)
    np.testing.assert_array_equal(dense(out), wanted)
    assert np.isnan(out.bins()[:].weight[~inside]).all()
    np.testing.assert_array_equal(out.bins()[:].weight[inside], ds.weight1)


def test_computed__values_are_written(tmp_path):
    matrix = random_map(290)
    ds = xl.open_contacts(write(tmp_path / "a.cool", matrix))
    out = exported(np.log1p(ds), tmp_path / "b.cool")
    np.testing.assert_array_equal(dense(out), np.log1p(matrix))
    narrow = exported(ds.astype("uint8").assign_attrs(ds.attrs), tmp_path / "c.cool")
    np.testing.assert_array_equal(dense(narrow), matrix.astype("uint8"))
    assert dense(narrow).dtype == np.int32


def test_predictions__become_a_map_that_cooler_opens(tmp_path):
    loader = xl.Loader(contacts(), windows=diagonal(size=10, stride=5), batch_size=4)
    with xl.PredictionWriter(loader, tmp_path / "p", progress=False) as w:
        for batch in loader:
            w.write(batch, batch["count"].astype("float32") / 4)
    path = xl.export(
        tmp_path / "p", tmp_path / "p.mcool", resolutions=[BIN, 4 * BIN], progress=False
    )
    out = xl.open_contacts(tmp_path / "p")
    fine = cooler.Cooler(f"{path}::resolutions/{BIN}")
    np.testing.assert_array_equal(dense(fine), np.nan_to_num(out.prediction.values))
    assert dense(fine).dtype == np.float32
    assert fine.info["genome-assembly"] == "test"
    v = fine.bins()[:].weight.values
    np.testing.assert_array_equal(v, loader.ds.weight1)
    coverage = exported(tmp_path / "p", tmp_path / "c.cool", variable="coverage")
    np.testing.assert_array_equal(dense(coverage), out.coverage)


def test_variable_bins__are_kept(tmp_path):
    bins = bins_of(40)
    bins["end"] += np.arange(40) % 3
    bins.loc[bins.start > 0, "start"] = bins.end.shift(1)[bins.start > 0].astype(int)
    path = write(tmp_path / "a.cool", random_map(40), bins)
    out = exported(path, tmp_path / "b.cool")
    assert out.binsize is None
    assert out.info["bin-type"] == "variable"
    np.testing.assert_array_equal(out.bins()[:][["start", "end"]], bins[["start", "end"]])
    np.testing.assert_array_equal(dense(out), random_map(40))


def test_bands__hold_the_pixels_of_some_rows_only(tmp_path, monkeypatch):
    path = write(tmp_path / "a.cool", random_map(700))
    rows = []
    append = cooler_writer.CoolerWriter.append

    def logged(self, bin1, bin2, count):
        rows.append(np.unique(bin1))
        append(self, bin1, bin2, count)

    monkeypatch.setattr(cooler_writer.CoolerWriter, "append", logged)
    np.testing.assert_array_equal(dense(exported(path, tmp_path / "b.cool")), random_map(700))
    assert max(map(len, rows)) <= 128
    assert len(rows) == 6


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("b.txt", {}, SchemaError, r"cannot write 'b.txt': .* ends in \.cool or \.mcool"),
        (
            "b.h5ad",
            {},
            SchemaError,
            r"cannot write 'b.h5ad': .* contact maps .*cells .* go to \.h5ad",
        ),
        ("b.scool", {}, SchemaError, r"cannot write 'b.scool': .* ends in \.cool or \.mcool"),
        ("b.mcool", {"resolutions": []}, PlanError, "an .mcool at least one"),
        ("b.cool", {"resolutions": [1_000, 2_000]}, PlanError, "a .cool holds one"),
        ("b.mcool", {"resolutions": [1_500]}, PlanError, r"1500 is no multiple .*\[1000\] bp"),
        ("b.mcool", {"resolutions": [0]}, PlanError, "resolution 0 is no multiple"),
        ("b.cool", {"variable": "x"}, SchemaError, r"'x' names none .*they are \['count'\]"),
        ("no/b.cool", {}, ReadError, "there is no folder"),
        ("a.cool", {}, ReadError, "exists; pass overwrite=True"),
    ],
)
def test_bad_input__is_refused(name, options, error, message, tmp_path):
    path = write(tmp_path / "a.cool", random_map(20))
    with pytest.raises(error, match=message):
        xl.export(path, tmp_path / name, progress=False, **options)
    assert {p.name for p in tmp_path.iterdir()} == {"a.cool"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cells, r"cannot write 'b.cool': the source holds cells .*ends in \.h5ad or \.zarr"),
        (lambda: xr.Dataset({"x": ("time", [1])}), "this Dataset has {'time': 1}: rename"),
        (lambda: contacts().expand_dims(cell=["a", "b"]).drop_dims("bin1").assign(
            count=contacts()["count"].expand_dims(cell=["a", "b"])),
            r"\['count'\] hold those of 2 cells; write each by itself.*isel\(cell=0\)"),
        (lambda: 3, "cannot export a int"),
        (lambda: contacts().isel(bin1=slice(9)), "cooler is square, .* 9 bins on bin1"),
        (lambda: contacts().isel(bin1=slice(None, None, -1), bin2=slice(None, None, -1)), "sortby"),
        (lambda: contacts().assign_attrs(binsize=300), "not those of a genome with 300 bp"),
        (lambda: contacts().rename(count="a").assign(b=contacts()["count"]), r"\['a', 'b'\]: choose"),
        (lambda: contacts().drop_vars("chrom1"), r"needs \['chrom1'\]"),
        (lambda: contacts().assign(count=contacts()["count"] * 1j), "counts are real numbers"),
        (lambda: contacts().assign_coords(
            weight1=("bin1", np.ones(101), {"by": {"a": 1}})), "attribute 'by' of `weight` is dict"),
    ],
)  # fmt: skip
def test_bad_sources__are_refused(make, message, tmp_path):
    with pytest.raises(SchemaError, match=message):
        xl.export(make(), tmp_path / "b.cool", progress=False)
    assert not list(tmp_path.iterdir())


def test_failure__leaves_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "a.cool", random_map(200))

    def full(*args):  # noqa: ARG001 # has the arguments of what it stands for
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cooler_writer.CoolerWriter, "append", full)
    with pytest.raises(ReadError, match="No space left on device; make room"):
        xl.export(path, tmp_path / "b.cool", progress=False)
    assert {p.name for p in tmp_path.iterdir()} == {"a.cool"}
