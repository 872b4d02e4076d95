"""CGCNN, ALIGNN and Roost step by step as their authors' programs compute them, for side by side timings.

The parameters are those of an encoder of this package; the benchmark checks that both give the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_dim.models import ALIGNN, CGCNN, Roost
from pyg_dim.models.edge_gated import EPSILON, EdgeGatedConvolution
from pyg_dim.models.weighted_attention import WeightedAttention
from pyg_dim.rows import group_share


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


def _weighted_attention(layer: WeightedAttention, z: Tensor, weight: Tensor, index: Tensor, groups: int) -> Tensor:
    gates = layer.heads * layer.gate_channels
    weights, biases = layer.hidden.weight.split([gates, layer.hidden.out_features - gates]), layer.hidden.bias
    gate_weights, gate_biases = weights[0].chunk(layer.heads), biases[:gates].chunk(layer.heads)
    message_weights, message_biases = weights[1].chunk(layer.heads), biases[gates:].chunk(layer.heads)
    place, heads = index[:, None], []
    for head in range(layer.heads):
        hidden = F.leaky_relu(F.linear(z, gate_weights[head], gate_biases[head]))
        gate = F.linear(hidden, layer.gate_weight[head : head + 1], layer.gate_bias[head : head + 1])
        highest = gate.new_zeros(groups, 1).scatter_reduce(0, place, gate, "amax", include_self=False)
        gate = weight[:, None] ** layer.power[head] * (gate - highest[index]).exp()
        gate = gate / (gate.new_zeros(groups, 1).index_add(0, index, gate)[index] + 1e-10)
        hidden = F.leaky_relu(F.linear(z, message_weights[head], message_biases[head]))
        message = F.linear(hidden, layer.message_weight[head], layer.message_bias[head])
        heads.append(message.new_zeros(groups, message.size(1)).index_add(0, index, gate * message))
    return torch.stack(heads).mean(dim=0)


def roost(encoder: Roost, batch: Any) -> Tensor:
    """Roost head by head, with the concatenated vectors of every pair and a message of each.

    Args:
        encoder: the encoder.
        batch: batch of formulas with its pairs.

    Returns:
        [B, D] output of the trunk.
    """
    source, target = batch.edge_index
    fraction = group_share(batch.amount, batch.batch, batch.num_graphs)
    x = torch.cat([encoder.embed_element(encoder.elements(batch.z)), fraction[:, None]], dim=1)
    for layer in encoder.messages:
        pairs = torch.cat([x[target], x[source]], dim=1)
        x = x + _weighted_attention(layer, pairs, fraction[source], target, batch.z.numel())
    pooled = _weighted_attention(encoder.pool, x, fraction, batch.batch, batch.num_graphs)
    return encoder.output(encoder.trunk(pooled))
