"""One block of MEGNet: edges, then sites, then the state of the crystal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyg_dim.models.equals import Equals


def shifted_softplus(x: Tensor) -> Tensor:
    r"""Softplus that goes through the origin, :math:`\ln(1 + e^x) - \ln 2`."""
    return F.softplus(x).sub_(math.log(2))  # in place: only the input is needed for the gradient


class Layers(nn.Module):
    """Linear layers, shifted softplus after each of them.

    Weights start from Glorot's uniform distribution, as those of the framework of the original program (Keras) do: with
    PyTorch's own, which are smaller, little of the differences between crystals gets through three blocks.

    Args:
        in_channels: input width.
        widths: width of each layer, at least one.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        linears = [nn.Linear(i, o) for i, o in zip([in_channels, *widths], widths, strict=False)]
        for linear in linears:
            nn.init.xavier_uniform_(linear.weight)
        self.linears = nn.ModuleList(linears)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in] to [n, out]."""
        return self.finish(self.linears[0](x))

    def first_layer(self, parts: int) -> tuple[Tensor, ...]:
        """Weights of the first layer for each of equal parts of its input, then its bias."""
        linear: Any = self.linears[0]
        return (*linear.weight.chunk(parts, dim=1), linear.bias)

    def finish(self, first: Tensor) -> Tensor:
        """What follows the first linear layer, where that was computed in parts."""
        x = shifted_softplus(first)
        for linear in list(self.linears)[1:]:
            x = shifted_softplus(linear(x))
        return x


class Multigraph:
    """Which edge, site and crystal belong together; the same for all blocks.

    E, N are numbers of edges and sites, or of their classes where the batch has those: all edges of a class join the
    same two classes of sites.

    Args:
        batch: crystal batch with edges (batch, ptr, num_graphs, edge_index, edge_dist).
        sites: classes of its sites.
        edges: classes of its edges.

    Attributes:
        source: [E] site j of each edge.
        target: [E] site i of each edge.
        crystal: [N] crystal of each site.
        edge_crystal: [E] crystal of each edge.
        num_crystals: B.
        in_site: [E, 1] weight of each edge in the mean over the edges of its target.
        edges_in_crystal: [N, 1] weight of the edges of each site in the mean over those of its crystal.
        in_crystal: [N, 1] weight of each site in the mean over those of its crystal.
    """

    def __init__(self, batch: Any, sites: Equals, edges: Equals) -> None:
        self.source, self.target = (sites.number(edges.first(end)) for end in batch.edge_index)
        self.crystal = sites.first(batch.batch)
        self.edge_crystal = self.crystal.index_select(0, self.target)
        self.num_crystals: int = batch.num_graphs
        ones = torch.ones_like
        edge_count = ones(self.target) if edges.repeats is None else edges.repeats.count
        site_count = ones(self.crystal) if sites.repeats is None else sites.repeats.count
        of_site = edge_count.new_zeros(site_count.size(0)).index_add(0, self.target, edge_count)
        of_crystal = of_site.new_zeros(self.num_crystals).index_add(0, self.crystal, of_site)

        dtype = batch.edge_dist.dtype
        exact = torch.promote_types(dtype, torch.float32)  # half precision does not hold every number of edges

        def share(count: Tensor, of: Tensor, index: Tensor) -> Tensor:
            return (count.to(exact) / of.clamp(min=1).index_select(0, index)).to(dtype)[:, None]

        self.in_site = share(edge_count, of_site, self.target)
        self.edges_in_crystal = share(of_site, of_crystal, self.crystal)
        self.in_crystal = share(site_count, batch.ptr.diff(), self.crystal)


class MEGNetBlock(nn.Module):
    r"""One block of MEGNet.

    Layers :math:`D` (none in the first block) make E, V, U of the features of edges, sites and state. Then

    .. math:: E'_{ij} = \phi_e[V_j, V_i, E_{ij}, U], \quad m_i = \mathrm{mean}_j E'_{ij}, \quad
              V'_i = \phi_v[V_i, m_i, U], \quad U' = \phi_u[U, \mathrm{mean}_{ij} E'_{ij}, \mathrm{mean}_i V'_i]

    with edges pointing from j to i, means over nothing zero, and what comes in is added to each result. The first
    layer of each network is split into the products with its parts, each taken once an edge, a site or a crystal.

    Three steps, so that a level can follow each of them. They share nothing but what they hand on: a level keeps its
    gradient from the steps of those before it.

    Args:
        channels: width of the features of edges, sites and state.
        dense_hidden: widths of the hidden layers of D.
        convolution_hidden: widths of the hidden layers of each phi.
        first: whether it is the first block.

    Source: Chen et al. 2019, order of the parts as in the published weights.
    """

    def __init__(
        self, channels: int, dense_hidden: Sequence[int], convolution_hidden: Sequence[int], first: bool
    ) -> None:
        super().__init__()
        dense = [*dense_hidden, channels]
        self.dense_edge, self.dense_site, self.dense_state = (
            None if first else Layers(channels, dense) for _ in range(3)
        )
        self.edge, self.site, self.state = (
            Layers(parts * channels, [*convolution_hidden, channels]) for parts in (4, 3, 3)
        )

    def update_edges(self, edge: Tensor, site: Tensor, state: Tensor, graph: Multigraph) -> tuple[Tensor, ...]:
        """First step.

        Args:
            edge: [E, C] features.
            site: [N, C] features.
            state: [B, C] features.
            graph: what belongs together.

        Returns:
            ([E, C] new edges, [N, C] means m of E' over the edges of each site, [N, C] V, [B, C] U).
        """
        V, U = (x if dense is None else dense(x) for dense, x in ((self.dense_site, site), (self.dense_state, state)))
        of_source, of_target, of_edge, of_state, bias = self.edge.first_layer(4)
        # index_select, not [...]: on a CPU the gradient of the latter takes 20 times as long.
        at_target = torch.addmm(torch.addmm(bias, U, of_state.T).index_select(0, graph.crystal), V, of_target.T)
        at_source = V @ of_source.T
        of_sites = at_target.index_select(0, graph.target) + at_source.index_select(0, graph.source)
        E = edge if self.dense_edge is None else self.dense_edge(edge)
        messages = self.edge.finish(torch.addmm(of_sites, E, of_edge.T))
        shares = messages * graph.in_site
        return edge + messages, shares.new_zeros(site.shape).index_add(0, graph.target, shares), V, U

    def update_sites(
        self, site: Tensor, messages: Tensor, V: Tensor, U: Tensor, graph: Multigraph
    ) -> tuple[Tensor, Tensor]:
        """Second step.

        Args:
            site: [N, C] features.
            messages: [N, C] means m that the first step gave.
            V: [N, C] of the first step.
            U: [B, C] of the first step.
            graph: what belongs together.

        Returns:
            ([N, C] new sites, [N, C] V').
        """
        of_site, of_message, of_state, bias = self.site.first_layer(3)
        first = torch.addmm(V @ of_site.T, messages, of_message.T)
        changes = self.site.finish(first + torch.addmm(bias, U, of_state.T).index_select(0, graph.crystal))
        return site + changes, changes

    def update_state(self, state: Tensor, messages: Tensor, changes: Tensor, U: Tensor, graph: Multigraph) -> Tensor:
        """Third step.

        Args:
            state: [B, C] features.
            messages: [N, C] means m that the first step gave.
            changes: [N, C] V' of the second step.
            U: [B, C] of the first step.
            graph: what belongs together.

        Returns:
            [B, C] new states.
        """
        shares = torch.cat([messages * graph.edges_in_crystal, changes * graph.in_crystal], dim=1)
        means = shares.new_zeros(graph.num_crystals, shares.size(1)).index_add(0, graph.crystal, shares)
        return state + self.state(torch.cat([U, means], dim=1))
