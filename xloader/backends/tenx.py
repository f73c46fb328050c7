"""10x Genomics matrices: .h5 files of Cell Ranger 2 and of 3 and later, and folders of MTX files."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override
from xarray.backends import BackendEntrypoint

from xloader.backends import mtx
from xloader.backends.anndata_matrices import CSRGroup
from xloader.backends.features import features_dataset, require_counts, text_of
from xloader.backends.hdf5 import HDF5File, close_hdf5, read, require_whole
from xloader.backends.sizes import require_memory
from xloader.csr import CSRArray
from xloader.errors import ReadError, SchemaError
from xloader.schema import names_in

_MATRIX = ("data", "indices", "indptr", "shape", "barcodes")
_TAGS = "_all_tag_keys"
_V2 = {"id": "genes", "name": "gene_names"}


class CountsGroup(CSRGroup):
    """
    Counts that an HDF5 group stores by cells, none of which is negative or missing.

    Parameters and everything else are those of `CSRGroup`.
    """

    @override
    def read_ranges(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> CSRArray:  # numpydoc ignore=GL08
        block = super().read_ranges(starts, stops)
        rows = [np.arange(a, b) for a, b in zip(starts, stops, strict=True)]
        require_counts(block, f"`{self.name}/data` of {self.file.path!r}", np.concatenate(rows))
        return block


class TenxBackendEntrypoint(BackendEntrypoint):
    """
    Open 10x Genomics matrices as labelled Datasets: ``xr.open_dataset(path, engine="tenx")``.

    Cells are called by their barcodes, features by their identifiers; names and genomes are
    coordinates such as `gene_name`. One type of features is `X (cell, gene)`; several are variables
    with dimensions of their own: `rna (cell, gene)`, `prot (cell, protein)`, `atac (cell, peak)`.
    """

    description = "10x Genomics matrices (.h5, folders of matrix.mtx)"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = ("filename_or_obj", "drop_variables")

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:  # numpydoc ignore=GL08
        is_path = isinstance(filename_or_obj, str | Path)
        return is_path and mtx.is_mtx(Path(filename_or_obj))

    @override
    def open_dataset(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> xr.Dataset:
        """
        Open a file or folder lazily; names are read, counts are not.

        Parameters
        ----------
        filename_or_obj : str or path
            An ``.h5`` file; ``file.h5::genome`` if it is of Cell Ranger 2 and of several genomes; a
            folder of `matrix.mtx`, `barcodes.tsv` and `features.tsv` (or `genes.tsv`), gzipped or
            not, whose names may begin with the same prefix; or such a matrix.
        drop_variables : str or iterable of str, optional
            Variables and coordinates to leave out.

        Returns
        -------
        xarray.Dataset
            Named as DESIGN "Labels" says. Counts of a folder are parsed when one is asked for, and
            then stay in memory; those of a file are read by rows.

        Raises
        ------
        ReadError
            If there is no such file, or it is truncated or damaged, or not all of one file.
        SchemaError
            If it is no 10x matrix, holds several genomes, or its names and shapes disagree.
        """
        if not isinstance(filename_or_obj, str | Path):
            msg = (
                f"cannot open a {type(filename_or_obj).__name__} as 10x; only files on disk can be "
                "reopened by worker processes: save it and pass the path"
            )
            raise ReadError(msg)
        path = Path(filename_or_obj).expanduser().absolute()
        dropped = names_in(drop_variables)
        if mtx.is_mtx(path):
            return mtx.open_mtx(path).drop_vars(dropped, errors="ignore")
        name, _, genome = str(path).partition("::")
        file = HDF5File(name)
        with file.reading():
            group = _group(file, genome.strip("/"))
            ds = _open_v3(file) if group == "matrix" else _open_v2(file, group)
        ds = ds.drop_vars(dropped, errors="ignore")
        ds.set_close(partial(close_hdf5, name))
        return ds


def is_tenx(root: h5py.Group) -> bool:
    """
    Say whether an HDF5 file is a 10x matrix, by its groups.

    Parameters
    ----------
    root : h5py.Group
        The root of the file.

    Returns
    -------
    bool
        Of either layout.
    """
    return bool(_groups(root))


def _groups(root: h5py.Group) -> list[str]:
    """Return the groups that hold a matrix: `matrix`, or one for each genome."""
    found = []
    for name in root:
        inside = not isinstance(root.get(name, getlink=True), h5py.ExternalLink)
        element = root.get(name) if inside else None
        there = set(element) if isinstance(element, h5py.Group) else set()
        features = {"features"} if name == "matrix" else {*_V2.values()}
        if there >= {*_MATRIX, *features}:
            found.append(name)
    return found


def _group(file: HDF5File, genome: str) -> str:
    """Choose the group that is opened."""
    groups = _groups(file.handle)
    if not groups:
        msg = (
            f"{file.path!r} is no 10x matrix: it has {sorted(file.handle)}, and in the file itself no "
            f"group `matrix` (Cell Ranger 3 and later) or one per genome (Cell Ranger 2) with "
            f"{', '.join(_MATRIX)} and features; open it with the engine of its own format"
        )
        raise SchemaError(msg)
    if "matrix" in groups and genome:
        msg = (
            f"{file.path!r} holds one matrix of all genomes, so that ::{genome} cannot be chosen; leave "
            f"it out, and select afterwards: ds.isel(gene=ds.gene_genome == {genome!r})"
        )
        raise SchemaError(msg)
    if genome and genome not in groups:
        msg = f"{file.path!r} has no genome {genome!r}; it has {groups}"
        raise SchemaError(msg)
    if not genome and len(groups) > 1:
        msg = (
            f"{file.path!r} holds {len(groups)} matrices, for the genomes {groups}, each with cells of "
            f"its own; open one of them, such as '{file.path}::{groups[0]}'"
        )
        raise SchemaError(msg)
    return genome or groups[0]


def _open_v3(file: HDF5File) -> xr.Dataset:
    """Open the layout of Cell Ranger 3 and later: features of any types and genomes."""
    require_whole(file, ["matrix/features/id"])
    there = set(file.handle["matrix/features"])
    tags = ["genome"]  # beside them lie groups, such as `target_sets`
    if _TAGS in there:
        require_whole(file, [f"matrix/features/{_TAGS}"])
        tags = text_of(read(file, f"matrix/features/{_TAGS}").tolist()).tolist()
    columns = [c for c in dict.fromkeys(["id", "name", "feature_type", *tags]) if c in there]
    return _open(file, "matrix", {c: f"matrix/features/{c}" for c in columns})


def _open_v2(file: HDF5File, genome: str) -> xr.Dataset:
    """Open one genome of the layout of Cell Ranger 2: its genes."""
    return _open(file, genome, {c: f"{genome}/{name}" for c, name in _V2.items()}, genome)


def _open(
    file: HDF5File, group: str, columns: Mapping[str, str], genome: str | None = None
) -> xr.Dataset:
    require_whole(file, [*(f"{group}/{name}" for name in _MATRIX), *columns.values()])
    if file.handle[f"{group}/shape"].shape != (2,):
        msg = f"`{group}/shape` of {file.path!r} is no pair of numbers; get a new copy of the file"
        raise SchemaError(msg)
    n_features, n_cells = (int(n) for n in read(file, f"{group}/shape"))
    lengths = {f"{group}/barcodes": n_cells, **dict.fromkeys(columns.values(), n_features)}
    nbytes = 16 * n_cells  # row pointers, as they are stored and as they are used
    for name, n in lengths.items():
        names = file.handle[name]
        if names.shape != (n,):
            msg = (
                f"`{name}` of {file.path!r} has shape {names.shape}, but the matrix has {n_cells} cells "
                f"and {n_features} features: the file was not written to its end, or is damaged; get "
                "a new copy"
            )
            raise SchemaError(msg)
        nbytes += n * (names.dtype.itemsize + 64)  # as they are stored, and as text
    what = f"opening {file.path!r} ({n_cells} cells, {n_features} features)"
    require_memory(nbytes, what, "check that the file is whole, or open it on a larger machine")
    features = {c: text_of(read(file, name).tolist()) for c, name in columns.items()}
    if genome is not None:
        features["genome"] = np.full(n_features, genome, object)
    return features_dataset(
        CountsGroup(file, group, (n_cells, n_features)),
        cell=text_of(read(file, f"{group}/barcodes").tolist()),
        features=features,
        paths=(file.path, file.path),
    )
