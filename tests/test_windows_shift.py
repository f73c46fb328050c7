"""Shifted windows are read where they are in their epoch, by every reader, and nothing says otherwise."""

import re
from collections import Counter

import numpy as np
import numpy.testing as npt
import pytest

import xloader as xl
from tests.doubles import (
    CONTACTS,
    Tiles,
    assert_equals_naive,
    contact_map,
    contacts,
    contacts_in,
)
from xloader.request import sample_values

SHAPES = {
    "diagonal": xl.windows.diagonal(size=12, stride=5, shift=9),
    "grid": xl.windows.grid(size=10, stride=7, shift=7, triangle="upper", max_distance=21),
}


@pytest.mark.parametrize("form", CONTACTS)
@pytest.mark.parametrize("budget", [200_000, "1GB"])
def test_batches__equal_plain_reads_in_every_epoch(form, budget, tmp_path):
    ds, again = contacts_in(form, tmp_path), None
    for shape in SHAPES.values():
        loader = xl.Loader(
            ds, windows=shape, batch_size=5, shuffle=True, seed=2, memory_budget=budget
        )
        places = []
        for epoch in (0, 1, 2, 1):
            loader.set_epoch(epoch)
            again = list(loader)
            assert_equals_naive(loader, ds, *again, epoch=epoch)
            ids = np.concatenate([b.sample_id.values for b in again])
            start = np.concatenate([b.start1.values[:, 0] for b in again])
            places.append(start[np.argsort(ids)].tolist())
        assert places[1] == places[3]
        assert len({tuple(p) for p in places}) == 3
        some = loader.samples([3, 0, 3], epoch=2)
        assert_equals_naive(loader, ds, some, epoch=2)
        loader.set_epoch(2)
        assert loader.samples([3, 0, 3]).identical(some)
        assert loader.batch(1, 0).identical(again[0])


@pytest.mark.parametrize("budget", [160_000, "1GB"])
def test_tiles__each_is_decoded_once_per_pool_and_none_that_no_window_touches(budget):
    array = Tiles(contact_map(400), tile=8)
    ds = contacts(array, chroms=(250, 150))
    loader = xl.Loader(
        ds, batch_size=8, windows=SHAPES["diagonal"], shuffle=True, memory_budget=budget
    )
    plan = loader.plan
    assert plan.in_memory == (budget == "1GB")
    for epoch in range(2):
        array.log.clear()
        loader.set_epoch(epoch)
        for _ in loader:
            pass
        touched = Counter()
        for pool in range(plan.n_pools(epoch)):
            ids = plan.pool_ids(epoch, pool)
            if plan.in_memory:  # what any epoch may touch
                first, last = plan.windows.reach_of(np.arange(len(plan.windows)))
            else:
                first, last = plan.windows.reach_of(ids, epoch)
            tiles = set()
            for (a, _), (b, _) in zip(first.tolist(), last.tolist(), strict=True):
                rows = range(a // 8, (b + 11) // 8 + 1)
                tiles |= {(i, j) for i in rows for j in rows if i <= j}
            touched.update(tiles)
        assert Counter(array.log) == ({} if epoch and plan.in_memory else touched)


@pytest.mark.parametrize("tile", [3, 20])
@pytest.mark.parametrize(("size", "stride"), [(1, 9), (7, 3), (20, 9)])
@pytest.mark.parametrize("shift", [3, 30])
@pytest.mark.parametrize("chunked", [False, True])
def test_blocks__take_no_more_memory_than_the_plan_says_in_any_epoch(
    tile, size, stride, shift, chunked
):
    ds = contacts(Tiles(contact_map(101), tile))
    ds = ds.load().chunk(bin1=tile, bin2=17) if chunked else ds
    shape = xl.windows.diagonal(size=size, stride=stride, shift=shift)
    loader = xl.Loader(ds, windows=shape, batch_size=4, memory_budget="1GB")
    source, blocks = loader._open(), loader.plan.blocks
    members = np.arange(len(loader.plan.windows)) if blocks.members is None else blocks.members
    bounds = source.block_nbytes(members, blocks.ptr)[list(source.readers).index("count")]
    for b, (i, j) in enumerate(zip(blocks.ptr, blocks.ptr[1:], strict=False)):
        for when in (0, 1, None):
            loaded = source.load(members[i:j], when)["count"]
            if chunked:
                assert sum(c.nbytes for c in loaded.values()) <= bounds[b]
            else:
                assert loaded.tiles.nbytes <= bounds[b]


def test_messages__and_labels_tell_the_shifted_place():
    ds, epoch = contacts().load(), 3

    def fail(_):
        msg = "no"
        raise ValueError(msg)

    loader = xl.Loader(ds, windows=SHAPES["diagonal"], batch_size=2, transform=fail, seed=1)
    starts = loader.plan.windows.starts_of(np.array([4, 5]), epoch)[:, 0]
    assert starts.tolist() != loader.plan.windows.starts[4:6, 0].tolist()
    with pytest.raises(ValueError, match="no") as caught:
        loader.batch(epoch, 2)
    (note,) = caught.value.__notes__
    told = re.findall(r"chr1:([\d,]+)-([\d,]+)", note)
    expected = [(f"{s * 1_000:,}", f"{(s + 12) * 1_000:,}") for s in starts.tolist()]
    assert told == [place for place in expected for _ in "12"]
    windows = loader.plan.windows
    for when in (None, 0, epoch):
        values = sample_values(ds, windows, "start1", when)
        first = windows.starts_of(np.arange(len(windows)), when)[:, 0]
        npt.assert_array_equal(values, ds.start1.values[first])
    assert "windows of bin1: 12, bin2: 12, shifted by up to 8)" in repr(loader)
    still = xl.Loader(ds, windows=xl.windows.diagonal(size=12, shift=1), batch_size=2)
    assert "shifted" not in repr(still)


def test_state__refuses_another_shift_and_another_seed():
    ds = contacts().load()

    def make(**options):
        shape = xl.windows.diagonal(size=12, stride=5, shift=options.pop("shift", 9))
        return xl.Loader(ds, windows=shape, batch_size=4, **options)

    state = make().state_dict()
    make().load_state_dict(state)
    with pytest.raises(xl.errors.StateError, match="of other data"):
        make(shift=8).load_state_dict(state)
    with pytest.raises(xl.errors.StateError, match="seed=0 and this Loader has 1"):
        make(seed=1).load_state_dict(state)


def test_workers__serve_the_same_shifted_windows():
    torch = pytest.importorskip("torch")
    ds = contacts().load()
    served = []
    for workers in (0, 2):
        loader = xl.torch.make_loader(
            ds, windows=SHAPES["diagonal"], batch_size=6, shuffle=True, num_workers=workers
        )
        served.append([[b["count"] for b in loader] for _ in range(2)])
    for one, other in zip(*served, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(served[0][0][0], served[0][1][0])
