"""Writing a store: its zarr arrays, its labels, and the list of all files that makes it whole."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.store.keys import Keys
from xloader.store.layout import (
    checksum,
    encode,
    metadata_of,
    split_values,
    write_group,
)
from xloader.store.places import listing

Int64 = npt.NDArray[np.int64]

_COMPRESSION: dict[str, dict[str, tuple[Any, int]]] = {
    "fast": {
        "counts": ("lz4hc", 5),
        "deltas": ("lz4", 3),
        "tiles": ("lz4hc", 3),
        "dense": ("lz4", 3),
    },
    "small": {
        "counts": ("zstd", 5),
        "deltas": ("zstd", 2),
        "tiles": ("zstd", 1),
        "dense": ("zstd", 3),
    },
}

CODECS = tuple(_COMPRESSION)
"""Names of the codecs: quick to decode (lz4), few bytes (zstd)."""

_LABEL_CHUNK = 2**22


def create_array(
    place: str | dict[str, Any],
    *,
    codec: str,
    kind: str,
    empty_chunks: bool = False,
    **kwargs: Any,
) -> Any:
    """
    Make a zarr array, compressed and checked chunk by chunk.

    Parameters
    ----------
    place : str or dict
        Its directory, emptied before; or what its files are put into.
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

    cname, clevel, shuffle = compression(codec, kind, kwargs["dtype"])
    return zarr.create_array(
        place,
        overwrite=True,
        compressors=[BloscCodec(cname=cname, clevel=clevel, shuffle=shuffle), Crc32cCodec()],
        config={"write_empty_chunks": empty_chunks},
        **kwargs,
    )


def compression(codec: str, kind: str, dtype: npt.DTypeLike) -> tuple[Any, int, Any]:
    """
    Return how chunks are compressed by blosc.

    Parameters
    ----------
    codec : {"fast", "small"}
        Name of the codec.
    kind : {"counts", "deltas", "tiles", "dense"}
        What they hold.
    dtype : dtype-like
        Type of the elements.

    Returns
    -------
    name : str
        Compressor.
    level : int
        How hard it tries.
    shuffle : {"shuffle", "bitshuffle"}
        Filter before it.
    """
    # lz4hc takes long for fractions and saves nothing
    fractions = kind == "counts" and np.dtype(dtype).kind not in "iub"
    name, level = _COMPRESSION[codec]["dense" if fractions else kind]
    return name, level, "bitshuffle" if kind == "tiles" else "shuffle"


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
            str(group / path / name),
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
            keys = Keys(metadata)
            numbers = keys.numbers(listing(Path(folder)) or [])
            files = (Path(folder) / keys.name(np.unravel_index(k, keys.grid)) for k in numbers)
            arrays[name] = {
                "metadata": checksum(metadata),
                "files": _runs(numbers),
                "marks": [mark(file, metadata) for file in files],
            }
    return dict(sorted(arrays.items()))


def mark(file: Path, metadata: Mapping[str, Any]) -> int:
    """
    Return what tells a file from every other: a whole one may stand in the wrong place.

    Parameters
    ----------
    file : Path
        A file of an array.
    metadata : mapping
        Metadata of the array.

    Returns
    -------
    int
        CRC32C of the index of a shard and of the checksum of its last chunk, or of a whole file
        that is no shard; without its own last four bytes, with which it would always be the same.
    """
    with file.open("rb") as opened:
        length = tail_length(metadata)
        if length is not None:
            opened.seek(-min(length, file.stat().st_size), os.SEEK_END)
        return mark_of(opened.read())


def mark_of(tail: bytes) -> int:
    """
    Return the mark of a file.

    Parameters
    ----------
    tail : bytes
        The end of a shard, of `tail_length`, or a whole file that is no shard.

    Returns
    -------
    int
        As `mark` returns.
    """
    return int(google_crc32c.value(tail[:-4]))


def tail_length(metadata: Mapping[str, Any]) -> int | None:
    """
    Return how many bytes at the end of a shard hold its index and the checksum before it.

    Parameters
    ----------
    metadata : mapping
        Metadata of an array.

    Returns
    -------
    int or None
        None if its files are no shards that end in their index.
    """
    codec = metadata["codecs"][0]
    sharding = codec.get("configuration", {})
    if codec["name"] != "sharding_indexed" or sharding.get("index_location", "end") != "end":
        return None
    sides = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    chunks = zip(sides, sharding["chunk_shape"], strict=True)
    return int(16 * math.prod(a // b for a, b in chunks) + 8)


def _runs(numbers: Int64) -> list[list[int]]:
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [[int(p[0]), int(p[-1]) + 1] for p in parts if len(p)]
