"""Contact maps in cooler files: .cool, .mcool, and .scool, one cell of it or all."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.arrays import Key, StoredArray, TileArray
from xloader.backends.cooler_cells import cells_labels
from xloader.backends.cooler_groups import choose, coolers, is_cells, labels, part, storage_mode
from xloader.backends.hdf5 import HDF5File, chunks_written, read
from xloader.backends.resolutions import ResolutionsEntrypoint
from xloader.errors import ReadError, XloaderError
from xloader.schema import contacts_dataset, names_in

Int64 = npt.NDArray[np.int64]

TILE = 128
"""Side of the tiles a cooler is read by, in bins."""

_CELL_SIDE = 8 * TILE
"""Side of the squares that maps of single cells are read by, in bins; 4 MB."""

PIXELS = 2**20
"""Pixels that are held at a time while tiles are filled; about 20 bytes each."""


@dataclass(frozen=True)
class _Pixels:
    """Successive pixels."""

    start: int
    """Number of the first."""
    bin2: npt.NDArray[Any]
    count: npt.NDArray[Any]


class CoolerArray(TileArray):
    """
    The counts of one cooler group.

    A cooler stores whole rows of pixels in small compressed chunks and cannot be read by columns:
    a tile costs its whole row of tiles, so tiles of one row should be asked for together.

    Parameters
    ----------
    file : HDF5File
        The file.
    group : str
        Path of the cooler inside it.

    Raises
    ------
    ReadError
        If the file cannot be read, or its index does not fit its pixels.
    SchemaError
        If the group lacks a part of a cooler.
    """

    def __init__(self, file: HDF5File, group: str) -> None:
        with file.reading() as opened:
            cooler = opened[group]
            n = part(cooler, "bins/start").shape[0]
            count = part(cooler, "pixels/count")
            n_pixels = part(cooler, "pixels/bin2_id").shape[0]
            part(cooler, "indexes/bin1_offset")
            _check_written(cooler)
            symmetric = storage_mode(cooler) != "square"
            self._chunk: int = (count.chunks or (1,))[0]
        super().__init__(n, count.dtype.newbyteorder("="), TILE, symmetric=symmetric)
        self.file = file
        self.group = group.rstrip("/")
        steps = np.diff(self._indptr, prepend=0, append=n_pixels)
        if len(self._indptr) != n + 1 or steps.min() < 0 or steps[0] or steps[-1]:
            msg = (
                f"`{self.group}/indexes/bin1_offset` of {file.path!r} ({len(self._indptr)} entries, last "
                f"{self._indptr[-1:].tolist()}) does not fit its {n} bins and {n_pixels} pixels: the "
                "file was not written to its end, or is damaged; get a new copy"
            )
            raise ReadError(msg)

    @cached_property
    def _indptr(self) -> npt.NDArray[np.int64]:
        """First pixel of each bin, and the number of pixels, shape (n + 1,)."""
        return read(self.file, f"{self.group}/indexes/bin1_offset").astype(np.int64)

    @override
    def __getstate__(self) -> dict[str, Any]:
        # read again where it arrives: the index of a fine map is larger than all the rest
        return {k: v for k, v in self.__dict__.items() if k != "_indptr"}

    @override
    def read_tiles(self, ij: Int64) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        out = np.zeros((len(ij), self.tile, self.tile), self.dtype)
        if not len(ij):
            return out
        rows = np.unique(ij[:, 0])
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            mine = np.flatnonzero((ij[:, 0] >= run[0]) & (ij[:, 0] <= run[-1]))
            for span in self._spans(int(run[0]), int(run[-1]) + 1):
                self._fill(out, ij, mine, self._pixels(*span))
        return self._mirrored(out, ij)

    def read_filled(self, ij: Int64, most: int) -> Iterator[tuple[Int64, npt.NDArray[Any]]]:
        """
        Read those of some tiles that may hold anything; pixels are decoded once.

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
        from xloader.kernels import scatter  # numba is imported when tiles are first read

        for row in np.unique(ij[:, 0]).tolist():
            here = ij[ij[:, 0] == row]
            spans = self._spans(row, row + 1)
            held = [self._pixels(*span) for span in spans] if len(spans) == 1 else []
            if held or not spans:
                filled = np.zeros(-(-self.shape[0] // self.tile), bool)
                for pixels in held:
                    scatter.mark(pixels.bin2, self.tile, filled)
                here = here[filled[here[:, 1]]]
            for k in range(0, max(len(here), 1), most):  # also without tiles pixels are checked
                part = here[k : k + most]
                out = np.zeros((len(part), self.tile, self.tile), self.dtype)
                for pixels in held or (self._pixels(*span) for span in spans):
                    self._fill(out, part, np.arange(len(part)), pixels)
                yield part, self._mirrored(out, part)

    def _spans(self, first: int, last: int) -> list[tuple[int, int]]:
        """Cut the pixels of some rows of tiles into pieces of about `PIXELS`, at whole chunks."""
        bounds = np.minimum(np.array([first, last]) * self.tile, self.shape[0])
        start, stop = self._indptr[bounds].tolist()
        step = max(PIXELS // self._chunk, 1) * self._chunk
        edges = [start, *range((start // step + 1) * step, stop, step), stop]
        return list(itertools.pairwise(edges)) if start < stop else []

    def _pixels(self, start: int, stop: int) -> _Pixels:
        """Read pixels; the stored `bin1_id` is redundant."""
        span = slice(start, stop)
        bin2 = read(self.file, f"{self.group}/pixels/bin2_id", span)
        count = read(self.file, f"{self.group}/pixels/count", span)
        bin2 = bin2.astype(bin2.dtype.newbyteorder("="), copy=False)
        return _Pixels(start, bin2, count.astype(self.dtype, copy=False))

    def _fill(self, out: npt.NDArray[Any], ij: Int64, mine: Int64, pixels: _Pixels) -> None:
        """Scatter pixels into those tiles of ``out`` that `mine` numbers."""
        from xloader.kernels import scatter

        n, start = self.shape[0], pixels.start
        top = int(np.searchsorted(self._indptr, start, "right")) - 1
        bottom = int(np.searchsorted(self._indptr, start + len(pixels.bin2), "left"))
        rows = top // self.tile, -(-bottom // self.tile)
        left, right = (int(ij[mine, 1].min()), int(ij[mine, 1].max()) + 1) if len(mine) else (0, 0)
        slots = np.full((rows[1] - rows[0], right - left), -1)
        here = mine[(ij[mine, 0] >= rows[0]) & (ij[mine, 0] < rows[1])]
        slots[ij[here, 0] - rows[0], ij[here, 1] - left] = here
        at = (start, top, bottom)
        place = (slots, (rows[0], left), out, n, self.symmetric)
        wrong = scatter.pixels(pixels.bin2, pixels.count, self._indptr, *at, *place)
        if wrong >= 0:
            raise self._wrong(pixels, wrong)

    def _wrong(self, pixels: _Pixels, k: int) -> ReadError:
        """Return what is wrong with a pixel."""
        bin1 = int(np.searchsorted(self._indptr, pixels.start + k, "right")) - 1
        bin2, value, n = int(pixels.bin2[k]), pixels.count[k], self.shape[0]
        what = f"pixel {pixels.start + k} of {self.group or '/'!r} of {self.file.path!r}"
        remedy = "the file is damaged; get a new copy"
        if not (bin1 if self.symmetric else 0) <= bin2 < n:
            shape = "upper triangle" if self.symmetric else "square"
            if self.symmetric and 0 <= bin2 < n:
                remedy = (
                    "if it holds a whole map, correct its attribute `storage-mode` to 'square'; else "
                    + remedy
                )
            return ReadError(
                f"{what} lies at bins ({bin1}, {bin2}), outside the {shape} of {n} bins: {remedy}"
            )
        at = f"at {self._bin(bin1)} x {self._bin(bin2)} (bins {bin1}, {bin2})"
        if not 0 <= value < np.inf:
            return ReadError(
                f"{what}, {at}, has the count {value}, and counts are numbers from 0 on: write the "
                "file again without it"
            )
        return ReadError(f"{what}, {at}, is there twice: sum or drop duplicates and write it again")

    def _bin(self, k: int) -> str:
        """Return where a bin lies."""
        label = labels(self.file.handle[self.group or "/"])
        return f"{label['chrom'][k]}:{label['start'][k]:,}-{label['end'][k]:,}"

    def _mirrored(self, tiles: npt.NDArray[Any], ij: Int64) -> npt.NDArray[Any]:
        """Complete tiles on the diagonal."""
        if self.symmetric:
            diagonal = np.flatnonzero(ij[:, 0] == ij[:, 1])
            tiles[diagonal] += np.triu(tiles[diagonal], 1).swapaxes(1, 2)
        return tiles


def _check_written(cooler: h5py.Group) -> None:
    """Refuse a table of pixels that was announced but not written, which would read as zeros."""
    where = f"of {cooler.name!r} of {cooler.file.filename!r}"
    remedy = "the file was not written to its end, or is damaged; get a new copy"
    tables = {name: cooler[name] for name in ("pixels/bin2_id", "pixels/count")}
    lengths = [len(table) for table in tables.values()]
    announced = cooler.attrs.get("nnz", lengths[0])
    if lengths[0] != lengths[1] or not np.array_equal(announced, lengths[0]):
        msg = (
            f"`pixels` {where} hold {lengths[0]} `bin2_id` and {lengths[1]} `count`, and attribute `nnz` "
            f"says {announced}: {remedy}"
        )
        raise ReadError(msg)
    for name, table in tables.items():
        written, n_chunks = chunks_written(table)
        if written < n_chunks:
            msg = f"`{name}` {where} has {written} of its {n_chunks} chunks: {remedy}"
            raise ReadError(msg)


class CellsArray(StoredArray):
    """
    The counts of all single cells of a file.

    Parameters
    ----------
    file : HDF5File
        The file.
    groups : list of str
        Path of each cell inside it.
    n : int
        Number of bins.
    dtype : dtype-like
        Type that holds the counts of every cell.
    """

    def __init__(self, file: HDF5File, groups: list[str], n: int, dtype: npt.DTypeLike) -> None:
        super().__init__((len(groups), n, n), dtype)
        self.file = file
        self.groups = groups

    @property
    @override
    def unit(self) -> tuple[int, ...]:  # numpydoc ignore=GL08
        return (1, *(min(_CELL_SIDE, max(n, 1)) for n in self.shape[1:]))

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        cells = np.arange(self.shape[0])[key[0]]
        maps = (_cell(self.file, self.groups[k]) for k in np.atleast_1d(cells).tolist())
        parts = [cell._raw(key[1:]).astype(self.dtype, copy=False) for cell in maps]
        if not np.ndim(cells):
            return parts[0]
        inner = np.broadcast_to(self.dtype.type(0), self.shape[1:])[key[1:]].shape
        return np.stack(parts) if parts else np.empty((0, *inner), self.dtype)


@lru_cache(maxsize=32)
def _cell(file: HDF5File, group: str) -> CoolerArray:
    """Return one of the cells that were read last: their indexes are large if taken together."""
    return CoolerArray(file, group)


class CoolerBackendEntrypoint(ResolutionsEntrypoint):
    """Open one resolution of a .cool or .mcool file, all as a tree, or cells of a .scool file."""

    description = "Contact maps in cooler files (.cool, .mcool, .scool, .scool::/cells/ID)"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = (
        "filename_or_obj",
        "drop_variables",
        "resolution",
    )

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:  # numpydoc ignore=GL08
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        path, _, group = os.fsdecode(filename_or_obj).partition("::")
        try:
            return bool(h5py.is_hdf5(path) and coolers(HDF5File(path), "/" + group.strip("/")))
        except (XloaderError, OSError, RuntimeError, KeyError):
            return False

    @override
    def nodes(
        self, filename_or_obj: str | os.PathLike[str]
    ) -> Mapping[str, dict[str, Any]]:  # numpydoc ignore=GL08
        path, _, group = os.fsdecode(filename_or_obj).partition("::")
        file = HDF5File(path)
        with file.reading():
            sizes = list(coolers(file, "/" + group.strip("/")))
        return {"variable" if n is None else str(n): {"resolution": n} for n in sizes}

    @override
    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        resolution: int | None = None,
    ) -> xr.Dataset:
        """
        Open a contact map as a labelled, lazy Dataset.

        Parameters
        ----------
        filename_or_obj : str or path-like
            Path of the file, or ``path::group`` for one group of it.
        drop_variables : str or iterable of str, optional
            Variables and coordinates to leave out.
        resolution : int, optional
            Size of the bins, in bp. Default: the only one there is.

        Returns
        -------
        xarray.Dataset
            `count (bin1, bin2)` and the coordinates of `xloader.schema.contacts_dataset`; of a whole
            .scool file `count (cell, bin1, bin2)`, and a balancing vector that cells do not share
            has the dimension `cell` too, NaN where a cell lacks it.

        Raises
        ------
        ReadError
            If the file is missing, truncated, damaged or not HDF5.
        SchemaError
            If it is not a cooler, or does not have this resolution.
        """
        path, _, group = os.fsdecode(filename_or_obj).partition("::")
        file = HDF5File(path)
        with file.reading() as opened:
            group = choose(file, "/" + group.strip("/"), resolution)
            found = opened[group]
            if is_cells(file, group):
                label, cells = cells_labels(found)
                groups = [f"{group}/{name}" for name in label["cell"]]
                count: StoredArray = CellsArray(file, groups, *cells)
            else:
                label, count = labels(found), CoolerArray(file, group)
            ds = contacts_dataset(count, **label)
        return ds.drop_vars(names_in(drop_variables), errors="ignore")
