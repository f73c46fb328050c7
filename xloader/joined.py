"""Many files of cells as one Dataset: rows one below the other, features joined by name."""

import uuid
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import dask.base
import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader import schema, trace
from xloader.arrays import RowArray, StoredArray
from xloader.csr import CSRArray
from xloader.errors import PerformanceWarning, SchemaError, warn
from xloader.joined_arrays import (
    Int64,
    JoinedDense,
    JoinedRows,
    Rows,
    block_of,
    native,
    panel_of,
    rows_of,
)
from xloader.joined_files import CellFile, Space, few, files_of, spaces_of
from xloader.joined_labels import Piece, shared_attrs, stacked, united
from xloader.packed import Panel

_OWN = ("dataset", "dataset_name")


def concat(
    sources: Mapping[str, Any] | Iterable[Any], *, join: str | Iterable[Hashable] = "outer"
) -> xr.Dataset:
    """
    Put the cells of several files one below the other, with features joined by name.

    Nothing is copied: rows are read where they are stored, and their columns renumbered.

    Parameters
    ----------
    sources : mapping of str to (Dataset or path), or iterable of them
        Cells, as `open_cells` opens them, with whatever was selected. In a list, a file is named
        like itself without its ending, with as many of its folders as tell it from others; what is
        of no file ``dataset0``, ``dataset1``, ....
    join : {"outer", "inner"} or iterable of str, optional
        Which genes: all, in the order in which files have them first; those of all files, in the
        order of the first; or these, in this order. Other features, such as proteins, are joined
        "outer" if genes are given.

    Returns
    -------
    xarray.Dataset
        Lazy. `dataset (cell)` says which file a cell is of, ``<variable>_measured (dataset, gene)``
        (bool) which genes each file has, `dataset_name (dataset)` names its rows; all three are
        coordinates. What is not measured reads as 0. `row` counts within each file, `column` the
        genes of the whole. Variables are sparse if those of any file are. What a file lacks is
        missing: NaN in columns and embeddings, and a variable of features is not measured in it.

    Raises
    ------
    ReadError
        If a file cannot be opened.
    SchemaError
        If sources are no cells, names are not unique, genes are unknown or shared by no files,
        columns hold values of different kinds, or embeddings are of different widths.

    Notes
    -----
    Names of cells stay as they are, and need not be unique across files, as barcodes are not:
    ``ds.query(cell="dataset == 'a'").sel(cell="AAAC-1")`` selects one of them, and
    ``ds.assign_coords(cell=ds.dataset.str.cat(ds.cell, sep="/"))`` makes them unique.

    Examples
    --------
    >>> def cells(genes, x):
    ...     return xr.Dataset({"X": (("cell", "gene"), x)}, {"cell": ["AC", "GT"], "gene": genes})
    >>> a, b = cells(["g1", "g2"], [[1, 0], [0, 2]]), cells(["g2", "g3"], [[3, 0], [0, 4]])
    >>> both = concat({"a": a, "b": b})
    >>> both.gene.values.tolist(), both.dataset.values.tolist()
    (['g1', 'g2', 'g3'], ['a', 'a', 'b', 'b'])
    >>> both.X.values.tolist()
    [[1, 0, 0], [0, 2, 0], [0, 3, 0], [0, 0, 4]]
    >>> both.X_measured.values.tolist()
    [[True, True, False], [False, True, True]]
    >>> concat([a, b], join=["g3", "g2"]).X.values.tolist()
    [[0, 0], [0, 2], [0, 3], [4, 0]]
    """
    files = files_of(sources)
    spaces = spaces_of(files, join)
    chunked = any(v.chunks for f in files for v in f.ds.data_vars.values())
    token = _token(files, spaces) if chunked else ""
    out, masks, left_out = {}, {}, []
    for key in dict.fromkeys(str(v) for f in files for v in f.ds.data_vars):
        variables = {f.name: f.ds.variables[key] for f in files if key in f.ds.data_vars}
        made = _variable(key, variables, files, spaces, f"{key}-{token}")
        if made is None:
            left_out.append(key)
            continue
        out[key] = made
        if len(made.dims) > 1 and made.dims[1] in spaces:
            masks[key] = _mask(key, spaces[str(made.dims[1])], files)
    coords, lost = _coordinates(files, spaces)
    coords |= _main_masks(masks, out)
    if left_out or lost:
        warn(
            f"left out of the joined Dataset, as it differs between {few([f.name for f in files])}: "
            f"{few(sorted([*left_out, *lost]))}; drop_vars() silences this"
        )
    ds = xr.Dataset(out, coords, shared_attrs(f.ds.attrs for f in files))
    ds.set_close(partial(_close, [f.ds for f in files if f.is_opened_here]))
    return schema.keep_labels(ds)


def _close(opened: Sequence[xr.Dataset]) -> None:
    for ds in opened:
        ds.close()


def _token(files: Sequence[CellFile], spaces: Mapping[str, Space]) -> str:
    """Return what tells these very data from others; files that change are others."""
    arrays: list[Any] = []
    for f in files:
        for v in f.ds.data_vars.values():
            if not (v.chunks or v.variable._in_memory):  # nothing says which file, of what date
                return uuid.uuid4().hex
            arrays.append(v.variable._data)
    names = [(f.name, f.datasets, f.ds.sizes["cell"]) for f in files]
    joined = [
        (s.dim, s.names.tolist(), [(k, v.tolist()) for k, v in s.to.items()])
        for s in spaces.values()
    ]
    return str(dask.base.tokenize(names, joined, arrays))


def _variable(
    key: str,
    variables: Mapping[str, xr.Variable],
    files: Sequence[CellFile],
    spaces: Mapping[str, Space],
    name: str,
) -> xr.Variable | None:
    """Join a data variable, if it can be."""
    dims = {v.dims for v in variables.values()}
    first = next(iter(variables.values()))
    if len(dims) > 1:
        msg = f"{key!r} has dimensions {sorted(map(str, dims))} in different datasets; rename it in one"
        raise SchemaError(msg)
    if "cell" not in first.dims:
        touched = any(d in spaces and not _is_same(spaces[str(d)]) for d in first.dims)
        alike = len(variables) == len(files) and _alike(variables.values())
        return first if alike and not touched else None
    if first.dims[0] != "cell" or any(d in spaces for d in first.dims[2:]):
        return None
    attrs = shared_attrs(v.attrs for v in variables.values())
    if first.ndim == 1:
        values, attrs = _stack(key, variables, files)
        return schema.label("cell", values, attrs)
    if any(v.dtype.kind not in "biufc" for v in variables.values()):
        return None
    space = spaces.get(str(first.dims[1]))
    _check_widths(key, variables, space)
    sparse = _sparse(variables)
    if sparse and space is not None:
        array, rows = _joined_rows(key, variables, files, space)
    else:
        array, rows = _joined_dense(key, variables, files, space)
    return _opened(array, rows, first.dims, attrs, variables, files, name)


def _is_same(space: Space) -> bool:
    """Say whether all files have the same features in the same order."""
    return all(np.array_equal(to, np.arange(len(space.names))) for to in space.to.values())


def _alike(variables: Iterable[xr.Variable]) -> bool:
    first, *others = variables
    return all(v.identical(first) for v in others)  # type: ignore[no-untyped-call]


def _check_widths(key: str, variables: Mapping[str, xr.Variable], space: Space | None) -> None:
    shapes = {k: v.shape[1 if space is None else 2 :] for k, v in variables.items()}
    first, shape = next(iter(shapes.items()))
    for name, other in shapes.items():
        if other != shape:
            msg = (
                f"{key!r} has {shape} values a cell in {first!r} and {other} in {name!r}; its columns have no "
                f"names to join them by: select the same number in each, or ds.drop_vars({key!r})"
            )
            raise SchemaError(msg)


def _sparse(variables: Mapping[str, xr.Variable]) -> bool:
    views = [trace.view(v) for v in variables.values()]
    return any(v is not None and isinstance(v.array, RowArray) for v in views)


def _joined_rows(
    key: str, variables: Mapping[str, xr.Variable], files: Sequence[CellFile], space: Space
) -> tuple[StoredArray, Int64]:
    """Return sparse rows of all files, and which of them are wanted."""
    n = len(space.names)
    dtype = np.result_type(*(native(v.dtype) for v in variables.values()))
    parts: list[Rows] = []
    known: dict[tuple[int, bytes], Panel] = {}
    wanted = []
    for f in files:
        variable = variables.get(f.name)
        if variable is None:
            variable = _nothing(f.ds.sizes["cell"], dtype)
        view = trace.view(variable)
        if view is None or not isinstance(view.array, RowArray):
            if trace.is_computed(variable):
                _tell_computed(key, f.name)
            array, rows, stored = rows_of(variable), np.arange(variable.shape[0]), None
        else:
            array, (rows, stored) = view.array, view.index
        to = space.to[f.name] if f.name in variables else np.zeros(0, np.int64)
        columns = np.arange(array.shape[1]) if stored is None else stored
        panel = panel_of(columns, to, array.shape[1], n)
        if panel is not None:  # files with the same genes share it, also on the way to workers
            panel = known.setdefault((array.shape[1], panel.place.tobytes()), panel)
        parts.append(Rows(f.name, array, panel))
        wanted.append(rows)
    joined = JoinedRows(parts, n, dtype)
    return joined, _flat(wanted, joined.firsts)


def _nothing(n: int, dtype: np.dtype[Any]) -> xr.Variable:
    """Return rows without columns, for a file that lacks a variable."""
    none = np.zeros(0, np.int32)
    rows = CSRArray(none.astype(dtype), none, np.zeros(n + 1, np.int64), (n, 0))
    return xr.Variable(("cell", "feature"), rows)


def _joined_dense(
    key: str, variables: Mapping[str, xr.Variable], files: Sequence[CellFile], space: Space | None
) -> tuple[StoredArray, Int64]:
    """Return dense rows of all files, and which of them are wanted."""
    first = next(iter(variables.values()))
    dtype = np.result_type(*(native(v.dtype) for v in variables.values()))
    fill = 0.0
    if space is None and len(variables) < len(files):  # an embedding is missing, not zero
        dtype, fill = np.result_type(dtype, np.float32), np.nan
    width = first.shape[1] if space is None else len(space.names)
    blocks, wanted = [], []
    for f in files:
        columns: Int64 | None = None
        variable = variables.get(f.name)
        if variable is None:
            none = np.broadcast_to(np.array(fill, dtype), (f.ds.sizes["cell"], 0, *first.shape[2:]))
            variable, columns = xr.Variable(first.dims, none), np.full(width, -1)
        elif space is not None:
            columns = _inverse(space.to[f.name], width)
        if trace.is_computed(variable):
            _tell_computed(key, f.name)
        block, rows = block_of(f.name, variable, columns)
        blocks.append(block)
        wanted.append(rows)
    joined = JoinedDense(blocks, (width, *first.shape[2:]), dtype, fill)
    return joined, _flat(wanted, joined.firsts)


def _inverse(to: Int64, n: int) -> Int64 | None:
    """Return which column of a file goes to each place, -1 where none does."""
    if np.array_equal(to, np.arange(n)):
        return None
    out = np.full(n, -1, np.int64)
    kept = np.flatnonzero(to >= 0)
    out[to[kept]] = kept
    return out


def _tell_computed(key: str, name: str) -> None:
    warn(
        f"{key!r} of dataset {name!r} is an expression on stored data: it is computed block by block, "
        "densely; selections on the Dataset and the same function as `transform=` are faster",
        PerformanceWarning,
    )


def _flat(wanted: Sequence[Int64], firsts: Int64) -> Int64:
    rows = [first + r for first, r in zip(firsts, wanted, strict=False)]
    return np.concatenate(rows).astype(np.int64)


def _opened(
    array: StoredArray,
    rows: Int64,
    dims: tuple[Hashable, ...],
    attrs: Mapping[str, Any],
    variables: Mapping[str, xr.Variable],
    files: Sequence[CellFile],
    name: str,
) -> xr.Variable:
    """Return a lazy variable, in dask chunks of one file each if that of any file is."""
    variable = schema.lazy(map(str, dims), array, attrs)
    preferred = variable.encoding["preferred_chunks"]
    if not np.array_equal(rows, np.arange(array.shape[0])):
        variable = variable.isel(cell=rows)
        variable.encoding["preferred_chunks"] = preferred
    if not any(v.chunks for v in variables.values()):
        return variable
    chunks: dict[Any, Any] = {d: preferred[str(d)] for d in dims[1:]}
    each = preferred["cell"]
    sizes = [f.ds.sizes["cell"] for f in files]
    chunks["cell"] = tuple(min(each, n - a) for n in sizes for a in range(0, n, each))
    return variable.chunk(chunks, name=name)


def _stack(name: str, variables: Mapping[str, xr.Variable], files: Sequence[CellFile]) -> Any:
    pieces = []
    for f in files:
        v = variables.get(f.name)
        values = None if v is None else np.asarray(v.values)
        pieces.append(Piece(f.name, values, {} if v is None else v.attrs, f.rows))
    return stacked(name, pieces, sum(f.ds.sizes["cell"] for f in files))


def _mask(key: str, space: Space, files: Sequence[CellFile]) -> npt.NDArray[np.bool_]:
    """Return which features each dataset has of a variable."""
    rows = []
    for f in files:
        mask = np.zeros((len(f.datasets), len(space.names)), bool)
        if key in f.ds.data_vars:
            to = space.to[f.name]
            known = f.ds.coords.get(f"{key}_measured")
            if known is None:
                known = f.ds.coords.get(f"{_main(f.ds, space.dim)}_measured")
            mask[:, to[to >= 0]] = True
            if known is not None and known.dims == ("dataset", space.dim):
                mask[:, to[to >= 0]] = known.to_numpy()[:, to >= 0]
        rows.append(mask)
    return np.concatenate(rows)


def _main(ds: xr.Dataset, dim: str) -> str:
    """Return the variable that the mask of some features is named after."""
    names = [str(k) for k, v in ds.data_vars.items() if v.dims[:2] == ("cell", dim)]
    return "X" if "X" in names else names[0]


def _main_masks(
    masks: Mapping[str, npt.NDArray[np.bool_]], variables: Mapping[str, xr.Variable]
) -> dict[str, xr.Variable]:
    """Return the mask of each kind of features, and those of other variables that differ from it."""
    whole = xr.Dataset(variables)
    out = {}
    for key, mask in masks.items():
        dim = str(variables[key].dims[1])
        main = _main(whole, dim)
        if key == main or not np.array_equal(mask, masks[main]):
            out[f"{key}_measured"] = xr.Variable(("dataset", dim), mask)
    return out


def _coordinates(
    files: Sequence[CellFile], spaces: Mapping[str, Space]
) -> tuple[dict[str, Any], list[str]]:
    """Return all labels, and the names of those that cannot be joined."""
    names = [name for f in files for name in f.datasets]
    offsets = np.cumsum([0, *(len(f.datasets) for f in files)])
    codes = np.concatenate([o + f.codes for o, f in zip(offsets, files, strict=False)])
    values, attrs = schema.categorical_column(codes, np.array(names, object), ordered=False)
    cell = np.concatenate([np.asarray(f.ds.indexes["cell"], object) for f in files])
    coords: dict[str, Any] = {"cell": schema.label("cell", cell)}
    for dim, space in spaces.items():
        coords[dim] = schema.label(dim, np.asarray(space.names))
    taken = {str(d) for f in files for d in f.ds.dims} | {
        str(v) for f in files for v in f.ds.data_vars
    }
    coords["dataset"] = schema.label("cell", values, attrs)
    coords["dataset_name"] = schema.label("dataset", np.array(names, object))
    lost = []
    for key in dict.fromkeys(str(c) for f in files for c in f.ds.coords):
        there = {f.name: c for f in files if (c := _own(f, key)) is not None}
        if not there or key in ("cell", "column", *spaces):
            continue
        dims = {v.dims for v in there.values()}
        along = next(iter(dims))
        new = key
        while new in _OWN or (new in taken and new not in along):
            new = f"{along[0]}_{new}" if along else f"source_{new}"
        if dims == {("cell",)}:
            made = _stack(key, _completed(key, there, files), files)
        elif len(dims) == 1 and len(along) == 1 and along[0] in spaces:
            made = _unite(key, there, spaces[str(along[0])])
        elif len(there) == len(files) and _alike(there.values()):
            coords[new] = next(iter(there.values()))
            continue
        else:
            lost.append(key)
            continue
        extra = {} if new == key else {"column": key}
        coords[new] = schema.label(tuple(map(str, along)), made[0], {**made[1], **extra})
    n = sum(f.ds.sizes["cell"] for f in files)
    coords.setdefault("row", xr.Variable("cell", np.arange(n)))
    if "gene" in spaces:
        coords["column"] = xr.Variable("gene", np.arange(len(spaces["gene"].names)))
    return coords, lost


def _own(f: CellFile, key: str) -> xr.Variable | None:
    """Return a coordinate of a file, if it is not one that joining made."""
    if key not in f.ds.coords or (
        "dataset_name" in f.ds.coords and (key in _OWN or f.ds[key].dims[:1] == ("dataset",))
    ):
        return None
    return f.ds.variables[key]


def _completed(
    key: str, there: Mapping[str, xr.Variable], files: Sequence[CellFile]
) -> Mapping[str, xr.Variable]:
    """Complete what some files do not say of their cells: their numbers, and what was measured."""
    if key == "row":
        count = {f.name: xr.Variable("cell", np.arange(f.ds.sizes["cell"])) for f in files}
        return {**count, **there}
    modality = key.removesuffix("_present")
    if modality == key or any(v.dtype != bool for v in there.values()):
        return there
    return {
        f.name: there[f.name]
        if f.name in there
        else xr.Variable("cell", np.full(f.ds.sizes["cell"], modality in f.ds.data_vars))
        for f in files
    }


def _unite(name: str, there: Mapping[str, xr.Variable], space: Space) -> Any:
    if name.endswith("_column"):  # of a modality: numbers of its features
        return np.arange(len(space.names)), {}
    pieces = [Piece(k, np.asarray(v.values), v.attrs, space.to[k]) for k, v in there.items()]
    return united(name, pieces, len(space.names))
