"""Threads of this process: work that releases the interpreter lock, cut into parts."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Kind = Literal["decode", "gather"]

_local = threading.local()
_pools: dict[tuple[int, Kind], ThreadPoolExecutor] = {}


def n_cpus() -> int:
    """
    Return the number of processors that this process may use.

    Returns
    -------
    int
        At least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def n_threads() -> int:
    """
    Return into how many parts work is cut.

    Returns
    -------
    int
        Between 1 and 8: memory is full before that many threads gather.
    """
    return min(n_cpus(), 8)


def cut(n: int, parts: int) -> Iterator[tuple[int, int]]:
    """
    Cut ``range(n)`` into runs of equal length.

    Parameters
    ----------
    n : int
        What is cut.
    parts : int
        Into how many runs.

    Returns
    -------
    iterator of (int, int)
        Half-open bounds; fewer runs than `parts` if `n` is smaller.

    Examples
    --------
    >>> list(cut(5, 2))
    [(0, 2), (2, 5)]
    """
    parts = max(1, min(n, parts))
    return pairwise(n * k // parts for k in range(parts + 1))


def run(kind: Kind, function: Callable[..., T], parts: Sequence[tuple[Any, ...]]) -> list[T]:
    """
    Call a function once per part, on several threads; the caller's own does the first.

    Parameters
    ----------
    kind : {"decode", "gather"}
        Which threads: blocks that are read ahead must not hold up the batch that is waited for.
    function : callable
        Releases the interpreter lock while it works.
    parts : sequence of tuple
        Its arguments.

    Returns
    -------
    list
        What each call returned.

    Examples
    --------
    >>> run("gather", pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    started = getattr(_local, "started", None)
    if started is not None:
        started()
        return [function(*part) for part in parts]
    others = [_pool(kind).submit(function, *part) for part in parts[1:]]
    try:
        first = [function(*part) for part in parts[:1]]
    finally:
        rest = [other.exception() for other in others]  # nothing goes on writing after this call
    for error in rest:
        if error is not None:
            raise error
    return [*first, *(other.result() for other in others)]


@contextmanager
def alone(started: Callable[[], None]) -> Iterator[None]:
    """
    Let this thread do by itself what `run` would cut, because another one has work of its own.

    Parameters
    ----------
    started : callable
        Called just before the interpreter lock is released for the first time.

    Yields
    ------
    None
        For as long as it lasts.
    """
    _local.started = started
    try:
        yield
    finally:
        del _local.started


def _pool(kind: Kind) -> ThreadPoolExecutor:
    """Return threads of this process: those of a parent do not survive a fork."""
    key = (os.getpid(), kind)
    pool = _pools.get(key)
    if pool is None:
        made = ThreadPoolExecutor(n_threads(), thread_name_prefix=f"xloader-{kind}")
        pool = _pools.setdefault(key, made)
    return pool
