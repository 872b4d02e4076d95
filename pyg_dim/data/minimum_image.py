"""Shortest distances in periodic crystals."""

from __future__ import annotations

import functools
from typing import Final

import torch
from torch import Tensor

GAIN: Final = 1e-9
"""Relative gain in squared length below which an image counts as no nearer, so that rounding starts no endless
exchange."""


@functools.cache
def _half_of_the_images(device: torch.device) -> Tensor:
    """[13, 3] float64: one of each pair n, -n of the 26 non-zero images in {-1, 0, 1}^3."""
    range_ = torch.arange(-1, 2, dtype=torch.float64, device=device)
    return torch.cartesian_prod(range_, range_, range_)[14:]


def minkowski_reduction(cell: Tensor) -> Tensor:
    """Basis of the shortest vectors of each lattice.

    Source: the greedy algorithm of Nguyen and Stehlé, ACM Trans. Algorithms 5, 46 (2009), for three dimensions.

    Args:
        cell: [B, 3, 3] float64, lattice vectors as rows, in angstrom.

    Returns:
        [B, 3, 3] int64 U of determinant ±1; the rows of ``U @ cell`` are the reduced vectors, shortest first.
    """
    change = torch.eye(3, dtype=torch.float64, device=cell.device).repeat(cell.shape[0], 1, 1)
    corners = torch.cartesian_prod(*[torch.arange(2, dtype=torch.float64, device=cell.device)] * 2)
    reduced = cell
    # Every step that is taken shortens a vector, and a lattice has finitely many shorter ones.
    while True:
        order = torch.linalg.vector_norm(reduced, dim=2).argsort(dim=1, stable=True).unsqueeze(2).expand(-1, -1, 3)
        change, reduced = change.gather(1, order), reduced.gather(1, order)
        a, b, c = reduced.unbind(1)
        aa, ab, bb, ac, bc = ((x * y).sum(1) for x, y in ((a, a), (a, b), (b, b), (a, c), (b, c)))
        # b is shortened by a; c by the nearest point of the lattice of a and b, one of the corners around its
        # projection.
        step = torch.zeros_like(change)
        step[:, 1, 0] = torch.round(ab / aa)
        determinant = aa * bb - ab * ab
        projection = torch.stack([ac * bb - bc * ab, bc * aa - ac * ab], dim=1) / determinant.unsqueeze(1)
        points = projection.floor().unsqueeze(1) + corners
        lengths = (c.unsqueeze(1) - points @ reduced[:, :2]).square().sum(2)
        step[:, 2, :2] = points[torch.arange(len(points), device=cell.device), lengths.argmin(1)]
        shorter = reduced - step @ reduced
        gain = shorter.square().sum(2) < (1 - GAIN) * reduced.square().sum(2)
        if not gain.any():
            return change.round().long()
        # One vector at a time: the step of c was found with the b of before.
        gain[:, 2] &= ~gain[:, 1]
        # Chosen, not multiplied: a step that is not taken may be infinite (b parallel to a).
        change = change - torch.where(gain.unsqueeze(2), step, 0.0) @ change
        reduced = change @ cell


def minimum_image(difference: Tensor, crystal: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Shortest of all periodic images of difference vectors.

    The lattices are Minkowski-reduced; the nearest lattice point of a vector wrapped into such a cell is among its 27
    neighbours, so the result is the exact minimum, whatever the cell.

    Args:
        difference: [E, 3] float64, Cartesian vectors in angstrom.
        crystal: [E] int64, crystal of each vector.
        cell: [B, 3, 3] float64, lattice vectors of the period as rows, in angstrom.

    Returns:
        Lengths [E] in angstrom, and shifts [E, 3] int64: the shortest image is ``difference + shift @ cell``.
    """
    change = minkowski_reduction(cell)
    reduced = change.double() @ cell
    images = _half_of_the_images(cell.device)
    basis = reduced[crystal]
    inverse = torch.linalg.inv(reduced)[crystal]
    wrap = -torch.round((difference.unsqueeze(1) @ inverse).squeeze(1))
    wrapped = difference + (wrap.unsqueeze(1) @ basis).squeeze(1)
    # |w + t|^2 - |w|^2 = |t|^2 ± 2 w.t for the images ±t
    overlap = (basis @ wrapped.unsqueeze(2)).squeeze(2) @ images.T
    lengths = (images @ reduced).square().sum(2)[crystal]
    gain, best = (lengths - 2 * overlap.abs()).min(dim=1)
    sign = -torch.sign(overlap.gather(1, best.unsqueeze(1)))
    nearer = gain < -GAIN * lengths.gather(1, best.unsqueeze(1)).squeeze(1)
    step = images[best] * sign * nearer.unsqueeze(1)
    shortest = wrapped + (step.unsqueeze(1) @ basis).squeeze(1)
    shift = ((wrap + step).unsqueeze(1) @ change.double()[crystal]).squeeze(1).long()
    return torch.linalg.vector_norm(shortest, dim=1), shift
