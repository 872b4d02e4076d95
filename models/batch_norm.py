"""Batch norm for batches of every size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that also takes a batch without statistics of its own.

    In training mode fewer than two rows (a crystal of one site alone, a batch without edges) are normalised with the
    running statistics, and leave them as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[n, C] to [n, C], n = 0 and 1 included."""
        if self.training and input.size(0) < 2:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)
