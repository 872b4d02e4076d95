"""Kernels for the classes of sites and edges that symmetry makes equal."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

from pyg_dim.native.library import call, library


def classes_of_equals(
    index: Tensor, length: Tensor, crystal: Tensor, species: Iterable[Tensor], tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Split sites by their species, then by the lengths and classes they meet, until no class falls apart.

    What is compared are the lengths and classes themselves, no sums of hashes. One thread works: it is that of a
    loader, beside which the threads of a training step do.

    Args:
        index: [2, E] int64 source and target of each edge, on the CPU.
        length: [E] float32 or float64.
        crystal: [N] int64, crystal of each site.
        species: [N, ...] tensors; sites of a class have the same in all their bits.
        tolerance: lengths of one crystal are equal where they differ by no more, each from the next.

    Returns:
        [N] int64 class of each site, the numbers of their members, [E] int64 class of each edge, the numbers of their
        members; all numbered by their first members. None where the edges are not sorted by target, the crystals do
        not stand one after the other, an edge leads from one to another, or numbers are not of these shapes and types.

    Raises:
        NoKernelError: the kernels cannot be built here.
    """
    sites, edges = crystal.numel(), length.numel()
    if index.shape != (2, edges) or not index.dtype == crystal.dtype == torch.int64:
        return None
    kind = torch.cat([values.reshape(sites, -1).contiguous().view(torch.uint8) for values in species], dim=1)
    (source, target), length, crystal = index.contiguous(), length.detach().contiguous(), crystal.contiguous()
    site_class, site_count, sizes = torch.empty_like(crystal), torch.empty_like(crystal), crystal.new_empty(2)
    edge_class, edge_count = torch.empty_like(source), torch.empty_like(source)
    fault = call(
        library("classes", length.dtype).classes, source, target, length, edges, crystal, kind, kind.size(1), sites,
        ctypes.c_double(tolerance), site_class, site_count, edge_class, edge_count, sizes,
    )  # fmt: skip
    if fault:
        return None
    of_sites, of_edges = sizes.tolist()
    # Copied, so that no batch carries the room for classes that are not there.
    return site_class, site_count[:of_sites].clone(), edge_class, edge_count[:of_edges].clone()


def pairs_of_classes(
    index: Tensor, length: Tensor, site_class: Tensor, site_count: Tensor, edge_class: Tensor, edge_count: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean lengths of classes of edges, and the pairs of classes of sites that they join.

    Args:
        index: [2, E] int64 source and target of each edge, on the CPU.
        length: [E] float32 or float64.
        site_class: [N] int64 class of each site.
        site_count: numbers of their members.
        edge_class: [E] int64 class of each edge.
        edge_count: [P] numbers of their members.

    Returns:
        [E] mean length of the class of each edge; [2, P] int64 source and target of each pair, sorted by target, then
        by source, then by class; [P] lengths; [P] int64 how many edges of a pair end at each site.

    Raises:
        NoKernelError: the kernels cannot be built here.
    """
    (source, target), length, pairs = index.contiguous(), length.detach().contiguous(), edge_count.numel()
    site_class, site_count, edge_class, edge_count = (
        values.contiguous() for values in (site_class, site_count, edge_class, edge_count)
    )
    snapped, pair_length = torch.empty_like(length), length.new_empty(pairs)
    pair_index, pair_count = index.new_empty(2, pairs), index.new_empty(pairs)
    call(
        library("classes", length.dtype).snap, source, target, length, length.numel(), site_class, site_count,
        site_count.numel(), edge_class, edge_count, pairs, snapped, pair_index, pair_length, pair_count,
    )  # fmt: skip
    return snapped, pair_index, pair_length, pair_count
