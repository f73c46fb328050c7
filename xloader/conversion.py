"""From file or Dataset to training store: tasks of whole shards, run by dask, visible when complete."""

import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.utils import format_bytes
from tqdm import tqdm

from xloader import schema, trace
from xloader.arrays import RowArray
from xloader.errors import PlanError, SchemaError
from xloader.joined import concat
from xloader.memory import nbytes_of
from xloader.open import identify, open_cells, open_contacts, resolutions
from xloader.state import digest
from xloader.store.building import building, check_place, publish
from xloader.store.journal import Journal
from xloader.store.layout import FORMAT, TILE, encode, path_of, write_group, write_root
from xloader.store.rows_writer import RowsWriter
from xloader.store.staging import RowSource, StraightRows, stage_dense, stage_rows
from xloader.store.write import CODECS, describe, manifest, write_label
from xloader.store.writers import DenseWriter, TileSource, TilesWriter, Writer
from xloader.threads import n_cpus

Int64 = npt.NDArray[np.int64]
_STAGING = "~staging"
_TASKS = 8  # a number of processors would decide on the size of shards


def convert(
    source: str | os.PathLike[str] | xr.Dataset | Sequence[Any],
    store: str | os.PathLike[str],
    *,
    shuffle: bool = False,
    seed: int = 0,
    codec: str = "fast",
    memory_budget: int | str = "1GB",
    max_distance: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """
    Write a training store: zarr v3, sharded, with every label.

    It is built beside its final place and moved there when it is complete. A conversion that was
    killed or interrupted goes on where it was when it is called again in the same way.

    Parameters
    ----------
    source : str, path-like, xarray.Dataset, or a list of them
        A ``.cool``, ``.mcool`` or ``.hic`` (all their resolutions) or ``.h5ad`` file, one cell of a
        ``.scool`` file (``file::/cells/ID``), another store, or an opened Dataset with whatever was
        selected from it. A list of cells goes into one store as `concat` joins them, all genes
        kept; ``convert(xl.concat(paths, join=...), store)`` keeps others, and takes names.
    store : str or path-like
        Directory to make.
    shuffle : bool, optional
        Whether cells are written in a random order; `row` keeps where each came from.
    seed : int, optional
        Seed of that order.
    codec : {"fast", "small"}, optional
        Quick to decode (lz4), or few bytes (zstd).
    memory_budget : int or str, optional
        Bytes that the tasks running at the same time may take.
    max_distance : int, optional
        Contacts farther apart than this, in bp, and between chromosomes are left out, tile by tile.
    overwrite : bool, optional
        Whether an existing store is replaced, once the new one is complete. Anything else that is
        at its place is never replaced.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        The opened store; the finest resolution, if it has several.

    Raises
    ------
    PlanError
        If options do not fit the data, or a task does not fit the budget.
    ReadError
        If the source cannot be read, or the store exists already, or something else is there.
    SchemaError
        If the source is of no supported kind.
    """
    target = Path(os.fsdecode(store))
    if codec not in CODECS:
        msg = f"codec={codec!r} is unknown; choose one of {CODECS}"
        raise PlanError(msg)
    budget = nbytes_of(memory_budget)
    check_place(target, overwrite=overwrite)
    groups = _groups(source)
    kind = schema.kind(next(iter(groups.values())))
    _check(groups, kind, shuffle=shuffle, max_distance=max_distance)
    shown = {"desc": f"convert to {target.name}", "unit": "shard", "disable": not progress}
    with building(target) as partial, tqdm(**shown) as bar:
        key = _key(groups, codec, budget, seed if shuffle else None, max_distance)
        job = _Job(partial, codec, budget, bar, Journal(partial, key))
        described = {
            name: job.group(name, ds, _order(ds, seed) if shuffle else None, max_distance)
            for name, ds in groups.items()
        }
        job.journal.remove()
        write_root(partial, {"kind": kind, "groups": described, "arrays": manifest(partial)})
        publish(target)
    if kind == "cells":
        return open_cells(target)
    return open_contacts(target, resolution=min(resolutions(target), default=None))


def _groups(source: Any) -> dict[str, xr.Dataset]:
    """Return what is converted, by the name of its group."""
    if isinstance(source, list | tuple):
        return {"": concat(source)}
    if not isinstance(source, xr.Dataset):
        if not isinstance(source, str | os.PathLike):
            msg = (
                f"cannot convert a {type(source).__name__}; give a path or an opened Dataset, a list of cells, or "
                "what xl.concat makes of several"
            )
            raise SchemaError(msg)
        if identify(source)[1] == "cells":
            return {"": open_cells(source)}
        sizes: list[int | None] = [*resolutions(source)]
        maps = [open_contacts(source, resolution=size) for size in sizes or [None]]
        return {_group_name(ds): ds for ds in maps}
    return {_group_name(source) if schema.kind(source) == "contacts" else "": source}


def _group_name(ds: xr.Dataset) -> str:
    resolution = ds.attrs.get("resolution")
    return f"resolutions/{'variable' if resolution is None else int(resolution)}"


def _check(
    groups: Mapping[str, xr.Dataset], kind: str, *, shuffle: bool, max_distance: int | None
) -> None:
    """Refuse what cannot be written, before anything is read."""
    for ds in groups.values():
        empty = [str(d) for d, n in ds.sizes.items() if n == 0]
        if empty or not ds.data_vars:
            msg = f"there is nothing to convert: {dict(ds.sizes)}, variables {list(ds.data_vars)}"
            raise PlanError(msg)
        if kind == "contacts" and "cell" in ds.sizes:
            msg = (
                f"a store holds one contact map, not those of {ds.sizes['cell']} cells; convert each "
                "cell by itself: its path, such as 'cells.scool::/cells/ID', or isel(cell=0)"
            )
            raise PlanError(msg)
        if kind == "contacts" and ds.sizes["bin1"] != ds.sizes["bin2"]:
            msg = (
                f"a store of contacts is square, but the selection is {dict(ds.sizes)}; select the same "
                "bins on bin1 and bin2"
            )
            raise PlanError(msg)
    if kind == "arrays":
        msg = (
            f"a store holds contacts (dims bin1, bin2) or cells (dim cell), not {list(ds.sizes)}; "
            "the Loader reads other Datasets as they are"
        )
        raise SchemaError(msg)
    if shuffle and kind != "cells":
        msg = "shuffle=True permutes cells; the bins of a contact map stay in order: leave it out"
        raise PlanError(msg)
    if max_distance is not None and kind != "contacts":
        msg = "max_distance is about contacts; leave it out for cells"
        raise PlanError(msg)


def _key(groups: Mapping[str, xr.Dataset], *options: Any) -> str:
    """Return what tells a conversion from others, empty if some values cannot be told from others."""
    arrays = [v.variable for ds in groups.values() for v in ds.data_vars.values()]
    if not all(v.chunks or v._in_memory for v in arrays):
        return ""
    # the name of a dask array says of which file, of what date, it is which part
    told: list[Any] = [v.data.name if v.chunks else v.values for v in arrays]
    named = [(k, list(ds.data_vars), dict(ds.sizes)) for k, ds in groups.items()]
    return digest([FORMAT, named, told, options])


def _order(ds: xr.Dataset, seed: int) -> Int64:
    return np.random.default_rng(seed).permutation(ds.sizes["cell"])


class _Job:
    """One conversion: where it writes, how, and with what memory."""

    def __init__(self, root: Path, codec: str, budget: int, bar: Any, journal: Journal) -> None:
        self.root, self.codec, self.budget, self.bar = root, codec, budget, bar
        self.journal = journal
        self.lock = threading.Lock()
        self.rung = 0

    def group(
        self, name: str, ds: xr.Dataset, order: Int64 | None, max_distance: int | None
    ) -> dict[str, Any]:
        """Write one Dataset and return what it takes to open it again."""
        folder = self.root / name
        for parent in (*reversed(Path(name).parents), Path(name)):
            write_group(self.root / parent)
        labels = (
            ds.coords.to_dataset() if order is None else ds.coords.to_dataset().isel(cell=order)
        )
        coords, variables = {}, {}
        for k, (key, label) in enumerate(labels.variables.items()):
            path = f"coords/{path_of(str(key), k)}"
            coords[str(key)] = write_label(folder, path, label, str(key))
        for k, (key, array) in enumerate(ds.data_vars.items()):
            path = path_of(str(key), k)
            if path == "coords":
                path = path_of("", k)
            variables[str(key)] = self.variable(
                folder, path, ds, array.variable, order, max_distance
            )
        attrs = {k: encode(v, f"attribute {k!r}") for k, v in ds.attrs.items()}
        if max_distance is not None:
            attrs["max_distance"] = max_distance
        return {"attrs": attrs, "coords": coords, "variables": variables}

    def variable(
        self,
        folder: Path,
        path: str,
        ds: xr.Dataset,
        variable: xr.Variable,
        order: Int64 | None,
        max_distance: int | None,
    ) -> dict[str, Any]:
        """Write one data variable in the layout that suits it."""
        if variable.dtype.kind not in "iufb" or variable.ndim == 0:
            if order is not None and "cell" in variable.dims:
                variable = variable.isel(cell=order)
            return write_label(folder, path, variable, path)
        staging = self.root / _STAGING
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        staging.mkdir()
        try:
            writer = self.writer(folder / path, ds, variable, order, max_distance, staging)
            self.run(writer)
            dtype = variable.dtype.newbyteorder("=").str
            return {
                "path": path,
                **describe(variable, path),
                **writer.description(),
                "dtype": dtype,
            }
        finally:
            shutil.rmtree(staging)

    def writer(
        self,
        path: Path,
        ds: xr.Dataset,
        variable: xr.Variable,
        order: Int64 | None,
        max_distance: int | None,
        staging: Path,
    ) -> Writer:
        """Choose a layout: tiles for contacts, rows for what is stored sparse, else dense."""
        if set(variable.dims) == {"bin1", "bin2"}:
            tiles = TileSource(variable.transpose("bin1", "bin2"))
            near = None if max_distance is None else _near(ds, max_distance)
            return self.fit(
                lambda b: TilesWriter(path, tiles, near=near, codec=self.codec, budget=b), n_cpus()
            )
        view = trace.view(variable)
        if view is not None and isinstance(view.array, RowArray) and variable.dims[0] == "cell":
            rows, columns = view.index
            if len(np.unique(columns)) == len(columns):
                source = self.rows(view.array, rows, columns, order, staging)
                dims = tuple(map(str, variable.dims))
                return self.fit(
                    lambda b: RowsWriter(path, source, dims=dims, codec=self.codec, budget=b)
                )
        if order is not None and "cell" in variable.dims:
            variable = variable.transpose("cell", ...)
            variable = stage_dense(variable, order, staging / "dense", self.budget // 4)
        return self.fit(lambda b: DenseWriter(path, variable, codec=self.codec, budget=b))

    def rows(
        self, array: RowArray, rows: Int64, columns: Int64, order: Int64 | None, staging: Path
    ) -> RowSource:
        """Return rows and columns in the order wanted, from disk where storage has another one."""
        if array.by_column:
            _check_scan(array, rows, self.budget)
        if order is not None:
            rows = rows[order]
        everything = np.array_equal(columns, np.arange(array.shape[1]))
        plain = array.is_counted and not array.by_column
        if everything and plain and (np.diff(rows) > 0).all():
            return StraightRows(array, rows)
        return stage_rows(array, rows, columns, staging, self.budget // 16)

    def fit(self, make: Callable[[int], Writer], parts: int = _TASKS) -> Writer:
        """Plan tasks of which several can run at the same time, else one by one."""
        try:
            return make(self.budget // parts)
        except PlanError:
            return make(self.budget)

    def run(self, writer: Writer) -> None:
        """Run all tasks of a writer, again with a wider type if a value asks for it."""
        workers = max(1, min(n_cpus(), self.budget // max(writer.task_nbytes, 1)))
        self.bar.total = (self.bar.total or 0) + writer.n_tasks
        self.bar.set_postfix_str(f"{writer.path.name}, {format_bytes(writer.task_nbytes)} a task")
        path = writer.path.relative_to(self.root).as_posix()
        rung, self.rung = -1, max(writer.first_rung, self.journal.last_rung(path))
        while self.rung > rung:
            rung, begun = self.rung, self.bar.n
            plan = {"rung": rung, "tasks": writer.n_tasks, "nbytes": writer.task_nbytes}
            done = self.journal.done(path, plan)
            if not done:
                shutil.rmtree(writer.path, ignore_errors=True)
                self.journal.begin(path, plan)
            writer.create(rung)
            self.bar.update(len(done))
            left = [k for k in range(writer.n_tasks) if k not in done]
            tasks = [dask.delayed(self.task)(writer, path, k, rung) for k in left]  # type: ignore[attr-defined]
            # a pool of its own: after a failure, no task is left that still writes
            pool = ThreadPoolExecutor(workers)
            try:
                dask.compute(*tasks, scheduler="threads", pool=pool)  # type: ignore[attr-defined, no-untyped-call]
            finally:
                pool.shutdown(cancel_futures=True)
            if self.rung > rung:
                self.bar.update(begun - self.bar.n)

    def task(self, writer: Writer, path: str, task: int, rung: int) -> None:
        """Do one task, unless all is to be written anew, and advance the progress bar."""
        if self.rung > rung:
            return
        need = writer.write(task, rung)
        if need <= rung:
            self.journal.add(path, task)
        with self.lock:
            self.rung = max(self.rung, need)
            self.bar.update()


def _check_scan(array: RowArray, rows: Int64, budget: int) -> None:
    """Refuse a budget that does not hold one block of rows of what is stored by columns."""
    starts = np.arange(0, array.shape[0], array.block_rows)
    stops = np.minimum(starts + array.block_rows, array.shape[0])
    used = np.isin(starts, rows // array.block_rows * array.block_rows)
    n_values = int(array.nnz_of(starts[used], stops[used]).max())
    # while they are put in order, a value is there twice, with its row, column and place in int64
    nbytes = n_values * 2 * (array.dtype.itemsize + 24)
    if nbytes > budget:
        mb = -(-nbytes // 10**6)
        msg = (
            f"reading a matrix by rows, which is stored by columns, needs {mb} MB at a time, and "
            f"`memory_budget` allows {budget / 1e6:.0f} MB; choose a budget of at least {mb} MB, or "
            "store the source by rows (CSR)"
        )
        raise PlanError(msg)


def _near(ds: xr.Dataset, max_distance: int) -> Callable[[int], npt.NDArray[np.bool_]]:
    """Return what says which tiles of a tile row hold contacts within a distance."""
    chrom, start, end = (ds[f"{name}1"].values for name in ("chrom", "start", "end"))
    codes = np.unique(chrom, return_inverse=True)[1]
    edges = np.arange(0, len(start), TILE)

    def near(row: int) -> npt.NDArray[np.bool_]:
        here = slice(row * TILE, (row + 1) * TILE)
        keep = np.zeros(len(start), bool)
        for code in np.unique(codes[here]):
            mine = codes[here] == code
            low = start[here][mine].min() - max_distance
            high = end[here][mine].max() + max_distance
            keep |= (codes == code) & (end > low) & (start < high)
        return np.logical_or.reduceat(keep, edges)

    return near
