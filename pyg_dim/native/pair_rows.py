"""Pairs of sites in rows: where each row begins, and which different lengths occur."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyg_dim.data.keys import EDGE_DIST, EDGE_INDEX
from pyg_dim.native import usable
from pyg_dim.native.library import library, pointer


@dataclass(frozen=True, eq=False)
class PairRows:
    """Pairs sorted by target, as the kernels read them.

    Attributes:
        source: [E] int64 site j of each pair.
        first: [N + 1] int64, first pair of each site.
        block: [blocks + 1] int64, first site of each block of sites that no pair leads out of.
        place: [E] int32, number of the length of each pair among the different ones of its block; empty without
            lengths.
        member: [D] int64, a pair of each length; empty without.
        blocks: number of blocks.
        longest: pairs of the site that has most.
    """

    source: Tensor
    first: Tensor
    block: Tensor
    place: Tensor
    member: Tensor
    blocks: int
    longest: int


def pair_rows(source: Tensor, target: Tensor, sites: int, length: Tensor | None = None) -> PairRows:
    """Find the rows of pairs. Lengths are the same where all their bits are.

    Args:
        source: [E] int64 site j of each pair, on the CPU.
        target: [E] int64 site i of each pair, sorted.
        sites: number of sites N.
        length: [E] float32 or float64; None where they do not matter.

    Returns:
        The :class:`PairRows`.

    Raises:
        ValueError: the pairs are not sorted by target, or name sites that are not there.
        NoKernelError: the kernels cannot be built here.
    """
    source, target = source.contiguous(), target.contiguous()
    length = None if length is None else length.detach().contiguous()
    pairs = target.numel()
    first, block = source.new_empty(sites + 1), source.new_empty(sites + 1)
    places = 0 if length is None else pairs
    place, member, sizes = torch.empty(places, dtype=torch.int32), source.new_empty(places), source.new_empty(3)
    fault = library("layout", torch.float32 if length is None else length.dtype).layout(
        *map(pointer, (source, target, length)), ctypes.c_int64(pairs), ctypes.c_int64(sites),
        *map(pointer, (first, block, place, member, sizes)),
    )  # fmt: skip
    if fault:
        raise ValueError(f"pairs must be sorted by target and lead between the {sites} sites")
    blocks, lengths, longest = sizes.tolist()
    return PairRows(source, first, block, place, member[:lengths], blocks, longest)


def rows_of(
    batch: Any, index_key: str = EDGE_INDEX, length_key: str = EDGE_DIST, sites: int | None = None
) -> PairRows | None:
    """The rows of the pairs of a crystal batch, found once: copies of the batch with other species have them, too.

    Args:
        batch: crystal batch.
        index_key: key of the [2, E] source and target of each pair.
        length_key: key of the [E] lengths.
        sites: number of sites, or of their classes; those of the batch where None.

    Returns:
        The :class:`PairRows`; None where the kernels cannot work on them (see :func:`pyg_dim.native.usable`), or the
        pairs are not sorted by target.
    """
    index, length = batch[index_key], batch[length_key]
    if length.requires_grad or not usable(length.new_empty(0)):
        return None
    # Kept beside the tensors that they were made of: another tensor, or a changed one, is another graph.
    kept = batch.__dict__.setdefault(_KEPT, {}).get(index_key)
    versions = (index._version, length._version)
    if kept is None or kept[0] is not index or kept[1] is not length or kept[2] != versions:
        try:
            rows = pair_rows(index[0], index[1], batch.z.numel() if sites is None else sites, length)
        except ValueError:
            rows = None
        batch.__dict__[_KEPT][index_key] = kept = (index, length, versions, rows)
    return kept[3]


_KEPT = "_pair_rows"
