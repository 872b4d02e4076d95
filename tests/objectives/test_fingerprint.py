from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from pyg_dim.objectives import Fingerprint


class Linear(nn.Module):
    """An encoder that hands the features of the batch through a linear map."""

    channels = 5

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, batch):
        return self.linear(batch.x)


def batch(fingerprint, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Data(x=torch.randn(len(fingerprint), 3, generator=generator), fingerprint=torch.as_tensor(fingerprint))


def objective(num_features=2):
    torch.manual_seed(0)
    return Fingerprint(Linear(), num_features)


def test_loss_is_the_mean_square_of_standardised_differences():
    model = objective()
    data = batch([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    model.fit_fingerprints(data.fingerprint)
    losses = model(data)
    out = model.projector(model.encoder(data))
    expected = [
        (out[i, k] - (data.fingerprint[i, k] - mean) / spread) ** 2
        for k, (mean, spread) in enumerate([(3.0, (14 / 3) ** 0.5), (30.0, 10 * (14 / 3) ** 0.5)])
        for i in range(3)
    ]
    torch.testing.assert_close(losses["total"], torch.stack(expected).mean())
    assert set(losses) == {"total", "mse/fingerprint"}
    assert losses["mse/fingerprint"] == losses["total"]
    assert not losses["mse/fingerprint"].requires_grad
    assert losses["total"].requires_grad


def test_predicting_the_mean_scores_one():
    model = objective()
    nn.init.zeros_(model.projector.weight)
    nn.init.zeros_(model.projector.bias)
    data = batch(torch.randn(50, 2) * torch.tensor([1e-3, 1e4]) + 7)
    model.fit_fingerprints(data.fingerprint)
    torch.testing.assert_close(model(data)["total"], torch.tensor(1.0))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.5678, 1e-42])
def test_a_constant_column_keeps_its_unit_and_stays_finite(constant):
    values = torch.tensor([[constant, k] for k in range(7)], dtype=torch.float64)
    # Equal but for rounding, as sums in another order are.
    values[3, 0] *= 1 + 2e-16
    model = objective()
    model.fit_fingerprints(values)
    assert model.scale.tolist() == [1, 2]
    losses = model(batch(values.float()))
    assert losses["total"] < 10


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_far_from_all_of_training_counts_as_ten_spreads(sign):
    model = objective(num_features=1)
    model.fit_fingerprints(torch.tensor([[1e-5], [0.0], [0.0], [-1e-5]]))
    torch.nn.init.zeros_(model.projector.weight)
    torch.nn.init.zeros_(model.projector.bias)
    torch.testing.assert_close(model(batch([[sign * 1.5]]))["total"], torch.tensor(100.0))


def test_normalisation_is_saved():
    model, copy = objective(), objective()
    model.fit_fingerprints(torch.tensor([[1.0, 5.0], [3.0, 9.0]]))
    copy.load_state_dict(model.state_dict())
    assert copy.mean.tolist() == [2, 7]
    assert copy.scale.tolist() == [1, 2]


def test_the_gradient_reaches_the_encoder():
    model = objective()
    model(batch([[1.0, 2.0], [0.0, 1.0]]))["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_it_learns_a_linear_fingerprint():
    model = objective()
    data = batch(torch.zeros(64, 2))
    data.fingerprint = 100 + 20 * data.x[:, :2] @ torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    model.fit_fingerprints(data.fingerprint)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(200):
        optimiser.zero_grad()
        total = model(data)["total"]
        total.backward()
        optimiser.step()
    assert total < 0.01


def test_the_projector_is_one_linear_layer():
    model = objective(145)
    assert isinstance(model.projector, nn.Linear)
    assert (model.projector.in_features, model.projector.out_features) == (5, 145)


def test_a_batch_without_fingerprint_says_what_to_do():
    with pytest.raises(ValueError, match=r"dataset\.with_fingerprint\(fingerprint_table\(dataset"):
        objective()(Data(x=torch.zeros(2, 3)))


@pytest.mark.parametrize("values", [torch.zeros(4, 3), torch.zeros(2), torch.zeros(0, 2)])
def test_values_of_another_shape_are_an_error(values):
    with pytest.raises(ValueError, match="for 2 columns"):
        objective().fit_fingerprints(values)


def test_what_is_not_a_number_is_named():
    with pytest.raises(ValueError, match="row 1 is not a number in column 0"):
        objective().fit_fingerprints(torch.tensor([[1.0, 2.0], [float("nan"), 1.0]]))
    with pytest.raises(ValueError, match="one column at least; num_features is 0"):
        objective(0)
