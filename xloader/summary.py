"""Statistics to normalise with, made of the data that a model learns from, and of nothing else."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from xloader import schema
from xloader.cell_statistics import Asked, Cells, cell_statistics
from xloader.contact_statistics import Contacts, Settings, contact_statistics, fingerprint
from xloader.contract import Transform
from xloader.described import Described
from xloader.errors import PlanError, SchemaError, StateError
from xloader.labels import Labels
from xloader.memory import nbytes_of

_QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
_CHECK_BUDGET = 2**30
_VALUES = {"cells": "X", "contacts": "count"}


def statistics(
    source: Any,
    *,
    variable: str | None = None,
    weight: str | None = None,
    ignore_diags: int | None = None,
    quantiles: Sequence[float] | None = None,
    by: str | None = None,
    labels: Labels | None = None,
    transform: Transform | None = None,
    memory_budget: int | str = "1GB",
    progress: bool = True,
) -> xr.Dataset:
    """
    Return the statistics that data are normalised with; give it the training view alone.

    Every stored chunk is read once, block by block. Variances are those of samples (``n - 1``).

    Contacts: what counts are pairs of bins of one chromosome, ``bin1 <= bin2``, both in the view,
    neither masked, at least `ignore_diags` bins apart; zeros count. As in cooltools' `expected_cis`,
    counts that are not balanced have no masked bins. Cells: what counts are all values that were
    measured, zeros too: not those of genes that a dataset lacks (``<variable>_measured (dataset, gene)``),
    nor of cells that a modality lacks (``<variable>_present (cell)``).

    Parameters
    ----------
    source : xarray.Dataset or Loader
        What to read: of a Loader its Dataset, whichever windows it draws, before its transform.
    variable : str, optional
        Which values. Default: ``"count"`` of contacts, ``"X"`` of cells.
    weight : str, optional
        For contacts, the balancing vector; as in `xloader.transforms.balance`, divisive ones divide.
        Default: counts as they are.
    ignore_diags : int, optional
        For contacts, how many bins pairs are apart at least. Default: 2, as in cooltools.
    quantiles : sequence of float, optional
        For contacts, between 0 and 1. Default: 0.001, 0.01, 0.05, 0.25, and so on to 0.999.
    by : str, optional
        For cells, a coordinate whose groups get figures too. Default: `dataset`, where there is one.
    labels : sequence of str or mapping, optional
        For cells, as for a Loader: classes to count. Default: those of the Loader, if it is one.
    transform : callable, optional
        For cells, what is done to them before they are counted, such as ``loader.transform``.
    memory_budget : int or str, optional
        Bytes that reading and counting may take.
    progress : bool, optional
        Whether to show a progress bar if it takes more than 2 s.

    Returns
    -------
    xarray.Dataset
        Plain and small, for `to_zarr` or `to_netcdf`, with a `fingerprint` for `check_statistics`. Its
        figures are described in the pages about contacts and about cells.

    Raises
    ------
    PlanError
        If an option does not apply, or the budget is too small.
    SchemaError
        If there is no such variable, balancing vector, group or label, or a map is not square.

    Examples
    --------
    >>> ds = xr.Dataset({"X": (("cell", "gene"), [[0, 2], [4, 2]])}, {"cell": ["a", "b"]})
    >>> statistics(ds)["mean"].values
    array([2., 2.])
    """
    ds, kind = _dataset(source)
    _refuse(kind, "contacts", weight=weight, ignore_diags=ignore_diags, quantiles=quantiles)
    _refuse(kind, "cells", by=by, labels=labels, transform=transform)
    name, budget = variable or _VALUES[kind], nbytes_of(memory_budget)
    if kind == "cells":
        asked = Asked(name, transform, by, _classes(source) if labels is None else labels)
        figures, told = cell_statistics(ds, asked, budget=budget, progress=progress)
    else:
        settings = _settings(name, weight, ignore_diags, quantiles)
        figures, told = contact_statistics(ds, settings, budget=budget, progress=progress)
    return figures.assign_attrs(kind=kind, variable=name, fingerprint=told)


def _refuse(kind: str, fits: str, **options: Any) -> None:
    """Refuse options that are about other data."""
    odd = [name for name, given in options.items() if given is not None]
    if kind != fits and odd:
        msg = f"{odd} do not apply to statistics of {kind}; leave them out"
        raise PlanError(msg)


def _classes(source: Any) -> Labels:
    """Return the labels of a Loader that are classes."""
    return source.categories if isinstance(source, Described) else {}


def _settings(
    variable: str,
    weight: str | None,
    ignore_diags: Any,
    quantiles: Sequence[float] | None,
) -> Settings:
    """Return what is asked about contacts."""
    near = 2 if ignore_diags is None else ignore_diags
    asked = tuple(float(q) for q in (_QUANTILES if quantiles is None else quantiles))
    if not isinstance(near, int | np.integer) or near < 0 or not all(0 <= q <= 1 for q in asked):
        msg = (
            f"ignore_diags={near!r}, quantiles={list(asked)}: the first is a number of bins from 0 on, the "
            "others lie between 0 and 1; mend them"
        )
        raise PlanError(msg)
    return Settings(variable, weight or "", int(near), asked)


def _dataset(source: Any) -> tuple[xr.Dataset, str]:
    """Return what is read, and which kind of data it is."""
    ds = source.ds if isinstance(source, Described) else source
    if not isinstance(ds, xr.Dataset) or schema.kind(ds) == "arrays":
        what = dict(ds.sizes) if isinstance(ds, xr.Dataset) else type(ds).__name__
        msg = f"statistics are made of contact maps (bin1, bin2) and cells (cell), not of {what}"
        raise SchemaError(msg)
    return ds, schema.kind(ds)


def check_statistics(stats: xr.Dataset, source: Any) -> None:
    """
    Refuse statistics that were made of other data than these; see also `check_leakage`.

    Parameters
    ----------
    stats : xarray.Dataset
        What `statistics` returned, also after a round trip through a file.
    source : xarray.Dataset or Loader
        The training view; up to 64 pairs of bins or 8 cells are read.

    Raises
    ------
    StateError
        If they differ in bins or cells, balancing vector, groups or values; says in which.
    SchemaError
        If these are no statistics.

    Examples
    --------
    >>> ds = xr.Dataset({"X": (("cell", "gene"), [[0, 2], [4, 2]])}, {"cell": ["a", "b"]})
    >>> check_statistics(statistics(ds), ds)
    """
    if not {"kind", "variable", "fingerprint"} <= set(stats.attrs):
        msg = f"a Dataset of {dict(stats.sizes)} is no statistics; pass what xl.statistics returned"
        raise SchemaError(msg)
    ds, kind = _dataset(source)
    variable = str(stats.attrs["variable"])
    if kind != stats.attrs["kind"] or variable not in ds:
        msg = (
            f"the statistics are of {variable!r} of {stats.attrs['kind']}, and these are {kind} with "
            f"{list(map(str, ds.data_vars))}; make them anew with xl.statistics"
        )
        raise StateError(msg)
    if kind == "contacts":
        quantiles = tuple(stats["quantile"].to_numpy().tolist())
        near = int(stats.attrs["ignore_diags"])
        settings = Settings(variable, str(stats.attrs["weight"]), near, quantiles)
        contacts = Contacts(ds, settings)
        labels, here = "bin1", contacts.ids
        told = fingerprint(contacts)
    else:
        known = {name: stats[name].values.tolist() for name in json.loads(stats.attrs["labels"])}
        cells = Cells(ds, Asked(variable, None, stats.attrs["by"] or None, known), _CHECK_BUDGET)
        labels, here = "cell", cells.given["cell"].to_numpy()
        told = cells.fingerprint(None, str(stats.attrs["transform"]))
    if told == stats.attrs["fingerprint"]:
        return
    there = stats[labels].to_numpy()
    what = "groups, values, labels or balancing vector"
    if not np.array_equal(there, here):
        what = f"selection: {len(there):,} {labels.removesuffix('1')}s then and {len(here):,} now, or others"
    msg = (
        f"the statistics were made of other data, which differ in their {what}; make them anew of this training "
        "view with xl.statistics, or open the data that they were made of"
    )
    raise StateError(msg)
