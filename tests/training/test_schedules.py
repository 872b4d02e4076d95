from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyg_dim.training.callbacks import Interrupted
from pyg_dim.training.module import TrainingModule
from pyg_dim.training.run import train
from pyg_dim.training.schedules import cosine


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 1000, 12345])
def test_it_rises_and_then_falls(steps):
    factors = np.array([cosine(step, steps) for step in range(steps)])
    warm = max(1, round(0.02 * steps))
    np.testing.assert_allclose(factors[:warm], np.arange(1, warm + 1) / warm, rtol=1e-12)
    assert (np.diff(factors[warm - 1 :]) <= 0).all()
    assert factors.max() == 1
    assert factors.min() > 0


def test_values_along_the_way():
    # Of 1000 steps, 20 rise; half of the others end at 510, a quarter at 265.
    assert cosine(0, 1000) == 1 / 20
    assert cosine(9, 1000) == 0.5
    assert cosine(19, 1000) == cosine(20, 1000) == 1
    assert cosine(265, 1000) == pytest.approx(0.5 + 0.25 * 2**0.5, rel=1e-12)
    assert cosine(510, 1000) == pytest.approx(0.5, rel=1e-12)
    assert cosine(755, 1000) == pytest.approx(0.5 - 0.25 * 2**0.5, rel=1e-12)


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_it_ends_at_zero_and_stays_there(steps):
    assert cosine(steps, steps) == 0
    assert cosine(steps + 5, steps) == 0


@pytest.fixture
def rates(monkeypatch):
    """Learning rates by step, of every run of the test, one after the other."""
    found = []
    original = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        found.append((self.global_step, self.optimizers().param_groups[0]["lr"]))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    return found


def test_a_run_follows_it(options, rates):
    train(options(epochs=3, schedule="cosine", lr=2e-3, val_fraction=0.0))
    assert [step for step, _ in rates] == list(range(15))
    np.testing.assert_allclose([rate for _, rate in rates], [2e-3 * cosine(step, 15) for step in range(15)], rtol=1e-12)
    rates.clear()
    train(options(epochs=1, lr=2e-3, val_fraction=0.0))
    assert {rate for _, rate in rates} == {2e-3}


@pytest.mark.parametrize("stop_at", [6, 9])
def test_a_run_that_was_stopped_goes_on_exactly(options, rates, monkeypatch, stop_at):
    whole = train(options(name="whole", epochs=3, schedule="cosine", val_fraction=0.0)).directory / "last.ckpt"
    expected = list(rates)
    rates.clear()
    chosen = options(name="stopped", epochs=3, schedule="cosine", val_fraction=0.0)
    original = TrainingModule.on_train_batch_end

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step == stop_at:
            signal.raise_signal(signal.SIGINT)
        return original(self, outputs, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_batch_end", on_train_batch_end)
        with pytest.raises(Interrupted) as stop:
            train(chosen)
    assert len(rates) < len(expected)
    train(replace(chosen, resume=str(stop.value.checkpoint)))
    assert rates == expected
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (whole, stop.value.checkpoint)]
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
