"""Features of lengths and the product that follows them in one kernel."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyg_dim.native.library import library, pointer


class _EmbedLengths(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, length: Tensor, slope: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        length, slope, offset, bias = (tensor.contiguous() for tensor in (length, slope, offset, bias))
        transposed = weight.T.contiguous()
        ctx.widths = {"PAIR": slope.numel(), "FIRST": bias.numel()}
        out = length.new_empty(length.numel(), bias.numel())
        library("lengths", out.dtype, **ctx.widths).embed_lengths(
            *map(pointer, (out, length, slope, offset, transposed, bias)),
            ctypes.c_int64(length.numel()), torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(length, slope, offset, weight.contiguous())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        length, slope, offset, weight = ctx.saved_tensors
        at_slope, at_offset = torch.zeros_like(slope), torch.zeros_like(offset)
        at_weight, at_bias = weight.new_zeros(weight.T.shape), weight.new_zeros(weight.size(0))
        library("lengths", gradient.dtype, **ctx.widths).embed_lengths_backward(
            *map(pointer, (gradient.contiguous(), length, slope, offset, weight)),
            *map(pointer, (at_slope, at_offset, at_weight, at_bias)),
            ctypes.c_int64(length.numel()), torch.get_num_threads(),
        )  # fmt: skip
        return None, at_slope, at_offset, at_weight.T, at_bias


def embed_lengths(length: Tensor, slope: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""A linear layer of the normalised features of lengths.

    .. math:: y = W\, N(\mathrm{mish}(d\, s + o)) + b

    with N a layer norm without scale and offset.

    Args:
        length: [D] lengths; no gradient flows to them.
        slope: [P] s.
        offset: [P] o.
        weight: [F, P] W.
        bias: [F] b.

    Returns:
        [D, F] numbers.

    Raises:
        NoKernelError: the kernel cannot be built here.
    """
    return _EmbedLengths.apply(length, slope, offset, weight, bias)
