"""Labelled, fast and reproducible loading of contact matrices and single-cell arrays."""

from xloader import transforms, windows
from xloader.loader import Loader

__version__ = "0.1.0"

__all__ = ["Loader", "transforms", "windows"]
