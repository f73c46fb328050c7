"""Copies that go to memory past the caches: what is written there is neither read nor kept first."""

from typing import Any

import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_NBYTES = 32


@intrinsic
def _store(typing: Any, target: Any, source: Any) -> Any:  # noqa: ARG001
    """Copy 32 bytes between addresses, the first of which is a multiple of 32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        vector = ir.VectorType(ir.IntType(64), _NBYTES // 8)
        to, at = (builder.inttoptr(x, vector.as_pointer()) for x in args)
        store = builder.store(builder.load(at, align=1), to, align=_NBYTES)
        once = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        store.set_metadata("nontemporal", once)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _fence(typing: Any) -> Any:  # noqa: ARG001
    """Let every thread see what this one wrote; such stores are not ordered by themselves."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@njit(nogil=True, cache=True)
def stream(
    source: npt.NDArray[Any], n: int, target: npt.NDArray[Any], begin: int
) -> None:  # numpydoc ignore=PR01
    """Copy the first `n` elements to ``target[begin:]``, both flat and of one type."""
    size = target.itemsize
    to, at = target.ctypes.data + begin * size, source.ctypes.data
    head = min(n, -to % _NBYTES // size)
    for k in range(head):
        target[begin + k] = source[k]
    tail = head + (n - head) * size // _NBYTES * _NBYTES // size
    for k in range(head * size, tail * size, _NBYTES):
        _store(to + k, at + k)
    for k in range(tail, n):
        target[begin + k] = source[k]
    _fence()
