"""The steps of a conversion: each variable as tasks, which any process may do, in any order."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.utils import format_bytes

from xloader import trace
from xloader.arrays import RowArray
from xloader.errors import PlanError
from xloader.keyed import key_of, permuted
from xloader.store.journal import Journal, Part, remove_journals, share
from xloader.store.layout import (
    TILE,
    encode,
    path_of,
    write_group,
    write_root,
)
from xloader.store.new_files import is_unfinished, replace_file
from xloader.store.rows_writer import RowsWriter
from xloader.store.staging import DenseStaging, RowSource, RowStaging, StraightRows
from xloader.store.tasks import Work, run_tasks
from xloader.store.widening import Widening
from xloader.store.write import describe, manifest, write_label
from xloader.store.writers import DenseWriter, TileSource, TilesWriter, Writer
from xloader.threads import n_cpus

Int64 = npt.NDArray[np.int64]
DESCRIPTION = "~description"
"""File in which the first part keeps what the metadata of the store will say."""

_TASKS = 8  # a number of processors would decide on the size of shards


@dataclass(frozen=True)
class Options:
    """What decides on the bytes of a store, with its source."""

    codec: str
    """Which compression."""
    budget: int
    """Bytes that the tasks running at the same time may take."""
    seed: int | None
    """Of the order of cells; None for the order of the source."""
    max_distance: int | None
    """Longest distance of contacts that are written, in bp."""


class Job:
    """
    One conversion, or one part of it.

    Parameters
    ----------
    root : Path
        Directory that the store is built in.
    groups : mapping of str to xarray.Dataset
        What is written, by the name of its group.
    options : Options
        How.
    journal : Journal
        Where done tasks are noted.
    bar : tqdm.tqdm
        Where progress is shown.
    """

    def __init__(
        self,
        root: Path,
        groups: Mapping[str, xr.Dataset],
        options: Options,
        journal: Journal,
        bar: Any,
    ) -> None:
        self.root, self.groups, self.options = root, groups, options
        self.journal, self.bar = journal, bar
        self.described: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """
        Write everything, one variable after the other.

        Returns
        -------
        dict
            What it takes to open each group again, by name.
        """
        self._describe()
        for step in self._steps():
            staging = step.staging()
            writer = step.writer(staging, self._do(staging, step.staged_path))
            join(step.folder / step.name, self._do(writer, step.path), self.options.budget)
            self._add(step, writer)
            step.forget()
        return self.described

    def run_part(self, part: Part, kind: str) -> bool:
        """
        Do one part of the tasks.

        Parameters
        ----------
        part : (int, int)
            Which part of how many; the first writes labels too.
        kind : str
            Of the data.

        Returns
        -------
        bool
            False if other parts have yet to put rows in order, before any can be written.
        """
        staged = True
        for step in self._steps():
            staging = step.staging()
            done = self._do(staging, step.staged_path, part)
            staged &= staging is None or len(done) == staging.n_tasks
        if not staged:
            return False
        if part[0] == 1:
            self._describe()
        for step in self._steps():
            staging = step.staging()
            writer = step.writer(staging, self.journal.done(step.staged_path))
            self._do(writer, step.path, part)
            if part[0] == 1:
                self._add(step, writer)
        if part[0] == 1:
            told = {"kind": kind, "groups": self.described, "budget": self.options.budget}
            replace_file(self.root / DESCRIPTION, [json.dumps(told).encode()])
        return True

    def _steps(self) -> Iterator["Step"]:
        for group, ds in self.groups.items():
            order = self._order(ds)
            for key, path, variable in _variables(ds):
                if _is_array(variable):
                    yield Step(self, group, key, path, variable, order)

    def _order(self, ds: xr.Dataset) -> Int64 | None:
        if self.options.seed is None:
            return None
        n = ds.sizes["cell"]
        return permuted(np.arange(n), n, key_of(self.options.seed))

    def _describe(self) -> None:
        """Write groups and all that is kept in memory when a store is open."""
        for name, ds in self.groups.items():
            folder, order = self.root / name, self._order(ds)
            for parent in (*reversed(Path(name).parents), Path(name)):
                write_group(self.root / parent)
            shutil.rmtree(folder / "coords", ignore_errors=True)
            labels = ds.coords.to_dataset()
            labels = labels if order is None else labels.isel(cell=order)
            coords = {
                str(key): write_label(folder, f"coords/{path_of(str(key), k)}", label, str(key))
                for k, (key, label) in enumerate(labels.variables.items())
            }
            attrs = {k: encode(v, f"attribute {k!r}") for k, v in ds.attrs.items()}
            if self.options.max_distance is not None:
                attrs["max_distance"] = self.options.max_distance
            variables: dict[str, Any] = {}
            for key, path, variable in _variables(ds):
                variables[key] = None  # in the order of the source
                if not _is_array(variable):
                    if order is not None and "cell" in variable.dims:
                        variable = variable.isel(cell=order)  # noqa: PLW2901 # the same, in order
                    variables[key] = write_label(folder, path, variable, path)
            self.described[name] = {"attrs": attrs, "coords": coords, "variables": variables}

    def _add(self, step: "Step", writer: Writer) -> None:
        self.described[step.group]["variables"][step.key] = {
            "path": step.name,
            **describe(step.variable, step.name),
            **writer.description(),
            "dtype": step.variable.dtype.newbyteorder("=").str,
        }

    def _do(self, work: Work | None, path: str, part: Part | None = None) -> dict[int, int]:
        """Do what is left of some work, and return the rung of each task that is done by now."""
        if work is None:
            return {}
        done = self.journal.begin(path, work.n_tasks)
        work.rung = max([work.rung, *done.values()])
        mine = share(part, work.n_tasks)
        left = [k for k in mine if k not in done]
        self.bar.total = (self.bar.total or 0) + len(mine)
        self.bar.set_postfix_str(f"{path}, {format_bytes(work.task_nbytes)} a task")
        self.bar.update(len(mine) - len(left))

        def note(task: int, rung: int) -> None:
            self.journal.add(path, task, rung)
            self.bar.update()

        run_tasks(work, left, self.options.budget, self.root, note)
        return self.journal.done(path)


class Step:
    """
    One variable that is written in tasks.

    Parameters
    ----------
    job : Job
        What it is a step of.
    group, key, name : str
        Of its group, its own name there, and that of its folder below the group.
    variable : xarray.Variable
        Numbers, lazy or in memory.
    order : ndarray of int64, shape (n_cells,), optional
        The order of cells, if it is not that of the source.
    """

    def __init__(
        self,
        job: Job,
        group: str,
        key: str,
        name: str,
        variable: xr.Variable,
        order: Int64 | None,
    ) -> None:
        self.group, self.key, self.name = group, key, name
        self.variable, self.order = variable, order if "cell" in variable.dims else None
        self.ds, self.options = job.groups[group], job.options
        self.folder = job.root / group
        self.path = f"{group}/{name}".lstrip("/")
        self.staged_path = f"{self.path}~staged"
        self._staged = job.root / self.staged_path

    @cached_property
    def _rows(self) -> tuple[RowArray, Int64, Int64] | None:
        """Return the sparse matrix beneath the variable, and the rows and columns wanted."""
        view = trace.view(self.variable)
        if view is None or not isinstance(view.array, RowArray) or self.variable.dims[0] != "cell":
            return None
        rows, columns = view.index
        if len(np.unique(columns)) != len(columns):
            return None
        return view.array, rows if self.order is None else rows[self.order], columns

    @property
    def _is_straight(self) -> bool:
        if self._rows is None:
            return False
        array, rows, columns = self._rows
        everything = np.array_equal(columns, np.arange(array.shape[1]))
        plain = array.is_counted and not array.by_column
        return everything and plain and bool((np.diff(rows) > 0).all())

    def staging(self) -> RowStaging | DenseStaging | None:
        """
        Return what is to be done before the variable can be written.

        Returns
        -------
        RowStaging, DenseStaging or None
            None if it can be read in the order wanted.
        """
        if set(self.variable.dims) == {"bin1", "bin2"} or self._is_straight:
            return None
        if self._rows is not None:
            array, rows, columns = self._rows
            if array.by_column:
                _check_scan(array, rows, self.options.budget)
            return RowStaging(array, rows, columns, self._staged, self.options.budget)
        if self.order is None:
            return None
        variable = self.variable.transpose("cell", ...)
        return DenseStaging(variable, self.order, self._staged, self.options.budget)

    def writer(self, staging: RowStaging | DenseStaging | None, rungs: Mapping[int, int]) -> Writer:
        """
        Choose a layout: tiles for contacts, rows for what is stored sparse, else dense.

        Parameters
        ----------
        staging : RowStaging, DenseStaging or None
            What was done before.
        rungs : mapping of int to int
            What each of its tasks returned.

        Returns
        -------
        Writer
            With tasks of which several can run at the same time, if the budget allows.
        """
        path, variable, codec = self.folder / self.name, self.variable, self.options.codec
        if set(variable.dims) == {"bin1", "bin2"}:
            far = self.options.max_distance
            near = None if far is None else _near(self.ds, far)
            tiles = TileSource(variable.transpose("bin1", "bin2"))
            return self._fit(
                lambda b: TilesWriter(path, tiles, near=near, codec=codec, budget=b), n_cpus()
            )
        if self._rows is not None:
            source: RowSource
            if isinstance(staging, RowStaging):
                source = staging.staged(rungs)
            else:
                source = StraightRows(*self._rows[:2])
            dims = tuple(map(str, variable.dims))
            return self._fit(lambda b: RowsWriter(path, source, dims=dims, codec=codec, budget=b))
        if isinstance(staging, DenseStaging):
            variable = staging.staged()
        return self._fit(lambda b: DenseWriter(path, variable, codec=codec, budget=b))

    def forget(self) -> None:
        """Make room: of rows that are written, no more is needed than how long they are."""
        for file in self._staged.iterdir() if self._staged.is_dir() else ():
            if file.suffix != ".indptr":
                file.unlink()

    def _fit(self, make: Callable[[int], Writer], parts: int = _TASKS) -> Writer:
        """Plan tasks of which several can run at the same time, else one by one."""
        try:
            return make(self.options.budget // parts)
        except PlanError:
            return make(self.options.budget)


def _variables(ds: xr.Dataset) -> Iterator[tuple[str, str, xr.Variable]]:
    """Yield the name of each data variable, that of its folder, and itself."""
    for k, (key, array) in enumerate(ds.data_vars.items()):
        path = path_of(str(key), k)
        yield str(key), path_of("", k) if path == "coords" else path, array.variable


def _is_array(variable: xr.Variable) -> bool:
    return variable.dtype.kind in "iufb" and variable.ndim > 0


def join(path: Path, rungs: Mapping[int, int], budget: int) -> None:
    """
    Give a variable one type, and its place.

    Parameters
    ----------
    path : Path
        Where it goes.
    rungs : mapping of int to int
        The rung that each of its tasks wrote.
    budget : int
        Bytes that may be taken at the same time.
    """
    work = Widening(path, rungs)
    run_tasks(work, range(work.n_tasks), budget, path.parent, lambda *_: None)
    work.join()


def complete(root: Path, kind: str, described: Mapping[str, Any]) -> None:
    """
    Make a directory a store: nothing is left in it but what belongs there, and its list is written.

    Parameters
    ----------
    root : Path
        Directory that the store is built in.
    kind : str
        Of the data.
    described : mapping
        What it takes to open each group again, by name.
    """
    tidy(root)
    write_root(root, {"kind": kind, "groups": described, "arrays": manifest(root)})
    forget(root)


def forget(root: Path) -> None:
    """
    Remove all notes of how far a conversion is, and what was put in order for it.

    Parameters
    ----------
    root : Path
        Directory of a store that is complete: without these it cannot go on.
    """
    for folder, folders, _ in os.walk(root):
        for name in [name for name in folders if name.endswith("~staged")]:
            shutil.rmtree(Path(folder, name))
            folders.remove(name)
    for path in (root / DESCRIPTION, *root.glob("~lock-*")):
        path.unlink(missing_ok=True)
    remove_journals(root)


def tidy(root: Path) -> None:
    """
    Remove files that were not written to their end.

    Parameters
    ----------
    root : Path
        Directory that the store is built in.
    """
    for folder, _, names in os.walk(root):
        for name in filter(is_unfinished, names):
            Path(folder, name).unlink()


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
