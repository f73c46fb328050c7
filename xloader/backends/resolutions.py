"""Files and stores of several resolutions as trees, one node for each."""

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import xarray as xr
from typing_extensions import override
from xarray.backends import BackendEntrypoint


class ResolutionsEntrypoint(BackendEntrypoint):
    """Opens one resolution as a Dataset, or all of them as a tree."""

    supports_groups = True

    @abstractmethod
    def nodes(self, filename_or_obj: str | os.PathLike[str]) -> Mapping[str, dict[str, Any]]:
        """
        Say which Datasets there are.

        Parameters
        ----------
        filename_or_obj : str or path-like
            As for `open_dataset`.

        Returns
        -------
        mapping of str to dict
            Name of each node, and what `open_dataset` needs to open it; finest first.
        """

    @override
    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, xr.Dataset]:
        """
        Open every resolution as a lazy Dataset.

        Parameters
        ----------
        filename_or_obj : str or path-like
            As for `open_dataset`.
        drop_variables : str or iterable of str, optional
            Variables and coordinates to leave out.
        **kwargs
            As for `open_dataset`.

        Returns
        -------
        dict of str to xarray.Dataset
            By path of the node: ``"/<bin size in bp>"``, or ``"/variable"`` where bins vary.

        Raises
        ------
        ReadError, SchemaError
            As for `open_dataset`.
        """
        return {
            f"/{name}": self.open_dataset(
                filename_or_obj, drop_variables=drop_variables, **chosen, **kwargs
            )
            for name, chosen in self.nodes(filename_or_obj).items()
        }

    @override
    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        **kwargs: Any,
    ) -> xr.DataTree:
        """
        Open every resolution as a node of a tree.

        Parameters
        ----------
        filename_or_obj : str or path-like
            As for `open_dataset`.
        drop_variables : str or iterable of str, optional
            Variables and coordinates to leave out.
        **kwargs
            As for `open_dataset`.

        Returns
        -------
        xarray.DataTree
            Its nodes are named by bin size, in bp, finest first; ``"variable"`` where bins vary.

        Raises
        ------
        ReadError, SchemaError
            As for `open_dataset`.
        """
        groups = self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables, **kwargs)
        return xr.DataTree.from_dict(groups)
