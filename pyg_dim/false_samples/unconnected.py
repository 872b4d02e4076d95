"""The kind "unconnected": messages from nodes that are not neighbours."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from pyg_dim.constituents import Constituents
from pyg_dim.false_samples.equality import constituents_occur
from pyg_dim.tape import FalseSample, Record

_SAME_GRAPH: Final = 0.5
"""Share of the samples that are drawn from the graph of the receiver, where it has nodes to draw."""


def unconnected(record: Record, generator: torch.Generator | None = None) -> FalseSample | None:
    """Every message of a level, come from a node that is not connected to the receiver.

    A false message carries the edge features of the true one that it replaces: its own distance would give the answer
    away. Half of the senders are nodes of the same graph, half of others, where there are both, drawn uniformly. The
    receiver itself is never drawn. A false message that equals a true one of its receiver is masked.

    Args:
        record: call of a level whose groups are nodes, with constituents that gather node features (a part
            (features [G, F], sender [n])).
        generator: random numbers, on the device of the record.

    Returns:
        The samples, or None where the level has no such constituents (groups are no nodes, or a message is not made
        of the features of its sender).

    Source: Moran et al., Digital Discovery 2025, 4, 790, fig. 12.
    """
    parts = record.constituents.parts
    gathered = [(features, sender) for features, sender in parts if sender is not None]
    num_nodes = record.z.size(0)
    if record.scope in ("crystal", "edge") or not gathered or not record.index.numel():
        return None
    sender = gathered[0][1]
    if any(features.size(0) != num_nodes or other is not sender for features, other in gathered):
        return None
    graph = torch.zeros_like(record.index[:1]).expand(num_nodes) if record.crystal is None else record.crystal
    node, exists = unconnected_nodes(record.index, sender, graph, max(record.num_crystals, 1), generator)
    false = Constituents(*((features, None if other is None else node) for features, other in parts))
    valid = exists & ~constituents_occur(false, record.index, record.constituents, record.index)
    weight = valid.to(record.z.dtype)
    return FalseSample("unconnected", false, record.index, weight if record.weight is None else record.weight * weight)


def unconnected_nodes(
    target: Tensor, source: Tensor, graph: Tensor, num_graphs: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""For every edge a node that is not connected to its target, nor the target itself.

    Exact and without trials: the r-th node that is missing in a sorted list of neighbours
    :math:`a_0 < a_1 < \ldots` is r plus the number of t with :math:`a_t - t \le r`, which one search finds.

    Args:
        target: [E] node that each edge runs to.
        source: [E] node that it comes from, of the same graph.
        graph: [N] graph of each node, ascending.
        num_graphs: number of graphs.
        generator: random numbers, on the device of the edges.

    Returns:
        ([E] nodes, [E] bool: there is such a node). Where there is none the node is of no meaning.
    """
    num_nodes = graph.numel()
    ones = torch.ones_like(graph)
    size = ones.new_zeros(num_graphs).index_add(0, graph, ones)
    start = size.cumsum(0) - size

    # Neighbours of every node and the node itself, sorted; edges may repeat.
    every = torch.arange(num_nodes, device=graph.device)
    pair = torch.cat([target * num_nodes + source, every * (num_nodes + 1)]).sort().values
    row, column = pair // num_nodes, pair % num_nodes
    first = torch.ones_like(pair)
    first[1:] = (pair[1:] != pair[:-1]).long()
    seen = first.cumsum(0)
    neighbours = torch.zeros_like(graph).index_add(0, row, first)
    before = neighbours.cumsum(0) - neighbours
    missing = column - start[graph[row]] - (seen - 1 - before[row])
    line = row * (num_nodes + 1) + missing

    def draw(count: Tensor) -> Tensor:
        uniform = torch.rand(target.shape, dtype=torch.float64, device=target.device, generator=generator)
        return torch.minimum((uniform * count).long(), count - 1).clamp(min=0)

    here = graph[target]
    inside, outside = size[here] - neighbours[target], num_nodes - size[here]
    rank = draw(inside)
    found = torch.searchsorted(line, target * (num_nodes + 1) + rank, right=True)
    passed = torch.where(found > 0, seen[(found - 1).clamp(min=0)], 0) - before[target]
    near = start[here] + rank + passed
    far = draw(outside)
    far = torch.where(far < start[here], far, far + size[here])
    coin = torch.rand(target.shape, dtype=torch.float64, device=target.device, generator=generator)
    same = (inside > 0) & ((outside == 0) | (coin < _SAME_GRAPH))
    return torch.where(same, near, far).clamp(max=num_nodes - 1), (inside > 0) | (outside > 0)
