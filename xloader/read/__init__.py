"""Reading: which way each variable is read."""

import numpy as np
import xarray as xr

from xloader import trace
from xloader.arrays import RowArray, TileArray
from xloader.axes import Int64, Windows
from xloader.chunks import consecutive, covered, cuts_rows, dask_grid, file_grid, stored_grid
from xloader.contract import Fusion
from xloader.errors import PerformanceWarning, PlanError, warn
from xloader.planned import Chosen
from xloader.read.base import Part, Reader, Values
from xloader.read.chunked import ChunkReader, MemoryReader
from xloader.read.rows import RowReader
from xloader.read.tiles import TileReader, make_finish
from xloader.trace import View

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
    if view is not None and cuts_rows(variable, windows):
        if isinstance(view.array, RowArray) and _sparse(view.index[1], name, layout):
            dense = layout == "dense"
            reader: Reader = RowReader(variable, windows, view.array, view.index, dense=dense)
        else:
            reader = ChunkReader(variable, windows, *stored_grid(view))
        reader.chosen = _chosen(view, name, variable, reader)
        return reader
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


def _sparse(columns: Int64, name: str, layout: str | None) -> bool:
    """Say whether some columns of sparse rows are sparse rows: only if each is there once."""
    times = np.bincount(columns)
    if times.max(initial=0) < 2:
        return True
    what = f"{name!r} shows {int((times > 1).sum())} of its stored columns more than once"
    if layout == "csr":
        msg = f"{what}, which sparse rows cannot; name each column once, or leave `layout` out"
        raise PlanError(msg)
    if layout is None:
        warn(f"{what}: its batches are dense; name each column once", PerformanceWarning)
    return False


def _chosen(view: View, name: str, variable: xr.Variable, reader: Reader) -> Chosen | None:
    """Say what is read if some columns are wanted."""
    array, (rows, *others) = view.array, view.index
    if len(others) != 1 or np.array_equal(np.unique(others[0]), np.arange(array.shape[1])):
        return None
    if isinstance(reader, RowReader):
        nbytes, whole = reader.decoded_nbytes()
    else:
        n, unit = array.shape, array.unit
        n_read, n_rows = covered(others[0], unit[1], n[1]), covered(rows, unit[0], n[0])
        nbytes, whole = (n_rows * k * array.dtype.itemsize for k in (n_read, n[1]))
    n_wanted = len(np.unique(others[0]))
    return Chosen(name, str(variable.dims[1]), n_wanted, array.shape[1], nbytes, whole)
