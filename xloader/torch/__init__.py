"""Torch datasets over a Loader; the only package of the library proper that imports torch."""

from xloader.torch.batches import Tensors, to_device
from xloader.torch.datasets import IterableDataset, MapDataset
from xloader.torch.loaders import BlockSampler, DataLoader, best_workers, make_loader
from xloader.torch.tensors import collate, to_tensors

__all__ = [
    "BlockSampler",
    "DataLoader",
    "IterableDataset",
    "MapDataset",
    "Tensors",
    "best_workers",
    "collate",
    "make_loader",
    "to_device",
    "to_tensors",
]
