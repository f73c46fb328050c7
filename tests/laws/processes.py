"""What real processes do in tests of laws: workers of a DataLoader, and ranks of a gloo group."""

import itertools
import json
import os
import pickle

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing

import xloader as xl
from xloader import torch as xt

GLOBAL_BATCH = 12
VALUES = {"cells": "X", "contacts": "count"}


def write_stores(folder):
    """Write some cells and a contact map, small enough to be read many times."""
    h5ad = xl.simulate.cells(folder / "a.h5ad", n_cells=80, n_genes=40)
    sizes = {"a": 2_000_000, "b": 1_500_000}
    mcool = xl.simulate.contacts(folder / "a.mcool", chromosomes=sizes, resolutions=(10_000,))
    xl.convert(h5ad, folder / "cells", progress=False)
    xl.convert(mcool, folder / "contacts", progress=False)


def make(folder, kind, order, **options):
    """Return a loader of a store."""
    if kind == "cells":
        ds = xl.open_cells(folder / "cells")
        options = {"variables": ["X"], "layout": "dense", **options}
    else:
        ds = xl.open_contacts(folder / "contacts")
        options = {
            "variables": ["count"],
            "windows": xl.windows.diagonal(size=10, stride=4),
            **options,
        }
    if order == "weighted":
        n = len(xl.Loader(ds, batch_size=1, **options).plan.windows)
        order = xl.orders.weighted(np.arange(n) % 5.0)
    return xl.Loader(ds, **{"batch_size": GLOBAL_BATCH, "seed": 3, "order": order, **options})


def record(batch, kind):
    """Return number and bytes of each sample that does not pad, from a Dataset or from tensors."""
    ids, values = (np.asarray(batch[name]) for name in ("sample_id", VALUES[kind]))
    served = np.asarray(batch["valid"]) if "valid" in batch else np.ones(len(ids), bool)
    return [(int(i), v.tobytes()) for i, v, ok in zip(ids, values, served, strict=True) if ok]


def uninterrupted(folder, kind, order, epochs=2, **options):
    """Return what one process without torch serves."""
    loader = make(folder, kind, order, prefetch=0, **options)
    return [[record(loader.batch(e, k), kind) for k in range(len(loader))] for e in range(epochs)]


def serve(loader, kind, *, state=None, most=None, workers=0, method=None, persistent=None):
    """
    Go on from a state: some steps, or to the end of the epoch and through the next one.

    Return the steps of each epoch, and the state after them.
    """
    made = xt.make_loader(
        loader, num_workers=workers, start_method=method, persistent_workers=persistent
    )
    if state is not None:
        made.load_state_dict(json.loads(json.dumps(state)))
    passes = []
    for _ in range(2 if most is None else 1):
        batches = iter(made)
        passes.append([record(b, kind) for b in itertools.islice(batches, most)])
    return passes, made.state_dict()


def run_group(world, folder, jobs):
    """Run jobs in a gloo group of real processes; return what each gives, ranks joined."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GLOO_SOCKET_IFNAME")
    before = {name: os.environ.get(name) for name in names}
    (folder / "rendezvous").unlink(missing_ok=True)
    try:
        # what a launcher sets on a machine that has one process of each group: no rank of ours
        os.environ.update({"LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo"})
        for name in ("RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)
        torch.multiprocessing.spawn(_rank, (world, folder, jobs), nprocs=world)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    ranks = [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(world)]
    return [join(results) for results in zip(*ranks, strict=True)]


def join(results):
    """Join what ranks served: their parts of each global batch, one after the other."""
    passes, states = zip(*results, strict=True)
    assert all(s == states[0] for s in states)
    whole = [
        [list(itertools.chain(*parts)) for parts in zip(*epoch, strict=True)]
        for epoch in zip(*passes, strict=True)
    ]
    return whole, states[0]


def _rank(rank, world, folder, jobs):
    """Be one rank: make all loaders before the group is there, and use them when it is."""
    loaders = [
        make(folder, job["kind"], job["order"], batch_size=GLOBAL_BATCH // world) for job in jobs
    ]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    results = []
    for loader, job in zip(loaders, jobs, strict=True):
        how = {k: v for k, v in job.items() if k not in {"kind", "order", "from"}}
        if "from" in job:  # what an earlier job of this group saved
            how["state"] = results[job["from"]][1]
        results.append(serve(loader, job["kind"], **how))
    (folder / f"rank{rank}").write_bytes(pickle.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
