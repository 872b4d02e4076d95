"""Roost's building block: attention over the members of a set that have weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyg_dim import native
from pyg_dim.constituents import Constituents
from pyg_dim.native.pair_heads import gate_pairs, sum_pairs
from pyg_dim.native.pair_rows import PairRows

_EPS = 1e-10
"""Added to sums of weights, as published."""


class WeightedAttention(nn.Module):
    r"""Weighted soft attention, several heads at once.

    For the members r of a set, with vectors :math:`z_r` and weights :math:`w_r`, each head has

    .. math:: a_r = \frac{w_r^p\, e^{s(z_r) - \max s}}{\sum_r w_r^p\, e^{s(z_r) - \max s} + 10^{-10}}, \qquad
              \sum_r a_r\, g(z_r)

    Its gate s and its message g have one hidden layer with a leaky ReLU (slope 0.01) each, its exponent p is learned
    and starts from a standard normal number. The last layer of a message is linear, so that it acts once on the sum of
    a set, :math:`\sum_r a_r (W h_r + b) = W \sum_r a_r h_r + b \sum_r a_r`, not once on each member.

    Args:
        in_channels: width of z.
        out_channels: width of the result.
        gate_channels: width of the hidden layer of each gate.
        message_channels: width of the hidden layer of each message.
        heads: number of heads.

    Source: Goodall and Lee, Nat. Commun. 2020, 11, 6280, with the exponent of the authors' program.
    """

    def __init__(
        self, in_channels: int, out_channels: int, gate_channels: int, message_channels: int, heads: int
    ) -> None:
        super().__init__()
        self.heads, self.gate_channels = heads, gate_channels
        self._widths = [heads * gate_channels, heads * message_channels]
        # The hidden layers of all gates, then those of all messages.
        self.hidden = nn.Linear(in_channels, sum(self._widths))
        self.gate_weight = nn.Parameter(torch.empty(heads, gate_channels))
        self.gate_bias = nn.Parameter(torch.empty(heads))
        self.message_weight = nn.Parameter(torch.empty(heads, out_channels, message_channels))
        self.message_bias = nn.Parameter(torch.empty(heads, out_channels))
        self.power = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters: those of linear layers as PyTorch draws them."""
        self.hidden.reset_parameters()
        for weight, bias in ((self.gate_weight, self.gate_bias), (self.message_weight, self.message_bias)):
            bound = 1 / math.sqrt(weight.size(-1))
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        nn.init.normal_(self.power)

    def forward(
        self, members: Constituents, weight: Tensor, index: Tensor, groups: int, rows: PairRows | None = None
    ) -> Tensor:
        """Pool the members of every set.

        Args:
            members: n vectors z.
            weight: [n] weights above zero.
            index: [n] set of each.
            groups: number of sets G.
            rows: where members are pairs (node of the target, node of the source) and sets are targets, the same pairs
                in rows: kernels that build no pair are used where they serve.

        Returns:
            [G, heads, out_channels].
        """
        if rows is not None and self._has_kernel(members.parts[0][0]):
            return self._fused(members.parts[0][0], weight, index, rows)
        out = members.linear(self.hidden)
        # Sums over members, and exponentials, in float32 at least.
        exact = F.leaky_relu(out.to(torch.promote_types(out.dtype, torch.float32)))
        gates, messages = exact.split(self._widths, dim=1)
        gate = (gates.unflatten(1, (self.heads, -1)) * self.gate_weight).sum(-1)
        share = self._shares(gate, weight, index, groups)
        messages = (share[:, :, None] * messages.unflatten(1, (self.heads, -1))).flatten(1)
        pooled = messages.new_zeros(groups, messages.size(1)).index_add(0, index, messages)
        return self._messages(pooled.unflatten(1, (self.heads, -1)).to(out.dtype), share, index)

    def _fused(self, node: Tensor, weight: Tensor, index: Tensor, rows: PairRows) -> Tensor:
        """:meth:`forward` of the pairs of [N, in_channels / 2] nodes."""
        halves = [self.hidden.in_features // 2] * 2
        (gate_target, gate_source), (message_target, message_source) = (
            part.split(halves, dim=1) for part in self.hidden.weight.split(self._widths)
        )
        gate_bias, message_bias = self.hidden.bias.split(self._widths)
        gate = gate_pairs(F.linear(node, gate_target, gate_bias), F.linear(node, gate_source), self.gate_weight, rows)
        share = self._shares(gate, weight, index, node.size(0))
        pooled = sum_pairs(F.linear(node, message_target, message_bias), F.linear(node, message_source), share, rows)
        return self._messages(pooled, share, index)

    def _has_kernel(self, node: Tensor) -> bool:
        """Whether :meth:`_fused` serves nodes of this type, on this machine."""
        widths = [width // self.heads for width in self._widths]
        return native.usable(node.new_empty(0), self.hidden.weight.new_empty(0)) and all(
            native.serves("pair_heads", node.dtype, HEADS=self.heads, CHANNELS=width) for width in widths
        )

    def _shares(self, gate: Tensor, weight: Tensor, index: Tensor, groups: int) -> Tensor:
        """[n, heads] a of each member."""
        gate = gate + self.gate_bias
        # With its gradient: without, the small number added below would leave one where there is none.
        highest = gate.new_zeros(groups, self.heads).scatter_reduce(
            0, index[:, None].expand_as(gate), gate, "amax", include_self=False
        )
        share = weight.to(gate.dtype)[:, None] ** self.power * (gate - highest.index_select(0, index)).exp()
        total = gate.new_zeros(groups, self.heads).index_add(0, index, share) + _EPS
        return share / total.index_select(0, index)

    def _messages(self, pooled: Tensor, share: Tensor, index: Tensor) -> Tensor:
        """[G, heads, out_channels] from the [G, heads, message_channels] sums of hidden layers."""
        mass = share.new_zeros(pooled.shape[:2]).index_add(0, index, share)
        pooled = torch.einsum("ghm,hom->gho", pooled, self.message_weight)
        return pooled + mass.to(pooled.dtype)[:, :, None] * self.message_bias
