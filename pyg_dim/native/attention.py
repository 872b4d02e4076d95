"""Attention of sites over their pairs in one kernel, which keeps nothing of a pair between forward and backward."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyg_dim.native.library import library, pointer
from pyg_dim.native.pair_rows import PairRows


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        at_target: Tensor,
        at_source: Tensor,
        at_pair: Tensor,
        logits: Tensor,
        weight: Tensor,
        bias: Tensor,
        rows: PairRows,
        count: Tensor | None,
    ) -> Tensor:
        values = [tensor.contiguous() for tensor in (at_target, at_source, at_pair, logits, weight.T, bias)]
        out = at_target.new_empty(at_target.size(0), logits.size(0) * bias.numel())
        ctx.widths = {
            "ATTENTION": logits.size(1), "HIDDEN": weight.size(1), "VALUE": bias.numel(), "HEADS": logits.size(0)
        }  # fmt: skip
        ctx.rows, ctx.count = rows, count
        library("attention", out.dtype, **ctx.widths).attend(
            pointer(out), *map(pointer, values), *_graph(rows, count), torch.get_num_threads()
        )
        ctx.save_for_backward(*values, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        at_target, at_source, at_pair, logits, transposed, bias, weight = ctx.saved_tensors
        found = [torch.zeros_like(t) for t in (at_target, at_source, at_pair, logits, transposed, bias)]
        library("attention", gradient.dtype, **ctx.widths).attend_backward(
            *map(pointer, (gradient.contiguous(), at_target, at_source, at_pair, logits, transposed)),
            *map(pointer, (weight.contiguous(), bias)), *_graph(ctx.rows, ctx.count),
            *map(pointer, found), torch.get_num_threads(),
        )  # fmt: skip
        found[4] = found[4].T
        return (*found, None, None)


def _graph(rows: PairRows, count: Tensor | None) -> tuple[Any, ...]:
    return (
        *map(pointer, (rows.first, rows.source, rows.place, count, rows.block)),
        ctypes.c_int64(rows.blocks),
        ctypes.c_int64(rows.longest),
    )


def attend(
    at_target: Tensor,
    at_source: Tensor,
    at_pair: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    rows: PairRows,
    count: Tensor | None = None,
) -> Tensor:
    r"""Softmax-weighted sums of the values of all pairs of each site.

    With :math:`[a, b]_{ij} = \mathrm{mish}(t_i + s_j + p_{d_{ij}})` and N a layer norm without scale and offset,

    .. math:: u_i^h = \sum_j \mathrm{softmax}_j\left(q^h \cdot N(a_{ij}) + \ln m_{ij}\right)
              N(\mathrm{mish}(W\, N(b_{ij}) + b))

    Args:
        at_target: [N, A + B] what the target adds to the first layers of attention (A) and values (B).
        at_source: [N, A + B] what the source adds.
        at_pair: [D, A + B] what each different length adds.
        logits: [heads, A] q.
        weight: [V, B] W.
        bias: [V] b.
        rows: the pairs.
        count: [E] multiplicity m of each pair, in the type of the others; one where None.

    Returns:
        [N, heads * V] sums; zero where a site has no pair.

    Raises:
        NoKernelError: the kernel cannot be built here.
    """
    return _Attend.apply(at_target, at_source, at_pair, logits, weight, bias, rows, count)
