"""What tensors a batch becomes: layout and types, and what a type cannot hold."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data

from xloader.errors import PlanError, SchemaError, warn

LAYOUTS = (None, "dense", "csr", "coo")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INDEX_DTYPES = (torch.int32, torch.int64)
_SIGNED = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


@dataclass(frozen=True)
class Form:
    """What tensors a batch becomes; refuses what there is none of with a PlanError."""

    layout: str | None = None
    """As for `to_tensors`."""
    dtype: Any = None
    """Type of numbers; None keeps theirs."""
    index_dtype: Any = None
    """Type of the indices of CSR tensors; None is int32 wherever they fit."""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            msg = f"layout={self.layout!r} is unknown; choose one of {LAYOUTS}"
            raise PlanError(msg)
        object.__setattr__(self, "dtype", _known("dtype", self.dtype, _DTYPES))
        indices = _known("index_dtype", self.index_dtype, _INDEX_DTYPES)
        object.__setattr__(self, "index_dtype", indices)
        if indices is not None and self.layout not in {None, "csr"}:
            msg = f"index_dtype is about CSR tensors, and layout={self.layout!r} has none; leave it out"
            raise PlanError(msg)

    def values(self, array: npt.NDArray[Any], name: str) -> torch.Tensor:
        """
        Return numbers as a tensor of the type asked for.

        Parameters
        ----------
        array : ndarray
            Any numbers; bool stays bool.
        name : str
            Of which variable, for messages.

        Returns
        -------
        Tensor
            In memory that other processes see, where a worker made it.

        Raises
        ------
        SchemaError
            If they are no numbers, or larger than the type can hold.
        """
        if array.dtype.kind not in "iufbc":
            msg = f"{name!r} is {array.dtype}, which no tensor holds; name it in `labels` or leave it out"
            raise SchemaError(msg)
        native = array.dtype.newbyteorder("=")
        if self.dtype is None or array.dtype.kind in "bc":
            return _tensor(np.ascontiguousarray(array, _SIGNED.get(native.name, native)))
        _check_range(array, name, self.dtype)
        source = _tensor(np.ascontiguousarray(array, native))
        return (
            source if source.dtype == self.dtype else _empty(source.shape, self.dtype).copy_(source)
        )

    def indices(self, array: npt.NDArray[Any], nnz: int) -> torch.Tensor:
        """
        Return row pointers or columns of a CSR tensor; torch wants both of one type.

        Parameters
        ----------
        array : ndarray of int32 or int64
            The indices.
        nnz : int
            Stored values of the tensor.

        Returns
        -------
        Tensor
            Of int32, unless they do not fit or int64 is asked for.

        Raises
        ------
        SchemaError
            If they do not fit the type that was asked for.
        """
        wide = nnz >= 2**31 or (array.dtype.itemsize > 4 and bool(array.max(initial=0) >= 2**31))
        if wide and self.index_dtype == torch.int32:
            msg = (
                f"a batch of {nnz:,} stored values does not fit index_dtype=torch.int32; choose smaller "
                "batches, or torch.int64"
            )
            raise SchemaError(msg)
        dtype = np.int64 if wide or self.index_dtype == torch.int64 else np.int32
        return _tensor(np.ascontiguousarray(array, dtype))


def _known(name: str, asked: Any, known: tuple[torch.dtype, ...]) -> torch.dtype | None:
    found = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if found is not None and found in known:
        return found  # type: ignore[no-any-return]
    if asked is None:
        return None
    msg = f"{name}={asked!r} is impossible; choose one of {', '.join(map(str, known))}, or leave it out"
    raise PlanError(msg)


def _check_range(array: npt.NDArray[Any], name: str, dtype: torch.dtype) -> None:
    """Refuse values that would become infinite, and tell of counts that would be rounded."""
    if array.dtype.kind == "f" and array.dtype.itemsize <= 4 and dtype.itemsize >= 4:
        return
    limits = torch.finfo(dtype)
    exact = round(2 / limits.eps)  # up to here, every whole number is there
    with np.errstate(invalid="ignore"):
        largest = max(
            float(np.fmax.reduce(array, None, initial=0)),
            -float(np.fmin.reduce(array, None, initial=0)),
        )
    if np.isinf(largest):  # what is infinite may stay so
        finite = np.abs(array[np.isfinite(array)])
        largest = float(finite.max(initial=0))
    if largest > limits.max:
        msg = (
            f"{name!r} holds {largest:,.10g}, and {dtype} nothing beyond {limits.max:,.10g}: it would be "
            "infinite; ask for dtype=torch.float32 (or torch.bfloat16), or bring values down first "
            "(transform=xl.transforms.log1p)"
        )
        raise SchemaError(msg)
    if largest > exact and (array.dtype.kind in "iu" or _is_whole(array)):
        # the same text for every batch, so that Python says it once
        warn(
            f"{name!r} holds whole numbers beyond {exact:,}, which {dtype} rounds; if they are counts that a "
            "model takes as such, ask for a wider dtype"
        )


def _is_whole(array: npt.NDArray[Any]) -> bool:
    finite = array[np.isfinite(array)]
    return bool((finite == np.rint(finite)).all())


def shared_memory(nbytes: int) -> npt.NDArray[Any]:
    """
    Return memory that other processes see, so that a worker's batches are not copied again.

    Parameters
    ----------
    nbytes : int
        How much.

    Returns
    -------
    ndarray of uint8
        Not initialised.
    """
    return _empty((nbytes,), torch.uint8, shared=True).numpy()


def _empty(shape: Any, dtype: torch.dtype, *, shared: bool | None = None) -> torch.Tensor:
    if shared is None:
        shared = torch.utils.data.get_worker_info() is not None
    if not shared:
        return torch.empty(shape, dtype=dtype)
    n = int(np.prod(shape)) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(n)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def _tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    """Return a tensor of the same memory, which knows that it is shared where it is."""
    base: Any = values
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, torch.Tensor) and base.is_shared() and values.size:  # type: ignore[no-untyped-call]
        kind = torch.from_numpy(values[:0])
        offset = (values.ctypes.data - base.data_ptr()) // values.itemsize
        strides = tuple(s // values.itemsize for s in values.strides)
        return kind.set_(base.untyped_storage(), offset, values.shape, strides)
    return torch.from_numpy(values if values.flags.writeable else values.copy())
