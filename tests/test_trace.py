"""What a variable shows of storage: either exactly what `.values` gives, or nothing is claimed."""

import pickle

import numpy as np
import numpy.testing as npt
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import Dense, Rows, counts, to_csr
from xloader import trace
from xloader.schema import lazy

N, G = 24, 18
FORMS = ("lazy", "dask", "dask-rows", "dask-odd", "pickled")


def opened(form="dask", dtype="float32"):
    """Return a stored array behind xarray's lazy indexing or behind dask, and that array."""
    array = Dense(np.random.default_rng(0).integers(0, 100, (N, G)).astype(dtype))
    ds = xr.Dataset({"X": lazy(("cell", "gene"), array)})
    chunks = {"dask": (7, 5), "dask-rows": (8, G), "dask-odd": ((3, 11, 10), (1, 17))}.get(form)
    if chunks is not None:
        ds = ds.chunk(dict(zip(("cell", "gene"), chunks, strict=True)))
    if form == "pickled":
        ds = pickle.loads(pickle.dumps(ds.chunk({"cell": 5})))
    kind = ("cell", np.arange(N) % 3)
    labels = {"cell": np.arange(N) * 3, "gene": [f"g{i}" for i in range(G)], "kind": kind}
    return ds.assign_coords(labels), array


def shown(variable):
    """Return what a view claims that a variable holds, or None."""
    found = trace.view(variable)
    return None if found is None else found.array.values[np.ix_(*found.index)]


def half(ds, dim):
    return ds.sizes[dim] // 2


def where_drop(ds, k):
    return ds.where(ds["kind"] == k % 3, drop=True)


SELECT = {
    "slice": lambda ds, d, k: ds.isel({d: slice(k % 5, None, 1 + k % 3)}),
    "backwards": lambda ds, d, _: ds.isel({d: slice(None, None, -1)}),
    "list": lambda ds, d, k: ds.isel({d: np.random.default_rng(k).permutation(ds.sizes[d])[:9]}),
    "repeats": lambda ds, d, k: ds.isel({d: np.random.default_rng(k).integers(0, ds.sizes[d], 7)}),
    "mask": lambda ds, d, k: ds.isel({d: np.random.default_rng(k).random(ds.sizes[d]) < 0.6}),
    "negative": lambda ds, d, _: ds.isel({d: [-1, 0]}),
    "sel": lambda ds, d, k: ds.sel({d: ds[d].values[k % ds.sizes[d] :]}),
    "sortby": lambda ds, *_: ds.sortby("kind"),
    "thin": lambda ds, d, k: ds.thin({d: 1 + k % 3}),
    "head": lambda ds, d, k: ds.head({d: 5 + k}),
    "query": lambda ds, _, k: ds.query(cell=f"kind != {k % 3}"),
    "where drop": lambda ds, _, k: where_drop(ds, k),
}
RECHUNK = {
    "chunk": lambda ds, d, k: ds.chunk({d: 1 + k % 8}),
    "one chunk": lambda ds, *_: ds.chunk({"cell": -1, "gene": -1}),
    "unify": lambda ds, *_: ds.unify_chunks(),
}
OTHER = {
    "concat": lambda ds, d, _: xr.concat(
        [ds.isel({d: slice(half(ds, d), None)}), ds.isel({d: slice(0, half(ds, d))})], d
    ),
    "roll": lambda ds, d, k: ds.roll({d: k}, roll_coords=True),
    "shift": lambda ds, d, k: ds.shift({d: k % 3}),
    "pad": lambda ds, d, _: ds.drop_vars("kind").pad({d: 1}),
    "transpose": lambda ds, *_: ds.transpose(),
    "reindex": lambda ds, *_: ds.reindex(cell=np.arange(0, 80, 6)),
    "plus": lambda ds, *_: ds + 1,
    "log": lambda ds, *_: np.log1p(ds),
    "where": lambda ds, _, k: ds.where(ds["kind"] == k % 3),
    "where all": lambda ds, *_: ds.where(ds["kind"] >= 0),
    "where other": lambda ds, _, k: xr.where(ds["kind"] == k % 3, ds, -ds),
    "wider": lambda ds, *_: ds.astype("float64"),
    "narrower": lambda ds, *_: ds.astype("int8"),
    "fill": lambda ds, *_: ds.fillna(0),
    "cumsum": lambda ds, d, _: ds.cumsum(d).assign_coords(ds.coords),
    "matrix": lambda ds, *_: ds.assign(X=ds["X"] * ds["kind"]),
    "copy": lambda ds, *_: ds.copy(deep=True),
}  # fmt: skip
ALL = {**SELECT, **RECHUNK, **OTHER}
STEP = st.tuples(st.sampled_from(sorted(ALL)), st.sampled_from(["cell", "gene"]), st.integers(0, 9))


@given(
    st.sampled_from(FORMS),
    st.sampled_from(["float32", "uint16", "int32"]),
    st.lists(STEP, max_size=4),
)
def test_view__is_none_or_exactly_the_values(form, dtype, steps):
    ds, _ = opened(form, dtype)
    for name, dim, k in steps:
        if 0 in ds.sizes.values():
            break
        try:
            ds = ALL[name](ds, dim, k)
        except Exception:  # noqa: BLE001
            return  # xarray or dask refuses this step here
    values = shown(ds["X"].variable)
    if values is None:
        return
    npt.assert_array_equal(values, ds["X"].values)
    assert np.can_cast(values.dtype, ds["X"].dtype)


VIEWS = {**SELECT, **RECHUNK, **{k: OTHER[k] for k in ("where all", "concat", "roll", "copy")}}
COMPUTED = ("plus", "log", "where", "where other", "narrower", "fill", "cumsum", "matrix")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(VIEWS))
def test_view__sees_through_every_selection(form, name):
    ds, array = opened(form, "int32")
    if form == "lazy" and name in {"where drop", "where all", "concat", "roll"}:
        pytest.skip("xarray itself reads everything here")
    for dim in ("cell", "gene"):
        selected = VIEWS[name](ds, dim, 4)
        before = len(array.log)
        values = shown(selected["X"].variable)
        assert len(array.log) == before  # looked at, not read
        npt.assert_array_equal(values, selected["X"].values)
        assert not trace.is_computed(selected["X"].variable)


@pytest.mark.parametrize("form", ["dask", "dask-rows", "dask-odd", "pickled"])
@pytest.mark.parametrize("name", COMPUTED)
def test_is_computed__arithmetic_is_no_view(form, name):
    ds, _ = opened(form, "int32")
    changed = OTHER[name](ds, "cell", 4)["X"].variable
    assert trace.view(changed) is None
    assert trace.is_computed(changed)
    # nor is what is selected from it
    assert trace.view(changed.isel(cell=slice(3, 9))) is None


def test_view__casts_that_keep_every_value_are_seen_through():
    ds, array = opened("dask", "uint16")
    wider = ds.astype("float32").isel(cell=[5, 2])["X"].variable
    assert trace.view(wider).array is array
    assert trace.view(ds.astype("int16")["X"].variable) is None
    assert trace.view(ds.astype("uint8").astype("float64")["X"].variable) is None


def test_view__blocks_of_two_arrays_are_no_view_of_one():
    (a, _), (b, _) = opened("dask"), opened("dask", "float64")
    joined = xr.concat([a.drop_vars("kind"), b.drop_vars("kind")], "cell")
    assert trace.view(joined["X"].variable) is None


def test_view__what_is_in_memory_or_comes_from_elsewhere_is_none():
    values = np.arange(6.0).reshape(2, 3)
    assert trace.view(xr.Variable(("a", "b"), values)) is None
    elsewhere = xr.Variable(("a", "b"), values).chunk({"a": 1})
    assert trace.view(elsewhere) is None
    assert not trace.is_computed(elsewhere)
    ds, _ = opened("lazy")
    assert trace.view(ds.load()["X"].variable) is None


def test_view__sparse_rows_in_memory_are_stored_rows():
    values = counts()
    found = trace.view(xr.Variable(("cell", "gene"), to_csr(values)))
    npt.assert_array_equal(found.array.read_rows(3, 20).todense(), values[3:20])
    npt.assert_array_equal(
        found.array.nnz_of([0, 7], [7, 9]), [(values[:7] != 0).sum(), (values[7:9] != 0).sum()]
    )


def test_view__a_dropped_dimension_is_none():
    ds, _ = opened("lazy")
    assert trace.view(ds.isel(cell=3)["X"].variable) is None
    assert trace.view(ds.chunk({"cell": 4}).isel(cell=3)["X"].variable) is None


def test_view__follows_permutations_over_several_chunks_of_rows():
    array = Rows(counts(64, 9), block_rows=4)
    order = np.random.default_rng(0).permutation(64)
    ds = xr.Dataset({"X": lazy(("cell", "gene"), array)}).chunk({"cell": 5, "gene": 9})
    found = trace.view(ds.isel(cell=order).isel(cell=slice(10, 50))["X"].variable)
    assert found.array is array
    npt.assert_array_equal(found.index[0], order[10:50])
    npt.assert_array_equal(found.index[1], np.arange(9))
    assert array.log == []
