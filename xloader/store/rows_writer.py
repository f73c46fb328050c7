"""Writing sparse rows as padded chunks of values and of column differences."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.arrays import RowArray
from xloader.csr import CSRArray
from xloader.errors import ReadError
from xloader.store.blocks import RowBlocks, best_width, block_sizes
from xloader.store.layout import BLOCK_ROWS, write_group
from xloader.store.staging import read_increasing
from xloader.store.write import create_array, write_label
from xloader.store.writers import SHARD_NBYTES, Writer, rung_of, too_large, types_for

Int64 = npt.NDArray[np.int64]

_SHARD_CHUNKS = 1024


class RowsWriter(Writer):
    """
    Writes sparse rows as padded blocks of values and of column differences.

    Parameters
    ----------
    path : Path
        Group to make.
    source : RowArray
        Where rows are read.
    rows : ndarray of int64, shape (n_rows,)
        Which of them, strictly increasing.
    dims : tuple of str
        Names of the dimensions.
    codec : {"fast", "small"}
        How to compress.
    budget : int
        Bytes that one task may take.

    Raises
    ------
    PlanError
        If one block does not fit the budget.
    """

    def __init__(
        self,
        path: Path,
        source: RowArray,
        rows: Int64,
        *,
        dims: tuple[str, ...],
        codec: str,
        budget: int,
    ) -> None:
        super().__init__(path, types_for(source.dtype, bits=(8, 16, 32), floats=True))
        self.source, self.rows, self.dims, self.codec = source, rows, dims, codec
        self.indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(source.nnz_of(rows, rows + 1), out=self.indptr[1:])
        self.sizes = block_sizes(self.indptr)
        self.blocks = RowBlocks(self.indptr, best_width(self.sizes))
        self.deltas = np.dtype(np.uint16 if source.shape[1] <= 2**16 else np.uint32)
        width = self.blocks.width
        self.shard = _SHARD_CHUNKS
        slot = source.dtype.itemsize + self.deltas.itemsize
        while self.shard > 1 and (
            self.shard * width * slot > SHARD_NBYTES or self._nbytes(self.shard) > budget
        ):
            self.shard //= 2
        self.shard = min(self.shard, self.blocks.n_chunks)
        self.task_nbytes = self._nbytes(self.shard)
        if self.task_nbytes > budget:
            raise too_large(path, f"one block of {BLOCK_ROWS} rows", self.task_nbytes, budget)
        self.n_tasks = -(-self.blocks.n_chunks // self.shard)

    def _nbytes(self, shard: int) -> int:
        # the padded arrays, their chunks and the file; and the rows read in, with copies
        itemsize = self.source.dtype.itemsize
        padded = shard * self.blocks.width * (itemsize + self.deltas.itemsize)
        return 3 * padded + self._step_values(shard) * 4 * (itemsize + 8)

    def _step_values(self, shard: int) -> int:
        """Return the values read at a time: an eighth of a shard, or the largest block."""
        largest = int(self.sizes.max(initial=0))
        return max(largest, shard * self.blocks.width // 8)

    @override
    def create(self, rung: int) -> None:  # numpydoc ignore=GL08
        write_group(self.path)
        n_chunks, width = self.blocks.n_chunks, self.blocks.width
        common: dict[str, Any] = {
            "codec": self.codec,
            "shape": (n_chunks, width),
            "chunks": (1, width),
            "shards": (self.shard, width),
            "dimension_names": ("chunk", "place"),
        }
        self._values = create_array(
            self.path / "values", kind="counts", dtype=self.ladder[rung], **common
        )
        self._deltas = create_array(
            self.path / "deltas", kind="deltas", dtype=self.deltas, **common
        )

    @override
    def write(self, task: int, rung: int) -> int:  # numpydoc ignore=GL08
        width, chunks = self.blocks.width, self.blocks.first_chunks
        first = task * self.shard
        last = min(first + self.shard, self.blocks.n_chunks)
        values = np.zeros((last - first) * width, self.ladder[rung])
        deltas = np.zeros((last - first) * width, self.deltas)
        need = rung
        begin = int(np.searchsorted(chunks, first, "right")) - 1
        end = min(int(np.searchsorted(chunks, last, "left")), len(self.sizes))
        for a, b in self._steps_between(begin, end):
            csr = self._read(a * BLOCK_ROWS, min(b * BLOCK_ROWS, len(self.rows)))
            need = rung_of(csr.data, self.ladder, need)
            if need > rung:
                continue  # what the other rows need is still to be known
            steps = self._steps_of(csr)
            at = np.cumsum(self.sizes[a:b]) - self.sizes[a:b]
            for p, size, chunk in zip(at, self.sizes[a:b], chunks[a:b], strict=True):
                # a block may begin in the shard before, or end in the next
                to = (int(chunk) - first) * width
                low, high = max(0, -to), min(int(size), len(values) - to)
                if low < high:
                    values[to + low : to + high] = csr.data[p + low : p + high]
                    deltas[to + low : to + high] = steps[p + low : p + high]
        if need == rung:
            self._values[first:last] = values.reshape(-1, width)
            self._deltas[first:last] = deltas.reshape(-1, width)
        return need

    def _steps_between(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Cut blocks into runs that are read at a time."""
        most = self._step_values(self.shard)
        ends = np.cumsum(self.sizes[begin:end])
        a = begin
        while a < end:
            before = int(ends[a - begin - 1]) if a > begin else 0
            fits = begin + int(np.searchsorted(ends, before + most, "right"))
            b = min(max(fits, a + 1), end)
            yield a, b
            a = b

    def _read(self, start: int, stop: int) -> CSRArray:
        csr = read_increasing(self.source, self.rows[start:stop])
        if not np.array_equal(np.diff(csr.indptr), np.diff(self.indptr[start : stop + 1])):
            msg = (
                f"rows {start}-{stop} of `{self.path.name}` hold other numbers of values than their "
                "index says: the source changed while it was converted, or is damaged; check it"
            )
            raise ReadError(msg)
        return csr

    def _steps_of(self, csr: CSRArray) -> npt.NDArray[Any]:
        """Return each column as the difference to the one before it in its row."""
        steps = np.diff(csr.indices, prepend=0)
        starts = csr.indptr[:-1][np.diff(csr.indptr) > 0]
        steps[starts] = csr.indices[starts]
        if steps.size and steps.min() < 0:
            msg = f"columns of `{self.path.name}` are not in increasing order; sort its source"
            raise ReadError(msg)
        return steps

    @override
    def description(self) -> dict[str, Any]:  # numpydoc ignore=GL08
        indptr = xr.Variable("row", self.indptr)
        return {
            "layout": "rows",
            "dtype": self.source.dtype.str,
            "shape": [len(self.rows), self.source.shape[1]],
            "indptr": write_label(self.path, "indptr", indptr, "indptr"),
        }
