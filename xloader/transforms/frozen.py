"""Figures of the training view, frozen: tables by distance, quantiles, and what they are figures of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xloader.errors import SchemaError
from xloader.schema import require

Floats = npt.NDArray[np.floating[Any]]
Int64 = npt.NDArray[np.int64]


class Frozen:
    """
    What transforms keep of ``xl.statistics``: plain arrays, which travel and can be told from others.

    Parameters
    ----------
    stats : xarray.Dataset
        With the attributes `variable`, `weight` and `binsize`.
    what : str
        Name of the transform, for messages.
    *names : str
        Variables of `stats` it needs.
    pooled : bool, optional
        Whether tables by distance are those of all chromosomes together, ``<name>_pooled``.

    Raises
    ------
    SchemaError
        If the Dataset lacks one of them, or says not what it was made of.
    """

    def __init__(self, stats: Any, what: str, *names: str, pooled: bool = False) -> None:
        if not isinstance(stats, xr.Dataset) or "variable" not in stats.attrs:
            msg = (
                f"{what}() needs the Dataset that xl.statistics() gives, with the attribute 'variable', "
                f"not this {type(stats).__name__}"
            )
            raise SchemaError(msg)
        ending = "_pooled" if pooled else ""
        require(stats, [name + ending for name in names], f"{what}()")
        self.what, self.pooled = what, pooled
        self.variable = str(stats.attrs["variable"])
        self.weight = str(stats.attrs.get("weight") or "")
        self.binsize = stats.attrs.get("binsize") or None
        self.tables: dict[str, Floats] = {}
        self.chroms: list[str] = []
        for name in names:
            table = stats.variables[name + ending]
            if "distance" in table.dims:
                self._check_distances(stats)
            if "chrom" in table.dims:
                self.chroms = np.asarray(stats["chrom"]).astype(str).tolist()
                table = table.transpose("chrom", "distance")
            values = np.asarray(table.data, np.float64)
            self.tables[name] = values[None] if pooled else values

    def _check_distances(self, stats: xr.Dataset) -> None:
        n = stats.sizes["distance"]
        if not np.array_equal(stats["distance"], np.arange(n)):
            msg = f"{self.what}() needs figures of each distance from 0 bins on, one by one"
            raise SchemaError(msg)

    def check(self, x: xr.Variable, batch: xr.Dataset) -> None:
        """
        Refuse a batch of other counts than the figures are of.

        Parameters
        ----------
        x : xarray.Variable
            What they are to be used on.
        batch : xarray.Dataset
            What it is part of.

        Raises
        ------
        SchemaError
            If balancing or bin size are others.
        """
        weight = str(x.attrs.get("weight") or "")
        vector = batch.variables.get(f"{weight}1")
        own = weight if vector is None else vector.attrs.get("source_name", weight)
        if self.weight not in (weight, own):  # merged sources prefix names
            msg = (
                f"transform {self.what!r} has statistics of {self.variable!r} {_balanced(self.weight)}, "
                f"but the batch has it {_balanced(weight)} (attribute 'weight'); balance both alike"
            )
            raise SchemaError(msg)
        rows = next((d for d in x.dims if str(d).endswith("_bin1")), "bin1")
        bins = batch.variables.get(rows)  # those of another resolution say their size
        binsize = (bins is not None and bins.attrs.get("binsize")) or batch.attrs.get("binsize")
        if (binsize or None) != self.binsize:
            msg = (
                f"transform {self.what!r} has statistics of bins of {self.binsize} bp, but those of the "
                f"batch have {binsize} bp; make them of the same resolution"
            )
            raise SchemaError(msg)

    def rows(self, chroms: npt.NDArray[Any]) -> Int64:
        """
        Return which row of a table is whose.

        Parameters
        ----------
        chroms : ndarray of str
            Names of chromosomes, any shape.

        Returns
        -------
        ndarray of int64, of the same shape
            Positions; the only one where tables are pooled.

        Raises
        ------
        SchemaError
            If one is not among the statistics; names it.
        """
        if self.pooled:
            return np.zeros(chroms.shape, np.int64)
        rows = pd.Index(self.chroms).get_indexer(chroms.ravel().astype(object))
        if (rows < 0).any():
            lacking = sorted({str(c) for c in chroms.ravel()[rows < 0]})
            msg = (
                f"transform {self.what!r} has no statistics of {lacking}, only of {self.chroms}; pass "
                "pooled=True for those of all chromosomes together, or leave these chromosomes out"
            )
            raise SchemaError(msg)
        return np.asarray(rows.reshape(chroms.shape), np.int64)

    def at(self, name: str, chroms: npt.NDArray[Any], distance: Int64) -> Floats:
        """
        Look up a table by chromosome and distance.

        Parameters
        ----------
        name : str
            Which table.
        chroms : ndarray of str
            Chromosomes.
        distance : ndarray of int64
            Distances in bins, broadcast against `chroms`; below 0 where there is none.

        Returns
        -------
        ndarray of float64
            NaN where there is no distance.

        Raises
        ------
        SchemaError
            If a chromosome or distance is not in the table.
        """
        table = self.tables[name]
        n = table.shape[1]
        if distance.size and distance.max() >= n:
            msg = (
                f"transform {self.what!r} has statistics up to a distance of {n - 1} bins, but the "
                f"batch reaches {distance.max()}; make them of the whole chromosomes, or cut windows "
                "nearer to the diagonal"
            )
            raise SchemaError(msg)
        padded = np.column_stack(
            [table, np.full((len(table), 2), np.nan)]
        )  # where -1 and -2 point to
        return np.asarray(padded[self.rows(chroms), distance])


class FrozenColumns:
    """
    Figures of each gene, or of each of whatever `xl.statistics` of cells are of.

    Parameters
    ----------
    stats : xarray.Dataset
        With the attribute `variable`.
    what : str
        Name of the transform, for messages.
    *names : str
        Variables of `stats` it needs, along one dimension.

    Raises
    ------
    SchemaError
        If the Dataset lacks one of them, or is not of cells.
    """

    def __init__(self, stats: Any, what: str, *names: str) -> None:
        if not isinstance(stats, xr.Dataset) or "variable" not in stats.attrs:
            msg = (
                f"{what}() needs the Dataset that xl.statistics() gives of cells, with the attribute "
                f"'variable', not this {type(stats).__name__}"
            )
            raise SchemaError(msg)
        require(stats, names, f"{what}()")
        dims = {stats[name].dims for name in names}
        if len(dims) > 1 or len(stats[names[0]].dims) != 1:
            msg = f"{what}() needs figures along one dimension, such as 'gene', not {sorted(dims)}"
            raise SchemaError(msg)
        self.what = what
        self.variable = str(stats.attrs["variable"])
        self.dim = str(stats[names[0]].dims[0])
        self.n = stats.sizes[self.dim]
        self.names = stats[self.dim].to_numpy() if self.dim in stats.coords else None
        self.tables = {name: np.asarray(stats[name].data, np.float64) for name in names}

    def places(self, batch: xr.Dataset) -> Int64 | None:
        """
        Return where the figures of a batch are.

        Parameters
        ----------
        batch : xarray.Dataset
            With the dimension of the figures.

        Returns
        -------
        ndarray of int64 or None
            Positions in the tables; None for all of them as they are.

        Raises
        ------
        SchemaError
            If there are none of some; names them.
        """
        if self.names is None or self.dim not in batch.indexes:
            if batch.sizes.get(self.dim, self.n) == self.n:
                return None
            msg = (
                f"transform {self.what!r} has statistics of {self.n} along {self.dim!r} and the batch "
                f"{batch.sizes[self.dim]}, without names to find them by; make both of the same"
            )
            raise SchemaError(msg)
        index = batch.indexes[self.dim]
        if len(index) == self.n and (index.to_numpy() == self.names).all():
            return None
        places = pd.Index(self.names).get_indexer(index)
        if (places < 0).any():
            lacking = index[places < 0]
            msg = (
                f"transform {self.what!r} has no statistics of {len(lacking)} of {len(index)} along "
                f"{self.dim!r}: {list(map(str, lacking[:5]))}; make them of the same data"
            )
            raise SchemaError(msg)
        return np.asarray(places, np.int64)

    def of(self, name: str, batch: xr.Dataset) -> Floats:
        """
        Return the figures of a batch.

        Parameters
        ----------
        name : str
            Which.
        batch : xarray.Dataset
            With the dimension of the figures.

        Returns
        -------
        ndarray of float64
            In the order of the batch.
        """
        places, table = self.places(batch), self.tables[name]
        return table if places is None else table[places]


def _balanced(weight: str) -> str:
    return f"balanced by {weight!r}" if weight else "as raw counts"


def quantiles(
    stats: xr.Dataset, what: str, wanted: Sequence[float | None]
) -> tuple[Frozen, list[float | None]]:
    """
    Look up quantiles that were frozen in training.

    Parameters
    ----------
    stats : xarray.Dataset
        With ``percentile (quantile)``, from ``xl.statistics``.
    what : str
        Name of the transform, for messages.
    wanted : sequence of float or None
        Quantiles between 0 and 1, each one of those of `stats`; None stays None.

    Returns
    -------
    tuple of Frozen and list of float or None
        What the figures are of, and the values.

    Raises
    ------
    SchemaError
        If a quantile is not among the statistics.
    """
    frozen = Frozen(stats, what, "percentile", "quantile")
    there, values = frozen.tables["quantile"], frozen.tables["percentile"]
    found: list[float | None] = []
    for q in wanted:
        if q is None:
            found.append(None)
            continue
        near = np.isclose(there, q, rtol=0, atol=1e-9)
        if not near.any():
            msg = f"{what}() asks for the quantile {q}, but the statistics have {there.tolist()}"
            raise SchemaError(msg)
        found.append(float(values[near][0]))
    return frozen, found
