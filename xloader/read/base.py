"""What reads the windows of one variable: the stored chunks they touch, each decoded once, into memory."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader.axes import Int64, Windows
from xloader.buffers import Buffers
from xloader.chunks import cuts_rows
from xloader.csr import CSRArray
from xloader.planned import Chosen

Values = npt.NDArray[Any] | CSRArray
Part = tuple[Any, Int64]
"""What `Reader.load` returned, and where windows start in it, shape ``(m, n_dims)``."""


TELL_AFTER = 2.0
"""Seconds of reading after which the Loader says that converting would pay."""

TELL_BEYOND = 1_000_000
"""Values of which fewer are read slowly because something else is slow, such as the machine."""

STORE_RATE = 5e8
"""Values per second that are read from a store on two processors; see docs/benchmarks.md."""


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
    advice : str or None
        What would make reading much faster, once that is known.
    chosen : Chosen or None
        What is read for some of the stored columns; None where all are wanted or it is not known.
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
        # nothing but rows: no other dimension is cut
        self.is_rows = cuts_rows(variable, windows)
        self.advice: str | None = None
        self.chosen: Chosen | None = None
        self._seconds = 0.0
        self._n_read = 0
        self.n_elements = int(np.prod(self.shape))

    def count(self, seconds: float, n_values: int) -> None:
        """
        Add up what reading an unconverted file costs, and say so when it is worth converting.

        Parameters
        ----------
        seconds : float
            How long something took to read.
        n_values : int
            How many stored values it was.
        """
        self._seconds += seconds
        self._n_read += n_values
        factor = self._seconds * STORE_RATE / max(1, self._n_read)
        much = self._seconds > TELL_AFTER and self._n_read > TELL_BEYOND
        if self.advice is None and much and factor > 2:
            self.advice = (
                f"{self._seconds:.1f} s went into reading {self._n_read / 1e6:.1f} million values of "
                f"{self.dims} from a file that is not made for it; a store made by xl.convert is read "
                f"about {factor:.0f} times as fast"
            )

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
    def nbytes(self, first: Int64, last: Int64, ptr: Int64) -> Int64:
        """
        Return the bytes that blocks of windows decode to.

        Parameters
        ----------
        first, last : ndarray of int64, shape (m, n_dims)
            Where windows start, at the earliest and at the latest, block after block.
        ptr : ndarray of int64, shape (n_blocks + 1,)
            Block ``b`` is ``ptr[b]:ptr[b + 1]`` of them.

        Returns
        -------
        ndarray of int64, shape (n_blocks,)
            Upper bounds.
        """

    @abstractmethod
    def load(self, first: Int64, last: Int64) -> Any:
        """
        Decode every chunk that some windows may touch, once.

        Parameters
        ----------
        first, last : ndarray of int64, shape (m, n_dims)
            Where windows start, at the earliest and at the latest.

        Returns
        -------
        object
            What `gather` cuts these windows from.
        """

    @abstractmethod
    def gather(self, parts: Sequence[Part]) -> Values:
        """
        Cut windows out of what was loaded.

        Parameters
        ----------
        parts : sequence of Part
            At least one.

        Returns
        -------
        ndarray or CSRArray, windows first
            The windows of all parts in order.
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

    @property
    def stored_nbytes(self) -> int:
        """
        Return the part of decoded chunks that is one sample's.

        Returns
        -------
        int
            Bytes, on average; 0 if the variable is in memory.
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
