"""Windows that reach beyond the end of a chromosome: what they show where there are no bins."""

from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def pad(
    name: str, dims: tuple[str, ...], values: npt.NDArray[Any], over: Int64, binsize: int
) -> npt.NDArray[Any]:
    """
    Move what windows show, and fill what is left of them.

    Parameters
    ----------
    name : str
        Name of the variable.
    dims : tuple of str
        Its dimensions, without that of the windows.
    values : ndarray, shape (n, *size)
        Windows that were cut flush with the end that they reach beyond.
    over : ndarray of int64, shape (n, len(dims))
        How far each reaches beyond its start (below 0) or end.
    binsize : int
        Length of a bin, in bp.

    Returns
    -------
    ndarray, shape (n, *size)
        Where there is no bin: starts and ends of bins count on, `bin1` and `bin2` are -1, anything else
        is NaN, or zero, False or empty where its dtype has none. Chromosomes stay.

    Examples
    --------
    >>> pad("start1", ("bin1",), np.array([[0, 5, 10]]), np.array([[-2]]), 5)
    array([[-10,  -5,   0]])
    """
    if name in (f"chrom{d[-1]}" for d in dims):
        return values
    out = values.copy()
    fill = -1 if (name,) == dims and values.dtype.kind == "i" else nothing(values.dtype)
    for k in np.flatnonzero(over.any(axis=1)).tolist():
        ends = list(zip(over[k].tolist(), values.shape[1:], strict=True))
        source = tuple(slice(max(d, 0), n + min(d, 0)) for d, n in ends)
        target = tuple(slice(max(-d, 0), n - max(d, 0)) for d, n in ends)
        out[k] = fill
        out[k][target] = values[k][source]
    if name in (f"{bound}{d[-1]}" for bound in ("start", "end") for d in dims):
        places = np.arange(values.shape[1]) + over
        outside = (places < 0) | (places >= values.shape[1])
        out = np.where(outside, values[:, :1] + places * binsize, out).astype(values.dtype)
    return out


def nothing(dtype: np.dtype[Any]) -> Any:
    """
    Return what stands where there is no value.

    Parameters
    ----------
    dtype : dtype
        Of an array.

    Returns
    -------
    object
        NaN or NaT, None or empty text; zero or False where the dtype has none of these.
    """
    if dtype.kind in "fc":
        return np.nan
    if dtype.kind in "mM":
        return np.array("NaT", dtype)
    return {"O": None, "U": "", "T": "", "S": b""}.get(dtype.kind, 0)
