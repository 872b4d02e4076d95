"""Encoders that were trained on labels, had back with their heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pyg_dim.objectives.supervised import Supervised
from pyg_dim.training.checkpoints import SECTION, encoder_of
from pyg_dim.training.options import TrainOptions

_PREFIXES: Final = ("objective.", "objective.parts.supervised.")
"""Where head and normalisation lie in ``state_dict``: of the objective alone, and among others."""
_LAST_LAYERS: Final = {"hidden": "head.2.weight", "residual": "head.1.weight"}


def predictor_of(checkpoint: Mapping[str, Any], path: str | Path) -> Supervised:
    """Rebuild what a run with the objective ``supervised``, alone or among others, has learned.

    Args:
        checkpoint: contents of the file, from :func:`~pyg_dim.training.checkpoints.read_checkpoint`.
        path: the file, for messages.

    Returns:
        The objective on the CPU, in evaluation mode, with the kernels of its encoder on where they serve; its
        ``predict`` gives labels in their units.

    Raises:
        ValueError: a run without labels, an encoder alone, or a damaged file; the message says what to do.
    """
    state = checkpoint["state_dict"]
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}scale" in state), None)
    saved = checkpoint[SECTION]["options"]
    if prefix is None or "supervised" not in str(saved.get("objective")).split("+"):
        raise ValueError(
            f"{path} has learned from crystals alone and predicts no label: train it on labels (pyg-dim train "
            "--objective supervised --init ...), or fit a ProbeRegressor on its vectors"
        )
    encoder = encoder_of(checkpoint, path)
    try:
        options = TrainOptions.from_dict(saved)
        # Before layers of such a width are made.
        width = state[prefix + _LAST_LAYERS[options.head]].shape[-1]
        if width != options.head_channels:
            raise ValueError(f"its head is {width} wide, and its options say {options.head_channels}")
        predictor = Supervised(encoder, options.targets, options.loss, options.head_channels, head=options.head)
        predictor.to(next(encoder.parameters()).dtype)
        own = {name: state[prefix + name] for name in predictor.state_dict() if not name.startswith("encoder.")}
        predictor.load_state_dict(predictor.state_dict() | own)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its head cannot be rebuilt: {str(error).splitlines()[0]}") from error
    if broken := [name for name in own if not own[name].isfinite().all()]:
        raise ValueError(f"{path}: {broken[0]!r} holds values that are no finite numbers")
    return predictor.eval()
