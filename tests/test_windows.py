"""Windows lie where xbatcher puts them, never span two regions, and leave nothing out unsaid."""

import itertools
from types import SimpleNamespace

import numpy as np
import numpy.testing as npt
import pytest
import xbatcher
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import bins_of, grid
from xloader import axes, selectors
from xloader import windows as win
from xloader.axes import Region
from xloader.errors import PlanError

GOLDEN = [1, 2, 3, 4, 3, 2, 0, 1, 0, 4, 4, 2]
REMAINDERS = st.sampled_from(["keep", "drop", "pad"])


@st.composite
def axis(draw, max_size=60):
    """Draw a length, a window that fits and a stride, which may leave gaps."""
    size = draw(st.integers(1, max_size))
    window = draw(st.integers(1, size))
    return size, window, draw(st.integers(1, 2 * window))


@st.composite
def kept_bins(draw, side=12):
    """Draw chromosomes and the bins of them that a user kept: runs with holes between."""
    chroms = draw(st.lists(st.integers(1, side), min_size=1, max_size=3))
    names = np.repeat([f"chr{i}" for i in range(len(chroms))], chroms)
    keep = draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    ids = np.flatnonzero(keep) if any(keep) else np.arange(len(names))
    return names[ids], ids


def schema(sizes, window, stride):
    """Return what xbatcher itself draws, as one row of starts per patch."""
    selectors = xbatcher.BatchSchema(
        SimpleNamespace(sizes=sizes),
        input_dims=window,
        input_overlap={d: window[d] - stride[d] for d in window},
        concat_input_bins=False,
    ).selectors
    assert list(selectors) == list(range(len(selectors)))
    return np.array([[p[d].start for d in window] for (p,) in selectors.values()])


def covered(starts, length, n):
    out = np.zeros(n, bool)
    for s in starts:
        out[s : s + length] = True
    return out


@given(axis())
def test_axis_starts__equal_sliding_window_view_and_xbatcher(drawn):
    size, window, stride = drawn
    starts = selectors.axis_starts(size, window=window, stride=stride)
    views = np.lib.stride_tricks.sliding_window_view(np.arange(size), window)[::stride]
    npt.assert_array_equal(starts, views[:, 0])
    npt.assert_array_equal(starts, schema({"x": size}, {"x": window}, {"x": stride})[:, 0])
    assert starts.dtype == np.int64


@given(st.lists(axis(12), min_size=1, max_size=3), st.lists(axis(12), min_size=1, max_size=3))
def test_boxes__are_xbatchers_product_region_after_region(first, second):
    parts = list(zip(first, second, strict=False))
    window = {"x": min(p[0][1] for p in parts), "y": min(p[1][1] for p in parts)}
    stride = {"x": parts[0][0][2], "y": parts[0][1][2]}
    lengths = [(a[0], b[0]) for a, b in parts]
    edges = np.concatenate([[(0, 0)], np.cumsum(lengths, axis=0)])
    regions = [
        tuple(Region(str(k), int(edges[k][d]), int(edges[k + 1][d])) for d in (0, 1))
        for k in range(len(parts))
    ]
    drawn = win.boxes(window, stride, regions, remainder="drop")
    expected = [
        schema({"x": a, "y": b}, window, stride) + edges[k] for k, (a, b) in enumerate(lengths)
    ]
    npt.assert_array_equal(drawn.starts, np.concatenate(expected))
    assert (drawn.n, drawn.n_flush, drawn.dims) == (len(drawn.starts), 0, ("x", "y"))


@given(axis(), axis(), REMAINDERS)
def test_boxes__flush_windows_come_last_and_reach_the_end(x, y, remainder):
    size, window, stride = ({"x": x[k], "y": y[k]} for k in range(3))
    whole = [tuple(Region("", 0, n) for n in size.values())]
    drawn = win.boxes(window, stride, whole, remainder=remainder)
    regular = drawn.starts[: drawn.n - drawn.n_flush]
    npt.assert_array_equal(regular, schema(size, window, stride))
    ends = drawn.starts + list(window.values())
    assert (ends <= list(size.values())).all()
    if remainder == "drop":
        assert drawn.n_flush == 0
    else:
        assert (ends.max(axis=0) == list(size.values())).all()
        last = (ends[len(regular) :] == list(size.values())).any(axis=1)
        assert last.all()
    assert len(np.unique(drawn.starts, axis=0)) == drawn.n
    for d, starts in zip(size, drawn.starts.T, strict=True):
        seen = covered(starts, window[d], size[d])
        assert drawn.uncovered[d] == (~seen).sum()
        assert remainder == "drop" or stride[d] > window[d] or seen.all()


@given(kept_bins(), st.integers(1, 5), st.integers(1, 7), REMAINDERS)
def test_diagonal__windows_hold_the_same_bins_of_one_chromosome(kept, size, stride, remainder):
    names, ids = kept
    bins = bins_of(kept)
    regions = bins.rows.regions
    longest = max(map(len, regions))
    asked = win.diagonal(size=size, stride=stride)
    if size > (longest if remainder == "drop" else min(map(len, regions))):
        with pytest.raises(PlanError):
            asked.draw(bins, remainder=remainder)
        return
    drawn = asked.draw(bins, remainder=remainder)
    expected = set()
    for r in regions:
        starts = list(range(r.start, r.stop - size + 1, stride))
        if starts and remainder != "drop":
            starts.append(r.stop - size)
        expected |= set(starts)
    npt.assert_array_equal(drawn.starts[:, 0], drawn.starts[:, 1])
    assert sorted(drawn.starts[:, 0].tolist()) == sorted(expected)
    for s in drawn.starts[:, 0]:
        assert len(set(names[s : s + size])) == 1
        assert (np.diff(ids[s : s + size]) == 1).all()
    left = ~covered(drawn.starts[:, 0], size, len(ids))
    assert drawn.uncovered == {"bin1": left.sum(), "bin2": left.sum()}
    assert drawn.empty == tuple(dict.fromkeys(c for c in names if c not in names[drawn.starts]))


def naive_grid(pairs, size, stride, *, flush):
    """Return the starts of a grid in each pair of runs, those at the ends last."""
    found = []
    for pair in pairs:
        axes_of_pair = []
        for r, n, step in zip(pair, size, stride, strict=True):
            starts = [(s, False) for s in range(r.start, r.stop - n + 1, step)]
            if flush and starts and starts[-1][0] != r.stop - n:
                starts.append((r.stop - n, True))
            axes_of_pair.append(starts)
        found += itertools.product(*axes_of_pair)
    return [(i[0], j[0]) for last in (False, True) for i, j in found if (i[1] or j[1]) == last]


@given(
    kept_bins(),
    kept_bins(),
    st.integers(1, 4),
    st.integers(1, 5),
    st.none() | st.integers(0, 9),
    st.sampled_from(["both", "upper"]),
    st.booleans(),
)
def test_grid__windows_stay_in_one_chromosome_and_near_the_diagonal(
    a, b, size, stride, far, triangle, drop
):
    (names1, ids1), (names2, ids2) = a, b
    bins = bins_of(a, b)
    pairs = [(p, q) for p in bins.rows.regions for q in bins.columns.regions if p.name == q.name]
    lattice = naive_grid(pairs, (size, size), (stride, stride), flush=not drop)
    expected = [
        (i, j)
        for i, j in lattice
        if (far is None or abs(ids1[i] - ids2[j]) <= far)
        and (triangle == "both" or ids1[i] <= ids2[j])
    ]
    asked = win.grid(size=size, stride=stride, max_distance=far, triangle=triangle)
    short = any(min(map(len, pair)) < size for pair in pairs)
    remainder = "drop" if drop else "keep"
    if not expected or (short and not drop):
        with pytest.raises(PlanError, match=r"no window|is longer than"):
            asked.draw(bins, remainder=remainder)
        return
    drawn = asked.draw(bins, remainder=remainder)
    assert [tuple(s) for s in drawn.starts.tolist()] == expected
    for i, j in expected:
        assert len({*names1[i : i + size], *names2[j : j + size]}) == 1
        assert (np.diff(ids1[i : i + size]) == 1).all()
        assert (np.diff(ids2[j : j + size]) == 1).all()


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 8), st.booleans())
def test_grid__the_upper_triangle_loses_no_pair_of_bins(n, size, stride, drop):
    bins, size = bins_of((np.repeat("a", n), np.arange(n))), min(n, size)
    seen = {}
    for triangle in ("both", "upper"):
        drawn = win.grid(size=size, stride=stride, triangle=triangle).draw(
            bins, remainder="drop" if drop else "keep"
        )
        seen[triangle] = {
            (min(p), max(p))
            for i, j in drawn.starts.tolist()
            for p in itertools.product(range(i, i + size), range(j, j + size))
        }
        assert triangle == "both" or (drawn.starts[:, 0] <= drawn.starts[:, 1]).all()
    assert seen["upper"] == seen["both"]


@given(kept_bins(), st.tuples(*[st.integers(1, 4)] * 2), st.tuples(*[st.integers(1, 5)] * 2))
def test_between__windows_have_rows_of_one_chromosome_and_columns_of_a_later_one(
    kept, size, stride
):
    names, _ = kept
    bins = bins_of(kept)
    runs = bins.rows.regions
    pairs = [(p, q) for p in runs for q in runs if p.name < q.name]
    expected = naive_grid(pairs, size, stride, flush=False)
    asked = win.between(size=size, stride=stride)
    if not expected:
        with pytest.raises(PlanError, match="no window"):
            asked.draw(bins, remainder="drop")
        return
    drawn = asked.draw(bins, remainder="drop")
    assert (drawn.size, [tuple(s) for s in drawn.starts.tolist()]) == (size, expected)
    for i, j in expected:
        (first,), (second,) = set(names[i : i + size[0]]), set(names[j : j + size[1]])
        assert first < second
    named = {(p.name, q.name) for p, q in pairs}
    for a, b in named:
        some = win.between(size=size, stride=stride, pairs=[(b, a)])
        chosen = naive_grid(
            [(q, p) for q in runs for p in runs if (q.name, p.name) == (b, a)], size, stride,
            flush=False,
        )  # fmt: skip
        if chosen:
            assert some.draw(bins, remainder="drop").starts.tolist() == list(map(list, chosen))


def test_between__flush_windows_and_binsizes_and_unknown_chromosomes():
    bins = bins_of((np.repeat(["chr1", "chr2", "chr3"], [7, 5, 4]), np.arange(16)), binsize=1_000)
    drawn = win.between(size=("4kb", 2), pairs=[("chr2", "chr1")]).draw(bins, remainder="keep")
    assert drawn.starts.tolist() == [[7, 0], [7, 2], [7, 4], [7, 5], [8, 0], [8, 2], [8, 4], [8, 5]]
    assert (drawn.n_flush, drawn.empty) == (5, ("chr3",))
    with pytest.raises(PlanError, match=r"no bins between '2' and 'chr1'.*is 'chr2' meant\?"):
        win.between(size=4, pairs=[("2", "chr1")]).draw(bins, remainder="keep")
    with pytest.raises(PlanError, match=r"\('chr1', 'chr1'\) are no two chromosomes"):
        win.between(size=4, pairs=[("chr1", "chr1")])
    with pytest.raises(PlanError, match=r"\(4, 2, 1\) are 3 lengths"):
        win.between(size=(4, 2, 1)).draw(bins, remainder="keep")


@given(
    kept_bins(),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(0, 9),
    st.integers(0, 3),
    st.sampled_from(["diagonal", "grid"]),
)
def test_shift__windows_move_within_their_chromosome(kept, size, stride, shift, epoch, kind):
    bins, shape = bins_of(kept), getattr(win, kind)
    try:
        still = shape(size=size, stride=stride).draw(bins, remainder="drop")
    except PlanError:
        return
    asked = shape(size=size, stride=stride, shift=shift)
    drawn = asked.draw(bins, remainder="drop", seed=3)
    npt.assert_array_equal(drawn.starts, still.starts)
    assert (drawn.shift is None) == (shift <= 1)
    ids = np.arange(len(drawn))
    places = drawn.starts_of(ids, epoch)
    first, last = drawn.reach_of(ids)
    npt.assert_array_equal(drawn.starts_of(ids), first)
    assert ((first <= places) & (places <= last)).all()
    for start, place, end in zip(first, places, last, strict=True):
        moved = place - start
        assert moved[0] == moved[1]
        assert moved[0] < max(shift, 1)
        stops = [r.stop for s in start for r in bins.rows.regions if r.start <= s < r.stop]
        assert (place + size <= stops).all()
        room = min(max(shift, 1), *(stops - start - size + 1).tolist())
        assert (end - start).tolist() == [room - 1] * 2
    for i in ids[:5]:  # whatever else is asked for
        npt.assert_array_equal(drawn.starts_of(ids[i : i + 1], epoch), places[i : i + 1])
    npt.assert_array_equal(drawn.starts_of(ids[::-1], epoch), places[::-1])


def test_shift__is_uniform_and_differs_between_epochs_and_seeds():
    bins = bins_of((np.repeat("a", 40_010), np.arange(40_010)))
    asked = win.diagonal(size=10, stride=4, shift=5)
    drawn = asked.draw(bins, remainder="drop", seed=1)
    ids = np.arange(len(drawn))
    moves = [(drawn.starts_of(ids, e) - drawn.starts)[:, 0] for e in range(3)]
    for move in moves:
        counts = np.bincount(move, minlength=5)
        assert (abs(counts - len(ids) / 5) < 5 * np.sqrt(len(ids) / 5)).all()
    other = asked.draw(bins, remainder="drop", seed=2)
    moves.append((other.starts_of(ids, 0) - other.starts)[:, 0])
    for a, b in itertools.combinations(moves, 2):
        assert abs((a == b).mean() - 0.2) < 0.02
    assert moves[0][:12].tolist() == GOLDEN  # the same on every machine, for ever
    with pytest.raises(PlanError, match="shift=-1 is impossible"):
        win.diagonal(size=10, shift=-1).draw(bins, remainder="drop")


def test_diagonal__other_bins_on_the_second_axis_move_the_start_there():
    names = np.repeat(["a", "b"], [6, 5])
    bins = bins_of((names, np.arange(11)), (names[6:], np.arange(6, 11)))  # only chromosome b
    assert win.diagonal(size=5).draw(bins, remainder="keep").starts.tolist() == [[6, 0]]


def test_boxes__regions_that_are_too_short_are_named_once_when_dropped():
    bins = bins_of((np.repeat(["a", "b", "c"], [2, 9, 3]), np.arange(14)))
    drawn = win.diagonal(size=4, stride=3).draw(bins, remainder="drop")
    assert drawn.skipped == drawn.empty == ("a", "c")
    assert drawn.starts[:, 0].tolist() == [2, 5]
    assert drawn.uncovered == {"bin1": 2 + 2 + 3, "bin2": 7}  # the rest of b counts, too


def test_rows__are_numbered_and_never_listed():
    drawn = axes.rows("cell", 10**9)
    assert drawn.starts is None
    assert drawn.by_row
    assert len(drawn) == 10**9
    assert drawn.starts_of(np.array([5, 7])).tolist() == [[5], [7]]


@given(
    st.dictionaries(st.sampled_from(["lat", "lon", "time"]), st.integers(1, 4), min_size=1),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_from_generator__equals_its_own_selectors(dims, overlap, batches, concat):
    overlaps = {d: min(overlap, n - 1) for d, n in dims.items()}
    batch_dims = {"time": 2} if batches and "time" not in dims else {}
    ds = grid(9, 7)
    generator = xbatcher.BatchGenerator(
        ds, dims, overlaps, batch_dims, concat_input_dims=concat, preload_batch=False
    )
    drawn = selectors.from_generator(generator)
    patches = [p for batch in generator._batch_selectors.selectors.values() for p in batch]
    assert [tuple(p) for p in patches] == [drawn.dims] * len(drawn)
    for patch, start in zip(patches, drawn.starts.tolist(), strict=True):
        cut = {d: slice(s, s + n) for d, s, n in zip(drawn.dims, start, drawn.size, strict=True)}
        assert cut == patch
    for d, starts, length in zip(drawn.dims, drawn.starts.T, drawn.size, strict=True):
        assert drawn.uncovered[d] == (~covered(starts, length, ds.sizes[d])).sum()


@pytest.mark.parametrize(
    ("length", "binsize", "bins"),
    [
        (64, None, 64),
        ("500kb", 10_000, 50),
        ("1.5 Mb", 10_000, 150),
        ("20,000bp", 5_000, 4),
        ("2.3Mb", 100_000, 23),
    ],
)
def test_to_bins__counts_whole_bins(length, binsize, bins):
    assert win.to_bins(length, binsize) == bins


@pytest.mark.parametrize("length", [1.5, "1.2.3kb", "kb", True, None, "-5kb"], ids=str)
def test_to_bins__refuses_what_is_no_length(length):
    with pytest.raises(PlanError, match="is no length"):
        win.to_bins(length, 1_000)


def test_xbatcher__still_draws_plans_as_relied_on():
    # a plan rests on this: {number of the batch: [{dimension: slice}]}, last dimension fastest
    selectors = xbatcher.BatchSchema(
        SimpleNamespace(sizes={"x": 4, "y": 4}), {"x": 2, "y": 2}, concat_input_bins=False
    ).selectors
    assert list(selectors.items())[1] == (1, [{"x": slice(0, 2), "y": slice(2, 4)}])
