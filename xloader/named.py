"""What samples and batches are called in messages: regions, names, and how to make them again."""

import numpy as np
import xarray as xr

from xloader.axes import Int64, Windows
from xloader.plan import Plan


def name_batch(ds: xr.Dataset, plan: Plan, epoch: int, step: int) -> str:
    """
    Say which batch it is, which samples it has, and how to make it again.

    Parameters
    ----------
    ds : xarray.Dataset
        What the windows are cut from.
    plan : Plan
        Which samples it has.
    epoch, step : int
        Its numbers.

    Returns
    -------
    str
        The same in the process that trains and in those that work for it.
    """
    ids = plan.batch(epoch, step).ids
    rank = f" of rank {plan.rank}" if plan.world_size > 1 else ""
    return (
        f"{name_samples(ds, plan.windows, ids, epoch)}, which are batch {step} of epoch {epoch}{rank}; "
        f"loader.batch({epoch}, {step}) makes it again"
    )


def name_samples(ds: xr.Dataset, windows: Windows, ids: Int64, epoch: int | None = None) -> str:
    """
    Say what some samples are called: their numbers, and the regions or names of the first three.

    Parameters
    ----------
    ds : xarray.Dataset
        What the windows are cut from.
    windows : Windows
        Where they lie.
    ids : ndarray of int64, shape (n,)
        Sample numbers.
    epoch : int, optional
        Epoch that shifts windows. Default: where they were drawn.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> ds = xr.Dataset(coords={"cell": ["a", "b"]})
    >>> name_samples(ds, Windows(("cell",), (1,), None, 2), np.array([1, 0]), 0)
    "samples [1, 0] (cell 'b'; cell 'a')"
    """
    numbers = ", ".join(map(str, ids[:8].tolist())) + (", ..." if len(ids) > 8 else "")
    drawn = windows.unlinked
    names = [
        " x ".join(map(_place, [ds] * len(first), drawn.dims, first, stop))
        for first, stop in np.stack(drawn.shown_of(ids[:3], epoch), axis=1).tolist()
    ]
    return f"samples [{numbers}] ({'; '.join(names)}{'; ...' if len(ids) > 3 else ''})"


def _place(ds: xr.Dataset, dim: str, first: int, stop: int) -> str:
    """Name some positions along a dimension."""
    last = stop - 1
    region = [f"{name}{dim[-1]}" for name in ("chrom", "start", "end")]
    if all(name in ds.coords and ds[name].dims == (dim,) for name in region):
        chrom, start, end = (
            ds[k][at].item() for k, at in zip(region, (first, first, last), strict=True)
        )
        return f"{chrom}:{start:,}-{end:,}"
    if dim not in ds.coords:
        return f"{dim} {first}" if first == last else f"{dim} {first}:{stop}"
    names = [repr(ds[dim][at].item()) for at in dict.fromkeys((first, last))]
    return f"{dim} {' to '.join(names)}"
