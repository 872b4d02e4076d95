"""Fingerprints: numbers computed from crystals alone, which an encoder can learn to tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.magpie import magpie_features
from pyg_dim.data.radial import radial_fingerprint

_KINDS: Final[dict[str, Callable[[CrystalDataset], Tensor]]] = {
    "magpie": lambda dataset: magpie_features(dataset.z, dataset.ptr, dataset.amount),
    "radial": lambda dataset: radial_fingerprint(dataset.z, dataset.pos, dataset.cell, dataset.ptr),
}

FINGERPRINTS: Final = tuple(_KINDS)
"""Kinds of fingerprints: "magpie" of the composition, "radial" of the structure."""


def fingerprint_table(dataset: CrystalDataset, kinds: Sequence[str]) -> Tensor:
    """Fingerprints of all crystals of a data set.

    Args:
        dataset: n crystals.
        kinds: at least one of :data:`FINGERPRINTS`, each once: "magpie" (145 columns, see
            :func:`~pyg_dim.data.magpie.magpie_features`), "radial" (48, see
            :func:`~pyg_dim.data.radial.radial_fingerprint`).

    Returns:
        [n, F] float64 on the device of the data set, the columns of the kinds one after the other, in their own units.

    Raises:
        ValueError: an unknown kind, none, or one given twice; "radial" of formulas.
    """
    kinds = list(kinds)
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise ValueError(f"unknown fingerprint {unknown[0]!r}; known: {', '.join(FINGERPRINTS)}")
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"fingerprints are needed, each once, of {', '.join(FINGERPRINTS)}; got {kinds}")
    if dataset.amount is not None and "radial" in kinds:
        raise ValueError("formulas have no structure, and so no fingerprint 'radial': take 'magpie' alone")
    return torch.cat([_KINDS[kind](dataset) for kind in kinds], dim=1)
