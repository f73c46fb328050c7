"""Zarr stores that other tools wrote, of format 2 or 3: what they hold, read without zarr."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.backends.elements import Int64, Leaf, Tree
from xloader.errors import ReadError, SchemaError, XloaderError
from xloader.store.foreign import ForeignArray
from xloader.store.keys import Keys
from xloader.store.places import listing
from xloader.store.zarr_v2 import as_v3

_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError)
_NODES = ("zarr.json", ".zgroup", ".zarray")


def is_zarr(path: Path) -> bool:
    """
    Say whether a directory is a node of a zarr store.

    Parameters
    ----------
    path : Path
        Any path.

    Returns
    -------
    bool
        Also True for the training stores of xloader, which are zarr stores too.
    """
    return any((path / name).is_file() for name in _NODES)


class ZarrTree(Tree):
    """
    A zarr store in a local directory.

    Metadata are read where they lie; consolidated copies of them, which may be older, are not used.

    Parameters
    ----------
    path : str
        Its directory.

    Raises
    ------
    ReadError
        If there is no such store.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._root = Path(path)
        if not is_zarr(self._root):
            msg = f"{path!r} is no zarr store: it has none of the files {', '.join(_NODES)}"
            raise ReadError(msg)

    @contextmanager
    @override
    def reading(self, name: str | None = None) -> Iterator[None]:
        """
        Read in the body; what damaged metadata raise there becomes a ReadError.

        Parameters
        ----------
        name : str, optional
            What is read, for the message. Default: the store.

        Yields
        ------
        None
            Nothing is held open.

        Raises
        ------
        ReadError
            If the body meets damage.
        """
        try:
            yield
        except XloaderError:
            raise
        except _DAMAGE as e:
            what = repr(self.path) if name is None else f"{name!r} of {self.path!r}"
            msg = f"cannot read {what}: {e!r}; the store is incomplete or damaged, get a new copy"
            raise ReadError(msg) from e

    @override
    def children(self, name: str = "") -> list[str]:  # numpydoc ignore=GL08
        folder = self._place(name)
        if not folder.is_dir() or self._metadata(folder)[1] is not None:
            return []
        return sorted(p.name for p in folder.iterdir() if is_zarr(p))

    @override
    def attr(self, name: str, key: str) -> Any:  # numpydoc ignore=GL08
        return self._metadata(self._require(name))[0].get(key)

    @override
    def leaf(self, name: str) -> Leaf | None:  # numpydoc ignore=GL08
        place = self._require(name)
        metadata = self._metadata(place)[1]
        return None if metadata is None else ZarrLeaf(self.path, name, place, metadata)

    @override
    def close(self) -> None:  # numpydoc ignore=GL08
        pass

    def _place(self, name: str) -> Path:
        parts = [part for part in name.split("/") if part]
        if {".", ".."} & {*parts}:
            msg = (
                f"{name!r} leads out of {self.path!r}; such a store is not trusted, write it again"
            )
            raise ReadError(msg)
        return self._root.joinpath(*parts)

    def _require(self, name: str) -> Path:
        place = self._place(name)
        if not is_zarr(place):
            folder = place.parent
            there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "nothing"
            msg = (
                f"`{name}` of {self.path!r} is missing: beside it there is {there}; the store is "
                "incomplete, copy or write it again"
            )
            raise ReadError(msg)
        return place

    def _metadata(self, place: Path) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
        """Return the attributes of a node, and the metadata of an array in the words of zarr v3."""
        for file in (place / "zarr.json", place / ".zarray", place / ".zgroup"):
            if file.is_file():
                break
        document = _json(file)
        if file.name == "zarr.json":
            is_array = document["node_type"] == "array"
            return document.get("attributes", {}), document if is_array else None
        attributes = place / ".zattrs"
        known = _json(attributes) if attributes.is_file() else {}
        return known, {**document, "zarr_format": 2} if file.name == ".zarray" else None


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as e:
        msg = f"cannot read {str(file)!r}: {e}; the store is damaged, get a new copy"
        raise ReadError(msg) from e


class ZarrLeaf(Leaf):
    """
    A zarr array.

    Files that are not there when this is made hold nothing but the fill value, as the format has
    it; where there is no fill value they were lost, and reading them is an error.

    Parameters
    ----------
    path : str
        Directory of the store.
    name : str
        Path of the array in it.
    place : Path
        Directory of the array.
    metadata : mapping
        Its metadata.
    """

    def __init__(self, path: str, name: str, place: Path, metadata: Mapping[str, Any]) -> None:
        try:
            v3 = as_v3(metadata) if metadata["zarr_format"] == 2 else metadata
            keys = Keys(v3)
            n_files = int(np.prod(keys.grid, dtype=object))
            there = keys.numbers(listing(place) or [])
        except _DAMAGE as e:
            msg = f"array `{name}` of {path!r} is of no kind that xloader reads: {e}"
            raise SchemaError(msg) from e
        self.files = _runs(there)
        required = [(0, n_files)] if metadata.get("fill_value", 0) is None else self.files
        self.array = ForeignArray(place, v3, required)
        self.file_length = keys.file_shape[0] if keys.file_shape else 1
        super().__init__(path, name, self.array.shape, self.array.dtype, self.array.stored_chunk)

    @override
    def read(self, key: Any = ()) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        keys = key if isinstance(key, tuple) else (key,)
        keys = (*keys, *[slice(None)] * (len(self.shape) - len(keys)))
        bounds: list[tuple[int, int]] = []
        inside: list[int | slice] = []
        for k, n in zip(keys, self.shape, strict=True):
            places = range(n)[k]
            if isinstance(places, int):
                bounds.append((places, places + 1))
                inside.append(0)
            else:
                bounds.append((places[0], places[-1] + 1) if len(places) else (0, 0))
                inside.append(slice(None, None, places.step))
        box = np.array(bounds, np.int64).reshape(-1, 2)
        values = self.array.read_boxes(box[None, :, 0], box[None, :, 1])
        return np.asarray(values.reshape((box[:, 1] - box[:, 0]).tolist())[tuple(inside)])

    @override
    def read_ranges(self, starts: Int64, stops: Int64) -> npt.NDArray[Any]:  # numpydoc ignore=GL08
        return self.array.read_boxes(starts[:, None], stops[:, None])

    @override
    def absent(self) -> list[tuple[int, int]]:  # numpydoc ignore=GL08
        n, length = self.shape[0], self.file_length
        ends = [0, *(k * length for run in self.files for k in run), n]
        gaps = zip(ends[::2], ends[1::2], strict=True)
        return [(a, b) for a, b in gaps if a < min(b, n)]


def _runs(numbers: Int64) -> list[tuple[int, int]]:
    """Return sorted numbers as half-open runs."""
    if not len(numbers):
        return []
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    firsts, lasts = numbers[np.append(0, breaks)], numbers[np.append(breaks - 1, len(numbers) - 1)]
    return [(int(a), int(b) + 1) for a, b in zip(firsts, lasts, strict=True)]
