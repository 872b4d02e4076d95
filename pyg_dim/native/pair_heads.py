"""Gates and weighted sums of the hidden layers of pairs, of which nothing is kept between forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyg_dim.native.library import call, library, threads
from pyg_dim.native.pair_rows import PairRows


class _GatePairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at_target: Tensor, at_source: Tensor, weight: Tensor, rows: PairRows) -> Tensor:
        values = [tensor.contiguous() for tensor in (at_target, at_source, weight)]
        gate = at_target.new_empty(rows.source.numel(), weight.size(0))
        call(_library(weight.size(0), at_target).gate_pairs, gate, *values, *_graph(rows), threads())
        ctx.rows = rows
        ctx.save_for_backward(*values)
        return gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        at_target, at_source, weight = ctx.saved_tensors
        found = [torch.empty_like(at_target), torch.zeros_like(at_source), torch.zeros_like(weight)]
        call(
            _library(weight.size(0), at_target).gate_pairs_backward,
            *(gradient.contiguous(), at_target, at_source, weight), *_graph(ctx.rows), *found, threads(),
        )  # fmt: skip
        return (*found, None)


class _SumPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at_target: Tensor, at_source: Tensor, share: Tensor, rows: PairRows) -> Tensor:
        values = [tensor.contiguous() for tensor in (at_target, at_source, share)]
        heads = share.size(1)
        out = at_target.new_empty(at_target.size(0), heads, at_target.size(1) // heads)
        call(_library(heads, at_target).sum_pairs, out, *values, *_graph(rows), threads())
        ctx.rows = rows
        ctx.save_for_backward(*values)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        at_target, at_source, share = ctx.saved_tensors
        found = [torch.zeros_like(at_target), torch.zeros_like(at_source), torch.empty_like(share)]
        call(
            _library(share.size(1), at_target).sum_pairs_backward,
            *(gradient.contiguous(), at_target, at_source, share), *_graph(ctx.rows), *found, threads(),
        )  # fmt: skip
        return (*found, None)


def _library(heads: int, values: Tensor) -> Any:
    return library("pair_heads", values.dtype, HEADS=heads, CHANNELS=values.size(1) // heads)


def _graph(rows: PairRows) -> tuple[Any, ...]:
    return rows.source, rows.first, rows.block, rows.blocks, rows.longest


def gate_pairs(at_target: Tensor, at_source: Tensor, weight: Tensor, rows: PairRows) -> Tensor:
    r"""Logits of all pairs.

    .. math:: g_{ij}^h = w^h \cdot \mathrm{leaky\_relu}(t_i^h + s_j^h)

    Args:
        at_target: [N, heads * C] t, what the target adds to the hidden layers (slope 0.01).
        at_source: [N, heads * C] s, what the source adds.
        weight: [heads, C] w.
        rows: the E pairs.

    Returns:
        [E, heads] logits.

    Raises:
        ValueError: shapes or types that do not fit.
        NoKernelError: the kernel cannot be built here.
    """
    _require("gate_pairs", at_target, at_source, weight, weight.shape, rows)
    return _GatePairs.apply(at_target, at_source, weight, rows)


def sum_pairs(at_target: Tensor, at_source: Tensor, share: Tensor, rows: PairRows) -> Tensor:
    r"""Weighted sums over the pairs of each target.

    .. math:: u_i^h = \sum_j a_{ij}^h\, \mathrm{leaky\_relu}(t_i^h + s_j^h)

    Args:
        at_target: [N, heads * C] t, what the target adds to the hidden layers (slope 0.01).
        at_source: [N, heads * C] s, what the source adds.
        share: [E, heads] a.
        rows: the E pairs.

    Returns:
        [N, heads, C] sums; zero where a target has no pair.

    Raises:
        ValueError: shapes or types that do not fit.
        NoKernelError: the kernel cannot be built here.
    """
    _require("sum_pairs", at_target, at_source, share, (rows.source.numel(), share.size(-1)), rows)
    return _SumPairs.apply(at_target, at_source, share, rows)


def _require(
    name: str, at_target: Tensor, at_source: Tensor, third: Tensor, wanted: Sequence[int], rows: PairRows
) -> None:
    sites = rows.first.numel() - 1
    values = (at_target, at_source, third)
    width = at_target.size(-1)
    fits = at_target.shape == at_source.shape == (sites, width) and third.shape == torch.Size(wanted)
    divides = width == third.numel() if name == "gate_pairs" else width % third.size(-1) == 0
    if not fits or not divides or len({t.dtype for t in values}) > 1:
        raise ValueError(f"{name} was given {[(t.dtype, *t.shape) for t in values]} for {sites} sites")
