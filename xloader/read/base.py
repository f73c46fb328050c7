"""What reads the windows of one variable: the stored chunks they touch, each decoded once, into memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.axes import Int64, Windows
from xloader.buffers import Buffers
from xloader.csr import CSRArray

Values = npt.NDArray[Any] | CSRArray
Gather = Callable[[Int64], Values]
"""Takes window starts ``(m, n_dims)`` and returns their values, windows first."""


class Reader(ABC):
    """
    Reads the windows of one variable.

    Parameters
    ----------
    variable : xarray.Variable
        What the user sees; its dtype is what batches get.
    windows : Windows
        Where windows lie; starts are positions along the dimensions of the Dataset.

    Attributes
    ----------
    buffers, batches : Buffers
        Where memory of decoded chunks and of batches comes from.
    """

    def __init__(self, variable: xr.Variable, windows: Windows) -> None:
        self.dims = tuple(map(str, variable.dims))
        self.buffers = Buffers()
        self.batches = Buffers()
        self.dtype = np.dtype(variable.dtype)
        self.shape = variable.shape
        self.axes = [windows.dims.index(d) if d in windows.dims else None for d in self.dims]
        self.size = tuple(
            n if a is None else windows.size[a] for n, a in zip(self.shape, self.axes, strict=True)
        )
        self.by_row = windows.by_row
        self.n_elements = int(np.prod(self.shape))

    @abstractmethod
    def keys(self, starts: Int64) -> Int64 | None:
        """
        Return a number per window that is equal for windows stored together.

        Parameters
        ----------
        starts : ndarray of int64, shape (m, n_dims)
            Where windows start.

        Returns
        -------
        ndarray of int64 or None, shape (m,)
            None if the variable is in memory.
        """

    @abstractmethod
    def nbytes(self, starts: Int64, ptr: Int64) -> Int64:
        """
        Return the bytes that blocks of windows decode to.

        Parameters
        ----------
        starts : ndarray of int64, shape (m, n_dims)
            Where windows start, block after block.
        ptr : ndarray of int64, shape (n_blocks + 1,)
            Block ``b`` is ``starts[ptr[b]:ptr[b + 1]]``.

        Returns
        -------
        ndarray of int64, shape (n_blocks,)
            Upper bounds.
        """

    @abstractmethod
    def load(self, starts: Int64) -> Gather:
        """
        Decode every chunk that some windows touch, once.

        Parameters
        ----------
        starts : ndarray of int64, shape (m, n_dims)
            Where windows start.

        Returns
        -------
        Gather
            What cuts any of these windows.
        """

    @property
    def sample_nbytes(self) -> int:
        """
        Return the bytes of one sample in a batch.

        Returns
        -------
        int
            On average.
        """
        return int(np.prod(self.size) * self.dtype.itemsize)

    def full_starts(self, starts: Int64) -> Int64:
        """
        Return starts along every dimension of the variable.

        Parameters
        ----------
        starts : ndarray of int64, shape (m, n_dims)
            Where windows start along windowed dimensions.

        Returns
        -------
        ndarray of int64, shape (m, ndim)
            Zero along the others.
        """
        zero = np.zeros(len(starts), np.int64)
        return np.stack([zero if a is None else starts[:, a] for a in self.axes], axis=1)
