"""Every error and warning of xloader; this module imports nothing of the package."""

import sys
import warnings

_BETWEEN = {"dask", "numpy", "xarray", "xloader"}
"""Packages whose frames lie between a user's line and a warning about it."""


class XloaderError(Exception):
    """Base of every error that xloader raises on purpose."""


class SchemaError(XloaderError, ValueError):
    """A file or Dataset lacks a variable, dimension, label or dtype that was asked for."""


class PlanError(XloaderError, ValueError):
    """The windows, batches or memory asked for are impossible with these data."""


class ReadError(XloaderError, OSError):
    """A file, store or block cannot be read or decoded."""


class TransformError(XloaderError, RuntimeError):
    """A transform returned something that is not a batch of the same samples."""


class StateError(XloaderError, ValueError):
    """A saved state belongs to other data or to another plan."""


class XloaderWarning(UserWarning):
    """Base of every warning that xloader issues."""


class PerformanceWarning(XloaderWarning):
    """Something works, but costs far more time or memory than another way to ask for it."""


def warn(message: str, category: type[Warning] = XloaderWarning) -> None:
    """
    Issue a warning that points at the user's own line, outside the packages of the chain.

    Parameters
    ----------
    message : str
        What is slow or odd, and what to do instead.
    category : type of Warning, optional
        Class of the warning. Default: `XloaderWarning`.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn("slow", PerformanceWarning)
    >>> caught[0].category.__name__
    'PerformanceWarning'
    """
    frame, level = sys._getframe(1), 2  # `skip_file_prefixes` exists from Python 3.12 on
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)  # noqa: TID251
