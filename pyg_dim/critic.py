"""Critics: what scores whether a constituent belongs to a representation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pyg_dim.constituents import Constituents


class Critic(nn.Module, ABC):
    """Scores constituents against representations by a product: score = query of z · key of c + offset of z.

    A critic of your own is a subclass whose constructor takes the length of z and the width of a constituent.
    """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw new parameters."""

    @abstractmethod
    def queries(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What each representation asks of the keys of constituents.

        Args:
            z: [G, D] representations.

        Returns:
            ([G, K] queries, [G] offsets).
        """

    @abstractmethod
    def keys(self, constituents: Constituents) -> Tensor:
        """Keys of the constituents, each made of that constituent alone.

        Args:
            constituents: n constituents.

        Returns:
            [n, K] keys.
        """

    @abstractmethod
    def forward(self, z: Tensor, constituents: Constituents, target: Tensor) -> Tensor:
        """Score each constituent against one representation, as the formula stands (the plain path).

        Args:
            z: [G, D] representations.
            constituents: n constituents.
            target: [n] the representation that each is scored against.

        Returns:
            [n] scores; high where the constituent belongs.
        """


class DotProductCritic(Critic):
    r"""Dot product of a learned map of the representation and one of the constituent.

    .. math:: \mathrm{score}(z, c) = u_z(z) \cdot u_c(c), \qquad u(t) = W_2\, \mathrm{Mish}(W_1 t + b_1) + b_2

    The last layer of :math:`u_c` is linear, so that it can act once on each representation instead of once on each
    constituent: :math:`u_z \cdot (W h + b) = (W^\top u_z) \cdot h + u_z \cdot b`.

    Args:
        channels: length of the representation z.
        constituent_channels: width of a constituent c.
        hidden_channels: width of the hidden layers.
        score_channels: length of the vectors whose dot product is the score.

    Source: Moran et al., Digital Discovery 2025, 4, 790, fig. 3 and table 1.
    """

    def __init__(
        self, channels: int, constituent_channels: int, hidden_channels: int = 64, score_channels: int = 128
    ) -> None:
        super().__init__()
        self.z_hidden = nn.Linear(channels, hidden_channels)
        self.z_score = nn.Linear(hidden_channels, score_channels)
        self.c_hidden = nn.Linear(constituent_channels, hidden_channels)
        self.c_score = nn.Linear(hidden_channels, score_channels)

    def reset_parameters(self) -> None:
        """Draw new parameters."""
        for layer in (self.z_hidden, self.z_score, self.c_hidden, self.c_score):
            layer.reset_parameters()

    def queries(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Queries with the last layer of the constituents folded in; see :meth:`Critic.queries`."""
        u = self.z_score(F.mish(self.z_hidden(z)))
        return u @ self.c_score.weight, u @ self.c_score.bias

    def keys(self, constituents: Constituents) -> Tensor:
        """Hidden layer of the constituents; see :meth:`Critic.keys`."""
        return F.mish(constituents.linear(self.c_hidden))

    def forward(self, z: Tensor, constituents: Constituents, target: Tensor) -> Tensor:
        """Scores without the rearrangement; see :meth:`Critic.forward`."""
        u_z = self.z_score(F.mish(self.z_hidden(z)))
        u_c = self.c_score(F.mish(self.c_hidden(constituents.dense())))
        return (u_z.index_select(0, target) * u_c).sum(dim=-1)


class BilinearCritic(Critic):
    r"""A bilinear form of the representation and the constituent, as Deep Graph Infomax scores.

    .. math:: \mathrm{score}(z, c) = z^\top W c

    Args:
        channels: length of the representation z.
        constituent_channels: width of a constituent c.

    Source: Veličković et al., Deep Graph Infomax, ICLR 2019.
    """

    def __init__(self, channels: int, constituent_channels: int) -> None:
        super().__init__()
        self.form = nn.Linear(constituent_channels, channels, bias=False)

    def reset_parameters(self) -> None:
        """Draw new parameters."""
        self.form.reset_parameters()

    def queries(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The representations themselves; see :meth:`Critic.queries`."""
        return z, z.new_zeros(z.size(0))

    def keys(self, constituents: Constituents) -> Tensor:
        """W c; see :meth:`Critic.keys`."""
        return constituents.linear(self.form)

    def forward(self, z: Tensor, constituents: Constituents, target: Tensor) -> Tensor:
        """Scores constituent by constituent; see :meth:`Critic.forward`."""
        return (z.index_select(0, target) * self.form(constituents.dense())).sum(dim=-1)


CriticName = Literal["dot_product", "bilinear"]
CRITICS: Final[dict[CriticName, type[Critic]]] = {"dot_product": DotProductCritic, "bilinear": BilinearCritic}
"""Critics by name."""
