"""Transforms: values against plain loops, scipy and cooltools; labels and masks; what is refused."""

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
import scipy.ndimage
import scipy.stats
import xarray as xr

import xloader as xl
from tests.doubles import BIN, Tiles, contact_map, contacts
from xloader import transforms as T
from xloader.contract import SampleRandom
from xloader.errors import SchemaError

N = 12
DIAGONAL = xl.windows.diagonal(size=N, stride=5)
GRID = xl.windows.grid(size=N, stride=8)
BOTH = pytest.mark.parametrize("windows", [DIAGONAL, GRID], ids=["diagonal", "grid"])


def batch_of(windows=DIAGONAL, **options):
    options = {"batch_size": 9, "shuffle": True, "variables": ["count"], **options}
    return xl.Loader(contacts(), windows=windows, **options)[0]


def balanced(windows=DIAGONAL):
    """Return raw and balanced windows, with masked bins."""
    return batch_of(windows, transform=T.balance(into="balanced"))


def random_of(batch, seed=0, epoch=0):
    return SampleRandom(seed, epoch=epoch, sample_id=batch.sample_id.values)


def stats_of(ds, variable="count", weight="", **further):
    """Return means and deviations at each distance, by plain loops over diagonals."""
    chroms = sorted(set(ds.chrom1.values.tolist()))
    n = max(int((ds.chrom1 == c).sum()) for c in chroms)
    mean, std = np.full((2, len(chroms), n), np.nan)
    for k, chrom in enumerate(chroms):
        at = np.flatnonzero(ds.chrom1.values == chrom)
        x = ds[variable].values[np.ix_(at, at)].astype(float)
        for d in range(len(at)):
            line = np.diagonal(x, d)
            line = line[~np.isnan(line)]
            if len(line):
                mean[k, d], std[k, d] = line.mean(), line.std()
    table = ("chrom", "distance")
    return xr.Dataset(
        {"expected": (table, mean), "std": (table, std), **further},
        {"chrom": chroms, "distance": np.arange(n)},
        {"variable": variable, "weight": weight, "binsize": BIN},
    )


def pairs(batch):
    """Yield sample, row, column and distance in bins of each pixel, from positions."""
    start1, start2 = batch.start1.values, batch.start2.values
    for s in range(batch.sizes["sample"]):
        for i in range(start1.shape[1]):
            for j in range(start2.shape[1]):
                yield s, i, j, abs(int(start2[s, j]) - int(start1[s, i])) // BIN


# every transform, and how much of what it gets it keeps


def every():
    stats = stats_of(contacts().load())
    quantiles = {"percentile": ("quantile", [0.0, 6.0])}
    full = stats.assign(quantiles).assign_coords(quantile=[0.5, 0.99])
    return {
        "balance": T.balance(),
        "log1p": T.log1p("count"),
        "clip": T.clip(1, 4, "count"),
        "clip_quantile": T.clip(None, 0.99, stats=full),
        "scale": T.scale(0.5, 0.99, stats=full),
        "fill": T.fill(0, "count"),
        "observed_over_expected": T.observed_over_expected(stats, pseudocount=1, log=True),
        "zscore": T.zscore(stats),
        "mask_diagonals": T.mask_diagonals(2, "count"),
        "coarsen": T.coarsen(3),
        "crop": T.crop(2),
        "flip": T.flip(),
        "upper_triangle": T.upper_triangle(),
        "smooth": T.smooth(1, "count"),
        "interpolate": T.interpolate("count"),
        "adaptive_coarsegrain": T.adaptive_coarsegrain("count", "count"),
        "thin": T.thin(0.5),
        "compose": T.compose(T.thin(0.5), T.flip(), T.balance(), T.log1p("count")),
    }


@pytest.mark.parametrize("name", every())
def test_every_transform__travels_and_keeps_labels(name):
    transform = every()[name]
    loader = xl.Loader(contacts(), windows=DIAGONAL, batch_size=9, transform=transform)
    batch = loader[0]
    again = xl.Loader(
        contacts(), windows=DIAGONAL, batch_size=9, transform=pickle.loads(pickle.dumps(transform))
    )
    xr.testing.assert_identical(batch, again[0])
    assert loader.state_dict() == again.state_dict()
    plain = batch_of(shuffle=False)
    kept = {"chrom1", "start1", "end1", "chrom2", "start2", "end2", "sample_id"}
    assert kept <= set(batch.coords)
    assert batch["count"].attrs == {**plain["count"].attrs, **batch["count"].attrs}
    before = batch_of(shuffle=False)
    xr.testing.assert_identical(plain, before)


@pytest.mark.parametrize("name", sorted(set(every()) - {"compose"}))
def test_every_transform__does_not_change_what_it_gets(name):
    transform, batch = every()[name], batch_of()
    before = batch.copy(deep=True)
    if name in {"thin", "flip"}:
        transform(batch, rng=random_of(batch))
    else:
        transform(batch)
    xr.testing.assert_identical(batch, before)


def test_every_transform__is_documented():
    page = (Path(xl.__file__).parent.parent / "docs" / "reference.md").read_text()
    (line,) = (x for x in page.splitlines() if ":members:" in x and "log1p" in x)
    listed = line.split(":members:")[1].replace(" ", "").split(",")
    assert listed == sorted(T.__all__)
    for name in T.__all__:
        assert ">>>" in getattr(T, name).__doc__, name


# balancing beside raw counts


def test_balance__into_keeps_raw_counts_and_says_which_vector():
    batch = balanced()
    plain = batch_of()
    xr.testing.assert_identical(batch["count"], plain["count"])
    xr.testing.assert_identical(batch.balanced, T.balance()(plain)["count"].rename("balanced"))
    assert batch.balanced.attrs["weight"] == "weight"


@pytest.mark.parametrize("array", [None, contact_map()], ids=["tiles", "memory"])
def test_balance__says_which_vector_wherever_it_is_done(array):
    ds = contacts() if array is None else contacts().assign(count=(("bin1", "bin2"), array))
    loader = xl.Loader(ds, windows=DIAGONAL, batch_size=4, transform=T.balance("KR"))
    assert loader._source.fused == (array is None)
    assert loader[0]["count"].attrs["weight"] == "KR"


# by distance


@BOTH
@pytest.mark.parametrize("log", [False, True])
def test_observed_over_expected__equals_a_loop(windows, log):
    stats, batch = stats_of(contacts().load()), batch_of(windows)
    result = T.observed_over_expected(stats, pseudocount=0.5, log=log)(batch)["count"]
    expected = stats.expected.to_series()
    for s, i, j, d in pairs(batch):
        value = batch["count"].values[s, i, j] + 0.5
        value /= expected[str(batch.chrom1.values[s, i]), d] + 0.5
        assert result.values[s, i, j] == pytest.approx(
            np.log(value) if log else value, rel=1e-6, abs=1e-6
        )
    assert result.dtype == np.float32


@BOTH
def test_observed_over_expected__of_balanced_counts_keeps_the_mask(windows):
    whole = T.balance()(contacts().load())
    stats, batch = stats_of(whole, weight="weight"), balanced(windows)
    result = T.observed_over_expected(stats, variable="balanced", into="ratio")(batch)
    seen = ~np.isnan(batch.balanced.values)
    npt.assert_array_equal(~np.isnan(result.ratio.values), seen)
    xr.testing.assert_identical(result.drop_vars("ratio"), batch)
    expected = stats.expected.to_series()
    for s, i, j, d in pairs(batch):
        if seen[s, i, j]:
            value = batch.balanced.values[s, i, j] / expected[str(batch.chrom1.values[s, i]), d]
            assert result.ratio.values[s, i, j] == pytest.approx(value, rel=1e-6)


def test_observed_over_expected__zero_has_the_logarithm_of_zero_and_nothing_expected_is_nan():
    ds, stats = contacts().load(), stats_of(contacts().load())
    ds["count"][3, 5] = 0
    stats.expected[:, 4] = 0
    result = T.observed_over_expected(stats, log=True)(ds.isel(bin1=slice(9), bin2=slice(9)))
    values = result["count"].values
    assert values[3, 5] == -np.inf
    assert np.isnan(np.diagonal(values, 4)).all()
    assert np.isnan(values).sum() == 2 * 5


def test_observed_over_expected__between_chromosomes_is_what_is_said():
    ds, stats = contacts().load(), stats_of(contacts().load())
    for between in (2.0, np.nan):
        ratio = T.observed_over_expected(stats, between=between)(ds)["count"].values
        npt.assert_allclose(ratio[:61, 61:], ds["count"].values[:61, 61:] / between, rtol=1e-6)
        assert not np.isnan(ratio[:61, :61]).any()
    block = {"bin1": slice(50, 55), "bin2": slice(61, 70)}
    part = ds.isel(block)
    npt.assert_array_equal(
        T.observed_over_expected(stats, between=2)(part)["count"].values, part["count"].values / 2
    )
    for refused in (ds, part):
        with pytest.raises(SchemaError, match=r"bins of 'chr1' and 'chr2' do not have; leave"):
            T.observed_over_expected(stats)(refused)
        with pytest.raises(SchemaError, match="'zscore' works by distance"):
            T.zscore(stats)(refused)


@BOTH
def test_zscore__equals_a_loop(windows):
    stats, batch = stats_of(contacts().load()), batch_of(windows)
    stats["std"][0, 3] = 0
    result = T.zscore(stats, into="z")(batch).z.values
    table = stats[["expected", "std"]].to_dataframe()
    for s, i, j, d in pairs(batch):
        mean, std = table.loc[(str(batch.chrom1.values[s, i]), d), ["expected", "std"]]
        if std > 0:
            value = (batch["count"].values[s, i, j] - mean) / std
            assert result[s, i, j] == pytest.approx(value, rel=1e-5, abs=1e-6)
        else:
            assert np.isnan(result[s, i, j])


def test_pooled__serves_chromosomes_that_the_training_view_does_not_hold():
    views = xl.split(contacts().load(), {"train": ["chr1"], "val": ["chr2"]})
    stats = xl.statistics(views["train"], ignore_diags=0, progress=False)
    x = views["train"]["count"].values.astype(float)
    lines = [np.diagonal(x, d) for d in range(len(x))]
    mean, std = ([f(line) for line in lines[:7]] for f in (np.mean, partial(np.std, ddof=1)))
    for transform, value in (
        (T.observed_over_expected(stats, pooled=True), lambda v, d: v / mean[d]),
        (T.zscore(stats, pooled=True), lambda v, d: (v - mean[d]) / std[d]),
    ):
        shape = xl.windows.diagonal(size=7)
        batch = xl.Loader(views["val"], windows=shape, batch_size=5, transform=transform)[0]
        raw = xl.Loader(views["val"], windows=shape, batch_size=5)[0]["count"].values
        for s, i, j, d in pairs(batch):
            assert batch["count"].values[s, i, j] == pytest.approx(value(raw[s, i, j], d), rel=1e-5)
    with pytest.raises(SchemaError, match=r"\['chr2'\], only of \['chr1'\]; pass pooled=True"):
        xl.Loader(views["val"], windows=shape, batch_size=5, transform=T.zscore(stats))
    with pytest.raises(SchemaError, match=r"needs \['expected_pooled'"):
        T.zscore(stats.drop_vars("expected_pooled"), pooled=True)


@BOTH
@pytest.mark.parametrize(("value", "dtype"), [(0, np.int32), (np.nan, np.float32)])
def test_mask_diagonals__by_distance_wherever_windows_lie(windows, value, dtype):
    batch = batch_of(windows)
    masked = T.mask_diagonals(3, "count", value=value)(batch)["count"]
    assert masked.dtype == dtype
    for s, i, j, d in pairs(batch):
        npt.assert_equal(masked.values[s, i, j], value if d < 3 else batch["count"].values[s, i, j])
    assert masked.attrs == batch["count"].attrs


def test_mask_diagonals__leaves_other_chromosomes_alone():
    ds = contacts().load()
    masked = T.mask_diagonals(2, "count", value=-1)(ds)["count"].values
    assert (masked[60, 60:63] == [-1, ds["count"][60, 61], ds["count"][60, 62]]).all()


def padded(batch):
    """Return windows of which the first shows bins beyond a chromosome's end, as padding does."""
    batch = batch.copy(deep=True)
    for side in "12":
        batch[f"bin{side}"][0, -3:] = -1
    batch["count"][0, -3:] = 0
    batch["count"][0, :, -3:] = 0
    return batch


def test_padding__has_no_distance_and_is_masked():
    stats = stats_of(contacts().load())
    plain = batch_of()
    batch = padded(plain)
    for transform in (T.observed_over_expected(stats, between=1), T.zscore(stats)):
        got, whole = transform(batch)["count"].values, transform(plain)["count"].values
        assert np.isnan(got[0, -3:]).all()
        assert np.isnan(got[0, :, -3:]).all()
        npt.assert_array_equal(got[0, :-3, :-3], whole[0, :-3, :-3])
        npt.assert_array_equal(got[1:], whole[1:])
    masked = T.mask_diagonals(2, "count", value=-7)(batch)["count"].values
    assert (masked[0, -3:] == 0).all()
    assert masked[0, 0, 0] == masked[1, -1, -1] == -7


def test_padding__is_coarsened_with_what_is_there():
    plain, batch = batch_of(), padded(batch_of())
    coarse, whole = T.coarsen(2)(batch), T.coarsen(2)(plain)
    npt.assert_array_equal(coarse["count"][0, :4, :4], whole["count"][0, :4, :4])
    assert coarse["count"].values[0, 4, 4] == plain["count"].values[0, 8, 8]
    assert coarse["count"].values[0, 5].sum() == 0
    assert (
        coarse.bin1.values[0] == [*whole.bin1.values[0, :4], plain.bin1.values[0, 8] // 2, -1]
    ).all()
    npt.assert_array_equal(coarse["count"][1:], whole["count"][1:])


# what statistics are of


def test_statistics__of_other_data_are_refused():
    ds, stats = contacts().load(), stats_of(contacts().load())
    part = ds.isel(bin1=slice(61), bin2=slice(61))
    for transform in (T.observed_over_expected, T.zscore):
        with pytest.raises(SchemaError, match=r"no statistics of \['chr2'\], only of \['chr1'\]"):
            transform(stats.isel(chrom=[0]))(ds.isel(bin1=slice(61, 101), bin2=slice(61, 101)))
        with pytest.raises(
            SchemaError, match="up to a distance of 19 bins, but the batch reaches 60"
        ):
            transform(stats.isel(distance=slice(20)))(part)
        with pytest.raises(
            SchemaError, match="as raw counts, but the batch has it balanced by 'KR'"
        ):
            transform(stats)(T.balance("KR")(part))
        with pytest.raises(
            SchemaError, match="of bins of 5000 bp, but those of the batch have 1000"
        ):
            transform(stats.assign_attrs(binsize=5000))(part)
        with pytest.raises(SchemaError, match=r"needs \['other'\], which the Dataset lacks"):
            transform(stats.assign_attrs(variable="other"))(part)
        with pytest.raises(SchemaError, match=r"needs \['expected'.*it has"):
            transform(stats.drop_vars(["expected", "std"]))
        with pytest.raises(SchemaError, match="not this DataArray"):
            transform(stats.expected)
        with pytest.raises(SchemaError, match="from 0 bins on, one by one"):
            transform(stats.isel(distance=slice(2, None)))
    with pytest.raises(SchemaError, match="pseudocount=-1 is impossible"):
        T.observed_over_expected(stats, pseudocount=-1)


def test_statistics__without_a_chromosome_are_refused_before_anything_is_read():
    array = Tiles(contact_map())
    ds, stats = contacts(array), stats_of(contacts().load()).isel(chrom=[0])
    for transform in (T.zscore(stats), T.compose(T.thin(0.5), T.observed_over_expected(stats))):
        with pytest.raises(SchemaError, match=r"no statistics of \['chr2'\], only of \['chr1'\]"):
            xl.Loader(ds, windows=DIAGONAL, batch_size=4, transform=transform)
        part = ds.isel(bin1=slice(61), bin2=slice(61))
        xl.Loader(part, windows=DIAGONAL, batch_size=4, transform=transform)
        big = xl.windows.diagonal(size=50)  # chr2 is too short for these
        xl.Loader(ds, windows=big, batch_size=1, transform=transform, remainder="drop")
    assert not array.log


def test_statistics__of_the_same_balancing_fit_where_readers_balance():
    stats = stats_of(T.balance()(contacts().load()), weight="weight")
    steps = T.compose(T.balance(), T.observed_over_expected(stats))
    loader = xl.Loader(contacts(), windows=DIAGONAL, batch_size=9, transform=steps)
    assert loader._source.fused
    xr.testing.assert_allclose(loader[0], steps(batch_of(shuffle=False)), rtol=2e-6)


# values


def test_clip__by_frozen_quantiles_is_that_by_their_values():
    ds = contacts().load()
    values = np.quantile(ds["count"].values, [0.1, 0.9])
    stats = stats_of(ds, percentile=("quantile", values)).assign_coords(quantile=[0.1, 0.9])
    batch = batch_of()
    clipped = T.clip(0.1, 0.9, stats=stats)(batch)["count"]
    npt.assert_array_equal(clipped.values, np.clip(batch["count"].values, *values))
    assert clipped.dtype == np.int32
    scaled = T.scale(0.1, 0.9, "count", stats=stats)(batch)["count"]
    a, b = values
    npt.assert_allclose(scaled.values, (batch["count"].values - a) / (b - a), rtol=1e-6)
    with pytest.raises(SchemaError, match=r"quantile 0.5, but the statistics have \[0.1, 0.9\]"):
        T.clip(None, 0.5, stats=stats)
    for transform in (T.clip, T.scale):
        with pytest.raises(SchemaError, match="but the batch has it balanced by 'weight'"):
            transform(0.1, 0.9, stats=stats)(T.balance()(batch))


def test_clip__bounds_of_integers_are_rounded_inwards():
    ds = xr.Dataset({"x": ("sample", np.arange(-3, 6))})
    npt.assert_array_equal(T.clip(-1.5, 2.5, "x")(ds).x, [-1, -1, -1, 0, 1, 2, 2, 2, 2])
    with pytest.raises(SchemaError, match="has the bounds 3 and 1; give the lower one first"):
        T.clip(3, 1, "x")
    with pytest.raises(SchemaError, match="cannot move the range from 3 to 3"):
        T.scale(3, 3, "x")


# shapes


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_coarsen__sum_counts_each_contact_once(factor):
    batch = batch_of()
    coarse = T.coarsen(factor)(batch)
    m = N // factor
    for s in range(9):
        upper = np.triu(batch["count"].values[s])
        total = np.zeros((m, m), int)
        for i in range(N):
            for j in range(N):
                total[i // factor, j // factor] += upper[i, j]
        total += np.triu(total, 1).T
        npt.assert_array_equal(coarse["count"].values[s], total)
    assert coarse["count"].dtype == np.int64
    for side in "12":
        npt.assert_array_equal(coarse[f"start{side}"], batch[f"start{side}"][:, ::factor])
        npt.assert_array_equal(coarse[f"end{side}"], batch[f"end{side}"][:, factor - 1 :: factor])
        npt.assert_array_equal(coarse[f"chrom{side}"], batch[f"chrom{side}"][:, ::factor])
        assert {f"weight{side}", f"KR{side}"} & set(coarse.coords) == set()
    assert coarse.attrs["binsize"] == factor * BIN


def test_coarsen__blocks_that_meet_the_diagonal_askew_count_each_contact_once():
    ds = contacts().load().isel(bin1=slice(0, 12), bin2=slice(2, 14))
    coarse = T.coarsen(4)(ds)["count"].values
    x = ds["count"].values
    for a in range(3):
        for b in range(3):
            seen = {
                frozenset((i, j - -2)): x[i, j]
                for i in range(4 * a, 4 * a + 4)
                for j in range(4 * b, 4 * b + 4)
            }
            assert coarse[a, b] == sum(seen.values())


@BOTH
def test_coarsen__mean_leaves_masked_pixels_out(windows):
    batch = balanced(windows)
    batch = batch.assign(track=(("sample", "bin1"), np.random.default_rng(0).random((9, N))))
    coarse = T.coarsen(2, {"count": "sum", "balanced": "mean", "track": "mean"})(batch)
    blocks = batch.balanced.values.reshape(9, 6, 2, 6, 2)
    n_seen = (~np.isnan(blocks)).sum(axis=(2, 4))
    expected = np.where(n_seen, np.nansum(blocks, axis=(2, 4)) / np.maximum(n_seen, 1), np.nan)
    npt.assert_allclose(coarse.balanced.values, expected, rtol=1e-6)
    npt.assert_allclose(coarse.track.values, batch.track.values.reshape(9, 6, 2).mean(axis=2))
    assert coarse.balanced.dtype == np.float32
    summed = T.coarsen(2)(batch)
    npt.assert_array_equal(np.isnan(summed.balanced.values), n_seen < 4)


def test_coarsen__bins_of_turned_windows_keep_their_bounds():
    plain = batch_of()
    batch = T.coarsen(3)(T.flip(1)(plain, rng=random_of(plain)))
    for side in "12":
        npt.assert_array_equal(
            batch[f"start{side}"], plain[f"start{side}"].values[:, ::-3] - 2 * BIN
        )
        npt.assert_array_equal(batch[f"end{side}"], batch[f"start{side}"] + 3 * BIN)


def test_coarsen__refuses_what_does_not_fit():
    batch = batch_of()
    with pytest.raises(SchemaError, match="windows have 12 along 'bin1'; make windows of 10 or 15"):
        T.coarsen(5)(batch)
    with pytest.raises(SchemaError, match=r"unknown; choose one of \('sum', 'mean'\)"):
        T.coarsen(2, "median")
    with pytest.raises(SchemaError, match=r"says how for \['x'\], but \['count'\] lie along"):
        T.coarsen(2, {"x": "sum"})(batch)
    with pytest.raises(SchemaError, match="would join bins of chrom1 'chr1' and 'chr2'"):
        T.coarsen(2)(contacts().load().isel(bin1=slice(58, 64), bin2=slice(0, 4)))
    with pytest.raises(SchemaError, match=r"coarsen\(0\) is impossible"):
        T.coarsen(0)


@BOTH
def test_crop__cuts_all_sides(windows):
    batch = batch_of(windows)
    cropped = T.crop(2)(batch)
    xr.testing.assert_identical(cropped, batch.isel(bin1=slice(2, 10), bin2=slice(2, 10)))
    assert cropped.sizes["bin1"] == 8
    with pytest.raises(SchemaError, match=r"crop\(6\) would leave nothing"):
        T.crop(6)(batch)
    with pytest.raises(SchemaError, match=r"crop\(-1\) is impossible"):
        T.crop(-1)


@BOTH
def test_flip__turns_some_windows_with_all_that_lies_along_them(windows):
    ds = contacts().assign_coords(gc1=("bin1", np.arange(101.0)))
    plain = xl.Loader(ds, windows=windows, batch_size=40)[0]
    plain = plain.assign(track=plain.gc1 * 2)
    batch = T.flip()(plain, rng=random_of(plain))
    flipped = batch.flipped.values
    assert 0 < flipped.sum() < len(flipped)
    for s, turned in enumerate(flipped):
        step = slice(None, None, -1 if turned else 1)
        expected = plain.isel(sample=s, bin1=step, bin2=step)
        xr.testing.assert_identical(batch.isel(sample=s).drop_vars("flipped"), expected)
    for p, n in ((0, 0), (1, len(flipped))):
        assert T.flip(p)(plain, rng=random_of(plain)).flipped.values.sum() == n
    with pytest.raises(SchemaError, match="choose a probability from 0 to 1"):
        T.flip(1.5)


@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_upper_triangle__and_back(k):
    batch = balanced()
    vectors = T.upper_triangle(k, "balanced", into="target")(batch)
    rows, columns = np.triu_indices(N, k)
    npt.assert_array_equal(vectors.target.values, batch.balanced.values[:, rows, columns])
    npt.assert_array_equal(vectors.pair1, rows)
    assert vectors.target.dims == ("sample", "pair")
    assert vectors.target.attrs == batch.balanced.attrs
    back = T.from_upper_triangle(k, "target", into="back")(vectors)
    far = np.abs(np.subtract.outer(np.arange(N), np.arange(N))) >= k
    npt.assert_array_equal(back.back.values, np.where(far, batch.balanced.values, np.nan))
    again = T.upper_triangle(k, "back")(back)
    npt.assert_array_equal(again.back.values, vectors.target.values)


def test_from_upper_triangle__integers_stay_so_where_nothing_is_left_out():
    batch = batch_of()
    for k, dtype in ((0, np.int32), (1, np.float32)):
        steps = T.compose(T.upper_triangle(k), T.from_upper_triangle(k, "count"))
        back = steps(batch)["count"]
        assert back.dtype == dtype
        assert (np.isnan(back.values).sum() > 0) == (k > 0)
    with pytest.raises(SchemaError, match="got 66 pairs, and windows of 12 bins"):
        T.compose(T.upper_triangle(1), T.from_upper_triangle(2, "count"))(batch)
    with pytest.raises(SchemaError, match="got 4 pairs; n bins have"):
        T.from_upper_triangle(0, "x")(xr.Dataset({"x": ("pair", np.zeros(4))}))


def test_upper_triangle__refuses_windows_off_the_diagonal():
    with pytest.raises(SchemaError, match="needs windows on the diagonal"):
        T.upper_triangle()(batch_of(GRID))
    with pytest.raises(SchemaError, match="leaves nothing of windows of 12 bins"):
        T.upper_triangle(12)(batch_of())
    for transform in (T.upper_triangle, T.from_upper_triangle):
        with pytest.raises(SchemaError, match="k=-1"):
            transform(-1)


# neighbours


@pytest.mark.parametrize("sigma", [0.7, 1, 4])
def test_smooth__equals_scipy_where_nothing_is_masked_and_its_share_elsewhere(sigma):
    batch = balanced()
    smoothed = T.smooth(sigma, "count", "balanced")(batch)
    for name in ("count", "balanced"):
        for s in range(9):
            x = batch[name].values[s].astype(float)
            seen = ~np.isnan(x)
            options = {"sigma": sigma, "mode": "constant", "truncate": 4.0}
            total = scipy.ndimage.gaussian_filter(np.where(seen, x, 0), **options)
            share = scipy.ndimage.gaussian_filter(seen.astype(float), **options)
            expected = np.where(seen, total / np.maximum(share, 1e-30), np.nan)
            npt.assert_allclose(smoothed[name].values[s], expected, rtol=1e-5)
    with pytest.raises(SchemaError, match=r"smooth\(0\) is impossible"):
        T.smooth(0, "count")
    with pytest.raises(SchemaError, match="needs windows along bin1 and bin2"):
        T.smooth(1, "weight1")(batch)


def test_interpolate__is_bilinear_over_masked_bins():
    grid = np.add.outer(np.arange(N) * 3.0, np.arange(N) * 7.0) + 1
    masked = grid.copy()
    masked[[3, 4, 8]] = np.nan
    masked[:, [2, 6]] = np.nan
    ds = xr.Dataset({"x": (("sample", "bin1", "bin2"), np.stack([masked, grid, masked * np.nan]))})
    filled = T.interpolate("x")(ds).x.values
    npt.assert_allclose(filled[0], grid)
    npt.assert_array_equal(filled[1], grid)
    assert np.isnan(filled[2]).all()


def test_interpolate__equals_loops_and_keeps_symmetry():
    batch = balanced()
    filled = T.interpolate("balanced")(batch).balanced.values

    def along(x):
        out = x.copy()
        for row in out:
            seen = np.flatnonzero(~np.isnan(row))
            if len(seen):
                row[:] = np.interp(np.arange(N), seen, row[seen])
        return out

    for s, x in enumerate(batch.balanced.values.astype(float)):
        first, second = along(along(x).T).T, along(along(x.T).T)
        expected = np.where(np.isnan(x), (first + second) / 2, x)
        npt.assert_allclose(filled[s], expected, rtol=1e-5)
        npt.assert_allclose(filled[s], filled[s].T, rtol=1e-6)
    assert np.isnan(batch.balanced.values).any()


@pytest.mark.parametrize("size", [12, 32, 33])
def test_adaptive_coarsegrain__equals_cooltools(size):
    numutils = pytest.importorskip("cooltools.lib.numutils")
    windows = xl.windows.diagonal(size=size, stride=3)
    batch = T.thin(0.3)(batch_of(windows), rng=random_of(batch_of(windows)))
    batch = T.balance(into="balanced")(batch)
    for cutoff in (2, 5):
        pooled = T.adaptive_coarsegrain(cutoff=cutoff)(batch).balanced.values
        for s in range(batch.sizes["sample"]):
            x, raw = batch.balanced.values[s], batch["count"].values[s]
            with np.errstate(invalid="ignore"):
                expected = numutils.adaptive_coarsegrain(x, raw, cutoff=cutoff)
            npt.assert_allclose(pooled[s], expected, rtol=1e-6, atol=1e-12)
            assert (pooled[s] != x)[~np.isnan(x)].any()
    with pytest.raises(SchemaError, match="needs square windows of both"):
        T.adaptive_coarsegrain()(batch.isel(bin1=slice(3)))


# random numbers


def test_thin__is_binomial():
    n = 20_000
    count = np.repeat([[[0, 1, 3, 30, 700, 5_000]]], n, axis=0).astype(np.int32)
    coords = {
        "sample_id": ("sample", np.arange(n)),
        "bin1": (("sample", "bin1"), np.zeros((n, 1), int)),
        "bin2": (("sample", "bin2"), np.tile(np.arange(6), (n, 1))),
    }
    ds = xr.Dataset({"count": (("sample", "bin1", "bin2"), count)}, coords)
    for keep in (0.1, 0.5, 0.8):
        thinned = T.thin(keep)(ds, rng=random_of(ds))["count"].values[:, 0]
        for total, seen in zip(count[0, 0], thinned.T, strict=True):
            law = scipy.stats.binom(total, keep)
            edges = np.unique(law.ppf(np.linspace(0.02, 0.98, 25)))
            expected = np.diff([0, *law.cdf(edges), 1]) * n
            found = np.bincount(np.searchsorted(edges, seen), minlength=len(expected))
            filled = expected > 5
            assert found[~filled].sum() <= 20
            chi2 = ((found - expected) ** 2 / np.maximum(expected, 1e-9))[filled].sum()
            assert scipy.stats.chi2(max(filled.sum() - 1, 1)).sf(chi2) > 1e-4, (total, keep)
        corr = np.corrcoef(thinned[:, 1:].T) - np.eye(5)
        assert np.abs(corr).max() < 5 / np.sqrt(n)


@pytest.mark.parametrize("name", ["whole", "rectangle", "straddling"])
def test_thin__mirror_images_are_thinned_once(name):
    cut = {
        "whole": (slice(0, 30), slice(0, 30)),
        "rectangle": (slice(0, 12), slice(5, 40)),
        "straddling": (slice(50, 70), slice(55, 75)),
    }[name]
    ds = contacts().load().isel(bin1=cut[0], bin2=cut[1]).expand_dims(sample=2)
    coords = {k: (("sample", k), np.tile(ds[k].values, (2, 1))) for k in ("bin1", "bin2")}
    ds = (
        xr.Dataset({"count": ds["count"] * 50})
        .drop_vars(ds.coords)
        .assign_coords(sample_id=("sample", [3, 4]), **coords)
    )
    thinned = T.thin(0.4)(ds, rng=random_of(ds))["count"].values
    places = [np.arange(s.start, s.stop) for s in cut]
    both = np.intersect1d(*places)
    square = thinned[:, both[:, None] - cut[0].start, both - cut[1].start]
    assert len(both) > 5
    npt.assert_array_equal(square, square.transpose(0, 2, 1))
    assert (thinned[0] != thinned[1]).any()
    assert ((thinned >= 0) & (thinned <= ds["count"].values)).all()
    assert thinned.mean() == pytest.approx(0.4 * ds["count"].values.mean(), rel=0.02)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint32", "int64"])
def test_thin__keeps_the_dtype_and_everything_if_all_is_kept(dtype):
    batch = batch_of()
    batch = batch.assign(count=batch["count"].astype(dtype))
    for keep in (0.5, 1):
        thinned = T.thin(keep, into="low")(batch, rng=random_of(batch))
        assert thinned.low.dtype == dtype
        assert thinned.low.dims == batch["count"].dims
    npt.assert_array_equal(thinned.low, batch["count"])


def test_thin__refuses_what_are_no_raw_counts():
    batch = batch_of()
    rng = random_of(batch)
    with pytest.raises(SchemaError, match="needs raw integer counts, but 'count' is float32"):
        T.thin(0.5)(T.balance()(batch), rng=rng)
    with pytest.raises(SchemaError, match="needs counts of 0 or more, but 'count' has -"):
        T.thin(0.5)(batch.assign(count=batch["count"] - 5), rng=rng)
    with pytest.raises(SchemaError, match=r"needs \['bin1'\]"):
        T.thin(0.5)(batch.drop_vars("bin1"), rng=rng)
    for keep in (0, 1.1, np.nan):
        with pytest.raises(SchemaError, match="choose a probability above 0 and at most 1"):
            T.thin(keep)


def test_thin__of_several_maps_of_one_window_draws_for_each():
    batch = batch_of()
    several = xr.concat([batch["count"]] * 3, "cell").transpose("sample", "cell", "bin1", "bin2")
    ds = batch.assign(count=several)
    thinned = T.thin(0.5)(ds, rng=random_of(ds))["count"]
    assert thinned.dims == several.dims
    alone = T.thin(0.5)(batch, rng=random_of(batch))["count"]
    npt.assert_array_equal(thinned.isel(cell=0), alone)
    assert (thinned.isel(cell=1).values != thinned.isel(cell=2).values).mean() > 0.3


def test_random__transforms_of_one_chain_draw_numbers_of_their_own():
    batch = batch_of()
    rng = random_of(batch)
    low, lower, turned = T.thin(0.5, into="low"), T.thin(0.5, into="lower"), T.flip()
    both = T.compose(low, lower)(batch, rng=rng)
    assert (both.low.values != both.lower.values).mean() > 0.3
    chains = {
        "plain": T.compose(low, turned),
        "with others between": T.compose(low, T.log1p("count"), turned),
        "nested": T.compose(T.compose(low), turned),
    }
    flips = {k: chain(batch, rng=rng).flipped.values.tolist() for k, chain in chains.items()}
    assert flips["plain"] == flips["with others between"] == flips["nested"]
    own = [r.random() for r in rng]
    assert own != [r.random() for r in rng.of(0)] != [r.random() for r in rng.of(1)]


def test_random__does_not_depend_on_what_readers_do():
    steps = T.compose(T.balance(), T.flip(), T.crop(1), T.flip())
    sources = contacts(), contacts().load(), contacts(Tiles(contact_map(dtype="float64")))
    flips = []
    for ds in sources:
        loader = xl.Loader(ds, windows=DIAGONAL, batch_size=30, transform=steps)
        flips.append((loader._source.fused, loader[0].flipped.values.tolist()))
    assert [fused for fused, _ in flips] == [True, False, False]
    assert flips[0][1] == flips[1][1] == flips[2][1]
