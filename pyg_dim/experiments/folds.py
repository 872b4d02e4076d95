"""Which crystals an experiment pre-trains on, draws labels from, chooses by and is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.index_sets import save_index_sets
from pyg_dim.data.splits import SplitRule, split

TEST_FRACTION = 0.1
DEV_FRACTION = 0.1
"""Of what the test leaves."""


@dataclass(frozen=True)
class Fold:
    """Parts of a data set without a common crystal, as ascending rows.

    Attributes:
        train: Crystals to pre-train on; labels are drawn from them.
        dev: Held-out part of the training fold, on which settings are chosen.
        test: Crystals that nothing but the final measurement sees.
        removed: Crystals that would be in ``train`` but for their formula, see :func:`make_fold`.
    """

    train: Tensor
    dev: Tensor
    test: Tensor
    removed: Tensor

    def save(self, path: str | Path, dataset: CrystalDataset) -> None:
        """Write the parts for ``pyg-dim train --split``, with ``dev`` as its validation part; no test crystal is in it.

        Args:
            path: File to write or replace.
            dataset: The crystals.
        """
        save_index_sets(path, dataset, {"train": self.train, "val": self.dev})


def make_fold(dataset: CrystalDataset, by: SplitRule, seed: int = 0, without: Sequence[CrystalDataset] = ()) -> Fold:
    """Split a data set into training fold, its held-out part and test fold.

    Args:
        dataset: The crystals.
        by: "random", as in Moran et al. 2025, or "formula": crystals of one reduced formula are in the same part.
        seed: Seed of the split.
        without: Other data sets; crystals that share a reduced formula with one of theirs are not trained on, so that
            these sets are of unseen formulas, too.

    Returns:
        The fold: a tenth of the crystals is the test, a tenth of the others ``dev``.
    """
    rest, test = split(dataset, TEST_FRACTION, seed, by)
    train, dev = (rest[rows] for rows in split(dataset.subset(rest), DEV_FRACTION, seed, by))
    unwanted = {other.formula(row) for other in without for row in range(len(other))}
    seen = torch.tensor([dataset.formula(row) in unwanted for row in train.tolist()], dtype=torch.bool)
    return Fold(train[~seen], dev, test, train[seen]) if unwanted else Fold(train, dev, test, train[:0])
