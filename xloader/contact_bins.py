"""What windows are drawn from: the bins of a contact map, as integers and vectors."""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xloader import schema
from xloader.axes import Region, regions_of
from xloader.errors import SchemaError
from xloader.windows import Bins, ContactBins


def contact_bins(ds: xr.Dataset) -> ContactBins:
    """
    Return what shapes of windows know of a contact map.

    Parameters
    ----------
    ds : xarray.Dataset
        The map.

    Returns
    -------
    ContactBins
        Values of bins are taken from it when they are asked for.

    Raises
    ------
    SchemaError
        If it lacks the labels of a contact map.
    """
    schema.require(ds, ["chrom1", "chrom2", "bin1", "bin2"], "contact windows")
    rows, columns = (
        Bins(f"bin{s}", chromosomes(ds, s), partial(_bin_values, ds, s), partial(_masked, ds, s))
        for s in "12"
    )
    lengths = dict(zip(ds.attrs.get("chroms", ()), ds.attrs.get("chrom_lengths", ()), strict=False))
    assembly = str(ds.attrs.get("assembly", "unknown"))
    return ContactBins(rows, columns, ds.attrs.get("binsize"), lengths, assembly)


def _bin_values(ds: xr.Dataset, side: str, what: Any) -> npt.NDArray[Any]:
    """Return the value of each bin along an axis, of a label or of an array by bin number."""
    dim = f"bin{side}"
    if isinstance(what, str):
        if f"{what}{side}" not in ds.variables or ds[f"{what}{side}"].dims != (dim,):
            there = sorted(str(c)[:-1] for c, v in ds.variables.items() if v.dims == (dim,))
            msg = f"{what!r} is nothing that each bin has; there are {there}"
            raise SchemaError(msg)
        return np.asarray(ds[f"{what}{side}"].values)
    bins = np.asarray(ds[dim].values)
    values = np.asarray(what)
    name = getattr(what, "name", None) or "an array"
    if values.ndim != 1:
        msg = f"{name} has shape {values.shape}; give one value for each bin of the file"
        raise SchemaError(msg)
    if isinstance(what, xr.DataArray) and what.dims[0] in what.coords:
        places = what.indexes[what.dims[0]].get_indexer(pd.Index(bins))
    else:
        places = np.where(bins < len(values), bins, -1)
    lacking = bins[places < 0]
    if len(lacking):
        msg = (
            f"{name} has no value for {len(lacking):,} of {len(bins):,} bins, the first of them "
            f"{lacking[0]}; give one value for each bin of the file, in order or with their numbers"
        )
        raise SchemaError(msg)
    return np.asarray(values[places])


def _masked(ds: xr.Dataset, side: str, weight: str) -> npt.NDArray[np.bool_]:
    """Say which bins a balancing vector masks."""
    vector = _bin_values(ds, side, weight).astype(np.float64)
    divisive = bool(ds[f"{weight}{side}"].attrs.get("divisive", False))
    masked: npt.NDArray[np.bool_] = ~np.isfinite(vector) | (divisive & (vector == 0))
    return masked


def chromosomes(ds: xr.Dataset, side: str) -> list[Region]:
    """
    Return the runs of bins of one chromosome along an axis.

    Parameters
    ----------
    ds : xarray.Dataset
        A contact map.
    side : {"1", "2"}
        Which axis.

    Returns
    -------
    list of Region
        In order along it.
    """
    return regions_of(ds[f"chrom{side}"].values, ds[f"bin{side}"].values)
