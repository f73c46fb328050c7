"""Functions from labelled batch to labelled batch; a user's own function is equal to them."""

from xloader.transforms.base import compose
from xloader.transforms.cells import normalize_total, select
from xloader.transforms.contacts import balance, thin
from xloader.transforms.values import clip, fill, log1p

__all__ = [
    "balance",
    "clip",
    "compose",
    "fill",
    "log1p",
    "normalize_total",
    "select",
    "thin",
]
