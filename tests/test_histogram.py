"""Percentiles of streams are numpy's: exactly for whole numbers, within the stated error for others."""

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xloader.histogram import Exact, Rounded

QUANTILES = [0, 0.001, 0.1, 0.5, 2 / 3, 0.99, 1]
WHOLE = st.one_of(st.integers(-3, 9), st.integers(65_530, 65_540), st.integers(0, 2**50))
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32, allow_subnormal=False)


@given(st.lists(st.lists(WHOLE, max_size=20), min_size=1, max_size=4), st.integers(0, 5))
def test_exact__equals_numpy(parts, n_zeros):
    counts = Exact()
    for part in parts:
        counts.add(np.array(part, np.float64))
    counts.add(np.zeros(1), n_zeros)
    values = np.concatenate([*map(np.float64, parts), np.zeros(n_zeros)])
    if len(values) == 0:
        assert np.isnan(counts.quantiles(QUANTILES)).all()
        return
    npt.assert_allclose(counts.quantiles(QUANTILES), np.quantile(values, QUANTILES), rtol=1e-12)
    numbers, times = np.unique(values, return_counts=True)
    npt.assert_array_equal(counts.counted()[0], numbers)
    npt.assert_array_equal(counts.counted()[1], times)


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_rounded__values_are_within_the_stated_error(values):
    counts = Rounded()
    counts.add(np.array(values))
    order = np.sort(np.float64(values))
    places = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
    met = counts.quantiles(np.round(places * (len(values) - 1)) / max(1, len(values) - 1))
    npt.assert_allclose(met, order, rtol=counts.error * 1.001)
    assert counts.error == 1 / 2048


def test_rounded__smooth_samples_have_the_percentiles_of_numpy():
    values = np.random.default_rng(0).lognormal(-6, 3, 200_000)
    counts = Rounded()
    for part in np.array_split(values, 7):
        counts.add(part)
    npt.assert_allclose(
        counts.quantiles(QUANTILES), np.quantile(values, QUANTILES), rtol=counts.error
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_rounded__zero_is_exact_and_infinity_stays(sign):
    counts = Rounded()
    counts.add(np.array([0.0, -0.0, sign * np.inf, sign * 1e300]))
    assert sorted(np.unique(counts.counted()[0]) * sign) == [0.0, np.inf]
    assert counts.counted()[1].tolist() == [2, 2]
