"""What paired repetitions say: medians, quartiles, differences with their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

RESAMPLES: Final = 10_000
CONFIDENCE: Final = 0.95
FEWEST: Final = 5
"""Draws; the interval of fewer is that of their extremes, and holds equal methods apart in one case of eight."""
SAME: Final = 1e-9
"""Errors that differ by less than this share of them are a tie."""


@dataclass(frozen=True)
class Paired:
    """Errors of one method against those of another on the same draws.

    Attributes:
        count: Draws.
        difference: Median of the differences, the one minus the other: below zero where it is better.
        low: Lower end of the bootstrap interval of that median.
        high: Upper end.
        wins: Draws in which the one has the lower error.
        ties: Draws in which both are equal.
        losses: Draws in which the one has the higher error.
    """

    count: int
    difference: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "level" where the interval holds zero, and "too few" draws to tell."""
        if self.count < FEWEST:
            return "too few"
        return "better" if self.high < 0 else "worse" if self.low > 0 else "level"


def paired(errors: np.ndarray, others: np.ndarray, seed: int = 0) -> Paired:
    """Compare two methods on the same draws.

    The interval is the percentile bootstrap of the median difference, with 10 000 resamples of the draws, at 95 %.
    Draws share their test crystals, and their labels in part, so it tells of the choice of labels alone.

    Args:
        errors: [k] errors of the one method.
        others: [k] errors of the other, draw by draw.
        seed: Seed of the resampling.

    Returns:
        The comparison.

    Raises:
        ValueError: No draw, different numbers of them, or an error that is no number.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13.
    """
    if errors.shape != others.shape or errors.ndim != 1 or not len(errors):
        raise ValueError(f"paired errors are two vectors of one length, not {errors.shape} and {others.shape}")
    if not (np.isfinite(errors).all() and np.isfinite(others).all()):
        raise ValueError("paired errors have to be finite: a fit has failed")
    difference = errors - others
    drawn = np.random.default_rng(seed).integers(len(difference), size=(RESAMPLES, len(difference)))
    medians = np.median(difference[drawn], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    tie = np.abs(difference) <= SAME * np.abs(others)
    return Paired(
        len(difference), float(np.median(difference)), float(low), float(high), int(((difference < 0) & ~tie).sum()),
        int(tie.sum()), int(((difference > 0) & ~tie).sum()),
    )  # fmt: skip
