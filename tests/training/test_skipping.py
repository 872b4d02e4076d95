"""Steps that are no good change nothing and are counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyg_dim.training import module as module_file
from pyg_dim.training.module import TrainingModule
from pyg_dim.training.skipping import SkippedSteps, poisoned


class Toy(nn.Module):
    """An objective with a batch norm."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return {"total": (self.norm(self.encoder(x)) - x[:, :1]).square().mean()}


class Alone(TrainingModule):
    """A single process without a trainer."""

    @property
    def _data(self):
        return SimpleNamespace(train=SimpleNamespace(crystals=lambda step: [3]))


def made(monkeypatch, fused, dtype):
    monkeypatch.setattr(module_file, "_is_fused", lambda device: fused)
    torch.manual_seed(0)
    module = Alone(Toy().to(dtype), 1e-2, 1e-2, 0, {})
    return module, module.configure_optimizers()


def step(module, optimiser, x):
    module._skipped.begin_step()
    optimiser.zero_grad()
    module.training_step(x, 0).backward()
    module.on_before_optimizer_step(optimiser)
    optimiser.step()


def flat(value):
    if isinstance(value, dict):
        return [part for key in value for part in flat(value[key])]
    return [part for item in value for part in flat(item)] if isinstance(value, list) else [value]


def equal(one, other):
    pairs = list(zip(flat(one), flat(other), strict=True))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_skipped_step_leaves_no_trace(monkeypatch, fused, dtype, bad):
    """With the optimiser of a GPU as well, which skips by itself."""
    good = torch.randn(4, 5, 3, dtype=dtype)
    module, optimiser = made(monkeypatch, fused, dtype)
    before = [step(module, optimiser, x) for x in good]
    expected = module.state_dict(), optimiser.state_dict(), module.train_meter.means()
    assert before
    module, optimiser = made(monkeypatch, fused, dtype)
    for x in (good[0], good[0] * bad, good[1], good[2], good[2] * bad, good[2] * bad, good[3]):
        step(module, optimiser, x)
    assert equal(module.state_dict(), expected[0])
    assert equal(optimiser.state_dict(), expected[1])
    assert module.train_meter.means() == expected[2]
    assert module._skipped.counts() == (3, 2)
    assert module._skipped.steps == 7


def test_a_step_may_be_the_first_that_is_skipped(monkeypatch):
    for fused in (None, True):
        module, optimiser = made(monkeypatch, fused, torch.float32)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        step(module, optimiser, torch.full((5, 3), torch.nan))
        assert equal(module.state_dict(), before)


def test_a_finite_loss_with_a_gradient_that_is_none():
    weight = nn.Parameter(torch.ones(2))
    optimiser = torch.optim.AdamW([weight, nn.Parameter(torch.ones(1))])
    skipped = SkippedSteps(nn.Module())
    for gradient, found in (([1.0, 1e30], 0), ([1.0, torch.inf], 1), ([torch.nan, 0.0], 1), ([0.0, 0.0], 0)):
        weight.grad = torch.tensor(gradient)
        assert skipped.look(optimiser) == found
    assert skipped.counts() == (2, 2)
    skipped.begin_epoch()
    assert skipped.counts() == (0, 0)


def test_a_row_goes_on_in_the_next_epoch():
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.tensor([torch.nan])
    optimiser, skipped = torch.optim.AdamW([weight]), SkippedSteps(nn.Module())
    assert skipped.counts() == (0, 0)
    for _ in range(3):
        skipped.look(optimiser)
    skipped.begin_epoch()
    skipped.look(optimiser)
    assert skipped.counts() == (1, 4)


@pytest.mark.parametrize("value", [1.25, -3e-40, torch.inf, torch.nan])
def test_a_loss_that_is_no_number_has_no_gradient_that_is_one(value):
    x = torch.tensor(2.0, requires_grad=True)
    # The gradient by itself would be finite.
    loss = x + value
    poisoned(loss).backward()
    assert x.grad.isfinite() == loss.isfinite()
    if loss.isfinite():
        assert poisoned(loss) == loss
        assert x.grad == 1
