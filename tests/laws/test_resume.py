"""L5, L6, L8: training goes on after every step, twice and three times in an epoch, as if it had not stopped."""

import itertools

import numpy as np
import pytest

import xloader as xl
from tests.doubles import Rows, Tiles, cells, contact_map, contacts, counts
from xloader.errors import StateError

KINDS = ("cells", "contacts")
ORDERS = ("shuffled", "weighted", "grouped", "uniform", "sequential")
WORLDS = (1, 2, 3, 4, 6, 8)


def noise(batch, *, rng):
    """Add one random number per sample."""
    return batch.assign(noise=(batch["sample_id"].dims, [r.random() for r in rng]))


def make(kind, order, *, small=True, **options):
    """Return a loader of few steps."""
    if kind == "cells":
        ds = cells(Rows(counts(), 5))
        options = {"labels": ["cell_type"], "transform": noise, **options}
    else:
        ds = contacts().chunk({"bin1": 24, "bin2": 40})
        options = {"windows": xl.windows.diagonal(size=12, stride=2, shift=7), **options}
    if order in ("weighted", "grouped"):
        by = {"cells": "cell_type", "contacts": "chrom1"}[kind]
        n = {"cells": 61, "contacts": 41}[kind]
        order = xl.orders.grouped(by) if order == "grouped" else xl.orders.weighted(np.arange(n))
    budget = {"cells": 4_000, "contacts": 120_000}[kind] if small else "1GB"
    return xl.Loader(ds, **{"batch_size": 12, "order": order, "memory_budget": budget, **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_resume__after_every_step_and_up_to_three_times(kind, order):
    remainder = {"weighted": "pad", "uniform": "drop"}.get(order, "keep")
    xl.testing.assert_resumes_everywhere(make(kind, order, remainder=remainder), worlds=(1, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_resume__on_every_number_of_ranks(kind):
    loader = make(kind, "shuffled", batch_size=24, small=False)
    xl.testing.assert_resumes_everywhere(loader, worlds=WORLDS, epoch=1, times=2)


@pytest.mark.long
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("remainder", ["keep", "drop", "pad"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_resume__all_of_it(kind, order, remainder, small):
    loader = make(kind, order, remainder=remainder, small=small, batch_size=24)
    xl.testing.assert_resumes_everywhere(loader, worlds=WORLDS, times=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_laws__of_plans_and_states(kind, order):
    loader = make(kind, order)
    xl.testing.assert_covers(loader)
    xl.testing.assert_equal_steps(loader)
    xl.testing.assert_topology_free(loader)
    if order != "sequential":
        xl.testing.assert_epochs_differ(loader)
    xl.testing.assert_state_is_small(loader)


def strangers():
    """Return loaders that are not `make("cells", "shuffled")`, by what differs."""
    base = {"memory_budget": 4_000, "batch_size": 12, "labels": ["cell_type"], "transform": noise}
    ds = cells(Rows(counts(), 5))
    other = counts()
    other[60] += 1
    return {
        "values": xl.Loader(cells(Rows(other, 5)), order="shuffled", **base),
        "fewer samples": xl.Loader(ds.isel(cell=slice(60)), order="shuffled", **base),
        "variables": xl.Loader(ds[["X"]], order="shuffled", **base),
        "seed": xl.Loader(ds, order="shuffled", **base, seed=1),
        "order": xl.Loader(ds, order="uniform", **base),
        "weights": xl.Loader(ds, order=xl.orders.weighted("depth"), **base),
        "transform": xl.Loader(ds, order="shuffled", **{**base, "transform": lambda b: b}),
        "global batch": xl.Loader(ds, order="shuffled", **{**base, "batch_size": 6}),
        "remainder": xl.Loader(ds, order="shuffled", **base, remainder="drop"),
        "memory": xl.Loader(ds, order="shuffled", **{**base, "memory_budget": 8_000}),
        "windows": xl.Loader(
            contacts(Tiles(contact_map())), batch_size=12, windows=xl.windows.diagonal(size=9)
        ),
    }


def test_state__of_any_other_loader_is_refused_both_ways():
    loaders = {"own": make("cells", "shuffled"), **strangers()}
    xl.testing.assert_state_is_small(loaders["own"], others=list(strangers().values()))
    for (a, one), (b, other) in itertools.permutations(loaders.items(), 2):
        with pytest.raises(StateError, match=r"state .*(resume|make|open)") as told:
            one.load_state_dict(other.state_dict())
        assert str(told.value), (a, b)
        assert one.position == (0, 0)  # nothing was changed
