"""What every encoder offers, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, get_args

import torch
from torch import Tensor, nn

from pyg_dim.level import Level

Readout = Literal["global", "full", "decoded"]
READOUTS: Final = ("global", "full")
"""Readouts that every encoder has."""


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
        needs_structure: whether it needs crystals; else formulas will do.
        default_readout: kind of :meth:`readout` where none is asked for.
        decoder: linear layer from the global representation to the standardised fingerprints that the encoder was
            trained to tell, where it was; checkpoints give it (:func:`pyg_dim.training.load_encoder`).
    """

    name: ClassVar[str]
    source: ClassVar[str]
    needs_structure: ClassVar[bool] = True
    config: dict[str, Any]
    graph: Callable[[Any], Any]
    channels: int
    output: nn.Linear
    global_level: Level
    kernels: bool = False
    default_readout: Readout = "global"
    decoder: nn.Linear | None

    def __init__(self) -> None:
        super().__init__()
        self.decoder = None

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
                standard deviation, minimum and maximum of the local vectors; "decoded", what ``decoder`` makes of the
                global representation: the same information along axes that mean something, which trees need; by
                default ``default_readout``.

        Returns:
            [B, D], [B, D + H + 4 L] or [B, F] vectors.

        Raises:
            ValueError: unknown kind, or "decoded" without a decoder.
        """
        kind = self.default_readout if kind is None else kind
        self.require_readout(kind)
        out = self.represent(batch)
        if kind == "decoded":
            assert self.decoder is not None  # noqa: S101 - looked at above
            return self.decoder(out.crystal)
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

    def activated(self, crystal: Tensor) -> Tensor:
        """What heads and projectors of this architecture are given of the global representation.

        Args:
            crystal: [B, D] global representations.

        Returns:
            [B, D]; here the same.
        """
        return crystal

    @property
    def has_kernels(self) -> bool:
        """Whether steps of this encoder are faster by the kernels of :meth:`set_kernels` than compiled."""
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

    def require_readout(self, kind: str) -> None:
        """Make sure that the encoder has a readout.

        Args:
            kind: "global", "full" or "decoded".

        Raises:
            ValueError: unknown kind, or "decoded" without a decoder.
        """
        if kind not in get_args(Readout):
            raise ValueError(f"unknown readout {kind!r}; known: {', '.join(get_args(Readout))}")
        if kind == "decoded" and self.decoder is None:
            raise ValueError(
                "the readout 'decoded' is of encoders that were trained with the objective fingerprint, and had back "
                "from their checkpoint"
            )

    def readout_channels(self, kind: Readout = "global") -> int:
        """Length of the vectors of :meth:`readout`.

        Args:
            kind: "global", "full" or "decoded".

        Returns:
            D, D + H + 4 L, or the number F of fingerprints.

        Raises:
            ValueError: unknown kind, or "decoded" without a decoder.
        """
        self.require_readout(kind)
        if kind == "global":
            return self.channels
        if kind == "decoded":
            assert self.decoder is not None  # noqa: S101 - looked at above
            return self.decoder.out_features
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
