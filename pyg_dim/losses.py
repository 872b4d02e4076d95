"""Jensen-Shannon, InfoNCE and KL terms of Deep InfoMax, and the means they are taken over."""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

JS_BASELINE: Final = 2.0 * math.log(2.0)
"""2 ln 2, the Jensen-Shannon loss of a critic that scores everything zero. It is the line to fall below."""

Estimator = Literal["jensen_shannon", "info_nce"]
ESTIMATORS: Final[dict[Estimator, str]] = {"jensen_shannon": "js", "info_nce": "nce"}
"""Losses of scored constituents, and their short names in logs."""
BASELINES: Final = {"js": JS_BASELINE, "nce": 0.0}
"""What a critic that scores everything zero gets, by short name."""

KLForm = Literal["log_variance", "paper"]
KL_FORMS: Final = ("log_variance", "paper")


def jensen_shannon_term(score: Tensor, *, belongs: bool) -> Tensor:
    r"""Jensen-Shannon term of each score; a high score says that the constituent belongs to the set.

    .. math:: \mathrm{sp}(-s) \text{ where it belongs}, \quad \mathrm{sp}(+s) \text{ where it does not},
              \quad \mathrm{sp}(t) = \ln(1 + e^t)

    Softplus keeps its gradient where ``log(sigmoid + eps)`` saturates.

    Args:
        score: scores of the critic, any shape.
        belongs: whether the constituents are true ones.

    Returns:
        The terms, in the shape of ``score``.

    Source: Moran et al., Digital Discovery 2025, 4, 790, eq. 2 and 6 (with the opposite sign of the score, which is
    free).
    """
    return F.softplus(-score if belongs else score)


def group_mean(values: Tensor, index: Tensor, num_groups: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weighted mean of the values of each group; a group without weight gets zero and is marked invalid.

    Args:
        values: [n] values.
        index: [n] group of each value.
        num_groups: number of groups G.
        weight: [n] weights >= 0 that also carry masks, or None for equal weights.

    Returns:
        ([G] means, [G] bool: the group holds something).
    """
    weight = torch.ones_like(values) if weight is None else weight.to(values.dtype)
    total = values.new_zeros(num_groups).index_add(0, index, values * weight)
    norm = values.new_zeros(num_groups).index_add(0, index, weight)
    valid = norm > 0
    return torch.where(valid, total / norm.where(valid, torch.ones_like(norm)), torch.zeros_like(total)), valid


def info_nce_term(
    true: Tensor,
    index: Tensor,
    weight: Tensor | None,
    false: Tensor,
    target: Tensor,
    false_weight: Tensor | None,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    r"""InfoNCE terms: each true constituent of a group against all false samples that are scored against it.

    .. math:: J_g = \mathrm{mean}_n\, \left[ \ln \frac{e^{s_n} + \sum_{f=1}^{K} w_f e^{s_f}}{1 + K} - s_n \right],
              \qquad \mathrm{mean}_f\, w_f = 1

    The usual cross-entropy less :math:`\ln(1 + K)`, so that groups of different size compare: a critic that scores
    everything zero gets 0. (The negative loss bounds the mutual information from below only for false samples that are
    drawn independently; here those of a kind come from one other set together.)

    Args:
        true: [n] scores of the true constituents.
        index: [n] group of each.
        weight: [n] weights >= 0 of the mean over them, or None for equal ones.
        false: [m] scores of the false samples.
        target: [m] group that each is scored against.
        false_weight: [m] weights >= 0, zero where masked, or None for equal ones.
        num_groups: number of groups G.

    Returns:
        ([G] terms, [G] bool: the group has both).

    Source: van den Oord et al., Representation learning with contrastive predictive coding, 2018.
    """
    ones = torch.ones_like(false)
    share = ones if false_weight is None else false_weight.to(false.dtype)
    valid = share > 0
    count = false.new_zeros(num_groups).index_add(0, target, valid.to(false.dtype))
    norm = false.new_zeros(num_groups).index_add(0, target, share)
    some = count > 0
    safe_count, safe_norm = count.where(some, ones.new_ones(())), norm.where(some, ones.new_ones(()))
    # The largest score of each group is taken out of the sum, or large scores would overflow.
    floor = torch.finfo(false.dtype).min
    largest = false.new_full((num_groups,), floor).scatter_reduce(
        0, target, false.detach().where(valid, ones * floor), "amax"
    )
    largest = largest.where(some, torch.zeros_like(largest))
    rest = (false - largest.index_select(0, target)).where(valid, torch.zeros_like(false)).exp() * share
    total = false.new_zeros(num_groups).index_add(0, target, rest)
    total = total.where(some, torch.ones_like(total)) * safe_count / safe_norm
    log_sum = total.log() + largest
    terms = F.softplus(log_sum.index_select(0, index) - true) - count.log1p().index_select(0, index)
    means, exists = group_mean(terms, index, num_groups, weight)
    valid_groups = exists & some
    return means.where(valid_groups, torch.zeros_like(means)), valid_groups


def crystal_mean(values: Tensor, valid: Tensor, crystal: Tensor | None, num_crystals: int) -> Tensor:
    """Mean over the valid groups of each crystal, then over the crystals that have one.

    Args:
        values: [G] values of the groups.
        valid: [G] bool, the groups that count.
        crystal: [G] crystal of each group, or None where each group stands for itself.
        num_crystals: number of crystals B (not used without ``crystal``).

    Returns:
        Scalar; zero, with a zero gradient, where no group counts.
    """
    if crystal is not None:
        values, valid = group_mean(values, crystal, num_crystals, valid)
    count = valid.sum().clamp(min=1)
    return values.where(valid, torch.zeros_like(values)).sum() / count


def kl_term(z: Tensor, log_variance: Tensor, form: KLForm = "log_variance") -> Tensor:
    r"""KL term that keeps noisy representations near the unit normal, mean over the dimensions of each.

    With :math:`v = \ln \sigma^2`:

    - ``"log_variance"``: :math:`\tfrac12 z^2 + e^v - v`, the authors' code;
    - ``"paper"``: :math:`z^2 + \sigma - \ln \sigma`, eq. 4 as printed.

    Both are smallest at z = 0, :math:`\sigma = 1`, where each is 1.

    Args:
        z: [G, D] representations.
        log_variance: [G, D] or [D] log-variance v of their noise.
        form: ``"log_variance"`` or ``"paper"``.

    Returns:
        [G] KL terms.

    Raises:
        ValueError: unknown form.

    Source: Moran et al., Digital Discovery 2025, 4, 790, eq. 4.
    """
    # In float32 at least, as all losses.
    z, log_variance = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (z, log_variance))
    if form == "log_variance":
        terms = 0.5 * z.square() + log_variance.exp() - log_variance
    elif form == "paper":
        terms = z.square() + (0.5 * log_variance).exp() - 0.5 * log_variance
    else:
        raise ValueError(f"unknown KL form {form!r}; known: {', '.join(KL_FORMS)}")
    return terms.mean(dim=-1)
