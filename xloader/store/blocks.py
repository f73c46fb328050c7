"""Where blocks of sparse rows lie in a padded array whose chunks all have one width."""

from functools import cached_property

import numpy as np
import numpy.typing as npt

from xloader.store.layout import BLOCK_ROWS

Int64 = npt.NDArray[np.int64]

_CHUNK_COST = 512
"""Values that could be decoded in the time that one more chunk takes."""


class RowBlocks:
    """
    The places of all rows: a block is 32 rows, in as many successive chunks as it fills.

    Parameters
    ----------
    indptr : ndarray of int64, shape (n_rows + 1,)
        First stored value of each row, and their number.
    width : int
        Values in a chunk.
    """

    def __init__(self, indptr: Int64, width: int) -> None:
        self.indptr = indptr
        self.width = width

    @cached_property
    def first_chunks(self) -> Int64:
        """
        Return the first chunk of each block, and the number of chunks.

        Returns
        -------
        ndarray of int64, shape (n_blocks + 1,)
            A block without values has none.
        """
        return np.append(0, np.cumsum(-(-block_sizes(self.indptr) // self.width)))

    @property
    def n_chunks(self) -> int:
        """
        Return the number of chunks, which is never zero, as no array may be.

        Returns
        -------
        int
            At least 1.
        """
        return max(1, int(self.first_chunks[-1]))

    def chunks_of(self, blocks: Int64) -> tuple[Int64, Int64]:
        """
        Return the chunks of some blocks, and where in them each block begins.

        Parameters
        ----------
        blocks : ndarray of int64, shape (m,)
            Numbers of blocks, each once.

        Returns
        -------
        chunks : ndarray of int64, shape (n,)
            All chunks, block after block.
        starts : ndarray of int64, shape (m,)
            Place of the first value of each block, if these chunks are joined.
        """
        first = self.first_chunks[blocks]
        counts = self.first_chunks[blocks + 1] - first
        before = np.cumsum(counts) - counts
        chunks = np.repeat(first - before, counts) + np.arange(int(counts.sum()))
        return chunks, before * self.width


def block_sizes(indptr: Int64) -> Int64:
    """
    Return the stored values of each block.

    Parameters
    ----------
    indptr : ndarray of int64, shape (n_rows + 1,)
        First stored value of each row, and their number.

    Returns
    -------
    ndarray of int64, shape (n_blocks,)
        Sums of `BLOCK_ROWS` rows, of fewer in the last.
    """
    return np.diff(np.append(indptr[:-1:BLOCK_ROWS], indptr[-1]))


def best_width(sizes: Int64) -> int:
    """
    Choose the width that wastes least.

    Parameters
    ----------
    sizes : ndarray of int64, shape (n_blocks,)
        Stored values of each block.

    Returns
    -------
    int
        At least 1; one block of 100 times the usual size does not make it larger.

    Examples
    --------
    >>> best_width(np.array([9_000, 10_000, 8_000, 700_000]))
    10000
    """
    sizes = sizes[sizes > 0]
    if len(sizes) == 0:
        return 1
    levels = np.quantile(sizes, [0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1], method="higher")
    widths = np.unique(np.concatenate([levels, -(-levels // 2)]))
    chunks = (-(-sizes[:, None] // widths)).sum(axis=0)
    return int(widths[np.argmin(chunks * (widths + _CHUNK_COST))])
