"""Steps of a run that are left out because their loss or gradient is no finite number."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SkippedSteps:
    """Leaves out steps with a gradient that is no finite number, and counts them, without asking the device.

    A step that is left out changes nothing: parameters, state of the optimiser and running statistics of batch norms
    are those of the step before.

    Args:
        module: what is trained; its parameters and running statistics.

    Attributes:
        steps: steps of the epoch so far.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
        self._running: list[tuple[Tensor, Tensor]] = []
        # In the epoch; in a row, now; the longest row of the epoch.
        self._counts: Tensor | None = None
        self.steps = 0

    def begin_epoch(self) -> None:
        """Count from zero, but for a row that goes on."""
        if self._counts is not None:
            row = self._counts[1]
            self._counts = torch.stack([torch.zeros_like(row), row, row])
        self.steps = 0

    def begin_step(self) -> None:
        """Keep what the step changes before it is known whether it counts."""
        self._running = [(buffer, buffer.clone()) for norm in self._norms for buffer in norm.buffers()]

    def look(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Look at the gradients before the optimiser uses them.

        Args:
            optimizer: with gradients.

        Returns:
            [] float32: 1 if the step is to be left out, else 0.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # Norms of the largest entry do not overflow.
        norms = torch.stack(torch._foreach_norm(gradients, float("inf")))
        skipped = norms.isfinite().all().logical_not()
        for buffer, before in self._running:
            buffer.copy_(torch.where(skipped, before, buffer))
        found = skipped.float()
        counts = found.new_zeros(3) if self._counts is None else self._counts
        row = (counts[1] + found) * found
        self._counts = torch.stack([counts[0] + found, row, torch.maximum(counts[2], row)])
        self.steps += 1
        return found

    def counts(self) -> tuple[int, int]:
        """Steps that were left out in the epoch so far, and the most of them in a row. Waits for the device."""
        if self._counts is None:
            return 0, 0
        skipped, _, row = self._counts.tolist()
        return int(skipped), int(row)


def poisoned(loss: Tensor) -> Tensor:
    """A loss whose gradients are no finite numbers where it is none itself, so that all processes of a step see it.

    Args:
        loss: [].

    Returns:
        [] the loss, to the last bit.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
