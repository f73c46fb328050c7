"""Torch datasets over a Loader."""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data
from typing_extensions import override

from xloader.cursor import Cursor
from xloader.errors import PlanError, StateError
from xloader.loader import Loader
from xloader.state import State
from xloader.torch.batches import Tensors
from xloader.torch.forms import Form
from xloader.torch.tensors import Samples, collate, in_form, share_in_workers

MAX_WORKERS = 128
_UNPREPARED = (
    "leave it out of accelerator.prepare(), and move batches to accelerator.device yourself"
)
_UNSAMPLED = "set Trainer(use_distributed_sampler=False)"
_SHARING = {  # what shares batches between ranks, and how to avoid it
    "IterableDatasetShard": _UNPREPARED,
    "DataLoaderShard": _UNPREPARED,
    "DataLoaderDispatcher": _UNPREPARED,
    "BatchSamplerShard": _UNPREPARED,
    "DistributedSamplerWrapper": _UNSAMPLED,
    "_DatasetSamplerWrapper": _UNSAMPLED,
}


class PlannedBatch(list[int]):
    """
    Sample numbers that are a batch of a plan, which is read with its pool.

    Parameters
    ----------
    ids : sequence of int
        Sample numbers.
    epoch, step : int
        Which batch they are.
    """

    def __init__(self, ids: Sequence[int] = (), epoch: int = 0, step: int = 0) -> None:
        super().__init__(ids)
        self.epoch, self.step = epoch, step


class MapDataset(torch.utils.data.Dataset[Tensors]):
    """
    Samples by number, one or a batch of them, for torch's own samplers.

    Parameters
    ----------
    source : Loader, xarray.Dataset or xbatcher.BatchGenerator
        What to read.
    layout : {None, "dense", "csr", "coo"}, optional
        As for `to_tensors`; sparse samples need ``collate_fn=xloader.torch.collate``.
    dtype, index_dtype : torch.dtype or str, optional
        As for `to_tensors`.
    **loader_args
        What `Loader` takes, if `source` is none.

    Notes
    -----
    Torch's samplers decide the order. Random transforms see the loader's epoch, which `set_epoch`
    changes; persistent workers keep the epoch they started with.
    """

    def __init__(
        self,
        source: Any,
        *,
        layout: str | None = None,
        dtype: torch.dtype | str | None = None,
        index_dtype: torch.dtype | str | None = None,
        **loader_args: Any,
    ) -> None:
        self.form = Form(layout, dtype, index_dtype)
        self.loader = _as_loader(source, loader_args)

    def set_epoch(self, epoch: int) -> None:
        """
        Choose the epoch that random transforms see.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0.
        """
        self.loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader.plan.windows)

    @override
    def __getitem__(self, i: Any) -> Tensors:
        if np.ndim(i):  # a whole batch, for a sampler of batches
            return collate(self.__getitems__(i))
        return self.__getitems__([int(i)])[0]

    def __getitems__(self, ids: Sequence[int]) -> Sequence[Tensors]:
        """
        Return several samples, read together.

        Parameters
        ----------
        ids : sequence of int
            Sample numbers, repeats allowed.

        Returns
        -------
        sequence of dict
            One dict of tensors per sample.
        """
        share_in_workers(self.loader)
        if isinstance(ids, PlannedBatch) and self._is_planned(ids):
            batch = self.loader.batch(ids.epoch, ids.step)
        else:
            batch = self.loader.samples(np.asarray(ids, np.int64))
        return Samples(in_form(batch, self.loader, self.form), len(ids))

    def _is_planned(self, ids: "PlannedBatch") -> bool:
        plan = self.loader.plan
        return ids.step < len(plan) and plan.batch(ids.epoch, ids.step).ids.tolist() == ids


class IterableDataset(torch.utils.data.IterableDataset[Tensors]):
    """
    Ready batches in the loader's order; workers share the steps of their rank.

    `make_loader` puts it into a `DataLoader`, which knows how far the training is. Batch ``k`` is
    the same for every number of workers. In a DataLoader of torch's own (``batch_size=None``) each
    new iteration serves the next epoch.

    Parameters
    ----------
    source : Loader, xarray.Dataset or xbatcher.BatchGenerator
        What to read.
    layout : {None, "dense", "csr", "coo"}, optional
        As for `to_tensors`.
    dtype, index_dtype : torch.dtype or str, optional
        As for `to_tensors`.
    **loader_args
        What `Loader` takes, if `source` is none.

    Attributes
    ----------
    cursor : Cursor
        How far a `DataLoader` of this package is.
    """

    def __init__(
        self,
        source: Any,
        *,
        layout: str | None = None,
        dtype: torch.dtype | str | None = None,
        index_dtype: torch.dtype | str | None = None,
        **loader_args: Any,
    ) -> None:
        self.form = Form(layout, dtype, index_dtype)
        self.loader = _as_loader(source, loader_args)
        self.cursor = Cursor(self.loader.epoch, onward=True)
        self._restored: tuple[int, int] | None = None
        # what comes next, by (number of workers, worker): in shared memory, because workers that do
        # not persist are made anew from the parent's object, and those that do never see it again
        self._next = torch.from_numpy(np.zeros((MAX_WORKERS + 1, MAX_WORKERS, 2), np.int64))
        self._pid = 0
        self.move(*self.loader.position)

    def set_epoch(self, epoch: int) -> None:
        """
        Choose the epoch that the next iteration serves, in all workers.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0.

        Raises
        ------
        PlanError
            If accelerate calls it, which would share between ranks what is shared already.
        """
        refuse_second_sharing(self.loader)
        self.loader.set_epoch(epoch)
        self.cursor.move(epoch)
        self.move(*self.cursor.position)

    def move(self, epoch: int, step: int) -> None:
        """
        Choose the batch that the next iteration begins with, in all workers.

        Parameters
        ----------
        epoch, step : int
            Both from 0.
        """
        self._own()
        self._position = epoch, step
        self._next.numpy()[...] = epoch, step

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> State:
        """
        Return the position after the batches that were taken.

        Returns
        -------
        dict
            As `Loader.state_dict`; in a worker, where torchdata asks for it, that of its own steps.

        Raises
        ------
        StateError
            If worker processes took them, of which this object knows nothing.
        """
        info = torch.utils.data.get_worker_info()
        if info is not None:
            state = self.loader.state_at(*self._position)
            return {**state, "worker": [info.id, info.num_workers]}
        self._own()
        coming = self._next.numpy()[1:]
        if (coming != coming[0, -1]).any():
            msg = (
                "worker processes took the batches, so that this dataset does not know how far the "
                "training is; use the state_dict() of make_loader(...)"
            )
            raise StateError(msg)
        return self.loader.state_at(*self._position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Go on where a dataset was.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        StateError
            If it belongs to something else, or to another worker.
        """
        info = torch.utils.data.get_worker_info()
        here = None if info is None else [info.id, info.num_workers]
        if state.get("worker") != here:
            msg = (
                f"the state is of worker {state.get('worker')} and this is {here} (number of the worker, "
                "number of workers); use the state_dict() of make_loader(...), which knows no workers"
            )
            raise StateError(msg)
        self.loader.load_state_dict(state)
        if info is None:
            self.cursor.move(*self.loader.position)
            self.move(*self.loader.position)
        else:
            self._restored = self.loader.position

    @override
    def __iter__(self) -> Iterator[Tensors]:
        refuse_second_sharing(self.loader)
        share_in_workers(self.loader)
        self._own()
        # torchdata asks for the state before the first batch, and drops iterators that it made
        self._position = self._coming()
        return self._serve()

    def _serve(self) -> Iterator[Tensors]:
        """Yield what comes next in this process."""
        (epoch, first), n = self._coming(), len(self.loader)
        (workers, worker), self._restored = _place(), None
        self._next.numpy()[workers, worker] = epoch + 1, 0
        steps = range(first, n, max(1, workers))
        for step, batch in zip(steps, self.loader.batches(epoch, steps), strict=True):
            self._position = epoch, min(step + max(1, workers), n)
            yield in_form(batch, self.loader, self.form)
        if workers == 0:
            self._position = epoch + 1, 0

    def _coming(self) -> tuple[int, int]:
        """Return epoch and first step of the next iteration in this process."""
        if self._restored is not None:
            return self._restored
        place = _place()
        epoch, step = self._next[place].tolist()
        return epoch, min(step + place[1], len(self.loader))

    def _own(self) -> None:
        """Keep apart from other ranks, that were made of the same object; share with workers only."""
        if torch.utils.data.get_worker_info() is None and self._pid != os.getpid():
            # by numpy: torch would copy in threads, which a forked process waits for without end
            values = self._next.numpy()
            storage = torch.UntypedStorage._new_shared(values.nbytes)  # type: ignore[no-untyped-call]
            self._next = torch.empty(0, dtype=torch.int64).set_(storage).view(values.shape)
            self._next.numpy()[...] = values
            self._pid = os.getpid()


def _place() -> tuple[int, int]:
    """Return the number of workers, and which of them this process is."""
    info = torch.utils.data.get_worker_info()
    return (0, 0) if info is None else (info.num_workers, info.id)


def callers() -> set[str]:
    """
    Return who called.

    Returns
    -------
    set of str
        Names of the classes whose methods are being executed in this thread.
    """
    names, frame = set(), inspect.currentframe()
    while frame is not None:
        # not its locals: asking for them makes a copy that keeps a user's tensors alive
        names.update(frame.f_code.co_qualname.split(".")[:-1])
        frame = frame.f_back
    return names


def refuse_second_sharing(loader: Loader, *, but: str = "") -> None:
    """
    Refuse to serve a part to somebody who takes a part of that again.

    Parameters
    ----------
    loader : Loader
        What is served.
    but : str, optional
        Name of a class that does no harm here.

    Raises
    ------
    PlanError
        If the caller, or a caller of it, does so; says what to set.
    """
    for name in sorted(callers() & _SHARING.keys() - {but}):
        plan = loader.plan
        msg = (
            f"{name} shares batches between ranks and counts them, as this loader does itself (it is rank "
            f"{plan.rank} of {plan.world_size}); {_SHARING[name]}"
        )
        raise PlanError(msg)


def _as_loader(source: Any, loader_args: Mapping[str, Any]) -> Loader:
    if not isinstance(source, Loader):
        return Loader(source, **{"batch_size": 1, **loader_args})
    if loader_args:
        msg = f"{sorted(loader_args)} belong to the Loader, which is made already; set them there"
        raise PlanError(msg)
    return source
