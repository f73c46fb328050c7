"""Lengths of windows, in bins or as text in bp."""

import re
from fractions import Fraction
from typing import Any

import numpy as np

from xloader.errors import PlanError

Length = int | str
"""Bins, or bp as text with a unit: ``"500kb"``."""

_UNITS = {"bp": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000}


def to_bins(length: Length, binsize: int | None) -> int:
    """
    Return a length in bins.

    Parameters
    ----------
    length : int or str
        Bins, or bp as text with a unit: ``"500kb"``, ``"1.5Mb"``.
    binsize : int or None
        Length of a bin, in bp; None for variable bins.

    Returns
    -------
    int
        Number of bins.

    Raises
    ------
    PlanError
        If it is no length, is no multiple of `binsize`, or bins are variable.

    Examples
    --------
    >>> to_bins("1.5Mb", 10_000)
    150
    """
    given: Any = length
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return int(given)
    base_pairs = _base_pairs(given) if isinstance(given, str) else None
    if base_pairs is None:
        msg = f"{length!r} is no length; write bins as a number, or bp as '500kb' or '1.5Mb'"
        raise PlanError(msg)
    if binsize is None:
        msg = f"{length!r} cannot be counted in bins: these bins have no single size; give bins"
        raise PlanError(msg)
    if base_pairs % binsize:
        msg = f"{length!r} is no multiple of the bin size, {binsize} bp; choose one that is"
        raise PlanError(msg)
    return int(base_pairs / binsize)


def _base_pairs(text: str) -> Fraction | None:
    """Return what a text says, exactly; None if it is no length."""
    match = re.fullmatch(r"(\d[\d,_]*(?:\.\d+)?)\s*(bp|kb|mb|gb)", text.strip().lower())
    return match and Fraction(re.sub("[,_]", "", match[1])) * _UNITS[match[2]]


def both_sides(length: Any) -> tuple[Any, Any]:
    """
    Return a length along rows and one along columns.

    Parameters
    ----------
    length : object
        One for both, or a pair.

    Returns
    -------
    tuple of two
        As they were given.

    Raises
    ------
    PlanError
        If it is a sequence of another number.

    Examples
    --------
    >>> both_sides("1Mb"), both_sides((64, 32))
    (('1Mb', '1Mb'), (64, 32))
    """
    if not isinstance(length, tuple | list):
        return length, length
    if len(length) != 2:
        msg = f"{length!r} are {len(length)} lengths; give one, or one for rows and one for columns"
        raise PlanError(msg)
    return length[0], length[1]
