"""Writing sparse rows as padded chunks of values and of column differences."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.store.blocks import RowBlocks, best_width, block_sizes
from xloader.store.layout import BLOCK_ROWS, write_group
from xloader.store.narrow import narrowed, rung_of
from xloader.store.shard_writer import Shards
from xloader.store.staging import RowSource, as_words
from xloader.store.widening import place_of_rung
from xloader.store.write import write_label
from xloader.store.writers import SHARD_NBYTES, Writer, too_large

Int64 = npt.NDArray[np.int64]

_SHARD_CHUNKS = 1024


class RowsWriter(Writer):
    """
    Writes sparse rows as padded blocks of values and of column differences.

    Parameters
    ----------
    path : Path
        Group to make.
    source : RowSource
        Where rows are read, in the order of the store.
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
        self, path: Path, source: RowSource, *, dims: tuple[str, ...], codec: str, budget: int
    ) -> None:
        super().__init__(path, source.types)
        self.rung = source.rung
        self.source, self.dims, self.codec = source, dims, codec
        self.sizes = block_sizes(source.indptr)
        self.blocks = RowBlocks(source.indptr, best_width(self.sizes))
        width = self.blocks.width
        self.shard = _SHARD_CHUNKS
        slot = source.dtype.itemsize + source.deltas.itemsize
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
        # the padded arrays and what is compressed of them; and the rows read in, with copies
        itemsize = self.source.dtype.itemsize
        padded = shard * self.blocks.width * (itemsize + self.source.deltas.itemsize)
        return 2 * padded + self._step_values(shard) * 3 * (itemsize + 8)

    def _step_values(self, shard: int) -> int:
        """Return the values to read at a time: an eighth of a shard, or the largest block."""
        largest = int(self.sizes.max(initial=0))
        return max(largest, shard * self.blocks.width // 8)

    @override
    def arrays(self, rung: int) -> list[Shards]:  # numpydoc ignore=GL08
        width = self.blocks.width
        place = place_of_rung(self.path, rung)
        types = (("values", "counts", self.ladder[rung]), ("deltas", "deltas", self.source.deltas))
        return [
            Shards(
                place / name,
                codec=self.codec,
                kind=kind,
                shape=(self.blocks.n_chunks, width),
                chunks=(1, width),
                shards=(self.shard, width),
                dtype=dtype,
                dimension_names=("chunk", "place"),
            )
            for name, kind, dtype in types
        ]

    @override
    def write(self, task: int, rung: int) -> int:  # numpydoc ignore=GL08
        from xloader.kernels.scatter import place  # numba is imported when rows are first written

        width, chunks = self.blocks.width, self.blocks.first_chunks
        first = task * self.shard
        last = min(first + self.shard, self.blocks.n_chunks)
        values = np.zeros((last - first) * width, self.ladder[rung])
        deltas = np.zeros((last - first) * width, self.source.deltas)
        begin = int(np.searchsorted(chunks, first, "right")) - 1
        end = min(int(np.searchsorted(chunks, last, "left")), len(self.sizes))
        indptr = self.source.indptr
        start, stop = begin * BLOCK_ROWS, min(end * BLOCK_ROWS, len(indptr) - 1)
        for part in self.source.read(start, stop, self._step_values(self.shard)):
            need = rung_of(part.values, self.ladder, rung)
            if need > rung:
                return need
            block = part.rows // BLOCK_ROWS
            # a block may begin in the shard before, or end in the next
            to = (chunks[block] - first) * width + indptr[part.rows] - indptr[block * BLOCK_ROWS]
            words = as_words(narrowed(part.values, values.dtype))
            place(words, part.deltas, part.indptr, to, as_words(values), deltas)
        for array, flat in zip(self.arrays(rung), (values, deltas), strict=True):
            array.write((task, 0), flat.reshape(-1, width))
        return rung

    @override
    def description(self) -> dict[str, Any]:  # numpydoc ignore=GL08
        write_group(self.path)
        indptr = xr.Variable("row", self.source.indptr)
        return {
            "layout": "rows",
            "dtype": self.source.dtype.str,
            "shape": [len(self.source.indptr) - 1, self.source.n_columns],
            "indptr": write_label(self.path, "indptr", indptr, "indptr"),
        }
