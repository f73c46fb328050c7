"""The arrays of a store that is complete: checked against its list, and opened wherever they lie."""

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xloader.errors import ReadError
from xloader.store.foreign import ForeignArray
from xloader.store.keys import Keys
from xloader.store.layout import (
    checksum,
    join_values,
    metadata_from,
    read_root,
    write_root,
)
from xloader.store.places import Place, listing, place_of, read_files
from xloader.store.shards import ShardedArray
from xloader.store.write import manifest

ChunkedArray = ShardedArray | ForeignArray
"""What reads chunks of a stored array."""


class Arrays:
    """
    The arrays of one group of a store.

    They are checked against the list that was made when the store was complete: zarr reads a missing
    file as the fill value, and labels would silently be wrong.

    Parameters
    ----------
    store : Path or Url
        Directory of the store.
    listed : mapping
        What `manifest` returned.
    below : str
        Path of the group; empty for the whole store.

    Raises
    ------
    ReadError
        If metadata of an array were changed, or one of its files is missing; where files cannot be
        listed, a missing one is an error when it is read.
    """

    def __init__(self, store: Place, listed: Mapping[str, Any], below: str) -> None:
        self.store = store
        self.listed = {k: v for k, v in listed.items() if not below or k.startswith(f"{below}/")}
        raw = read_files([store / name / "zarr.json" for name in self.listed])
        self.metadata = {
            name: metadata_from(r, store / name) for name, r in zip(self.listed, raw, strict=True)
        }
        for name, metadata in self.metadata.items():
            if checksum(metadata) != self.listed[name]["metadata"]:
                msg = (
                    f"the metadata of array {str(store / name)!r} do not match their checksum: its "
                    "zarr.json is damaged or was edited; convert the source again, or, if another "
                    "tool wrote the array anew, accept it with xloader.store.opened.seal"
                )
                raise ReadError(msg)
        files = listing(store / below if below else store)
        if files is not None:
            self._check(files, below)

    def _check(self, files: list[str], below: str) -> None:
        for name, entry in self.listed.items():
            path = name[len(below) :].lstrip("/")
            low, high = (bisect_left(files, path + end) for end in "/0")  # "0" comes after "/"
            found = Keys(self.metadata[name]).numbers(f[len(path) + 1 :] for f in files[low:high])
            expected = [np.arange(a, b) for a, b in entry["files"]]
            listed = np.concatenate([np.arange(0), *expected])
            strange = np.setdiff1d(found, listed)
            if len(strange):
                msg = (
                    f"array {str(self.store / name)!r} has {len(strange)} files that are not in its "
                    f"list (the first is number {strange[0]} in row-major order): the list is damaged "
                    "or files were put there; convert the source again"
                )
                raise ReadError(msg)
            lost = np.setdiff1d(listed, found)
            if len(lost):
                msg = (
                    f"{len(lost)} of the {len(listed)} files of array {str(self.store / name)!r} are "
                    f"missing (the first is number {lost[0]} in row-major order); convert the source "
                    "again, or copy the store again"
                )
                raise ReadError(msg)

    def open(self, name: str, chunk_shape: tuple[int | None, ...] | None = None) -> ChunkedArray:
        """
        Open one array.

        Parameters
        ----------
        name : str
            Its path below the store.
        chunk_shape : tuple of int or None, optional
            Shape of the chunks that it is read in; None is everything along a dimension. Default:
            as stored along the first dimension, everything along the others.

        Returns
        -------
        ShardedArray or ForeignArray
            The first where it lies on a disk as `xl.convert` writes it, in these chunks.

        Raises
        ------
        ReadError
            If it is of a kind that cannot be read.
        """
        metadata, files = self.metadata[name], self.listed[name]["files"]
        shape = tuple(map(int, metadata["shape"]))
        wanted = None
        if chunk_shape is not None:
            wanted = tuple(c or n for c, n in zip(chunk_shape, shape, strict=True))
        place = self.store / name
        if isinstance(place, Path):
            try:
                mapped = ShardedArray(str(place), files, self.listed[name]["marks"])
            except ReadError:  # of another make
                pass
            else:
                if mapped.chunk_shape == (wanted or (mapped.chunk_shape[0], *shape[1:])):
                    return mapped
        return ForeignArray(place, metadata, files, wanted, self.listed[name]["marks"])

    def label(self, path: str, description: Mapping[str, Any]) -> npt.NDArray[Any]:
        """
        Read what `write_label` wrote.

        Parameters
        ----------
        path : str
            Path of its group below the store; empty for the store itself.
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
        names = ("codes", "categories") if "others" in description else ("",)
        parts = {}
        for key in names:
            name = "/".join(filter(None, [path, description["path"], key]))
            entry = self.listed[name]
            place, metadata = self.store / name, self.metadata[name]
            array = ForeignArray(place, metadata, entry["files"], None, entry["marks"])
            parts[key] = array.read_all()
        return join_values(parts, description)


def seal(path: str) -> None:
    """
    Accept a store whose arrays another tool wrote anew, with other chunks or codecs.

    What is there now counts as complete: from now on, a file that is lost or metadata that change
    are errors again.

    Parameters
    ----------
    path : str
        Directory of the store.

    Raises
    ------
    ReadError
        If an array is missing, or of a kind that cannot be read.
    SchemaError
        If it is no store.
    """
    store = place_of(path)
    if not isinstance(store, Path):
        msg = f"{str(store)!r} is not on a local disk; seal the store before it is uploaded"
        raise ReadError(msg)
    root = read_root(store)
    found = manifest(store)
    lost = sorted(set(root["arrays"]) - set(found))
    if lost:
        msg = f"store {path!r} lacks {len(lost)} of its arrays, such as {lost[:3]}; write them too"
        raise ReadError(msg)
    root["arrays"] = {name: found[name] for name in root["arrays"]}
    arrays = Arrays(store, root["arrays"], "")
    for name in root["arrays"]:
        arrays.open(name)
    write_root(store, {k: v for k, v in root.items() if k != "format"})
