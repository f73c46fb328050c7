"""Classifying cells that a network has not seen, of a donor that it has not seen."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn
from torch.nn import functional

from xloader import transforms
from xloader.contract import Transform
from xloader.conversion import convert
from xloader.demo.training import Result, train
from xloader.errors import SchemaError
from xloader.loader import Loader
from xloader.torch import Tensors, to_tensors

_LABELS = ("cell_type", "celltype", "cell_types", "bulk_labels", "louvain", "leiden", "cluster")
_SPLITS = ("donor", "donor_id", "patient", "sample", "batch")


def run_cells(
    source: str | Path,
    store: Path,
    *,
    label: str | None = None,
    split_by: str | None = None,
    held_out: str | None = None,
    variable: str = "X",
    steps: int = 300,
    seed: int = 0,
) -> Result:
    """
    Train a classifier of cell types, validated on cells that it has not seen.

    Parameters
    ----------
    source : str or Path
        An ``.h5ad`` file or xloader store.
    store : Path
        Where the training store goes.
    label : str, optional
        Column to predict. Default: the first usual name that is there, such as ``cell_type``.
    split_by : str, optional
        Column that says which cells to hold out. Default: the first usual name that is there, such
        as ``donor``; a fifth of the cells, drawn by `seed`, where there is none.
    held_out : str, optional
        Value of that column to hold out. Default: its last one.
    variable : str, optional
        Counts to learn from.
    steps : int, optional
        Optimiser steps.
    seed : int, optional
        Seed of network, order and split.

    Returns
    -------
    Result
        Accuracy on held-out cells; the baseline is the most frequent type.
    """
    torch.manual_seed(seed)
    ds = convert(source, store, overwrite=True)
    label = _column(ds, label, _LABELS, "--label")
    ds = ds.isel(cell=ds[label].notnull().values)
    val_cells, part = _hold_out(ds, split_by, held_out, seed)
    common: dict[str, Any] = {
        "variables": [variable],
        "labels": [label],
        "transform": _normalisation(ds, variable),
    }
    loader = Loader(ds.isel(cell=~val_cells), batch_size=128, shuffle=True, seed=seed, **common)
    val = Loader(ds.isel(cell=val_cells), batch_size=512, layout="dense", **common)
    types = loader.categories[label]
    model = nn.Sequential(
        nn.Linear(ds.sizes["gene"], 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, len(types))
    )

    def loss(model: nn.Module, batch: Tensors) -> torch.Tensor:  # numpydoc ignore=GL08
        return functional.cross_entropy(model(batch[variable].float()), batch[label])

    speed, wait_share = train(
        model, loader, loss, steps=steps, title="cells   ", learning_rate=3e-3
    )
    true = ds[label].values[val_cells]
    seen, n_seen = np.unique(ds[label].values[~val_cells].astype(str), return_counts=True)
    predicted, shares = _classify(model, val, variable)
    named = np.array(types, dtype=object)[predicted]
    accuracy = float((named == true).mean())
    baseline = float((true.astype(str) == seen[n_seen.argmax()]).mean())
    example = val[0]
    return Result(
        name=f"cells: classify {label}, validated on {part}",
        metric="accuracy (higher is better)",
        baseline=baseline,
        model=accuracy,
        better=accuracy > baseline,
        samples_per_second=speed,
        wait_share=wait_share,
        predictions=xr.Dataset(
            {"predicted": ("cell", named), "probability": ("cell", shares)},
            {"cell": ds.cell.values[val_cells], label: ("cell", true)},
        ),
        example={
            "values": np.asarray(example[variable].values, np.float32),
            "types": example[label].values.astype(str),
            "predicted": named[: example.sizes["cell"]].astype(str),
        },
    )


def _normalisation(ds: xr.Dataset, variable: str) -> Transform | None:
    """Return what raw counts need; what is scaled already is left as it is."""
    if variable not in ds.data_vars:
        msg = f"no variable {variable!r} in this file; name one of {list(ds.data_vars)} with --variable"
        raise SchemaError(msg)
    some = ds[variable].isel(cell=slice(0, 200)).values
    if (some < 0).any() or (some != np.round(some)).any():
        return None
    return transforms.compose(
        transforms.normalize_total(variable=variable), transforms.log1p(variable)
    )


def _classify(
    model: nn.Module, val: Loader, variable: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    model.eval()
    parts = []
    with torch.no_grad():
        for batch in val:
            tensors = to_tensors(batch, val)
            parts.append(functional.softmax(model(tensors[variable].float()), dim=1))
    probability, predicted = torch.cat(parts).max(dim=1)
    return predicted.numpy(), probability.numpy()


def _column(ds: xr.Dataset, name: str | None, usual: tuple[str, ...], option: str) -> str:
    columns = [str(c) for c in ds.coords if ds[c].dims == ("cell",)]
    chosen = name if name is not None else next((u for u in usual if u in columns), None)
    if chosen not in columns:
        some = [c for c in columns if "categories" in ds[c].attrs]
        msg = f"no column {chosen or usual!r} on cells; name one of {some or columns} with {option}"
        raise SchemaError(msg)
    return chosen


def _hold_out(
    ds: xr.Dataset, split_by: str | None, held_out: str | None, seed: int
) -> tuple[np.ndarray[Any, Any], str]:
    """Return which cells to validate on, and what to call them."""
    if split_by is None:
        split_by = next((s for s in _SPLITS if s in ds.coords and ds[s].dims == ("cell",)), None)
    if split_by is None:
        if held_out is not None:
            msg = f"--held-out {held_out!r} needs --split-by: this file has no column {_SPLITS}"
            raise SchemaError(msg)
        return np.random.default_rng(seed).random(ds.sizes["cell"]) < 0.2, "a random fifth"
    column = ds[_column(ds, split_by, (), "--split-by")].values.astype(str)
    values = sorted(set(column.tolist()))
    chosen = values[-1] if held_out is None else held_out
    if chosen not in values or len(values) < 2:
        msg = (
            f"{split_by!r} cannot hold out {chosen!r}; its values are {values[:20]}; two are needed"
        )
        raise SchemaError(msg)
    return column == chosen, f"{split_by} {chosen}"
