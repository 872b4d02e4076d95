"""What is to be predicted, from which labels, and on which crystals the prediction is measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.model_selection import KFold
from torch import Tensor

from pyg_dim.data.composition import composition_groups
from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.splits import matbench_folds
from pyg_dim.evaluate.probes import label_subsets
from pyg_dim.evaluate.report import UNITS

_logger = logging.getLogger(__name__)

FOLDS = 5
ALL = 0
"""Number of labels that stands for all that a fold has."""
FEW_TESTS = 30
"""Labelled test crystals; the error on fewer hangs on a handful of them."""


@dataclass(frozen=True)
class Draw:
    """One subset of the labels.

    Attributes:
        number: Of the draw, from 0.
        rows: [n] labelled rows to learn from.
        test: [t] labelled rows to measure on, all that the fold has; none of them in ``rows``.
    """

    number: int
    rows: Tensor
    test: Tensor


@dataclass(frozen=True)
class Task:
    """A label of a data set with its parts.

    Attributes:
        name: What the tables call it.
        dataset: The crystals.
        target: Name of the label.
        folds: Training and test rows; draw k is from fold k modulo their number.
        seed: Seed of the draws.
    """

    name: str
    dataset: CrystalDataset
    target: str
    folds: tuple[tuple[Tensor, Tensor], ...]
    seed: int = 0

    @property
    def unit(self) -> str:
        """Unit of the label, empty where unknown."""
        return self.dataset.units.get(self.target) or UNITS.get(self.target, "")

    @property
    def rows(self) -> Tensor:
        """[m] all rows that the task needs, ascending."""
        return torch.cat([part for fold in self.folds for part in fold]).unique()

    def fitting(self, sizes: Sequence[int]) -> list[int]:
        """Choose the numbers of labels that every fold has; the others are left out with a message.

        Args:
            sizes: Numbers of labels; :data:`ALL` fits always.

        Returns:
            Those that fit.
        """
        labels, _ = self._counts()
        if left_out := [n for n in sizes if n > labels]:
            _logger.warning("%s: %d labels in training; left out: %s", self.name, labels, ", ".join(map(str, left_out)))
        return [n for n in sizes if n <= labels]

    def require_fitting(self, sizes: Sequence[int]) -> None:
        """Make sure that there is something to measure; warn where the test is small.

        Args:
            sizes: Numbers of labels.

        Raises:
            ValueError: No size fits, or no test crystal has a label; the message says how many labels there are.
        """
        labels, tests = self._counts()
        if not tests:
            raise ValueError(f"no crystal of the test has a label {self.target!r}: take another --split")
        if all(n > labels for n in sizes):
            # With all of them, the draws would be one and the same.
            shown = f", as in --sizes {labels // 3},{2 * labels // 3}" if labels > 5 else ""
            fit = f"sizes up to {labels} fit{shown}" if labels > 1 else "label more"
            raise ValueError(
                f"--sizes {','.join(map(str, sizes))}: {labels} labels {self.target!r} are left to draw from, beside "
                f"{tests} in the test; {fit}"
            )
        if tests < FEW_TESTS:
            _logger.warning(
                "%s: %d labelled crystals in the test are few, and errors hang on each of them: a larger "
                "--val-fraction makes a steadier test",
                self.name,
                tests,
            )

    def _counts(self) -> tuple[int, int]:
        """Labels to draw from and labelled test crystals, of the fold that has the fewest."""
        known = torch.isfinite(self.dataset.target(self.target))
        counts = [(int(known[train].sum()), int(known[test].sum())) for train, test in self.folds]
        return min(labels for labels, _ in counts), min(tests for _, tests in counts)

    def draw(self, n: int, number: int) -> Draw:
        """Draw labels; the same for all that is compared, since it depends on the task and its seed alone.

        Args:
            n: Labels, or :data:`ALL`.
            number: Of the draw.

        Returns:
            The draw.

        Raises:
            ValueError: The training part has fewer labels.
        """
        train, test = self.folds[number % len(self.folds)]
        values = self.dataset.target(self.target)
        test = test[torch.isfinite(values[test])]
        if n == ALL:
            return Draw(number, train[torch.isfinite(values[train])], test)
        subset = label_subsets(values[train], n, number + 1, self.seed)
        return Draw(number, train[subset[min(number, len(subset) - 1)]], test)


def fold_task(
    name: str, dataset: CrystalDataset, target: str, train: Tensor, test: Tensor, pool: int | None = None, seed: int = 0
) -> Task:
    """A task with one test fold.

    Args:
        name: What the tables call it.
        dataset: The crystals.
        target: Name of the label.
        train: Rows that labels are drawn from.
        test: Rows to measure on.
        pool: Draw from so many rows of ``train`` alone, themselves drawn at random with the seed: costly descriptors
            are then needed for fewer crystals. All where None.
        seed: Seed of the draws.

    Returns:
        The task.
    """
    train = train[torch.isfinite(dataset.target(target)[train])]
    if pool is not None and pool < train.numel():
        chosen = torch.randperm(train.numel(), generator=torch.Generator().manual_seed(seed))[:pool]
        train = train[chosen].sort().values
    return Task(name, dataset, target, ((train, test),), seed)


def cross_task(name: str, dataset: CrystalDataset, target: str, by: Literal["matbench", "formula"]) -> Task:
    """A task on a small data set, with five folds that take turns as test.

    Args:
        name: What the tables call it.
        dataset: The crystals.
        target: Name of the label.
        by: "matbench", the official folds; or "formula", folds of whole reduced formulas.

    Returns:
        The task.
    """
    dataset.target(target)
    fold = matbench_folds(dataset) if by == "matbench" else _formula_folds(dataset)
    parts = tuple(((fold != k).nonzero()[:, 0], (fold == k).nonzero()[:, 0]) for k in range(FOLDS))
    return Task(name, dataset, target, parts)


def _formula_folds(dataset: CrystalDataset) -> Tensor:
    group = composition_groups(dataset)
    fold = np.empty(int(group.max()) + 1, dtype=np.int64)
    for number, (_, test) in enumerate(KFold(FOLDS, shuffle=True, random_state=0).split(fold)):
        fold[test] = number
    return torch.from_numpy(fold)[group]
