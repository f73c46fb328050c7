"""Tables of AnnData (`obs`, `var`, tables in `obsm`), of any age: columns in, labels out."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from typing_extensions import override

from xloader.arrays import Key, StoredArray
from xloader.backends.elements import Leaf, Tree, encoding_of
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
    file : Tree
        The file.
    name : str
        Path of the table inside it.
    """

    def __init__(self, file: Tree, name: str) -> None:
        index, self.columns = _layout(file, name)
        self.leaves = [_leaf(file, f"{name}/{column}") for column in self.columns]
        dtypes = [leaf.dtype for leaf in self.leaves]
        n_rows = _index_leaf(file, f"{name}/{index}").shape[0]
        super().__init__((n_rows, len(self.columns)), np.result_type(np.float32, *dtypes))
        for leaf in self.leaves:
            _require_length(leaf, n_rows, name)

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        rows, columns = (np.arange(n)[k] for n, k in zip(self.shape, key, strict=True))
        out = np.empty((rows.size, columns.size), self.dtype)
        for k, i in enumerate(np.atleast_1d(columns).tolist()):
            out[:, k] = self.leaves[i].read(key[0])
        return out.reshape(rows.shape + columns.shape)


def read_frame(file: Tree, name: str) -> Frame:
    """
    Read a table.

    Parameters
    ----------
    file : Tree
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
        If a column has another length than the index.
    """
    with file.reading(name):
        records = file.leaf(name)
        if records is not None:
            return _from_records(file, records)
        index_name, names = _layout(file, name)
        leaf = _index_leaf(file, f"{name}/{index_name}")
        if leaf.absent():
            msg = (
                f"`{leaf.name}` of {file.path!r} lacks the names from {leaf.absent()[0][0]} on: its "
                "chunks were lost; copy it again"
            )
            raise ReadError(msg)
        index = np.array([str(v) for v in leaf.read()], object)
        columns, skipped = {}, {}
        for label in names:
            column = _column(file, f"{name}/{label}", len(index), name)
            if column is None:
                skipped[label] = encoding_of(file, f"{name}/{label}") or "unknown encoding"
            else:
                columns[label] = column
    return Frame(index, index_name, columns, skipped)


def is_numeric_frame(file: Tree, name: str) -> bool:
    """
    Say whether all columns of a table are plain numbers, so that it is a matrix too.

    Parameters
    ----------
    file : Tree
        The file.
    name : str
        Path of the table inside it.

    Returns
    -------
    bool
        False also where numbers are nullable or categorical.
    """
    names = [f"{name}/{column}" for column in _layout(file, name)[1]]
    return all(
        leaf is not None
        and len(leaf.shape) == 1
        and leaf.dtype.kind in "biuf"
        and file.attr(n, "categories") is None
        for n, leaf in ((n, file.leaf(n)) for n in names)
    )


def join_frames(frames: Sequence[Frame], what: Sequence[str]) -> Frame:
    """
    Join tables row after row.

    Parameters
    ----------
    frames : sequence of Frame
        At least one.
    what : sequence of str
        Name of each, for messages.

    Returns
    -------
    Frame
        Columns of all of them; categories are united in order of appearance, and what a table
        lacks is missing.

    Raises
    ------
    SchemaError
        If one has text in a column where another has numbers.
    """
    names = dict.fromkeys(name for frame in frames for name in frame.columns)
    lengths = [len(frame.index) for frame in frames]
    columns = {
        name: _join_column([f.columns.get(name) for f in frames], lengths, what, name)
        for name in names
    }
    skipped = {k: v for frame in frames for k, v in frame.skipped.items()}
    index = np.concatenate([f.index for f in frames])
    return Frame(index, frames[0].index_name, columns, skipped)


def _join_column(
    parts: Sequence[Column | None], lengths: Sequence[int], what: Sequence[str], name: str
) -> Column:
    there = [(*part, where) for part, where in zip(parts, what, strict=True) if part is not None]
    kinds = {_is_text(values): where for values, _, where in there if not pd.isna(values).all()}
    if len(kinds) > 1:
        msg = (
            f"column {name!r} of `obs` holds text in {kinds[True]!r} and numbers in {kinds[False]!r}; "
            "give it one type and write it again, or open each by itself"
        )
        raise SchemaError(msg)
    missing = object if there[0][0].dtype.kind in "bO" else np.float64
    filled = [
        np.full(n, np.nan, missing) if part is None else part[0]
        for part, n in zip(parts, lengths, strict=True)
    ]
    values = np.concatenate(filled)
    vocabularies = [attrs["categories"] for _, attrs, _ in there if "categories" in attrs]
    if len(vocabularies) < len(there):
        return string_column(values) if kinds.get(True) else (values, {})
    united = list(dict.fromkeys(itertools.chain(*vocabularies)))
    if not all("ordered" in attrs for _, attrs, _ in there):
        return values, {"categories": united}  # text that was no categorical in some file
    ordered = all(attrs["ordered"] and attrs["categories"] == united for _, attrs, _ in there)
    return values, {"categories": united, "ordered": ordered}


def _is_text(values: npt.NDArray[Any]) -> bool:
    return bool(pd.api.types.infer_dtype(values, skipna=True) == "string")


def _layout(file: Tree, name: str) -> tuple[str, list[str]]:
    """Return the names of the index and of the columns."""
    index = file.attr(name, "_index")
    if index is None:
        msg = (
            f"`{name}` of {file.path!r} is no table: its attribute `_index`, which names the column of "
            f"names, is missing, and it has {file.children(name)}; write it again with anndata"
        )
        raise SchemaError(msg)
    return str(index), [str(c) for c in file.attr(name, "column-order") or ()]


def _index_leaf(file: Tree, name: str) -> Leaf:
    """Return the names of the rows, which may be of the encoding of missing values, but have none."""
    is_nullable = encoding_of(file, name) in NULLABLE
    return _leaf(file, f"{name}/values" if is_nullable else name)


def _leaf(file: Tree, name: str) -> Leaf:
    leaf = file.leaf(name)
    if leaf is None:
        msg = f"`{name}` of {file.path!r} is a group where values should be; write it again"
        raise ReadError(msg)
    return leaf


def _require_length(leaf: Leaf, length: int, table: str) -> None:
    if leaf.shape != (length,):
        label = leaf.name.removeprefix(f"{table}/")
        msg = (
            f"column {label!r} of `{table}` has {leaf.shape[0] if leaf.shape else 1} values, its "
            f"index {length}: {leaf.path!r} was not written to its end, or is damaged; get a new copy"
        )
        raise SchemaError(msg)


def _column(file: Tree, name: str, length: int, table: str) -> Column | None:
    """Read a column; None if it is of none of the encodings that become labels."""
    leaf, encoding = file.leaf(name), encoding_of(file, name)
    if encoding == "categorical" and leaf is None:
        codes = _leaf(file, f"{name}/codes")
        return _categorical(file, codes, name, f"{name}/categories", length, table)
    if leaf is None:
        return _nullable(file, name, length, table) if encoding in NULLABLE else None
    if len(leaf.shape) != 1 or not (leaf.is_text or leaf.dtype.kind in "biuf"):
        return None
    categories = file.attr(name, "categories")
    if categories is not None:  # dataframe 0.1.0 points into its subgroup `__categories`
        target = categories if categories.startswith("/") else f"{table}/{categories}"
        return _categorical(file, leaf, target, target, length, table)
    _require_length(leaf, length, table)
    values = leaf.read()
    return string_column(values) if leaf.is_text else (values, {})


def _categorical(
    file: Tree, codes: Leaf, described: str, categories: str, length: int, table: str
) -> Column:
    """Read codes and their vocabulary; `described` has the attribute `ordered`."""
    _require_length(codes, length, table)
    if file.leaf(categories) is None:
        vocabulary = _nullable(file, categories, None, table)[0]
    else:
        vocabulary = _leaf(file, categories).read()
    ordered = bool(file.attr(described, "ordered"))
    return _decoded(codes, np.asarray(codes.read(), np.int64), vocabulary, ordered=ordered)


def _decoded(
    codes: Leaf, positions: npt.NDArray[np.int64], vocabulary: npt.NDArray[Any], *, ordered: bool
) -> Column:
    if len(positions) and not -1 <= positions.min() <= positions.max() < len(vocabulary):
        msg = (
            f"`{codes.name}` of {codes.path!r} holds codes {positions.min()} to {positions.max()} for "
            f"{len(vocabulary)} categories: the file is damaged; get a new copy"
        )
        raise ReadError(msg)
    return categorical_column(positions, vocabulary, ordered=ordered)


def _nullable(file: Tree, name: str, length: int | None, table: str) -> Column:
    """Read values of which some are missing: NaN."""
    leaf, masked = (_leaf(file, f"{name}/{k}") for k in ("values", "mask"))
    for part in (leaf, masked):
        _require_length(part, leaf.shape[0] if length is None else length, table)
    values, mask = leaf.read(), np.asarray(masked.read(), bool)
    if mask.any():
        values = values.astype(np.float64 if values.dtype.kind in "iuf" else object)
        values[mask] = np.nan
    return string_column(values) if leaf.is_text else (values, {})


def _from_records(file: Tree, leaf: Leaf) -> Frame:
    """Read a table of anndata before 0.7: an array of records, whose first field is the index."""
    if leaf.dtype.names is None:
        msg = (
            f"`{leaf.name}` of {file.path!r} is an array and no table; write it again with anndata"
        )
        raise SchemaError(msg)
    records = leaf.read()
    index, *names = leaf.dtype.names
    columns: dict[str, Column] = {}
    for name in names:
        values = _texts(records[name])
        categories = file.leaf(f"uns/{name}_categories") if _has(file, name) else None
        if categories is not None:
            vocabulary = np.atleast_1d(categories.read())
            positions = np.asarray(values, np.int64)
            columns[name] = _decoded(leaf, positions, vocabulary, ordered=False)
        else:
            columns[name] = string_column(values) if values.dtype == object else (values, {})
    rows = np.array([str(v) for v in _texts(records[index])], object)
    return Frame(rows, "_index" if index == "index" else index, columns, {})


def _has(file: Tree, name: str) -> bool:
    return f"{name}_categories" in file.children("uns")


def _texts(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind not in "SO":
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    return np.array([v.decode() if isinstance(v, bytes) else v for v in values], object)
