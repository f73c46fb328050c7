"""Writing one variable, in tasks of whole shards that each read their own part of the source."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader import trace
from xloader.arrays import RowArray, TileArray
from xloader.csr import CSRArray
from xloader.errors import PlanError, ReadError
from xloader.store.layout import BLOCK_ROWS, SHARD_SIDE, TILE, write_group
from xloader.store.staging import read_dense, read_increasing
from xloader.store.write import create_array, write_label

Int64 = npt.NDArray[np.int64]

_SHARD_NBYTES = 64 * 2**20
_SHARD_BLOCKS = 512
_DENSE_CHUNK_NBYTES = 2**18
_STRIPE = 4 * TILE


def _ladder(dtype: np.dtype[Any], *, bits: Sequence[int], floats: bool) -> list[np.dtype[Any]]:
    """Return the types that may hold the values exactly, narrowest first, their own one last."""
    if dtype.kind == "c" or (dtype.kind == "f" and not floats):
        return [dtype]
    narrow = [np.dtype(f"u{b // 8}") for b in bits if b // 8 <= dtype.itemsize]
    return [*(d for d in narrow if d != dtype), dtype]


def _rung(values: npt.NDArray[Any], ladder: Sequence[np.dtype[Any]], at_least: int) -> int:
    """Return which type of a ladder holds some values exactly."""
    last = len(ladder) - 1
    if at_least == last or values.size == 0:
        return at_least
    low, high = values.min(), values.max()
    # a NaN fails the first comparison
    if not low >= 0 or not np.isfinite(high):
        return last
    if values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
        return last
    fits = (k for k in range(at_least, last) if int(high) <= np.iinfo(ladder[k]).max)
    return next(fits, last)


class Writer(ABC):
    """
    Writes one variable, in tasks that touch no shard in common.

    The narrowest type that holds all values is known only at the end: a task that meets a value
    too large for the rung it is given writes nothing and returns the rung that it needs.

    Parameters
    ----------
    path : Path
        Where the variable goes.
    ladder : sequence of dtype
        Types to store it in, narrowest first.
    """

    n_tasks: int
    """Number of tasks; they may run at the same time."""
    task_nbytes: int
    """Bytes that one task needs at most."""

    def __init__(self, path: Path, ladder: Sequence[np.dtype[Any]]) -> None:
        self.path = path
        self.ladder = ladder

    @abstractmethod
    def create(self, rung: int) -> None:
        """
        Make the arrays anew, empty.

        Parameters
        ----------
        rung : int
            Which type of the ladder to store values in.
        """

    @abstractmethod
    def write(self, task: int, rung: int) -> int:
        """
        Do one task.

        Parameters
        ----------
        task : int
            Which one.
        rung : int
            What `create` was given.

        Returns
        -------
        int
            The rung that the values need; they were written if it equals `rung`.

        Raises
        ------
        ReadError
            If the source cannot be read.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """
        Return what this kind of variable needs to be read again.

        Returns
        -------
        dict
            Strict JSON.
        """


def _too_large(path: Path, what: str, nbytes: int, budget: int) -> PlanError:
    return PlanError(
        f"writing `{path.name}` needs {nbytes / 1e6:.0f} MB at a time ({what}), and `memory_budget` "
        f"allows {budget / 1e6:.0f} MB; choose a budget of at least {-(-nbytes // 10**6)} MB"
    )


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
        super().__init__(path, _ladder(source.dtype, bits=(8, 16, 32), floats=True))
        self.source, self.rows, self.dims, self.codec = source, rows, dims, codec
        self.indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(source.nnz_of(rows, rows + 1), out=self.indptr[1:])
        edges = np.append(self.indptr[:-1:BLOCK_ROWS], self.indptr[-1])
        self.n_blocks = len(edges) - 1
        self.width = max(1, int(np.diff(edges).max()))
        self.deltas = np.dtype(np.uint16 if source.shape[1] <= 2**16 else np.uint32)
        self.shard = _SHARD_BLOCKS
        slot = source.dtype.itemsize + self.deltas.itemsize
        while self.shard > 1 and (
            self.shard * self.width * slot > _SHARD_NBYTES or self._nbytes(self.shard) > budget
        ):
            self.shard //= 2
        self.shard = min(self.shard, self.n_blocks)
        self.task_nbytes = self._nbytes(self.shard)
        if self.task_nbytes > budget:
            raise _too_large(path, f"one block of {BLOCK_ROWS} rows", self.task_nbytes, budget)
        self.n_tasks = -(-self.n_blocks // self.shard)

    def _nbytes(self, shard: int) -> int:
        # the padded arrays, their chunks and the file; and the rows read in, with copies
        padded = shard * self.width * (self.source.dtype.itemsize + self.deltas.itemsize)
        return 3 * padded + self._step(shard) * self.width * 4 * (self.source.dtype.itemsize + 8)

    @staticmethod
    def _step(shard: int) -> int:
        return max(1, shard // 8)

    @override
    def create(self, rung: int) -> None:  # numpydoc ignore=GL08
        write_group(self.path)
        common: dict[str, Any] = {
            "codec": self.codec,
            "shape": (self.n_blocks, self.width),
            "chunks": (1, self.width),
            "shards": (self.shard, self.width),
            "dimension_names": ("block", "place"),
        }
        self._values = create_array(self.path / "values", dtype=self.ladder[rung], **common)
        self._deltas = create_array(self.path / "deltas", dtype=self.deltas, **common)

    @override
    def write(self, task: int, rung: int) -> int:  # numpydoc ignore=GL08
        first = task * self.shard
        last = min(first + self.shard, self.n_blocks)
        values = np.zeros((last - first, self.width), self.ladder[rung])
        deltas = np.zeros((last - first, self.width), self.deltas)
        need = rung
        for a in range(first, last, self._step(self.shard)):
            b = min(a + self._step(self.shard), last)
            csr = self._read(a * BLOCK_ROWS, min(b * BLOCK_ROWS, len(self.rows)))
            need = _rung(csr.data, self.ladder, need)
            if need == rung:
                steps = self._steps_of(csr)
                for k, (p, q) in enumerate(_block_bounds(csr.indptr)):
                    values[a - first + k, : q - p] = csr.data[p:q]
                    deltas[a - first + k, : q - p] = steps[p:q]
        if need == rung:
            self._values[first:last] = values
            self._deltas[first:last] = deltas
        return need

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


def _block_bounds(indptr: Int64) -> Iterator[tuple[int, int]]:
    edges = np.append(indptr[:-1:BLOCK_ROWS], indptr[-1]).tolist()
    return itertools.pairwise(edges)


class DenseWriter(Writer):
    """
    Writes a dense variable in chunks of whole rows.

    Parameters
    ----------
    path : Path
        Array to make.
    variable : xarray.Variable
        Numbers, at least one-dimensional and not empty.
    codec : {"fast", "small"}
        How to compress.
    budget : int
        Bytes that one task may take.

    Raises
    ------
    PlanError
        If one chunk does not fit the budget.
    """

    def __init__(self, path: Path, variable: xr.Variable, *, codec: str, budget: int) -> None:
        dtype = variable.dtype.newbyteorder("=")
        super().__init__(path, _ladder(dtype, bits=(8, 16, 32), floats=True))
        self.variable, self.codec = variable, codec
        block = BLOCK_ROWS * int(np.prod(variable.shape[1:])) * dtype.itemsize
        self.chunk = BLOCK_ROWS * max(1, _DENSE_CHUNK_NBYTES // block)
        nbytes = block * self.chunk // BLOCK_ROWS
        n_chunks = -(-len(variable) // self.chunk)
        self.shard = min(max(1, min(_SHARD_NBYTES, budget // 5) // nbytes), n_chunks)
        self.task_nbytes = 5 * self.shard * nbytes
        if self.task_nbytes > budget:
            raise _too_large(path, f"one chunk of {self.chunk} rows", self.task_nbytes, budget)
        self.n_tasks = -(-n_chunks // self.shard)

    @override
    def create(self, rung: int) -> None:  # numpydoc ignore=GL08
        self._array = create_array(
            self.path,
            codec=self.codec,
            shape=self.variable.shape,
            chunks=(self.chunk, *self.variable.shape[1:]),
            shards=(self.chunk * self.shard, *self.variable.shape[1:]),
            dtype=self.ladder[rung],
            dimension_names=tuple(map(str, self.variable.dims)),
        )

    @override
    def write(self, task: int, rung: int) -> int:  # numpydoc ignore=GL08
        part = slice(task * self.shard * self.chunk, (task + 1) * self.shard * self.chunk)
        values = read_dense(self.variable[part])
        need = _rung(values, self.ladder, rung)
        if need == rung:
            self._array[part] = values.astype(self.ladder[rung], copy=False)
        return need

    @override
    def description(self) -> dict[str, Any]:  # numpydoc ignore=GL08
        return {"layout": "dense", "dtype": self.ladder[-1].str}


class TileSource:
    """
    Rectangles of a contact map, read from the tiles beneath it where there are any.

    Parameters
    ----------
    variable : xarray.Variable, shape (n_bins, n_bins)
        A stored map, a selection of one, or anything computed.
    """

    def __init__(self, variable: xr.Variable) -> None:
        self.variable = variable
        self.dtype = np.dtype(variable.dtype).newbyteorder("=")
        view = trace.view(variable)
        self.array = view.array if view and isinstance(view.array, TileArray) else None
        self.index = view.index if view and self.array else ()
        self.symmetric = bool(
            self.array and self.array.symmetric and np.array_equal(self.index[0], self.index[1])
        )

    def read(self, r0: int, r1: int, c0: int, c1: int) -> npt.NDArray[Any]:
        """
        Return rows ``[r0, r1)`` of columns ``[c0, c1)``.

        Parameters
        ----------
        r0, r1, c0, c1 : int
            Half-open bounds, in bins.

        Returns
        -------
        ndarray, shape (r1 - r0, c1 - c0)
            A new array.
        """
        if self.array is None:
            return np.array(read_dense(self.variable[r0:r1, c0:c1]))
        # in the order of storage: one by one, bins of a reversed map would each be a read
        rows, row_of = np.unique(self.index[0][r0:r1], return_inverse=True)
        columns, column_of = np.unique(self.index[1][c0:c1], return_inverse=True)
        out = np.empty((len(rows), len(columns)), self.dtype)
        for a, b in _stretches(rows):
            for c, d in _stretches(columns):
                i, j = rows[a:b], columns[c:d]
                hull = self.array.read_rectangle(
                    int(i[0]), int(i[-1]) + 1, int(j[0]), int(j[-1]) + 1
                )
                out[a:b, c:d] = hull[i - i[0]][:, j - j[0]] if hull.size > i.size * j.size else hull
        places = (row_of, column_of)
        in_order = all(
            np.array_equal(of, np.arange(n)) for of, n in zip(places, out.shape, strict=True)
        )
        return out if in_order else out[np.ix_(*places)]


def _stretches(index: Int64) -> Iterator[tuple[int, int]]:
    """Cut increasing positions into runs without wide gaps, each read as a whole."""
    cuts = np.flatnonzero(np.diff(index) > TILE) + 1
    bounds = [0, *cuts.tolist(), len(index)]
    return itertools.pairwise(bounds)


class TilesWriter(Writer):
    """
    Writes a contact map as tiles, only the upper ones of a symmetric map.

    Parameters
    ----------
    path : Path
        Array to make.
    source : TileSource
        Where rectangles are read.
    near : callable, optional
        Takes a tile row and says of each tile in it whether it is written. Default: all are.
    codec : {"fast", "small"}
        How to compress.
    budget : int
        Bytes that one task may take.

    Raises
    ------
    PlanError
        If one shard does not fit the budget.
    """

    def __init__(
        self,
        path: Path,
        source: TileSource,
        *,
        near: Callable[[int], npt.NDArray[np.bool_]] | None,
        codec: str,
        budget: int,
    ) -> None:
        super().__init__(path, _ladder(source.dtype, bits=(16, 32), floats=False))
        self.source, self.codec = source, codec
        self.n = source.variable.shape[0]
        self.side = min(SHARD_SIDE, -(-self.n // TILE) * TILE)
        self.near = near
        one = self._nbytes(1)
        if one > budget:
            raise _too_large(path, f"one shard of {self.side} x {self.side} bins", one, budget)
        shards = -(-self.n // self.side)
        wide = next(k for k in range(shards, 0, -1) if self._nbytes(k) <= budget)
        self.task_nbytes = self._nbytes(wide)
        self.tasks = [
            (i, a, min(a + wide, shards))
            for i in range(shards)
            for a in range(i if source.symmetric else 0, shards, wide)
        ]
        self.n_tasks = len(self.tasks)

    def _nbytes(self, shards: int) -> int:
        # the shards side by side, two stripes of the source, and zarr's copies of one shard
        itemsize = self.ladder[0].itemsize
        wide = self.side * itemsize + 2 * min(_STRIPE, self.side) * self.source.dtype.itemsize
        return int(self.side * (shards * wide + 3 * self.side * itemsize))

    @override
    def create(self, rung: int) -> None:  # numpydoc ignore=GL08
        self._array = create_array(
            self.path,
            codec=self.codec,
            tiles=True,
            shape=(self.n, self.n),
            chunks=(TILE, TILE),
            shards=(self.side, self.side),
            dtype=self.ladder[rung],
            dimension_names=("bin1", "bin2"),
        )

    @override
    def write(self, task: int, rung: int) -> int:  # numpydoc ignore=GL08
        row, first, last = self.tasks[task]
        r0, r1 = row * self.side, min((row + 1) * self.side, self.n)
        c0, c1 = first * self.side, min(last * self.side, self.n)
        shards = np.zeros((r1 - r0, c1 - c0), self.ladder[rung])
        need = rung
        for r in range(r0, r1, _STRIPE):
            stop, left = min(r + _STRIPE, r1), max(c0, r if self.source.symmetric else 0)
            wanted = self._wanted(r, stop)
            columns = np.flatnonzero(wanted.any(axis=0))
            left = max(left, int(columns[0]) * TILE)
            right = min(c1, (int(columns[-1]) + 1) * TILE)
            if left >= right:
                continue
            part = self.source.read(r, stop, left, right)
            mask = wanted.repeat(TILE, axis=1)[:, left:right]
            for k, keep in enumerate(mask):
                part[k * TILE : (k + 1) * TILE, ~keep] = 0
            need = _rung(part, self.ladder, need)
            if need == rung:
                shards[r - r0 : stop - r0, left - c0 : right - c0] = part
        if need == rung:
            for c in range(0, c1 - c0, self.side):
                shard = shards[:, c : c + self.side]
                if shard.any():
                    self._array[r0:r1, c0 + c : c0 + c + shard.shape[1]] = shard
        return need

    def _wanted(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Return which tiles of some rows are written, shape (n_tile_rows, n_tiles)."""
        rows = np.arange(start // TILE, -(-stop // TILE))
        n_tiles = -(-self.n // TILE)
        wanted = np.ones((len(rows), n_tiles), bool)
        if self.near is not None:
            wanted = np.stack([self.near(int(i)) for i in rows])
        return wanted & (np.arange(n_tiles) >= rows[:, None]) if self.source.symmetric else wanted

    @override
    def description(self) -> dict[str, Any]:  # numpydoc ignore=GL08
        return {
            "layout": "tiles",
            "dtype": self.ladder[-1].str,
            "symmetric": self.source.symmetric,
        }
