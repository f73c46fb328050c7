"""Batches as tensors, and samples joined into batches."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
import torch.utils.data
import xarray as xr
from typing_extensions import override

from xloader.csr import CSRArray
from xloader.errors import PlanError, SchemaError
from xloader.labels import codes, numbers
from xloader.loader import Loader

_LAYOUTS = (None, "dense", "csr", "coo")
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
        non-zero elements of contact windows (NaN counts as one), see Notes.

    Returns
    -------
    dict of str to Tensor
        Each variable of the samples; each label as int64 codes (-1 where missing) or, where it is a
        number, float32 (NaN where missing); `sample_id`;
        `valid` where the plan pads, `flipped` where windows were turned, and ``<source>_present``
        where a source has the cell, bool; for contact windows `info`: lists of str `chrom1` and `region1`
        (``"chr2:1,000,000-2,000,000"``), and int64 tensors `start1` and `end1` (bp, 0-based
        half-open), and the same with 2.

    Raises
    ------
    SchemaError
        If a variable has no numbers, `layout` does not fit it, or a transform made a label that the
        vocabulary lacks.
    PlanError
        If there is no such layout.

    Notes
    -----
    ``layout="coo"`` gives, of all windows one after the other, `coords (nnz, 2)`, int64: row and
    column of each element, in bins from the start of its window; `features (nnz, k)`: its value in
    each variable but `target` (in the only one, if there is one); `target (nnz,)`: its value in the
    variable `target`, or in the first one; and `offsets (n + 1,)`: window ``i`` has the elements
    ``offsets[i]:offsets[i + 1]``. Elements below the diagonal are listed like those above it.
    """
    check_layout(layout)
    dim = loader.sample_dim
    variables = {str(k): v.variable for k, v in batch.data_vars.items() if dim in v.dims}
    if layout == "coo":
        tensors = _coo(variables)
    else:
        tensors = {k: _tensor(v, k, dim=dim, layout=layout) for k, v in variables.items()}
    for name in loader.labels:
        values, known = batch[name].values, loader.categories.get(name)
        label = numbers(values, name) if known is None else codes(values, known, name)
        tensors[name] = torch.from_numpy(label)
    present = [
        k for k, v in batch.coords.items() if str(k).endswith("_present") and v.dims == (dim,)
    ]
    for name in ("sample_id", "valid", "flipped", *map(str, present)):
        if name in batch.coords:
            tensors[name] = torch.from_numpy(np.array(batch[name].values))
    info = _info(batch)
    return {**tensors, "info": info} if info else tensors


def _info(batch: xr.Dataset) -> Tensors:
    """Return where contact windows lie."""
    info: Tensors = {}
    for side in ("1", "2"):
        names = [f"{name}{side}" for name in ("chrom", "start", "end")]
        if not all(n in batch.coords and batch[n].dims == ("sample", f"bin{side}") for n in names):
            continue
        chrom, start, end = (batch.variables[n].values for n in names)
        low, high = start.min(axis=1), end.max(axis=1)  # flipped windows begin with their last bin
        bounds = zip(chrom[:, 0], low.tolist(), high.tolist(), strict=True)
        info[names[0]] = [str(c) for c in chrom[:, 0]]
        info[names[1]] = torch.from_numpy(low.astype(np.int64))
        info[names[2]] = torch.from_numpy(high.astype(np.int64))
        info[f"region{side}"] = [f"{c}:{a:,}-{b:,}" for c, a, b in bounds]
    return info


def check_layout(layout: str | None) -> None:
    """
    Refuse a layout that there is none of.

    Parameters
    ----------
    layout : str or None
        As the user gave it.

    Raises
    ------
    PlanError
        Says which there are.
    """
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


def share_in_workers(loader: Loader) -> None:
    """
    Let a Loader in a worker make batches in memory that the main process sees.

    Parameters
    ----------
    loader : Loader
        Changed in place.
    """
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


def _coo(variables: Mapping[str, xr.Variable]) -> Tensors:
    """Return the non-zero places of windows; NaN counts as a value."""
    windows = {k: v.transpose("sample", ...) for k, v in variables.items() if v.ndim == 3}
    if not windows:
        msg = f"layout='coo' needs windows of two dimensions; the batch has {sorted(variables)}"
        raise SchemaError(msg)
    shapes = {k: v.shape[1:] for k, v in windows.items()}
    if len(set(shapes.values())) > 1:
        msg = f"layout='coo' needs windows of one shape, not {shapes}; use 'dense', or name `variables`"
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
    }
    return tensors


class Samples(Sequence[Tensors]):
    """
    Samples of one read batch, which `collate` takes back whole.

    Parameters
    ----------
    batch : dict of str to Tensor
        The batch.
    n : int
        How many samples it has.
    """

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
        rest = {k: _sample(v, i) for k, v in self.batch.items() if k not in (*out, "offsets")}
        return {**out, **rest}


def _sample(value: Any, i: int) -> Any:
    if isinstance(value, dict):
        return {k: v[i] for k, v in value.items()}
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
    if isinstance(samples, Samples):
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
