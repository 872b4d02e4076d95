"""Roughly cubic supercells and minimum-image distances in them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

MAX_SITES: Final = 50
"""Default limit on the sites of a crystal and of its supercell (Moran et al. 2025)."""

TIE: Final = 1e-5
"""Relative difference below which two lengths count as equal, so that rounding in a rotated cell cannot change a
choice."""


def nearly_cubic(cell: Tensor, num_sites: Tensor, max_sites: int) -> Tensor:
    r"""Supercell of each crystal that is close to a cube and has at most ``max_sites`` sites.

    Site-Net's rule (Moran et al., Digital Discovery 2023, 2, 1297): with the lattice in triangular form :math:`L = R Q`
    (rows are lattice vectors, R upper triangular with positive diagonal, Q orthogonal), the shortest of the edges
    :math:`n_k R_{kk}` gets one more repetition until the next one would exceed ``max_sites``; whole primitive vectors
    are then subtracted from each vector so that the off-diagonal components are at most half of :math:`R_{kk}`.
    Equal lengths are told apart by the order of the vectors, see :data:`TIE`. A crystal with more than ``max_sites``
    sites is its own supercell.

    Args:
        cell: [B, 3, 3] float, lattice vectors as rows, in angstrom.
        num_sites: [B] int64, sites of each primitive cell.
        max_sites: largest number of sites of a supercell.

    Returns:
        [B, 3, 3] int64, upper triangular: row k holds the k-th vector of the supercell in primitive vectors.
        The determinant (product of the diagonal) is the number of images.
    """
    triangle = _triangular_form(cell)
    repeats = _repeats(torch.diagonal(triangle, dim1=1, dim2=2), num_sites, max_sites)
    return _shear(triangle, repeats)


def _triangular_form(cell: Tensor) -> Tensor:
    """[B, 3, 3] float64 upper triangular R of L = R Q, from lengths and angles alone."""
    a, b, c = cell.double().unbind(1)
    third = torch.linalg.vector_norm(c, dim=1)
    normal = torch.linalg.cross(b, c)
    area = torch.linalg.vector_norm(normal, dim=1)
    # The direction of the second row of Q: in the plane of b and c, perpendicular to c.
    in_plane = torch.linalg.cross(c, normal) / (third * area).unsqueeze(1)
    triangle = torch.zeros_like(cell, dtype=torch.float64)
    triangle[:, 0, 0] = (a * normal).sum(1).abs() / area
    triangle[:, 0, 1] = (a * in_plane).sum(1)
    triangle[:, 0, 2] = (a * c).sum(1) / third
    triangle[:, 1, 1] = area / third
    triangle[:, 1, 2] = (b * c).sum(1) / third
    triangle[:, 2, 2] = third
    return triangle


def _repeats(edges: Tensor, num_sites: Tensor, max_sites: int) -> Tensor:
    """[B, 3] int64 repetitions of each edge.

    Repeating the shortest edge again and again visits the lengths n * edge of all three edges in ascending order, so
    the loop is one sort.
    """
    n = torch.arange(1, max_sites + 1, device=edges.device)
    preference = 1 + TIE * torch.arange(3, device=edges.device)
    lengths = (edges * preference).unsqueeze(2) * n
    # No more steps than that can be taken: each adds an image at least.
    order = lengths.flatten(1).argsort(dim=1)[:, :max_sites] // max_sites
    repeats = 1 + torch.nn.functional.one_hot(order, 3).cumsum(1)
    steps = ((repeats.prod(2) * num_sites.unsqueeze(1)) <= max_sites).long().cumprod(1).sum(1)
    repeats = torch.cat([torch.ones_like(repeats[:, :1]), repeats], dim=1)
    return repeats.gather(1, steps.view(-1, 1, 1).expand(-1, 1, 3)).squeeze(1)


def _nearest(ratio: Tensor) -> Tensor:
    """Nearest whole number; halves go down, within the tolerance."""
    return torch.ceil(ratio - 0.5 - TIE)


def _shear(triangle: Tensor, repeats: Tensor) -> Tensor:
    r01, r02, r12 = triangle[:, 0, 1], triangle[:, 0, 2], triangle[:, 1, 2]
    _, r11, r22 = torch.diagonal(triangle, dim1=1, dim2=2).unbind(1)
    n0, n1, n2 = repeats.unbind(1)
    s12 = -_nearest(n1 * r12 / r22)
    s01 = -_nearest(n0 * r01 / r11)
    s02 = -_nearest((n0 * r02 + s01 * r12) / r22)
    zero = torch.zeros_like(n0)
    rows = [n0, s01, s02, zero, n1, s12, zero, zero, n2]
    return torch.stack([row.long() for row in rows], dim=1).view(-1, 3, 3)
