"""Training for a number of steps, timed; the same for both kinds of data."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import nn
from tqdm import tqdm

from xloader.loader import Loader
from xloader.torch import Tensors, make_loader


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

    @property
    def seconds(self) -> float:
        """
        Return the time since training began.

        Returns
        -------
        float
            In seconds of wall time.
        """
        return time.perf_counter() - self.started

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
            bar.set_postfix_str(
                f"{self.samples / self.seconds:,.0f} samples/s, "
                f"waiting {self.waiting / self.seconds:.0%}",
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
) -> tuple[float, float]:
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
    tuple of float
        Samples per second, and the share of the time spent waiting for data.
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
    return clock.samples / clock.seconds, clock.waiting / clock.seconds
