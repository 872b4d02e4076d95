"""A level: one step of aggregation seen as a block, with the critic and the noise that make it learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, Literal

import torch
from torch import Tensor, nn

from pyg_dim.constituents import Constituents, Parts
from pyg_dim.critic import DotProductCritic
from pyg_dim.false_samples.other import other_targets
from pyg_dim.losses import KL_FORMS, KLForm, crystal_mean, group_mean, jensen_shannon_term, kl_term
from pyg_dim.noise import ConditionalNoise, LearnedNoise, perturb
from pyg_dim.tape import FalseSample, LevelLoss, Record, Scope, active_tape

NoiseForm = Literal["conditional", "learned", "none"]
NOISE_FORMS: Final = ("conditional", "learned", "none")
Scored = tuple[bool, Tensor, Tensor | None]


def score_terms(
    critic: DotProductCritic, z: Tensor, sets: Sequence[tuple[Parts, Sequence[Scored]]]
) -> list[tuple[Tensor, Tensor]]:
    """Group means of the Jensen-Shannon terms of several sets of scored constituents.

    Args:
        critic: what scores.
        z: [G, D] representations.
        sets: parts of n constituents, with the ways in which they are scored: (belongs, target [n], weight [n] or
            None).

    Returns:
        ([G] means, [G] bool) of each way, in order.
    """
    queries, offsets = critic.queries(z)
    means = []
    for parts, ways in sets:
        keys = critic.keys(Constituents(*parts))
        for belongs, target, weight in ways:
            score = (queries[target] * keys).sum(dim=-1) + offsets[target]
            # Sums over the constituents of a group are taken in float32 at least.
            score = score.float() if score.dtype in (torch.bfloat16, torch.float16) else score
            means.append(group_mean(jensen_shannon_term(score, belongs=belongs), target, z.size(0), weight))
    return means


@cache
def compiled_score_terms() -> Callable[..., list[tuple[Tensor, Tensor]]]:
    """:func:`score_terms` fused by torch.compile, one compilation for batches of every size."""
    return torch.compile(score_terms, dynamic=True)


class Level(nn.Module):
    r"""Critic, noise and recording of one level; called at the exit of a block.

    Outside a recording it hands z on and does nothing. The loss of a recorded call is, for group g with constituents n
    and false samples c† of the kinds k,

    .. math:: J_g = \mathrm{mean}_n\, \mathrm{sp}(-s(\tilde z_g, c_n))
              + \mathrm{mean}_k\, \mathrm{mean}_{n: \mathrm{target}_k(n) = g}\,
              \mathrm{sp}(s(\tilde z_g, c^\dagger_{k,n}))

    then the mean over the groups of a crystal, then over crystals. A kind without a valid sample for a group leaves
    that group's mean over kinds; groups without constituents, or without any false sample, are left out.

    Args:
        channels: length of the representation z.
        constituent_channels: width of a constituent.
        hidden_channels: width of the vector that conditional noise is read from; that of z where None.
        scope: what a group is: "site", "crystal", "edge"; found from the sizes where None.
        noise: "conditional" (the authors' code), "learned" (the paper's text) or "none".
        kl: form of the KL term, see :func:`~pyg_dim.losses.kl_term`.
        critic: what scores; a :class:`~pyg_dim.critic.DotProductCritic` where None.

    Attributes:
        compiled: score with code that torch.compile fuses (the same numbers); worth it where constituents are many.

    Raises:
        ValueError: unknown noise or KL form.

    Source: Moran et al., Digital Discovery 2025, 4, 790, fig. 3, eq. 3 to 6; log-variance form of noise: their code.
    """

    def __init__(
        self,
        channels: int,
        constituent_channels: int,
        *,
        hidden_channels: int | None = None,
        scope: Scope | None = None,
        noise: NoiseForm = "conditional",
        kl: KLForm = "log_variance",
        critic: DotProductCritic | None = None,
    ) -> None:
        super().__init__()
        if noise not in NOISE_FORMS:
            raise ValueError(f"unknown noise {noise!r}; known: {', '.join(NOISE_FORMS)}")
        if kl not in KL_FORMS:
            raise ValueError(f"unknown KL form {kl!r}; known: {', '.join(KL_FORMS)}")
        self.scope: Scope | None = scope
        self.kl: KLForm = kl
        self.critic = DotProductCritic(channels, constituent_channels) if critic is None else critic
        self.noise: ConditionalNoise | LearnedNoise | None = None
        if noise == "conditional":
            self.noise = ConditionalNoise(channels if hidden_channels is None else hidden_channels, channels)
        elif noise == "learned":
            self.noise = LearnedNoise(channels)
        self.compiled = False

    def reset_parameters(self) -> None:
        """Draw new parameters for critic and noise."""
        self.critic.reset_parameters()
        if self.noise is not None:
            self.noise.reset_parameters()

    def forward(
        self,
        z: Tensor,
        *,
        constituents: Constituents | Tensor,
        index: Tensor,
        hidden: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Record the call where a recording is on, and hand z on.

        Args:
            z: [G, D] representations of the groups.
            constituents: n constituents, as a [n, F] tensor or in parts.
            index: [n] group of each constituent.
            hidden: [G, H] vectors that conditional noise is read from; z where None.
            weight: [n] weights >= 0 of the constituents; equal where None.

        Returns:
            z, without gradient in an isolated recording.
        """
        tape = active_tape()
        if tape is None or self not in tape.names:
            return z
        if isinstance(constituents, Tensor):
            constituents = Constituents((constituents, None))
        tape.add(self, z, constituents, index, z if hidden is None else hidden, weight)
        return z.detach() if tape.isolate else z

    def loss(
        self,
        record: Record,
        false: Sequence[FalseSample] = (),
        *,
        other: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> LevelLoss:
        """Loss of one recorded call.

        Args:
            record: the call.
            false: its false samples beside ``other``.
            other: score the true constituents against the representations of other crystals.
            noise: [G, D] standard normal numbers for eq. 3; drawn where None. Not used in evaluation mode.
            generator: random numbers, on the device of the record.

        Returns:
            Its :class:`~pyg_dim.tape.LevelLoss`.
        """
        z, kl = record.z, None
        if self.noise is not None:
            log_variance = self.noise(record.hidden)
            kl = kl_term(record.z, log_variance, self.kl)
            if record.training:
                z = perturb(record.z, log_variance, noise=noise, generator=generator)

        kinds = ["true"]
        true_set: tuple[Constituents, list[Scored]] = (record.constituents, [(True, record.index, record.weight)])
        sets = [true_set]
        if other:
            crystal = record.crystal if record.num_crystals > 1 else None
            target, valid = other_targets(z.size(0), crystal, device=z.device, generator=generator)
            keep = valid[record.index].to(z.dtype)
            weight = keep if record.weight is None else record.weight * keep
            true_set[1].append((False, target[record.index], weight))
            kinds.append("other")
        for sample in false:
            if sample.constituents is not sets[-1][0]:
                sets.append((sample.constituents, []))
            sets[-1][1].append((False, sample.target, sample.weight))
            kinds.append(sample.kind)

        terms = compiled_score_terms() if self.compiled else score_terms
        means = terms(self.critic, z, [(constituents.parts, ways) for constituents, ways in sets])
        true, exists = means[0]
        count = torch.stack([valid for _, valid in means[1:]]).sum(0) if means[1:] else torch.zeros_like(true)
        false_sum = torch.stack([term for term, _ in means[1:]]).sum(0) if means[1:] else torch.zeros_like(true)
        counted = exists & (count > 0)

        def mean(values: Tensor, valid: Tensor) -> Tensor:
            return crystal_mean(values, valid, record.crystal, record.num_crystals)

        groups = exists.sum().clamp(min=1)
        return LevelLoss(
            js=mean(true + false_sum / count.clamp(min=1), counted),
            counted=counted.sum() / groups,
            kl=None if kl is None else crystal_mean(kl, exists, None, 0),
            terms={kind: mean(term.detach(), valid & exists) for kind, (term, valid) in zip(kinds, means, strict=True)},
            coverage={
                kind: (valid & exists).sum() / groups for kind, (_, valid) in zip(kinds[1:], means[1:], strict=True)
            },
        )
