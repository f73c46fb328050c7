"""What a transform is: how it is called, what it gets and what it must keep."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.errors import PlanError, TransformError
from xloader.keyed import key_of, mixed, uniform

Transform = Callable[..., xr.Dataset]
"""``f(batch)`` or ``f(batch, *, rng)``; sample by sample in meaning, vectorised in work."""


@dataclass(frozen=True)
class Fusion:
    """What transforms do to contact counts that a reader may do while it cuts windows."""

    variable: str
    """Which counts."""
    weight: str | None
    """Balancing vector, or None."""
    factors: Callable[[xr.Variable], npt.NDArray[Any]]
    """Turns a balancing vector into factors."""
    log: bool
    """Whether ``log(1 + x)`` is taken after that."""


_SAMPLE = 3  # first word of the seeds of samples; the plan uses others


class SampleRandom(Sequence[np.random.Generator]):
    """
    One random generator per sample, the same wherever and whenever the sample is drawn.

    Parameters
    ----------
    seed : int
        Seed of the loader.
    epoch : int
        Number of the epoch.
    sample_id : ndarray of int64, shape (n,)
        Samples of the batch.
    path : tuple of int, optional
        Which of several transforms it is for, see `of`.

    Examples
    --------
    >>> rng = SampleRandom(0, epoch=2, sample_id=np.array([7, 9]))
    >>> bool(rng[1].random() == SampleRandom(0, epoch=2, sample_id=np.array([9]))[0].random())
    True
    """

    def __init__(
        self,
        seed: int,
        *,
        epoch: int,
        sample_id: npt.NDArray[np.int64],
        path: tuple[int, ...] = (),
    ) -> None:
        self.seed = seed
        self.epoch = epoch
        self.sample_id = sample_id
        self.path = path

    def of(self, k: int) -> "SampleRandom":
        """
        Return what another random transform of the same batch gets.

        Parameters
        ----------
        k : int
            Which one, from 0 on.

        Returns
        -------
        SampleRandom
            Independent of this one and of those of other `k`.
        """
        return SampleRandom(
            self.seed, epoch=self.epoch, sample_id=self.sample_id, path=(*self.path, k + 1)
        )

    def keys(self) -> npt.NDArray[np.uint64]:
        """
        Return one key per sample, for numbers that are made of keys and places.

        Returns
        -------
        ndarray of uint64, shape (n,)
            Random bits, found for the whole batch at once.
        """
        return mixed(self.sample_id, self._key)

    def uniform(self) -> npt.NDArray[np.float64]:
        """
        Return one random number per sample, found for the whole batch at once.

        Returns
        -------
        ndarray of float64, shape (n,)
            At least 0, less than 1.
        """
        return uniform(self.sample_id, self._key)

    @property
    def _key(self) -> int:
        return key_of(_SAMPLE, self.seed, self.epoch, *self.path)

    @override
    def __len__(self) -> int:
        return len(self.sample_id)

    @override
    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            ids = self.sample_id[i]
            return SampleRandom(self.seed, epoch=self.epoch, sample_id=ids, path=self.path)
        words = [_SAMPLE, self.seed, self.epoch, int(self.sample_id[i]), *self.path]
        return np.random.default_rng(words)

    @override
    def __iter__(self) -> Iterator[np.random.Generator]:
        return (self[i] for i in range(len(self)))


def apply(transform: Transform, batch: xr.Dataset, *, rng: SampleRandom, dim: str) -> xr.Dataset:
    """
    Run a transform on a batch and hold it to the contract.

    Parameters
    ----------
    transform : callable
        ``f(batch)`` or ``f(batch, *, rng)``.
    batch : xarray.Dataset
        A labelled batch.
    rng : SampleRandom
        Handed to a transform that has a parameter `rng`.
    dim : str
        Dimension of the samples.

    Returns
    -------
    xarray.Dataset
        What the transform returned.

    Raises
    ------
    TransformError
        If it returned no Dataset, or not the same samples in the same order.
    """
    before, given = batch.sizes[dim], batch.variables["sample_id"].values.copy()
    result: Any = transform(batch, rng=rng) if takes_rng(transform) else transform(batch)
    name = getattr(transform, "__name__", repr(transform))
    if not isinstance(result, xr.Dataset):
        msg = f"transform {name!r} returned {type(result).__name__}; return the xarray.Dataset"
        raise TransformError(msg)
    after = result.sizes.get(dim)
    if after != before:
        msg = (
            f"transform {name!r} changed the batch dimension {dim!r} from {before} to {after} samples; "
            "a transform keeps every sample: select samples on the Dataset before the Loader"
        )
        raise TransformError(msg)
    ids = result.variables.get("sample_id")
    if ids is None or not np.array_equal(ids.values, given):
        msg = f"transform {name!r} dropped or reordered `sample_id`; keep it as it comes"
        raise TransformError(msg)
    return result


def fusion_of(transform: Transform | None) -> tuple[Fusion | None, Transform | None]:
    """
    Return what a reader may do of a transform, and what is left.

    Parameters
    ----------
    transform : callable or None
        A transform; one of this package may have a method `fuse` that says.

    Returns
    -------
    tuple of Fusion or None and callable or None
        ``(None, transform)`` where nothing can be fused.
    """
    fuse = getattr(transform, "fuse", None)
    fused: tuple[Fusion, Transform | None] | None = fuse() if callable(fuse) else None
    return (None, transform) if fused is None else fused


def check(transform: Transform | None, labels: Callable[[], xr.Dataset]) -> None:
    """
    Let a transform refuse what it will not be able to serve, before anything is read.

    Parameters
    ----------
    transform : callable or None
        One of this package may have a method `check`.
    labels : callable
        Returns the coordinates at the places where windows begin.

    Raises
    ------
    PlanError
        If it cannot be called.
    """
    given: Any = transform
    if given is not None and not callable(given):
        msg = (
            f"transform={given!r} is no function of a batch; give one, and join several with "
            "xl.transforms.compose(a, b)"
        )
        raise PlanError(msg)
    method = getattr(transform, "check", None)
    if callable(method):
        method(labels)


def takes_rng(transform: Transform) -> bool:
    """
    Say whether a transform asks for random generators.

    Parameters
    ----------
    transform : callable
        Any transform.

    Returns
    -------
    bool
        True if it has a parameter called `rng`.
    """
    try:
        return "rng" in inspect.signature(transform).parameters
    except ValueError:  # a builtin without a signature
        return False
