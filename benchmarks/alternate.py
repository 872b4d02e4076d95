"""Ways to do the same work take turns in one process, and are compared round by round.

The speed of a shared machine drifts; the ratio of two calls of one round hardly does. So what is reported of two ways
is the median of their ratios, not the ratio of their medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Variant = Callable[[int], float]
"""Does the work of the round of this number and says how much it was, in crystals for example."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one number; quartiles are interpolated between the numbers."""
        values = list(values)
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper)


@dataclass(frozen=True)
class Timing:
    """Calls of one variant.

    Attributes:
        first: seconds of its very first call, with all that happens once, compilation for example.
        seconds: of each timed round.
        work: what was done in each of them.
    """

    first: float
    seconds: tuple[float, ...]
    work: tuple[float, ...]

    @property
    def rates(self) -> list[float]:
        """Work a second, of each round."""
        return [work / seconds for work, seconds in zip(self.work, self.seconds, strict=True)]

    def times(self, reference: Timing) -> Spread:
        """How many times as fast as another variant it is: the ratios of the rates, round by round."""
        return Spread.of(mine / other for mine, other in zip(self.rates, reference.rates, strict=True))


def alternate(
    variants: Mapping[str, Variant],
    rounds: int,
    warmup: int = 3,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Let variants take turns.

    Every second round goes through them backwards, so that what drifts evenly within a round favours none of them.

    Args:
        variants: by name; the first is the reference.
        rounds: timed rounds.
        warmup: rounds before them, besides the very first call of each.
        device: where the work is done; a GPU is waited for before each look at the clock.
        clock: tells the time in seconds.

    Returns:
        Timings by name.

    Raises:
        ValueError: no variant, or no round.
    """
    if not variants:
        raise ValueError("there is nothing to time: name at least one variant")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"at least one round is timed, after none or more to warm up; got {rounds} after {warmup}")

    def call(name: str, number: int) -> tuple[float, float]:
        synchronise(device)
        start = clock()
        work = variants[name](number)
        synchronise(device)
        return clock() - start, work

    def turn(number: int) -> dict[str, tuple[float, float]]:
        names = list(variants)
        return {name: call(name, number) for name in (names if number % 2 == 0 else reversed(names))}

    first = {name: call(name, 0)[0] for name in variants}
    for number in range(warmup):
        turn(number)
    taken = [turn(number) for number in range(rounds)]
    return {
        name: Timing(
            first[name], tuple(calls[name][0] for calls in taken), tuple(float(calls[name][1]) for calls in taken)
        )
        for name in variants
    }


def synchronise(device: torch.device | str) -> None:
    """Wait until a GPU has done what it was given; nothing to wait for elsewhere."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def rows(
    timings: Mapping[str, Timing], references: Sequence[str] = (), unit: str = "crystals", call: str = "step"
) -> list[dict[str, Any]]:
    """A row of a table for each variant.

    Args:
        timings: by name.
        references: variants that the others are compared with, the first one by default; unknown ones are left out.
        unit: of the work.
        call: what one call is.

    Returns:
        Cells by title: texts, numbers and :class:`Spread`.
    """
    compared = [name for name in references or list(timings)[:1] if name in timings]
    return [
        {
            "variant": name,
            f"ms a {call}": Spread.of(1e3 * seconds for seconds in timing.seconds),
            f"{unit}/s": Spread.of(timing.rates),
            **{f"times {other}": timing.times(timings[other]) if other != name else 1 for other in compared},
            "first call, s": timing.first,
        }
        for name, timing in timings.items()
    ]
