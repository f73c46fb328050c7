"""Functions from labelled batch to labelled batch; a user's own function is equal to them."""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.contract import Fusion, SampleRandom, Transform, fusion_of, takes_rng
from xloader.errors import SchemaError
from xloader.schema import require


def compose(*transforms: Transform) -> Transform:
    """
    Return one transform that runs several in order.

    Parameters
    ----------
    *transforms : callable
        Each ``f(batch)`` or ``f(batch, *, rng)``.

    Returns
    -------
    callable
        ``f(batch, *, rng)``.

    Examples
    --------
    >>> both = compose(log1p("x"), fill(0, "x"))
    >>> ds = xr.Dataset({"x": ("sample", [np.e - 1, np.nan])})
    >>> both(ds).x.values
    array([1., 0.])
    """
    return _Composed(transforms)


class _Composed:
    """A picklable chain of transforms."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)
        self.__name__ = ", ".join(getattr(t, "__name__", repr(t)) for t in transforms)

    def __call__(self, batch: xr.Dataset, *, rng: SampleRandom | None = None) -> xr.Dataset:
        for transform in self.transforms:
            batch = transform(batch, rng=rng) if takes_rng(transform) else transform(batch)
        return batch

    def fuse(self) -> tuple[Fusion, Transform | None] | None:
        """Return what the first transforms do to one variable, if readers can do it too."""
        done, rest = fusion_of(self.transforms[0]) if self.transforms else (None, None)
        if done is None or rest is not None:
            return None
        left = list(self.transforms[1:])
        then, rest = fusion_of(left[0]) if left else (None, None)
        if then and then.weight is None and then.variable == done.variable and not done.log:
            done = dataclasses.replace(done, log=True)
            left[:1] = []
        return done, _Composed(left) if left else None


class _Elementwise:
    """
    A picklable transform that replaces some variables, each by itself.

    Functions get `xarray.Variable`: it broadcasts by name without aligning coordinates, which
    samples of one batch share anyway and which costs more than the arithmetic.
    """

    def __init__(
        self,
        label: str,
        function: Callable[..., xr.Variable],
        variables: tuple[str, ...],
        **options: Any,
    ) -> None:
        if not variables:
            msg = f"{label}() was given no variable; name those it changes, such as {label}('X')"
            raise SchemaError(msg)
        self.__name__ = label
        self.function = function
        self.variables = variables
        self.options = options

    def fuse(self) -> tuple[Fusion, None] | None:
        """Return what readers of contact windows can do while they cut them."""
        if len(self.variables) != 1 or self.function not in (_balance, _log1p):
            return None
        weight = self.options.get("name")
        return Fusion(self.variables[0], weight, _factors, log=weight is None), None

    def __call__(self, batch: xr.Dataset) -> xr.Dataset:
        require(batch, self.variables, f"transform {self.__name__!r}")
        with xr.set_options(keep_attrs=True):  # type: ignore[no-untyped-call]
            return batch.assign(
                {
                    v: self.function(batch.variables[v], batch, **self.options)
                    for v in self.variables
                }
            )


def log1p(*variables: str) -> Transform:
    """
    Replace values by ``log(1 + x)``.

    Parameters
    ----------
    *variables : str
        Which variables; sparse ones stay sparse.

    Returns
    -------
    Transform
        Keeps shape and NaN; integers become floats.

    Examples
    --------
    >>> log1p("count")(xr.Dataset({"count": ("sample", [0, 1])}))["count"].values.round(3)
    array([0.   , 0.693])
    """
    return _Elementwise("log1p", _log1p, variables)


def _log1p(x: xr.Variable, _: xr.Dataset) -> xr.Variable:
    return np.log1p(x)  # type: ignore[return-value]


def clip(low: float | None, high: float | None, *variables: str) -> Transform:
    """
    Limit values to a range.

    Parameters
    ----------
    low, high : float or None
        Bounds; None for no bound.
    *variables : str
        Which variables.

    Returns
    -------
    Transform
        Keeps shape, dtype and NaN.

    Examples
    --------
    >>> clip(None, 2, "x")(xr.Dataset({"x": ("sample", [1, 5])})).x.values
    array([1, 2])
    """
    return _Elementwise("clip", _clip, variables, low=low, high=high)


def _clip(x: xr.Variable, _: xr.Dataset, *, low: float | None, high: float | None) -> xr.Variable:
    if low is not None:
        x = np.maximum(x, _within(low, x.dtype))
    return x if high is None else np.minimum(x, _within(high, x.dtype))


def _within(bound: float, dtype: np.dtype[Any]) -> Any:
    """Return a bound as a number that the dtype can hold."""
    if dtype.kind in "iu":
        bound = min(max(bound, np.iinfo(dtype).min), np.iinfo(dtype).max)
    return dtype.type(bound)


def fill(value: float, *variables: str) -> Transform:
    """
    Replace missing values.

    Parameters
    ----------
    value : float
        What NaN becomes.
    *variables : str
        Which variables.

    Returns
    -------
    Transform
        Keeps shape and dtype; the mask is gone.

    Examples
    --------
    >>> fill(0, "x")(xr.Dataset({"x": ("sample", [1.0, np.nan])})).x.values
    array([1., 0.])
    """
    return _Elementwise("fill", _fill, variables, value=value)


def _fill(x: xr.Variable, _: xr.Dataset, *, value: float) -> xr.Variable:
    filled: xr.Variable = x.fillna(x.dtype.type(value))  # type: ignore[no-untyped-call]
    return filled


def balance(name: str = "weight", variable: str = "count") -> Transform:
    """
    Correct contact counts for the visibility of their bins.

    Multiplicative vectors give ``count * w1 * w2``, divisive ones (attribute `divisive`)
    ``count / (w1 * w2)``, as cooler and juicer define them. Divisors that are zero or not finite
    count as masked.

    Parameters
    ----------
    name : str, optional
        Balancing vector; the batch has it as coordinates ``<name>1`` and ``<name>2``.
    variable : str, optional
        Counts to balance.

    Returns
    -------
    Transform
        Keeps the shape; float32 (float64 for float64 counts), NaN where a bin is masked.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"count": (("bin1", "bin2"), [[4, 2], [2, 8]])},
    ...     {"weight1": ("bin1", [0.5, np.nan]), "weight2": ("bin2", [0.5, np.nan])},
    ... )
    >>> balance()(ds)["count"].values
    array([[ 1., nan],
           [nan, nan]], dtype=float32)
    """
    return _Elementwise("balance", _balance, (variable,), name=name)


def _balance(x: xr.Variable, batch: xr.Dataset, *, name: str) -> xr.Variable:
    sides = [f"{name}1", f"{name}2"]
    if not set(sides) <= set(batch.coords):
        there = sorted({str(c)[:-1] for c in batch.coords if "divisive" in batch[c].attrs})
        msg = (
            f"balancing vector {name!r} is not in this file; it has {there or 'none'}; name one of "
            "them, or balance the file first"
        )
        raise SchemaError(msg)
    vectors = (batch.variables[s] for s in sides)
    first, second = (xr.Variable(w.dims, _factors(w)) for w in vectors)
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    product = x.astype(np.float64) * first * second
    return product.astype(dtype).transpose(*x.dims)


def _factors(vector: xr.Variable) -> npt.NDArray[Any]:
    """Return what counts are multiplied by."""
    divisor = vector.values.astype(np.float64, copy=False)
    if not vector.attrs.get("divisive", False):
        return divisor
    usable = (divisor != 0) & np.isfinite(divisor)
    return np.where(usable, 1 / np.where(usable, divisor, 1), np.nan)


def normalize_total(target_sum: float = 1e4, variable: str = "X") -> Transform:
    """
    Scale each cell to the same total count.

    The source is scanpy's ``pp.normalize_total``: every cell is multiplied by
    ``target_sum / sum``; cells without counts stay zero.

    Parameters
    ----------
    target_sum : float, optional
        Total of every cell afterwards.
    variable : str, optional
        Counts ``(cell, gene)``; sparse ones stay sparse.

    Returns
    -------
    Transform
        Keeps the shape; float32 (float64 for float64 counts).

    Examples
    --------
    >>> ds = xr.Dataset({"X": (("cell", "gene"), [[1, 3], [0, 0]])})
    >>> normalize_total(8)(ds).X.values
    array([[2., 6.],
           [0., 0.]], dtype=float32)
    """
    return _Elementwise("normalize_total", _normalize_total, (variable,), target_sum=target_sum)


def _normalize_total(x: xr.Variable, _: xr.Dataset, *, target_sum: float) -> xr.Variable:
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    total = x.sum(str(x.dims[1]), dtype=np.float64)
    sums = np.asarray(total.data)
    factor = total.copy(data=(target_sum / np.where(sums != 0, sums, 1)).astype(dtype))
    scaled: xr.Variable = x.astype(dtype) * factor
    return scaled


def select(**labels: Sequence[Any]) -> Transform:
    """
    Keep some labels along a dimension, in the order given.

    ``ds.sel(gene=[...])`` before the Loader reads less and is the better way; this is for one data
    source that several models share.

    Parameters
    ----------
    **labels : sequence
        By dimension: labels of its index, each once.

    Returns
    -------
    Transform
        Keeps dtype and NaN; the dimension is as long as the list.

    Raises
    ------
    SchemaError
        When it runs, if a label is unknown, with those most like it; at once, if one is named twice.

    Examples
    --------
    >>> ds = xr.Dataset({"X": (("cell", "gene"), [[1, 2, 3]])}, {"gene": ["a", "b", "c"]})
    >>> select(gene=["c", "a"])(ds).X.values
    array([[3, 1]])
    """
    for dim, names in labels.items():
        twice = sorted({str(n) for n in names if list(names).count(n) > 1})
        if twice:
            msg = f"select({dim}=...) names {twice[:5]} more than once; name each label once"
            raise SchemaError(msg)
    return _Select({dim: list(names) for dim, names in labels.items()})


class _Select:
    __name__ = "select"

    def __init__(self, labels: dict[str, list[Any]]) -> None:
        self.labels = labels

    def __call__(self, batch: xr.Dataset) -> xr.Dataset:
        places = {}
        for dim, names in self.labels.items():
            require(batch, [dim], "transform 'select'")
            index = batch.indexes[dim]
            places[dim] = index.get_indexer(names)
            unknown = [str(n) for n, k in zip(names, places[dim], strict=True) if k < 0]
            if unknown:
                alike = difflib.get_close_matches(unknown[0], [str(n) for n in index], n=3)
                msg = (
                    f"{len(unknown)} of {len(names)} labels are not among the {len(index)} of {dim!r}: "
                    f"{unknown[:5]}; there are {alike or [str(n) for n in index[:5]]}..."
                )
                raise SchemaError(msg)
        return batch.isel(places)


def thin(keep: float, *, variable: str = "count", into: str | None = None) -> Transform:
    """
    Simulate lower coverage: keep each contact with a given probability.

    Binomial thinning of Poisson counts gives Poisson counts of the lower depth. Windows that are
    symmetric stay so.

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
        If `keep` is out of range; when it runs, if counts are not integers.
    """
    if not 0 < keep <= 1:
        msg = f"thin(keep={keep}) is impossible; choose a probability above 0 and at most 1"
        raise SchemaError(msg)
    return _Thin(keep, variable, into or variable)


class _Thin:
    __name__ = "thin"

    def __init__(self, keep: float, variable: str, into: str) -> None:
        self.keep = keep
        self.variable = variable
        self.into = into

    def __call__(self, batch: xr.Dataset, *, rng: SampleRandom) -> xr.Dataset:
        require(batch, [self.variable], "transform 'thin'")
        x = batch[self.variable]
        if x.dtype.kind not in "iu":
            msg = f"transform 'thin' needs raw integer counts, but {self.variable!r} is {x.dtype}"
            raise SchemaError(msg)
        windows = zip(x.values, rng, strict=True)
        thinned = np.stack([_thin_window(w, r, self.keep) for w, r in windows])
        return batch.assign({self.into: x.copy(data=thinned)})


def _thin_window(
    window: npt.NDArray[Any], rng: np.random.Generator, keep: float
) -> npt.NDArray[Any]:
    thinned = rng.binomial(window, keep).astype(window.dtype)
    if window.ndim == 2 and np.array_equal(window, window.T):
        upper = np.triu(thinned)
        return np.asarray(upper + np.triu(upper, 1).T)
    return thinned
