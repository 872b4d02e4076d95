"""What every encoder offers, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn

from pyg_dim.level import Level

Readout = Literal["global", "full"]
READOUTS: Final = ("global", "full")


@dataclass(frozen=True)
class Representation:
    """Representations of a batch.

    Attributes:
        crystal: [B, D] global representation.
        hidden: [B, H] pooled hidden layer that the global representation is read from.
        site: [N, L] local representations.
    """

    crystal: Tensor
    hidden: Tensor
    site: Tensor


class Encoder(nn.Module, ABC):
    """From a batch of crystals to one vector each.

    Attributes:
        name: name in the registry.
        source: where the architecture was published.
        config: the constructor's arguments, as plain values: ``build(name, **config)`` makes an equal encoder.
        graph: what adds edges to a batch: ``graph(batch) -> batch``.
        channels: length D of the global representation.
        output: the layer from the pooled hidden layer [B, H] to the global representation.
        global_level: the level of that layer; its constituents are the local representations [N, L].
        kernels: whether heavy steps run by C++ kernels, see :meth:`set_kernels`.
        default_readout: kind of :meth:`readout` where none is asked for.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    config: dict[str, Any]
    graph: Callable[[Any], Any]
    channels: int
    output: nn.Linear
    global_level: Level
    kernels: bool = False
    default_readout: Readout = "global"

    @abstractmethod
    def represent(self, batch: Any) -> Representation:
        """Representations of a batch.

        Args:
            batch: crystal batch with the edges of ``graph``.

        Returns:
            Its :class:`Representation`.
        """

    def forward(self, batch: Any) -> Tensor:
        """Global representations.

        Args:
            batch: crystal batch with the edges of ``graph``.

        Returns:
            [B, D] vectors.
        """
        return self.represent(batch).crystal

    def readout(self, batch: Any, kind: Readout | None = None) -> Tensor:
        """The vectors that a probe is given.

        Args:
            batch: crystal batch with the edges of ``graph``.
            kind: "global", the representation alone (the paper); "full", with the pooled hidden layer and the mean,
                standard deviation, minimum and maximum of the local vectors; by default ``default_readout``.

        Returns:
            [B, D] or [B, D + H + 4 L] vectors.

        Raises:
            ValueError: unknown kind.
        """
        kind = self.default_readout if kind is None else kind
        if kind not in READOUTS:
            raise ValueError(f"unknown readout {kind!r}; known: {', '.join(READOUTS)}")
        out = self.represent(batch)
        if kind == "global":
            return out.crystal
        crystal = batch.batch[:, None].expand_as(out.site)
        zeros = out.site.new_zeros(out.crystal.size(0), out.site.size(1))

        def reduce(values: Tensor, how: str) -> Tensor:
            return zeros.scatter_reduce(0, crystal, values, how, include_self=False)

        mean = reduce(out.site, "mean")
        variance = reduce((out.site - mean[batch.batch]).square(), "mean")
        # The root has no finite slope at zero, where all sites are equal: there it is left out of the gradient.
        spread = torch.where(variance > 0, torch.where(variance > 0, variance, 1.0).sqrt(), 0.0)
        return torch.cat(
            [out.crystal, out.hidden, mean, spread, reduce(out.site, "amin"), reduce(out.site, "amax")], dim=-1
        )

    @property
    def has_kernels(self) -> bool:
        """Whether :meth:`set_kernels` serves all heavy steps of this encoder, so that nothing is left to compile."""
        return True

    def set_kernels(self, enabled: bool) -> None:
        """Run heavy steps by the C++ kernels of ``pyg_dim.native`` where these serve (the same numbers); on the CPU.

        Here those are the critics; encoders add to them.

        Args:
            enabled: whether to do so.
        """
        self.kernels = enabled
        for module in self.modules():
            if isinstance(module, Level):
                module.fused = enabled

    def set_compile(self, enabled: bool) -> None:
        """Run heavy steps that no kernel serves through torch.compile (the same numbers), or eagerly.

        There are none here: what torch.compile gains has to outweigh its slower sums over gathered rows.

        Args:
            enabled: whether to compile.
        """

    def readout_channels(self, kind: Readout = "global") -> int:
        """Length of the vectors of :meth:`readout`.

        Args:
            kind: "global" or "full".

        Returns:
            D, or D + H + 4 L.

        Raises:
            ValueError: unknown kind.
        """
        if kind not in READOUTS:
            raise ValueError(f"unknown readout {kind!r}; known: {', '.join(READOUTS)}")
        if kind == "global":
            return self.channels
        return self.channels + self.output.in_features + 4 * self.global_level.constituent_channels


def site_mean(values: Tensor, batch: Any) -> Tensor:
    """Mean over the sites of each crystal.

    Args:
        values: [N, C] numbers of the sites.
        batch: crystal batch (batch, ptr, num_graphs).

    Returns:
        [B, C] means.
    """
    # In float32 at least: the sum over many sites swallows what is small beside it.
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    sums = exact.new_zeros(batch.num_graphs, values.size(1)).index_add(0, batch.batch, exact)
    return (sums / batch.ptr.diff().to(exact.dtype)[:, None]).to(values.dtype)
