"""Metadata of zarr v2 arrays, said in the words of zarr v3; their chunks are the same bytes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

_V3_CODECS = ("blosc", "gzip", "zstd")


def as_v3(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """
    Translate the metadata of a zarr v2 array.

    Parameters
    ----------
    metadata : mapping
        What its file ``.zarray`` holds.

    Returns
    -------
    dict
        What a ``zarr.json`` would hold. Filters that zarr v3 has no word for keep their name.

    Raises
    ------
    KeyError, TypeError, ValueError
        If they are damaged, or the type of the elements is neither a number nor text.

    Examples
    --------
    >>> v2 = {
    ...     "shape": [4],
    ...     "chunks": [2],
    ...     "dtype": "<i4",
    ...     "fill_value": 0,
    ...     "order": "C",
    ...     "filters": None,
    ...     "compressor": {"id": "zlib", "level": 1},
    ... }
    >>> [codec["name"] for codec in as_v3(v2)["codecs"]]
    ['bytes', 'numcodecs.zlib']
    """
    dtype = np.dtype(metadata["dtype"])
    filters = [str(f["id"]) for f in metadata.get("filters") or ()]
    codecs: list[dict[str, Any]] = []
    if metadata.get("order", "C") == "F":
        order = [*range(len(metadata["shape"]))][::-1]
        codecs.append({"name": "transpose", "configuration": {"order": order}})
    if dtype.kind == "O":
        kind = "string"  # if its first filter says so
    elif dtype.kind in "biufc":
        kind = dtype.name
        endian = "big" if dtype.byteorder == ">" else "little"
        filters = ["bytes", *filters]
    else:
        msg = f"dtype is {metadata['dtype']}, and those read are numbers and vlen-utf8 text"
        raise ValueError(msg)
    for name in filters:
        configuration = {"endian": endian} if name == "bytes" else {}
        codecs.append({"name": name, "configuration": configuration})
    if metadata.get("compressor"):
        name = str(metadata["compressor"]["id"])
        codecs.append({"name": name if name in _V3_CODECS else f"numcodecs.{name}"})
    fill = metadata.get("fill_value")
    empty: Any = "" if dtype.kind == "O" else 0
    return {
        "shape": metadata["shape"],
        "data_type": kind,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": metadata["chunks"]}},
        "chunk_key_encoding": {
            "name": "v2",
            "configuration": {"separator": metadata.get("dimension_separator", ".")},
        },
        "fill_value": empty if fill is None else fill,
        "codecs": codecs,
    }
