# mypy: disable-error-code="import-not-found"
"""Loading and converting cells: what a pass of each contender is."""

import json
import shutil
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tests.benchmarks import cells_data
from tests.benchmarks.cells_data import CATEGORY
from tests.benchmarks.runner import ROOT, Pass

Array = npt.NDArray[Any]
Outcome = tuple[int, dict[str, float]]


@dataclass
class Part:
    """A batch as any loader delivers it; `chosen` says which cells are of one type."""

    data: Array
    indices: Array
    indptr: Array
    chosen: Array | None


@dataclass
class Epochs:
    """
    Passes over all batches of a loader.

    A pass counts the cells, the values and the cells of one type. Before anything is timed, one
    pass sums up all that it delivers, which must be what the file holds.
    """

    batches: Callable[[], Iterator[Part]]
    label: str
    check_labels: bool = True
    per_cell: bool = False

    def __call__(self) -> Outcome:
        rows = nnz = chosen = 0
        for part in self.batches():
            rows += len(part.indptr) - 1
            nnz += len(part.data)
            if part.chosen is not None:
                chosen += int(np.count_nonzero(part.chosen))
        check: dict[str, float] = {"rows": rows, "nnz": nnz}
        if self.check_labels:
            check["labelled"] = chosen
        return rows, {k: v / rows for k, v in check.items()} if self.per_cell else check

    def verified(self, folder: Path, copies: int = 1, columns: Array | None = None) -> "Epochs":
        """
        Return the same after a pass whose sums are those of the file.

        `columns` are the numbers that genes have in the file, where the loader numbers them anew.
        """
        told = json.loads((folder / "cells.json").read_text())
        sums = dict.fromkeys(told, 0.0)
        for part in self.batches():
            lengths = np.diff(part.indptr)
            sums["rows"] += len(lengths)
            sums["nnz"] += len(part.data)
            sums["counts"] += float(part.data.sum(dtype=np.float64))
            indices = part.indices if columns is None else columns[part.indices]
            sums["columns"] += float(indices.sum(dtype=np.int64))
            if part.chosen is not None:
                of = np.repeat(part.chosen, lengths)
                sums["labelled"] += np.count_nonzero(part.chosen)
                sums["labelled_counts"] += float(part.data[of].sum(dtype=np.float64))
        for key, value in sums.items():
            unlabelled = key.startswith("labelled") and not self.check_labels
            if not unlabelled and not np.isclose(value, copies * told[key], rtol=1e-9):
                msg = f"{key} are {value}, not {copies * told[key]}"
                raise ValueError(msg)
        return self


def _cells(path: Path) -> xr.Dataset:
    """Open cells with the one label that peers deliver, too."""
    import xloader as xl

    ds = xl.open_cells(path)
    others = {name for name, x in ds.coords.items() if x.dims == ("cell",)}
    return ds.drop_vars(others - {"cell", "row", "cell_type"})


def _loader(path: Path, *, rows: int, **options: Any) -> tuple[Iterator[Any], str]:
    """
    Return the loader of each pass, whose pools hold at least `rows` rows, and say so.

    One pool that holds everything would be read in the first epoch only. So it is avoided, or, where
    that many rows are wanted, everything is opened and read again in each pass.
    """
    import xloader as xl

    def make(budget: int, prefetch: int) -> Any:
        given = {"variables": ["X"], "memory_budget": budget, "prefetch": prefetch, **options}
        return xl.Loader(_cells(path), shuffle=True, **given)

    def enough(budget: int, prefetch: int) -> bool:
        try:
            return len(make(budget, prefetch).plan.pool_ids(0, 0)) >= rows
        except xl.errors.PlanError:
            return False

    budgets = np.geomspace(1e5, 1e11, 300).astype(int).tolist()
    for prefetch in (1, 0):
        budget = budgets[bisect_left(budgets, x=True, key=partial(enough, prefetch=prefetch))]
        loader = make(budget, prefetch)
        label = _label(loader, budget)
        if not loader.plan.in_memory:
            return repeat(loader), label
        if rows == len(loader.plan.windows):
            again = f"{label}, opened and read again in each pass"
            return _of_each_epoch(partial(make, budget, prefetch)), again
    msg = f"no memory budget gives pools of {rows} rows and more than one pool"
    raise ValueError(msg)


def _of_each_epoch(make: Callable[[], Any]) -> Iterator[Any]:
    for epoch in count():
        loader = make()
        loader.set_epoch(epoch)
        yield loader


def _label(loader: Any, budget: int) -> str:
    plan = loader.plan
    return (
        f"blocks of {np.diff(plan.blocks.ptr).max()} rows, {len(plan.pool_ids(0, 0)):,} rows in a "
        f"pool, prefetch {loader.prefetch}, memory_budget {budget / 1e6:.0f} MB"
    )


def ours(
    folder: Path,
    *,
    batch_size: int,
    rows: int = 0,
    budget: int = 0,
    source: str = "cells.fast.xl",
    transform: bool = False,
    check_labels: bool = True,
    copies: int = 0,
) -> Epochs:
    """Load CSR batches with xloader."""
    import xloader as xl

    options: dict[str, Any] = {
        "batch_size": batch_size,
        "transform": normalized if transform else None,
    }
    if budget:
        ds = _cells(folder / source)
        loader = xl.Loader(ds, shuffle=True, variables=["X"], memory_budget=budget, **options)
        label = _label(loader, budget)
        loaders: Iterator[Any] = repeat(loader)
    else:
        loaders, label = _loader(folder / source, rows=rows, **options)

    def batches() -> Iterator[Part]:
        for batch in next(loaders):
            x = batch.variables["X"].data
            if x.dtype != np.float32 or x.indices.dtype != np.int32:
                msg = f"CSR of {x.dtype} and {x.indices.dtype}"
                raise TypeError(msg)
            chosen = batch.variables["cell_type"].values == CATEGORY
            yield Part(x.data, x.indices, x.indptr, chosen)

    epochs = Epochs(batches, label, check_labels, per_cell=copies > 0)
    if transform:
        _check_normalized(next(loaders), folder / source)
        return epochs
    return epochs.verified(folder, copies or 1)


def normalized(ds: xr.Dataset) -> xr.Dataset:
    """Normalize each cell to the same total, as a user of xarray writes it."""
    x = ds["X"]
    return ds.assign(X=np.log1p(x * (1e4 / x.sum("gene"))))


def _check_normalized(loader: Any, path: Path) -> None:
    """Compare the first batch with what numpy makes of the same cells."""
    import xloader as xl

    batch = next(iter(loader))
    loader = xl.Loader(xl.open_cells(path), batch_size=1, variables=["X"])
    raw = loader.samples(batch["sample_id"].values)
    x, y = raw.variables["X"].data, batch.variables["X"].data
    lengths = np.diff(x.indptr)
    total = np.repeat(np.add.reduceat(x.data.astype(float), x.indptr[:-1]), lengths)
    np.testing.assert_array_equal(x.indices, y.indices)
    np.testing.assert_allclose(y.data, np.log1p(x.data * 1e4 / total), rtol=1e-5)


def annbatch(folder: Path, *, chunk: int, preload: int, batch_size: int) -> Epochs:
    """Load CSR batches with annbatch from the store that it made, with one column of obs."""
    import anndata as ad
    import zarr
    from annbatch import DatasetCollection, Loader

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    ad.settings.remove_unused_categories = False

    def load(group: zarr.Group) -> ad.AnnData:
        obs = ad.io.read_elem(group["obs"])[["cell_type"]]
        return ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=obs)

    loader = Loader(
        chunk_size=chunk,
        preload_nchunks=preload,
        batch_size=batch_size,
        shuffle=True,
        to=None,
        preload_to_gpu=False,
        rng=np.random.default_rng(0),
    )
    collection = DatasetCollection(folder / "cells.annbatch.zarr", mode="r")
    loader.use_collection(collection, load_adata=load)

    def batches() -> Iterator[Part]:
        for batch in loader:
            x = batch["X"]
            if x.dtype != np.float32 or x.indices.dtype != np.int32:
                msg = f"CSR of {x.dtype} and {x.indices.dtype}"
                raise TypeError(msg)
            chosen = (batch["obs"]["cell_type"] == CATEGORY).to_numpy()
            yield Part(x.data, x.indices, x.indptr, chosen)

    return Epochs(
        batches, f"blocks of {chunk} rows, {chunk * preload:,} rows in a pool, zarrs"
    ).verified(folder)


def homeobox(folder: Path, *, batch_size: int, rows: int) -> Epochs:
    """Load batches of counts with the iterable dataset of homeobox, without metadata."""
    import homeobox as hox

    atlas = hox.RaggedAtlas.checkout_latest(str(folder / "cells.homeobox"))
    dataset = atlas.query().to_unimodal_dataset(
        "gene_expression",
        mode="iterable",
        batch_size=batch_size,
        io_batch_size=rows,
        prefetch=2,
        shuffle=True,
        seed=0,
    )

    def batches() -> Iterator[Part]:
        for batch in dataset:
            yield Part(batch.layers["counts"], batch.indices, batch.offsets, None)

    label = f"single rows, blocks of {rows:,} rows, 2 ahead, no metadata, counts as uint32"
    genes = atlas.registry_tables["gene_expression"].to_arrow()
    columns = np.empty(len(genes), np.int64)
    columns[genes["global_index"].to_numpy()] = [
        int(name.removeprefix("ENSG")) for name in genes["gene_symbol"].to_pylist()
    ]
    return Epochs(batches, label, check_labels=False).verified(folder, columns=columns)


def dense(folder: Path, *, batch_size: int, rows: int) -> Callable[[], Outcome]:
    """Load dense float32 batches with xloader."""
    loaders, label = _loader(
        folder / "cells.fast.xl", rows=rows, batch_size=batch_size, layout="dense"
    )
    told = json.loads((folder / "cells.json").read_text())
    total = sum(float(batch["X"].values.sum(dtype=np.float64)) for batch in next(loaders))
    np.testing.assert_allclose(total, told["counts"], rtol=1e-9)

    def run() -> Outcome:
        n = nbytes = 0
        for batch in next(loaders):
            x = batch.variables["X"].values
            if x.dtype != np.float32:
                raise TypeError(x.dtype)
            n, nbytes = n + len(x), nbytes + x.nbytes
        return n, {"rows": n, "bytes": nbytes}

    return Labelled(run, label)


def fill(folder: Path, *, batch_size: int, fresh: bool) -> Callable[[], Outcome]:
    """Write the bytes of the dense batches, and nothing else."""
    import h5py

    with h5py.File(folder / "cells.h5ad") as f:
        n, n_genes = f["X"].attrs["shape"]
    reused = np.ones((batch_size, n_genes), np.float32)

    def run() -> Outcome:
        rows = nbytes = 0
        for start in range(0, n, batch_size):
            size = min(batch_size, n - start)
            x = np.empty((size, n_genes), np.float32) if fresh else reused[:size]
            x.fill(1)
            rows, nbytes = rows + size, nbytes + x.nbytes
        return rows, {"rows": rows, "bytes": nbytes}

    return run


@dataclass
class Labelled:
    """A pass, and the settings that were found for it."""

    run: Callable[[], Outcome]
    label: str

    def __call__(self) -> Outcome:
        return self.run()


def converted(folder: Path, *, ours: bool) -> Callable[[], Pass]:
    """Convert the file with shuffling; afterwards, all of the new store is read once."""
    target = folder / ("converted.xl" if ours else "converted.zarr")
    source = folder / "cells.h5ad"

    def convert() -> None:
        if ours:
            import xloader as xl

            xl.convert(source, target, shuffle=True, progress=False)
        else:
            cells_data.annbatch_store(source, target)

    def run() -> Pass:
        shutil.rmtree(target, ignore_errors=True)
        start = time.perf_counter()
        convert()
        seconds = time.perf_counter() - start
        n, check = _sums_of(target, ours=ours)
        return Pass(seconds, n, check)

    return run


def _sums_of(store: Path, *, ours: bool) -> Outcome:
    import zarr

    if ours:
        import xloader as xl

        totals = xl.open_cells(store)["n_counts"].values
    else:
        group: Any = zarr.open_group(store, mode="r")
        totals = np.concatenate([part["obs/n_counts"][:] for _, part in group.groups()])
    return len(totals), {"rows": len(totals), "counts": float(totals.sum(dtype=np.float64))}


def size(folder: Path, *, store: str) -> Callable[[], Outcome]:
    """Count the bytes of a store."""
    files = [path for path in (folder / store).rglob("*") if path.is_file()]
    n = sum(path.stat().st_size for path in files)
    n_rows = _sums_of(folder / store, ours=store.endswith(".xl"))[0]
    return lambda: (n, {"rows": n_rows})


FIRST_BATCH = """
import sys, time
import xloader as xl
start = time.perf_counter()
loader = xl.Loader(xl.open_cells(sys.argv[1]), batch_size=int(sys.argv[2]), shuffle=True)
batch = next(iter(loader))
x = batch.variables["X"].data
print(time.perf_counter() - start, x.shape[0] + 0 * len(x.data))
"""
# what the libraries take is theirs: numba's registries are filled when it first runs something
FIRST_BATCH_OWN = """
import sys, time
import dask.array, numba, numcodecs.blosc, xarray
numba.njit(lambda: 0)()
start = time.perf_counter()
import xloader as xl
ds = xl.open_cells(sys.argv[1])
loader = xl.Loader(ds, batch_size=int(sys.argv[2]), shuffle=True, memory_budget="256MB")
batch = next(iter(loader))
x = batch.variables["X"].data
print(time.perf_counter() - start, x.shape[0] + 0 * len(x.data))
"""
IMPORT = """
import importlib, sys, time
start = time.perf_counter()
module = importlib.import_module(sys.argv[1])
for name in sys.argv[2:]:
    getattr(module, name)
print(time.perf_counter() - start, 1)
"""


def fresh(folder: Path, *, code: str, args: list[str]) -> Callable[[], Pass]:
    """Run code in a new process, which prints the seconds that it took and what it got."""

    def run() -> Pass:
        told = subprocess.run(
            [sys.executable, "-c", code, *(arg.format(folder=folder) for arg in args)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode:
            raise RuntimeError(told.stderr)
        seconds, n = map(float, told.stdout.split())
        return Pass(seconds, 1, {"got": n})

    return run


def backed(folder: Path, *, batch_size: int, block: int, rows: int) -> Epochs:
    """Load an `.h5ad` as it is with anndata: blocks in random order, sorted within a pool."""
    import anndata as ad

    adata = ad.read_h5ad(folder / "cells.h5ad", backed="r")
    chosen = (adata.obs["cell_type"] == CATEGORY).to_numpy()
    rng = np.random.default_rng(0)
    starts = np.arange(0, adata.n_obs, block)

    def batches() -> Iterator[Part]:
        order = rng.permutation(starts)
        per_pool = rows // block
        for k in range(0, len(order), per_pool):
            parts = [
                np.arange(i, min(i + block, adata.n_obs)) for i in sorted(order[k : k + per_pool])
            ]
            ids = np.concatenate(parts)
            pool = adata[ids].X
            mixed = rng.permutation(len(ids))
            for i in range(0, len(ids), batch_size):
                take = mixed[i : i + batch_size]
                x = pool[take]
                yield Part(x.data, x.indices, x.indptr, chosen[ids[take]])

    label = f"backed, adata[ids].X with blocks of {block} rows, {rows:,} rows in a pool"
    return Epochs(batches, label).verified(folder)


def few_genes(folder: Path, *, batch_size: int) -> Callable[[], Outcome]:
    """Load cells with hardly any data, all in memory; the samples are batches."""
    import xloader as xl

    loader = xl.Loader(xl.open_cells(folder / "few.fast.xl"), batch_size=batch_size, shuffle=True)
    n_cells = loader.ds.sizes["cell"]

    def run() -> Outcome:
        rows = sum(len(batch.variables["cell_type"].values) for batch in loader)
        return len(loader), {"missing": n_cells - rows}

    return run
