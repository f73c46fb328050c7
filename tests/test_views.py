"""Views: nothing of one is in another, what is left out is counted, and reading still goes straight to storage."""

import itertools
import pickle

import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl
from tests.doubles import (
    BIN,
    Rows,
    Tiles,
    cells,
    cells_in,
    contact_map,
    contacts,
    contacts_in,
    counts,
)
from xloader import genome
from xloader.dealing import allot, deal
from xloader.errors import PlanError, SchemaError

CHROMS = (30, 20, 12, 9)
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def genome_map():
    return contacts(Tiles(contact_map(sum(CHROMS))), CHROMS)


def chroms(view):
    return set(view.chrom1.values.tolist())


@st.composite
def intervals(draw):
    """Draw intervals of two chromosomes, in bp from 0 to 40."""
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from("ab"), st.integers(0, 38), st.integers(1, 9)), max_size=8
        )
    )
    return pd.DataFrame(
        [(c, a, min(a + n, 40)) for c, a, n in rows], columns=genome.COLUMNS
    ).astype({"start": np.int64, "end": np.int64})


def positions(table):
    return {(c, k) for c, a, b in table.itertuples(index=False) for k in range(a, b)}


@given(intervals(), intervals())
def test_intervals__are_sets_of_positions(first, second):
    a, b = genome.merged(first), genome.merged(second)
    assert positions(a) == positions(first)
    assert sum(b - a for _, a, b in a.itertuples(index=False)) == len(positions(first))
    assert positions(genome.shared(a, b)) == positions(first) & positions(second)


@given(intervals(), st.permutations(range(16)))
def test_touched__are_bins_that_share_a_position(regions, order):
    bins = pd.DataFrame(
        {"chrom": np.repeat(["a", "b"], 8), "start": np.tile(np.arange(0, 40, 5), 2)}
    )
    bins = bins.assign(end=bins["start"] + 5).iloc[order].drop(index=[3, 9])
    expected = [bool(positions(bins.iloc[[k]]) & positions(regions)) for k in range(14)]
    assert genome.touched(regions, bins).tolist() == expected


def test_contacts__are_split_by_chromosome():
    ds = genome_map()
    views = xl.split(ds, {"train": "rest", "val": ["chr3"], "test": "chr4"})
    assert {name: chroms(v) for name, v in views.items()} == {
        "train": {"chr1", "chr2"},
        "val": {"chr3"},
        "test": {"chr4"},
    }
    for view in views.values():
        at = view.bin1.values
        npt.assert_array_equal(view.bin2.values, at)
        npt.assert_array_equal(view["count"].values, ds["count"].values[np.ix_(at, at)])
    assert views.n_left_out == 0
    assert repr(views).splitlines()[1:] == [
        "  train     : 50 bins (70.4%) of chr1, chr2",
        "  val       : 12 bins (16.9%) of chr3",
        "  test      : 9 bins (12.7%) of chr4",
    ]
    assert "<th" in views._repr_html_()
    assert pickle.loads(pickle.dumps(views)).n_left_out == 0


def test_regions__of_each_kind_are_the_same_everywhere(tmp_path):
    ds, bed = genome_map(), tmp_path / "val.bed"
    texts = [f"chr2:{4 * BIN:,}-{8 * BIN:,}", f"chr1:{BIN}-{5 * BIN}"]
    bed.write_text(f"#chrom\nchr2\t{4 * BIN}\t{8 * BIN}\tname\nchr1\t{BIN}\t{5 * BIN}\n")
    frame = pd.DataFrame(
        {"chrom": ["chr2", "chr1"], "start": [4 * BIN, BIN], "end": [8 * BIN, 5 * BIN]}
    )
    numbers = [*range(34, 38), *range(1, 5)]
    path = xl.export(ds, tmp_path / "a.cool", progress=False)
    for kind in (texts, frame, bed, str(bed), np.array(texts)):
        assert xl.split(ds, {"a": kind})["a"].bin1.values.tolist() == sorted(numbers)
        assert xl.open_contacts(path, view=kind).bin1.values.tolist() == numbers
        loader = xl.Loader(ds, windows=xl.windows.regions(kind), batch_size=2)
        assert loader[0].bin1.values.ravel().tolist() == numbers
    pairs = pd.concat([frame.add_suffix("1"), frame.add_suffix("2")], axis=1)
    with pytest.raises(SchemaError, match="holds pairs of regions; give one region a row"):
        xl.split(ds, {"a": pairs})
    half = frame.assign(start=frame.start + 0.5)
    with pytest.raises(SchemaError, match="two whole numbers"):
        xl.split(ds, {"a": half})


def test_contacts__left_out_bins_are_told():
    views = xl.split(genome_map(), {"train": ["chr1"], "val": [f"chr2:0-{5 * BIN:,}"]})
    assert views.n_left_out == 71 - 35
    assert "no view   : 36 bins (50.7%)" in repr(views)


def test_contacts__are_split_by_regions_and_tables():
    table = pd.DataFrame({"chrom": ["chr2", "chr1"], "start": [5_500, 0], "end": [8_000, 10_000]})
    views = xl.split(genome_map(), {"val": table, "test": ["chr1:20,000-30,000"], "train": "rest"})
    starts = views["val"].start1.values.tolist()
    assert starts == [*range(0, 10_000, BIN), 5_000, 6_000, 7_000]
    assert views["test"].start1.values.tolist() == list(range(20_000, 30_000, BIN))
    assert views["train"].sizes["bin1"] == 71 - 23
    xl.check_leakage(views)


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        ({"a": ["chr1:0-5,000"], "b": ["chr1:4,000-9,000"]}, PlanError, r"'a' and 'b' overlap in 1 bins \(1,000 bp\), the first of them in chr1:4,000-5,000"),
        ({"a": ["chr1:0-4,500"], "b": ["chr1:4,500-9,000"]}, PlanError, "chr1:4,000-5,000.*multiples of the bin size"),
        ({"a": "chr2", "b": ["chr1", "chr2"]}, PlanError, "overlap in 20 bins"),
        ({"a": "chr9"}, SchemaError, r"no chromosome 'chr9' .* there are \['chr1'"),
        ({"a": "chr1:0-99,000"}, SchemaError, "not within 'chr1', which has 0-30,000 bp"),
        ({"a": 7}, SchemaError, "7 is no region"),
        ({"a": [7]}, SchemaError, "7 is no region"),
        ({"a": pd.DataFrame({"chrom": ["chr1"], "begin": [0]})}, SchemaError, r"lacks \['start', 'end'\]"),
        ({"a": pd.DataFrame({"chrom": ["chr1", "chr7"], "start": 0, "end": 9})}, SchemaError, "1 of 2 regions .* in row 1, chr7:0-9"),
        ({"a": "rest", "b": "rest"}, PlanError, "one view at most is 'rest'"),
        ({}, PlanError, "there is at least one"),
        (None, PlanError, "say what the views hold"),
        ({"a": ["chr1", "chr2", "chr3", "chr4"], "b": "rest"}, PlanError, "the view 'b' is empty along 'bin1'"),
        ({"a": 0.9, "b": 0.2}, PlanError, "sum is at most 1"),
        ({"a": 0.5, "b": "chr1"}, PlanError, "shares are numbers"),
        ({str(k): 0.2 for k in range(5)}, PlanError, "4 chromosomes or groups cannot be dealt out to 5 parts"),
    ],
    ids=["overlap", "half a bin", "twice", "unknown", "beyond", "number", "numbers", "columns", "table", "rests", "none", "nothing", "empty", "too much", "mixed", "too many"],
)  # fmt: skip
def test_contacts__what_is_impossible_is_told(parts, kind, message):
    with pytest.raises(kind, match=message):
        xl.split(genome_map(), parts)


def test_contacts__by_is_refused():
    with pytest.raises(PlanError, match="by='donor' is about cells"):
        xl.split(genome_map(), {"a": "chr1"}, by="donor")
    with pytest.raises(SchemaError, match=r"knows contact maps .* not \{'x': 3\}"):
        xl.split(xr.Dataset({"v": ("x", [1, 2, 3])}), {"a": 0.5})


@given(
    st.lists(st.floats(0.5, 100), min_size=2, max_size=40),
    st.integers(2, 6),
    st.integers(0, 2**32),
)
def test_deal__equal_shares_differ_by_one_unit_at_most(weights, k, seed):
    w = np.array(weights)
    if len(w) < k:
        with pytest.raises(PlanError, match="cannot be dealt out"):
            deal(w, [1 / k] * k, seed)
        return
    part = deal(w, [1 / k] * k, seed)
    sums = np.bincount(part, w, k)
    assert len(part) == len(w)
    assert (np.bincount(part, minlength=k) > 0).all()
    assert sums.max() - sums.min() <= w.max() * (1 + 1e-9)


@given(st.integers(0, 2**32))
def test_deal__uneven_shares_are_near(seed):
    weights = np.array([248, 242, 198, 190, 181, 170, 159, 145, 138, 133, 135, 133, 114, 107, 101, 90, 83, 80, 58, 64, 46, 50, 156.0])  # fmt: skip
    sums = np.bincount(deal(weights, [0.8, 0.1, 0.1], seed), weights)
    npt.assert_allclose(sums / weights.sum(), [0.8, 0.1, 0.1], atol=0.02)  # half of the smallest


def test_deal__leaves_no_part_empty():
    assert sorted(deal(np.full(3, 5.0), [0.8, 0.1, 0.1], 0)) == [0, 1, 2]


def test_folds__partition_chromosomes_and_depend_on_the_seed():
    ds = genome_map()
    views = xl.split(ds, folds=3, seed=1)
    assert list(views) == ["fold0", "fold1", "fold2"]
    everything = sorted(itertools.chain.from_iterable(v.bin1.values for v in views.values()))
    assert everything == list(range(71))
    lengths = [v.sizes["bin1"] for v in views.values()]
    assert max(lengths) - min(lengths) <= 30
    named = xl.split(ds, {"train": "rest", "val": 1, "test": [0]}, folds=3, seed=1)
    assert chroms(named["val"]) == chroms(views["fold1"])
    assert chroms(named["test"]) == chroms(views["fold0"])
    assert chroms(named["train"]) == chroms(views["fold2"])
    again = [
        tuple(map(frozenset, map(chroms, xl.split(ds, folds=3, seed=s).values()))) for s in range(9)
    ]
    assert again[1] == tuple(frozenset(chroms(v)) for v in views.values())
    assert len(set(again)) > 1
    with pytest.raises(PlanError, match="views hold numbers from 0 to folds - 1"):
        xl.split(ds, {"val": 3}, folds=3)
    with pytest.raises(PlanError, match="each fold is in one view"):
        xl.split(ds, {"val": 1, "test": [1, 2]}, folds=3)
    with pytest.raises(PlanError, match="at least 2 folds"):
        xl.split(ds, folds=1)


def test_contacts__different_axes_are_split_alike():
    ds = genome_map().isel(bin1=slice(0, 40), bin2=slice(20, 71))
    views = xl.split(ds, {"train": "rest", "val": "chr2"})
    assert views["val"].bin1.values.tolist() == list(range(30, 40))
    assert views["val"].bin2.values.tolist() == list(range(30, 50))
    assert views["train"].bin2.values.tolist() == [*range(20, 30), *range(50, 71)]


@pytest.mark.parametrize("form", ["cool", "store", "tiles-dask", "zarr-dask"])
def test_contacts__windows_never_leave_their_view(form, tmp_path):
    ds = contacts_in(form, tmp_path)
    middle = "chr1:20,000-40,000"
    views = xl.split(ds, {"train": "rest", "val": [middle]})
    dense = contact_map()
    allowed = {"train": [*range(20), *range(40, 101)], "val": list(range(20, 40))}
    for name, view in views.items():
        loader = xl.Loader(view, windows=xl.windows.grid(size=7, stride=3), batch_size=64)
        seen = set()
        for batch in loader:
            for k in range(batch.sizes["sample"]):
                i, j = batch.bin1.values[k], batch.bin2.values[k]
                assert (np.diff(i) == 1).all()
                assert (np.diff(j) == 1).all()
                npt.assert_array_equal(batch["count"].values[k], dense[np.ix_(i, j)])
                seen |= {*i.tolist(), *j.tolist()}
        assert seen == set(allowed[name])


def test_contacts__reading_a_view_goes_straight_to_storage():
    array = Tiles(contact_map())
    ds = contacts(array).chunk({"bin1": 24, "bin2": 40})
    views = xl.split(ds, {"train": "rest", "val": ["chr2"]})
    assert array.log == []
    loader = xl.Loader(views["val"], windows=xl.windows.diagonal(size=8), batch_size=4)
    list(loader)
    assert array.log
    assert len(array.log) == len(set(array.log))
    assert min(min(ij) for ij in array.log) == 61 // 8  # chr2 begins in this tile


@pytest.mark.parametrize("by", ["cell_type", "donor"])
def test_cells__groups_stay_whole(by):
    ds = cells().assign_coords(donor=("cell", np.arange(61) % 7))
    views = xl.split(ds, SHARES if by == "donor" else {"a": "B", "b": ["T"], "c": "rest"}, by=by)
    groups = [set(v[by].values.tolist()) for v in views.values()]
    assert all(not a & b for a, b in itertools.combinations(groups, 2))
    assert sum(v.sizes["cell"] for v in views.values()) == 61
    assert views.n_left_out == 0
    xl.check_leakage(views, by=by)
    if by == "cell_type":
        assert groups == [{"B"}, {"T"}, {"NK"}]


def test_cells__without_a_group_are_in_no_view():
    donor = np.array(["x", "y", None] * 20 + ["x"], object)
    views = xl.split(
        cells().assign_coords(donor=("cell", donor)), {"a": "rest", "b": "y"}, by="donor"
    )
    assert views.n_left_out == 20
    assert set(views["a"].donor.values) == {"x"}


@given(st.integers(0, 2**32), st.permutations(range(61)))
def test_cells__shares_follow_from_names_alone(seed, order):
    ds = cells()
    views = xl.split(ds, SHARES, seed=seed)
    assert [v.sizes["cell"] for v in views.values()] == [37, 12, 12]
    names = {k: set(v.cell.values) for k, v in views.items()}
    assert len(set.union(*names.values())) == 61
    moved = xl.split(ds.isel(cell=list(order)), SHARES, seed=seed)
    assert {k: set(v.cell.values) for k, v in moved.items()} == names
    part = xl.split(ds, {"val": 0.25, "train": 0.25}, seed=seed)
    assert part.n_left_out == 61 - part["val"].sizes["cell"] - part["train"].sizes["cell"]
    assert part["val"].sizes["cell"] == 15


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.lists(st.integers(1, 9), min_size=2, max_size=7),
)
def test_allot__every_class_and_every_part_is_within_one_cell(counts, shares):
    c, s = np.array(counts), np.array(shares) / sum(shares)
    table = allot(c, s.tolist())
    npt.assert_array_equal(table.sum(axis=1), c)
    assert np.abs(table - np.outer(c, s)).max() < 1
    assert np.abs(table.sum(axis=0) - c.sum() * s).max() < 1


def strata(n=200, seed=0):
    """Return cells of 20 donors, each with a composition of its own, some without a type."""
    rng = np.random.default_rng(seed)
    donor = rng.integers(0, 20, n)
    mixes = rng.dirichlet(np.ones(4), 20)
    kinds = np.array(["B", "NK", "T", None], object)
    labels = {
        "cell": [f"cell {i}" for i in range(n)],
        "donor": ("cell", np.array([f"d{k}" for k in donor], object)),
        "kind": ("cell", np.array([kinds[rng.choice(4, p=mixes[k])] for k in donor], object)),
    }
    return xr.Dataset({"x": ("cell", np.arange(n))}, labels)


def counted(view, ds):
    kinds = pd.Series(view.kind.values).fillna("none").value_counts()
    return kinds.reindex(pd.Series(ds.kind.values).fillna("none").unique(), fill_value=0)


@pytest.mark.parametrize("seed", range(3))
def test_stratified__shares_of_each_class_are_kept_within_one_cell(seed):
    ds = strata(seed=seed)
    views = xl.split(ds, SHARES, stratify="kind", seed=seed)
    for name, view in views.items():
        off = counted(view, ds) - SHARES[name] * counted(ds, ds)
        assert np.abs(off).max() < 1
        assert abs(view.sizes["cell"] - SHARES[name] * 200) < 1
    assert views.n_left_out == 0
    xl.check_leakage(views)
    order = np.random.default_rng(seed).permutation(200)
    moved = xl.split(ds.isel(cell=order), SHARES, stratify="kind", seed=seed)
    for name, view in views.items():
        assert set(moved[name].cell.values) == set(view.cell.values)
    assert set(xl.split(ds, SHARES, stratify="kind", seed=9)["val"].cell.values) != set(
        views["val"].cell.values
    )


def test_stratified__folds_have_as_many_of_each_class_as_those_of_sklearn():
    from sklearn.model_selection import StratifiedKFold

    ds = strata()
    ours = np.array([counted(v, ds) for v in xl.split(ds, folds=5, stratify="kind").values()])
    y = pd.Series(ds.kind.values).fillna("none").to_numpy()
    theirs = [counted(ds.isel(cell=held), ds) for _, held in StratifiedKFold(5).split(y, y)]
    npt.assert_array_equal(np.sort(ours, axis=0), np.sort(theirs, axis=0))


def test_stratified__groups_stay_whole_and_are_as_even_as_those_of_sklearn():
    from sklearn.model_selection import StratifiedGroupKFold

    def unevenness(views, ds):
        """Return what sklearn minimises: how much the share of a class varies over folds."""
        return np.mean(np.std([counted(v, ds) / counted(ds, ds) for v in views], axis=0))

    ours, theirs = [], []
    for seed in range(6):
        ds = strata(400, seed)
        views = xl.split(ds, folds=4, by="donor", stratify="kind", seed=seed)
        xl.check_leakage(views, by="donor")
        assert sum(v.sizes["cell"] for v in views.values()) == 400
        ours.append(unevenness(views.values(), ds))
        y = pd.Series(ds.kind.values).fillna("none").to_numpy()
        folds = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
        held = [ds.isel(cell=h) for _, h in folds.split(y, y, ds.donor.values)]
        theirs.append(unevenness(held, ds))
        plain = xl.split(ds, folds=4, by="donor", seed=seed)
        assert ours[-1] < unevenness(plain.values(), ds)
    assert np.mean(ours) <= np.mean(theirs)


def test_stratified__groups_and_shares():
    ds = strata(2000)
    views = xl.split(ds, SHARES, by="donor", stratify="kind", seed=1)
    xl.check_leakage(views, by="donor")
    moved = xl.split(ds.isel(cell=slice(None, None, -1)), SHARES, by="donor", stratify="kind", seed=1)  # fmt: skip
    for name, view in views.items():
        assert set(moved[name].donor.values) == set(view.donor.values)
        share = counted(view, ds) / counted(ds, ds)
        assert np.abs(share - SHARES[name]).mean() < 0.1


@pytest.mark.parametrize(
    ("parts", "options", "kind", "message"),
    [
        ({"a": "d1"}, {"by": "donor", "stratify": "kind"}, PlanError, "but groups of 'donor' are named"),
        ({"a": 0.5}, {"by": "donor", "stratify": "donor"}, PlanError, "groups of it stay whole"),
        ({"a": 0.5}, {"stratify": "type"}, SchemaError, r"stratify='type' is no coordinate of cells; there are \['cell', 'depth'"),
        ({"a": 0.5}, {"stratify": "depth"}, SchemaError, "holds measurements"),
    ],
    ids=["named", "both", "unknown", "float"],
)  # fmt: skip
def test_stratified__what_is_impossible_is_told(parts, options, kind, message):
    ds = strata().assign_coords(depth=("cell", np.arange(200.0)))
    with pytest.raises(kind, match=message):
        xl.split(ds, parts, **options)


def test_stratified__is_about_cells_only():
    with pytest.raises(PlanError, match="stratify='kind' is about cells"):
        xl.split(genome_map(), folds=2, stratify="kind")
    with pytest.raises(PlanError, match="leave out `parts`, `folds` and `stratify`"):
        xl.split({"a": strata()}, stratify="kind")


def test_cells__that_share_a_name_cannot_be_told_apart():
    twice = strata().assign_coords(cell=["a", "b"] * 100)
    with pytest.raises(SchemaError, match=r"2 names of cells occur more than once: \['a', 'b'\]"):
        xl.split(twice, {"a": 0.5})
    assert xl.split(twice, {"a": "d1"}, by="donor")["a"].sizes["cell"] > 0
    # barcodes occur in several files: they are told by those too
    joined = strata().assign_coords(
        cell=[f"c{k}" for k in [*range(100), *range(100)]],
        dataset=("cell", np.repeat(["one", "two"], 100)),
    )
    views = xl.split(joined, {"a": 0.5, "b": "rest"})
    assert set(views["a"].cell.values) & set(views["b"].cell.values)
    xl.check_leakage(views)
    plain = {name: view.drop_vars("dataset") for name, view in views.items()}
    with pytest.raises(PlanError, match="overlap in .* cells"):
        xl.check_leakage(plain)
    with pytest.raises(PlanError, match="overlap in .* cells"):
        xl.check_leakage({"a": views["a"], "b": plain["b"]})


@pytest.mark.parametrize("stratify", [None, "kind"])
def test_cells__a_split_does_not_depend_on_the_order_of_files(stratify):
    ds = strata().assign_coords(dataset=("cell", np.repeat(["one", "two"], 100)))
    ds = ds.assign(X_measured=(("dataset", "gene"), np.ones((2, 3), bool)))
    first, second = (ds.isel(cell=slice(k, k + 100)) for k in (0, 100))
    found = [
        xl.split(xr.concat(files, "cell", data_vars="minimal"), folds=3, stratify=stratify)
        for files in ([first, second], [second, first])
    ]
    for fold in found[0]:
        assert set(found[0][fold].cell.values) == set(found[1][fold].cell.values)
    whole = xl.split(ds, folds=2, by="dataset")
    assert [set(v.dataset.values.tolist()) for v in whole.values()] in ([{"one"}, {"two"}], [{"two"}, {"one"}])  # fmt: skip


def test_cells__views_made_again_resume_where_they_were(tmp_path):
    def loader():
        ds = xl.open_cells(tmp_path / "cells.h5ad")
        return xl.Loader(xl.split(ds, SHARES, seed=3)["train"], batch_size=5, shuffle=True)

    cells_in("h5ad", tmp_path)
    first = loader()
    batches = iter(first)
    next(batches)
    again = loader()
    again.load_state_dict(first.state_dict())
    for expected, got in zip(batches, again, strict=True):
        npt.assert_array_equal(got.cell.values, expected.cell.values)


def test_cells__folds_are_of_equal_size():
    views = xl.split(cells(), folds=4)
    assert sorted(v.sizes["cell"] for v in views.values()) == [15, 15, 15, 16]


def test_cells__reading_a_view_goes_straight_to_storage():
    array = Rows(counts())
    ds = cells(array)
    view = xl.split(ds, SHARES)["val"]
    loader = xl.Loader(view, batch_size=5, variables=["X"], shuffle=True)
    got = xr.concat(list(loader), "cell").sortby("row")
    wanted = np.sort(view.row.values)
    npt.assert_array_equal(got.row.values, wanted)
    npt.assert_array_equal(np.asarray(got.X.data.todense()), counts()[wanted])
    assert set(array.log) == set(wanted // 8)
    assert len(array.log) == len(set(array.log))


def test_cells__what_is_impossible_is_told():
    ds = cells()
    with pytest.raises(
        SchemaError, match=r"by='donor' is no coordinate of cells; there are \['cell'"
    ):
        xl.split(ds, {"a": "x"}, by="donor")
    with pytest.raises(SchemaError, match=r"\['X'\] are not among the 3 values of 'cell_type'"):
        xl.split(ds, {"a": "X"}, by="cell_type")
    with pytest.raises(PlanError, match=r"'a' and 'b' overlap: both hold cell_type \['B'\]"):
        xl.split(ds, {"a": ["B", "T"], "b": "B"}, by="cell_type")
    with pytest.raises(PlanError, match="names groups of cells, but not of which coordinate"):
        xl.split(ds, {"a": "B"})


def test_given_views__are_checked():
    ds = genome_map()
    good = {"train": ds.isel(bin1=slice(0, 30), bin2=slice(0, 30)), "val": ds.isel(bin1=slice(30, 50), bin2=slice(30, 50))}  # fmt: skip
    views = xl.split(good)
    assert views["val"] is good["val"]
    assert views.n_left_out is None
    assert "no view" not in repr(views)
    # bins 20-30 are rows of one, and columns of the other
    crossed = {"train": ds.isel(bin1=slice(0, 30), bin2=slice(0, 20)), "val": ds.isel(bin1=slice(30, 50), bin2=slice(20, 50))}  # fmt: skip
    with pytest.raises(
        PlanError, match=r"'train' and 'val' overlap in 10,000 bp: chr1:20,000-30,000; bins"
    ):
        xl.split(crossed)
    with pytest.raises(PlanError, match="leave out `parts`, `folds` and `stratify`"):
        xl.split(good, folds=2)
    for odd in ({}, "map.cool", {"train": xl.Loader(good["train"], windows=xl.windows.diagonal(size=4), batch_size=1)}):  # fmt: skip
        with pytest.raises(SchemaError, match="takes a Dataset, or Datasets by name"):
            xl.split(odd)


def test_leakage__other_resolutions_are_compared_in_base_pairs():
    fine, coarse = genome_map(), genome_map().isel(bin1=slice(0, 10), bin2=slice(0, 10))
    side = {
        f"{k}{s}": (f"bin{s}", coarse[f"{k}{s}"].values * 5) for s in "12" for k in ("start", "end")
    }
    coarse = coarse.assign_coords(side)  # chr1:0-50,000
    xl.check_leakage({"a": fine.isel(bin1=slice(30, 71), bin2=slice(30, 71)), "b": coarse})
    with pytest.raises(PlanError, match=r"overlap in 2,000 bp: chr1:28,000-30,000;"):
        xl.check_leakage({"a": fine.isel(bin1=slice(28, 71), bin2=slice(28, 71)), "b": coarse})


def test_leakage__of_loaders_is_what_windows_cover():
    ds = genome_map()
    shape = xl.windows.diagonal(size=8)
    near, far = (xl.Loader(ds.isel(bin1=s, bin2=s), windows=shape, batch_size=2, remainder="drop") for s in (slice(0, 23), slice(16, 50)))  # fmt: skip
    # windows of the first cover 16 of its 23 bins; those of the other begin with bins 16, 30 and 38
    xl.check_leakage({"train": near, "val": far})
    with pytest.raises(PlanError, match="overlap in 7,000 bp: chr1:16,000-23,000"):
        xl.check_leakage({"train": near.ds, "val": far})
    upper = xl.Loader(ds.isel(bin1=slice(0, 8), bin2=slice(16, 24)), input_dims={"bin1": 8, "bin2": 8}, batch_size=1)  # fmt: skip
    lower = xl.Loader(ds.isel(bin1=slice(16, 30), bin2=slice(0, 8)), input_dims={"bin1": 8, "bin2": 8}, batch_size=1)  # fmt: skip
    with pytest.raises(PlanError, match="overlap in 16,000 bp: chr1:0-8,000, chr1:16,000-24,000"):
        xl.check_leakage({"train": upper, "val": lower})


def test_leakage__of_cells_is_told_by_name_and_group():
    ds = cells().assign_coords(donor=("cell", np.arange(61) % 2))
    first, second = ds.isel(cell=slice(0, 30)), ds.isel(cell=slice(30, 61))
    loader = xl.Loader(second, batch_size=3)
    xl.check_leakage({"train": first, "val": loader})
    with pytest.raises(PlanError, match=r"'train' and 'val' share 2 values of 'donor': \[0, 1\]"):
        xl.check_leakage({"train": first, "val": loader}, by="donor")
    with pytest.raises(PlanError, match=r"overlap in 2 cells: \['c28', 'c29'\]; make views"):
        xl.split({"train": first, "val": ds.isel(cell=slice(28, None))})
    with pytest.raises(SchemaError, match="by='batch' is no coordinate of the cells of 'train'"):
        xl.check_leakage({"train": first, "val": second}, by="batch")
    with pytest.raises(SchemaError, match="check them apart"):
        xl.check_leakage({"train": first, "val": genome_map()})
    with pytest.raises(SchemaError, match="the part 'val' is list without the labels"):
        xl.check_leakage({"train": first, "val": [1]})
    with pytest.raises(SchemaError, match="by='donor' is about cells"):
        xl.check_leakage({"train": genome_map()}, by="donor")
