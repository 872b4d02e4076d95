"""Reduced formulas and chemical systems."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyg_dim.data.elements import MAX_Z, element_property, symbols
from pyg_dim.data.formula import formula_text

if TYPE_CHECKING:
    from pyg_dim.data.dataset import CrystalDataset


_FRACTION_STEPS = 10**6
"""Fractions are compared in so many parts: amounts may be in single precision."""


def reduced_formula(z: Tensor, amount: Tensor | None = None) -> str:
    """Formula with the smallest whole numbers, elements by increasing electronegativity (ties: by atomic number).

    Args:
        z: [n] int64, atomic numbers of the sites.
        amount: [n] how much of its element each site stands for; 1 each where None.

    Returns:
        The formula, for example ``"SrTiO3"``. Groups of atoms are not bracketed. Amounts that are no whole numbers are
        given as they are.
    """
    elements, place = torch.unique(z.cpu(), return_inverse=True)
    amount = torch.ones(place.shape) if amount is None else amount.cpu()
    counts = torch.zeros(elements.shape, dtype=torch.float64).index_add(0, place, amount.double())
    electronegativity = element_property("electronegativity", elements)
    order = torch.argsort(electronegativity, stable=True)
    whole = counts.round()
    if counts.equal(whole):
        counts = counts / float(np.gcd.reduce(whole.long().numpy()))
    parts = zip(elements[order].tolist(), counts[order].tolist(), strict=True)
    return formula_text({symbols()[element]: count for element, count in parts})


def element_fractions(z: Tensor, ptr: Tensor, amount: Tensor | None = None) -> Tensor:
    """Shares of the elements in crystals or formulas: the composition itself, as a vector.

    Args:
        z: [N] int64, atomic numbers of the sites of n crystals, one crystal after the other.
        ptr: [n + 1] int64, first site of each crystal, then N.
        amount: [N] how much of its element each site stands for; 1 each where None.

    Returns:
        [n, 103] float64, column k of the element with atomic number k + 1; each row adds up to 1.
    """
    crystal = torch.repeat_interleave(torch.arange(len(ptr) - 1), ptr.diff())
    amounts = torch.ones(z.shape, dtype=torch.float64) if amount is None else amount.double()
    totals = torch.zeros(len(ptr) - 1, MAX_Z, dtype=torch.float64).index_put_((crystal, z - 1), amounts, True)
    return totals / totals.sum(dim=1, keepdim=True)


def composition_groups(dataset: CrystalDataset) -> Tensor:
    """Number the distinct reduced compositions of a data set.

    Args:
        dataset: n crystals.

    Returns:
        [n] int64: crystals of the same reduced composition (polymorphs) share a number; numbers run from 0 without
        gaps.
    """
    crystal, start, element, counts = _species(dataset)
    if dataset.amount is None:
        share = counts // np.gcd.reduceat(counts, start)[crystal]
    else:
        # Amounts need not be whole; a formula is the same whatever it is multiplied by.
        share = np.rint(counts / np.add.reduceat(counts, start)[crystal] * _FRACTION_STEPS).astype(np.int64)
    return _groups(crystal, start, np.stack([element, share], axis=1))


def composition_keys(dataset: CrystalDataset) -> list[bytes]:
    """What is equal where reduced compositions are, across data sets.

    Args:
        dataset: n crystals or formulas.

    Returns:
        One key for each; shares of elements are compared to a millionth.
    """
    _, start, element, counts = _species(dataset)
    total = np.add.reduceat(counts, start).repeat(np.diff(start, append=len(counts)))
    table = np.stack([element, np.rint(counts / total * _FRACTION_STEPS).astype(np.int64)], axis=1)
    return [part.tobytes() for part in np.split(table, start[1:])]


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
    """Elements of all crystals, crystal by crystal: the crystal of each, the first of each crystal, element, amount."""
    crystal = np.repeat(np.arange(len(dataset)), dataset.num_sites.numpy())
    # Sorted by crystal, then element: the entries of one crystal are adjacent.
    pairs, place, counts = np.unique(
        crystal * (MAX_Z + 1) + dataset.z.cpu().numpy(), return_inverse=True, return_counts=True
    )
    if dataset.amount is not None:
        counts = np.bincount(place, weights=dataset.amount.cpu().double().numpy())
    crystal, element = np.divmod(pairs, MAX_Z + 1)
    return crystal, np.flatnonzero(np.diff(crystal, prepend=-1)), element, counts


def _groups(crystal: np.ndarray, start: np.ndarray, species: np.ndarray) -> Tensor:
    entry = np.arange(len(crystal)) - start[crystal]
    # One row per crystal, padded with zeros.
    table = np.zeros((len(start), entry.max() + 1, species.shape[1]), dtype=np.int64)
    table[crystal, entry] = species
    _, group = np.unique(table.reshape(len(start), -1), axis=0, return_inverse=True)
    return torch.from_numpy(group.reshape(-1).astype(np.int64))
