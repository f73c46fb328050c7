"""Trees of named arrays and groups with attributes, which HDF5 files and zarr stores both are."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from xloader.arrays import Key, StoredArray

Int64 = npt.NDArray[np.int64]


class Leaf(ABC):
    """
    One stored array. It holds no open file, so that it pickles and survives `fork`.

    Parameters
    ----------
    path : str
        Path of the file or store.
    name : str
        Path of the array inside it.
    shape : tuple of int
        In elements.
    dtype : dtype
        Type of what is read, in native byte order; object for strings.
    chunks : tuple of int or None
        Shape of what is decoded together, if it is cut into chunks.
    """

    def __init__(
        self,
        path: str,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunks: tuple[int, ...] | None,
    ) -> None:
        self.path, self.name = path, name
        self.shape, self.dtype, self.chunks = shape, dtype, chunks

    @property
    def is_text(self) -> bool:
        """
        Say whether the elements are strings.

        Returns
        -------
        bool
            False for all numbers.
        """
        return self.dtype.kind == "O"

    @abstractmethod
    def read(self, key: Any = ()) -> npt.NDArray[Any]:
        """
        Read a part.

        Parameters
        ----------
        key : int, slice of positive step, or tuple of them, optional
            Which part. Default: everything.

        Returns
        -------
        ndarray
            Of type `dtype`.

        Raises
        ------
        ReadError
            If the bytes cannot be read or decoded, or are not what they were.
        """

    @abstractmethod
    def read_ranges(self, starts: Int64, stops: Int64) -> npt.NDArray[Any]:
        """
        Read several ranges of a one-dimensional array; each of its chunks is decoded once.

        Parameters
        ----------
        starts, stops : ndarray of int64, shape (m,)
            Half-open ranges.

        Returns
        -------
        ndarray
            All ranges, joined, of type `dtype`.

        Raises
        ------
        ReadError
            As for `read`.
        """

    @abstractmethod
    def absent(self) -> list[tuple[int, int]]:
        """
        Return which chunks were never written, or lost, of a line; they read as zeros.

        Returns
        -------
        list of (int, int)
            Half-open ranges of elements.
        """


class Tree(ABC):
    """
    A file or store that holds named arrays and groups. It holds no open file, and pickles.

    Parameters
    ----------
    path : str
        Where it is.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def reading(self, name: str | None = None) -> AbstractContextManager[Any]:
        """
        Read in the body; what damaged bytes raise there, of several kinds, becomes a ReadError.

        Parameters
        ----------
        name : str, optional
            What is read, for the message. Default: the whole.

        Returns
        -------
        context manager
            Raises ReadError if the body meets damage.
        """

    @abstractmethod
    def children(self, name: str = "") -> list[str]:
        """
        List what a group holds.

        Parameters
        ----------
        name : str, optional
            Path of a group. Default: the root.

        Returns
        -------
        list of str
            Names, sorted; none if there is no such group, or it is an array.
        """

    @abstractmethod
    def attr(self, name: str, key: str) -> Any:
        """
        Return an attribute of an array or a group.

        Parameters
        ----------
        name : str
            Its path.
        key : str
            Name of the attribute.

        Returns
        -------
        object
            A str, number or list of them; None if there is no such attribute. What refers to
            another element is its path.
        """

    @abstractmethod
    def leaf(self, name: str) -> Leaf | None:
        """
        Return an array.

        Parameters
        ----------
        name : str
            Its path.

        Returns
        -------
        Leaf or None
            None if it is a group.

        Raises
        ------
        ReadError
            If it is missing, or lies in another file.
        """

    @abstractmethod
    def close(self) -> None:
        """Forget what this process holds open, so that the file can be written."""


class DenseElement(StoredArray):
    """
    A dense array of a tree.

    Parameters
    ----------
    leaf : Leaf
        The array, of numbers.
    """

    def __init__(self, leaf: Leaf) -> None:
        super().__init__(leaf.shape, leaf.dtype)
        self.leaf = leaf

    @property
    @override
    def unit(self) -> tuple[int, ...]:  # numpydoc ignore=GL08
        return self.leaf.chunks or super().unit

    @override
    def _raw(self, key: Key) -> npt.NDArray[Any]:
        return self.leaf.read(key)


def encoding_of(tree: Tree, name: str) -> str:
    """
    Return the encoding of an element, as anndata names it.

    Parameters
    ----------
    tree : Tree
        Where it is.
    name : str
        Path of the element.

    Returns
    -------
    str
        Such as ``"csr_matrix"``; empty if the file does not say.
    """
    before_0_7 = tree.attr(name, "h5sparse_format")
    return f"{before_0_7}_matrix" if before_0_7 else str(tree.attr(name, "encoding-type") or "")
