"""CGCNN: gated convolutions over the nearest neighbours of every site."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyg_dim.constituents import Constituents
from pyg_dim.critic import CriticName
from pyg_dim.data.graphs import NearestNeighbors
from pyg_dim.level import Level, NoiseForm
from pyg_dim.losses import Estimator, KLForm
from pyg_dim.models.batch_norm import BatchNorm
from pyg_dim.models.encoder import Encoder, Representation, site_mean
from pyg_dim.models.gaussians import gaussians
from pyg_dim.models.site_input import SiteInput


class GatedConvolution(nn.Module):
    r"""One convolution of CGCNN: sites add up what their edges tell them.

    With the messages :math:`c_{ij} = [x_i, x_j, e_{ij}]` and batch norms :math:`N_e` over all edges, :math:`N_s` over
    all sites,

    .. math:: (g_{ij}, h_{ij}) = N_e(W c_{ij} + b), \qquad
              x'_i = \mathrm{sp}\Big(x_i + N_s\big(\sum_j \sigma(g_{ij}) \odot \mathrm{sp}(h_{ij})\big)\Big)

    where :math:`\sigma` is the sigmoid and sp softplus. The layer is split,
    :math:`W c_{ij} = W_i x_i + W_j x_j + W_e e_{ij}`: two of the three products are taken once a site, not once an
    edge.

    Args:
        site_channels: width of x.
        edge_channels: width of e.

    Source: Xie and Grossman 2018, with the batch norms of the authors' program.
    """

    def __init__(self, site_channels: int, edge_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * site_channels + edge_channels, 2 * site_channels)
        self.edge_norm = BatchNorm(2 * site_channels)
        self.sum_norm = BatchNorm(site_channels)

    def forward(self, x: Tensor, e: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Gather the edges of every site.

        Args:
            x: [N, C] site features.
            e: [E, P] edge features.
            source: [E] site j of each edge.
            target: [E] site i of each edge.

        Returns:
            [N, C] new site features.
        """
        of_target, of_source, of_edge = self.linear.weight.split([x.size(1), x.size(1), e.size(1)], dim=1)
        # index_select, not [...]: on a CPU the gradient of the latter takes many times as long.
        at_target = torch.addmm(self.linear.bias, x, of_target.T).index_select(0, target)
        message = torch.addmm(at_target + (x @ of_source.T).index_select(0, source), e, of_edge.T)
        gate, core = self.edge_norm(message).chunk(2, dim=1)
        message = gate.sigmoid() * F.softplus(core)
        exact = message.to(torch.promote_types(message.dtype, torch.float32))
        total = exact.new_zeros(x.shape).index_add(0, target, exact).to(message.dtype)
        return F.softplus(x + self.sum_norm(total))


class CGCNN(Encoder):
    r"""CGCNN with a level of Deep InfoMax for each convolution and one for the crystal.

    Distances are expanded in Gaussians, :math:`e^{-(d - \mu)^2 / s^2}` with :math:`\mu = 0, s, 2s, \dots` up to the
    cutoff. The convolutions are followed by the mean over sites, softplus, the crystal layer and one more softplus,
    which belongs to the head here: the crystal layer itself is unbounded, as noise and KL term want it.

    Level of a convolution: constituents are the features of the neighbour before the convolution and the Gaussians of
    the edge; z is the site after the convolution. Global level: constituents are the sites after the last convolution;
    z is the output of the crystal layer.

    Args:
        site_channels: width of site features.
        convolutions: number of convolutions.
        crystal_channels: width of the crystal layer, the length of the global representation.
        k: nearest neighbours of a site.
        cutoff: largest distance of a neighbour, in angstrom.
        gaussian_step: distance and width s of the Gaussians, in angstrom.
        pad: fill up missing neighbours as the authors' program does: with edges from the first site of the crystal, of
            length ``cutoff + 1``.
        ties: keep all neighbours that are as far as the k-th; not together with ``pad``.
        species_channels: length of vectors that describe the species in place of the site features, see
            :class:`~pyg_dim.models.site_input.SiteInput`.
        output_softplus: hand on the softplus of the crystal layer as the global representation, as Crystal Twins does;
            the level still sees the layer itself.
        noise: noise on all representations: "conditional", "learned", "none".
        kl: form of the KL term: "log_variance", "paper".
        critic: what scores constituents: "dot_product", "bilinear".
        estimator: loss of the scores: "jensen_shannon", "info_nce".

    Raises:
        ValueError: an argument out of range.

    Source: Xie and Grossman 2018; levels: Moran et al., Digital Discovery 2025, 4, 790, fig. 12.
    """

    name: ClassVar[str] = "cgcnn"
    source: ClassVar[str] = "Xie and Grossman, Phys. Rev. Lett. 2018, 120, 145301"

    def __init__(
        self,
        site_channels: int = 64,
        convolutions: int = 3,
        crystal_channels: int = 128,
        k: int = 12,
        cutoff: float = 8.0,
        gaussian_step: float = 0.2,
        pad: bool = False,
        ties: bool = False,
        species_channels: int | None = None,
        output_softplus: bool = False,
        noise: NoiseForm = "conditional",
        kl: KLForm = "log_variance",
        critic: CriticName = "dot_product",
        estimator: Estimator = "jensen_shannon",
    ) -> None:
        super().__init__()
        self.config = {
            "site_channels": site_channels, "convolutions": convolutions, "crystal_channels": crystal_channels,
            "k": k, "cutoff": cutoff, "gaussian_step": gaussian_step, "pad": pad, "ties": ties,
            "species_channels": species_channels, "output_softplus": output_softplus, "noise": noise, "kl": kl,
            "critic": critic, "estimator": estimator,
        }  # fmt: skip
        for argument in ("site_channels", "convolutions", "crystal_channels", "k", "species_channels"):
            if (value := self.config[argument]) is not None and value < 1:
                raise ValueError(f"CGCNN: {argument} must be at least 1, not {value}")
        for argument in ("cutoff", "gaussian_step"):
            if not 0 < (value := self.config[argument]) < float("inf"):
                raise ValueError(f"CGCNN: {argument} must be a positive length in angstrom, not {value}")
        self.graph: Callable[[Any], Any] = NearestNeighbors(k, cutoff, pad, ties)
        self.channels = crystal_channels
        self.output_softplus = output_softplus
        self.gaussian_step = gaussian_step
        self.gaussians = round(cutoff / gaussian_step) + 1

        level = partial(Level, noise=noise, kl=kl, critic=critic, estimator=estimator)
        self.site_input = SiteInput(species_channels)
        self.embed_site = nn.Linear(self.site_input.channels, site_channels)
        self.convolutions = nn.ModuleList(GatedConvolution(site_channels, self.gaussians) for _ in range(convolutions))
        self.convolution_levels = nn.ModuleList(
            level(site_channels, site_channels + self.gaussians, scope="site") for _ in range(convolutions)
        )
        self.output = nn.Linear(site_channels, crystal_channels)
        self.global_level = level(crystal_channels, site_channels, hidden_channels=site_channels, scope="crystal")

    def set_compile(self, enabled: bool) -> None:
        """Run the critics of the convolutions through torch.compile (the same numbers), or eagerly.

        Args:
            enabled: whether to compile.
        """
        for level in self.convolution_levels.modules():
            if isinstance(level, Level):
                level.compiled = enabled

    def expand(self, distance: Tensor) -> Tensor:
        """Gaussians of distances.

        Args:
            distance: [E] in angstrom.

        Returns:
            [E, P] values in [0, 1].
        """
        last = (self.gaussians - 1) * self.gaussian_step
        return gaussians(distance, 0.0, last, self.gaussians, self.gaussian_step**-2)

    def represent(self, batch: Any) -> Representation:
        """Local and global representations of a batch; see :meth:`Encoder.represent`.

        Raises:
            ValueError: see :class:`~pyg_dim.models.site_input.SiteInput`.
        """
        source, target = batch.edge_index
        edge = self.expand(batch.edge_dist)
        site = self.embed_site(self.site_input(batch))
        for convolution, level in zip(self.convolutions, self.convolution_levels, strict=True):
            site = level(
                convolution(site, edge, source, target),
                constituents=Constituents((site, source), (edge, None)),
                index=target,
            )
        hidden = F.softplus(site_mean(site, batch))
        crystal = self.global_level(self.output(hidden), constituents=site, index=batch.batch, hidden=hidden)
        return Representation(F.softplus(crystal) if self.output_softplus else crystal, hidden, site)
