"""CGCNN and ALIGNN step by step as their authors' programs compute them, for side by side timings.

The parameters are those of an encoder of this package; the benchmark checks that both give the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_dim.models import ALIGNN, CGCNN
from pyg_dim.models.edge_gated import EPSILON, EdgeGatedConvolution


def cgcnn(encoder: CGCNN, batch: Any, edge: Tensor) -> Tensor:
    """CGCNN on a table of k neighbours for each site, with the concatenated message of every pair.

    Args:
        encoder: built with ``pad=True``, so that every site has k edges.
        batch: crystal batch with its edges.
        edge: [N k, P] Gaussians of the distances, which the program computes when it loads a crystal.

    Returns:
        [B, D] output of the crystal layer.
    """
    sites = batch.z.numel()
    neighbour = batch.edge_index[0].view(sites, -1)
    edge = edge.view(*neighbour.shape, -1)
    x = encoder.embed_site(encoder.site_input(batch))
    for convolution in encoder.convolutions:
        own = x.unsqueeze(1).expand(sites, neighbour.size(1), x.size(1))
        message = convolution.linear(torch.cat([own, x[neighbour], edge], dim=2))
        message = convolution.edge_norm(message.view(-1, message.size(2))).view(message.shape)
        gate, core = message.chunk(2, dim=2)
        total = convolution.sum_norm((gate.sigmoid() * F.softplus(core)).sum(dim=1))
        x = F.softplus(x + total)
    crystals = [x[first:last].mean(dim=0, keepdim=True) for first, last in batch.ptr.unfold(0, 2, 1).tolist()]
    return encoder.output(F.softplus(torch.cat(crystals)))


def _edge_gated(
    layer: EdgeGatedConvolution, x: Tensor, y: Tensor, source: Tensor, target: Tensor, norm: Any
) -> tuple[Tensor, Tensor]:
    gate = layer.source_gate(x).index_select(0, source) + layer.target_gate(x).index_select(0, target)
    gate = gate + layer.edge_gate(y)
    weight = torch.sigmoid(gate)
    total = torch.zeros_like(x).index_add(0, target, layer.message(x).index_select(0, source) * weight)
    mean = total / (torch.zeros_like(x).index_add(0, target, weight) + EPSILON)
    return x + F.silu(layer.node_norm(layer.own(x) + mean)), y + F.silu(norm(gate))


def alignn(encoder: ALIGNN, batch: Any, unused_norms: Any) -> Tensor:
    """ALIGNN with every operation on every edge of the line graph, those of which nothing is read included.

    Args:
        encoder: the encoder.
        batch: crystal batch with edges and line graph.
        unused_norms: two batch norms, of the edges of the last layer of each kind.

    Returns:
        [B, D] output of the crystal layer.
    """
    source, target = batch.edge_index
    first, second = batch.line_index
    x = encoder.embed_site(encoder.site_input(batch))
    y = encoder.embed_edge(encoder.expand_distance(batch.edge_dist))
    z = encoder.embed_angle(encoder.expand_angle(batch.line_cos))
    for layer in encoder.alignn_layers:
        x, y = _edge_gated(layer.over_edges, x, y, source, target, layer.over_edges.edge_norm)
        y, z = _edge_gated(layer.over_angles, y, z, first, second, layer.over_angles.edge_norm or unused_norms[0])
    for convolution in encoder.gcn_layers:
        x, y = _edge_gated(convolution, x, y, source, target, convolution.edge_norm or unused_norms[1])
    sums = x.new_zeros(batch.num_graphs, x.size(1)).index_add(0, batch.batch, x)
    return encoder.output(sums / batch.ptr.diff()[:, None])
