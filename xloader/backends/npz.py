"""Collections of numpy arrays with named dimensions: .npz and .npy files, and folders of them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override
from xarray.backends import BackendEntrypoint

from xloader.arrays import StoredArray
from xloader.backends.features import text_of
from xloader.backends.memory_rows import MemoryRows, by_row
from xloader.backends.npy import Member, NpyArray, members_of, reading
from xloader.backends.sizes import require_memory
from xloader.errors import ReadError, SchemaError
from xloader.schema import keep_labels, label, lazy, names_in, string_column
from xloader.unchanged import Unchanged

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]
Dims = Mapping[str, Sequence[str]]

_SPARSE = ("data", "indices", "indptr", "shape", "format")
_DIMS = "dims"
_MAGIC = (b"PK\x03\x04", b"\x93NUM")


class _Matrix(NamedTuple):
    """A sparse matrix, as scipy saves it."""

    format: str
    shape: tuple[int, int]
    data: Member
    indices: Member
    indptr: Member


class SparseNpz(MemoryRows):
    """
    A matrix that `scipy.sparse.save_npz` wrote, by rows (CSR) or by columns (CSC).

    Parameters
    ----------
    matrix : tuple
        Its format, shape, and arrays.
    then : Unchanged
        The file, as it is.
    """

    def __init__(self, matrix: _Matrix, then: Unchanged) -> None:
        super().__init__(matrix.shape, matrix.data.dtype, f"the matrix of {matrix.data.path!r}")
        self.matrix = matrix
        self._then = then

    @override
    def _load(self) -> tuple[Array, Array, Int64]:
        with self._then.reading():
            data, indices = self.matrix.data.load(), self.matrix.indices.load()
            indptr = np.asarray(self.matrix.indptr.load(), np.int64)
        by_column = self.matrix.format == "csc"
        n, n_across = self.shape[::-1] if by_column else self.shape
        steps = np.diff(indptr, prepend=0, append=len(data))
        if len(indptr) != n + 1 or steps[0] or steps[-1] or steps.min() < 0:
            msg = (
                f"`indptr` of {self.what} ({len(indptr)} numbers from {indptr[:1]} to {indptr[-1:]}) does "
                f"not fit its shape {self.shape} and {len(data)} values: it must rise from 0 to the "
                "number of values; the file is damaged, write it again"
            )
            raise ReadError(msg)
        if not by_column:
            return data, indices, indptr
        if len(indices) and not 0 <= indices.min() <= indices.max() < n_across:
            msg = (
                f"`indices` of {self.what} go from {indices.min()} to {indices.max()}, outside "
                f"[0, {n_across}): the file is damaged; write it again"
            )
            raise ReadError(msg)
        remedy = "write it by rows: scipy.sparse.save_npz(path, matrix.tocsr(), compressed=False)"
        require_memory(len(data) * (32 + data.itemsize), f"turning {self.what} into rows", remedy)
        columns = np.repeat(np.arange(n), steps[1:-1])
        indptr, (data, columns) = by_row(indices, n_across, data, columns)
        return data, columns, indptr

    @override
    def read_rows(self, start: int, stop: int) -> Any:  # numpydoc ignore=GL08
        self._then.require()  # a file that was cut must not be touched where it is mapped
        with self._then.reading():
            return super().read_rows(start, stop)


class NpzBackendEntrypoint(BackendEntrypoint):
    """
    Open numpy's files as labelled Datasets: ``xr.open_dataset(path, engine="npz", dims=...)``.

    Arrays of two and more dimensions are variables. Those of one dimension are coordinates along
    the others, and text always; an array called as a dimension has its names.
    """

    description = "Numpy arrays with named dimensions (.npz, .npy, folders of them)"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = (
        "filename_or_obj",
        "drop_variables",
        "dims",
    )

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:  # numpydoc ignore=GL08
        is_path = isinstance(filename_or_obj, str | Path)
        return is_path and Path(filename_or_obj).suffix in {".npz", ".npy"}

    @override
    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        dims: Dims | None = None,
    ) -> xr.Dataset:
        """
        Open a file or folder lazily; labels are read, arrays are not.

        Parameters
        ----------
        filename_or_obj : str or path
            An ``.npz`` file of `numpy.savez` or `scipy.sparse.save_npz`, an ``.npy`` file, or a folder
            of ``.npy`` files and sparse ``.npz`` files, each an array of the name of the file.
        drop_variables : str or iterable of str, optional
            Variables and coordinates to leave out.
        dims : mapping of str to sequence of str, optional
            Dimensions of each array, such as ``{"X": ("cell", "gene")}``. Default: what a text `dims`
            among the arrays says, as JSON, in a folder the file ``dims.json``; a sparse matrix that
            is not named is ``X (cell, gene)``.

        Returns
        -------
        xarray.Dataset
            Arrays that are compressed are read whole when one value is asked for, and then stay in
            memory; all others are mapped.

        Raises
        ------
        ReadError
            If there is no such file, or it is truncated or damaged.
        SchemaError
            If dimensions are not named or do not fit, or it holds pickled objects.
        """
        if not isinstance(filename_or_obj, str | Path):
            msg = (
                f"cannot open a {type(filename_or_obj).__name__} as numpy's file; only files on disk can "
                "be reopened by worker processes: save it and pass the path"
            )
            raise ReadError(msg)
        path = Path(filename_or_obj).expanduser().absolute()
        dropped = names_in(drop_variables)
        ds = _Collection(path, dropped).dataset(dims)
        return ds.drop_vars(dropped, errors="ignore")


def is_npz(path: Path) -> bool:
    """
    Say whether a path is a file of numpy, or a folder of such.

    Parameters
    ----------
    path : Path
        Any path.

    Returns
    -------
    bool
        By the first bytes of a file, and the names in a folder.
    """
    if path.is_dir():
        return any(p.suffix in {".npy", ".npz"} for p in path.iterdir())
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def kind_of(path: Path) -> str:
    """
    Say what a file or folder holds.

    Parameters
    ----------
    path : Path
        What `is_npz` accepts.

    Returns
    -------
    str
        ``"cells"`` if a dimension is called `cell`, else ``"arrays"``.
    """
    collection = _Collection(path, ())
    names = collection.dims(None).values()
    return "cells" if any("cell" in dims for dims in names) else "arrays"


class _Collection:
    """The arrays of a file or folder."""

    def __init__(self, path: Path, dropped: Iterable[str]) -> None:
        self.path = path
        self.matrices: dict[str, _Matrix] = {}
        self.members: dict[str, Member] = {}
        self.told: str | None = None
        files = _files(path)
        self.then = Unchanged([str(p) for p in files])
        for file in files:
            self._add(file, whole=not path.is_dir())
        self.dropped = {*dropped}
        for name in self.dropped:
            self.members.pop(name, None)
            self.matrices.pop(name, None)

    def _add(self, file: Path, *, whole: bool) -> None:
        if file.name == "dims.json":
            self.told = file.read_text(encoding="utf-8")
            return
        found = members_of(file)
        if {*_SPARSE} <= {*found}:
            name = "X" if whole else file.stem
            self.matrices[name] = _matrix(file, {k: found.pop(k) for k in _SPARSE})
            found.pop("_is_array", None)  # scipy's word for sparse arrays
        elif not whole and file.suffix == ".npz":
            msg = (
                f"{str(file)!r} is no sparse matrix of scipy; in a folder, each .npy is an array and each "
                ".npz a sparse matrix: save the arrays of this file one by one"
            )
            raise SchemaError(msg)
        if whole and _DIMS in found:
            self.told = str(found.pop(_DIMS).load()[()])
        twice = {*found} & {*self.members, *self.matrices}
        if twice:
            msg = f"{str(self.path)!r} holds {sorted(twice)} twice; keep one of them"
            raise SchemaError(msg)
        self.members |= found

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the arrays, those of most dimensions first."""
        yield from sorted(
            (
                *((name, matrix.shape) for name, matrix in self.matrices.items()),
                *((name, member.shape) for name, member in self.members.items()),
            ),
            key=lambda item: -len(item[1]),
        )

    def dims(self, given: Dims | None) -> dict[str, tuple[str, ...]]:
        """Return the dimensions of each array, or refuse those that nobody named."""
        told = _parse(self.path, self.told) if given is None else given
        named = {k: tuple(map(str, each)) for k, each in told.items() if k not in self.dropped}
        shapes = dict(self.shapes())
        if unknown := sorted({*named} - {*shapes}):
            msg = f"`dims` names {unknown}, which {str(self.path)!r} lacks; it has {sorted(shapes)}"
            raise SchemaError(msg)
        for name in self.matrices:
            if len(self.matrices) == 1 and name == "X":
                named.setdefault(name, ("cell", "gene"))
        dims = {d for each in named.values() for d in each}
        named |= {
            n: (n,) for n, s in shapes.items() if n in dims and n not in named and len(s) == 1
        }
        if lacking := [n for n, s in shapes.items() if n not in named and s]:
            example = {n: [f"dim{k}" for k in range(len(shapes[n]))] for n in lacking[:3]}
            msg = (
                f"the dimensions of {lacking} in {str(self.path)!r} have no names (shapes "
                f"{[shapes[n] for n in lacking]}); pass dims={example} with names of your own, such as "
                '"cell" and "gene", to xr.open_dataset(path, engine="npz"), or save them with the arrays, '
                "as JSON: an array `dims`, or a file dims.json in a folder"
            )
            raise SchemaError(msg)
        sizes: dict[str, tuple[int, str]] = {}
        for name, shape in shapes.items():
            each = named.setdefault(name, ())
            fits = len(each) == len(shape) == len({*each})
            for d, n in zip(each, shape, strict=False):
                fits = fits and sizes.setdefault(d, (n, name))[0] == n
            if not fits:
                seen = {d: f"{sizes[d][0]} in {sizes[d][1]!r}" for d in each if d in sizes}
                msg = (
                    f"array {name!r} of {str(self.path)!r} has shape {shape}, which does not fit the "
                    f"dimensions {each} ({seen}); correct `dims`, or the arrays"
                )
                raise SchemaError(msg)
        return named

    def dataset(self, given: Dims | None) -> xr.Dataset:
        """Return the labelled Dataset."""
        dims = self.dims(given)
        shared = {d for each in dims.values() if len(each) > 1 for d in each}
        variables: dict[str, xr.Variable] = {}
        coords: dict[str, xr.Variable] = {}
        for name, matrix in self.matrices.items():
            variables[name] = lazy(dims[name], SparseNpz(matrix, self.then))
        for name, member in self.members.items():
            each = dims[name]
            is_label = (len(each) < 2 and ({name} | shared) & {*each}) or not each
            if is_label or member.dtype.kind in "US":
                coords[name] = self._label(each, member)
            else:
                array: StoredArray = NpyArray(member, self.then)
                variables[name] = lazy(each, array)
        for name, dim in (("row", "cell"), ("column", "gene")):
            if dim in shared and name not in dims:
                size = next(v.sizes[dim] for v in variables.values() if dim in v.dims)
                coords[name] = xr.Variable(dim, np.arange(size))
        return keep_labels(xr.Dataset(variables, coords))

    def _label(self, dims: tuple[str, ...], member: Member) -> xr.Variable:
        """Read what labels other arrays."""
        if member.nbytes:
            require_memory(3 * member.nbytes, member.what, "leave it out by `drop_variables`")
        with self.then.reading():
            values = np.array(member.load())
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if values.dtype.kind not in "US":
            return label(dims, values)
        with reading(member.what):
            text = text_of(values.ravel().tolist())
        if len(dims) == 1:
            return label(dims, *string_column(text))
        return label(dims, text.reshape(values.shape))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(
        p for p in path.iterdir() if p.suffix in {".npy", ".npz"} or p.name == "dims.json"
    )
    if not found:
        msg = f"{str(path)!r} holds no .npy or .npz files; check the path"
        raise ReadError(msg)
    return found


def _parse(path: Path, told: str | None) -> Dims:
    """Read the dimensions that a collection names itself."""
    if told is None:
        return {}
    try:
        named = json.loads(told)
    except ValueError as e:
        named = e
    if not isinstance(named, dict) or not all(isinstance(v, list) for v in named.values()):
        msg = (
            f"the names of dimensions in {str(path)!r}, {told[:80]!r}, are no JSON such as "
            '{"X": ["cell", "gene"]}; correct them, or pass `dims`'
        )
        raise SchemaError(msg)
    return named


def _matrix(path: Path, members: Mapping[str, Member]) -> _Matrix:
    """Check the head of a sparse matrix."""
    kind, shape = str(text_of([members["format"].load().item()])[0]), members["shape"]
    if kind not in {"csr", "csc"}:
        msg = (
            f"{str(path)!r} holds a sparse matrix in format {kind!r}; write it by rows: "
            "scipy.sparse.save_npz(path, matrix.tocsr())"
        )
        raise SchemaError(msg)
    data, indices, indptr = (members[k] for k in _SPARSE[:3])
    flat = all(len(m.shape) == 1 for m in (data, indices, indptr))
    whole = all(m.dtype.kind in "iu" for m in (indices, indptr, shape))
    if shape.shape != (2,) or not flat or not whole or data.shape != indices.shape:
        shapes = {k: m.shape for k, m in members.items()}
        msg = (
            f"{str(path)!r} holds no sparse matrix that can be: arrays of shapes {shapes}; the file is "
            "damaged, write it again"
        )
        raise ReadError(msg)
    n_rows, n_columns = (int(n) for n in shape.load())
    n = n_columns if kind == "csc" else n_rows
    if indptr.shape != (n + 1,) or min(n_rows, n_columns) < 0:
        msg = (
            f"`indptr` of {str(path)!r} has {indptr.shape[0]} numbers, its shape ({n_rows}, {n_columns}) "
            f"asks for {n + 1}: the file is damaged, write it again"
        )
        raise ReadError(msg)
    return _Matrix(kind, (n_rows, n_columns), data, indices, indptr)
