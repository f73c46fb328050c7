"""Assertions that say where: epoch, step and samples."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SHOWN = 8


def that(holds: bool, message: str) -> None:  # noqa: FBT001 - reads as a sentence
    """
    Raise what says where a law is broken.

    Parameters
    ----------
    holds : bool
        Whether it is kept.
    message : str
        Where, what was found, and what should be.

    Raises
    ------
    AssertionError
        Also where Python runs without assertions.
    """
    if not holds:
        raise AssertionError(message)


def same(found: Sequence[int], expected: Sequence[int], where: str) -> None:
    """
    Compare samples, and say where they begin to differ.

    Parameters
    ----------
    found, expected : sequence of int
        Sample numbers in order.
    where : str
        Epoch and step.

    Raises
    ------
    AssertionError
        If they differ.
    """
    if found != expected:
        pairs = itertools.zip_longest(found, expected)
        k = next(k for k, (a, b) in enumerate(pairs) if a != b)
        msg = f"{where}: samples {few(found[k:])} at place {k}, instead of {few(expected[k:])}"
        raise AssertionError(msg)


def few(ids: npt.ArrayLike) -> str:
    """
    Return some samples as text.

    Parameters
    ----------
    ids : array-like of int
        Sample numbers.

    Returns
    -------
    str
        At most 8 of them.
    """
    shown = np.asarray(ids).tolist()
    return f"{shown[:_SHOWN]}{'...' if len(shown) > _SHOWN else ''}"
