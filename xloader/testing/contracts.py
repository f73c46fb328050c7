"""Tests that orders inherit."""

from typing import Any, ClassVar

import numpy as np
import xarray as xr

from xloader.loader import Loader
from xloader.testing.plans import (
    assert_covers,
    assert_epochs_differ,
    assert_equal_steps,
    assert_topology_free,
    exist,
    order_of,
)
from xloader.testing.states import assert_resumes_everywhere
from xloader.testing.told import same


class OrderContract:
    """
    What every order keeps to: inherit it in a test class that says which order, and run pytest.

    Attributes
    ----------
    batch_size : int
        Samples of a global batch.
    memory_budgets : tuple of int or str
        One that holds everything, and one that does not.

    Examples
    --------
    >>> def any_order(plan, rng):
    ...     return rng.permutation(len(plan.windows))
    >>> class TestAnyOrder(OrderContract):
    ...     def order(self):
    ...         return any_order
    >>> TestAnyOrder().test_ranks__share_one_order()
    """

    batch_size: ClassVar[int] = 24
    memory_budgets: ClassVar[tuple[int | str, ...]] = ("1GB", 400)

    def order(self) -> Any:
        """
        Return what is tested.

        Returns
        -------
        object
            What ``Loader(order=...)`` takes.
        """
        msg = f"{type(self).__name__} needs a method `order` that returns what is tested"
        raise NotImplementedError(msg)

    def source(self) -> xr.Dataset:
        """
        Return the data that are ordered.

        Returns
        -------
        xarray.Dataset
            By default 101 cells in blocks of 5, with the coordinates "kind" and "weight".
        """
        cell = np.arange(101)
        ds = xr.Dataset(
            {"X": (("cell", "gene"), np.stack([cell, cell**2], axis=1))},
            {
                "kind": ("cell", np.array(["a", "b", "c"])[cell * 7 % 3]),
                "weight": ("cell", cell % 4 * 1.0),
            },
        )
        return ds.chunk(cell=5)

    def loaders(self, **options: Any) -> list[Loader]:
        """
        Return a loader of the order for each memory budget.

        Parameters
        ----------
        **options
            As for `Loader`.

        Returns
        -------
        list of Loader
            New ones, of a new order.
        """
        options = {"batch_size": self.batch_size, **options}
        return [
            Loader(self.source(), order=self.order(), memory_budget=budget, **options)
            for budget in self.memory_budgets
        ]

    def test_samples__exist_and_epochs_are_equally_long(self) -> None:
        """Serve numbers of samples, as many in each epoch as `n_samples` says."""
        for loader in self.loaders():
            plan, n = loader.plan, len(loader.plan.windows)
            for epoch in range(3):
                for step in range(len(plan)):
                    exist(plan.batch(epoch, step), n, f"epoch {epoch}, step {step}")

    def test_epochs__differ_and_so_do_seeds(self) -> None:
        """Serve another sequence in each epoch and for each seed, unless samples come as they are stored."""
        for loader in self.loaders():
            if not loader.plan.order.in_order:
                assert_epochs_differ(loader)

    def test_order__follows_from_seed_and_epoch_alone(self) -> None:
        """Serve the same samples whenever they are asked for."""
        for one, other in zip(self.loaders(), self.loaders(), strict=True):
            orders = [order_of(one.plan, e) for e in range(3)]
            for epoch in reversed(range(3)):
                again = order_of(other.plan, epoch)
                same(again, orders[epoch], f"epoch {epoch}, all steps, asked again")

    def test_ranks__share_one_order(self) -> None:
        """Serve the same global batches on any number of ranks, in equal steps, all of them."""
        for remainder in ("keep", "drop", "pad"):
            for loader in self.loaders(remainder=remainder):
                assert_topology_free(loader)
                assert_covers(loader, once=False)
                assert_equal_steps(loader)

    def test_resume__goes_on_after_every_step(self) -> None:
        """Go on exactly where training stopped, on any number of ranks."""
        for loader in self.loaders():
            assert_resumes_everywhere(loader, worlds=(1, 2, 3), times=2)
