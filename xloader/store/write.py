"""Writing a store: its zarr arrays, its labels, and the list of all files that makes it whole."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.errors import ReadError
from xloader.store.layout import (
    checksum,
    encode,
    join_values,
    metadata_of,
    split_values,
    write_group,
)

Int64 = npt.NDArray[np.int64]

_COMPRESSION: dict[str, dict[str, tuple[Any, int]]] = {
    "fast": {
        "counts": ("lz4hc", 5),
        "deltas": ("lz4", 3),
        "tiles": ("lz4", 5),
        "dense": ("lz4", 3),
    },
    "small": {
        "counts": ("zstd", 5),
        "deltas": ("zstd", 2),
        "tiles": ("zstd", 3),
        "dense": ("zstd", 3),
    },
}

CODECS = tuple(_COMPRESSION)
"""Names of the codecs: quick to decode (lz4), few bytes (zstd)."""

_LABEL_CHUNK = 2**22


def create_array(
    path: Path, *, codec: str, kind: str, empty_chunks: bool = False, **kwargs: Any
) -> Any:
    """
    Make a zarr array, compressed and checked chunk by chunk.

    Parameters
    ----------
    path : Path
        Its directory.
    codec : {"fast", "small"}
        How to compress.
    kind : {"counts", "deltas", "tiles", "dense"}
        What it holds.
    empty_chunks : bool, optional
        Whether chunks of zeros are written. Default: no.
    **kwargs
        Passed to `zarr.create_array`.

    Returns
    -------
    zarr.Array
        Empty.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    # lz4hc takes long for fractions and saves nothing
    fractions = kind == "counts" and np.dtype(kwargs["dtype"]).kind not in "iub"
    cname, clevel = _COMPRESSION[codec]["dense" if fractions else kind]
    shuffle: Any = "bitshuffle" if kind == "tiles" else "shuffle"
    blosc = BloscCodec(cname=cname, clevel=clevel, shuffle=shuffle)
    return zarr.create_array(
        str(path),
        compressors=[blosc, Crc32cCodec()],
        config={"write_empty_chunks": empty_chunks},
        **kwargs,
    )


def write_label(group: Path, path: str, variable: xr.Variable, where: str) -> dict[str, Any]:
    """
    Write a variable that is kept in memory when a store is open.

    Parameters
    ----------
    group : Path
        Directory of its group.
    path : str
        Where it goes below `group`.
    variable : xarray.Variable
        Numbers, strings or objects.
    where : str
        Its name, for messages.

    Returns
    -------
    dict
        Strict JSON from which it is read again.

    Raises
    ------
    SchemaError
        If its values or attributes are of a type that a store cannot hold.
    """
    arrays, description = split_values(variable.values, where)
    for name, values in arrays.items():
        dims = None if name == "categories" else tuple(map(str, variable.dims))
        array = create_array(
            group / path / name,
            codec="small",
            kind="dense",
            empty_chunks=True,  # so that a missing file is always an error
            shape=values.shape,
            chunks=tuple(min(max(n, 1), _LABEL_CHUNK) for n in values.shape),
            dtype=str if name == "categories" else values.dtype,
            dimension_names=dims,
        )
        if values.size:
            array[...] = values
    if "" not in arrays:
        write_group(group / path)
    return {"layout": "label", "path": path, **describe(variable, where), **description}


def read_label(group: Path, description: Mapping[str, Any]) -> npt.NDArray[Any]:
    """
    Read what `write_label` wrote.

    Parameters
    ----------
    group : Path
        Directory of its group.
    description : mapping
        What `write_label` returned.

    Returns
    -------
    ndarray
        Equal to the original, and of the same dtype.

    Raises
    ------
    ReadError
        If an array is missing or damaged.
    """
    import zarr

    names = ("codes", "categories") if "others" in description else ("",)
    arrays = {}
    for name in names:
        path = group / description["path"] / name
        try:
            arrays[name] = np.asarray(zarr.open_array(str(path), mode="r")[...])
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as e:
            msg = f"cannot read label {str(path)!r}: {e}; the store is damaged, convert the source again"
            raise ReadError(msg) from e
    return join_values(arrays, description)


def describe(variable: xr.Variable, where: str) -> dict[str, Any]:
    """
    Return what every variable is described by.

    Parameters
    ----------
    variable : xarray.Variable
        Any variable.
    where : str
        Its name, for messages.

    Returns
    -------
    dict
        Strict JSON: `dims` and `attrs`.
    """
    attrs = {k: encode(v, f"attribute {k!r} of `{where}`") for k, v in variable.attrs.items()}
    return {"dims": list(map(str, variable.dims)), "attrs": attrs}


def manifest(store: Path) -> dict[str, Any]:
    """
    List every array of a finished store, so that a missing or changed file is noticed.

    Parameters
    ----------
    store : Path
        Directory of the store.

    Returns
    -------
    dict
        By path below `store`: the checksum of the metadata, and the half-open runs of the files in
        row-major order.
    """
    arrays: dict[str, Any] = {}
    for folder, _, names in os.walk(store):
        if "zarr.json" not in names:
            continue
        metadata = metadata_of(Path(folder))
        if metadata["node_type"] == "array":
            name = Path(folder).relative_to(store).as_posix()
            runs = _runs(_files(Path(folder), metadata))
            arrays[name] = {"metadata": checksum(metadata), "files": runs}
    return dict(sorted(arrays.items()))


def check_arrays(store: Path, arrays: Mapping[str, Any], below: str) -> None:
    """
    Check arrays against the list that was made when the store was complete.

    zarr reads a missing file as the fill value: without this, labels would silently be wrong.

    Parameters
    ----------
    store : Path
        Directory of the store.
    arrays : mapping
        What `manifest` returned.
    below : str
        Path of the group whose arrays are checked; empty for all.

    Raises
    ------
    ReadError
        If metadata of an array were changed, or one of its files is missing.
    """
    for name, entry in arrays.items():
        if below and not name.startswith(f"{below}/"):
            continue
        metadata = metadata_of(store / name)
        if checksum(metadata) != entry["metadata"]:
            msg = (
                f"the metadata of array {str(store / name)!r} do not match their checksum: its "
                "zarr.json is damaged or was edited; convert the source again"
            )
            raise ReadError(msg)
        expected = [np.arange(a, b) for a, b in entry["files"]]
        listed = np.concatenate([np.arange(0), *expected])
        lost = np.setdiff1d(listed, _files(store / name, metadata))
        if len(lost):
            msg = (
                f"{len(lost)} of the {len(listed)} files of array {str(store / name)!r} are missing "
                f"(the first is number {lost[0]} in row-major order); convert the source again"
            )
            raise ReadError(msg)


def _files(array: Path, metadata: dict[str, Any]) -> Int64:
    """Return the numbers of the files of an array, shards or chunks, sorted."""
    shape, sides = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
    if not shape:
        return np.arange(int((array / "c").exists()))
    grid = [-(-n // s) for n, s in zip(shape, sides, strict=True)]
    root = array / "c"
    found = [
        tuple(map(int, (Path(folder) / name).relative_to(root).parts))
        for folder, _, names in os.walk(root)
        for name in names
        if name.isdecimal()  # a desktop or network file system may leave files of its own
    ]
    places = np.array(found, np.int64).reshape(-1, len(shape))
    return np.sort(np.ravel_multi_index(tuple(places.T), grid)) if found else np.arange(0)


def _runs(numbers: Int64) -> list[list[int]]:
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [[int(p[0]), int(p[-1]) + 1] for p in parts if len(p)]
