"""HDF5 files that are reopened by path: one handle per process and file, never pickled."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.arrays import Key, StoredArray
from xloader.backends import hdf5_chunks
from xloader.errors import ReadError, XloaderError

_MAX_OPEN = 32
_handles: OrderedDict[tuple[int, str, int], h5py.File] = OrderedDict()


def open_hdf5(path: str) -> h5py.File:
    """
    Return this process's handle of an HDF5 file, opened for reading.

    Parameters
    ----------
    path : str
        Path of the file.

    Returns
    -------
    h5py.File
        Shared by all callers of this process; do not close it.

    Raises
    ------
    ReadError
        If there is no such file, or it is not a whole HDF5 file.
    """
    try:
        changed = Path(path).stat().st_mtime_ns
    except OSError as e:
        msg = f"cannot read {path!r}: {e.strerror}; check the path"
        raise ReadError(msg) from e
    # keyed by process: a handle inherited through fork shares its file position with the parent
    key = (os.getpid(), path, changed)
    handle = _handles.get(key)
    if handle is None:
        try:
            handle = h5py.File(path, "r")
        except OSError as e:
            msg = (
                f"cannot read {path!r} ({Path(path).stat().st_size} bytes) as HDF5: it is truncated, "
                f"damaged or of another format ({e}); get a new copy of the file"
            )
            raise ReadError(msg) from e
        _handles[key] = handle
        while len(_handles) > _MAX_OPEN:
            _handles.popitem(last=False)
    return handle


def close_hdf5(path: str) -> None:
    """
    Drop this process's handle of a file, so that it can be written; a later read opens it again.

    Parameters
    ----------
    path : str
        Path of the file, as it was opened.
    """
    for key in [k for k in list(_handles) if k[:2] == (os.getpid(), path)]:
        _handles.pop(key, None)


@contextmanager
def damage_told(what: str) -> Iterator[None]:
    """
    Turn what h5py raises on damaged bytes, of several kinds, into a ReadError.

    Parameters
    ----------
    what : str
        What is read, for the message.

    Yields
    ------
    None
        Errors of this package pass unchanged.

    Raises
    ------
    ReadError
        If the body meets damage.
    """
    try:
        yield
    except XloaderError:
        raise
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError) as e:
        msg = f"cannot read {what}: {e}; the file is truncated or damaged, get a new copy"
        raise ReadError(msg) from e


def text(value: Any) -> str:
    """
    Return an attribute as a string, which some writers store as bytes.

    Parameters
    ----------
    value : str or bytes
        Value of an HDF5 attribute.

    Returns
    -------
    str
        Decoded as UTF-8.
    """
    return value.decode() if isinstance(value, bytes) else str(value)


def read(path: str, name: str, key: Any = ()) -> npt.NDArray[Any]:
    """
    Read a part of one HDF5 dataset.

    Parameters
    ----------
    path : str
        Path of the file.
    name : str
        Path of the dataset inside it.
    key : slice, tuple or int, optional
        What h5py accepts as an index. Default: everything.

    Returns
    -------
    ndarray
        The values as stored.

    Raises
    ------
    ReadError
        If the bytes cannot be read or decoded.
    """
    keys = key if isinstance(key, tuple) else (key,)
    with damage_told(f"{name!r} of {path!r}"):
        dataset = open_hdf5(path)[name]
        box = _box_of(keys, dataset.shape) if hdf5_chunks.decodable(dataset) else None
        if box is None:
            return np.asarray(dataset[key])
        single = tuple(0 if isinstance(k, int) else slice(None) for k in keys)
        return np.asarray(hdf5_chunks.read_box(dataset, box)[single])


def read_ranges(
    path: str, name: str, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """
    Read several ranges of a one-dimensional dataset; each of its chunks is decoded once.

    Parameters
    ----------
    path : str
        Path of the file.
    name : str
        Path of the dataset inside it.
    starts, stops : ndarray of int64, shape (m,)
        Half-open ranges.

    Returns
    -------
    ndarray
        All ranges, joined, as stored.

    Raises
    ------
    ReadError
        If the bytes cannot be read or decoded.
    """
    with damage_told(f"{name!r} of {path!r}"):
        return hdf5_chunks.read_ranges(open_hdf5(path)[name], starts, stops)


def _box_of(keys: tuple[Any, ...], shape: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """Return the bounds that an index means, or None if it is no box."""
    if len(keys) > len(shape) or not all(isinstance(k, int | slice) for k in keys):
        return None
    box = []
    k: Any
    for k, n in zip((*keys, *[slice(None)] * (len(shape) - len(keys))), shape, strict=True):
        if isinstance(k, int):
            box.append((range(n)[k], range(n)[k] + 1))
        else:
            start, stop, step = k.indices(n)
            if step != 1:
                return None
            box.append((start, max(start, stop)))
    return box


class HDF5Array(StoredArray):
    """
    A dense HDF5 dataset.

    Parameters
    ----------
    path : str
        Path of the file.
    name : str
        Path of the dataset inside it.
    """

    def __init__(self, path: str, name: str) -> None:
        dataset = open_hdf5(path)[name]
        super().__init__(dataset.shape, dataset.dtype.newbyteorder("="))
        self.path = path
        self.name = name
        self.chunks: tuple[int, ...] = dataset.chunks or super().unit

    @property
    @override
    def unit(self) -> tuple[int, ...]:  # numpydoc ignore=GL08
        return self.chunks

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        return read(self.path, self.name, key).astype(self.dtype, copy=False)
