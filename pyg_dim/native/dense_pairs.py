"""A kernel that finds the shortest images of all pairs of the sites of crystals."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from pyg_dim.native.library import call, library


def dense_pairs(
    pos: Tensor, cell: Tensor, ptr: Tensor, supercell: Tensor, least_gain: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of each site with every site of the supercell of its crystal, each over its shortest image.

    The pairs of a site are source-major: the images of the first site, then those of the second. Lengths are exact
    minima, whatever the cell (see :func:`pyg_dim.data.minimum_image.minimum_image`), calculated in float64; from i to j
    and back they are the same bit by bit, unless several images are equally near. One thread works: it is that of a
    loader, beside which the threads of a training step do.

    Args:
        pos: [N, 3] Cartesian positions, in angstrom, on the CPU.
        cell: [B, 3, 3] lattice vectors as rows, in angstrom.
        ptr: [B + 1] int64, first site of each crystal, then N.
        supercell: [B, 3, 3] int64, upper triangular: its vectors in those of the cell.
        least_gain: relative gain in squared length below which an image counts as no nearer.

    Returns:
        [2, E] int64 source and target, [E, 3] int64 lattice images of the sources, [E] float64 lengths in angstrom.

    Raises:
        ValueError: the vectors of a cell do not span a lattice, or shapes do not fit.
        NoKernelError: the kernel cannot be built here.
    """
    pos, cell = (values.detach().double().contiguous() for values in (pos, cell))
    ptr, supercell = ptr.contiguous(), supercell.contiguous()
    sites, crystals = pos.size(0), cell.size(0)
    # Numbers behind the end of a tensor would be read.
    if ptr.numel() != crystals + 1 or supercell.size(0) != crystals or ptr[[0, -1]].tolist() != [0, sites]:
        raise ValueError(f"ptr {ptr.tolist()} does not divide {sites} sites between {crystals} cells")
    images = supercell[:, 0, 0] * supercell[:, 1, 1] * supercell[:, 2, 2]
    pairs = int((ptr.diff().square() * images).sum())
    index, shift, length = ptr.new_empty(2, pairs), ptr.new_empty(pairs, 3), pos.new_empty(pairs)
    function = library("dense_pairs", torch.float64).dense_pairs
    function.restype = ctypes.c_int64
    gain = ctypes.c_double(least_gain)
    faulty = call(function, pos, cell, ptr, supercell, cell.size(0), gain, pairs, index, shift, length)
    if faulty >= 0:
        raise ValueError(f"the cell of crystal {faulty} of the batch spans no lattice: {cell[faulty].tolist()}")
    return index, shift, length
