"""Deep InfoMax: the objective that pre-trains an encoder without labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from pyg_dim.data.keys import AMOUNT
from pyg_dim.false_samples.corruption import Corruption
from pyg_dim.false_samples.permutation import permutation
from pyg_dim.false_samples.transplant import DONOR_RULES, TRANSPLANT_KINDS, DonorRule, transplant
from pyg_dim.level import RECORD_KINDS
from pyg_dim.tape import FalseSample, RecordKey, Tape, record

DEFAULT_KINDS: Final = ("other", "composition", "polymorph", "permutation")
KINDS: Final = (*DEFAULT_KINDS, "unconnected")
STRUCTURE_KINDS: Final = ("polymorph",)
"""Kinds that formulas do not have."""


@contextmanager
def frozen_buffers(module: nn.Module) -> Iterator[None]:
    """Let a module write to copies of its buffers, and give it the originals back.

    A corrupted pass in training mode normalises with its own batch statistics and leaves running ones as they were. The
    originals are put aside, not written to, so that a graph that holds them stays valid.

    Args:
        module: module whose buffers are kept.
    """
    kept = [(m, dict(m._buffers)) for m in module.modules() if m._buffers]
    for m, buffers in kept:
        for name, buffer in buffers.items():
            m._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for m, buffers in kept:
            m._buffers.update(buffers)


def false_samples(true: Tape, false: Tape, corruption: Corruption) -> dict[RecordKey, list[FalseSample]]:
    """Line up a corrupted pass with the true one, and make the false samples of every level.

    Args:
        true: tape of the true pass.
        false: tape of the corrupted pass.
        corruption: what was corrupted.

    Returns:
        False samples by record of the true tape.

    Raises:
        ValueError: the passes called different levels, or saw sets of different shape; the message names the level.
    """
    corrupted = {r.key: r for r in false.records}
    samples: dict[RecordKey, list[FalseSample]] = {}
    for record_ in true.records:
        if record_.key not in corrupted:
            raise ValueError(
                f"level {record_.name!r}: call {record_.call + 1} of the true pass has no counterpart in a corrupted "
                "one; an encoder must make the same calls for every batch of the same geometry"
            )
        made = (kind.sample(record_, corrupted[record_.key]) for kind in corruption.kinds)
        samples[record_.key] = [sample for sample in made if sample is not None]
    return samples


class DeepInfoMax(nn.Module):
    r"""Deep InfoMax over all levels of an encoder: one true pass, and corrupted ones without gradient.

    .. math:: \sum_\text{levels} \alpha J + \beta K \qquad \text{(eq. 5)}

    ``composition`` and ``polymorph`` share one corrupted pass, ``permutation`` takes another; they run in the mode of
    the true pass and leave running statistics as they were. A kind that has no meaning at a level, or no valid sample
    in a batch, is left out there and shows as a coverage below one.

    Args:
        encoder: a model with levels.
        kinds: kinds of false samples, at least one of "other", "composition", "polymorph", "permutation",
            "unconnected" (levels of graph convolutions alone have it).
        alpha: weight of the Jensen-Shannon loss J.
        beta: weight of the KL term K.
        isolate: levels learn from their own loss alone (sec. 2.4).
        donors: donor rule of transplants, "matched" or "any".

    Raises:
        ValueError: unknown or no kind, unknown donor rule, negative weight.

    Source: Moran et al., Digital Discovery 2025, 4, 790, eq. 5 and 6, sec. 2.4.
    """

    def __init__(
        self,
        encoder: nn.Module,
        kinds: str | Sequence[str] = DEFAULT_KINDS,
        alpha: float = 1.0,
        beta: float = 0.1,
        isolate: bool = True,
        donors: DonorRule = "matched",
    ) -> None:
        super().__init__()
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"unknown kinds of false samples {unknown}; known: {', '.join(KINDS)}")
        if not kinds:
            raise ValueError(f"Deep InfoMax needs at least one kind of false samples: {', '.join(KINDS)}")
        if donors not in DONOR_RULES:
            raise ValueError(f"unknown donor rule {donors!r}; known: {', '.join(DONOR_RULES)}")
        if alpha < 0 or beta < 0:
            raise ValueError(f"alpha and beta are weights of losses and cannot be negative: {alpha}, {beta}")
        self.encoder = encoder
        self.kinds = tuple(kinds)
        self.alpha, self.beta, self.isolate, self.donors = alpha, beta, isolate, donors

    def corruptions(self, batch: Any, generator: torch.Generator | None = None) -> list[Corruption]:
        """The corrupted batches of one step.

        Args:
            batch: crystal batch with its graph.
            generator: random numbers, on the device of the batch.

        Returns:
            A corruption for each pass that the kinds need.
        """
        made = []
        absent = STRUCTURE_KINDS if AMOUNT in batch else ()
        if kinds := tuple(kind for kind in TRANSPLANT_KINDS if kind in self.kinds and kind not in absent):
            made.append(transplant(batch, kinds=kinds, donors=self.donors, generator=generator))
        if "permutation" in self.kinds:
            made.append(permutation(batch, generator=generator))
        return made

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            batch: crystal batch with its graph.
            generator: random numbers, on the device of the batch; seed it for the same false samples every time.

        Returns:
            "total", a scalar with its gradient, and scalars for logs, see :meth:`pyg_dim.Tape.losses`. A kind
            that has no meaning at a level is not listed there.

        Raises:
            ValueError: the encoder holds no level, the batch is none of crystals, formulas have none of the kinds, or a
                corrupted pass does not line up with the true one; the message names the level.
        """
        passes = [kind for kind in self.kinds if kind not in RECORD_KINDS]
        if passes and not hasattr(batch, "max_sites"):
            raise ValueError(
                f"the kinds {', '.join(passes)} put other species on the geometry of crystals: they need a batch of "
                f"CrystalLoader, not a {type(batch).__name__}; {', '.join(RECORD_KINDS)} work for any graphs"
            )
        if AMOUNT in batch and set(self.kinds) <= set(STRUCTURE_KINDS):
            raise ValueError(f"formulas have no false samples of the kind {', '.join(self.kinds)}: take 'other', too")
        with record(self.encoder, batch, isolate=self.isolate) as tape:
            self.encoder(batch)
        false: defaultdict[RecordKey, list[FalseSample]] = defaultdict(list)
        for corruption in self.corruptions(batch, generator):
            with (
                torch.no_grad(),
                frozen_buffers(self.encoder),
                record(self.encoder, corruption.batch, isolate=self.isolate, shared=tape.shared) as corrupted,
            ):
                self.encoder(corruption.batch)
            for key, samples in false_samples(tape, corrupted, corruption).items():
                false[key] += samples
        # Sites of one crystal are no sites of another: a batch of one has no sample of this kind.
        own = [kind for kind in self.kinds if kind in RECORD_KINDS and (kind != "other" or batch.num_graphs > 1)]
        return tape.losses(false, kinds=own, alpha=self.alpha, beta=self.beta, generator=generator)
