"""Regions of a genome as somebody writes them: text, BED and BEDPE files, and data frames."""

import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from typing_extensions import override

from xloader.errors import ReadError, SchemaError

Int64 = npt.NDArray[np.int64]

_FIELDS = ["chrom", "start", "end"]
_PAIRED = [f"{name}{side}" for side in "12" for name in _FIELDS]
_NO_REGION = ("#", "track", "browser")
_HEADS = {"start", "start1", "x1", "chromstart", "chromstart1"}


@dataclass(frozen=True)
class Side:
    """Regions, one per row of a table."""

    chrom: npt.NDArray[np.object_]
    """Names of their chromosomes, shape (n,)."""
    start: Int64
    """First position, in bp from 0, shape (n,)."""
    end: Int64
    """One past the last position, shape (n,)."""


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Regions, or pairs of them."""

    name: str
    """What the table is called in messages."""
    sides: tuple[Side, ...]
    """One, or one for rows and one for columns of a contact map."""
    rows: Sequence[Any]
    """What each row is called in messages, such as its line."""

    def __len__(self) -> int:
        return len(self.rows)

    @override
    def __repr__(self) -> str:
        return f"<{len(self)} {'pairs of ' * (len(self.sides) - 1)}regions of {self.name}>"

    def row(self, i: int) -> str:
        """
        Return what a row says.

        Parameters
        ----------
        i : int
            Its place.

        Returns
        -------
        str
            Such as ``"line 4, chr1:0-500"``.
        """
        places = (f"{s.chrom[i]}:{s.start[i]:,}-{s.end[i]:,}" for s in self.sides)
        return f"{self.rows[i]}, {' x '.join(places)}"


def bounds_of(text: str) -> tuple[str, int, int] | None:
    """
    Return what a region that is written as text says.

    Parameters
    ----------
    text : str
        Such as ``"chr2:1,000,000-2,000,000"``: bp, 0-based and half-open.

    Returns
    -------
    tuple of str, int and int, or None
        Chromosome, start and end; None if it is no such text.

    Examples
    --------
    >>> bounds_of("chr2:1,000-2,000")
    ('chr2', 1000, 2000)
    """
    match = re.fullmatch(r"(.+):(\d[\d,]*)-(\d[\d,]*)", text.strip())
    if match is None:
        return None
    return match[1], int(match[2].replace(",", "")), int(match[3].replace(",", ""))


def is_file(text: str) -> bool:
    """
    Say whether there is a file of that name.

    Parameters
    ----------
    text : str
        Anything.

    Returns
    -------
    bool
        False also for what cannot be a path.

    Examples
    --------
    >>> is_file("chr2:1,000-2,000")
    False
    """
    return os.path.isfile(text)  # noqa: PTH113 # pathlib raises for what cannot be a path


def read_table(table: Any) -> Table:
    """
    Read regions.

    Parameters
    ----------
    table : str, path-like, sequence of str or pandas.DataFrame
        Text as `bounds_of` takes it, one or several; a BED file (3 columns or more), a BEDPE file (6 or more: the fifth and sixth are numbers), also
        compressed; or a data frame with columns `chrom`, `start`, `end`, or `chrom1` to `end2`.

    Returns
    -------
    Table
        Comments, headers, and lines of genome browsers are not among its rows.

    Raises
    ------
    ReadError
        If the file cannot be read.
    SchemaError
        If a column is missing, or a row is no region; names file and line.
    """
    if isinstance(table, pd.DataFrame):
        paired = "chrom1" in table.columns
        wanted = _PAIRED if paired else _FIELDS
        lacking = [c for c in wanted if c not in table.columns]
        if lacking:
            msg = (
                f"the data frame of regions lacks {lacking}; it has {list(map(str, table.columns))} "
                f"and needs {_FIELDS}, or {_PAIRED} for pairs"
            )
            raise SchemaError(msg)
        rows = [f"row {label!r}" for label in table.index.tolist()]
        return _checked(table[wanted].reset_index(drop=True), "the data frame", rows)
    texts = [table] if isinstance(table, str) and not is_file(table) else table
    if isinstance(texts, Iterable) and all(isinstance(t, str) and bounds_of(t) for t in texts):
        found = pd.DataFrame([bounds_of(t) for t in texts], columns=_FIELDS)
        return _checked(found, "the list", [f"region {k}" for k in range(len(found))])
    if not isinstance(table, str | os.PathLike):
        msg = (
            "regions are text such as 'chr1:0-5,000,000', the path of a BED or BEDPE file, or a data "
            f"frame, not {table!r}"
        )
        raise SchemaError(msg)
    path = os.fspath(table)
    lines = pd.Series(_text(path).splitlines(), dtype=object)
    # fields beyond those are names and scores, which may hold anything
    fields = lines.str.split(n=6, expand=True).reindex(columns=range(6))
    first = fields[0].fillna("#").astype(str)
    fields = fields[~first.str.startswith("#") & ~first.isin(_NO_REGION)]
    if len(fields) and str(fields.iloc[0, 1]).lower() in _HEADS:
        fields = fields.iloc[1:]
    numbered = fields[[4, 5]].apply(lambda c: c.astype(str).str.fullmatch(r"-?\d+"))
    n = 6 if len(fields) and numbered.to_numpy(bool).all() else 3
    rows = [f"line {k + 1}" for k in fields.index.tolist()]
    fields = fields[list(range(n))].set_axis(_PAIRED[:n] if n == 6 else _FIELDS, axis=1)
    return _checked(fields.reset_index(drop=True), repr(path), rows)


def _text(path: str) -> str:
    import fsspec  # type: ignore[import-untyped]

    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            return str(file.read().decode())
    except (OSError, EOFError, ValueError, zlib.error) as e:
        msg = f"regions cannot be read from {path!r} ({e}); give a BED or BEDPE file, plain or .gz"
        raise ReadError(msg) from e


def _checked(frame: pd.DataFrame, name: str, rows: list[str]) -> Table:
    """Refuse rows that are no regions."""
    if not len(frame):
        msg = f"{name} holds no region; give at least one row of {list(frame.columns)}"
        raise SchemaError(msg)
    sides = []
    for k in range(0, len(frame.columns), 3):
        chrom = frame.iloc[:, k]
        bounds = frame.iloc[:, k + 1 : k + 3].apply(pd.to_numeric, errors="coerce")
        bounds = bounds.to_numpy(np.float64)
        whole = np.isfinite(bounds) & (bounds == np.floor(bounds))
        bad = chrom.isna().to_numpy() | ~whole.all(axis=1) | (bounds[:, 0] > bounds[:, 1])
        if bad.any():
            i = int(bad.argmax())
            columns = frame.columns[k : k + 3].tolist()
            msg = (
                f"{rows[i]} of {name} is no region: {columns} are {frame.iloc[i, k : k + 3].tolist()}, "
                f"and have to be a name and two whole numbers, start <= end ({int(bad.sum()):,} such "
                f"rows of {len(frame):,}); mend or remove them"
            )
            raise SchemaError(msg)
        start, end = bounds.astype(np.int64).T
        sides.append(Side(chrom.astype(str).to_numpy(object), start, end))
    return Table(name, tuple(sides), rows)


def alike(name: str, known: Iterable[str]) -> str | None:
    """
    Return the chromosome that somebody may have meant.

    Parameters
    ----------
    name : str
        A name that is not known.
    known : iterable of str
        Names that are.

    Returns
    -------
    str or None
        None if there is nothing alike.

    Examples
    --------
    >>> alike("chr1", ["1", "2", "MT"]), alike("chrM", ["1", "MT"]), alike("chr9", ["1"])
    ('1', 'MT', None)
    """
    return next((k for k in known if _plain(k) == _plain(name)), None)


def _plain(name: str) -> str:
    short = name.lower().removeprefix("chr")
    return "mt" if short == "m" else short
