"""Which files of cells are joined, what they are called, and which features the whole has."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xloader import schema
from xloader.errors import SchemaError, warn
from xloader.joined_arrays import Int64
from xloader.open import open_cells


@dataclass(frozen=True)
class CellFile:
    """One of the Datasets that are joined."""

    name: str
    ds: xr.Dataset
    first: int
    """Its first row in the whole."""
    datasets: list[str]
    """Names of the datasets that it holds: itself, or those it was joined from."""
    codes: Int64
    """Which of them each row is of."""
    is_opened_here: bool
    """Whether it was given as a path, so that nobody else closes it."""

    @property
    def rows(self) -> Int64:
        """
        Return where its rows are in the whole.

        Returns
        -------
        ndarray of int64, shape (n_rows,)
            One after the other.
        """
        return self.first + np.arange(self.ds.sizes["cell"])


@dataclass(frozen=True)
class Space:
    """Features along one dimension."""

    dim: str
    names: "pd.Index[Any]"
    """All of them, in the order of the whole."""
    to: dict[str, Int64]
    """Where those of each file go, -1 where they are left out; no entry where it has none."""


def files_of(sources: Any) -> list[CellFile]:
    """
    Open what is given, name it, and refuse what cannot be joined.

    Parameters
    ----------
    sources : mapping of str to (Dataset or path), or iterable of them
        As `concat` takes them.

    Returns
    -------
    list of CellFile
        In their order.

    Raises
    ------
    SchemaError
        If sources are no cells, or names in one of them are not unique.
    """
    named = _named(sources)
    files: list[CellFile] = []
    first, used = 0, set[str]()
    for name, source in named.items():
        is_path = not isinstance(source, xr.Dataset)
        ds = open_cells(source) if is_path else source
        _check(name, ds)
        names, codes = _datasets_of(name, ds)
        names = [x if x == name or x not in {*used, *named} else f"{name}/{x}" for x in names]
        used.update(names)
        files.append(CellFile(name, ds, first, names, codes, is_path))
        first += ds.sizes["cell"]
    return files


def spaces_of(files: Sequence[CellFile], join: Any) -> dict[str, Space]:
    """
    Join the features of files by name.

    Parameters
    ----------
    files : sequence of CellFile
        At least one.
    join : {"outer", "inner"} or iterable of str
        As `concat` takes it.

    Returns
    -------
    dict of str to Space
        By dimension.

    Raises
    ------
    SchemaError
        If features are unknown, given twice, or shared by no files.
    """
    if not isinstance(join, str | Iterable):
        msg = f"join={join!r} is unknown; choose 'outer', 'inner' or names of genes in a list"
        raise SchemaError(msg)
    wanted = join if isinstance(join, str) else list(join)
    dims = dict.fromkeys(dim for f in files for dim in _features_of(f.ds))
    return {dim: _space(dim, files, wanted) for dim in dims}


def few(names: Sequence[Any], n: int = 8) -> str:
    """
    Return the first of some names, for messages.

    Parameters
    ----------
    names : sequence
        Any names.
    n : int, optional
        How many to show.

    Returns
    -------
    str
        Quoted, and how many more there are.

    Examples
    --------
    >>> few(["a", "b", "c"], 2)
    "'a', 'b' and 1 more"
    """
    shown = ", ".join(repr(str(name)) for name in names[:n])
    return shown + (f" and {len(names) - n} more" if len(names) > n else "")


def _named(sources: Any) -> dict[str, Any]:
    """Name what is given."""
    if isinstance(sources, xr.Dataset | xr.DataArray | str | os.PathLike):
        msg = (
            f"several sources are joined, not one {type(sources).__name__}; give a list or a mapping, "
            "such as xl.concat(['a.h5ad', 'b.h5ad'])"
        )
        raise SchemaError(msg)
    named = isinstance(sources, Mapping)
    keys, given = (list(sources), list(sources.values())) if named else ([], list(sources))
    if not given:
        msg = "no sources were given; name files of cells, such as xl.concat(['a.h5ad', 'b.h5ad'])"
        raise SchemaError(msg)
    for k, source in enumerate(given):
        if not isinstance(source, xr.Dataset | str | os.PathLike):
            msg = (
                f"source {keys[k] if named else k!r} is {type(source).__name__}; give paths, or Datasets as "
                "xl.open_cells opens them"
            )
            raise SchemaError(msg)
    wrong = [k for k in keys if not isinstance(k, str) or not k]
    if wrong:
        msg = f"{wrong[0]!r} names a source; choose text, such as 'donor1'"
        raise SchemaError(msg)
    return dict(zip(keys or _names(given), given, strict=True))


def _names(sources: Sequence[Any]) -> list[str]:
    """Return a name for each source: its path, as short as tells it from others."""
    paths = [
        s.encoding.get("source") if isinstance(s, xr.Dataset) else os.fsdecode(s) for s in sources
    ]
    parts = [_parts(p) if p else (f"dataset{k}",) for k, p in enumerate(paths)]
    distinct = dict.fromkeys(parts, 1)  # how many parts tell a path from others
    for n in range(1, max(map(len, parts))):
        short = [p[-d:] for p, d in distinct.items()]
        for p, d in distinct.items():
            distinct[p] = n + 1 if short.count(p[-d:]) > 1 else d
    names, used = ["/".join(p[-distinct[p] :]) for p in parts], set[str]()
    for k, name in enumerate(names):  # the same file may be given twice
        free = (name, *(f"{name}-{i}" for i in range(2, len(names) + 1)))
        names[k] = next(x for x in free if x not in used)
        used.add(names[k])
    return names


def _parts(path: str) -> tuple[str, ...]:
    name, _, group = str(path).partition("::")
    place = PurePosixPath(name.replace(os.sep, "/").rstrip("/"))
    stem = place.name.removesuffix(".gz").rpartition(".")[0] or place.name
    inside = tuple(p for p in group.split("/") if p)
    return (*place.parts[:-1], "::".join([stem, *inside]))


def _check(name: str, ds: xr.Dataset) -> None:
    kind = schema.kind(ds)
    if kind != "cells":
        remedy = "; xl.merge puts contact maps together" if kind == "contacts" else ""
        msg = f"dataset {name!r} holds {kind} ({dict(ds.sizes)}), and cells are joined{remedy}"
        raise SchemaError(msg)
    schema.require(ds, ["cell"], f"dataset {name!r}")
    for dim in ("cell", *_features_of(ds)):
        names = ds.indexes[dim]
        twice = names[names.duplicated()].unique()
        if len(twice) and not (dim == "cell" and "dataset_name" in ds.coords):
            msg = (
                f"{dim!r} of dataset {name!r} has {len(twice)} names more than once: "
                f"{few(twice.tolist(), 5)}; make them unique, such as ds.assign_coords({dim}=ds.<column of "
                f"identifiers>.values), or select: ds.isel({dim}=~ds.indexes[{dim!r}].duplicated())"
            )
            raise SchemaError(msg)


def _features_of(ds: xr.Dataset) -> list[str]:
    """Return the dimensions along which features have names."""
    matrices = [v.dims for v in ds.data_vars.values() if v.ndim == 2 and v.dims[0] == "cell"]
    if any(d == ("cell", "gene") for d in matrices):
        schema.require(ds, ["gene"], "joining by names of genes")
    return list(dict.fromkeys(str(d) for _, d in matrices if d in ds.indexes))


def _datasets_of(name: str, ds: xr.Dataset) -> tuple[list[str], Int64]:
    """Return the datasets that a source holds, and which of them each cell is of."""
    if "dataset_name" not in ds.coords or "dataset" not in ds.coords:
        return [name], np.zeros(ds.sizes["cell"], np.int64)
    names = ds["dataset_name"].to_numpy().astype(str).tolist()  # joined already
    codes = pd.Index(names, dtype=object).get_indexer(ds["dataset"].to_numpy().astype(object))
    return names, codes.astype(np.int64)


def _space(dim: str, files: Sequence[CellFile], join: Any) -> Space:
    """Return the features of the whole."""
    given = {f.name: f.ds.indexes[dim] for f in files if dim in _features_of(f.ds)}
    indexes = [pd.Index(np.asarray(i), dtype=object) for i in given.values()]
    if isinstance(join, str):
        if join not in ("outer", "inner"):
            msg = f"join={join!r} is unknown; choose 'outer', 'inner' or names of genes in a list"
            raise SchemaError(msg)
        names = _inner(dim, given, indexes) if join == "inner" else _outer(dim, given, indexes)
    elif dim == "gene":
        names = _vocabulary(join, given, indexes)
    else:
        names = _outer(dim, given, indexes)
    to = {k: names.get_indexer(i) for k, i in zip(given, indexes, strict=True)}
    return Space(dim, names, to)


def _outer(
    dim: str, given: Mapping[str, Any], indexes: Sequence["pd.Index[Any]"]
) -> "pd.Index[Any]":
    names = pd.Index(pd.unique(np.concatenate(indexes)), dtype=object)
    alone = [
        name
        for name, own in zip(given, indexes, strict=True)
        if len(given) > 1 and not any(own is not i and own.isin(i).any() for i in indexes)
    ]
    if alone:
        shown = ", ".join(f"{k!r}: {few(given[k][:3].tolist())}" for k in [*alone, *given][:2])
        warn(
            f"{few(alone)} shares no {dim} with any other dataset ({shown}, ...); if these are names in one "
            f"and identifiers in the other, use one of them: ds.assign_coords({dim}=ds.<column>.values)"
        )
    return names


def _inner(
    dim: str, given: Mapping[str, Any], indexes: Sequence["pd.Index[Any]"]
) -> "pd.Index[Any]":
    names = indexes[0]
    for name, index in zip(given, indexes, strict=True):
        kept = names[names.isin(index)]
        if not len(kept):
            msg = (
                f"no {dim} is in all of {few(list(given))}: {name!r} has {few(index[:3].tolist())}..., and "
                f"{few(names[:3].tolist())}... are in all before it; join='outer' keeps every {dim}, or choose "
                f"the column that they share: ds.assign_coords({dim}=ds.<column>.values)"
            )
            raise SchemaError(msg)
        names = kept
    return names


def _vocabulary(
    join: Any, given: Mapping[str, Any], indexes: Sequence["pd.Index[Any]"]
) -> "pd.Index[Any]":
    names = pd.Index(np.asarray(join if isinstance(join, Sequence) else list(join)), dtype=object)
    if not len(names):
        msg = "join=[] keeps no gene; name some, or choose 'outer' or 'inner'"
        raise SchemaError(msg)
    twice = names[names.duplicated()].unique()
    if len(twice):
        msg = (
            f"join= names {len(twice)} genes more than once: {few(twice.tolist())}; name each once"
        )
        raise SchemaError(msg)
    there = pd.unique(np.concatenate(indexes))
    unknown = names[~names.isin(there)]
    if len(unknown):
        alike = [_alike(str(x), there) for x in unknown[:3]]
        meant = "; ".join(f"{x!r} may be {a!r}" for x, a in zip(unknown, alike, strict=False) if a)
        msg = (
            f"join= names {len(unknown)} of {len(names)} genes that no dataset has: "
            f"{few(unknown.tolist())}; {meant or 'they have ' + few(there[:3].tolist()) + '...'}: mend or leave "
            "these names out"
        )
        raise SchemaError(msg)
    for name, index in zip(given, indexes, strict=True):
        if not names.isin(index).any():
            msg = (
                f"dataset {name!r} has none of the {len(names)} genes of join=, but "
                f"{few(index[:3].tolist())}...; leave it out, or choose the column that holds such names: "
                "ds.assign_coords(gene=ds.<column>.values)"
            )
            raise SchemaError(msg)
    return names


def _alike(name: str, there: npt.NDArray[Any]) -> str | None:
    names = [str(x) for x in there]
    same = [x for x in names if x.casefold() == name.casefold()]
    return next(iter(same or difflib.get_close_matches(name, names, n=1)), None)
