"""Where a training loop is: the batches it took, whatever was read ahead of it."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from xloader.errors import PlanError

T = TypeVar("T")


class Cursor:
    """
    A position in the endless sequence of epochs.

    Parameters
    ----------
    epoch : int, optional
        Number of the first epoch, from 0.
    onward : bool, optional
        Whether an iteration that was left early is followed by the next epoch, as torch's loaders
        are shuffled anew, instead of being served again.

    Examples
    --------
    >>> cursor = Cursor()
    >>> batches = cursor.follow("abc")
    >>> next(batches), next(batches), cursor.position
    ('a', 'b', (0, 2))
    >>> list(batches), cursor.position
    (['c'], (1, 0))
    """

    def __init__(self, epoch: int = 0, *, onward: bool = False) -> None:
        self.epoch = epoch
        self.onward = onward
        self._start = self._served = 0
        self._begun = self._finished = False

    @property
    def position(self) -> tuple[int, int]:
        """
        Return what comes next.

        Returns
        -------
        tuple of int
            Epoch, and step within it.
        """
        return (self.epoch + 1, 0) if self._finished else (self.epoch, self._served)

    def move(self, epoch: Any, step: int | None = None) -> None:
        """
        Choose what comes next.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        step : int, optional
            Step of the next iteration. Default: the one it had if the epoch stays, so that who sets
            epochs one by one does not undo a restored position; else 0.

        Raises
        ------
        PlanError
            If the epoch is no number, or negative.
        """
        if not isinstance(epoch, int | np.integer) or epoch < 0:
            msg = f"epoch {epoch!r} is impossible; epochs are whole numbers and count from 0"
            raise PlanError(msg)
        if step is not None or epoch != self.epoch:
            self._start = step or 0
        self.epoch, self._served = int(epoch), self._start
        self._begun = self._finished = False

    def begin(self) -> tuple[int, int]:
        """
        Start an iteration: of the next epoch if the last one was served to its end.

        Returns
        -------
        tuple of int
            Epoch, and the first step to serve.
        """
        if self._finished or (self.onward and self._begun):
            self.move(self.epoch + 1)
        self._begun = True
        self._served, self._start = self._start, 0
        return self.epoch, self._served

    def follow(self, batches: Iterable[T]) -> Iterator[T]:
        """
        Count batches as they are taken.

        Parameters
        ----------
        batches : iterable
            Those of the epoch from where `begin` says.

        Yields
        ------
        object
            Each batch.
        """
        epoch, first = self.epoch, self._served
        for served, batch in enumerate(batches, first + 1):
            if self.epoch == epoch:  # else the epoch was set meanwhile, and counts from there
                self._served = served
            yield batch
        if self.epoch == epoch:
            self._finished = True
