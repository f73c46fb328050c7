"""Torch sees exactly what the Loader serves: any sampler, layout, worker or rank."""

import itertools
import pickle
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import numpy.testing as npt
import pytest
import scipy.sparse
import torch
import xarray as xr
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
    random_split,
)
from torch.utils.data.distributed import DistributedSampler
from typing_extensions import override

import xloader as xl
from tests.doubles import Rows, cells, cells_in, contact_map, contacts, counts, to_csr
from xloader import torch as xt
from xloader.csr import CSRArray
from xloader.errors import PlanError, SchemaError, TransformError, XloaderWarning

pytestmark = [
    # Python 3.12 warns of any fork while threads live; that it works nevertheless is tested here
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    # torch says both once per process, for any sparse tensor
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly:UserWarning"),
]
VARIABLES = ("X", "X_pca")
DIAGONAL = xl.windows.diagonal(size=12, stride=7)


def cell_loader(ds=None, **options):
    options = {"batch_size": 8, "variables": VARIABLES, "labels": ["cell_type"], **options}
    return xl.Loader(cells(Rows(counts())) if ds is None else ds, **options)


def map_cells():
    return xt.MapDataset(cell_loader(), layout="dense")


def windows(**options):
    return xl.Loader(contacts(), **{"batch_size": 5, "windows": DIAGONAL, **options})


def dense(tensor):
    tensor = tensor.to_dense() if tensor.layout == torch.sparse_csr else tensor
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == b[key].dtype, key
            assert value.layout == b[key].layout, key
            npt.assert_array_equal(dense(value), dense(b[key]), err_msg=key)
        elif isinstance(value, dict):
            assert_same(value, b[key])
        else:
            assert value == b[key], key


def assert_cells(batch, ids):
    ds = cells()
    npt.assert_array_equal(batch["sample_id"], ids)
    npt.assert_array_equal(dense(batch["X"]).reshape(len(ids), -1), counts()[ids])
    npt.assert_array_equal(batch["X_pca"], ds.X_pca.values[ids])
    vocabulary = np.array(["B", "NK", "T"], object)
    npt.assert_array_equal(vocabulary[batch["cell_type"]], ds.cell_type.values[ids])


def assert_valid_csr(tensor):
    torch.sparse_csr_tensor(
        tensor.crow_indices(),
        tensor.col_indices(),
        tensor.values(),
        tensor.shape,
        check_invariants=True,
    )


# --- map-style: torch decides the order


@pytest.mark.parametrize("collate_fn", [None, xt.collate])
def test_map__plain_shuffled_dataloader_serves_each_sample_once(collate_fn):
    loader = DataLoader(map_cells(), batch_size=7, shuffle=True, collate_fn=collate_fn)
    epochs = [list(loader) for _ in range(2)]
    assert len(loader) == 9
    orders = [np.concatenate([b["sample_id"] for b in e]) for e in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(61))
    assert orders[0].tolist() != orders[1].tolist()
    for batch in itertools.chain(*epochs):
        assert_cells(batch, batch["sample_id"].numpy())


@pytest.mark.parametrize(
    ("make", "ids"),
    [
        (lambda ds: ds, np.arange(61)),
        (lambda ds: Subset(ds, [5, 60, 5, 0]), [5, 60, 5, 0]),
        (lambda ds: Subset(Subset(ds, range(20, 40)), [3, 1]), [23, 21]),
        (lambda ds: ConcatDataset([Subset(ds, [9]), Subset(ds, [1, 2])]), [9, 1, 2]),
    ],
)
@pytest.mark.parametrize("layout", [None, "dense", "csr"])
def test_map__subsets_serve_their_own_samples_in_order(make, ids, layout):
    # both ways that torch fetches a batch, and single samples
    source = make(xt.MapDataset(cell_loader(variables=["X"]), layout=layout))
    ids = np.asarray(ids)
    sampler = BatchSampler(SequentialSampler(source), 3, drop_last=False)
    batches = list(DataLoader(source, batch_sampler=sampler, collate_fn=xt.collate))
    npt.assert_array_equal(np.concatenate([b["sample_id"] for b in batches]), ids)
    npt.assert_array_equal(np.concatenate([dense(b["X"]) for b in batches]), counts()[ids])
    single = xt.collate([source[k] for k in range(len(source))])
    npt.assert_array_equal(dense(single["X"]), counts()[ids])


def test_map__a_sampler_of_batches_reads_each_batch_whole():
    source = map_cells()
    sampler = BatchSampler(RandomSampler(source), 16, drop_last=True)
    batches = list(DataLoader(source, sampler=sampler, batch_size=None))
    assert [len(b["sample_id"]) for b in batches] == [16, 16, 16]
    for batch in batches:
        assert_cells(batch, batch["sample_id"].numpy())


def test_map__random_split_parts_are_disjoint_and_complete():
    parts = random_split(map_cells(), [0.75, 0.25], torch.Generator().manual_seed(0))
    seen = [
        np.concatenate([b["sample_id"] for b in DataLoader(p, 9, collate_fn=xt.collate)])
        for p in parts
    ]
    assert [len(s) for s in seen] == [46, 15]
    assert sorted(np.concatenate(seen)) == list(range(61))


def test_map__repeats_are_served_as_often_as_asked():
    source = map_cells()
    sampler = WeightedRandomSampler([1.0] * 3 + [0.0] * 58, 50)
    (batch,) = DataLoader(source, batch_size=50, sampler=sampler, collate_fn=xt.collate)
    assert set(batch["sample_id"].tolist()) == {0, 1, 2}
    assert_cells(batch, batch["sample_id"].numpy())


def test_map__distributed_sampler_shares_the_samples():
    source = map_cells()
    parts = [DistributedSampler(source, 3, r, drop_last=False) for r in range(3)]
    seen = [b["sample_id"] for p in parts for b in DataLoader(source, 8, sampler=p)]
    assert set(np.concatenate(seen).tolist()) == set(range(61))


def test_map__indices_of_any_integer_type():
    source = map_cells()
    for i in (7, np.int32(7), torch.tensor(7), -54):
        assert_cells(
            {k: v[None] for k, v in source[i].items() if k != "X"} | {"X": source[i]["X"]}, [7]
        )
    with pytest.raises(IndexError, match="samples count from 0 to 60"):
        source[61]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_map__workers_serve_what_the_main_process_serves(method, tmp_path):
    source = xt.MapDataset(cell_loader(cells_in("h5ad", tmp_path), variables=["X", "X_pca"]))
    alone = list(DataLoader(source, batch_size=16, collate_fn=xt.collate))
    loader = DataLoader(
        source, 16, num_workers=2, multiprocessing_context=method, collate_fn=xt.collate
    )
    for a, b in zip(alone, loader, strict=True):
        assert_same(a, b)
        assert_valid_csr(b["X"])


def test_map__random_transforms_depend_on_the_epoch_and_the_sample_alone():
    source = xt.MapDataset(windows(transform=xl.transforms.thin(0.5)))
    first = source[3]["count"]
    assert torch.equal(source.__getitems__([8, 3, 1])[1]["count"], first)
    source.set_epoch(1)
    assert not torch.equal(source[3]["count"], first)
    source.set_epoch(0)
    assert torch.equal(source[3]["count"], first)


# --- layouts and dtypes


def test_layout__csr_rows_are_valid_tensors():
    loader = cell_loader(variables=["X"])
    for layout in (None, "csr"):
        for batch in loader:
            assert_valid_csr(xt.to_tensors(batch, loader, layout=layout)["X"])
        rows = [xt.MapDataset(loader, layout=layout)[i] for i in (4, 0, 4)]
        assert rows[0]["X"].shape == (1, 17)
        assert_valid_csr(xt.collate(rows)["X"])
    with pytest.raises(SchemaError, match="layout='csr' needs matrices, but 'count' is"):
        xt.to_tensors(windows()[0], windows(), layout="csr")


def test_layout__dense_and_csr_hold_the_same_numbers():
    sparse, plain = (xt.MapDataset(cell_loader(), layout=k) for k in ("csr", "dense"))
    ids = [60, 3, 3, 17]
    a, b = (xt.collate(d.__getitems__(ids)) for d in (sparse, plain))
    assert a["X"].layout == torch.sparse_csr
    assert b["X"].layout == torch.strided
    npt.assert_array_equal(dense(a["X"]), b["X"])
    npt.assert_array_equal(b["X"], counts()[ids])


def test_coo__each_window_equals_its_dense_form():
    source = xt.MapDataset(windows(), layout="coo")
    starts = source.loader.plan.windows.starts
    for i in range(len(source)):
        item, (a, b) = source[i], starts[i]
        assert item["coords"].shape == (len(item["target"]), 2)
        assert item["features"].shape == (len(item["target"]), 1)
        rebuilt = np.zeros((12, 12), int)
        rebuilt[tuple(item["coords"].T.numpy())] = item["target"]
        npt.assert_array_equal(rebuilt, contact_map()[a : a + 12, b : b + 12])
        npt.assert_array_equal(item["features"][:, 0], item["target"])
        assert (item["target"] != 0).all()
        bins = contacts().isel(bin1=int(a), bin2=int(b))
        assert item["info"]["chrom1"] == bins.chrom1.item()
        assert item["info"]["start2"] == bins.start2.item()
        last = contacts().isel(bin1=int(a) + 11)
        place = f"{last.chrom1.item()}:{bins.start1.item():,}-{last.end1.item():,}"
        assert item["info"]["region1"] == place
        assert item["info"]["end1"] == last.end1.item()
        assert item["sample_id"] == i


def test_info__regions_of_flipped_windows_are_theirs():
    source = windows(shuffle=False, transform=xl.transforms.flip(1))
    plain = xt.to_tensors(windows(shuffle=False)[0], source)
    turned = xt.to_tensors(source[0], source)
    assert_same(turned["info"], plain["info"])
    assert turned["flipped"].tolist() == [True] * 5


def test_coo__ragged_batches_have_offsets_however_they_are_joined():
    source = xt.MapDataset(windows(), layout="coo")
    ids = [9, 0, 9, 4]
    whole = xt.collate(source.__getitems__(ids))
    joined = xt.collate([source[i] for i in ids])
    assert_same(whole, joined)
    assert whole["offsets"].tolist()[0] == 0
    for k, i in enumerate(ids):
        a, b = whole["offsets"][k : k + 2].tolist()
        assert torch.equal(whole["target"][a:b], source[i]["target"])
        assert torch.equal(whole["coords"][a:b], source[i]["coords"])
    assert whole["info"]["chrom1"] == [source[i]["info"]["chrom1"] for i in ids]
    served = list(DataLoader(source, batch_sampler=[ids], collate_fn=xt.collate))
    assert_same(served[0], whole)


def add_target(batch):
    return batch.assign(target=batch["count"] * 10)


def test_coo__target_is_its_own_variable_and_zeros_of_one_are_kept_for_the_other():
    transform = xl.transforms.compose(add_target, xl.transforms.thin(0.3))
    loader = windows(transform=transform)
    tensors, batch = xt.to_tensors(loader[0], loader, layout="coo"), loader[0]
    sample = np.repeat(np.arange(5), np.diff(tensors["offsets"]))
    at = (sample, *tensors["coords"].T.numpy())
    npt.assert_array_equal(tensors["target"], batch["target"].values[at])
    npt.assert_array_equal(tensors["features"][:, 0], batch["count"].values[at])
    assert (tensors["features"] == 0).any()  # a contact that thinning took away
    assert len(sample) == np.count_nonzero(batch["target"].values)


def test_coo__masked_bins_are_values():
    loader = windows(transform=xl.transforms.balance())
    tensors = xt.to_tensors(loader[0], loader, layout="coo")
    values = loader[0]["count"].values
    assert torch.isnan(tensors["target"]).sum() == np.isnan(values).sum() > 0


def test_coo__needs_windows_of_two_dimensions():
    loader = cell_loader()
    with pytest.raises(SchemaError, match="layout='coo' needs windows of two dimensions"):
        xt.to_tensors(loader[0], loader, layout="coo")
    with pytest.raises(PlanError, match="layout='ragged' is unknown; choose one of"):
        xt.to_tensors(loader[0], loader, layout="ragged")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("uint8", torch.uint8),
        ("uint16", torch.int32),
        ("uint32", torch.int64),
        ("int8", torch.int8),
        (">i4", torch.int32),
        ("float16", torch.float16),
        (">f8", torch.float64),
        ("bool", torch.bool),
    ],
)
def test_dtype__every_number_has_a_tensor_that_holds_it(dtype, expected):
    values = counts(dtype="int32").astype(dtype)
    loader = xl.Loader(xr.Dataset({"X": (("cell", "gene"), values)}), batch_size=61)
    tensor = xt.to_tensors(loader[0], loader)["X"]
    assert tensor.dtype == expected
    npt.assert_array_equal(tensor.numpy(), values)


def test_dtype__text_and_times_are_refused_by_name():
    for values in (np.array(["a", "b"]), np.array([1, 2], "datetime64[s]").astype("M8[ns]")):
        loader = xl.Loader(xr.Dataset({"note": ("cell", values)}), batch_size=2)
        with pytest.raises(SchemaError, match="'note' is .*; name it in `labels` or leave it out"):
            xt.to_tensors(loader[0], loader)


def test_tensors__are_the_users_own():
    # what training does to a batch in place must never reach the data or the next epoch
    loader = xl.Loader(contacts().load(), batch_size=5, windows=DIAGONAL, labels=[])
    first = [xt.to_tensors(b, loader)["count"].clone() for b in loader.batches(0, range(2))]
    for b in loader.batches(0, range(2)):
        xt.to_tensors(b, loader)["count"].zero_()
    again = [xt.to_tensors(b, loader)["count"] for b in loader.batches(0, range(2))]
    assert all(map(torch.equal, first, again))


# --- types, and what they cannot hold

FLOATS = {"float16": np.float16, "bfloat16": None, "float32": np.float32, "float64": np.float64}


def as_float(values, name):
    """Return what numpy makes of values in a type; bfloat16 is float32 without its last 16 bits."""
    if FLOATS[name] is not None:
        return values.astype(FLOATS[name])
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000  # to nearest, ties to even
    return rounded.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("source", ["uint8", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("name", FLOATS)
def test_dtype__every_layout_is_what_numpy_casts(name, layout, source):
    values = counts(dtype=source)
    if values.dtype.kind == "f":
        values *= np.pi
    ds = cells(Rows(values)).assign(dense=(("cell", "pc"), values[:, :3]))
    loader = xl.Loader(ds, batch_size=61, variables=["X", "dense", "X_pca"], labels=["cell_type"])
    for dtype in (name, getattr(torch, name)):
        batch = xt.to_tensors(loader[0], loader, layout=layout, dtype=dtype)
        for key, expected in (("X", values), ("dense", values[:, :3]), ("X_pca", ds.X_pca.values)):
            assert batch[key].dtype == getattr(torch, name)
            npt.assert_array_equal(
                dense(batch[key].to(torch.float64)), as_float(expected, name), err_msg=key
            )
        assert batch["sample_id"].dtype == batch["cell_type"].dtype == torch.int64


def test_dtype__masks_stay_and_windows_follow():
    mask = counts() > 4
    loader = xl.Loader(xr.Dataset({"mask": (("cell", "gene"), mask)}), batch_size=61)
    got = xt.to_tensors(loader[0], loader, dtype="float16")["mask"]
    npt.assert_array_equal(got, mask)
    assert got.dtype == torch.bool
    coo = xt.MapDataset(windows(), layout="coo", dtype=torch.bfloat16)[3]
    assert coo["target"].dtype == coo["features"].dtype == torch.bfloat16
    npt.assert_array_equal(
        coo["target"].float(), xt.MapDataset(windows(), layout="coo")[3]["target"]
    )


def one(value, dtype):
    values = np.zeros((3, 4), dtype)
    values[1, 2] = value
    return xl.Loader(xr.Dataset({"X": (("cell", "gene"), to_csr(values))}), batch_size=3)


@pytest.mark.parametrize(
    ("value", "source", "dtype"),
    [
        (2048, "int32", "float16"),
        (2048.5, "float32", "float16"),  # no count: rounding is what was asked for
        (256, "float32", "bfloat16"),
        (-2048, "int64", "float16"),
        (65504.0, "float32", "float64"),
        (2**24, "int64", "float32"),
        (np.inf, "float32", "float16"),
        (np.nan, "float32", "float16"),
    ],
)
def test_dtype__what_it_holds_is_silent(value, source, dtype):
    loader = one(value, source)
    for layout in ("csr", "dense"):
        got = dense(xt.to_tensors(loader[0], loader, layout=layout, dtype=dtype)["X"].double())
        npt.assert_allclose(got[1, 2], value, rtol=1e-3)


@pytest.mark.parametrize(
    ("value", "source", "dtype", "exact"),
    [
        (2049, "int32", "float16", "2,048"),
        (-2049, "float32", "float16", "2,048"),
        (257, "uint16", "bfloat16", "256"),
        (2**24 + 1, "int64", "float32", "16,777,216"),
    ],
)
def test_dtype__counts_that_it_rounds_are_told(value, source, dtype, exact):
    loader = one(value, source)
    for layout in ("csr", "dense"):
        with pytest.warns(XloaderWarning, match=f"'X' holds whole numbers beyond {exact}, which"):
            xt.to_tensors(loader[0], loader, layout=layout, dtype=dtype)


@pytest.mark.parametrize(
    ("value", "source", "dtype"),
    [(65505, "int32", "float16"), (-1e5, "float32", "float16"), (1e39, "float64", "float32")],
)
def test_dtype__counts_that_would_be_infinite_are_refused(value, source, dtype):
    loader = one(value, source)
    for layout in ("csr", "dense"):
        with pytest.raises(SchemaError, match="'X' holds .* it would be infinite; ask for dtype"):
            xt.to_tensors(loader[0], loader, layout=layout, dtype=dtype)


@pytest.mark.parametrize("name", ["int32", "int64"])
@pytest.mark.parametrize("stored", ["rows", "numpy"])
def test_index_dtype__is_what_was_asked_for_and_multiplies(name, stored, tmp_path):
    loader = cell_loader(cells_in(stored, tmp_path), variables=["X"])
    whole = xt.to_tensors(loader[2], loader, layout="csr", index_dtype=name)
    joined = xt.collate(
        xt.MapDataset(loader, layout="csr", index_dtype=name).__getitems__([16, 17])
    )
    for batch, ids in ((whole, range(16, 24)), (joined, [16, 17])):
        x = batch["X"]
        assert x.crow_indices().dtype == x.col_indices().dtype == getattr(torch, name)
        assert_valid_csr(x)
        weight = torch.arange(51, dtype=torch.float32).view(17, 3)
        npt.assert_allclose(x @ weight, counts()[ids] @ weight.numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.int32}, "dtype=torch.int32 is impossible; choose one of torch.float16"),
        ({"dtype": "float8"}, "dtype='float8' is impossible"),
        ({"dtype": "nn"}, "dtype='nn' is impossible"),
        ({"index_dtype": "uint8"}, "index_dtype='uint8' is impossible; choose one of torch.int32"),
        ({"index_dtype": "int64", "layout": "dense"}, "layout='dense' has none; leave it out"),
    ],
)
def test_types__that_there_are_none_of_are_refused_at_once(options, message):
    for make in (xt.make_loader, xt.MapDataset, xt.IterableDataset):
        with pytest.raises(PlanError, match=message):
            make(cell_loader(), **options)


# --- to a device


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16", "float64"])
def test_to_device__sparse_and_dense_hold_the_same_numbers(dtype):
    loader = cell_loader(shuffle=True)
    for step in range(len(loader)):
        sent = xt.to_tensors(loader[step], loader, layout="csr", dtype=dtype)
        there = xt.to_tensors(loader[step], loader, layout="dense", dtype=dtype)
        assert_same(xt.to_device(sent, "cpu"), there)
        assert_same(xt.to_device(sent, torch.device("cpu"), dense=False), sent)
        assert_valid_csr(xt.to_device(sent, "cpu", dense=False)["X"])


@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
def test_to_device__empty_rows_and_batches(index_dtype):
    values = np.zeros((5, 7), np.int32)
    values[3, [0, 6]] = 4, 9
    loader = xl.Loader(xr.Dataset({"X": (("cell", "gene"), to_csr(values))}), batch_size=2)
    got = [
        xt.to_device(xt.to_tensors(b, loader, index_dtype=index_dtype), "cpu")["X"] for b in loader
    ]
    npt.assert_array_equal(np.concatenate(got), values)


def test_to_device__what_is_no_tensor_stays():
    loader = windows()
    batch = xt.to_tensors(loader[0], loader)
    sent = xt.to_device(batch, "cpu")
    assert sent["info"] is batch["info"]
    assert_same(sent, batch)


def test_to_device__sends_the_three_arrays_and_nothing_dense():
    # a device that keeps shapes and no numbers
    loader = cell_loader(variables=["X"])
    batch = xt.to_tensors(loader[0], loader)
    sent = xt.to_device({"X": batch["X"]}, "meta", dense=False)["X"]
    assert sent.device.type == "meta"
    assert len(sent.values()) == np.count_nonzero(counts()[:8])


class Pinned:
    """Counts what would be copied into page-locked memory."""

    def __init__(self, monkeypatch):
        self.shapes = []
        monkeypatch.setattr(torch.Tensor, "pin_memory", self.pin)

    def pin(self, tensor):
        assert tensor.layout == torch.strided, "only plain arrays are page-locked"
        self.shapes.append(tuple(tensor.shape))
        return tensor.clone()


def test_pin_memory__takes_the_three_arrays(monkeypatch):
    loader = cell_loader(variables=["X"], labels=[])
    batch = xt.to_tensors(loader[0], loader)
    pinned = Pinned(monkeypatch)
    assert_same(torch.utils.data._utils.pin_memory.pin_memory(batch), batch)
    nnz = np.count_nonzero(counts()[:8])
    assert sorted(pinned.shapes) == sorted([(9,), (nnz,), (nnz,), (8,)])


def refuse(tensor):  # noqa: ARG001 # has the arguments of what it stands for
    msg = "a sparse tensor was sent to another process"
    raise AssertionError(msg)


@pytest.mark.parametrize("one", [True, False])
def test_sent__batches_and_samples_are_plain_arrays_on_the_way(one, monkeypatch):
    # what torch does to a sparse tensor that it must send
    monkeypatch.setattr(torch.multiprocessing.reductions, "reduce_sparse_tensor", refuse)
    source = xt.MapDataset(cell_loader())
    batch = source[3] if one else source[range(5)]
    assert batch["X"].layout == torch.sparse_csr
    sent = pickle.loads(bytes(ForkingPickler.dumps(batch)))
    assert isinstance(sent, xt.Tensors)
    assert_same(sent, batch)
    assert_valid_csr(sent["X"])


PATHS = [  # starting processes takes seconds, and a sample tells as much
    *itertools.product([None], ["csr", "dense"], ["float16", "bfloat16", "float32"]),
    ("fork", "csr", "bfloat16"),
    ("fork", "dense", "float32"),
    ("spawn", "csr", "float16"),
]


@pytest.mark.parametrize(("method", "layout", "dtype"), PATHS)
def test_paths__all_give_the_same_tensors(method, layout, dtype, tmp_path):
    loader = cell_loader(cells_in("h5ad", tmp_path), batch_size=16)
    form = {"layout": layout, "dtype": dtype}
    workers = {"num_workers": 2, "multiprocessing_context": method} if method else {}
    paths = [
        DataLoader(xt.MapDataset(loader, **form), 16, collate_fn=xt.collate, **workers),
        DataLoader(xt.IterableDataset(loader, **form), None, **workers),
        xt.make_loader(
            loader, **form, **({"num_workers": 2, "start_method": method} if method else {})
        ),
    ]
    ids = np.split(np.arange(61), [16, 32, 48])
    for path in paths:
        for batch, mine in zip(path, ids, strict=True):
            npt.assert_array_equal(batch["sample_id"], mine)
            assert batch["X"].dtype == batch["X_pca"].dtype == getattr(torch, dtype)
            assert batch["X"].layout == (torch.sparse_csr if layout == "csr" else torch.strided)
            sent = xt.to_device(batch, "cpu")["X"]
            npt.assert_array_equal(sent.float(), counts()[mine])
            expected = as_float(cells().X_pca.values[mine], dtype)
            npt.assert_array_equal(dense(batch["X_pca"]), expected)


# --- iterable: the Loader decides the order

WORKERS = [
    {"num_workers": 0},
    *(
        {"num_workers": 2, "start_method": m, "persistent_workers": p}
        for m in ("fork", "spawn")
        for p in (True, False)
    ),
]


@pytest.mark.parametrize("options", WORKERS, ids=str)
def test_make_loader__same_ordered_batches_for_every_kind_of_worker(options, tmp_path):
    loader = cell_loader(
        cells_in("h5ad", tmp_path), shuffle=True, seed=3, batch_size=9, memory_budget="1GB"
    )
    served = xt.make_loader(loader, **options)
    assert len(served) == len(loader) == 7
    epochs = [list(served) for _ in range(2)]
    orders = []
    for e, batches in enumerate(epochs):
        for k, batch in enumerate(batches):
            assert_same(batch, xt.to_tensors(loader.batch(e, k), loader))
        orders.append(np.concatenate([b["sample_id"] for b in batches]).tolist())
        assert sorted(orders[e]) == list(range(61))  # none twice, none left out
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("persistent", [True, False])
def test_make_loader__set_epoch_is_honoured_and_each_pass_is_the_next(workers, persistent):
    options = {"start_method": "fork", "persistent_workers": persistent} if workers else {}
    loader = windows(shuffle=True, seed=1)
    served = xt.make_loader(loader, num_workers=workers, **options)
    expected = {
        e: [i for k in range(len(loader)) for i in loader.batch(e, k).sample_id.values.tolist()]
        for e in range(7)
    }
    order = [torch.cat([b["sample_id"] for b in served]).tolist() for _ in range(2)]
    served.dataset.set_epoch(5)
    order += [torch.cat([b["sample_id"] for b in served]).tolist() for _ in range(2)]
    served.dataset.set_epoch(0)
    order.append(torch.cat([b["sample_id"] for b in served]).tolist())
    assert order == [expected[e] for e in (0, 1, 5, 6, 0)]


@pytest.mark.parametrize("workers", [0, 2])
def test_make_loader__from_a_dataset_cuts_windows_as_coo(workers):
    served = xt.make_loader(
        contacts().chunk({"bin1": 30, "bin2": 30}),
        layout="coo",
        windows=DIAGONAL,
        batch_size=4,
        num_workers=workers,
    )
    loader = windows(batch_size=4)
    for k, batch in enumerate(served):
        assert_same(batch, xt.to_tensors(loader[k], loader, layout="coo"))


@pytest.mark.parametrize("remainder", ["keep", "drop", "pad"])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks__are_disjoint_and_complete(workers, remainder):
    seen, lengths = [], set()
    for rank in range(3):
        loader = cell_loader(
            shuffle=True, rank=rank, world_size=3, remainder=remainder, variables=["X_pca"]
        )
        batches = list(xt.make_loader(loader, num_workers=workers))
        lengths.add(len(batches))
        for b in batches:
            keep = b.get("valid", torch.ones(len(b["sample_id"]), dtype=torch.bool))
            seen += b["sample_id"][keep].tolist()
    assert len(lengths) == 1
    assert len(set(seen)) == len(seen) == (48 if remainder == "drop" else 61)


def test_workers__more_than_batches_do_no_harm():
    served = xt.make_loader(cell_loader(batch_size=61), num_workers=3)
    assert [len(b["sample_id"]) for _ in range(2) for b in served] == [61, 61]


def fail(batch):
    msg = f"no luck with {batch.sizes['cell']} cells"
    raise ZeroDivisionError(msg)


def drop(batch):
    return batch.isel(cell=slice(1, None))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (fail, ZeroDivisionError, "no luck with 8 cells"),
        (drop, TransformError, "'drop' changed the batch dimension 'cell' from 8 to 7 samples"),
    ],
)
def test_workers__errors_of_a_transform_arrive_with_type_and_samples(
    workers, transform, error, message
):
    served = xt.make_loader(cell_loader(transform=transform), num_workers=workers)
    batches = iter(served)
    with pytest.raises(error, match=message) as caught:
        list(batches)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "while transforming samples [0, 1, 2" in told


def test_workers__a_lambda_reaches_spawned_processes():
    loader = cell_loader(variables=["X_pca"], transform=lambda b: b.assign(twice=2 * b.X_pca))
    served = xt.make_loader(loader, num_workers=1, start_method="spawn")
    for batch in served:
        assert torch.equal(batch["twice"], 2 * batch["X_pca"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": -1}, "num_workers=-1 is impossible; choose 0 to 128"),
        ({"num_workers": 999}, "num_workers=999 is impossible"),
        ({"start_method": "fork"}, r"\['start_method'\] are about worker processes"),
        ({"persistent_workers": True}, r"\['persistent_workers'\] are about worker processes"),
        ({"prefetch_factor": 4}, r"\['prefetch_factor'\] are about worker processes"),
        ({"batch_size": 3}, r"\['batch_size'\] belong to the Loader, which is made already"),
    ],
)
def test_make_loader__refuses_options_that_do_nothing(options, message):
    with pytest.raises(PlanError, match=message):
        xt.make_loader(cell_loader(), **options)


def test_make_loader__persistent_false_without_workers_is_fine():
    assert len(list(xt.make_loader(cell_loader(), persistent_workers=False))) == 8


def test_make_loader__refuses_an_unknown_layout_at_once():
    for make in (xt.make_loader, xt.MapDataset, xt.IterableDataset):
        with pytest.raises(PlanError, match="layout='ragged' is unknown"):
            make(cell_loader(), layout="ragged")


class Told(xt.IterableDataset):
    """Says, inside the worker, which tensors other processes can see without a copy."""

    @override
    def __iter__(self):
        for tensors in super().__iter__():
            x = tensors["X"]
            parts = [x.values(), x.col_indices()] if x.layout == torch.sparse_csr else [x]
            yield {"shared": torch.tensor([p.is_shared() for p in parts]), **tensors}


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_workers__batches_lie_in_shared_memory_from_the_start(layout):
    x = scipy.sparse.random(600, 500, 0.3, "csr", np.float32, np.random.default_rng(0))
    array = CSRArray(x.data, x.indices, x.indptr.astype(np.int64), x.shape)
    ds = xr.Dataset({"X": (("cell", "gene"), array)})
    loader = xl.Loader(ds, batch_size=200, shuffle=True, layout=layout)
    served = torch.utils.data.DataLoader(Told(loader), batch_size=None, num_workers=1)
    for tensors in served:
        assert tensors["shared"].all()
        expected = x[tensors["sample_id"].numpy()].toarray()
        np.testing.assert_array_equal(tensors["X"].to_dense().numpy(), expected)
    here = next(iter(xl.Loader(ds, batch_size=200))).X.data
    assert not torch.from_numpy(here.data).is_shared()


def test_make_loader__takes_workers_only_for_slow_transforms(monkeypatch):
    def slow(batch):
        time.sleep(0.02)
        return batch

    monkeypatch.setattr(xt.loaders, "n_cpus", lambda: 4)
    assert xt.make_loader(cell_loader()).num_workers == 0
    assert xt.make_loader(cell_loader(transform=lambda b: b)).num_workers == 0
    assert xt.make_loader(cell_loader(transform=slow)).num_workers == 3
    assert xt.make_loader(cell_loader(transform=slow), num_workers=0).num_workers == 0
