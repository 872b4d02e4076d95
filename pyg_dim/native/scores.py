"""Sums of the losses of scored constituents in one kernel, which builds no key of a constituent in memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyg_dim.native.library import call, library, pointer, threads
from pyg_dim.native.pair_rows import PairRows


@dataclass(frozen=True)
class Keys:
    """Hidden layer of a set of constituents, before its activation: shared[index] + own + length * slope.

    Attributes:
        shared: [G, K] what constituents of the same source share, or None.
        index: [n] int64, source of each; its group where nothing is shared.
        own: [n, K] what each adds, or None.
        length: [n] number that each adds a multiple of ``slope`` for, without gradient, or None.
    """

    shared: Tensor | None
    index: Tensor
    own: Tensor | None
    length: Tensor | None


@dataclass(frozen=True)
class Way:
    """One way in which a set of constituents is scored.

    Attributes:
        keys: number of the set.
        belongs: whether the constituents are true ones.
        target: [G] int64, group that the constituents of each row are scored against.
        weight: [n] weights >= 0 without gradient, or None for equal ones.
    """

    keys: int
    belongs: bool
    target: Tensor
    weight: Tensor | None


class _Set(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("shared", "index", "own", "length", "d_shared", "d_own")]


class _Way(ctypes.Structure):
    _fields_ = [
        ("set", ctypes.c_int64), ("belongs", ctypes.c_int64), ("target", ctypes.c_void_p), ("weight", ctypes.c_void_p)
    ]  # fmt: skip


class _ScoreRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: PairRows,
        indices: list[Tensor],
        lengths: list[Tensor | None],
        ways: list[Way],
        queries: Tensor,
        offsets: Tensor,
        slope: Tensor,
        *features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        queries, offsets, slope = (tensor.contiguous() for tensor in (queries, offsets, slope))
        features = tuple(None if tensor is None else tensor.contiguous() for tensor in features)
        sums = queries.new_empty(len(ways), queries.size(0))
        norms = torch.empty_like(sums)
        ctx.rows, ctx.indices, ctx.lengths, ctx.ways = rows, indices, lengths, ways
        call(
            library("scores", sums.dtype, KEY=queries.size(1)).score_rows,
            *(sums, norms, queries, offsets, slope),
            *_sets(features, indices, lengths), *_ways(ways), *_rows(rows), threads(),
        )  # fmt: skip
        ctx.save_for_backward(queries, offsets, slope, *features)
        ctx.mark_non_differentiable(norms)
        return sums, norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
        queries, offsets, slope, *features = ctx.saved_tensors
        found = [None if tensor is None else torch.zeros_like(tensor) for tensor in features]
        d_slope = torch.zeros_like(slope)
        d_queries = queries.new_empty(len(ctx.ways), *queries.shape)
        d_offsets = queries.new_empty(len(ctx.ways), queries.size(0))
        call(
            library("scores", queries.dtype, KEY=queries.size(1)).score_rows_backward,
            *(gradient.contiguous(), queries, offsets, slope),
            *_sets(features, ctx.indices, ctx.lengths, found), *_ways(ctx.ways), *_rows(ctx.rows),
            *(d_queries, d_offsets, d_slope, threads()),
        )  # fmt: skip
        target = torch.cat([way.target for way in ctx.ways])
        at_queries = torch.zeros_like(queries).index_add_(0, target, d_queries.flatten(0, 1))
        at_offsets = torch.zeros_like(offsets).index_add_(0, target, d_offsets.flatten())
        return None, None, None, None, at_queries, at_offsets, d_slope, *found


def _sets(
    features: Sequence[Tensor | None],
    indices: Sequence[Tensor],
    lengths: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None] | None = None,
) -> tuple[Any, int]:
    gradients = [None] * len(features) if gradients is None else gradients
    made = [
        _Set(*(pointer(t).value for t in (features[2 * k], indices[k], features[2 * k + 1], lengths[k],
                                          gradients[2 * k], gradients[2 * k + 1])))
        for k in range(len(indices))
    ]  # fmt: skip
    return (_Set * len(made))(*made), len(made)


def _ways(ways: Sequence[Way]) -> tuple[Any, int]:
    made = [_Way(way.keys, way.belongs, pointer(way.target).value, pointer(way.weight).value) for way in ways]
    return (_Way * len(made))(*made), len(made)


def _rows(rows: PairRows) -> tuple[Any, ...]:
    return rows.first, rows.block, rows.blocks, rows.longest


def score_rows(
    queries: Tensor, offsets: Tensor, slope: Tensor, keys: Sequence[Keys], ways: Sequence[Way], rows: PairRows
) -> tuple[Tensor, Tensor]:
    r"""Sums of the Jensen-Shannon terms of the constituents of each row.

    .. math:: L_{w,g} = \sum_{n \in g} \omega_n\, \mathrm{sp}\!\left(\mp (q_{t_w(g)} \cdot k_n + o_{t_w(g)})\right),
              \qquad k_n = \mathrm{mish}(a_{j_n} + b_n + d_n s)

    Args:
        queries: [G, K] q.
        offsets: [G] o.
        slope: [K] s.
        keys: sets of constituents, in the rows of ``rows``; where they share something, their sources are those of the
            rows.
        ways: ways in which they are scored.
        rows: the rows.

    Returns:
        ([ways, G] sums, [ways, G] sums of the weights).

    Raises:
        ValueError: shapes or types that do not fit, targets or sources that are not there.
        NoKernelError: the kernel cannot be built here.
    """
    _check(queries, offsets, slope, keys, ways, rows)
    ways = [Way(w.keys, w.belongs, w.target.contiguous(), _contiguous(w.weight, queries.dtype)) for w in ways]
    features = [tensor for one in keys for tensor in (one.shared, one.own)]
    indices = [one.index.contiguous() for one in keys]
    lengths = [_contiguous(one.length, queries.dtype) for one in keys]
    return _ScoreRows.apply(rows, indices, lengths, ways, queries, offsets, slope, *features)


def _check(
    queries: Tensor, offsets: Tensor, slope: Tensor, keys: Sequence[Keys], ways: Sequence[Way], rows: PairRows
) -> None:
    groups, width, pairs = rows.first.numel() - 1, slope.numel(), rows.source.numel()
    expected: list[tuple[Tensor | None, tuple[int, ...]]] = [
        (queries, (groups, width)), (offsets, (groups,)), (slope, (width,))
    ]  # fmt: skip
    for one in keys:
        expected += [(one.shared, (groups, width)), (one.own, (pairs, width)), (one.length, (pairs,))]
        if one.shared is not None and not torch.equal(one.index, rows.source):
            raise ValueError("the sources of constituents are not those of the rows")
    expected += [(way.weight, (pairs,)) for way in ways]
    for values, shape in expected:
        if values is not None and values.shape != shape:
            raise ValueError(f"score_rows was given numbers of shape {tuple(values.shape)} where {shape} is needed")
    types = {t.dtype for t in (queries, offsets, slope, *(t for k in keys for t in (k.shared, k.own) if t is not None))}
    if len(types) > 1:
        raise ValueError(f"score_rows takes numbers of one type, not {types}")
    if any(t is not None and t.requires_grad for t in (*(k.length for k in keys), *(w.weight for w in ways))):
        raise ValueError("score_rows has no gradient of lengths and weights")
    for way in ways:
        if way.target.shape != (groups,) or way.target.dtype != torch.int64:
            raise ValueError("score_rows needs an int64 target of each group")
        if groups and not 0 <= int(way.target.min()) <= int(way.target.max()) < groups:
            raise ValueError(f"targets of constituents lie outside of the {groups} groups")


def _contiguous(values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if values is None else values.to(dtype).contiguous()
