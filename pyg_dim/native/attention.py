"""Attention of sites over their pairs in one kernel, which keeps nothing of a pair between forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyg_dim.native.library import call, library, threads
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
        call(library("attention", out.dtype, **ctx.widths).attend, out, *values, *_graph(rows, count), threads())
        ctx.save_for_backward(*values, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        at_target, at_source, at_pair, logits, transposed, bias, weight = ctx.saved_tensors
        found = [torch.zeros_like(t) for t in (at_target, at_source, at_pair, logits, transposed, bias)]
        call(
            library("attention", gradient.dtype, **ctx.widths).attend_backward,
            *(gradient.contiguous(), at_target, at_source, at_pair, logits, transposed, weight.contiguous(), bias),
            *_graph(ctx.rows, ctx.count), *found, threads(),
        )  # fmt: skip
        found[4] = found[4].T
        return (*found, None, None)


def _graph(rows: PairRows, count: Tensor | None) -> tuple[Any, ...]:
    return rows.first, rows.source, rows.place, count, rows.block, rows.blocks, rows.longest


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
        rows: the pairs, with their lengths.
        count: [E] multiplicity m > 0 of each pair, in the type of the others, without gradient; one where None.

    Returns:
        [N, heads * V] sums; zero where a site has no pair.

    Raises:
        ValueError: shapes or types that do not fit.
        NoKernelError: the kernel cannot be built here.
    """
    values = (at_target, at_source, at_pair, logits, weight, bias)
    sites, width = rows.first.numel() - 1, logits.size(1) + weight.size(1)
    shapes = [(sites, width), (sites, width), (rows.member.numel(), width), logits.shape[:2], weight.shape[:2]]
    if [t.shape for t in values] != [*shapes, weight.shape[:1]] or len({t.dtype for t in values}) > 1:
        raise ValueError(f"attend was given {[(t.dtype, *t.shape) for t in values]} for {sites} sites")
    if rows.place.shape != rows.source.shape:
        raise ValueError("attend needs rows that were made with the lengths of their pairs")
    if count is not None and (count.shape != rows.source.shape or count.dtype != bias.dtype or count.requires_grad):
        raise ValueError("attend needs a count for each pair, in the type of the others and without gradient")
    count = None if count is None else count.contiguous()
    return _Attend.apply(at_target, at_source, at_pair, logits, weight, bias, rows, count)
