"""Cell-by-gene arrays as AnnData stores them: HDF5 files (.h5ad), zarr stores, collections of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from typing_extensions import override
from xarray.backends import BackendEntrypoint

from xloader.arrays import RowArray, StoredArray
from xloader.backends.anndata_frames import (
    Frame,
    FrameArray,
    is_numeric_frame,
    join_frames,
    read_frame,
)
from xloader.backends.anndata_matrices import CSCGroup, CSRGroup
from xloader.backends.elements import DenseElement, Tree, encoding_of
from xloader.backends.hdf5 import HDF5File
from xloader.backends.mapped import MappedArray, MappedRows, RowMap
from xloader.backends.zarr_tree import ZarrTree, is_zarr
from xloader.errors import ReadError, SchemaError, warn
from xloader.schema import cells_dataset, names_in

__all__ = ["AnnDataBackendEntrypoint", "CSCGroup", "CSRGroup", "cells_of", "engine_of", "tree_of"]

_RESERVED = ("X", "cell", "gene", "row", "column", "sample_id", "valid")


class AnnDataBackendEntrypoint(BackendEntrypoint):
    """
    Open AnnData as labelled Datasets: ``xr.open_dataset(path, engine="anndata")``.

    `X` and each layer become variables ``(cell, gene)``, each array in `obsm` a variable
    ``(cell, <name>_dim)``, the columns of `obs` and `var` coordinates. `obsp`, `varm`, `varp` and
    `uns` are not opened; `raw` is by itself, as ``path::/raw``.
    """

    description = "Cell-by-gene arrays of AnnData (.h5ad, .zarr, collections of annbatch)"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = ("filename_or_obj", "drop_variables")

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:  # numpydoc ignore=GL08
        if not isinstance(filename_or_obj, str | Path):
            return False
        path = Path(filename_or_obj)
        if path.suffix == ".h5ad":
            return True
        try:
            return is_zarr(path) and engine_of(ZarrTree(str(path)), "") == "anndata"
        except ReadError:
            return False

    @override
    def open_dataset(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> xr.Dataset:
        """
        Open a file or store lazily; names and labels are read, matrices are not.

        Parameters
        ----------
        filename_or_obj : str or path
            An AnnData file, zarr store, or zarr group of several that have the same genes, or
            ``path::group``; known by what is in it and not by its name.
        drop_variables : str or iterable of str, optional
            Variables and coordinates to leave out.

        Returns
        -------
        xarray.Dataset
            Named as DESIGN "Labels" says. What cannot be opened is left out with a warning.

        Raises
        ------
        ReadError
            If there is no such file, it is truncated or damaged, or leads into other files.
        SchemaError
            If it is no AnnData, or its shapes disagree.
        """
        tree, group = tree_of(filename_or_obj, "AnnData")
        dropped = names_in(drop_variables)
        with tree.reading():
            found = engine_of(tree, group)
            if found != "anndata":
                msg = (
                    f"{tree.path!r} is not an AnnData file: {f'{group!r}' if group else 'it'} has "
                    f"{tree.children(group)} and no `obs`, `var` and `X` (or `layers`); "
                    + (
                        f'use engine="{found}", or open one modality: `{tree.path}::/mod/...`'
                        if found
                        else "open it with the engine of its own format"
                    )
                )
                raise SchemaError(msg)
            ds, skipped = cells_of(tree, group)
        tell_skipped(
            tree.path, {n: e for n, e in skipped.items() if n.split("/")[-1] not in dropped}
        )
        ds = ds.drop_vars(dropped, errors="ignore")
        ds.set_close(tree.close)
        return ds


def tree_of(filename_or_obj: Any, what: str) -> tuple[Tree, str]:
    """
    Return the file or store that a user names, and the group in it.

    Parameters
    ----------
    filename_or_obj : str or path
        A path, or ``path::group``.
    what : str
        What it is opened as, for messages.

    Returns
    -------
    tree : Tree
        An HDF5 file, or a zarr store.
    group : str
        Path of the group; empty for the root.

    Raises
    ------
    ReadError
        If nothing is there, or it is neither.
    """
    if not isinstance(filename_or_obj, str | Path):
        msg = (
            f"cannot open a {type(filename_or_obj).__name__} as {what}; only files on disk can "
            "be reopened by worker processes: save it and pass the path"
        )
        raise ReadError(msg)
    name, _, group = str(filename_or_obj).partition("::")
    if "://" in name:
        msg = (
            f"{name!r} is a URL, and {what} is read from a disk: copy it, or convert it where it is"
        )
        raise ReadError(msg)
    path = Path(name).expanduser().absolute()
    tree: Tree = ZarrTree(str(path)) if path.is_dir() else HDF5File(str(path))
    return tree, group.strip("/")


def engine_of(tree: Tree, group: str) -> str | None:
    """
    Say what a group is, by what is in it.

    Parameters
    ----------
    tree : Tree
        A file or store.
    group : str
        Path of a group in it; empty for the root.

    Returns
    -------
    str or None
        ``"anndata"`` (also for several side by side), ``"mudata"`` or None.
    """
    there = {*tree.children(group)}
    if "mod" in there and not {"X", "layers"} & there:
        return "mudata"
    if _is_one(tree, group) or _members(tree, group):
        return "anndata"
    return None


def tell_skipped(path: str, skipped: Mapping[str, str]) -> None:
    """
    Warn of what an opened file holds and its Dataset does not.

    Parameters
    ----------
    path : str
        The file.
    skipped : mapping of str to str
        Paths of elements, and their encodings.
    """
    if skipped:
        named = ", ".join(f"`{name}` ({encoding})" for name, encoding in skipped.items())
        warn(
            f"{path!r} holds elements that have no form as a labelled array and were left out: "
            f"{named}; name them in `drop_variables` to silence this"
        )


def cells_of(tree: Tree, group: str) -> tuple[xr.Dataset, dict[str, str]]:
    """
    Open a group that `engine_of` calls AnnData.

    Parameters
    ----------
    tree : Tree
        The file or store.
    group : str
        Path of the group in it; empty for the root.

    Returns
    -------
    ds : xarray.Dataset
        Nothing but names and labels has been read.
    skipped : dict of str to str
        Elements that it lacks, and their encodings.

    Raises
    ------
    ReadError
        If it is damaged.
    SchemaError
        If its shapes disagree.
    """
    if _is_one(tree, group):
        parts = [_Opening(tree, group)]
    else:
        names = _members(tree, group)
        _require_all(tree, group, names)
        parts = [_Opening(tree, f"{group}/{name}".lstrip("/")) for name in names]
        for part in parts[1:]:
            part.require_like(parts[0])
    obs, first = join_frames([p.obs for p in parts], [p.group for p in parts]), parts[0]
    arrays = first.arrays if len(parts) == 1 else _stacked(parts)
    ds = cells_dataset(
        arrays,
        cell=obs.index,
        gene=first.var.index,
        obs=obs.columns,
        var=first.var.columns,
        coords=first.coords,
    )
    for dim, frame in (("cell", obs), ("gene", first.var)):
        if frame.index_name != "_index":
            ds[dim].attrs["column"] = frame.index_name
    return ds, {k: v for part in parts for k, v in part.skipped.items()}


def _is_one(tree: Tree, group: str) -> bool:
    there = {*tree.children(group)}
    is_raw = group.rpartition("/")[2] == "raw" and {"X", "var"} <= there
    return is_raw or ({"obs", "var"} <= there and bool({"X", "layers"} & there))


def _members(tree: Tree, group: str) -> list[str]:
    """Return the names of the AnnData that lie side by side in a group, in the order of numbers."""
    names = [n for n in tree.children(group) if _is_one(tree, f"{group}/{n}".lstrip("/"))]

    def number(name: str) -> tuple[str, int]:
        stem = name.rstrip("0123456789")
        return stem, int(name[len(stem) :] or 0)

    return sorted(names, key=number)


def _require_all(tree: Tree, group: str, names: Sequence[str]) -> None:
    """Refuse a collection of annbatch, which numbers its datasets, of which one was lost."""
    lost = sorted({f"dataset_{k}" for k in range(len(names))} - {*names})
    if lost and encoding_of(tree, group).startswith("annbatch"):
        msg = f"{tree.path!r} lacks {lost} of its datasets, and has {names[-1]!r}: copy it again"
        raise ReadError(msg)


_Arrays = dict[str, tuple[tuple[str, ...], StoredArray, dict[str, str]]]


class _Opening:
    """One AnnData being opened: what was found, and what cannot be shown."""

    def __init__(self, tree: Tree, group: str) -> None:
        self.tree, self.group = tree, group
        above, _, last = group.rpartition("/")
        is_raw = last == "raw" and "obs" not in tree.children(group)
        self.obs = self._frame("obs", above if is_raw else group)
        self.var = self._frame("var", group)
        self.shape = (len(self.obs.index), len(self.var.index))
        self.arrays: _Arrays = {}
        self.coords: dict[str, xr.Variable] = {}
        self.skipped = {
            self._path(f"{table}/{column}"): encoding
            for table, frame in (("obs", self.obs), ("var", self.var))
            for column, encoding in frame.skipped.items()
        }
        there = tree.children(group)
        if "X" in there:
            self._add("X", "X", self.shape)
        for table, shape in (("layers", self.shape), ("obsm", self.shape[:1])):
            if table in there and tree.leaf(self._path(table)) is not None:
                self.skipped[self._path(table)] = "records of anndata before 0.7"
            for key in tree.children(self._path(table)):
                self._add(f"{table}/{key}", self._label(table.removesuffix("s"), key), shape)

    def _path(self, name: str) -> str:
        return f"{self.group}/{name}".lstrip("/")

    def _frame(self, name: str, group: str) -> Frame:
        return read_frame(self.tree, f"{group}/{name}".lstrip("/"))

    def _label(self, group: str, key: str) -> str:
        taken = {*_RESERVED, *self.arrays, *self.coords}
        while key in taken:
            key = f"{group}_{key}"
        return key

    def _add(self, name: str, label: str, shape: tuple[int, ...]) -> None:
        path = self._path(name)
        array = _open_array(self.tree, path)
        if array is None:
            self.skipped[path] = encoding_of(self.tree, path) or "unknown encoding"
            return
        if array.shape[: len(shape)] != shape:
            msg = (
                f"`{path}` of {self.tree.path!r} has shape {array.shape}, but its `obs` has "
                f"{self.shape[0]} rows and its `var` {self.shape[1]}: the file was not written to "
                "its end, or is damaged; get a new copy"
            )
            raise SchemaError(msg)
        further = [f"{label}_dim{k or ''}" for k in range(len(array.shape) - 1)]
        dims = ("cell", "gene") if len(shape) == 2 else ("cell", *further)
        if isinstance(array, FrameArray):
            names = np.array(array.columns, object)
            self.coords[dims[1]] = xr.Variable(dims[1], names)
        original = name.rsplit("/", maxsplit=1)[-1]
        self.arrays[label] = (dims, array, {} if label == original else {"key": original})

    def require_like(self, first: "_Opening") -> None:
        """Refuse to join what has other genes or other matrices."""
        path, name, other = self.tree.path, self.group, first.group
        if not np.array_equal(self.var.index, first.var.index):
            mine, theirs = {*self.var.index}, {*first.var.index}
            msg = (
                f"{name!r} of {path!r} has {len(mine)} genes, {other!r} {len(theirs)}, and they have "
                f"{len(mine & theirs)} in common, so that their rows are not of one array; open each by "
                f"itself: '{path}::/{name}'"
            )
            raise SchemaError(msg)
        differ = sorted({*self.arrays} ^ {*first.arrays})
        if differ:
            msg = (
                f"of {name!r} and {other!r} of {path!r} only one has {differ}; open each by itself, "
                f"'{path}::/{name}'"
            )
            raise SchemaError(msg)


def _stacked(parts: Sequence[_Opening]) -> _Arrays:
    """Join the matrices of parts row after row."""
    rows = RowMap.stacked([part.shape[0] for part in parts])
    out: _Arrays = {}
    for name, (dims, _, attrs) in parts[0].arrays.items():
        arrays = [part.arrays[name][1] for part in parts]
        sparse = [a for a in arrays if isinstance(a, RowArray)]
        if len(sparse) not in {0, len(arrays)} or len({a.shape[1:] for a in arrays}) > 1:
            where = parts[0].tree.path
            msg = (
                f"the datasets of {where!r} hold {name!r} in several forms (shapes "
                f"{[a.shape for a in arrays][:3]}, {len(sparse)} of {len(arrays)} sparse); open each by "
                f"itself: '{where}::/{parts[0].group}'"
            )
            raise SchemaError(msg)
        joined = MappedRows(sparse, rows) if sparse else MappedArray(arrays, rows)
        out[name] = (dims, joined, attrs)
    return out


_SPARSE: Mapping[str, Callable[..., StoredArray]] = {
    "csr_matrix": CSRGroup,
    "csc_matrix": CSCGroup,
}


def _open_array(tree: Tree, name: str) -> StoredArray | None:
    """Open a matrix of any supported encoding, or return None."""
    encoding = encoding_of(tree, name)
    if encoding in _SPARSE:
        shape = tree.attr(name, "shape") or tree.attr(name, "h5sparse_shape")
        rows, columns = (int(n) for n in shape)
        return _SPARSE[encoding](tree, name, (rows, columns))
    if encoding == "dataframe":
        return FrameArray(tree, name) if is_numeric_frame(tree, name) else None
    leaf = tree.leaf(name)
    return DenseElement(leaf) if leaf and leaf.shape and leaf.dtype.kind in "biuf" else None
