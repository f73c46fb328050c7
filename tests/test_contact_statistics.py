"""Statistics of contacts: cooltools' expected, numpy's moments and percentiles, each chunk read once."""

import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

import xloader as xl
from tests.doubles import CONTACTS, Tiles, contact_map, contacts, contacts_in
from tests.sources import saved
from xloader.backends.cooler import CoolerArray
from xloader.errors import PlanError, SchemaError, StateError
from xloader.store.shards import ShardedArray

FIGURES = (
    "expected",
    "std",
    "n_pairs",
    "expected_pooled",
    "std_pooled",
    "mean",
    "std_overall",
    "percentile",
    "coverage",
    "n_masked",
)


def naive(ds, weight=None, ignore=2, quantiles=(0.01, 0.5, 0.99), variable="count"):
    """Return the statistics of a map in memory, pair by pair and with numpy's own functions."""
    ids, chrom = ds.bin1.values, ds.chrom1.values
    x = ds[variable].transpose("bin1", "bin2").values.astype(np.float64)
    masked = np.zeros(len(ids), bool)
    if weight:
        w = ds[f"{weight}1"].values.astype(np.float64)
        factor = 1 / w if ds[f"{weight}1"].attrs["divisive"] else w
        x = x * factor[:, None] * factor[None, :]
        masked = np.isnan(factor)
    cis = chrom[:, None] == chrom[None, :]
    distance = np.abs(ids[:, None] - ids[None, :])
    seen = cis & ~masked[:, None] & ~masked[None, :] & ~np.isnan(x)
    upper = seen & (ids[:, None] <= ids[None, :])
    names = list(dict.fromkeys(chrom.tolist()))
    spans = [np.ptp(ids[chrom == c]) + 1 for c in names]
    expected, std = np.full((2, len(names), max(spans)), np.nan)
    n_pairs = np.zeros(expected.shape, int)
    for k, c in enumerate(names):
        for d in range(spans[k]):
            values = x[upper & (distance == d) & (chrom == c)[:, None]]
            n_pairs[k, d] = len(values)
            if d >= ignore and len(values):
                expected[k, d] = values.mean()
                std[k, d] = values.std(ddof=1) if len(values) > 1 else np.nan
    far = upper & (distance >= ignore)
    pooled = [x[far & (distance == d)] for d in range(max(spans))]
    row_sums = np.where(seen & (distance >= ignore), x, 0).sum(axis=1)
    return {
        "expected": expected,
        "std": std,
        "n_pairs": n_pairs,
        "expected_pooled": [v.mean() if len(v) else np.nan for v in pooled],
        "std_pooled": [v.std(ddof=1) if len(v) > 1 else np.nan for v in pooled],
        "mean": x[far].mean(),
        "std_overall": x[far].std(ddof=1),
        "percentile": np.quantile(x[far], quantiles),
        "coverage": np.where(masked, np.nan, row_sums),
        "n_masked": np.array([(masked & (chrom == c)).sum() for c in names]),
    }


def assert_equal(stats, ds, rounded=None, **options):
    expected = naive(ds.compute(), **options)
    if rounded is None:
        rounded = bool(options.get("weight"))
    for name in FIGURES:
        tolerance = 1e-3 if name == "percentile" and rounded else 1e-9
        npt.assert_allclose(
            stats[name].values, expected[name], rtol=tolerance, atol=1e-9, err_msg=name
        )
    assert stats["percentile"].attrs["relative_error"] == (2**-11 if rounded else 0)


def some(ds, **options):
    return xl.statistics(ds, quantiles=(0.01, 0.5, 0.99), progress=False, **options)


@pytest.mark.parametrize("form", CONTACTS)
@pytest.mark.parametrize("weight", [None, "weight"], ids=["raw", "weight"])
def test_statistics__equal_numpy_in_every_form(form, weight, tmp_path):
    ds = contacts_in(form, tmp_path)
    if "divisive" not in ds.weight1.attrs:  # plain files hold no such attribute
        ds = ds.assign_coords({f"weight{s}": (f"bin{s}", ds[f"weight{s}"].values, {"divisive": False}) for s in "12"})  # fmt: skip
    stats = some(ds, weight=weight)
    assert_equal(stats, ds, weight=weight)
    assert stats.attrs["weight"] == (weight or "")
    assert (stats.attrs["variable"], stats.attrs["ignore_diags"]) == ("count", 2)


@pytest.mark.parametrize("ignore", [0, 1, 5])
@pytest.mark.parametrize("weight", [None, "KR"], ids=["raw", "KR"])
def test_statistics__of_divisive_vectors_and_near_pairs(ignore, weight):
    ds = contacts()
    assert_equal(some(ds, weight=weight, ignore_diags=ignore), ds, weight=weight, ignore=ignore)


SELECT = {
    "chromosome": slice(61, None),
    "holes": np.r_[3:20, 31:33, 50:80, 99],
    "backwards": slice(None, None, -1),
    "scattered": np.random.default_rng(4).permutation(101)[:40],
    "single": [7],
}


@pytest.mark.parametrize("name", SELECT)
@pytest.mark.parametrize("chunked", [False, True], ids=["lazy", "dask"])
def test_statistics__of_views_are_of_their_pairs_alone(name, chunked):
    ds = contacts().chunk({"bin1": 24, "bin2": 40}) if chunked else contacts()
    view = ds.isel(bin1=SELECT[name], bin2=SELECT[name])
    if name == "single":
        stats = some(view, ignore_diags=0)
        assert stats["mean"] == contact_map()[7, 7]
        assert np.isnan(stats["std_overall"])
        return
    stats = some(view, weight="weight")
    assert_equal(stats, view.sortby(["bin1", "bin2"]), weight="weight")


@given(data=st.data(), n=st.integers(3, 12))
def test_statistics__of_any_counts(data, n):
    dtype = data.draw(st.sampled_from(["uint8", "int64", "float32", "float64"]))
    highest = 200 if dtype == "uint8" else 100_000
    count = st.one_of(st.just(0), st.integers(0, highest))
    x = np.triu(np.reshape(data.draw(st.lists(count, min_size=n * n, max_size=n * n)), (n, n)))
    ds = contacts(Tiles((x + np.triu(x, 1).T).astype(dtype), tile=4), (n - 1, 1))
    quantiles = (0.0, 0.3, 1.0)
    stats = xl.statistics(ds, quantiles=quantiles, ignore_diags=0, progress=False)
    assert_equal(stats, ds, rounded=dtype[0] == "f", quantiles=quantiles, ignore=0)


def test_statistics__missing_counts_are_no_pairs():
    x = contact_map(dtype="float64")
    x[[5, 9], [9, 5]] = np.nan
    ds = contacts().load().assign(count=(("bin1", "bin2"), x))
    assert_equal(some(ds), ds, rounded=True)


def test_statistics__of_expressions_are_those_of_the_result():
    ds = contacts().chunk({"bin1": 24, "bin2": 40})
    log = ds.assign(count=np.log1p(ds["count"]) - 1)
    assert_equal(some(log), log, rounded=True)


def test_statistics__every_tile_is_read_once_and_no_other():
    array = Tiles(contact_map())
    ds = contacts(array).chunk({"bin1": 24, "bin2": 40})
    some(ds)
    # tiles of 8 x 8: bins 0-60 and 61-100 are chromosomes, and tile 7 holds bins of both
    first = {(i, j) for i in range(8) for j in range(i, 8)}
    second = {(i, j) for i in range(7, 13) for j in range(i, 13)}
    needed = {(i, j) for i, j in first | second if not i == j == 12} | {(12, 12)}
    assert set(array.log) == needed
    assert len(array.log) == len(needed)


def test_statistics__every_chunk_of_a_store_is_read_once(tmp_path, monkeypatch):
    n = 700
    ds = contacts(Tiles(contact_map(n, "uint16"), 128), (500, 200))
    store = xl.convert(ds, tmp_path / "store", progress=False)
    read, whole = [], ShardedArray.read_chunks

    def counted(self, ids, *args):
        read.extend(map(tuple, ids.tolist()))
        return whole(self, ids, *args)

    monkeypatch.setattr(ShardedArray, "read_chunks", counted)
    view = xl.split(store, {"train": ["chr1"], "val": "rest"})["train"]
    stats = some(view, memory_budget="17.3MB")
    assert sorted(read) == [(i, j) for i in range(4) for j in range(i, 4)]
    assert_equal(stats, view)


def test_statistics__every_pixel_of_a_cooler_is_read_once(tmp_path, monkeypatch):
    ds = contacts_in("cool", tmp_path)
    read, whole = [], CoolerArray._pixels

    def counted(self, start, stop):
        read.extend(range(start, stop))
        return whole(self, start, stop)

    monkeypatch.setattr(CoolerArray, "_pixels", counted)
    some(ds)
    assert read == list(range(np.count_nonzero(np.triu(contact_map()))))


def test_statistics__memory_stays_within_the_budget():
    n, side = 6000, 100

    class Large(Tiles):
        def __init__(self):
            super().__init__(np.zeros((1, 1), np.int32), side)
            self.shape = (n, n)

        @override
        def read_tiles(self, ij):
            return (ij.sum(axis=1)[:, None, None] + np.zeros((1, side, side), int)).astype("int32")

    ds = contacts(Large(), (n,))
    some(contacts())  # compiled
    budget = 24_000_000  # 144 MB of counts, of which half are read
    tracemalloc.start()
    try:
        stats = some(ds, memory_budget=budget)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{peak / 1e6:.1f} MB")
    assert peak < budget
    place = np.arange(n) // side
    assert stats["expected"].values[0, 2500] == pytest.approx(
        (place[: n - 2500] + place[2500:]).mean()
    )
    with pytest.raises(PlanError, match=r"memory_budget is .*; allow "):
        some(ds, memory_budget=100_000)


def test_statistics__are_the_same_in_every_file(tmp_path):
    import cooler

    ds = contacts_in("cool", tmp_path)
    path = tmp_path / "map.mcool"
    cooler.zoomify_cooler(str(tmp_path / "map.cool"), str(path), [1000, 2000], 10_000)
    with cooler.Cooler(f"{path}::resolutions/1000").open("r+") as group:
        if "weight" not in group["bins"]:
            group["bins"]["weight"] = ds.weight1.values
            group["bins"]["weight"].attrs["divisive"] = False
    level = xl.open_contacts(path, resolution=1000)
    store = xl.convert(tmp_path / "map.cool", tmp_path / "store", progress=False)
    for weight in (None, "weight"):
        first, *others = (some(x, weight=weight) for x in (ds, level, store))
        for other in others:
            xr.testing.assert_identical(first, other)


def test_statistics__of_a_loader_are_those_of_its_dataset():
    ds = contacts()
    loader = xl.Loader(ds, windows=xl.windows.diagonal(size=8), batch_size=4, transform=xl.transforms.log1p("count"))  # fmt: skip
    xr.testing.assert_identical(some(loader), some(ds))


@pytest.mark.parametrize("how", ["zarr", "netcdf"])
def test_statistics__are_saved_and_checked(how, tmp_path):
    ds = contacts()
    views = xl.split(ds, {"train": ["chr1"], "val": ["chr2"]})
    stats = some(views["train"], weight="weight")
    again = saved(stats, how, tmp_path)
    for name in stats.variables:
        npt.assert_array_equal(again[name].values, stats[name].values)
    assert again.attrs == stats.attrs
    loader = xl.Loader(views["train"], windows=xl.windows.diagonal(size=8), batch_size=4)
    xl.check_statistics(again, loader)
    xl.check_leakage({"statistics": again, "val": views["val"]})
    with pytest.raises(
        PlanError, match=r"'statistics' and 'train' overlap in 61,000 bp: chr1:0-61,000"
    ):
        xl.check_leakage({"statistics": again, "train": loader})


def changed(ds, name, at=3):
    values = ds[name].values.copy()
    values[at] += 1
    return ds.assign_coords({f"{name[:-1]}{s}": (f"bin{s}", values, ds[name].attrs) for s in "12"})


OTHER = {
    "bins": (lambda ds: ds.isel(bin1=slice(0, 50), bin2=slice(0, 50)), "selection: 61 bins then and 50 now"),
    "counts": (lambda ds: ds.assign(count=ds["count"] + 1), "values, labels or balancing vector"),
    "type": (lambda ds: ds.assign(count=ds["count"].astype("int64")), "values, labels"),
    "weight": (lambda ds: changed(ds, "weight1"), "balancing vector"),
    "starts": (lambda ds: changed(ds, "start1"), "values, labels"),
    "variable": (lambda ds: ds.rename(count="reads"), r"are of 'count' of contacts, and these are contacts with \['reads'\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_check_statistics__refuses_other_data(name):
    ds = contacts().isel(bin1=slice(0, 61), bin2=slice(0, 61))
    stats = some(ds, weight="weight")
    xl.check_statistics(stats, ds)
    change, message = OTHER[name]
    with pytest.raises(StateError, match=message):
        xl.check_statistics(stats, change(ds))


def test_check_statistics__tells_settings_apart():
    ds = contacts()
    kinds = [{}, {"weight": "weight"}, {"weight": "KR"}, {"ignore_diags": 0}]
    told = {some(ds, **options).attrs["fingerprint"] for options in kinds}
    told.add(xl.statistics(ds, progress=False).attrs["fingerprint"])  # other quantiles
    assert len(told) == 5
    with pytest.raises(SchemaError, match="is no statistics; pass what xl.statistics returned"):
        xl.check_statistics(ds, ds)


@pytest.mark.parametrize(
    ("change", "options", "kind", "message"),
    [
        (lambda ds: ds, {"weight": "ICE"}, SchemaError, r"'ICE' is not in this map; it has \['KR', 'weight'\]"),
        (lambda ds: ds, {"transform": xl.transforms.log1p("count")}, PlanError, r"\['transform'\] do not apply to statistics of contacts"),
        (lambda ds: ds, {"ignore_diags": -1}, PlanError, "ignore_diags=-1"),
        (lambda ds: ds, {"variable": "reads"}, SchemaError, r"needs \['reads'\]"),
        (lambda ds: ds.isel(bin1=slice(0, 9)), {}, SchemaError, "9 on bin1 and 101 on bin2"),
        (lambda ds: ds.isel(bin1=[1, 1], bin2=[1, 1]), {}, SchemaError, "each once"),
        (lambda ds: ds.expand_dims("sample"), {}, SchemaError, r"but 'count' has \('sample', 'bin1', 'bin2'\)"),
        (lambda ds: ds.drop_vars("chrom1"), {}, KeyError, "chrom1"),
        (lambda ds: ds.assign_coords(weight1=ds.weight1 + 1), {"weight": "weight"}, SchemaError, "differ, but one bin has one weight"),
        (lambda ds: ds["count"], {}, SchemaError, "not of DataArray"),
        (lambda _: xr.Dataset({"x": ("time", [1.0])}), {}, SchemaError, r"not of \{'time': 1\}"),
    ],
    ids=["weight", "transform", "ignore", "variable", "oblong", "repeated", "samples", "chrom", "differ", "array", "kind"],
)  # fmt: skip
def test_statistics__what_is_impossible_is_told(change, options, kind, message):
    with pytest.raises(kind, match=message):
        xl.statistics(change(contacts()), progress=False, **options)


def expected_cis(path, weight):
    """Return what cooltools expects, by chromosome."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has some of its own
        import cooler
        import cooltools

        return cooltools.expected_cis(
            cooler.Cooler(str(path)), smooth=False, clr_weight_name=weight, nproc=1
        )


def assert_equals_cooltools(ds, uri, weight):
    stats = xl.statistics(ds, weight=weight, progress=False)
    table = expected_cis(uri, weight)
    assert set(table["region1"]) == set(stats.chrom.values)
    value, n = ("balanced.avg", "n_valid") if weight else ("count.avg", "n_total")
    worst, sums = 0.0, table.groupby("dist")[[value.replace("avg", "sum"), n]].sum()
    pooled = (sums.iloc[:, 0] / sums.iloc[:, 1]).where(sums.index >= 2)
    npt.assert_allclose(stats["expected_pooled"].values, pooled, rtol=1e-6, atol=0)
    for chrom, theirs in table.groupby("region1", observed=True):
        at = {"chrom": chrom, "distance": theirs["dist"].to_numpy()}
        ours = stats.sel(at)
        npt.assert_allclose(ours["expected"].values, theirs[value], rtol=1e-6, atol=0)
        npt.assert_array_equal(ours["n_pairs"].values, theirs[n])
        known = theirs[value].to_numpy() > 0
        off = np.abs(ours["expected"].values[known] / theirs[value].to_numpy()[known] - 1)
        worst = max(worst, off.max(initial=0))
    print(f"{len(stats.chrom)} chromosomes, largest relative difference {worst:.1e}")


@pytest.mark.parametrize("weight", [None, "weight"], ids=["raw", "weight"])
def test_expected__is_that_of_cooltools(weight, tmp_path):
    ds = contacts_in("cool", tmp_path)
    assert_equals_cooltools(ds, tmp_path / "map.cool", weight)


REAL = [
    ("scer_w303_g1_2kb_SRR8769554.cool", None, "weight"),
    ("scer_w303_g1.6res.balanced.mcool", 16000, "weight"),
    ("hictkpy_dm6_4DNFIZ1ZVXC8.mcool", 100_000, "weight"),
    ("hg19.GM12878-MboI.matrix.2000kb.cool", None, None),
    ("float_counts.cool", None, None),
]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "resolution", "weight"), REAL, ids=[Path(r[0]).stem for r in REAL]
)
def test_expected__of_real_files_is_that_of_cooltools(real_data, name, resolution, weight):
    path = real_data / "hic" / name
    uri = path if resolution is None else f"{path}::resolutions/{resolution}"
    assert_equals_cooltools(xl.open_contacts(path, resolution=resolution), uri, weight)


@pytest.mark.real
@pytest.mark.parametrize("weight", ["KR", "VC", "SCALE"])
def test_statistics__of_real_divisive_vectors_equal_numpy(real_data, weight):
    ds = xl.open_contacts(real_data / "hic" / "hictkpy_dm6_4DNFIZ1ZVXC8.mcool", resolution=100_000, view="chr2L")  # fmt: skip
    assert ds[f"{weight}1"].attrs["divisive"]
    assert_equal(some(ds, weight=weight), ds, weight=weight)
