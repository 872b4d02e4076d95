"""Which kinds of false samples a run could not make, in words."""

from __future__ import annotations

import re
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
    scarce = [
        f"{level}/{kind} in {1 - share:.0%} of groups".replace("%", " %")
        for level in _levels(means)
        for kind, share in _kinds(means, level).items()
        if share < OFTEN
    ]
    return f"false samples that were often impossible: {', '.join(scarce)}" if scarce else None


def skipped_text(means: Mapping[str, float]) -> str | None:
    """Say which kinds of false samples have no meaning at some level, though they have one at another.

    Args:
        means: means of an epoch.

    Returns:
        Levels by kind, those of a list as one where all of them lack it; None where there are none.
    """
    levels = list(_levels(means))
    found: dict[str, set[str]] = {}
    for level in levels:
        for kind in _kinds(means, level):
            found.setdefault(kind, set()).add(level)
    skipped = []
    for kind, there in found.items():
        lists = {_list(level) for level in levels} - {_list(level) for level in there}
        lacking = [level if _list(level) not in lists else _list(level) for level in levels if level not in there]
        if lacking:
            skipped.append(f"{kind} at {', '.join(dict.fromkeys(lacking))}")
    if not skipped:
        return None
    return f"kinds of false samples that have no meaning at a level and are left out there: {'; '.join(skipped)}"


def _list(level: str) -> str:
    """The list that a level stands in; the level itself where it stands alone."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", level)


def _kinds(means: Mapping[str, float], level: str) -> dict[str, float]:
    """Share of the groups of a level with a sample of each kind."""
    own = f"detail/{level}/"
    shares = {}
    for name, share in means.items():
        kind = name.removeprefix(own).removesuffix(COVERAGE)
        # Coverage of the loss as a whole is that of its kinds together.
        if name == own + kind + COVERAGE and kind not in BASELINES:
            shares[kind] = share
    return shares


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
            return [
                f"{where}: {text}"
                for text in (starved_text(means), scarce_text(means), skipped_text(means))
                if text is not None
            ]
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
