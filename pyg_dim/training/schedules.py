"""Schedules of the learning rate."""

from __future__ import annotations

import math
from typing import Final, Literal

Schedule = Literal["constant", "cosine"]
WARM_UP: Final = 0.02
"""Share of the steps in which the learning rate rises from zero."""


def cosine(step: int, steps: int) -> float:
    r"""Factor of the learning rate that rises evenly in the first steps and then falls to zero along a cosine.

    .. math:: f(t) = \tfrac12 \Bigl(1 + \cos \pi \frac{t - w}{T - w}\Bigr) \quad \text{after } w = 0.02\, T
              \text{ steps, and } (t + 1) / w \text{ before.}

    Args:
        step: number t of the step, from 0.
        steps: steps T of the whole run.

    Returns:
        The factor, in [0, 1].

    Source: Loshchilov and Hutter, SGDR, ICLR 2017, eq. 5, without restarts.
    """
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    # An epoch can have a batch more than was estimated.
    done = min(1.0, (step - warm) / max(1, steps - warm))
    return 0.5 * (1 + math.cos(math.pi * done))
