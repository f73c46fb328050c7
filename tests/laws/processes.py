"""What real processes do in tests of laws: workers of a DataLoader, and ranks of a gloo group."""

import functools
import itertools
import json
import multiprocessing
import os
import pickle

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing

import xloader as xl
from xloader import torch as xt

VALUES = {"cells": "X", "contacts": "count"}
BUDGETS = {("cells", True): 6_000, ("contacts", True): 1_500_000}


def write_stores(folder):
    """Write some cells and a contact map, of several blocks each."""
    h5ad = xl.simulate.cells(folder / "a.h5ad", n_cells=230, n_genes=40)
    sizes = {"a": 9_000_000, "b": 6_500_000}
    mcool = xl.simulate.contacts(folder / "a.mcool", chromosomes=sizes, resolutions=(10_000,))
    xl.convert(h5ad, folder / "cells", progress=False)
    xl.convert(mcool, folder / "contacts", progress=False)


def make(folder, kind, order, *, whole, small, world=1, **options):
    """Return a loader of a store, on one of so many ranks."""
    if kind == "cells":
        ds = xl.open_cells(folder / "cells")
        options = {"variables": ["X"], "layout": "dense", **options}
    else:
        ds = xl.open_contacts(folder / "contacts")
        windows = xl.windows.diagonal(size=10, stride=8)
        options = {"variables": ["count"], "windows": windows, **options}
    if order == "weighted":
        n = len(xl.Loader(ds, batch_size=1, **options).plan.windows)
        order = xl.orders.weighted(np.arange(n) % 5.0)
    budget = BUDGETS.get((kind, small), "1GB")
    options = {"batch_size": whole // world, "seed": 3, "memory_budget": budget, **options}
    return xl.Loader(ds, order=order, **options)


def record(batch, kind):
    """Return number and bytes of each sample that does not pad, from a Dataset or from tensors."""
    ids, values = (np.asarray(batch[name]) for name in ("sample_id", VALUES[kind]))
    served = np.asarray(batch["valid"]) if "valid" in batch else np.ones(len(ids), bool)
    return [(int(i), v.tobytes()) for i, v, ok in zip(ids, values, served, strict=True) if ok]


def loader_of(folder, case, world=1):
    """Return the loader that a case asks for."""
    names = ("kind", "order", "whole", "remainder", "small")
    return make(folder, world=world, **{name: case[name] for name in names})


@functools.lru_cache(maxsize=64)
def _uninterrupted(folder, key):
    case = dict(key)
    loader = loader_of(folder, case)
    loader.prefetch = 0
    served = [
        [record(loader.batch(e, k), case["kind"]) for k in range(len(loader))] for e in (0, 1)
    ]
    states = [[loader.state_at(e, k) for k in range(len(loader) + 1)] for e in (0, 1)]
    return loader.plan, served, states


def uninterrupted(folder, case):
    """Return the plan, and what one process without torch serves and says in two epochs."""
    names = ("kind", "order", "whole", "remainder", "small")
    return _uninterrupted(folder, tuple((name, case[name]) for name in names))


def serve(loader, case):
    """
    Go on from a state, stop after a step as often as asked, then serve this epoch and the next one.

    Return what each step served, and the state after it; and the last state.
    """
    _preload()
    state, found = case["state"], []
    for stops in range(case["stops"], -1, -1):
        made = xt.make_loader(
            loader,
            num_workers=case["workers"],
            start_method=case["method"],
            persistent_workers=case["persistent"],
        )
        made.load_state_dict(json.loads(json.dumps(state)))
        for most in (1,) if stops else (None, None):
            for batch in itertools.islice(made, most):
                state = made.state_dict()
                found.append((record(batch, case["kind"]), state))
    return found, made.state_dict()


def run_group(world, folder, cases):
    """Run cases in a gloo group of real processes; return what each gives, ranks joined."""
    (folder / "rendezvous").unlink(missing_ok=True)
    _preload()
    torch.multiprocessing.start_processes(
        _rank, (world, folder, cases), nprocs=world, start_method="forkserver"
    )
    ranks = [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(world)]
    return [join(results) for results in zip(*ranks, strict=True)]


def _preload():
    """Let servers of forks import once what each process needs."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])


def join(results):
    """Join what ranks served: their parts of each global batch, one after the other."""
    found, last = zip(*results, strict=True)
    assert all(state == last[0] for state in last)
    whole = []
    for step in zip(*found, strict=True):  # equal steps
        parts, states = zip(*step, strict=True)
        assert all(state == states[0] for state in states)
        whole.append((list(itertools.chain(*parts)), states[0]))
    return whole, last[0]


def _rank(rank, world, folder, cases):
    """Be one rank: make all loaders before the group is there, and use them when it is."""
    # what a launcher sets on a machine that has one process of each group: no rank of ours
    os.environ.update({"LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo"})
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    loaders = [loader_of(folder, case, world) for case in cases]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    found = [serve(loader, case) for loader, case in zip(loaders, cases, strict=True)]
    (folder / f"rank{rank}").write_bytes(pickle.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
