"""How cells, groups of cells and chromosomes are dealt out to parts of given shares, by names and seed alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xloader.errors import PlanError, SchemaError
from xloader.keyed import key_of, mixed

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_STEPS = 2**14
_TRIES = 64
_ROUNDING = 1e-9


def deal(weights: Floats, shares: Sequence[float], seed: int) -> Int64:
    """
    Deal units of different weights out to parts.

    Of up to 64 random orders the best is taken; in each, every unit goes where it leaves the part
    least full (Graham's list scheduling; for equal shares, parts differ by one unit at most). Of
    several weights, such as the cells of each class, each is a share of its total, and how full it
    leaves a part counts in proportion to what the unit brings.

    Parameters
    ----------
    weights : ndarray of float64, shape (n,) or (n, n_weights)
        Such as lengths of chromosomes.
    shares : sequence of float
        What each part is to get; the sum is 1.
    seed : int
        Which random orders.

    Returns
    -------
    ndarray of int64, shape (n,)
        The part of each unit.

    Raises
    ------
    PlanError
        If there are fewer units than parts.

    Examples
    --------
    >>> deal(np.array([5.0, 4, 3, 2, 2]), [0.5, 0.5], seed=0).tolist()
    [1, 0, 1, 0, 0]
    """
    n, k = len(weights), len(shares)
    if n < k:
        msg = f"{n} chromosomes or groups cannot be dealt out to {k} parts; ask for at most {n}"
        raise PlanError(msg)
    each = weights.reshape(n, -1)
    each = each / each.sum(axis=0)
    wanted = np.asarray(shares)[:, None]
    best, least = np.zeros(n, np.int64), np.inf
    for attempt in range(max(1, min(_TRIES, _STEPS // n))):
        part, load, empty = np.zeros(n, np.int64), np.zeros((k, each.shape[1])), set(range(k))
        for done, unit in enumerate(
            np.argsort(mixed(np.arange(n), key_of(seed, attempt))).tolist()
        ):
            # no part stays empty
            free = sorted(empty) if n - done == len(empty) else list(range(k))
            full = ((load[free] + each[unit]) / wanted[free]) @ each[unit]
            part[unit] = at = free[int(full.argmin())]
            load[at] += each[unit]
            empty.discard(at)
        off = np.abs(load - wanted).max(axis=0).mean()
        if off < least:
            best, least = part, off
    return best


def cut(names: npt.NDArray[Any], classes: Int64, shares: Sequence[float], seed: int) -> Int64:
    """
    Deal cells out one by one: in the order of random numbers that their names decide.

    Parameters
    ----------
    names : ndarray, shape (n,)
        Of the cells, each once.
    classes : ndarray of int64, shape (n,)
        Number of the class of each, of which every part gets its share.
    shares : sequence of float
        What each part is to get; the sum is 1.
    seed : int
        Which random numbers.

    Returns
    -------
    ndarray of int64, shape (n,)
        The part of each cell.

    Raises
    ------
    SchemaError
        If two cells have one name.

    Examples
    --------
    >>> cut(np.array(list("abcd")), np.array([0, 0, 1, 1]), [0.5, 0.5], seed=0).tolist()
    [0, 1, 0, 1]
    """
    index = pd.Index(names)
    hashed = pd.util.hash_array(index.to_numpy(), categorize=False).astype(np.int64)
    if not pd.Index(hashed).is_unique and not index.is_unique:
        twice = index[index.duplicated()].unique()
        msg = (
            f"{len(twice):,} names of cells occur more than once: {twice[:3].tolist()}; what is dealt out follows "
            "from names: give each cell a name of its own, such as that of its file before it"
        )
        raise SchemaError(msg)
    order = np.lexsort([mixed(hashed, key_of(seed)), classes])
    table = allot(np.bincount(classes), shares)
    part = np.empty(len(names), np.int64)
    part[order] = np.repeat(np.tile(np.arange(len(shares)), len(table)), table.ravel())
    return part


def allot(counts: Int64, shares: Sequence[float]) -> Int64:
    """
    Divide classes into whole numbers of cells.

    Each is rounded up or down; what is rounded up is, class by class, what most lacks so far.

    Parameters
    ----------
    counts : ndarray of int64, shape (n_classes,)
        Cells of each class.
    shares : sequence of float
        What each part is to get; the sum is 1.

    Returns
    -------
    ndarray of int64, shape (n_classes, n_parts)
        Less than one cell from ``counts[c] * shares[p]`` each.

    Examples
    --------
    >>> allot(np.array([5, 5]), [0.5, 0.5]).tolist()
    [[3, 2], [2, 3]]
    """
    wanted = np.outer(counts, shares)
    table = np.floor(wanted + _ROUNDING).astype(np.int64)
    lack = np.zeros(len(shares))
    for row, exact, n in zip(table, wanted, counts.tolist(), strict=True):
        lack += exact - row
        up = np.flatnonzero(exact - row > _ROUNDING)
        up = up[np.argsort(-lack[up], kind="stable")][: n - row.sum()]
        row[up] += 1
        lack[up] -= 1
    return table
