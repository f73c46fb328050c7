"""Where windows of several dimensions lie, and how to ask for those of contact maps."""

from xloader.windows.bins import Bins, ContactBins
from xloader.windows.drawing import boxes
from xloader.windows.lengths import to_bins
from xloader.windows.shapes import Shape, between, diagonal, grid, regions

__all__ = [
    "Bins",
    "ContactBins",
    "Shape",
    "between",
    "boxes",
    "diagonal",
    "grid",
    "regions",
    "to_bins",
]
