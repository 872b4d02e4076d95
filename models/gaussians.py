"""Distances and angles as rows of Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussians(values: Tensor, first: float, last: float, number: int, gamma: float) -> Tensor:
    r"""Expand numbers in Gaussians at equally spaced centres.

    .. math:: g_k(t) = e^{-\gamma (t - c_k)^2}, \qquad c_k = \mathrm{first} \ldots \mathrm{last}

    Args:
        values: [n] numbers t.
        first: the first centre.
        last: the last one.
        number: number of centres P.
        gamma: steepness, in the inverse square of the unit of t.

    Returns:
        [n, P] values in [0, 1].
    """
    centres = torch.linspace(first, last, number, dtype=values.dtype, device=values.device)
    return (-gamma * (values[:, None] - centres).square()).exp()
