"""The edge-gated graph convolution, which ALIGNN uses on crystal graphs and on their line graphs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyg_dim.models.batch_norm import BatchNorm, Repeats

EPSILON = 1e-6
"""Added to the sum of the gates of a node, by which the sum of its messages is divided."""


@dataclass(frozen=True)
class GatedGraph:
    """A graph, or one whose nodes and edges stand for classes of equal ones.

    Attributes:
        source: [e] int64, node s of each edge.
        target: [e] int64, node i of each edge.
        each: [e] how many edges of a class each node of the target's class has; None where all stand for themselves.
        nodes: members of the classes of nodes, or None.
        edges: members of the classes of edges, or None.
    """

    source: Tensor
    target: Tensor
    each: Tensor | None = None
    nodes: Repeats | None = None
    edges: Repeats | None = None


class EdgeGatedConvolution(nn.Module):
    r"""One edge-gated convolution: nodes gather the mean of what their edges let through, edges learn from their ends.

    With node features x, edge features y, batch norms :math:`N_x` over all nodes, :math:`N_y` over all edges, and an
    edge e from s to i,

    .. math:: m_e &= A x_s + B x_i + C y_e \\
              n_i &= \frac{\sum_e \sigma(m_e) \odot V x_s}{\sum_e \sigma(m_e) + 10^{-6}} \\
              x'_i &= x_i + \mathrm{silu}(N_x(U x_i + n_i)) \\
              y'_e &= y_e + \mathrm{silu}(N_y(m_e))

    Args:
        channels: width of x and y.
        update_edges: whether y' is needed; without, there is no :math:`N_y`.

    Source: Choudhary and DeCost 2021, with the batch norms and the order of operations of the authors' program.
    """

    def __init__(self, channels: int, update_edges: bool = True) -> None:
        super().__init__()
        self.source_gate = nn.Linear(channels, channels)
        self.target_gate = nn.Linear(channels, channels)
        self.edge_gate = nn.Linear(channels, channels)
        self.own = nn.Linear(channels, channels)
        self.message = nn.Linear(channels, channels)
        self.node_norm = BatchNorm(channels)
        self.edge_norm = BatchNorm(channels) if update_edges else None

    def forward(self, x: Tensor, y: Tensor, graph: GatedGraph) -> tuple[Tensor, Tensor | None]:
        """Gather the edges of every node.

        Args:
            x: [n, C] node features.
            y: [e, C] edge features.
            graph: which nodes the edges join.

        Returns:
            ([n, C] new node features, [e, C] new edge features or None).
        """
        source, target = graph.source, graph.target
        per_node = torch.cat([layer.weight for layer in (self.source_gate, self.message, self.target_gate)])
        to_source, message, to_target = (x @ per_node.T).split(x.size(1), dim=1)
        to_source = to_source + (self.source_gate.bias + self.target_gate.bias)
        gate = to_source.index_select(0, source) + to_target.index_select(0, target) + self.edge_gate(y)
        weight = gate.sigmoid()
        if graph.each is not None:
            weight = weight * graph.each.to(weight.dtype)[:, None]
        message = (message + self.message.bias).index_select(0, source)
        zeros = weight.new_zeros(x.shape)
        total = zeros.index_add(0, target, weight * message)
        mean = total / (zeros.index_add(0, target, weight) + EPSILON)
        new = x + F.silu(self.node_norm(self.own(x) + mean, graph.nodes))
        return new, None if self.edge_norm is None else y + F.silu(self.edge_norm(gate, graph.edges))
