"""Several sources in one batch: each window equals plain reads of each source at the same base pairs."""

import cooler
import numpy as np
import numpy.testing as npt
import pytest
import xarray as xr

import xloader as xl
from tests.doubles import Tiles
from xloader import transforms
from xloader.arrays import TileArray
from xloader.errors import PlanError, SchemaError
from xloader.schema import contacts_dataset

LENGTHS = {"a": 9_600, "b": 4_800, "c": 6_400}


def bins(size, lengths=None):
    """Return chromosome, start and end of each bin."""
    parts = [
        (c, s, min(s + size, n)) for c, n in (lengths or LENGTHS).items() for s in range(0, n, size)
    ]
    chrom, start, end = zip(*parts, strict=True)
    return np.array(chrom, object), np.array(start), np.array(end)


def matrix(size, seed, lengths=None):
    n = len(bins(size, lengths)[0])
    full = np.random.default_rng(seed).poisson(3, (n, n))
    return np.triu(full) + np.triu(full, 1).T


def contacts(size, seed=0, lengths=None, weight=True):
    chrom, start, end = bins(size, lengths)
    values = np.random.default_rng(seed + 1).random(len(chrom))
    weights = {"weight": (values, {"divisive": False})} if weight else {}
    tiles: TileArray = Tiles(matrix(size, seed, lengths))
    attrs = {"binsize": size, "resolution": size, "assembly": "made up"}
    ds = contacts_dataset(tiles, chrom=chrom, start=start, end=end, weights=weights, attrs=attrs)
    return ds.assign(count=ds["count"].chunk())


def track(size, seed=9, lengths=None):
    chrom, start, end = bins(size, lengths)
    values = np.random.default_rng(seed).random(len(chrom)).astype(np.float32)
    coords = {"chrom1": ("bin1", chrom), "start1": ("bin1", start), "end1": ("bin1", end)}
    return xr.Dataset({"signal": ("bin1", values)}, coords, {"binsize": size})


def plain(ds, values, where):
    """Cut a region (chromosome, start and end of both axes) out of a whole matrix."""
    sides = zip("12", (where[:3], where[3:]), strict=True)
    rows, columns = (
        np.flatnonzero(
            (ds[f"chrom{s}"].values == c)
            & (ds[f"start{s}"].values >= a)
            & (ds[f"end{s}"].values <= b)
        )
        for s, (c, a, b) in sides
    )
    return values[np.ix_(rows, columns)]


def places(batch, k):
    """Return where window `k` of a batch lies."""
    return [
        x
        for s in "12"
        for x in (
            batch[f"chrom{s}"].values[k, 0],
            batch[f"start{s}"].values[k, 0],
            batch[f"end{s}"].values[k, -1],
        )
    ]


@pytest.mark.parametrize("windows", ["diagonal", "grid"])
@pytest.mark.parametrize("order", ["fine first", "coarse first"])
def test_windows__of_every_source_show_the_same_base_pairs(windows, order):
    sources = {"fine": contacts(100, 1), "twin": contacts(100, 2), "coarse": contacts(400, 3)}
    size, stride = 16, 4
    if order == "coarse first":
        sources = dict(reversed(sources.items()))
        size, stride = 4, 1
    stride *= 2 if windows == "grid" else 1
    shape = getattr(xl.windows, windows)(size=size, stride=stride)
    # 6,400 and 4,800 and 9,600 are whole windows of 1,600 or 400 bp
    loader = xl.Loader(sources, windows=shape, batch_size=7, shuffle=True, seed=3)
    whole = {name: ds["count"].values for name, ds in sources.items()}
    seen = 0
    for batch in loader:
        for k in range(batch.sizes["sample"]):
            for name, ds in sources.items():
                expected = plain(ds, whole[name], places(batch, k))
                npt.assert_array_equal(batch[name].values[k], expected)
            seen += 1
    assert seen == len(loader.plan.windows) > 10
    assert batch["fine"].shape[1:] == (16, 16)
    assert batch["coarse"].shape[1:] == (4, 4)


def test_labels__of_a_coarser_source_come_with_it():
    fine, coarse = contacts(100, 1), contacts(400, 3)
    loader = xl.Loader(
        {"fine": fine, "coarse": coarse}, windows=xl.windows.diagonal(size=16), batch_size=3
    )
    for batch in loader:
        npt.assert_array_equal(batch.coarse_start1.values[:, 0], batch.start1.values[:, 0])
        npt.assert_array_equal(batch.coarse_end2.values[:, -1], batch.end2.values[:, -1])
        npt.assert_array_equal(batch.coarse_chrom1.values[:, 0], batch.chrom1.values[:, 0])
        for name, ds, prefix in (("fine", fine, ""), ("coarse", coarse, "coarse_")):
            at = batch[f"{prefix}bin1"].values
            npt.assert_array_equal(batch[f"{name}_weight1"].values, ds.weight1.values[at])


def test_labels__that_are_dask_arrays_come_too():
    ds = contacts(50, 1).chunk()
    assert ds.chrom1.chunks
    windows = xl.windows.diagonal(size=96, stride=1)
    batch = xl.Loader(ds, windows=windows, batch_size=120)[0]
    assert batch.chrom1.nbytes > 2**16  # such arrays come from memory that is used again
    for k in (0, 30, 119):
        at = batch.bin1.values[k]
        npt.assert_array_equal(batch.chrom1.values[k], ds.chrom1.values[at])


def test_balance__uses_the_vector_of_its_source():
    fine, twin = contacts(100, 1), contacts(100, 2)
    both = transforms.compose(
        transforms.balance("fine_weight", "fine"), transforms.balance("twin_weight", "twin")
    )
    loader = xl.Loader(
        {"fine": fine, "twin": twin},
        windows=xl.windows.diagonal(size=16),
        batch_size=2,
        transform=both,
    )
    batch = loader[1]
    for name, ds in (("fine", fine), ("twin", twin)):
        at = batch.bin1.values[0]
        w = ds.weight1.values[at]
        expected = np.asarray(ds["count"])[np.ix_(at, at)] * w[:, None] * w[None]
        npt.assert_allclose(batch[name].values[0], expected, rtol=1e-6)


@pytest.mark.parametrize("dim", ["channel", "replicate"])
def test_stack__makes_channels_or_samples_of_sources(dim):
    a, b = contacts(100, 1), contacts(100, 2)
    both = {"one": a, "two": b}
    windows = xl.windows.diagonal(size=16, stride=8)
    stacked = transforms.stack("two", "one", into="x", dim=dim)
    loader = xl.Loader(both, windows=windows, batch_size=4, transform=stacked)
    plain_ = xl.Loader(both, windows=windows, batch_size=4)
    batch, apart = loader[1], plain_[1]
    assert batch.x.dims == ("sample", dim, "bin1", "bin2")
    for name in both:
        npt.assert_array_equal(batch.x.sel({dim: name}).values, apart[name].values)
    assert batch[dim].values.tolist() == ["two", "one"]
    assert set(batch.data_vars) == {"x"}
    torch = pytest.importorskip("torch")
    import xloader.torch as xt

    tensors = next(iter(xt.make_loader(loader, num_workers=0)))
    assert tensors["x"].shape == (4, 2, 16, 16)
    assert torch.equal(tensors["x"][:, 1], torch.from_numpy(plain_[0]["one"].values))


def test_stack__refuses_what_does_not_fit():
    with pytest.raises(SchemaError, match="needs at least one variable, each once"):
        transforms.stack("a", "a", into="x")
    sources = {"fine": contacts(100), "coarse": contacts(400)}
    windows = xl.windows.diagonal(size=16)
    for transform, message in (
        (transforms.stack("fine", "coarse", into="x"), "variables of one shape, not {'fine'"),
        (transforms.stack("fine", into="coarse"), r"would make \['coarse'\]"),
        (transforms.stack("fine", "no", into="x"), "needs .*'no'"),
    ):
        loader = xl.Loader(sources, windows=windows, batch_size=2, transform=transform)
        with pytest.raises(SchemaError, match=message):
            loader[0]


@pytest.mark.parametrize("size", [100, 50, 400])
def test_tracks__lie_on_both_axes(size):
    map_, signal = contacts(100, 1), track(size)
    loader = xl.Loader(
        {"map": map_, "atac": signal}, windows=xl.windows.grid(size=16), batch_size=4
    )
    values, (chrom, start, end) = signal["signal"].values, bins(size)
    for batch in loader:
        for k in range(batch.sizes["sample"]):
            where = places(batch, k)
            for side, (c, a, b) in (("1", where[:3]), ("2", where[3:])):
                expected = values[(chrom == c) & (start >= a) & (end <= b)]
                npt.assert_array_equal(batch[f"atac{side}"].values[k], expected)


def test_merge__finds_chromosomes_by_name_whatever_their_order():
    other = dict(reversed(LENGTHS.items()))
    a, b = contacts(100, 1), contacts(100, 2, other)
    merged = xl.merge({"one": a, "two": b})
    names, expected = merged.chrom1.values, np.asarray(b["count"])
    at = np.concatenate([np.flatnonzero(b.chrom1.values == c) for c in LENGTHS])
    npt.assert_array_equal(names, a.chrom1.values)
    npt.assert_array_equal(merged["two"].values, expected[np.ix_(at, at)])


def test_merge__selections_go_on_reading_from_storage():
    a, b = contacts(100, 1), contacts(400, 2)
    merged = xl.merge({"one": a, "two": b})
    inside = np.flatnonzero(merged.chrom1.values == "b")
    chosen = merged.isel(bin1=inside, bin2=inside)
    with np.errstate(all="raise"):  # and no PerformanceWarning, which would be an error
        loader = xl.Loader(chosen, windows=xl.windows.diagonal(size=16, stride=8), batch_size=2)
    assert {c for batch in loader for c in batch.two_chrom1.values.ravel()} == {"b"}


def test_inner__leaves_out_chromosomes_and_names_them():
    less = {"a": LENGTHS["a"], "c": LENGTHS["c"]}
    a, b = contacts(100, 1), contacts(100, 2, less)
    with pytest.raises(SchemaError, match=r"\['b'\] are in one of them.*join='inner'"):
        xl.merge({"one": a, "two": b})
    merged = xl.merge({"one": a, "two": b}, join="inner")
    assert merged.attrs["left_out"] == ["b"]
    assert sorted(set(merged.chrom1.values)) == ["a", "c"]
    keep = a.chrom1.values != "b"
    npt.assert_array_equal(merged["one"].values, np.asarray(a["count"])[np.ix_(keep, keep)])


def test_a_track_of_the_whole_genome__serves_a_map_of_a_part():
    part = {"b": LENGTHS["b"]}
    merged = xl.merge({"map": contacts(100, 1, part), "atac": track(100)})
    inside = bins(100)[0] == "b"
    npt.assert_array_equal(merged["atac1"].values, track(100)["signal"].values[inside])


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "no source"),
        ({"no name": contacts(100)}, "'no name' names a source"),
        ({"x": 3}, "'x' is int; open it"),
        ({"atac": track(100), "map": contacts(100)}, "the first source, 'atac', is a track"),
        (
            {"x": contacts(100), "y": contacts(100, lengths={**LENGTHS, "b": 5_000})},
            "not of the same assembly.*'b' ends at 4,800 bp in one and at 5,000",
        ),
        ({"x": contacts(200), "y": contacts(300)}, "bins of 200 bp and 'y' bins of 300 bp"),
        ({"chrom1": contacts(100), "y": contacts(100)}, r"'chrom1' brings \['chrom1'\]"),
        ({"x": contacts(100).drop_vars("chrom1")}, r"source 'x' needs \['chrom1'\]"),
    ],
    ids=["none", "name", "type", "track", "lengths", "sizes", "taken", "labels"],
)
def test_sources_that_do_not_go_together__are_told(sources, message):
    with pytest.raises(SchemaError, match=message):
        xl.merge(sources)


def test_windows_that_split_coarse_bins__are_told():
    sources = {"fine": contacts(100), "coarse": contacts(400)}
    for shape in (xl.windows.diagonal(size=16, stride=6), xl.windows.diagonal(size=6, stride=4)):
        with pytest.raises(
            PlanError, match="do not begin and end with whole bins of 'coarse_bin1'"
        ):
            xl.Loader(sources, windows=shape, batch_size=1, remainder="drop")
    with pytest.raises(SchemaError, match="join='outer' is unknown"):
        xl.merge(sources, join="outer")


@pytest.mark.parametrize("windows", ["diagonal", "grid"])
def test_windows_at_ends__begin_with_bins_of_every_resolution(windows):
    lengths = {"a": 9_850, "b": 4_930, "c": 6_400}
    sources = {
        "fine": contacts(100, 1, lengths),
        "four": contacts(400, 2, lengths),
        "six": contacts(600, 3, lengths),
    }
    shape = getattr(xl.windows, windows)(size=24, stride=24)
    loader = xl.Loader(sources, windows=shape, batch_size=5)
    whole = {name: ds["count"].values for name, ds in sources.items()}
    seen = {"1": set(), "2": set()}
    for batch in loader:
        for k in range(batch.sizes["sample"]):
            where = places(batch, k)
            for name, ds in sources.items():
                npt.assert_array_equal(batch[name].values[k], plain(ds, whole[name], where))
            for side in "12":
                seen[side].update(batch[f"bin{side}"].values[k].tolist())
    n = len(bins(100, lengths)[0])
    assert loader.plan.windows.n_flush > 0
    assert len(np.unique(loader.plan.windows.starts, axis=0)) == len(loader.plan.windows)
    uncovered = loader.plan.windows.uncovered
    assert (uncovered["bin1"], uncovered["bin2"]) == (n - len(seen["1"]), n - len(seen["2"]))
    assert uncovered["bin1"] > 0


def seen_by(loader, sources, epochs):
    """Hold every window against plain reads; return the starts seen, in bp, and bins by side."""
    whole = {name: ds["count"].values for name, ds in sources.items() if "bin2" in ds.dims}
    starts, seen = set(), {"1": set(), "2": set()}
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            for k in range(batch.sizes["sample"]):
                where = places(batch, k)
                starts.add((where[0], int(where[1])))
                for name, values in whole.items():
                    npt.assert_array_equal(
                        batch[name].values[k], plain(sources[name], values, where)
                    )
                for side in "12":
                    seen[side].update(batch[f"bin{side}"].values[k].tolist())
    return starts, seen


def test_shifted_windows__cut_finer_sources():
    sources = {"map": contacts(100, 1), "atac": track(50)}
    shifted = xl.windows.diagonal(size=16, stride=8, shift=8)
    values, (chrom, start, end) = sources["atac"]["signal"].values, bins(50)
    loader = xl.Loader(sources, windows=shifted, batch_size=4, seed=1)
    for epoch in (0, 1):
        batch = loader.batch(epoch, 1)
        for k in range(4):
            c, a, b = places(batch, k)[:3]
            expected = values[(chrom == c) & (start >= a) & (end <= b)]
            npt.assert_array_equal(batch["atac1"].values[k], expected)
    assert not np.array_equal(loader.batch(0, 1).start1, loader.batch(1, 1).start1)


@pytest.mark.parametrize("remainder", ["keep", "drop"])
def test_shifted_windows__move_by_whole_bins_of_coarser_sources(remainder):
    lengths = {"a": 9_300, "b": 4_700, "c": 6_400}
    sources = {
        "fine": contacts(100, 1, lengths),
        "four": contacts(400, 2, lengths),
        "six": contacts(600, 3, lengths),
    }
    shape = xl.windows.diagonal(size=24, stride=36, shift=30)
    loader = xl.Loader(sources, windows=shape, batch_size=4, remainder=remainder, seed=1)
    starts, _ = seen_by(loader, sources, 12)
    # 1,200 bp are whole bins of both; a shift of 30 bins leaves room for 0, 1 or 2 such steps
    assert {s % 1_200 for _, s in starts} == {0}
    assert {s for c, s in starts if c == "a"} == {0, 1_200, 2_400, 3_600, 4_800, 6_000}


def test_shift_that_is_held__counts_what_is_seen_in_no_epoch():
    lengths = {"a": 9_300, "b": 4_700, "c": 6_400}
    sources = {"coarse": contacts(400, 3, lengths), "fine": contacts(100, 1, lengths)}
    shape = xl.windows.diagonal(size=5, stride=5, shift=5)
    loader = xl.Loader(sources, windows=shape, batch_size=3, remainder="drop", seed=2)
    _, seen = seen_by(loader, sources, 60)
    n = len(bins(400, lengths)[0])
    assert loader.plan.windows.uncovered["bin1"] == n - len(seen["1"]) == 2


@pytest.mark.parametrize("remainder", ["keep", "drop", "pad"])
@pytest.mark.parametrize("shape", ["diagonal", "grid"])
@pytest.mark.parametrize("size", [3, 4])
def test_the_shorter_last_bin__is_left_out_or_windows_move_inward(remainder, shape, size):
    # of 24, 12 and 16 coarse bins the last of a and b holds fewer fine ones
    lengths = {"a": 9_500, "b": 4_700, "c": 6_400}
    sources = {"coarse": contacts(400, 3, lengths), "fine": contacts(100, 1, lengths)}
    windows = getattr(xl.windows, shape)(size=size, stride=size)
    alone = xl.Loader(sources["coarse"], windows=windows, batch_size=1, remainder=remainder)
    loader = xl.Loader(sources, windows=windows, batch_size=1, remainder=remainder)
    starts, seen = seen_by(loader, sources, 1)
    w = loader.plan.windows
    n = len(bins(400, lengths)[0])
    assert w.uncovered["bin1"] == n - len(seen["1"])
    lost = sum(w.left_out.values())
    if remainder == "drop":
        assert lost == len(alone.plan.windows) - len(w) > 0
        assert "not whole bins of every resolution (fine_bin1, fine_bin2)" in repr(loader)
        assert {s % (400 * size) for _, s in starts} == {0}
    else:
        assert lost == 0
        assert w.uncovered["bin1"] == 2
        assert ("a", 9_200 - 400 * size) in starts
    ids = np.concatenate([b.sample_id.values for b in loader])
    npt.assert_array_equal(np.sort(ids), np.arange(len(w)))


def test_windows_that_are_padded__are_told():
    sources = {"map": contacts(100, 1), "coarse": contacts(400)}
    shape = xl.windows.regions(["a:8,800-9,600"], size=24)
    with pytest.raises(PlanError, match=r"padded are not cut out of other bins, \['coarse_bin1'"):
        xl.Loader(sources, windows=shape, batch_size=4, remainder="pad")


def test_real_resolutions__are_what_cooler_reads(real_data):
    real_map = real_data / "hic" / "scer_w303_g1.6res.balanced.mcool"
    fine, coarse = (xl.open_contacts(real_map, resolution=n) for n in (2_000, 8_000))
    loader = xl.Loader(
        {"fine": fine, "coarse": coarse},
        windows=xl.windows.diagonal(size=64, stride=512),
        batch_size=4,
        remainder="drop",
    )
    for size, name in ((2_000, "fine"), (8_000, "coarse")):
        matrices = cooler.Cooler(f"{real_map}::/resolutions/{size}").matrix(balance=False)
        for batch in loader:
            for k in range(batch.sizes["sample"]):
                chrom, start, end = places(batch, k)[:3]
                npt.assert_array_equal(batch[name].values[k], matrices.fetch((chrom, start, end)))


def multires(transform):
    """Return a batch of 100 and 400 bp, and the same transformed."""
    sources = {"fine": contacts(100, 1), "coarse": contacts(400, 3)}
    kw = {"windows": xl.windows.diagonal(size=16), "batch_size": 8}
    return xl.Loader(sources, **kw)[0], xl.Loader(sources, transform=transform, **kw)[0]


def test_flip__turns_every_resolution():
    plain_batch, batch = multires(transforms.flip(0.7))
    assert 0 < batch.flipped.sum() < 8
    for k, turned in enumerate(batch.flipped.values):
        step = slice(None, None, -1 if turned else 1)
        dims = dict.fromkeys(("bin1", "bin2", "coarse_bin1", "coarse_bin2"), step)
        expected = plain_batch.isel(sample=k, **dims)
        xr.testing.assert_identical(batch.isel(sample=k).drop_vars("flipped"), expected)


def test_crop__cuts_the_same_base_pairs_off_every_resolution():
    plain_batch, batch = multires(transforms.crop(4))
    for k in range(batch.sizes["sample"]):
        for name, prefix in (("fine", ""), ("coarse", "coarse_")):
            expected = plain_batch[name].values[k, 4:-4, 4:-4]
            if prefix:
                expected = plain_batch[name].values[k, 1:-1, 1:-1]
            npt.assert_array_equal(batch[name].values[k], expected)
            assert batch[f"{prefix}start1"].values[k, 0] == batch.start1.values[k, 0]
            assert batch[f"{prefix}end2"].values[k, -1] == batch.end2.values[k, -1]
    with pytest.raises(SchemaError, match="no whole bins of the 4 along 'coarse_bin1'"):
        transforms.crop(2)(plain_batch)


def test_statistics__of_a_source_serve_it_beside_others():
    ds, other = contacts(100, 1), contacts(100, 2)
    figures = xl.statistics(ds, weight="weight", progress=False)
    expected = transforms.observed_over_expected(figures)
    alone = transforms.compose(transforms.balance(), expected)
    beside = transforms.compose(
        transforms.balance("one_weight", "one"),
        transforms.balance("two_weight", "two"),
        transforms.observed_over_expected(figures, variable="one"),
    )
    kw = {"windows": xl.windows.grid(size=12), "batch_size": 9}
    both = xl.Loader({"one": ds, "two": other}, transform=beside, **kw)[0]
    npt.assert_array_equal(both.one, xl.Loader(ds, transform=alone, **kw)[0]["count"])
    raw = transforms.observed_over_expected(figures, variable="one")
    with pytest.raises(SchemaError, match="balanced by 'weight', but the batch has it as raw"):
        xl.Loader({"one": ds, "two": other}, transform=raw, **kw)[0]


def test_tracks__on_different_bins_of_both_axes():
    map_ = contacts(100, 1).isel(bin1=slice(0, 40), bin2=slice(100, 140))
    rows = track(100).isel(bin1=slice(0, 40))  # as open_track reads it for this map
    every, kw = track(100), {"windows": xl.windows.between(size=8), "batch_size": 5}
    batch = xl.Loader({"hic": map_, "atac": every}, **kw)[0]
    for side in "12":
        expected = every.signal.values[batch[f"bin{side}"].values]
        npt.assert_array_equal(batch[f"atac{side}"].values, expected)
    with pytest.raises((PlanError, SchemaError)):
        xl.Loader({"hic": map_, "atac": rows}, **kw)


def test_vectors__that_cells_do_not_share_come_too():
    ds = contacts(100, 1)
    cells = xr.concat([ds["count"]] * 2, "cell").to_dataset().assign_coords(cell=["x", "y"])
    vectors = np.random.default_rng(0).random((2, ds.sizes["bin1"]))
    for s in "12":
        cells = cells.assign_coords(
            {f"weight{s}": (("cell", f"bin{s}"), vectors, {"divisive": False})}
        )
    merged = xl.merge({"low": cells, "high": ds})
    npt.assert_array_equal(merged.low_weight2, vectors)


def test_storage_mode__is_that_of_a_map_that_is_stored_whole():
    square = contacts(100, 1).assign_attrs(storage_mode="square")
    assert xl.merge({"a": contacts(100, 2), "b": square}).attrs["storage_mode"] == "square"


def test_shift__never_leaves_whole_bins_of_a_finer_source():
    # the last coarse bin of each chromosome holds fewer fine ones
    lengths = {"a": 9_300, "b": 4_700, "c": 6_400}
    sources = {"coarse": contacts(400, 3, lengths), "fine": contacts(100, 1, lengths)}
    shape = xl.windows.diagonal(size=5, stride=3, shift=6)
    loader = xl.Loader(sources, windows=shape, batch_size=7, remainder="drop", seed=2)
    whole = {name: ds["count"].values for name, ds in sources.items()}
    starts = set()
    for epoch in range(8):
        loader.set_epoch(epoch)
        for batch in loader:
            for k in range(batch.sizes["sample"]):
                where = places(batch, k)
                starts.add((where[0], where[1]))
                for name, ds in sources.items():
                    npt.assert_array_equal(batch[name].values[k], plain(ds, whole[name], where))
    assert len(starts) > 20
    assert max(s for c, s in starts if c == "c") == 6_400 - 2_000


def test_distances__of_another_resolution_are_those_of_its_bins():
    fine, coarse = contacts(100, 1), contacts(400, 3)
    figures = xl.statistics(coarse, weight="weight", ignore_diags=0, progress=False)
    chain = {
        "oe": transforms.observed_over_expected(figures, variable="coarse"),
        "z": transforms.zscore(figures, variable="coarse"),
        "near": transforms.mask_diagonals(2, "coarse"),
    }
    windows = xl.windows.grid(size="1600bp")
    for name, transform in chain.items():
        beside = transforms.compose(transforms.balance("coarse_weight", "coarse"), transform)
        alone = transforms.compose(
            transforms.balance(),
            {
                "oe": transforms.observed_over_expected(figures),
                "z": transforms.zscore(figures),
                "near": transforms.mask_diagonals(2, "count"),
            }[name],
        )
        both = xl.Loader(
            {"fine": fine, "coarse": coarse}, windows=windows, batch_size=9, transform=beside
        )[1]
        single = xl.Loader(coarse, windows=windows, batch_size=9, transform=alone)[1]
        npt.assert_array_equal(both.coarse, single["count"])
    wrong = transforms.observed_over_expected(figures, variable="fine")
    both = {"fine": fine, "coarse": coarse}
    balanced = transforms.compose(transforms.balance("fine_weight", "fine"), wrong)
    with pytest.raises(SchemaError, match="bins of 400 bp, but those of the batch have 100 bp"):
        xl.Loader(both, windows=windows, batch_size=9, transform=balanced)[0]
    for transform in (
        transforms.thin(0.5, variable="coarse"),
        transforms.upper_triangle(1, "coarse"),
    ):
        with pytest.raises(SchemaError, match="name a variable in the bins of the first source"):
            xl.Loader(
                both, windows=xl.windows.diagonal(size=16), batch_size=9, transform=transform
            )[0]


def test_transform__a_list_is_refused():
    with pytest.raises(PlanError, match=r"join several with xl\.transforms\.compose"):
        xl.Loader(
            contacts(100, 1),
            windows=xl.windows.diagonal(size=16),
            batch_size=2,
            transform=[transforms.flip()],
        )
