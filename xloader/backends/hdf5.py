"""HDF5 files that are reopened by path: one handle per process and file, never pickled."""

import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.backends import hdf5_chunks
from xloader.backends.elements import Int64, Leaf, Tree
from xloader.errors import ReadError, SchemaError, XloaderError
from xloader.unchanged import Mark, Unchanged

_MAX_OPEN = 32
_DAMAGE = OSError | RuntimeError | KeyError | UnicodeDecodeError
_handles: OrderedDict[tuple[int, str, Mark], h5py.File] = OrderedDict()


class HDF5File(Tree):
    """
    An HDF5 file as it is when this object is made; who reads it later gets that, or an error.

    Holds no handle, so that it pickles and survives `fork`; each process opens the file once.

    Parameters
    ----------
    path : str
        Path of the file.

    Raises
    ------
    ReadError
        If there is no such file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._then = Unchanged([path])

    @property
    def handle(self) -> h5py.File:
        """
        Return this process's handle, opened for reading.

        Returns
        -------
        h5py.File
            Shared by all callers of this process; do not close it.

        Raises
        ------
        ReadError
            If it is not a whole HDF5 file, or no more what it was.
        """
        mark = self._then.marks[self.path]
        # keyed by process: a handle inherited through fork shares its file position with the parent
        key = (os.getpid(), self.path, mark)
        handle = _handles.get(key)
        if handle is None:
            _close(self.path)  # HDF5 would share what one of an earlier state remembers
            try:
                handle = h5py.File(self.path, "r")
            except OSError as e:
                self._require()
                msg = (
                    f"cannot read {self.path!r} ({mark[1]} bytes) as HDF5: it is truncated, damaged "
                    f"or of another format ({e}); get a new copy of the file"
                )
                raise ReadError(msg) from e
            self._require()
            _handles[key] = handle
            while len(_handles) > _MAX_OPEN:
                _handles.popitem(last=False)
        return handle

    @contextmanager
    @override
    def reading(self, name: str | None = None) -> Iterator[h5py.File]:
        """
        Read in the body; what h5py raises on damaged bytes, of several kinds, becomes a ReadError.

        Parameters
        ----------
        name : str, optional
            What is read, for the message. Default: the file.

        Yields
        ------
        h5py.File
            As `handle`.

        Raises
        ------
        ReadError
            If the body meets damage, or the file was replaced, changed or removed.
        """
        try:
            yield self.handle
        except Exception as e:
            self._require()
            if isinstance(e, XloaderError) or not isinstance(e, _DAMAGE):
                raise
            what = repr(self.path) if name is None else f"{name!r} of {self.path!r}"
            msg = f"cannot read {what}: {e}; the file is truncated or damaged, get a new copy"
            raise ReadError(msg) from e
        self._require()

    @override
    def children(self, name: str = "") -> list[str]:  # numpydoc ignore=GL08
        try:
            element = self._element(name)
        except KeyError:
            return []
        return sorted(element) if isinstance(element, h5py.Group) else []

    @override
    def attr(self, name: str, key: str) -> Any:  # numpydoc ignore=GL08
        element = self._element(name)
        value = element.attrs.get(key)
        if isinstance(value, h5py.Reference):
            return self.handle[value].name
        if isinstance(value, np.ndarray):
            return [text(v) if isinstance(v, bytes) else v for v in value.tolist()]
        if isinstance(value, h5py.Empty):
            return []
        return text(value) if isinstance(value, bytes) else value

    @override
    def leaf(self, name: str) -> Leaf | None:  # numpydoc ignore=GL08
        element = self._element(name)
        return HDF5Leaf(self, name, element) if isinstance(element, h5py.Dataset) else None

    @override
    def close(self) -> None:  # numpydoc ignore=GL08
        close_hdf5(self.path)

    def _element(self, name: str) -> Any:
        """Return a group or dataset of this very file; a file names others without being asked."""
        element: Any = self.handle
        for part in filter(None, name.split("/")):
            link = element.get(part, getlink=True)
            target = link.filename if isinstance(link, h5py.ExternalLink) else None
            if target is None:
                element = element[part]
                other = element.file.filename
                target = None if other == self.handle.filename else other
            if target is None and isinstance(element, h5py.Dataset):
                target = next(_elsewhere(element), None)
            if target is not None:
                msg = (
                    f"`{name}` of {self.path!r} lies in another file, {text(target)!r}, which is not "
                    "followed, as files are not trusted; write the file again with the values in it"
                )
                raise ReadError(msg)
        return element

    def _require(self) -> None:
        try:
            self._then.require()
        except ReadError:
            _close(self.path)  # what it remembers may be of another state
            raise


def _elsewhere(dataset: h5py.Dataset) -> Iterator[str]:
    """Yield the other files that the values of a dataset lie in."""
    yield from (name for name, _, _ in dataset.external or ())
    if dataset.is_virtual:
        yield from (s.file_name for s in dataset.virtual_sources() if s.file_name != ".")


def _close(path: str) -> None:
    """Close a file that has changed, also for those that still read it."""
    for key in [k for k in list(_handles) if k[:2] == (os.getpid(), path)]:
        if handle := _handles.pop(key, None):
            handle.close()


def close_hdf5(path: str) -> None:
    """
    Drop this process's handles of a file, so that it can be written.

    Parameters
    ----------
    path : str
        Path of the file, as it was opened.
    """
    for key in [k for k in list(_handles) if k[:2] == (os.getpid(), path)]:
        _handles.pop(key, None)


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


def require_whole(file: HDF5File, names: Iterable[str]) -> list[Leaf]:
    """
    Return datasets, and refuse those whose values lie in other files, or were never written.

    Parameters
    ----------
    file : HDF5File
        The file.
    names : iterable of str
        Paths of datasets inside it.

    Returns
    -------
    list of Leaf
        One for each name.

    Raises
    ------
    ReadError
        If some chunks were never written, which would read as zeros, or it lies in another file.
    SchemaError
        If it is a group.
    """
    found = []
    for name in names:
        leaf = file.leaf(name)
        if leaf is None:
            msg = f"`{name}` of {file.path!r} is a group, not an array; get a new copy of the file"
            raise SchemaError(msg)
        written, n_chunks = chunks_written(file.handle[name])
        if written < n_chunks:
            msg = (
                f"`{name}` of {file.path!r} has {written} of its {n_chunks} chunks: the file was not "
                "written to its end, or is damaged; get a new copy"
            )
            raise ReadError(msg)
        found.append(leaf)
    return found


def chunks_written(dataset: h5py.Dataset) -> tuple[int, int]:
    """
    Count the chunks of a dataset; those that were never written read as zeros.

    Parameters
    ----------
    dataset : h5py.Dataset
        With chunks or without, which counts as one.

    Returns
    -------
    tuple of int
        How many were written, and how many there should be.
    """
    if dataset.chunks:
        wanted = [-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)]
        return dataset.id.get_num_chunks(), math.prod(wanted)
    return int(dataset.id.get_storage_size() > 0), int(dataset.size > 0)


def read(file: HDF5File, name: str, key: Any = ()) -> npt.NDArray[Any]:
    """
    Read a part of one HDF5 dataset.

    Parameters
    ----------
    file : HDF5File
        The file.
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
        If the bytes cannot be read or decoded, or the file is not what it was.
    """
    keys = key if isinstance(key, tuple) else (key,)
    with file.reading(name) as opened:
        dataset = opened[name]
        box = _box_of(keys, dataset.shape) if hdf5_chunks.decodable(dataset) else None
        if box is None:
            return np.asarray(dataset[key])
        single = tuple(0 if isinstance(k, int) else slice(None) for k in keys)
        return np.asarray(hdf5_chunks.read_box(dataset, box)[single])


def read_ranges(
    file: HDF5File, name: str, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """
    Read several ranges of a one-dimensional dataset; each of its chunks is decoded once.

    Parameters
    ----------
    file : HDF5File
        The file.
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
        If the bytes cannot be read or decoded, or the file is not what it was.
    """
    with file.reading(name) as opened:
        return hdf5_chunks.read_ranges(opened[name], starts, stops)


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


class HDF5Leaf(Leaf):
    """
    An HDF5 dataset.

    Parameters
    ----------
    file : HDF5File
        The file.
    name : str
        Path of the dataset inside it.
    dataset : h5py.Dataset
        The same, open.
    """

    def __init__(self, file: HDF5File, name: str, dataset: h5py.Dataset) -> None:
        dtype = dataset.dtype.newbyteorder("=")
        if h5py.check_string_dtype(dataset.dtype) is not None:
            dtype = np.dtype(object)
        elif dtype.kind == "O":  # references and lists, which nothing here reads
            dtype = np.dtype("V")
        super().__init__(file.path, name, dataset.shape, dtype, dataset.chunks)
        self.file = file

    @override
    def read(self, key: Any = ()) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        if self.is_text:
            with self.file.reading(self.name) as opened:
                return np.asarray(opened[self.name].asstr("utf-8")[key], object)
        return read(self.file, self.name, key).astype(self.dtype, copy=False)

    @override
    def read_ranges(self, starts: Int64, stops: Int64) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        values = read_ranges(self.file, self.name, starts, stops)
        return values.astype(self.dtype, copy=False)

    @override
    def absent(self) -> list[tuple[int, int]]:  # numpydoc ignore=GL08
        with self.file.reading(self.name) as opened:
            stored, n = opened[self.name].id, self.shape[0]
            if self.chunks is None:
                return [(0, n)] if n and not stored.get_storage_size() else []
            length, n_written = self.chunks[0], stored.get_num_chunks()
            if n_written == -(-n // length):
                return []
            infos = map(stored.get_chunk_info, range(n_written))
            begins = sorted(info.chunk_offset[0] for info in infos)
        ends = [0, *(k for a in begins for k in (a, min(a + length, n))), n]
        return [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if a < b]
