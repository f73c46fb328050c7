"""Writing one variable, in tasks of whole shards that each read their own part of the source."""

import itertools
from abc import abstractmethod
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
from xloader.store.narrow import narrowed, rung_of, types_for
from xloader.store.shard_writer import WAITING_NBYTES, Shard, Shards
from xloader.store.staging import read_dense
from xloader.store.tasks import Work
from xloader.store.widening import place_of_rung

Int64 = npt.NDArray[np.int64]

SHARD_NBYTES = 64 * 2**20
"""Decoded bytes that a shard of rows or of a dense array aims at."""

_DENSE_CHUNK_NBYTES = 2**18
_STRIPE = 4 * TILE
_TILES = 256
_COPIES = 4
_SOURCE_NBYTES = 2**25


class Writer(Work):
    """
    Writes one variable, in tasks that touch no shard in common.

    The narrowest type that holds all values is known only at the end: each task writes the narrowest
    that holds its own, or that another one was known to need, below a folder of that rung; `settle` joins them.

    Parameters
    ----------
    path : Path
        Where the variable goes.
    ladder : sequence of dtype
        Types to store it in, narrowest first.
    """

    def __init__(self, path: Path, ladder: Sequence[np.dtype[Any]]) -> None:
        self.path = path
        self.ladder = ladder

    @override
    def do(self, task: int) -> int:  # numpydoc ignore=GL08
        rung = self.rung
        while (need := self.write(task, rung)) > rung:
            rung = self.rung = max(need, self.rung)
        for array in self.arrays(rung):
            array.create()
        return rung

    @abstractmethod
    def arrays(self, rung: int) -> list[Shards]:
        """
        Return the arrays that are written.

        Parameters
        ----------
        rung : int
            Which type of the ladder values are stored in.

        Returns
        -------
        list of Shards
            Below `place_of_rung`.
        """

    @abstractmethod
    def write(self, task: int, rung: int) -> int:
        """
        Write the shards of one task.

        Parameters
        ----------
        task : int
            Which one.
        rung : int
            Which type of the ladder to store values in.

        Returns
        -------
        int
            The rung that the values need at least; they were written if it equals `rung`.

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
    def arrays(self, rung: int) -> list[Shards]:  # numpydoc ignore=GL08
        array = Shards(
            place_of_rung(self.path, rung),
            codec=self.codec,
            kind="dense",
            shape=self.variable.shape,
            chunks=(self.chunk, *self.variable.shape[1:]),
            shards=(self.chunk * self.shard, *self.variable.shape[1:]),
            dtype=self.ladder[rung],
            dimension_names=tuple(map(str, self.variable.dims)),
        )
        return [array]

    @override
    def write(self, task: int, rung: int) -> int:  # numpydoc ignore=GL08
        part = slice(task * self.shard * self.chunk, (task + 1) * self.shard * self.chunk)
        values = read_dense(self.variable[part])
        need = rung_of(values, self.ladder, rung)
        if need == rung:
            place = (task,) + (0,) * (values.ndim - 1)
            self.arrays(rung)[0].write(place, narrowed(values, self.ladder[rung]))
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
        self.whole = bool(
            self.array
            and self.array.tile == TILE
            and all(np.array_equal(i, np.arange(self.array.shape[0])) for i in self.index)
        )
        self.stripe = TILE * self.array.rows_together if self.array and self.whole else _STRIPE

    def tiles(self, ij: Int64, most: int) -> Iterator[tuple[Int64, npt.NDArray[Any]]]:
        """
        Read tiles.

        Parameters
        ----------
        ij : ndarray of int64, shape (m, 2)
            Distinct tile rows and columns of one stripe, sorted.
        most : int
            Tiles to hold at a time, at least those of a column of the stripe.

        Yields
        ------
        ij : ndarray of int64, shape (k, 2)
            Some of the tiles; those that are left out hold only the fill value.
        tiles : ndarray, shape (k, TILE, TILE)
            Their values; what lies beyond the map is zero.
        """
        if self.array is not None and self.whole:
            most = min(most, _TILES)
            filled = getattr(self.array, "read_filled", None)
            if filled is not None:
                yield from filled(ij, most)
                return
            for k in range(0, len(ij), most):
                yield ij[k : k + most], self.array.read_tiles(ij[k : k + most])
            return
        wide = most * TILE // self.stripe
        for block in np.unique(ij[:, 1] // wide).tolist():
            here = ij[ij[:, 1] // wide == block]
            yield here, self._cut(here)

    def _cut(self, ij: Int64) -> npt.NDArray[Any]:
        """Read a rectangle and cut it into tiles."""
        low, high = ij.min(axis=0), ij.max(axis=0) + 1
        (r0, c0), (r1, c1) = low * TILE, np.minimum(high * TILE, self.variable.shape)
        padded = np.zeros((high - low) * TILE, self.dtype)
        padded[: r1 - r0, : c1 - c0] = self.read(int(r0), int(r1), int(c0), int(c1))
        rows, columns = high - low
        i, j = (ij - low).T
        return np.asarray(padded.reshape(rows, TILE, columns, TILE).swapaxes(1, 2)[i, j])

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
        self.fill_value = source.array.fill_value if source.array else 0.0
        self.side = min(SHARD_SIDE, -(-self.n // TILE) * TILE)
        self.near = near
        n_shards = -(-self.n // self.side)
        fixed = _SOURCE_NBYTES + n_shards * 2 * WAITING_NBYTES
        each = _COPIES * TILE * TILE * source.dtype.itemsize
        least = source.stripe // TILE
        self.most = min((budget - fixed) // each, least * -(-self.n // TILE))
        self.task_nbytes = fixed + max(self.most, least) * each
        if self.most < least:
            raise too_large(path, f"{source.stripe} x {TILE} bins", self.task_nbytes, budget)
        self.n_tasks = n_shards

    @override
    def arrays(self, rung: int) -> list[Shards]:  # numpydoc ignore=GL08
        array = Shards(
            place_of_rung(self.path, rung),
            codec=self.codec,
            kind="tiles",
            shape=(self.n, self.n),
            chunks=(TILE, TILE),
            shards=(self.side, self.side),
            dtype=self.ladder[rung],
            dimension_names=("bin1", "bin2"),
            fill_value=self.fill_value,
        )
        return [array]

    @override
    def write(self, task: int, rung: int) -> int:  # numpydoc ignore=GL08
        first = task if self.source.symmetric else 0
        each, stripe = self.side // TILE, self.source.stripe
        (array,) = self.arrays(rung)
        shards = [Shard(array, (task, k)) for k in range(first, self.n_tasks)]
        stop = min((task + 1) * self.side, self.n)
        for r in range(task * self.side, stop, stripe):
            wanted = np.argwhere(self._wanted(r, min(r + stripe, stop)))
            for ij, tiles in self.source.tiles(wanted + np.array([r // TILE, 0]), self.most):
                need = rung_of(tiles, self.ladder, rung)
                if need > rung:
                    return need
                pairs = zip(ij.tolist(), narrowed(tiles, self.ladder[rung]), strict=True)
                for (i, j), tile in pairs:
                    shards[j // each - first].add((i % each, j % each), tile)
        for shard in shards:
            shard.close()
        return rung

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
