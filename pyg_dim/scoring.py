"""Scores of several sets of constituents, and the means of their losses: as it stands, compiled, and in one kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from pyg_dim import native
from pyg_dim.constituents import Constituents, Parts
from pyg_dim.critic import Critic, DotProductCritic
from pyg_dim.losses import Estimator, group_mean, info_nce_term, jensen_shannon_term
from pyg_dim.native.pair_rows import pair_rows
from pyg_dim.native.scores import Keys, Way, score_rows
from pyg_dim.rows import gather_rows, same_memory

Scored = tuple[bool, Tensor, Tensor | None]
"""A way in which constituents are scored: (belongs, [n] target, [n] weight or None)."""


def _keys(critic: Critic, parts: Parts) -> Tensor:
    """Keys of all constituents; those that are gathered rows and nothing else are worked out row by row."""
    (features, index), *others = parts
    if others or index is None:
        return critic.keys(Constituents(*parts))
    return critic.keys(Constituents((features, None))).index_select(0, index)


def score_terms(
    critic: Critic,
    z: Tensor,
    sets: Sequence[tuple[Parts, Sequence[Scored]]],
    estimator: Estimator = "jensen_shannon",
) -> list[tuple[Tensor, Tensor]]:
    """Group means of the terms of several sets of scored constituents.

    Args:
        critic: what scores.
        z: [G, D] representations.
        sets: parts of n constituents, with the ways in which they are scored: (belongs, target [n], weight [n] or
            None). The first way of the first set is that of the true constituents.
        estimator: "jensen_shannon", or "info_nce", which has no term of the true constituents alone: theirs is zero.

    Returns:
        ([G] means, [G] bool) of each way, in order.
    """
    queries, offsets = critic.queries(z)
    scored = []
    for parts, ways in sets:
        keys = _keys(critic, parts)
        for belongs, target, weight in ways:
            score = (gather_rows(queries, target) * keys).sum(dim=-1) + offsets.index_select(0, target)
            # Sums over the constituents of a group are taken in float32 at least.
            score = score.float() if score.dtype in (torch.bfloat16, torch.float16) else score
            scored.append((score, belongs, target, weight))
    if estimator == "jensen_shannon":
        return [
            group_mean(jensen_shannon_term(score, belongs=belongs), target, z.size(0), weight)
            for score, belongs, target, weight in scored
        ]
    (true, _, index, true_weight), *false = scored
    return [
        # Zero, with a zero gradient also where there is no false sample at all.
        group_mean(true * 0.0, index, z.size(0), true_weight),
        *(
            info_nce_term(true, index, true_weight, score, target, weight, z.size(0))
            for score, _, target, weight in false
        ),
    ]


@cache
def compiled_score_terms() -> Callable[..., list[tuple[Tensor, Tensor]]]:
    """:func:`score_terms` fused by torch.compile, one compilation for batches of every size."""
    return torch.compile(score_terms, dynamic=True)


def fused_score_terms(
    critic: Critic,
    z: Tensor,
    sets: Sequence[tuple[Parts, Sequence[Scored]]],
    index: Tensor,
    group_targets: Sequence[Tensor | None],
) -> list[tuple[Tensor, Tensor]] | None:
    """:func:`score_terms` (Jensen-Shannon) in one kernel on the CPU, which builds no key of a constituent.

    Args:
        critic: what scores.
        z: [G, D] representations.
        sets: as for :func:`score_terms`.
        index: [n] group of each constituent, the same for all sets.
        group_targets: of each way, in order: [G] group that the constituents of each group are scored against.

    Returns:
        As :func:`score_terms`; None where the kernel does not cover it: another critic; constituents that are gathered
        from other rows than those of the groups, or not sorted by group; targets that are not those of whole groups;
        what :func:`pyg_dim.native.usable` excludes.
    """
    targets = [target for target in group_targets if target is not None]
    # A subclass may have other keys.
    if type(critic) is not DotProductCritic or len(targets) < len(group_targets):
        return None
    width, dtype = critic.c_hidden.out_features, z.dtype
    if dtype != critic.c_hidden.weight.dtype or not native.usable(z.new_empty(width)):
        return None
    if any(weight is not None and weight.requires_grad for _, ways in sets for _, _, weight in ways):
        return None
    if native.fault("scores", dtype, KEY=width) is not None:
        return None
    layers = [_hidden_layer(critic, parts, index, z.size(0)) for parts, _ in sets]
    known = [layer for layer in layers if layer is not None]
    first = sets[0][0]
    alike = all(
        [(f.size(-1), index is None) for f, index in parts] == [(f.size(-1), index is None) for f, index in first]
        for parts, _ in sets
    )
    if len(known) < len(layers) or not alike:
        return None
    keys, slopes = [keys for keys, _ in known], [slope for _, slope in known]
    if any(not same_memory(one.index, keys[0].index) for one in keys):
        return None
    try:
        rows = pair_rows(keys[0].index, index, z.size(0))
    except ValueError:
        return None
    ways = [
        Way(number, belongs, target, weight)
        for (number, (belongs, _, weight)), target in zip(
            ((k, way) for k, (_, ways) in enumerate(sets) for way in ways), targets, strict=True
        )
    ]
    queries, offsets = critic.queries(z)
    slope = queries.new_zeros(queries.size(1)) if slopes[0] is None else slopes[0]
    sums, norms = score_rows(queries, offsets, slope, keys, ways, rows)
    # Groups of other ways are kept apart by their numbers.
    place = torch.cat([target + k * z.size(0) for k, target in enumerate(targets)])
    weight = norms.flatten()
    share = sums.flatten() / weight.where(weight > 0, torch.ones_like(weight))
    means, valid = group_mean(share, place, sums.numel(), weight)
    return list(zip(means.view_as(sums).unbind(), valid.view_as(sums).unbind(), strict=True))


def _hidden_layer(
    critic: DotProductCritic, parts: Parts, group: Tensor, groups: int
) -> tuple[Keys, Tensor | None] | None:
    """First layer of the critic before its activation, as the kernel wants it, and the slope of lengths."""
    layer = critic.c_hidden
    shared = source = own = length = slope = None
    for (features, index), weight in zip(parts, layer.weight.split([f.size(-1) for f, _ in parts], dim=1), strict=True):
        if index is not None:
            if features.size(0) != groups or (source is not None and not same_memory(source, index)):
                return None
            source = index
            shared = features @ weight.T if shared is None else shared + features @ weight.T
        elif length is None and features.size(-1) == 1:
            if features.dtype != weight.dtype or features.requires_grad:
                return None
            length, slope = features[:, 0], weight[:, 0]
        else:
            own = features @ weight.T if own is None else own + features @ weight.T
    if shared is not None:
        shared = shared + layer.bias
    elif own is not None:
        own = own + layer.bias
    else:
        return None
    return Keys(shared, group if source is None else source, own, length), slope
