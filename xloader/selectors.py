"""Windows as xbatcher draws them: its selectors as integers, taken once."""

from types import SimpleNamespace

import numpy as np
import xbatcher

from xloader.axes import Int64, Region, Windows
from xloader.drawn import Drawn, collect
from xloader.errors import PlanError


def axis_starts(size: int, *, window: int, stride: int, dim: str = "x") -> Int64:
    """
    Return the start of every full window along one dimension, as xbatcher draws them.

    Parameters
    ----------
    size : int
        Length of the dimension, in elements.
    window : int
        Length of each window, in elements; at most `size`.
    stride : int
        Distance between neighbouring starts, in elements; at least 1.
    dim : str, optional
        Name of the dimension, for messages.

    Returns
    -------
    ndarray of int64, shape (n_windows,)
        Starts in increasing order, ``n_windows == (size - window) // stride + 1``.

    Raises
    ------
    PlanError
        If `window` or `stride` is not positive, or `window` exceeds `size`.

    Examples
    --------
    >>> axis_starts(10, window=4, stride=3)
    array([0, 3, 6])
    """
    if window < 1 or stride < 1:
        msg = (
            f"windows of {window} elements every {stride} along {dim!r} are impossible: both must be "
            "at least 1, so an overlap must be smaller than its window"
        )
        raise PlanError(msg)
    if window > size:
        msg = f"a window of {window} along {dim!r} is longer than the {size} elements there are"
        raise PlanError(msg)
    selectors = xbatcher.BatchSchema(
        SimpleNamespace(sizes={dim: size}),
        input_dims={dim: window},
        input_overlap={dim: window - stride},
        concat_input_bins=False,
    ).selectors
    starts = (patches[0][dim].start for patches in selectors.values())
    return np.fromiter(starts, dtype=np.int64, count=len(selectors))


def is_generator(source: object) -> bool:
    """
    Say whether something is an `xbatcher.BatchGenerator`.

    Parameters
    ----------
    source : object
        Anything.

    Returns
    -------
    bool
        True for a generator or a subclass of it.
    """
    return isinstance(source, xbatcher.BatchGenerator)


def from_generator(generator: xbatcher.BatchGenerator) -> Windows:
    """
    Return the windows of a user's xbatcher generator, in its order.

    Parameters
    ----------
    generator : xbatcher.BatchGenerator
        Only its public properties are used.

    Returns
    -------
    Windows
        One per patch; blocks of `batch_dims` are cut as further dimensions.

    Raises
    ------
    PlanError
        If it has no window.
    """
    selectors = xbatcher.BatchSchema(
        generator.ds,
        generator.input_dims,
        generator.input_overlap,
        generator.batch_dims,
        concat_input_bins=generator.concat_input_dims,
    ).selectors
    patches = [patch for batch in selectors.values() for patch in batch]
    if not patches:
        msg = "the BatchGenerator has no window; choose smaller input_dims or batch_dims"
        raise PlanError(msg)
    dims = tuple(patches[0])
    size = tuple(patches[0][d].stop - patches[0][d].start for d in dims)
    starts = np.array([[p[d].start for d in dims] for p in patches], np.int64)
    whole = [[Region("", 0, generator.ds.sizes[d])] for d in dims]
    return collect(dims, size, Drawn(starts, np.zeros(len(starts), bool)), whole)
