"""Layers with a way around each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ResidualNetwork(nn.Module):
    r"""Layers of which each adds to what it is given.

    .. math:: x' = \mathrm{relu}(W x + b) + R x

    R is the identity where the widths are equal, a linear map without bias elsewhere.

    Args:
        widths: of the input, then of the output of each layer.

    Source: Goodall and Lee, Nat. Commun. 2020, 11, 6280 (output network).
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        steps = list(pairwise(widths))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in steps)
        self.around = nn.ModuleList(nn.Identity() if a == b else nn.Linear(a, b, bias=False) for a, b in steps)

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers.

        Args:
            x: [n, first width].

        Returns:
            [n, last width].
        """
        for layer, around in zip(self.layers, self.around, strict=True):
            x = layer(x).relu() + around(x)
        return x
