"""Properties that follow from a crystal itself: targets for the probe of data sets without labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.elements import element_property

DENSITY = "density"
ELECTRONEGATIVITY = "mean electronegativity"
PACKING = "packing fraction"

GRAM_PER_CM3 = 1.66053906892
"""One atomic mass unit per cubic angstrom, in g/cm3 (CODATA 2022)."""


def intrinsic_targets(dataset: CrystalDataset) -> dict[str, Tensor]:
    r"""Compute properties of crystals from their cell and the element table.

    - density, in g/cm3: :math:`\sum_i m_i / V`;
    - mean electronegativity, on Pauling's scale: the mean over the sites;
    - packing fraction, without unit: :math:`\sum_i \tfrac{4}{3} \pi r_i^3 / V` with the atomic radii of the table.
      It can pass 1 where atoms bond closer than these radii.

    Values that the table fills in (:mod:`pyg_dim.data.elements`) enter as they are there.

    Args:
        dataset: The crystals.

    Returns:
        The three properties by name, [crystals] float64 each; of formulas the mean electronegativity alone.
    """
    electronegativity = element_property("electronegativity", dataset.z)
    if dataset.amount is not None:
        amount = dataset.amount.double()
        mean = _sum_over_sites(dataset, amount * electronegativity) / _sum_over_sites(dataset, amount)
        return {ELECTRONEGATIVITY: mean}
    volume = torch.linalg.det(dataset.cell.double()).abs()
    mass = element_property("atomic_weight", dataset.z)
    spheres = 4 / 3 * math.pi * element_property("atomic_radius", dataset.z) ** 3
    return {
        DENSITY: GRAM_PER_CM3 * _sum_over_sites(dataset, mass) / volume,
        ELECTRONEGATIVITY: _sum_over_sites(dataset, electronegativity) / dataset.ptr.diff(),
        PACKING: _sum_over_sites(dataset, spheres) / volume,
    }


def crystal_of_site(dataset: CrystalDataset) -> Tensor:
    """Number the crystal of each site.

    Args:
        dataset: The crystals.

    Returns:
        [sites] int64.
    """
    return torch.repeat_interleave(torch.arange(len(dataset)), dataset.ptr.diff())


def _sum_over_sites(dataset: CrystalDataset, values: Tensor) -> Tensor:
    return torch.zeros(len(dataset), dtype=values.dtype).index_add_(0, crystal_of_site(dataset), values)
