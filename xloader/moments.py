"""Means and variances of columns, row by row and part by part, without loss of digits."""

from typing import Any

import numpy as np
import numpy.typing as npt

from xloader.csr import CSRArray
from xloader.packed import compiled

Floats = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Moments:
    """
    Means and squared deviations of each column of the rows that were added.

    Parts are joined as Chan, Golub and LeVeque do ("Updating formulae and a pairwise algorithm for
    computing sample variances", 1979), which loses no digits where means are large.

    Parameters
    ----------
    n_columns : int
        Of all rows.

    Attributes
    ----------
    n : ndarray of int64, shape (n_columns,)
        Rows that count.
    mean, squares : ndarray of float64, shape (n_columns,)
        Mean of each column, and sum of the squares of what is above or below it.
    detected : ndarray of int64, shape (n_columns,)
        Rows in which each column is not zero.
    """

    def __init__(self, n_columns: int) -> None:
        self.n, self.detected = np.zeros((2, n_columns), np.int64)
        self.mean, self.squares = np.zeros((2, n_columns))

    def add(self, x: npt.NDArray[Any] | CSRArray) -> Floats:
        """
        Add some rows.

        Parameters
        ----------
        x : ndarray or CSRArray, shape (m, n_columns)
            Their values.

        Returns
        -------
        ndarray of float64, shape (m,)
            The sum of each row.

        Examples
        --------
        >>> moments = Moments(1)
        >>> [moments.add(np.array(rows)).tolist() for rows in ([[1.0], [2.0]], [[6.0]])]
        [[1.0, 2.0], [6.0]]
        >>> moments.mean, moments.variance
        (array([3.]), array([7.]))
        """
        part = Moments(x.shape[1])
        part.n += len(x)
        totals = part._set_sparse(x) if isinstance(x, CSRArray) else part._set_dense(x)
        self.join(part)
        return totals

    def join(self, part: "Moments", counts: npt.NDArray[np.bool_] | bool = True) -> None:  # noqa: FBT001, FBT002
        """
        Add the rows of a part.

        Parameters
        ----------
        part : Moments
            Of other rows.
        counts : ndarray of bool, shape (n_columns,), optional
            For which columns they count. Default: all.
        """
        m = np.where(counts, part.n, 0)
        n, step = np.maximum(self.n + m, 1), part.mean - self.mean
        self.squares = self.squares + np.where(counts, part.squares, 0) + step**2 * (self.n * m / n)
        self.mean = self.mean + step * (m / n)
        self.detected = self.detected + np.where(counts, part.detected, 0)
        self.n = self.n + m

    @property
    def means(self) -> Floats:
        """
        Return the mean of each column.

        Returns
        -------
        ndarray of float64, shape (n_columns,)
            NaN where no row counts.
        """
        return np.where(self.n > 0, self.mean, np.nan)

    @property
    def variance(self) -> Floats:
        """
        Return the variance of each column, as of a sample.

        Returns
        -------
        ndarray of float64, shape (n_columns,)
            Divided by ``n - 1``; NaN where fewer than two rows count.
        """
        return np.where(self.n > 1, self.squares / np.maximum(self.n - 1, 1), np.nan)

    @property
    def detection_rate(self) -> Floats:
        """
        Return the share of rows in which each column is not zero.

        Returns
        -------
        ndarray of float64, shape (n_columns,)
            NaN where no row counts.
        """
        return np.where(self.n > 0, self.detected / np.maximum(self.n, 1), np.nan)

    def _set_dense(self, x: npt.NDArray[Any]) -> Floats:
        dense = x.astype(np.float64)
        totals: Floats = dense.sum(axis=1)
        self.mean, self.detected = dense.mean(axis=0), np.count_nonzero(dense, axis=0)
        dense -= self.mean
        self.squares = np.einsum("ij,ij->j", dense, dense)
        return totals

    def _set_sparse(self, x: CSRArray) -> Floats:
        from xloader.kernels.tally import add_up, deviate  # numba is imported when it is needed

        data = x.data.astype(compiled(x.data.dtype), copy=False)
        totals, filled = np.zeros(len(x)), np.zeros(x.shape[1], np.int64)
        add_up(data, x.indices, x.indptr, self.mean, self.detected, totals)
        self.mean /= len(x)
        deviate(data, x.indices, self.mean, self.squares, filled)
        self.squares += (len(x) - filled) * self.mean**2
        return totals
