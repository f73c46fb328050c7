"""Tracks: the mean over covered bases, base by base by plain numpy."""

import gzip

import numpy as np
import numpy.testing as npt
import pybigtools
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xloader as xl
from xloader.errors import ReadError, SchemaError, XloaderWarning

LENGTHS = {"c1": 2_037, "c2": 400}


def intervals(seed=0, lengths=None):
    """Return sorted intervals that leave gaps, by chromosome."""
    rng = np.random.default_rng(seed)
    out = []
    for chrom, n in (lengths or LENGTHS).items():
        edges = np.unique(rng.integers(0, n, n // 10))
        pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        out += [
            (chrom, a, b, float(np.float32(rng.normal()))) for a, b in pairs if rng.random() < 0.6
        ]
    return out


def bins(size, lengths=None):
    rows = [
        (c, s, min(s + size, n)) for c, n in (lengths or LENGTHS).items() for s in range(0, n, size)
    ]
    return bins_of(rows, size)


def bins_of(rows, size=None):
    chrom, start, end = zip(*rows, strict=True)
    coords = {
        "chrom1": ("bin1", np.array(chrom, object)),
        "start1": ("bin1", np.array(start)),
        "end1": ("bin1", np.array(end)),
    }
    return xr.Dataset(coords=coords, attrs={"binsize": size})


def by_base(table, ds):
    """Return the mean of each bin, from an array with a place for each base."""
    bases = {c: np.full(5_000, np.nan) for c in {*LENGTHS, *(t[0] for t in table)}}
    for chrom, a, b, value in table:
        bases[chrom][a:b] = value
    means = []
    for c, a, b in zip(ds.chrom1.values, ds.start1.values, ds.end1.values, strict=True):
        part = bases[c][a:b]
        part = part[~np.isnan(part)]
        means.append(part.mean() if len(part) else np.nan)
    return np.array(means)


def write_bigwig(path, table, lengths=None):
    pybigtools.open(str(path), "w").write(lengths or LENGTHS, iter(table))
    return path


def write_bedgraph(path, table, head="track type=bedGraph\n# made up\n"):
    text = head + "".join(f"{c}\t{a}\t{b}\t{v!r}\n" for c, a, b, v in table)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


VARIABLE = bins_of([("c1", 0, 13), ("c1", 13, 500), ("c1", 700, 701), ("c2", 40, 300)])


@pytest.mark.parametrize(
    "ds", [bins(100), bins(7), bins(3_000), VARIABLE], ids=["100", "7", "whole", "variable"]
)
@pytest.mark.parametrize("form", ["bw", "bedgraph", "bedgraph.gz"])
def test_signal__is_the_mean_of_covered_bases(form, ds, tmp_path):
    table = intervals()
    write = write_bigwig if form == "bw" else write_bedgraph
    track = xl.open_track(write(tmp_path / f"s.{form}", table), ds, progress=False)
    expected = by_base(table, ds)
    assert np.isnan(expected).any() == (len(expected) not in (2, 25))
    assert track["signal"].dtype == np.float32
    npt.assert_allclose(track["signal"].values, expected, rtol=2e-6, atol=1e-6)
    npt.assert_array_equal(track.start1.values, ds.start1.values)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 400))
def test_bedgraph__any_bins(tmp_path_factory, seed, size):
    path = tmp_path_factory.mktemp("track") / "s.bedgraph"
    table = intervals(seed) or [("c1", 0, 1, 1.0)]
    ds = bins(size, {c: n for c, n in LENGTHS.items() if c in {t[0] for t in table}})
    track = xl.open_track(write_bedgraph(path, table), ds, progress=False)
    npt.assert_allclose(track["signal"].values, by_base(table, ds), rtol=2e-6, atol=1e-6)


def test_bigwig__knows_its_own_bins(tmp_path):
    table = [*intervals(), ("c2", 399, 400, 2.0)][:]
    path = write_bigwig(tmp_path / "s.bw", [t for t in table if t[1:3] != (399, 400)])
    track = xl.open_track(path, 64, progress=False)
    expected = bins(64, dict(pybigtools.open(str(path)).chroms()))
    for name in ("chrom1", "start1", "end1"):
        npt.assert_array_equal(track[name].values, expected[name].values)
    npt.assert_allclose(track["signal"].values, by_base(table[:-1], expected), rtol=2e-6, atol=1e-6)
    assert track.attrs["binsize"] == 64


def test_missing_chromosomes__are_nan_and_named(tmp_path):
    table = [t for t in intervals() if t[0] == "c1"]
    for path in (write_bigwig(tmp_path / "s.bw", table), write_bedgraph(tmp_path / "s.bg", table)):
        with pytest.warns(XloaderWarning, match=r"has no \['c2'\] \(1 of 2 chromosomes\)"):
            track = xl.open_track(path, bins(100), progress=False)
        assert track.attrs["missing"] == ["c2"]
        second = track.chrom1.values == "c2"
        assert np.isnan(track["signal"].values[second]).all()
        npt.assert_allclose(
            track["signal"].values[~second], by_base(table, bins(100))[~second], rtol=2e-6
        )


def bad_files(folder):
    (folder / "text.bg").write_text("c1 5 2 1\n")
    (folder / "words.bg").write_text("hello world\n")
    (folder / "empty.bg").write_text("")
    (folder / "over.bg").write_text("c1 0 10 1\nc1 5 20 2\n")
    whole = write_bigwig(folder / "whole.bw", intervals())
    (folder / "cut.bw").write_bytes(whole.read_bytes()[:200])
    (folder / "noise.bin").write_bytes(bytes(range(128, 256)) * 8)
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.bg", "line 1: .* is no interval; start must be below end"),
        ("words.bg", "neither bigWig nor bedGraph"),
        ("empty.bg", "there is no interval"),
        ("over.bg", r"c1:0-10 and c1:5-20 overlap"),
        ("cut.bw", "no whole bigWig file; get a new copy"),
        ("noise.bin", "neither bigWig nor bedGraph"),
        ("absent.bw", "cannot be read .*check the path"),
    ],
    ids=lambda x: x.split(" ")[0] if "." in x else None,
)
def test_bad_files__are_told(name, message, tmp_path):
    with pytest.raises(ReadError, match=message) as e:
        xl.open_track(bad_files(tmp_path) / name, bins(100), progress=False)
    assert name in str(e.value)


def test_bad_requests__are_told(tmp_path):
    text = write_bedgraph(tmp_path / "s.bg", intervals())
    with pytest.raises(SchemaError, match="does not say how long chromosomes are"):
        xl.open_track(text, 100)
    for size in (0, "100", 2.5):
        with pytest.raises(SchemaError, match="neither a contact map nor a length"):
            xl.open_track(text, size)
    renamed = bins(100, {f"chr{c}": n for c, n in LENGTHS.items()})
    with pytest.raises(SchemaError, match="'chrc1' may be its 'c1'"):
        xl.open_track(text, renamed)
    with pytest.raises(SchemaError, match="needs .*'start1'"):
        xl.open_track(text, bins(100).drop_vars("start1"))
