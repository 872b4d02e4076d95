"""Roost: attention over the elements of a formula; no structure is needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyg_dim import native
from pyg_dim.constituents import Constituents
from pyg_dim.critic import CriticName
from pyg_dim.data.composition_graph import CompositionGraph
from pyg_dim.level import Level, NoiseForm
from pyg_dim.losses import Estimator, KLForm
from pyg_dim.models.element_vectors import ElementVectors
from pyg_dim.models.encoder import Encoder, Representation
from pyg_dim.models.residual import ResidualNetwork
from pyg_dim.models.weighted_attention import WeightedAttention
from pyg_dim.native.pair_rows import PairRows, pair_rows
from pyg_dim.rows import group_share


class Roost(Encoder):
    r"""Roost with a level of Deep InfoMax for each message layer and one for the formula.

    A node is an element of a formula, with its fraction :math:`w_i`. It starts from :math:`h_i = [W x_i + b, w_i]` with
    the vector x of its element. Each message layer adds what a
    :class:`~pyg_dim.models.weighted_attention.WeightedAttention` makes of the pairs :math:`[h_i, h_j]` with all
    elements j of the formula, i too, weighted by :math:`w_j`, as the mean over heads. The nodes are pooled in the same
    way, and a residual network (the trunk) leads to the global representation: the output of its last layer, without
    the ReLU that heads put on it (:meth:`activated`).

    Level of a message layer: constituents are the nodes before it, with their fractions; z is the node after it. Global
    level: constituents are the nodes after the last layer; z is the output of the trunk. The fractions are the weights
    of the constituents.

    Crystals are taken as well: the graph counts their elements.

    Args:
        site_channels: width of a node, its fraction among it.
        layers: number of message layers.
        heads: heads of each attention.
        hidden_channels: width of the hidden layers of gates and messages.
        trunk: widths of the residual layers.
        crystal_channels: length of the global representation.
        elements: vectors of the elements, see :class:`~pyg_dim.models.element_vectors.ElementVectors`: "learned",
            "one_hot", "magpie", or a file (matscholar, for instance), which becomes part of the state.
        element_channels: length of these vectors where they are learned.
        noise: noise on all representations: "conditional", "learned", "none".
        kl: form of the KL term: "log_variance", "paper".
        critic: what scores constituents: "dot_product", "bilinear".
        estimator: loss of the scores: "jensen_shannon", "info_nce".

    Raises:
        FileNotFoundError: no such file of vectors.
        ValueError: an argument out of range, or a file that is no table of elements.

    Source: Goodall and Lee, Nat. Commun. 2020, 11, 6280; sizes as in the program of Huang, Magar, Barati Farimani,
    J. Chem. Inf. Model. 2024, 64, 627.
    """

    name: ClassVar[str] = "roost"
    source: ClassVar[str] = "Goodall and Lee, Nat. Commun. 2020, 11, 6280"
    needs_structure: ClassVar[bool] = False

    def __init__(
        self,
        site_channels: int = 64,
        layers: int = 3,
        heads: int = 3,
        hidden_channels: int = 256,
        trunk: Sequence[int] = (1024, 512),
        crystal_channels: int = 256,
        elements: str = "learned",
        element_channels: int = 200,
        noise: NoiseForm = "conditional",
        kl: KLForm = "log_variance",
        critic: CriticName = "dot_product",
        estimator: Estimator = "jensen_shannon",
    ) -> None:
        super().__init__()
        trunk = list(trunk)
        sizes = {
            "layers": layers, "heads": heads, "hidden_channels": hidden_channels, "element_channels": element_channels,
            "crystal_channels": crystal_channels, "every width of trunk": min(trunk, default=0),
        }  # fmt: skip
        for argument, value in (sizes | {"site_channels": site_channels}).items():
            least = 2 if argument == "site_channels" else 1
            if value < least:
                raise ValueError(f"Roost: {argument} must be at least {least}, not {value}")
        self.elements = ElementVectors(elements, element_channels)
        self.config = {
            "site_channels": site_channels, "layers": layers, "heads": heads, "hidden_channels": hidden_channels,
            "trunk": trunk, "crystal_channels": crystal_channels, "elements": self.elements.elements,
            "element_channels": self.elements.channels, "noise": noise, "kl": kl, "critic": critic,
            "estimator": estimator,
        }  # fmt: skip
        self.graph = CompositionGraph()
        self.channels = crystal_channels

        level = partial(Level, noise=noise, kl=kl, critic=critic, estimator=estimator)
        attention = partial(
            WeightedAttention, out_channels=site_channels, gate_channels=hidden_channels,
            message_channels=hidden_channels, heads=heads,
        )  # fmt: skip
        self.embed_element = nn.Linear(self.elements.channels, site_channels - 1)
        self.messages = nn.ModuleList(attention(2 * site_channels) for _ in range(layers))
        self.message_levels = nn.ModuleList(
            level(site_channels, site_channels + 1, scope="site") for _ in range(layers)
        )
        self.pool = attention(site_channels)
        self.trunk = ResidualNetwork([site_channels, *trunk])
        self.output = nn.Linear(trunk[-1], crystal_channels)
        self.global_level = level(crystal_channels, site_channels, hidden_channels=trunk[-1], scope="crystal")

    def activated(self, crystal: Tensor) -> Tensor:
        """The global representation behind the ReLU of the published heads; see :meth:`Encoder.activated`."""
        return crystal.relu()

    def represent(self, batch: Any) -> Representation:
        """Local (of each element) and global representations of a batch; see :meth:`Encoder.represent`.

        Raises:
            ValueError: see :class:`~pyg_dim.models.element_vectors.ElementVectors`.
        """
        source, target = batch.edge_index
        nodes = batch.z.size(0)
        fraction = group_share(batch.amount, batch.batch, batch.num_graphs)
        weight = fraction.index_select(0, source)
        embedded = self.embed_element(self.elements(batch.z))
        node = torch.cat([embedded, fraction[:, None].to(embedded.dtype)], dim=1)
        rows = self._rows(source, target, node)
        for attention, level in zip(self.messages, self.message_levels, strict=True):
            pairs = Constituents((node, target), (node, source))
            node = level(
                node + attention(pairs, weight, target, nodes, rows).mean(dim=1),
                constituents=Constituents((node, source), (fraction[:, None], source)),
                index=target,
                weight=weight,
            )
        members = Constituents((node, None))
        hidden = self.trunk(self.pool(members, fraction, batch.batch, batch.num_graphs).mean(dim=1))
        crystal = self.global_level(
            self.output(hidden), constituents=node, index=batch.batch, hidden=hidden, weight=fraction
        )
        return Representation(crystal, hidden, node)

    def _rows(self, source: Tensor, target: Tensor, node: Tensor) -> PairRows | None:
        """The pairs in rows; None where no kernel serves them."""
        if not self.kernels or not native.usable(node.new_empty(0)):
            return None
        try:
            return pair_rows(source, target, node.size(0))
        except ValueError:  # not sorted by target
            return None
