from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from pyg_dim.objectives import Distillation

NAN = float("nan")


class Linear(nn.Module):
    """An encoder that hands the features of the batch through a linear map."""

    channels = 5

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, batch):
        return self.linear(batch.x)


def batch(embedding, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Data(x=torch.randn(len(embedding), 3, generator=generator), embedding=torch.as_tensor(embedding))


def objective(num_dimensions=2):
    torch.manual_seed(0)
    return Distillation(Linear(), num_dimensions)


def test_loss_is_the_mean_square_in_units_of_the_mean_variance():
    model = objective()
    data = batch([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    model.fit_embeddings(data.embedding)
    losses = model(data)
    out = model.projector(model.encoder(data))
    # Variances 14/3 and 1400/3.
    scale = (0.5 * (14 + 1400) / 3) ** 0.5
    expected = [
        (out[i, k] - (data.embedding[i, k] - mean) / scale) ** 2 for k, mean in enumerate([3.0, 30.0]) for i in range(3)
    ]
    torch.testing.assert_close(losses["total"], torch.stack(expected).mean())
    assert set(losses) == {"total", "mse/embedding", "mse/embedding/coverage"}
    assert losses["mse/embedding"] == losses["total"]
    assert losses["total"].requires_grad
    assert not losses["mse/embedding"].requires_grad
    assert losses["mse/embedding/coverage"] == 1


def test_it_is_the_published_loss_up_to_a_factor():
    """Mean squared error of the embeddings as they are, for the projector that predicts them so."""
    model = objective()
    data = batch(torch.randn(20, 2) * torch.tensor([0.1, 3.0]) + 5)
    model.fit_embeddings(data.embedding)
    plain = nn.Linear(5, 2)
    with torch.no_grad():
        plain.weight.copy_(model.projector.weight * model.scale)
        plain.bias.copy_(model.projector.bias * model.scale + model.mean)
    published = nn.functional.mse_loss(plain(model.encoder(data)), data.embedding)
    torch.testing.assert_close(model(data)["total"] * model.scale**2, published)


def test_predicting_the_mean_scores_one():
    model = objective()
    nn.init.zeros_(model.projector.weight)
    nn.init.zeros_(model.projector.bias)
    data = batch(torch.randn(50, 2) * torch.tensor([1e-3, 1e4]) + 7)
    model.fit_embeddings(data.embedding)
    torch.testing.assert_close(model(data)["total"], torch.tensor(1.0))


def test_distances_between_embeddings_keep_their_ratios():
    """A direction without information is not raised to the rank of the others."""
    values = torch.randn(30, 2, dtype=torch.float64) * torch.tensor([1.0, 1e-6])
    model = objective().double()
    model.fit_embeddings(values)
    seen = (values - model.mean) / model.scale
    torch.testing.assert_close(torch.pdist(seen) * model.scale, torch.pdist(values))


def test_crystals_without_an_embedding_change_nothing():
    model = objective()
    values = [[1.0, 5.0], [3.0, 9.0], [NAN, NAN], [0.0, 1.0]]
    data = batch(values)
    model.fit_embeddings(data.embedding)
    assert model.mean.tolist() == pytest.approx([4 / 3, 5])
    losses = model(data)
    losses["total"].backward()
    masked = [p.grad.clone() for p in model.parameters()]
    keep = torch.tensor([0, 1, 3])
    model.zero_grad()
    alone = model(Data(x=data.x[keep], embedding=data.embedding[keep]))
    alone["total"].backward()
    torch.testing.assert_close(losses["total"], alone["total"])
    torch.testing.assert_close(masked, [p.grad for p in model.parameters()])
    assert losses["mse/embedding/coverage"] == 0.75

    none = model(batch([[NAN, NAN], [NAN, 1.0]]))
    assert (none["total"], none["mse/embedding/coverage"]) == (0, 0)
    none["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.5678])
def test_a_constant_teacher_keeps_its_unit_and_stays_finite(constant):
    values = torch.full((7, 2), constant, dtype=torch.float64)
    # Equal but for rounding, as sums in another order are.
    values[3, 0] *= 1 + 2e-16
    model = objective()
    model.fit_embeddings(values)
    assert model.scale == 1
    assert model(batch(values.float()))["total"] < 10


def test_normalisation_is_saved():
    model, copy = objective(), objective()
    model.fit_embeddings(torch.tensor([[1.0, 5.0], [3.0, 11.0]]))
    copy.load_state_dict(model.state_dict())
    assert copy.mean.tolist() == [2, 8]
    assert copy.scale == pytest.approx(5**0.5)
    assert {name.split(".")[0] for name in model.state_dict()} == {"mean", "scale", "encoder", "projector"}


def test_it_learns_a_linear_teacher():
    model = objective()
    data = batch(torch.zeros(64, 2))
    data.embedding = 100 + 20 * data.x[:, :2] @ torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    model.fit_embeddings(data.embedding)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(200):
        optimiser.zero_grad()
        total = model(data)["total"]
        total.backward()
        optimiser.step()
    assert total < 0.01


def test_a_batch_without_embedding_says_what_to_do():
    with pytest.raises(ValueError, match=r"make it of dataset\.with_embedding\(vectors\)"):
        objective()(Data(x=torch.zeros(2, 3)))


def test_bad_values():
    with pytest.raises(ValueError, match=r"shape \[4, 3\] for 2 dimensions"):
        objective().fit_embeddings(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="no embedding of any crystal in the training part"):
        objective().fit_embeddings(torch.full((3, 2), NAN))
    with pytest.raises(ValueError, match="one dimension at least; num_dimensions is 0"):
        objective(0)
