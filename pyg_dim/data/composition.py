"""Reduced formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyg_dim.data.elements import MAX_Z, element_property, symbols

if TYPE_CHECKING:
    from pyg_dim.data.dataset import CrystalDataset


def reduced_formula(z: Tensor) -> str:
    """Formula with the smallest whole numbers, elements by increasing electronegativity (ties: by atomic number).

    Args:
        z: [n] int64, atomic numbers of the sites.

    Returns:
        The formula, for example ``"SrTiO3"``. Groups of atoms are not bracketed.
    """
    elements, counts = torch.unique(z, return_counts=True)
    electronegativity = element_property("electronegativity", elements)
    order = torch.argsort(electronegativity, stable=True)
    divisor = np.gcd.reduce(counts.numpy())
    parts = zip(elements[order].tolist(), (counts[order] // divisor).tolist(), strict=True)
    return "".join(symbols()[element] + (str(count) if count > 1 else "") for element, count in parts)


def composition_groups(dataset: CrystalDataset) -> Tensor:
    """Number the distinct reduced compositions of a data set.

    Args:
        dataset: n crystals.

    Returns:
        [n] int64: crystals of the same reduced composition (polymorphs) share a number; numbers run from 0 without
        gaps.
    """
    crystal = np.repeat(np.arange(len(dataset)), dataset.num_sites.numpy())
    # Sorted by crystal, then element: the entries of one crystal are adjacent.
    pairs, counts = np.unique(crystal * (MAX_Z + 1) + dataset.z.numpy(), return_counts=True)
    crystal, element = np.divmod(pairs, MAX_Z + 1)
    start = np.flatnonzero(np.diff(crystal, prepend=-1))
    divisor = np.gcd.reduceat(counts, start)
    entry = np.arange(len(pairs)) - start[crystal]
    # One row per crystal, padded with zeros: element and share of each of its species.
    table = np.zeros((len(dataset), entry.max() + 1, 2), dtype=np.int64)
    table[crystal, entry] = np.stack([element, counts // divisor[crystal]], axis=1)
    _, group = np.unique(table.reshape(len(dataset), -1), axis=0, return_inverse=True)
    return torch.from_numpy(group.reshape(-1).astype(np.int64))
