"""Encoders that were trained on labels, had back with their heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from pyg_dim.models import Encoder
from pyg_dim.objectives.supervised import Supervised
from pyg_dim.training.checkpoints import SECTION, encoder_of
from pyg_dim.training.options import TrainOptions

_PREFIXES: Final = ("objective.", "objective.parts.supervised.")
"""Where head and normalisation lie in ``state_dict``: of the objective alone, and among others."""


def predictor_of(checkpoint: Mapping[str, Any], path: str | Path) -> tuple[Supervised, Encoder]:
    """Rebuild what a run with the objective ``supervised``, alone or among others, has learned.

    Args:
        checkpoint: contents of the file, from :func:`~pyg_dim.training.checkpoints.read_checkpoint`.
        path: the file, for messages.

    Returns:
        The objective on the CPU, in evaluation mode, whose ``predict`` gives labels in their units; and its encoder,
        with kernels on where they serve.

    Raises:
        ValueError: a run without labels, an encoder alone, or a damaged file; the message says what to do.
    """
    encoder = encoder_of(checkpoint, path)
    try:
        options = TrainOptions.from_dict(checkpoint[SECTION]["options"])
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} has options that this version does not know: {error}") from error
    if "supervised" not in options.objectives:
        raise ValueError(
            f"{path} has learned from crystals alone and predicts no label: train it on labels (pyg-dim train "
            "--objective supervised --init ...), or fit a ProbeRegressor on its vectors"
        )
    prefix = _PREFIXES[len(options.objectives) > 1]
    state = checkpoint["state_dict"]
    if f"{prefix}scale" not in state:
        raise ValueError(f"{path} holds the encoder alone, without what predicts labels: give a checkpoint of the run")
    try:
        # Without memory: how wide its layers are is the word of a file.
        with torch.device("meta"):
            predictor = Supervised(encoder, options.targets, options.loss, options.head_channels, head=options.head)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its options make no head: {str(error).splitlines()[0]}") from error
    wanted = {name: value for name, value in predictor.state_dict().items() if not name.startswith("encoder.")}
    for name, value in wanted.items():
        found = state.get(prefix + name)
        if found is None or found.shape != value.shape:
            there = "nothing" if found is None else f"numbers of the shape {[*found.shape]}"
            raise ValueError(
                f"{path} is damaged: {name!r} should have the shape {[*value.shape]}, and there is {there}"
            )
        if not found.isfinite().all():
            raise ValueError(f"{path}: {name!r} holds values that are no finite numbers")
    own = {name: state[prefix + name] for name in wanted}
    predictor.load_state_dict(own, strict=False, assign=True)
    return predictor.eval(), encoder
