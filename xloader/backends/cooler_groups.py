"""What the groups of a cooler file say: which maps there are, their bins; no pixel is read."""

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from xloader.backends.hdf5 import HDF5File, text
from xloader.errors import ReadError, SchemaError
from xloader.schema import Column

DIVISIVE = frozenset({"KR", "VC", "VC_SQRT", "SCALE"})
"""Columns that divide counts where their own attribute `divisive_weights` does not say."""

_GROUPS = ("bins", "pixels", "indexes")
_LABELS = frozenset({"chrom", "start", "end", "bin"})  # `bin` + "1" is the dimension
_MODES = ("symmetric-upper", "square")


def part(cooler: h5py.Group, name: str) -> h5py.Dataset:
    """
    Return a dataset that every cooler has.

    Parameters
    ----------
    cooler : h5py.Group
        Group of one map.
    name : str
        Path of the dataset in it, such as ``"bins/start"``.

    Returns
    -------
    h5py.Dataset
        Nothing is read yet.

    Raises
    ------
    SchemaError
        If it is not there.
    """
    if name not in cooler:
        group = name.partition("/")[0]
        there = f"`{group}` has {sorted(cooler[group])}" if group in cooler else "nor that group"
        msg = (
            f"{cooler.name!r} of {cooler.file.filename!r} lacks `{name}`, which every cooler has "
            f"({there}); the file was not written to its end, or is no cooler: write it again"
        )
        raise SchemaError(msg)
    return cooler[name]


def _is_cooler(group: Any) -> bool:
    return isinstance(group, h5py.Group) and all(
        isinstance(group.get(name), h5py.Group) for name in _GROUPS
    )


def choose(file: HDF5File, group: str, resolution: int | None) -> str:
    """
    Return the group of the one map that is asked for.

    Parameters
    ----------
    file : HDF5File
        The file.
    group : str
        Where in the file to look.
    resolution : int or None
        Size of the bins, in bp; None for the only one there is.

    Returns
    -------
    str
        Path of the group.

    Raises
    ------
    SchemaError
        If there is no map, none of this resolution, or more than one to choose from.
    """
    found = coolers(file, group)
    sizes = ", ".join(str(size) for size in found if size is not None)
    if resolution is None and len(found) == 1:
        return next(iter(found.values()))
    if resolution is not None and resolution in found:
        return found[resolution]
    if resolution is None:
        largest = max(size for size in found if size is not None)
        msg = (
            f"{file.path!r} has {len(found)} resolutions ({sizes} bp) and none was asked for; "
            f"choose one, such as `resolution={largest}`"
        )
    elif None in found:
        msg = (
            f"resolution {resolution} was asked of {file.path!r}, whose bins have no one size; "
            "leave `resolution` out"
        )
    else:
        msg = (
            f"{file.path!r} has no resolution {resolution}; it has {sizes} (bp): choose one of them"
        )
    raise SchemaError(msg)


def coolers(file: HDF5File, name: str) -> dict[int | None, str]:
    """
    Find the coolers at or below a group.

    Parameters
    ----------
    file : HDF5File
        The file.
    name : str
        Where in the file to look.

    Returns
    -------
    dict of int or None to str
        Path of each cooler, or of the group of single cells, by bin size, in bp, increasing; None
        for variable bins.

    Raises
    ------
    SchemaError
        If there is none.
    """
    opened = file.handle
    group = opened.get(name)
    if not isinstance(group, h5py.Group):
        msg = f"{file.path!r} has no group {name!r}; at its root it has {sorted(opened)}"
        raise SchemaError(msg)
    if _is_cooler(group):
        return {_binsize(group): name}
    prefix = name.rstrip("/")
    cells = prefix if prefix.endswith("/cells") else f"{prefix}/cells"
    if isinstance(opened.get(cells), h5py.Group):
        return {_binsize(_first_cell(opened[cells])): cells}
    # resolutions/<bp>, or the numbered zoom levels of the files of 2016 and 2017
    folder = f"{prefix}/resolutions" if isinstance(group.get("resolutions"), h5py.Group) else name
    levels = [f"{folder.rstrip('/')}/{k}" for k in opened[folder] if k.isdecimal()]
    found = {_binsize(opened[level]): level for level in levels if _is_cooler(opened[level])}
    if found:
        return dict(sorted(found.items(), key=lambda item: item[0] or 0))
    msg = (
        f"{file.path!r} is HDF5 but no cooler: {name!r} has {sorted(group)}, a cooler has "
        f"{sorted(_GROUPS)} or `resolutions`; open it with the engine for its own format"
    )
    raise SchemaError(msg)


def _first_cell(cells: h5py.Group) -> h5py.Group:
    """Return one of the single cells, of which there must be some, and nothing else."""
    wrong = [name for name in cells if not _is_cooler(cells[name])]
    if wrong or not len(cells):
        what = (
            f"{wrong[:3]}, which lack a part of a cooler ({sorted(_GROUPS)})" if wrong else "none"
        )
        msg = (
            f"{cells.name!r} of {cells.file.filename!r} should hold single cells, but has {what}; the "
            "file was not written to its end, or is damaged: write it again"
        )
        raise SchemaError(msg)
    return cells[next(iter(cells))]


def is_cells(file: HDF5File, name: str) -> bool:
    """
    Say whether a group that `coolers` found holds single cells.

    Parameters
    ----------
    file : HDF5File
        The file.
    name : str
        Path of the group.

    Returns
    -------
    bool
        False for one map.
    """
    return not _is_cooler(file.handle[name])


def _binsize(cooler: h5py.Group) -> int | None:
    """Return the size of the bins in bp, None where it varies."""
    if text(cooler.attrs.get("bin-type", "")) == "variable":
        return None
    size = cooler.attrs.get("bin-size")
    if isinstance(size, np.integer):
        return int(size)
    start, end = (part(cooler, f"bins/{name}")[()] for name in ("start", "end"))
    sizes = np.unique(_inner_sizes(start, end))
    return int(sizes[0]) if len(sizes) == 1 else None


def _inner_sizes(start: npt.NDArray[Any], end: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the sizes of bins, in bp, but of the last of each chromosome, which may be shorter."""
    # the bin after it does not start where it ends
    return np.asarray((end - start)[:-1][start[1:] == end[:-1]])


def storage_mode(cooler: h5py.Group) -> str:
    """
    Say which pixels are stored.

    Parameters
    ----------
    cooler : h5py.Group
        Group of one map.

    Returns
    -------
    str
        ``"symmetric-upper"``, also where an old file does not say, or ``"square"``.

    Raises
    ------
    SchemaError
        If the file says something else.
    """
    mode = text(cooler.attrs.get("storage-mode", _MODES[0]))
    if mode not in _MODES:
        msg = (
            f"attribute `storage-mode` of {cooler.name!r} of {cooler.file.filename!r} is {mode!r}, and "
            f"what it means for the lower triangle is unknown; correct it to one of {_MODES}"
        )
        raise SchemaError(msg)
    return mode


def labels(cooler: h5py.Group) -> dict[str, Any]:
    """
    Read every label of a map.

    Parameters
    ----------
    cooler : h5py.Group
        Group of one map.

    Returns
    -------
    dict
        `chrom`, `start`, `end`, `weights` and `attrs` of `xloader.schema.contacts_dataset`.

    Raises
    ------
    ReadError
        If a bin lies on a chromosome that the file does not name, or bins are not in order.
    SchemaError
        If a part that every cooler has is missing.
    """
    names = _strings(part(cooler, "chroms/name"))
    binsize = _binsize(cooler)
    chrom = _chrom(cooler, names)
    start, end = (part(cooler, f"bins/{name}")[()] for name in ("start", "end"))
    _check_bins(cooler, chrom, start, end, binsize)
    assembly = cooler.attrs.get("genome-assembly", cooler.attrs.get("assembly", "unknown"))
    return {
        "chrom": chrom,
        "start": start,
        "end": end,
        "weights": columns(cooler["bins"]),
        "attrs": {
            "binsize": binsize,
            "resolution": binsize,
            "assembly": text(assembly),
            "storage_mode": storage_mode(cooler),
            "chroms": names.tolist(),
            "chrom_lengths": part(cooler, "chroms/length")[()].tolist(),
        },
    }


def _check_bins(
    cooler: h5py.Group,
    chrom: npt.NDArray[Any],
    start: npt.NDArray[Any],
    end: npt.NDArray[Any],
    binsize: int | None,
) -> None:
    """Refuse a table of bins that places nothing."""
    where = f"of {cooler.name!r} of {cooler.file.filename!r}"
    if not len(chrom) == len(start) == len(end):
        msg = (
            f"`bins` {where} have columns of {len(chrom)}, {len(start)} and {len(end)} bins; the file "
            "was not written to its end: write it again"
        )
        raise ReadError(msg)
    new = chrom[1:] != chrom[:-1]
    wrong = (start < 0) | (end <= start)
    wrong[1:] |= ~new & (start[1:] < end[:-1])
    if wrong.any():
        k = int(np.flatnonzero(wrong)[0])
        msg = (
            f"bin {k} {where} is {chrom[k]}:{start[k]}-{end[k]}, which is empty or not after the bin "
            "before it; the file is damaged, or was not written to its end: write it again"
        )
        raise ReadError(msg)
    if 1 + int(new.sum()) > max(1, len(set(chrom.tolist()))):
        msg = f"the bins of a chromosome {where} lie apart; sort bins by chromosome, and write it again"
        raise ReadError(msg)
    sizes = np.unique(_inner_sizes(start, end))
    if binsize is not None and len(sizes) and sizes.tolist() != [binsize]:
        msg = (
            f"attribute `bin-size` {where} is {binsize} bp, but its bins have {sizes[:5].tolist()} bp; "
            "correct the attribute, or set `bin-type` to 'variable'"
        )
        raise ReadError(msg)


def _strings(dataset: h5py.Dataset) -> npt.NDArray[Any]:
    return np.array([text(name) for name in dataset[()].tolist()], object)


def _chrom(cooler: h5py.Group, names: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the chromosome name of each bin, whichever way the file writes it."""
    dataset = part(cooler, "bins/chrom")
    values, places = np.unique(dataset[()], return_inverse=True)
    if dataset.dtype.kind in "SO":
        return np.array([text(name) for name in values.tolist()], object)[places]
    # the members of an enum come back in alphabetical order; only their codes mean something
    members = h5py.check_enum_dtype(dataset.dtype)
    table = {code: name for name, code in members.items()} if members else dict(enumerate(names))
    unknown = [code for code in values.tolist() if code not in table]
    if unknown:
        msg = (
            f"`bins/chrom` of {cooler.file.filename!r} has codes {unknown[:5]}, which stand for "
            f"none of its {len(names)} chromosomes; the file is damaged, get a new copy"
        )
        raise ReadError(msg)
    return np.array([table[code] for code in values.tolist()], object)[places]


def column_names(bins: h5py.Group) -> list[str]:
    """
    List the further columns of bins.

    Parameters
    ----------
    bins : h5py.Group
        Table of the bins.

    Returns
    -------
    list of str
        Those that have a value for every bin.
    """
    shape = bins["start"].shape
    return [k for k, v in bins.items() if k not in _LABELS and getattr(v, "shape", None) == shape]


def columns(bins: h5py.Group) -> dict[str, Column]:
    """
    Read every further column of the bins; those of floats are balancing vectors.

    Parameters
    ----------
    bins : h5py.Group
        Table of the bins.

    Returns
    -------
    dict of str to Column
        Balancing vectors have the attribute `divisive`.
    """
    columns: dict[str, Column] = {}
    for name in column_names(bins):
        dataset = bins[name]
        attrs = _plain(dataset.attrs)
        if dataset.dtype.kind == "f":
            attrs["divisive"] = bool(attrs.get("divisive_weights", name in DIVISIVE))
            columns[name] = dataset[()].astype(np.float64), attrs
        else:
            values = _strings(dataset) if dataset.dtype.kind in "SO" else dataset[()]
            columns[name] = values, attrs
    return columns


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as Python scalars, strings and lists; others (references) are left out."""
    plain: dict[str, Any] = {}
    for name, value in attrs.items():
        if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufU":
            plain[name] = value.tolist()
        elif isinstance(value, str | bytes | np.bytes_):
            plain[name] = text(value)
    return plain
