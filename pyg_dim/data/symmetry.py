"""Sites, edges and angles that the symmetry of a crystal makes equal: a network need compute one of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.keys import LINE_INDEX, SPECIES_KEYS
from pyg_dim.native import serves, usable
from pyg_dim.native.classes import classes_of_equals, pairs_of_classes

_FACTORS: Final = (0x1E3779B97F4A7C15, 0x27D4EB2F165667C5, 0x165667B19E3779F9)
"""Odd and without pattern: sums of products with them are equal for equal terms alone."""


class SymmetryClasses:
    """A graph with the classes of its sites, edges and angles that the symmetry of a crystal makes equal.

    Networks that know of classes compute one member of each, and count it as often as it occurs: the same numbers for
    less work.

    Args:
        graph: what adds the edges, or the :class:`~pyg_dim.data.GraphCache` of it; for a network over angles the
            :class:`~pyg_dim.data.LineGraph` around that.
        tolerance: lengths (in angstrom) and cosines of one crystal are equal where they differ by no more, see
            :func:`~pyg_dim.data.symmetry.find_equals`.
        snap: give the edges of a class one length and list the pairs of classes, see
            :func:`~pyg_dim.data.symmetry.snap_lengths`.

    Raises:
        ValueError: a negative tolerance.
    """

    def __init__(self, graph: Callable[[CrystalBatch], CrystalBatch], tolerance: float, snap: bool = False) -> None:
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be a difference of at least 0, not {tolerance}")
        self.graph, self.tolerance, self.snap = graph, tolerance, snap

    def __repr__(self) -> str:
        snap = ", snap=True" if self.snap else ""
        return f"{type(self).__name__}({self.graph!r}, tolerance={self.tolerance}{snap})"

    def __call__(self, batch: CrystalBatch) -> CrystalBatch:
        """Add edges and classes to a batch, or to one crystal.

        Args:
            batch: crystals with what the graph asks for; changed in place.

        Returns:
            The batch with the keys of the graph and those of :func:`~pyg_dim.data.symmetry.find_equals`, where lengths
            are snapped also those of :func:`~pyg_dim.data.symmetry.snap_lengths`, on its device.
        """
        batch = find_equals(self.graph(batch), self.tolerance)
        return snap_lengths(batch) if self.snap else batch


def find_equals(batch: CrystalBatch, tolerance: float) -> CrystalBatch:
    """Number the classes of sites, edges and pairs of edges that a network over the graph cannot tell apart.

    Classes start from all that is attached to the species of a site, the length of an edge and the cosine of a pair;
    they are split until all members of a class meet the same classes equally often: a site the edges that end there, an
    edge its two sites and, where there is a line graph, the pairs in which it is the second. Two sites that a symmetry
    operation of the crystal maps onto one another are in one class, and so are their edges. No class has members of two
    crystals. The classes hold for the species that the batch has: a batch with other species on the same geometry has
    other ones.

    Args:
        batch: crystals with z and, where known, oxidation and x, and the graph, with a line graph or without; changed
            in place.
        tolerance: lengths (in angstrom) and cosines of one crystal are equal where they differ by no more, each from
            the next.

    Returns:
        The batch with site_class [N], edge_class [E] and the numbers of members, site_count and edge_count; with a
        line graph also line_class [L] and line_count. Classes of sites and of edges are numbered by their first
        members.
    """
    source, target = batch.edge_index
    crystal = batch.batch if "batch" in batch else torch.zeros_like(batch.z)
    if LINE_INDEX not in batch and _served(batch.edge_dist):
        species = [batch[key] for key in SPECIES_KEYS if batch.get(key) is not None]
        found = classes_of_equals(batch.edge_index, batch.edge_dist, crystal, species, tolerance)
        if found is not None:
            batch.site_class, batch.site_count, batch.edge_class, batch.edge_count = found
            return batch
    of_edge = crystal.index_select(0, target)
    edge = _alike(of_edge, batch.edge_dist, tolerance)
    site = crystal
    for key in SPECIES_KEYS:
        if (values := batch.get(key)) is not None:
            site = _mixed(site, *values.view(len(site), -1).double().view(torch.int64).unbind(1))
    if has_angles := LINE_INDEX in batch:
        first, second = batch.line_index
        angle = _alike(of_edge.index_select(0, second), batch.line_cos, tolerance)
    known = -1
    # Each round splits classes or leaves all as they are. Without angles, those of sites decide on those of edges.
    while known != (known := _different(site) + (_different(edge) if has_angles else 0)):
        if has_angles:
            edge = _mixed(edge, site.index_select(0, source), site.index_select(0, target))
            edge = _mixed(edge, _sums(second, _mixed(edge.index_select(0, first), angle), edge))
        site = _mixed(site, _sums(target, _mixed(edge, site.index_select(0, source)), site))
    edge = _mixed(edge, site.index_select(0, source), site.index_select(0, target))
    batch.site_class, batch.site_count = _in_order(*_numbered(site))
    batch.edge_class, batch.edge_count = _in_order(*_numbered(edge))
    if has_angles:
        pair = _mixed(batch.edge_class.index_select(0, first), batch.edge_class.index_select(0, second), angle)
        batch.line_class, batch.line_count = _numbered(pair)
    return batch


def snap_lengths(batch: CrystalBatch) -> CrystalBatch:
    """Give the edges of a class their mean length, and list the pairs of classes of sites that the edges join.

    A network that computes every edge then sees exactly what one sees that computes every pair of classes once. Edges
    that are alone in their class keep their length.

    Args:
        batch: crystals with edges and their classes; changed in place.

    Returns:
        The batch with edge_dist [E] snapped, and pair_index [2, P], pair_dist [P] and pair_count [P]; pairs of the
        same two classes of sites are in the order of their classes of edges.
    """
    edge, site, count = batch.edge_class, batch.site_class, batch.edge_count
    length = batch.edge_dist
    if _served(length) and not length.requires_grad:
        found = pairs_of_classes(batch.edge_index, length, site, batch.site_count, edge, count)
        batch.edge_dist, batch.pair_index, batch.pair_dist, batch.pair_count = found
        return batch
    mean = torch.zeros(count.shape, dtype=torch.float64, device=length.device).index_add(0, edge, length.double())
    mean = (mean / count).to(length.dtype)
    batch.edge_dist = mean.index_select(0, edge)
    each = torch.arange(edge.numel(), device=edge.device)
    member = torch.zeros_like(count).scatter_reduce(0, edge, each, "amin", include_self=False)
    source, target = site[batch.edge_index.index_select(1, member)]
    order = (target * batch.site_count.numel() + source).argsort(stable=True)
    batch.pair_index = torch.stack([source, target]).index_select(1, order)
    batch.pair_dist = mean.index_select(0, order)
    batch.pair_count = (count // batch.site_count.index_select(0, target)).index_select(0, order)
    return batch


def _served(length: Tensor) -> bool:
    return usable(length.new_empty(0)) and serves("classes", length.dtype)


def _different(values: Tensor) -> int:
    return torch.unique(values).numel()


def _numbered(values: Tensor) -> tuple[Tensor, Tensor]:
    """Number of each value among the different ones, and how often each of those occurs."""
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    return place, count


def _in_order(place: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Classes numbered by their first members: those of one crystal stand together."""
    each = torch.arange(place.numel(), device=place.device)
    order = torch.zeros_like(count).scatter_reduce(0, place, each, "amin", include_self=False).argsort()
    number = torch.empty_like(order).index_copy(0, order, each[: order.numel()])
    return number.index_select(0, place), count.index_select(0, order)


def _alike(group: Tensor, values: Tensor, tolerance: float) -> Tensor:
    """[n] int64: numbers of a group that lie side by side within a tolerance get the same one."""
    # Sorted as integers, which takes a fraction of the time of numbers: those of the bits of floats have their order,
    # once the rest of the bits is turned round in negative ones.
    bits = values.double().view(torch.int64)
    order = (bits ^ ((bits >> 63) & torch.iinfo(torch.int64).max)).argsort()
    order = order.index_select(0, group.index_select(0, order).argsort(stable=True))
    group, values = group.index_select(0, order), values.index_select(0, order)
    new = torch.zeros_like(group)
    new[1:] = (group.diff() != 0) | (values.diff() > tolerance)
    return torch.empty_like(new).index_copy(0, order, new.cumsum(0))


def _mixed(*columns: Tensor) -> Tensor:
    """One number of each row of integers; products that overflow wrap around, as they should."""
    total = torch.zeros_like(columns[0])
    for column in columns:
        for factor in _FACTORS[:2]:
            total ^= column
            total *= factor
            total ^= total >> 29
    return total.mul_(_FACTORS[2])


def _sums(index: Tensor, terms: Tensor, like: Tensor) -> Tensor:
    """Sums over the members of sets; equal for equal sets, whatever their order."""
    return torch.zeros_like(like).index_add(0, index, terms)
