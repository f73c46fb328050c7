"""Labelled, fast and reproducible loading of contact matrices and single-cell arrays."""

import importlib
from typing import Any

from xloader import errors, simulate, transforms, windows
from xloader.convert import convert
from xloader.loader import Loader
from xloader.open import open_cells, open_contacts, resolutions

__version__ = "0.1.0"

__all__ = [
    "Loader",
    "convert",
    "errors",
    "open_cells",
    "open_contacts",
    "resolutions",
    "simulate",
    "transforms",
    "windows",
]


def __getattr__(name: str) -> Any:
    """Import `xloader.torch` when it is first used, so that importing xloader stays quick."""
    if name != "torch":
        msg = f"module 'xloader' has no attribute {name!r}; it has {__all__} and 'torch'"
        raise AttributeError(msg)
    try:
        return importlib.import_module("xloader.torch")
    except ModuleNotFoundError as e:
        if e.name != "torch":
            raise
        msg = "xloader.torch needs torch: pip install 'xloader[torch]' or conda install pytorch"
        raise ImportError(msg) from e
