"""Probes: simple regressions from a frozen representation to a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyg_dim.evaluate.regressors import DUMMY, LEAST_SQUARES, RIDGE, fit_probes


@dataclass(frozen=True)
class ProbeError:
    """Error of one probe fitted on one subset of the labels.

    Args:
        n: Number of labels it was fitted on.
        probe: Name out of :data:`pyg_dim.evaluate.regressors.PROBES`.
        repeat: Number of the label subset; equal numbers are equal subsets, whatever the representation.
        mae: Mean absolute error over all test rows, in the unit of the label.
    """

    n: int
    probe: str
    repeat: int
    mae: float


@dataclass(frozen=True)
class ProbeReport:
    """Errors of the probes, with what was left out.

    Args:
        errors: One entry for each size, subset and probe.
        notes: What was left out and why, in words.
    """

    errors: tuple[ProbeError, ...]
    notes: tuple[str, ...]

    def of(self, n: int, probe: str) -> list[float]:
        """Select the errors of one probe.

        Args:
            n: Number of labels.
            probe: Kind of probe.

        Returns:
            Mean absolute errors in the order of the label subsets.
        """
        return [error.mae for error in self.errors if error.n == n and error.probe == probe]


def label_subsets(y: Tensor, n: int, repeats: int, seed: int = 0) -> list[Tensor]:
    """Draw subsets of labelled rows.

    They depend on the arguments alone, so that representations of the same rows are compared on the same subsets.

    Args:
        y: [rows] labels, NaN where missing.
        n: Labels in a subset.
        repeats: Number of subsets; one when ``n`` is all there are.
        seed: Seed of the draw.

    Returns:
        Subsets as indices [n] into ``y``, each drawn without replacement.

    Raises:
        ValueError: If ``y`` has fewer than ``n`` labels.
    """
    labelled = torch.nonzero(torch.isfinite(y)).flatten()
    if n > labelled.numel():
        raise ValueError(f"{n} labels asked for, {labelled.numel()} available")
    if n == labelled.numel():
        return [labelled]
    generator = np.random.default_rng((seed, n))
    return [labelled[torch.from_numpy(generator.permutation(labelled.numel())[:n])] for _ in range(repeats)]


def probe(
    features_train: Tensor,
    y_train: Tensor,
    features_test: Tensor,
    y_test: Tensor,
    sizes: Sequence[int] = (100, 1000),
    repeats: int = 10,
    seed: int = 0,
    probes: Sequence[str] = (LEAST_SQUARES, RIDGE, DUMMY),
) -> ProbeReport:
    """Fit probes on small label subsets and measure them on the whole test set.

    For each size, ``repeats`` subsets are drawn from the labelled training rows (:func:`label_subsets`), and the probes
    of :func:`pyg_dim.evaluate.regressors.fit_probes` are fitted on each.

    Args:
        features_train: [rows, D] representations to draw from.
        y_train: [rows] their labels, NaN where missing.
        features_test: [tests, D] representations to test on.
        y_test: [tests] their labels, NaN where missing.
        sizes: Numbers of labels; those larger than what is available are skipped with a note.
        repeats: Label subsets for each size.
        seed: Seed of the subsets and the probes.
        probes: Names out of :data:`pyg_dim.evaluate.regressors.PROBES`.

    Returns:
        The errors of the probes for every subset, and notes on what was left out.

    Raises:
        ValueError: If shapes disagree, a size is below 2, a representation is not finite or no test row has a label.
    """
    train, test = _checked("train", features_train, y_train), _checked("test", features_test, y_test)
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"representations have {train.shape[1]} dimensions in training, {test.shape[1]} in the test")
    if any(n < 2 for n in sizes):
        raise ValueError(f"sizes must be at least 2 labels, got {list(sizes)}")
    notes: list[str] = []
    for name, labels in (("training", y_train), ("test", y_test)):
        missing = int((~torch.isfinite(labels)).sum())
        if missing:
            notes.append(f"{missing} of {labels.numel()} {name} rows have no label and are left out")
    scored = torch.isfinite(y_test).numpy()
    if not scored.any():
        raise ValueError("no test row has a label: choose another target or a larger validation share")
    y, y_scored = y_train.double().numpy(), y_test.double().numpy()[scored]
    test = test[scored]
    available = int(torch.isfinite(y_train).sum())
    errors: list[ProbeError] = []
    for n in sizes:
        if n > available:
            notes.append(f"no probe on {n} labels: {available} training crystals have one")
            continue
        for repeat, subset in enumerate(label_subsets(y_train, n, repeats, seed)):
            chosen = subset.numpy()
            fitted = fit_probes(train[chosen], y[chosen], test, probes, seed)
            errors += [
                ProbeError(n, name, repeat, float(np.abs(prediction.test - y_scored).mean()))
                for name, prediction in fitted.items()
            ]
    return ProbeReport(tuple(errors), tuple(notes))


def _checked(name: str, features: Tensor, y: Tensor) -> np.ndarray:
    if features.dim() != 2 or y.shape != features.shape[:1]:
        raise ValueError(
            f"{name}: representations must be [rows, D] and labels [rows], "
            f"got {list(features.shape)} and {list(y.shape)}"
        )
    bad = torch.nonzero(~torch.isfinite(features).all(dim=1)).flatten()
    if bad.numel():
        raise ValueError(
            f"{name}: {bad.numel()} representations are not finite, the first in row {int(bad[0])}; leave them out"
        )
    return features.detach().cpu().double().numpy()
