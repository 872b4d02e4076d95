"""Neighbours in periodic crystals: all within a cutoff, or the nearest k."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from pyg_dim.data.minimum_image import minkowski_reduction

TIE: Final = 1e-9
"""Lengths that differ by less, in angstrom, are equal: rounding neither cuts a shell of neighbours at the cutoff in two
nor decides which of it come first. A neighbour at a distance below it is the site itself."""
_CANDIDATES: Final = 1 << 22
"""Candidates that are looked at in one go, at most (unless one site alone has more): they take about 100 bytes each."""
_FIRST_COUNT: Final = 1.2
"""How many times k neighbours the first sphere would hold if sites were spread evenly."""
_GROWTH: Final = 1.4
"""Factor by which spheres that hold too few neighbours grow."""


@dataclass(frozen=True)
class Neighbors:
    """Neighbours of sites, one row each.

    Attributes:
        source: [E] int64, neighbour j.
        target: [E] int64, site i.
        shift: [E, 3] int64, lattice image: the neighbour lies at ``pos[j] + shift @ cell``.
        distance: [E] float64, in angstrom.
    """

    source: Tensor
    target: Tensor
    shift: Tensor
    distance: Tensor

    def __getitem__(self, rows: Tensor) -> Neighbors:
        """Chosen rows, in the order given."""
        return Neighbors(self.source[rows], self.target[rows], self.shift[rows], self.distance[rows])


def neighbors_within(pos: Tensor, cell: Tensor, ptr: Tensor, cutoff: float) -> Neighbors:
    """All neighbours of every site within a cutoff, a site's own images among them.

    Exact for cells of every shape: lattices are Minkowski-reduced, and the images that can come near are counted, for
    each pair of sites, from the heights of the reduced cell.

    Args:
        pos: [N, 3] Cartesian positions in angstrom, inside the cell or not; computed with in float64.
        cell: [B, 3, 3] lattice vectors as rows, in angstrom.
        ptr: [B + 1] int64, first site of each crystal, then N.
        cutoff: largest distance, in angstrom.

    Returns:
        The :class:`Neighbors`, sorted by target, then by distance; those at equal distance (:data:`TIE`) by source.
    """
    sites = _Sites(pos, cell, ptr)
    targets = torch.arange(pos.size(0), device=pos.device)
    return _by_distance(sites.search(targets, torch.full_like(sites.crystal, cutoff, dtype=torch.float64)))


def nearest_neighbors(pos: Tensor, cell: Tensor, ptr: Tensor, k: int, cutoff: float) -> Neighbors:
    """The k nearest neighbours of every site within a cutoff; fewer where there are no more.

    Around each site a sphere is searched that would hold somewhat more than k neighbours at the mean density of its
    crystal; only where it holds fewer, larger ones are. The result is that of a search to the cutoff.

    Args:
        pos: [N, 3] Cartesian positions in angstrom, inside the cell or not; computed with in float64.
        cell: [B, 3, 3] lattice vectors as rows, in angstrom.
        ptr: [B + 1] int64, first site of each crystal, then N.
        k: number of neighbours.
        cutoff: largest distance, in angstrom.

    Returns:
        The :class:`Neighbors`, sorted as by :func:`neighbors_within`.
    """
    sites = _Sites(pos, cell, ptr)
    volume = cell.double().det().abs() / ptr.diff()
    radius = (volume * (0.75 / math.pi * _FIRST_COUNT * k)).pow(1 / 3).clamp(max=cutoff)[sites.crystal]
    targets = torch.arange(pos.size(0), device=pos.device)
    found = []
    while targets.numel():
        now = sites.search(targets, radius[targets])
        # Ties with the k-th neighbour are inside the sphere too.
        inside = now.distance < radius[now.target] - 2 * TIE
        count = torch.zeros_like(sites.crystal).index_add(0, now.target, inside.long())
        enough = (count >= k) | (radius >= cutoff)
        found.append(now[enough[now.target].nonzero()[:, 0]])
        targets = targets[~enough[targets]]
        radius = (radius * _GROWTH).clamp(max=cutoff)
    every = _by_distance(_join(found))
    return every[(target_places(every.target, pos.size(0)) < k).nonzero()[:, 0]]


def _join(parts: list[Neighbors]) -> Neighbors:
    if len(parts) == 1:
        return parts[0]
    return Neighbors(*(torch.cat([getattr(p, name) for p in parts]) for name in Neighbors.__dataclass_fields__))


def _by_distance(found: Neighbors) -> Neighbors:
    """Sorted by target, then distance; equal distances keep their order, which is that of the sources."""
    if not found.target.numel():
        return found
    length = (found.distance / TIE).round().long()
    return found[torch.sort(found.target * (length.max() + 1) + length, stable=True).indices]


def target_places(target: Tensor, num_sites: int) -> Tensor:
    """Place of each row among those of its target, from zero.

    Args:
        target: [E] int64, sorted.
        num_sites: number of sites N.

    Returns:
        [E] int64.
    """
    count = torch.bincount(target, minlength=num_sites)
    first = count.cumsum(0) - count
    return torch.arange(target.numel(), device=target.device) - first[target]


class _Sites:
    """Sites in reduced cells; coordinates are kept axis by axis, [3, N].

    Args: those of :func:`neighbors_within`.
    """

    def __init__(self, pos: Tensor, cell: Tensor, ptr: Tensor) -> None:
        self.ptr, self.num_sites = ptr, ptr.diff()
        self.crystal = torch.repeat_interleave(self.num_sites)
        self.change = minkowski_reduction(cell.double())
        self.cell = self.change.double() @ cell.double()
        inverse = torch.linalg.inv(self.cell)
        self.pos = pos.double().T.contiguous()
        self.fraction = (pos.double().unsqueeze(1) @ inverse[self.crystal]).squeeze(1).T.contiguous()
        # A plane of the lattice and the next one are 1 / |row of the reciprocal cell| apart.
        self.per_height = torch.linalg.vector_norm(inverse, dim=1).T.contiguous()

    def search(self, targets: Tensor, radius: Tensor) -> Neighbors:
        """All neighbours of some sites.

        Args:
            targets: [T] the sites.
            radius: [T] largest distance for each, in angstrom.

        Returns:
            The neighbours, ordered by target (as given), source and image.
        """
        crystal = self.crystal[targets]
        reach = (radius + TIE) * self.per_height[:, crystal] + TIE  # in fractions of the cell, [3, T]
        most = self.num_sites[crystal] * (2 * reach + 1).prod(0)
        return _join([self._search(targets[part], radius[part], reach[:, part]) for part in _parts(most, _CANDIDATES)])

    def _search(self, targets: Tensor, radius: Tensor, reach: Tensor) -> Neighbors:
        # Pairs of sites of one crystal, then the images of each that lie in a box around the sphere.
        crystal = self.crystal[targets]
        row, place = _ragged(self.num_sites[crystal])
        source = self.ptr[crystal][row] + place
        target = targets[row]
        difference = self.fraction[:, source] - self.fraction[:, target]
        reach = reach[:, row]
        low = torch.ceil(-reach - difference)
        count = (torch.floor(reach - difference) - low + 1).clamp(min=0)
        pair, place = _ragged(count.prod(0).long())
        count = count.long()
        n2, n12 = count[2], count[1] * count[2]
        n12, n2 = n12[pair], n2[pair]
        first, place = place // n12, place % n12
        image = low[:, pair] + torch.stack([first, place // n2, place % n2])
        cell = self.cell[crystal].flatten(1).T[:, row][:, pair]
        vector = (self.pos[:, source] - self.pos[:, target])[:, pair]
        for axis in range(3):
            vector = vector + image[axis] * cell[3 * axis : 3 * axis + 3]
        square = vector.square().sum(0)
        near = ((square <= (radius + TIE).square()[row][pair]) & (square > TIE * TIE)).nonzero()[:, 0]
        pair, image = pair[near], image[:, near]
        source, target = source[pair], target[pair]
        shift = (image.T.unsqueeze(1) @ self.change.double()[self.crystal[target]]).squeeze(1)
        return Neighbors(source, target, shift.round().long(), square[near].sqrt())


def _ragged(count: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of different length laid end to end: the row of each element, and its place there."""
    row = torch.repeat_interleave(count)
    first = count.cumsum(0) - count
    return row, torch.arange(row.numel(), device=count.device) - first[row]


def _parts(cost: Tensor, limit: int) -> Iterator[slice]:
    """Slices of consecutive elements whose costs add up to about a limit; an empty one where there is no element."""
    _, length = torch.unique_consecutive((cost.cumsum(0) / limit).long(), return_counts=True)
    start = 0
    for size in length.tolist() or [0]:
        yield slice(start, start + size)
        start += size
