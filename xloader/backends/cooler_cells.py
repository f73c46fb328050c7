"""What the single cells of a .scool file have in common, and what each has; no pixel is read."""

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from xloader.backends.cooler_groups import column_names, columns, labels, part
from xloader.errors import SchemaError, warn
from xloader.schema import Column

_BINS = ("chrom", "start", "end")


def cells_labels(cells: h5py.Group) -> tuple[dict[str, Any], tuple[int, np.dtype[Any]]]:
    """
    Read the labels of all single cells; what they share is read once.

    Parameters
    ----------
    cells : h5py.Group
        Group whose members are the cells.

    Returns
    -------
    labels : dict
        What `cooler_groups.labels` returns, and `cell`. A column that some cells do not share has
        shape (n_cells, n_bins) and is NaN where a cell lacks it.
    layout : tuple of int and dtype
        Number of bins, and the type that holds the counts of every cell.

    Raises
    ------
    ReadError
        If bins are damaged.
    SchemaError
        If cells have different bins, or a part is missing.
    """
    names = list(cells)
    first = cells[names[0]]
    shared, dtypes = set(column_names(first["bins"])), set()
    everything = set(shared)
    for name in names:
        cell = cells[name]
        dtypes.add(part(cell, "pixels/count").dtype.newbyteorder("="))
        for column in _BINS:
            if not _same(part(first, f"bins/{column}"), part(cell, f"bins/{column}")):
                msg = (
                    f"cells {names[0]!r} and {name!r} of {cells.file.filename!r} have different bins "
                    f"(`{column}`); open each by itself, as '{cells.file.filename}::{cell.name}'"
                )
                raise SchemaError(msg)
        there = column_names(cell["bins"])
        everything.update(there)
        shared &= {k for k in there if k in shared and _same(first["bins"][k], cell["bins"][k])}
    label = labels(first)
    own = sorted(everything - shared)
    label["weights"] = {k: v for k, v in label["weights"].items() if k in shared}
    label["weights"].update(_own_columns(cells, names, own) if own else {})
    label["cell"] = np.array(names, object)
    return label, (len(label["start"]), np.result_type(*dtypes))


def _same(a: h5py.Dataset, b: h5py.Dataset) -> bool:
    """Say whether two datasets are one, or have equal values."""
    if h5py.h5o.get_info(a.id).addr == h5py.h5o.get_info(b.id).addr:
        return True
    if a.shape != b.shape:
        return False
    floats = a.dtype.kind == b.dtype.kind == "f"
    equal = np.array_equal(a[()], b[()], equal_nan=floats)
    return equal and dict(a.attrs).keys() == dict(b.attrs).keys()


def _own_columns(cells: h5py.Group, names: list[str], wanted: list[str]) -> dict[str, Column]:
    """Read columns cell by cell."""
    n_bins = len(cells[names[0]]["bins/start"])
    found: dict[str, Column] = {}
    for k, name in enumerate(names):
        for column, (values, attrs) in columns(cells[name]["bins"]).items():
            if column not in wanted:
                continue
            if values.dtype.kind not in "biuf":
                warn(
                    f"column {column!r} of the bins differs between cells and is text; it is left out"
                )
                wanted = [w for w in wanted if w != column]
                continue
            empty: npt.NDArray[Any] = np.full((len(names), n_bins), np.nan)
            table, known = found.setdefault(column, (empty, attrs))
            if known.get("divisive") != attrs.get("divisive"):
                msg = (
                    f"balancing vector {column!r} divides in some cells of {cells.file.filename!r} and "
                    f"multiplies in others, such as {name!r}; set its attribute `divisive_weights`"
                )
                raise SchemaError(msg)
            table[k] = values
    return found
