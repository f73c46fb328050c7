"""Torch DataLoaders of ready batches, which know how far the training is."""

import itertools
from collections.abc import Iterator, Mapping
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.utils.data
from typing_extensions import override

from xloader.cursor import Cursor
from xloader.errors import PlanError, StateError
from xloader.loader import Loader
from xloader.named import name_batch
from xloader.state import Resumable, State
from xloader.threads import n_cpus
from xloader.torch.batches import Tensors
from xloader.torch.datasets import (
    MAX_WORKERS,
    IterableDataset,
    MapDataset,
    PlannedBatch,
    callers,
    refuse_second_sharing,
)

# who asks a sampler for batches before the training needs them, and has no state of its own
_AHEAD = {"_MultiProcessingDataLoaderIter", "DataLoaderShard"}

_KILLED = "is killed by signal"
"""What torch says of a worker that died."""


class DataLoader(Resumable, torch.utils.data.DataLoader[Tensors]):
    """
    Torch's DataLoader, which also knows how far the training is.

    `make_loader` makes it. Each pass is the next epoch, also after one that was left early.

    Parameters
    ----------
    dataset : IterableDataset
        What is served.
    **options
        As for `torch.utils.data.DataLoader`.
    """

    dataset: IterableDataset

    def __init__(self, dataset: IterableDataset, **options: Any) -> None:
        super().__init__(dataset, **options)
        self._cursor = dataset.cursor
        self._turn: object = None
        vars(self)["sampler"] = _EpochSetter(dataset.cursor)  # torch takes none for an iterable one

    @override
    def __iter__(self) -> Any:
        # all of it at the first batch: Lightning sets the epoch after it has made the iterator
        epoch, first = self._cursor.begin()
        self.dataset.move(epoch, first)
        kept: Any = self._iterator
        # an interrupt from a terminal ends workers too, and without a failure
        if kept is not None and not all(worker.is_alive() for worker in kept._workers):
            kept._shutdown_workers()
            self._iterator = None  # torch would wait for the dead one
        batches: Any = super().__iter__()
        self._turn = turn = object()
        stop = not self.persistent_workers
        try:
            yield from self._cursor.follow(self._in_turn(batches, turn))
        except KeyboardInterrupt:
            stop = stop or self._turn is turn  # a terminal ends workers too, a little later
            raise
        except Exception as e:
            stop = stop or self._turn is turn  # else the workers are another iteration's
            if self.num_workers and stop and _is_of_dead(e, batches):
                loader = self.dataset.loader
                waited = name_batch(loader.ds, loader.plan, *self._cursor.position)
                msg = f"a worker was killed ({e}); its memory may have been too much. Next were {waited}"
                raise RuntimeError(msg) from e
            raise
        finally:
            if self.num_workers and stop:
                # else a traceback keeps them, and torch waits 5 s for each when that is garbage
                batches._shutdown_workers()
                self._iterator = None

    def _in_turn(self, batches: Any, turn: object) -> Iterator[Tensors]:
        """Take batches as long as no other iteration has the same workers."""
        for batch in batches:
            yield batch
            if self.persistent_workers and self._turn is not turn:
                msg = (
                    "this iteration was overtaken by another one of the same loader: persistent "
                    "workers serve one at a time; finish it first, or set persistent_workers=False"
                )
                raise PlanError(msg)

    @override
    def __len__(self) -> int:
        return len(self.dataset)

    @override
    def state_at(self, epoch: int, step: int) -> State:  # numpydoc ignore=GL08
        return self.dataset.loader.state_at(epoch, step)

    @override
    def position_of(self, state: Mapping[str, Any]) -> tuple[int, int]:  # numpydoc ignore=GL08
        return self.dataset.loader.position_of(state)


def _is_of_dead(error: Exception, batches: Any) -> bool:
    """Stop workers and say whether an error comes of one that was killed; that may be known later."""
    if _KILLED in str(error):
        return True
    try:
        batches._shutdown_workers()
        # who asks a dead process for what it handed over meets any of these
        lost = isinstance(error, OSError | EOFError | RuntimeError)
        return _has_dead(batches, patience=int(lost))
    except RuntimeError as e:  # torch's handler of the signal speaks up wherever we are
        if _KILLED in str(e):
            return True
        raise


def _has_dead(batches: Any, patience: int = 0) -> bool:
    """Say whether a worker of an iteration was killed; those that are done end with code 0."""
    wait([worker.sentinel for worker in batches._workers], patience)
    return any(worker.exitcode for worker in batches._workers)


class _EpochSetter(torch.utils.data.Sampler[None]):
    """Where Lightning looks for `set_epoch`; numbers no samples, as torch's own for iterable datasets."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor

    @override
    def __iter__(self) -> Iterator[None]:
        return itertools.repeat(None)

    def set_epoch(self, epoch: int) -> None:
        """Go on to an epoch; never back, because Fabric counts from 0 again after a resume."""
        if epoch > self._cursor.position[0]:
            self._cursor.move(epoch)


class BlockSampler(Resumable, torch.utils.data.Sampler[list[int]]):
    """
    Batches of sample numbers in the loader's order, for ``DataLoader(dataset, batch_sampler=...)``.

    The samples of successive batches lie in the same blocks, which each worker keeps in memory.

    Parameters
    ----------
    dataset : MapDataset or Loader
        What they are read with.
    """

    def __init__(self, dataset: "MapDataset | Loader") -> None:
        self.loader = dataset if isinstance(dataset, Loader) else dataset.loader
        self._cursor = Cursor(self.loader.epoch, onward=True)
        self._asked_ahead = False

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def sampler(self) -> "BlockSampler":
        """
        Return this object, where Lightning looks for `set_epoch`.

        Returns
        -------
        BlockSampler
            Itself.
        """
        return self

    @override
    def state_dict(self) -> State:
        """
        Return the position after the batches that were asked for.

        Returns
        -------
        dict
            JSON of less than 1 kB; the same on every rank.

        Raises
        ------
        StateError
            If workers were given batches ahead of the training, of which this object knows nothing.
        """
        if self._asked_ahead:
            epoch, step = self.position
            msg = (
                f"the sampler was asked for batches ahead of the training, up to step {step} of epoch "
                f"{epoch}, and does not know how many were used; save state_at(epoch, step) with the "
                "numbers of your training loop, or use make_loader(...) or torchdata's StatefulDataLoader"
            )
            raise StateError(msg)
        return super().state_dict()

    @override
    def state_at(self, epoch: int, step: int) -> State:  # numpydoc ignore=GL08
        return self.loader.state_at(epoch, step)

    @override
    def position_of(self, state: Mapping[str, Any]) -> tuple[int, int]:  # numpydoc ignore=GL08
        return self.loader.position_of(state)

    @override
    def __iter__(self) -> Iterator[list[int]]:
        refuse_second_sharing(self.loader, but="DataLoaderShard")  # alone it shares nothing
        self._asked_ahead = bool(callers() & _AHEAD)
        epoch, first = self._cursor.begin()
        plan = self.loader.plan
        steps = range(first, len(plan))
        yield from self._cursor.follow(
            PlannedBatch(plan.batch(epoch, step).ids.tolist(), epoch, step) for step in steps
        )


def make_loader(
    source: Any,
    *,
    layout: str | None = None,
    dtype: torch.dtype | str | None = None,
    index_dtype: torch.dtype | str | None = None,
    num_workers: int | None = None,
    start_method: str | None = None,
    persistent_workers: bool | None = None,
    pin_memory: bool | None = None,
    prefetch_factor: int | None = None,
    **loader_args: Any,
) -> DataLoader:
    """
    Return a torch DataLoader of ready batches.

    Make it once: each pass over it is the next epoch.

    Parameters
    ----------
    source : Loader, xarray.Dataset or xbatcher.BatchGenerator
        What to read.
    layout : {None, "dense", "csr", "coo"}, optional
        As for `to_tensors`.
    dtype, index_dtype : torch.dtype or str, optional
        As for `to_tensors`.
    num_workers : int, optional
        Worker processes; 0 reads ahead in threads of this process, which is faster unless the
        transform takes long. Each of them takes the whole `memory_budget`, as the order of samples
        must not depend on their number. Default: what `best_workers` says of one batch.
    start_method : {None, "fork", "spawn", "forkserver"}, optional
        How workers start. Default: the platform's own.
    persistent_workers : bool, optional
        Whether workers live longer than an epoch. Default: if there are any.
    pin_memory : bool, optional
        Whether tensors are page-locked for copies to a GPU. Default: if CUDA is there.
    prefetch_factor : int, optional
        Batches that each worker prepares ahead. Default: torch's own.
    **loader_args
        What `Loader` takes, if `source` is none.

    Returns
    -------
    DataLoader
        With `set_epoch`, `state_dict` and `load_state_dict`.

    Raises
    ------
    PlanError
        If options of workers are given without workers, or there are too many.
    """
    dataset = IterableDataset(
        source, layout=layout, dtype=dtype, index_dtype=index_dtype, **loader_args
    )
    if num_workers is None:
        slow = start_method is None and dataset.loader.transform is not None
        num_workers = best_workers(*dataset.loader.seconds(), n_cpus()) if slow else 0
    if not 0 <= num_workers <= MAX_WORKERS:
        msg = f"num_workers={num_workers} is impossible; choose 0 to {MAX_WORKERS}"
        raise PlanError(msg)
    for_workers = {
        "start_method": start_method,
        "persistent_workers": persistent_workers or None,
        "prefetch_factor": prefetch_factor,
    }
    given = [k for k, v in for_workers.items() if v is not None]
    if num_workers == 0 and given:
        msg = (
            f"{given} are about worker processes, but num_workers=0; leave them out or ask for some"
        )
        raise PlanError(msg)
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=start_method,
        persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        prefetch_factor=prefetch_factor,
    )


def best_workers(cut: float, transform: float, cpus: int) -> int:
    """
    Return how many worker processes are worth their cost.

    Reading releases the interpreter and runs in threads; a transform may not, so that only
    processes do several at once. Each must also hand its batch over, which takes about as long as
    cutting it, and one processor is left to whoever consumes the batches.

    Parameters
    ----------
    cut, transform : float
        Seconds to cut a batch, and to transform it.
    cpus : int
        Processors of this process.

    Returns
    -------
    int
        0 for threads of this process.

    Examples
    --------
    >>> best_workers(0.002, 0.003, 8), best_workers(0.002, 0.1, 8), best_workers(0.002, 0.1, 2)
    (0, 7, 2)
    """
    workers = cpus if cpus <= 2 else cpus - 1
    return workers if cpus > 1 and transform > 0.01 and transform > 4 * cut else 0
