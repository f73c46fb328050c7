"""The place of a store: what may be replaced, where it is built, and the move when it is whole."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xloader.errors import ReadError
from xloader.store.journal import parts_in
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
def building(store: Path, place: Path | None = None) -> Iterator[Path]:
    """
    Make a directory to build a store in, that this process alone may use.

    Parameters
    ----------
    store : Path
        Directory of the store.
    place : Path, optional
        The directory. Default: a hidden one beside the store.

    Yields
    ------
    Path
        Removed if the body fails; an interrupt leaves it, as a signal does, for whoever goes on.

    Raises
    ------
    ReadError
        If another process is building the same store, or there is no room for it.
    """
    partial = place or partial_of(store)
    with _told_when_full(store) as removed:
        partial.mkdir(exist_ok=True)
        with locked(partial, store):
            if parts_in(partial):
                msg = (
                    f"store {str(store)!r} is being converted in parts; finish them and run xl.finalise, or remove "
                    f"{str(partial)!r} first"
                )
                raise ReadError(msg)
            try:
                yield partial
            except Exception:
                removed[0] = _nbytes_below(partial)
                shutil.rmtree(partial, ignore_errors=True)
                raise


@contextmanager
def building_part(store: Path, part: tuple[int, int]) -> Iterator[Path]:
    """
    Make a directory to build a store in, that this process shares with those of the other parts.

    Parameters
    ----------
    store : Path
        Directory of the store.
    part : (int, int)
        Which part of how many.

    Yields
    ------
    Path
        Left as it is if the body fails.

    Raises
    ------
    ReadError
        If another process does the same part, builds the whole store or finalises it, or there is no room.
    """
    partial = partial_of(store)
    with _told_when_full(store):
        partial.mkdir(exist_ok=True)
        with locked(partial, store, alone=False):
            own = partial / "~lock-{}-of-{}".format(*part)
            own.touch()
            with locked(own, store, what=f"doing part {part[0]} of"):
                yield partial


@contextmanager
def finishing(store: Path) -> Iterator[Path]:
    """
    Open the directory in which parts of a store were built, for this process alone.

    Parameters
    ----------
    store : Path
        Directory of the store.

    Yields
    ------
    Path
        Left as it is if the body fails.

    Raises
    ------
    ReadError
        If nothing was built, or is being built.
    """
    partial = partial_of(store)
    if not partial.is_dir():
        msg = f"no part of store {str(store)!r} is there; write them with xl.convert_part first"
        raise ReadError(msg)
    with _told_when_full(store), locked(partial, store):
        yield partial


@contextmanager
def _told_when_full(store: Path) -> Iterator[list[int]]:
    """Turn the errors of a full disk into one that says what to do; the body tells what it removed."""
    removed = [0]
    try:
        yield removed
    except OSError as e:
        if e.errno in _FULL:
            raise _full(store, removed[0], e) from e
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


@contextmanager
def locked(
    path: Path, store: Path, *, alone: bool = True, what: str = "converting to"
) -> Iterator[None]:
    """
    Keep other processes out, as far as the file system knows of locks.

    Parameters
    ----------
    path : Path
        A file or directory.
    store : Path
        Directory of the store that it is part of, for the message.
    alone : bool, optional
        Whether nobody else may be there, rather than nobody who wants to be alone.
    what : str, optional
        What the others do, for the message.

    Yields
    ------
    None
        For as long as it lasts: it ends with the process, however that ends.

    Raises
    ------
    ReadError
        If another process was faster.
    """
    held = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            # what was locked may have become the store, or be gone, before it was
            mine = os.path.samestat(os.fstat(held), path.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        except OSError:  # some network file systems have no locks
            mine = True
        if not mine:
            msg = (
                f"another process is {what} {str(store)!r} at this moment; wait until it is "
                "done, or choose another path"
            )
            raise ReadError(msg)
        yield
    finally:
        os.close(held)


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
