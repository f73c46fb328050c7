"""How a Loader shows itself, and what is known of its batches before one is read."""

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader.errors import SchemaError, warn
from xloader.labels import codes
from xloader.plan import Plan
from xloader.planned import as_table, as_text, facts, heading
from xloader.plot import plot_windows
from xloader.randomness import Randomness
from xloader.request import sample_values
from xloader.state import Resumable


class Described(Resumable):
    """What serves epochs of batches, and says how."""

    ds: xr.Dataset
    variables: tuple[str, ...]
    labels: tuple[str, ...]
    categories: dict[str, list[Any]]
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
        sizes = {
            k: f" ({len(v):,} class{'es' * (len(v) != 1)})" for k, v in self.categories.items()
        }
        labels = ", ".join(name + sizes.get(name, "") for name in self.labels) or "none"
        variables = ", ".join(self.variables)
        planned = facts(self.plan, self.epoch, prefetch=self.prefetch)
        return {"variables": f"{variables}; labels: {labels}", **planned}

    def plot_windows(self, *, name: str = "windows", ax: Any = None, **others: "Described") -> Any:
        """
        Draw where contact windows lie on each chromosome, and how many cover each bin.

        Parameters
        ----------
        name : str, optional
            What these windows are called, such as ``"train"``.
        ax : matplotlib.axes.Axes, optional
            Where to draw. Default: a new figure.
        **others : Loader
            Of other splits, by name, such as ``validation=...``.

        Returns
        -------
        matplotlib.axes.Axes
            A line for each chromosome.

        Raises
        ------
        SchemaError
            If windows are not of a contact map.
        """
        loaders = {name: self, **others}
        return plot_windows({k: (v.ds, v.plan.windows) for k, v in loaders.items()}, ax=ax)

    def randomness(self, label: str, *, own: bool = False) -> Randomness:
        """
        Say how random batches are on average over epochs, before anything is read.

        Parameters
        ----------
        label : str
            A coordinate of samples; of windows, where they start counts.
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
        values = sample_values(self.ds, self.plan.windows, label)
        return self.plan.randomness(values, own=own)

    def class_weights(self, label: str) -> npt.NDArray[np.float32]:
        """
        Return weights that let all classes of a label count alike, for ``torch.nn.CrossEntropyLoss``.

        The source is scikit-learn's ``class_weight="balanced"``: ``n / (k * n_c)`` of ``n`` samples
        that have a label, of ``k`` classes that have a sample, ``n_c`` of which are of class ``c``.
        The mean weight of a sample is 1. What counts is how often the order serves each sample: after
        ``order=xl.orders.balanced(label)`` all weights are 1.

        Parameters
        ----------
        label : str
            One of `categories`.

        Returns
        -------
        ndarray of float32, shape (n_classes,)
            In the order of `categories`; 0, with a warning, for classes that no sample has. Samples
            without a label count for nothing: pass ``ignore_index=-1`` to the loss.

        Raises
        ------
        SchemaError
            If there is no such label, or no sample has one.

        Examples
        --------
        >>> from xloader import Loader
        >>> ds = xr.Dataset({"x": ("cell", np.arange(4.0))}, {"type": ("cell", list("aaab"))})
        >>> Loader(ds, batch_size=2, labels=["type"]).class_weights("type")
        array([0.6666667, 2.       ], dtype=float32)
        """
        if label not in self.categories:
            msg = (
                f"{label!r} is no label of classes; this Loader has {list(self.categories)}. Name it in `labels`, "
                "and if it is a number, with its classes: labels={name: [...]}"
            )
            raise SchemaError(msg)
        known = self.categories[label]
        found = codes(sample_values(self.ds, self.plan.windows, label), known, label)
        often = self.plan.order.expected(self.plan)
        often = np.ones(len(found)) if often is None else often
        counts = np.bincount(found[found >= 0], often[found >= 0], minlength=len(known))
        empty = [c for c, n in zip(known, counts.tolist(), strict=True) if n == 0]
        if len(empty) == len(known):
            msg = f"no sample that this Loader serves has a {label!r}; select some that do"
            raise SchemaError(msg)
        if empty:
            msg = (
                f"{len(empty)} of {len(known)} classes of {label!r} have no sample that this Loader serves, and "
                f"weight 0: {empty[:5]}{', ...' if len(empty) > 5 else ''}"
            )
            warn(msg)
        filled = np.where(counts > 0, counts * np.count_nonzero(counts), np.inf)
        return np.asarray(counts.sum() / filled, np.float32)
