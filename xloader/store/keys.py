"""Names of the files of a zarr array: from their place in the grid, and back."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


class Keys:
    """
    How the files of an array, shards or chunks, are named.

    Parameters
    ----------
    metadata : mapping
        Metadata of the array.

    Raises
    ------
    KeyError, TypeError, ValueError
        If they are damaged, or files are named in a way that the specification does not know.

    Examples
    --------
    >>> metadata = {
    ...     "shape": [7, 5],
    ...     "chunk_grid": {"configuration": {"chunk_shape": [3, 5]}},
    ...     "chunk_key_encoding": {"name": "default"},
    ... }
    >>> Keys(metadata).name([2, 0]), Keys(metadata).numbers(["c/2/0", "c/0/0", "zarr.json"])
    ('c/2/0', array([0, 2]))
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        keys = metadata["chunk_key_encoding"]
        self._prefix, separator = {"default": (["c"], "/"), "v2": ([], ".")}[keys["name"]]
        self._separator = str(keys.get("configuration", {}).get("separator", separator))
        sides = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        self.file_shape = tuple(map(int, sides))
        pairs = zip(metadata["shape"], self.file_shape, strict=True)
        self.grid = tuple(-(-int(n) // side) for n, side in pairs)

    def name(self, place: Sequence[Any]) -> str:
        """
        Return the name of a file.

        Parameters
        ----------
        place : sequence of int
            Its place in the grid.

        Returns
        -------
        str
            Path below the directory of the array.
        """
        return self._separator.join([*self._prefix, *map(str, place)]) or "0"  # a scalar

    def numbers(self, names: Iterable[str]) -> Int64:
        """
        Return which files of an array are there.

        Parameters
        ----------
        names : iterable of str
            Paths of all files below its directory; others are left out, as a desktop or a network
            file system may leave some of its own.

        Returns
        -------
        ndarray of int64
            Their numbers in row-major order, sorted.
        """
        if not self.grid:
            return np.arange(int(self.name([]) in set(names)))
        part = re.escape(self._separator)
        number = rf"\d+(?:{part}\d+){{{len(self.grid) - 1}}}"
        pattern = re.compile(
            rf"(?:{re.escape(self._separator.join([*self._prefix, '']))})({number})"
        )
        found = [match[1].split(self._separator) for n in names if (match := pattern.fullmatch(n))]
        places = np.array(found, dtype="U").astype(np.int64).reshape(-1, len(self.grid))
        inside = (places < self.grid).all(axis=1)
        return np.sort(places[inside] @ strides(self.grid))


def strides(grid: Sequence[int]) -> Int64:
    """
    Return what turns places in a grid into numbers in row-major order.

    Parameters
    ----------
    grid : sequence of int
        Its shape.

    Returns
    -------
    ndarray of int64
        Factors of each coordinate.

    Examples
    --------
    >>> np.array([[1, 2]]) @ strides([4, 7])
    array([9])
    """
    return np.array([math.prod(grid[k + 1 :]) for k in range(len(grid))], np.int64)
