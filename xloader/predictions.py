"""Predictions written batch by batch, from any process and in any order, and made a labelled store."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.assembling import Assembly, Dims, Maps, Rows
from xloader.axes import Int64
from xloader.conversion import convert
from xloader.errors import PlanError, ReadError, SchemaError, StateError, warn
from xloader.loader import Loader
from xloader.memory import nbytes_of
from xloader.named import name_samples
from xloader.state import digest
from xloader.store.building import check_place
from xloader.store.parts import Part, Written

_MARK = "made-for-"
_OF = "of-"
_DIMS = "dims.json"


class PredictionWriter:
    """
    Turn predictions of a Loader's samples into a labelled store: the way back.

    Each process appends what it predicts to files of its own, beside the place of the store. When
    the last rank closes, overlapping windows are brought to their weighted mean in one fixed order,
    tile by tile, and cells into their order: the result does not depend on the order in which they were
    written, and predictions that are equal to their source give that source, bit for bit. Of a sample
    that was written several times, as by an order with replacement, the last one counts. A writer of
    the same loader goes on where one that was killed had stopped.

    Parameters
    ----------
    loader : Loader, or a dataset or DataLoader of `xloader.torch`
        Whose samples are predicted: contact windows, or cells one by one.
    store : str or path-like
        Directory to make. It is not there before it is complete.
    weights : {"uniform", "triangular"}, array of shape (bin1, bin2), or callable, optional
        What each place in a window counts where windows overlap: the same, or less towards the sides;
        a function takes the shape of a prediction and returns weights, at least 0.
    symmetric : bool, optional
        Whether pairs of bins have no order: a prediction at (i, j) is one of (j, i) as well.
    margin : int, optional
        Bins that the model crops at each side of a window.
    factor : int, optional
        Bins of the loader that are one bin of a prediction.
    overwrite : bool, optional
        Whether a store that is there already is replaced, at the end.
    memory_budget : int or str, optional
        Bytes that putting the map together may take.
    progress : bool, optional
        Whether to show a progress bar meanwhile.

    Raises
    ------
    PlanError
        If options do not fit the windows.
    ReadError
        If something is at the place of the store.
    SchemaError
        If samples are neither contact windows nor single cells.
    StateError
        If predictions of another loader are left there by a writer that was killed.

    Examples
    --------
    >>> import tempfile
    >>> ds = xr.Dataset({"x": ("cell", np.arange(4.0))}, {"cell": list("abcd")})
    >>> loader = Loader(ds, batch_size=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = PredictionWriter(loader, f"{folder}/out", progress=False)
    ...     for batch in loader:
    ...         writer.write(batch, 2 * batch.x.values)
    ...     writer.close().prediction.values
    array([0., 2., 4., 6.])
    """

    def __init__(
        self,
        loader: Any,
        store: str | os.PathLike[str],
        *,
        weights: Any = "uniform",
        symmetric: bool = True,
        margin: int = 0,
        factor: int = 1,
        overwrite: bool = False,
        memory_budget: int | str = "1GB",
        progress: bool = True,
    ) -> None:
        self.loader = loader = _loader_of(loader)
        self.store = Path(os.fsdecode(store))
        self.overwrite, self.progress = overwrite, progress
        self.memory_budget = nbytes_of(memory_budget)
        windows = loader.plan.windows.unlinked
        self._assembly: Assembly
        if set(windows.dims) == {"bin1", "bin2"}:
            self._assembly = Maps(
                loader.ds,
                windows,
                weights=weights,
                symmetric=symmetric,
                margin=margin,
                factor=factor,
            )
        elif not (windows.by_row and windows.dims == ("cell",)):
            msg = (
                f"predictions of windows {dict(zip(windows.dims, windows.size, strict=True))} have no "
                "place; predict contact windows (bin1, bin2) or cells one by one"
            )
            raise SchemaError(msg)
        elif not isinstance(weights, str) or (weights, margin, factor) != ("uniform", 0, 1):
            msg = "weights, margin and factor are about contact windows; leave them out for cells"
            raise PlanError(msg)
        else:
            self._assembly = Rows(loader.ds)
        check_place(self.store, overwrite=overwrite)
        self._folder = self.store.parent / f".{self.store.name}.predictions"
        self._closed = False
        self._parts: dict[str, Part] = {}
        self._pid = os.getpid()
        self._begin()

    def _begin(self) -> None:
        """Find or make the folder of parts, and say in it that this rank is still writing."""
        mine = _MARK + digest(self._assembly.identity())
        with _told(self._folder):
            self._folder.mkdir(exist_ok=True)
        others = [p.name for p in self._folder.glob(f"{_MARK}*") if p.name != mine]
        if others:
            msg = (
                f"{str(self._folder)!r} holds predictions of other windows, or with other options, "
                "whose writer was not closed; go on with the same loader and options, or remove that "
                "folder to begin anew"
            )
            raise StateError(msg)
        (self._folder / mine).touch()
        self._done_of(self.loader.plan.rank).unlink(missing_ok=True)
        self._claim.unlink(missing_ok=True)

    @property
    def _claim(self) -> Path:
        return self._folder / "closing"

    def _done_of(self, rank: int) -> Path:
        return self._folder / f"done-{rank}-of-{self.loader.plan.world_size}"

    @override
    def __repr__(self) -> str:
        n = len(self.loader.plan.windows)
        state = "closed" if self._closed else f"{n - len(self.missing):,} of {n:,} samples written"
        return f"<xloader.PredictionWriter> {str(self.store)!r}: {state}"

    @property
    def missing(self) -> Int64:
        """
        Return the samples that no process has written so far.

        Returns
        -------
        ndarray of int64
            Their numbers, increasing, for `Loader.samples`.
        """
        self._check_open()
        with self._written() as (_, complete):
            return np.setdiff1d(
                np.arange(len(self.loader.plan.windows)), complete, assume_unique=True
            )

    @contextmanager
    def _written(self) -> Iterator[tuple[dict[str, tuple[Written, Dims]], Int64]]:
        """Open what all processes have written, by name, and say which samples have all of it."""
        with ExitStack() as opened:
            found = {}
            for folder in sorted(self._folder.glob(f"{_OF}*")):
                dims = (
                    json.loads((folder / _DIMS).read_text()) if (folder / _DIMS).exists() else None
                )
                parts = Written(folder)
                opened.callback(parts.close)
                found[unquote(folder.name.removeprefix(_OF))] = parts, dims
            every = [parts.ids for parts, _ in found.values()]
            yield found, reduce(np.intersect1d, every) if every else np.zeros(0, np.int64)

    def write(self, batch: xr.Dataset | Mapping[str, Any], prediction: Any) -> None:
        """
        Write the predictions of one batch; they are safe when this returns.

        Parameters
        ----------
        batch : xarray.Dataset or mapping
            A batch of the loader, as labels or as tensors: `sample_id`, and `valid` where it is padded.
            Samples that only pad are left out; one that was written before is replaced; predictions of
            windows that were turned around (`flipped`) are turned back.
        prediction : array, tensor or DataArray; or a mapping or Dataset of several
            Of contact windows of shape (sample, bin1, bin2), of cells (cell, ...); several, by name, become
            a variable each, and one alone is called `prediction`. NaN where nothing is predicted. They
            are kept as float32 or float64, integers of 32 bits and more as float64.

        Raises
        ------
        ReadError
            If the disk does not take them.
        SchemaError
            If they are of another shape, or no numbers.
        StateError
            If the batch is of another loader, or the writer was closed.
        """
        self._check_open()
        ids, valid = self._samples(batch)
        turned = _flags(batch, "flipped", len(ids), absent=False)
        ready = {}
        for name, (given, dims) in _named(prediction).items():
            self._check(name, given, len(ids))
            ready[name] = self._assembly.prepare(given[valid], ids[valid], turned[valid]), dims
        if valid.any():
            for part, (values, _) in zip(self._parts_of(ready), ready.values(), strict=True):
                part.append(ids[valid], values)

    def _check(self, name: str, values: npt.NDArray[Any], n: int) -> None:
        """Refuse a prediction that has no place in the result."""
        taken = self._assembly.taken
        if name in taken or name.rpartition("_")[2] == "coverage":
            msg = (
                f"a prediction cannot be called {name!r}, as a label is, or the count of predictions; call it "
                f"otherwise (labels are {sorted(taken)})"
            )
            raise SchemaError(msg)
        shape = self._assembly.shape
        fits = 0 not in values.shape[1:] if shape is None else values.shape[1:] == shape
        if values.shape[:1] != (n,) or not fits:
            expected = f"(cell, ...) = ({n}, ...)"
            if shape is not None:
                expected = (
                    f"(sample, bin1, bin2) = {(n, *shape)}; drop dimensions of channels, and tell margins and "
                    "coarser bins by PredictionWriter(margin=, factor=)"
                )
            msg = f"{name!r} is of shape {values.shape}, and this batch asks for {expected}"
            raise SchemaError(msg)

    def _samples(
        self, batch: xr.Dataset | Mapping[str, Any]
    ) -> tuple[Int64, npt.NDArray[np.bool_]]:
        """Return the numbers of the samples of a batch, and which of them do not only pad."""
        if "sample_id" not in batch:
            msg = f"the batch has no `sample_id`, which says what it is; it has {sorted(map(str, batch))}"
            raise SchemaError(msg)
        ids = np.atleast_1d(_plain(batch["sample_id"])).astype(np.int64)
        valid = _flags(batch, "valid", len(ids), absent=True)
        windows, ds = self.loader.plan.windows.unlinked, self.loader.ds
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(windows):
            msg = (
                f"samples {ids.min()} to {ids.max()} of {len(windows)}; the batch is of another loader "
                "than this writer's"
            )
            raise StateError(msg)
        if isinstance(batch, xr.Dataset):
            starts = windows.starts_of(ids)
            for k, dim in enumerate(windows.dims):
                if dim not in batch.coords or dim not in ds.coords:
                    continue
                here, there = batch[dim].values.reshape(len(ids), -1), ds[dim].values[starts[:, k]]
                there = self._assembly.shown(there, here.shape[1], windows.size[k])
                if here.shape[1] > 1:
                    here = np.minimum(here[:, :1], here[:, -1:])  # of flipped windows the last
                shows = True if windows.beyond is None else windows.beyond[ids, k] == 0
                odd = np.flatnonzero((here[:, 0] != there) & shows)
                if len(odd):
                    msg = (
                        f"sample {ids[odd[0]]} of the batch begins at {dim} {here[odd[0], 0]}, and that of this "
                        f"writer's loader is {name_samples(ds, windows, ids[odd[:1]], 0)}; the batch is of "
                        "another loader, or its windows were shifted at random"
                    )
                    raise StateError(msg)
        return ids, valid

    def _parts_of(self, ready: Mapping[str, tuple[npt.NDArray[Any], Dims]]) -> list[Part]:
        """Return the files of this process, begun when they are first needed."""
        if self._pid != os.getpid():  # the parent's files are the parent's
            self._parts, self._pid = {}, os.getpid()
        if not self._parts:
            self._begin_parts(ready)
        now = {name: f"{v.dtype} of shape {v.shape[1:]}" for name, (v, _) in ready.items()}
        before = {name: f"{p.dtype} of shape {p.shape}" for name, p in self._parts.items()}
        if now != before:
            msg = f"predictions are {now}, and those before were {before}; write all of one kind"
            raise SchemaError(msg)
        return [self._parts[name] for name in ready]

    def _begin_parts(self, ready: Mapping[str, tuple[npt.NDArray[Any], Dims]]) -> None:
        rank = self.loader.plan.rank
        folders = {name: self._folder / f"{_OF}{quote(name, safe='')}" for name in ready}
        with _told(self._folder):
            others = {p.name for p in self._folder.glob(f"{_OF}*")} - {
                p.name for p in folders.values()
            }
            if others:
                msg = (
                    f"{str(self._folder)!r} holds predictions of other names than {list(ready)}: "
                    f"{sorted(unquote(name.removeprefix(_OF)) for name in others)}; write those too, or remove "
                    "that folder to begin anew"
                )
                raise SchemaError(msg)
            for name, (values, dims) in ready.items():
                folders[name].mkdir(exist_ok=True)
                if dims is not None:
                    (folders[name] / _DIMS).write_text(json.dumps(list(dims)))
                self._parts[name] = Part(folders[name], rank, values.dtype, values.shape[1:])
            self._done_of(rank).unlink(missing_ok=True)  # ranks may be known only now

    def _check_open(self) -> None:
        if self._closed:
            msg = f"the writer of {str(self.store)!r} is closed; make another one to write more"
            raise StateError(msg)

    def close(self) -> xr.Dataset | None:
        """
        Say that this rank is done; the last one puts the store together.

        A warning tells how many samples were never written. If it fails, nothing is lost, and it may
        be called again.

        Returns
        -------
        xarray.Dataset or None
            The opened store: `prediction (bin1, bin2)` and `coverage (bin1, bin2)`, the number of
            predictions that each value is the mean of, 0 where it is NaN; or `prediction (cell, ...)` and
            `coverage (cell)`, 1 for cells that were predicted. Of several predictions each by its name,
            maps with `<name>_coverage`. None if other ranks are not done.

        Raises
        ------
        PlanError
            If nothing was written.
        ReadError
            If predictions were damaged, or the disk is full.
        """
        self._check_open()
        world = self.loader.plan.world_size
        if self._pid == os.getpid():
            for part in self._parts.values():
                part.close()
        self._parts = {}
        with _told(self._folder):
            self._done_of(self.loader.plan.rank).touch()
        if not all(self._done_of(rank).exists() for rank in range(world)):
            self._closed = True
            return None
        try:
            self._claim.touch(exist_ok=False)
        except FileExistsError:  # two ranks were the last
            self._closed = True
            return None
        try:
            result = self._assemble()
        except BaseException:
            self._claim.unlink(missing_ok=True)
            raise
        self._closed = True
        shutil.rmtree(self._folder)
        return result

    def _assemble(self) -> xr.Dataset:
        n = len(self.loader.plan.windows)
        try:
            with self._written() as (written, complete):
                if not len(complete):
                    msg = f"no prediction was written to {str(self.store)!r}, of {n} samples; write some first"
                    raise PlanError(msg)
                gone = np.setdiff1d(np.arange(n), complete, assume_unique=True)
                if len(gone):
                    names = name_samples(self.loader.ds, self.loader.plan.windows, gone, 0)
                    warn(
                        f"{len(gone)} of {n} samples were not predicted: {names}; where no other window lies, "
                        "the result is NaN with a coverage of 0"
                    )
                ds = self._assembly.labelled(written, complete)
                return convert(
                    ds.assign_attrs(n_samples=n, n_missing=len(gone)),
                    self.store,
                    memory_budget=self.memory_budget,
                    overwrite=self.overwrite,
                    progress=self.progress,
                )
        except OSError as e:
            e.add_note(
                f"what was predicted is kept in {str(self._folder)!r}: close the writer again afterwards"
            )
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and not self._closed:
            self.close()

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": {}}


def _flags(
    batch: xr.Dataset | Mapping[str, Any], name: str, n: int, *, absent: bool
) -> npt.NDArray[np.bool_]:
    """Return what a batch says of each sample."""
    if name not in batch:
        return np.full(n, absent)
    return np.atleast_1d(_plain(batch[name])).astype(bool)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say what cannot be written, and what to do."""
    try:
        yield
    except OSError as e:
        msg = (
            f"cannot write predictions to {str(folder)!r}: {e.strerror}; it must be on a disk with room "
            "where you may write, and nobody may remove it before all ranks are closed"
        )
        raise ReadError(msg) from e


def _loader_of(given: Any) -> Loader:
    """Return the Loader, also of what delivers its batches as tensors."""
    within = getattr(given, "dataset", given)
    found = given if isinstance(given, Loader) else getattr(within, "loader", None)
    if not isinstance(found, Loader):
        msg = (
            f"a {type(given).__name__} is no xl.Loader; give the Loader whose samples are predicted"
        )
        raise SchemaError(msg)
    return found


def _plain(values: Any) -> npt.NDArray[Any]:
    """Return an array in memory, also of a tensor on another device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if "bfloat16" in str(values.dtype):  # numpy has no such type
            values = values.float()
    return np.asarray(values)


def _named(prediction: Any) -> dict[str, tuple[npt.NDArray[Any], Dims]]:
    """Return predictions by name, with the names of their further dimensions where they have any."""
    if not isinstance(prediction, Mapping):
        return {"prediction": _numbers(prediction)}
    if isinstance(prediction, xr.Dataset):
        prediction = prediction.data_vars
    if not prediction:
        msg = "the prediction is empty; give at least one array by name"
        raise SchemaError(msg)
    return {str(name): _numbers(values) for name, values in prediction.items()}


def _numbers(prediction: Any) -> tuple[npt.NDArray[Any], Dims]:
    """Return a prediction as new float32 or float64, whichever holds its type."""
    dims = None
    if isinstance(prediction, xr.DataArray):
        order = [d for d in ("sample", "cell", "bin1", "bin2") if d in prediction.dims]
        prediction = prediction.transpose(*order, ...)
        dims = [str(d) for d in prediction.dims[1:]]
    values = _plain(prediction)
    if values.dtype.kind not in "biuf":
        msg = f"predictions are {values.dtype}; give real numbers"
        raise SchemaError(msg)
    narrow = np.result_type(values.dtype, np.float32) == np.float32
    return np.array(values, np.float32 if narrow else np.float64), dims
