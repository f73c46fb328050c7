"""The Loader: batches of a labelled Dataset, each a pure function of (seed, epoch, step)."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import cloudpickle
import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.axes import Windows
from xloader.batch import Labeller
from xloader.buffers import Allocate
from xloader.contract import SampleRandom, Transform, apply, check, fusion_of
from xloader.cursor import Cursor
from xloader.described import Described
from xloader.errors import PerformanceWarning, PlanError, warn
from xloader.labels import Labels, resolve_labels
from xloader.memory import divide, nbytes_of
from xloader.named import name_batch, name_samples
from xloader.pipeline import cut, gathered
from xloader.plan import Batch, Plan, Remainder
from xloader.pools import Pools
from xloader.read import Values
from xloader.request import (
    draw_windows,
    first_labels,
    resolve_order,
    resolve_ranks,
    resolve_variables,
    storage_blocks,
)
from xloader.source import Loaded, Source
from xloader.state import State, fingerprints_of, make_state, read_state
from xloader.unchanged import Unchanged
from xloader.windows import Shape

_LAYOUTS = (None, "csr", "dense")


class Loader(Described):
    """
    Batches of labelled samples from a labelled Dataset.

    xbatcher decides where windows lie; every stored chunk is read and decoded once per pool of
    blocks; each batch is one `xarray.Dataset`. Batch ``k`` of epoch ``e`` is always the same.

    Parameters
    ----------
    source : xarray.Dataset, list or mapping of str to xarray.Dataset, or xbatcher.BatchGenerator
        What to read; a list of cells is put together by `xloader.concat`, a mapping of contact
        maps, tracks and cells by `xloader.merge`; the windows of a generator are used as they are.
    batch_size : int
        Samples per batch, on each rank.
    input_dims : mapping of str to int, optional
        Length of a sample along the dimensions that windows cut, in elements. Default for cells:
        ``{"cell": 1}``.
    input_overlap : mapping of str to int, optional
        Elements that neighbouring windows share along each dimension. Default: 0.
    windows : Shape, optional
        Contact windows, from `xloader.windows`, instead of `input_dims`; with
        ``input_dims={"cell": 1}`` they are cut out of each single cell.
    variables : sequence of str, optional
        Data variables to deliver. Default: all.
    labels : sequence of str, or mapping of str to sequence or None, optional
        Coordinates of samples that are delivered as tensors too. Text, booleans and what a file calls
        categorical are classes: int64 codes into ``loader.categories``, -1 where missing. Other
        numbers are float32, NaN where missing. A mapping gives vocabularies, such as
        ``{"cell_type": train.categories["cell_type"]}``; labels that a vocabulary lacks are refused.
    transform : callable, optional
        ``f(batch)`` or ``f(batch, *, rng)`` -> Dataset; keeps the samples of the batch.
    shuffle : bool, optional
        Whether blocks and samples are permuted, differently in each epoch.
    seed : int, optional
        Seed of every permutation and of `rng`.
    order : {"sequential", "shuffled", "uniform"}, one of `xloader.orders`, or callable, optional
        What an epoch serves, and in which order; a function takes (plan, rng) and returns sample
        numbers, equally many in each epoch. Default: what `shuffle` says.
    remainder : {"keep", "drop", "pad"}, optional
        What becomes of the last, incomplete batch: kept short, dropped, or filled up with samples
        that carry ``valid=False``. Where windows do not reach the end of a region, "keep" and "pad"
        add one window flush with it and "drop" leaves the rest out; `xloader.windows.regions` says
        what becomes of those that would reach beyond it. `plan` counts them.
    layout : {None, "csr", "dense"}, optional
        Form of sparse variables in batches. Default: "csr" where storage is sparse.
    memory_budget : int or str, optional
        Bytes for decoded blocks, those read ahead included, and for batches made ahead. It decides
        how many blocks are mixed, and nothing else does: the order of samples depends on it. Each
        process that reads, such as a worker of torch, takes at most this much and 100 MB (compiled
        code, indexes of files and samples), besides imported libraries, coordinates and the batches
        that are held. `plan` says where a single batch needs more blocks than that.
    prefetch : {0, 1}, optional
        Pools of blocks to read ahead while one is served.
    rank, world_size : int, optional
        This process and the number of processes that share each global batch. Default: those of
        ``torch.distributed``, if it is initialised when an iteration starts, else of the
        environment variables ``RANK`` and ``WORLD_SIZE``, else one process.

    Raises
    ------
    PlanError
        If windows, batches or memory are impossible; the message says what is possible.
    SchemaError
        If a variable, label or dimension does not exist.

    Examples
    --------
    >>> ds = xr.Dataset({"x": ("cell", np.arange(5.0))}, {"batch": ("cell", list("aabbb"))})
    >>> loader = Loader(ds, batch_size=2, labels=["batch"])
    >>> len(loader), loader[2].x.values, loader.categories
    (3, array([4.]), {'batch': ['a', 'b']})
    """

    _source: Source | None

    def __init__(
        self,
        source: Any,
        *,
        batch_size: int,
        input_dims: Mapping[str, int] | None = None,
        input_overlap: Mapping[str, int] | None = None,
        windows: Shape | None = None,
        variables: Sequence[str] | None = None,
        labels: Labels = (),
        transform: Transform | None = None,
        shuffle: bool = False,
        seed: int = 0,
        order: Any = None,
        remainder: Remainder = "keep",
        layout: str | None = None,
        memory_budget: int | str = "1GB",
        prefetch: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if layout not in _LAYOUTS:
            msg = f"layout={layout!r} is unknown; choose one of {_LAYOUTS}"
            raise PlanError(msg)
        if prefetch not in (0, 1):
            msg = (
                f"prefetch={prefetch} is impossible; choose 1, to read a pool of blocks while one is "
                "served, or 0; memory_budget makes pools larger"
            )
            raise PlanError(msg)
        numbers: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
        for name, number in numbers.items():
            if not isinstance(number, int | np.integer):
                msg = f"{name}={number!r} is no whole number; give one"
                raise PlanError(msg)
        self.ds, drawn = draw_windows(source, input_dims, input_overlap, windows, remainder, seed)
        self.layout = layout
        self.transform = transform
        check(transform, partial(first_labels, self.ds, drawn))
        self.prefetch = prefetch
        self.variables = resolve_variables(self.ds, variables)
        self.labels, self.categories = resolve_labels(self.ds, labels, drawn)
        self._cursor = Cursor()
        self._fingerprints: dict[str, str] | None = None
        self._advised = False
        self._stored: Unchanged | None = None
        self._reset()
        self._ranks = rank, world_size
        how = resolve_order(order, self.ds, drawn, shuffle=shuffle)
        reading = self._make_source(drawn)
        blocks = storage_blocks(reading, drawn, in_order=how.in_order)
        self._budget = nbytes_of(memory_budget)
        division = divide(self._budget, reading, drawn, blocks, batch_size, prefetch=prefetch)
        self._ahead, self._source = division.ahead, reading
        self._plan = Plan(
            windows=drawn,
            blocks=blocks,
            order=how,
            pool_blocks=division.pool_blocks,
            batch_size=batch_size,
            seed=seed,
            remainder=remainder,
            block_nbytes=division.block_nbytes,
            nbytes=division.nbytes,
            sample_nbytes=reading.stored_nbytes,
            chosen=reading.chosen,
            **dict(zip(("rank", "world_size"), resolve_ranks(rank, world_size), strict=True)),
        )

    @property
    @override
    def plan(self) -> Plan:  # numpydoc ignore=GL08
        ranks = resolve_ranks(*self._ranks)
        if ranks != (self._plan.rank, self._plan.world_size):
            self._plan = replace(self._plan, rank=ranks[0], world_size=ranks[1])
        return self._plan

    def on_rank(self, rank: int, world_size: int, *, batch_size: int | None = None) -> "Loader":
        """
        Return what a process serves if it is one of another number of processes.

        Parameters
        ----------
        rank, world_size : int
            That process, and how many share each global batch.
        batch_size : int, optional
            Samples per batch, on each rank. Default: what keeps the global batches, and with them
            the order of samples and the meaning of states.

        Returns
        -------
        Loader
            Of the same data, in the same epoch, at its first batch.

        Raises
        ------
        PlanError
            If `world_size` does not divide the global batch, or there is no such rank.
        """
        whole = self.plan.global_batch
        if batch_size is None and (world_size < 1 or whole % world_size):
            msg = (
                f"global batches of {whole} samples cannot be shared by {world_size} ranks; choose a "
                f"world size that divides {whole}, or give a batch_size"
            )
            raise PlanError(msg)
        size = whole // world_size if batch_size is None else batch_size
        plan = replace(self._plan, rank=rank, world_size=world_size, batch_size=size)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._ranks, other._plan, other._cursor = (rank, world_size), plan, Cursor(self.epoch)
        other._reset()
        reading = other._open()
        other._ahead = divide(
            self._budget, reading, plan.windows, plan.blocks, size, prefetch=self.prefetch
        ).ahead
        return other

    def _reset(self) -> None:
        """Forget everything that belongs to one process."""
        self._source = None
        self._labeller: Labeller | None = None
        self.allocate: Allocate | None = None
        self._pools: Pools[Loaded] = Pools(1 + self.prefetch)
        self._pid = os.getpid()

    def _make_source(self, windows: Windows) -> Source:
        fusion, rest = fusion_of(self.transform)
        source = Source(
            self.ds,
            windows,
            variables=self.variables,
            layout=self.layout,
            fusion=fusion,
            allocate=self.allocate,
            stored=self._stored,
        )
        self._stored = source.stored
        self._after_reading = rest if source.fused else self.transform
        return source

    @property
    def sample_dim(self) -> str:
        """
        Return the dimension of samples in batches.

        Returns
        -------
        str
            The windowed dimension itself where samples are single rows, else ``"sample"``.
        """
        return self.plan.windows.dims[0] if self.plan.windows.by_row else "sample"

    def __len__(self) -> int:
        return len(self.plan)

    @override
    def state_at(self, epoch: int, step: int) -> State:  # numpydoc ignore=GL08
        return make_state(self.plan, self._identity(), epoch, step)

    @override
    def position_of(self, state: Mapping[str, Any]) -> tuple[int, int]:  # numpydoc ignore=GL08
        names = self.ds.coords.get("dataset_name", ())
        return read_state(state, self.plan, self._identity(), [str(n) for n in np.asarray(names)])

    def _identity(self) -> dict[str, str]:
        if self._fingerprints is None:
            self._fingerprints = fingerprints_of(self._open(), self._plan, self.transform)
        return self._fingerprints

    def __getitem__(self, step: int) -> xr.Dataset:
        return self.batch(self.epoch, step)

    def batch(self, epoch: int, step: int) -> xr.Dataset:
        """
        Return one batch of any epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        step : int
            Number of the step; negative ones count from the end.

        Returns
        -------
        xarray.Dataset
            The labelled batch, transformed.

        Raises
        ------
        IndexError
            If there is no such step.
        ReadError
            If the data cannot be read.
        TransformError
            If the transform does not keep the samples.
        """
        planned = self.plan.batch(epoch, step + len(self) if step < 0 else step)
        pools = {int(p): self._pool(epoch, int(p)) for p in np.unique(planned.pools)}
        values = cut(self._open(), planned, epoch, pools)
        return self._finish(values, planned, epoch, step % len(self))

    def samples(self, ids: npt.ArrayLike, *, epoch: int | None = None) -> xr.Dataset:
        """
        Return any samples, in any order, as one batch.

        Parameters
        ----------
        ids : array-like of int, shape (n,)
            Sample numbers, repeats allowed.
        epoch : int, optional
            Epoch that shifts windows and that random transforms see. Default: the current one.

        Returns
        -------
        xarray.Dataset
            The labelled batch, transformed.

        Raises
        ------
        IndexError
            If there is no such sample.
        """
        wanted = np.atleast_1d(np.asarray(ids, np.int64))
        n = len(self.plan.windows)
        if len(wanted) == 0 or wanted.min() < -n or wanted.max() >= n:
            msg = f"samples {wanted.tolist()} of {n}; samples count from 0 to {n - 1}"
            raise IndexError(msg)
        wanted = wanted % n
        epoch = self.epoch if epoch is None else epoch
        loaded = self._pool(epoch, 0) if self.plan.in_memory else self._open().load(wanted, epoch)
        batch = Batch(wanted, np.zeros_like(wanted), np.ones(len(wanted), bool))
        return self._finish(self._open().gather([(loaded, wanted)], epoch), batch, epoch, None)

    def __iter__(self) -> Iterator[xr.Dataset]:
        epoch, first = self._cursor.begin()
        yield from self._cursor.follow(self.batches(epoch, range(first, len(self))))

    def batches(self, epoch: int, steps: Sequence[int]) -> Iterator[xr.Dataset]:
        """
        Yield some batches of an epoch, reading ahead meanwhile.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        steps : sequence of int
            Steps in increasing order.

        Yields
        ------
        xarray.Dataset
            One labelled batch per step.
        """
        plan = self.plan
        if self.prefetch == 0:
            for step in steps:
                yield self.batch(epoch, step)
            return
        if not plan.in_memory:
            self._pools.clear()
        read = self._pool if plan.in_memory else self._read
        made = gathered(plan, self._open(), epoch, steps, read, self._ahead)
        for step, (batch, values) in zip(steps, made, strict=True):
            yield self._finish(values, batch, epoch, step)
            self._advise()

    def _advise(self) -> None:
        """Say once what would make reading much faster."""
        if not self._advised and self._source is not None and self._source.advice:
            self._advised = True
            warn(self._source.advice, PerformanceWarning)

    def allocate_with(self, allocate: Allocate) -> None:
        """
        Choose where the memory of batches comes from, in this process.

        Parameters
        ----------
        allocate : callable
            Takes bytes and returns an array of uint8, such as one that other processes see.
        """
        self._reset()
        self.allocate = allocate

    def seconds(self) -> tuple[float, float]:
        """
        Measure one batch, its pool being in memory.

        Returns
        -------
        tuple of float
            Seconds to cut and label it, and to transform it: the shortest of three.
        """
        planned = self.plan.batch(self.epoch, 0)
        pools = {int(p): self._pool(self.epoch, int(p)) for p in np.unique(planned.pools)}
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            labelled = self._label(cut(self._open(), planned, self.epoch, pools), planned)
            between = time.perf_counter()
            self._transform(labelled, planned, self.epoch, 0)
            times.append((between - begin, time.perf_counter() - between))
        return min(t for t, _ in times), min(t for _, t in times)

    def _open(self) -> Source:
        if self._pid != os.getpid():
            self._reset()  # forked: locks and half-read blocks of the parent mean nothing here
        if self._source is None:
            self._source = self._make_source(self._plan.windows)
        if self._labeller is None:
            self._labeller = Labeller(self._source, self.sample_dim)
        return self._source

    def _read(self, epoch: int, pool: int) -> Loaded:
        plan = self.plan
        try:
            if plan.in_memory:  # one pool for all epochs
                return self._open().load(np.arange(len(plan.windows)), None)
            ids = plan.pool_ids(epoch, pool)
            # a rank may have no sample of a small pool
            return self._open().load(ids, epoch) if len(ids) else {}
        except Exception as e:
            first = name_batch(self.ds, plan, epoch, plan.first_step(epoch, pool))
            e.add_note(f"while reading pool {pool} of epoch {epoch}, first for {first}")
            raise

    def _pool(self, epoch: int, pool: int) -> Loaded:
        """Return a pool in memory; one that holds everything serves all epochs."""
        self._open()
        key = () if self.plan.in_memory else (epoch, pool)
        return self._pools.get(key, lambda: self._read(epoch, pool))

    def _finish(
        self, values: Mapping[str, Values], batch: Batch, epoch: int, step: int | None
    ) -> xr.Dataset:
        """Label the values of a batch, or of samples without a step, and transform them."""
        return self._transform(self._label(values, batch), batch, epoch, step)

    def _label(self, values: Mapping[str, Values], batch: Batch) -> xr.Dataset:
        self._open()
        assert self._labeller is not None  # made with the source
        valid = batch.valid if self.plan.has_valid else None
        return self._labeller.label(values, batch.ids, valid)

    def _transform(
        self, labelled: xr.Dataset, batch: Batch, epoch: int, step: int | None
    ) -> xr.Dataset:
        if self._after_reading is None:
            return labelled
        rng = SampleRandom(self.plan.seed, epoch=epoch, sample_id=batch.ids)
        try:
            return apply(self._after_reading, labelled, rng=rng, dim=self.sample_dim)
        except Exception as e:
            which = f"{name_samples(self.ds, self.plan.windows, batch.ids, epoch)} of epoch {epoch}"
            if step is not None:
                which = name_batch(self.ds, self.plan, epoch, step)
            e.add_note(f"while transforming {which}")
            raise

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Keep the recipe only; transforms of a notebook travel by value."""
        state = self.__dict__.copy()
        for name in ("_source", "_after_reading", "_labeller", "allocate", "_pools", "_pid"):
            del state[name]
        state["_ranks"] = resolve_ranks(*self._ranks)  # workers are told, and need not know how
        for name in ("transform", "_plan"):
            state[name] = cloudpickle.dumps(state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("transform", "_plan"):
            setattr(self, name, cloudpickle.loads(state[name]))
        self._reset()
