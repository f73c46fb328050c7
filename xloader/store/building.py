"""The place of a store: what may be replaced, where it is built, and the move when it is whole."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xloader.errors import ReadError
from xloader.store.layout import describe, partial_of, root_attributes

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says when no more can be written: to a disk, by a user, to a file."""


def _is_store(folder: Path) -> bool:
    return "xloader" in root_attributes(folder)


def check_place(
    store: Path,
    *,
    overwrite: bool,
    known: Callable[[Path], bool] = _is_store,
    what: str = "stores",
) -> None:
    """
    Refuse a place where a store cannot go, and bring back an old one that was on its way out.

    Parameters
    ----------
    store : Path
        Directory of the store.
    overwrite : bool
        Whether a store that is there may be replaced. Anything else is never replaced: it may be
        all that somebody has.
    known : callable, optional
        Says of a folder whether it may be replaced. Default: if it is a store.
    what : str, optional
        What those are called.

    Raises
    ------
    ReadError
        If something is there, or its parent is not.
    """
    if not store.parent.is_dir():
        msg = (
            f"cannot write {str(store)!r}: there is no folder {str(store.parent)!r}; make it first"
        )
        raise ReadError(msg)
    if not store.exists():
        if _old_of(store).is_dir():  # killed between the two moves of `publish`
            _old_of(store).rename(store)
        else:
            return
    if not overwrite:
        msg = f"{str(store)!r} exists; pass overwrite=True to replace it, or choose another path"
        raise ReadError(msg)
    empty = store.is_dir() and next(store.iterdir(), None) is None
    if not empty and not known(store):
        msg = (
            f"{str(store)!r} is {describe(store)}, and overwrite=True replaces only {what}; "
            "choose another path, or remove it yourself"
        )
        raise ReadError(msg)


@contextmanager
def building(store: Path) -> Iterator[Path]:
    """
    Make a directory to build a store in, that this process alone may use.

    Parameters
    ----------
    store : Path
        Directory of the store.

    Yields
    ------
    Path
        Removed if the body fails; an interrupt leaves it, as a signal does, for whoever goes on.

    Raises
    ------
    ReadError
        If another process is building the same store, or there is no room for it.
    """
    partial, written = partial_of(store), 0
    try:
        partial.mkdir(exist_ok=True)
        # held by the open directory, so that it ends with the process, however that ends
        directory = os.open(partial, os.O_RDONLY)
        try:
            _lock(directory, partial, store)
            try:
                yield partial
            except Exception:
                written = _nbytes_below(partial)
                shutil.rmtree(partial, ignore_errors=True)
                raise
        finally:
            os.close(directory)
    except OSError as e:
        if e.errno in _FULL:
            raise _full(store, written, e) from e
        raise


def _nbytes_below(folder: Path) -> int:
    files = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return sum(file.stat().st_size for file in files)


def _full(store: Path, written: int, error: OSError) -> ReadError:
    old = "; the old store is as it was, and its room is needed until the new one is complete"
    free = shutil.disk_usage(store.parent).free
    return ReadError(
        f"cannot write {str(store)!r}: {error.strerror}; {written / 1e6:.1f} MB of it were written and are "
        f"removed again, {free / 1e6:.1f} MB are free there now, and it takes more than that (with shuffle=True "
        "or a matrix stored by columns also room to put rows in order): make room, or choose a path on a "
        f"larger disk{old * store.exists()}"
    )


def _lock(directory: int, partial: Path, store: Path) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # what was locked may have become the store, or be gone, before it was
        mine = os.path.samestat(os.fstat(directory), partial.stat())
    except (BlockingIOError, FileNotFoundError):
        mine = False
    except OSError:  # some network file systems have no locks
        mine = True
    if not mine:
        msg = (
            f"another process is converting to {str(store)!r} at this moment; wait until it is "
            "done, or choose another path"
        )
        raise ReadError(msg)


def publish(store: Path) -> None:
    """
    Move a complete store to its place; an old one makes room at the last moment.

    Parameters
    ----------
    store : Path
        Directory of the store.
    """
    partial, old = partial_of(store), _old_of(store)
    if not store.exists():
        partial.rename(store)
        return
    shutil.rmtree(old, ignore_errors=True)
    store.rename(old)
    try:
        partial.rename(store)
    except OSError:
        old.rename(store)
        raise
    shutil.rmtree(old)


def _old_of(store: Path) -> Path:
    return store.parent / f".{store.name}.old"
