"""Restoring the full coverage of a contact map from a thinned one."""

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import nn
from torch.nn import functional
from typing_extensions import override

from xloader import transforms
from xloader import windows as win
from xloader.contract import SampleRandom
from xloader.conversion import convert
from xloader.demo.training import Result, train
from xloader.errors import PlanError, SchemaError
from xloader.loader import Loader
from xloader.open import open_contacts, resolutions
from xloader.torch import Tensors, to_tensors

WINDOW = 64
KEEP = 1 / 16


def restore(batch: xr.Dataset, *, rng: SampleRandom) -> xr.Dataset:
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
    """
    A small convolutional network that adds a correction to its input.

    Parameters
    ----------
    width : int, optional
        Channels of its layers.
    """

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
    speed, wait_share = train(
        model, loader, _restore_loss, steps=steps, title="contacts", learning_rate=3e-3
    )
    error, baseline, result = _validate(model, val)
    middle = result.isel(sample=result.sizes["sample"] // 2)
    return Result(
        name=f"contacts: restore 1/{round(1 / KEEP)} coverage, validated on {held_out}",
        metric="mean squared error (lower is better)",
        baseline=baseline,
        model=error,
        better=error < baseline,
        samples_per_second=speed,
        wait_share=wait_share,
        predictions=result,
        example={k: middle[k].values for k in ("input", "prediction", "target")},
    )


def _validate(model: nn.Module, val: Loader) -> tuple[float, float, xr.Dataset]:
    """Return the mean squared errors of the network and of its input, and labelled predictions."""
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
    return error / n, baseline / n, xr.concat(predicted, "sample")


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
