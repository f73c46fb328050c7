"""Torch DataLoaders of ready batches, which know how far the training is."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.utils.data
from typing_extensions import override

from xloader.cursor import Cursor
from xloader.errors import PlanError
from xloader.loader import Loader
from xloader.state import Resumable, State
from xloader.threads import n_cpus
from xloader.torch.datasets import MAX_WORKERS, IterableDataset, MapDataset, PlannedBatch
from xloader.torch.tensors import Tensors


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

    @override
    def __iter__(self) -> Any:
        epoch, first = self._cursor.begin()
        self.dataset.move(epoch, first)
        return self._followed(super().__iter__())

    def _followed(self, batches: Any) -> Iterator[Tensors]:
        try:
            yield from self._cursor.follow(batches)
        finally:
            if self.num_workers and not self.persistent_workers:
                # else a traceback keeps them, and torch waits 5 s for each
                batches._shutdown_workers()

    @override
    def __len__(self) -> int:
        return len(self.dataset)

    @override
    def state_at(self, epoch: int, step: int) -> State:  # numpydoc ignore=GL08
        return self.dataset.loader.state_at(epoch, step)

    @override
    def position_of(self, state: Mapping[str, Any]) -> tuple[int, int]:  # numpydoc ignore=GL08
        return self.dataset.loader.position_of(state)


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

    def __len__(self) -> int:
        return len(self.loader)

    @override
    def state_at(self, epoch: int, step: int) -> State:  # numpydoc ignore=GL08
        return self.loader.state_at(epoch, step)

    @override
    def position_of(self, state: Mapping[str, Any]) -> tuple[int, int]:  # numpydoc ignore=GL08
        return self.loader.position_of(state)

    @override
    def __iter__(self) -> Iterator[list[int]]:
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
    num_workers : int, optional
        Worker processes; 0 reads ahead in threads of this process, which is faster unless the
        transform takes long. Default: what `best_workers` says of one batch.
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
    dataset = IterableDataset(source, layout=layout, **loader_args)
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
