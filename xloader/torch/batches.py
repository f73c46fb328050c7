"""Dicts of tensors that travel: between processes, into page-locked memory, to a device."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from typing_extensions import override


class _Parts(NamedTuple):
    """A CSR tensor as its three arrays, which any process and any device takes."""

    pointers: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, int]

    def map(self, do: Callable[[torch.Tensor], torch.Tensor]) -> "_Parts":
        return _Parts(do(self.pointers), do(self.columns), do(self.values), self.shape)

    def to_csr(self) -> torch.Tensor:
        return csr_tensor(self.pointers, self.columns, self.values, self.shape)

    def to_dense(self) -> torch.Tensor:
        (n_rows, n_columns), device = self.shape, self.values.device
        rows = torch.arange(n_rows, device=device)
        # without its size, the device would have to tell how many there are before more is enqueued
        row = torch.repeat_interleave(rows, self.pointers.diff(), output_size=len(self.values))
        out = torch.zeros(n_rows * n_columns, dtype=self.values.dtype, device=device)
        return out.scatter_(0, row * n_columns + self.columns, self.values).view(self.shape)


def csr_tensor(
    pointers: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    """
    Make a CSR tensor of its three arrays, which are not copied.

    Parameters
    ----------
    pointers : Tensor of int32 or int64, shape (n_rows + 1,)
        First value of each row, and their number.
    columns : Tensor of the same dtype, shape (nnz,)
        Column of each value, increasing within each row.
    values : Tensor, shape (nnz,)
        The values.
    shape : tuple of int
        ``(n_rows, n_columns)``.

    Returns
    -------
    Tensor
        With the layout ``torch.sparse_csr``.
    """
    return torch.sparse_csr_tensor(pointers, columns, values, shape, check_invariants=False)


class Tensors(dict[str, Any]):
    """
    A batch: a dict of tensors by name, some of them perhaps CSR.

    To other processes, and into page-locked memory, a CSR tensor goes as its three arrays, and is put
    together again where it arrives: worker processes never send a sparse tensor.

    Examples
    --------
    >>> batch = Tensors(x=torch.eye(2))
    >>> batch["x"].sum().item()
    2.0
    """

    @override
    def __reduce__(self) -> Any:
        return _rebuilt, ({k: _parts(v) for k, v in self.items()},)

    def __copy__(self) -> "Tensors":
        return Tensors(self)

    def pin_memory(self) -> "Tensors":
        """
        Copy all tensors into page-locked memory, from which a GPU takes them while it computes.

        Returns
        -------
        Tensors
            A new batch; torch's DataLoader asks for it with ``pin_memory=True``.
        """
        return _map(self, torch.Tensor.pin_memory)


def _parts(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.layout == torch.sparse_csr:
        shape = value.shape[0], value.shape[1]
        return _Parts(value.crow_indices(), value.col_indices(), value.values(), shape)
    return value


def _rebuilt(parts: Mapping[str, Any]) -> Tensors:
    return Tensors({k: v.to_csr() if isinstance(v, _Parts) else v for k, v in parts.items()})


def _map(
    batch: Mapping[str, Any],
    do: Callable[[torch.Tensor], torch.Tensor],
    finish: Callable[[_Parts], torch.Tensor] = _Parts.to_csr,
) -> Tensors:
    """Do something to every array of a batch, three of each CSR tensor."""
    out = Tensors()
    for name, value in batch.items():
        parts = _parts(value)
        if isinstance(parts, _Parts):
            out[name] = finish(parts.map(do))
        else:
            out[name] = do(value) if isinstance(value, torch.Tensor) else value
    return out


def to_device(
    batch: Mapping[str, Any], device: torch.device | str | int, *, dense: bool = True
) -> Tensors:
    """
    Send a batch to a device: of sparse variables only what is stored, made dense there.

    A GPU takes the arrays from page-locked memory, without waiting for each other: those of
    ``make_loader(..., pin_memory=True)`` lie there already, others are copied there first.

    Parameters
    ----------
    batch : mapping of str to Tensor
        What a dataset or DataLoader of this package gives, with ``layout="csr"`` for cells.
    device : torch.device, str or int
        Where to, such as ``"cuda"``; ``"cpu"`` does the same without sending.
    dense : bool, optional
        Whether CSR tensors become dense, of the same dtype. Default: they do.

    Returns
    -------
    Tensors
        A new batch; what is no tensor, such as `info`, is as it was.

    Examples
    --------
    >>> import warnings
    >>> warnings.simplefilter("ignore")  # torch says that CSR tensors are in beta
    >>> x = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    >>> to_device({"X": x.to_sparse_csr()}, "cpu")["X"]
    tensor([[0., 3.],
            [1., 0.]])
    """
    target = torch.device(device)

    finish = _Parts.to_dense if dense else _Parts.to_csr
    return _map(batch, partial(_send, target), finish)


def _send(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    if tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
