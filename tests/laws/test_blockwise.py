"""L12: a transform of batches equals the same expression on the whole array, labels and dtypes too."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl
from tests.doubles import dense, to_csr
from xloader import transforms as tf
from xloader.contract import SampleRandom

N_BINS = 48


def contacts(seed):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.poisson(2, (N_BINS, N_BINS)))
    weight = rng.lognormal(0, 0.3, N_BINS)
    weight[rng.random(N_BINS) < 0.1] = np.nan
    divisor = np.where(rng.random(N_BINS) < 0.1, 0.0, weight)
    coords = {
        f"{name}{side}": (f"bin{side}", values, attrs)
        for side in "12"
        for name, values, attrs in (
            ("chrom", np.full(N_BINS, "c", object), {}),
            ("bin", np.arange(N_BINS), {}),
            ("start", np.arange(N_BINS) * 10, {}),
            ("weight", weight, {"divisive": False}),
            ("KR", divisor, {"divisive": True}),
        )
    }
    count = (upper + np.triu(upper, 1).T).astype(np.int32)
    return xr.Dataset({"count": (("bin1", "bin2"), count, {"unit": "contacts"})}, coords)


def cells(seed, *, sparse=False):
    rng = np.random.default_rng(seed)
    x = (rng.random((41, 12)) < 0.4) * rng.integers(1, 9, (41, 12)).astype(np.float32)
    x[rng.random(41) < 0.2] = 0
    coords = {
        "cell": [f"c{i}" for i in range(41)],
        "gene": [f"g{i}" for i in range(12)],
        "depth": ("cell", rng.integers(0, 900, 41)),
    }
    return xr.Dataset({"X": (("cell", "gene"), to_csr(x) if sparse else x)}, coords)


def stats(weight=""):
    """Return figures of the training view, which may be any numbers here."""
    rng = np.random.default_rng(0)
    table = {
        k: (("chrom", "distance"), rng.uniform(0.2, 3, (2, N_BINS))) for k in ("expected", "std")
    }
    return xr.Dataset(
        {**table, "percentile": ("quantile", [1.0, 4.0])},
        {"chrom": ["b", "c"], "distance": np.arange(N_BINS), "quantile": [0.1, 0.9]},
        {"variable": "count", "weight": weight},
    )


CONTACT_TRANSFORMS = {
    "log1p": tf.log1p("count"),
    "clip": tf.clip(1, 4, "count"),
    "balance": tf.balance(),
    "divisive": tf.balance("KR"),
    "balanced and filled": tf.compose(tf.balance(), tf.log1p("count"), tf.fill(0, "count")),
    "clip by quantile": tf.clip(0.1, 0.9, stats=stats()),
    "scale": tf.scale(0.1, 0.9, stats=stats()),
    "observed_over_expected": tf.observed_over_expected(stats()),
    "log of balanced o/e": tf.compose(
        tf.balance(), tf.observed_over_expected(stats("weight"), pseudocount=0.1, log=True)
    ),
    "zscore": tf.zscore(stats()),
    "mask_diagonals": tf.mask_diagonals(2, "count"),
    "diagonals of zeros": tf.mask_diagonals(3, "count", value=0),
}


def gene_stats():
    """Return figures of the training view, in another order and of more genes."""
    rng = np.random.default_rng(1)
    figures = {k: ("gene", rng.uniform(0.2, 3, 15)) for k in ("mean", "std")}
    names = [f"g{i}" for i in rng.permutation(15)]
    return xr.Dataset(figures, {"gene": names}, {"variable": "X"})


CELL_TRANSFORMS = {
    "normalize_total": tf.normalize_total(100),
    "normalize_total of given totals": tf.normalize_total(100, total="depth"),
    "standardise": tf.standardise(gene_stats(), max_value=1.5),
    "standardise, not centred": tf.standardise(gene_stats(), zero_center=False, max_value=2),
    "binarise": tf.binarise("X", threshold=1),
    "panel, then standardise": tf.compose(
        tf.select(gene=["g7", "g2", "g3"]), tf.log1p("X"), tf.standardise(gene_stats())
    ),
    "normalised and logged": tf.compose(tf.normalize_total(), tf.log1p("X")),
    "select": tf.select(gene=["g7", "g2", "g3"]),
    "clip": tf.clip(None, 3, "X"),
    "user's own": lambda ds: ds.assign(X=np.sqrt(ds.X), total=ds.X.sum("gene")),
}


@pytest.mark.parametrize("name", CONTACT_TRANSFORMS)
@given(
    seed=st.integers(0, 99),
    size=st.integers(1, N_BINS),
    stride=st.integers(1, 20),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
)
def test_contacts__by_block_as_on_the_whole(name, seed, size, stride, batch_size, shuffle):
    ds, transform = contacts(seed), CONTACT_TRANSFORMS[name]
    whole = transform(ds)
    loader = xl.Loader(
        ds,
        windows=xl.windows.grid(size=size, stride=stride, max_distance=20),
        batch_size=batch_size,
        shuffle=shuffle,
        transform=transform,
    )
    batch = loader[0]
    assert batch["count"].dtype == whole["count"].dtype
    assert batch["count"].attrs == whole["count"].attrs
    for k, (i, j) in enumerate(loader.plan.windows.starts_of(batch.sample_id.values).tolist()):
        expected = whole.isel(bin1=slice(i, i + size), bin2=slice(j, j + size))
        np.testing.assert_array_equal(batch["count"].values[k], expected["count"].values)
        for label in ("start1", "weight2"):
            np.testing.assert_array_equal(batch[label].values[k], expected[label].values)


@pytest.mark.parametrize("name", CELL_TRANSFORMS)
@given(
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 50),
    shuffle=st.booleans(),
    sparse=st.booleans(),
)
def test_cells__by_block_as_on_the_whole(name, seed, batch_size, shuffle, sparse):
    ds, transform = cells(seed, sparse=sparse), CELL_TRANSFORMS[name]
    whole = transform(cells(seed))
    loader = xl.Loader(ds, batch_size=batch_size, shuffle=shuffle, transform=transform)
    for batch in loader:
        served = dense(batch).drop_vars("sample_id")
        expected = whole.isel(cell=batch.sample_id.values)
        assert set(served.variables) == set(expected.variables)
        xr.testing.assert_allclose(served, expected, rtol=1e-6)
        assert served.X.dtype == expected.X.dtype


@pytest.mark.parametrize("expressed", [False, True], ids=["all", "expressed"])
@pytest.mark.parametrize("value", [0, -1])
@given(
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 50),
    sparse=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_masked_genes__by_block_as_on_the_whole(expressed, value, seed, batch_size, sparse, epoch):
    transform = tf.mask_genes(0.4, value=value, expressed=expressed)
    rng = SampleRandom(seed, epoch=epoch, sample_id=np.arange(41))
    whole = transform(cells(seed), rng=rng)
    ds = cells(seed, sparse=sparse)
    loader = xl.Loader(ds, batch_size=batch_size, shuffle=True, seed=seed, transform=transform)
    for step in range(len(loader)):
        served = dense(loader.batch(epoch, step)).drop_vars("sample_id")
        expected = whole.isel(cell=loader.plan.batch(epoch, step).ids)
        xr.testing.assert_identical(served, expected)


@given(
    seed=st.integers(0, 99),
    factor=st.sampled_from([1, 2, 3, 4]),
    size=st.integers(1, 4),
    stride=st.integers(1, 3),
    how=st.sampled_from(["sum", "mean"]),
)
def test_coarsen__by_block_as_on_the_whole(seed, factor, size, stride, how):
    ds, transform = contacts(seed), tf.compose(tf.balance(), tf.coarsen(factor, how))
    whole = transform(ds)
    shape = xl.windows.grid(size=size * factor, stride=stride * factor)
    loader = xl.Loader(
        ds, windows=shape, batch_size=5, shuffle=True, remainder="drop", transform=transform
    )
    batch = loader[0]
    for k, (i, j) in enumerate(loader.plan.windows.starts_of(batch.sample_id.values).tolist()):
        places = {d: slice(x // factor, x // factor + size) for d, x in (("bin1", i), ("bin2", j))}
        expected = whole.isel(places)
        assert set(expected.variables) == set(batch.variables) - {"sample_id"}
        got = batch.isel(sample=k).drop_vars("sample_id")
        xr.testing.assert_allclose(got, expected, rtol=1e-6)
        assert got["count"].dtype == expected["count"].dtype
        assert got["count"].attrs == expected["count"].attrs


@given(seed=st.integers(0, 99), size=st.integers(9, 30), stride=st.integers(1, 20))
def test_smooth__by_block_as_on_the_whole_away_from_the_edges(seed, size, stride):
    ds, transform = contacts(seed), tf.compose(tf.balance(), tf.smooth(1, "count"))
    whole = transform(ds)["count"].values
    shape = xl.windows.grid(size=size, stride=stride)
    loader = xl.Loader(ds, windows=shape, batch_size=3, shuffle=True, transform=transform)
    batch = loader[0]
    for k, (i, j) in enumerate(loader.plan.windows.starts_of(batch.sample_id.values).tolist()):
        # a pixel sees four bins around it; where the map ends, so does the window
        a, b = (0 if x == 0 else 4 for x in (i, j))
        c, d = (size if x + size == N_BINS else size - 4 for x in (i, j))
        np.testing.assert_allclose(
            batch["count"].values[k, a:c, b:d], whole[i + a : i + c, j + b : j + d], rtol=1e-4
        )


WINDOW_TRANSFORMS = {
    "crop": tf.crop(2),
    "upper_triangle": tf.upper_triangle(1),
    "and back": tf.compose(tf.upper_triangle(2), tf.from_upper_triangle(2, "count")),
    "smooth": tf.compose(tf.balance(), tf.smooth(1.5, "count")),
    "interpolate": tf.compose(tf.balance(), tf.interpolate("count")),
    "adaptive_coarsegrain": tf.compose(tf.balance(into="balanced"), tf.adaptive_coarsegrain()),
    "thin": tf.thin(0.4),
    "flip": tf.flip(),
    "all kinds": tf.compose(
        tf.thin(0.6, into="low"), tf.flip(), tf.balance(), tf.thin(0.5, variable="low")
    ),
}


@pytest.mark.parametrize("name", WINDOW_TRANSFORMS)
@given(seed=st.integers(0, 99), batch_size=st.integers(2, 9), epoch=st.integers(0, 3))
def test_windows__are_transformed_each_by_itself(name, seed, batch_size, epoch):
    ds, transform = contacts(seed), WINDOW_TRANSFORMS[name]
    shape = {"windows": xl.windows.diagonal(size=12, stride=5), "transform": transform}
    one = xl.Loader(ds, batch_size=1, **shape)
    many = xl.Loader(ds, batch_size=batch_size, shuffle=True, **shape)
    batch = many.batch(epoch, 0)
    for k, i in enumerate(batch.sample_id.values.tolist()):
        xr.testing.assert_identical(batch.isel(sample=[k]), one.batch(epoch, i))


@given(seed=st.integers(0, 99), batch_size=st.integers(1, 20), epoch=st.integers(0, 3))
def test_thin__draws_the_same_whatever_the_batch(seed, batch_size, epoch):
    ds = contacts(seed)
    shape = {"windows": xl.windows.diagonal(size=12, stride=5), "transform": tf.thin(0.4)}
    one = xl.Loader(ds, batch_size=1, **shape)
    many = xl.Loader(ds, batch_size=batch_size, shuffle=True, **shape)
    for step in range(len(many)):
        batch = many.batch(epoch, step)
        for k, i in enumerate(batch.sample_id.values.tolist()):
            alone = one.batch(epoch, i)
            np.testing.assert_array_equal(batch["count"].values[k], alone["count"].values[0])
            window = batch["count"].values[k]
            np.testing.assert_array_equal(window, window.T)
            first = int(batch.start1.values[k, 0]) // 10
            full = ds["count"].values[first : first + 12, first : first + 12]
            assert (window <= full).all()
