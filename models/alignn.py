"""ALIGNN: edge-gated convolutions over the bonds of a crystal and, through their line graph, over its bond angles."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from pyg_dim.constituents import Constituents
from pyg_dim.critic import CriticName
from pyg_dim.data.graphs import NearestNeighbors
from pyg_dim.data.keys import EDGE_CLASS, LINE_CLASS, SITE_CLASS
from pyg_dim.data.line_graph import LineGraph
from pyg_dim.data.symmetry import SymmetryClasses, find_equals
from pyg_dim.level import Level, NoiseForm
from pyg_dim.losses import Estimator, KLForm
from pyg_dim.models.batch_norm import BatchNorm, Repeats
from pyg_dim.models.edge_gated import EdgeGatedConvolution, GatedGraph
from pyg_dim.models.encoder import Encoder, Representation, site_mean
from pyg_dim.models.equals import Equals
from pyg_dim.models.gaussians import gaussians
from pyg_dim.models.site_input import SiteInput


class Embedding(nn.Module):
    """Linear layer, batch norm, SiLU.

    Args:
        in_channels: input width.
        out_channels: output width.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.norm = BatchNorm(out_channels)

    def forward(self, values: Tensor, repeats: Repeats | None = None) -> Tensor:
        """[n, in] to [n, out]; rows that stand for several count so often in the batch norm."""
        return F.silu(self.norm(self.linear(values), repeats))


class Embeddings(nn.Sequential):
    """Two layers, one after the other.

    Args:
        in_channels: input width.
        hidden_channels: width in between.
        out_channels: output width.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__(Embedding(in_channels, hidden_channels), Embedding(hidden_channels, out_channels))

    def forward(self, values: Tensor, repeats: Repeats | None = None) -> Tensor:
        """[n, in] to [n, out]."""
        for layer in self:
            values = layer(values, repeats)
        return values


class ALIGNNLayer(nn.Module):
    """A convolution over the crystal graph, then one over the line graph, whose nodes are the edges of the first.

    Args:
        channels: width of all features.
        update_angles: whether the new features of the angles are needed (by a following layer).
    """

    def __init__(self, channels: int, update_angles: bool) -> None:
        super().__init__()
        self.over_edges = EdgeGatedConvolution(channels)
        self.over_angles = EdgeGatedConvolution(channels, update_angles)


class ALIGNN(Encoder):
    r"""ALIGNN with a level of Deep InfoMax for each convolution, of sites or of edges, and one for the crystal.

    Distances and cosines of angles are expanded in Gaussians at equally spaced centres, from 0 to the cutoff and from
    -1 to 1, as steep as the inverse of the spacing of the centres (its inverse square elsewhere). The published
    network reads its prediction from the mean over sites; here a linear layer, which it does not have, makes the
    global representation of that mean, so that its length can be chosen and noise and KL term find it unbounded. The
    last layer of angles and the last of edges lead to nothing in the published network: they are not computed here,
    and the batch norms that would make them do not exist.

    The graph is undirected, each edge twice, once in either direction; the authors' program can have edges of a site to
    its own images twice in each. It keeps whole shells of neighbours where the distances in a shell are equal to the
    last bit; ``ties`` keeps them up to 1e-5 angstrom, so that the graph depends on the crystal alone. It enlarges the
    cutoff where a site has fewer than k neighbours; here such a site has fewer edges.

    Levels of sites: constituents are the features of the neighbour before the convolution and the Gaussians of the
    distance; z is the site after the convolution. Levels of edges (j to i): constituents are, for each edge k to j,
    the features of the further site k at the entry of the layer, the Gaussians of the length of that edge and of the
    angle; z is the edge after the convolution over the line graph. The features of edges and angles themselves would
    give the answer away: they hold the site or edge that they are to be scored against. Global level: constituents are
    the sites after the last convolution; z is the global representation.

    What symmetry makes equal is computed once and counted as often as it occurs, in sums and in batch norms: the same
    numbers for several times less work on crystals of high symmetry. Levels are given all sites, edges and angles. The
    corrupted batches of Deep InfoMax, whose species break some of the symmetry, are looked through anew on a CPU; on
    other devices, where that would make the host wait, all is computed.

    Args:
        alignn_layers: number of layers that convolve over edges, then over angles.
        gcn_layers: number of layers after them that convolve over edges alone.
        hidden_channels: width of the features of sites, edges and angles.
        embedding_channels: width of the first of the two layers that embed distances and angles.
        crystal_channels: length of the global representation.
        edge_gaussians: number of Gaussians of a distance, at least 2.
        angle_gaussians: number of Gaussians of the cosine of an angle, at least 2.
        k: nearest neighbours of a site.
        cutoff: largest distance of a neighbour, in angstrom; the centre of the last Gaussian.
        ties: keep all neighbours that are as far as the k-th.
        tolerance: sites, edges and angles are equal by symmetry up to this difference of lengths (in angstrom) and
            cosines; None computes all of them.
        species_channels: length of vectors that describe the species in place of the site features, see
            :class:`~pyg_dim.models.site_input.SiteInput`; 92 in the published network.
        noise: noise on all representations: "conditional", "learned", "none".
        kl: form of the KL term: "log_variance", "paper".
        critic: what scores constituents: "dot_product", "bilinear".
        estimator: loss of the scores: "jensen_shannon", "info_nce".

    Raises:
        ValueError: an argument out of range.

    Source: Choudhary and DeCost 2021; levels: Moran et al., Digital Discovery 2025, 4, 790, fig. 12.
    """

    name: ClassVar[str] = "alignn"
    source: ClassVar[str] = "Choudhary and DeCost, npj Comput. Mater. 2021, 7, 185"

    def __init__(
        self,
        alignn_layers: int = 4,
        gcn_layers: int = 4,
        hidden_channels: int = 256,
        embedding_channels: int = 64,
        crystal_channels: int = 128,
        edge_gaussians: int = 80,
        angle_gaussians: int = 40,
        k: int = 12,
        cutoff: float = 8.0,
        ties: bool = True,
        tolerance: float | None = 1e-5,
        species_channels: int | None = None,
        noise: NoiseForm = "conditional",
        kl: KLForm = "log_variance",
        critic: CriticName = "dot_product",
        estimator: Estimator = "jensen_shannon",
    ) -> None:
        super().__init__()
        cutoff, tolerance = float(cutoff), None if tolerance is None else float(tolerance)
        self.config = {
            "alignn_layers": alignn_layers, "gcn_layers": gcn_layers, "hidden_channels": hidden_channels,
            "embedding_channels": embedding_channels, "crystal_channels": crystal_channels,
            "edge_gaussians": edge_gaussians, "angle_gaussians": angle_gaussians, "k": k, "cutoff": cutoff,
            "ties": ties, "tolerance": tolerance, "species_channels": species_channels, "noise": noise,
            "kl": kl, "critic": critic, "estimator": estimator,
        }  # fmt: skip
        least = {"edge_gaussians": 2, "angle_gaussians": 2}
        for argument, value in self.config.items():
            if isinstance(value, int) and not isinstance(value, bool) and value < least.get(argument, 1):
                raise ValueError(f"ALIGNN: {argument} must be at least {least.get(argument, 1)}, not {value}")
        if not 0 < cutoff < float("inf"):
            raise ValueError(f"ALIGNN: cutoff must be a positive length in angstrom, not {cutoff}")
        graph = LineGraph(NearestNeighbors(k, cutoff, ties=ties, symmetric=True))
        self.graph: Callable[[Any], Any] = graph if tolerance is None else SymmetryClasses(graph, tolerance)
        self.channels = crystal_channels
        self.cutoff, self.tolerance = cutoff, tolerance
        self.edge_gaussians, self.angle_gaussians = edge_gaussians, angle_gaussians

        level = partial(Level, noise=noise, kl=kl, critic=critic, estimator=estimator)
        hidden = hidden_channels
        self.site_input = SiteInput(species_channels)
        self.embed_site = Embedding(self.site_input.channels, hidden)
        self.embed_edge, self.embed_angle = (
            Embeddings(number, embedding_channels, hidden) for number in (edge_gaussians, angle_gaussians)
        )
        self.alignn_layers = nn.ModuleList(ALIGNNLayer(hidden, n < alignn_layers - 1) for n in range(alignn_layers))
        self.gcn_layers = nn.ModuleList(EdgeGatedConvolution(hidden, n < gcn_layers - 1) for n in range(gcn_layers))
        self.site_levels = nn.ModuleList(
            level(hidden, hidden + edge_gaussians, scope="site") for _ in range(alignn_layers + gcn_layers)
        )
        self.edge_levels = nn.ModuleList(
            level(hidden, hidden + edge_gaussians + angle_gaussians, scope="edge") for _ in range(alignn_layers)
        )
        self.output = nn.Linear(hidden, crystal_channels)
        self.global_level = level(crystal_channels, hidden, scope="crystal", hidden_channels=hidden)

    def expand_distance(self, distance: Tensor) -> Tensor:
        """Gaussians of distances.

        Args:
            distance: [E] in angstrom.

        Returns:
            [E, P] values in [0, 1].
        """
        return gaussians(distance, 0.0, self.cutoff, self.edge_gaussians, (self.edge_gaussians - 1) / self.cutoff)

    def expand_angle(self, cosine: Tensor) -> Tensor:
        """Gaussians of cosines.

        Args:
            cosine: [L] in [-1, 1].

        Returns:
            [L, Q] values in [0, 1].
        """
        return gaussians(cosine, -1.0, 1.0, self.angle_gaussians, (self.angle_gaussians - 1) / 2)

    def represent(self, batch: Any) -> Representation:
        """Local and global representations of a batch; see :meth:`Encoder.represent`.

        Raises:
            ValueError: the batch has no line graph; or see :class:`~pyg_dim.models.site_input.SiteInput`.
        """
        if "line_index" not in batch:
            raise ValueError(
                "ALIGNN needs the angles of a batch: add its edges with encoder.graph, or with LineGraph(...) around "
                "another graph or a cache of graphs"
            )
        if self.tolerance is not None and SITE_CLASS not in batch and batch.z.device.type == "cpu":
            batch = find_equals(copy(batch), self.tolerance)
        (source, target), (first, second) = batch.edge_index, batch.line_index
        sites = Equals(batch, SITE_CLASS, batch.batch.numel())
        edges = Equals(batch, EDGE_CLASS, source.numel())
        angles = Equals(batch, LINE_CLASS, first.numel())
        bonds, bond_pairs = _graph(source, target, sites, edges), _graph(first, second, edges, angles)
        x = self.embed_site(sites.first(self.site_input(batch)), sites.repeats)
        distance = self.expand_distance(edges.mean(batch.edge_dist))
        angle = self.expand_angle(angles.mean(batch.line_cos))
        y, z = self.embed_edge(distance, edges.repeats), self.embed_angle(angle, angles.repeats)
        # Levels see every site and every edge.
        distance, further = edges.spread(distance), source[first]
        site = sites.spread(x)
        site_levels = iter(self.site_levels)
        for layer, edge_level in zip(self.alignn_layers, self.edge_levels, strict=True):
            assert isinstance(layer, ALIGNNLayer)  # noqa: S101 - tells the type checker what the list holds
            of_sites = Constituents((site, source), (distance, None))
            of_edges = Constituents((site, further), (distance, first), (angle, angles.classes))
            x, y = layer.over_edges(x, y, bonds)
            x = sites.through(next(site_levels), x, of_sites, target)
            y, z = layer.over_angles(y, z, bond_pairs)
            y = edges.through(edge_level, y, of_edges, second)
            site = sites.spread(x)
        for convolution, level in zip(self.gcn_layers, site_levels, strict=True):
            of_sites = Constituents((site, source), (distance, None))
            x, y = convolution(x, y, bonds)
            x = sites.through(level, x, of_sites, target)
            site = sites.spread(x)
        hidden = site_mean(site, batch)
        crystal = self.global_level(self.output(hidden), constituents=site, index=batch.batch, hidden=hidden)
        return Representation(crystal, hidden, site)


def _graph(source: Tensor, target: Tensor, nodes: Equals, edges: Equals) -> GatedGraph:
    """A graph, or that of its classes: all edges of a class join the same two classes of nodes."""
    if nodes.repeats is None or edges.repeats is None:
        return GatedGraph(source, target)
    source, target = (nodes.number(edges.first(end)) for end in (source, target))
    each = edges.repeats.count // nodes.repeats.count[target]
    return GatedGraph(source, target, each, nodes.repeats, edges.repeats)
