"""Site-Net: attention over every pair of a primitive cell and a supercell, in two levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyg_dim import native
from pyg_dim.constituents import Constituents
from pyg_dim.critic import CriticName
from pyg_dim.data.elements import NUM_FEATURES
from pyg_dim.data.graphs import DenseSupercell
from pyg_dim.data.keys import EDGE_DIST, EDGE_INDEX, PAIR_COUNT, PAIR_DIST, PAIR_INDEX, SITE_CLASS
from pyg_dim.data.symmetry import SymmetryClasses
from pyg_dim.level import Level, NoiseForm
from pyg_dim.losses import Estimator, KLForm
from pyg_dim.models.encoder import Encoder, Representation, site_mean
from pyg_dim.models.equals import Equals
from pyg_dim.models.layer_norm import LayerNorm
from pyg_dim.native import LANES
from pyg_dim.native.attention import attend
from pyg_dim.native.lengths import embed_lengths
from pyg_dim.native.mish_norm import mish_norm
from pyg_dim.native.pair_rows import PairRows, rows_of
from pyg_dim.rows import add_rows, gather_rows
from pyg_dim.tape import active_tape


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
        if self.fused and linear_output.dim() == 2 and native.usable(linear_output, self.norm.weight):
            return mish_norm(linear_output, self.norm.weight, self.norm.bias)
        return self.norm(F.mish(linear_output))


def _chain(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(Block(i, o) for i, o in zip([in_channels, *widths], widths, strict=False)))


def _block(block: nn.Module) -> Block:
    assert isinstance(block, Block)  # noqa: S101 - tells the type checker what a chain is made of
    return block


def _first(chain: nn.Sequential) -> Block:
    return _block(chain[0])


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
        self.attention = _chain(width, attention_hidden)
        self.logits = nn.Linear(attention_hidden[-1], heads)
        self.value = _chain(width, [*value_hidden, value_channels])
        self.pair = _chain(width, [pair_channels]) if update_pairs else None

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
        chains = [chain for chain in (self.attention, self.value, self.pair) if chain is not None]
        # One product for the first layers of all networks, in the three parts of the concatenation.
        weight = torch.cat([_first(chain).linear.weight for chain in chains])
        bias = torch.cat([_first(chain).linear.bias for chain in chains])
        of_target, of_source, of_pair = weight.split([x.size(1), x.size(1), e.size(1)], dim=1)
        at_target = gather_rows(torch.addmm(bias, x, of_target.T), target)
        first = at_target + gather_rows(x @ of_source.T, source) + e @ of_pair.T
        firsts = first.split([_first(chain).linear.out_features for chain in chains], dim=1)
        attention, value, *pair = (
            chain[1:](_first(chain).finish(part)) for chain, part in zip(chains, firsts, strict=True)
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
        one_layer = len(self.attention) == 1 and len(self.value) == 2 and self.pair is None
        widths = [self.logits.in_features, *(_block(block).linear.out_features for block in self.value)]
        return one_layer and not any(width % LANES for width in (*widths, self.pair_channels))

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
        weight = torch.cat([_first(chain).linear.weight[:, -width:] for chain in (self.attention, self.value)])
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
        gathered = attend(
            torch.addmm(bias, x, of_target.T),
            x @ of_source.T,
            pairs,
            self.logits.weight * attention.norm.weight,
            value.linear.weight * hidden.norm.weight,
            torch.addmv(value.linear.bias, value.linear.weight, hidden.norm.bias),
            rows,
            None if count is None else count.to(x.dtype),
        ).unflatten(1, (self.logits.out_features, -1))
        some = (rows.first.diff() > 0).to(x.dtype)[:, None, None]
        return (gathered * value.norm.weight + some * value.norm.bias).flatten(1)


class LocalEncoder(nn.Module):
    """From pairs to sites: everything of Site-Net below the local level.

    Args: as those of :class:`SiteNet`.
    """

    def __init__(
        self,
        site_channels: int,
        pair_channels: int,
        heads: int,
        blocks: int,
        attention_hidden: Sequence[int],
        value_hidden: Sequence[int],
        local_channels: int,
    ) -> None:
        super().__init__()
        width, pair_width = site_channels * heads, pair_channels * heads
        self.embed_site = Block(NUM_FEATURES, width)
        self.embed_pair = Block(1, pair_width)
        self.blocks = nn.ModuleList(
            PairAttention(width, pair_width, site_channels, heads, attention_hidden, value_hidden, b < blocks - 1)
            for b in range(blocks)
        )
        self.between = nn.ModuleList(Block(width, width) for _ in range(blocks - 1))
        self.hidden_channels = width * blocks
        self.output = nn.Linear(self.hidden_channels, local_channels)

    @property
    def kernel_block(self) -> PairAttention:
        """The attention block, where there is one alone."""
        block = self.blocks[0]
        assert isinstance(block, PairAttention)  # noqa: S101 - tells the type checker what the list is made of
        return block

    def fused(
        self, x: Tensor, distance: Tensor, count: Tensor | None, rows: PairRows, shared: dict[Any, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` by a kernel; pairs of equal length in a crystal are embedded once.

        Args:
            x: [N, 9] scaled site features.
            distance: [E] length of each pair, in angstrom.
            count: [E] how many equal pairs each stands for; one where None.
            rows: the pairs.
            shared: what passes over the same geometry have in common, see :attr:`pyg_dim.tape.Tape.shared`.

        Returns:
            As :meth:`forward`.
        """
        pairs = None if torch.is_grad_enabled() else shared.get((self, rows))
        if pairs is None:
            pairs = self.kernel_block.of_lengths(distance.index_select(0, rows.member), self.embed_pair)
            shared[self, rows] = pairs.detach()
        hidden = self.kernel_block.fused(self.embed_site(x), pairs, rows, count)
        return self.output(hidden), hidden

    def forward(
        self, x: Tensor, distance: Tensor, source: Tensor, target: Tensor, count: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Local representations.

        Args:
            x: [N, 9] scaled site features.
            distance: [E] length of each pair, in angstrom.
            source: [E] site j of each pair.
            target: [E] site i of each pair.
            count: [E] int64, how many equal pairs each stands for; one where None.

        Returns:
            ([N, L] local representations, [N, H] hidden vectors that they are read from).
        """
        sites = self.embed_site(x)
        # A layer over one input is an outer product: elementwise, so that a compiler fuses it with what follows.
        linear = self.embed_pair.linear
        pairs = self.embed_pair.finish(distance[:, None] * linear.weight[:, 0] + linear.bias)
        gathered = []
        for b, block in enumerate(self.blocks):
            values, pairs, _ = block(sites, pairs, source, target, count)
            gathered.append(values)
            if b < len(self.between):
                sites = self.between[b](values)
        hidden = torch.cat(gathered, dim=1)
        return self.output(hidden), hidden


@cache
def _compiled_local() -> Callable[..., tuple[Tensor, Tensor]]:
    """The local encoder fused by torch.compile, one compilation for batches of every size."""
    return torch.compile(LocalEncoder.forward, dynamic=True)


class SiteNet(Encoder):
    """Site-Net with the two levels of Deep InfoMax.

    The defaults are those of the configuration that was published with the paper (``compact_dim_klnorm.yaml``) but for
    two lengths: 64 for the local representation (32 there; 64 in the numbers of the authors' program that the tests
    compare with) and 128 for the global one (64 there; 128 in sec. 3.2.1 of the paper).

    Local level: constituents are the raw pairs (site features of j, distance), weighted by 1/(1 + d)²; z is the
    output of the local encoder. Global level: constituents are the local representations, before the layers that
    precede the pool; z is the output of those that follow it.

    With a ``tolerance`` the graph snaps the distances of pairs that symmetry makes equal to their mean, and the local
    encoder computes such sites and pairs once: the same numbers as from all pairs of these distances. Levels are given
    all sites and pairs. The corrupted passes of Deep InfoMax, whose species break the symmetry, compute all.

    Args:
        site_channels: width of site features and values, of each head.
        pair_channels: width of pair features, of each head.
        heads: attention heads.
        blocks: attention blocks; the local representation is read from what all of them gathered.
        attention_hidden: widths of the hidden layers of the attention weights.
        value_hidden: widths of the hidden layers of the values.
        local_channels: length of the local representation.
        pre_pool: widths of the layers before the mean over sites.
        post_pool: widths of the layers after it; the last is the length of the global representation (sec. 3.2.1).
        supercell_sites: sites of the supercell, at most.
        tolerance: sites and pairs are equal by symmetry up to this difference of distances, in angstrom; None computes
            all of them, as published.
        distance_weights: weight the constituents of the local level by 1/(1 + d)², or equally.
        noise: noise on both representations: "conditional", "learned", "none".
        kl: form of the KL term: "log_variance", "paper".
        critic: what scores constituents: "dot_product", "bilinear".
        estimator: loss of the scores: "jensen_shannon", "info_nce".

    Raises:
        ValueError: an argument out of range.

    Source: Moran et al., Digital Discovery 2025, 4, 790, sec. 3.2.1, and its configuration file; Site-Net, Digital
    Discovery 2023, 2, 1297.
    """

    name: ClassVar[str] = "sitenet"
    source: ClassVar[str] = "Moran et al., Digital Discovery 2023, 2, 1297"

    def __init__(
        self,
        site_channels: int = 64,
        pair_channels: int = 64,
        heads: int = 1,
        blocks: int = 1,
        attention_hidden: Sequence[int] = (64,),
        value_hidden: Sequence[int] = (64,),
        local_channels: int = 64,
        pre_pool: Sequence[int] = (64, 128),
        post_pool: Sequence[int] = (64, 128),
        supercell_sites: int = 50,
        tolerance: float | None = None,
        distance_weights: bool = True,
        noise: NoiseForm = "conditional",
        kl: KLForm = "log_variance",
        critic: CriticName = "dot_product",
        estimator: Estimator = "jensen_shannon",
    ) -> None:
        super().__init__()
        tolerance = None if tolerance is None else float(tolerance)
        self.config = {
            "site_channels": site_channels, "pair_channels": pair_channels, "heads": heads, "blocks": blocks,
            "attention_hidden": list(attention_hidden), "value_hidden": list(value_hidden),
            "local_channels": local_channels, "pre_pool": list(pre_pool), "post_pool": list(post_pool),
            "supercell_sites": supercell_sites, "tolerance": tolerance, "distance_weights": distance_weights,
            "noise": noise, "kl": kl, "critic": critic, "estimator": estimator,
        }  # fmt: skip
        for argument, value in self.config.items():
            if isinstance(value, list) and not value and argument != "value_hidden":
                raise ValueError(f"SiteNet: {argument} needs at least one width")
            sizes = value if isinstance(value, list) else [value]
            if any(isinstance(size, int) and not isinstance(size, bool) and size < 1 for size in sizes):
                raise ValueError(f"SiteNet: {argument} must be at least 1, not {value}")
        graph = DenseSupercell(supercell_sites)
        self.graph: Callable[[Any], Any] = graph if tolerance is None else SymmetryClasses(graph, tolerance, snap=True)
        self.channels = post_pool[-1]
        self.distance_weights = distance_weights
        self.compiled = self.fused = False

        level = partial(Level, noise=noise, kl=kl, critic=critic, estimator=estimator)
        self.local = LocalEncoder(
            site_channels, pair_channels, heads, blocks, attention_hidden, value_hidden, local_channels
        )
        self.local_level = level(
            local_channels, NUM_FEATURES + 1, hidden_channels=self.local.hidden_channels, scope="site"
        )
        self.pre_pool = _chain(local_channels, pre_pool)
        widths = [pre_pool[-1], *post_pool]
        self.post_pool = _chain(widths[0], widths[1:-1])
        self.output = nn.Linear(widths[-2], widths[-1])
        self.global_level = level(self.channels, local_channels, hidden_channels=widths[-2], scope="crystal")

    @property
    def has_kernels(self) -> bool:
        """Whether the kernels serve this shape, see ``PairAttention.has_kernel``."""
        return len(self.local.blocks) == 1 and self.local.kernel_block.has_kernel

    def set_kernels(self, enabled: bool) -> None:
        """Run attention, layer norms and critics by C++ kernels where these serve; see :meth:`Encoder.set_kernels`."""
        super().set_kernels(enabled)
        self.fused = enabled
        for module in self.modules():
            if isinstance(module, Block):
                module.fused = enabled

    def set_compile(self, enabled: bool) -> None:
        """Run the pair network and the pair critic through torch.compile where no kernel serves, or eagerly.

        Args:
            enabled: whether to compile.
        """
        self.compiled = self.local_level.compiled = enabled

    def represent(self, batch: Any) -> Representation:
        """Local and global representations of a batch; see :meth:`Encoder.represent`."""
        site, hidden = self.of_sites(batch)
        source, target = batch.edge_index
        distance = batch.edge_dist
        site = self.local_level(
            site,
            constituents=Constituents((batch.x, source), (distance[:, None], None)),
            index=target,
            hidden=hidden,
            weight=(1.0 + distance).pow(-2) if self.distance_weights else None,
        )
        return self.pool(site, batch)

    def of_sites(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Local representations, each of those that symmetry makes equal computed once where the batch has classes.

        Args:
            batch: crystal batch with the edges of ``graph``.

        Returns:
            ([N, L] local representations, [N, H] hidden vectors that they are read from).
        """
        sites = Equals(batch, SITE_CLASS, batch.x.size(0)) if PAIR_INDEX in batch else None
        index, length = (EDGE_INDEX, EDGE_DIST) if sites is None else (PAIR_INDEX, PAIR_DIST)
        x = batch.x if sites is None else sites.first(batch.x)
        distance, count = batch[length], batch.get(PAIR_COUNT)
        rows = None
        if self.fused and self.has_kernels and distance.dtype == x.dtype == self.local.output.weight.dtype:
            rows = rows_of(batch, index, length, x.size(0))
        if rows is not None:
            tape = active_tape()
            found = self.local.fused(x, distance, count, rows, {} if tape is None else tape.shared)
        else:
            # A compiler takes lengths of one for constants, and would start anew.
            run = _compiled_local() if self.compiled and x.size(0) > 1 else LocalEncoder.forward
            found = run(self.local, x, distance, *batch[index], count)
        site, hidden = found if sites is None else (sites.spread(values) for values in found)
        return site, hidden

    def pool(self, site: Tensor, batch: Any) -> Representation:
        """From local representations to the global one.

        Args:
            site: [N, L] local representations.
            batch: crystal batch (batch, num_graphs).

        Returns:
            The :class:`Representation`.
        """
        hidden = self.post_pool(site_mean(self.pre_pool(site), batch))
        crystal = self.global_level(self.output(hidden), constituents=site, index=batch.batch, hidden=hidden)
        return Representation(crystal, hidden, site)
