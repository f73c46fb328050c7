"""What parts of data share: base pairs of contact maps, cells, or groups of cells such as donors."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xloader import genome
from xloader.alignment import is_aligned
from xloader.axes import Windows
from xloader.described import Described
from xloader.errors import PlanError, SchemaError
from xloader.labels import cell_names, has_datasets


def check_leakage(parts: Mapping[str, Any], *, by: str | None = None) -> None:
    """
    Refuse parts of data that overlap, so that nothing a model is tested on is in what it learnt.

    Contact maps are symmetric: a bin counts whether it is on `bin1` or on `bin2`, and parts are
    compared in base pairs, so they may have different resolutions. Cells are told by their names, and
    where all parts have a coordinate `dataset`, as joined files do, by it too. Cells that have no value
    of `by` are not compared in it.

    Parameters
    ----------
    parts : mapping of str to xarray.Dataset or Loader
        Such as ``{"train": ..., "val": ...}``: views, Loaders (only what their windows cover counts)
        and what `statistics` returned.
    by : str, optional
        A coordinate of cells, such as the donor, whose groups may not be in two parts either.

    Raises
    ------
    PlanError
        If two parts overlap; the message names where, and how much.
    SchemaError
        If a part is neither a contact map nor cells, or lacks `by`.

    Examples
    --------
    >>> a = xr.Dataset(coords={"cell": ["a", "b"]})
    >>> check_leakage({"train": a, "val": xr.Dataset(coords={"cell": ["c"]})})
    """
    read = {name: _read(name, part) for name, part in parts.items()}
    # windows of single cells beside what else is known of them leak by their cells
    kinds = {name: "chrom1" in ds.coords and not is_aligned(ds) for name, (ds, _) in read.items()}
    if len(set(kinds.values())) > 1:
        msg = f"contact maps and cells share nothing that could be compared: {kinds}; check them apart"
        raise SchemaError(msg)
    if all(kinds.values()):
        if by is not None:
            msg = f"by={by!r} is about cells, and these are contact maps; leave it out"
            raise SchemaError(msg)
        spans = {name: _intervals(ds, windows) for name, (ds, windows) in read.items()}
        for (a, first), (b, second) in itertools.combinations(spans.items(), 2):
            _refuse_shared_bins(a, b, genome.shared(first, second))
        return
    joined = all(has_datasets(ds) for ds, _ in read.values())
    for label in dict.fromkeys(["cell", by or "cell"]):
        values = {
            name: _values(name, ds, windows, label, joined=joined)
            for name, (ds, windows) in read.items()
        }
        for (a, one), (b, other) in itertools.combinations(values.items(), 2):
            _refuse_shared_values(a, b, one.intersection(other), label)


def _read(name: str, part: Any) -> tuple[xr.Dataset, Windows | None]:
    """Return what a part is read from, and the windows that it is read in."""
    if isinstance(part, Described):
        return _read(name, part.ds)[0], part.plan.windows
    if not isinstance(part, xr.Dataset) or not {"chrom1", "cell"} & set(part.coords):
        msg = (
            f"the part {name!r} is {type(part).__name__} without the labels of a contact map (chrom1, start1, "
            "end1) or of cells (cell); give Datasets or Loaders that have them"
        )
        raise SchemaError(msg)
    return part, None


def _covered(ds: xr.Dataset, windows: Windows | None, dim: str) -> npt.NDArray[np.bool_]:
    """Say which positions along a dimension any window holds."""
    n = ds.sizes[dim]
    if windows is None or windows.starts is None or dim not in windows.dims:
        return np.ones(n, bool)
    axis = windows.dims.index(dim)
    first, stop = (x[:, axis] for x in windows.shown_of(np.arange(len(windows))))
    change = np.bincount(first, minlength=n + 1) - np.bincount(stop, minlength=n + 1)
    return np.asarray(np.cumsum(change)[:-1] > 0)


def _intervals(ds: xr.Dataset, windows: Windows | None) -> pd.DataFrame:
    """Return what a part of a contact map holds on either axis."""
    tables = []
    for side in "12":
        if f"chrom{side}" in ds.coords:  # statistics have bins once
            held = _covered(ds, windows, f"bin{side}")
            tables.append(genome.bins_of(ds, side)[held])
    return genome.merged(pd.concat(tables, ignore_index=True))


def _values(
    name: str, ds: xr.Dataset, windows: Windows | None, label: str, *, joined: bool
) -> "pd.Index[Any]":
    if label not in ds.coords or ds[label].dims != ("cell",):
        there = sorted(str(c) for c in ds.coords if ds[c].dims == ("cell",))
        msg = f"by={label!r} is no coordinate of the cells of {name!r}; there are {there}"
        raise SchemaError(msg)
    whole = cell_names(ds, of_dataset=joined) if label == "cell" else np.asarray(ds[label])
    values = whole[_covered(ds, windows, "cell")]
    return pd.Index(values[pd.notna(values)]).unique()


def _refuse_shared_bins(a: str, b: str, both: pd.DataFrame) -> None:
    if len(both) == 0:
        return
    n_bp = int((both["end"] - both["start"]).sum())
    where = ", ".join(genome.as_text(*row) for row in both.head(3).itertuples(index=False))
    more = f" and {len(both) - 3} more stretches" if len(both) > 3 else ""
    msg = (
        f"{a!r} and {b!r} overlap in {n_bp:,} bp: {where}{more}; bins of a contact map count on both axes. "
        "Make views that share no bin, as xl.split does"
    )
    raise PlanError(msg)


def _refuse_shared_values(a: str, b: str, both: "pd.Index[Any]", label: str) -> None:
    if len(both) == 0:
        return
    names = f"{both[:3].tolist()}{', ...' if len(both) > 3 else ''}"
    if label == "cell":
        msg = (
            f"{a!r} and {b!r} overlap in {len(both):,} cells: {names}; make views that share no cell, as "
            "xl.split does. If these are different cells, give each a name of its own"
        )
    else:
        msg = (
            f"{a!r} and {b!r} share {len(both):,} values of {label!r}: {names}; give each to one view, as "
            f"xl.split(ds, ..., by={label!r}) does"
        )
    raise PlanError(msg)
