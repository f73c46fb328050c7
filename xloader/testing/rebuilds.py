"""The law of the way back: predictions that are the data give the data again."""

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.axes import Int64
from xloader.loader import Loader
from xloader.predictions import PredictionWriter

_ROWS = 512


def assert_rebuilds(
    loader: Loader, store: str | os.PathLike[str], *, variable: str | None = None, **options: Any
) -> xr.Dataset:
    """
    Check law 13: identity predictions rebuild the source exactly.

    Every batch of an epoch is written as its own prediction, every other one twice. Wherever a sample
    lies, the result equals the source bit for bit, and it is NaN with a coverage of 0 elsewhere.

    Parameters
    ----------
    loader : Loader
        Contact windows of a symmetric map, or cells one by one; without a transform.
    store : str or path-like
        Directory to make.
    variable : str, optional
        What is predicted, of one dimension or two. Default: the first variable of the loader.
    **options
        Passed to `PredictionWriter`.

    Returns
    -------
    xarray.Dataset
        The result.

    Raises
    ------
    AssertionError
        If it differs; says where.
    """
    name = variable or loader.variables[0]
    writer, ids = PredictionWriter(loader, store, **{"progress": False, **options}), set()
    for step, batch in enumerate(loader):
        for _ in range(1 + step % 2):
            writer.write(batch, batch[name])
        ids.update(batch["sample_id"].values.tolist())
    result = writer.close()
    assert result is not None, "other ranks are not done; give a loader of one rank"
    source = loader.ds[name].transpose(
        *(d for d in ("cell", "bin1", "bin2") if d in result.dims), ...
    )
    first = str(source.dims[0])
    held = _held(loader, np.array(sorted(ids)), source)
    for top in range(0, source.shape[0], _ROWS):
        rows = {first: slice(top, top + _ROWS)}
        wanted = np.asarray(source.isel(rows).values, np.float64)
        got = np.asarray(result["prediction"].isel(rows).values, np.float64)
        seen = held[rows[first]] & ~np.isnan(wanted)
        same = np.where(seen, got.view(np.int64) == wanted.view(np.int64), np.isnan(got))
        odd = np.argwhere(~same)
        if len(odd):
            at = tuple(odd[0].tolist())
            place = (at[0] + top, *at[1:])
            msg = f"{name}{list(place)} is {wanted[at]} and came back as {got[at]}, as did {len(odd)} others"
            raise AssertionError(msg)
        counted = np.asarray(result["coverage"].isel(rows).values) > 0
        served = (
            seen if "bin1" in source.dims else held[rows[first]].reshape(len(counted), -1)[:, 0]
        )
        if not np.array_equal(counted, served):
            msg = f"the coverage of {first} {top} to {top + len(counted)} does not say what is predicted"
            raise AssertionError(msg)
    return result


def _held(loader: Loader, ids: Int64, source: xr.DataArray) -> npt.NDArray[np.bool_]:
    """Say which places some samples hold."""
    windows = loader.plan.windows
    held = np.zeros(source.shape, bool)
    for start in windows.starts_of(ids).tolist():
        at = {d: slice(a, a + n) for d, a, n in zip(windows.dims, start, windows.size, strict=True)}
        held[tuple(at.get(str(d), slice(None)) for d in source.dims)] = True
        if "bin1" in at:
            held[at["bin2"], at["bin1"]] = True
    return held
