"""Training: the Lightning module, callbacks and checkpoints.

A run is started by :func:`pyg_dim.training.run.train`, which needs Lightning; what it leaves behind is read without it.
"""

from pyg_dim.training.checkpoints import load_encoder, read_checkpoint
from pyg_dim.training.exporting import export, push_to_hub

__all__ = ["export", "load_encoder", "push_to_hub", "read_checkpoint"]
