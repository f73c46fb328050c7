"""Torch datasets over a Loader; the only module of the library proper that imports torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
import torch.utils.data
import xarray as xr
from typing_extensions import override

from xloader.csr import CSRArray
from xloader.errors import PlanError, SchemaError
from xloader.loader import Loader
from xloader.request import codes
from xloader.threads import n_cpus

_LAYOUTS = (None, "dense", "csr", "coo")
_MAX_WORKERS = 128
_SIGNED = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}

Tensors = dict[str, Any]


def to_tensors(batch: xr.Dataset, loader: Loader, *, layout: str | None = None) -> Tensors:
    """
    Turn a labelled batch into tensors.

    Parameters
    ----------
    batch : xarray.Dataset
        A batch of `loader`.
    loader : Loader
        Knows the labels and their vocabularies.
    layout : {None, "dense", "csr", "coo"}, optional
        Form of values: None leaves sparse ones sparse; "dense" and "csr" convert; "coo" gives the
        stored values of contact windows as `coords`, `features`, `target`, `info` and `offsets`.

    Returns
    -------
    dict of str to Tensor
        Each variable of the samples; each label as int64 codes (-1 where missing); `sample_id`;
        `valid` where the plan pads.

    Raises
    ------
    SchemaError
        If a variable has no numbers, or `layout` does not fit it.
    PlanError
        If there is no such layout.
    """
    _check_layout(layout)
    dim = loader.sample_dim
    variables = {str(k): v.variable for k, v in batch.data_vars.items() if dim in v.dims}
    if layout == "coo":
        tensors = _coo(batch, variables)
    else:
        tensors = {k: _tensor(v, k, dim=dim, layout=layout) for k, v in variables.items()}
    for name in loader.labels:
        values = batch[name].values
        tensors[name] = torch.from_numpy(codes(values, loader.categories[name]))
    for name in ("sample_id", "valid"):
        if name in batch.coords:
            tensors[name] = torch.from_numpy(np.array(batch[name].values))
    return tensors


def _check_layout(layout: str | None) -> None:
    if layout not in _LAYOUTS:
        msg = f"layout={layout!r} is unknown; choose one of {_LAYOUTS}"
        raise PlanError(msg)


def _tensor(variable: xr.Variable, name: str, *, dim: str, layout: str | None) -> torch.Tensor:
    if variable.dims[0] != dim:
        variable = variable.transpose(dim, ...)
    data: Any = variable.data
    if isinstance(data, CSRArray):
        return _csr(data) if layout != "dense" else _dense(data.todense(), name)
    tensor = _dense(np.asarray(data), name)
    if layout == "csr":
        if tensor.ndim != 2:
            msg = (
                f"layout='csr' needs matrices, but {name!r} is {dict(variable.sizes)}; use 'dense'"
            )
            raise SchemaError(msg)
        return tensor.to_sparse_csr()
    return tensor


def _shared_memory(nbytes: int) -> np.ndarray[Any, Any]:
    """Return memory that other processes see, so that a worker's batches are not copied again."""
    storage = torch.UntypedStorage._new_shared(nbytes)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()


def _share_in_workers(loader: Loader) -> None:
    if torch.utils.data.get_worker_info() is not None and loader.allocate is not _shared_memory:
        loader.allocate_with(_shared_memory)


def _as_shared(values: np.ndarray[Any, Any]) -> torch.Tensor | None:
    """Return a tensor that knows that its memory is shared, if it is."""
    base: Any = values
    while isinstance(base, np.ndarray):
        base = base.base
    if not (isinstance(base, torch.Tensor) and base.is_shared() and values.size):  # type: ignore[no-untyped-call]
        return None
    kind = torch.from_numpy(values[:0])
    offset = (values.ctypes.data - base.data_ptr()) // values.itemsize
    strides = tuple(s // values.itemsize for s in values.strides)
    return kind.set_(base.untyped_storage(), offset, values.shape, strides)


def _dense(values: np.ndarray[Any, Any], name: str) -> torch.Tensor:
    if values.dtype.kind not in "iufbc":
        msg = f"{name!r} is {values.dtype}, which no tensor holds; name it in `labels` or leave it out"
        raise SchemaError(msg)
    dtype = _SIGNED.get(values.dtype.name, values.dtype.newbyteorder("="))
    values = np.ascontiguousarray(values, dtype)
    shared = _as_shared(values)
    if shared is not None:
        return shared
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _csr(array: CSRArray) -> torch.Tensor:
    # torch wants both of one type: the short one is cast, unless it does not fit
    dtype = array.indices.dtype if array.nnz < 2**31 else np.int64
    return torch.sparse_csr_tensor(
        torch.from_numpy(array.indptr.astype(dtype, copy=False)),
        _dense(array.indices.astype(dtype, copy=False), "columns"),
        _dense(array.data, "values"),
        array.shape,
        check_invariants=False,
    )


def _coo(batch: xr.Dataset, variables: Mapping[str, xr.Variable]) -> Tensors:
    """Return the non-zero places of windows; NaN counts as a value."""
    windows = {k: v.transpose("sample", ...) for k, v in variables.items() if v.ndim == 3}
    if not windows:
        msg = f"layout='coo' needs windows of two dimensions; the batch has {sorted(variables)}"
        raise SchemaError(msg)
    target = windows.get("target", next(iter(windows.values()))).values
    features = [v.values for k, v in windows.items() if k != "target" or len(windows) == 1]
    found = np.any([np.asarray(v) != 0 for v in (target, *features)], axis=0)
    sample, row, column = np.nonzero(found)
    offsets = np.searchsorted(sample, np.arange(len(found) + 1))
    tensors: Tensors = {
        "coords": torch.from_numpy(np.stack([row, column], axis=1)),
        "features": torch.stack([_dense(v[found], "features") for v in features], dim=1),
        "target": _dense(target[found], "target"),
        "offsets": torch.from_numpy(offsets),
        "info": {},
    }
    for name in ("chrom1", "start1", "chrom2", "start2"):
        if name in batch.coords and batch[name].dims[0] == "sample":
            first = batch[name].values[:, 0]
            tensors["info"][name] = (
                first.tolist() if first.dtype.kind in "OU" else _dense(first, name)
            )
    return tensors


class _Samples(Sequence[Tensors]):
    """Samples of one read batch, which `collate` takes back whole."""

    def __init__(self, batch: Tensors, n: int) -> None:
        self.batch = batch
        self.n = n

    @override
    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, i: int) -> Tensors: ...
    @overload
    def __getitem__(self, i: slice) -> "list[Tensors]": ...
    @override
    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(self.n))]
        if not -self.n <= i < self.n:
            raise IndexError(i)
        i %= self.n
        if "offsets" not in self.batch:
            return {k: _sample(v, i) for k, v in self.batch.items()}
        low, high = self.batch["offsets"][i : i + 2].tolist()
        out = {k: self.batch[k][low:high] for k in ("coords", "features", "target")}
        out["info"] = {k: v[i] for k, v in self.batch["info"].items()}
        rest = {k: v[i] for k, v in self.batch.items() if k not in (*out, "offsets")}
        return {**out, **rest}


def _sample(value: torch.Tensor, i: int) -> torch.Tensor:
    if value.layout != torch.sparse_csr:
        return value[i]
    low, high = value.crow_indices()[i : i + 2].tolist()
    pointer = torch.tensor([0, high - low], dtype=value.crow_indices().dtype)
    parts = value.col_indices()[low:high], value.values()[low:high]
    return torch.sparse_csr_tensor(pointer, *parts, (1, value.shape[1]), check_invariants=False)


def collate(samples: Sequence[Tensors]) -> Tensors:
    """
    Join samples into one batch; what `MapDataset.__getitems__` read together is taken whole.

    Parameters
    ----------
    samples : sequence of dict
        What `MapDataset` gives.

    Returns
    -------
    dict of str to Tensor
        Samples first; ragged windows (`coords`, `features`, `target`) joined, with `offsets`.
    """
    if isinstance(samples, _Samples):
        return samples.batch
    out: Tensors = {}
    for key, first in samples[0].items():
        values = [s[key] for s in samples]
        if key == "info":
            out[key] = collate(values)
        elif isinstance(first, torch.Tensor) and first.layout == torch.sparse_csr:
            out[key] = _stack_csr(values)
        elif key in ("coords", "features", "target") and "coords" in samples[0]:
            out[key] = torch.cat(values)
        else:
            out[key] = torch.utils.data.default_collate(values)
    if "coords" in out:
        lengths = [0, *(len(s["coords"]) for s in samples)]
        out["offsets"] = torch.tensor(lengths).cumsum(0)
    return out


def _stack_csr(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    lengths = [0, *(len(r.values()) for r in rows)]
    return torch.sparse_csr_tensor(
        torch.tensor(lengths).cumsum(0).to(rows[0].crow_indices().dtype),
        torch.cat([r.col_indices() for r in rows]),
        torch.cat([r.values() for r in rows]),
        (len(rows), rows[0].shape[1]),
        check_invariants=False,
    )


class MapDataset(torch.utils.data.Dataset[Tensors]):
    """
    Samples by number, one or a batch of them, for torch's own samplers.

    Parameters
    ----------
    source : Loader, xarray.Dataset or xbatcher.BatchGenerator
        What to read.
    layout : {None, "dense", "csr", "coo"}, optional
        As for `to_tensors`; sparse samples need ``collate_fn=xloader.torch.collate``.
    **loader_args
        What `Loader` takes, if `source` is none.

    Notes
    -----
    Torch's samplers decide the order. Random transforms see the loader's epoch, which `set_epoch`
    changes; persistent workers keep the epoch they started with.
    """

    def __init__(self, source: Any, *, layout: str | None = None, **loader_args: Any) -> None:
        _check_layout(layout)
        self.loader = _as_loader(source, loader_args)
        self.layout = layout

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
        _share_in_workers(self.loader)
        batch = self.loader.samples(np.asarray(ids, np.int64))
        return _Samples(to_tensors(batch, self.loader, layout=self.layout), len(ids))


class IterableDataset(torch.utils.data.IterableDataset[Tensors]):
    """
    Ready batches in the loader's order; workers share the steps of their rank.

    Give it to ``DataLoader(..., batch_size=None)``, or use `make_loader`. Batch ``k`` is the same
    for every number of workers. Each new iteration serves the next epoch.

    Parameters
    ----------
    source : Loader, xarray.Dataset or xbatcher.BatchGenerator
        What to read.
    layout : {None, "dense", "csr", "coo"}, optional
        As for `to_tensors`.
    **loader_args
        What `Loader` takes, if `source` is none.
    """

    def __init__(self, source: Any, *, layout: str | None = None, **loader_args: Any) -> None:
        _check_layout(layout)
        self.loader = _as_loader(source, loader_args)
        self.layout = layout
        # next epoch by (number of workers, worker): in shared memory, because workers that do not
        # persist are made anew from the parent's object, and those that do never see it again
        self._epochs = torch.full((_MAX_WORKERS + 1, _MAX_WORKERS), self.loader.epoch)
        self._epochs.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """
        Choose the epoch that the next iteration serves, in all workers.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0.
        """
        self.loader.set_epoch(epoch)
        self._epochs.fill_(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    @override
    def __iter__(self) -> Iterator[Tensors]:
        _share_in_workers(self.loader)
        info = torch.utils.data.get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        place = (0, 0) if info is None else (workers, worker)
        epoch = int(self._epochs[place])
        self._epochs[place] = epoch + 1
        steps = range(worker, len(self.loader), workers)
        for batch in self.loader.batches(epoch, steps):
            yield to_tensors(batch, self.loader, layout=self.layout)


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
) -> "torch.utils.data.DataLoader[Tensors]":
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
    torch.utils.data.DataLoader
        Its `dataset` is an `IterableDataset` with `set_epoch`.

    Raises
    ------
    PlanError
        If options of workers are given without workers, or there are too many.
    """
    dataset = IterableDataset(source, layout=layout, **loader_args)
    if num_workers is None:
        slow = start_method is None and dataset.loader.transform is not None
        num_workers = best_workers(*dataset.loader.seconds(), n_cpus()) if slow else 0
    if not 0 <= num_workers <= _MAX_WORKERS:
        msg = f"num_workers={num_workers} is impossible; choose 0 to {_MAX_WORKERS}"
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
    return torch.utils.data.DataLoader(
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


def _as_loader(source: Any, loader_args: Mapping[str, Any]) -> Loader:
    if not isinstance(source, Loader):
        return Loader(source, **{"batch_size": 1, **loader_args})
    if loader_args:
        msg = f"{sorted(loader_args)} belong to the Loader, which is made already; set them there"
        raise PlanError(msg)
    return source
