"""The vectors that are compared: representations of encoders, and descriptors that need no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from pyg_dim import models
from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.loader import CrystalLoader
from pyg_dim.data.magpie import magpie_features
from pyg_dim.evaluate.baselines import descriptor_table
from pyg_dim.evaluate.represent import represent
from pyg_dim.models import Encoder
from pyg_dim.models.encoder import Readout
from pyg_dim.training.checkpoints import SECTION, load_encoder, load_encoder_state, read_checkpoint

MAGPIE = "magpie"
WITH_MAGPIE = "+magpie"
READOUT_NAMES = (*get_args(Readout), *(kind + WITH_MAGPIE for kind in get_args(Readout)))
"""Readouts, alone and with the Magpie vector appended."""


def untrained_encoder(checkpoint: str | Path, seed: int | None = None) -> Encoder:
    """Build the encoder of a run as it was before training, with the parameters that follow from its seed.

    Args:
        checkpoint: Checkpoint of the run, or another file of its encoder. Vectors of the elements that were read from a
            file are taken from it: they are given, not trained.
        seed: Another seed than that of the run; 0 where the file tells of no run.

    Returns:
        The encoder, in evaluation mode, with kernels on where they serve.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No checkpoint of a run.
    """
    contents = read_checkpoint(checkpoint)
    about = contents[SECTION]
    torch.manual_seed(int(about["options"].get("seed", 0)) if seed is None else seed)
    encoder = models.build(about["model"], **about["encoder"])
    initial = {name: value.clone() for name, value in encoder.state_dict().items()}
    if given := [name for name, value in encoder.named_buffers() if value.isnan().any()]:
        load_encoder_state(encoder, contents, checkpoint)
        encoder.load_state_dict(initial | {name: encoder.get_buffer(name) for name in given})
    encoder.set_kernels(True)
    return encoder.eval()


def readout_features(
    encoder: Encoder, dataset: CrystalDataset, rows: Tensor, readouts: Sequence[str], batch_sites: int = 1200
) -> dict[str, np.ndarray]:
    """Represent crystals by a frozen encoder, in one pass for all readouts.

    Args:
        encoder: The encoder.
        dataset: n crystals.
        rows: [m] rows to represent, ascending.
        readouts: Names out of :data:`READOUT_NAMES`.
        batch_sites: Sites in a batch.

    Returns:
        [n, D] float32 by readout, NaN in rows that were not asked for, so that rows are those of the data set.

    Raises:
        ValueError: An unknown readout.
    """
    if unknown := [name for name in readouts if name not in READOUT_NAMES]:
        raise ValueError(f"unknown readouts {unknown}; known: {', '.join(READOUT_NAMES)}")
    subset = dataset.subset(rows)
    full, _ = represent(encoder, CrystalLoader(subset, encoder.graph, batch_sites, shuffle=False, shard=False), "full")
    parts = {"full": full, "global": full[:, : encoder.channels]}
    if encoder.decoder is not None:
        with torch.no_grad():
            parts["decoded"] = encoder.decoder(parts["global"])
    found = {}
    for name in readouts:
        kind, _, appended = name.partition("+")
        encoder.require_readout(kind)
        vectors = parts[kind].numpy()
        if appended:
            vectors = np.concatenate([vectors, magpie_features(subset.z, subset.ptr, subset.amount).numpy()], axis=1)
        found[name] = spread(vectors, rows, len(dataset))
    return found


def checkpoint_features(
    checkpoint: str | Path, dataset: CrystalDataset, rows: Tensor, readouts: Sequence[str], trained: bool = True
) -> dict[str, np.ndarray]:
    """Represent crystals by the encoder of a checkpoint; see :func:`readout_features`.

    Args:
        checkpoint: Checkpoint of a run.
        dataset: n crystals.
        rows: [m] rows to represent, ascending.
        readouts: Names out of :data:`READOUT_NAMES`.
        trained: The encoder as it is; else as it was before training.

    Returns:
        [n, D] by readout.
    """
    return readout_features(
        load_encoder(checkpoint) if trained else untrained_encoder(checkpoint), dataset, rows, readouts
    )


def descriptor_features(
    name: str, dataset: CrystalDataset, rows: Tensor, cache: Path | None = None, workers: int = 1
) -> np.ndarray:
    """Descriptors of crystals; see :func:`pyg_dim.evaluate.baselines.descriptor_table`.

    Args:
        name: One of :data:`pyg_dim.evaluate.baselines.DESCRIPTORS`.
        dataset: n crystals.
        rows: [m] rows wanted, ascending.
        cache: File that they are kept in.
        workers: Processes.

    Returns:
        [n, D], NaN in rows that were not asked for or have none.
    """
    vectors, done = descriptor_table(name, dataset, rows, cache, workers)
    return spread(vectors.numpy(), done, len(dataset))


def spread(vectors: np.ndarray, rows: Tensor, num_rows: int) -> np.ndarray:
    """Put vectors into the rows of a data set.

    Args:
        vectors: [m, D].
        rows: [m] where they belong.
        num_rows: Rows n of the data set.

    Returns:
        [n, D] float32, NaN elsewhere.
    """
    # Larger numbers than float32 holds do not occur; half the memory, since processes share these files.
    everything = np.full((num_rows, vectors.shape[1]), np.nan, dtype=np.float32)
    everything[rows.numpy()] = vectors
    return everything
