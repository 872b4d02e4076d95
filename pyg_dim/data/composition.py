"""Reduced formulas and chemical systems."""

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
    elements, counts = torch.unique(z.cpu(), return_counts=True)
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
    crystal, start, element, counts = _species(dataset)
    divisor = np.gcd.reduceat(counts, start)
    return _groups(crystal, start, np.stack([element, counts // divisor[crystal]], axis=1))


def chemical_system_groups(dataset: CrystalDataset) -> Tensor:
    """Number the distinct sets of elements of a data set.

    Args:
        dataset: n crystals.

    Returns:
        [n] int64: crystals of the same elements, whatever their ratio, share a number; numbers run from 0 without
        gaps.
    """
    crystal, start, element, _ = _species(dataset)
    return _groups(crystal, start, element[:, None])


def _species(dataset: CrystalDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Elements of all crystals, crystal by crystal: the crystal of each, the first of each crystal, element, count."""
    crystal = np.repeat(np.arange(len(dataset)), dataset.num_sites.numpy())
    # Sorted by crystal, then element: the entries of one crystal are adjacent.
    pairs, counts = np.unique(crystal * (MAX_Z + 1) + dataset.z.cpu().numpy(), return_counts=True)
    crystal, element = np.divmod(pairs, MAX_Z + 1)
    return crystal, np.flatnonzero(np.diff(crystal, prepend=-1)), element, counts


def _groups(crystal: np.ndarray, start: np.ndarray, species: np.ndarray) -> Tensor:
    entry = np.arange(len(crystal)) - start[crystal]
    # One row per crystal, padded with zeros.
    table = np.zeros((len(start), entry.max() + 1, species.shape[1]), dtype=np.int64)
    table[crystal, entry] = species
    _, group = np.unique(table.reshape(len(start), -1), axis=0, return_inverse=True)
    return torch.from_numpy(group.reshape(-1).astype(np.int64))
