"""The oracle: whatever the source, a Loader gives what plain `isel`, h5py and scipy give."""

import pickle
import tempfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import numpy.testing as npt
import pytest
import scipy.sparse
import xarray as xr
import xbatcher
from xbatcher.testing import validate_generator_length

import xloader as xl
from tests.doubles import (
    CELLS,
    CONTACTS,
    Rows,
    assert_equals_naive,
    cells,
    cells_in,
    contact_map,
    contacts,
    contacts_in,
    counts,
    dense,
    grid,
)
from xloader.csr import CSRArray
from xloader.errors import PerformanceWarning, PlanError


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open each form once."""
    made = {}

    def make(kind, form):
        if (kind, form) not in made:
            build = cells_in if kind == "cells" else contacts_in
            made[kind, form] = build(form, tmp_path_factory.mktemp(f"{kind}-{form}"))
        return made[kind, form]

    return make


def epoch_of(loader):
    return list(loader.batches(loader.epoch, range(len(loader))))


def check(loader, ds):
    """Compare an epoch with the oracle, and single batches and samples with the epoch."""
    batches = epoch_of(loader)
    ids = np.concatenate([b.sample_id.values for b in batches])
    assert sorted(ids) == list(range(len(loader.plan.windows)))
    assert len(batches) == len(loader)
    assert_equals_naive(loader, ds, *batches)
    assert dense(loader[-1]).identical(dense(batches[-1]))
    some = loader.samples(ids[:3])
    assert_equals_naive(loader, ds, some)
    npt.assert_array_equal(some.sample_id, ids[:3])
    return batches


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("form", CELLS)
def test_cells__equal_a_naive_loop(opened, form, shuffle):
    ds = opened("cells", form)
    loader = xl.Loader(ds, batch_size=7, shuffle=shuffle, labels=["cell_type"])
    batches = check(loader, ds)
    npt.assert_array_equal(dense(batches[0]).X, counts()[batches[0].sample_id])
    assert loader.categories == {"cell_type": ["B", "NK", "T"]}
    sparse = form in {"rows", "rows-dask", "csr", "h5ad", "store"}
    assert isinstance(batches[0].X.data, CSRArray) == sparse


@pytest.mark.parametrize("form", CELLS)
def test_cells__equal_a_naive_loop_after_selections(opened, form):
    ds = opened("cells", form)
    chosen = ds.isel(cell=np.random.default_rng(0).permutation(61)[:40]).sel(
        gene=["g9", "g2", "g3"]
    )
    masked = chosen.isel(cell=chosen.depth.values > 0.3)
    for layout in (None, "dense"):
        batches = check(xl.Loader(masked, batch_size=6, shuffle=True, layout=layout), masked)
    assert isinstance(batches[0].X.data, np.ndarray)


@pytest.mark.parametrize("form", CELLS)
def test_cells__blocks_of_rows_are_windows_too(opened, form):
    ds = opened("cells", form)
    loader = xl.Loader(
        ds, batch_size=2, input_dims={"cell": 9}, input_overlap={"cell": 2}, shuffle=True
    )
    check(loader, ds)
    assert loader.plan.windows.n_flush == 1


WINDOWS = {
    "diagonal": {"windows": xl.windows.diagonal(size=16, stride=5)},
    "grid": {"windows": xl.windows.grid(size="10kb", stride=7, max_distance=20)},
    "rectangles": {"input_dims": {"bin2": 12, "bin1": 20}, "input_overlap": {"bin1": 9}},
    "strips": {"input_dims": {"bin1": 16}},
}


@pytest.mark.parametrize("form", CONTACTS)
@pytest.mark.parametrize("how", sorted(WINDOWS))
def test_contacts__equal_a_naive_loop(opened, form, how):
    ds = opened("contacts", form)
    loader = xl.Loader(ds, batch_size=8, shuffle=True, **WINDOWS[how])
    for batch in check(loader, ds):
        for k, (first, last) in enumerate(
            zip(batch.chrom1[:, 0], batch.chrom1[:, -1], strict=True)
        ):
            assert first == last
            if how != "strips":
                i, j = batch.bin1.values[k], batch.bin2.values[k]
                npt.assert_array_equal(batch["count"][k], contact_map()[np.ix_(i, j)])
                assert len({*batch.chrom1.values[k], *batch.chrom2.values[k]}) == 1


@pytest.mark.parametrize("form", CONTACTS)
def test_contacts__equal_a_naive_loop_after_selections(opened, form):
    ds = opened("contacts", form)
    keep = np.r_[0:30, 34:61, 70:101]  # with a hole within a chromosome
    holes = ds.isel(bin1=keep, bin2=keep)
    loader = xl.Loader(holes, batch_size=8, shuffle=True, windows=xl.windows.diagonal(size=8))
    check(loader, holes)
    swapped = ds.isel(bin1=np.r_[61:101, 0:61], bin2=np.r_[61:101, 0:61])  # chromosomes reordered
    check(xl.Loader(swapped, batch_size=8, windows=xl.windows.grid(size=20)), swapped)


def test_h5ad__equals_h5py_and_scipy(tmp_path):
    ds = cells_in("h5ad", tmp_path)
    with h5py.File(tmp_path / "cells.h5ad") as f:
        x = f["X"]
        parts = x["data"][:], x["indices"][:], x["indptr"][:]
        expected = scipy.sparse.csr_matrix(parts, shape=x.attrs["shape"]).toarray()
        names = f["obs"][f["obs"].attrs["_index"]].asstr()[:]
        codes, pca = f["obs/cell_type/codes"][:], f["obsm/X_pca"][:]
    loader = xl.Loader(ds, batch_size=10, shuffle=True, labels=["cell_type"])
    for batch in loader:
        ids = batch.sample_id.values
        npt.assert_array_equal(batch.X.data.todense(), expected[ids])
        npt.assert_array_equal(batch.cell, names[ids])
        npt.assert_array_equal(batch.X_pca, pca[ids])
        values = np.array(loader.categories["cell_type"])[codes[ids]]
        npt.assert_array_equal(batch.cell_type, values)


def test_cool__equals_h5py_and_scipy(tmp_path):
    ds = contacts_in("cool", tmp_path)
    with h5py.File(tmp_path / "map.cool") as f:
        pixels = {k: f["pixels"][k][:] for k in ("bin1_id", "bin2_id", "count")}
        start, chrom, weight = f["bins/start"][:], f["bins/chrom"][:], f["bins/weight"][:]
    ij = (pixels["bin1_id"], pixels["bin2_id"])
    upper = scipy.sparse.coo_matrix((pixels["count"], ij), shape=(101, 101)).toarray()
    full = upper + np.triu(upper, 1).T
    for batch in xl.Loader(ds, batch_size=5, windows=xl.windows.grid(size=16, stride=9)):
        for k in range(batch.sizes["sample"]):
            i, j = batch.bin1.values[k], batch.bin2.values[k]
            npt.assert_array_equal(batch["count"][k], full[np.ix_(i, j)])
            npt.assert_array_equal(batch.start2[k], start[j])
            npt.assert_array_equal(batch.weight1[k], weight[i])
            assert len({*chrom[i], *chrom[j]}) == 1


@pytest.mark.parametrize("chunks", [None, {"lat": 5, "lon": 8, "time": 3}])
@pytest.mark.parametrize(
    "dims", [{"lat": 7, "lon": 9}, {"lon": 4}, {"time": 1}, {"time": 2, "lat": 5}]
)
def test_arrays__of_any_dimensions(chunks, dims):
    ds = grid() if chunks is None else grid().chunk(chunks)
    check(xl.Loader(ds, batch_size=4, input_dims=dims, shuffle=True), ds)


def test_arrays__a_data_array_is_a_dataset_of_one():
    loader = xl.Loader(grid()["v"], batch_size=4, input_dims={"lat": 7})
    check(loader, grid()[["v"]])
    unnamed = xl.Loader(xr.DataArray(np.arange(6.0), dims="x"), batch_size=2, input_dims={"x": 1})
    npt.assert_array_equal(unnamed[1].data, [2, 3])


def test_rows__along_a_later_dimension_come_first_in_batches():
    for ds in (
        cells().transpose(),
        cells().transpose().chunk({"cell": 9}),
        cells(Rows(counts())).transpose(),
    ):
        assert ds.X.dims == ("gene", "cell")
        loader = xl.Loader(ds, batch_size=7, shuffle=True)
        for batch in loader:
            assert batch.X.dims == ("cell", "gene")
            npt.assert_array_equal(batch.X, counts()[batch.sample_id])
            npt.assert_array_equal(batch.depth, ds.depth[batch.sample_id])


def test_expressions__on_the_dataset_are_honoured_and_the_faster_way_is_named():
    ds = cells(Rows(counts())).chunk({"cell": 16})
    logged = np.log1p(ds[["X"]]).isel(cell=slice(None, None, -1))
    with pytest.warns(PerformanceWarning, match="'X' is an expression on stored data"):
        loader = xl.Loader(logged, batch_size=9, shuffle=True)
    for batch in loader:
        npt.assert_array_equal(batch.X, np.log1p(counts()[::-1])[batch.sample_id])
    int_counts = cells(Rows(counts(dtype="int32"))).chunk({"cell": 16})
    dropped = int_counts.where((int_counts.cell_type == "B").compute(), drop=True)
    loader = xl.Loader(dropped[["X"]], batch_size=9)  # no warning: rows are read where they are
    assert isinstance(loader[0].X.data, CSRArray)
    check(loader, dropped)


@pytest.mark.parametrize(
    "options",
    [
        {"input_dims": {"lat": 7, "lon": 9}, "input_overlap": {"lat": 2}},
        {"input_dims": {"lon": 4}},
        {"input_dims": {"time": 1}},
        {"input_dims": {"lat": 7, "lon": 9}, "batch_dims": {"time": 1}},
        {
            "input_dims": {"lat": 7, "lon": 9},
            "batch_dims": {"time": 2},
            "input_overlap": {"lon": 3},
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("chunks", [None, {"lat": 5, "lon": 8}])
def test_batch_generator__each_batch_is_the_sample_of_that_number(options, chunks):
    ds = grid() if chunks is None else grid().chunk(chunks)
    generator = xbatcher.BatchGenerator(ds, **options)
    validate_generator_length(generator)
    loader = xl.Loader(generator, batch_size=1, variables=["v"])
    assert len(loader) == len(generator)
    drawn = xl.Loader(
        ds,
        batch_size=1,
        input_dims=options["input_dims"],
        input_overlap=options.get("input_overlap"),
        remainder="drop",
        variables=["v"],
    )
    for k in range(len(generator)):
        expected, got = generator[k], loader[k]
        if "sample" in expected.dims:  # xbatcher stacks what it does not cut
            expected = expected.unstack("sample")
        sample = got if loader.plan.windows.by_row else got.isel(sample=0)
        npt.assert_array_equal(sample.v.transpose(*expected.v.dims), expected.v)
        for name in ("lat", "lon", "zone"):
            if expected[name].ndim == 1:  # unstacking repeats what is no index
                npt.assert_array_equal(sample[name], expected[name])
        if "batch_dims" not in options:
            assert drawn[k].identical(got)


def test_batch_generator__concatenated_batches_are_samples_one_after_the_other():
    ds = grid()[["v"]]
    generator = xbatcher.BatchGenerator(
        ds, {"lat": 7, "lon": 9}, batch_dims={"time": 2}, concat_input_dims=True
    )
    loader = xl.Loader(generator, batch_size=1)
    patches = [
        batch.v.isel(input_batch=i).transpose("time", ...)
        for batch in (b.unstack() for b in generator)
        for i in range(batch.sizes["input_batch"])
    ]
    assert len(loader) == len(patches)
    for k, patch in enumerate(patches):
        npt.assert_array_equal(loader[k].v.isel(sample=0), patch)
    assert "positions without a window" in repr(loader)


def test_variables__are_those_asked_for_and_labels_always_come():
    loader = xl.Loader(cells(), batch_size=5, variables=["X_pca"])
    assert list(loader[0].data_vars) == ["X_pca"]
    assert set(loader[0].coords) == {*cells().coords, "sample_id"}


def test_categories__of_a_file_are_the_same_in_every_part_of_it():
    ds = cells()
    parts = [ds.isel(cell=ds.cell_type.values == name) for name in ("B", "T")]
    for part in (*parts, ds):
        assert xl.Loader(part, batch_size=5, labels=["cell_type"]).categories["cell_type"] == [
            "B",
            "NK",
            "T",
        ]


def test_padding__repeats_samples_and_says_so():
    loader = xl.Loader(cells(), batch_size=8, remainder="pad", shuffle=True)
    batches = epoch_of(loader)
    assert [b.sizes["cell"] for b in batches] == [8] * 8
    valid = np.concatenate([b.valid.values for b in batches])
    ids = np.concatenate([b.sample_id.values for b in batches])
    assert (~valid).sum() == loader.plan.n_padded == 3
    assert sorted(ids[valid]) == list(range(61))
    assert_equals_naive(loader, cells(), *batches)
    assert "valid" not in xl.Loader(cells(), batch_size=61, remainder="pad")[0].coords


def test_remainder__is_counted_in_the_representation():
    ds = contacts(chroms=(61, 9))
    keep = xl.Loader(
        ds.isel(bin1=slice(61), bin2=slice(61)), batch_size=5, windows=xl.windows.diagonal(size=16)
    )
    assert repr(keep).endswith("keep; 1 flush window")
    drop = xl.Loader(ds, batch_size=2, windows=xl.windows.diagonal(size=16), remainder="drop")
    assert "1 region too short (chr2), 1 sample dropped" in repr(drop)
    assert "positions without a window" in repr(drop)
    assert "nothing left over" in repr(xl.Loader(cells(), batch_size=61))


# --- one loader, many ways to ask


def double(batch):
    return batch.assign(X=batch.X * 2)


@pytest.mark.parametrize("form", ["rows-dask", "h5ad", "store"])
def test_pickle__makes_an_equal_loader(opened, form):
    for transform in (None, double, lambda b: b.assign(more=b.X_pca + 1)):
        loader = xl.Loader(
            opened("cells", form), batch_size=9, shuffle=True, seed=4, transform=transform
        )
        loader.set_epoch(3)
        list(loader.batches(3, [0]))
        copy = pickle.loads(pickle.dumps(loader))
        assert len(copy) == len(loader)
        assert dense(copy[1]).identical(dense(loader[1]))


def test_pickle__leaves_what_was_read_behind():
    loader = xl.Loader(cells_in("store", Path(tempfile.mkdtemp())), batch_size=9)
    before = len(pickle.dumps(loader))
    list(loader)
    assert len(pickle.dumps(loader)) < before + 100


def test_iteration__each_complete_pass_is_the_next_epoch():
    loader = xl.Loader(cells(), batch_size=10, shuffle=True)
    order = {e: [loader.batch(e, k).sample_id.values.tolist() for k in range(7)] for e in range(4)}
    assert len({str(o) for o in order.values()}) == 4

    def served():
        return [b.sample_id.values.tolist() for b in loader]

    assert [served(), served()] == [order[0], order[1]]
    assert next(iter(loader)).sample_id.values.tolist() == order[2][0]  # given up ...
    assert served() == order[2]  # ... so this epoch is served again
    assert loader[3].sample_id.values.tolist() == order[2][3]
    loader.set_epoch(0)
    assert loader[-1].sample_id.values.tolist() == order[0][-1]
    assert [served(), served()] == [order[0], order[1]]


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("batch_size", [3, 20])
def test_pools__memory_and_reading_ahead_change_no_batch(prefetch, batch_size):
    # with room for one block at a time a batch spans several pools
    ds = cells(Rows(counts()))[["X"]]
    wide = xl.Loader(ds, batch_size=batch_size)
    narrow = xl.Loader(ds, batch_size=batch_size, memory_budget=2_100, prefetch=prefetch)
    assert wide.plan.n_pools(0) == 1
    assert narrow.plan.n_pools(0) >= 4
    for k, batch in enumerate(narrow):
        assert dense(batch).identical(dense(wide[k]))
        assert_equals_naive(narrow, ds, narrow.batch(1, k))
    shuffled = xl.Loader(
        ds,
        batch_size=batch_size,
        memory_budget=2_100,
        prefetch=prefetch,
        shuffle=True,
    )
    check(shuffled, ds)
    for _ in zip(range(2), shuffled, strict=False):  # leaving early stops what reads ahead
        pass


def test_samples__come_in_the_order_asked_for_with_repeats():
    for budget in ("1GB", 2100):
        loader = xl.Loader(cells(Rows(counts())), batch_size=4, memory_budget=budget)
        ids = np.array([60, 3, 3, -1, 0])
        batch = loader.samples(ids)
        assert batch.sample_id.values.tolist() == [60, 3, 3, 60, 0]
        assert ids.tolist() == [60, 3, 3, -1, 0]
        assert_equals_naive(loader, cells(), batch)


def test_ranks__come_from_the_environment_of_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    plan = xl.Loader(cells(), batch_size=4).plan
    assert (plan.rank, plan.world_size) == (1, 3)
    plan = xl.Loader(cells(), batch_size=4, rank=0, world_size=2).plan
    assert (plan.rank, plan.world_size) == (0, 2)


def test_budget__needs_no_room_to_read_ahead_where_everything_fits():
    ds = cells(Rows(counts(), block_rows=61))[["X"]]
    (nbytes,) = {xl.Loader(ds, batch_size=4).plan.block_nbytes}
    assert xl.Loader(ds, batch_size=4, memory_budget=-(-nbytes * 4 // 3) + 2).plan.in_memory
    with pytest.raises(PlanError, match="a block of 61 samples decodes"):
        xl.Loader(ds, batch_size=4, memory_budget=nbytes * 4 // 3 - 8)


def test_layout__of_sparse_variables():
    ds = cells(Rows(counts()))
    assert isinstance(xl.Loader(ds, batch_size=4)[0].X.data, CSRArray)
    assert isinstance(xl.Loader(ds, batch_size=4, layout="csr")[0].X.data, CSRArray)
    assert isinstance(xl.Loader(ds, batch_size=4, layout="dense")[0].X.data, np.ndarray)


def test_batches__in_place_work_of_a_user_reaches_no_other_batch():
    loader = xl.Loader(cells().load(), batch_size=20)
    first = loader[0].copy(deep=True)
    spoilt = loader[0]
    spoilt["X"] *= 0
    spoilt.X_pca.values[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        spoilt["loadings"] *= 0  # shared by all batches
    assert loader[0].identical(first)


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("source", ["memory", "h5ad", "store"])
def test_half_floats__stay_what_they_are_from_every_source(tmp_path, source, layout):
    x = scipy.sparse.random(90, 30, 0.2, "csr", "f4", 0)
    x.data[:] = half = x.data.astype("f2")
    if source == "memory":
        array = CSRArray(half, x.indices, x.indptr.astype(np.int64), x.shape)
        ds = xr.Dataset({"X": (("cell", "gene"), array)})
    else:
        path = tmp_path / "half.h5ad"
        anndata.AnnData(x).write_h5ad(path)
        with h5py.File(path, "a") as f:
            attrs = dict(f["X/data"].attrs)
            del f["X/data"]
            f["X/data"] = half
            f["X/data"].attrs.update(attrs)
        made = xl.convert(path, tmp_path / "half.xl", progress=False)
        ds = made if source == "store" else xl.open_cells(path)
    loader = xl.Loader(ds[["X"]], batch_size=16, shuffle=True, layout=layout)
    for batch in epoch_of(loader):
        assert batch["X"].dtype == np.float16
        npt.assert_array_equal(dense(batch)["X"], x[batch.sample_id.values].toarray())
