"""Site-Net: attention over every pair of a primitive cell and a supercell, in two levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

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
from pyg_dim.models.pair_attention import Block, PairAttention, chain
from pyg_dim.native.pair_rows import PairRows, rows_of
from pyg_dim.tape import active_tape


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
    def has_kernel(self) -> bool:
        """Whether the kernels serve this shape, see ``PairAttention.has_kernel``."""
        return len(self.blocks) == 1 and self.kernel_block.has_kernel

    @property
    def has_norm_kernels(self) -> bool:
        """Whether it has several blocks, all of whose layer norms a kernel serves: faster than a compiled step."""
        layers = (module for module in self.modules() if isinstance(module, Block))
        return len(self.blocks) > 1 and all(layer.has_kernel for layer in layers)

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
        self.compiled = False

        level = partial(Level, noise=noise, kl=kl, critic=critic, estimator=estimator)
        self.local = LocalEncoder(
            site_channels, pair_channels, heads, blocks, attention_hidden, value_hidden, local_channels
        )
        self.local_level = level(
            local_channels, NUM_FEATURES + 1, hidden_channels=self.local.hidden_channels, scope="site"
        )
        self.pre_pool = chain(local_channels, pre_pool)
        widths = [pre_pool[-1], *post_pool]
        self.post_pool = chain(widths[0], widths[1:-1])
        self.output = nn.Linear(widths[-2], widths[-1])
        self.global_level = level(self.channels, local_channels, hidden_channels=widths[-2], scope="crystal")

    @property
    def has_kernels(self) -> bool:
        """Whether kernels serve attention, or its layer norms, and critics; see :meth:`Encoder.has_kernels`."""
        scores = (self.config["critic"], self.config["estimator"]) == ("dot_product", "jensen_shannon")
        return scores and (self.local.has_kernel or self.local.has_norm_kernels)

    def set_kernels(self, enabled: bool) -> None:
        """Run attention, layer norms and critics by C++ kernels where these serve; see :meth:`Encoder.set_kernels`."""
        super().set_kernels(enabled)
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
        if self.kernels and self.local.has_kernel and distance.dtype == x.dtype == self.local.output.weight.dtype:
            rows = rows_of(batch, index, length, x.size(0))
        if rows is not None:
            tape = active_tape()
            found = self.local.fused(x, distance, count, rows, {} if tape is None else tape.shared)
        else:
            # A compiler takes lengths of one for constants, and would start anew.
            run = _compiled_local() if self.compiled and x.size(0) > 1 else LocalEncoder.forward
            source, target = batch[index]
            found = run(self.local, x, distance, source, target, count)
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
