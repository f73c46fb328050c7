"""Statistics of cells: means and deviations of each gene and totals of each cell, in one pass."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from tqdm import tqdm

from xloader import schema, trace
from xloader.arrays import RowArray
from xloader.contract import SampleRandom, Transform, apply
from xloader.csr import CSRArray
from xloader.errors import SchemaError
from xloader.loader import Loader
from xloader.packed import compiled
from xloader.state import digest

Floats = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_ROWS = 4096
_PROBES = 8


class Moments:
    """
    Means and squared deviations of each column of the rows that were added.

    Parts are joined as Chan, Golub and LeVeque do ("Updating formulae and a pairwise algorithm for
    computing sample variances", 1979), which loses no digits where means are large.

    Attributes
    ----------
    n : int
        Rows.
    mean, squares : ndarray of float64, shape (n_columns,)
        Mean of each column, and sum of the squares of what is above or below it.
    detected : ndarray of int64, shape (n_columns,)
        Rows in which each column is not zero.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean, self.squares = np.zeros(1), np.zeros(1)
        self.detected = np.zeros(1, np.int64)

    def add(self, x: npt.NDArray[Any] | CSRArray) -> Floats:
        """
        Add some rows.

        Parameters
        ----------
        x : ndarray or CSRArray, shape (m, n_columns)
            Their values.

        Returns
        -------
        ndarray of float64, shape (m,)
            The sum of each row.

        Examples
        --------
        >>> moments = Moments()
        >>> [moments.add(np.array(rows)).tolist() for rows in ([[1.0], [2.0]], [[6.0]])]
        [[1.0, 2.0], [6.0]]
        >>> moments.mean, moments.squares
        (array([3.]), array([14.]))
        """
        parts = _of_sparse(x) if isinstance(x, CSRArray) else _of_dense(x)
        mean, squares, detected, totals = parts
        m = len(totals)
        n, step = self.n + m, mean - self.mean
        self.squares = self.squares + squares + step**2 * (self.n * m / n)
        self.mean = self.mean + step * (m / n)
        self.detected = self.detected + detected
        self.n = n
        return totals


def _of_dense(x: npt.NDArray[Any]) -> tuple[Floats, Floats, Int64, Floats]:
    """Return mean, squared deviations and values that are not zero of columns, and totals of rows."""
    dense = x.astype(np.float64)
    mean, totals = dense.mean(axis=0), dense.sum(axis=1)
    detected = np.asarray(np.count_nonzero(dense, axis=0))
    dense -= mean
    return mean, np.einsum("ij,ij->j", dense, dense), detected, totals


def _of_sparse(x: CSRArray) -> tuple[Floats, Floats, Int64, Floats]:
    from xloader.kernels.tally import add_up, deviate  # numba is imported when something is counted

    n, columns = x.shape
    data = x.data.astype(compiled(x.data.dtype), copy=False)
    mean, squares = np.zeros((2, columns))
    detected, filled = np.zeros((2, columns), np.int64)
    totals = np.zeros(n)
    add_up(data, x.indices, x.indptr, mean, detected, totals)
    mean /= n
    deviate(data, x.indices, mean, squares, filled)
    return mean, squares + (n - filled) * mean**2, detected, totals


class Cells:
    """
    Cells in the order in which they are stored, and what is counted.

    Parameters
    ----------
    ds : xarray.Dataset
        Cells.
    variable : str
        Name of a variable ``(cell, ...)`` of two dimensions.
    transform : callable or None
        What is done to cells before they are counted.
    budget : int
        Bytes that reading may take.

    Raises
    ------
    SchemaError
        If there is no such variable of cells.
    """

    def __init__(
        self, ds: xr.Dataset, variable: str, transform: Transform | None, budget: int
    ) -> None:
        schema.require(ds, [variable, "cell"], "statistics of cells")
        if "cell" not in ds[variable].dims or ds[variable].ndim != 2:
            msg = (
                f"statistics of cells need a variable (cell, gene) or the like, but {variable!r} has "
                f"{ds[variable].dims}; name another: `variable=`"
            )
            raise SchemaError(msg)
        (self.dim,) = (str(d) for d in ds[variable].dims if d != "cell")
        if transform is None:  # nobody sees the other labels
            ds = ds[[variable]]
            ds = ds.drop_vars(set(ds.coords) - {"cell", self.dim})
        view = trace.view(ds[variable].variable)
        stored = view.index[0] if view is not None and isinstance(view.array, RowArray) else None
        # blocks are read once if cells come in the order of storage
        self.order = (
            np.arange(ds.sizes["cell"]) if stored is None else np.argsort(stored, kind="stable")
        )
        if (np.diff(self.order) != 1).any():
            ds = ds.isel(cell=self.order)
        self.ds, self.variable, self.transform = ds, variable, transform
        dense_row = 8 * ds.sizes[self.dim]
        self.loader = Loader(
            ds,
            batch_size=max(1, min(_ROWS, budget // 8 // max(1, dense_row))),
            memory_budget=budget,
            prefetch=0,  # what would be read ahead is the memory that counting takes
            rank=0,
            world_size=1,
        )
        wanted = np.unique(np.linspace(0, len(self.order) - 1, _PROBES).astype(np.int64))
        self.probes = np.flatnonzero(np.isin(self.order, wanted))

    def fingerprint(self, rows: npt.NDArray[Any] | None, transform: str) -> str:
        """
        Return what tells cells, their selection and what is asked from others.

        Parameters
        ----------
        rows : ndarray, shape (n_probes, n_columns), or None
            The untransformed values of `probes`; None to read them.
        transform : str
            What tells the transform.

        Returns
        -------
        str
            Of the names of cells and genes, the values of up to 8 cells, and all settings.
        """
        if rows is None:
            rows = _dense(self.loader.samples(self.probes)[self.variable])
        names = np.empty(len(self.order), np.uint64)
        names[self.order] = pd.util.hash_array(self.ds["cell"].to_numpy())
        genes = self.ds[self.dim].to_numpy()  # numbers, where they have no names
        dtype = self.ds[self.variable].dtype.str
        order = np.argsort(self.order[self.probes])
        parts = [self.variable, transform, dtype, names, pd.util.hash_array(genes)]
        return digest([*parts, rows[order].astype(np.float64)])


def _dense(values: xr.DataArray) -> npt.NDArray[Any]:
    data: Any = values.data
    return np.asarray(data.todense() if isinstance(data, CSRArray) else data)


def cell_statistics(
    ds: xr.Dataset,
    variable: str,
    transform: Transform | None,
    *,
    budget: int,
    progress: bool,
) -> xr.Dataset:
    """
    Return the statistics of cells.

    Parameters
    ----------
    ds : xarray.Dataset
        Cells.
    variable : str
        Which values.
    transform : callable or None
        What is done to cells before they are counted.
    budget : int
        Bytes that reading may take.
    progress : bool
        Whether a progress bar is shown if it takes more than 2 s.

    Returns
    -------
    xarray.Dataset
        As `xloader.statistics` describes it.

    Raises
    ------
    SchemaError
        If there is no such variable of cells.
    """
    cells = Cells(ds, variable, transform, budget)
    n = len(cells.order)
    moments, totals, probed = Moments(), np.empty(n), []
    batch = xr.Dataset()
    with tqdm(total=n, desc="statistics", unit="cell", delay=2, disable=not progress) as bar:
        for batch in cells.loader:
            ids = batch["sample_id"].to_numpy()
            chosen = np.flatnonzero(np.isin(ids, cells.probes))
            if len(chosen):
                probed.append(_dense(batch[variable].isel(cell=chosen)))
            if transform is not None:
                rng = SampleRandom(0, epoch=0, sample_id=ids)
                batch = apply(transform, batch, rng=rng, dim="cell")  # noqa: PLW2901
            totals[cells.order[ids]] = moments.add(batch[variable].transpose("cell", ...).data)
            bar.update(len(ids))
    told = digest(transform)
    std = np.sqrt(moments.squares / (n - 1)) if n > 1 else np.full_like(moments.mean, np.nan)
    (dim,) = (str(d) for d in batch[variable].dims if d != "cell")
    data = {
        "mean": (dim, moments.mean),
        "std": (dim, std),
        "n_detected": (dim, moments.detected),
        "total": ("cell", totals),
        "median_total": ((), np.median(totals)),
    }
    coords = {"cell": ds["cell"].to_numpy()}
    if dim in batch.coords:
        coords[dim] = batch[dim].to_numpy()
    attrs = {"kind": "cells", "variable": variable, "transform": told}
    whole = cells.fingerprint(np.concatenate(probed), told)
    return xr.Dataset(data, coords, {**attrs, "fingerprint": whole})
