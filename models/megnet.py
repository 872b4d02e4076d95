"""MEGNet: edges, sites and the state of a crystal update one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyg_dim.constituents import Constituents
from pyg_dim.critic import CriticName
from pyg_dim.data.elements import MAX_Z
from pyg_dim.data.graphs import RadiusGraph
from pyg_dim.data.keys import EDGE_CLASS, EDGE_COUNT, SITE_CLASS, SITE_COUNT
from pyg_dim.data.symmetry import SymmetryClasses
from pyg_dim.level import Level, NoiseForm
from pyg_dim.losses import Estimator, KLForm
from pyg_dim.models.encoder import Encoder, Representation
from pyg_dim.models.equals import Equals
from pyg_dim.models.megnet_block import Layers, MEGNetBlock, Multigraph
from pyg_dim.models.set2set import Set2Set


class MEGNet(Encoder):
    r"""MEGNet with levels of Deep InfoMax for the edges, sites and state of each block, and one for the crystal.

    Distances are expanded in Gaussians, :math:`e^{-w (d - \mu)^2}` with :math:`\mu` from zero to 1 angstrom beyond the
    cutoff, and species are embedded; each kind of feature passes layers of its own, then the blocks. The hidden vector
    is [:class:`~pyg_dim.models.set2set.Set2Set` of the sites, Set2Set of the edges, state], and a linear layer reads
    the representation from it. That is the first layer of the published head, which has a width of 32 there and is
    activated; here it is unbounded, as noise and KL term want it.

    Levels of a block: the new edge, with its two sites before the block as constituents (not the edge itself, which
    the skip connection keeps in it); the new site, with what comes in at it (the neighbour before the block, and the
    Gaussians of the distance: the features of edges know the site that they point at); the new state, with the new
    sites. Global level: constituents are the sites after the last block; z is the representation.

    What symmetry makes equal is computed once and counted as often as it occurs, in means and readouts: the same
    numbers for several times less work on crystals of high symmetry. Levels are given all sites and edges. The
    corrupted passes of Deep InfoMax, whose species break the symmetry, compute all.

    Args:
        element_channels: length of the vectors of the elements.
        gaussians: number of Gaussians of a distance.
        gaussian_steepness: their w, in inverse square angstrom (the "width" of the published program).
        cutoff: largest distance of a neighbour, in angstrom.
        tolerance: sites and edges are equal by symmetry up to this difference of lengths, in angstrom; None computes
            all of them.
        blocks: number of blocks.
        feature_channels: width of the features of edges, sites and state.
        dense_hidden: widths of the hidden layers before each block.
        convolution_hidden: widths of the hidden layers of the updates within a block.
        set2set_steps: steps of each readout.
        fidelities: number of labels of the state (levels of theory, for instance), found in ``batch.state`` [B]: zero
            where the batch has none. Without them the state starts from two zeros.
        fidelity_channels: length of the vectors of those labels.
        crystal_channels: length of the global representation.
        noise: noise on all representations: "conditional", "learned", "none".
        kl: form of the KL term: "log_variance", "paper".
        critic: what scores constituents: "dot_product", "bilinear".
        estimator: loss of the scores: "jensen_shannon", "info_nce".

    Raises:
        ValueError: an argument out of range.

    Source: Chen et al. 2019, as in the published weights of matgl; levels: Moran et al., Digital Discovery 2025, 4,
    790, fig. 12.
    """

    name: ClassVar[str] = "megnet"
    source: ClassVar[str] = "Chen et al., Chem. Mater. 2019, 31, 3564"
    centres: Tensor

    def __init__(
        self,
        element_channels: int = 16,
        gaussians: int = 100,
        gaussian_steepness: float = 0.5,
        cutoff: float = 4.0,
        tolerance: float | None = 1e-5,
        blocks: int = 3,
        feature_channels: int = 32,
        dense_hidden: Sequence[int] = (64,),
        convolution_hidden: Sequence[int] = (64, 64),
        set2set_steps: int = 2,
        fidelities: int | None = None,
        fidelity_channels: int = 16,
        crystal_channels: int = 128,
        noise: NoiseForm = "conditional",
        kl: KLForm = "log_variance",
        critic: CriticName = "dot_product",
        estimator: Estimator = "jensen_shannon",
    ) -> None:
        super().__init__()
        cutoff, gaussian_steepness = float(cutoff), float(gaussian_steepness)
        tolerance = None if tolerance is None else float(tolerance)
        self.config = {
            "element_channels": element_channels, "gaussians": gaussians, "gaussian_steepness": gaussian_steepness,
            "cutoff": cutoff, "tolerance": tolerance, "blocks": blocks, "feature_channels": feature_channels,
            "dense_hidden": list(dense_hidden), "convolution_hidden": list(convolution_hidden),
            "set2set_steps": set2set_steps, "fidelities": fidelities, "fidelity_channels": fidelity_channels,
            "crystal_channels": crystal_channels, "noise": noise, "kl": kl, "critic": critic, "estimator": estimator,
        }  # fmt: skip
        for argument, value in self.config.items():
            sizes = value if isinstance(value, list) else [value]
            if any(isinstance(size, int) and size < 1 for size in sizes):
                raise ValueError(f"MEGNet: {argument} must be at least 1, not {value}")
        for argument, unit in (("cutoff", "length in angstrom"), ("gaussian_steepness", "number per square angstrom")):
            if not 0 < (value := self.config[argument]) < float("inf"):
                raise ValueError(f"MEGNet: {argument} must be a positive {unit}, not {value}")
        graph = RadiusGraph(cutoff)
        self.graph: Callable[[Any], Any] = graph if tolerance is None else SymmetryClasses(graph, tolerance)
        self.channels = crystal_channels
        self.gaussian_steepness = gaussian_steepness
        # A buffer, since published weights come with centres of their own, rounded to single precision.
        self.register_buffer("centres", torch.linspace(0.0, cutoff + 1.0, gaussians))

        width = feature_channels
        self.embed_element = nn.Embedding(MAX_Z + 1, element_channels)
        self.embed_fidelity = nn.Embedding(fidelities, fidelity_channels) if fidelities else None
        self.encode_edge, self.encode_site, self.encode_state = (
            Layers(channels, [*dense_hidden, width])
            for channels in (gaussians, element_channels, fidelity_channels if fidelities else 2)
        )
        self.blocks = nn.ModuleList(
            MEGNetBlock(width, dense_hidden, convolution_hidden, first=b == 0) for b in range(blocks)
        )
        level = partial(Level, noise=noise, kl=kl, critic=critic, estimator=estimator)
        self.edge_levels = nn.ModuleList(level(width, width, scope="edge") for _ in range(blocks))
        self.site_levels = nn.ModuleList(level(width, width + gaussians, scope="site") for _ in range(blocks))
        self.state_levels = nn.ModuleList(level(width, width, scope="crystal") for _ in range(blocks))
        self.read_sites = Set2Set(width, set2set_steps)
        self.read_edges = Set2Set(width, set2set_steps)
        self.output = nn.Linear(5 * width, crystal_channels)
        self.global_level = level(crystal_channels, width, hidden_channels=5 * width, scope="crystal")

    def expand_distance(self, distance: Tensor) -> Tensor:
        """Gaussians of distances.

        Args:
            distance: [E] in angstrom.

        Returns:
            [E, P] values in [0, 1].
        """
        return (-self.gaussian_steepness * (distance[:, None] - self.centres).square()).exp()

    def represent(self, batch: Any) -> Representation:
        """Local and global representations of a batch; see :meth:`Encoder.represent`.

        Raises:
            ValueError: in evaluation mode: a label of the state that is none of the ``fidelities``.
        """
        source, target = batch.edge_index
        sites, edges = Equals(batch, SITE_CLASS, batch.z.numel()), Equals(batch, EDGE_CLASS, source.numel())
        graph = Multigraph(batch, sites, edges)
        ends = torch.cat([source, target])
        of_ends = torch.arange(source.numel(), device=ends.device).repeat(2)

        distance = self.expand_distance(edges.mean(batch.edge_dist))
        edge = self.encode_edge(distance)
        site = self.encode_site(self.embed_element(sites.first(batch.z)))
        state = self.encode_state(self._initial_state(batch))
        # Levels see every site and every edge.
        every, distance = sites.spread(site), edges.spread(distance)
        block: Any
        for block, edge_level, site_level, state_level in zip(
            self.blocks, self.edge_levels, self.site_levels, self.state_levels, strict=True
        ):
            of_edges = Constituents((every, ends))
            of_sites = Constituents((every, source), (distance, None))
            edge, messages, V, U = block.update_edges(edge, site, state, graph)
            edge = edges.through(edge_level, edge, of_edges, of_ends)
            site, changes = block.update_sites(site, messages, V, U, graph)
            site = sites.through(site_level, site, of_sites, target)
            every = sites.spread(site)
            state = block.update_state(state, messages, changes, U, graph)
            state = state_level(state, constituents=every, index=batch.batch)
        hidden = torch.cat(
            [
                self.read_sites(site, graph.crystal, graph.num_crystals, batch.get(SITE_COUNT)),
                self.read_edges(edge, graph.edge_crystal, graph.num_crystals, batch.get(EDGE_COUNT)),
                state,
            ],
            dim=1,
        )
        crystal = self.global_level(self.output(hidden), constituents=every, index=batch.batch, hidden=hidden)
        return Representation(crystal, hidden, every)

    def _initial_state(self, batch: Any) -> Tensor:
        dtype, device = self.embed_element.weight.dtype, batch.z.device
        if self.embed_fidelity is None:
            return torch.zeros(batch.num_graphs, 2, dtype=dtype, device=device)
        if "state" not in batch:
            return self.embed_fidelity(torch.zeros(batch.num_graphs, dtype=torch.long, device=device))
        # Not looked at while training: it makes the host wait for the device.
        known = self.embed_fidelity.num_embeddings
        if not self.training and (unknown := batch.state[(batch.state < 0) | (batch.state >= known)].tolist()):
            raise ValueError(f"MEGNet knows the states 0 to {known - 1}; batch.state holds {sorted(set(unknown))}")
        return self.embed_fidelity(batch.state)
