"""Sparse rows against dense numpy, called directly and through xarray."""

import pickle
import warnings
from functools import partial

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xloader.csr import CSRArray, concatenate
from xloader.errors import PerformanceWarning, SchemaError

DTYPES = ["f4", "f8", "u1", "i4", "i8", "bool"]


def to_csr(dense, *, stored=None, backwards=False):
    """Store the places of a mask (default: what is not zero), columns in either order."""
    stored = dense != 0 if stored is None else stored
    step = -1 if backwards else 1
    columns = [np.flatnonzero(row)[::step] for row in stored]
    indptr = np.cumsum([0, *map(len, columns)])
    indices = np.concatenate([[], *columns]).astype("i4")
    data = dense[np.repeat(np.arange(len(dense)), np.diff(indptr)), indices]
    return CSRArray(data, indices, indptr, dense.shape)


@st.composite
def pairs(draw, *, min_side=0):
    """Draw a dense array and its sparse form, which may store zeros and unsorted columns."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=min_side, max_side=6))
    values = [0, 0, 0, 1, *{"b": [], "u": [2, 7], "i": [2, -3], "f": [-2.5, np.nan]}[dtype.kind]]
    dense = draw(hnp.arrays(dtype, shape, elements=st.sampled_from(values), fill=st.just(0)))
    extra = draw(hnp.arrays(bool, shape))
    return dense, to_csr(dense, stored=(dense != 0) | extra, backwards=draw(st.booleans()))


def label(array):
    rows, columns = array.shape
    coords = {"size": ("cell", np.arange(1.0, rows + 1)), "gene": [f"g{i}" for i in range(columns)]}
    return xr.DataArray(array, dims=("cell", "gene"), coords=coords)


def values(result):
    """Return plain numpy values of anything that an operation may give, without a warning."""
    result = result.data if isinstance(result, xr.DataArray) else result
    return result.todense() if isinstance(result, CSRArray) else np.asarray(result)


def assert_same(got, expected):
    got, expected = values(got), values(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    if got.dtype.kind == "f":
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(got, expected)


def is_sparse(result):
    return isinstance(result.data if isinstance(result, xr.DataArray) else result, CSRArray)


ELEMENTWISE = {
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "abs": abs,
    "square": np.square,
    "sign": lambda x: np.sign(x * 1),
    "negative": lambda x: -(x * 1.0),
    "sin": np.sin,
    "isnan": np.isnan,
    "multiply": lambda x: x * 2,
    "multiply from the left": lambda x: 2.5 * x,
    "multiply by a numpy scalar": lambda x: x * np.float32(1.5),
    "divide": lambda x: x / 4.0,
    "floor_divide": lambda x: x // 2,
    "power": lambda x: np.power(x, 2),
    "greater": lambda x: x > 1,
    "less": lambda x: x < -1,
    "not equal": lambda x: x != 0,
    "itself": lambda x: x * x + x,
    "astype": lambda x: x.astype("f4"),
    "maximum": lambda x: np.maximum(x, 0),
    "clip": lambda x: np.clip(x, 0, 3),
    "clip above": lambda x: np.clip(x, None, 3),
    "where": lambda x: np.where(x > 1, x, 0),
    "zeros_like": np.zeros_like,
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(pair=pairs())
def test_elementwise__stays_sparse_and_equals_numpy(name, pair):
    dense, sparse = pair
    with np.errstate(all="ignore"):
        got = ELEMENTWISE[name](sparse)
        assert is_sparse(got)
        assert_same(got, ELEMENTWISE[name](dense))


LABELLED = {
    "log1p": np.log1p,
    "log1p of counts per cell": lambda x: np.log1p(x / x["size"] * 1e4),
    "scale by cell": lambda x: x * x["size"],
    "scale by gene": lambda x: x * xr.DataArray(np.arange(x.sizes["gene"]), dims="gene"),
    "compare": lambda x: x > 1,
    "where": lambda x: xr.where(x > 1, x, 0),
    "clip": lambda x: x.clip(0, 3),
    "astype": lambda x: x.astype("f8"),
    "copy": lambda x: x.copy(deep=True),
    "transpose to the order it has": lambda x: x.transpose("cell", "gene"),
}


@pytest.mark.parametrize("name", LABELLED)
@given(pair=pairs())
def test_elementwise__stays_sparse_inside_xarray(name, pair):
    dense, sparse = map(label, pair)
    with np.errstate(all="ignore"):
        got, expected = LABELLED[name](sparse), LABELLED[name](dense)
    assert is_sparse(got)
    assert_same(got, expected)
    assert got.dims == expected.dims
    assert list(got.coords) == list(expected.coords)


@given(pair=pairs(min_side=1), vector=st.sampled_from([np.float32, np.int16, np.float64]))
def test_scaling__by_rows_and_columns_equals_numpy(pair, vector):
    dense, sparse = pair
    rows = np.arange(1, len(dense) + 1, dtype=vector)[:, None]
    columns = np.arange(1, dense.shape[1] + 1, dtype=vector)
    for func in (np.multiply, np.divide):
        for operand in (rows, columns, columns[None, :], columns[:1], np.array(3, vector)):
            got = func(sparse, operand)
            assert is_sparse(got)
            assert_same(got, func(dense, operand))
    assert_same(columns.tolist() * sparse, columns.tolist() * dense)


@pytest.mark.parametrize("name", ["sum", "mean", "nansum", "nanmean", "min", "max"])
@given(pair=pairs(min_side=1), axis=st.sampled_from([None, 0, 1, -1, (0,), (0, 1), (1, 0)]))
def test_reduction__equals_numpy(name, pair, axis):
    dense, sparse = pair
    func = getattr(np, name)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        for keepdims in (False, True):
            expected = func(dense, axis=axis, keepdims=keepdims)
            assert_same(func(sparse, axis=axis, keepdims=keepdims), expected)


@pytest.mark.parametrize("name", ["nanmin", "nanmax"])
@given(pair=pairs(min_side=1), axis=st.sampled_from([None, 0, 1]))
def test_reduction__of_extremes_passes_over_nan(name, pair, axis):
    dense, sparse = pair
    func = getattr(np, name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        assert_same(func(sparse, axis=axis), func(dense, axis=axis))


@pytest.mark.parametrize("name", ["sum", "mean", "min", "max"])
@given(pair=pairs(min_side=1), dim=st.sampled_from(["cell", "gene", None]))
def test_reduction__inside_xarray_equals_numpy(name, pair, dim):
    dense, sparse = map(label, pair)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        got, expected = getattr(sparse, name)(dim), getattr(dense, name)(dim)
    assert_same(got, expected)


def test_reduction__without_elements_refuses_like_numpy():
    empty = to_csr(np.zeros((0, 3)))
    assert empty.sum() == 0
    assert_same(np.max(empty, axis=1), np.max(np.zeros((0, 3)), axis=1))
    with pytest.raises(ValueError, match="zero-size array"):
        np.max(empty, axis=0)


def test_reduction__over_an_axis_that_is_not_there_is_refused():
    with pytest.raises(np.exceptions.AxisError):
        np.sum(to_csr(np.eye(2)), axis=2)
    with pytest.raises(SchemaError, match=r"axis=\(\) was asked for; possible are 0, 1"):
        np.sum(to_csr(np.eye(2)), axis=())


@st.composite
def keys(draw, n):
    """Draw any one-dimensional key: slice, list with repeats, boolean mask."""
    whole = st.integers(-n, n - 1)
    wanted = draw(st.sampled_from(["slice", "list", "array", "mask"]))
    if wanted == "slice":
        bound = st.one_of(st.none(), st.integers(-n - 1, n + 1))
        return slice(draw(bound), draw(bound), draw(st.sampled_from([None, 1, 2, -1, -2])))
    if wanted == "mask":
        return draw(hnp.arrays(bool, n))
    key = draw(st.lists(whole, max_size=5))
    return key if wanted == "list" else np.array(key, np.int64)


@given(data=st.data(), pair=pairs(min_side=1))
def test_selection__of_rows_and_columns_equals_numpy(data, pair):
    dense, sparse = pair
    rows = data.draw(keys(dense.shape[0]))
    columns = data.draw(keys(dense.shape[1]).filter(lambda k: not repeats(k, dense.shape[1])))
    for key in (rows, (rows, slice(None)), (rows, ...), (slice(None), columns), (..., columns)):
        got = sparse[key]
        assert is_sparse(got)
        assert_same(got, dense[key])
    got = label(sparse).isel(cell=rows, gene=columns)
    assert is_sparse(got)
    assert_same(got, label(dense).isel(cell=rows, gene=columns))


def repeats(key, n):
    wanted = np.arange(n)[key]
    return len(np.unique(wanted)) != len(wanted)


@given(data=st.data(), pair=pairs(min_side=1))
def test_selection__of_one_row_or_column_is_dense_and_silent(data, pair):
    dense, sparse = pair
    i = data.draw(st.integers(-dense.shape[0], dense.shape[0] - 1))
    j = data.draw(st.integers(-dense.shape[1], dense.shape[1] - 1))
    for key in (i, (i, ...), (slice(None), j), (i, j), (slice(None, None, -1), j), ([i], j)):
        assert_same(sparse[key], dense[key])
    assert_same(label(sparse).isel(cell=[i, 0], gene=j), label(dense).isel(cell=[i, 0], gene=j))
    for key in ({"cell": i}, {"gene": j}, {"cell": i, "gene": j}, {"cell": i, "gene": [j, -1 - j]}):
        assert_same(label(sparse).isel(key), label(dense).isel(key))
    assert_same(label(sparse).sel(gene=["g0"]), label(dense).sel(gene=["g0"]))


@given(parts=st.lists(pairs(), min_size=1, max_size=3))
def test_concatenate__equals_numpy_or_refuses(parts):
    dense, sparse = zip(*parts, strict=True)
    widths = {d.shape[1] for d in dense}
    if len(widths) > 1:
        with pytest.raises(SchemaError, match="cannot be joined; select the same columns"):
            np.concatenate(sparse)
        return
    assert is_sparse(concatenate(sparse))
    assert_same(np.concatenate(sparse), np.concatenate(dense))
    got = xr.concat([label(s).drop_vars("size") for s in sparse], "cell")
    assert is_sparse(got)
    assert_same(got, xr.concat([label(d).drop_vars("size") for d in dense], "cell"))


DENSIFYING = {
    "add": lambda x: x + 1,
    "equal": lambda x: x == 0,
    "cos": np.cos,
    "divide": lambda x: x / np.zeros((x.shape[0], 1)),
    "multiply": lambda x: x * np.full(x.shape, 2.0),
    "matmul": lambda x: x @ np.ones((x.shape[1], 1)),
    "transpose": np.transpose,
    "std": lambda x: np.std(x * 1.0, axis=0),
    "sum": lambda x: np.sum(x, axis=1, where=np.ones(x.shape, bool)),
    "square": lambda x: np.square(x, where=np.eye(*x.shape) > 0, out=np.ones(x.shape)),
    "add.reduce": partial(np.add.reduce, axis=1),
    "concatenate": lambda x: np.concatenate([x, x], axis=1),
    "selection of a column twice": lambda x: x[:, [0, 0]],
    "selection of single elements": lambda x: x[[0, 0], [0, 0]],
    "numpy.asarray": np.asarray,
}


@pytest.mark.parametrize("name", DENSIFYING)
@given(pair=pairs(min_side=2))
def test_densifying__gives_the_values_and_says_so(name, pair):
    dense, sparse = pair
    with np.errstate(all="ignore"):
        with pytest.warns(PerformanceWarning, match=f"`{name}[._a-z]*` has no sparse form"):
            got = DENSIFYING[name](sparse)
        assert isinstance(got, np.ndarray)
        assert_same(got, DENSIFYING[name](dense))


def test_densifying__warning_points_at_the_callers_line():
    with pytest.warns(PerformanceWarning, match=r"<CSRArray 2 x 2, float64, 2 stored") as caught:
        to_csr(np.eye(2)) + 1
    assert caught[0].filename == __file__


def test_densifying__inside_xarray_gives_the_values():
    dense = np.eye(3)
    with pytest.warns(PerformanceWarning, match="`where` has no sparse form"):
        got = label(to_csr(dense)).where(label(to_csr(dense)) > 0)
    assert_same(got, label(dense).where(label(dense) > 0))


def test_array__without_a_copy_is_refused():
    with pytest.raises(ValueError, match="no dense memory to share"):
        np.asarray(to_csr(np.eye(2)), copy=False)


@given(pair=pairs())
def test_in_place__changes_what_is_stored(pair):
    dense, sparse = pair
    dense, sparse = dense.astype("f8"), sparse.astype("f8")
    alias = sparse
    sparse *= 3
    dense *= 3
    assert sparse is alias
    assert_same(sparse, dense)
    if sparse.size:
        with (
            pytest.warns(PerformanceWarning, match="add"),
            pytest.raises(SchemaError, match="would fill the zeros of a CSRArray"),
        ):
            sparse += 1


def test_in_place__where_a_change_would_be_lost_is_refused():
    sparse = to_csr(np.eye(2))
    with pytest.raises(TypeError):
        np.add.at(sparse, (0, 1), 1)
    with pytest.raises(TypeError):
        np.multiply(sparse, 2, out=sparse, where=np.eye(2) > 0)


def test_in_place__fills_a_dense_array():
    out = np.ones((2, 2))
    with pytest.warns(PerformanceWarning, match="`assignment to a dense array`"):
        assert np.multiply(to_csr(np.eye(2)), 2, out=out) is out
    assert_same(out, 2 * np.eye(2))


def test_operands__with_labels_keep_them():
    dense = np.diag([1.0, 2.0])
    got = to_csr(dense[:, :1]) * label(dense[:, :1])
    assert isinstance(got, xr.DataArray)
    assert_same(got, dense[:, :1] ** 2)


def test_truth_value__is_refused_as_in_numpy():
    with pytest.raises(ValueError, match="ambiguous"):
        bool(to_csr(np.eye(2)))


@given(pair=pairs())
def test_copies__share_nothing_and_pickle(pair):
    dense, sparse = pair
    copied = sparse.copy()
    for part in ("data", "indices", "indptr"):
        assert not np.shares_memory(getattr(sparse, part), getattr(copied, part))
    assert_same(pickle.loads(pickle.dumps(sparse)), dense)
    assert (sparse.shape, sparse.dtype, sparse.size) == (dense.shape, dense.dtype, dense.size)
    assert len(sparse) == len(dense)
    assert sparse.nbytes == sparse.data.nbytes + sparse.indices.nbytes + sparse.indptr.nbytes
    ordered = sparse.sort_columns()
    assert_same(ordered, dense)
    assert all(np.all(np.diff(i) > 0) for i in np.split(ordered.indices, ordered.indptr[1:-1]))


def test_repr__tells_shape_dtype_and_share_without_densifying():
    sparse = to_csr(np.eye(4, dtype="f4"))
    assert repr(sparse) == "<CSRArray 4 x 4, float32, 4 stored (25.0%)>"
    assert "<CSRArray 4 x 4, float32, 4 stored" in repr(label(sparse).to_dataset(name="X"))
    assert "CSRArray" in label(sparse)._repr_html_()
