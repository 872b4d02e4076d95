from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyg_dim.objectives.supervised import Supervised, robust_l1_term

NAN = float("nan")


class Mean(nn.Module):
    """An encoder that hands the features of the batch through a linear map."""

    channels = 5

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, batch):
        return self.linear(batch.x)


def batch(y, seed=0):
    y = torch.tensor(y)
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(x=torch.randn(y.size(0), 3, generator=generator), y=y)


def objective(targets=("a", "b"), **options):
    torch.manual_seed(0)
    return Supervised(Mean(), targets, **options)


@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("mse", 2)])
def test_loss_is_the_mean_over_known_normalised_labels(loss, power):
    model = objective(loss=loss)
    data = batch([[1.0, 10.0], [2.0, NAN], [4.0, 30.0]])
    model.fit_labels(data.y)
    losses = model(data)
    out = (model.predict(data) - model.mean) / model.scale
    expected = [
        abs(out[i, t] - (data.y[i, t] - model.mean[t]) / model.scale[t]) ** power
        for i, t in [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1)]
    ]
    torch.testing.assert_close(losses["total"], torch.stack(expected).mean())


def test_mean_absolute_error_is_in_the_unit_of_the_target():
    model = objective()
    data = batch([[1.0, 10.0], [2.0, NAN], [4.0, 30.0]])
    model.fit_labels(data.y)
    losses, prediction = model(data), model.predict(data)
    torch.testing.assert_close(losses["mae/a"], (prediction[:, 0] - data.y[:, 0]).abs().mean())
    torch.testing.assert_close(losses["mae/b"], (prediction[[0, 2], 1] - data.y[[0, 2], 1]).abs().mean())
    assert losses["mae/a/coverage"] == 1
    torch.testing.assert_close(losses["mae/b/coverage"], torch.tensor(2 / 3))


def test_normalisation_uses_known_labels_only_and_is_saved():
    model = objective()
    model.fit_labels(torch.tensor([[1.0, 7.0], [3.0, NAN], [NAN, 7.0]]))
    assert model.mean.tolist() == [2, 7]
    assert model.scale.tolist() == [1, 1]  # population deviation of 1 and 3; a constant target keeps its unit
    copy = objective()
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.mean, model.mean)


def test_missing_labels_leave_the_gradient_finite_and_unchanged():
    model = objective(targets=("a",))
    full, masked = batch([[1.0], [2.0]]), batch([[1.0], [2.0], [NAN]])
    masked.x[:2] = full.x
    gradients = []
    for data in (full, masked):
        model.zero_grad()
        model(data)["total"].backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_without_labels_costs_nothing():
    model = objective(targets=("a",))
    losses = model(batch([[NAN], [NAN]]))
    losses["total"].backward()
    assert losses["total"] == 0
    assert losses["mae/a/coverage"] == 0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_it_learns_a_linear_label():
    model = objective(targets=("a",))
    data = batch([[0.0]] * 64)
    data.y = 100 + 20 * data.x[:, :1]
    model.fit_labels(data.y)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = model(data)["mae/a"]
    for _ in range(200):
        optimiser.zero_grad()
        losses = model(data)
        losses["total"].backward()
        optimiser.step()
    assert losses["mae/a"] < 0.1 * first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": ()}, "at least one target"),
        ({"targets": ("a", "a")}, "each once"),
        ({"targets": ("a",), "loss": "l2"}, "known: l1, mse"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        objective(**arguments)


def test_a_target_without_labels_is_named():
    with pytest.raises(ValueError, match="target 'b' has no label"):
        objective().fit_labels(torch.tensor([[1.0, NAN]]))


def test_robust_loss_by_hand():
    model = objective(loss="robust_l1")
    data = batch([[1.0, 10.0], [2.0, NAN], [4.0, 30.0]])
    model.fit_labels(data.y)
    out = model.head(model.represent(data))
    assert out.shape == (3, 4)
    torch.testing.assert_close(model.predict(data), out[:, :2] * model.scale + model.mean)
    terms = []
    for row, column in [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1)]:
        error = out[row, column] - (data.y[row, column] - model.mean[column]) / model.scale[column]
        terms.append(2**0.5 * error.abs() * (-out[row, 2 + column]).exp() + out[row, 2 + column])
    losses = model(data)
    torch.testing.assert_close(losses["total"], torch.stack(terms).mean())
    losses["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_robust_loss_is_smallest_where_the_deviation_is_that_of_the_errors():
    error = torch.tensor([0.5, -1.5, 1.0])
    spread = torch.linspace(-2, 2, 4001)
    best = spread[robust_l1_term(error[:, None], spread).mean(dim=0).argmin()]
    # sqrt(2) times the mean absolute error.
    assert best.exp().item() == pytest.approx(2**0.5, rel=1e-3)


def test_residual_head():
    model = objective(head="residual", head_channels=4)
    widths = [(layer.in_features, layer.out_features) for layer in model.head[0].layers]
    assert widths == [(5, 8), (8, 4)]
    assert model.predict(batch([[1.0, 2.0]])).shape == (1, 2)
    with pytest.raises(ValueError, match="unknown head 'deep'; known: hidden, residual"):
        objective(head="deep")
