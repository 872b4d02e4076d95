"""Radial fingerprint: how the sites of a crystal, and what they are, lie around one another."""

from __future__ import annotations

import functools
import math
from typing import Final

import torch
from torch import Tensor

from pyg_dim.data.elements import element_property
from pyg_dim.data.neighbors import neighbors_within

RADIAL_CUTOFF: Final = 6.0
"""Largest distance of a pair, in angstrom."""
RADIAL_WIDTH: Final = 0.4
"""Spacing of the radii and standard deviation of the Gaussian around each, in angstrom."""
RADIAL_GRID: Final = tuple(round(1.2 + RADIAL_WIDTH * k, 1) for k in range(12))
"""Radii R from 1.2 to 5.6, in angstrom: from the bonds of hydrogen to one width before the cutoff."""
RADIAL_PROPERTIES: Final = {"electronegativity": (1.7, 0.7), "atomic_radius": (1.5, 0.5), "column": (8.0, 6.0)}
"""Property -> what is subtracted and divided by: mean and spread over the elements, roughly (Pauling scale, angstrom,
none). They are written down so that the fingerprint of a crystal does not depend on others."""

_PAIRS: Final = 1 << 17
"""Pairs that are looked at in one go, about: they take 0.5 kB each."""


def radial_fingerprint(z: Tensor, pos: Tensor, cell: Tensor, ptr: Tensor) -> Tensor:
    r"""Radial distribution functions weighted by atomic properties (AP-RDF), at twelve radii.

    .. math:: g_p(R) = \frac{1}{N \rho V(R)} \sum_{i, j} p_i p_j \, w_R(d_{ij}), \qquad
        w_R(d) = f(d) \exp\left( - \frac{(d - R)^2}{2 \sigma^2} \right), \qquad
        V(R) = \int 4 \pi r^2 w_R(r) \, dr

    The sum runs over the N sites i of a cell and their neighbours j in the whole crystal. The properties p are 1 and
    the standardised :data:`RADIAL_PROPERTIES`. Divided by the volume V of the shell and the number density rho of the
    crystal, g is a pure number: for p = 1 and sites that are spread evenly it is 1 at every R, whatever the density.
    (Linear models of phonon frequencies and formation energies are better with this division than without, and gain
    nothing from the density as a column of its own.) A pair fades out, f = cos^2, over the last :data:`RADIAL_WIDTH`
    before the cutoff (f = 1 below), so that the fingerprint is a continuous function of the positions.

    It depends neither on the choice of the cell nor on the orientation, the origin or the order of the sites.

    Args:
        z: [N] int64, atomic numbers.
        pos: [N, 3] float, Cartesian positions in angstrom; computed with in float64.
        cell: [n, 3, 3] float, lattice vectors as rows, in angstrom.
        ptr: [n + 1] int64, first site of each of n crystals, then N.

    Returns:
        [n, 48] float64 on the device of ``pos``: for each property, 1 first, all radii.

    Source: Fernandez, Trefiak, Woo, J. Phys. Chem. C 2013, 117, 14095 (the sum); division and fading are added
    here.
    """
    ptr = ptr.to(pos.device)
    weights = _weights(z).to(pos.device)
    sites = ptr.diff()
    density = sites / cell.double().det().abs()
    # As many as if the sites were spread evenly.
    pairs = sites * density * (4 / 3 * math.pi * RADIAL_CUTOFF**3)
    _, sizes = torch.unique_consecutive((pairs.cumsum(0) / _PAIRS).long(), return_counts=True)
    sums, start = [], 0
    for size in sizes.tolist():
        bounds = ptr[start : start + size + 1]
        part = slice(int(bounds[0]), int(bounds[-1]))
        sums.append(_sums(weights[part], pos[part], cell[start : start + size], bounds - bounds[0]))
        start += size
    return (torch.cat(sums) / (sites * density)[:, None, None] / _shells().to(pos.device)).flatten(1)


def _weights(z: Tensor) -> Tensor:
    """[N, 4] float64: 1 and the standardised properties of each site."""
    columns = [(element_property(name, z) - mean) / spread for name, (mean, spread) in RADIAL_PROPERTIES.items()]
    return torch.stack([torch.ones_like(columns[0]), *columns], dim=1)


def _fade(distance: Tensor) -> Tensor:
    return torch.cos(0.5 * math.pi * (1 - (RADIAL_CUTOFF - distance) / RADIAL_WIDTH).clamp(0, 1)).square()


def _gaussians(distance: Tensor) -> Tensor:
    """[P, 12] Gaussian around each radius."""
    unit = math.sqrt(2) * RADIAL_WIDTH
    radii = torch.tensor(RADIAL_GRID, dtype=torch.float64, device=distance.device)
    # In place: this is the largest tensor by far.
    return ((distance / unit)[:, None] - radii / unit).square_().neg_().exp_()


@functools.cache
def _shells() -> Tensor:
    """[12] float64: volume V of the shell around each radius, in angstrom^3."""
    r = torch.linspace(0, RADIAL_CUTOFF, 10_001, dtype=torch.float64)
    return torch.trapezoid((4 * math.pi * r.square() * _fade(r))[:, None] * _gaussians(r), r, dim=0)


def _sums(weights: Tensor, pos: Tensor, cell: Tensor, ptr: Tensor) -> Tensor:
    """[n, 4, 12] sums over all pairs of n crystals."""
    found = neighbors_within(pos, cell, ptr, RADIAL_CUTOFF)
    product = weights[found.target] * weights[found.source] * _fade(found.distance)[:, None]
    # Sorted by target: the pairs of a crystal are adjacent, and their sums one small product of matrices.
    lengths = torch.searchsorted(found.target, ptr).diff().tolist()
    parts = zip(product.split(lengths), _gaussians(found.distance).split(lengths), strict=True)
    return torch.stack([of_pairs.T @ near for of_pairs, near in parts])
