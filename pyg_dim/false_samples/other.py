"""Other: true constituents scored against the representation of another crystal."""

from __future__ import annotations

import torch
from torch import Tensor


def other_targets(
    num_groups: int,
    crystal: Tensor | None,
    *,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Send each group's constituents to one other group, uniformly among those of other crystals.

    The groups are laid on one random cycle, so that each sends and receives once, none to itself. Those that meet a
    group of their own crystal sit out; for the rest every group of another crystal is equally likely, which is what
    makes the loss a bound on mutual information.

    Args:
        num_groups: number of groups G.
        crystal: [G] crystal of each group, or None where any other group will do.
        device: device of the result.
        generator: random numbers, on that device.

    Returns:
        ([G] target groups, [G] bool: the target lies in another crystal).

    Source: Moran et al., Digital Discovery 2025, 4, 790, eq. 2 and 6.
    """
    order = torch.randperm(num_groups, device=device, generator=generator)
    target = torch.empty_like(order).index_copy_(0, order, order.roll(-1))
    group = torch.arange(num_groups, device=device) if crystal is None else crystal
    return target, group[target] != group
