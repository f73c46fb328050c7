"""Variables of a store that rows were appended to, read as one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.arrays import Key, RowArray, StoredArray
from xloader.buffers import Buffers
from xloader.csr import CSRArray
from xloader.packed import PackedRows

Int64 = npt.NDArray[np.int64]


class AppendedRows(RowArray):
    """
    Sparse matrices with the same columns, one below the other.

    Parameters
    ----------
    parts : sequence of RowArray
        At least one, of one dtype, which give their rows as differences of columns.
    """

    is_converted = True

    def __init__(self, parts: Sequence[RowArray]) -> None:
        self.parts = list(parts)
        self.firsts = np.append(0, np.cumsum([part.shape[0] for part in parts]))
        shape = int(self.firsts[-1]), parts[0].shape[1]
        super().__init__(shape, parts[0].dtype, parts[0].block_rows)

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:  # numpydoc ignore=GL08
        return self.read_ranges(np.array([start]), np.array([stop]))

    @override
    def read_ranges(self, starts: Int64, stops: Int64) -> CSRArray:  # numpydoc ignore=GL08
        packed = self.read_packed(starts, stops, Buffers())
        return packed.take(np.arange(len(packed.starts)), self.dtype, None, Buffers())

    @override
    def read_packed(
        self, starts: Int64, stops: Int64, buffers: Buffers
    ) -> PackedRows:  # numpydoc ignore=GL08
        of, low, high = self._cut(starts, stops)
        part_of_row = np.repeat(of, high - low)
        begins, lengths, rows = (np.empty(len(part_of_row), np.int64) for _ in range(3))
        read, before = [], 0
        for k in np.unique(of).tolist() or [0]:
            mine = of == k
            packed = self.parts[k].read_packed(low[mine], high[mine], buffers)
            here = part_of_row == k
            begins[here] = packed.starts + before
            lengths[here], rows[here] = packed.lengths, packed.rows + self.firsts[k]
            before += len(packed.values)
            read.append(packed)
        values = [packed.values for packed in read]
        if len({v.dtype for v in values}) > 1:  # their own type holds what any narrower one does
            values = [v.astype(self.dtype) for v in values]
        return PackedRows(
            values[0] if len(values) == 1 else np.concatenate(values),
            read[0].columns if len(read) == 1 else np.concatenate([p.columns for p in read]),
            starts=begins,
            lengths=lengths,
            n_columns=self.shape[1],
            delta=read[0].delta,
            name=read[0].name,
            rows=rows,
        )

    def _cut(self, starts: Int64, stops: Int64) -> tuple[Int64, Int64, Int64]:
        """Cut ranges where parts begin: the part of each piece, and its rows there."""
        pieces = [
            (k, low, high)
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
            for k, low, high in self._pieces(start, stop)
        ]
        of, low, high = np.array(pieces, np.int64).reshape(-1, 3).T
        return of, low, high

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        k = int(np.searchsorted(self.firsts, start, "right")) - 1
        while start < stop:
            end = min(stop, int(self.firsts[k + 1]))
            first = int(self.firsts[k])
            if end > start:
                yield k, start - first, end - first
            start, k = end, k + 1

    @override
    def nbytes_of(self, starts: Int64, stops: Int64) -> Int64:  # numpydoc ignore=GL08
        parts = (p.nbytes_of(a, b) * (b > a) for p, a, b in self._clipped(starts, stops))
        return 2 * sum(parts, 0 * starts)  # once more while parts are joined

    @override
    def nnz_of(self, starts: Int64, stops: Int64) -> Int64:  # numpydoc ignore=GL08
        return sum((p.nnz_of(a, b) for p, a, b in self._clipped(starts, stops)), 0 * starts)

    def _clipped(self, starts: Int64, stops: Int64) -> Iterator[tuple[RowArray, Int64, Int64]]:
        for part, first in zip(self.parts, self.firsts.tolist(), strict=False):
            yield part, *(np.clip(at - first, 0, part.shape[0]) for at in (starts, stops))


class AppendedDense(StoredArray):
    """
    Dense arrays that are joined along one dimension.

    Parameters
    ----------
    parts : sequence of StoredArray
        At least one; of one dtype, and equal in all other dimensions.
    axis : int
        The dimension.
    """

    is_converted = True

    def __init__(self, parts: Sequence[StoredArray], axis: int) -> None:
        self.parts, self.axis = list(parts), axis
        self.firsts = np.append(0, np.cumsum([part.shape[axis] for part in parts]))
        shape = list(parts[0].shape)
        shape[axis] = int(self.firsts[-1])
        super().__init__(tuple(shape), parts[0].dtype)

    @property
    @override
    def unit(self) -> tuple[int, ...]:  # numpydoc ignore=GL08
        return self.parts[0].unit

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        wanted = key[self.axis]
        if not isinstance(wanted, slice):
            k = int(np.searchsorted(self.firsts, wanted, "right")) - 1
            return self._part(k, key, wanted - int(self.firsts[k]))
        places = np.arange(self.shape[self.axis])[wanted]
        bounds = np.searchsorted(places, self.firsts)
        read = [
            self._part(k, key, slice(mine[0], mine[-1] + 1, wanted.step))
            for k in range(len(self.parts))
            if len(mine := (places[bounds[k] : bounds[k + 1]] - self.firsts[k]).tolist())
        ]
        read = read or [self._part(0, key, slice(0, 0))]
        dropped = sum(not isinstance(k, slice) for k in key[: self.axis])
        return read[0] if len(read) == 1 else np.concatenate(read, axis=self.axis - dropped)

    def _part(self, k: int, key: Key, wanted: int | slice) -> npt.NDArray[Any]:
        return self.parts[k]._raw((*key[: self.axis], wanted, *key[self.axis + 1 :]))


def joined_attrs(attrs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Return the attributes of a label whose values were written at different times.

    Parameters
    ----------
    attrs : sequence of mapping
        Those of each part.

    Returns
    -------
    dict
        Those of the first; `categories` hold what later ones added at their end, if all have some.

    Examples
    --------
    >>> joined_attrs([{"categories": ["B", "T"]}, {"categories": ["NK", "T"]}])
    {'categories': ['B', 'T', 'NK']}
    """
    joined = dict(attrs[0])
    if all("categories" in each for each in attrs):
        joined["categories"] = list(dict.fromkeys(c for each in attrs for c in each["categories"]))
    else:
        joined.pop("categories", None)
    return joined
