"""The edge-gated graph convolution, which ALIGNN uses on crystal graphs and on their line graphs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pyg_dim.models.batch_norm import BatchNorm

EPSILON = 1e-6
"""Added to the sum of the gates of a node, by which the sum of its messages is divided."""


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

    def forward(self, x: Tensor, y: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gather the edges of every node.

        Args:
            x: [n, C] node features.
            y: [e, C] edge features.
            source: [e] node s of each edge.
            target: [e] node i of each edge.

        Returns:
            ([n, C] new node features, [e, C] new edge features or None).
        """
        gate = self.source_gate(x)[source] + self.target_gate(x)[target] + self.edge_gate(y)
        weight = gate.sigmoid()
        zeros = weight.new_zeros(x.shape)
        total = zeros.index_add(0, target, weight * self.message(x)[source])
        mean = total / (zeros.index_add(0, target, weight) + EPSILON)
        new = x + F.silu(self.node_norm(self.own(x) + mean))
        return new, None if self.edge_norm is None else y + F.silu(self.edge_norm(gate))
