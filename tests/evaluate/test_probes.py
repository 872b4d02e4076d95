from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyg_dim.evaluate.probes import label_subsets, probe
from pyg_dim.evaluate.regressors import DUMMY, LEAST_SQUARES, RIDGE


def linear_problem(rows: int, columns: int, noise: float = 0.0, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    w = torch.randn(columns, generator=generator, dtype=torch.float64)
    y = 2.0 + x @ w + noise * torch.randn(rows, generator=generator, dtype=torch.float64)
    return x, y


def test_a_linear_label_is_learned_exactly_by_least_squares():
    x, y = linear_problem(300, 10)
    report = probe(x[:200], y[:200], x[200:], y[200:], sizes=(50,), repeats=3)
    assert max(report.of(50, LEAST_SQUARES)) < 1e-10
    # Ridge keeps within the range of its labels, which a few of the tests leave.
    assert max(report.of(50, RIDGE)) < 0.05
    assert len(report.errors) == 9
    assert report.notes == ()


def test_errors_equal_those_of_the_normal_equations():
    x, y = linear_problem(150, 5, noise=1.0)
    report = probe(x[:100], y[:100], x[100:], y[100:], sizes=(40,), repeats=1)
    (subset,) = label_subsets(y[:100], 40, 1)
    design = torch.cat([x, torch.ones(150, 1)], dim=1)
    a, b = design[:100][subset], y[:100][subset]
    weights = torch.linalg.solve(a.T @ a, a.T @ b)
    assert report.of(40, LEAST_SQUARES)[0] == pytest.approx(float((design[100:] @ weights - y[100:]).abs().mean()))
    assert report.of(40, DUMMY)[0] == pytest.approx(float((b.mean() - y[100:]).abs().mean()))


def test_ridge_survives_where_least_squares_is_at_its_worst():
    x, y = linear_problem(400, 60, noise=3.0)
    report = probe(x[:200], y[:200], x[200:], y[200:], sizes=(62,), repeats=5)
    assert np.median(report.of(62, LEAST_SQUARES)) > 2 * np.median(report.of(62, RIDGE))
    assert np.median(report.of(62, RIDGE)) < np.median(report.of(62, DUMMY))


@pytest.mark.parametrize("jitter", [0.0, 1e-6])
def test_a_constant_column_does_not_blow_up(jitter: float):
    x, y = linear_problem(300, 4)
    column = 50.0 * torch.ones(300, 1, dtype=torch.float64)
    # Rounding noise where the labels are, a real change in the test: its weight would be meaningless.
    column[:200] += jitter * torch.randn(200, 1, dtype=torch.float64)
    column[200:] += 5.0
    with_constant = torch.cat([x, column], dim=1)
    report = probe(with_constant[:200], y[:200], with_constant[200:], y[200:], sizes=(30,), repeats=2)
    assert max(report.of(30, LEAST_SQUARES)) < 1e-9


def test_a_collapsed_representation_predicts_the_mean():
    _, y = linear_problem(60, 3)
    x = torch.full((60, 3), 0.7)
    report = probe(x[:40], y[:40], x[40:], y[40:], sizes=(20,), repeats=2)
    assert report.of(20, LEAST_SQUARES) == pytest.approx(report.of(20, DUMMY))
    assert report.of(20, RIDGE) == pytest.approx(report.of(20, DUMMY))


def test_subsets_are_the_same_for_every_representation():
    y = torch.arange(50.0)
    y[::7] = math.nan
    first, second = label_subsets(y, 10, 3, seed=4), label_subsets(y, 10, 3, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], label_subsets(y, 10, 3, seed=5)[0])
    for subset in first:
        assert torch.isfinite(y[subset]).all()
        assert subset.unique().numel() == 10


def test_all_labels_make_one_subset():
    assert len(label_subsets(torch.arange(10.0), 10, repeats=5)) == 1


def test_missing_labels_and_sizes_too_large_are_noted():
    x, y = linear_problem(60, 2)
    y[:5] = math.nan
    y[40:43] = math.nan
    report = probe(x[:40], y[:40], x[40:], y[40:], sizes=(20, 1000), repeats=2)
    assert report.notes == (
        "5 of 40 training rows have no label and are left out",
        "3 of 20 test rows have no label and are left out",
        "no probe on 1000 labels: 35 training crystals have one",
    )
    assert {error.n for error in report.errors} == {20}
    assert max(report.of(20, LEAST_SQUARES)) < 1e-10


def test_errors_name_the_fault():
    x, y = linear_problem(20, 2)
    with pytest.raises(ValueError, match="no test row has a label"):
        probe(x, y, x, torch.full_like(y, math.nan), sizes=(5,))
    with pytest.raises(ValueError, match="at least 2"):
        probe(x, y, x, y, sizes=(1,))
    with pytest.raises(ValueError, match="2 dimensions in training, 1 in the test"):
        probe(x, y, x[:, :1], y, sizes=(5,))
    with pytest.raises(ValueError, match=r"got \[20, 2\] and \[19\]"):
        probe(x, y[1:], x, y, sizes=(5,))
    broken = x.clone()
    broken[3, 1] = math.inf
    with pytest.raises(ValueError, match="the first in row 3"):
        probe(x, y, broken, y, sizes=(5,))
    with pytest.raises(ValueError, match="21 labels asked for, 20 available"):
        label_subsets(y, 21, 1)
