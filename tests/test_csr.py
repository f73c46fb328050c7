"""Sparse rows against dense numpy; through xarray in `test_csr_xarray`."""

import math
import pickle
import warnings
from fractions import Fraction
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


@pytest.fixture(scope="module", autouse=True)
def cut():
    """Cut everything into parts, as if each array were large; `test_csr_xarray` does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xloader.rows._LARGE", 0)
        patch.setattr("xloader.rows._BLOCK", 3)
        patch.setattr("xloader.rows._PARTS", 2)
        patch.setattr("xloader.threads.n_threads", lambda: 3)
        yield


def to_csr(dense, *, stored=None, backwards=False, numbers=("i4", "i8")):
    """Store the places of a mask (default: what is not zero), columns in either order."""
    stored = dense != 0 if stored is None else stored
    step = -1 if backwards else 1
    columns = [np.flatnonzero(row)[::step] for row in stored]
    indptr = np.cumsum([0, *map(len, columns)]).astype(numbers[1])
    indices = np.concatenate([[], *columns]).astype(numbers[0])
    data = dense[np.repeat(np.arange(len(dense)), np.diff(indptr)), indices]
    return CSRArray(data, indices, indptr, dense.shape)


@st.composite
def pairs(draw, *, min_side=0):
    """Draw a dense array and its sparse form, which may store zeros and unsorted columns."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=min_side, max_side=6))
    values = [0, 0, 0, 1, *{"b": [], "u": [2, 7], "i": [2, -3], "f": [-2.5, np.nan]}[dtype.kind]]
    dense = draw(hnp.arrays(dtype, shape, elements=st.sampled_from(values), fill=st.just(0)))
    stored = (dense != 0) | draw(hnp.arrays(bool, shape))
    numbers = draw(st.sampled_from([("i4", "i8"), ("i8", "i8"), ("i4", "i4")]))
    return dense, to_csr(dense, stored=stored, backwards=draw(st.booleans()), numbers=numbers)


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
        rounding = 2e-3 if got.dtype == np.float16 else 1e-6
        np.testing.assert_allclose(got, expected, rtol=rounding, atol=rounding)
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


SUMS = ["sum", "mean", "nansum", "nanmean", "var", "std", "nanvar", "nanstd"]
REDUCTIONS = [*SUMS, "min", "max", "nanmin", "nanmax", "any", "all", "count_nonzero"]


@pytest.mark.parametrize("name", REDUCTIONS)
@given(pair=pairs(min_side=1), axis=st.sampled_from([None, 0, 1, -1, (0,), (0, 1), (1, 0)]))
def test_reduction__equals_numpy(name, pair, axis):
    dense, sparse = pair
    func = getattr(np, name)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty|Degrees of freedom|All-NaN")
        for keepdims in (False, True):
            expected = func(dense, axis=axis, keepdims=keepdims)
            assert_same(func(sparse, axis=axis, keepdims=keepdims), expected)


@pytest.mark.parametrize("name", ["var", "nanstd"])
@given(pair=pairs(min_side=1), axis=st.sampled_from([None, 0, 1]), ddof=st.integers(1, 3))
def test_reduction__of_fewer_degrees_of_freedom_equals_numpy(name, pair, axis, ddof):
    dense, sparse = pair
    func = getattr(np, name)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Degrees of freedom")
        assert_same(func(sparse, axis=axis, ddof=ddof), func(dense, axis=axis, ddof=ddof))


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "i4", "u8", "bool", "c16"])
@given(pair=pairs(min_side=1))
def test_sum__of_a_dtype_equals_numpy(axis, dtype, pair):
    dense, sparse = (np.where(np.isnan(x), 0, x) for x in pair)
    if dtype == "u8":
        dense, sparse = np.abs(dense), np.abs(sparse)
    assert_same(sparse.sum(axis, dtype), dense.sum(axis, dtype=dtype))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_sum__does_not_depend_on_the_number_of_threads(monkeypatch, axis):
    g = np.random.default_rng(0)
    dense = g.random((60, 8)) * 10.0 ** g.integers(-9, 9, (60, 8))  # each order rounds differently
    sums = []
    for n in (1, 2, 7):
        monkeypatch.setattr("xloader.threads.n_threads", lambda n=n: n)
        sums.append(to_csr(dense).sum(axis))
    assert np.ptp(sums, axis=0).max() == 0
    np.testing.assert_allclose(sums[0], dense.sum(axis), rtol=1e-12)


def test_sum__of_float32_is_rounded_once():
    dense = np.random.default_rng(0).random((5, 4000), np.float32) * 1e4
    exact = [math.fsum(row.tolist()) for row in dense]
    np.testing.assert_array_equal(to_csr(dense).sum(1), np.array(exact, np.float32))


@pytest.mark.parametrize("dtype", ["f2", ">f4", ">i4", "c8", "c16", "g"])
@pytest.mark.filterwarnings("ignore:.*has no sparse form:xloader.errors.PerformanceWarning")
def test_dtypes__that_kernels_do_not_know_equal_numpy(dtype):
    dense = np.array([[0, 2, 0], [3, 0, -1], [0, 0, 0], [5, 1, 0]], dtype)
    sparse = to_csr(dense, backwards=True)
    for func in (np.sum, np.mean, np.max, np.nanmin, np.var, np.any, np.nansum):
        for axis in (None, 0, 1):
            assert_same(func(sparse, axis=axis), func(dense, axis=axis))
    for key in ([2, 0, 3], slice(None, None, -2), (slice(None), [2, 0])):
        assert_same(sparse[key], dense[key])
    assert_same(sparse.sort_columns(), dense)
    assert_same(sparse * dense[:, :1], dense * dense[:, :1])
    assert_same(sparse * dense[:1], dense * dense[:1])


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


DENSIFYING = {
    "add": lambda x: x + 1,
    "equal": lambda x: x == 0,
    "cos": np.cos,
    "divide": lambda x: x / np.zeros((x.shape[0], 1)),
    "multiply": lambda x: x * np.full(x.shape, 2.0),
    "matmul": lambda x: x @ np.ones((x.shape[1], 1)),
    "transpose": np.transpose,
    "median": lambda x: np.median(x * 1.0, axis=0),
    "sum": lambda x: np.sum(x, axis=1, where=np.ones(x.shape, bool)),
    "square": lambda x: np.square(x, where=np.eye(*x.shape) > 0, out=np.ones(x.shape)),
    "add.reduce": partial(np.add.reduce, axis=1),
    "concatenate": lambda x: np.concatenate([x, x], axis=1),
    "selection of a column twice": lambda x: x[:, [0, 0]],
    "selection of single elements": lambda x: x[[0, 0], [0, 0]],
    "a new axis": lambda x: x[:, None],
    "astype": lambda x: x.astype(str),
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


@given(pair=pairs(min_side=1), data=st.data())
def test_operands__of_other_places_densify_and_equal_numpy(pair, data):
    dense, sparse = pair
    other = data.draw(hnp.arrays(np.int8, dense.shape, elements=st.integers(0, 2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = sparse + to_csr(other)
    same = np.array_equal(to_csr(other).indptr, sparse.indptr) and np.array_equal(
        to_csr(other).indices, sparse.indices
    )
    assert is_sparse(got) == (same or sparse.nnz == 0 or not other.any())
    assert [w.category for w in caught] == [PerformanceWarning] * (0 if is_sparse(got) else 2)
    assert_same(got, dense + other)


def test_operands__that_make_no_numbers_densify():
    dense = np.diag([1, 2])
    with pytest.warns(PerformanceWarning, match="`multiply` has no sparse form"):
        got = to_csr(dense) * Fraction(1, 2)
    np.testing.assert_array_equal(got, dense * Fraction(1, 2))


def test_operands__without_stored_values_keep_others_sparse():
    dense = np.diag([1.0, 2.0])
    empty = np.zeros_like(to_csr(dense))
    assert empty.nnz == 0
    assert is_sparse(empty + to_csr(dense))
    assert_same(empty + to_csr(dense), dense)
    assert_same(to_csr(dense) - empty, dense)


def test_where__without_missing_values_shares_nothing_that_can_change():
    sparse = to_csr(np.diag([1.0, 2.0]))
    present = np.where(np.isnan(sparse), np.zeros_like(sparse), sparse)
    present *= 3
    assert_same(present, np.diag([3.0, 6.0]))
    assert_same(sparse, np.diag([1.0, 2.0]))


def test_errstate__reaches_every_thread():
    dense = np.diag(np.arange(1.0, 9.0))
    dense[7, 7] = np.inf
    with np.errstate(invalid="raise"), pytest.raises(FloatingPointError):
        to_csr(dense) % 2
    with np.errstate(invalid="ignore"):
        assert_same(to_csr(dense) % 2, np.mod(dense, 2))


DAMAGED = {
    "todense": lambda x: x.todense(),
    "take_columns": lambda x: x.take_columns(np.array([0])),
    "sort_columns": lambda x: x.sort_columns(),
    "sum": lambda x: x.sum(0),
    "max": lambda x: np.max(x, axis=0),
    "scale": lambda x: x * np.ones(3),
}


@pytest.mark.parametrize("column", [-1, 3])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged__columns_are_refused(name, column):
    sparse = CSRArray(np.ones(5), np.array([0, 1, 2, 1, column]), np.array([0, 2, 5]), (2, 3))
    with pytest.raises(SchemaError, match=f"has column {column}, but columns go from 0 to 2"):
        DAMAGED[name](sparse)


@pytest.mark.parametrize(
    "arrays", [([1], [0], [0, 1, 1]), ([1], [0, 1], [0, 1]), ([1], [0], [0, 2]), ([1], [0], [1, 1])]
)
def test_damaged__arrays_are_refused_at_once(arrays):
    with pytest.raises(SchemaError, match="are no CSR matrix of 1 rows; give each value a column"):
        CSRArray(*map(np.array, arrays), (1, 2))


def test_damaged__pointers_are_refused():
    sparse = CSRArray(np.ones(3), np.zeros(3, int), np.array([0, 3, 1, 3]), (3, 1))
    for func in (CSRArray.todense, CSRArray.sum, CSRArray.row_ids, CSRArray.sort_columns):
        with pytest.raises(SchemaError, match="row 1 would end at value 1, before its start at 3"):
            func(sparse)


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
    row_ids = np.repeat(np.arange(len(dense)), np.diff(sparse.indptr))
    np.testing.assert_array_equal(sparse.row_ids(), row_ids)


def test_repr__tells_shape_dtype_and_share_without_densifying():
    sparse = to_csr(np.eye(4, dtype="f4"))
    assert repr(sparse) == "<CSRArray 4 x 4, float32, 4 stored (25.0%)>"
    assert "<CSRArray 4 x 4, float32, 4 stored" in repr(label(sparse).to_dataset(name="X"))
    assert "CSRArray" in label(sparse)._repr_html_()
