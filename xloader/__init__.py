"""Labelled, fast and reproducible loading of contact matrices and single-cell arrays into torch."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xloader import errors, orders, simulate, testing, transforms, windows
    from xloader import torch as torch
    from xloader.conversion import convert, convert_part, finalise
    from xloader.exporting import export
    from xloader.joined import concat
    from xloader.leakage import check_leakage
    from xloader.loader import Loader
    from xloader.open import open_cells, open_contacts, resolutions
    from xloader.predictions import PredictionWriter
    from xloader.summary import check_statistics, statistics
    from xloader.together import merge
    from xloader.tracks import open_track
    from xloader.variable_genes import highly_variable
    from xloader.verification import verify
    from xloader.views import split

__version__ = "0.1.0"

__all__ = [
    "Loader",
    "PredictionWriter",
    "check_leakage",
    "check_statistics",
    "concat",
    "convert",
    "convert_part",
    "errors",
    "export",
    "finalise",
    "highly_variable",
    "merge",
    "open_cells",
    "open_contacts",
    "open_track",
    "orders",
    "resolutions",
    "simulate",
    "split",
    "statistics",
    "testing",
    "transforms",
    "verify",
    "windows",
]

_FROM = {
    "Loader": "loader",
    "PredictionWriter": "predictions",
    "check_leakage": "leakage",
    "check_statistics": "summary",
    "concat": "joined",
    "convert": "conversion",
    "convert_part": "conversion",
    "export": "exporting",
    "finalise": "conversion",
    "highly_variable": "variable_genes",
    "merge": "together",
    "open_cells": "open",
    "open_contacts": "open",
    "open_track": "tracks",
    "resolutions": "open",
    "split": "views",
    "statistics": "summary",
    "verify": "verification",
}
"""Modules of the names that are not modules themselves."""


def __getattr__(name: str) -> Any:
    """Import what is used when it is first used: dask, numba and torch take longer than the rest."""
    if name not in (*__all__, "torch"):
        msg = f"module 'xloader' has no attribute {name!r}; it has {__all__} and 'torch'"
        raise AttributeError(msg)
    try:
        module = importlib.import_module(f"xloader.{_FROM.get(name, name)}")
    except ModuleNotFoundError as e:
        if name != "torch" or e.name != "torch":
            raise
        msg = "xloader.torch needs torch: pip install 'xloader[torch]' or conda install pytorch"
        raise ImportError(msg) from e
    importlib.import_module("xloader.accessor")
    value = getattr(module, name) if name in _FROM else module
    globals()[name] = value
    return value


if "xarray" in sys.modules:  # somebody has Datasets already
    importlib.import_module("xloader.accessor")


def __dir__() -> list[str]:
    return [*__all__, "torch", "__version__"]
