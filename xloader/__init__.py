"""Labelled, fast and reproducible loading of contact matrices and single-cell arrays."""

__version__ = "0.1.0"
