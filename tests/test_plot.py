"""Pictures: the numbers behind them, at the places where axes say they are."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import numpy.testing as npt
import pytest
import xarray as xr

import xloader as xl
from tests.doubles import contact_map, contacts
from xloader.errors import SchemaError

mpl.use("agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(ax):
    """Return the values of an image, NaN where it is grey, 0 where it is white."""
    (image,) = ax.images
    values = np.ma.filled(image.get_array().astype(float), np.nan)
    return np.where(values < image.norm.vmin, 0, values)


def names():
    return contacts().chrom1.values


def test_contacts__a_chromosome_is_drawn_as_stored():
    chrom = names()[0]
    inside = names() == chrom
    ax = contacts().xl.plot_contacts(chrom)
    npt.assert_array_equal(drawn(ax), contact_map()[np.ix_(inside, inside)])
    assert ax.get_xlabel() == ax.get_ylabel() == f"{chrom} (Mb)"
    ds = contacts()
    megabases = np.append(ds.start1.values[inside], ds.end1.values[inside][-1]) / 1e6
    for at, text in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True):
        assert np.interp(at, np.arange(len(megabases)), megabases) == pytest.approx(
            float(text.get_text()), abs=1e-9
        )
    assert len(ax.get_xticks()) > 2


def test_contacts__two_regions_and_no_logarithm():
    ds = contacts()
    first, second = dict.fromkeys(names().tolist()), names()[-1]
    ax = ds.xl.plot_contacts(next(iter(first)), second, log=False)
    block = contact_map()[np.ix_(names() == next(iter(first)), names() == second)]
    (image,) = ax.images
    npt.assert_array_equal(np.ma.filled(image.get_array(), -1), block)
    assert ax.get_xlabel() == f"{second} (Mb)"


def test_contacts__a_part_takes_the_bins_that_it_touches():
    ds = contacts()
    start, end = (int(ds[k].values[4 if k == "start1" else 9]) for k in ("start1", "end1"))
    ax = ds.xl.plot_contacts(f"{names()[4]}:{start:,}-{end:,}")
    npt.assert_array_equal(drawn(ax), contact_map()[4:10, 4:10])


def test_contacts__balanced_and_masked():
    ds = contacts()
    (vector,) = [str(c)[:-1] for c in ds.coords if "divisive" in ds[c].attrs and str(c)[-1] == "1"][
        :1
    ]
    chrom = names()[0]
    inside = names() == chrom
    w = ds[f"{vector}1"].values[inside].astype(float)
    w = 1 / w if ds[f"{vector}1"].attrs["divisive"] else w
    w[~np.isfinite(w)] = np.nan
    ax = ds.xl.plot_contacts(chrom, balance=vector)
    expected = contact_map()[np.ix_(inside, inside)] * w[:, None] * w[None]
    npt.assert_allclose(drawn(ax), expected, rtol=1e-6)


def test_contacts__many_bins_are_added_up():
    ax = contacts().xl.plot_contacts(max_bins=10)
    n = len(names())
    factor = -(-n // 10)
    padded = np.zeros((-(-n // factor) * factor,) * 2)
    padded[:n, :n] = contact_map()
    summed = padded.reshape(len(padded) // factor, factor, -1, factor).sum(axis=(1, 3))
    npt.assert_array_equal(drawn(ax), summed)
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels == list(dict.fromkeys(names().tolist()))


def test_triangle__has_the_diagonal_below():
    chrom = names()[0]
    inside = names() == chrom
    ax = contacts().xl.plot_contacts(chrom, triangle=True)
    (mesh,) = ax.collections
    corners = mesh.get_coordinates()
    npt.assert_array_equal(corners[0, 0], [0, 0])
    n = int(inside.sum())
    npt.assert_array_equal(corners[0, n], [n / 2, n])
    npt.assert_array_equal(corners[n, n], [n, 0])
    values = np.ma.filled(mesh.get_array().astype(float), np.nan).reshape(n, n)
    stored = contact_map()[np.ix_(inside, inside)]
    npt.assert_array_equal(np.where(values < mesh.norm.vmin, 0, values), stored)
    assert ax.get_ylim() == (0, n)


def test_batch__shows_windows_with_their_regions():
    loader = xl.Loader(contacts(), windows=xl.windows.diagonal(size=12, stride=7), batch_size=5)
    batch = loader[1]
    figure = batch.xl.plot_batch(n=3)
    images = [ax.images[0] for ax in figure.axes if ax.images][:3]
    for k, image in enumerate(images):
        npt.assert_array_equal(np.ma.filled(image.get_array(), -1), batch["count"].values[k])
        chrom, low, high = (batch[c].values[k] for c in ("chrom1", "start1", "end1"))
        title = f"{chrom[0]}:{low[0] / 1e6:g}-{high[-1] / 1e6:g} Mb"
        assert image.axes.get_title() == title
    with pytest.raises(SchemaError, match=r"'x' is no batch of windows .* there are \['count'\]"):
        batch.xl.plot_batch(variable="x")


def test_windows__are_counted_on_each_bin():
    ds = contacts()
    loader = xl.Loader(ds, windows=xl.windows.diagonal(size=12, stride=5), batch_size=5)
    ax = loader.plot_windows(name="train", validation=loader)
    depth = np.zeros(len(names()), int)
    for start in loader.plan.windows.starts_of(np.arange(len(loader.plan.windows)))[:, 0]:
        depth[start : start + 12] += 1
    lines = list(dict.fromkeys(names().tolist()))
    assert [t.get_text() for t in ax.get_yticklabels()] == lines
    shapes = [c for c in ax.collections if c.get_paths() and len(c.get_paths()[0].vertices) > 3]
    for k, chrom in enumerate(lines):
        heights = k - shapes[k].get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx(0.8 * depth[names() == chrom].max() / depth.max())
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == [f"{s}: {len(loader.plan.windows)} windows" for s in ("train", "validation")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "nowhere"}, "no chromosome 'nowhere'"),
        ({"variable": "x"}, r"variable 'x' is no map \(bin1, bin2\); there are \['count'\]"),
        ({"balance": "no"}, "no balancing vector 'no' here"),
        ({"triangle": True, "region": "a", "region2": "b"}, "a triangle has one region"),
    ],
    ids=["region", "variable", "vector", "triangle"],
)
def test_bad_requests__are_told(options, message):
    with pytest.raises(SchemaError, match=message):
        contacts().xl.plot_contacts(**options)


def test_windows_of_cells__lie_on_no_chromosome():
    ds = xr.Dataset({"X": (("cell", "gene"), np.zeros((4, 2)))})
    with pytest.raises(SchemaError, match="lie on no chromosome"):
        xl.Loader(ds, batch_size=2).plot_windows()


@pytest.mark.parametrize(
    "code",
    [
        "import xarray as xr, xloader; xr.Dataset().xl",
        "import xloader; xloader.errors; import xarray as xr; xr.Dataset().xl",
    ],
    ids=["after xarray", "before xarray"],
)
def test_accessor__is_there_in_any_order_of_imports(code):
    check = "; import sys; assert 'matplotlib' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code + check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
