"""Noise on representations (eq. 3): two ways to hold its log-variance."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedNoise(nn.Module):
    r"""A learned noise amplitude for each dimension, the same for every set.

    .. math:: \tilde z = z + \sigma \odot y, \quad y \sim N(0, I), \quad \ln \sigma^2 = v \text{ a parameter}

    Args:
        channels: length of the representations.

    Source: Moran et al., Digital Discovery 2025, 4, 790, eq. 3 and its text.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        """Return to an amplitude of one."""
        nn.init.zeros_(self.log_variance)

    def forward(self, hidden: Tensor) -> Tensor:
        """Log-variance of the noise.

        Args:
            hidden: [G, H] hidden vectors; only their count matters here.

        Returns:
            [G, D] log-variances.
        """
        return self.log_variance.expand(hidden.size(0), -1)


class ConditionalNoise(nn.Module):
    r"""A noise amplitude read from each set: a linear layer beside the one that gives z.

    .. math:: \ln \sigma^2 = W h + b

    Args:
        hidden_channels: width of h, the layer before z.
        channels: length of the representations.

    Source: the authors' code of Moran et al., Digital Discovery 2025, 4, 790.
    """

    def __init__(self, hidden_channels: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_channels, channels)

    def reset_parameters(self) -> None:
        """Draw new parameters."""
        self.linear.reset_parameters()

    def forward(self, hidden: Tensor) -> Tensor:
        """Log-variance of the noise.

        Args:
            hidden: [G, H] vectors from which z is read.

        Returns:
            [G, D] log-variances.
        """
        return self.linear(hidden)


def perturb(
    z: Tensor, log_variance: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    r"""Representations with noise, :math:`z + e^{v/2} \odot y` (eq. 3).

    Args:
        z: [G, D] representations.
        log_variance: [G, D] or [D] log-variance v.
        noise: [G, D] standard normal numbers y; drawn where None.
        generator: random numbers for the draw, on the device of ``z``.

    Returns:
        [G, D] noisy representations.
    """
    if noise is None:
        noise = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
    return z + noise * (0.5 * log_variance).exp()
