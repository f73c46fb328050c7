"""Folders of Matrix Market text, as Cell Ranger and GEO have them; parsed once, whole, into memory."""

import gzip
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from typing_extensions import override

from xloader.backends.features import features_dataset, text_of
from xloader.backends.memory_rows import MemoryRows, by_row
from xloader.backends.sizes import require_memory
from xloader.errors import ReadError, SchemaError, XloaderError
from xloader.unchanged import Unchanged

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]

MATRIX = ("matrix.mtx", "matrix.mtx.gz")
_NAMES = {
    "barcodes": ("barcodes.tsv", "barcodes.tsv.gz"),
    "features": ("features.tsv", "features.tsv.gz", "genes.tsv", "genes.tsv.gz"),
}
_LINE_NBYTES = 2**16
_PART_LINES = 2**20
_GZIP_RATIO = 1032
"""Bytes that one byte of gzip can stand for at most."""
_DAMAGE = (OSError, EOFError, zlib.error, ValueError)
_CONVERT = "convert it on a larger machine: xl.convert(path, store)"


class Header(NamedTuple):
    """What the first lines of a matrix say."""

    is_integer: bool
    n_features: int
    n_cells: int
    n_entries: int
    first_line: int
    """Number of the first line of entries, from 1."""


def is_mtx(path: Path) -> bool:
    """
    Say whether a path is a Matrix Market file, or a folder of such.

    Parameters
    ----------
    path : Path
        Any path.

    Returns
    -------
    bool
        By the names in a folder, and the first bytes of a file.
    """
    if path.is_dir():
        return bool(_matrices(path))
    if not path.is_file():
        return False
    with suppress(*_DAMAGE), _opened(path) as file:
        return file.read(14) == b"%%MatrixMarket"
    return False


def open_mtx(path: Path) -> xr.Dataset:
    """
    Open a folder, or one of its matrices; names and the head of the matrix are read.

    Parameters
    ----------
    path : Path
        What `is_mtx` accepts.

    Returns
    -------
    xarray.Dataset
        As of `TenxBackendEntrypoint`.

    Raises
    ------
    ReadError
        If a file is missing or damaged, or the head says more than the file can hold.
    SchemaError
        If the folder holds several matrices, or names do not fit the matrix.
    """
    matrix = _matrix(path)
    prefix = matrix.name[: matrix.name.index("matrix.mtx")] if "matrix.mtx" in matrix.name else ""
    barcodes, features = (_beside(matrix, prefix, what) for what in _NAMES)
    header = read_header(matrix)
    return features_dataset(
        MTXRows(matrix, header, [barcodes, features]),
        cell=_table(barcodes, header.n_cells, matrix)["id"],
        features=_table(features, header.n_features, matrix),
        paths=(str(barcodes), str(features)),
    )


def read_header(path: Path) -> Header:
    """
    Read the head of a matrix.

    Parameters
    ----------
    path : Path
        The file, gzipped or not.

    Returns
    -------
    Header
        Sizes that the file can hold.

    Raises
    ------
    ReadError
        If it is damaged, or too small for what it says.
    SchemaError
        If it is of a kind that holds no counts.
    """
    with _reading(path), _opened(path) as file:
        lines = _lines(file, path)
        banner = next(lines, "").lower().split()
        told = ((k, line) for k, line in enumerate(lines, 2) if line.strip() and line[0] != "%")
        number, sizes = next(told, (2, ""))
    if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or banner[3:] not in (
        ["integer", "general"],
        ["real", "general"],
    ):
        msg = (
            f"line 1 of {str(path)!r} says {' '.join(banner)!r}; matrices of cells are 'coordinate', "
            "'integer' or 'real', and 'general': write it with `scipy.io.mmwrite(path, matrix)`"
        )
        raise SchemaError(msg)
    fields = sizes.split()
    if len(fields) != 3 or not all(f.isdecimal() for f in fields):
        msg = f"line {number} of {str(path)!r} is {sizes!r}, not three sizes; get a new copy of the file"
        raise ReadError(msg)
    n_features, n_cells, n_entries = map(int, fields)
    nbytes = path.stat().st_size * (_GZIP_RATIO if _is_gzip(path) else 1)
    if n_entries > min(n_features * n_cells, nbytes // 6 + 1):  # a line has 6 bytes: "1 1 1"
        msg = (
            f"line {number} of {str(path)!r} says {n_features} features x {n_cells} cells with {n_entries} "
            f"entries, more than the matrix or a file of {path.stat().st_size} bytes can hold: it was not "
            "written to its end, or is damaged; get a new copy"
        )
        raise ReadError(msg)
    return Header(banner[3] == "integer", n_features, n_cells, n_entries, number + 1)


class MTXRows(MemoryRows):
    """
    The counts of a Matrix Market file, features x cells, as cells x features.

    Parameters
    ----------
    path : Path
        The file, gzipped or not.
    header : Header
        What it says of itself.
    others : sequence of Path
        Files that must stay as they are with it.
    """

    def __init__(self, path: Path, header: Header, others: Sequence[Path] = ()) -> None:
        # int32 as in 10x's own .h5; decimal numbers keep all of their digits
        dtype = np.int32 if header.is_integer else np.float64
        super().__init__((header.n_cells, header.n_features), dtype, f"the counts of {str(path)!r}")
        self.path, self.header = path, header
        self._then = Unchanged([str(p) for p in (path, *others)])

    @override
    def _load(self) -> tuple[Array, Array, Int64]:
        n, shape = self.header.n_entries, self.shape
        what = f"{self.what} ({shape[0]} x {shape[1]}, {n} entries)"
        # features, cells and values, with what sorting takes where cells are not in order
        require_memory(n * (32 + self.dtype.itemsize) + 16 * shape[0], what, _CONVERT)
        feature, cell = np.empty(n, np.int32), np.empty(n, np.int32)
        values = np.empty(n, self.dtype)
        end = 0
        with self._then.reading(), _reading(self.path):
            for part in self._parts():
                begin, end = end, end + len(part[0])
                if end <= n:
                    feature[begin:end], cell[begin:end], values[begin:end] = part
        if end != n:
            msg = (
                f"{str(self.path)!r} has {end} entries, but line {self.header.first_line - 1} says {n}: "
                "the file was not written to its end, or is damaged; get a new copy"
            )
            raise ReadError(msg)
        indptr, (values, feature) = by_row(cell, shape[0], values, feature)
        return values, feature, indptr

    def _parts(self) -> Iterator[tuple[Array, Array, Array]]:
        """Yield features and cells (from 0) and values of some lines at a time."""
        with _opened(self.path) as file:
            for _ in range(self.header.first_line - 1):
                file.readline()
            value = np.int64 if self.header.is_integer else np.float64
            dtypes = {0: np.int64, 1: np.int64, 2: value}
            try:
                parts = pd.read_csv(
                    file,
                    sep=r"\s+",
                    header=None,
                    dtype=dtypes,
                    chunksize=_PART_LINES,
                    na_filter=False,
                )
                for part in parts:
                    columns = [part[k].to_numpy() for k in range(part.shape[1])]
                    if len(columns) != 3 or not self._is_right(*columns):
                        raise self._wrong()
                    yield columns[0] - 1, columns[1] - 1, columns[2]
            except pd.errors.EmptyDataError:  # no entries
                return
            except XloaderError:
                raise
            except (ValueError, OverflowError) as e:
                raise self._wrong(e) from e

    def _wrong(self, error: Exception | None = None) -> ReadError:
        """Return the error that names the first line that cannot be right."""
        path, first = str(self.path), self.header.first_line
        with _opened(self.path) as file:
            for number, line in enumerate(_lines(file, self.path), 1):
                if number < first or not line.strip():
                    continue
                if reason := self._reason(line.split()):
                    return ReadError(
                        f"line {number} of {path!r} is {line[:60]!r}: {reason}; get a new copy of the "
                        "file, or write it again with `scipy.io.mmwrite`"
                    )
        return ReadError(f"cannot read {path!r} ({error}); write it with `scipy.io.mmwrite`")

    def _reason(self, fields: list[str]) -> str | None:
        """Say why a line cannot be an entry."""
        (n_cells, n_features), is_integer = self.shape, self.header.is_integer
        number = r"[+-]?\d+" if is_integer else r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
        whole = [bool(re.fullmatch(r"\d{1,18}", f)) for f in fields[:2]]
        if len(fields) != 3 or not all(whole):
            return "an entry has a feature, a cell and a count"
        if not (1 <= int(fields[0]) <= n_features and 1 <= int(fields[1]) <= n_cells):
            return f"features are 1 to {n_features} and cells 1 to {n_cells}"
        if not re.fullmatch(number, fields[2]) or not 0 <= float(fields[2]) < self._beyond:
            kind = "a whole number" if is_integer else "a number"
            return f"a count is {kind}, not negative or missing, and below {self._beyond:.3g}"
        return None

    @property
    def _beyond(self) -> float:
        return 2.0**31 if self.header.is_integer else np.inf

    def _is_right(self, feature: Array, cell: Array, values: Array) -> bool:
        (n_cells, n_features) = self.shape
        return bool(
            (feature.min() >= 1)
            & (feature.max() <= n_features)
            & (cell.min() >= 1)
            & (cell.max() <= n_cells)
            & (values.min() >= 0)  # NaN is not
            & (values.max() < self._beyond)
        )


def _matrices(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith(MATRIX) and p.is_file())


def _matrix(path: Path) -> Path:
    """Return the matrix that a path means."""
    if not path.is_dir():
        return path
    found = _matrices(path)
    if len(found) > 1:
        msg = (
            f"{str(path)!r} holds {len(found)} matrices ({', '.join(p.name for p in found[:8])}); open one "
            f"by its own path, such as {str(found[0])!r}"
        )
        raise SchemaError(msg)
    return found[0]


def _beside(matrix: Path, prefix: str, what: str) -> Path:
    """Return the file of names that belongs to a matrix."""
    names = [prefix + name for name in _NAMES[what]]
    found = [matrix.with_name(name) for name in names if matrix.with_name(name).is_file()]
    if len(found) != 1:
        there = [p.name for p in found] or "none of them"
        msg = (
            f"the {what} of {str(matrix)!r} lie beside it in one of {names}, and there is {there}; put "
            "exactly one there"
        )
        raise ReadError(msg)
    return found[0]


def _table(path: Path, n: int, matrix: Path) -> dict[str, Array]:
    """Read names: one line each, of one to three columns that are used."""
    require_memory(256 * n, f"{n} names for {str(matrix)!r}", _CONVERT)
    with _reading(path), _opened(path) as file:
        lines = list(itertools.islice(_lines(file, path), n + 1))
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) != n:
        msg = (
            f"{str(path)!r} has {'more than ' * (len(lines) > n)}{min(len(lines), n)} lines, but {str(matrix)!r} "
            f"asks for {n}: its rows are features and its columns cells, and names have no heading; "
            "bring together files of the same matrix, or transpose it"
        )
        raise SchemaError(msg)
    rows = [line.split("\t")[:3] for line in lines]
    for k, row in enumerate(rows):
        if len(row) != len(rows[0]) or not row[0]:
            msg = (
                f"line {k + 1} of {str(path)!r} is {lines[k][:60]!r}, with {len(row)} columns where line 1 "
                f"has {len(rows[0])}, of which the first is a name; get a new copy of the file"
            )
            raise ReadError(msg)
    columns = zip(("id", "name", "feature_type"), zip(*rows, strict=True), strict=False)
    return {name: text_of(values) for name, values in columns} or {"id": np.empty(0, object)}


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _opened(path: Path) -> IO[bytes]:
    opener: Any = gzip.open if _is_gzip(path) else Path.open
    file: IO[bytes] = opener(path, "rb")
    return file


def _lines(file: IO[bytes], path: Path) -> Iterator[str]:
    """Yield lines without their ends; one too long is refused, before memory is taken for it."""
    while line := file.readline(_LINE_NBYTES):
        if len(line) == _LINE_NBYTES:
            msg = f"{str(path)!r} has a line of more than {_LINE_NBYTES} bytes; it is no table of names or counts"
            raise ReadError(msg)
        yield line.rstrip(b"\r\n").decode()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what damaged bytes raise, of several kinds, into a ReadError."""
    try:
        yield
    except _DAMAGE as e:
        if isinstance(e, XloaderError):
            raise
        msg = f"cannot read {str(path)!r}: {e}; the file is truncated or damaged, get a new copy"
        raise ReadError(msg) from e
