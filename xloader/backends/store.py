"""The training store as a lazy labelled Dataset; read from shards on a disk or any URL, without zarr."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.arrays import Key, RowArray, StoredArray, TileArray
from xloader.backends.appended import AppendedDense, AppendedRows, joined_attrs
from xloader.backends.resolutions import ResolutionsEntrypoint
from xloader.buffers import Buffers
from xloader.csr import CSRArray
from xloader.errors import ReadError, SchemaError, XloaderError
from xloader.packed import PackedRows, compiled, ranges
from xloader.schema import keep_labels, label, lazy, names_in
from xloader.store.blocks import RowBlocks
from xloader.store.layout import BLOCK_ROWS, TILE, decode, read_root, root_attributes
from xloader.store.opened import Arrays, ChunkedArray
from xloader.store.places import Place, Url, place_of

Int64 = npt.NDArray[np.int64]


class StoreRows(RowArray):
    """
    Sparse rows, stored as padded chunks of values and of column differences.

    Parameters
    ----------
    values, deltas : ChunkedArray, shape (n_chunks, width)
        Values, and differences of columns within each row.
    indptr : ndarray of int64, shape (n_rows + 1,)
        First value of each row, and their number.
    shape : tuple of int
        ``(n_rows, n_columns)``.
    dtype : dtype-like
        Type of the values as xarray sees them.
    """

    is_converted = True

    def __init__(
        self,
        values: ChunkedArray,
        deltas: ChunkedArray,
        indptr: Int64,
        shape: tuple[int, int],
        dtype: npt.DTypeLike,
    ) -> None:
        super().__init__(shape, dtype, BLOCK_ROWS)
        self.values = values
        self.deltas = deltas
        self.blocks = RowBlocks(indptr, values.shape[1])
        rising = len(indptr) == shape[0] + 1 and indptr[0] == 0 and (np.diff(indptr) >= 0).all()
        if not rising or {values.shape, deltas.shape} != {(self.blocks.n_chunks, values.shape[1])}:
            falls = np.flatnonzero(np.diff(indptr) < 0).tolist()
            where = "".join(f" (rows {k}-{k + 1})" for k in falls[:1])
            msg = (
                f"the index of `{values.path}` does not fit its {values.shape[0]} chunks{where}; the "
                "store is damaged, convert the source again"
            )
            raise ReadError(msg)
        for array in (values, deltas):
            array.whose = self._rows_of

    @property
    def indptr(self) -> Int64:
        """
        Return the first stored value of each row, and their number.

        Returns
        -------
        ndarray of int64, shape (n_rows + 1,)
            In memory.
        """
        return self.blocks.indptr

    def _rows_of(self, first: Int64, last: Int64) -> str:
        ends = [int(first[0]), int(last[0])]
        a, b = (np.searchsorted(self.blocks.first_chunks, ends, "right") - 1).tolist()
        return f"rows {a * BLOCK_ROWS}-{min((b + 1) * BLOCK_ROWS, self.shape[0])}"

    @override
    def read_rows(self, start: int, stop: int) -> CSRArray:  # numpydoc ignore=GL08
        return self.read_ranges(np.array([start]), np.array([stop]))

    @override
    def read_ranges(self, starts: Int64, stops: Int64) -> CSRArray:  # numpydoc ignore=GL08
        packed = self.read_packed(starts, stops, Buffers())
        return packed.take(np.arange(len(packed.starts)), self.dtype, None, Buffers())

    @override
    def read_packed(
        self, starts: Int64, stops: Int64, buffers: Buffers
    ) -> PackedRows:  # numpydoc ignore=GL08
        rows = ranges(starts, stops)
        blocks = rows // BLOCK_ROWS
        steps = np.diff(blocks, prepend=-1)
        if steps.size and steps.min() >= 0:  # increasing rows, which pools of blocks are
            blocks, of = blocks[steps > 0], np.cumsum(steps > 0) - 1
        else:
            blocks, of = np.unique(blocks, return_inverse=True)
        chunks, first = self.blocks.chunks_of(blocks)
        places = np.stack([chunks, np.zeros_like(chunks)], axis=1)
        values, columns = (
            a.read_chunks(places, buffers.empty((len(chunks), *a.chunk_shape), a.dtype)).reshape(-1)
            for a in (self.values, self.deltas)
        )
        begins = self.indptr[rows]
        return PackedRows(
            values.astype(compiled(values.dtype), copy=False),
            columns,
            starts=(first - self.indptr[blocks * BLOCK_ROWS])[of] + begins,
            lengths=self.indptr[rows + 1] - begins,
            n_columns=self.shape[1],
            delta=True,
            name=f"`{self.values.path}`",
            rows=rows,
        )

    @override
    def nbytes_of(self, starts: Int64, stops: Int64) -> Int64:  # numpydoc ignore=GL08
        first, last = starts // BLOCK_ROWS, -(-stops // BLOCK_ROWS)
        chunks = self.blocks.first_chunks[last] - self.blocks.first_chunks[first]
        return np.asarray(chunks * (self.values.chunk_nbytes + self.deltas.chunk_nbytes))

    @override
    def nnz_of(self, starts: Int64, stops: Int64) -> Int64:  # numpydoc ignore=GL08
        return np.asarray(self.indptr[stops] - self.indptr[starts])


class StoreTiles(TileArray):
    """
    A contact map, stored as square tiles.

    Parameters
    ----------
    array : ChunkedArray, shape (n_bins, n_bins)
        Tiles.
    dtype : dtype-like
        Type of the counts as xarray sees them.
    symmetric : bool
        Whether only the upper tiles are stored.
    """

    is_converted = True

    def __init__(self, array: ChunkedArray, dtype: npt.DTypeLike, *, symmetric: bool) -> None:
        super().__init__(array.shape[0], dtype, TILE, symmetric=symmetric)
        self.array = array
        self.fill_value = float(array.fill_value.real)
        array.whose = self._bins_of

    def _bins_of(self, first: Int64, last: Int64) -> str:
        n, pairs = self.shape[0], zip(first.tolist(), last.tolist(), strict=True)
        return "bins " + " x ".join(f"{a * TILE}-{min((b + 1) * TILE, n)}" for a, b in pairs)

    @override
    def read_tiles(self, ij: Int64) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        return self.array.read_chunks(ij).astype(self.dtype, copy=False)

    @override
    def load_tiles(self, ij: Int64, buffers: Buffers) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        out = buffers.empty((len(ij), *self.array.chunk_shape), self.array.dtype)
        return self.array.read_chunks(ij, out)


class StoreDense(StoredArray):
    """
    A dense array, stored in chunks of whole rows.

    Parameters
    ----------
    array : ChunkedArray
        Chunks.
    dtype : dtype-like
        Type of the values as xarray sees them.
    """

    is_converted = True

    def __init__(self, array: ChunkedArray, dtype: npt.DTypeLike) -> None:
        super().__init__(array.shape, dtype)
        self.array = array
        array.whose = self._rows_of

    def _rows_of(self, first: Int64, last: Int64) -> str:
        n = self.array.chunk_shape[0]
        return f"rows {int(first[0]) * n}-{min((int(last[0]) + 1) * n, self.shape[0])}"

    @property
    @override
    def unit(self) -> tuple[int, ...]:  # numpydoc ignore=GL08
        return self.array.chunk_shape

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        rows = np.arange(self.shape[0])[key[0]]
        length = self.array.chunk_shape[0]
        chunks, slot = np.unique(np.atleast_1d(rows) // length, return_inverse=True)
        ids = np.zeros((len(chunks), len(self.shape)), np.int64)
        ids[:, 0] = chunks
        picked = self.array.read_chunks(ids)[slot, np.atleast_1d(rows) % length]
        picked = picked.astype(self.dtype, copy=False)[(slice(None), *key[1:])]
        return picked if np.ndim(rows) else picked[0]


class StoreBackendEntrypoint(ResolutionsEntrypoint):
    """Opens a training store with ``xarray.open_dataset(path, engine="xloader")``, or as a tree."""

    description = "Training stores of xloader"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "resolution")

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:  # numpydoc ignore=GL08
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        place = place_of(filename_or_obj)
        if isinstance(place, Url):  # name the engine: guessing asks no server
            return False
        try:
            return "xloader" in root_attributes(place)
        except ReadError:
            return False

    @override
    def nodes(
        self, filename_or_obj: str | os.PathLike[str]
    ) -> Mapping[str, dict[str, Any]]:  # numpydoc ignore=GL08
        root = read_root(place_of(filename_or_obj))
        sizes = _resolutions(root)
        if not sizes:  # cells, or bins of no one size
            return {name.rpartition("/")[2]: {} for name in list(root["groups"])[:1]}
        return {str(size): {"resolution": size} for size in sizes}

    @override
    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        resolution: int | None = None,
    ) -> xr.Dataset:
        """
        Open a store, or one resolution of it.

        Parameters
        ----------
        filename_or_obj : str or path-like
            Directory of the store, or any URL of it that fsspec opens.
        drop_variables : str or iterable of str, optional
            Variables to leave out.
        resolution : int, optional
            Bin size, in bp, of a store of contact maps. Default: the only one there is.

        Returns
        -------
        xarray.Dataset
            Lazily indexed, with every label that was converted.

        Raises
        ------
        ReadError
            If nothing is there, the conversion was interrupted, or the store is damaged or newer.
        SchemaError
            If it is no store, or has no such resolution.
        """
        store = place_of(filename_or_obj)
        root = read_root(store)
        name = _choose(store, root, resolution)
        names = list(root["groups"]) if root["kind"] == "cells" else [name]
        try:
            ds = _dataset(Arrays(store, root["arrays"], name), root, names)
        except XloaderError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as e:
            msg = f"the metadata of store {str(store)!r} are damaged ({e!r}); convert the source again"
            raise ReadError(msg) from e
        return ds.drop_vars(names_in(drop_variables), errors="ignore")


def resolutions(path: str | os.PathLike[str]) -> list[int]:
    """
    List the resolutions of a store of contact maps.

    Parameters
    ----------
    path : str or path-like
        Directory of the store, or a URL.

    Returns
    -------
    list of int
        Bin sizes, in bp, increasing; empty for variable bins and for cells.
    """
    return _resolutions(read_root(place_of(path)))


def _resolutions(root: Mapping[str, Any]) -> list[int]:
    names = [name.partition("/")[2] for name in root["groups"]]
    return sorted(int(name) for name in names if name.isdecimal())


def _choose(store: Place, root: Mapping[str, Any], resolution: int | None) -> str:
    names = list(root["groups"])
    if resolution is None and (len(names) == 1 or root["kind"] == "cells"):
        return str(names[0])
    name = f"resolutions/{resolution}"
    if resolution is not None and name in names:
        return name
    found = ", ".join(map(str, _resolutions(root))) or "none: its bins have no single size"
    if root["kind"] != "contacts":
        found = f"none: it holds {root['kind']}"
    asked = "none was asked for" if resolution is None else f"{resolution} was asked for"
    msg = f"store {str(store)!r}: {asked}; the resolutions it has are {found} (bp): `resolution=`"
    raise SchemaError(msg)


def _dataset(arrays: Arrays, root: Mapping[str, Any], names: Sequence[str]) -> xr.Dataset:
    """Open a group, and rows that were appended to it in others."""
    groups = {name: root["groups"][name] for name in names}
    first = groups[names[0]]
    found = {
        kind: {
            key: _variable(arrays, {name: group[kind][key] for name, group in groups.items()})
            for key in first[kind]
        }
        for kind in ("coords", "variables")
    }
    return keep_labels(xr.Dataset(found["variables"], found["coords"], decode(first["attrs"])))


def _variable(arrays: Arrays, parts: Mapping[str, Mapping[str, Any]]) -> xr.Variable:
    name, d = next(iter(parts.items()))
    dims, attrs = d["dims"], decode(d["attrs"])
    if "cell" not in dims:
        parts = {name: d}
    if d["layout"] == "label":
        values = [arrays.label(name, d) for name, d in parts.items()]
        if len(parts) == 1:
            return label(dims, values[0], attrs)
        attrs = joined_attrs([decode(d["attrs"]) for d in parts.values()])
        return label(dims, np.concatenate(values, axis=dims.index("cell")), attrs)
    stored = [_stored(arrays, f"{name}/{d['path']}".lstrip("/"), d) for name, d in parts.items()]
    if len(stored) == 1:
        return lazy(dims, stored[0], attrs)
    rows = [array for array in stored if isinstance(array, RowArray)]
    if len(rows) == len(stored):
        return lazy(dims, AppendedRows(rows), attrs)
    return lazy(dims, AppendedDense(stored, dims.index("cell")), attrs)


def _stored(arrays: Arrays, path: str, d: Mapping[str, Any]) -> StoredArray:
    if d["layout"] == "rows":
        indptr = np.asarray(arrays.label(path, d["indptr"]), np.int64)
        values, deltas = (arrays.open(f"{path}/{k}", (1, None)) for k in ("values", "deltas"))
        return StoreRows(values, deltas, indptr, tuple(d["shape"]), d["dtype"])
    if d["layout"] == "tiles":
        tiles = arrays.open(path, (TILE, TILE))
        return StoreTiles(tiles, d["dtype"], symmetric=d["symmetric"])
    return StoreDense(arrays.open(path), d["dtype"])
