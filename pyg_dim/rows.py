"""Gathering rows and adding them up, in eager and in compiled code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows of a matrix by number, some of them several times.

    torch.compile makes of the gradient a loop of single additions, which on a CPU takes many times as long as PyTorch's
    own kernel: compiled code calls that kernel there, as does that of :func:`add_rows`.

    Args:
        values: [m, ...] rows.
        index: [n] int64, numbers of rows.

    Returns:
        [n, ...] rows.
    """
    return _gather(values, index) if _calls_kernels(values) else values.index_select(0, index)


def add_rows(values: Tensor, index: Tensor, rows: int) -> Tensor:
    """Sums over the rows of each group.

    Args:
        values: [n, ...] rows.
        index: [n] int64, group of each.
        rows: number of groups m.

    Returns:
        [m, ...] sums; zero where a group has no row.
    """
    if _calls_kernels(values):
        return _add(values, index, rows)
    return values.new_zeros(rows, *values.shape[1:]).index_add(0, index, values)


def group_share(values: Tensor, index: Tensor, groups: int) -> Tensor:
    """Share of each value in the sum of its group.

    Args:
        values: [n] numbers above zero.
        index: [n] int64, group of each.
        groups: number of groups.

    Returns:
        [n] numbers that add up to one in each group, in the type of the values; computed in float32 at least.
    """
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    total = exact.new_zeros(groups).index_add(0, index, exact)
    return (exact / total.index_select(0, index)).to(values.dtype)


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same piece of memory, so that they are equal without a look at their numbers."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _calls_kernels(values: Tensor) -> bool:
    # A GPU adds atomically without loss, and gathering fuses with what follows.
    return torch.compiler.is_compiling() and values.device.type == "cpu"


@torch.library.custom_op("pyg_dim::gather_rows", mutates_args=())
def _gather(values: Tensor, index: Tensor) -> Tensor:
    return values.index_select(0, index)


@torch.library.custom_op("pyg_dim::add_rows", mutates_args=())
def _add(values: Tensor, index: Tensor, rows: int) -> Tensor:
    return values.new_zeros(rows, *values.shape[1:]).index_add_(0, index, values)


@_gather.register_fake
def _(values: Tensor, index: Tensor) -> Tensor:
    return values.new_empty(index.size(0), *values.shape[1:])


@_add.register_fake
def _(values: Tensor, index: Tensor, rows: int) -> Tensor:
    return values.new_empty(rows, *values.shape[1:])


def _keep_gather(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.rows = inputs[0].size(0)
    ctx.save_for_backward(inputs[1])


def _keep_add(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _gather_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return _add(gradient, ctx.saved_tensors[0], ctx.rows), None


def _add_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _gather(gradient, ctx.saved_tensors[0]), None, None


_gather.register_autograd(_gather_backward, setup_context=_keep_gather)
_add.register_autograd(_add_backward, setup_context=_keep_add)
