"""Windows lie where xbatcher puts them, never span two regions, and leave nothing out unsaid."""

import itertools
from types import SimpleNamespace

import numpy as np
import numpy.testing as npt
import pytest
import xbatcher
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import grid
from xloader import axes
from xloader import windows as win
from xloader.axes import Region
from xloader.errors import PlanError

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
    starts = axes.axis_starts(size, window=window, stride=stride)
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
    regions = axes.regions_of(names, ids)
    pairs = axes.pair_regions(regions, regions)
    longest = max(map(len, regions))
    if size > (longest if remainder == "drop" else min(map(len, regions))):
        with pytest.raises(PlanError):
            win.diagonal(size=size, stride=stride).draw(pairs, None, remainder)
        return
    drawn = win.diagonal(size=size, stride=stride).draw(pairs, None, remainder)
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


@given(kept_bins(), kept_bins(), st.integers(1, 4), st.integers(1, 5), st.integers(0, 9))
def test_grid__windows_stay_in_one_chromosome_and_near_the_diagonal(a, b, size, stride, far):
    (names1, ids1), (names2, ids2) = a, b
    pairs = axes.pair_regions(axes.regions_of(names1, ids1), axes.regions_of(names2, ids2))
    lattice = [
        (i, j)
        for p, q in pairs
        for i, j in itertools.product(
            range(p.start, p.stop - size + 1, stride), range(q.start, q.stop - size + 1, stride)
        )
    ]
    expected = [(i, j) for i, j in lattice if abs(ids1[i] - ids2[j]) <= far]
    asked = win.grid(size=size, stride=stride, max_distance=far)
    if not expected:
        with pytest.raises(PlanError, match="no window"):
            asked.draw(pairs, None, "drop")
        return
    drawn = asked.draw(pairs, None, "drop")
    assert [tuple(s) for s in drawn.starts.tolist()] == expected
    for i, j in expected:
        assert len({*names1[i : i + size], *names2[j : j + size]}) == 1
        assert (np.diff(ids1[i : i + size]) == 1).all()
        assert (np.diff(ids2[j : j + size]) == 1).all()


def test_diagonal__other_bins_on_the_second_axis_move_the_start_there():
    names = np.repeat(["a", "b"], [6, 5])
    first = axes.regions_of(names, np.arange(11))
    second = axes.regions_of(names[6:], np.arange(6, 11))  # only chromosome b
    drawn = win.diagonal(size=5).draw(axes.pair_regions(first, second), None, "keep")
    assert drawn.starts.tolist() == [[6, 0]]


def test_boxes__regions_that_are_too_short_are_named_once_when_dropped():
    regions = axes.regions_of(np.repeat(["a", "b", "c"], [2, 9, 3]), np.arange(14))
    drawn = win.diagonal(size=4, stride=3).draw(axes.pair_regions(regions, regions), None, "drop")
    assert drawn.skipped == ("a", "c")
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
    drawn = axes.from_generator(generator)
    patches = [p for batch in generator._batch_selectors.selectors.values() for p in batch]
    assert [tuple(p) for p in patches] == [drawn.dims] * len(drawn)
    for patch, start in zip(patches, drawn.starts.tolist(), strict=True):
        cut = {d: slice(s, s + n) for d, s, n in zip(drawn.dims, start, drawn.size, strict=True)}
        assert cut == patch
    for d, starts, length in zip(drawn.dims, drawn.starts.T, drawn.size, strict=True):
        assert drawn.uncovered[d] == (~covered(starts, length, ds.sizes[d])).sum()


@pytest.mark.parametrize(
    ("length", "binsize", "bins"),
    [(64, None, 64), ("500kb", 10_000, 50), ("1.5 Mb", 10_000, 150), ("20,000bp", 5_000, 4)],
)
def test_to_bins__counts_whole_bins(length, binsize, bins):
    assert win.to_bins(length, binsize) == bins


def test_xbatcher__still_draws_plans_as_relied_on():
    # a plan rests on this: {number of the batch: [{dimension: slice}]}, last dimension fastest
    selectors = xbatcher.BatchSchema(
        SimpleNamespace(sizes={"x": 4, "y": 4}), {"x": 2, "y": 2}, concat_input_bins=False
    ).selectors
    assert list(selectors.items())[1] == (1, [{"x": slice(0, 2), "y": slice(2, 4)}])
