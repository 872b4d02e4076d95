"""Training objectives: from an encoder and a batch to a dictionary of losses with a "total"."""

from pyg_dim.objectives.deep_infomax import DeepInfoMax
from pyg_dim.objectives.supervised import Supervised

__all__ = ["DeepInfoMax", "Supervised"]
