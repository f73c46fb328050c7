"""The store format: names, numbers and metadata; arrays are written and read elsewhere."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pandas as pd

from xloader.errors import ReadError, SchemaError
from xloader.store.new_files import replace_file
from xloader.store.places import Place, Url, read_files

FORMAT = 2
"""Version of the format that this code writes, and the newest that it reads."""

BLOCK_ROWS = 32
"""Rows that are stored together: how random an order of blocks can be."""

TILE = 128
"""Side of one inner chunk of a contact map, in bins."""

SHARD_SIDE = 4096
"""Longest side of a shard of a contact map, in bins."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+ -]{0,99}")
_TAG = "~"


def path_of(name: str, number: int) -> str:
    """
    Return where a variable is kept below its group.

    Parameters
    ----------
    name : str
        Name of the variable.
    number : int
        Its place among its siblings, which names it if its own name cannot be a file name.

    Returns
    -------
    str
        One part of a path, different for different variables.

    Examples
    --------
    >>> path_of("cell type", 3), path_of("T/B", 4)
    ('cell type', '~4')
    """
    plain = _PLAIN_NAME.fullmatch(name) and name != "zarr.json"
    return name if plain else f"~{number}"


def encode(value: Any, where: str) -> Any:  # noqa: PLR0911 # one per type
    """
    Turn an attribute into strict JSON that `decode` turns back into an equal one.

    Parameters
    ----------
    value : object
        None, bool, number, str, numpy scalar or array, or lists, tuples and dicts of them.
    where : str
        Whose attribute it is, for the message.

    Returns
    -------
    object
        What `json.dumps` accepts.

    Raises
    ------
    SchemaError
        If the value is of another type.

    Examples
    --------
    >>> encode((1, float("nan")), "X")
    {'~': 'tuple', 'value': [1, {'~': 'float', 'value': 'nan'}]}
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_TAG: "float", "value": str(float(value))}
    if value is pd.NA:
        return {_TAG: "NA"}
    if isinstance(value, list | tuple):
        items = [encode(v, where) for v in value]
        return items if isinstance(value, list) else {_TAG: "tuple", "value": items}
    if isinstance(value, Mapping):
        if _TAG not in value and all(isinstance(k, str) for k in value):
            return {k: encode(v, where) for k, v in value.items()}
        return {_TAG: "dict", "value": [encode(list(item), where) for item in value.items()]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufUO":
        items = [encode(v, where) for v in np.asarray(value).ravel().tolist()]
        shape = list(value.shape) if isinstance(value, np.ndarray) else None
        return {_TAG: "array", "dtype": value.dtype.str, "shape": shape, "value": items}
    msg = (
        f"{where} has a value of type {type(value).__name__}, which a store cannot hold; it holds "
        "None, bool, numbers, strings, numpy arrays of them, and lists, tuples and dicts: change "
        "the value or drop it"
    )
    raise SchemaError(msg)


def decode(value: Any) -> Any:  # noqa: PLR0911 # one per type
    """
    Turn the result of `encode` back.

    Parameters
    ----------
    value : object
        Parsed JSON.

    Returns
    -------
    object
        Equal to what was encoded, and of the same type.
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    tag, content = value.get(_TAG), value.get("value")
    if tag is None:
        return {k: decode(v) for k, v in value.items()}
    if tag == "array":
        return _decode_array(value)
    if tag == "NA":
        return pd.NA
    if tag == "float":
        return float(str(content))
    items = decode(content)
    return tuple(items) if tag == "tuple" else dict(items)


def _decode_array(value: Mapping[str, Any]) -> Any:
    dtype = np.dtype(value["dtype"])
    flat = np.empty(len(value["value"]), dtype)
    for k, item in enumerate(value["value"]):  # one by one: items of objects may be lists
        flat[k] = decode(item)
    return flat[0] if value["shape"] is None else flat.reshape(value["shape"])


def split_values(
    values: npt.NDArray[Any], where: str
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """
    Turn the values of a label into arrays that zarr can hold.

    Parameters
    ----------
    values : ndarray
        Numbers, booleans, times, strings, or objects that are strings, numbers or missing.
    where : str
        Name of the label, for the message.

    Returns
    -------
    arrays : dict of str to ndarray
        ``{"": numbers}``, or `codes` and `categories`: an element is ``categories[code]``, or for a
        negative code ``others[-1 - code]``.
    description : dict
        `dtype`, and `others` (JSON) where there are codes.

    Raises
    ------
    SchemaError
        If an element is of another type.
    """
    values = np.asarray(values)
    kind = values.dtype.kind
    description: dict[str, Any] = {"dtype": "|O" if kind == "T" else values.dtype.str}
    if kind in "biufc":
        description["dtype"] = values.dtype.newbyteorder("=").str
        return {"": values.astype(description["dtype"], copy=False)}, description
    if kind in "mM":
        return {"": values.astype(values.dtype.newbyteorder("=")).view(np.int64)}, description
    flat = values.astype(object).ravel()
    is_text = np.fromiter((isinstance(v, str) for v in flat), bool, len(flat))
    codes = np.empty(len(flat), np.int32)
    codes[is_text], categories = pd.factorize(flat[is_text])
    others: dict[tuple[type, str], Any] = {}
    for k in np.flatnonzero(~is_text).tolist():
        item = flat[k].item() if isinstance(flat[k], np.generic) else flat[k]
        # equal objects of different type (1, 1.0, True) must stay different
        known = others.setdefault((type(item), repr(item)), (-1 - len(others), item))
        codes[k] = known[0]
    description["others"] = [encode(item, f"`{where}`") for _, item in others.values()]
    texts = np.asarray(categories, object)
    return {"codes": codes.reshape(values.shape), "categories": texts}, description


def join_values(
    arrays: Mapping[str, npt.NDArray[Any]], description: Mapping[str, Any]
) -> npt.NDArray[Any]:
    """
    Turn the result of `split_values` back.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        As read.
    description : mapping
        As read.

    Returns
    -------
    ndarray
        Equal to the original, and of the same dtype.
    """
    dtype = np.dtype(description["dtype"])
    if "" in arrays:
        values = arrays[""]
        return values.view(dtype) if dtype.kind in "mM" else values
    codes = arrays["codes"]
    others = [decode(item) for item in description["others"]]
    table = np.empty(len(arrays["categories"]) + len(others), object)
    table[: len(arrays["categories"])] = arrays["categories"].astype(object)
    # others stand at the end, last first, where negative codes point
    for k, item in enumerate(others):
        table[-1 - k] = item
    # with an index of no dimensions the element itself would come out
    values = table[np.atleast_1d(codes)].reshape(codes.shape)
    return np.asarray(values.astype(dtype, copy=False))


def checksum(value: Any) -> int:
    """
    Return the CRC32C of JSON, whatever its spacing and the order of its keys.

    Parameters
    ----------
    value : object
        Parsed JSON.

    Returns
    -------
    int
        Between 0 and 2**32 - 1.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return int(google_crc32c.value(text.encode()))


def write_group(path: Path, attributes: Mapping[str, Any] | None = None) -> None:
    """
    Write the metadata of a zarr group.

    Parameters
    ----------
    path : Path
        Directory of the group, made if it is not there.
    attributes : mapping, optional
        Strict JSON.
    """
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}
    replace_file(path / "zarr.json", [json.dumps(document, indent=1, allow_nan=False).encode()])


def write_root(store: Path, description: Mapping[str, Any]) -> None:
    """
    Write the metadata that makes a directory a store, as the last thing of all.

    Parameters
    ----------
    store : Path
        Directory of the store.
    description : mapping
        Strict JSON: `kind`, `groups` and `arrays`.
    """
    described = {"format": FORMAT, **description}
    write_group(store, {"xloader": described, "xloader_crc32c": checksum(described)})


def metadata_of(array: Place) -> dict[str, Any]:
    """
    Read the metadata of one zarr array.

    Parameters
    ----------
    array : Path or Url
        Directory of the array.

    Returns
    -------
    dict
        Parsed JSON without `attributes`, which mean nothing to xloader.

    Raises
    ------
    ReadError
        If it is missing or no JSON.
    """
    return metadata_from(read_files([array / "zarr.json"])[0], array)


def metadata_from(raw: bytes | None, array: Place) -> dict[str, Any]:
    """
    Parse the metadata of one zarr array.

    Parameters
    ----------
    raw : bytes or None
        What its file holds, if it is there.
    array : Path or Url
        Directory of the array, for the message.

    Returns
    -------
    dict
        As for `metadata_of`.

    Raises
    ------
    ReadError
        If there are none, or they are no JSON.
    """
    try:
        if raw is None:
            msg = "no file zarr.json is there"
            raise ValueError(msg)  # noqa: TRY301 # one message for all
        document = json.loads(raw)
        document.pop("attributes", None)
    except (ValueError, AttributeError) as e:
        msg = f"cannot read the metadata of array {str(array)!r}: {e}; convert the source again"
        raise ReadError(msg) from e
    return dict(document)


def read_root(store: Place) -> dict[str, Any]:
    """
    Read the metadata of a store.

    Parameters
    ----------
    store : Path or Url
        Directory of the store.

    Returns
    -------
    dict
        What `write_root` was given, and `format`.

    Raises
    ------
    ReadError
        If nothing is there, its conversion was interrupted, its metadata are damaged or of a
        newer format.
    SchemaError
        If something else is there.
    """
    attributes = root_attributes(store)
    if "xloader" not in attributes:
        if not store.exists():
            raise missing(store)
        msg = (
            f"{str(store)!r} is no xloader store: it is {describe(store)}; make one with xl.convert"
        )
        raise SchemaError(msg)
    described = attributes["xloader"]
    version = described.get("format") if isinstance(described, dict) else None
    intact = attributes.get("xloader_crc32c") == checksum(described)
    if version != FORMAT and (intact or type(version) is int):
        msg = (
            f"store {str(store)!r} has format {version}, and this version of xloader reads format "
            f"{FORMAT}; {'update xloader, or ' * (type(version) is int and version > FORMAT)}convert the source again with this version"
        )
        raise ReadError(msg)
    if not intact:
        msg = (
            f"the metadata of store {str(store)!r} do not match their checksum: zarr.json is "
            "damaged or was edited; convert the source again"
        )
        raise ReadError(msg)
    return dict(described)


def partial_of(store: Path) -> Path:
    """
    Return the directory in which a store is built before it is whole.

    Parameters
    ----------
    store : Path
        Directory of the store.

    Returns
    -------
    Path
        A hidden sibling.
    """
    return store.parent / f".{store.name}.partial"


def missing(path: Place) -> ReadError:
    """
    Return the error for a path at which nothing is.

    Parameters
    ----------
    path : Path or Url
        Where something was expected.

    Returns
    -------
    ReadError
        Which tells an interrupted conversion from a wrong path.
    """
    if isinstance(path, Url):
        return ReadError(
            f"no store is at {str(path)!r}: there is no file zarr.json; check the address, and that "
            "the whole directory of the store was copied there"
        )
    if partial_of(path).is_dir():
        return ReadError(
            f"store {str(path)!r} is not complete: its conversion was interrupted, or is still "
            f"running in {partial_of(path).name!r}; run xl.convert again, which replaces that"
        )
    return ReadError(f"nothing is at {str(path)!r}; check the path")


def root_attributes(path: Place) -> dict[str, Any]:
    """
    Return the attributes of the zarr group at a path.

    Parameters
    ----------
    path : Path or Url
        Any path.

    Returns
    -------
    dict
        Empty if there is no zarr v3 group.

    Raises
    ------
    ReadError
        If it cannot be reached.
    """
    raw = read_files([path / "zarr.json"])[0]
    try:
        return dict(json.loads(raw or b"")["attributes"])
    except (ValueError, KeyError, TypeError):
        return {}


def describe(path: Place) -> str:
    """
    Say what is at a path that is no store.

    Parameters
    ----------
    path : Path or Url
        An existing file or directory.

    Returns
    -------
    str
        A phrase for a message.
    """
    if isinstance(path, Url):
        return "a zarr v3 array or group without (readable) `xloader` attributes"
    if not path.is_dir():
        return f"a file of {path.stat().st_size} bytes"
    names = sorted(p.name for p in path.iterdir())
    if "zarr.json" in names:
        return "a zarr v3 array or group without (readable) `xloader` attributes"
    if {".zgroup", ".zarray"} & set(names):
        return "a zarr v2 array or group"
    return f"a directory of {len(names)} files{f', such as {names[:3]}' if names else ''}"
