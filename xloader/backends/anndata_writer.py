"""Cells written as AnnData, in HDF5 or zarr: rows are appended, labels are encoded as anndata does."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import zarr

from xloader.backends.new_files import new_file, new_folder
from xloader.csr import CSRArray
from xloader.errors import SchemaError
from xloader.schema import Column

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]

CHUNK = 2**16
"""Elements of one chunk of what is appended."""

_CHUNK_NBYTES = 2**20
_GROUPS = ("layers", "obsm", "varm", "obsp", "varp", "uns")
_VERSIONS = {
    "anndata": "0.1.0",
    "array": "0.2.0",
    "categorical": "0.2.0",
    "csr_matrix": "0.1.0",
    "dataframe": "0.2.0",
    "dict": "0.1.0",
    "nullable-boolean": "0.1.0",
    "numeric-scalar": "0.2.0",
    "string": "0.2.0",
    "string-array": "0.2.0",
}


class AnnDataWriter:
    """
    Writes one AnnData: tables whole, matrices as their rows come.

    Parameters
    ----------
    root : h5py.Group or zarr.Group
        An empty group.
    """

    def __init__(self, root: Any) -> None:
        self.root = root
        _encode(root, "anndata")
        for name in _GROUPS:
            self._group(name, "dict")

    def _group(self, name: str, encoding: str, **attrs: Any) -> Any:
        group = self.root.create_group(name)
        _encode(group, encoding, **attrs)
        return group

    def frame(
        self, name: str, index: Array, columns: Mapping[str, Column], *, index_name: str = "_index"
    ) -> None:
        """
        Write a table, such as `obs`.

        Parameters
        ----------
        name : str
            Its path.
        index : ndarray of str, shape (n,)
            Names of its rows.
        columns : mapping of str to Column
            Columns that `is_column` accepts.
        index_name : str, optional
            Name of the index.

        Raises
        ------
        SchemaError
            If a column holds what its `categories` lack.
        """
        index_name = "_index" if index_name in columns else index_name
        group = self._group(
            name, "dataframe", **{"_index": index_name, "column-order": list(columns)}
        )
        _plain(group, index_name, np.asarray(index, object))
        for column, (values, attrs) in columns.items():
            _column(group, column, values, attrs)

    def table(self, name: str, index: Array, columns: Sequence[str], dtype: Any) -> "Appended":
        """
        Begin a table of numbers.

        Parameters
        ----------
        name : str
            Its path.
        index : ndarray of str, shape (n,)
            Names of its rows.
        columns : sequence of str
            Names of its columns.
        dtype : dtype-like
            Type of all of them.

        Returns
        -------
        Appended
            Takes rows.
        """
        group = self._group(name, "dataframe", **{"_index": "_index", "column-order": [*columns]})
        _plain(group, "_index", np.asarray(index, object))
        return Appended([_begin(group, c, (len(index),), dtype) for c in columns])

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> "Appended":
        """
        Begin a dense array.

        Parameters
        ----------
        name : str
            Its path.
        shape : tuple of int
            Its shape.
        dtype : dtype-like
            Its type.

        Returns
        -------
        Appended
            Takes rows.
        """
        return Appended([_begin(self.root, name, shape, dtype)])

    def matrix(self, name: str, shape: tuple[int, int], dtype: Any) -> "AppendedCSR":
        """
        Begin a sparse matrix.

        Parameters
        ----------
        name : str
            Its path.
        shape : tuple of int
            Its shape.
        dtype : dtype-like
            Type of its values.

        Returns
        -------
        AppendedCSR
            Takes rows.
        """
        size = list(shape) if isinstance(self.root, zarr.Group) else np.array(shape, np.int64)
        return AppendedCSR(self._group(name, "csr_matrix", shape=size), shape, dtype)

    def attribute(self, name: str, value: Any) -> bool:
        """
        Write an attribute of the whole into `uns`.

        Parameters
        ----------
        name : str
            Its name.
        value : object
            Text, a number, or a list of either.

        Returns
        -------
        bool
            Whether it is such a thing; nothing is written of others.
        """
        values = np.asarray(value) if isinstance(value, list | np.ndarray) else None
        if isinstance(value, str):
            kind, values = "string", np.array(value, object)
        elif isinstance(value, bool | int | float | np.number | np.bool_):
            kind, values = "numeric-scalar", np.asarray(value)
        elif values is None or values.ndim != 1 or not (values.dtype.kind in "biufU"):
            return False
        else:
            kind = "string-array" if values.dtype.kind == "U" else "array"
            values = values.astype(object) if values.dtype.kind == "U" else values
        _plain(self.root["uns"], name, values, kind)
        return True


class Appended:
    """
    A dense array, or the columns of a table, that is written from the first row to the last.

    Parameters
    ----------
    arrays : list of h5py.Dataset or zarr.Array
        One array, or one for each column.
    """

    def __init__(self, arrays: list[Any]) -> None:
        self._arrays = arrays
        self._n = 0

    def append(self, values: Array) -> None:
        """
        Append rows.

        Parameters
        ----------
        values : ndarray, shape (n, ...)
            The next rows.
        """
        stop = self._n + len(values)
        if len(self._arrays) == 1 and self._arrays[0].ndim == values.ndim:
            self._arrays[0][self._n : stop] = values
        else:
            for k, array in enumerate(self._arrays):
                array[self._n : stop] = values[:, k]
        self._n = stop


class AppendedCSR:
    """
    A sparse matrix that is written from the first row to the last, in whole chunks.

    Parameters
    ----------
    group : h5py.Group or zarr.Group
        An empty group.
    shape : tuple of int
        Shape of the matrix.
    dtype : dtype-like
        Type of its values.
    """

    def __init__(self, group: Any, shape: tuple[int, int], dtype: Any) -> None:
        self._group, self._n = group, 0
        narrow = np.int32 if shape[1] < 2**31 else np.int64
        self._arrays = [
            _begin(group, name, (0,), of, chunks=(CHUNK,))
            for name, of in (("data", dtype), ("indices", narrow))
        ]
        self._waiting: list[tuple[Array, Array]] = []
        self._indptr = [np.zeros(1, np.int64)]

    def append(self, rows: CSRArray) -> None:
        """
        Append rows.

        Parameters
        ----------
        rows : CSRArray
            The next rows.
        """
        self._waiting.append((rows.data, rows.indices))
        self._indptr.append(self._indptr[-1][-1] + rows.indptr[1:])
        n = sum(len(data) for data, _ in self._waiting)
        if n >= CHUNK:
            self._write(n - n % CHUNK)

    def _write(self, n: int) -> None:
        parts = [np.concatenate(p) for p in zip(*self._waiting, strict=True)]
        for array, values in zip(self._arrays, parts, strict=True):
            array.resize((self._n + n,))
            array[self._n :] = values[:n]
        self._waiting = [(parts[0][n:], parts[1][n:])]
        self._n += n

    def close(self) -> None:
        """Write what is left, and where each row begins."""
        if self._waiting:
            self._write(sum(len(data) for data, _ in self._waiting))
        indptr = np.concatenate(self._indptr)
        narrow = np.int32 if indptr[-1] < 2**31 else np.int64
        _write(self._group, "indptr", indptr.astype(narrow))


@contextmanager
def new_anndata(path: Path, *, overwrite: bool) -> Iterator[AnnDataWriter]:
    """
    Write an AnnData file or folder beside its final place and move it there when it is whole.

    Parameters
    ----------
    path : Path
        Where it goes: ``.h5ad`` for HDF5, ``.zarr`` for a folder of zarr version 2.
    overwrite : bool
        Whether one that is there already is replaced.

    Yields
    ------
    AnnDataWriter
        Empty.

    Raises
    ------
    ReadError
        If something is there that may not be replaced, or the disk is full.
    """
    if path.suffix == ".h5ad":
        with new_file(path, overwrite=overwrite) as file:
            yield AnnDataWriter(file)
        return
    with new_folder(path, overwrite=overwrite, known=_is_anndata, what="AnnData") as folder:
        # version 2, as anndata itself: its text and its consolidated metadata are specified
        root = zarr.open_group(folder, mode="a", zarr_format=2)
        yield AnnDataWriter(root)
        zarr.consolidate_metadata(root.store, zarr_format=2)


def _is_anndata(folder: Path) -> bool:
    """Say whether a folder is AnnData in zarr, of either version."""
    for name, key in ((".zattrs", None), ("zarr.json", "attributes")):
        try:
            found = json.loads((folder / name).read_bytes())
            found = found if key is None else found[key]
            if found["encoding-type"] == "anndata":
                return True
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return False


def is_column(values: Array) -> bool:
    """
    Say whether AnnData has a form for a column.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Any values.

    Returns
    -------
    bool
        True for numbers, booleans and text, with missing ones among them.

    Examples
    --------
    >>> is_column(np.array(["a", np.nan], object)), is_column(np.array([(1, 2)], "i,i"))
    (True, False)
    """
    if values.dtype.kind != "O":
        return values.dtype.kind in "biufUST"
    there = [v for v in values.tolist() if not _is_missing(v)]
    return any(all(isinstance(v, of) for v in there) for of in (str, bool))


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # noqa: PLR0124 # NaN, of any type


def _column(group: Any, name: str, values: Array, attrs: Mapping[str, Any]) -> None:
    if values.dtype.kind in "UST":
        values = values.astype(str).astype(object)
    missing = np.array([_is_missing(v) for v in values.tolist()], bool)
    if "ordered" in attrs:
        categories = np.asarray(attrs["categories"])
        _categorical(group, name, values, missing, categories, ordered=bool(attrs["ordered"]))
    elif values.dtype.kind != "O" or not missing.any():
        kind = values.dtype.kind == "O" and isinstance(next(iter(values), ""), bool)
        _plain(group, name, values.astype(bool) if kind else values)
    elif any(isinstance(v, bool) for v in values.tolist()):
        column = group.create_group(name)
        _encode(column, "nullable-boolean")
        _plain(column, "values", np.array([v is True for v in values.tolist()], bool))
        _plain(column, "mask", missing)
    else:  # anndata, too, makes categories of text that is missing in places
        categories = np.unique(values[~missing].astype(str))
        _categorical(group, name, values, missing, categories, ordered=False)


def _categorical(
    group: Any, name: str, values: Array, missing: Array, categories: Array, *, ordered: bool
) -> None:
    places = {value: k for k, value in enumerate(categories.tolist())}
    at = [-1 if gone else places.get(v) for v, gone in zip(values.tolist(), missing, strict=True)]
    if None in at:
        msg = (
            f"column {name!r} holds {values[at.index(None)]!r}, which is none of its {len(places)} "
            "categories; put it into the attribute `categories`, or remove `categories` and `ordered`"
        )
        raise SchemaError(msg)
    column = group.create_group(name)
    _encode(column, "categorical", ordered=ordered)
    _plain(column, "codes", np.array(at, np.min_scalar_type(-max(len(places), 1))))
    text = categories.dtype.kind in "US" or (categories.dtype == object and len(categories) > 0)
    _plain(column, "categories", categories.astype(object) if text else categories)


def _plain(group: Any, name: str, values: Array, kind: str | None = None) -> None:
    """Write an array of numbers or of text."""
    written = _write(group, name, values)
    _encode(written, kind or ("string-array" if values.dtype == object else "array"))


def _encode(element: Any, encoding: str, **attrs: Any) -> None:
    everything = {"encoding-type": encoding, "encoding-version": _VERSIONS[encoding], **attrs}
    if not isinstance(element, zarr.Group | zarr.Array):
        text = h5py.string_dtype()
        everything = {
            k: np.array(v, text) if isinstance(v, list) else v for k, v in everything.items()
        }
    element.attrs.update(everything)


def _begin(
    group: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    chunks: tuple[int, ...] | None = None,
) -> Any:
    """Make an array to be filled."""
    dtype = np.dtype(dtype)
    if chunks is None:
        row = max(1, int(np.prod(shape[1:])) * dtype.itemsize)
        rows = CHUNK if len(shape) == 1 else max(1, _CHUNK_NBYTES // row)
        chunks = tuple(max(1, min(n, m)) for n, m in zip((rows, *shape[1:]), shape, strict=True))
    if isinstance(group, zarr.Group):
        array = group.create_array(name, shape=shape, dtype=dtype, chunks=chunks)
    else:
        growing = (None, *shape[1:]) if shape == (0,) else None
        packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        if 0 in shape and not growing:
            chunks, packed = None, {}
        array = group.create_dataset(name, shape, dtype, chunks=chunks, maxshape=growing, **packed)
    _encode(array, "array")
    return array


def _write(group: Any, name: str, values: Array) -> Any:
    text = values.dtype == object
    if isinstance(group, zarr.Group):
        dtype: Any = str if text else values.dtype
        chunks = tuple(min(max(n, 1), CHUNK) for n in values.shape)
        array = group.create_array(name, shape=values.shape, dtype=dtype, chunks=chunks)
        if values.size:
            array[...] = values
        return array
    return group.create_dataset(
        name, data=values, dtype=h5py.string_dtype() if text else values.dtype
    )
