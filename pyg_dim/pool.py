"""DIMPool: any aggregation, made into a self-supervised learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.resolver import aggregation_resolver

from pyg_dim.critic import Critic, CriticName
from pyg_dim.level import Level, NoiseForm
from pyg_dim.losses import Estimator, KLForm
from pyg_dim.tape import Scope, active_tape


class DIMPool(Aggregation):
    """An aggregation with a level of its own: what it aggregates are the constituents, what it returns is z.

    The output is that of the bare aggregation, always. Inside ``with record(model, batch) as tape`` the call is
    recorded, and ``tape.loss()`` is the Deep InfoMax loss to add to the task's own.

    Args:
        aggr: name of a PyG aggregation, a list of them, an instance, or another module with the same call.
        in_channels: width of what is aggregated; with head dimensions [n, H, C] their product H C; -1 to take it and
            ``out_channels`` from the first call.
        out_channels: width of the result; found by a trial run of the aggregation where None.
        aggr_kwargs: arguments of an aggregation given by name.
        scope: what a group is: "site", "crystal" or "edge"; found from the sizes where None.
        noise: noise on z, see :class:`~pyg_dim.Level`; "none" by default, since noise comes with a KL term that pulls
            z to a unit normal, whatever scale the rest of a model expects of it.
        kl: form of the KL term, see :func:`~pyg_dim.losses.kl_term`.
        critic: what scores, see :class:`~pyg_dim.Level`.
        estimator: loss of the scores, see :class:`~pyg_dim.Level`.

    Raises:
        ValueError: the aggregation is not known, ``in_channels`` is neither positive nor -1, or the width of the result
            cannot be found by a trial run.

    Example:
        >>> pool = DIMPool("mean", in_channels=64)
        >>> conv = SAGEConv(16, 32, aggr=DIMPool("max", in_channels=16))

    Source: Moran et al., Digital Discovery 2025, 4, 790, fig. 12 (Deep InfoMax at any aggregation).
    """

    def __init__(
        self,
        aggr: str | Sequence[str | Aggregation] | nn.Module,
        in_channels: int,
        *,
        out_channels: int | None = None,
        aggr_kwargs: dict[str, Any] | None = None,
        scope: Scope | None = None,
        noise: NoiseForm = "none",
        kl: KLForm = "log_variance",
        critic: CriticName | Callable[[int, int], Critic] = "dot_product",
        estimator: Estimator = "jensen_shannon",
    ) -> None:
        super().__init__()
        if in_channels < 1 and in_channels != -1:
            raise ValueError(
                "in_channels must be the width of what is aggregated, a positive number, or -1 to take it from the "
                f"first call; got {in_channels}"
            )
        self.aggr = aggregation_resolver(aggr, **(aggr_kwargs or {}))
        if out_channels is None:
            out_channels = -1 if in_channels == -1 else self._trial_width(in_channels)
        self.level = Level(
            out_channels, in_channels, scope=scope, noise=noise, kl=kl, critic=critic, estimator=estimator
        )

    @property
    def in_channels(self) -> int:
        """Width of what is aggregated; -1 before the first call where it was not given."""
        return self.level.constituent_channels

    @property
    def out_channels(self) -> int:
        """Width of the result; -1 before the first call where it is not known."""
        return self.level.channels

    def unwrap(self) -> nn.Module:
        """The bare aggregation, with the parameters that it has by now."""
        return self.aggr

    def _trial_width(self, in_channels: int) -> int:
        training = self.aggr.training
        try:
            with torch.no_grad():
                out = self.aggr.eval()(
                    torch.zeros(2, in_channels), torch.zeros(2, dtype=torch.long), ptr=None, dim_size=1, dim=-2
                )
        except Exception as error:
            raise ValueError(
                f"could not find the output width of {self.aggr!r} by running it on [2, {in_channels}] zeros "
                f"({error}); give out_channels"
            ) from error
        finally:
            self.aggr.train(training)
        return out.size(-1)

    def reset_parameters(self) -> None:
        """Draw new parameters for the aggregation, the critic and the noise."""
        if hasattr(self.aggr, "reset_parameters"):
            self.aggr.reset_parameters()
        self.level.reset_parameters()

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
        **kwargs: Any,
    ) -> Tensor:
        """Aggregate as the bare aggregation does.

        Args:
            x: [..., n, F] (or [n, H, C] with ``dim=0``) what is aggregated.
            index: [n] group of each row.
            ptr: [G + 1] first row of each group, in place of or beside ``index``.
            dim_size: number of groups G.
            dim: dimension that is aggregated.
            **kwargs: further arguments of the aggregation.

        Returns:
            What the bare aggregation returns; without gradient in an isolated recording.

        Raises:
            ValueError: in a recording, constituents or results of another width than stated.
        """
        z = self.aggr(x, index=index, ptr=ptr, dim_size=dim_size, dim=dim, **kwargs)
        if active_tape() is None and not self.level.lazy:
            return z
        return hand_on(self.level, z, x, index, ptr, dim)

    def __repr__(self) -> str:
        return f"DIMPool({self.aggr}, in_channels={self.in_channels})"


def hand_on(
    level: Level, z: Tensor, x: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, dim: int = -2
) -> Tensor:
    """Call the level of an aggregation with what went in and what came out.

    Args:
        level: the level.
        z: what the aggregation returned.
        x: what it was given; head dimensions are flattened.
        index: [n] group of each row.
        ptr: [G + 1] first row of each group, in place of or beside ``index``.
        dim: dimension that was aggregated.

    Returns:
        z, without gradient in an isolated recording.

    Raises:
        ValueError: in a recording, widths that are not those of the level.
    """
    if index is None:
        assert ptr is not None  # noqa: S101 - Aggregation.__call__ completes the arguments
        groups = torch.arange(ptr.numel() - 1, device=ptr.device)
        index = torch.repeat_interleave(groups, ptr.diff(), output_size=x.size(dim))
    flat, constituents = z.movedim(dim, 0), x.movedim(dim, 0).flatten(1)
    rows = flat.flatten(1)
    handed = level(rows, constituents=constituents, index=index)
    return z if handed is rows else handed.view(flat.shape).movedim(0, dim)
