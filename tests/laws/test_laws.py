"""The laws of a Loader, for any request: L1, L2, L3, L4, L7, and the one they follow from."""

import pickle

import numpy as np
import numpy.testing as npt
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st

import xloader as xl
from tests.doubles import (
    Rows,
    Tiles,
    assert_equals_naive,
    cells,
    contact_map,
    contacts,
    counts,
    dense,
    grid,
)
from xloader.errors import PlanError

REMAINDERS = st.sampled_from(["keep", "drop", "pad"])


def chunked(ds, chunks):
    return ds if chunks is None else ds.chunk(chunks)


@st.composite
def cell_requests(draw):
    """Draw cells in some form, some of them, in some order."""
    array = Rows(counts(), draw(st.integers(1, 20)))
    form = draw(st.sampled_from(["rows", "rows-dask", "memory"]))
    ds = cells(array)
    ds = ds.load() if form == "memory" else ds
    if form == "rows-dask":
        ds = ds.chunk({"cell": draw(st.integers(3, 61)), "gene": draw(st.integers(5, 17))})
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 9)))
        ds = ds.isel(cell=rng.permutation(61)[: draw(st.integers(1, 61))])
        ds = ds.isel(gene=rng.permutation(17)[: draw(st.integers(1, 17))])
    length = draw(st.sampled_from([1, 1, 3]))
    assume(length <= ds.sizes["cell"])
    return ds, {"input_dims": {"cell": length}, "labels": ["cell_type"] if length == 1 else []}


@st.composite
def contact_requests(draw):
    """Draw a contact map in some form, some of its bins, and windows over them."""
    ds = contacts(Tiles(contact_map(), draw(st.integers(3, 30))))
    if draw(st.booleans()):
        ds = ds.chunk({"bin1": draw(st.integers(9, 101)), "bin2": draw(st.integers(9, 101))})
    low, high = draw(st.integers(0, 30)), draw(st.integers(80, 101))
    ds = ds.isel(bin1=slice(low, high), bin2=slice(low, high))
    size, stride = draw(st.integers(1, 15)), draw(st.integers(2, 20))
    asked = {"size": size, "stride": stride, "shift": draw(st.sampled_from([0, 0, 5, 40]))}
    if draw(st.booleans()):
        return ds, {"windows": xl.windows.diagonal(**asked)}
    far, triangle = draw(st.integers(0, 30)), draw(st.sampled_from(["both", "upper"]))
    return ds, {"windows": xl.windows.grid(max_distance=far, triangle=triangle, **asked)}


@st.composite
def array_requests(draw):
    """Draw windows over what has nothing to do with genomes."""
    ds = grid(9, 11)
    if draw(st.booleans()):
        ds = ds.chunk({d: draw(st.integers(1, n)) for d, n in ds.sizes.items()})
    dims = draw(st.lists(st.sampled_from(["time", "lat", "lon"]), min_size=1, unique=True))
    cut = {d: draw(st.integers(1, ds.sizes[d])) for d in dims}
    overlap = {d: draw(st.integers(0, n - 1)) for d, n in cut.items()}
    names = [v for v in ds.data_vars if set(ds[v].dims) & set(dims)]
    return ds[names], {"input_dims": cut, "input_overlap": overlap}


REQUESTS = st.one_of(cell_requests(), contact_requests(), array_requests())


@st.composite
def loaders(draw, /, **fixed):
    """Draw a Loader, what it reads, and how to make it again."""
    ds, cut = draw(REQUESTS)
    options = {
        "batch_size": draw(st.integers(1, 30)),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 5)),
        "remainder": draw(REMAINDERS),
        "prefetch": draw(st.integers(0, 1)),
        "memory_budget": draw(st.sampled_from([8_000, 50_000, 270_000, "1GB"])),
        **cut,
        **fixed,
    }
    try:
        return xl.Loader(ds, **options), ds, options
    except PlanError:
        assume(False)  # too little memory or too few samples for what was drawn


def served(loader, epoch=0):
    return list(loader.batches(epoch, range(len(loader))))


def ids_of(batches):
    """Return the samples that do not pad."""
    return [i for b in batches for i in b.sample_id.values[valid(b)].tolist()]


def valid(batch):
    return batch.valid.values if "valid" in batch.coords else np.ones(len(batch.sample_id), bool)


@given(loaders(), st.integers(0, 2))
def test_l1__every_sample_once_per_epoch_and_what_is_left_is_counted(made, epoch):
    loader, _, _ = made
    batches, n = served(loader, epoch), len(loader.plan.windows)
    ids = ids_of(batches)
    assert len(set(ids)) == len(ids) == n - loader.plan.n_dropped
    assert set(ids) <= set(range(n))
    assert sum((~valid(b)).sum() for b in batches) == loader.plan.n_padded


@given(loaders(), st.integers(0, 2))
def test_l2__every_field_of_every_sample_equals_a_plain_read(made, epoch):
    loader, ds, _ = made
    assert_equals_naive(loader, ds, *served(loader, epoch), epoch=epoch)


@given(st.data(), st.integers(1, 4))
def test_l1_l3_l4__ranks_share_each_global_batch_in_equal_steps(data, world):
    loader, ds, options = data.draw(loaders())
    n, each = len(loader.plan.windows), options["batch_size"]
    assume(options["remainder"] != "drop" or n >= world * each)
    ranks = [xl.Loader(ds, **options, rank=r, world_size=world) for r in range(world)]
    alone = xl.Loader(ds, **{**options, "batch_size": world * each})
    steps = list(zip(*map(served, ranks), strict=True))  # equal steps on every rank
    assert len(steps) == len(ranks[0]) == len(alone)
    for parts, whole in zip(steps, served(alone), strict=True):
        npt.assert_array_equal(ids_of(parts), ids_of([whole]))
    assert len(ids_of([b for parts in steps for b in parts])) == n - alone.plan.n_dropped


@given(loaders(shuffle=True))
def test_l7__every_epoch_differs_in_order(made):
    loader, _, _ = made
    assume(len(loader.plan.windows) > 20)
    assume(loader.plan.n_dropped == 0)
    orders = [ids_of(list(loader)) for _ in range(3)]  # each pass is the next epoch
    assert len({tuple(o) for o in orders}) == 3
    assert orders == [ids_of(served(loader, e)) for e in range(3)]


@given(loaders(), st.integers(0, 2), st.randoms())
def test_batch__is_a_function_of_seed_epoch_and_step(made, epoch, random):
    loader, ds, options = made
    batches = [dense(b) for b in served(loader, epoch)]
    copies = [pickle.loads(pickle.dumps(loader)), xl.Loader(ds, **options), loader]
    order = list(range(len(loader)))
    random.shuffle(order)
    for k in order[:6]:
        copy = random.choice(copies)
        copy.set_epoch(epoch)
        assert dense(copy[k]).identical(batches[k])


def noise(batch, *, rng):
    """Add one random number per sample."""
    values = [r.random() for r in rng]
    return batch.assign(noise=(batch["sample_id"].dims, values))


@given(loaders(transform=noise), st.integers(1, 30), st.integers(0, 2))
def test_randomness__is_keyed_by_the_sample_whatever_the_batching(made, batch_size, epoch):
    loader, ds, options = made
    one = xr.concat([b[["noise"]] for b in served(loader, epoch)], loader.sample_dim)
    drawn = dict(zip(one.sample_id.values.tolist(), one.noise.values.tolist(), strict=True))
    assert len(set(drawn.values())) == len(drawn)
    changed = {"batch_size": batch_size, "shuffle": not options["shuffle"], "remainder": "keep"}
    other = xl.Loader(ds, **{**options, **changed, "memory_budget": "1GB"})
    for batch in served(other, epoch):
        pairs = zip(batch.sample_id.values.tolist(), batch.noise.values.tolist(), strict=True)
        assert all(drawn.get(i, x) == x for i, x in pairs)
    ids = sorted(drawn)[::-3]
    assert other.samples(ids, epoch=epoch).noise.values.tolist() == [drawn[i] for i in ids]
    assert other.samples(ids, epoch=epoch + 1).noise.values.tolist() != [drawn[i] for i in ids]
