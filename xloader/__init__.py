"""Labelled, fast and reproducible loading of contact matrices and single-cell arrays."""

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
