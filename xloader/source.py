"""Everything a batch is made of: variables read from storage, and coordinates kept in memory."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xloader import trace
from xloader.axes import Int64, Windows
from xloader.buffers import Allocate, Buffers
from xloader.contract import Fusion
from xloader.csr import CSRArray
from xloader.errors import PlanError, SchemaError
from xloader.padding import nothing, pad
from xloader.planned import Chosen
from xloader.read import Reader, RowReader, TileReader, Values, make_reader
from xloader.unchanged import Unchanged

Loaded = Mapping[str, Any]
"""What the readers loaded, by variable."""


def _refuse_taken_names(ds: xr.Dataset, names: Sequence[Hashable], windows: Windows) -> None:
    """Refuse names that batches need for themselves."""
    reserved = {"sample_id", "valid"} if windows.by_row else {"sample_id", "valid", "sample"}
    dims = {d for name in names for d in ds.variables[name].dims}
    taken = sorted(reserved & {*names, *dims})
    if taken:
        msg = (
            f"batches name their samples with {sorted(reserved)}, but the Dataset has {taken} "
            "already; rename or drop what has these names"
        )
        raise SchemaError(msg)


def _frozen(variable: xr.Variable) -> xr.Variable:
    """Protect values that all batches share from transforms that work in place."""
    if isinstance(variable, xr.IndexVariable) or not isinstance(variable.data, np.ndarray):
        return variable
    values = variable.values.view()
    values.flags.writeable = False
    return variable.copy(deep=False, data=values)


class Source:
    """
    Everything a batch is made of: variables read from storage, coordinates kept in memory.

    Parameters
    ----------
    ds : xarray.Dataset
        What the windows are cut from.
    windows : Windows
        Where they lie.
    variables : sequence of str
        Data variables to deliver.
    layout : {None, "csr", "dense"}
        Form of sparse rows in batches.
    fusion : Fusion, optional
        What transforms do to a variable, and its reader may do.
    allocate : callable, optional
        As for `Buffers`: where memory of batches comes from.
    stored : Unchanged, optional
        Folders of zarr arrays as they were when the process that trains looked. Default: as they
        are. Without them missing files would be read as fill values.

    Attributes
    ----------
    fused : bool
        Whether a reader does `fusion`.
    """

    def __init__(
        self,
        ds: xr.Dataset,
        windows: Windows,
        *,
        variables: Sequence[str],
        layout: str | None,
        fusion: Fusion | None = None,
        allocate: Allocate | None = None,
        stored: Unchanged | None = None,
    ) -> None:
        self.windows = windows
        self.attrs = dict(ds.attrs)
        self.readers: dict[str, Reader] = {}
        self.fixed: dict[str, xr.Variable] = {}
        self.coords = set(map(str, ds.coords))
        self.variable_attrs = {str(k): dict(v.attrs) for k, v in ds.variables.items()}
        names = [*ds.coords, *variables]
        _refuse_taken_names(ds, names, windows)
        if stored is None:
            stored = Unchanged(set().union(*(trace.folders(ds.variables[key]) for key in names)))
        self.stored = stored
        for key in names:
            name, variable = str(key), ds.variables[key]
            if set(variable.dims) & set(windows.dims):
                self.readers[name] = make_reader(ds, name, windows, layout=layout, fusion=fusion)
            else:
                with stored.reading():
                    self.fixed[name] = _frozen(variable.compute())
        for reader in self.readers.values():
            reader.batches = Buffers(allocate)
        self.fused = any(
            isinstance(r, TileReader) and r.finish is not None for r in self.readers.values()
        )
        if self.fused and fusion is not None and fusion.weight is not None:
            self.variable_attrs[fusion.variable]["weight"] = fusion.weight
        sparse = [r for r in self.readers.values() if isinstance(r, RowReader)]
        if layout == "csr" and not sparse:
            msg = (
                f"layout='csr' needs a variable that is stored sparse and read row by row, but "
                f"{list(variables)} have none; leave `layout` out"
            )
            raise PlanError(msg)

    def keys(self) -> npt.NDArray[np.int64] | None:
        """
        Return a number per sample that is equal for samples stored together.

        Returns
        -------
        ndarray of int64 or None, shape (n_samples,)
            By the variable that costs most to read; None if all are in memory.
        """
        starts = self.windows.starts_of(np.arange(len(self.windows)))
        stored = [r for r in self.readers.values() if r.keys(starts[:1]) is not None]
        largest: Reader | None = max(stored, key=lambda r: r.n_elements, default=None)
        return None if largest is None else largest.keys(starts)

    def block_nbytes(self, ids: Int64, ptr: Int64) -> Int64:
        """
        Return the bytes that blocks of samples take in memory.

        Parameters
        ----------
        ids : ndarray of int64, shape (n_samples,)
            Sample numbers, block after block.
        ptr : ndarray of int64, shape (n_blocks + 1,)
            Block ``b`` is ``ids[ptr[b]:ptr[b + 1]]``.

        Returns
        -------
        ndarray of int64, shape (n_variables, n_blocks)
            Upper bounds, for any epoch.
        """
        first, last = self.windows.reach_of(ids)
        return np.stack([r.nbytes(first, last, ptr) for r in self.readers.values()])

    def epoch_nbytes(self, nbytes: Int64, n_pools: int) -> int:
        """
        Return the bytes that an epoch decodes.

        Parameters
        ----------
        nbytes : ndarray of int64, shape (n_variables, n_blocks)
            From `block_nbytes`.
        n_pools : int
            Pools of blocks; of each, every chunk is decoded once, though several blocks touch it.

        Returns
        -------
        int
            An upper bound.
        """
        total = 0
        for reader, each in zip(self.readers.values(), nbytes.sum(axis=1).tolist(), strict=True):
            whole = reader.n_elements * reader.dtype.itemsize * n_pools
            # rows are of one block, and may take more than a dense array does
            total += each if isinstance(reader, RowReader) else min(each, whole)
        return total

    @property
    def sample_nbytes(self) -> int:
        """
        Return the bytes of one sample in a batch.

        Returns
        -------
        int
            On average, over all variables; at least 1.
        """
        return max(1, sum(r.sample_nbytes for r in self.readers.values()))

    @property
    def stored_nbytes(self) -> int:
        """
        Return the part of decoded blocks that is one sample's.

        Returns
        -------
        int
            Bytes, on average, over all variables that are not in memory.
        """
        return sum(r.stored_nbytes for r in self.readers.values())

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """
        Return what is read for variables of which some columns are wanted.

        Returns
        -------
        tuple of Chosen
            Those that are read straight from storage.
        """
        return tuple(r.chosen for r in self.readers.values() if r.chosen is not None)

    @property
    def advice(self) -> str | None:
        """
        Return what would make reading much faster.

        Returns
        -------
        str or None
            None as long as nothing is known.
        """
        return next((r.advice for r in self.readers.values() if r.advice), None)

    def load(self, ids: Int64, epoch: int | None) -> Loaded:
        """
        Read the blocks of some samples.

        Parameters
        ----------
        ids : ndarray of int64, shape (m,)
            Sample numbers, at least one.
        epoch : int or None
            Epoch that they are read for; None for all of them.

        Returns
        -------
        Loaded
            For `gather`; every chunk was decoded once.

        Raises
        ------
        ReadError
            If bytes cannot be read or decoded, or are not what they were.
        """
        first, last = self.windows.reach_of(ids, epoch)
        with self.stored.reading():
            return {name: reader.load(first, last) for name, reader in self.readers.items()}

    def gather(self, parts: Sequence[tuple[Loaded, Int64]], epoch: int | None) -> dict[str, Values]:
        """
        Cut samples out of what was loaded.

        Parameters
        ----------
        parts : sequence of (Loaded, ndarray of int64)
            Sample numbers, and what they were loaded with; at least one.
        epoch : int or None
            Epoch that shifts windows; None for where they were drawn.

        Returns
        -------
        dict of str to array, samples first
            One array per variable and windowed coordinate, the samples of all parts in order.
        """
        started = [(loaded, self.windows.starts_of(ids, epoch)) for loaded, ids in parts]
        # small ones first: large ones are cut without the interpreter, which others may have then
        names = sorted(self.readers, key=lambda name: self.readers[name].sample_nbytes)
        values = {
            name: self.readers[name].gather([(loaded[name], starts) for loaded, starts in started])
            for name in names
        }
        ids = np.concatenate([ids for _, ids in parts])
        for dim, lacking in self.windows.lacking(ids).items():
            if lacking.any():
                for name in names:
                    if dim in self.readers[name].dims:
                        values[name] = self._blank(name, values[name], lacking)
        if self.windows.beyond is None:
            return values
        over = self.windows.beyond[ids]
        return {name: self._padded(name, v, over) for name, v in values.items()}

    def _blank(self, name: str, values: Values, lacking: npt.NDArray[np.bool_]) -> Values:
        """Leave nothing in samples that a source does not have."""
        if isinstance(values, CSRArray):
            lengths = np.diff(values.indptr)
            kept = np.repeat(~lacking, lengths)
            indptr = np.append(0, np.cumsum(lengths * ~lacking))
            return CSRArray(values.data[kept], values.indices[kept], indptr, values.shape)
        rows = isinstance(self.readers[name], RowReader)  # as sparse ones, which are empty
        values[lacking] = 0 if rows else nothing(values.dtype)
        return values

    def _padded(self, name: str, values: Values, over: Int64) -> Values:
        """Fill what windows show beyond the ends of chromosomes."""
        reader = self.readers[name]
        if not over.any() or not isinstance(values, np.ndarray):  # sparse rows reach beyond nothing
            return values
        columns = [0 * over[:, 0] if a is None else over[:, a] for a in reader.axes]
        return pad(name, reader.dims, values, np.stack(columns, axis=1), self.attrs["binsize"])
