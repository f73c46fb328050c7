"""What Datasets can do themselves: ``ds.xl``."""

from typing import Any

import xarray as xr

from xloader import plot


@xr.register_dataset_accessor("xl")  # type: ignore[no-untyped-call]
class DatasetAccessor:
    """
    Pictures of a Dataset, as ``ds.xl``.

    Parameters
    ----------
    ds : xarray.Dataset
        A contact map or a batch.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def plot_contacts(self, region: str | None = None, *args: Any, **options: Any) -> Any:
        """
        Draw a part of a contact map.

        Parameters
        ----------
        region : str, optional
            Chromosome, or part as ``"chr2:1,000,000-2,000,000"``.
        *args, **options
            As for `xloader.plot.plot_contacts`.

        Returns
        -------
        matplotlib.axes.Axes
            With positions in Mb.
        """
        return plot.plot_contacts(self._ds, region, *args, **options)

    def plot_batch(self, **options: Any) -> Any:
        """
        Draw the first windows of a batch.

        Parameters
        ----------
        **options
            As for `xloader.plot.plot_batch`.

        Returns
        -------
        matplotlib.figure.Figure
            A column for each window.
        """
        return plot.plot_batch(self._ds, **options)
