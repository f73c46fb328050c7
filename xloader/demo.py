"""The main job: from files to trained networks, for both kinds of data, on a small computer."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from typing_extensions import override

from xloader import simulate, transforms
from xloader import windows as win
from xloader.convert import convert
from xloader.errors import PlanError, SchemaError
from xloader.loader import Loader
from xloader.open import open_contacts, resolutions
from xloader.plot import demo_figure
from xloader.torch import Tensors, make_loader, to_tensors

WINDOW = 64
KEEP = 1 / 16
_LABELS = ("cell_type", "celltype", "cell_types", "bulk_labels", "louvain", "leiden", "cluster")
_SPLITS = ("donor", "donor_id", "patient", "sample", "batch")


@dataclass
class Result:
    """What one of the two trainings gave."""

    name: str
    """What was trained."""
    metric: str
    """Name and direction of the validation figure."""
    baseline: float
    """The figure without a network."""
    model: float
    """The figure with it."""
    better: bool
    """Whether the network beats the baseline."""
    samples_per_second: float
    """Samples that went through training, per second of wall time."""
    wait_share: float
    """Share of that time in which training waited for data."""
    predictions: xr.Dataset
    """Labelled predictions on the validation part."""
    example: dict[str, Any]
    """What the figure shows."""


class Clock:
    """Measures how long a training loop waits for its data."""

    def __init__(self) -> None:
        self.waiting = 0.0
        self.samples = 0
        self.started = time.perf_counter()

    def watch(self, batches: Iterator[Tensors], bar: Any) -> Iterator[Tensors]:
        """
        Yield batches, timing how long each took to come.

        Parameters
        ----------
        batches : iterator of dict
            Batches of tensors.
        bar : tqdm.tqdm
            Progress bar to advance.

        Yields
        ------
        dict of str to Tensor
            The same batches.
        """
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waiting += time.perf_counter() - asked
            if batch is None:
                return
            self.samples += len(batch["sample_id"])
            seconds = time.perf_counter() - self.started
            bar.set_postfix_str(
                f"{self.samples / seconds:,.0f} samples/s, waiting {self.waiting / seconds:.0%}",
                refresh=False,
            )
            bar.update()
            yield batch


def train(
    model: nn.Module,
    loader: Loader,
    loss: Callable[[nn.Module, Tensors], torch.Tensor],
    *,
    steps: int,
    title: str,
    learning_rate: float = 1e-3,
) -> Clock:
    """
    Train a network for a number of steps, over as many epochs as that takes.

    Parameters
    ----------
    model : torch.nn.Module
        Trained in place.
    loader : Loader
        Where batches come from.
    loss : callable
        Takes the model and a batch of tensors.
    steps : int
        Optimiser steps.
    title : str
        Text before the progress bar.
    learning_rate : float, optional
        Peak of the one-cycle schedule.

    Returns
    -------
    Clock
        Speed and share of waiting.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    torch_loader = make_loader(loader, layout="dense")
    clock, done = Clock(), 0
    model.train()
    with tqdm(total=steps, desc=title, unit="batch") as bar:
        while done < steps:
            for batch in clock.watch(iter(torch_loader), bar):
                optimiser.zero_grad()
                value = loss(model, batch)
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                done += 1
                if done == steps:
                    break
    clock.started = time.perf_counter() - clock.started
    return clock


def restore(batch: xr.Dataset, *, rng: transforms.SampleRandom) -> xr.Dataset:
    """
    Make windows of low coverage and their targets of full coverage, both as log(1 + count).

    Parameters
    ----------
    batch : xarray.Dataset
        Raw counts ``count (sample, bin1, bin2)``.
    rng : SampleRandom
        One generator per window.

    Returns
    -------
    xarray.Dataset
        With `input`, `target` and `seen` (False where a bin is masked).
    """
    batch = transforms.thin(KEEP, into="input")(batch, rng=rng)
    seen = xr.ones_like(batch["count"], dtype=bool)
    if "weight1" in batch.coords:
        seen = seen & batch["weight1"].notnull() & batch["weight2"].notnull()
    return batch.assign(
        input=np.log1p(batch["input"].astype("float32") / KEEP),
        target=np.log1p(batch["count"].astype("float32")),
        seen=seen.transpose(*batch["count"].dims),
    ).drop_vars("count")


class Restorer(nn.Module):
    """A small convolutional network that adds a correction to its input."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 1, 5, padding=2),
        )
        distance = (torch.arange(WINDOW)[:, None] - torch.arange(WINDOW)).abs()
        self.register_buffer("distance", torch.log1p(distance.float())[None, None])

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Restore windows.

        Parameters
        ----------
        x : Tensor, shape (n, 64, 64)
            Thinned windows, as log(1 + count).

        Returns
        -------
        Tensor, shape (n, 64, 64)
            Estimates of full coverage, on the same scale.
        """
        distance = self.distance.expand(len(x), -1, -1, -1)  # type: ignore[operator]
        correction = self.layers(torch.cat([x[:, None], distance], dim=1))[:, 0]
        return torch.add(x, (correction + correction.transpose(1, 2)) / 2)


def _restore_loss(model: nn.Module, batch: Tensors) -> torch.Tensor:
    return functional.mse_loss(model(batch["input"])[batch["seen"]], batch["target"][batch["seen"]])


def run_contacts(
    source: str | Path,
    store: Path,
    *,
    resolution: int | None = None,
    held_out: str | None = None,
    steps: int = 200,
    seed: int = 0,
) -> Result:
    """
    Train a network that restores full coverage from thinned 64 x 64 diagonal windows.

    Parameters
    ----------
    source : str or Path
        A ``.cool``, ``.mcool`` or xloader store with integer counts.
    store : Path
        Where the training store goes.
    resolution : int, optional
        Bin size, in bp. Default: the finest.
    held_out : str, optional
        Chromosome to validate on. Default: one of middle size.
    steps : int, optional
        Optimiser steps.
    seed : int, optional
        Seed of network, order and thinning.

    Returns
    -------
    Result
        Mean squared error of log(1 + count) on the held-out chromosome; the baseline is the
        thinned input, scaled up.
    """
    torch.manual_seed(seed)
    if resolution is None:
        resolution = min(resolutions(source), default=None)
    ds = convert(open_contacts(source, resolution=resolution), store, overwrite=True)
    if ds["count"].dtype.kind not in "iu":
        msg = f"the demo thins raw integer counts, but {str(source)!r} has {ds['count'].dtype}"
        raise SchemaError(msg)
    held_out, names = _split_chromosomes(ds, held_out)
    shape = win.diagonal(size=WINDOW, stride=8)
    part = {
        name: ds.isel(bin1=chosen, bin2=chosen)
        for name, chosen in (
            ("train", np.isin(ds.chrom1.values, [n for n in names if n != held_out])),
            ("val", ds.chrom1.values == held_out),
        )
    }
    loader = Loader(
        part["train"], windows=shape, batch_size=32, shuffle=True, seed=seed, transform=restore
    )
    val = Loader(part["val"], windows=shape, batch_size=32, transform=restore, seed=seed + 1)
    model = Restorer()
    clock = train(model, loader, _restore_loss, steps=steps, title="contacts", learning_rate=3e-3)
    error, baseline, n, predicted = 0.0, 0.0, 0, []
    model.eval()
    with torch.no_grad():
        for batch in val:
            tensors = to_tensors(batch, val, layout="dense")
            seen, target = tensors["seen"], tensors["target"]
            output = model(tensors["input"])
            error += float(((output - target)[seen] ** 2).sum())
            baseline += float(((tensors["input"] - target)[seen] ** 2).sum())
            n += int(seen.sum())
            prediction = batch["target"].copy(data=output.numpy()).where(batch["seen"])
            predicted.append(batch.assign(prediction=prediction))
    result = xr.concat(predicted, "sample")
    middle = result.isel(sample=result.sizes["sample"] // 2)
    return Result(
        name=f"contacts: restore 1/{round(1 / KEEP)} coverage, validated on {held_out}",
        metric="mean squared error (lower is better)",
        baseline=baseline / n,
        model=error / n,
        better=error < baseline,
        samples_per_second=clock.samples / clock.started,
        wait_share=clock.waiting / clock.started,
        predictions=result,
        example={k: middle[k].values for k in ("input", "prediction", "target")},
    )


def _split_chromosomes(ds: xr.Dataset, held_out: str | None) -> tuple[str, list[str]]:
    """Return the chromosome to validate on and all that hold a window."""
    names, counts = np.unique(ds.chrom1.values, return_counts=True)
    long = {str(n): int(c) for n, c in zip(names, counts, strict=True) if c >= WINDOW}
    if len(long) < 2:
        msg = (
            f"training and validation need two chromosomes of at least {WINDOW} bins, but there are "
            f"{long or 'none'}; choose a finer resolution"
        )
        raise PlanError(msg)
    if held_out is None:
        held_out = sorted(long, key=lambda n: (long[n], n))[len(long) // 2]
    if held_out not in long:
        msg = f"chromosome {held_out!r} cannot be held out; those of {WINDOW} bins or more are {list(long)}"
        raise SchemaError(msg)
    return held_out, list(long)


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
    loader = Loader(
        ds.isel(cell=~val_cells),
        batch_size=128,
        variables=[variable],
        labels=[label],
        shuffle=True,
        seed=seed,
    )
    counts = loader[0][variable].data
    values = getattr(counts, "data", counts)
    values = np.asarray(values)
    is_counts = bool((values >= 0).all() and (values == np.round(values)).all())
    if is_counts:
        loader.transform = transforms.compose(
            transforms.normalize_total(variable=variable), transforms.log1p(variable)
        )
    val = Loader(
        ds.isel(cell=val_cells),
        batch_size=512,
        variables=[variable],
        labels=[label],
        transform=loader.transform,
        layout="dense",
    )
    types = loader.categories[label]
    model = nn.Sequential(
        nn.Linear(ds.sizes["gene"], 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, len(types))
    )

    def loss(model: nn.Module, batch: Tensors) -> torch.Tensor:
        return functional.cross_entropy(model(batch[variable].float()), batch[label])

    clock = train(model, loader, loss, steps=steps, title="cells   ", learning_rate=3e-3)
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
        samples_per_second=clock.samples / clock.started,
        wait_share=clock.waiting / clock.started,
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


def run(
    out: Path,
    *,
    contacts: str | None = None,
    cells: str | None = None,
    contacts_options: dict[str, Any] | None = None,
    cells_options: dict[str, Any] | None = None,
) -> list[Result]:
    """
    Run both trainings, on simulated files where none are given, and write what they gave.

    Parameters
    ----------
    out : Path
        Folder for simulated files, stores, ``demo.png`` and ``predictions.zarr``.
    contacts, cells : str, optional
        The user's own files. If only one is given, only that training runs.
    contacts_options, cells_options : dict, optional
        Options of `run_contacts` and `run_cells`.

    Returns
    -------
    list of Result
        One per training.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = []
    if contacts is not None or cells is None:
        if contacts is None:
            tqdm.write(f"simulating a contact map: {out / 'simulated.mcool'}")
            path = simulate.contacts(out / "simulated.mcool", overwrite=True, progress=True)
        else:
            path = Path(contacts)
        results.append(run_contacts(path, out / "contacts.xloader", **(contacts_options or {})))
    if cells is not None or contacts is None:
        if cells is None:
            tqdm.write(f"simulating cells: {out / 'simulated.h5ad'}")
            path = simulate.cells(out / "simulated.h5ad", overwrite=True, progress=True)
        else:
            path = Path(cells)
        results.append(run_cells(path, out / "cells.xloader", **(cells_options or {})))
    _write_predictions(out / "predictions.zarr", results)
    demo_figure(out / "demo.png", {r.name: r.example for r in results})
    return results


def _write_predictions(path: Path, results: list[Result]) -> None:
    for k, result in enumerate(results):
        ds = result.predictions.copy()
        for name, variable in ds.variables.items():
            variable.attrs.pop("categories", None)
            if variable.dtype == object:
                ds[name] = ds[name].astype(np.dtypes.StringDType())
        kind = result.name.split(":", maxsplit=1)[0]
        ds.to_zarr(path, group=kind, mode="w" if k == 0 else "a", consolidated=False)
