"""Neighbours in periodic crystals: all within a cutoff, or the nearest k."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from pyg_dim.data.minimum_image import minkowski_reduction

TIE: Final = 1e-5
"""Lengths that differ by less, in angstrom, are equal: positions in single precision neither cut a shell of neighbours
at the cutoff in two nor decide which of it come first. A neighbour at a distance below it is the site itself."""
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
        """Rows of the given numbers, in that order."""
        return Neighbors(*(value.index_select(0, rows) for value in vars(self).values()))


def neighbors_within(pos: Tensor, cell: Tensor, ptr: Tensor, cutoff: float, z: Tensor | None = None) -> Neighbors:
    """All neighbours of every site within a cutoff, a site's own images among them.

    Exact for cells of every shape: lattices are Minkowski-reduced, and the images that can come near are enumerated
    plane by plane, line by line and point by point, each time those alone that meet the sphere.

    Args:
        pos: [N, 3] Cartesian positions in angstrom, inside the cell or not; computed with in float64.
        cell: [B, 3, 3] lattice vectors as rows, in angstrom.
        ptr: [B + 1] int64, first site of each crystal, then N.
        cutoff: largest distance, in angstrom.
        z: [N] int64, atomic numbers, which decide the order of equally distant neighbours before their index does.

    Returns:
        The :class:`Neighbors`, sorted by target, then by distance; those at equal distance (each :data:`TIE` or less
        from the one before) by atomic number, source and image.
    """
    sites = _Sites(pos, cell, ptr, z)
    return sites.sort(sites.search_all(torch.full_like(cell[:, 0, 0], cutoff, dtype=torch.float64)))[0]


def nearest_neighbors(
    pos: Tensor,
    cell: Tensor,
    ptr: Tensor,
    k: int,
    cutoff: float,
    z: Tensor | None = None,
    ties: bool = False,
    symmetric: bool = False,
) -> Neighbors:
    """The k nearest neighbours of every site within a cutoff; fewer where there are no more.

    Around each site a sphere is searched that would hold somewhat more than k neighbours at the mean density of its
    crystal; only where it holds fewer, larger ones are. The result is that of a search to the cutoff.

    Args:
        pos: [N, 3] Cartesian positions in angstrom, inside the cell or not; computed with in float64.
        cell: [B, 3, 3] lattice vectors as rows, in angstrom.
        ptr: [B + 1] int64, first site of each crystal, then N.
        k: number of neighbours.
        cutoff: largest distance, in angstrom.
        z: [N] int64, atomic numbers, which decide between equally distant neighbours before their index does.
        ties: keep all neighbours that are as far as the k-th, so that no shell is cut.
        symmetric: add the way back to all that lack it, each once: i is a neighbour of j where j is one of i.

    Returns:
        The :class:`Neighbors`, sorted as by :func:`neighbors_within`.
    """
    sites = _Sites(pos, cell, ptr, z)
    volume = cell.double().det().abs() / ptr.diff()
    radius = (volume * (0.75 / math.pi * _FIRST_COUNT * k)).pow(1 / 3).clamp(max=cutoff)
    found = sites.search_all(radius)
    radius = radius[sites.crystal]
    targets = torch.arange(pos.size(0), device=pos.device)
    parts = []
    while True:
        found, shell = sites.sort(found)
        place = target_places(found.target, pos.size(0))
        kth = (place == k - 1).nonzero()[:, 0]
        # The shell of the k-th neighbour is whole if it ends well inside the sphere.
        last = torch.searchsorted(shell, shell[kth], right=True) - 1
        enough = radius >= cutoff
        enough[found.target[kth]] |= found.distance[last] < radius[found.target[kth]] - 2 * TIE
        keep = place < k
        if ties:
            keep.index_fill_(0, kth, True)
            in_kth_shell = torch.zeros_like(shell, dtype=torch.bool).index_fill(0, shell[kth], True)
            keep |= in_kth_shell[shell]
        parts.append(found[(keep & enough[found.target]).nonzero()[:, 0]])
        targets = targets[~enough[targets]]
        if not targets.numel():
            break
        radius = (radius * _GROWTH).clamp(max=cutoff)
        found = sites.search(targets, radius[targets])
    every = _join(parts)
    if symmetric:
        return sites.sort(sites.both_ways(every))[0]
    # Each part is sorted; a later one has the sites of larger spheres.
    return every if len(parts) == 1 else every[torch.sort(every.target, stable=True).indices]


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
    return torch.arange(target.numel(), device=target.device) - first.index_select(0, target)


def _join(parts: list[Neighbors]) -> Neighbors:
    if len(parts) == 1:
        return parts[0]
    return Neighbors(*(torch.cat([getattr(p, name) for p in parts]) for name in Neighbors.__dataclass_fields__))


class _Sites:
    """Sites in a frame of their own for each crystal, in which the reduced lattice is lower triangular.

    Numbers are kept axis by axis, [3, N], since a batch is searched by gathering single numbers.

    Args: those of :func:`neighbors_within`.
    """

    def __init__(self, pos: Tensor, cell: Tensor, ptr: Tensor, z: Tensor | None) -> None:
        self.ptr, self.num_sites = ptr, ptr.diff()
        self.crystal = torch.repeat_interleave(self.num_sites, output_size=pos.size(0))
        self.change = minkowski_reduction(cell.double())
        reduced = self.change.double() @ cell.double()
        lattice, frame = _triangular(reduced)
        self.lattice = lattice.permute(1, 2, 0).contiguous()  # [vector, axis, crystal]
        self.pos = (pos.double().unsqueeze(1) @ frame.mT[self.crystal]).squeeze(1).T.contiguous()
        # A plane of the lattice and the next one are 1 / |row of the reciprocal cell| apart.
        self.per_height = torch.linalg.vector_norm(torch.linalg.inv(reduced), dim=1).T
        self.rank = torch.arange(pos.size(0), device=pos.device)
        if z is not None:
            self.rank = torch.empty_like(self.rank).index_copy(0, torch.argsort(z, stable=True), self.rank)

    def search_all(self, radius: Tensor) -> Neighbors:
        """All neighbours of all sites, each pair of sites looked at once.

        Args:
            radius: [B] float64, largest distance for the sites of each crystal, in angstrom.

        Returns:
            The neighbours, in any order.
        """
        targets = torch.arange(self.crystal.numel(), device=radius.device)
        found = self._search(targets, radius[self.crystal], targets - self.ptr[self.crystal] + 1)
        # From the other end. Of a site and itself, both ends have been found.
        other = (found.source != found.target).nonzero()[:, 0]
        turned = found[other]
        return _join([found, Neighbors(turned.target, turned.source, -turned.shift, turned.distance)])

    def search(self, targets: Tensor, radius: Tensor) -> Neighbors:
        """All neighbours of some sites.

        Args:
            targets: [T] the sites.
            radius: [T] float64, largest distance for each, in angstrom.

        Returns:
            The neighbours, in any order.
        """
        return self._search(targets, radius, self.num_sites[self.crystal[targets]])

    def _search(self, targets: Tensor, radius: Tensor, sources: Tensor) -> Neighbors:
        """Neighbours of sites among the first so many of the same crystal, a part of the sites at a time."""
        a, b, c = (2 * radius * self.per_height[:, self.crystal[targets]] + 1).unbind(0)
        parts = _parts(sources * a * b * c, _CANDIDATES)
        return _join([self._search_part(targets[part], radius[part] + TIE, sources[part]) for part in parts])

    def _search_part(self, targets: Tensor, radius: Tensor, sources: Tensor) -> Neighbors:
        """Pairs of sites, then images: the planes that meet the sphere, the lines in them, the points on those."""
        row, place = _ragged(sources)
        target = targets.index_select(0, row)
        crystal = self.crystal.index_select(0, target)
        source = self.ptr.index_select(0, crystal) + place
        vector = [of.index_select(0, source) - of.index_select(0, target) for of in self.pos]
        most = radius.square().index_select(0, row)
        square = torch.zeros_like(most)  # of the components along the axes that are done
        pair = torch.arange(row.numel(), device=row.device)
        images: list[Tensor] = []
        for axis in (2, 1, 0):
            spacing = self.lattice[axis, axis].index_select(0, crystal)
            half = (most - square).clamp_(min=0).sqrt_()
            low = torch.ceil((-half - vector[axis]) / spacing)
            count = torch.floor((half - vector[axis]) / spacing) - low + 1
            row, place = _ragged(count.clamp(min=0).long())
            pair, crystal, most, square, low = (v.index_select(0, row) for v in (pair, crystal, most, square, low))
            image = low + place
            images = [image, *(of.index_select(0, row) for of in images)]
            vector = [
                torch.addcmul(vector[k].index_select(0, row), image, self.lattice[axis, k].index_select(0, crystal))
                for k in range(axis + 1)
            ]
            square = torch.addcmul(square, vector[axis], vector[axis])
        other = (square > TIE * TIE).nonzero()[:, 0]
        pair, crystal, square = (v.index_select(0, other) for v in (pair, crystal, square))
        image = torch.stack([of.index_select(0, other) for of in images], dim=1)
        shift = (image.unsqueeze(1) @ self.change.double().index_select(0, crystal)).squeeze(1).round().long()
        return Neighbors(source.index_select(0, pair), target.index_select(0, pair), shift, square.sqrt())

    def both_ways(self, found: Neighbors) -> Neighbors:
        """Neighbours and the ways back that are missing among them.

        Args:
            found: neighbours, none of them twice.

        Returns:
            The neighbours, in any order.
        """
        back = Neighbors(found.target, found.source, -found.shift, found.distance)
        reach = int(found.shift.abs().max()) if found.source.numel() else 0
        width, most = 2 * reach + 1, int(self.num_sites.max())

        def number(of: Neighbors) -> Tensor:
            a, b, c = (of.shift + reach).unbind(1)
            place = of.source - self.ptr[self.crystal[of.source]]
            return (((of.target * most + place) * width + a) * width + b) * width + c

        return _join([found, back[(~torch.isin(number(back), number(found))).nonzero()[:, 0]]])

    def sort(self, found: Neighbors) -> tuple[Neighbors, Tensor]:
        """Sort neighbours as :func:`neighbors_within` says.

        Args:
            found: E neighbours in any order.

        Returns:
            The same ones, sorted, and [E] int64, the number of the shell (one site's neighbours at one distance) that
            each lies in, from zero and ascending.
        """
        if not found.target.numel():
            return found, found.target
        # One number a neighbour: targets are further apart than distances reach, which leaves 1e-8 of accuracy.
        order = (found.target * (2 * found.distance.max() + 1) + found.distance).argsort()
        target, distance = found.target.index_select(0, order), found.distance.index_select(0, order)
        first = torch.ones_like(target, dtype=torch.bool)
        first[1:] = (target.diff() != 0) | (distance.diff() > TIE)
        shell = torch.empty_like(target).index_copy(0, order, first.cumsum(0) - 1)
        image = found.shift - found.shift.amin(0)
        width = image.amax(0) + 1
        order = ((image[:, 0] * width[1] + image[:, 1]) * width[2] + image[:, 2]).argsort()
        key = (shell * self.rank.numel() + self.rank.index_select(0, found.source)).index_select(0, order)
        order = order.index_select(0, key.argsort(stable=True))
        return found[order], shell.index_select(0, order)


def _triangular(cell: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, 3] lower triangular L and the orthonormal rows Q with ``cell = L @ Q``, both float64."""
    a, b, c = cell.unbind(1)
    x = a / torch.linalg.vector_norm(a, dim=1, keepdim=True)
    y = b - (b * x).sum(1, keepdim=True) * x
    y = y / torch.linalg.vector_norm(y, dim=1, keepdim=True)
    z = torch.linalg.cross(x, y)
    # To the side of the third vector, whatever hand the cell has.
    z = z * (c * z).sum(1, keepdim=True).sign()
    frame = torch.stack([x, y, z], dim=1)
    return (cell @ frame.mT).tril(), frame


def _ragged(count: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of different length laid end to end: the row of each element, and its place there."""
    row = torch.repeat_interleave(count)
    first = count.cumsum(0) - count
    return row, torch.arange(row.numel(), device=count.device) - first.index_select(0, row)


def _parts(cost: Tensor, limit: int) -> Iterator[slice]:
    """Slices of consecutive elements whose costs add up to about a limit; an empty one where there is no element."""
    filled = cost.cumsum(0)
    if not len(cost) or filled[-1] <= limit:
        yield slice(0, len(cost))
        return
    _, length = torch.unique_consecutive((filled / limit).long(), return_counts=True)
    start = 0
    for size in length.tolist():
        yield slice(start, start + size)
        start += size
