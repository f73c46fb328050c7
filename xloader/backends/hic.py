"""Contact maps in .hic files (versions 8 and 9), read by hictkpy in a process of its own."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.arrays import TileArray
from xloader.backends.hic_process import ask
from xloader.backends.resolutions import ResolutionsEntrypoint
from xloader.errors import ReadError, SchemaError
from xloader.schema import Column, contacts_dataset, names_in
from xloader.unchanged import Unchanged

Int64 = npt.NDArray[np.int64]

TILE = 128
"""Side of the tiles a .hic file is read by, in bins."""

MAGIC = b"HIC\0"
"""First bytes of every .hic file."""

_COLUMNS = 32
"""Columns of tiles that are asked for at a time."""

_COUNT_TYPES = ("int32", "float32")


class HicArray(TileArray):
    """
    The counts of one resolution of a .hic file.

    Parameters
    ----------
    path : str
        Path of the file.
    resolution : int
        Size of the bins, in bp.
    n : int
        Number of bins.
    dtype : {"int32", "float32"}
        Type of the counts. A file holds 32-bit floats; those that are no whole numbers are an error
        of `read_tiles` where integers are asked for.
    """

    # blocks of a file are squares of some hundred bins, which hictkpy decodes whole
    rows_together = 8

    def __init__(self, path: str, resolution: int, n: int, dtype: str) -> None:
        super().__init__(n, dtype, TILE, symmetric=True)
        self.path = path
        self.resolution = resolution
        self._then = Unchanged([path])

    @override
    def read_tiles(self, ij: Int64) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        out = np.zeros((len(ij), self.tile, self.tile), self.dtype)
        for which, low, high in _boxes(ij, _COLUMNS * self.rows_together):
            grid = self._box(low, high)
            if grid is not None:
                out[which] = grid[tuple((ij[which] - low).T)]
        return out

    def read_filled(self, ij: Int64, most: int) -> Iterator[tuple[Int64, npt.NDArray[Any]]]:
        """
        Read those of some tiles that hold anything.

        Parameters
        ----------
        ij : ndarray of int64, shape (m, 2)
            As for `read_tiles`.
        most : int
            Tiles to hold at a time.

        Yields
        ------
        ij : ndarray of int64, shape (k, 2)
            Some of the tiles; the others hold only zeros.
        tiles : ndarray, shape (k, tile, tile)
            Their values.
        """
        for which, low, high in _boxes(ij, most):
            grid = self._box(low, high)
            if grid is not None:
                tiles = grid[tuple((ij[which] - low).T)]
                filled = tiles.any(axis=(1, 2))
                yield ij[which][filled], tiles[filled]

    def _box(self, low: Int64, high: Int64) -> npt.NDArray[Any] | None:
        """Read a rectangle of tiles, shape (rows, columns, tile, tile); None if all are zero."""
        t = self.tile
        (r0, c0), (r1, c1) = (low * t).tolist(), np.minimum(high * t, self.shape).tolist()
        what = f"bins {r0}-{r1} x {c0}-{c1} of {self.path!r} at {self.resolution:,} bp"
        request = {"path": self.path, "resolution": self.resolution, "dtype": self.dtype.name}
        with self._then.reading():
            _, arrays = ask(what, ask="rectangle", box=[r0, r1, c0, c1], **request)
        if not arrays:
            return None
        padded = np.zeros((high - low) * t, self.dtype)
        padded[: r1 - r0, : c1 - c0] = arrays[0]
        h, w = (high - low).tolist()
        return padded.reshape(h, t, w, t).swapaxes(1, 2)


def _boxes(ij: Int64, most: int) -> Iterator[tuple[Int64, Int64, Int64]]:
    """
    Group tiles into rectangles of at most so many, of which they fill at least half.

    Yields the places of the tiles, and the first and last (excluded) row and column.
    """
    rows = min(HicArray.rows_together, most)
    yield from _filled(ij, np.arange(len(ij)), (rows, max(1, min(_COLUMNS, most // rows))))


def _filled(ij: Int64, which: Int64, cell: tuple[int, int]) -> Iterator[tuple[Int64, Int64, Int64]]:
    """Cut tiles along a grid, and again along a finer one where they lie too far apart."""
    keys = ij[which] // np.array(cell)
    order = np.lexsort(keys.T[::-1])
    breaks = np.flatnonzero(np.diff(keys[order], axis=0).any(axis=1)) + 1
    for part in np.split(which[order], breaks):
        if not len(part):
            continue
        low, high = ij[part].min(axis=0), ij[part].max(axis=0) + 1
        if 2 * len(part) >= np.prod(high - low):
            yield part, low, high
        else:
            yield from _filled(ij, part, (max(1, cell[0] // 2), max(1, cell[1] // 2)))


class HicBackendEntrypoint(ResolutionsEntrypoint):
    """Open one resolution of a .hic file, or all of them as a tree."""

    description = "Contact maps in .hic files"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = (
        "filename_or_obj",
        "drop_variables",
        "resolution",
        "count_type",
    )

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:  # numpydoc ignore=GL08
        return isinstance(filename_or_obj, str | os.PathLike) and is_hic(filename_or_obj)

    @override
    def nodes(
        self, filename_or_obj: str | os.PathLike[str]
    ) -> Mapping[str, dict[str, Any]]:  # numpydoc ignore=GL08
        return {str(size): {"resolution": size} for size in resolutions(filename_or_obj)}

    @override
    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        resolution: int | None = None,
        count_type: str | None = None,
    ) -> xr.Dataset:
        """
        Open a contact map as a labelled, lazy Dataset.

        Parameters
        ----------
        filename_or_obj : str or path-like
            Path of the file.
        drop_variables : str or iterable of str, optional
            Variables and coordinates to leave out.
        resolution : int, optional
            Size of the bins, in bp. Default: the only one there is.
        count_type : {"int32", "float32"}, optional
            Type of the counts. Default: integers if the coarsest map holds whole numbers. A count
            that is none is then an error, and is never cut off.

        Returns
        -------
        xarray.Dataset
            `count (bin1, bin2)` and the coordinates of `xloader.schema.contacts_dataset`. Balancing
            vectors divide; where the file has zero or nothing for a bin, it is masked (NaN).

        Raises
        ------
        ReadError
            If the file is missing, truncated or damaged, or hictkpy is not installed.
        SchemaError
            If it is no .hic file, does not have this resolution, or `count_type` is another.
        """
        path = os.fsdecode(filename_or_obj)
        if count_type not in (None, *_COUNT_TYPES):
            msg = f"count_type={count_type!r} is unknown; choose one of {_COUNT_TYPES}, or leave it out"
            raise SchemaError(msg)
        held = _describe(path)
        size = _choose(path, held["resolutions"], resolution)
        dtype = count_type or _count_type(path, max(held["resolutions"]))
        lengths = held["chrom_lengths"]
        n_bins = [-(-length // size) for length in lengths]
        start = np.concatenate([np.arange(n) * size for n in n_bins])
        end = np.minimum(start + size, np.repeat(lengths, n_bins))
        ds = contacts_dataset(
            HicArray(path, size, len(start), dtype),
            chrom=np.repeat(np.array(held["chroms"], object), n_bins),
            start=start,
            end=end,
            weights=_vectors(path, size),
            attrs={
                "binsize": size,
                "resolution": size,
                "assembly": held["assembly"],
                "storage_mode": "symmetric-upper",
                "chroms": held["chroms"],
                "chrom_lengths": lengths,
            },
        )
        return ds.drop_vars(names_in(drop_variables), errors="ignore")


def is_hic(path: str | os.PathLike[str]) -> bool:
    """
    Say whether a file begins as .hic files do.

    Parameters
    ----------
    path : str or path-like
        Any path.

    Returns
    -------
    bool
        False also if nothing is there.
    """
    try:
        with Path(os.fsdecode(path)).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def resolutions(path: str | os.PathLike[str]) -> list[int]:
    """
    List the resolutions of a file.

    Parameters
    ----------
    path : str or path-like
        Path of the file.

    Returns
    -------
    list of int
        Bin sizes, in bp, increasing.

    Raises
    ------
    ReadError
        If the file is missing, truncated or damaged, or hictkpy is not installed.
    SchemaError
        If it is no .hic file, or has no bins of a size in bp.
    """
    return list(_describe(os.fsdecode(path))["resolutions"])


def _describe(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        msg = f"cannot read {path!r}: no such file; check the path"
        raise ReadError(msg)
    if not is_hic(path):
        msg = (
            f"{path!r} is no .hic file, which begins with {MAGIC!r}; open it with the engine for its "
            "own format, or with xl.open_contacts, which finds out"
        )
        raise SchemaError(msg)
    held, _ = ask(f"{path!r} ({file.stat().st_size} bytes)", ask="describe", path=path)
    if not held["resolutions"]:
        msg = f"{path!r} has no map with bins of a size in bp, only of restriction fragments"
        raise SchemaError(msg)
    return held


def _choose(path: str, there: list[int], resolution: int | None) -> int:
    if resolution is None and len(there) == 1:
        return there[0]
    if resolution in there:
        return int(resolution)
    sizes = ", ".join(map(str, there))
    if resolution is None:
        msg = (
            f"{path!r} has {len(there)} resolutions ({sizes} bp) and none was asked for; "
            f"choose one, such as `resolution={there[-1]}`"
        )
    else:
        msg = f"{path!r} has no resolution {resolution}; it has {sizes} (bp): choose one of them"
    raise SchemaError(msg)


def _count_type(path: str, coarsest: int) -> str:
    """Return what holds the counts; sums of fractions are no whole numbers."""
    held, _ = ask(f"{path!r} at {coarsest:,} bp", ask="integers", path=path, resolution=coarsest)
    if held["integers"] is None:
        msg = (
            f"{path!r} holds no contact within any chromosome at {coarsest:,} bp: its index is "
            "damaged or was not written to its end; get a new copy, or if it is meant to be empty "
            "open it with xr.open_dataset(path, engine='hic', count_type='int32')"
        )
        raise ReadError(msg)
    return "int32" if held["integers"] else "float32"


def _vectors(path: str, resolution: int) -> dict[str, Column]:
    what = f"balancing vectors of {path!r} at {resolution:,} bp"
    held, arrays = ask(what, ask="vectors", path=path, resolution=resolution)
    columns = {}
    for name, values in zip(held["names"], arrays, strict=True):
        values[~np.isfinite(values) | (values == 0)] = np.nan
        columns[name] = values, {"divisive": True}
    return columns
