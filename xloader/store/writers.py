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
from xloader.arrays import TileArray
from xloader.errors import PlanError
from xloader.store.layout import BLOCK_ROWS, SHARD_SIDE, TILE
from xloader.store.staging import read_dense
from xloader.store.write import create_array

Int64 = npt.NDArray[np.int64]

SHARD_NBYTES = 64 * 2**20
"""Decoded bytes that a shard of rows or of a dense array aims at."""

_DENSE_CHUNK_NBYTES = 2**18
_STRIPE = 4 * TILE


def types_for(dtype: np.dtype[Any], *, bits: Sequence[int], floats: bool) -> list[np.dtype[Any]]:
    """
    Return the types that may hold some values exactly.

    Parameters
    ----------
    dtype : dtype
        Their own type.
    bits : sequence of int
        Widths of the unsigned integers to try.
    floats : bool
        Whether fractions may turn out to be integers.

    Returns
    -------
    list of dtype
        Narrowest first, their own one last.
    """
    if dtype.kind == "c" or (dtype.kind == "f" and not floats):
        return [dtype]
    narrow = [np.dtype(f"u{b // 8}") for b in bits if b // 8 <= dtype.itemsize]
    return [*(d for d in narrow if d != dtype), dtype]


def rung_of(values: npt.NDArray[Any], types: Sequence[np.dtype[Any]], at_least: int) -> int:
    """
    Return which type holds some values exactly.

    Parameters
    ----------
    values : ndarray
        Any values.
    types : sequence of dtype
        What `types_for` returned.
    at_least : int
        Where to begin.

    Returns
    -------
    int
        Place among them.
    """
    last = len(types) - 1
    if at_least == last or values.size == 0:
        return at_least
    low, high = values.min(), values.max()
    # a NaN fails the first comparison
    if not low >= 0 or not np.isfinite(high):
        return last
    if values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
        return last
    fits = (k for k in range(at_least, last) if int(high) <= np.iinfo(types[k]).max)
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


def too_large(path: Path, what: str, nbytes: int, budget: int) -> PlanError:
    """
    Return the error for a task that does not fit the budget.

    Parameters
    ----------
    path : Path
        Where the variable goes.
    what : str
        What needs the memory.
    nbytes, budget : int
        Bytes that are needed and allowed.

    Returns
    -------
    PlanError
        With both numbers.
    """
    return PlanError(
        f"writing `{path.name}` needs {nbytes / 1e6:.0f} MB at a time ({what}), and `memory_budget` "
        f"allows {budget / 1e6:.0f} MB; choose a budget of at least {-(-nbytes // 10**6)} MB"
    )


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
        super().__init__(path, types_for(dtype, bits=(8, 16, 32), floats=True))
        self.variable, self.codec = variable, codec
        block = BLOCK_ROWS * int(np.prod(variable.shape[1:])) * dtype.itemsize
        self.chunk = BLOCK_ROWS * max(1, _DENSE_CHUNK_NBYTES // block)
        nbytes = block * self.chunk // BLOCK_ROWS
        n_chunks = -(-len(variable) // self.chunk)
        self.shard = min(max(1, min(SHARD_NBYTES, budget // 5) // nbytes), n_chunks)
        self.task_nbytes = 5 * self.shard * nbytes
        if self.task_nbytes > budget:
            raise too_large(path, f"one chunk of {self.chunk} rows", self.task_nbytes, budget)
        self.n_tasks = -(-n_chunks // self.shard)

    @override
    def create(self, rung: int) -> None:  # numpydoc ignore=GL08
        self._array = create_array(
            self.path,
            codec=self.codec,
            kind="dense",
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
        need = rung_of(values, self.ladder, rung)
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
        super().__init__(path, types_for(source.dtype, bits=(16, 32), floats=False))
        self.source, self.codec = source, codec
        self.n = source.variable.shape[0]
        self.side = min(SHARD_SIDE, -(-self.n // TILE) * TILE)
        self.near = near
        one = self._nbytes(1)
        if one > budget:
            raise too_large(path, f"one shard of {self.side} x {self.side} bins", one, budget)
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
            kind="tiles",
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
            need = rung_of(part, self.ladder, need)
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
