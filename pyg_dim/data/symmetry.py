"""Sites, edges and angles that the symmetry of a crystal makes equal: a network need compute one of each."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.keys import CLASS_COUNTS

_FACTORS: Final = (0x1E3779B97F4A7C15, 0x27D4EB2F165667C5, 0x165667B19E3779F9)
"""Odd and without pattern: sums of products with them are equal for equal terms alone."""


def find_equals(batch: CrystalBatch, tolerance: float) -> CrystalBatch:
    """Number the classes of sites, edges and pairs of edges that a network over the line graph cannot tell apart.

    Classes start from the species of a site, the length of an edge and the cosine of a pair; they are split until
    all members of a class meet the same classes equally often. Two sites that a symmetry operation of the crystal maps
    onto one another are in one class, and so are their edges. The classes hold for the species that the batch has: a
    batch with other species on the same geometry has other ones.

    Args:
        batch: crystals with z and, where known, oxidation, and both graphs; changed in place.
        tolerance: lengths (in angstrom) and cosines of one crystal are equal where they differ by no more, each from
            the next.

    Returns:
        The batch with site_class [N], edge_class [E], line_class [L] and the numbers of members, site_count, edge_count
        and line_count.
    """
    (source, target), (first, second) = batch.edge_index, batch.line_index
    crystal = batch.batch if "batch" in batch else torch.zeros_like(batch.z)
    of_edge = crystal.index_select(0, target)
    length = _alike(of_edge, batch.edge_dist, tolerance)
    angle = _alike(of_edge.index_select(0, second), batch.line_cos, tolerance)
    site = _mixed(crystal, batch.z)
    if (oxidation := batch.get("oxidation")) is not None:
        site = _mixed(site, oxidation.double().view(torch.int64))
    edge, number = length, -1
    while True:
        edge = _mixed(edge, site.index_select(0, source), site.index_select(0, target))
        edge = _mixed(edge, _sums(second, _mixed(edge.index_select(0, first), angle), edge))
        site = _mixed(site, _sums(target, _mixed(edge), site))
        site_class, site_count = _numbered(site)
        edge_class, edge_count = _numbered(edge)
        # Each round splits classes or leaves all as they are.
        if number == (number := site_count.numel() + edge_count.numel()):
            break
    pair = _mixed(edge_class.index_select(0, first), edge_class.index_select(0, second), angle)
    batch.site_class, batch.site_count = site_class, site_count
    batch.edge_class, batch.edge_count = edge_class, edge_count
    batch.line_class, batch.line_count = _numbered(pair)
    return batch


def forget_equals(batch: CrystalBatch) -> None:
    """Take the classes away from a batch that they no longer hold for.

    Args:
        batch: crystals with classes or without; changed in place.
    """
    for key in (*CLASS_COUNTS, *CLASS_COUNTS.values()):
        if key in batch:
            del batch[key]


def _numbered(values: Tensor) -> tuple[Tensor, Tensor]:
    """Number of each value among the different ones, and how often each of those occurs."""
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    return place, count


def _alike(group: Tensor, values: Tensor, tolerance: float) -> Tensor:
    """[n] int64: numbers of a group that lie side by side within a tolerance get the same one."""
    order = values.argsort()
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
            total = (total ^ column) * factor
            total = total ^ (total >> 29)
    return total * _FACTORS[2]


def _sums(index: Tensor, terms: Tensor, like: Tensor) -> Tensor:
    """Sums over the members of sets; equal for equal sets, whatever their order."""
    return torch.zeros_like(like).index_add(0, index, terms)
