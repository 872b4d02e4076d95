"""A level: one step of aggregation seen as a block, with the critic and the noise that make it learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from pyg_dim.constituents import Constituents
from pyg_dim.critic import CRITICS, Critic, CriticName
from pyg_dim.false_samples.other import other_targets
from pyg_dim.false_samples.unconnected import unconnected
from pyg_dim.losses import (
    ESTIMATORS,
    KL_FORMS,
    Estimator,
    KLForm,
    crystal_mean,
    kl_term,
)
from pyg_dim.noise import ConditionalNoise, LearnedNoise, perturb
from pyg_dim.scoring import Scored, compiled_score_terms, fused_score_terms, score_terms
from pyg_dim.tape import FalseSample, LevelLoss, Record, Scope, active_tape

NoiseForm = Literal["conditional", "learned", "none"]
NOISE_FORMS: Final = ("conditional", "learned", "none")
RECORD_KINDS: Final = ("other", "unconnected")
"""Kinds of false samples that are made of a record itself, without another pass."""


def _parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Every parameter as (module that holds it, its name there, its path)."""
    for path, _ in list(module.named_parameters()):
        holder, _, name = path.rpartition(".")
        yield module.get_submodule(holder), name, path


class Level(nn.Module):
    r"""Critic, noise and recording of one level; called at the exit of a block.

    Outside a recording it hands z on and does nothing. The loss of a recorded call is, for group g with constituents n
    and false samples c† of the kinds k,

    .. math:: J_g = \mathrm{mean}_n\, \mathrm{sp}(-s(\tilde z_g, c_n))
              + \mathrm{mean}_k\, \mathrm{mean}_{n: \mathrm{target}_k(n) = g}\,
              \mathrm{sp}(s(\tilde z_g, c^\dagger_{k,n}))

    then the mean over the groups of a crystal, then over crystals. A kind without a valid sample for a group leaves
    that group's mean over kinds; groups without constituents, or without any false sample, are left out. With the
    estimator "info_nce" the two terms of a kind are those of :func:`~pyg_dim.losses.info_nce_term`.

    Args:
        channels: length of the representation z; -1 to take it from the first call.
        constituent_channels: width of a constituent; -1 to take it from the first call.
        hidden_channels: width of the vector that conditional noise is read from; that of z where None.
        scope: what a group is: "site", "crystal", "edge"; found from the sizes where None.
        noise: "conditional" (the authors' code), "learned" (the paper's text) or "none".
        kl: form of the KL term, see :func:`~pyg_dim.losses.kl_term`.
        critic: what scores: "dot_product", "bilinear", or a class (or function) that makes a
            :class:`~pyg_dim.critic.Critic` of the two widths.
        estimator: loss of the scores: "jensen_shannon" or "info_nce".

    Attributes:
        fused: score with the kernel of ``pyg_dim.native`` where it covers the case (the same numbers).
        compiled: score with code that torch.compile fuses elsewhere; worth it where constituents are many.

    Raises:
        ValueError: a width that is neither positive nor -1; unknown noise, KL form, critic or estimator.

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
        critic: CriticName | Callable[[int, int], Critic] = "dot_product",
        estimator: Estimator = "jensen_shannon",
    ) -> None:
        super().__init__()
        for name, known, value in (
            ("noise", NOISE_FORMS, noise), ("KL form", KL_FORMS, kl), ("estimator", ESTIMATORS, estimator)
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        if isinstance(critic, str):
            if critic not in CRITICS:
                raise ValueError(f"unknown critic {critic!r}; known: {', '.join(CRITICS)}, or a class of your own")
            critic = CRITICS[critic]
        for width in (channels, constituent_channels):
            if width < 1 and width != -1:
                raise ValueError(f"a width must be positive, or -1 to take it from the first call; got {width}")
        self.channels, self.constituent_channels = channels, constituent_channels
        self.scope: Scope | None = scope
        self.kl: KLForm = kl
        self.estimator: Estimator = estimator
        self.fused = self.compiled = False
        self._make_critic, self._noise_form = critic, noise
        self.lazy = -1 in (channels, constituent_channels)
        hidden = channels if hidden_channels is None else hidden_channels
        # With widths of one where they are not known yet: the parameters exist, for an optimiser made too early.
        self.critic, self.noise = self._parts(*(abs(width) for width in (channels, constituent_channels, hidden)))
        if self.lazy:
            for module, name, _ in _parameters(self):
                setattr(module, name, UninitializedParameter())
            # Drawn here, so that the first call of a model leaves its random numbers (dropout) as they are.
            self._seed = int(torch.randint(2**62, ()))

    def _parts(
        self, channels: int, constituent_channels: int, hidden_channels: int
    ) -> tuple[Critic, ConditionalNoise | LearnedNoise | None]:
        noise: ConditionalNoise | LearnedNoise | None = None
        if self._noise_form == "conditional":
            noise = ConditionalNoise(hidden_channels, channels)
        elif self._noise_form == "learned":
            noise = LearnedNoise(channels)
        return self._make_critic(channels, constituent_channels), noise

    def materialise(self, channels: int, constituent_channels: int, hidden_channels: int) -> None:
        """Give parameters whose widths were not known their shapes and first values; the first call does it.

        Args:
            channels: length of z.
            constituent_channels: width of a constituent.
            hidden_channels: width of the vector that conditional noise is read from.

        Raises:
            ValueError: a width that was stated, or that parameters were loaded with, is another.
        """
        for stated, found in ((self.channels, channels), (self.constituent_channels, constituent_channels)):
            if stated not in (-1, found):
                raise ValueError(f"{self} was given a width of {found} where {stated} was stated")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            critic, noise = self._parts(channels, constituent_channels, hidden_channels)
        drawn = dict(nn.ModuleDict({"critic": critic} | ({} if noise is None else {"noise": noise})).named_parameters())
        waiting = dict(self.named_parameters())
        for path, parameter in waiting.items():
            if not isinstance(parameter, UninitializedParameter) and parameter.shape != drawn[path].shape:
                raise ValueError(
                    f"{self}: {path} was loaded with shape {tuple(parameter.shape)}, the model needs "
                    f"{tuple(drawn[path].shape)}: the parameters are those of another model"
                )
        some = next(iter(waiting.values()))
        self.critic, self.noise = critic, noise
        self.train(self.training).to(some.device, some.dtype)
        for module, name, path in _parameters(self):
            # The object stays, for the optimiser that holds it; its values stay where they were loaded.
            if isinstance(parameter := waiting[path], UninitializedParameter):
                parameter.materialize(drawn[path].shape)
                parameter.data.copy_(drawn[path].data)
            setattr(module, name, parameter)
        self.channels, self.constituent_channels, self.lazy = channels, constituent_channels, False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Values can be loaded before the first call: they bring their shapes.
        for _, _, path in _parameters(self):
            parameter, saved = self.get_parameter(path), state_dict.get(prefix + path)
            if isinstance(parameter, UninitializedParameter) and saved is not None:
                parameter.materialize(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def reset_parameters(self) -> None:
        """Draw new parameters for critic and noise; those without a shape yet draw theirs in the first call."""
        if self.lazy:
            return
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

        Raises:
            ValueError: in a recording, widths that are not those of the level.
        """
        tape = active_tape()
        recorded = tape is not None and self in tape.names
        if not (recorded or self.lazy):
            return z
        if isinstance(constituents, Tensor):
            constituents = Constituents((constituents, None))
        if self.lazy:
            self.materialise(z.size(1), constituents.channels, z.size(1) if hidden is None else hidden.size(1))
        if tape is None or not recorded:
            return z
        for what, found, stated in (
            ("constituents", constituents.channels, self.constituent_channels),
            ("representations", z.size(1), self.channels),
        ):
            if found != stated:
                raise ValueError(
                    f"level {tape.names[self]!r} was given {what} of width {found} to record; it was built for "
                    f"{stated} (or its first call was, with other arguments)"
                )
        tape.add(self, z, constituents, index, z if hidden is None else hidden, weight)
        return z.detach() if tape.isolate else z

    def loss(
        self,
        record: Record,
        false: Sequence[FalseSample] = (),
        *,
        kinds: str | Sequence[str] = ("other",),
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> LevelLoss:
        """Loss of one recorded call.

        Args:
            record: the call.
            false: its false samples that other passes gave.
            kinds: kinds that are made of the record itself: "other" (the true constituents, scored against the
                representations of other crystals), "unconnected"
                (see :func:`~pyg_dim.false_samples.unconnected.unconnected`).
            noise: [G, D] standard normal numbers for eq. 3; drawn where None. Not used in evaluation mode.
            generator: random numbers, on the device of the record.

        Returns:
            Its :class:`~pyg_dim.tape.LevelLoss`.

        Raises:
            ValueError: an unknown kind.
        """
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        if unknown := [kind for kind in kinds if kind not in RECORD_KINDS]:
            raise ValueError(
                f"kinds of false samples {unknown} are not made of a record alone, as {', '.join(RECORD_KINDS)} are; "
                "the objective makes them, see DeepInfoMax"
            )
        some = next(self.parameters(), None)
        held = [record.z, record.hidden, *(features for features, _ in record.constituents.parts)]
        half = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in held)
        if half and some is not None and not torch.is_autocast_enabled(record.z.device.type):
            # Recorded under autocast, and the loss is asked for outside of it.
            record, false = record.to(some.dtype), [sample.to(some.dtype) for sample in false]
        z, kl = record.z, None
        if self.noise is not None:
            log_variance = self.noise(record.hidden)
            kl = kl_term(record.z, log_variance, self.kl)
            if record.training:
                z = perturb(record.z, log_variance, noise=noise, generator=generator)

        names = ["true"]
        true_set: tuple[Constituents, list[Scored]] = (record.constituents, [(True, record.index, record.weight)])
        sets = [true_set]
        group_targets: list[Tensor | None] = [torch.arange(z.size(0), device=z.device)]
        if "other" in kinds:
            crystal = record.crystal if record.num_crystals > 1 else None
            target, valid = other_targets(z.size(0), crystal, device=z.device, generator=generator)
            keep = valid[record.index].to(z.dtype)
            weight = keep if record.weight is None else record.weight * keep
            true_set[1].append((False, target[record.index], weight))
            group_targets.append(target)
            names.append("other")
        unlinked = unconnected(record, generator) if "unconnected" in kinds else None
        for sample in (*false, *([] if unlinked is None else [unlinked])):
            if sample.constituents is not sets[-1][0]:
                sets.append((sample.constituents, []))
            sets[-1][1].append((False, sample.target, sample.weight))
            group_targets.append(sample.group_target)
            names.append(sample.kind)

        scored = [(constituents.parts, ways) for constituents, ways in sets]
        means = None
        if self.fused and self.estimator == "jensen_shannon":
            means = fused_score_terms(self.critic, z, scored, record.index, group_targets)
        if means is None:
            # A batch of one crystal has other kinds, and may have lengths of one: a compiler would start anew for it.
            terms = compiled_score_terms() if self.compiled and record.num_crystals != 1 else score_terms
            means = terms(self.critic, z, scored, self.estimator)
        true, exists = means[0]
        count = torch.stack([valid for _, valid in means[1:]]).sum(0) if means[1:] else torch.zeros_like(true)
        false_sum = torch.stack([term for term, _ in means[1:]]).sum(0) if means[1:] else torch.zeros_like(true)
        counted = exists & (count > 0)

        def mean(values: Tensor, valid: Tensor) -> Tensor:
            return crystal_mean(values, valid, record.crystal, record.num_crystals)

        groups = exists.sum().clamp(min=1)
        # InfoNCE has no term of the true constituents alone.
        shown = list(zip(names, means, strict=True))[0 if self.estimator == "jensen_shannon" else 1 :]
        return LevelLoss(
            loss=mean(true + false_sum / count.clamp(min=1), counted),
            counted=counted.sum() / groups,
            kl=None if kl is None else crystal_mean(kl, exists, None, 0),
            terms={kind: mean(term.detach(), valid & exists) for kind, (term, valid) in shown},
            coverage={
                kind: (valid & exists).sum() / groups for kind, (_, valid) in zip(names[1:], means[1:], strict=True)
            },
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.channels}, {self.constituent_channels}, critic={type(self.critic).__name__})"
        )
