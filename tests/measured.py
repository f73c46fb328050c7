"""
Memory of a process and its workers, measured from the beginning.

``python -m tests.measured peak STORE MEMORY_BUDGET [...]`` and ``python -m tests.measured flat STORE
MEMORY_BUDGET EPOCHS`` print it in MB, for stores of cells and of contacts; docs/design/004-the-plan.md
quotes them.
"""

import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # noqa: F401 # imported before the baseline is taken

import xloader as xl
import xloader.kernels
import xloader.torch as xt

for _module in pkgutil.iter_modules(xloader.kernels.__path__):
    importlib.import_module(f"xloader.kernels.{_module.name}")

MB = 10**6
WORKERS = {"persistent workers": True, "new workers in each epoch": False}
_kept: list[Any] = []


def status(field, pid="self"):
    """Return a field of the status of a process, in MB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / MB


def shares():
    """Return the memory of this process and its workers; shared pages are shared out (PSS)."""
    pids = [os.getpid(), *(p.pid for p in multiprocessing.active_children())]
    each = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(re.search(r"\nPss:\s+(\d+) kB", text)[1]) for text in each) * 1024 / MB


def leak(batch):
    """Keep a copy of a batch."""
    _kept.append(batch.copy(deep=True))
    return batch


def loader_of(store, budget, **options):
    """Return a Loader of cells, or of overlapping contact windows that are balanced."""
    if (Path(store) / "resolutions").exists():
        ds = xl.open_contacts(store, resolution=min(xl.resolutions(store)))
        size = 128
        shape = xl.windows.grid(size=size, stride=size // 2, max_distance=4 * size)
        options = {"batch_size": 16, "windows": shape, **options}
    else:
        options = {"batch_size": 256, "variables": ["X"], **options}
        ds = xl.open_cells(store)
    return xl.Loader(ds, memory_budget=budget, shuffle=True, **options)


def flat(store, budget, epochs, *, persistent, transform=None):
    """Return the memory of all processes together at eight points of each epoch, shape (epochs, 8)."""
    loader = loader_of(store, budget, transform=transform)
    batches = xt.make_loader(
        loader, num_workers=4, start_method="fork", persistent_workers=persistent
    )
    points = np.linspace(1 / 8, 7 / 8, 8) * len(loader)
    return [
        [shares() for k, _ in enumerate(batches) if k in points.astype(int)] for _ in range(epochs)
    ]


def peak(store, budget):
    """Return the peak of each of two workers, and of a process without workers, above the imports."""
    baseline, inherited = status("VmRSS"), status("RssAnon")
    loader = loader_of(store, budget)
    batches = xt.make_loader(loader, num_workers=2, start_method="fork")
    for _ in batches:
        pass
    pids = [p.pid for p in multiprocessing.active_children()]
    # forked: the code of libraries counts anew, as soon as it is used
    workers = [status("VmHWM", p) - status("RssFile", p) - inherited for p in pids]
    del batches
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    for _ in loader:
        pass
    return {
        "workers": workers,
        "alone": status("VmHWM") - baseline,
        "pools": loader.plan.n_pools(0),
    }


def main(what, store, *args):
    """Measure what is asked for; every peak needs a process of its own."""
    if what == "peak":
        print(json.dumps(peak(store, *args)))
        return
    budget, epochs = args
    told = {k: flat(store, budget, int(epochs), persistent=p) for k, p in WORKERS.items()}
    told["a batch kept at each step"] = flat(store, budget, 2, persistent=True, transform=leak)
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
