"""Crystals on disk and in batches."""

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.graphs import DenseSupercell
from pyg_dim.data.load import load_dataset
from pyg_dim.data.loader import CrystalLoader
from pyg_dim.data.splits import split

__all__ = ["CrystalBatch", "CrystalDataset", "CrystalLoader", "DenseSupercell", "load_dataset", "split"]
