"""Means of losses over an epoch, without asking the device at every step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

COVERAGE = "/coverage"


class LossMeter:
    """Weighted means of the entries of loss dictionaries.

    Each batch counts with its number of crystals. An entry that has a companion ``<entry>/coverage`` counts with
    crystals times coverage, so that batches in which it has no valid sample do not dilute it. A coverage that a batch
    does not have is zero there. The sums stay on the device; reading a mean is the only step that waits for it.
    """

    def __init__(self) -> None:
        # Batches mostly agree in their names, so one small tensor holds all sums; another set of names (a batch in
        # which a kind of false samples was impossible) opens another.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self.crystals = 0

    def reset(self) -> None:
        """Forget everything."""
        self._sums = {}
        self.crystals = 0

    def update(self, losses: Mapping[str, Tensor], crystals: int, counts: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            losses: scalars by name.
            crystals: number of crystals in the batch.
            counts: [] bool, whether the batch is a part of the means; it is by default.
        """
        names = tuple(losses)
        values = torch.stack([losses[name].detach() for name in names])
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        one = torch.ones_like(values[0])
        weights = torch.stack([losses.get(name + COVERAGE, one).to(values.dtype) for name in names]) * crystals
        if counts is not None:
            weights = weights * counts
        # Where nothing is covered the value means nothing and may be NaN.
        sums = torch.stack([torch.where(weights > 0, values * weights, 0.0), weights])
        self._sums[names] = self._sums[names] + sums if names in self._sums else sums
        self.crystals += crystals

    def means(self) -> dict[str, float]:
        """Means over this process by name, NaN where nothing was covered. Waits for the device."""
        totals: dict[str, tuple[float, float]] = {}
        crystals = 0.0
        for names, sums in self._sums.items():
            values, weights = sums.tolist()
            # What has no companion, as the coverages themselves, counts with all crystals.
            crystals += max(weights)
            for name, value, weight in zip(names, values, weights, strict=True):
                before = totals.get(name, (0.0, 0.0))
                totals[name] = before[0] + value, before[1] + weight
        totals |= {name: (value, crystals) for name, (value, _) in totals.items() if name.endswith(COVERAGE)}
        return {name: value / weight if weight else float("nan") for name, (value, weight) in totals.items()}

    def reduced_means(self) -> dict[str, float]:
        """Means over all processes of a distributed run; every process has to call it. Waits for the device."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.means()
        parts: list[dict[tuple[str, ...], Tensor]] = [{}] * dist.get_world_size()
        dist.all_gather_object(parts, {names: sums.cpu() for names, sums in self._sums.items()})
        everything = LossMeter()
        for part in parts:
            for names, sums in part.items():
                everything._sums[names] = everything._sums[names] + sums if names in everything._sums else sums
        return everything.means()
