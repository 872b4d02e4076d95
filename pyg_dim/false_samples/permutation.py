"""Permutation: the species of a crystal shuffled among its own sites; crystal levels only."""

from __future__ import annotations

from typing import Any

import torch

from pyg_dim.data.keys import AMOUNT, SPECIES_KEYS
from pyg_dim.false_samples.corruption import Corruption, Kind, random_order, relabel
from pyg_dim.false_samples.equality import environments, sites_occur
from pyg_dim.false_samples.formulas import formula_kind


def permutation(batch: Any, *, generator: torch.Generator | None = None) -> Corruption:
    """Shuffle the species of every crystal among its sites, the elements of a formula among its amounts.

    Composition and geometry stay, their combination does not: what is left to tell the sample by is which site holds
    what. An environment that the crystal has anyway, because the shuffle changed nothing or symmetry undoes it, is
    masked.

    Args:
        batch: crystal batch with its graph.
        generator: random numbers, on the device of the batch.

    Returns:
        The corruption, of one kind, for crystal levels.

    Source: Moran et al., Digital Discovery 2025, 4, 790, sec. 2.7 and fig. 5.
    """
    order = random_order(batch.batch, generator)
    if AMOUNT in batch:
        false = relabel(batch, order, [key for key in SPECIES_KEYS if key != AMOUNT])
        return Corruption(false, (formula_kind("permutation", batch, false, sites=False),))
    false = relabel(batch, order)
    occurs = sites_occur(
        batch, false.z, environments(batch, false.z), batch.batch, batch.z, environments(batch, batch.z)
    )
    crystals = torch.arange(batch.ptr.numel() - 1, device=batch.z.device)
    kind = Kind(
        "permutation",
        site_target=None,
        crystal_target=crystals,
        edge_species=None,
        keep_edges=None,
        keep_sites=~occurs,
    )
    return Corruption(false, (kind,))
