"""Splits of a data set."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from pyg_dim.data.composition import composition_groups
from pyg_dim.data.dataset import CrystalDataset

_LOGGER = logging.getLogger(__name__)


def split(dataset: CrystalDataset, val_fraction: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random split in which all crystals of one reduced formula (polymorphs) are on the same side.

    Where all crystals have the same formula, they are split one by one, with a warning. A single crystal goes to
    training.

    Args:
        dataset: n crystals.
        val_fraction: share of crystals in the validation part; met to within the largest group.
        seed: seed of the choice.

    Returns:
        Rows of the training part (never empty) and of the validation part (empty for ``val_fraction=0`` or a single
        crystal), each in ascending order.

    Raises:
        ValueError: ``val_fraction`` is not in [0, 1), or the data set is empty.
    """
    n = len(dataset)
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must lie in [0, 1), not {val_fraction}")
    if n == 0:
        raise ValueError("the data set is empty: there is nothing to split")
    group = composition_groups(dataset).numpy()
    if group.max() == 0 and n > 1:
        _LOGGER.warning("all %d crystals have the formula %s: the split separates polymorphs", n, dataset.formula(0))
        group = np.arange(n)
    sizes = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(sizes))
    filled = np.concatenate([[0], np.cumsum(sizes[order])])
    chosen = int(np.abs(filled - val_fraction * n).argmin())
    if val_fraction > 0:
        chosen = max(chosen, 1)
    chosen = min(chosen, len(sizes) - 1)
    in_validation = np.isin(group, order[:chosen])
    return torch.from_numpy(np.flatnonzero(~in_validation)), torch.from_numpy(np.flatnonzero(in_validation))
