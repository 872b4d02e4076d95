import logging
from collections import Counter

import numpy as np
import pytest
import torch

from pyg_dim.data import split


@pytest.fixture
def polymorphs(make_dataset, random_crystal):
    rng = np.random.default_rng(0)
    return make_dataset([random_crystal(rng, int(n), elements=(3, 8, 11, 17)) for n in rng.integers(1, 6, 400)])


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5, 0.9])
def test_parts_are_complete_and_share_no_formula(polymorphs, fraction):
    train, val = split(polymorphs, fraction, seed=1)
    assert torch.cat([train, val]).sort().values.tolist() == list(range(400))
    formulas = [Counter(polymorphs.formula(row) for row in part.tolist()) for part in (train, val)]
    assert formulas[0].keys().isdisjoint(formulas[1])
    largest = (formulas[0] + formulas[1]).most_common(1)[0][1]
    assert abs(len(val) - fraction * 400) <= largest


def test_the_seed_decides(polymorphs):
    assert torch.equal(split(polymorphs, seed=1)[1], split(polymorphs, seed=1)[1])
    assert not torch.equal(split(polymorphs, seed=1)[1], split(polymorphs, seed=2)[1])


def test_no_validation_on_request(polymorphs):
    train, val = split(polymorphs, 0.0)
    assert len(train) == 400
    assert len(val) == 0


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_neither_part_is_empty_when_there_are_two_formulas(make_dataset, random_crystal, fraction):
    rng = np.random.default_rng(0)
    dataset = make_dataset([random_crystal(rng, 1, elements=(z,)) for z in (3, 3, 3, 11)])
    train, val = split(dataset, fraction)
    assert len(train) > 0
    assert len(val) > 0


def test_one_formula_is_split_by_crystal_with_a_warning(make_dataset, random_crystal, caplog):
    rng = np.random.default_rng(0)
    dataset = make_dataset([random_crystal(rng, 2, elements=(14,)) for _ in range(10)])
    with caplog.at_level(logging.WARNING, logger="pyg_dim.data.splits"):
        train, val = split(dataset, 0.2)
    assert (len(train), len(val)) == (8, 2)
    assert "all 10 crystals have the formula Si" in caplog.text


def test_a_single_crystal_goes_to_training(make_dataset, random_crystal):
    train, val = split(make_dataset([random_crystal(np.random.default_rng(0), 3)]))
    assert train.tolist() == [0]
    assert val.tolist() == []


def test_bad_arguments(polymorphs):
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="val_fraction"):
            split(polymorphs, fraction)
    with pytest.raises(ValueError, match="empty"):
        split(polymorphs.subset(torch.tensor([], dtype=torch.long)))
