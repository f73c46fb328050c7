"""What is left out equals a loop over windows, is counted by reason, and is never served in any epoch."""

import html
from functools import cache

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl
from tests.doubles import BIN, contacts
from xloader.contact_bins import contact_bins
from xloader.errors import PlanError, SchemaError

N = {"chr1": 61, "chr2": 40}


@st.composite
def blacklists(draw):
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        chrom = draw(st.sampled_from(list(N)))
        a = draw(st.integers(0, N[chrom] * BIN - 1))
        rows.append((chrom, a, draw(st.integers(a, N[chrom] * BIN))))
    return pd.DataFrame(rows, columns=["chrom", "start", "end"])


def map_of(seed):
    """Return a map with some masked bins, in two ways, and coverage."""
    rng = np.random.default_rng(seed)
    n = sum(N.values())
    weight, divisor, depth = rng.random(n), rng.random(n), rng.poisson(4, n).astype(float)
    weight[rng.random(n) < 0.3] = np.nan
    divisor[rng.random(n) < 0.3] = 0
    depth[rng.random(n) < 0.1] = np.nan
    ds = contacts().load()
    for s in "12":
        ds = ds.assign_coords({
            f"weight{s}": (f"bin{s}", weight, {"divisive": False}),
            f"KR{s}": (f"bin{s}", divisor, {"divisive": True}),
            f"depth{s}": (f"bin{s}", depth),
        })  # fmt: skip
    return ds


def shows(ds, start, size, rules):
    """Say which rules some bins break."""
    stop = start + size
    if "masked" in rules:
        values = ds[f"{rules['weight']}1"].values[start:stop]
        bad = sum(not np.isfinite(v) or (v == 0 and rules["weight"] == "KR") for v in values)
        yield bad / size > rules["masked"]
    if "coverage" in rules:
        yield np.nansum(ds["depth1"].values[start:stop]) / size < rules["coverage"]
    if "overlap" in rules:
        chrom, a, b = ds.chrom1.values[start], start * BIN, stop * BIN
        offset = 0 if chrom == "chr1" else N["chr1"] * BIN
        yield any(
            c == chrom and s + offset < b and max(e, s + 1) + offset > a
            for c, s, e in rules["overlap"].itertuples(index=False)
        )


SHAPES = {
    "diagonal": (xl.windows.diagonal, {}),
    "grid": (xl.windows.grid, {"max_distance": 9}),
    "between": (xl.windows.between, {}),
}


@pytest.mark.parametrize("kind", SHAPES)
@given(
    seed=st.integers(0, 9),
    size=st.integers(1, 8),
    masked=st.none() | st.floats(0, 1),
    weight=st.sampled_from(["weight", "KR"]),
    coverage=st.none() | st.floats(0, 6),
    blacklist=st.none() | blacklists(),
    shift=st.sampled_from([0, 3]),
)
def test_excluding__leaves_out_what_breaks_a_rule_wherever_it_is_shifted(
    kind, seed, size, masked, weight, coverage, blacklist, shift
):
    make, options = SHAPES[kind]
    options = {**options, "size": size, "stride": 7}
    options |= {} if kind == "between" else {"shift": shift}
    ds, shape = map_of(seed), make(**options)
    rules = {}
    if masked is not None:
        rules |= {"masked": masked, "weight": weight}
    if coverage is not None:
        rules |= {"coverage": coverage, "track": "depth"}
    if blacklist is not None:
        rules |= {"overlap": blacklist}
    if not rules:
        with pytest.raises(PlanError, match="nothing says what to exclude"):
            shape.excluding()
        return
    bins = contact_bins(ds)
    everything = shape.draw(bins, remainder="keep", seed=1)
    first, last = everything.reach_of(np.arange(len(everything)))
    broken_at = cache(lambda start: np.array(list(shows(ds, start, size, rules))))
    kept, counts = [], [0] * len(shape.excluding(**rules).rules)
    for k in range(len(everything)):
        broken = np.zeros(len(counts), bool)
        for side in (0, 1):
            for start in range(first[k, side], last[k, side] + 1):
                broken |= broken_at(start)
        if broken.any():
            counts[int(broken.argmax())] += 1
        else:
            kept.append(k)
    asked = shape.excluding(**rules)
    if not kept:
        with pytest.raises(PlanError, match="no window .* left out"):
            asked.draw(bins, remainder="keep")
        return
    drawn = asked.draw(bins, remainder="keep", seed=1)
    assert drawn.starts.tolist() == everything.starts[kept].tolist()
    assert list(drawn.left_out.values()) == [n for n in counts if n]
    assert sum(drawn.left_out.values()) + len(drawn) == len(everything)
    n = len(everything) - everything.n_flush
    assert drawn.n_flush == sum(k >= n for k in kept)


def test_excluding__rules_add_up_and_are_shown(tmp_path):
    (tmp_path / "black.bed").write_text("chr1\t0\t7000\nchr2\t39999\t40000\n")
    ds = map_of(0)
    shape = xl.windows.diagonal(size=8).excluding(overlap=tmp_path / "black.bed")
    shape = shape.excluding(coverage=3.5, track=ds.depth1).excluding(masked=0.4)
    loader = xl.Loader(ds, windows=shape, batch_size=2)
    left_out = loader.plan.windows.left_out
    black = f"overlapping regions of '{tmp_path / 'black.bed'}'"
    assert next(iter(left_out)) == black
    assert left_out[black] == 2
    for text in (repr(loader), html.unescape(loader.plan._repr_html_())):
        for reason, n in left_out.items():
            assert f"{n} {reason}" in text
    assert any("mean depth1 below 3.5" in reason for reason in left_out)
    nothing = xl.windows.diagonal(size=8).excluding(masked=1.0)
    assert xl.Loader(ds, windows=nothing, batch_size=2).plan.windows.left_out == {}


def test_excluding__padded_bins_are_masked():
    ds = contacts().load()
    ds = ds.assign_coords({f"one{s}": (f"bin{s}", np.ones(101)) for s in "12"})
    frame = pd.DataFrame({"chrom": ["chr1", "chr1"], "start": [0, 9_000], "end": [1_000, 10_000]})
    shape = xl.windows.regions(frame, size=7)  # the first reaches 3 bins beyond the start
    for rule, n in (({"masked": 0.42}, 1), ({"masked": 0.43}, 2), ({"coverage": 0.58}, 1), ({"coverage": 0.57}, 2)):  # fmt: skip
        given = {"weight" if "masked" in rule else "track": "one"}
        drawn = shape.excluding(**rule, **given).draw(contact_bins(ds), remainder="pad")
        assert len(drawn) == n
    beyond = pd.DataFrame({"chrom": ["chr1"], "start": [5_000], "end": [6_000]})
    drawn = shape.excluding(overlap=beyond).draw(contact_bins(ds), remainder="pad")
    assert drawn.left_out == {}
    assert drawn.n_padded == 1


def test_coverage__is_found_by_bin_number_whatever_is_selected():
    ds, depth = map_of(1), np.arange(101.0)
    part = ds.isel(bin1=slice(20, 90), bin2=slice(20, 90))
    numbered = xr.DataArray(depth[::-1], {"bin": np.arange(101)[::-1]}, ["bin"], name="depth")
    for track in (depth, depth.tolist(), xr.DataArray(depth, dims="bin"), numbered):
        shape = xl.windows.diagonal(size=5).excluding(coverage=30, track=track)
        drawn = shape.draw(contact_bins(part), remainder="drop")
        middles = drawn.starts[:, 0] + 20 + 2
        assert middles.min() == 32
        assert sum(drawn.left_out.values()) == 2  # at 20 and 25


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"masked": 1.2}, PlanError, r"masked=1.2 is no part"),
        ({"weight": "KR"}, PlanError, "`weight` says what `masked` is about"),
        ({"track": "depth", "masked": 0.1}, PlanError, "`track` says what `coverage` is about"),
        ({"masked": 0.1, "weight": "ICE"}, SchemaError, r"'ICE' is nothing that each bin has; there are \['KR', .*'weight'\]"),
        ({"coverage": 1}, SchemaError, "'coverage' is nothing that each bin has"),
        ({"coverage": 1, "track": np.ones(100)}, SchemaError, "no value for 1 of 101 bins, the first of them 100"),
        ({"coverage": 1, "track": np.ones((2, 2))}, SchemaError, r"shape \(2, 2\)"),
        ({"overlap": pd.DataFrame({"chrom": ["1"], "start": 0, "end": 1})}, PlanError, r"'1' may be 'chr1' here; rename"),
        ({"overlap": pd.DataFrame({"chrom": ["X"], "start": 0, "end": 1})}, PlanError, r"on \['X'\], which this map does not have"),
    ],
    ids=["part", "weight", "track", "vector", "coverage", "short", "shape", "alike", "other"],
)  # fmt: skip
def test_excluding__refuses_what_would_do_nothing(options, error, message):
    with pytest.raises(error, match=message):
        xl.Loader(map_of(0), windows=xl.windows.diagonal(size=8).excluding(**options), batch_size=2)


def test_excluding__regions_elsewhere_on_the_genome_leave_out_nothing():
    ds = map_of(0).isel(bin1=slice(61), bin2=slice(61))
    frame = pd.DataFrame({"chrom": ["chr1", "chrUn_7"], "start": [0, 5], "end": [10, 9]})
    drawn = (
        xl.windows.diagonal(size=8)
        .excluding(overlap=frame)
        .draw(contact_bins(ds), remainder="drop")
    )
    assert list(drawn.left_out.values()) == [1]
