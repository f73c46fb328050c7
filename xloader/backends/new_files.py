"""HDF5 files and zarr folders that appear whole or not at all."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from xloader.errors import ReadError, XloaderError
from xloader.store.building import building, check_place, publish


@contextmanager
def new_file(path: str | Path, *, overwrite: bool) -> Iterator[h5py.File]:
    """
    Write an HDF5 file beside its final place and move it there when it is whole.

    Parameters
    ----------
    path : str or Path
        Where the file goes.
    overwrite : bool
        Whether a file that is there already is replaced.

    Yields
    ------
    h5py.File
        Open for writing.

    Raises
    ------
    ReadError
        If the file exists and may not be replaced, its folder does not exist, or the disk is full.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        msg = f"{str(path)!r} exists; pass overwrite=True to replace it, or choose another path"
        raise ReadError(msg)
    if not path.parent.is_dir():
        msg = f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first"
        raise ReadError(msg)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with h5py.File(partial, "w") as f:
            yield f
        partial.replace(path)
    except XloaderError:
        raise
    except OSError as e:
        msg = f"cannot write {str(path)!r}: {e}; make room, or choose another folder"
        raise ReadError(msg) from e
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(
    path: Path, *, overwrite: bool, known: Callable[[Path], bool], what: str
) -> Iterator[Path]:
    """
    Write a folder beside its final place and move it there when it is whole.

    Parameters
    ----------
    path : Path
        Where the folder goes.
    overwrite : bool
        Whether one that is there already is replaced.
    known : callable
        Says of a folder whether it may be replaced, being of the same kind.
    what : str
        What that kind is called.

    Yields
    ------
    Path
        An empty folder.

    Raises
    ------
    ReadError
        If something is there that may not be replaced, its parent does not exist, another process
        is writing the same, or the disk is full.
    """
    check_place(path, overwrite=overwrite, known=known, what=what)
    with building(path) as partial:
        for left in partial.iterdir():  # by a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield partial
        publish(path)
