"""Values of samples on their way to a store: appended by several processes, found again by number."""

import os
import re
import time
import weakref
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from xloader.errors import ReadError, SchemaError

Int64 = npt.NDArray[np.int64]

_NAME = re.compile(r"\d{20}-\d+-\d+\.(float\d+)\.([\dx]*)")
_HEADER = 16


def _record(dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.dtype[Any]:
    """Return the type of one sample in a part: what it is, and what tells that it is whole."""
    values = ("values", np.dtype(dtype).newbyteorder("<"), shape)
    return np.dtype([("id", "<i8"), ("crc", "<u4"), ("spare", "<u4"), values])


def _crc(number: int, values: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(values), number.to_bytes(8, "little")))


class Part:
    """
    A new file to which one process appends samples; what `append` returned from survives a kill.

    Parameters
    ----------
    folder : Path
        Where the parts of all processes lie.
    rank : int
        Which process it is.
    dtype : dtype
        Type of the values: float32 or float64.
    shape : tuple of int
        Shape of one sample.

    Attributes
    ----------
    close : callable
        Closes the file.
    """

    def __init__(
        self, folder: Path, rank: int, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> None:
        self.dtype, self.shape = dtype, shape
        # later parts go before earlier ones, so their names sort by time
        name = f"{time.time_ns():020d}-{rank}-{os.getpid()}"
        self.path = folder / f"{name}.{dtype.name}.{'x'.join(map(str, shape))}"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._nbytes = 0
        # of a writer that nobody closes, what was appended stays
        self.close = weakref.finalize(self, os.close, self._file)

    def append(self, ids: Int64, values: npt.NDArray[Any]) -> None:
        """
        Append samples.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
            Their numbers.
        values : ndarray, shape (n, *shape)
            Their values.

        Raises
        ------
        ReadError
            If the disk does not take them; the part is then as it was before.
        """
        records = np.zeros(len(ids), _record(self.dtype, self.shape))
        records["id"], records["values"] = ids, values
        each = records["values"]
        records["crc"] = [_crc(k, v.tobytes()) for k, v in zip(ids.tolist(), each, strict=True)]
        left = memoryview(records.tobytes())
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as e:
            os.ftruncate(self._file, self._nbytes)
            msg = (
                f"cannot write {len(ids)} predictions ({records.nbytes / 1e6:.1f} MB) to "
                f"{str(self.path)!r}: {e.strerror}; what was written before is safe: make room and "
                "write this batch again"
            )
            raise ReadError(msg) from e
        self._nbytes += records.nbytes


class Written:
    """
    All samples that are in the parts of a folder at this moment.

    Of a sample that was written several times, the last one counts: that of the part which was begun
    last, and the last within it. A record that a kill cut off is none.

    Parameters
    ----------
    folder : Path
        Where the parts lie.

    Attributes
    ----------
    ids : ndarray of int64, shape (n,)
        Numbers of the samples, increasing.
    dtype : dtype
        Type that holds the values of all parts.
    shape : tuple of int
        Shape of one sample; empty where nothing was written.

    Raises
    ------
    SchemaError
        If parts have samples of different shapes.
    """

    def __init__(self, folder: Path) -> None:
        names = sorted(p.name for p in folder.iterdir() if _NAME.fullmatch(p.name))
        kinds = [_NAME.fullmatch(name) for name in names]
        shapes = [tuple(map(int, filter(None, k[2].split("x")))) for k in kinds if k]
        if len(set(shapes)) > 1:
            msg = (
                f"the parts in {str(folder)!r} have samples of shapes {sorted(set(shapes))}; remove "
                "those of another model, or the folder, to begin anew"
            )
            raise SchemaError(msg)
        self.shape = shapes[0] if shapes else ()
        self.dtype: np.dtype[Any] = np.result_type(np.float32, *[k[1] for k in kinds if k])
        self._paths = [folder / name for name in names]
        self._records = [_record(k[1], self.shape) for k in kinds if k]
        self._files = [os.open(path, os.O_RDONLY) for path in self._paths]
        found = [self._ids(*each) for each in zip(self._files, self._records, strict=True)]
        every = np.concatenate([*found, np.zeros(0, np.int64)])
        parts = np.repeat(np.arange(len(found)), [len(ids) for ids in found])
        places = np.concatenate([*(np.arange(len(ids)) for ids in found), np.zeros(0, np.int64)])
        self.ids, back = np.unique(every[::-1], return_index=True)
        last = len(every) - 1 - back
        self._part, self._place = parts[last], places[last]
        self._checked = np.zeros(len(self.ids), bool)

    @staticmethod
    def _ids(file: int, record: np.dtype[Any]) -> Int64:
        n = os.fstat(file).st_size // record.itemsize
        heads = b"".join(os.pread(file, 8, k * record.itemsize) for k in range(n))
        return np.frombuffer(heads, "<i8").astype(np.int64)

    def read(self, k: int, first: int = 0, last: int | None = None) -> npt.NDArray[Any]:
        """
        Read the values of a sample, or some of their rows.

        Parameters
        ----------
        k : int
            Its place in `ids`.
        first, last : int, optional
            Half-open bounds of rows. Default: all.

        Returns
        -------
        ndarray, shape (last - first, ...)
            Values, read-only, of the type of their part.

        Raises
        ------
        ReadError
            If the bytes are not those that were written.
        """
        part, record = int(self._part[k]), self._records[self._part[k]]
        at = int(self._place[k]) * record.itemsize
        if not self._checked[k]:
            self._check(k, part, at, record)
        dtype = record["values"].base
        n_rows = self.shape[0] if self.shape else 1
        row = record["values"].itemsize // n_rows if n_rows else 0
        last = n_rows if last is None else last
        raw = os.pread(self._files[part], (last - first) * row, at + _HEADER + first * row)
        return np.frombuffer(raw, dtype).reshape((last - first, *self.shape[1:]))

    def _check(self, k: int, part: int, at: int, record: np.dtype[Any]) -> None:
        raw = os.pread(self._files[part], record.itemsize, at)
        crc = int.from_bytes(raw[8:12], "little")
        if _crc(int(self.ids[k]), raw[_HEADER:]) != crc:
            msg = (
                f"the prediction of sample {self.ids[k]} in {str(self._paths[part])!r} does not match "
                "its checksum: the file is damaged; write this sample again, then close"
            )
            raise ReadError(msg)
        self._checked[k] = True

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            os.close(file)
        self._files = []
