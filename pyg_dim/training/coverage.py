"""Which kinds of false samples a run could not make, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    levels = _levels(means)
    names = _grouped([name for name, coverage in levels.items() if coverage == 0], list(levels))
    if not names:
        return None
    return (
        f"not one valid false sample was found for {', '.join(names)}, so nothing is learned there: add kinds "
        "(--kinds), or raise --batch-sites, so that batches hold several crystals with the same number of sites; a "
        "level whose crystals have no edges at all needs a larger cutoff of the encoder instead"
    )


def scarce_text(means: Mapping[str, float]) -> str | None:
    """Say which kinds of false samples were impossible for most groups.

    Args:
        means: means of an epoch.

    Returns:
        Kinds with the share of groups (pairs, sites or crystals) that had none, by level; levels of a list as one,
        with the smallest and the largest share, where a kind was scarce at any of them. None where there are none.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for level in _levels(means):
        for kind, share in _kinds(means, level).items():
            found.setdefault((_list(level), kind), {})[level] = share
    scarce = []
    for (name, kind), shares in found.items():
        if min(shares.values()) < OFTEN:
            name = name if len(shares) > 1 else next(iter(shares))
            lost = [f"{100 * (1 - share):.0f}" for share in (max(shares.values()), min(shares.values()))]
            scarce.append(f"{name}/{kind} in {' to '.join(dict.fromkeys(lost))} % of groups")
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
        if lacking := _grouped([level for level in levels if level not in there], levels):
            skipped.append(f"{kind} at {', '.join(lacking)}")
    if not skipped:
        return None
    return f"false samples that mean nothing at a level are left out there, as they should be: {'; '.join(skipped)}"


def _grouped(some: Sequence[str], levels: Sequence[str]) -> list[str]:
    """Some of the levels, those of a list as one where all of it are among them."""
    broken = {_list(level) for level in levels if level not in some}
    return list(dict.fromkeys(level if _list(level) in broken else _list(level) for level in some))


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
