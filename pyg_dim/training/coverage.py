"""Which kinds of false samples a run could not make, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyg_dim.losses import BASELINES
from pyg_dim.training.meter import COVERAGE

OFTEN: Final = 0.5
"""A kind with a smaller coverage is worth a line."""


def starved_text(means: Mapping[str, float]) -> str | None:
    """Say which levels have had no valid false sample.

    Args:
        means: means of an epoch, named as in :meth:`pyg_dim.Tape.losses`.

    Returns:
        What it means and what to do, or None where every level had some.
    """
    names = [name for name, coverage in _levels(means).items() if coverage == 0]
    if not names:
        return None
    return (
        f"not one valid false sample was found for {', '.join(names)}, so nothing is learned there: add kinds "
        "(--kinds), or raise --batch-sites, so that batches hold several crystals with the same number of sites"
    )


def scarce_text(means: Mapping[str, float]) -> str | None:
    """Say which kinds of false samples were impossible for most groups.

    Args:
        means: means of an epoch.

    Returns:
        Kinds with the share of groups (pairs, sites or crystals) that had none, by level; None where there are none.
    """
    scarce = []
    for level in _levels(means):
        own = f"detail/{level}/"
        for name, coverage in means.items():
            kind = name.removeprefix(own).removesuffix(COVERAGE)
            # Coverage of the loss as a whole is that of its kinds together.
            if name == own + kind + COVERAGE and kind not in BASELINES and coverage < OFTEN:
                scarce.append(f"{level}/{kind} in {1 - coverage:.0%} of groups".replace("%", " %"))
    return f"false samples that were often impossible: {', '.join(scarce)}" if scarce else None


def coverage_notes(metrics: Mapping[str, float]) -> list[str]:
    """Say what a summary has to add to its losses.

    Args:
        metrics: final values by tag, ``detail/train/...`` and ``detail/val/...``.

    Returns:
        Sentences about training, or about validation where nothing is known of training.
    """
    for part, where in (("train", "training"), ("val", "validation")):
        prefix = f"detail/{part}/"
        means = {f"detail/{name.removeprefix(prefix)}": v for name, v in metrics.items() if name.startswith(prefix)}
        if _levels(means):
            return [f"{where}: {text}" for text in (starved_text(means), scarce_text(means)) if text is not None]
    return []


def _levels(means: Mapping[str, float]) -> dict[str, float]:
    """Share of groups with any valid false sample, by level."""
    own = "detail/"
    return {
        name.removeprefix(own).removesuffix(end): value
        for end in (f"/{estimator}{COVERAGE}" for estimator in BASELINES)
        for name, value in means.items()
        if name.startswith(own) and name.endswith(end)
    }
