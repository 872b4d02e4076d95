"""Encoders, one architecture a file, and their registry."""

from __future__ import annotations

from typing import Any, Final

from pyg_dim.models.alignn import ALIGNN
from pyg_dim.models.cgcnn import CGCNN
from pyg_dim.models.cgcnn_checkpoint import load_cgcnn_checkpoint, load_crystal_twins_checkpoint
from pyg_dim.models.encoder import READOUTS, Encoder, Representation
from pyg_dim.models.megnet import MEGNet
from pyg_dim.models.megnet_checkpoint import load_megnet_checkpoint
from pyg_dim.models.roost import Roost
from pyg_dim.models.sitenet import SiteNet

MODELS: Final[dict[str, type[Encoder]]] = {cls.name: cls for cls in (ALIGNN, CGCNN, MEGNet, Roost, SiteNet)}
"""Encoders by name."""


def build(name: str, **config: Any) -> Encoder:
    """Make an encoder.

    Args:
        name: name of the architecture, a key of :data:`MODELS`.
        **config: arguments of its constructor.

    Returns:
        The encoder, with new parameters.

    Raises:
        ValueError: unknown name, or an argument that the architecture does not have.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    try:
        return MODELS[name](**config)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from error


__all__ = [
    "ALIGNN",
    "CGCNN",
    "MODELS",
    "READOUTS",
    "Encoder",
    "MEGNet",
    "Representation",
    "Roost",
    "SiteNet",
    "build",
    "load_cgcnn_checkpoint",
    "load_crystal_twins_checkpoint",
    "load_megnet_checkpoint",
]
