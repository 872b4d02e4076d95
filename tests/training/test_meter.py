from __future__ import annotations

import math

import pytest
import torch

from pyg_dim.training.meter import LossMeter

NAN = float("nan")


def losses(**values):
    return {name.replace("__", "/"): torch.tensor(value) for name, value in values.items()}


def test_batches_count_with_their_crystals():
    meter = LossMeter()
    meter.update(losses(total=1.0, js=4.0), 1)
    meter.update(losses(total=2.0, js=0.0), 3)
    assert meter.means() == {"total": 1.75, "js": 1.0}
    assert meter.crystals == 4


def test_uncovered_batches_do_not_dilute_a_mean():
    meter = LossMeter()
    meter.update(losses(kind=2.0, kind__coverage=0.5), 4)
    meter.update(losses(kind=NAN, kind__coverage=0.0), 4)
    meter.update(losses(kind=5.0, kind__coverage=1.0), 2)
    means = meter.means()
    assert means["kind"] == pytest.approx((2 * 2 + 5 * 2) / 4)
    assert means["kind/coverage"] == pytest.approx(0.4)


def test_names_may_differ_between_batches():
    meter = LossMeter()
    meter.update(losses(total=1.0, kind=3.0), 2)
    meter.update(losses(total=3.0), 2)
    assert meter.means() == {"total": 2.0, "kind": 3.0}


def test_a_coverage_that_a_batch_does_not_have_is_zero_there():
    meter = LossMeter()
    meter.update(losses(total=1.0, kind=3.0, kind__coverage=0.5), 2)
    meter.update(losses(total=3.0), 6)
    assert meter.means() == {"total": 2.5, "kind": 3.0, "kind/coverage": 0.125}


def test_a_loss_that_is_not_finite_shows():
    meter = LossMeter()
    meter.update(losses(total=1.0), 2)
    meter.update(losses(total=NAN), 2)
    assert math.isnan(meter.means()["total"])


def test_never_covered_is_nan_and_reset_forgets():
    meter = LossMeter()
    meter.update(losses(kind=0.0, kind__coverage=0.0), 2)
    assert math.isnan(meter.means()["kind"])
    meter.reset()
    assert meter.means() == {}
    assert meter.crystals == 0


def test_half_precision_is_summed_in_single():
    meter = LossMeter()
    for _ in range(1000):
        meter.update({"total": torch.tensor(1.0, dtype=torch.bfloat16)}, 64)
    assert meter.means()["total"] == pytest.approx(1.0)


def test_one_process_needs_no_reduction():
    meter = LossMeter()
    meter.update(losses(total=1.5), 2)
    assert meter.reduced_means() == meter.means()
