"""Layer norm whose sums are taken in float32 at least."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Layer norm, also for numbers in half precision.

    On a CPU, PyTorch's own adds up the gradients of its parameters in the precision of its input: over some thousand
    rows of bfloat16 most of them is lost. Autocast on a GPU computes it in float32, and so does this one.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        exact = input.to(torch.promote_types(input.dtype, torch.float32))
        weight, bias = (parameter.to(exact.dtype) for parameter in (self.weight, self.bias))
        return F.layer_norm(exact, self.normalized_shape, weight, bias, self.eps).to(input.dtype)
