"""Pairs of sites in rows: where each row begins, and which different lengths occur."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pyg_dim.data.keys import EDGE_DIST, EDGE_INDEX
from pyg_dim.native import usable
from pyg_dim.native.library import call, library


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
        ValueError: the pairs are not sorted by target, or name sites that are not there; tensors of another shape or
            type than stated.
        NoKernelError: the kernels cannot be built here.
    """
    if source.dtype != torch.int64 or target.dtype != torch.int64:
        raise ValueError(f"numbers of sites must be int64, not {source.dtype} and {target.dtype}")
    shapes = {source.shape, target.shape} if length is None else {source.shape, target.shape, length.shape}
    if len(shapes) > 1 or target.dim() != 1 or target.numel() >= 2**31:
        raise ValueError(f"sources, targets and lengths of pairs must be vectors of one length, not {shapes}")
    source, target = source.contiguous(), target.contiguous()
    length = None if length is None else length.detach().contiguous()
    pairs = target.numel()
    first, block = source.new_empty(sites + 1), source.new_empty(sites + 1)
    places = 0 if length is None else pairs
    place, member, sizes = source.new_empty(places, dtype=torch.int32), source.new_empty(places), source.new_empty(3)
    layout = library("layout", torch.float32 if length is None else length.dtype).layout
    fault = call(layout, source, target, length, pairs, sites, first, block, place, member, sizes)
    if fault:
        raise ValueError(f"pairs must be sorted by target and lead between the {sites} sites")
    blocks, lengths, longest = sizes.tolist()
    return PairRows(source, first, block, place, member[:lengths], blocks, longest)


def rows_of(
    batch: Any, index_key: str = EDGE_INDEX, length_key: str = EDGE_DIST, sites: int | None = None
) -> PairRows | None:
    """The rows of the pairs of a crystal batch, found once: batches that share its pairs have them, too.

    They are forgotten with the lengths. Pairs that are changed in place are another graph, but only PyTorch's own
    operations are noticed (not those of NumPy on the same memory, nor what is done to ``tensor.data``).

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
    sites = batch.z.numel() if sites is None else sites
    # Without gradients for good, tensors do not count their changes.
    counted = not (index.is_inference() or length.is_inference())
    made_of = (index._version, length._version, sites) if counted else None
    kept = _KEPT.get(length)
    if made_of is not None and kept is not None and kept[0] is index and kept[1] == made_of:
        return kept[2]
    try:
        rows = pair_rows(index[0], index[1], sites, length)
    except ValueError:
        rows = None
    if made_of is not None:
        _KEPT[length] = (index, made_of, rows)
    return rows


# By lengths: the indices that the rows were found for, the versions of both and the number of sites, and the rows.
_KEPT: Final[MutableMapping[Tensor, tuple[Tensor, tuple[int, ...], PairRows | None]]] = WeakTensorKeyDictionary()
