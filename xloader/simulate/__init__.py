"""Realistic files to try things on: a contact map and a cell-by-gene array."""

from xloader.simulate.hic import contacts
from xloader.simulate.single_cell import cells

__all__ = ["cells", "contacts"]
