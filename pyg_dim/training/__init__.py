"""Training: the Lightning module, callbacks and checkpoints.

A run is started by :func:`pyg_dim.training.run.train`, which needs Lightning; what it leaves behind is read without it.
"""

from pyg_dim.training.checkpoints import load_encoder, read_checkpoint

__all__ = ["load_encoder", "read_checkpoint"]
