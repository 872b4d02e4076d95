"""Training objectives: from an encoder and a batch to a dictionary of losses with a "total"."""

from pyg_dim.objectives.barlow_twins import BarlowTwins
from pyg_dim.objectives.combined import Combined
from pyg_dim.objectives.deep_infomax import DeepInfoMax
from pyg_dim.objectives.distillation import Distillation
from pyg_dim.objectives.fingerprint import Fingerprint
from pyg_dim.objectives.supervised import Supervised

__all__ = ["BarlowTwins", "Combined", "DeepInfoMax", "Distillation", "Fingerprint", "Supervised"]
