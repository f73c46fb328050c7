"""What becomes of the predictions of samples: maps of contacts, or rows of cells."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import override

from xloader import schema
from xloader.axes import Int64, Windows
from xloader.errors import PlanError, SchemaError
from xloader.placing import fold, place, window_weights
from xloader.store.assembled import AssembledRows, AssembledTiles
from xloader.store.parts import Written

Array = npt.NDArray[Any]
Dims = Sequence[str] | None
"""Names of the dimensions of one sample; None if they have none."""


class Assembly(ABC):
    """How predictions of samples become one labelled Dataset."""

    shape: tuple[int, ...] | None = None
    """Of one prediction; None if any has a place."""
    taken: frozenset[str]
    """Names that no prediction can have."""

    @abstractmethod
    def identity(self) -> list[Any]:
        """
        Return what is the same for every writer whose parts belong together.

        Returns
        -------
        list
            For `xloader.state.digest`.
        """

    def prepare(
        self,
        values: Array,
        ids: Int64,  # noqa: ARG002 # for those that have places
        turned: npt.NDArray[np.bool_],  # noqa: ARG002 # for windows
    ) -> Array:
        """
        Bring predictions into the form in which they are kept.

        Parameters
        ----------
        values : ndarray of float, shape (n, ...)
            Changed in place.
        ids : ndarray of int64, shape (n,)
            Their samples.
        turned : ndarray of bool, shape (n,)
            Which of them were turned around.

        Returns
        -------
        ndarray of float, shape (n, ...)
            The same array.
        """
        return values

    def shown(self, first: Int64, n: int, size: int) -> Int64:  # noqa: ARG002 # for windows
        """
        Return the position that a labelled batch shows of each sample.

        Parameters
        ----------
        first : ndarray of int64, shape (m,)
            First position of each sample.
        n, size : int
            Positions that the batch has, and that samples have.

        Returns
        -------
        ndarray of int64, shape (m,)
            For comparison with the labels of the batch.
        """
        return first

    @abstractmethod
    def labelled(self, written: Mapping[str, tuple[Written, Dims]], complete: Int64) -> xr.Dataset:
        """
        Return the result, lazily.

        Parameters
        ----------
        written : mapping of str to (Written, Dims)
            What was predicted, by name.
        complete : ndarray of int64
            Samples that have all of it, increasing.

        Returns
        -------
        xarray.Dataset
            Each prediction under its name, and coverage.
        """


class Maps(Assembly):
    """
    Windows of contacts that become maps; where they overlap, their weighted mean counts.

    Parameters
    ----------
    ds : xarray.Dataset
        What the windows are cut from.
    windows : Windows
        Over `bin1` and `bin2`.
    weights : str, array or callable
        As for `PredictionWriter`.
    symmetric : bool
        As for `PredictionWriter`.
    margin, factor : int
        As for `PredictionWriter`.

    Raises
    ------
    PlanError
        If options do not fit the windows.
    """

    def __init__(
        self,
        ds: xr.Dataset,
        windows: Windows,
        *,
        weights: Any,
        symmetric: bool,
        margin: int,
        factor: int,
    ) -> None:
        self.places = place(ds, windows, margin=margin, factor=factor)
        self.symmetric = symmetric
        self.shape = shape = self.places.shape
        if symmetric and shape[0] != shape[1]:
            msg = (
                f"symmetric=True needs square windows, and these are {shape}; pass symmetric=False"
            )
            raise PlanError(msg)
        self.scheme, self.weights = window_weights(weights, shape, symmetric=symmetric)
        self.taken = frozenset(map(str, self.places.labels.variables))

    @override
    def identity(self) -> list[Any]:  # numpydoc ignore=GL08
        labels = self.places.labels
        bins = [labels[name].values for name in ("bin1", "start1", "end1")]
        chrom = "\n".join(map(str, labels["chrom1"].values))
        return [self.places.starts, bins, chrom, self.weights, self.symmetric]

    @override
    def prepare(
        self, values: Array, ids: Int64, turned: npt.NDArray[np.bool_]
    ) -> Array:  # numpydoc ignore=GL08
        values[turned] = values[turned, ::-1, ::-1]
        values = self.places.mask(values, ids)
        return fold(values, self.places.starts[ids]) if self.symmetric else values

    @override
    def shown(self, first: Int64, n: int, size: int) -> Int64:  # numpydoc ignore=GL08
        return self.places.shown(first, n, size)

    @override
    def labelled(
        self, written: Mapping[str, tuple[Written, Dims]], complete: Int64
    ) -> xr.Dataset:  # numpydoc ignore=GL08
        variables: dict[str, Any] = {}
        for name, (parts, _) in written.items():
            starts = self.places.starts[parts.ids]
            starts = np.sort(starts, axis=1) if self.symmetric else starts
            coverage = "coverage" if len(written) == 1 else f"{name}_coverage"
            for key in (name, coverage):
                variables[key] = schema.lazy(
                    ("bin1", "bin2"),
                    AssembledTiles(
                        parts,
                        starts,
                        self.weights,
                        self.places.labels.sizes["bin1"],
                        symmetric=self.symmetric,
                        coverage=key == coverage,
                    ),
                )
        mode = "symmetric-upper" if self.symmetric else "square"
        attrs = {"storage_mode": mode, "weights": self.scheme}
        return self.places.labels.assign(variables).assign_attrs(attrs)


class Rows(Assembly):
    """
    Cells that become rows, in the order and with the labels of their source.

    Parameters
    ----------
    ds : xarray.Dataset
        What the cells are of.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self.coords = ds.coords.to_dataset()
        self.sizes = {str(dim): n for dim, n in ds.sizes.items()}
        self.taken = frozenset({*map(str, self.coords.variables), *self.sizes})

    @override
    def identity(self) -> list[Any]:  # numpydoc ignore=GL08
        names = self.coords["cell"].values if "cell" in self.coords else ()
        return [self.sizes["cell"], "\n".join(map(str, names))]

    @override
    def labelled(
        self, written: Mapping[str, tuple[Written, Dims]], complete: Int64
    ) -> xr.Dataset:  # numpydoc ignore=GL08
        variables: dict[str, Any] = {}
        sizes, n = {"cell": self.sizes["cell"]}, self.sizes["cell"]
        for name, (parts, dims) in written.items():
            # as `obsm` of an .h5ad is named
            further = dims or [f"{name}_dim{k or ''}" for k in range(len(parts.shape))]
            for dim, length in zip(further, parts.shape, strict=True):
                if sizes.setdefault(dim, length) != length or dim in self.taken - {*self.sizes}:
                    msg = (
                        f"the dimension {dim!r} of prediction {name!r} has {length} elements, and is of something "
                        f"else already; write it with another name of it, after removing {name!r} of before"
                    )
                    raise SchemaError(msg)
            variables[name] = schema.lazy(("cell", *further), AssembledRows(parts, n))
        others = [dim for dim in self.coords.dims if sizes.get(str(dim)) != self.coords.sizes[dim]]
        there = np.isin(np.arange(n), complete).astype(np.uint8)
        return self.coords.drop_dims(others).assign({**variables, "coverage": ("cell", there)})
