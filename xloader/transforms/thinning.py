"""Contact counts as of a lower coverage."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.contract import SampleRandom, Transform
from xloader.errors import SchemaError
from xloader.schema import require
from xloader.threads import cut, n_threads, run
from xloader.transforms.base import Randomly, last_two


def thin(keep: float, *, variable: str = "count", into: str | None = None) -> Transform:
    """
    Simulate lower coverage: keep each contact with a given probability.

    Binomial thinning of Poisson counts gives Poisson counts of the lower depth. A pair of bins is
    thinned once: wherever a window shows it on both sides of the diagonal, both get the same.

    Parameters
    ----------
    keep : float
        Probability that a contact stays, above 0 and at most 1.
    variable : str, optional
        Raw integer counts ``(sample, bin1, bin2)``.
    into : str, optional
        Name of the thinned variable. Default: `variable` itself.

    Returns
    -------
    Transform
        Keeps shape and dtype; random by (seed, epoch, sample).

    Raises
    ------
    SchemaError
        If `keep` is out of range; when it runs, if counts are not integers, are negative, or have
        no coordinates `bin1` and `bin2`.

    Examples
    --------
    >>> numbers = ("sample", "bin1"), [[3, 4]]
    >>> ds = xr.Dataset(
    ...     {"count": (("sample", "bin1", "bin2"), [[[90, 40], [40, 0]]])},
    ...     {"bin1": numbers, "bin2": (("sample", "bin2"), [[3, 4]])},
    ... )
    >>> rng = SampleRandom(0, epoch=0, sample_id=np.array([7]))
    >>> thin(0.5)(ds, rng=rng)["count"].values
    array([[[53, 21],
            [21,  0]]])
    """
    if not 0 < keep <= 1:
        msg = f"thin(keep={keep}) is impossible; choose a probability above 0 and at most 1"
        raise SchemaError(msg)
    return Randomly("thin", _thin, keep=float(keep), variable=variable, into=into or variable)


def _thin(
    batch: xr.Dataset, *, rng: SampleRandom, keep: float, variable: str, into: str
) -> xr.Dataset:
    from xloader.kernels.thinning import thin as thin_windows

    require(batch, [variable, "bin1", "bin2"], "transform 'thin'")
    x = batch.variables[variable]
    if x.dtype.kind not in "iu":
        msg = f"transform 'thin' needs raw integer counts, but {variable!r} is {x.dtype}"
        raise SchemaError(msg)
    ordered = last_two(x, "thin").transpose("sample", ...)
    counts: npt.NDArray[Any] = np.ascontiguousarray(ordered.values)
    windows = counts.reshape(-1, *counts.shape[-2:])
    if windows.size and windows.min() < 0:
        msg = f"transform 'thin' needs counts of 0 or more, but {variable!r} has {windows.min()}"
        raise SchemaError(msg)
    further = np.arange(len(windows) // max(len(counts), 1), dtype=np.uint64)
    keys = (rng.keys()[:, None] + (further << np.uint64(56))).ravel()
    bins = (
        np.repeat(batch.variables[f"bin{s}"].values.astype(np.int64), len(further), axis=0)
        for s in "12"
    )
    out = np.empty_like(windows)
    args = windows, *bins, keys, keep, out
    run("gather", thin_windows, [(*args, a, b) for a, b in cut(len(out), n_threads())])
    thinned = ordered.copy(data=out.reshape(counts.shape)).transpose(*x.dims)
    return batch.assign({into: thinned})
