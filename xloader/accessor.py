"""What Datasets can do themselves: ``ds.xl``."""

from collections.abc import Sequence
from typing import Any

import xarray as xr

from xloader import plot
from xloader.lookup import positions


@xr.register_dataset_accessor("xl")  # type: ignore[no-untyped-call]
class DatasetAccessor:
    """
    Panels and pictures of a Dataset, as ``ds.xl``.

    Parameters
    ----------
    ds : xarray.Dataset
        Cells, a contact map or a batch.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def select(self, **labels: Sequence[Any]) -> xr.Dataset:
        """
        Return some labels along a dimension, in the order given; nothing is read.

        What `sel` does, by any coordinate and with a message that says which names are wrong.

        Parameters
        ----------
        **labels : sequence
            By coordinate, its index or any other, such as ``gene=panel`` or ``symbol=panel``: some of
            its labels, each once.

        Returns
        -------
        xarray.Dataset
            Lazy as before; the dimension is as long as the list.

        Raises
        ------
        SchemaError
            If a label is unknown, with that most like it, is named twice, or is that of several
            positions.

        Examples
        --------
        >>> ds = xr.Dataset(coords={"gene": ["e1", "e2"], "symbol": ("gene", ["ACTB", "CD4"])})
        >>> ds.xl.select(symbol=["CD4"]).gene.values
        array(['e2'], dtype='<U2')
        """
        ds = self._ds
        for name, wanted in labels.items():
            dim, places = positions(ds, name, wanted, "ds.xl.select")
            ds = ds.isel({dim: places})
        return ds

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
