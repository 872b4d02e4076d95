"""Features of lengths and the product that follows them in one kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyg_dim.native.library import call, library, threads


class _EmbedLengths(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, length: Tensor, slope: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        length, slope, offset, bias = (tensor.contiguous() for tensor in (length, slope, offset, bias))
        transposed = weight.T.contiguous()
        ctx.widths = {"PAIR": slope.numel(), "FIRST": bias.numel()}
        out = length.new_empty(length.numel(), bias.numel())
        kernel = library("lengths", out.dtype, **ctx.widths).embed_lengths
        call(kernel, out, length, slope, offset, transposed, bias, length.numel(), threads())
        ctx.save_for_backward(length, slope, offset, weight.contiguous())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        length, slope, offset, weight = ctx.saved_tensors
        at_slope, at_offset = torch.zeros_like(slope), torch.zeros_like(offset)
        at_weight, at_bias = weight.new_zeros(weight.T.shape), weight.new_zeros(weight.size(0))
        call(
            library("lengths", gradient.dtype, **ctx.widths).embed_lengths_backward,
            *(gradient.contiguous(), length, slope, offset, weight, at_slope, at_offset, at_weight, at_bias),
            *(length.numel(), threads()),
        )
        return None, at_slope, at_offset, at_weight.T, at_bias


def embed_lengths(length: Tensor, slope: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""A linear layer of the normalised features of lengths.

    .. math:: y = W\, N(\mathrm{mish}(d\, s + o)) + b

    with N a layer norm without scale and offset.

    Args:
        length: [D] lengths, without gradient.
        slope: [P] s.
        offset: [P] o.
        weight: [F, P] W.
        bias: [F] b.

    Returns:
        [D, F] numbers.

    Raises:
        ValueError: shapes or types that do not fit, lengths with gradient.
        NoKernelError: the kernel cannot be built here.
    """
    values = (length, slope, offset, weight, bias)
    fits = weight.shape == (bias.numel(), slope.numel()) and length.dim() == bias.dim() == 1
    if not fits or slope.shape != offset.shape or slope.dim() != 1 or len({t.dtype for t in values}) > 1:
        raise ValueError(f"embed_lengths was given {[(t.dtype, *t.shape) for t in values]}")
    if length.requires_grad:
        raise ValueError("embed_lengths has no gradient of lengths")
    return _EmbedLengths.apply(length, slope, offset, weight, bias)
