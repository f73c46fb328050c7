"""L1, L2, L3 and L7 through the Loader itself, on a store, for any ranks, batches and memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xloader as xl


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A cells store and a contacts store, and the same values in memory."""
    folder = tmp_path_factory.mktemp("laws")
    h5ad = xl.simulate.cells(folder / "a.h5ad", n_cells=700, n_genes=60)
    sizes = {"a": 4_000_000, "b": 2_500_000}
    mcool = xl.simulate.contacts(folder / "a.mcool", chromosomes=sizes, resolutions=(10_000,))
    cells = xl.convert(h5ad, folder / "cells", progress=False)
    contacts = xl.convert(mcool, folder / "contacts", progress=False)
    return {
        "cells": (cells, {"variables": ["X"]}, cells.X.values),
        "contacts": (
            contacts,
            {"windows": xl.windows.diagonal(size=20, stride=9, shift=9)},
            contacts["count"].values,
        ),
    }


def values_of(kind, whole, loader, batch, epoch):
    """Read the samples of a batch with numpy alone."""
    starts = loader.plan.windows.starts_of(batch.sample_id.values, epoch)
    if kind == "cells":
        return batch.X.data.todense(), whole[starts[:, 0]]
    expected = [whole[i : i + 20, j : j + 20] for i, j in starts]
    return batch["count"].values, np.stack(expected)


@pytest.mark.parametrize("kind", ["cells", "contacts"])
@given(
    batch_size=st.integers(1, 90),
    world_size=st.integers(1, 5),
    remainder=st.sampled_from(["keep", "drop", "pad"]),
    small=st.booleans(),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_epoch__serves_every_sample_once_over_all_ranks(
    sources, kind, batch_size, world_size, remainder, small, shuffle, seed, epoch
):
    ds, options, whole = sources[kind]
    budget = {"cells": 150_000, "contacts": 5_000_000}[kind] if small else "1GB"
    n = len(xl.Loader(ds, batch_size=1, remainder=remainder, **options).plan.windows)
    batch_size = min(batch_size, n // world_size)  # so that "drop" leaves a batch
    served, steps = [], []
    for rank in range(world_size):
        loader = xl.Loader(
            ds,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            remainder=remainder,
            memory_budget=budget,
            rank=rank,
            world_size=world_size,
            **options,
        )
        loader.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader)
        steps.append(len(batches))
        for batch in batches:
            got, expected = values_of(kind, whole, loader, batch, epoch)
            np.testing.assert_array_equal(got, expected)
            valid = batch.valid.values if "valid" in batch.coords else slice(None)
            served.append(batch.sample_id.values[valid])
    assert len(set(steps)) == 1
    ids = np.concatenate(served)
    assert len(ids) == len(np.unique(ids))
    assert len(ids) + loader.plan.n_dropped == n
    assert loader.plan.n_dropped == 0 or remainder == "drop"


@pytest.mark.parametrize("kind", ["cells", "contacts"])
@given(seed=st.integers(0, 50), small=st.booleans())
def test_epochs__differ_in_order_and_repeat_exactly(sources, kind, seed, small):
    ds, options, _ = sources[kind]
    budget = {"cells": 150_000, "contacts": 5_000_000}[kind] if small else "1GB"
    loader = xl.Loader(ds, batch_size=16, shuffle=True, seed=seed, memory_budget=budget, **options)
    orders = [np.concatenate([b.sample_id.values for b in loader]).tolist() for _ in range(3)]
    assert len(set(map(tuple, orders))) == 3
    assert len(set(map(frozenset, orders))) == 1
    assert orders[0] != sorted(orders[0])
    loader.set_epoch(1)
    again = np.concatenate([b.sample_id.values for b in loader]).tolist()
    assert again == orders[1]
