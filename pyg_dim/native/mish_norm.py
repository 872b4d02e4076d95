"""Mish and layer norm in one kernel."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyg_dim.native.library import library, pointer


class _MishNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
        library("mish_norm", x.dtype, CHANNELS=x.size(-1)).mish_norm(
            *map(pointer, (out, x, scale, offset)), ctypes.c_int64(x.size(0)), torch.get_num_threads()
        )
        ctx.save_for_backward(x, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        at_x, at_scale, at_offset = torch.empty_like(x), torch.zeros_like(scale), torch.zeros_like(scale)
        library("mish_norm", x.dtype, CHANNELS=x.size(-1)).mish_norm_backward(
            *map(pointer, (gradient.contiguous(), x, scale, at_x, at_scale, at_offset)),
            ctypes.c_int64(x.size(0)), torch.get_num_threads(),
        )  # fmt: skip
        return at_x, at_scale, at_offset


def mish_norm(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    r"""Layer norm (eps 1e-5) of Mish.

    .. math:: y = \gamma \odot \frac{m - \bar m}{\sqrt{\mathrm{var}\, m + \epsilon}} + \beta,
              \qquad m = \mathrm{mish}(x)

    Args:
        x: [rows, C] numbers.
        scale: [C] γ.
        offset: [C] β.

    Returns:
        [rows, C] numbers.

    Raises:
        NoKernelError: the kernel cannot be built here.
    """
    return _MishNorm.apply(x, scale, offset)
