"""Where predictions of windows lie: the bins of a map, the first bins of each window, its weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader import schema
from xloader.axes import Int64, Windows
from xloader.errors import PlanError, SchemaError

_DIMS = ("bin1", "bin2")
_LABELS = ("chrom", "start", "end")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """Where the predictions of all windows lie in one map."""

    labels: xr.Dataset
    """The bins of the map, as coordinates on `bin1` and `bin2`."""
    starts: Int64
    """First bin of each window along both dimensions, shape (n_windows, 2)."""
    shape: tuple[int, int]
    """Bins that one prediction covers along each dimension."""
    inside: Int64 | None
    """Rows and columns of each prediction that lie in its chromosomes, shape (n_windows, 2, 2): a
    half-open range along each dimension; None where all do."""
    margin: int = 0
    """Bins of the loader at each side of a window that are not predicted."""
    factor: int = 1
    """Bins of the loader that are one bin of a prediction."""

    def shown(self, first: Int64, n: int, size: int) -> Int64:
        """
        Return the first bin that a batch shows of each window, if its transform crops and pools too.

        Parameters
        ----------
        first : ndarray of int64, shape (m,)
            First bin of each window.
        n : int
            Bins that the batch has.
        size : int
            Bins that the windows have.

        Returns
        -------
        ndarray of int64, shape (m,)
            As `transforms.crop` and `transforms.coarsen` number them.
        """
        for margin in (0, self.margin):
            for factor in (1, self.factor):
                if n * factor == size - 2 * margin:
                    return (first + margin + factor - 1) // factor
        return first

    def mask(self, values: npt.NDArray[Any], ids: Int64) -> npt.NDArray[Any]:
        """
        Forget what was predicted beyond the ends of chromosomes.

        Parameters
        ----------
        values : ndarray of float, shape (n, *shape)
            Changed in place.
        ids : ndarray of int64, shape (n,)
            Their samples.

        Returns
        -------
        ndarray of float, shape (n, *shape)
            The same array, NaN there.
        """
        if self.inside is not None:
            for value, ((a, b), (c, d)) in zip(values, self.inside[ids].tolist(), strict=True):
                value[:a], value[b:], value[:, :c], value[:, d:] = (np.nan,) * 4
        return values


def place(ds: xr.Dataset, windows: Windows, *, margin: int, factor: int) -> Places:
    """
    Lay out the map of predictions: all bins of both dimensions, in the order of the genome.

    Parameters
    ----------
    ds : xarray.Dataset
        What the windows are cut from.
    windows : Windows
        Over `bin1` and `bin2`.
    margin : int
        Bins at each side of a window that are not predicted.
    factor : int
        Bins that are one bin of a prediction.

    Returns
    -------
    Places
        Of every window.

    Raises
    ------
    PlanError
        If margins leave nothing, windows do not consist of whole bins of the prediction, or windows
        are shifted at random.
    SchemaError
        If bins lack their regions, or a window spans places that are not neighbours.
    """
    schema.require(ds, [f"{k}{side}" for k in _LABELS for side in "12"], "a map of predictions")
    if windows.shift is not None:
        msg = (
            "windows that are shifted at random have another place in each epoch, and predictions of "
            "them none; predict with the same windows, and leave out `shift`"
        )
        raise PlanError(msg)
    size = tuple(windows.size[windows.dims.index(d)] for d in _DIMS)
    inner = [n - 2 * margin for n in size]
    if margin < 0 or factor < 1 or min(inner) < 1 or any(n % factor for n in inner):
        msg = (
            f"windows of {size} bins without a margin of {margin} at each side are {inner} bins, which "
            f"are no whole bins of {factor}; choose margin and factor as the model crops and pools"
        )
        raise PlanError(msg)
    labels, position = _bins(ds)
    coarse = np.arange(labels.sizes["bin1"])
    aligned = np.ones(len(coarse), bool)
    if factor > 1:
        labels, coarse, aligned = _coarsened(labels, factor)
    starts, axes = windows.starts_of(np.arange(len(windows))), list(map(windows.dims.index, _DIMS))
    beyond = None if windows.beyond is None else windows.beyond[:, axes]
    if beyond is not None and beyond.any() and factor > 1:
        msg = (
            f"factor={factor} and windows that reach beyond the ends of chromosomes do not go together; "
            "choose another `remainder`"
        )
        raise PlanError(msg)
    first = np.empty((len(windows), 2), np.int64)
    for k, dim in enumerate(_DIMS):
        begin = starts[:, axes[k]]
        _check_neighbours(position[k], begin, size[k], dim)
        inside = position[k][begin + margin]
        if not aligned[inside].all():
            odd = np.flatnonzero(~aligned[inside])
            msg = (
                f"{len(odd)} windows, such as sample {odd[0]}, do not begin at a whole bin of "
                f"{factor} bins along {dim!r}; choose a stride that is a multiple of {factor}, and "
                "remainder='drop'"
            )
            raise PlanError(msg)
        first[:, k] = coarse[inside]
    shape = inner[0] // factor, inner[1] // factor
    if beyond is None:
        return Places(labels, first, shape, None, margin, factor)
    low = np.clip(-beyond - margin, 0, shape)
    high = np.clip(np.array(size) - beyond - margin, 0, shape)
    inside = np.stack([low, high], axis=-1)
    return Places(labels, first + beyond, shape, inside, margin, factor)


def _bins(ds: xr.Dataset) -> tuple[xr.Dataset, list[Int64]]:
    """Return the bins of both dimensions together, and where those of each are among them."""
    ids = [np.asarray(ds[d].values if d in ds.coords else np.arange(ds.sizes[d])) for d in _DIMS]
    every, first = np.unique(np.concatenate(ids), return_index=True)
    names = [str(k)[:-1] for k, c in ds.coords.items() if c.dims == ("bin1",) and str(k)[-1] == "1"]
    coords: dict[str, Any] = {dim: (dim, every) for dim in _DIMS}
    for name in names:
        if name == "bin" or f"{name}2" not in ds.coords:
            continue
        both = [ds[f"{name}{side}"] for side in "12"]
        values = np.concatenate([c.values for c in both])[first]
        for dim, side in zip(_DIMS, "12", strict=True):
            coords[f"{name}{side}"] = schema.label(dim, values, both[0].attrs)
    position = [np.searchsorted(every, i) for i in ids]
    return xr.Dataset(coords=coords, attrs=ds.attrs), position


def _coarsened(labels: xr.Dataset, factor: int) -> tuple[xr.Dataset, Int64, npt.NDArray[np.bool_]]:
    """Return coarser bins, in which of them each bin is, and whether it is the first of one."""
    binsize = labels.attrs.get("binsize")
    if binsize is None:
        msg = f"factor={factor} needs bins of one size, and these vary; predict them as they are"
        raise SchemaError(msg)
    chrom, start, end = (labels[f"{k}1"].values for k in _LABELS)
    number = np.asarray(start, np.int64) // (binsize * factor)
    new = np.append(True, (chrom[1:] != chrom[:-1]) | (np.diff(number) != 0))
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(chrom)) - 1
    coords: dict[str, Any] = {}
    for dim, side in zip(_DIMS, "12", strict=True):
        coords[dim] = (dim, np.arange(len(first)))
        values = chrom[first], start[first], end[last]
        for name, column in zip(_LABELS, values, strict=True):
            coords[f"{name}{side}"] = schema.label(dim, column, labels[f"{name}1"].attrs)
    sizes = {"binsize": binsize * factor, "resolution": binsize * factor}
    aligned = np.asarray(start, np.int64) % (binsize * factor) == 0
    return xr.Dataset(coords=coords, attrs={**labels.attrs, **sizes}), np.cumsum(new) - 1, aligned


def _check_neighbours(position: Int64, begin: Int64, size: int, dim: str) -> None:
    """Refuse windows whose bins are not neighbours in the genome."""
    gaps = np.append(0, np.cumsum(np.diff(position) != 1))
    torn = np.flatnonzero(gaps[begin] != gaps[begin + size - 1])
    if len(torn):
        msg = (
            f"{len(torn)} windows, such as sample {torn[0]}, hold bins along {dim!r} that are no "
            "neighbours in the genome, or not in its order; predictions of them have no place in a map"
        )
        raise SchemaError(msg)


def window_weights(asked: Any, shape: tuple[int, int], *, symmetric: bool) -> tuple[str, Floats]:
    """
    Return what each place in a window counts where windows overlap.

    Parameters
    ----------
    asked : {"uniform", "triangular"}, array or callable
        The same everywhere; falling from the middle to the sides along both dimensions; weights; or a
        function that takes the shape and returns weights.
    shape : tuple of int
        Bins that a prediction covers.
    symmetric : bool
        Whether the weights must be symmetric.

    Returns
    -------
    name : str
        What it is called.
    weights : ndarray of float64, of this shape
        At least 0, and not all of them.

    Raises
    ------
    PlanError
        If they are of another shape, or negative, or not finite.

    Examples
    --------
    >>> window_weights("triangular", (3, 3), symmetric=True)[1]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    known: dict[str, Callable[[int], Floats]] = {"uniform": np.ones, "triangular": _triangle}
    if isinstance(asked, str):
        if asked not in known:
            msg = f"weights={asked!r} are unknown; choose one of {list(known)}, or give an array"
            raise PlanError(msg)
        return asked, np.multiply.outer(known[asked](shape[0]), known[asked](shape[1]))
    name = getattr(asked, "__name__", type(asked).__name__)
    weights = np.asarray(asked(shape) if callable(asked) else asked, np.float64)
    if weights.shape != shape:
        msg = f"weights are of shape {weights.shape}, and predictions of {shape} bins"
        raise PlanError(msg)
    if not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        msg = f"weights are {weights.min()} to {weights.max()}; they must be finite, at least 0, and not all 0"
        raise PlanError(msg)
    if symmetric and not np.array_equal(weights, weights.T):
        msg = "weights of a symmetric map must be symmetric; make them so, or pass symmetric=False"
        raise PlanError(msg)
    return name, np.ascontiguousarray(weights)


def _triangle(n: int) -> Floats:
    k = np.arange(n)
    return np.minimum(k + 1, n - k).astype(np.float64)


def fold(values: npt.NDArray[Any], starts: Int64) -> npt.NDArray[Any]:
    """
    Bring everything that square windows of a symmetric map hold above its diagonal.

    A window below the diagonal is transposed; of a pair of bins that a window holds twice, both get
    the mean, or the one that is not NaN.

    Parameters
    ----------
    values : ndarray of float, shape (n, size, size)
        Changed in place.
    starts : ndarray of int64, shape (n, 2)
        First bins of each window.

    Returns
    -------
    ndarray of float, shape (n, size, size)
        The same array.

    Examples
    --------
    >>> fold(np.array([[[1.0, 2.0], [4.0, 5.0]]]), np.array([[7, 7]]))
    array([[[1., 3.],
            [3., 5.]]])
    """
    below = starts[:, 0] > starts[:, 1]
    values[below] = values[below].swapaxes(1, 2)
    shift = np.abs(starts[:, 1] - starts[:, 0])
    size = values.shape[1]
    for d in np.unique(shift[shift < size]).tolist():
        mine = np.flatnonzero(shift == d)
        one = values[mine, d:, : size - d]
        other = one.swapaxes(1, 2)
        with np.errstate(invalid="ignore"):
            mean = one + (other - one) / 2
        both = np.where(np.isnan(other) | (one == other), one, mean)
        values[mine, d:, : size - d] = np.where(np.isnan(one), other, both)
    return values
