"""Windows in the middle of regions equal a loop over the table, and no region is lost unsaid."""

import gzip
import re

import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl
from tests.doubles import BIN, Tiles, assert_equals_naive, contact_map, contacts, contacts_in
from xloader.contact_bins import contact_bins
from xloader.errors import PlanError, ReadError, SchemaError
from xloader.regions import read_table
from xloader.schema import contacts_dataset

LENGTHS = {"chr1": 61, "chr2": 40}
ENDS = {"chr1": 60_400, "chr2": 40_000}  # the last bin of chr1 is short
FIRST = {"chr1": 0, "chr2": 61}


def short_ended(ds):
    """Give chromosome 1 a last bin that is shorter than others, and the file its chromosomes."""
    for side in "12":
        end = ds[f"end{side}"].values.copy()
        end[60] = ENDS["chr1"]
        ds = ds.assign_coords({f"end{side}": (f"bin{side}", end, ds[f"end{side}"].attrs)})
    ds.attrs.update(chroms=list(ENDS), chrom_lengths=list(ENDS.values()))
    return ds


@pytest.fixture(scope="module")
def whole():
    return short_ended(contacts()).load()


@st.composite
def tables(draw, pairs=False):
    """Draw regions within chromosomes, as columns of a data frame."""
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        row = []
        for _ in range(1 + pairs):
            chrom = draw(st.sampled_from(list(ENDS)))
            a = draw(st.integers(0, ENDS[chrom]))
            b = draw(st.integers(a, min(ENDS[chrom], a + 9_000)))
            row += [chrom, a, b]
        rows.append(row)
    names = ["chrom", "start", "end"]
    return pd.DataFrame(rows, columns=[f"{n}{s}" for s in "12" for n in names] if pairs else names)


def naive_start(chrom, start, end, size):
    """Try every window, also those beyond the ends, and return the bin in which the best one starts."""
    middle = (start + end) / 2
    tries = range(-size, LENGTHS[chrom] + 1)
    if size % 2:  # the middle bin holds it; the last one also its own end
        return next(
            k for k in tries if min(int(middle // BIN), LENGTHS[chrom] - 1) == k + size // 2
        )
    edge = [min((k + size // 2) * BIN, ENDS[chrom]) for k in tries]
    return min(tries, key=lambda k: abs(edge[k + size] - middle))


@pytest.mark.parametrize("pairs", [False, True])
@given(data=st.data(), size=st.integers(1, 12), remainder=st.sampled_from(["keep", "drop", "pad"]))
def test_regions__windows_are_centred_on_each_region(whole, pairs, data, size, remainder):
    frame = data.draw(tables(pairs))
    asked = [
        [(row[k], naive_start(*row[k : k + 3], size)) for k in (0, 3 * pairs)]
        for row in frame.itertuples(index=False)
    ]
    inward = [[(c, min(max(s, 0), LENGTHS[c] - size)) for c, s in row] for row in asked]
    over = [a != b for a, b in zip(asked, inward, strict=True)]
    shape = xl.windows.regions(frame, size=size)
    if remainder == "drop" and all(over):
        with pytest.raises(PlanError, match=f"{len(over)} over the end of their chromosome"):
            shape.draw(contact_bins(whole), remainder=remainder)
        return
    drawn = shape.draw(contact_bins(whole), remainder=remainder)
    kept = [
        [FIRST[c] + s for c, s in row]
        for row, out in zip(inward, over, strict=True)
        if remainder != "drop" or not out
    ]
    assert drawn.starts.tolist() == kept
    assert drawn.size == (size, size)
    assert drawn.n_moved == (sum(over) if remainder == "keep" else 0)
    assert drawn.n_padded == (sum(over) if remainder == "pad" else 0)
    left = sum(over) if remainder == "drop" else 0
    assert drawn.left_out == ({"over the end of their chromosome": left} if left else {})
    assert len(drawn) + left == len(frame)
    seen = {c for row, out in zip(asked, over, strict=True) for c, _ in row
            if remainder != "drop" or not out}  # fmt: skip
    assert drawn.empty == tuple(c for c in LENGTHS if c not in seen)
    if drawn.beyond is not None:
        expected = [[a[1] - b[1] for a, b in zip(x, y, strict=True)] for x, y in zip(asked, inward, strict=True)]  # fmt: skip
        assert drawn.beyond.tolist() == expected


def padded_oracle(whole, asked, size):
    """Cut a window out of what each chromosome would be with room around it."""
    room = 20
    parts = {}
    for side, (chrom, start) in zip("12", asked, strict=True):
        at = np.arange(start, start + size)
        inside = (at >= 0) & (at < LENGTHS[chrom])
        parts[side] = chrom, at, inside, FIRST[chrom] + np.where(inside, at, 0)
    out = {}
    for side, (chrom, at, inside, rows) in parts.items():
        out[f"chrom{side}"] = np.full(size, chrom)
        out[f"bin{side}"] = np.where(inside, rows, -1)
        out[f"start{side}"] = at * BIN
        ends = whole[f"end{side}"].values[rows]
        out[f"end{side}"] = np.where(inside, ends, (at + 1) * BIN)
        for name in ("weight", "KR"):
            out[f"{name}{side}"] = np.where(inside, whole[f"{name}{side}"].values[rows], np.nan)
    assert room > size
    there = np.ix_(parts["1"][2], parts["2"][2])
    counts = np.zeros((size, size), whole["count"].dtype)
    counts[there] = whole["count"].values[np.ix_(parts["1"][3], parts["2"][3])][there]
    return {**out, "count": counts}


@given(
    frame=tables(pairs=True),
    size=st.integers(1, 12),
    epoch=st.integers(0, 1),
    form=st.sampled_from(["memory", "memory", "tiles", "dask"]),
)
def test_pad__bins_beyond_the_end_are_told_by_every_label(whole, frame, size, epoch, form):
    ds = {"memory": whole, "tiles": short_ended(contacts()), "dask": whole.chunk(bin1=50)}[form]
    shape = xl.windows.regions(frame, size=size)
    loader = xl.Loader(ds, windows=shape, batch_size=4, remainder="pad", shuffle=True)
    for step in range(len(loader)):
        batch = loader.batch(epoch, step)
        for k, i in enumerate(batch.sample_id.values.tolist()):
            row = frame.iloc[i].tolist()
            asked = [(row[k], naive_start(*row[k : k + 3], size)) for k in (0, 3)]
            for name, expected in padded_oracle(whole, asked, size).items():
                got = batch[name].values[k]
                assert got.dtype == whole[name].dtype, name
                npt.assert_array_equal(got, expected, err_msg=name)


@pytest.mark.parametrize("form", ["store", "cool", "numpy"])
def test_pad__balanced_counts_are_nan_beyond_the_end_also_where_readers_balance(form, tmp_path):
    ds = contacts_in(form, tmp_path)
    frame = pd.DataFrame({"chrom": ["chr1", "chr2"], "start": [0, 39_000], "end": [3_000, 40_000]})
    balance = xl.transforms.balance()
    shape, last = xl.windows.regions(frame, size=8), {"batch_size": 2, "remainder": "pad"}
    batch = xl.Loader(ds, windows=shape, transform=balance, **last)[0]
    whole = balance(ds.load())["count"].values
    assert batch.start1.values[:, 0].tolist() == [-3_000, 35_000]  # middles in the middle of a bin
    npt.assert_allclose(batch["count"].values[0, 3:, 3:], whole[:5, :5], rtol=1e-6)
    npt.assert_allclose(batch["count"].values[1, :5, :5], whole[96:, 96:], rtol=1e-6)
    assert np.isnan(batch["count"].values[0, :3]).all()
    assert np.isnan(batch["count"].values[1, :, 5:]).all()


def test_pad__keeps_the_type_of_everything_else():
    n = sum(LENGTHS.values())
    ds = contacts().load().assign_coords(
        name1=("bin1", np.array(["x"] * n)),
        thing1=("bin1", np.array(["x"] * n, object)),
        date1=("bin1", np.full(n, "2020-01-01", "datetime64[s]")),
        flag1=("bin1", np.ones(n, bool)),
        gc1=("bin1", np.ones(n, "float32")),
        depth1=("bin1", np.ones(n, "uint16")),
    )  # fmt: skip
    frame = pd.DataFrame({"chrom": ["chr1"], "start": [0], "end": [BIN]})
    loader = xl.Loader(ds, windows=xl.windows.regions(frame, size=3), batch_size=1, remainder="pad")
    first = loader[0].isel(sample=0, bin1=0)
    assert (first.name1, first.thing1.item(), first.flag1, first.depth1) == ("", None, False, 0)
    assert np.isnat(first.date1.values)
    assert np.isnan(first.gc1)
    for name in ("name1", "thing1", "date1", "flag1", "gc1", "depth1"):
        assert loader[0][name].dtype == ds[name].dtype
    twice = loader.samples([0, 0])
    npt.assert_array_equal(twice["count"].values, np.repeat(loader[0]["count"].values, 2, axis=0))


def variable_bins():
    """Return a map whose bins have no single size."""
    edges = np.cumsum([0, 3, 1, 4, 1, 5, 9, 2, 6, 5, 3]) * 100
    chrom = np.repeat(["a", "b"], [6, 4])
    start, end = edges[:-1].copy(), edges[1:].copy()
    start[6:] -= edges[6]
    end[6:] -= edges[6]
    return contacts_dataset(
        Tiles(contact_map(10)), chrom=chrom, start=start, end=end, weights={},
        attrs={"binsize": None, "assembly": "test"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("start", "end", "size", "first"),
    [(0, 0, 1, 0), (310, 330, 1, 1), (800, 900, 3, 2), (350, 450, 2, 1), (500, 600, 2, 1),
     (700, 780, 2, 2), (2_290, 2_300, 1, 5)],
)  # fmt: skip
def test_regions__of_variable_bins_are_found_by_bisection(start, end, size, first):
    frame = pd.DataFrame({"chrom": ["a"], "start": [start], "end": [end]})
    bins = contact_bins(variable_bins())
    shape = xl.windows.regions(frame, size=size)
    assert shape.draw(bins, remainder="keep").starts.tolist() == [[first] * 2]
    with pytest.raises(PlanError, match="variable bins cannot be padded"):
        shape.draw(bins, remainder="pad")
    with pytest.raises(PlanError, match="size of regions is no number of bins; give `size`"):
        xl.windows.regions(frame).draw(bins, remainder="keep")


def test_regions__have_their_own_size_if_it_is_one(whole):
    bins = contact_bins(whole)
    frame = pd.DataFrame(
        {"chrom": ["chr1", "chr2"], "start": [5_000, 7_000], "end": [9_000, 11_000]}
    )
    drawn = xl.windows.regions(frame).draw(bins, remainder="keep")
    assert (drawn.size, drawn.starts[:, 0].tolist()) == ((4, 4), [5, 61 + 7])
    wide = xl.windows.regions(frame, size=("6kb", 2)).draw(bins, remainder="keep")
    assert (wide.size, wide.starts.tolist()) == ((6, 2), [[4, 6], [67, 69]])
    with pytest.raises(PlanError, match=r"4500bp' is no multiple of the bin size, 1000 bp"):
        xl.windows.regions(frame.assign(end=frame.start + 4_500)).draw(bins, remainder="keep")
    with pytest.raises(PlanError, match=r"have 2 sizes, among them 4,000 bp \(1\), 5,000 bp \(1\)"):
        xl.windows.regions(frame.assign(end=[9_000, 12_000])).draw(bins, remainder="keep")
    with pytest.raises(PlanError, match="windows of 0 x 0 bins are impossible"):
        xl.windows.regions(frame, size=0).draw(bins, remainder="keep")


# --- regions that have no place


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("1", 0, 9), r"'1' may be 'chr1' here"),
        (("chrX", 0, 9), r"there is no \['chrX'\], only \['chr1', 'chr2'\]"),
        (("chr1", 60_399, 60_401), r"bins end on chr1 at 60,400 bp: is the table of another assembly than 'test'\?"),
        (("chr1", -1, 5), r"row 0, chr1:-1-5"),
    ],
    ids=["alike", "unknown", "beyond", "before"],
)  # fmt: skip
def test_outside__is_refused_with_its_list_or_counted(whole, row, message):
    frame = pd.DataFrame([row, ("chr2", 9_000, 9_500)], columns=["chrom", "start", "end"])
    shape, bins = xl.windows.regions(frame, size=3), contact_bins(whole)
    for remainder in ("keep", "pad"):
        with pytest.raises(PlanError, match=f"1 of 2 regions of the data frame lie outside.*{message}|{message}"):  # fmt: skip
            shape.draw(bins, remainder=remainder)
    drawn = shape.draw(bins, remainder="drop")
    reason = "outside their chromosome" if row[0] == "chr1" else "of unknown chromosomes"
    assert (len(drawn), drawn.left_out) == (1, {reason: 1})


def test_outside__of_the_selection_is_counted_only(whole):
    frame = pd.DataFrame({"chrom": ["chr1", "chr2", "chr1"], "start": [5_000, 9_000, 50_000]})
    frame["end"] = frame.start + 400
    part = whole.isel(bin1=slice(3, 40), bin2=slice(3, 40))
    loader = xl.Loader(part, windows=xl.windows.regions(frame, size=5), batch_size=1)
    assert loader.plan.windows.starts.tolist() == [[0, 0]]
    assert loader.plan.windows.left_out == {"in bins that are not selected": 2}
    assert "windows: 2 in bins that are not selected" in repr(loader)
    assert loader.plan.windows.empty == ()  # chr2 is not in the selection, so that it lacks nothing
    assert "without a window (" not in repr(loader)
    short = whole.isel(bin1=slice(57, 80), bin2=slice(57, 80))
    with pytest.raises(PlanError, match=r"is longer than 'chr1' \(4\)"):
        xl.Loader(short, windows=xl.windows.regions(frame[:1].assign(start=58_000, end=58_500), size=5), batch_size=1)  # fmt: skip
    dropped = xl.windows.regions(frame.assign(chrom=["chr1", "chr2", "chr2"], start=[58_000, 9_000, 9_000], end=[58_500, 9_500, 9_500]), size=5)  # fmt: skip
    drawn = dropped.draw(contact_bins(short), remainder="drop")
    assert (drawn.skipped, drawn.left_out) == (("chr1",), {"in regions shorter than a window": 1})


def test_outside__lists_the_first_few(whole):
    frame = pd.DataFrame({"chrom": "chr9", "start": np.arange(30), "end": 99})
    with pytest.raises(PlanError, match=r"30 of 30 regions") as caught:
        xl.windows.regions(frame, size=3).draw(contact_bins(whole), remainder="keep")
    assert len(re.findall("row ", str(caught.value))) == 5


# --- files


BED = """track name="peaks" description="some"
browser position chr1:1-1000
# a comment

chr1\t1000\t5000\tpeak one\t13\t+
chr2\t0\t4000\tpeak2\t0\t.
"""
BEDPE = """#chr1\tx1\tx2\tchr2\ty1\ty2\tname
chr1\t1000\t5000\tchr2\t7000\t11000\tloop 1
chr2\t0\t4000\tchr2\t20000\t24000\tloop 2
"""


def written(path, text, compress):
    if not compress:
        path.write_text(text)
        return path
    path = path.with_name(f"{path.name}.gz")
    path.write_bytes(gzip.compress(text.encode()))
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
def test_read_table__bed_and_bedpe_equal_the_data_frame(tmp_path, compress, newline, whole):
    bed = pd.DataFrame({"chrom": ["chr1", "chr2"], "start": [1_000, 0], "end": [5_000, 4_000]})
    pairs = bed.rename(columns=lambda c: f"{c}1").assign(
        chrom2="chr2", start2=[7_000, 20_000], end2=[11_000, 24_000]
    )
    for name, text, frame in (("a.bed", BED, bed), ("a.bedpe", BEDPE, pairs)):
        path = written(tmp_path / name, text.replace("\n", newline), compress)
        found = xl.windows.regions(path, size=4).draw(contact_bins(whole), remainder="keep")
        expected = xl.windows.regions(frame, size=4).draw(contact_bins(whole), remainder="keep")
        npt.assert_array_equal(found.starts, expected.starts)
        assert found.starts.tolist()[0] == [1, 1 if name == "a.bed" else 68]
    assert read_table(path).row(1) == "line 3, chr2:0-4,000 x chr2:20,000-24,000"


@pytest.mark.parametrize(
    ("text", "sides", "n"),
    [
        ("chr1 0 10\nchr1 5 6\n", 1, 2),
        ("chrom\tstart\tend\nchr1\t0\t10\n", 1, 1),
        ("chr1\t0\t10\t3.5\n", 1, 1),
        ("chr1\t0\t10\tn\t7\t+\t0\t10\t0\t1\t10,\t0,\n", 1, 1),
        ("chr1\tx1\tx2\tchr2\ty1\ty2\tcolour\nchr1\t0\t9\tchr2\t5\t6\t0,0,255\n", 2, 1),
    ],
    ids=["spaces", "header", "bedGraph", "BED12", "loops"],
)
def test_read_table__takes_the_kinds_there_are(tmp_path, text, sides, n):
    (tmp_path / "a.txt").write_text(text)
    table = read_table(tmp_path / "a.txt")
    assert (len(table.sides), len(table)) == (sides, n)
    assert (table.sides[0].start[0], table.sides[0].chrom[0]) == (0, "chr1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#x\nchr1\t0\t10\nchr1\tten\t20\n", r"line 3 of '.*a\.bed' is no region.*'chr1', 'ten', '20'"),
        ("chr1\t0\n", "line 1 of .* is no region"),
        ("chr1\t5\t4\n", "line 1 of .*start <= end"),
        ("chr1\t0\t9\n\t\nchr1\t0.5\t4\n", r"line 3 .*\(1 such rows of 2\)"),
        ("# nothing\n", "holds no region"),
        ("", "holds no region"),
    ],
    ids=["text", "two columns", "reversed", "fraction", "comments", "empty"],
)  # fmt: skip
def test_read_table__names_file_and_line(tmp_path, text, message):
    (tmp_path / "a.bed").write_text(text)
    with pytest.raises(SchemaError, match=message):
        xl.windows.regions(tmp_path / "a.bed", size=4)


def test_read_table__refuses_what_is_no_table(tmp_path):
    with pytest.raises(ReadError, match=r"regions cannot be read from '.*none\.bed'"):
        xl.windows.regions(tmp_path / "none.bed")
    whole = gzip.compress(BED.encode() * 50)
    for damaged in (whole[: len(whole) // 2], whole[:30] + b"\0" * 40, BED.encode()):
        (tmp_path / "a.bed.gz").write_bytes(damaged)
        with pytest.raises(ReadError, match=r"cannot be read from '.*a\.bed\.gz'"):
            xl.windows.regions(tmp_path / "a.bed.gz")
    with pytest.raises(SchemaError, match="data frame, not .*chr1"):
        xl.windows.regions([("chr1", 0, 10)])
    with pytest.raises(SchemaError, match=r"lacks \['end'\]; it has \['chrom', 'start'\]"):
        xl.windows.regions(pd.DataFrame({"chrom": ["chr1"], "start": [0]}))
    frame = pd.DataFrame({"chrom": ["1", None], "start": 0, "end": 9}, index=["a", "b"])
    with pytest.raises(SchemaError, match="row 'b' of the data frame is no region"):
        xl.windows.regions(frame)


@given(frame=tables(pairs=True), size=st.integers(1, 12), batch_size=st.integers(1, 4))
def test_batches__of_regions_equal_plain_reads(whole, frame, size, batch_size):
    loader = xl.Loader(
        short_ended(contacts()), windows=xl.windows.regions(frame, size=size), batch_size=batch_size
    )
    assert_equals_naive(loader, whole, *loader)
    assert len(loader.plan.windows) == len(frame)
