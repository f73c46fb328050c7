"""Reading: which way each variable is read."""

import numpy as np
import xarray as xr

from xloader import trace
from xloader.arrays import RowArray, TileArray
from xloader.axes import Int64, Windows
from xloader.chunks import consecutive, dask_grid, file_grid
from xloader.contract import Fusion
from xloader.errors import PerformanceWarning, warn
from xloader.read.base import Part, Reader, Values
from xloader.read.chunked import ChunkReader, MemoryReader
from xloader.read.rows import RowReader
from xloader.read.tiles import TileReader, make_finish

__all__ = ["Part", "Reader", "RowReader", "TileReader", "Values", "make_reader"]


def make_reader(
    ds: xr.Dataset,
    name: str,
    windows: Windows,
    *,
    layout: str | None = None,
    fusion: Fusion | None = None,
) -> Reader:
    """
    Choose how the windows of a variable are read.

    Parameters
    ----------
    ds : xarray.Dataset
        Where the variable is.
    name : str
        Its name; at least one of its dimensions is windowed.
    windows : Windows
        Where windows lie.
    layout : {None, "csr", "dense"}, optional
        Form of sparse rows in batches. Default: sparse.
    fusion : Fusion, optional
        What transforms do to a variable, and its reader may do.

    Returns
    -------
    Reader
        Straight from storage where the variable shows nothing but stored elements.
    """
    variable = ds.variables[name]
    view = trace.view(variable)
    if view is not None and isinstance(view.array, RowArray):
        is_row = variable.dims[0] in windows.points and variable.dims[1] not in windows.dims
        if is_row and _distinct(view.index[1]):
            dense = layout == "dense"
            return RowReader(variable, windows, view.array, view.index, dense=dense)
    if view is not None and isinstance(view.array, TileArray):
        both = set(variable.dims) <= set(windows.dims)
        if both and all(consecutive(view.index, variable, windows)):
            finish = None
            if fusion is not None and fusion.variable == name:
                finish = make_finish(ds, variable, fusion, view.index)
            return TileReader(variable, windows, view.array, view.index, finish)
    if trace.is_computed(variable):
        warn(
            f"{name!r} is an expression on stored data: it is computed block by block, densely; "
            "selections on the Dataset and the same function as `transform=` are faster",
            PerformanceWarning,
        )
    if variable._in_memory and view is None:
        return MemoryReader(variable, windows)
    if variable.chunks is not None:
        return ChunkReader(variable, windows, dask_grid(variable))
    return ChunkReader(variable, windows, *file_grid(variable, windows))


def _distinct(index: Int64) -> bool:
    return len(np.unique(index)) == len(index)
