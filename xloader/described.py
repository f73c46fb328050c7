"""How a Loader shows itself, and what is known of its batches before one is read."""

from abc import abstractmethod

import xarray as xr
from typing_extensions import override

from xloader.plan import Plan
from xloader.planned import as_table, as_text, facts, heading
from xloader.randomness import Randomness
from xloader.request import sample_values
from xloader.state import Resumable


class Described(Resumable):
    """What serves epochs of batches, and says how."""

    ds: xr.Dataset
    variables: tuple[str, ...]
    labels: tuple[str, ...]
    prefetch: int

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """
        Return what was decided before anything is read.

        Returns
        -------
        Plan
            For the rank and world size of this moment.
        """

    @override
    def __repr__(self) -> str:
        return as_text("xloader.Loader", heading(self.plan), self._facts())

    def _repr_html_(self) -> str:
        return as_table("xloader.Loader", heading(self.plan), self._facts())

    def _facts(self) -> dict[str, str]:
        variables, labels = ", ".join(self.variables), ", ".join(self.labels) or "none"
        planned = facts(self.plan, self.epoch, prefetch=self.prefetch)
        return {"variables": f"{variables}; labels: {labels}", **planned}

    def randomness(self, label: str, *, epoch: int | None = None, own: bool = False) -> Randomness:
        """
        Say how random batches are, before anything is read.

        Parameters
        ----------
        label : str
            A coordinate of samples; of windows, where they start counts.
        epoch : int, optional
            Number of the epoch. Default: the current one.
        own : bool, optional
            Whether the batches of this rank are meant, not those of all ranks together.

        Returns
        -------
        Randomness
            With a verdict, and what to change if it is bad.

        Raises
        ------
        SchemaError
            If there is no such coordinate.
        """
        epoch = self.epoch if epoch is None else epoch
        values = sample_values(self.ds, self.plan.windows, label, epoch)
        return self.plan.randomness(values, epoch=epoch, own=own)
