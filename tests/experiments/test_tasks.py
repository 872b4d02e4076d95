from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold

from pyg_dim.data import load_dataset
from pyg_dim.data.splits import matbench_folds
from pyg_dim.experiments.folds import make_fold
from pyg_dim.experiments.study import FORMATION, GAP, PHONONS
from pyg_dim.experiments.tasks import ALL, Task, cross_task, fold_task

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "matbench_phonons.json.gz"


@pytest.fixture
def fold(dataset):
    return make_fold(dataset, "random")


@pytest.fixture
def gaps(dataset, fold) -> Task:
    return fold_task("gaps", dataset, GAP, fold.train, fold.test)


def test_draws_depend_on_task_and_seed_alone(dataset, fold, gaps):
    values = dataset.target(GAP)
    draws = [gaps.draw(10, number) for number in range(6)]
    again = fold_task("other name", dataset, GAP, fold.train, fold.test)
    for number in reversed(range(6)):
        assert again.draw(10, number).rows.equal(draws[number].rows)
    assert len({tuple(draw.rows.sort().values.tolist()) for draw in draws}) == 6
    other_seed = fold_task("gaps", dataset, GAP, fold.train, fold.test, seed=1)
    assert not other_seed.draw(10, 0).rows.equal(draws[0].rows)
    for number, draw in enumerate(draws):
        assert draw.number == number
        assert draw.rows.unique().numel() == 10
        assert values[draw.rows].isfinite().all()
        assert set(draw.rows.tolist()) <= set(fold.train.tolist())
        assert draw.test.equal(fold.test[values[fold.test].isfinite()])
        assert not set(draw.rows.tolist()) & set(draw.test.tolist())


def test_more_labels_than_there_are(gaps, caplog):
    labels = gaps.folds[0][0].numel()
    assert sorted(gaps.draw(labels, 2).rows.tolist()) == gaps.folds[0][0].tolist()
    with pytest.raises(ValueError, match=f"{labels + 1} labels asked for, {labels} available"):
        gaps.draw(labels + 1, 0)
    assert gaps.fitting([10, labels]) == [10, labels]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert gaps.fitting([10, labels + 1, 1000]) == [10]
    assert f"gaps: {labels} labels in training; left out: {labels + 1}, 1000" in caplog.text


def test_sizes_that_do_not_fit_and_tests_that_are_few(dataset, fold, gaps, caplog):
    labels, tests = (int(dataset.target(GAP)[part].isfinite().sum()) for part in (fold.train, fold.test))
    wide = fold_task("gaps", dataset, GAP, torch.arange(60), torch.arange(60, 120))
    wide.require_fitting([10, 1000])
    assert not caplog.records
    with pytest.raises(
        ValueError, match=f"--sizes 500,1000: {labels} labels 'band_gap' .* {tests} in the test; sizes up to"
    ):
        gaps.require_fitting([500, 1000])
    gaps.require_fitting([labels, 1000])
    assert f"gaps: {tests} labelled crystals in the test are few" in caplog.text
    with pytest.raises(ValueError, match=r"2 labels 'band_gap' .*; sizes up to 2 fit$"):
        fold_task("gaps", dataset, GAP, fold.train[:3], fold.test).require_fitting([4])
    without = dataset.with_labels({GAP: torch.full_like(dataset.target(GAP), float("nan"))})
    with pytest.raises(ValueError, match="no crystal of the test has a label 'band_gap'"):
        fold_task("gaps", without, GAP, fold.train, fold.test).require_fitting([2])


def test_labels_are_drawn_from_a_pool(dataset, fold):
    task = fold_task("gaps", dataset, GAP, fold.train, fold.test, pool=20)
    (train, test), values = task.folds[0], dataset.target(GAP)
    assert train.numel() == 20
    assert train.equal(train.sort().values)
    assert set(train.tolist()) <= set(fold.train.tolist())
    assert values[train].isfinite().all()
    assert test.equal(fold.test)
    assert task.rows.equal(torch.cat([train, test]).sort().values)
    assert task.draw(15, 3).rows.unique().numel() == 15
    again = fold_task("gaps", dataset, GAP, fold.train, fold.test, pool=20)
    assert again.folds[0][0].equal(train)
    whole = fold_task("gaps", dataset, GAP, fold.train, fold.test, pool=10_000)
    assert whole.folds[0][0].equal(fold.train[values[fold.train].isfinite()])


def test_units(dataset, gaps):
    assert gaps.unit == "eV"
    assert Task("energy", dataset, FORMATION, gaps.folds).unit == "eV/atom"
    assert Task("other", dataset, "other", gaps.folds).unit == ""


def test_folds_of_formulas_share_none(dataset):
    task = cross_task("energy", dataset, FORMATION, "formula")
    assert len(task.folds) == 5
    assert torch.cat([test for _, test in task.folds]).sort().values.equal(torch.arange(120))
    for train, test in task.folds:
        assert torch.cat([train, test]).sort().values.equal(torch.arange(120))
        known, unseen = ({dataset.formula(row) for row in part.tolist()} for part in (train, test))
        assert not known & unseen
        assert len(unseen) == 12
    for number in (0, 3, 4, 5, 8):
        draw = task.draw(20, number)
        assert draw.test.equal(task.folds[number % 5][1])
        assert not set(draw.rows.tolist()) & set(draw.test.tolist())
    # The same fold comes round with other labels.
    assert not task.draw(20, 0).rows.equal(task.draw(20, 5).rows)


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is not here")
def test_the_official_folds_of_phonons():
    dataset = load_dataset(PUBLISHED)
    task = cross_task(PHONONS, dataset, PHONONS, "matbench")
    assert [(train.numel(), test.numel()) for train, test in task.folds] == [(1012, 253)] * 5
    official = KFold(5, shuffle=True, random_state=18012019).split(np.arange(1265))
    for (train, test), (expected, expected_test) in zip(task.folds, official, strict=True):
        np.testing.assert_array_equal(train, expected)
        np.testing.assert_array_equal(test, expected_test)
    assert matbench_folds(dataset)[task.draw(1000, 7).test].unique().tolist() == [2]
    assert task.unit == "1/cm"


def test_all_labels_of_a_fold(dataset, fold):
    task = fold_task(GAP, dataset, GAP, fold.train, fold.test)
    draw, known = task.draw(ALL, 3), torch.isfinite(dataset.target(GAP))
    assert draw.rows.equal(fold.train[known[fold.train]])
    assert draw.test.equal(fold.test[known[fold.test]])
    assert task.fitting([ALL, 10**6]) == [ALL]
