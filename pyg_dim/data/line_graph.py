"""The line graph of a crystal graph: which edges follow one another, and at what angle."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.keys import EQUALS_KEYS, forget


class LineGraph:
    r"""A crystal graph with its line graph, whose nodes are the edges of the first.

    Edge k → j is joined to every edge j → i, the way back to k among them, but not to itself (an edge from a site to
    its own image meets itself). The image of the site in the middle decides: of the edges that end at j those are
    meant that end at the very atom from which the second one starts, whatever image of j that is. With :math:`r` from
    the source of an edge to its target,

    .. math:: \cos \theta = -\frac{r_{kj} \cdot r_{ji}}{|r_{kj}| |r_{ji}|}

    Periodic images are edges of their own and stay so. Source: Choudhary and DeCost 2021.

    Args:
        graph: what adds the edges, sorted by target: a graph, or the :class:`~pyg_dim.data.GraphCache` of one.
    """

    def __init__(self, graph: Callable[[CrystalBatch], CrystalBatch]) -> None:
        self.graph = graph

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.graph!r})"

    def __call__(self, batch: CrystalBatch) -> CrystalBatch:
        """Add the edges of both graphs to a batch, or to one crystal.

        Angles are computed in float64 and rounded to the type of ``pos``.

        Args:
            batch: crystals with what the crystal graph asks for, pos and cell; changed in place.

        Returns:
            The batch with the keys of the crystal graph, line_index [2, L] and line_cos [L], on its device.
        """
        batch = self.graph(batch)
        first, second = batch.line_index = consecutive_edges(batch.edge_index, batch.pos.size(0))
        along = F.normalize(edge_vectors(batch), dim=1)
        cosine = -(along.index_select(0, first) * along.index_select(0, second)).sum(1)
        batch.line_cos = cosine.clamp(-1.0, 1.0).to(batch.pos.dtype)
        # Classes that were found without the angles do not hold with them.
        forget(batch, EQUALS_KEYS)
        return batch


def consecutive_edges(edge_index: Tensor, num_sites: int) -> Tensor:
    """Pairs of edges of which the second starts where the first ends.

    Args:
        edge_index: [2, E] int64, source and target, sorted by target.
        num_sites: number of sites N.

    Returns:
        [2, L] int64, first and second edge, sorted by the second, then by the first; no edge with itself.
    """
    source, target = edge_index
    incoming = torch.bincount(target, minlength=num_sites)
    count = incoming.index_select(0, source)
    second = torch.repeat_interleave(count)
    # Edges into one site lie side by side: from the first of them, as many as there are.
    start = (incoming.cumsum(0) - incoming).index_select(0, source) - (count.cumsum(0) - count)
    first = torch.arange(second.numel(), device=second.device) + start.index_select(0, second)
    other = (first != second).nonzero()[:, 0]
    return torch.stack([first, second]).index_select(1, other)


def edge_vectors(batch: CrystalBatch) -> Tensor:
    """Vectors from the source of each edge, in its image, to the target.

    Args:
        batch: crystals with pos, cell, edge_index and edge_shift.

    Returns:
        [E, 3] float64, in angstrom.
    """
    source, target = batch.edge_index
    pos, cell = batch.pos.double(), batch.cell.double()
    crystal = batch.batch.index_select(0, target) if "batch" in batch else torch.zeros_like(target)
    translation = (batch.edge_shift.double().unsqueeze(1) @ cell.index_select(0, crystal)).squeeze(1)
    return pos.index_select(0, target) - pos.index_select(0, source) - translation
