"""Arrays of numpy in .npy and .npz files: mapped where they lie, and never unpickled."""

import math
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.arrays import Key, StoredArray
from xloader.backends.sizes import require_memory
from xloader.errors import ReadError, SchemaError, XloaderError
from xloader.unchanged import Unchanged

Array = npt.NDArray[Any]

_DEFLATE_RATIO = 1032
"""Bytes that one byte of deflate can stand for at most."""
_lock = threading.Lock()
_DAMAGE = (OSError, EOFError, ValueError, SyntaxError, struct.error, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class Member:
    """One array of a file: where it is, and what its head says."""

    path: str
    """The file."""
    name: str
    """Name of the array."""
    entry: str | None
    """Name in the archive; None for a file of its own."""
    shape: tuple[int, ...]
    """Shape of the array."""
    dtype: np.dtype[Any]
    """Type of the array, as stored."""
    order: str
    """``"C"`` or ``"F"``."""
    head_nbytes: int
    """Bytes before the values."""
    offset: int | None
    """First byte of the values in the file; None where they are compressed."""

    @property
    def nbytes(self) -> int:
        """
        Return the bytes of the values.

        Returns
        -------
        int
            Decompressed.
        """
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def what(self) -> str:
        """
        Name the array in messages.

        Returns
        -------
        str
            With its file.
        """
        return f"array {self.name!r} of {self.path!r}" if self.entry else f"{self.path!r}"

    def load(self) -> Array:
        """
        Return the values, mapped where they lie as they are, and else read into memory.

        Returns
        -------
        ndarray
            Read-only if it is mapped.

        Raises
        ------
        ReadError
            If they are damaged, or do not fit into memory.
        """
        if not self.nbytes:
            return np.empty(self.shape, self.dtype)
        if self.offset is not None:
            with reading(self.what):
                order: Any = self.order
                return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)
        remedy = (
            "write it with `numpy.savez` or `numpy.save`, uncompressed: then it is read in parts"
        )
        require_memory(self.nbytes, self.what, remedy)
        with reading(self.what), zipfile.ZipFile(self.path) as archive:
            values = np.empty(math.prod(self.shape), self.dtype)
            with archive.open(self.entry or "") as file:
                file.read(self.head_nbytes)
                _fill(file, values.view(np.uint8))
            return values.reshape(self.shape, order="F" if self.order == "F" else "C")


class NpyArray(StoredArray):
    """
    A dense array of a .npy or .npz file.

    Parameters
    ----------
    member : Member
        Which one.
    then : Unchanged
        The file, as it is.
    """

    def __init__(self, member: Member, then: Unchanged) -> None:
        super().__init__(member.shape, member.dtype.newbyteorder("="))
        self.member = member
        self._then = then

    @cached_property
    def _values(self) -> Array:
        return self.member.load()

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_values"}

    @override
    def _raw(self, key: Key) -> Array:
        self._then.require()  # a file that was cut must not be touched where it is mapped
        with self._then.reading():
            with _lock:  # read once, by whichever thread asks first
                values = self._values
            return np.array(values[key], self.dtype)


def members_of(path: Path) -> dict[str, Member]:
    """
    Read the heads of all arrays of a .npy or .npz file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict of str to Member
        By the names of the arrays; of a ``.npy`` file by the name of the file.

    Raises
    ------
    ReadError
        If the file is damaged, or an array is larger than what there is of it.
    SchemaError
        If it holds pickled objects, or names that leave its folder.
    """
    with reading(repr(str(path))), path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            member = _member(path, path.stem, None, file, path.stat().st_size, 0)
            return {member.name: member}
    found: dict[str, Member] = {}
    with reading(repr(str(path))), zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for info in archive.infolist():
            name = _safe(path, info, found)
            most = info.compress_size * (_DEFLATE_RATIO if info.compress_type else 1)
            if info.file_size > most:
                msg = (
                    f"{info.filename!r} of {str(path)!r} says it has {info.file_size} bytes, which "
                    f"{info.compress_size} compressed ones cannot hold; get a new copy of the file"
                )
                raise ReadError(msg)
            offset = None if info.compress_type else _offset(raw, info)
            with archive.open(info) as file:
                found[name] = _member(path, name, info.filename, file, info.file_size, offset)
    return found


def _safe(path: Path, info: zipfile.ZipInfo, found: dict[str, Member]) -> str:
    """Return the name of an array, or refuse it."""
    name = info.filename.removesuffix(".npy")
    if not name or name.startswith("/") or {"..", ""} & {*name.split("/")} or {"\\", ":"} & {*name}:
        msg = (
            f"{str(path)!r} holds {info.filename!r}, a name that leads out of its folder; no honest "
            "writer makes such files: do not use it"
        )
        raise SchemaError(msg)
    packing = info.compress_type in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    if name in found or info.filename == name or info.flag_bits & 1 or not packing:
        msg = (
            f"{str(path)!r} holds {info.filename!r}, which is there twice, is encrypted, packed in a way "
            "that numpy does not know, or no .npy array; write the file with `numpy.savez` or `scipy.sparse.save_npz`"
        )
        raise SchemaError(msg)
    return name


def _offset(raw: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Return the first byte of what an archive stores as it is."""
    raw.seek(info.header_offset)
    head = struct.unpack("<4s22xHH", raw.read(30))
    if head[0] != b"PK\x03\x04":
        msg = f"no file begins at byte {info.header_offset}"
        raise zipfile.BadZipFile(msg)
    return int(info.header_offset + 30 + head[1] + head[2])


def _member(
    path: Path, name: str, entry: str | None, file: IO[bytes], nbytes: int, offset: int | None
) -> Member:
    """Read the head of an array, and hold it to the bytes there are."""
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        msg = f"its format is {version}, of arrays with named fields; write plain arrays"
        raise ValueError(msg)
    head = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = head(file)
    what = f"array {name!r} of {str(path)!r}"
    if dtype.hasobject:
        msg = (
            f"{what} holds pickled Python objects, which can run any program when they are read; "
            "write numbers or text: `numpy.savez(path, x=numpy.array(values, dtype=str))`"
        )
        raise SchemaError(msg)
    if dtype.kind not in "biufUS" or any(n < 0 for n in shape):
        msg = (
            f"{what} is {dtype} of shape {shape}; plain numbers, truth values and text can be read"
        )
        raise SchemaError(msg)
    begin = file.tell()
    order = "F" if fortran else "C"
    at = None if offset is None else offset + begin
    member = Member(str(path), name, entry, tuple(shape), dtype, order, begin, at)
    if member.nbytes != nbytes - begin:
        msg = (
            f"{what} should have {member.nbytes} bytes (shape {member.shape}, {dtype}), and has "
            f"{nbytes - begin}: it was not written to its end, or is damaged; get a new copy"
        )
        raise ReadError(msg)
    return member


def _fill(file: IO[bytes], out: Array) -> None:
    """Read as many bytes as an array has, and see that there are no more."""
    view, end = memoryview(out.data), 0
    while end < len(view) and (n := file.readinto(view[end : end + 2**24])):  # type: ignore[attr-defined]
        end += n
    if end < len(view) or file.read(1):  # reading to the end compares the checksum
        msg = f"{end} of {len(view)} bytes were there"
        raise EOFError(msg)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """
    Turn what damaged bytes raise, of several kinds, into a ReadError.

    Parameters
    ----------
    what : str
        What is read.

    Yields
    ------
    None
        Nothing.

    Raises
    ------
    ReadError
        If the body meets damage.
    """
    try:
        yield
    except _DAMAGE as e:
        if isinstance(e, XloaderError):
            raise
        msg = f"cannot read {what}: {e}; the file is truncated or damaged, get a new copy"
        raise ReadError(msg) from e
