"""Batch norm for batches of every size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Repeats:
    """How often each row stands for one of many.

    Attributes:
        count: [n] numbers of rows that are equal to each.
        total: their sum, known on the host.
    """

    count: Tensor
    total: int


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that also takes a batch without statistics of its own.

    In training mode fewer than two rows (a crystal of one site alone, a batch without edges) are normalised with the
    running statistics, and leave them as they are.
    """

    momentum: float

    def forward(self, input: Tensor, repeats: Repeats | None = None) -> Tensor:
        """Normalise.

        Args:
            input: [n, C], n = 0 and 1 included.
            repeats: statistics are those of the rows repeated so often.

        Returns:
            [n, C].
        """
        if self.training and (input.size(0) if repeats is None else repeats.total) < 2:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if repeats is None or not self.training:
            return super().forward(input)
        # Statistics are taken in float32 at least, as those of the usual batch norm are.
        with torch.autocast(input.device.type, enabled=False):
            values = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
            share = repeats.count.to(values.dtype) / repeats.total
            mean = share @ values
            centred = values - mean
            variance = share @ centred.square()
            if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                unbiased = variance.detach() * (repeats.total / (repeats.total - 1))
                self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            return (centred * ((variance + self.eps).rsqrt() * self.weight) + self.bias).to(input.dtype)
