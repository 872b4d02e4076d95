"""Kernels that find the false samples that are true by chance."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from pyg_dim.native.library import call, library, threads
from pyg_dim.native.pair_rows import PairRows


def edges_occur(
    rows: PairRows, length: Tensor, target: Tensor, species: Tensor, true_species: Tensor, tolerance: float
) -> Tensor:
    """Whether a false (species, length) pair occurs among the true pairs of the site it is scored against.

    Args:
        rows: the pairs.
        length: [E] length of each, in angstrom.
        target: [N] int64, site that the pairs of each site are scored against.
        species: [N] int64, false atomic numbers.
        true_species: [N] int64.
        tolerance: lengths nearer than this are equal, in angstrom.

    Returns:
        [E] bool.
    """
    length = length.detach().contiguous()
    out = torch.empty_like(length, dtype=torch.bool)
    call(
        library("occurs", length.dtype).edges_occur,
        *(out, rows.first, target.numel(), rows.longest, _integers(target), rows.source, length),
        *(_integers(species), _integers(true_species), ctypes.c_double(tolerance), threads()),
    )
    return out


def environments(rows: PairRows, length: Tensor, label: Tensor) -> Tensor:
    """Sums of label / (1 + length) over the pairs of each site.

    Args:
        rows: the pairs.
        length: [E] length of each, in angstrom.
        label: [N, K] float64 numbers of the sources.

    Returns:
        [N, K] float64 sums.
    """
    length, label = length.detach().contiguous(), label.contiguous()
    out = torch.empty_like(label)
    call(
        library("occurs", length.dtype).environments,
        *(out, rows.first, label.size(0), rows.source, length, label, label.size(1), threads()),
    )
    return out


def sites_occur(
    crystal: Tensor,
    ptr: Tensor,
    species: Tensor,
    values: Tensor,
    true_species: Tensor,
    true_values: Tensor,
    tolerance: float,
) -> Tensor:
    """Whether a site of the crystal that a site is scored against has its species and its numbers.

    Args:
        crystal: [N] int64, crystal that each site is scored against.
        ptr: [B + 1] int64, first site of each crystal.
        species: [N] int64, false atomic numbers.
        values: [N, K] float64, false fingerprints.
        true_species: [N] int64.
        true_values: [N, K] float64.
        tolerance: numbers nearer than this are equal.

    Returns:
        [N] bool.
    """
    out = species.new_empty(species.shape, dtype=torch.bool)
    # The type of the numbers is float64 whatever the library's.
    call(
        library("occurs", torch.float32).sites_occur,
        *(out, species.numel(), _integers(crystal), _integers(ptr), _integers(species), values.contiguous()),
        *(_integers(true_species), true_values.contiguous(), values.size(1), ctypes.c_double(tolerance), threads()),
    )
    return out


def _integers(values: Tensor) -> Tensor:
    return values.to(torch.int64).contiguous()
