"""L12: a transform of batches equals the same expression on the whole array, labels and dtypes too."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl
from tests.doubles import dense
from xloader import transforms as tf

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


def cells(seed):
    rng = np.random.default_rng(seed)
    x = (rng.random((41, 12)) < 0.4) * rng.integers(1, 9, (41, 12)).astype(np.float32)
    x[rng.random(41) < 0.2] = 0
    coords = {"cell": [f"c{i}" for i in range(41)], "gene": [f"g{i}" for i in range(12)]}
    return xr.Dataset({"X": (("cell", "gene"), x)}, coords)


CONTACT_TRANSFORMS = {
    "log1p": tf.log1p("count"),
    "clip": tf.clip(1, 4, "count"),
    "balance": tf.balance(),
    "divisive": tf.balance("KR"),
    "balanced and filled": tf.compose(tf.balance(), tf.log1p("count"), tf.fill(0, "count")),
}
CELL_TRANSFORMS = {
    "normalize_total": tf.normalize_total(100),
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
@given(seed=st.integers(0, 99), batch_size=st.integers(1, 50), shuffle=st.booleans())
def test_cells__by_block_as_on_the_whole(name, seed, batch_size, shuffle):
    ds, transform = cells(seed), CELL_TRANSFORMS[name]
    whole = transform(ds)
    loader = xl.Loader(ds, batch_size=batch_size, shuffle=shuffle, transform=transform)
    for batch in loader:
        served = dense(batch).drop_vars("sample_id")
        expected = whole.isel(cell=batch.sample_id.values)
        assert set(served.variables) == set(expected.variables)
        xr.testing.assert_allclose(served, expected, rtol=1e-6)
        assert served.X.dtype == expected.X.dtype


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
