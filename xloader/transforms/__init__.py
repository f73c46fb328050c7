"""Functions from labelled batch to labelled batch; a user's own function is equal to them."""

from xloader.transforms.balancing import balance
from xloader.transforms.base import compose
from xloader.transforms.cells import binarise, normalize_total, select, standardise
from xloader.transforms.distance import mask_diagonals, observed_over_expected, zscore
from xloader.transforms.filters import adaptive_coarsegrain, interpolate, smooth
from xloader.transforms.masking import mask_genes
from xloader.transforms.shapes import coarsen, crop, flip, from_upper_triangle, upper_triangle
from xloader.transforms.stacking import stack
from xloader.transforms.thinning import thin
from xloader.transforms.values import clip, fill, log1p, scale

__all__ = [
    "adaptive_coarsegrain",
    "balance",
    "binarise",
    "clip",
    "coarsen",
    "compose",
    "crop",
    "fill",
    "flip",
    "from_upper_triangle",
    "interpolate",
    "log1p",
    "mask_diagonals",
    "mask_genes",
    "normalize_total",
    "observed_over_expected",
    "scale",
    "select",
    "smooth",
    "stack",
    "standardise",
    "thin",
    "upper_triangle",
    "zscore",
]
