"""The main job: from files to trained networks, for both kinds of data, on a small computer."""

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from xloader import simulate
from xloader.demo.cells import run_cells
from xloader.demo.contacts import run_contacts
from xloader.demo.picture import demo_figure
from xloader.demo.training import Result


def run(
    out: Path,
    *,
    contacts: str | None = None,
    cells: str | None = None,
    contacts_options: dict[str, Any] | None = None,
    cells_options: dict[str, Any] | None = None,
) -> list[Result]:
    """
    Run both trainings, on simulated files where none are given, and write what they gave.

    Parameters
    ----------
    out : Path
        Folder for simulated files, stores, ``demo.png`` and ``predictions.zarr``.
    contacts, cells : str, optional
        The user's own files. If only one is given, only that training runs.
    contacts_options, cells_options : dict, optional
        Options of `run_contacts` and `run_cells`.

    Returns
    -------
    list of Result
        One per training.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = []
    if contacts is not None or cells is None:
        if contacts is None:
            tqdm.write(f"simulating a contact map: {out / 'simulated.mcool'}")
            path = simulate.contacts(out / "simulated.mcool", overwrite=True, progress=True)
        else:
            path = Path(contacts)
        results.append(run_contacts(path, out / "contacts.xloader", **(contacts_options or {})))
    if cells is not None or contacts is None:
        if cells is None:
            tqdm.write(f"simulating cells: {out / 'simulated.h5ad'}")
            path = simulate.cells(out / "simulated.h5ad", overwrite=True, progress=True)
        else:
            path = Path(cells)
        results.append(run_cells(path, out / "cells.xloader", **(cells_options or {})))
    _write_predictions(out / "predictions.zarr", results)
    demo_figure(out / "demo.png", {r.name: r.example for r in results})
    return results


def _write_predictions(path: Path, results: list[Result]) -> None:
    for k, result in enumerate(results):
        ds = result.predictions.copy()
        for name, variable in ds.variables.items():
            variable.attrs.pop("categories", None)
            if variable.dtype == object:
                ds[name] = ds[name].astype(np.dtypes.StringDType())
        kind = result.name.split(":", maxsplit=1)[0]
        ds.to_zarr(path, group=kind, mode="w" if k == 0 else "a", consolidated=False)
