"""Several modalities as MuData stores them (.h5mu, or zarr): AnnData side by side, aligned by names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from typing_extensions import override
from xarray.backends import BackendEntrypoint

from xloader.arrays import StoredArray
from xloader.backends.anndata import cells_of, engine_of, tell_skipped, tree_of
from xloader.backends.anndata_frames import read_frame
from xloader.backends.elements import DenseElement, Leaf, Tree
from xloader.backends.modalities import modalities_dataset
from xloader.errors import SchemaError
from xloader.schema import names_in


class MuDataBackendEntrypoint(BackendEntrypoint):
    """
    Open MuData as labelled Datasets: ``xr.open_dataset(path, engine="mudata")``.

    One Dataset over the union of cells, as `modalities_dataset` describes it. A single modality is
    opened by `engine="anndata"`, as ``path::/mod/rna``.
    """

    description = "Several modalities in MuData files (.h5mu, .zarr)"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = ("filename_or_obj", "drop_variables")

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:  # numpydoc ignore=GL08
        return isinstance(filename_or_obj, str | Path) and Path(filename_or_obj).suffix == ".h5mu"

    @override
    def open_dataset(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> xr.Dataset:
        """
        Open a file or store lazily; names and labels are read, matrices are not.

        Parameters
        ----------
        filename_or_obj : str or path
            A MuData file or zarr store, or ``path::group``, known by what is in it.
        drop_variables : str or iterable of str, optional
            Variables and coordinates to leave out.

        Returns
        -------
        xarray.Dataset
            One variable per modality. What cannot be opened is left out with a warning.

        Raises
        ------
        ReadError
            If there is no such file, it is truncated or damaged, or leads into other files.
        SchemaError
            If it is no MuData, its modalities share genes and not cells, or what it says about
            which cells they have contradicts their names.
        """
        tree, group = tree_of(filename_or_obj, "MuData")
        dropped = names_in(drop_variables)
        with tree.reading():
            if engine_of(tree, group) != "mudata":
                msg = (
                    f"{tree.path!r} is not a MuData file: {f'{group!r}' if group else 'it'} has "
                    f"{tree.children(group)} and no `mod`; open it with the engine of its own format"
                )
                raise SchemaError(msg)
            ds, skipped = _union(tree, f"{group}/" if group else "")
        tell_skipped(
            tree.path, {n: e for n, e in skipped.items() if n.split("/")[-1] not in dropped}
        )
        ds = ds.drop_vars(dropped, errors="ignore")
        ds.set_close(tree.close)
        return ds


def _union(tree: Tree, below: str) -> tuple[xr.Dataset, dict[str, str]]:
    _require_shared_cells(tree, below)
    parts, skipped = {}, {}
    order = tree.attr(f"{below}mod", "mod-order")
    there = tree.children(f"{below}mod")
    ordered = [*order, *there] if order is not None and {*order} == {*there} else there
    for name in dict.fromkeys(map(str, ordered)):
        parts[name], left_out = cells_of(tree, f"{below}mod/{name}")
        skipped.update(left_out)
    obs = read_frame(tree, f"{below}obs")
    skipped.update({f"{below}obs/{k}": v for k, v in obs.skipped.items()})
    arrays: dict[str, StoredArray] = {}
    for key in tree.children(f"{below}obsm"):
        leaf = tree.leaf(f"{below}obsm/{key}")
        if key in parts:
            continue  # which cells the modality has: checked below
        if leaf is None or leaf.dtype.kind not in "biuf" or leaf.shape[:1] != obs.index.shape:
            skipped[f"{below}obsm/{key}"] = "not a matrix over all cells"
        else:
            arrays[key] = DenseElement(leaf)
    # MuData repeats columns of its modalities as `rna:n_genes`
    own = {f"{name}:{c}" for name, ds in parts.items() for c in _columns(ds)}
    columns = {k: v for k, v in obs.columns.items() if k not in own}
    ds = modalities_dataset(parts, cell=obs.index, obs=columns, arrays=arrays, where=tree.path)
    for name, part in parts.items():
        _require_agreement(tree, below, name, obs.index, part["cell"].values)
    return ds, skipped


def _columns(ds: xr.Dataset) -> list[str]:
    """Return the columns of `obs` of a modality by the names they have in the file."""
    return [v.attrs.get("column", str(k)) for k, v in ds.coords.items() if v.dims == ("cell",)]


def _require_shared_cells(tree: Tree, below: str) -> None:
    axis = tree.attr(below, "axis")
    if axis is not None and int(axis) != 0:
        msg = (
            f"the modalities of {tree.path!r} share "
            f"{'genes' if int(axis) == 1 else 'both cells and genes'} (axis={int(axis)}), and are no union "
            f"of cells; open each by itself: '{tree.path}::/{below}mod/<name>'"
        )
        raise SchemaError(msg)


def _require_agreement(tree: Tree, below: str, name: str, cells: Any, mine: Any) -> None:
    """Refuse a file that says of its modality what the names of its cells do not."""
    place = {c: k + 1 for k, c in enumerate(mine.tolist())}
    by_name = np.array([place.get(c, 0) for c in cells.tolist()], np.int64)
    for table in ("obsmap", "obsm"):
        if name not in tree.children(below + table):
            continue
        said: Leaf | None = tree.leaf(f"{below}{table}/{name}")
        values = np.empty(0) if said is None else said.read()
        # `obsmap` counts rows from 1, and `obsm` says whether there is one
        expected = by_name if table == "obsmap" else by_name > 0
        if table == "obsm" and values.dtype != np.bool_:
            continue
        wrong = np.flatnonzero(values.ravel() != expected) if values.size == len(cells) else [0]
        if len(wrong):
            msg = (
                f"`{below}{table}/{name}` of {tree.path!r} contradicts the names of the cells of `mod/{name}`, "
                f"first at cell {int(wrong[0])} ({cells[int(wrong[0])]!r}); call `mdata.update()` and write "
                f"it again, or open one modality: '{tree.path}::/{below}mod/{name}'"
            )
            raise SchemaError(msg)
