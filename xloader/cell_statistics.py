"""Statistics of cells: moments of each gene, totals of each cell, counts of classes, by groups; one pass."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from dask.utils import format_bytes
from tqdm import tqdm

from xloader import schema, trace
from xloader.arrays import RowArray
from xloader.axes import rows
from xloader.contract import SampleRandom, Transform, apply
from xloader.csr import CSRArray
from xloader.errors import PlanError, SchemaError
from xloader.labels import Labels, codes, resolve_labels, vocabulary
from xloader.loader import Loader
from xloader.moments import Floats, Int64, Moments
from xloader.state import digest

_ROWS = 4096
_PROBES = 8


@dataclass(frozen=True)
class Asked:
    """What is asked about cells."""

    variable: str
    """Name of the values."""
    transform: Transform | None = None
    """What is done to cells before they are counted."""
    by: str | None = None
    """A coordinate whose groups get figures of their own; None for `dataset` where there is one."""
    labels: Labels = ()
    """Labels of which the classes are counted, and their vocabularies, None for their own."""


class Grouping:
    """
    The group of each cell, and what each dataset has measured.

    Parameters
    ----------
    ds : xarray.Dataset
        Cells.
    asked : Asked
        What is asked.
    dim : str
        Dimension of the features.

    Raises
    ------
    SchemaError
        If there is no such coordinate, it holds measurements, or does not fit what was measured.
    """

    def __init__(self, ds: xr.Dataset, asked: Asked, dim: str) -> None:
        self.by = asked.by or ("dataset" if "dataset" in ds.coords else "")
        if self.by and (self.by not in ds.coords or ds[self.by].dims != ("cell",)):
            there = sorted(str(c) for c in ds.coords if ds[c].dims == ("cell",))
            msg = f"by={self.by!r} is no coordinate of cells; there are {there}"
            raise SchemaError(msg)
        self.names, self.codes = self._groups(ds, self.by) if self.by else ([], _none(ds))
        self.measured: npt.NDArray[np.bool_] | None = None
        datasets = _none(ds)
        # the variable's own, or that of what has the same features
        for name in sorted(map(str, ds.coords), key=lambda c: c != f"{asked.variable}_measured"):
            if name.endswith("_measured") and ds[name].dims == ("dataset", dim):
                schema.require(ds, ["dataset", "dataset_name"], f"what {name!r} says")
                self.measured = ds[name].to_numpy()
                _, datasets = self._groups(ds, "dataset")
                break
        # parts that no group and no dataset cuts
        width = int(datasets.max(initial=-1)) + 2
        self.whose, pairs = pd.factorize((self.codes + 1) * width + datasets + 1, sort=True)
        self.parts = np.stack(np.divmod(pairs, width), axis=1) - 1

    @staticmethod
    def _groups(ds: xr.Dataset, by: str) -> tuple[list[Any], Int64]:
        if by == "dataset" and "dataset_name" in ds.coords:
            known: list[Any] | None = ds["dataset_name"].to_numpy().tolist()
        else:
            known = vocabulary(ds[by])
        values = np.asarray(ds[by])
        if known is None:
            if values.dtype.kind == "f":
                msg = f"by={by!r} holds measurements, which are no groups; bin them first, as pandas.cut does"
                raise SchemaError(msg)
            known = np.unique(values).tolist()
        return known, codes(values, known, by)

    def of(self, moments: Mapping[int, Moments], group: int | None, columns: Int64) -> Moments:
        """
        Join what was counted.

        Parameters
        ----------
        moments : mapping of int to Moments
            Of each part.
        group : int or None
            Which group; None for all cells.
        columns : ndarray of int64, shape (n,)
            Which feature of the data each column is, -1 for what a transform made.

        Returns
        -------
        Moments
            Of the cells that have measured each feature.
        """
        whole = Moments(len(columns))
        for k, (code, dataset) in enumerate(self.parts.tolist()):
            if group in (None, code) and k in moments:
                known = (
                    True
                    if self.measured is None or dataset < 0
                    else (columns < 0) | self.measured[dataset, columns]
                )
                whole.join(moments[k], known)
        return whole


def _none(ds: xr.Dataset) -> Int64:
    return np.full(ds.sizes["cell"], -1)


class Cells:
    """
    Cells in the order in which they are stored, and what is counted.

    Parameters
    ----------
    ds : xarray.Dataset
        Cells; `given` is what is left of it without those that a modality does not have.
    asked : Asked
        What is asked; the variable is ``(cell, ...)``, of two dimensions.
    budget : int
        Bytes that reading may take.

    Raises
    ------
    SchemaError
        If there is no such variable of cells, group or label.
    """

    def __init__(self, ds: xr.Dataset, asked: Asked, budget: int) -> None:
        variable = asked.variable
        schema.require(ds, [variable, "cell"], "statistics of cells")
        if "cell" not in ds[variable].dims or ds[variable].ndim != 2:
            msg = (
                f"statistics of cells need a variable (cell, gene) or the like, but {variable!r} has "
                f"{ds[variable].dims}; name another: `variable=`"
            )
            raise SchemaError(msg)
        (self.dim,) = (str(d) for d in ds[variable].dims if d != "cell")
        self.given = ds = _present(ds, variable)
        self.asked, self.grouping = asked, Grouping(ds, asked, self.dim)
        self.classes = _classes(ds, asked.labels, self.grouping)
        budget -= self._for_groups(ds.sizes[self.dim], budget)
        if asked.transform is None:  # nobody sees the other labels
            ds = ds[[variable]]
            ds = ds.drop_vars(set(ds.coords) - {"cell", self.dim})
        view = trace.view(ds[variable].variable)
        stored = view.index[0] if view is not None and isinstance(view.array, RowArray) else None
        # blocks are read once if cells come in the order of storage
        self.order = (
            np.arange(ds.sizes["cell"]) if stored is None else np.argsort(stored, kind="stable")
        )
        if (np.diff(self.order) != 1).any():
            ds = ds.isel(cell=self.order)
        self.ds = ds
        dense_row = 8 * ds.sizes[self.dim]
        self.loader = Loader(
            ds,
            batch_size=max(1, min(_ROWS, budget // 8 // max(1, dense_row))),
            memory_budget=budget,
            prefetch=0,  # what would be read ahead is the memory that counting takes
            rank=0,
            world_size=1,
        )
        wanted = np.unique(np.linspace(0, len(self.order) - 1, _PROBES).astype(np.int64))
        self.probes = np.flatnonzero(np.isin(self.order, wanted))

    def _for_groups(self, n_columns: int, budget: int) -> int:
        """Return the bytes that figures of groups take; refuse more than half of the budget."""
        n_parts = len(self.grouping.parts)
        needed = 32 * n_parts * n_columns if n_parts > 1 else 0
        if needed > budget // 2:
            msg = (
                f"the moments of {n_columns:,} features in {n_parts:,} groups take {format_bytes(needed)}, and half of "
                f"memory_budget is {format_bytes(budget // 2)}; allow {format_bytes(2 * needed)}, or group by another "
                f"coordinate than {self.grouping.by!r}"
            )
            raise PlanError(msg)
        return needed

    def fingerprint(self, rows: npt.NDArray[Any] | None, transform: str) -> str:
        """
        Return what tells cells, their selection and what is asked from others.

        Parameters
        ----------
        rows : ndarray, shape (n_probes, n_columns), or None
            The untransformed values of `probes`; None to read them.
        transform : str
            What tells the transform.

        Returns
        -------
        str
            Of the names of cells and genes, groups and classes, the values of up to 8 cells, and all settings.
        """
        variable, grouping = self.asked.variable, self.grouping
        if rows is None:
            rows = _dense(self.loader.samples(self.probes)[variable])
        names = np.empty(len(self.order), np.uint64)
        names[self.order] = pd.util.hash_array(self.ds["cell"].to_numpy())
        genes = self.ds[self.dim].to_numpy()  # numbers, where they have no names
        dtype = self.ds[variable].dtype.str
        order = np.argsort(self.order[self.probes])
        parts = [variable, transform, dtype, names, pd.util.hash_array(genes)]
        groups = [grouping.by, grouping.names, grouping.codes, grouping.measured]
        return digest([*parts, *groups, self.classes, rows[order].astype(np.float64)])


def _present(ds: xr.Dataset, variable: str) -> xr.Dataset:
    """Return the cells that have a modality; others have empty rows, which nobody measured."""
    features = [d for d in ds[variable].dims if d != "cell"]
    # the variable's own, or that of what has the same features, as its layers do
    for name in sorted(map(str, ds.coords), key=lambda c: c != f"{variable}_present"):
        main = ds.variables.get(name.removesuffix("_present"))
        if name.endswith("_present") and main is not None and {*features} <= {*main.dims}:
            there = ds[name].to_numpy()
            return ds if there.all() else ds.isel(cell=there)
    return ds


def _classes(
    ds: xr.Dataset, labels: Labels, grouping: Grouping
) -> dict[str, tuple[list[Any], Int64]]:
    """Return the vocabulary of each label, and the code of each cell."""
    _, categories = resolve_labels(ds, labels, rows("cell", ds.sizes["cell"]))
    odd = [name for name in labels if name not in categories]
    if odd:
        msg = f"labels {odd} are numbers, which have no classes to count; name those: labels={{{odd[0]!r}: [...]}}"
        raise SchemaError(msg)
    found = {k: (known, codes(np.asarray(ds[k]), known, k)) for k, known in categories.items()}
    return {
        k: (grouping.names, grouping.codes) if k == grouping.by else v for k, v in found.items()
    }


def _dense(values: xr.DataArray) -> npt.NDArray[Any]:
    data: Any = values.data
    return np.asarray(data.todense() if isinstance(data, CSRArray) else data)


def cell_statistics(
    ds: xr.Dataset, asked: Asked, *, budget: int, progress: bool
) -> tuple[xr.Dataset, str]:
    """
    Return the statistics of cells.

    Parameters
    ----------
    ds : xarray.Dataset
        Cells.
    asked : Asked
        What is asked.
    budget : int
        Bytes that reading and counting may take.
    progress : bool
        Whether a progress bar is shown if it takes more than 2 s.

    Returns
    -------
    figures : xarray.Dataset
        As the page about cells describes them.
    fingerprint : str
        What tells these cells from others.

    Raises
    ------
    PlanError
        If the figures of all groups do not fit the budget.
    SchemaError
        If there is no such variable of cells, group or label.
    """
    cells = Cells(ds, asked, budget)
    counted = _Counted(cells)
    transform, probed = asked.transform, []
    n = len(cells.order)
    with tqdm(total=n, desc="statistics", unit="cell", delay=2, disable=not progress) as bar:
        for batch in cells.loader:
            ids = batch["sample_id"].to_numpy()
            chosen = np.flatnonzero(np.isin(ids, cells.probes))
            if len(chosen):
                probed.append(_dense(batch[asked.variable].isel(cell=chosen)))
            if transform is not None:
                rng = SampleRandom(0, epoch=0, sample_id=ids)
                batch = apply(transform, batch, rng=rng, dim="cell")  # noqa: PLW2901
            counted.add(batch, cells.order[ids])
            bar.update(len(ids))
    told = digest(transform)
    attrs = {
        "transform": told,
        "steps": "" if transform is None else getattr(transform, "__name__", ""),
        "by": cells.grouping.by,
        "labels": json.dumps(list(cells.classes)),
    }
    return counted.labelled().assign_attrs(attrs), cells.fingerprint(np.concatenate(probed), told)


class _Counted:
    """What was counted of cells."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.totals = np.empty(len(cells.order))
        self.moments: dict[int, Moments] = {}
        self.dim = ""
        self.features: npt.NDArray[Any] | None = None

    def add(self, batch: xr.Dataset, places: Int64) -> None:
        """Add some cells, and where they are among all of them."""
        values = batch[self.cells.asked.variable].transpose("cell", ...)
        (self.dim,) = (str(d) for d in values.dims if d != "cell")
        self.features = batch[self.dim].to_numpy() if self.dim in batch.coords else None
        whose = self.cells.grouping.whose[places]
        for part in np.unique(whose).tolist():
            mine = np.flatnonzero(whose == part)
            x = values.data if len(mine) == len(whose) else values.data[mine]
            moments = self.moments.setdefault(part, Moments(x.shape[1]))
            self.totals[places[mine]] = moments.add(x)

    def labelled(self) -> xr.Dataset:
        """Return the figures."""
        ds, grouping, dim = self.cells.given, self.cells.grouping, self.dim
        columns = self._columns(ds)
        every = grouping.of(self.moments, None, columns)
        data: dict[str, Any] = {
            "mean": (dim, every.means),
            "variance": (dim, every.variance),
            "std": (dim, np.sqrt(every.variance)),
            "n_measured": (dim, every.n),
            "n_detected": (dim, every.detected),
            "detection_rate": (dim, every.detection_rate),
            "total": ("cell", self.totals),
            "median_total": ((), _median(self.totals)),
        }
        coords: dict[str, Any] = {"cell": ds["cell"].to_numpy()}
        if self.features is not None:
            coords[dim] = self.features
        if grouping.by:
            groups = [grouping.of(self.moments, k, columns) for k in range(len(grouping.names))]
            of_cells = [grouping.codes == k for k in range(len(grouping.names))]
            coords[grouping.by] = pd.Index(grouping.names)
            both = (grouping.by, dim)
            figures = {
                "mean": (both, [g.means for g in groups]),
                "variance": (both, [g.variance for g in groups]),
                "detection_rate": (both, [g.detection_rate for g in groups]),
                "n_cells": (grouping.by, [mine.sum() for mine in of_cells]),
                "median_total": (grouping.by, [_median(self.totals[mine]) for mine in of_cells]),
            }
            data |= {f"{name}_by_{grouping.by}": v for name, v in figures.items()}
        if "dataset" in ds.coords:  # names of cells may be those of others in another one
            coords["cell_dataset"] = ("cell", np.asarray(ds["dataset"]))
        for label, (known, found) in self.cells.classes.items():
            coords[label] = pd.Index(known)
            missing = {"n_missing": int((found < 0).sum())}
            here = found >= 0
            data[f"{label}_counts"] = (
                label,
                np.bincount(found[here], minlength=len(known)),
                missing,
            )
            if grouping.by and grouping.by != label:
                table = np.zeros((len(grouping.names), len(known)), np.int64)
                here &= grouping.codes >= 0
                np.add.at(table, (grouping.codes[here], found[here]), 1)
                data[f"{label}_counts_by_{grouping.by}"] = ((grouping.by, label), table)
        return xr.Dataset(data, coords)

    def _columns(self, ds: xr.Dataset) -> Int64:
        """Return which feature of the data each column is."""
        n = next(iter(self.moments.values())).n.size
        if self.features is None or self.dim not in ds.coords:
            same = self.dim == self.cells.dim and n == ds.sizes[self.dim]
            return np.arange(n) if same else np.full(n, -1)
        return np.asarray(pd.Index(ds[self.dim].to_numpy()).get_indexer(self.features), np.int64)


def _median(totals: Floats) -> float:
    filled = totals[totals > 0]
    return float(np.median(filled)) if len(filled) else np.nan
