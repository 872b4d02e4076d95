from __future__ import annotations

import pytest
import torch

from pyg_dim.data.splits import given_parts
from pyg_dim.experiments.folds import make_fold


def formulas(dataset, rows):
    return {dataset.formula(row) for row in rows.tolist()}


@pytest.mark.parametrize("by", ["random", "formula"])
def test_every_crystal_is_in_one_part(dataset, by):
    fold = make_fold(dataset, by)
    parts = (fold.train, fold.dev, fold.test, fold.removed)
    assert torch.cat(parts).sort().values.equal(torch.arange(120))
    assert all(part.equal(part.sort().values) for part in parts)
    # A tenth of 120, and a tenth of what is left; formulas are of two crystals each.
    assert [part.numel() for part in parts[1:]] == ([11, 12, 0] if by == "random" else [fold.dev.numel(), 12, 0])
    assert abs(fold.dev.numel() - 10.8) <= 1
    again = make_fold(dataset, by)
    assert all(a.equal(b) for a, b in zip(parts, (again.train, again.dev, again.test, again.removed), strict=True))
    assert not make_fold(dataset, by, seed=1).test.equal(fold.test)


def test_by_formula_no_formula_is_in_two_parts(dataset):
    fold = make_fold(dataset, "formula")
    train, dev, test = (formulas(dataset, part) for part in (fold.train, fold.dev, fold.test))
    assert not train & dev
    assert not train & test
    assert not dev & test
    # By chance it is: most formulas of the test are in training, too.
    fold = make_fold(dataset, "random")
    assert formulas(dataset, fold.train) & formulas(dataset, fold.test)


def test_formulas_of_other_data_are_taken_out_of_training_alone(dataset):
    plain = make_fold(dataset, "formula")
    other = dataset.subset(torch.arange(0, 40))
    fold = make_fold(dataset, "formula", without=[other, dataset.subset(plain.test)])
    unwanted = formulas(other, torch.arange(40))
    assert not formulas(dataset, fold.train) & unwanted
    assert formulas(dataset, fold.removed) <= unwanted
    assert fold.removed.numel() > 0
    assert torch.cat([fold.train, fold.removed]).sort().values.equal(plain.train)
    assert fold.dev.equal(plain.dev)
    assert fold.test.equal(plain.test)


def test_the_file_is_a_split_of_training_and_held_out_part(dataset, tmp_path):
    fold = make_fold(dataset, "formula", without=[dataset.subset(torch.arange(10))])
    fold.save(tmp_path / "fold.json", dataset)
    train, val = given_parts(dataset, str(tmp_path / "fold.json"))
    assert train.equal(fold.train)
    assert val.equal(fold.dev)
