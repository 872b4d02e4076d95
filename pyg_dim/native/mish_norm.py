"""Mish and layer norm in one kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyg_dim.native.library import call, library, threads


class _MishNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        call(_library(x).mish_norm, out, x, scale.contiguous(), offset.contiguous(), x.size(0), threads())
        ctx.save_for_backward(x, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        at_x, at_scale, at_offset = torch.empty_like(x), scale.new_zeros(scale.shape), scale.new_zeros(scale.shape)
        call(
            _library(x).mish_norm_backward,
            *(gradient.contiguous(), x, scale.contiguous(), at_x, at_scale, at_offset), x.size(0), threads(),
        )  # fmt: skip
        return at_x, at_scale, at_offset


def _library(x: Tensor) -> Any:
    return library("mish_norm", x.dtype, CHANNELS=x.size(-1))


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
        ValueError: shapes or types that do not fit.
        NoKernelError: the kernel cannot be built here.
    """
    if x.dim() != 2 or not scale.shape == offset.shape == x.shape[1:] or not x.dtype == scale.dtype == offset.dtype:
        found = [(t.dtype, *t.shape) for t in (x, scale, offset)]
        raise ValueError(f"mish_norm takes [rows, C], [C] and [C] of one type, not {found}")
    return _MishNorm.apply(x, scale, offset)
