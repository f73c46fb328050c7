"""
What homeobox (H) and gunz-cm (G) give and Hi-C training code needs (P): a test by name for each.

Each is the shortest that shows it; the tests of the modules look closer.
"""

import json
import pickle

import h5py
import numpy as np
import numpy.testing as npt
import pytest

import xloader as xl
from tests.doubles import BIN, Rows, Tiles, cells, contact_map, contacts, counts
from xloader.errors import PlanError, SchemaError, StateError

X = counts()
MAP = contact_map()
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture
def ds():
    return cells(Rows(X))


@pytest.fixture
def maps():
    return contacts()


@pytest.fixture
def xt():
    pytest.importorskip("torch")
    import xloader.torch

    return xloader.torch


def rows_of(batch):
    return [int(name[1:]) for name in batch["cell"].values]


def test_h1__a_map_dataset_takes_any_sampler_and_repeated_samples(ds, xt):
    data = xt.MapDataset(ds, batch_size=4, labels=["cell_type"], layout="dense")
    batch = data[[5, 3, 5, 60]]
    npt.assert_array_equal(batch["X"], X[[5, 3, 5, 60]])
    kinds = [data.loader.categories["cell_type"][k] for k in batch["cell_type"]]
    assert kinds == ds.cell_type.values[[5, 3, 5, 60]].tolist()
    with pytest.raises(IndexError):
        data[[61]]


def test_h2__batches_resume_in_any_epoch(ds):
    loader, other = (xl.Loader(ds, batch_size=8, shuffle=True, seed=3) for _ in range(2))
    loader.set_epoch(2)
    batches = iter(loader)
    first = rows_of(next(batches))
    other.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    rest = [rows_of(batch) for batch in batches]
    assert [rows_of(batch) for batch in other] == rest
    assert sorted(sum(rest, first)) == list(range(61))


def test_h3__sparse_batches_are_canonical(ds, xt):
    import torch

    loader = xl.Loader(ds.isel(gene=[9, 0, 16, 4]), batch_size=16, shuffle=True)
    x = xt.to_tensors(loader[0], loader)["X"]
    parts = x.crow_indices(), x.col_indices(), x.values()
    valid = torch.sparse_csr_tensor(*parts, x.shape, check_invariants=True)
    npt.assert_array_equal(valid.to_dense(), X[rows_of(loader[0])][:, [9, 0, 16, 4]])


def test_h4__features_keep_the_order_asked_for(ds):
    panel = ["g12", "g3", "g7"]
    batch = xl.Loader(ds.sel(gene=panel), batch_size=61)[0]
    npt.assert_array_equal(batch["X"].data.todense(), X[:, [12, 3, 7]])
    with pytest.raises(SchemaError, match="g99"):
        xl.concat([ds], join=[*panel, "g99"])
    with pytest.raises(SchemaError, match="g3"):
        xl.concat([ds], join=[*panel, "g3"])


def test_h5__gene_sets_of_files_are_joined_at_one_width(ds):
    x = ds.drop_vars("loadings")
    a, b = x.isel(gene=slice(0, 12)), x.isel(gene=slice(8, 17))
    both = xl.concat({"a": a, "b": b})
    measured = both.X_measured.values
    assert (both.sizes["gene"], measured.sum(axis=1).tolist()) == (17, [12, 9])
    batch = xl.Loader(both, batch_size=122)[0]
    npt.assert_array_equal(
        batch["X"].data.todense(), np.concatenate([X, X]) * measured.repeat(61, 0)
    )
    assert xl.concat([a, b], join="inner").gene.values.tolist() == ["g8", "g9", "g10", "g11"]


def test_h6__layers_are_variables(ds):
    two = ds.assign(doubled=ds["X"] * 2)
    batch = xl.Loader(two, batch_size=5, variables=["X", "doubled"])[3]
    npt.assert_array_equal(np.asarray(batch["doubled"]), 2 * X[15:20])
    with pytest.raises(SchemaError, match="nope"):
        xl.Loader(two, batch_size=5, variables=["nope"])


def test_h7__labels_are_codes_of_one_vocabulary(ds, xt):
    loader = xl.Loader(ds, batch_size=61, labels=["cell_type"])
    codes = xt.to_tensors(loader[0], loader)["cell_type"].numpy()
    names = np.array(loader.categories["cell_type"], object)
    assert codes.dtype == np.int64
    npt.assert_array_equal(names[codes], ds.cell_type.values)
    with pytest.raises(SchemaError, match="'color' is no coordinate of single samples"):
        xl.Loader(ds, batch_size=61, labels=["color"])


def test_h8__modalities_say_what_is_present_packed_or_not(ds):
    sources = {"rna": ds[["X"]].isel(cell=slice(0, 40)), "prot": ds[["X"]].isel(cell=slice(20, 61))}
    batch = xl.Loader(sources, batch_size=61)[0]
    npt.assert_array_equal(batch.rna_present, [k < 40 for k in rows_of(batch)])
    npt.assert_array_equal(batch.prot_present, [k >= 20 for k in rows_of(batch)])
    whole = np.where(batch.prot_present.values[:, None], X[rows_of(batch)], 0)
    npt.assert_array_equal(batch["prot"].data.todense(), whole)
    packed = batch["prot"].isel(cell=batch.prot_present.values)
    npt.assert_array_equal(packed.data.todense(), X[rows_of(packed)])


def test_h9_h10__sets_of_cells_of_one_group_come_one_after_another(ds):
    loader = xl.Loader(ds, batch_size=10, order=xl.orders.grouped("cell_type"), seed=1)
    kinds = np.concatenate([batch.cell_type.values for batch in loader])
    assert (kinds[1:] != kinds[:-1]).sum() == len(np.unique(kinds)) - 1
    sets = loader[0]["X"].groupby("cell_type").sum().sizes["cell_type"]
    assert sets == len(np.unique(loader[0].cell_type))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_h11__workers_give_the_same_and_pickles_are_small(ds, xt, context, tmp_path):
    import torch

    xl.convert(ds, tmp_path / "a.xl", progress=False)
    loader = xl.Loader(
        xl.open_cells(tmp_path / "a.xl"), batch_size=16, shuffle=True, layout="dense"
    )
    assert len(pickle.dumps(loader)) < 20_000
    expected = [torch.from_numpy(np.asarray(batch["X"])) for batch in loader]
    loader.set_epoch(0)
    options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": context}
    found = list(torch.utils.data.DataLoader(xt.IterableDataset(loader), **options))
    assert len(found) == len(expected)
    assert all(torch.equal(a["X"], b) for a, b in zip(found, expected, strict=True))


def test_h12__queries_limits_and_balanced_selections(ds):
    chosen = ds.query(cell="cell_type == 'B' and depth > 0.5").isel(cell=slice(5))
    rows = np.flatnonzero((ds.cell_type == "B") & (ds.depth > 0.5))[:5]
    npt.assert_array_equal(xl.Loader(chosen, batch_size=5)[0]["X"].data.todense(), X[rows])
    even = ds.groupby("cell_type").map(lambda g: g.isel(cell=slice(4)))
    assert (
        xl.Loader(even, batch_size=99)[0].cell_type.to_series().value_counts().tolist() == [4] * 3
    )


def test_h13__a_state_belongs_to_the_data_it_was_made_with(tmp_path):
    for name, values in (("a", X), ("b", X + 1)):
        xl.convert(cells(Rows(values)), tmp_path / f"{name}.xl", progress=False)
    a, b = (xl.Loader(xl.open_cells(tmp_path / f"{n}.xl"), batch_size=8) for n in "ab")
    with pytest.raises(StateError, match="data"):
        b.load_state_dict(a.state_dict())


def test_h14__windows_of_equal_and_of_various_lengths(maps, xt):
    loader = xl.Loader(maps, windows=xl.windows.diagonal(size=8, stride=20), batch_size=3)
    assert loader[0]["count"].shape == (3, 8, 8)
    sparse = xt.collate(
        [xt.to_tensors(loader[0].isel(sample=[k]), loader, layout="coo") for k in (0, 1)]
    )
    assert len(sparse["coords"]) == int((loader[0]["count"].values[:2] != 0).sum())


def test_h15__an_empty_query_is_told(ds):
    with pytest.raises(PlanError, match="the selection is empty along"):
        xl.Loader(ds.query(cell="depth > 2"), batch_size=5)


def test_g1_g4__sparse_items_have_four_parts_and_collate(maps, xt):
    loader = xl.Loader(maps, windows=xl.windows.diagonal(size=8, stride=8), batch_size=1)
    data = xt.MapDataset(loader, layout="coo")
    item, window = data[2], MAP[16:24, 16:24]
    assert {"coords", "features", "target", "info"} <= set(item)
    assert item["features"].shape == (len(item["coords"]), 1)
    dense = np.zeros_like(window)
    dense[tuple(item["coords"].numpy().T)] = item["target"].numpy()
    npt.assert_array_equal(dense, window)
    two = xt.collate([data[2], data[5]])
    lengths = [len(data[k]["coords"]) for k in (2, 5)]
    assert two["offsets"].tolist() == [0, lengths[0], sum(lengths)]


@pytest.mark.parametrize("budget", ["60kB", "100MB"])
def test_g2__decoded_tiles_take_the_memory_that_is_allowed(budget):
    values = contact_map(600)
    ds = contacts(Tiles(values), chroms=(600,))
    shape = xl.windows.diagonal(size=8, stride=4)
    loader = xl.Loader(
        ds, windows=shape, batch_size=2, shuffle=True, memory_budget=budget, prefetch=0
    )
    assert loader.plan.in_memory == (budget == "100MB")
    for batch in loader:
        npt.assert_array_equal(batch["count"], [values[np.ix_(k, k)] for k in batch["bin1"].values])


@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}],
    ids=["0", "2", "kept"],
)
def test_g3__workers_give_the_same_windows(maps, xt, options):
    loader = xl.Loader(maps, windows=xl.windows.diagonal(size=8), batch_size=3, shuffle=True)
    expected = [loader.batch(0, k)["count"].values for k in range(len(loader))]
    batches = xt.make_loader(loader, **{"num_workers": 0, **options})
    for batch, values in zip(batches, expected, strict=True):
        npt.assert_array_equal(batch["count"], values)


def test_g5__what_is_stored_is_never_read_as_empty(maps, tmp_path):
    xl.convert(maps, tmp_path / "a", progress=False)
    for shard in (tmp_path / "a").rglob("count/c/*/*"):
        shard.unlink()
    with pytest.raises(OSError, match="count"):
        xl.Loader(
            xl.open_contacts(tmp_path / "a"), windows=xl.windows.diagonal(size=8), batch_size=5
        )[0]


def test_g6__one_constructor_reads_a_cooler_and_a_store(tmp_path):
    file = xl.simulate.contacts(
        tmp_path / "a.mcool", chromosomes={"chr1": 2_000_000}, resolutions=[10_000]
    )
    xl.convert(file, tmp_path / "a", progress=False)
    with h5py.File(file) as f:
        pixels = f["resolutions/10000/pixels"]
        i, j, n = (pixels[k][:] for k in ("bin1_id", "bin2_id", "count"))
    whole = np.zeros((200, 200), n.dtype)
    whole[i, j] = whole[j, i] = n
    for path in (file, tmp_path / "a"):
        ds = xl.open_contacts(path, resolution=10_000)
        batch = xl.Loader(ds, windows=xl.windows.diagonal(size="500kb"), batch_size=4)[0]
        npt.assert_array_equal(
            batch["count"], [whole[k : k + 50, k : k + 50] for k in range(0, 200, 50)]
        )


@pytest.mark.parametrize("name", ["weight", "KR"])
def test_g7__balancing_vectors_multiply_or_divide(maps, name):
    shape = xl.windows.diagonal(size=61)
    loader = xl.Loader(
        maps, windows=shape, batch_size=1, transform=xl.transforms.balance(name), remainder="drop"
    )
    weight = maps.weight1.values[:61]
    expected = MAP[:61, :61] * weight[:, None] * weight
    npt.assert_allclose(loader[0]["count"][0], expected, rtol=1e-6)


def test_g8__coarser_by_sums_and_thinned(maps):
    shape = xl.windows.grid(size=8, stride=8)
    options = {"windows": shape, "batch_size": 16, "remainder": "drop"}
    coarse = xl.Loader(maps, transform=xl.transforms.coarsen(2), **options)[0]
    low = xl.Loader(maps, transform=xl.transforms.thin(0.25, into="low"), **options)[0]
    plain = xl.Loader(maps, **options)[0]["count"].values
    off = np.flatnonzero((plain != plain.transpose(0, 2, 1)).any(axis=(1, 2)))
    sums = plain.reshape(16, 4, 2, 4, 2).sum(axis=(2, 4))
    npt.assert_array_equal(coarse["count"].values[off], sums[off])
    npt.assert_array_equal(low["count"], plain)
    assert (low["low"] <= plain).all()
    assert 0.2 < low["low"].sum() / plain.sum() < 0.3


def test_g9__windows_at_ends_and_windows_of_nothing():
    values = MAP.copy()
    values[20:40, 20:40] = 0
    ds = contacts(Tiles(values))
    loader = xl.Loader(ds, windows=xl.windows.diagonal(size=20, stride=20), batch_size=9)
    batch = loader[0]
    starts = batch["bin1"].values[:, 0].tolist()
    assert starts == [0, 20, 40, 61, 81, 41]  # the last is flush with the end of its chromosome
    npt.assert_array_equal(batch["count"], [values[k : k + 20, k : k + 20] for k in starts])
    assert not batch["count"][1].any()


def test_g10__only_what_is_near_the_diagonal_is_stored(tmp_path):
    ds = contacts(Tiles(contact_map(600)), chroms=(600,))
    near = xl.convert(ds, tmp_path / "near", max_distance=1000, progress=False)["count"].values
    kept = abs(np.subtract.outer(np.arange(600), np.arange(600))) * BIN <= 1000
    npt.assert_array_equal(near[kept], contact_map(600)[kept])
    assert not near[:128, 384:].any()


def test_p1_p2__diagonal_windows_and_tiles_in_bins_or_bp(maps):
    for size in (10, f"{10 * BIN}bp"):
        w = xl.Loader(maps, windows=xl.windows.diagonal(size=size), batch_size=1).plan.windows
        assert w.size == (10, 10)
    with pytest.raises(PlanError, match="no multiple of the bin size"):
        xl.Loader(maps, windows=xl.windows.diagonal(size=f"{10 * BIN + 1}bp"), batch_size=1)
    shape = xl.windows.grid(size=10, max_distance=20, triangle="upper")
    starts = xl.Loader(maps, windows=shape, batch_size=1).plan.windows.starts
    assert ((starts[:, 1] - starts[:, 0] >= 0) & (starts[:, 1] - starts[:, 0] <= 20)).all()
    blocks = xl.Loader(maps, windows=xl.windows.between(size=20), batch_size=99)[0]
    assert (blocks.chrom1.values[:, 0] != blocks.chrom2.values[:, 0]).all()


def test_p3_p5__lists_of_regions_and_what_is_left_out(maps):
    shape = xl.windows.regions([f"chr1:{10 * BIN}-{20 * BIN}"], size=20)
    assert xl.Loader(maps, windows=shape, batch_size=1)[0]["bin1"].values[0, 0] == 5
    clean = xl.windows.diagonal(size=6, stride=1).excluding(masked=0)
    batch = xl.Loader(maps, windows=clean, batch_size=999, remainder="keep")[0]
    assert not np.isnan(batch.weight1).any()
    views = xl.split(maps, {"train": "rest", "test": ["chr2"]})
    assert set(views["train"].chrom1.values) == {"chr1"}


def test_p4__tiles_go_back_where_they_came_from(maps, tmp_path):
    shape = xl.windows.grid(size=20, stride=10)
    loader = xl.Loader(maps, windows=shape, batch_size=7, shuffle=True)
    with xl.PredictionWriter(loader, tmp_path / "w", progress=False) as writer:
        for batch in loader:
            writer.write(batch, batch["count"].values)
    back = xl.open_contacts(tmp_path / "w").prediction.values
    npt.assert_array_equal(back[:61, :61], MAP[:61, :61])
    npt.assert_array_equal(back[61:, 61:], MAP[61:, 61:])


def test_p6__the_same_windows_over_several_sources(maps):
    other = contacts(Tiles(contact_map(seed=4)))
    shape = xl.windows.diagonal(size=16)
    batch = xl.Loader({"low": other, "full": maps}, windows=shape, batch_size=3, shuffle=True)[0]
    for name, values in (("low", contact_map(seed=4)), ("full", MAP)):
        npt.assert_array_equal(batch[name], [values[np.ix_(k, k)] for k in batch["bin1"].values])
