"""How much memory there is, asked before it is taken: what a file says of its own size may be wrong."""

import os
from contextlib import suppress
from pathlib import Path

from dask.utils import format_bytes

from xloader.errors import ReadError

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def available_memory() -> int:
    """
    Return the memory that this process may still take.

    Returns
    -------
    int
        Bytes: what the system can give without swapping, at most the limit of a control group.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, IndexError, ValueError):  # Linux only; it counts caches as free
        lines = Path("/proc/meminfo").read_text(encoding="ascii").split("MemAvailable:")
        free = 1024 * int(lines[1].split()[0])
    with suppress(OSError, ValueError):  # "max": no limit
        free = min(free, int(_CGROUP.read_text(encoding="ascii")))
    return free


def require_memory(nbytes: int, what: str, remedy: str) -> None:
    """
    Refuse what does not fit into memory, before any is taken.

    Parameters
    ----------
    nbytes : int
        Bytes wanted.
    what : str
        What for, for the message.
    remedy : str
        What to do instead.

    Raises
    ------
    ReadError
        If there is less.

    Examples
    --------
    >>> require_memory(10**18, "a matrix", "take a part")
    Traceback (most recent call last):
    xloader.errors.ReadError: a matrix takes 888.18 PiB of memory, and there is ...; take a part
    """
    free = available_memory()
    if nbytes > free:
        msg = (
            f"{what} takes {format_bytes(nbytes)} of memory, and there is {format_bytes(free)} of it; "
            f"{remedy}"
        )
        raise ReadError(msg)
