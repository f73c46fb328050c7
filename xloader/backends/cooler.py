"""Contact maps in cooler files: .cool, .mcool, and one cell of a .scool."""

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override
from xarray.backends import BackendEntrypoint

from xloader.arrays import TileArray
from xloader.backends.cooler_groups import choose, labels, part, storage_mode
from xloader.backends.hdf5 import damage_told, open_hdf5, read
from xloader.errors import ReadError
from xloader.schema import contacts_dataset

TILE = 128
"""Side of the tiles a cooler is read by, in bins."""

PIXELS = 2**20
"""Pixels that are held at a time while tiles are filled; about 70 bytes each."""


class CoolerArray(TileArray):
    """
    The counts of one cooler group.

    A cooler stores whole rows of pixels in small compressed chunks and cannot be read by columns:
    a tile costs its whole row of tiles, so tiles of one row should be asked for together.

    Parameters
    ----------
    path : str
        Path of the HDF5 file.
    group : str
        Path of the cooler inside it.

    Raises
    ------
    ReadError
        If the file cannot be read, or its index does not fit its pixels.
    SchemaError
        If the group lacks a part of a cooler.
    """

    def __init__(self, path: str, group: str) -> None:
        with damage_told(repr(path)):
            cooler = open_hdf5(path)[group]
            n = part(cooler, "bins/start").shape[0]
            count = part(cooler, "pixels/count")
            n_pixels = part(cooler, "pixels/bin2_id").shape[0]
            part(cooler, "indexes/bin1_offset")
            symmetric = storage_mode(cooler) != "square"
            self._chunk: int = (count.chunks or (1,))[0]
        super().__init__(n, count.dtype.newbyteorder("="), TILE, symmetric=symmetric)
        self.path = path
        self.group = group.rstrip("/")
        steps = np.diff(self._indptr, prepend=0, append=n_pixels)
        if len(self._indptr) != n + 1 or steps.min() < 0 or steps[0] or steps[-1]:
            msg = (
                f"`indexes/bin1_offset` of {path!r} ({len(self._indptr)} entries, last "
                f"{self._indptr[-1:].tolist()}) does not fit its {n} bins and {n_pixels} pixels: the "
                "file was not written to its end, or is damaged; get a new copy"
            )
            raise ReadError(msg)

    @cached_property
    def _indptr(self) -> npt.NDArray[np.int64]:
        """First pixel of each bin, and the number of pixels, shape (n + 1,)."""
        return read(self.path, f"{self.group}/indexes/bin1_offset").astype(np.int64)

    @override
    def __getstate__(self) -> dict[str, Any]:
        # read again where it arrives: the index of a fine map is larger than all the rest
        return {k: v for k, v in self.__dict__.items() if k != "_indptr"}

    @override
    def read_tiles(self, ij: npt.NDArray[np.int64]) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        out = np.zeros((len(ij), self.tile, self.tile), self.dtype)
        if not len(ij):
            return out
        left = int(ij[:, 1].min())
        width = int(ij[:, 1].max()) + 1 - left
        rows = np.unique(ij[:, 0])
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            first, n_rows = int(run[0]), len(run)
            mine = np.flatnonzero((ij[:, 0] >= first) & (ij[:, 0] < first + n_rows))
            slots = np.full((n_rows, width), -1, np.int64)
            slots[ij[mine, 0] - first, ij[mine, 1] - left] = mine
            bounds = self._indptr[
                np.minimum(np.array([first, first + n_rows]) * TILE, self.shape[0])
            ]
            for start, stop in _spans(int(bounds[0]), int(bounds[1]), self._chunk):
                self._fill(out, slots, first, left, start, stop)
        if self.symmetric:
            diagonal = np.flatnonzero(ij[:, 0] == ij[:, 1])
            out[diagonal] += np.triu(out[diagonal], 1).swapaxes(1, 2)
        return out

    def _fill(
        self,
        out: npt.NDArray[Any],
        slots: npt.NDArray[np.int64],
        first: int,
        left: int,
        start: int,
        stop: int,
    ) -> None:
        """Scatter pixels ``[start, stop)`` into the tiles numbered by `slots`, -1 for none."""
        bin1, bin2 = self._bins_of(start, stop)
        column = bin2 // TILE - left
        asked = np.flatnonzero((column >= 0) & (column < slots.shape[1]))
        slot = slots[bin1[asked] // TILE - first, column[asked]]
        asked, slot = asked[slot >= 0], slot[slot >= 0]
        if not len(asked):
            return
        count = read(self.path, f"{self.group}/pixels/count", slice(start, stop))
        place = (slot * TILE + bin1[asked] % TILE) * TILE + bin2[asked] % TILE
        out.reshape(-1)[place] = count[asked]

    def _bins_of(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the two bins of pixels ``[start, stop)``; the stored `bin1_id` is redundant."""
        top = int(np.searchsorted(self._indptr, start, "right")) - 1
        bottom = int(np.searchsorted(self._indptr, stop, "left"))
        lengths = np.diff(np.clip(self._indptr[top : bottom + 1], start, stop))
        bin1 = np.arange(top, bottom).repeat(lengths.astype(np.int64))
        bin2 = read(self.path, f"{self.group}/pixels/bin2_id", slice(start, stop)).astype(np.int64)
        wrong = (bin2 >= self.shape[0]) | (bin2 < (bin1 if self.symmetric else 0))
        if wrong.any():
            k = int(np.argmax(wrong))
            msg = (
                f"pixel {start + k} of {self.path!r} lies at bins ({bin1[k]}, {bin2[k]}), outside "
                f"the {'upper triangle' if self.symmetric else 'square'} of {self.shape[0]} bins: the "
                "file is damaged; get a new copy"
            )
            raise ReadError(msg)
        return bin1, bin2


def _spans(start: int, stop: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Cut ``[start, stop)`` into pieces of about `PIXELS` at multiples of `chunk`."""
    step = max(PIXELS // chunk, 1) * chunk
    while start < stop:
        end = min((start // step + 1) * step, stop)
        yield start, end
        start = end


class CoolerBackendEntrypoint(BackendEntrypoint):
    """Open one resolution of a .cool or .mcool file, or one cell of a .scool file."""

    description = "Contact maps in cooler files (.cool, .mcool, .scool::/cells/ID)"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = (
        "filename_or_obj",
        "drop_variables",
        "resolution",
    )

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:  # numpydoc ignore=GL08
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        path = os.fsdecode(filename_or_obj).partition("::")[0]
        return Path(path).suffix in {".cool", ".mcool", ".scool"}

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
            `count (bin1, bin2)` and the coordinates of `xloader.schema.contacts_dataset`.

        Raises
        ------
        ReadError
            If the file is missing, truncated, damaged or not HDF5.
        SchemaError
            If it is not a cooler, or does not have this resolution.
        """
        path, _, group = os.fsdecode(filename_or_obj).partition("::")
        with damage_told(repr(path)):
            group = choose(path, "/" + group.strip("/"), resolution)
            ds = contacts_dataset(CoolerArray(path, group), **labels(open_hdf5(path)[group]))
        dropped = [drop_variables] if isinstance(drop_variables, str) else drop_variables
        return ds.drop_vars(dropped or [], errors="ignore")
