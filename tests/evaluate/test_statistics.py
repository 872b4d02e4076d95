from __future__ import annotations

import numpy as np
import pytest

from pyg_dim.evaluate.statistics import paired


def test_a_constant_difference_has_no_uncertainty():
    errors = np.arange(1.0, 8.0)
    found = paired(errors - 0.5, errors)
    assert (found.count, found.difference, found.low, found.high) == (7, -0.5, -0.5, -0.5)
    assert (found.wins, found.ties, found.losses) == (7, 0, 0)
    assert found.verdict == "better"
    turned = paired(errors, errors - 0.5)
    assert (turned.difference, turned.wins, turned.losses, turned.verdict) == (0.5, 0, 7, "worse")


def test_equal_errors_are_ties():
    errors = np.array([0.3, 1e6, 2.0, 0.1])
    found = paired(errors * (1 + np.array([0.0, 5e-10, -5e-10, 3e-9])), errors)
    assert (found.wins, found.ties, found.losses) == (0, 3, 1)
    found = paired(errors, errors)
    assert (found.difference, found.low, found.high, found.ties, found.verdict) == (0.0, 0.0, 0.0, 4, "too few")


def test_the_interval_of_two_draws_is_known():
    # A resample of two draws is (-1, -1) or (3, 3), a quarter of the time each, or mixed, with the median 1.
    found = paired(np.array([0.0, 4.0]), np.array([1.0, 1.0]))
    assert (found.difference, found.low, found.high, found.verdict) == (1.0, -1.0, 3.0, "too few")
    assert (found.wins, found.ties, found.losses) == (1, 0, 1)


def test_the_interval_is_that_of_the_median():
    generator = np.random.default_rng(1)
    covered, widths = 0, []
    for _ in range(40):
        difference = generator.normal(-1.0, 1.0, size=60)
        found = paired(difference, np.zeros(60))
        assert found.low <= found.difference <= found.high
        assert found.difference == np.median(difference)
        assert found.wins == (difference < 0).sum()
        covered += found.low <= -1.0 <= found.high
        widths.append(found.high - found.low)
    # Of 40 intervals at 95 %, 38 hold the truth; the median of 60 has a standard error of 1.25 / sqrt(60) = 0.16.
    assert covered >= 35
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.16, rel=0.15)
    assert found == paired(difference, np.zeros(60))


@pytest.mark.parametrize(("errors", "others"), [((3,), (2,)), ((2, 1), (2, 1)), ((0,), (0,))])
def test_what_is_not_paired_is_an_error(errors, others):
    with pytest.raises(ValueError, match="paired errors are two vectors of one length, not"):
        paired(np.ones(errors), np.ones(others))


def test_six_draws_can_be_level_and_what_is_no_number_is_refused():
    errors = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    assert paired(errors, errors).verdict == "level"
    assert paired(errors, errors + np.array([1, -1, 1, -1, 1, -1.0])).verdict == "level"
    with pytest.raises(ValueError, match="have to be finite: a fit has failed"):
        paired(errors, np.full(6, np.nan))
