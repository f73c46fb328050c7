"""Tables of an AnnData file (`obs`, `var`, tables in `obsm`): columns in, labels out."""

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.arrays import Key, StoredArray
from xloader.backends.hdf5 import HDF5File, read, text
from xloader.errors import ReadError, SchemaError
from xloader.schema import Column, categorical_column, string_column

NULLABLE = frozenset({"nullable-integer", "nullable-boolean", "nullable-string-array"})
"""Encodings of a column whose missing values stand in a mask."""


@dataclass(frozen=True)
class Frame:
    """A table, read whole."""

    index: npt.NDArray[Any]
    """Names of the rows, object array of str."""
    index_name: str
    """What that column is called; ``_index`` if it has no name."""
    columns: dict[str, Column]
    """Columns in the order of the file."""
    skipped: dict[str, str]
    """Columns that cannot be labels, and the encoding of each."""


class FrameArray(StoredArray):
    """
    The numeric columns of a table as one matrix, read column by column.

    Parameters
    ----------
    file : HDF5File
        The file.
    name : str
        Path of the table inside it.
    """

    def __init__(self, file: HDF5File, name: str) -> None:
        group = file.handle[name]
        index, self.columns = _layout(file.path, group)
        dtypes = [group[c].dtype for c in self.columns]
        super().__init__(
            (group[index].shape[0], len(self.columns)), np.result_type(np.float32, *dtypes)
        )
        self.file = file
        self.name = name

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        rows, columns = (np.arange(n)[k] for n, k in zip(self.shape, key, strict=True))
        out = np.empty((rows.size, columns.size), self.dtype)
        for k, i in enumerate(np.atleast_1d(columns).tolist()):
            out[:, k] = read(self.file, f"{self.name}/{self.columns[i]}", key[0])
        return out.reshape(rows.shape + columns.shape)


def encoding_of(element: h5py.Group | h5py.Dataset) -> str:
    """
    Return the encoding of an element, as anndata names it.

    Parameters
    ----------
    element : h5py.Group or h5py.Dataset
        Any element of the file.

    Returns
    -------
    str
        Such as ``"csr_matrix"``; empty if the file does not say.
    """
    return text(element.attrs.get("encoding-type", ""))


def read_frame(file: HDF5File, name: str) -> Frame:
    """
    Read a table.

    Parameters
    ----------
    file : HDF5File
        The file.
    name : str
        Path of the table inside it.

    Returns
    -------
    Frame
        Missing values are NaN; integers keep their type unless some are missing.

    Raises
    ------
    ReadError
        If the bytes cannot be read or decoded, or contradict each other.
    SchemaError
        If the table was written by anndata before 0.7, or a column has another length.
    """
    with file.reading(name) as opened:
        group = opened[name]
        index_name, names = _layout(file.path, group)
        index = np.array([str(v) for v in _column(group[index_name])[0]], object)
        columns, skipped = {}, {}
        for label in names:
            if not _is_label(group[label]):
                skipped[label] = encoding_of(group[label]) or "unknown encoding"
                continue
            columns[label] = _column(group[label])
            if len(columns[label][0]) != len(index):
                msg = (
                    f"column {label!r} of `{name}` has {len(columns[label][0])} values, its index "
                    f"{len(index)}: {file.path!r} was not written to its end, or is damaged; get a new copy"
                )
                raise SchemaError(msg)
    return Frame(index, index_name, columns, skipped)


def is_numeric_frame(file: HDF5File, name: str) -> bool:
    """
    Say whether all columns of a table are plain numbers, so that it is a matrix too.

    Parameters
    ----------
    file : HDF5File
        The file.
    name : str
        Path of the table inside it.

    Returns
    -------
    bool
        False also where numbers are nullable or categorical.
    """
    group = file.handle[name]
    return all(_is_numeric(group[c]) for c in _layout(file.path, group)[1])


def _layout(path: str, group: Any) -> tuple[str, list[str]]:
    """Return the names of the index and of the columns."""
    if not isinstance(group, h5py.Group) or "_index" not in group.attrs:
        msg = (
            f"{group.name!r} of {path!r} is a table as anndata wrote it before version 0.7; xloader "
            "reads those of 0.7 and newer; convert it once with "
            "`anndata.read_h5ad(old).write_h5ad(new)`"
        )
        raise SchemaError(msg)
    return text(group.attrs["_index"]), [text(c) for c in group.attrs.get("column-order", ())]


def _is_numeric(element: Any) -> bool:
    is_array = isinstance(element, h5py.Dataset) and element.ndim == 1
    return is_array and element.dtype.kind in "biuf" and "categories" not in element.attrs


def _is_label(element: Any) -> bool:
    """Say whether an element is a column of one of the encodings that become labels."""
    if isinstance(element, h5py.Group):
        return encoding_of(element) in NULLABLE | {"categorical"}
    is_string = h5py.check_string_dtype(element.dtype) is not None
    return element.ndim == 1 and (is_string or element.dtype.kind in "biuf")


def _column(element: Any) -> Column:
    if encoding_of(element) == "categorical":
        ordered = bool(element.attrs.get("ordered", False))
        return _categorical(element["codes"], element["categories"], ordered=ordered)
    if "categories" in element.attrs:  # dataframe 0.1.0 points into its subgroup `__categories`
        categories = element.file[element.attrs["categories"]]
        ordered = bool(categories.attrs.get("ordered", False))
        return _categorical(element, categories, ordered=ordered)
    values = _values(element)
    return string_column(values) if _holds_strings(element) else (values, {})


def _categorical(codes: h5py.Dataset, categories: Any, *, ordered: bool) -> Column:
    positions, values = np.asarray(codes[()], np.int64), _values(categories)
    if len(positions) and not -1 <= positions.min() <= positions.max() < len(values):
        msg = (
            f"{codes.name!r} of {codes.file.filename!r} holds codes {positions.min()} to "
            f"{positions.max()} for {len(values)} categories: the file is damaged; get a new copy"
        )
        raise ReadError(msg)
    return categorical_column(positions, values, ordered=ordered)


def _holds_strings(element: Any) -> bool:
    values = element["values"] if isinstance(element, h5py.Group) else element
    return h5py.check_string_dtype(values.dtype) is not None


def _values(element: Any) -> npt.NDArray[Any]:
    """Return the values of a plain or nullable array, missing ones as NaN."""
    if isinstance(element, h5py.Dataset):
        if _holds_strings(element):
            return np.asarray(element.asstr("utf-8")[()], object)
        values = np.asarray(element[()])
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    values, mask = _values(element["values"]), np.asarray(element["mask"][()], bool)
    if not mask.any():
        return values
    values = values.astype(np.float64 if values.dtype.kind in "iuf" else object)
    values[mask] = np.nan
    return values
