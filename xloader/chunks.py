"""How arrays are cut into chunks, and where the positions of a variable lie in those of storage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.base
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed
from xarray.core import indexing

from xloader import trace
from xloader.arrays import TileArray
from xloader.axes import Int64, Windows
from xloader.csr import CSRArray
from xloader.schema import chunk_shape

_CHUNK_NBYTES = 4 * 2**20


@dataclass(frozen=True)
class Grid:
    """How an array is cut into chunks, and how some of them are read."""

    edges: tuple[Int64, ...]
    """Bounds of the chunks along each dimension, from 0 to its length."""
    fetch: Callable[[Int64], Sequence[npt.NDArray[Any]]]
    """Reads the chunks with the given grid positions ``(m, ndim)``, each once."""

    @property
    def largest(self) -> tuple[int, ...]:
        """
        Return the length of the longest chunk along each dimension.

        Returns
        -------
        tuple of int
            In elements.
        """
        return tuple(int(np.diff(e).max()) for e in self.edges)


def tile_grid(array: TileArray) -> Grid:
    """
    Return the tiles of a contact map.

    Parameters
    ----------
    array : TileArray
        Where they are stored.

    Returns
    -------
    Grid
        Its edges reach beyond the matrix where the last tile does.
    """
    n = -(-array.shape[0] // array.tile)
    edges = np.arange(n + 1) * array.tile
    return Grid((edges, edges), lambda ids: list(array.read_tiles(ids)))


def dask_grid(variable: xr.Variable) -> Grid:
    """
    Return the chunks of a dask array.

    Parameters
    ----------
    variable : xarray.Variable
        A variable made of dask chunks.

    Returns
    -------
    Grid
        All chunks asked for are computed together, so that what they share is computed once.
    """
    data: Any = variable.data
    edges = tuple(np.append(0, np.cumsum(c)) for c in data.chunks)

    def compute(ids: Int64) -> Sequence[npt.NDArray[Any]]:  # numpydoc ignore=GL08
        return dask.base.compute(*(data.blocks[tuple(i)] for i in ids.tolist()))  # type: ignore[no-any-return, no-untyped-call]

    return Grid(edges, compute)


def file_grid(variable: xr.Variable, windows: Windows) -> tuple[Grid, tuple[Int64, ...]]:
    """
    Return the chunks of a file, or pieces of a few MB, for a variable that xarray reads lazily.

    Where the user selected from the file, windows are cut from the chunks as they are stored, as
    long as windows are runs of stored neighbours.

    Parameters
    ----------
    variable : xarray.Variable
        A variable of any backend, opened without dask.
    windows : Windows
        Where windows lie.

    Returns
    -------
    tuple of Grid and tuple of ndarray
        The chunks, and the position in them of each position of the variable.
    """
    base, index = trace.lazy_base(variable)
    whole = consecutive(index, variable, windows)
    if not all(w for w, d in zip(whole, variable.dims, strict=True) if d in windows.dims):
        base, index = variable._data, tuple(np.arange(n) for n in variable.shape)
        whole = [True] * variable.ndim
    elif cuts_rows(
        variable, windows
    ):  # single rows are put together of whole chunks: a part is selected before
        all_there = [len(i) == n for i, n in zip(index, base.shape, strict=True)]
        rows = [d in windows.dims for d in variable.dims]
        whole = [w and (r or a) for w, r, a in zip(whole, rows, all_there, strict=True)]
    source, shape = variable, list(variable.shape)
    if isinstance(base, indexing.ExplicitlyIndexed):
        # what a window takes whole from scattered places is selected before it is read
        source = xr.Variable(variable.dims, indexing.LazilyIndexedArray(base))
        source = source[tuple(slice(None) if w else i for w, i in zip(whole, index, strict=True))]
        shape = list(source.shape)
    lengths = _chunk_lengths(variable, shape)
    ends = zip(shape, lengths, whole, strict=True)
    edges = tuple(np.append(np.arange(0, n, c if w else n), n) for n, c, w in ends)

    def fetch(ids: Int64) -> list[npt.NDArray[Any]]:  # numpydoc ignore=GL08
        boxes = (zip(edges, i, strict=True) for i in ids.tolist())
        parts = [source[tuple(slice(e[k], e[k + 1]) for e, k in box)].data for box in boxes]
        return [p.todense() if isinstance(p, CSRArray) else np.asarray(p) for p in parts]

    places = zip(index, whole, strict=True)
    return Grid(edges, fetch), tuple(i if w else np.arange(len(i)) for i, w in places)


def _chunk_lengths(variable: xr.Variable, shape: Sequence[int]) -> list[int]:
    """Return the length of stored chunks along each dimension of the file."""
    preferred = variable.encoding.get("preferred_chunks") or {}
    stored = variable.encoding.get("chunks") or variable.encoding.get("chunksizes")
    if preferred:
        return [int(preferred.get(d, n)) for d, n in zip(variable.dims, shape, strict=True)]
    if stored and len(stored) == variable.ndim:
        return [int(n) for n in stored]
    row = max(1, int(np.prod(shape[1:])) * variable.dtype.itemsize)
    return [max(1, _CHUNK_NBYTES // row), *shape[1:]]


def stored_grid(view: trace.View) -> tuple[Grid, tuple[Int64, ...]]:
    """
    Return pieces of a dense stored array that single rows are cut from.

    Of each piece only those chunks are read that the selection along further dimensions shows.

    Parameters
    ----------
    view : View
        What the variable shows; its rows are its samples.

    Returns
    -------
    tuple of Grid and tuple of ndarray
        The pieces, and the position in them of each position of the variable.
    """
    array, (rows, *others) = view.array, view.index
    n, unit = array.shape[0], array.unit
    edges = np.append(np.arange(0, n, chunk_shape(array)[0]), n)
    found = [np.unique(i, return_inverse=True) for i in others]
    runs = [_runs(wanted, u) for (wanted, _), u in zip(found, unit[1:], strict=True)]

    def read(a: int, b: int) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        pieces = {}
        for at in np.ndindex(*map(len, runs)):
            parts = [run[k] for run, k in zip(runs, at, strict=True)]
            values = array[indexing.BasicIndexer((slice(a, b), *(key for key, _ in parts)))]
            for axis, (_, inside) in enumerate(parts, start=1):
                values = values if inside is None else values.take(inside, axis)
            pieces[at] = values
        return _assembled(pieces, found)

    def fetch(ids: Int64) -> Sequence[npt.NDArray[Any]]:  # numpydoc ignore=GL08
        # dask's threads, as for chunks that dask computes: those that decode are asked by them
        later = [delayed(read)(int(edges[k]), int(edges[k + 1])) for k in ids[:, 0]]
        return dask.base.compute(*later, scheduler="threads")  # type: ignore[no-any-return, no-untyped-call]

    ends = (edges, *(np.array([0, len(i)]) for i in others))
    return Grid(ends, fetch), (rows, *(np.arange(len(i)) for i in others))


def _runs(wanted: Int64, unit: int) -> list[tuple[slice, Int64 | None]]:
    """Return what to read of rising positions, and which of that is wanted; None for all of it."""
    cuts = np.flatnonzero(np.diff(wanted // unit) > 1) + 1
    parts = np.split(wanted, cuts)
    keys = [slice(int(p[0]), int(p[-1]) + 1) for p in parts]
    return [
        (key, None if key.stop - key.start == len(p) else p - p[0])
        for key, p in zip(keys, parts, strict=True)
    ]


def _assembled(
    pieces: Mapping[tuple[int, ...], npt.NDArray[Any]], found: Sequence[tuple[Int64, Int64]]
) -> npt.NDArray[Any]:
    """Join pieces, given by their place along each dimension but the first, and put them in order."""
    for axis in reversed(range(len(found))):  # the last dimension first
        rows: dict[tuple[int, ...], list[npt.NDArray[Any]]] = {}
        for at, piece in pieces.items():
            rows.setdefault(at[:axis], []).append(piece)
        pieces = {
            at: r[0] if len(r) == 1 else np.concatenate(r, axis + 1) for at, r in rows.items()
        }
    (values,) = pieces.values()
    for axis, (wanted, place) in enumerate(found, start=1):
        if not np.array_equal(place, np.arange(len(wanted))):
            values = values.take(place, axis)
    return values


def cuts_rows(variable: xr.Variable, windows: Windows) -> bool:
    """
    Say whether windows cut single rows of a variable, and these whole.

    Parameters
    ----------
    variable : xarray.Variable
        Any variable with a windowed dimension.
    windows : Windows
        Any windows.

    Returns
    -------
    bool
        True if its first dimension is one of their points, and no other is windowed.
    """
    first, *others = variable.dims
    return first in windows.points and not set(others) & set(windows.dims)


def covered(index: Int64, unit: int, n: int) -> int:
    """
    Return how many positions lie in the chunks that some of them touch.

    Parameters
    ----------
    index : ndarray of int64, shape (m,)
        Positions.
    unit : int
        Length of a chunk.
    n : int
        How many positions there are.

    Returns
    -------
    int
        At most `n`.

    Examples
    --------
    >>> covered(np.array([7, 1, 0]), 3, 8)
    5
    """
    chunks = np.unique(index // unit)
    return int((np.minimum((chunks + 1) * unit, n) - chunks * unit).sum())


def consecutive(index: Sequence[Int64], variable: xr.Variable, windows: Windows) -> list[bool]:
    """
    Say along which dimensions every window is a run of stored neighbours.

    Parameters
    ----------
    index : sequence of ndarray of int64
        Stored position of each position along each dimension.
    variable : xarray.Variable
        A variable with these dimensions; windows take the others whole.
    windows : Windows
        Where windows lie.

    Returns
    -------
    list of bool
        One per dimension.
    """
    first, last = windows.reach_of(np.arange(len(windows)))
    runs = []
    for dim, i in zip(variable.dims, index, strict=True):
        axis = windows.dims.index(str(dim)) if dim in windows.dims else None
        breaks = np.append(0, np.cumsum(np.diff(i) != 1))
        if axis is None:
            runs.append(bool(breaks[-1] == 0))
        else:
            ends = last[:, axis] + windows.size[axis] - 1
            runs.append(bool((breaks[first[:, axis]] == breaks[ends]).all()))
    return runs
