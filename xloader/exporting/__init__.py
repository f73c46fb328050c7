"""Contact maps and cells written for other programs, block by block."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from xloader import schema
from xloader.errors import PlanError, SchemaError
from xloader.exporting.cells import export_cells
from xloader.exporting.contacts import export_contacts
from xloader.open import identify, open_cells

__all__ = ["export"]

_FORMATS = {"contacts": (".cool", ".mcool"), "cells": (".h5ad", ".zarr")}
_HELD = {"contacts": "contact maps (dims bin1, bin2)", "cells": "cells (dim cell)"}


def export(
    source: str | os.PathLike[str] | xr.Dataset,
    path: str | os.PathLike[str],
    *,
    variable: str | None = None,
    resolutions: Sequence[int] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """
    Write contact maps as ``.cool`` or ``.mcool``, cells as ``.h5ad`` or AnnData ``.zarr``.

    Of contact maps every bin, balancing vector and value is kept, with its type and attributes. A
    selection of bins is put into the whole genome, the rest of it empty. Zeros and NaN are no pixels.

    Of cells every variable is kept: `X` and others ``(cell, gene)`` as X and layers, sparse ones as CSR;
    those over one dimension more as `obsm` or `varm`; coordinates as columns of `obs` and `var`, with
    their categories; attributes in `uns`. What AnnData has no place for is told by a warning.

    Parameters
    ----------
    source : str, path-like or xarray.Dataset
        A store or a file, or an opened Dataset with whatever was selected or computed, such as
        predictions. It is read block by block.
    path : str or path-like
        File to make, or folder for ``.zarr``; its ending says which kind: ``.cool`` holds one
        resolution. It is not there before it is complete.
    variable : str, optional
        The map to write, or the variable that becomes X. Default: `count` or `X`; or `prediction`, or
        the only one over both dimensions.
    resolutions : sequence of int, optional
        Bin sizes to write, in bp. Those that the source lacks are summed from the coarsest one that
        divides them, without balancing vectors. Default: those of the source.
    overwrite : bool, optional
        Whether a file, or an AnnData folder, that is there already is replaced.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    Path
        The file or folder.

    Raises
    ------
    PlanError
        If a resolution is no multiple of one of the source, or one file cannot hold them.
    ReadError
        If the source is missing or damaged, the file exists, or the disk is full.
    SchemaError
        If the source is of another kind than the file, or does not fit into one.

    Examples
    --------
    >>> import tempfile, xloader as xl
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = xl.simulate.contacts(f"{folder}/a.mcool", resolutions=[20_000, 40_000])
    ...     path = export(source, f"{folder}/b.mcool", resolutions=[20_000, 80_000], progress=False)
    ...     xl.resolutions(path)
    [20000, 80000]
    """
    target = Path(os.fsdecode(path))
    kind = _kind(source)
    if target.suffix not in _FORMATS[kind]:
        (other,) = _FORMATS.keys() - {kind}
        msg = (
            f"cannot write {target.name!r}: the source holds {_HELD[kind]}, and xl.export writes them to what "
            f"ends in {' or '.join(_FORMATS[kind])}; {_HELD[other]} go to {' or '.join(_FORMATS[other])}"
        )
        raise SchemaError(msg)
    common: dict[str, Any] = {"overwrite": overwrite, "progress": progress}
    if kind == "contacts":
        return export_contacts(source, target, variable, resolutions, **common)
    if resolutions is not None:
        msg = "resolutions are about contact maps; leave them out for cells"
        raise PlanError(msg)
    ds = source if isinstance(source, xr.Dataset) else open_cells(source, chunks=None)
    return export_cells(ds, target, variable, **common)


def _kind(source: Any) -> str:
    """Say what is to be written."""
    if isinstance(source, xr.Dataset):
        found = schema.kind(source)
        if found not in _FORMATS:
            msg = (
                f"xl.export writes {' and '.join(_HELD.values())}; this Dataset has "
                f"{dict(source.sizes)}: rename its dimensions, or write it with ds.to_zarr"
            )
            raise SchemaError(msg)
        return found
    if not isinstance(source, str | os.PathLike):
        msg = f"cannot export a {type(source).__name__}; give a path or an opened Dataset"
        raise SchemaError(msg)
    return identify(source)[1]
