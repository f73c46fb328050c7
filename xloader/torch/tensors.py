"""Batches as tensors, and samples joined into batches."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
import torch.utils.data
import xarray as xr
from typing_extensions import override

from xloader.csr import CSRArray
from xloader.errors import SchemaError
from xloader.labels import codes, numbers
from xloader.loader import Loader
from xloader.torch.batches import Tensors, csr_tensor
from xloader.torch.forms import Form, shared_memory

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def to_tensors(
    batch: xr.Dataset,
    loader: Loader,
    *,
    layout: str | None = None,
    dtype: torch.dtype | str | None = None,
    index_dtype: torch.dtype | str | None = None,
) -> Tensors:
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
    dtype : torch.dtype or str, optional
        Type of all variables but masks: float16, bfloat16, float32 or float64. Default: their own;
        uint16 becomes int32, uint32 and uint64 become int64.
    index_dtype : torch.dtype or str, optional
        Type of the indices of CSR tensors: int32 or int64. Default: int32, which takes half the
        memory and which every operation of torch on CSR tensors takes, wherever they fit.

    Returns
    -------
    Tensors
        Each variable of the samples; each label as int64 codes (-1 where missing) or, where it is a
        number, float32 (NaN where missing); `sample_id`;
        `valid` where the plan pads, `flipped` where windows were turned, and ``<source>_present``
        where a source has the cell, bool; for contact windows `info`: lists of str `chrom1` and `region1`
        (``"chr2:1,000,000-2,000,000"``), and int64 tensors `start1` and `end1` (bp, 0-based
        half-open), and the same with 2.

    Raises
    ------
    SchemaError
        If a variable has no numbers, or `layout` does not fit it, or it holds values that `dtype`
        would make infinite. Whole numbers that it rounds (float16: beyond 2,048) are told by a warning.
        Or if a transform made a label that the vocabulary lacks.
    PlanError
        If there is no such layout or type.

    Notes
    -----
    ``layout="coo"`` gives, of all windows one after the other, `coords (nnz, 2)`, int64: row and
    column of each element, in bins from the start of its window; `features (nnz, k)`: its value in
    each variable but `target` (in the only one, if there is one); `target (nnz,)`: its value in the
    variable `target`, or in the first one; and `offsets (n + 1,)`: window ``i`` has the elements
    ``offsets[i]:offsets[i + 1]``. Elements below the diagonal are listed like those above it.
    """
    return in_form(batch, loader, Form(layout, dtype, index_dtype))


def in_form(batch: xr.Dataset, loader: Loader, form: Form) -> Tensors:
    """
    Turn a labelled batch into tensors, as `to_tensors`.

    Parameters
    ----------
    batch : xarray.Dataset
        A batch of `loader`.
    loader : Loader
        Knows the labels and their vocabularies.
    form : Form
        What tensors they are.

    Returns
    -------
    Tensors
        As `to_tensors`.
    """
    dim = loader.sample_dim
    variables = {str(k): v.variable for k, v in batch.data_vars.items() if dim in v.dims}
    if form.layout == "coo":
        tensors = _coo(variables, form)
    else:
        tensors = Tensors({k: _tensor(v, k, dim=dim, form=form) for k, v in variables.items()})
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
    if info:
        tensors["info"] = info
    return tensors


def _info(batch: xr.Dataset) -> dict[str, Any]:
    """Return where contact windows lie."""
    info: dict[str, Any] = {}
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


def _tensor(variable: xr.Variable, name: str, *, dim: str, form: Form) -> torch.Tensor:
    if variable.dims[0] != dim:
        variable = variable.transpose(dim, ...)
    data: Any = variable.data
    if isinstance(data, CSRArray):
        return _csr(data, name, form) if form.layout != "dense" else _densified(data, name, form)
    tensor = form.values(np.asarray(data), name)
    if form.layout == "csr":
        if tensor.ndim != 2:
            msg = (
                f"layout='csr' needs matrices, but {name!r} is {dict(variable.sizes)}; use 'dense'"
            )
            raise SchemaError(msg)
        csr = tensor.to_sparse_csr()
        pointers, columns = (
            form.indices(i.numpy(), len(csr.values()))
            for i in (csr.crow_indices(), csr.col_indices())
        )
        return csr_tensor(pointers, columns, csr.values(), csr.shape)
    return tensor


def share_in_workers(loader: Loader) -> None:
    """
    Let a Loader in a worker make batches in memory that the main process sees.

    Parameters
    ----------
    loader : Loader
        Changed in place.
    """
    if torch.utils.data.get_worker_info() is not None and loader.allocate is not shared_memory:
        loader.allocate_with(shared_memory)


def _csr(array: CSRArray, name: str, form: Form) -> torch.Tensor:
    return csr_tensor(
        form.indices(array.indptr, array.nnz),
        form.indices(array.indices, array.nnz),
        form.values(array.data, name),
        array.shape,
    )


def _densified(array: CSRArray, name: str, form: Form) -> torch.Tensor:
    values = form.values(array.data, name)
    # by the bits: numpy has no bfloat16, and no zero has another bit than 0
    words = values if values.dtype == torch.bool else values.view(_WORDS[values.itemsize])
    parts = words.numpy(), array.indices, array.indptr, array.shape
    return torch.from_numpy(CSRArray(*parts).todense()).view(values.dtype)


def _coo(variables: Mapping[str, xr.Variable], form: Form) -> Tensors:
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
    return Tensors(
        coords=torch.from_numpy(np.stack([row, column], axis=1)),
        features=torch.stack([form.values(v[found], "features") for v in features], dim=1),
        target=form.values(target[found], "target"),
        offsets=torch.from_numpy(offsets),
    )


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
            return Tensors({k: _sample(v, i) for k, v in self.batch.items()})
        low, high = self.batch["offsets"][i : i + 2].tolist()
        out = {k: self.batch[k][low:high] for k in ("coords", "features", "target")}
        rest = {k: _sample(v, i) for k, v in self.batch.items() if k not in (*out, "offsets")}
        return Tensors(out | rest)


def _sample(value: Any, i: int) -> Any:
    if isinstance(value, dict):
        return {k: v[i] for k, v in value.items()}
    if value.layout != torch.sparse_csr:
        return value[i]
    low, high = value.crow_indices()[i : i + 2].tolist()
    pointer = torch.tensor([0, high - low], dtype=value.crow_indices().dtype)
    parts = value.col_indices()[low:high], value.values()[low:high]
    return csr_tensor(pointer, *parts, (1, value.shape[1]))


def collate(samples: Sequence[Mapping[str, Any]]) -> Tensors:
    """
    Join samples into one batch; what `MapDataset.__getitems__` read together is taken whole.

    Parameters
    ----------
    samples : sequence of dict
        What `MapDataset` gives.

    Returns
    -------
    Tensors
        Samples first; ragged windows (`coords`, `features`, `target`) joined, with `offsets`.
    """
    if isinstance(samples, Samples):
        return samples.batch
    out = Tensors()
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
    return csr_tensor(
        torch.tensor(lengths).cumsum(0).to(rows[0].crow_indices().dtype),
        torch.cat([r.col_indices() for r in rows]),
        torch.cat([r.values() for r in rows]),
        (len(rows), rows[0].shape[1]),
    )
