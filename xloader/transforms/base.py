"""What transforms are made of: several in order, and one function for each variable."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from xloader.contract import Fusion, SampleRandom, Transform, check, fusion_of, takes_rng
from xloader.errors import SchemaError
from xloader.schema import require
from xloader.transforms.frozen import Frozen, FrozenColumns


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
        ``f(batch, *, rng)``; each random transform draws numbers of its own.

    Examples
    --------
    >>> from xloader.transforms import fill, log1p
    >>> both = compose(log1p("x"), fill(0, "x"))
    >>> ds = xr.Dataset({"x": ("sample", [1.0, float("nan")])})
    >>> both(ds).x.values.round(3)
    array([0.693, 0.   ])
    """
    return Composed(transforms)


Labels = Callable[[], xr.Dataset]


class Composed:
    """
    A picklable chain of transforms.

    Parameters
    ----------
    transforms : sequence of callable
        In order.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)
        self.__name__ = ", ".join(getattr(t, "__name__", repr(t)) for t in transforms)

    def __call__(self, batch: xr.Dataset, *, rng: SampleRandom | None = None) -> xr.Dataset:
        """Run the transforms one after the other."""
        k = 0  # readers may do some of the others, so these alone are counted
        for transform in self.transforms:
            if takes_rng(transform):
                batch = transform(batch, rng=rng and rng.of(k))
                k += 1
            else:
                batch = transform(batch)
        return batch

    def check(self, labels: Labels) -> None:
        """
        Let each transform refuse what it will not be able to serve.

        Parameters
        ----------
        labels : callable
            Returns the coordinates at the places where windows begin.
        """
        self._follow(labels, labels)

    def _follow(self, labels: Labels, known: Labels | None) -> Labels | None:
        """Check with the labels at first, or as far as they are known, and return those at the end."""
        for transform in self.transforms:
            if isinstance(transform, Composed):
                known = transform._follow(labels, known)
                continue
            by_name = getattr(transform, "by_name", False)
            if known is not None or not by_name:
                check(transform, known if by_name and known is not None else labels)
            if isinstance(transform, Choosing):
                known = known and partial(_chosen, transform, known)
            elif not isinstance(transform, Elementwise | Randomly):
                known = None  # a user's function may rename what later ones look for
        return known

    def fuse(self) -> tuple[Fusion, Transform | None] | None:
        """
        Return what the first transforms do to one variable, if readers can do it too.

        Returns
        -------
        tuple of Fusion and the transform that is left, or None
            None where they can do nothing.
        """
        done, rest = fusion_of(self.transforms[0]) if self.transforms else (None, None)
        if done is None or rest is not None:
            return None
        left = list(self.transforms[1:])
        then, rest = fusion_of(left[0]) if left else (None, None)
        if then and then.weight is None and then.variable == done.variable and not done.log:
            done = dataclasses.replace(done, log=True)
            left[:1] = []
        return done, Composed(left) if left else None


class Batchwise:
    """
    A picklable transform of the whole batch.

    Parameters
    ----------
    label : str
        Name of the transform, for messages.
    function : callable
        Takes the batch and `options`; returns a batch.
    **options : object
        For `function`.
    """

    def __init__(self, label: str, function: Callable[..., xr.Dataset], **options: Any) -> None:
        self.__name__ = label
        self.function = function
        self.options = options

    def __call__(self, batch: xr.Dataset) -> xr.Dataset:
        """Call the function."""
        return self.function(batch, **self.options)


class Choosing(Batchwise):
    """
    A transform that takes some labels: a Loader says at once which of them the Dataset lacks.

    Made of what `Batchwise` is made of.
    """

    by_name = True

    def check(self, labels: Labels) -> None:
        """
        Refuse labels that are not there.

        Parameters
        ----------
        labels : callable
            Returns the coordinates at the places where windows begin.
        """
        self(labels())


def _chosen(transform: Choosing, labels: Labels) -> xr.Dataset:
    return transform(labels())


class Randomly:
    """
    A picklable transform of the whole batch that draws random numbers.

    Parameters
    ----------
    label : str
        Name of the transform, for messages.
    function : callable
        Takes the batch, `rng` and `options`; returns a batch.
    **options : object
        For `function`.
    """

    def __init__(self, label: str, function: Callable[..., xr.Dataset], **options: Any) -> None:
        self.__name__ = label
        self.function = function
        self.options = options

    def __call__(self, batch: xr.Dataset, *, rng: SampleRandom) -> xr.Dataset:
        """Call the function."""
        return self.function(batch, rng=rng, **self.options)


class Elementwise:
    """
    A picklable transform that replaces some variables, each by itself.

    Functions get `xarray.Variable`: it broadcasts by name without aligning coordinates, which
    samples of one batch share anyway and which costs more than the arithmetic.

    Parameters
    ----------
    label : str
        Name of the transform, for messages.
    function : callable
        Takes a variable, the batch and `options`; returns a variable.
    variables : tuple of str
        Which variables, at least one.
    into : str, optional
        Name of the result, where there is one variable. Default: the variable itself.
    fusion : Fusion, optional
        What readers of contact windows can do in its place while they cut them.
    **options : object
        For `function`.

    Raises
    ------
    SchemaError
        If there is no variable; when it runs, if the batch lacks one.
    """

    def __init__(
        self,
        label: str,
        function: Callable[..., xr.Variable],
        variables: tuple[str, ...],
        *,
        into: str | None = None,
        fusion: Fusion | None = None,
        **options: Any,
    ) -> None:
        if not variables:
            msg = f"{label}() was given no variable; name those it changes, such as {label}('X')"
            raise SchemaError(msg)
        self.__name__ = label
        self.function = function
        self.variables = variables
        self.names = variables if into is None else (into,)
        self.fusion = fusion
        self.options = options
        self.by_name = isinstance(options.get("frozen"), FrozenColumns)

    def check(self, labels: Labels) -> None:
        """
        Refuse chromosomes or genes that frozen statistics do not have.

        Parameters
        ----------
        labels : callable
            Returns the coordinates at the places where windows begin.

        Raises
        ------
        SchemaError
            If there are such; names them.
        """
        frozen = self.options.get("frozen")
        if isinstance(frozen, Frozen) and frozen.chroms:
            first = labels()
            require(first, ["chrom1"], f"transform {self.__name__!r}")
            frozen.rows(first["chrom1"].to_numpy())
        elif isinstance(frozen, FrozenColumns):
            frozen.places(labels())

    def fuse(self) -> tuple[Fusion, None] | None:
        """
        Return what readers of contact windows can do while they cut them.

        Returns
        -------
        tuple of Fusion and None, or None
            None where they can do nothing.
        """
        return None if self.fusion is None else (self.fusion, None)

    def __call__(self, batch: xr.Dataset) -> xr.Dataset:
        """Replace the variables."""
        require(batch, self.variables, f"transform {self.__name__!r}")
        with xr.set_options(keep_attrs=True):  # type: ignore[no-untyped-call]
            return batch.assign(
                {
                    name: self.function(batch.variables[v], batch, **self.options)
                    for name, v in zip(self.names, self.variables, strict=True)
                }
            )


def float_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """
    Return the type of what is made of contacts by division.

    Parameters
    ----------
    dtype : dtype
        That of the contacts.

    Returns
    -------
    dtype
        float64 for itself, else float32.

    Examples
    --------
    >>> float_of(np.dtype("int64"))
    dtype('float32')
    """
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def last_two(x: xr.Variable, what: str) -> xr.Variable:
    """
    Return windows with both dimensions of bins last.

    Parameters
    ----------
    x : xarray.Variable
        ``(..., bin1, bin2)`` in any order.
    what : str
        Name of the transform, for messages.

    Returns
    -------
    xarray.Variable
        The same values.

    Raises
    ------
    SchemaError
        If it has other dimensions, such as bins of another resolution.
    """
    if not {"bin1", "bin2"} <= set(x.dims):
        msg = (
            f"transform {what!r} needs windows along bin1 and bin2, but what it got has {x.dims}; name "
            "a variable in the bins of the first source"
        )
        raise SchemaError(msg)
    ordered: xr.Variable = x.transpose(..., "bin1", "bin2")
    return ordered
