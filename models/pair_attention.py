"""Attention over pairs of sites, and the layers it is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyg_dim import native
from pyg_dim.models.layer_norm import LayerNorm
from pyg_dim.native.attention import attend
from pyg_dim.native.lengths import embed_lengths
from pyg_dim.native.mish_norm import mish_norm
from pyg_dim.native.pair_rows import PairRows
from pyg_dim.rows import add_rows, gather_rows


class Block(nn.Module):
    """Linear layer, Mish, layer norm: the unit that Site-Net is made of.

    Args:
        in_channels: input width.
        out_channels: output width.

    Attributes:
        fused: use the kernel of ``pyg_dim.native`` where it can be.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.norm = LayerNorm(out_channels)
        self.fused = False

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return self.finish(self.linear(x))

    def finish(self, linear_output: Tensor) -> Tensor:
        """Mish and layer norm of what the linear layer gave, where that was computed in parts."""
        # `usable` first: it turns a compiler away before `has_kernel` looks for a library.
        usable = self.fused and linear_output.dim() == 2 and native.usable(linear_output, self.norm.weight)
        if usable and self.has_kernel:
            return mish_norm(linear_output, self.norm.weight, self.norm.bias)
        return self.norm(F.mish(linear_output))

    @property
    def has_kernel(self) -> bool:
        """Whether the kernel of layer norms serves this width and precision."""
        weight = self.linear.weight
        return native.serves("mish_norm", weight.dtype, CHANNELS=weight.size(0))


def chain(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    """Blocks one after the other.

    Args:
        in_channels: input width.
        widths: output width of each block.

    Returns:
        The blocks.
    """
    return nn.Sequential(*(Block(i, o) for i, o in zip([in_channels, *widths], widths, strict=False)))


def _block(block: nn.Module) -> Block:
    assert isinstance(block, Block)  # noqa: S101 - tells the type checker what a chain is made of
    return block


def _first(network: nn.Sequential) -> Block:
    return _block(network[0])


class PairAttention(nn.Module):
    r"""One attention block: sites gather what their pairs tell them.

    With the pair features :math:`c_{ij} = [x_i, x_j, e_{ij}]`,

    .. math:: w_{ij} = \mathrm{softmax}_j\, f_w(c_{ij}), \qquad u_i = \sum_j w_{ij}\, f_v(c_{ij}),
              \qquad e'_{ij} = f_e(c_{ij})

    The first layer of each network is split, :math:`W c_{ij} = W_i x_i + W_j x_j + W_e e_{ij}`: two of the three
    products are taken once a site, not once a pair.

    A pair that stands for :math:`m` equal ones counts as often: :math:`\ln m` is added to its logits.

    Args:
        site_channels: width of x.
        pair_channels: width of e.
        value_channels: width of the values, of each head.
        heads: number of heads; they share the values and differ in the weights.
        attention_hidden: widths of the hidden layers of the attention weights, at least one.
        value_hidden: widths of the hidden layers of the values.
        update_pairs: whether e' is needed (by a following block).

    Source: Moran et al., Site-Net, Digital Discovery 2023, 2, 1297.
    """

    def __init__(
        self,
        site_channels: int,
        pair_channels: int,
        value_channels: int,
        heads: int,
        attention_hidden: Sequence[int],
        value_hidden: Sequence[int],
        update_pairs: bool,
    ) -> None:
        super().__init__()
        width = 2 * site_channels + pair_channels
        self.pair_channels = pair_channels
        self.attention = chain(width, attention_hidden)
        self.logits = nn.Linear(attention_hidden[-1], heads)
        self.value = chain(width, [*value_hidden, value_channels])
        self.pair = chain(width, [pair_channels]) if update_pairs else None

    def forward(
        self, x: Tensor, e: Tensor, source: Tensor, target: Tensor, count: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gather the pairs of every site.

        Args:
            x: [N, C] site features.
            e: [E, P] pair features.
            source: [E] site j of each pair.
            target: [E] site i of each pair.
            count: [E] int64, how many equal pairs each stands for; one where None.

        Returns:
            ([N, heads * V] gathered values, [E, P] new pair features or None, [E, heads] attention weights, of all the
            pairs that one stands for together).
        """
        networks = [part for part in (self.attention, self.value, self.pair) if part is not None]
        # One product for the first layers of all networks, in the three parts of the concatenation.
        weight = torch.cat([_first(part).linear.weight for part in networks])
        bias = torch.cat([_first(part).linear.bias for part in networks])
        of_target, of_source, of_pair = weight.split([x.size(1), x.size(1), e.size(1)], dim=1)
        at_target = gather_rows(torch.addmm(bias, x, of_target.T), target)
        first = at_target + gather_rows(x @ of_source.T, source) + e @ of_pair.T
        firsts = first.split([_first(part).linear.out_features for part in networks], dim=1)
        attention, value, *pair = (
            network[1:](_first(network).finish(part)) for network, part in zip(networks, firsts, strict=True)
        )
        logits = self.logits(attention)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        rows = target[:, None].expand_as(logits)
        largest = logits.new_zeros(x.size(0), logits.size(1)).scatter_reduce(
            0, rows, logits.detach(), "amax", include_self=False
        )
        raw = (logits - largest.index_select(0, target)).exp()
        raw = raw if count is None else raw * count[:, None]
        norm = raw.new_zeros(x.size(0), raw.size(1)).index_add(0, target, raw)
        attention_weight = raw / norm.index_select(0, target)
        weighted = (attention_weight[:, :, None] * value[:, None, :]).flatten(1)
        gathered = add_rows(weighted, target, x.size(0))
        return gathered.to(x.dtype), pair[0] if pair else None, attention_weight

    @property
    def has_kernel(self) -> bool:
        """Whether the kernels serve this shape: one hidden layer each, widths that fill vectors, no new pairs."""
        if len(self.attention) > 1 or len(self.value) != 2 or self.pair is not None:
            return False
        weight, (hidden, value) = self.logits.weight, (_block(block).linear.out_features for block in self.value)
        widths = {"ATTENTION": weight.size(1), "HIDDEN": hidden, "VALUE": value, "HEADS": weight.size(0)}
        return native.serves("attention", weight.dtype, **widths) and native.serves(
            "lengths", weight.dtype, PAIR=self.pair_channels, FIRST=weight.size(1) + hidden
        )

    def of_lengths(self, length: Tensor, embed: Block) -> Tensor:
        """What pairs of each length add to the first layers of attention weights and values, by a kernel.

        Args:
            length: [D] lengths, in angstrom.
            embed: layers that make pair features of a length; scale and offset of their norm are folded into what
                follows.

        Returns:
            [D, F] numbers, F the sum of the widths of both layers.
        """
        width = embed.linear.out_features
        weight = torch.cat([_first(part).linear.weight[:, -width:] for part in (self.attention, self.value)])
        bias = weight @ embed.norm.bias
        return embed_lengths(length, embed.linear.weight[:, 0], embed.linear.bias, weight * embed.norm.weight, bias)

    def fused(self, x: Tensor, pairs: Tensor, rows: PairRows, count: Tensor | None = None) -> Tensor:
        """What :meth:`forward` gathers, by a kernel that keeps nothing of a pair in memory.

        The scale and offset of each layer norm are folded into what follows it; softmax does not see an offset of the
        logits.

        Args:
            x: [N, C] site features.
            pairs: [D, F] what pairs of each different length add to the first layers, from :meth:`of_lengths`.
            rows: the pairs.
            count: [E] how many equal pairs each stands for; one where None.

        Returns:
            [N, heads * V] gathered values.
        """
        attention, hidden, value = _first(self.attention), *(_block(block) for block in self.value)
        weight = torch.cat([attention.linear.weight, hidden.linear.weight])
        bias = torch.cat([attention.linear.bias, hidden.linear.bias])
        of_target, of_source = weight[:, : 2 * x.size(1)].chunk(2, dim=1)
        # Optimisers with decay and several processes that train together want a gradient of these, too: zero.
        unseen = 0.0 * (self.logits.bias.sum() + attention.norm.bias.sum())
        gathered = attend(
            torch.addmm(bias, x, of_target.T),
            x @ of_source.T,
            pairs,
            self.logits.weight * attention.norm.weight + unseen,
            value.linear.weight * hidden.norm.weight,
            torch.addmv(value.linear.bias, value.linear.weight, hidden.norm.bias),
            rows,
            None if count is None else count.to(x.dtype),
        ).unflatten(1, (self.logits.out_features, -1))
        some = (rows.first.diff() > 0).to(x.dtype)[:, None, None]
        return (gathered * value.norm.weight + some * value.norm.bias).flatten(1)
