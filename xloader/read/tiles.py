"""Windows of contact maps, cut from tiles that are decoded once, by compiled loops."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.arrays import TileArray
from xloader.axes import Int64, Windows
from xloader.chunks import tile_grid
from xloader.contract import Fusion
from xloader.read.chunked import ChunkReader
from xloader.threads import cut, n_threads, run

Floats = npt.NDArray[np.float32]

_INLINE = 2**16
"""Elements below which threads cost more than they save."""

_OVERLAP = 0.8
"""Tiles are finished instead of windows if they hold fewer elements than this share of them."""


class TileReader(ChunkReader):
    """
    Cuts windows out of tiles, balanced and log-transformed if asked to.

    Parameters
    ----------
    variable : xarray.Variable
        A two-dimensional variable, both dimensions windowed.
    windows : Windows
        Any windows.
    array : TileArray
        Where tiles are stored.
    index : tuple of ndarray
        Stored position of each position of the variable; consecutive within every window.
    finish : Finish, optional
        What is done to the counts. Default: nothing.
    """

    def __init__(
        self,
        variable: xr.Variable,
        windows: Windows,
        array: TileArray,
        index: tuple[Int64, ...],
        finish: "Finish | None" = None,
    ) -> None:
        super().__init__(variable, windows, tile_grid(array), index)
        self.array = array
        self.stored_index = index
        self.finish = finish
        self.n_tiles = -(-array.shape[0] // array.tile)
        if finish is not None:
            self.dtype = np.dtype(np.float32)

    @override
    def nbytes(self, first: Int64, last: Int64, ptr: Int64) -> Int64:  # numpydoc ignore=GL08
        return np.asarray(super().nbytes(first, last, ptr) * self._each // self.dtype.itemsize)

    @property
    @override
    def stored_nbytes(self) -> int:  # numpydoc ignore=GL08
        return int(np.prod(self.size) * self._each)

    @property
    def _each(self) -> int:
        """Return the bytes of a stored value and of what is made of it."""
        return int(self.array.dtype.itemsize + (4 if self.finish else 0))

    @override
    def load(self, first: Int64, last: Int64) -> "_TilePool":  # numpydoc ignore=GL08
        keys = np.unique(self._keys_of(self._places(first), self._places(last)))
        ij = np.stack(np.divmod(keys, self.n_tiles), axis=1)
        begin = time.perf_counter()
        tiles = self.array.load_tiles(ij, self.buffers)
        if not self.array.is_converted:
            self.count(time.perf_counter() - begin, tiles.size)
        finish = self.finish
        shared = tiles.size < _OVERLAP * len(first) * np.prod(self.size)
        if finish is not None and finish.whole and shared:
            tiles, finish = self._finished(tiles, ij), None

        return _TilePool(tiles, keys, finish)

    def _keys_of(self, low: Int64, high: Int64) -> Int64:
        """Return the stored tiles of windows that start between two places, shape (n, rows, columns)."""
        side = self.array.tile
        first, last = low // side, (high + np.array(self.size) - 1) // side
        spans = (last - first).max(axis=0) + 1
        # beyond its end, a window repeats the last tile it touches
        i, j = (
            np.minimum(first[:, d, None] + np.arange(spans[d]), last[:, d, None]) for d in (0, 1)
        )
        i, j = i[:, :, None], j[:, None, :]
        if self.array.symmetric:
            i, j = np.minimum(i, j), np.maximum(i, j)
        return np.asarray(i * self.n_tiles + j)

    def _finished(self, tiles: npt.NDArray[Any], ij: Int64) -> Floats:
        """Transform tiles that several windows share, once."""
        from xloader.kernels.tiles import finish_tiles

        assert self.finish is not None
        out = self.buffers.empty(tiles.shape, np.float32)
        n = self.n_tiles * self.array.tile
        weights = (self.finish.stored(self.stored_index, n)[0],) * 2
        args = (tiles, ij, out, *weights, self.finish.balance, self.finish.log)
        _on_threads("decode", finish_tiles, args, out)
        return out

    @override
    def cut(
        self, loaded: "_TilePool", starts: Int64, out: npt.NDArray[Any]
    ) -> None:  # numpydoc ignore=GL08
        from xloader.kernels.tiles import cut as cut_windows
        from xloader.kernels.tiles import cut_finished

        places, finish = self._places(starts), loaded.finish
        slots = np.searchsorted(loaded.keys, self._keys_of(places, places))
        args = (loaded.tiles, slots, places, self.array.symmetric, out)
        if finish is None:
            _on_threads("gather", cut_windows, args, out)
        else:
            further = (finish.rows, finish.columns, finish.balance, finish.log)
            _on_threads("gather", cut_finished, (*args, self.full_starts(starts), *further), out)


@dataclass(frozen=True)
class _TilePool:
    """Tiles in memory."""

    tiles: npt.NDArray[Any]
    keys: Int64
    """Number of each tile, increasing."""
    finish: "Finish | None"
    """What is still to be done to windows."""


class Finish:
    """
    Balancing and logarithm of float32 counts.

    Parameters
    ----------
    rows, columns : ndarray of float32, shape (n,)
        Factor of each position along the two dimensions; empty where nothing is balanced.
    log : bool
        Whether ``log(1 + x)`` is taken.
    """

    def __init__(self, rows: Floats, columns: Floats, *, log: bool) -> None:
        self.rows = rows
        self.columns = columns
        self.balance = len(rows) > 0
        self.log = log
        # a tile below the diagonal is the transpose of one above it, if factors agree on both sides
        self.whole = np.array_equal(rows, columns, equal_nan=True)

    def stored(self, index: tuple[Int64, ...], n: int) -> tuple[Floats, Floats]:
        """
        Return factors by stored position.

        Parameters
        ----------
        index : tuple of ndarray of int64
            Stored position of each position along the two dimensions.
        n : int
            How many positions are stored.

        Returns
        -------
        tuple of two ndarray of float32, shape (n,)
            NaN where nothing is shown.
        """
        if not self.balance:
            return self.rows, self.columns
        out = np.full((2, n), np.nan, np.float32)
        for side, places, factors in zip(out, index, (self.rows, self.columns), strict=True):
            side[places] = factors
        return out[0], out[1]


def make_finish(
    ds: xr.Dataset, variable: xr.Variable, fusion: Fusion, index: tuple[Int64, ...]
) -> Finish | None:
    """
    Return what a fusion does to a variable, where compiled loops give what the transforms give.

    Parameters
    ----------
    ds : xarray.Dataset
        Where balancing vectors are.
    variable : xarray.Variable
        Counts.
    fusion : Fusion
        What the transforms do.
    index : tuple of ndarray of int64
        Stored position of each position of the variable.

    Returns
    -------
    Finish or None
        None where the result would not be float32, or a vector is missing.
    """
    none = np.zeros(0, np.float32)
    if variable.dtype == np.float64:
        return None
    if fusion.weight is None:
        return Finish(none, none, log=True) if variable.dtype == np.float32 else None
    factors = []
    for dim in variable.dims:
        name = f"{fusion.weight}{str(dim)[-1]}"
        if name not in ds.coords or ds[name].dims != (dim,):
            return None
        vector = ds.variables[name]
        factors.append(fusion.factors(vector).astype(np.float32))
    same = all(np.array_equal(i, index[0]) for i in index)
    finish = Finish(*factors, log=fusion.log)
    finish.whole = finish.whole and same
    return finish


def _on_threads(
    kind: Any, kernel: Callable[..., None], args: tuple[Any, ...], out: npt.NDArray[Any]
) -> None:
    """Call a kernel on runs of windows or tiles, on several threads where that pays."""
    parts = n_threads() if out.size > _INLINE else 1
    run(kind, kernel, [(*args, a, b) for a, b in cut(len(out), parts)])
